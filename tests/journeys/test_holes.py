"""Holes in the stream of changes that PostgreSQL does not announce: each is found before a commit, never mirrored over.

A hole in one table parks that table alone; one in all of the source stops it. `resume` with reload is the way out of both.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from icelake.bench.rig import Rig, rig
from icelake.errors import Gap
from icelake.lakehouse import Lakehouse
from icelake.model.membership import Membership
from icelake.project import load_project
from icelake.stack.postgres import Postgres


@pytest.fixture
def made() -> Iterator[Rig]:
    with rig(settings={"fsync": "off"}) as one:
        sql(
            one, "create table a (id int primary key, v int not null, note text)", "insert into a select g, g from generate_series(1, 10) g"
        )
        sql(one, "create table b (id int primary key)", "insert into b values (1)")
        one.lakehouse.sync()
        yield one


def sql(one: Rig, *statements: str) -> None:
    with psycopg.connect(one.dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def publication(one: Rig) -> str:
    with psycopg.connect(one.dsn) as connection:
        row = connection.execute("select pubname from pg_publication order by length(pubname)").fetchone()
    assert row is not None
    return str(row[0])


def parked(one: Rig, table: str, code: str) -> None:
    """The table stands still and the others go on; compared with the source, it is its mirror again."""
    for number in range(2):  # and again: a restart does not talk itself out of it
        other = "b" if table == "public.a" else "a (id, v)"
        sql(one, f"insert into {other} values ({100 + number}{', 1' if 'v' in other else ''})")
        status = one.lakehouse.sync()
        assert [(entry["table"], entry["code"]) for entry in status["parked"]] == [(table, code)]
    report = one.lakehouse.verify()
    assert not report["equal"]
    assert [entry["name"] for entry in report["skipped"]] == [table]
    assert all(entry["equal"] for entry in report["tables"])
    assert report["tables"]
    (refusal,) = one.lakehouse.resume([table])["refused"]
    assert refusal["code"] == "RESUME_NEEDS_RELOAD"
    done = one.lakehouse.resume([table], reload=True)
    assert done["resumed"] == [table]
    assert done["status"]["parked"] == []
    assert one.lakehouse.verify()["equal"]


def test_a_table_that_left_the_publication_and_came_back(made: Rig) -> None:
    name = publication(made)
    sql(made, f"alter publication {name} drop table a", "insert into a values (11, 11)", f"alter publication {name} add table a")
    sql(made, "insert into a values (12, 12)", "delete from a where id = 3")
    parked(made, "public.a", "PUBLICATION_CHANGED")


def test_a_publication_that_did_not_send_everything_for_a_while(made: Rig) -> None:
    """So a database's owner purges old rows without telling the subscribers."""
    name = publication(made)
    sql(made, f"alter publication {name} set (publish = 'insert')", "delete from a where id < 4", "update a set v = 0 where id = 5")
    sql(made, f"alter publication {name} set (publish = 'insert, update, delete, truncate')", "insert into a values (11, 11)")
    status = made.lakehouse.sync()
    assert {entry["table"]: entry["code"] for entry in status["parked"]} == dict.fromkeys(("public.a", "public.b"), "PUBLICATION_CHANGED")
    assert made.lakehouse.resume(["a", "b"], reload=True)["refused"] == []
    assert made.lakehouse.verify()["equal"]


def test_a_table_made_anew_under_the_same_name(made: Rig) -> None:
    name = publication(made)
    sql(made, "drop table b", "create table b (id int primary key)", "insert into b values (2)", f"alter publication {name} add table b")
    parked(made, "public.b", "TABLE_REPLACED")


def test_rows_rewritten_in_place(made: Rig) -> None:
    sql(made, "alter table a alter column v type int using v * 100", "insert into a values (11, 11)")
    parked(made, "public.a", "TABLE_REWRITTEN")


def test_what_only_looks_like_a_rewrite_is_let_pass(made: Rig) -> None:
    sql(made, "vacuum full a", "insert into a values (11, 11)")
    made.lakehouse.sync()
    sql(made, "alter table a alter column v set default 5", "insert into a (id) values (12)")
    made.lakehouse.sync()
    sql(made, "truncate a", "insert into a values (1, 1)")
    made.lakehouse.sync()
    sql(made, "alter table a alter column v drop not null", "insert into a values (2, null)")
    made.lakehouse.sync()
    assert made.lakehouse.verify()["equal"]


def test_the_marks_come_apart() -> None:
    mark = Membership.parse("1.2|3|c")
    assert str(mark) == "1.2|3|c"
    assert mark.left(Membership("1.3", "3", "c"))
    assert mark.rewritten(Membership("1.2", "4", "d"))
    assert not mark.rewritten(Membership("1.2", "4", "c"))
    assert not mark.rewritten(Membership("1.2", "3", "d"))


def test_a_server_put_back_to_an_earlier_state(tmp_path: Path) -> None:
    """A restored file-system snapshot: same system identifier, same timeline, less WAL than the lake holds."""
    with Postgres() as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("create table a (id int primary key)")
            connection.execute("insert into a values (1)")
        (tmp_path / "dsn").write_text(server.dsn)
        (tmp_path / "icelake.toml").write_text('[project]\nname = "x"\n[sources.main]\ndsn = { file = "dsn" }\ntables = ["public.*"]\n')
        with Lakehouse(load_project(tmp_path)) as lakehouse:
            lakehouse.sync()
            server.stop()
            saved = tmp_path / "saved"
            shutil.copytree(server.data, saved)
            server.start()
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                connection.execute("insert into a select g from generate_series(2, 50000) g")
            lakehouse.sync()
            server.stop()
            owner = server.data.stat()
            for path in (server.data, saved):
                assert path.exists()
            _replace(server.data, saved, owner.st_uid, owner.st_gid)
            server.start()
            with pytest.raises(Gap) as caught:
                lakehouse.sync()
            assert caught.value.code == "SOURCE_WENT_BACK"
            assert lakehouse.resume(reload=True)["resumed"] == ["public.a"]
            assert lakehouse.query("select count(*) from a").to_pylist() == [{"count_star()": 1}]
            assert lakehouse.verify()["equal"]


def test_a_slot_that_is_gone(made: Rig) -> None:
    sql(made, "select pg_drop_replication_slot(slot_name) from pg_replication_slots", "delete from a where id < 4")
    sql(made, "update a set v = 0 where id = 5", "insert into a values (11, 11)")
    with pytest.raises(Gap) as caught:
        made.lakehouse.sync()
    assert caught.value.code == "SLOT_GONE"
    before = made.lakehouse.query("select sum(v) as s from a").to_pylist()
    assert before == [{"s": 55}]
    made.lakehouse.resume(reload=True)
    sql(made, "insert into a values (12, 12)")
    made.lakehouse.sync()
    assert made.lakehouse.verify()["equal"]


def _replace(data: Path, saved: Path, uid: int, gid: int) -> None:
    """The content of ``data`` becomes that of ``saved``, owned as before."""
    for entry in data.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    shutil.copytree(saved, data, dirs_exist_ok=True)
    for root, folders, files in os.walk(data):
        for name in (*folders, *files):
            os.chown(Path(root) / name, uid, gid)


def test_text_that_begins_with_a_byte_order_mark_is_compared_whole(made: Rig) -> None:
    sql(made, "create table c (k text primary key, v text)", "insert into c values (U&'\\FEFFx', U&'\\FEFFy'), ('x', 'y')")
    made.lakehouse.sync()
    assert made.lakehouse.verify(["c"])["equal"]
