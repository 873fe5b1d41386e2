"""Partitioned tables, mirrored as one: leaves that come, go and are emptied; rows that move; and after each of it, ``verify`` is equal.

Also inheritance, where every table is mirrored as its own rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from icelake.lakehouse import Lakehouse
from icelake.stack.binaries import Binaries
from icelake.stack.postgres import Postgres

MADE = (
    "create table t (id int, k int, v text, primary key (id, k)) partition by list (k)",
    "create table a partition of t for values in (1)",
    # The same columns in another order, with an attnum that is gone.
    "create table b (v text, gone int, k int not null, id int not null)",
    "alter table b drop column gone",
    "alter table t attach partition b for values in (2)",
    "create table branch partition of t for values in (3, 4) partition by hash (id)",
    "create table c0 partition of branch for values with (modulus 2, remainder 0)",
    "create table c1 partition of branch for values with (modulus 2, remainder 1)",
    "create table rest partition of t default",
    "alter table t alter column v set storage external",
    "insert into t select g, 1 + g % 6, 'v' || g from generate_series(1, 60) g",
)


@dataclass
class Mirror:
    dsn: str
    lakehouse: Lakehouse
    folder: Path

    def sql(self, *statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as session:
            for statement in statements:
                session.execute(statement)

    def sync(self) -> list[Any]:
        """The codes of what is parked then."""
        return [parked["code"] for parked in self.lakehouse.sync()["parked"]]

    def equal(self) -> None:
        """Brought to the source's position, nothing is parked and no row differs."""
        report = self.lakehouse.verify()
        assert report["equal"], report

    def ask(self, question: str) -> list[dict[str, Any]]:
        return self.lakehouse.query(question).to_pylist()


@pytest.fixture(scope="module")
def server(binaries: Binaries) -> Iterator[Postgres]:
    with Postgres(version=binaries, settings={"fsync": "off"}) as server:
        yield server


@contextmanager
def mirror_of(server: Postgres, folder: Path, statements: tuple[str, ...], tables: str = "public.t", extra: str = "") -> Iterator[Mirror]:
    """These tables in a database of their own, and an empty lake beside it."""
    with psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute("create database parts")
    (folder / "dsn").touch(0o600)
    (folder / "dsn").write_text(server.dsn_of("parts"))
    (folder / "icelake.toml").write_text(
        f'[project]\nname = "parts"\n[sources.main]\ndsn = {{ file = "dsn" }}\ntables = ["{tables}"]\n[commit]\ninterval_ms = 50\n{extra}'
    )
    try:
        with Lakehouse.open(folder) as lakehouse:
            made = Mirror(server.dsn_of("parts"), lakehouse, folder)
            made.sql(*statements)
            yield made
    finally:
        with psycopg.connect(server.dsn, autocommit=True) as session:
            session.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = 'parts'")
            session.execute("drop database parts with (force)")


@pytest.fixture
def made(server: Postgres, tmp_path: Path) -> Iterator[Mirror]:
    """A partitioned table, mirrored."""
    with mirror_of(server, tmp_path, MADE) as made:
        made.equal()
        yield made


def leaves(made: Mirror) -> dict[str, int]:
    """How many rows of which leaf the lake has."""
    with psycopg.connect(made.dsn) as session:
        names: dict[int, str] = dict(session.execute("select oid::int8, relname from pg_class").fetchall())
    return {names[row["tableoid"]]: row["n"] for row in made.ask("select tableoid, count(*) as n from t group by 1")}


def test_everything_that_happens_to_leaves(made: Mirror) -> None:
    """Rules leaves, leaf truncate, tableoid."""
    assert leaves(made) == {"a": 10, "b": 10, "c0": 10, "c1": 10, "rest": 20}
    made.sql(
        "insert into t values (100, 1, 'x'), (101, 2, 'x'), (102, 3, repeat('long', 1000)), (103, 9, null)",
        "update t set v = 'new' where k = 2",
        "update t set k = 2 where id = 102",
        "update t set k = 4 where id = 101",
        "delete from t where id % 7 = 0",
    )
    made.equal()
    # A leaf is emptied, between other changes of it in the same batch; then two; then all.
    made.sql(
        "insert into t values (200, 2, 'before')", "truncate b", "insert into t values (201, 2, 'after')", "delete from b where id = 1"
    )
    made.equal()
    assert leaves(made)["b"] == 1
    made.sql("update t set v = 'in c' where k in (3, 4)", "truncate branch, a", "insert into t values (202, 3, 'after')")
    made.equal()
    made.sql(
        "insert into t values (300, 1, 'before')",
        "truncate t",
        "insert into t values (301, 2, 'after')",
        "insert into t values (302, 9, '')",
    )
    made.equal()
    assert leaves(made) == {"b": 1, "rest": 1}
    # A new leaf, one that brings rows, one that takes them along, one that comes back.
    made.sql("create table d partition of t for values in (5)", "insert into t select g, 5, 'd' || g from generate_series(1, 20) g")
    made.equal()
    made.sql(
        "create table e (v text, id int not null, k int not null)",
        "insert into e select 'e' || g, g, 6 from generate_series(1, 20) g",
        "alter table t attach partition e for values in (6)",
        "insert into t values (400, 6, 'came later')",
        "update t set k = 5 where k = 6 and id > 395",
    )
    made.equal()
    made.sql(
        "update t set v = 'last' where k = 6", "alter table t detach partition e", "update e set v = 'alone'", "delete from e where id < 5"
    )
    made.equal()
    made.sql("alter table t attach partition e for values in (6)")
    made.equal()
    made.sql(
        "alter table t detach partition e", "update e set v = 'unseen' where id < 10", "alter table t attach partition e for values in (6)"
    )
    made.equal()
    # The default partition cannot be there when another leaves concurrently.
    made.sql("alter table t detach partition rest")
    made.sql("alter table t detach partition d concurrently", "delete from d where id < 5", "insert into d values (1000, 5, 'alone')")
    made.equal()
    made.sql("drop table b", "create table b partition of t for values in (2)", "insert into t values (500, 2, 'another b')")
    made.equal()
    # A branch.
    made.sql("insert into t select g, 3 + g % 2, 'c' from generate_series(600, 640) g", "alter table t detach partition branch")
    made.equal()
    made.sql("delete from branch where id % 3 = 0", "alter table t attach partition branch for values in (3, 4)")
    made.equal()
    made.sql("drop table branch, a, b, e")
    made.equal()
    made.sql("create table a partition of t for values in (1)", "insert into t values (1, 1, 'again')")
    made.equal()
    assert leaves(made) == {"a": 1}


def test_a_partitioned_table_without_leaves(server: Postgres, tmp_path: Path) -> None:
    with mirror_of(server, tmp_path, ("create table t (id int primary key, v text) partition by range (id)",)) as made:
        made.equal()
        made.sql("create table a partition of t for values from (0) to (10)", "insert into t values (1, 'x')")
        made.equal()
        made.sql("alter table t add column w int default 5", "update t set v = 'y'", "insert into t values (2, 'z')")
        made.equal()


def test_leaves_come_and_go_while_the_table_is_loading(server: Postgres, tmp_path: Path) -> None:
    """Rule leaves, while ranges are being read; each range holds a part of a leaf, or several."""
    with mirror_of(server, tmp_path, MADE) as made:
        settings = made.lakehouse._source_settings(None)
        desk = made.lakehouse._desk(settings.name)
        events = iter(
            (
                "create table d partition of t for values in (7)",
                "insert into t values (70, 7, 'd'), (71, 1, 'a')",
                "truncate a",
                "alter table t detach partition b",
                "insert into b values ('alone', 2, 900)",
                "insert into t values (72, 1, 'a again')",
                "drop table c1",
                "update t set v = 'changed' where k = 3",
                "alter table t attach partition b for values in (2)",
                "truncate t",
                "insert into t select g, 1 + g % 2, 'late' from generate_series(1, 40) g",
            )
        )
        with desk.own(settings.name), made.lakehouse._applier(settings, desk) as applier:
            object.__setattr__(applier.settings, "range_rows", 7)
            applier.run_to(1)
            while (event := next(events, None)) is not None:
                made.sql(event)
                for _ in range(4):
                    applier.step(0.05)
            assert not applier.parked
        made.equal()


def test_a_key_without_an_order(server: Postgres, tmp_path: Path) -> None:
    """Numbers that are text in the lake: a leaf is read whole."""
    made_of = (
        "create table t (id numeric, k int, v text, primary key (id, k)) partition by range (k)",
        "create table a partition of t for values from (0) to (10)",
        "create table b partition of t for values from (10) to (20)",
        "insert into t select g / 2.0, g % 20, 'v' from generate_series(1, 100) g",
    )
    with mirror_of(server, tmp_path, made_of) as made:
        made.equal()
        made.sql("create table c partition of t for values from (20) to (30)", "insert into t values (1.50, 25, 'c'), (1.5, 5, 'a')")
        made.equal()
        made.sql("alter table t detach partition a", "truncate b", "insert into t values (7, 15, 'b')")
        made.equal()
        made.sql("alter table t attach partition a for values from (0) to (10)", "update t set k = 15 where id = 1.5 and k = 5")
        made.equal()


def test_rows_that_nothing_names(server: Postgres, tmp_path: Path) -> None:
    """REPLICA IDENTITY FULL of every leaf: a multiset."""
    made_of = (
        "create table t (k int, v text) partition by list (k)",
        "create table a partition of t for values in (1)",
        "create table b (v text, k int)",
        "alter table t attach partition b for values in (2)",
        "alter table a replica identity full",
        "alter table b replica identity full",
        "insert into t select 1 + g % 2, 'v' || g % 5 from generate_series(1, 40) g",
    )
    with mirror_of(server, tmp_path, made_of) as made:
        made.equal()
        made.sql("update t set v = 'u' where v = 'v1'", "update t set k = 1 where k = 2 and v = 'u'", "delete from t where v = 'v2'")
        made.equal()
        made.sql("insert into t values (2, 'x'), (2, 'x'), (1, 'x')", "truncate b", "insert into t values (2, 'y'), (2, 'y')")
        made.equal()
        # Nobody is kept from changing rows of a new leaf: it is not published before its rows can be named.
        made.sql(
            "create table c partition of t for values in (3)",
            "insert into t values (3, 'c'), (3, 'c')",
            "update t set v = 'cc' where k = 3",
        )
        assert made.sync() == ["REPLICA_IDENTITY"]
        made.sql(
            "update t set v = 'still allowed' where k = 3", "alter table c replica identity full", "delete from t where k = 1 and v = 'x'"
        )
        (refused,) = made.lakehouse.resume()["refused"]
        assert refused["code"] == "RESUME_NEEDS_RELOAD"
        made.lakehouse.resume(["t"], reload=True)
        made.equal()
        made.sql("alter table t detach partition a", "insert into a values (1, 'alone')")
        made.equal()
        # Without a leaf nothing says how rows are named.
        made.sql("alter table t detach partition b", "alter table t detach partition c")
        assert made.sync() == ["NO_PRIMARY_KEY"]
        made.sql("alter table t attach partition b for values in (2)", "update t set v = 'again' where v = 'y'")
        made.lakehouse.resume(["t"], reload=True)
        made.equal()


def test_append_only(server: Postgres, tmp_path: Path) -> None:
    made_of = (
        "create table t (at int, v text) partition by range (at)",
        "create table a partition of t for values from (0) to (10)",
        "insert into t select g, 'v' from generate_series(0, 9) g",
    )
    with mirror_of(server, tmp_path, made_of, extra='[tables."public.t"]\nappend_only = true\n') as made:
        made.equal()
        made.sql(
            "create table b partition of t for values from (10) to (20)", "insert into t values (11, 'b'), (1, 'a')", "update t set v = v"
        )
        made.equal()
        made.sql("insert into t values (2, 'a')", "truncate a", "insert into t values (3, 'a')")
        made.equal()
        made.sql("drop table b")
        made.equal()


def test_parked_and_replayed(made: Mirror) -> None:
    """A column is renamed and one is dropped: what happens meanwhile, to whatever leaf, is kept and replayed."""
    made.sql("alter table t rename column v to w", "update t set w = 'kept' where id < 30", "insert into t values (700, 2, 'b')")
    assert made.sync() == ["TABLE_CHANGED"]
    made.sql("update t set k = 2 where id = 12", "delete from t where id = 13", "insert into b values ('own order', 2, 701)")
    made.sync()
    assert made.lakehouse.resume()["refused"] == []
    made.equal()
    made.sql("alter table t add column more int default 4", "insert into t values (702, 1, 'x')", "update t set w = 'y' where id = 20")
    made.equal()
    made.sql("alter table t drop column more", "update t set w = 'z' where id = 21")
    assert made.sync() == ["TABLE_CHANGED"]
    # Leaves that come and go while it is parked.
    made.sql(
        "create table d partition of t for values in (7)",
        "insert into t values (703, 7, 'd'), (704, 1, 'a')",
        "alter table t detach partition b",
        "update b set w = 'alone'",
        "update t set w = 'again' where k = 1",
    )
    made.sync()
    assert made.lakehouse.resume()["refused"] == []
    made.equal()
    # Rows that are rewritten send nothing.
    made.sql("alter table t alter column w type varchar(99) using upper(w)", "insert into t values (705, 1, 'X')")
    assert made.sync() in (["TABLE_REWRITTEN"], ["TABLE_CHANGED"])
    assert made.lakehouse.resume()["refused"]
    made.lakehouse.resume(["t"], reload=True)
    made.equal()


def test_a_default_that_is_not_the_same_in_all_leaves(made: Mirror) -> None:
    """A column that a table had of its own, with a default of its own, before it became a leaf."""
    made.sql("create table d (id int not null, k int not null, v text)", "insert into d values (1, 7, 'd'), (2, 7, 'd')")
    made.sql(
        "alter table d add column n int default 8", "alter table t add column n int", "alter table t attach partition d for values in (7)"
    )
    assert made.sync() == ["TABLE_CHANGED"]
    made.lakehouse.resume(["t"], reload=True)
    made.equal()
    assert made.ask("select n, count(*) as c from t group by 1 order by 1 nulls first") == [{"n": None, "c": 60}, {"n": 8, "c": 2}]


def test_a_mirrored_table_becomes_a_leaf_and_a_leaf_a_table(server: Postgres, tmp_path: Path) -> None:
    with mirror_of(
        server, tmp_path, (*MADE, "create table d (like t including all)", "insert into d values (1, 7, 'd')"), "public.*"
    ) as made:
        made.equal()
        assert [table["name"] for table in made.lakehouse.tables()] == ["public.d", "public.t"]
        made.sql(
            "update d set v = 'own'", "alter table t attach partition d for values in (7)", "insert into t values (2, 7, 'd'), (3, 1, 'a')"
        )
        assert made.sync() == ["IS_PARTITION"]
        made.sql("update d set v = 'leaf'", "delete from t where id = 5")
        made.sync()
        (table,) = made.lakehouse.verify(["t"])["tables"]
        assert table["equal"], table
        made.sql("alter table t detach partition d", "update d set v = 'own again'")
        made.lakehouse.resume(["d"], reload=True)
        made.equal()
        made.sql("alter table t detach partition a")
        made.equal()
        assert [table["name"] for table in made.lakehouse.tables()] == ["public.a", "public.d", "public.t"]


@pytest.mark.parametrize(
    ("statements", "code", "word"),
    [
        (("create unlogged table d partition of t for values in (7)",), "NOT_A_PLAIN_TABLE", "SET LOGGED"),
        (("alter table c1 replica identity nothing",), "REPLICA_IDENTITY", 'ALTER TABLE "public"."c1" REPLICA IDENTITY DEFAULT'),
    ],
)
def test_a_leaf_that_cannot_be_mirrored(made: Mirror, statements: tuple[str, ...], code: str, word: str) -> None:
    """The table stops, and says which statement mends it."""
    made.sql(*statements)
    (parked,) = made.lakehouse.sync()["parked"]
    (found,) = [finding for finding in made.lakehouse.doctor() if finding["level"] == "problem"]
    assert (found["code"], word in found["fix"]) == (code, True), found
    assert parked["code"] in (code, "REPLICA_IDENTITY_LOST")
    made.sql("insert into t values (800, 1, 'meanwhile')")
    lost = parked["code"] == "REPLICA_IDENTITY_LOST"
    if lost:  # and its users can go on
        made.sql("delete from c1", "update t set v = 'meanwhile'")
    made.sql(found["fix"].partition(";")[0])
    assert made.lakehouse.resume(reload=lost)["refused"] == []
    made.equal()


def test_inheritance(server: Postgres, tmp_path: Path) -> None:
    """Every table of the tree is mirrored as its own rows."""
    made_of = (
        "create table t (id int primary key, v text)",
        "create table child (primary key (id), more int) inherits (t)",
        "insert into t values (1, 't')",
        "insert into child values (1, 'child', 5), (2, 'child', 6)",
    )
    with mirror_of(server, tmp_path, made_of, "public.*") as made:
        made.equal()
        made.sql("update t set v = 'both' where id = 1", "delete from child where id = 2", "insert into t values (3, 't')")
        made.sql("alter table t add column w int default 1", "insert into child values (4, 'c', 7, 8)", "insert into t values (4, 'c', 9)")
        made.equal()
        assert made.ask("select v from t where id = 1") == made.ask("select v from child where id = 1") == [{"v": "both"}]
        made.sql("truncate only t", "alter table child no inherit t", "update child set v = 'alone'", "insert into t values (5, 'alone')")
        made.equal()
        made.sql("alter table child inherit t", "update t set v = 'both'")
        made.equal()
        made.sql("truncate t")
        made.equal()
        assert {table["rows"] for table in made.lakehouse.tables()} == {0}
