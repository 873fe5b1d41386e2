"""How changes name rows, on a real server: whole rows (many of them equal), the columns of an index, odd keys, and nothing at all.

The lake is compared with the source row by row, each row as often as it is there. Whoever uses the tables is never in the way of a
mirror, and no mirror in theirs.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from icelake.lakehouse import Lakehouse
from icelake.model.relation import TableId
from icelake.stack.postgres import Postgres
from icelake.tables.table import Table
from tests.mirrored import Mirrored, mirrored


class Shop(Mirrored):
    def resume(self, reload: bool = False) -> list[str]:
        """What is parked goes on; the tables that do."""
        with Lakehouse.open(self.folder) as lakehouse:
            names = [table["name"] for table in lakehouse.tables() if table["state"] == "parked"]
            return [str(name) for name in lakehouse.resume(names, reload=reload)["resumed"]]

    def same(self, table: str, columns: str = "*") -> int:
        """After a sync the lake's rows are the source's, each as often. How many."""
        self.sync()
        return self.equal(table, columns)

    def equal(self, table: str, columns: str = "*") -> int:
        lake, source = self.lake(f"select {columns} from {table}"), self.sql(f"select {columns} from {table}")
        assert Counter(map(spelled, lake)) == Counter(map(spelled, source))
        return len(source)


def spelled(row: tuple[Any, ...]) -> str:
    """Tells -0.0 from 0.0, and nothing from nothing else."""
    return repr([str(value) if isinstance(value, datetime | Decimal | UUID) else value for value in row])


@pytest.fixture
def shop(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    with mirrored(Shop, server, tmp_path, request.node.name) as shop:
        yield shop


def row_ids(shop: Shop, table: str, column: str) -> list[tuple[Any, int]]:
    with Lakehouse.open(shop.folder) as lakehouse:
        loaded = lakehouse._catalog.load(TableId("public", table))
        opened = Table.open(loaded, lakehouse._storage, lakehouse._clock, lakehouse._chance)
        rows = [row for no in opened.files for row in opened.live_rows(no, [column])[1].to_pylist()]
    return sorted((row[column], row["_row_id"]) for row in rows)


def publications(shop: Shop) -> dict[str, set[str]]:
    """Publication (the end of its name) -> tables."""
    rows = shop.sql("select p.pubname, t.tablename from pg_publication p left join pg_publication_tables t using (pubname)")
    out: dict[str, set[str]] = {}
    for name, table in rows:
        out.setdefault("append" if name.endswith("_append") else "all", set()).update({table} if table else ())
    return out


def test_rows_without_a_key_are_named_whole(shop: Shop) -> None:
    shop.sql(
        'create table bag (n int, "Ünï" text, f float8, g real, b bool, d numeric(10,2), x numeric, at timestamptz, raw bytea, big text)',
        "alter table bag replica identity full; alter table bag alter big set storage external",
        """insert into bag select n % 3, case when n % 5 > 0 then 'x' || n % 2 end, case when n % 2 = 0 then 0.0 else '-0.0'::float8 end,
           'NaN', null, n % 2, '1.0', '2024-02-29 12:00:00.123456+00', '\\x00ff', case when n % 4 = 0 then repeat('big ' || n % 2, 3000) end
           from generate_series(1, 240) n""",
    )
    assert shop.same("bag") == 240
    # One of the equal rows, and not its like of the other zero; whole classes; a no-op; TOAST values not touched and touched.
    shop.sql("delete from bag where ctid = (select ctid from bag where f::text = '-0' and big is null limit 1)")
    shop.sql("delete from bag where ctid = (select ctid from bag where f::text = '0' and big is not null limit 1)")
    shop.sql("update bag set f = 0.0 where f::text = '-0' and n = 1")
    shop.sql("update bag set x = '1.00' where n = 0 and big is not null", "update bag set b = true where n = 2 and big is not null")
    shop.sql("update bag set n = n", "update bag set big = null where n = 0")
    shop.sql("update bag set raw = '', at = null, d = null, x = null, \"Ünï\" = '' where n = 1 and \"Ünï\" is null")
    assert shop.same("bag") == 238
    # Brought and taken in one transaction, taken and brought, taken twice, moved along.
    row = "(7, 'seven', 7, 7, false, 7, 7, null, null, repeat('seven', 1000))"
    shop.sql(f"insert into bag values {row}, {row}, {row}", "delete from bag where ctid = (select max(ctid) from bag where n = 7)")
    shop.sql("delete from bag where n = 7", f"insert into bag values {row}", "update bag set n = 8 where n = 7", "update bag set n = 7")
    assert shop.same("bag") == 239
    shop.sql(f"insert into bag values {row}", "truncate bag", f"insert into bag values {row}, {row}", "update bag set n = 9")
    assert shop.same("bag") == 2
    shop.sql("truncate bag")
    assert shop.same("bag") == 0


def test_many_equal_rows(shop: Shop) -> None:
    shop.sql("create table t (v text)", "alter table t replica identity full", "insert into t select 'same' from generate_series(1, 30000)")
    assert shop.same("t") == 30000
    shop.sql(
        "delete from t where ctid in (select ctid from t limit 14000)",
        "update t set v = 'other' where ctid in (select ctid from t limit 9000)",
    )
    shop.sql("insert into t select 'same' from generate_series(1, 5000)", "delete from t where v = 'other'")
    assert shop.same("t") == 12000
    assert shop.lake("select count(*), count(distinct v) from t") == [(12000, 1)]


def test_updates_without_a_key_keep_row_ids(shop: Shop) -> None:
    shop.sql("create table t (v int)", "alter table t replica identity full", "insert into t select n % 2 from generate_series(1, 10) n")
    shop.same("t")
    before = row_ids(shop, "t", "v")
    shop.sql("update t set v = v + 10")
    shop.same("t")
    assert [(v - 10, row_id) for v, row_id in row_ids(shop, "t", "v")] == before


def test_an_index_names_rows_and_keys_change(shop: Shop) -> None:
    shop.sql(
        "create table users (id int primary key, email text not null, tenant int not null, note text)",
        "create unique index by_email on users (tenant, email)",
        "alter table users replica identity using index by_email; alter table users alter note set storage external",
        "insert into users select n, 'u' || n, n % 3, repeat('note ' || n, 1000) from generate_series(1, 60) n",
    )
    assert shop.same("users") == 60
    with Lakehouse.open(shop.folder) as lakehouse:
        assert lakehouse.table("users")["key"] == ["tenant", "email"]
    shop.sql("update users set email = email || '@x' where id < 20", "update users set tenant = tenant + 10 where id between 10 and 30")
    # Along a chain in one transaction, and around a ring by way of a spare key; the primary key itself means nothing here.
    shop.sql(*(f"update users set email = 'c{n + 1}' where email = 'c{n}' or id = 100 + {n}" for n in reversed(range(3))))
    shop.sql("update users set id = -id", "update users set id = id + 1000 where id < -30")
    shop.sql(
        "update users set email = 'spare', tenant = 1 where email = 'u40' and tenant = 1",
        "update users set email = 'u40', tenant = 1 where email = 'u41'",
        "update users set email = 'u41', tenant = 2 where email = 'spare'",
        "delete from users where email = 'u50'",
        "insert into users values (50, 'u50', 2, 'again')",
    )
    assert shop.same("users") == 60


def test_keys_follow_one_another_in_one_transaction(shop: Shop) -> None:
    shop.sql("create table t (id int primary key, v text)", "insert into t select n, 'v' || n from generate_series(1, 100) n")
    shop.same("t")
    # 1 -> 2 while 2 -> 3: the last goes first, row by row, in one statement's order or in several statements.
    shop.sql(*(f"update t set id = {n + 1} where id = {n}" for n in range(100, 0, -1)))
    assert shop.same("t") == 100
    shop.sql("update t set id = -id", "update t set id = 3 - id where id in (-2, -3)", "update t set id = id - 3 where id > 0")
    assert shop.same("t") == 100


KEYS = {
    "double precision": ["0.0", "-1.5", "'Infinity'", "'NaN'", "5e-324"],
    "numeric": ["1.0", "'NaN'", "-12345678901234567890.123", "1e-20"],
    "bytea": [r"'\x'", r"'\x00'", r"'\xff00'"],
    "jsonb": ["'{}'", """'{"a": [1, 2.50]}'""", "'null'", "'\"ü\"'"],
    "character(4)": ["'a'", "''", "'abcd'", "'a b'"],
    "text": ["''", "'a'", "E'a\\t'", "'ü'", "repeat('k', 1000)"],
    "time": ["'00:00'", "'23:59:59.999999'"],
    "uuid": ["'00000000-0000-0000-0000-000000000001'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    "boolean": ["true", "false"],
}


def test_keys_of_any_type(shop: Shop) -> None:
    names = []
    for number, (pg_type, values) in enumerate(KEYS.items()):
        names.append(f"k{number}")
        shop.sql(f"create table k{number} (n int, k {pg_type}, v text, primary key (k, n))")
        listed = ", ".join(f"({value}::{pg_type})" for value in values)
        shop.sql(f"insert into k{number} select n, k, 'v' from (values {listed}) t (k), generate_series(1, 2) n")
    shop.sync()
    for name, (_, values) in zip(names, KEYS.items(), strict=True):
        shop.sql(
            f"update {name} set v = n || 'new'",
            f"update {name} set n = n + 2 where n = 2",
            f"delete from {name} where k = {values[0]} and n = 1",
        )
        shop.sql(f"update {name} set k = {values[0]} where k = {values[1]} and n = 1")
    # Equal for PostgreSQL, of another text: a change of the key.
    shop.sql("update k0 set k = '-0.0' where k = 0", "update k1 set k = 1.000 where k = 1")
    shop.sql("""update k3 set k = '{"a": [1, 2.5]}' where k = '{"a": [1, 2.50]}'""", "update k3 set v = 'a' where k ? 'a'")
    shop.sync()
    for name, pg_type in zip(names, KEYS, strict=True):
        assert shop.equal(name, "n, v, k::text" if pg_type in {"numeric", "jsonb"} else "n, v, k") > 0
    with Lakehouse.open(shop.folder) as lakehouse:
        assert lakehouse.verify()["equal"]


def test_append_only_is_said_and_meant(shop: Shop) -> None:
    shop.sql("create table log (line text)", "insert into log values ('a'), ('b')")
    shop.sql("create table nothing (id int primary key, v text)", "alter table nothing replica identity nothing")
    shop.sql("create table other (id int primary key)", "insert into other values (1)")
    status = shop.sync()
    assert {(one["table"], one["code"]) for one in status["refused"]} == {
        ("public.log", "NO_PRIMARY_KEY"),
        ("public.nothing", "REPLICA_IDENTITY"),
    }
    shop.sql("update log set line = 'c' where line = 'a'", "insert into nothing values (1, 'x')", "delete from nothing")
    shop.project('[tables."public.log"]\nappend_only = true\n[tables."public.nothing"]\nappend_only = true\n')
    status = shop.sync()
    assert (status["refused"], sorted(status["append_only"])) == ([], ["public.log", "public.nothing"])
    assert publications(shop) == {"all": {"other"}, "append": {"log", "nothing"}}
    assert sorted(shop.lake("select line from log")) == [("b",), ("c",)]
    # Its users' statements work as ever, and only what is inserted comes.
    shop.sql("insert into log values ('d'), (null)", "update log set line = line || '!'", "delete from log where line = 'b!'")
    shop.sql(
        "insert into nothing values (1, 'x')",
        "update nothing set v = 'y'",
        "insert into other values (2)",
        "delete from other where id = 1",
    )
    assert shop.same("other") == 1
    assert sorted(shop.lake("select line from log"), key=str) == [("b",), ("c",), ("d",), (None,)]
    assert shop.lake("select * from nothing") == [(1, "x")]
    shop.sql("insert into log values ('lost')", "truncate log", "insert into log values ('e'), ('e')", "update log set line = 'f'")
    shop.sync()
    assert shop.lake("select line from log") == [("e",), ("e",)]
    # What comes to name its rows later changes nothing; an owner may do that.
    shop.sql(
        "alter table log replica identity full",
        "update log set line = 'g'",
        "insert into log values ('h')",
        "alter table nothing replica identity default",
    )
    shop.sync()
    assert sorted(shop.lake("select line from log")) == [("e",), ("e",), ("h",)]
    shop.project()
    assert [one["code"] for one in shop.sync()["parked"]] == ["TABLE_CHANGED", "TABLE_CHANGED"]
    assert len(shop.resume(reload=True)) == 2
    assert sorted(shop.lake("select line from log")) == [("g",), ("g",), ("h",)]


def test_what_names_rows_is_taken_away(shop: Shop) -> None:
    shop.sql(
        "create table t (id int primary key, v text)",
        "insert into t select n, 'v' from generate_series(1, 9) n",
        "create table other (id int primary key)",
    )
    assert shop.same("t") == 9
    shop.sql("alter table t drop constraint t_pkey")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):  # so says PostgreSQL, of every table that is published like this
        shop.sql("update t set v = 'w'")
    shop.sql("insert into other values (1)")
    assert [one["code"] for one in shop.sync()["parked"]] == ["REPLICA_IDENTITY_LOST"]
    # Its users can go on.
    shop.sql("update t set v = 'w'", "delete from t where id = 3", "alter table t add primary key (id)")
    assert shop.resume() == []
    assert shop.resume(reload=True) == ["public.t"]
    assert shop.same("t") == 8


def test_what_names_rows_is_taken_away_while_the_table_is_followed(shop: Shop) -> None:
    shop.sql("create table t (v text)", "alter table t replica identity full", "insert into t values ('a'), ('a')")
    shop.sql("create table parked (id int primary key, v text)", "insert into parked values (1, 'a'), (2, 'b')")
    shop.same("t")
    shop.sql("alter table parked alter v type int using 7")
    with Lakehouse.open(shop.folder) as lakehouse:
        settings = lakehouse._source_settings(None)
        desk = lakehouse._desk(settings.name)
        with desk.own(settings.name), lakehouse._applier(settings, desk) as applier:

            def until_parked(code: str) -> None:
                applier.run_to(lakehouse._source(settings).current_lsn())
                for _ in range(100):
                    applier.step(0.1)
                    if code in [parked.note.code for parked in applier.parked.values()]:
                        return
                raise AssertionError(f"{code} is not among {applier.parked}")

            until_parked("TABLE_CHANGED")
            shop.sql("alter table t replica identity default")
            until_parked("REPLICA_IDENTITY_LOST")
            shop.sql("delete from t where ctid = (select max(ctid) from t)", "alter table t replica identity full")
            # One that is parked already.
            shop.sql("alter table parked replica identity nothing")
            for _ in range(100):
                applier.run_to(lakehouse._source(settings).current_lsn())
                applier.step(0.1)
                if not shop.sql("select 1 from pg_publication_tables where tablename = 'parked'"):
                    break
            assert {parked.note.code for parked in applier.parked.values()} == {"REPLICA_IDENTITY_LOST"}
            shop.sql("delete from parked where id = 1")
    shop.sql("alter table parked replica identity default")
    assert sorted(shop.resume(reload=True)) == ["public.parked", "public.t"]
    assert shop.same("t") == 1
    assert shop.equal("parked") == 1


def test_who_may_not_take_a_table_out_says_who_must(shop: Shop) -> None:
    shop.sql("create table t (id int primary key)", "create table other (id int primary key)", "insert into t values (1)")
    assert shop.same("t") == 1
    role = f"clerk_{shop.session.info.dbname}"
    shop.sql(f"create role {role} login replication password 'x'", f"grant select on all tables in schema public to {role}")
    try:
        parts = psycopg.conninfo.conninfo_to_dict(shop.dsn)
        shop.dsn = psycopg.conninfo.make_conninfo(**{name: str(value) for name, value in parts.items()} | {"user": role, "password": "x"})
        shop.project()
        shop.sql("alter table t drop constraint t_pkey", "insert into other values (1)")
        for _ in range(2):
            (parked,) = shop.sync()["parked"]
            assert parked["code"] == "REPLICA_IDENTITY_LOST"
        (publication,) = (name for (name,) in shop.sql("select pubname from pg_publication where pubname not like '%_append'"))
        statement = f'ALTER PUBLICATION "{publication}" DROP TABLE ONLY "public"."t";'
        assert parked["fix"].endswith(statement)
        # The others go on meanwhile.
        assert shop.lake("select count(*) from other") == [(1,)]
        shop.sql(statement)
        shop.sql("delete from t", "insert into other values (2)")
        assert [one["code"] for one in shop.sync()["parked"]] == ["REPLICA_IDENTITY_LOST"]
    finally:
        shop.sql(f"drop owned by {role}", f"drop role {role}")


def test_a_generated_column_under_full_would_hurt_the_tables_users(shop: Shop) -> None:
    """PostgreSQL 18 refuses updates of such a table once they are published: it is left alone."""
    shop.sql("create table g (id int primary key, twice int generated always as (id * 2) stored)", "alter table g replica identity full")
    shop.sql("create table other (id int primary key)", "insert into g values (1)")
    assert [one["code"] for one in shop.sync()["refused"]] == ["REPLICA_IDENTITY"]
    shop.sql("update g set id = 2", "create publication p for table g")
    with pytest.raises(psycopg.errors.Error, match="cannot update table"):
        shop.sql("update g set id = 3")


def test_a_table_moved_into_the_wrong_publication_is_noticed(shop: Shop) -> None:
    shop.sql("create table log (line text)", "create table other (id int primary key)")
    shop.project('[tables."public.log"]\nappend_only = true\n')
    shop.sync()
    (name,) = (name for (name,) in shop.sql("select pubname from pg_publication where pubname not like '%_append'"))
    shop.sql(f"alter publication {name} add table log")
    assert shop.sync()["parked"] == []
    assert publications(shop) == {"all": {"other"}, "append": {"log"}}
    shop.sql("update log set line = 'y'")
