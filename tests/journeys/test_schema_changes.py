"""A table that changes its shape: added columns are followed, anything else parks the table until somebody says yes."""

import shutil
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from icelake.bench.rig import Rig, rig
from icelake.errors import Refused
from icelake.lakehouse import Lakehouse


@pytest.fixture(scope="module")
def server() -> Iterator[Rig]:
    with rig(settings={"fsync": "off"}) as one:
        yield one


@pytest.fixture
def made(server: Rig) -> Rig:
    """A mirrored table of this test's own, called ``t``."""
    sql(
        server,
        "drop table if exists t",
        "create table t (id int primary key, v int, w numeric(6,2), note varchar(10))",
        "insert into t select g, g * 10, g / 4.0, 'note ' || g from generate_series(1, 20) g",
    )
    if "public.t" in {table["name"] for table in server.lakehouse.tables()}:
        server.lakehouse.resume(["public.t"], reload=True)
    else:
        server.lakehouse.sync()
    report = server.lakehouse.verify()
    assert report["equal"], report
    return server


def sql(one: Rig, *statements: str) -> None:
    with psycopg.connect(one.dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def ids(one: Rig) -> dict[str, int]:
    """Field id of each column of the mirror."""
    loaded = one.lakehouse._catalog.load(next(t for t in one.lakehouse._catalog.tables() if str(t) == "public.t"))
    schema = next(s for s in loaded.metadata["schemas"] if s["schema-id"] == loaded.metadata["current-schema-id"])
    return {field["name"]: field["id"] for field in schema["fields"]}


def ask(one: Rig, question: str, at: str | None = None) -> list[dict[str, Any]]:
    return one.lakehouse.query(question, at).to_pylist()


def followed(one: Rig) -> None:
    assert one.lakehouse.sync()["parked"] == []
    assert one.lakehouse.verify()["equal"]


def resumed(one: Rig, code: str = "TABLE_CHANGED") -> None:
    """It is parked; its changes are kept; told to go on, it is its source's mirror."""
    sql(one, "update t set v = -1 where id = 2", "delete from t where id = 3")
    (parked,) = one.lakehouse.sync()["parked"]
    assert (parked["table"], parked["code"]) == ("public.t", code)
    # It is all the lake has: nothing says it is followed, and nobody is told what it was before.
    assert [table["state"] for table in one.lakehouse.tables()] == ["parked"]
    assert one.lakehouse.status()["sources"][0]["parked"] == {"public.t": code}
    with pytest.raises(Refused, match="TABLE_NOT_IN_CUT"):
        ask(one, "select v from t")
    sql(one, "update t set v = -2 where id = 4", "insert into t (id, v) values (100, 100)")
    one.lakehouse.sync()
    done = one.lakehouse.resume()
    assert (done["resumed"], done["refused"]) == (["public.t"], [])
    followed(one)


def test_added_columns_are_followed(made: Rig) -> None:
    before = ids(made)
    sql(
        made,
        "update t set v = 0 where id = 1",
        "alter table t add column plain text",
        "update t set plain = 'p' where id = 2",
        "alter table t add column constant int default 7, add column price numeric(8,3) default 1.5",
        "alter table t add column at timestamptz default '2024-02-29 12:00+02'",
        "insert into t (id, constant) values (50, 8)",
        "insert into t (id) values (51)",
        "delete from t where id = 5",
        "alter table t alter column constant set default 9",
        "insert into t (id) values (52)",
    )
    followed(made)
    assert ask(made, "select constant, count(*) as n from t group by 1 order by 1") == [
        {"constant": 7, "n": 20},
        {"constant": 8, "n": 1},
        {"constant": 9, "n": 1},
    ]
    assert {name: ids(made)[name] for name in before} == before
    sql(made, "update t set constant = 1 where id = 7")
    followed(made)
    # PostgreSQL then forgets the constants and writes them into the rows: not to be told from a rewrite that changes rows.
    sql(made, "vacuum full t")
    assert [entry["code"] for entry in made.lakehouse.sync()["parked"]] == ["TABLE_REWRITTEN"]
    made.lakehouse.resume(["t"], reload=True)
    followed(made)


def test_columns_are_added_under_way(made: Rig) -> None:
    """Within one transaction, and while a batch is running."""
    with psycopg.connect(made.dsn) as connection:
        connection.execute("insert into t (id) values (60)")
        connection.execute("alter table t add column late int default 3")
        connection.execute("insert into t (id, late) values (61, 4)")
        connection.execute("update t set late = late + 1 where id < 5")
    followed(made)
    assert ask(made, "select late, count(*) as n from t group by 1 order by 1") == [{"late": 3, "n": 17}, {"late": 4, "n": 5}]


def test_a_renamed_column_keeps_its_field(made: Rig) -> None:
    before = ids(made)
    (cut, *_) = made.lakehouse.cuts()
    sql(
        made,
        "alter table t rename v to value",
        "alter table t rename value to v",
        "alter table t rename note to remark",
    )
    resumed(made)
    assert ids(made)["remark"] == before["note"]
    assert ask(made, "select remark from t where id = 7") == [{"remark": "note 7"}]
    assert ask(made, "select note from t where id = 7", str(cut["cut"])) == [{"note": "note 7"}]


def test_a_dropped_column_goes_and_one_made_again_is_another(made: Rig) -> None:
    before = ids(made)
    sql(made, "alter table t drop column note")
    resumed(made)
    assert "note" not in ids(made)
    sql(made, "alter table t add column note varchar(10)", "update t set note = 'new' where id = 8")
    followed(made)
    assert ids(made)["note"] > max(before.values())
    assert ask(made, "select note from t where id in (7, 8) order by id") == [{"note": None}, {"note": "new"}]


def test_wider_types_that_rewrite_nothing(made: Rig) -> None:
    before = ids(made)
    sql(made, "alter table t alter column w type numeric(12,2), alter column note type text", "update t set w = 123456789.25 where id = 6")
    resumed(made)
    assert ids(made) == before


@pytest.mark.parametrize(
    "statement",
    [
        "alter table t alter column v type bigint",
        "alter table t add column made timestamptz default clock_timestamp()",
        "alter table t alter column note type int using length(note)",
    ],
)
def test_a_rewrite_is_compared_with_the_source(made: Rig, statement: str) -> None:
    sql(made, "update t set v = 1 where id = 1", statement, "update t set v = 2 where id = 2", "delete from t where id = 3")
    (parked,) = made.lakehouse.sync()["parked"]
    assert parked["code"] in ("TABLE_REWRITTEN", "TABLE_CHANGED")
    (refused,) = made.lakehouse.resume()["refused"]
    assert "--reload" in refused["fix"]
    made.lakehouse.resume(["t"], reload=True)
    followed(made)


def test_another_primary_key(made: Rig) -> None:
    sql(made, "alter table t drop constraint t_pkey, add primary key (id, note)")
    sql(made, "insert into t values (1, 1, 1, 'another')")
    (parked,) = made.lakehouse.sync()["parked"]
    assert "by the key (id, note)" in parked["why"]
    made.lakehouse.resume(["t"], reload=True)
    followed(made)


def test_a_key_of_another_type_is_loaded_anew(made: Rig) -> None:
    """Compared row by row it would be without a key: what if the key index is lost just then?"""
    file = made.folder / "icelake.toml"
    text = file.read_text()
    file.write_text(f'{text}[tables."public.t".columns]\nid = {{ type = "string" }}\n')
    try:
        with Lakehouse.open(made.folder) as other:
            settings = other._source_settings(None)
            desk = other._desk(settings.name)
            desk.request_resume(["public.t"], True, 60.0)
            with desk.own(settings.name), other._applier(settings, desk) as applier:
                while applier.step(0.1).kind != "resume":
                    pass
            shutil.rmtree(made.folder / "lake" / "index")
            assert other.sync()["parked"] == []
            assert other.verify()["equal"]
            assert other.query("select id from t where v = 10").to_pylist() == [{"id": "1"}]
    finally:
        file.write_text(text)


# ------------------------------------------------- changes that look like ones that can be followed, and are not


def reloaded(one: Rig, *codes: str) -> None:
    """It is parked for one of these, a replay is refused, and compared with the source it is its mirror again."""
    (parked,) = one.lakehouse.sync()["parked"]
    assert parked["code"] in codes, parked
    (refused,) = one.lakehouse.resume()["refused"]
    assert "--reload" in refused["fix"]
    done = one.lakehouse.resume(["t"], reload=True)
    assert (done["resumed"], done["refused"]) == (["public.t"], [])
    followed(one)


def test_a_generated_column_that_becomes_an_ordinary_one(made: Rig) -> None:
    sql(made, "alter table t add column g int generated always as (v * 2) stored")
    made.lakehouse.sync()
    made.lakehouse.resume(["t"], reload=True)
    followed(made)
    sql(made, "alter table t alter column g drop expression", "insert into t (id, g) values (70, 7)")
    reloaded(made, "TABLE_CHANGED")
    assert ask(made, "select g from t where id in (1, 70) order by id") == [{"g": 20}, {"g": 7}]


def test_a_new_column_once_had_the_name_of_a_dropped_one(made: Rig) -> None:
    sql(
        made,
        "alter table t drop column note, add column note varchar(10)",
        "update t set note = 'new' where id = 8",
        "alter table t rename note to remark",
    )
    reloaded(made, "TABLE_CHANGED")
    assert ask(made, "select remark from t where id in (7, 8) order by id") == [{"remark": None}, {"remark": "new"}]


def test_a_dropped_column_once_had_the_name_of_a_new_one(made: Rig) -> None:
    sql(
        made,
        "alter table t rename note to remark",
        "insert into t (id, remark) values (72, 'old')",
        "alter table t drop column remark, add column remark varchar(10)",
    )
    reloaded(made, "TABLE_CHANGED")
    assert ask(made, "select remark from t where id = 72") == [{"remark": None}]


def test_a_column_that_was_added_twice(made: Rig) -> None:
    sql(
        made,
        "alter table t add column c int default 0",
        "insert into t (id, c) values (71, 99)",
        "alter table t drop column c",
        "alter table t add column c int default 1",
    )
    reloaded(made, "TABLE_CHANGED")
    assert ask(made, "select c from t where id = 71") == [{"c": 1}]


def test_a_default_that_iceberg_has_no_form_for(made: Rig) -> None:
    sql(made, "alter table t add column tags text[] not null default '{a,b}'", "insert into t (id) values (72)")
    reloaded(made, "COLUMN_DEFAULT")
    assert ask(made, "select count(*) as n from t where tags = ['a', 'b']") == [{"n": 21}]


def test_another_column_takes_the_name_of_the_key(made: Rig) -> None:
    """As people move from int to bigint without a long lock."""
    sql(
        made,
        "alter table t add column new_id bigint",
        "update t set new_id = 1000 - id",
        "alter table t alter column new_id set not null",
    )
    followed(made)
    sql(
        made,
        "alter table t drop constraint t_pkey, add primary key (new_id)",
        "alter table t rename id to old_id",
        "alter table t rename new_id to id",
        "insert into t (old_id, id) values (73, 73)",
    )
    reloaded(made, "TABLE_CHANGED")
    sql(made, "update t set v = v + 1", "delete from t where old_id = 2")
    followed(made)


def test_a_type_whose_bytes_print_otherwise(made: Rig) -> None:
    sql(made, "alter table t add column net cidr", "update t set net = '10.1.2.3'")
    followed(made)
    sql(made, "alter table t alter column net type inet", "insert into t (id, net) values (74, '10.0.0.1')")
    reloaded(made, "TABLE_CHANGED", "TABLE_REWRITTEN")
    assert ask(made, "select net from t where id = 1") == [{"net": "10.1.2.3"}]


def test_a_column_is_added_while_the_table_is_compared(made: Rig) -> None:
    """The schema of the lake follows, and nobody has to be asked."""
    settings = made.lakehouse._source_settings(None)
    desk = made.lakehouse._desk(settings.name)
    with desk.own(settings.name), made.lakehouse._applier(settings, desk) as applier:
        applier.step(0.1)
        desk.request_resume(["public.t"], True, 60)
        while applier.step(0.1).kind != "resume":
            pass
        sql(made, "alter table t add column late int default 5")
        for _ in range(30):
            applier.step(0.1)
        assert not applier.parked
        assert not applier.loading
    followed(made)


def test_what_is_printed_from_other_names_is_found_and_mended(made: Rig) -> None:
    """``regclass`` and its kin: the row is as it was, and reads otherwise."""
    sql(made, "create table named (id int)", "alter table t add column what regclass", "update t set what = 'named'")
    followed(made)
    sql(made, "alter table named rename to renamed")
    assert made.lakehouse.sync()["parked"] == []
    (table,) = [one for one in made.lakehouse.verify()["tables"] if one["name"] == "public.t"]
    assert (table["equal"], table["different"]) == (False, 20)
    assert made.lakehouse.resume(["public.t"], reload=True)["refused"] == []
    followed(made)
    sql(made, "drop table renamed")
