"""Tables and values that are not what a mirror needs, or not any more: a column, a key, a name, a value Iceberg has not.

Refused with what it is exactly, and the mirror stays what it was (docs/explanation/policies.md). Through the real command, on a
real PostgreSQL.
"""

import json
from typing import Any

import pytest

from icelake.model.lsn import parse_lsn
from tests.journeys.refusals import PROJECT, Following, call, new_lake, one, refused, rows, unequal, whole, with_project


@pytest.fixture
def mirror(shell: Any) -> Any:
    """The shop, with a project; not mirrored yet."""
    return with_project(shell)


DDL = (
    (
        "alter table orders add column tip int",
        "insert into orders (customer, total, tip) values (1, 1, 1)",
        "column tip (integer) was added",
    ),
    ("alter table orders drop column note", "insert into orders (customer, total) values (1, 1)", "column note was dropped"),
    (
        "alter table orders alter column total type numeric(14,2)",
        "insert into orders (customer, total) values (1, 1)",
        "column total changed its type from numeric(12,2) to numeric(14,2)",
    ),
    ("alter table orders rename column note to remark", "update orders set remark = 'r' where id = 1", "column note is now called remark"),
    ("alter table orders rename to purchases", "update purchases set note = 'r' where id = 1", "the table is now called public.purchases"),
)


@pytest.mark.parametrize(("statement", "write", "difference"), DDL)
def test_table_changes_its_shape_while_it_is_followed(mirror: Any, statement: str, write: str, difference: str) -> None:
    with Following(mirror) as following:
        following.has(0)
        mirror.sql("update orders set total = 5 where id = 7")
        following.has(1)
        mirror.sql(statement)
        mirror.sql(write)
        mirror.sql("update customers set email = 'after' where id = 1")
        entry = following.parks("public.orders", "TABLE_CHANGED")
        assert difference in entry["why"]
        following.has(2)
        following.stop()
    # The others went on; what came before is in the cuts of then.
    assert rows(mirror, "select email from customers where id = 1") == [["after"]]
    call(mirror, "sync", 4)
    assert [entry["name"] for entry in unequal(mirror)["skipped"]] == ["public.orders"]


def test_a_table_is_dropped_while_it_is_followed(mirror: Any) -> None:
    with Following(mirror) as following:
        following.has(0)
        mirror.sql("update orders set total = 5 where id = 7")
        following.has(1)
        mirror.sql("drop table orders")
        mirror.sql("update customers set email = 'after'")
        following.parks("public.orders", "PUBLICATION_CHANGED")
        following.stop()
    assert rows(mirror, "select distinct email from customers") == [["after"]]
    assert json.loads(call(mirror, "resume orders --reload --json", 4).stdout)["refused"][0]["code"] == "TABLE_NOT_FOUND"
    mirror.sql("create table orders (id int primary key)")


def test_a_change_of_shape_that_is_undone_leaves_no_trace(mirror: Any) -> None:
    call(mirror, "sync", 0)
    mirror.sql("update orders set total = 5 where id = 7; alter table orders add column tip int")
    assert "tip" in call(mirror, "sync", 4).stderr
    mirror.sql("alter table orders drop column tip; update orders set total = 6 where id = 8")
    call(mirror, "resume", 0)
    whole(mirror)


def test_a_table_without_a_key_is_named_and_left_alone(mirror: Any) -> None:
    mirror.sql("create table log (at timestamptz default now(), line text); insert into log (line) values ('a'), ('b')")
    done = call(mirror, "sync", 0)
    assert "refused: public.log (NO_PRIMARY_KEY)" in done.stderr
    (source,) = json.loads(call(mirror, "status --json", 0).stdout)["sources"]
    assert [(one["table"], one["code"]) for one in source["applier"]["refused"]] == [("public.log", "NO_PRIMARY_KEY")]
    # Published without a replica identity, these would fail.
    mirror.sql("update log set line = 'c' where line = 'a'; delete from log where line = 'b'; update orders set total = 9 where id = 9")
    assert [entry["table"] for entry in whole(mirror)["refused"]] == ["public.log"]
    assert one(mirror, "select count(*) from pg_publication_tables where tablename = 'log'") == 0
    (mirror.folder / "icelake.toml").write_text(PROJECT.replace('["public.*"]', '["public.*", "public.log"]'))
    assert "public.log" in refused(mirror, "NO_PRIMARY_KEY")["what"]


# ------------------------------------------------------------------------------------------------------------------ values


def test_value_out_of_range(mirror: Any) -> None:
    """The policy ``stop``: nothing past such a value is confirmed; what is in the lake stays readable."""
    mirror.sql(
        "create table readings (id int primary key, taken timestamp, amount numeric(10,2), clock time);"
        "insert into readings values (1, 'infinity', 1, '12:00'), (2, '2024-02-29', 2, '23:59:59.999999')"
    )
    # While the table is loaded: mending the row is enough.
    error = refused(mirror, "VALUE_OUT_OF_CONTRACT")
    assert "column public.readings.taken (timestamp without time zone) holds 'infinity'" in error["what"]
    mirror.sql("update readings set taken = '2024-01-01' where id = 1")
    whole(mirror)
    # In the change stream the value stays in the source's log, whatever the row holds by now.
    for number, (column, value) in enumerate((("amount", "NaN"), ("clock", "24:00"))):
        mirror.sql(f"insert into readings values ({number + 10}, null, {number}, null)")
        mirror.sql(f"update customers set email = '{column}' where id = 1; insert into readings (id, {column}) values (3, '{value}')")
        before = parse_lsn(one(mirror, "select confirmed_flush_lsn from pg_replication_slots where database = current_database()"))
        error = refused(mirror, "VALUE_OUT_OF_CONTRACT", people="verify", programs="sync --json")
        assert f"column public.readings.{column} " in error["what"]
        assert value in error["what"]
        mirror.sql("delete from readings where id = 3")
        assert "new lake" in refused(mirror, "VALUE_OUT_OF_CONTRACT")["fix"]
        assert rows(mirror, "select count(*) from readings") == [[2 + number]]
        call(mirror, ("status", "tables")[number], 0)
        confirmed = parse_lsn(one(mirror, "select confirmed_flush_lsn from pg_replication_slots where database = current_database()"))
        assert confirmed == before
        new_lake(mirror)
        call(mirror, "sync", 0)
    whole(mirror)
