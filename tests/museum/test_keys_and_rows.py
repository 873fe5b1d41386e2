"""Published losses: which row a change is about, and what its values are. docs/explanation/museum.md lists them all.

Every table is loaded first, changed in one batch and in several, and then compared: by ``verify``, and where an engine could see it
otherwise, as PyIceberg reads it.
"""

from typing import Any

import pytest

from tests.museum.exhibit import Exhibit


def read_by_others(exhibit: Exhibit, table: str) -> None:
    """PyIceberg's rows are the source's."""
    columns = [name for (name,) in exhibit.sql(f"select attname from pg_attribute where attrelid = '{table}'::regclass and attnum > 0")]
    source = [dict(zip(columns, row, strict=True)) for row in exhibit.sql(f"select * from {table}")]
    assert sorted(map(repr, exhibit.pyiceberg(table))) == sorted(map(repr, source))


def test_databricks_341_several_versions_of_a_key_in_one_file(exhibit: Exhibit) -> None:
    """databricks iceberg-kafka-connect 341: versions of one key that came in one batch were written to one file, and all stayed."""
    exhibit.sql("create table a (id int primary key, v int)", "insert into a select n, 0 from generate_series(1, 10) n")
    exhibit.sync()
    exhibit.sql(*(f"update a set v = {number}" for number in range(1, 6)))
    exhibit.sql("insert into a values (11, 1)", "update a set v = 2 where id = 11", "delete from a where id = 11")
    for number in range(4):
        exhibit.sql(f"insert into a values (12, {number})", f"update a set v = v + 10 where id in (1, {number})")
        exhibit.sql("update a set v = v + 1 where id = 12", *(["delete from a where id = 12"] if number < 3 else []))
    exhibit.whole()
    assert exhibit.lake("select count(*), count(distinct id), sum(v) filter (where id = 12) from a") == [(11, 11, 4)]
    read_by_others(exhibit, "a")


def test_databricks_318_a_delete_that_does_not_know_its_partition(exhibit: Exhibit) -> None:
    """databricks iceberg-kafka-connect 318: a delete holds the key alone, not the column its table is partitioned by, and found no row;
    nor were rows of the first load ever replaced."""
    exhibit.project('[tables."public.a"]\npartition = ["day(made)"]\n')
    exhibit.sql(
        "create table a (id int primary key, made timestamp, v int)",
        "insert into a select n, timestamp '2024-02-27' + n * interval '7 hours', 0 from generate_series(1, 20) n",
    )
    exhibit.sync()
    exhibit.sql("delete from a where id % 4 = 0", "update a set v = 1 where id % 3 = 0")
    exhibit.sql("insert into a values (30, '2024-03-01', 0), (31, null, 0)")
    exhibit.sync()
    exhibit.sql("delete from a where id in (1, 30)", "update a set v = 2 where id > 15")
    exhibit.whole()
    read_by_others(exhibit, "a")


def test_olake_v07_a_foreign_key_taken_for_the_primary_key(exhibit: Exhibit) -> None:
    """OLake v0.7: the columns of a foreign key were taken for the key, and rows with the same parent replaced each other."""
    exhibit.sql(
        "create table parent (id int primary key)",
        "create table child (parent int not null references parent, id int primary key, v text)",
        "create table line (parent int not null references parent, number int, v text, primary key (number, parent))",
        "create table loose (parent int not null references parent, v text)",
        "create unique index on loose (parent)",
        "insert into parent select n from generate_series(1, 3) n",
        "insert into child select 1 + n % 3, n, 'v' from generate_series(1, 12) n",
        "insert into line select 1 + n % 3, n % 4, 'v' from generate_series(1, 12) n",
    )
    assert [(one["table"], one["code"]) for one in exhibit.sync()["refused"]] == [("public.loose", "NO_PRIMARY_KEY")]
    exhibit.sql(
        "update child set v = 'u' where id % 2 = 0", "update child set parent = 1 where parent = 2", "delete from child where id = 5"
    )
    exhibit.sql("update line set v = 'u' where parent = 1", "delete from line where parent = 2 and number = 1")
    exhibit.whole()
    with exhibit.open() as lakehouse:
        assert lakehouse.table("child")["key"] == ["id"]
        assert sorted(lakehouse.table("line")["key"]) == ["number", "parent"]
    assert exhibit.lake("select (select count(*) from child), (select count(*) from line)") == [(11, 11)]


@pytest.mark.parametrize("version", [3, 2])
def test_olake_1064_a_row_that_moves_to_another_partition(exhibit: Exhibit, version: int) -> None:
    """OLake 1064 (review): the delete was looked for in the partition the row has now; in the one it came from it stayed."""
    exhibit.project(f'[tables."public.a"]\npartition = ["country", "bucket(2, id)"]\nformat = {version}\n')
    exhibit.sql("create table a (id int primary key, country text, v int)")
    exhibit.sql("insert into a select n, case n % 3 when 0 then 'de' when 1 then 'fr' end, 0 from generate_series(1, 18) n")
    exhibit.sync()
    exhibit.sql("update a set country = 'it' where id % 2 = 0", "update a set country = 'de' where id % 4 = 0")
    exhibit.sql(
        "insert into a values (40, 'de', 0)", "update a set country = 'fr' where id = 40", "update a set country = null where id = 1"
    )
    exhibit.sync()
    exhibit.sql("update a set id = id + 100, country = 'es' where id < 6", "delete from a where country is null")
    exhibit.whole()
    read_by_others(exhibit, "a")


def test_moonlink_2132_unchanged_toast_becomes_null(exhibit: Exhibit) -> None:
    """moonlink 2132, OLake 984, PR 987: a value that is stored out of line and was not touched is not sent; it became NULL, or the
    column's default."""
    exhibit.sql(
        "create table a (id int primary key, v int, big text not null default 'the default', doc jsonb, many int[], raw bytea)",
        "alter table a alter big set storage external, alter doc set storage external, alter many set storage external, "
        "alter raw set storage external",
    )
    row = "repeat('big ' || n, 900), jsonb_build_object('k', repeat('doc ' || n, 900)), array(select generate_series(n, n + 2000)), "
    row += "decode(repeat('00ff', 3000), 'hex')"
    exhibit.sql(f"insert into a select n, 0, {row} from generate_series(1, 6) n")
    exhibit.sync()
    # Of rows that were loaded; of rows of this very batch; under another key; again and again; after a crash; of one value out of four.
    exhibit.sql("update a set v = 1 where id = 1", "update a set v = v + 1 where id <= 2")
    exhibit.sql(f"insert into a select n, 0, {row} from generate_series(7, 9) n", "update a set v = 1 where id = 7")
    exhibit.sql("update a set id = 30, v = 3 where id = 3", "update a set v = 4 where id = 30", "update a set id = 80 where id = 8")
    assert exhibit.dies("catalog.commit:before:2")
    exhibit.sql("update a set v = 5 where id in (4, 80)", "update a set doc = null where id = 5", "update a set many = '{1}' where id = 6")
    exhibit.sync()
    exhibit.sql("update a set v = 6", "delete from a where id = 2", "update a set id = 40 where id = 4")
    exhibit.whole()
    assert exhibit.lake("select count(*) from a where big is null or big = 'the default' or raw is null") == [(0,)]
    assert exhibit.lake("select count(*) from a where doc is null") == [(1,)]
    assert exhibit.lake("select big from a where id = 80") == exhibit.sql("select repeat('big 8', 900)")


PLACEHOLDERS = ("__debezium_unavailable_value", "__olake_unavailable_value__", "__icelake_unavailable_value", "u", "\\N", "")


def test_risingwave_a_row_that_really_holds_the_placeholder(exhibit: Exhibit) -> None:
    """RisingWave (and Debezium, whose placeholder it is): a row that holds that very text was taken for one whose value was not sent."""
    exhibit.sql("create table a (id int primary key, v int, big text, raw bytea)", "alter table a alter big set storage external")
    for number, text in enumerate(PLACEHOLDERS):
        literal = text.replace("'", "''")
        exhibit.sql(f"insert into a values ({number}, 0, repeat('before', 1000), 'x'), ({100 + number}, 0, '{literal}', '\\x75')")
    exhibit.sync()
    for number, text in enumerate(PLACEHOLDERS):
        exhibit.sql(f"update a set big = '{text}', raw = convert_to(big, 'UTF8') where id = {number}", "update a set v = v + 1")
    exhibit.sync()
    exhibit.sql("update a set v = v + 1", f"update a set big = repeat('after', 1000) where id = {len(PLACEHOLDERS) - 1}")
    exhibit.sql("update a set v = v + 1")
    exhibit.whole()
    values = [row[0] for row in exhibit.lake(f"select big from a where id < {len(PLACEHOLDERS) - 1} order by id")]
    assert values == list(PLACEHOLDERS[:-1])
    assert [row[0] for row in exhibit.lake("select big from a where id >= 100 order by id")] == list(PLACEHOLDERS)


def test_flink_cdc_38450_a_schema_change_within_a_batch(exhibit: Exhibit) -> None:
    """FLINK-38450: a schema change cut the writes of one checkpoint in two, and a restart committed the first part again."""
    exhibit.project('[tables."public.log"]\nappend_only = true\n')
    exhibit.sql("create table log (line text)", "create table a (id int primary key)")
    exhibit.sync()
    exhibit.sql("insert into log values ('one'), ('one')", "insert into a values (1)")
    exhibit.sql("insert into log values ('two')", "alter table log add column n int default 7", "insert into log values ('three', 3)")
    exhibit.sql("alter table a add column v int default 1", "insert into a values (2, 2)", "insert into log values ('four', null)")
    # Before and behind the new column of each table, before the batch and behind it.
    for fault in ("before:2", "after:2", "after:2", "before:2", "after:2"):
        assert exhibit.dies(f"catalog.commit:{fault}")
        exhibit.sql("insert into log values ('same')", "insert into a values ((select max(id) + 1 from a), 7)")
    exhibit.sync()
    assert exhibit.same("log") == 10
    assert exhibit.same("a") == 7
    assert set(exhibit.added("log").values()) == {1}


def test_risingwave_25871_columns_in_another_order(exhibit: Exhibit) -> None:
    """RisingWave PR 25871: columns were matched by their place; where the order was another, values went to the wrong column, without
    a word."""
    exhibit.sql("create table a (id int primary key, x text, y text, z text)", "insert into a values (1, 'x', 'y', 'z')")
    exhibit.sync()
    exhibit.sql("alter table a drop column x, add column x text", "update a set x = 'new x'", "insert into a values (2, 'y2', 'z2', 'x2')")
    assert [entry["code"] for entry in exhibit.sync()["parked"]] == ["TABLE_CHANGED"]
    resumed(exhibit, reload=True)
    assert exhibit.lake("select id, x, y, z from a order by id") == [(1, "new x", "y", "z"), (2, "x2", "y2", "z2")]
    # Two of one type change names: every value would fit in the other's place.
    exhibit.sql("alter table a rename y to t", "alter table a rename z to y", "alter table a rename t to z")
    exhibit.sql("insert into a (id, x, y, z) values (3, 'x3', 'y3', 'z3')", "update a set y = 'now y' where id = 2")
    assert [entry["code"] for entry in exhibit.sync()["parked"]] == ["TABLE_CHANGED"]
    resumed(exhibit)
    expected = [(1, "new x", "z", "y"), (2, "x2", "now y", "y2"), (3, "x3", "y3", "z3")]
    assert exhibit.lake("select id, x, y, z from a order by id") == expected


def resumed(exhibit: Exhibit, **how: Any) -> None:
    with exhibit.open() as lakehouse:
        assert lakehouse.resume(["a"], **how)["refused"] == []
    exhibit.whole()


def test_iceberg_15396_a_nested_field_that_was_never_added(exhibit: Exhibit) -> None:
    """iceberg 15395, PR 15396: a field that was added inside a struct, a list or a map was left out of the table, and nobody was told."""
    exhibit.sql("create type place as (street text)", "create table a (id int primary key, home place, more place[])")
    exhibit.sql("insert into a values (1, row('first'), array[row('f')::place])", "insert into a values (2, null, null)")
    exhibit.sync()
    exhibit.sql("alter type place add attribute city text")
    exhibit.sql(
        "insert into a values (3, row('third', 'Bern'), array[row('t', 'Rom')::place])", "update a set home.city = 'Wien' where id = 1"
    )
    (parked,) = exhibit.sync()["parked"]
    assert (parked["table"], parked["code"]) == ("public.a", "TABLE_CHANGED")
    assert "home" in parked["what"] + parked["why"]
    with exhibit.open() as lakehouse:
        assert not lakehouse.verify()["equal"]
    resumed(exhibit, reload=True)
    assert exhibit.lake("select home.street, home.city, more[1].city from a order by id") == [
        ("first", "Wien", None),
        (None, None, None),
        ("third", "Bern", "Rom"),
    ]
