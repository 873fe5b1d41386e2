"""Tables and values that are not what a mirror needs, or not any more: a column, a key, a name, a value Iceberg has not.

Named with what it is exactly, and the table stands still alone (docs/explanation/policies.md). Through the real command, on a
real PostgreSQL.
"""

import json
from typing import Any

import pytest

from tests.journeys.refusals import PROJECT, Following, call, one, refused, rows, unequal, whole, with_project


@pytest.fixture
def mirror(shell: Any) -> Any:
    """The shop, with a project; not mirrored yet."""
    return with_project(shell)


def test_table_changes_its_shape_while_it_is_followed(mirror: Any) -> None:
    """It stands still alone; `resume` asks the process that follows."""
    with Following(mirror) as following:
        following.has(0)
        mirror.sql("update orders set total = 5 where id = 7")
        following.has(1)
        mirror.sql("alter table orders rename column note to remark")
        mirror.sql("update orders set remark = 'r' where id = 1; update customers set email = 'after' where id = 1")
        entry = following.parks("public.orders", "TABLE_CHANGED")
        assert "column note is now called remark" in entry["why"]
        following.has(2)
        # The others went on; what came before is in the cuts of then.
        assert rows(mirror, "select email from customers where id = 1") == [["after"]]
        assert "parked" in json.loads(call(mirror, ["query", "select 1 from orders", "--json"], 4).stdout)["error"]["why"]
        report = unequal(mirror)
        assert [entry["name"] for entry in report["skipped"]] == ["public.orders"]
        assert json.loads(call(mirror, "resume --json", 0).stdout)["resumed"] == ["public.orders"]
        following.until(lambda status: not status["parked"])
        following.stop()
    assert rows(mirror, "select total, remark from orders where id in (1, 7) order by id") == [["0.01", "r"], ["5.00", None]]
    whole(mirror)


def test_a_table_is_renamed(mirror: Any) -> None:
    call(mirror, "sync", 0)
    mirror.sql("alter table orders rename to purchases; update purchases set note = 'r' where id = 1")
    done = call(mirror, "sync", 4)
    assert "icelake: TABLE_GONE: public.orders" in done.stderr
    mirror.sql("alter table purchases rename to orders")
    call(mirror, "resume orders --reload", 0)
    # The name it had meanwhile was followed as a table of its own. It stays known until the project leaves it out.
    assert "icelake: TABLE_GONE: public.purchases" in call(mirror, "sync", 4).stderr
    (mirror.folder / "icelake.toml").write_text(PROJECT.replace('["public.*"]', '["public.*"]\nexclude = ["public.purchases"]'))
    status = json.loads(call(mirror, "sync --json", 0).stdout)
    assert [(parked["table"], parked["code"]) for parked in status["parked"]] == [("public.purchases", "LEFT_OUT")]
    report = unequal(mirror)
    assert [entry["name"] for entry in report["skipped"]] == ["public.purchases"]
    assert all(entry["equal"] for entry in report["tables"])


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
    mirror.sql("create table orders (id int primary key); insert into orders values (1), (2)")
    call(mirror, "resume orders --reload", 0)
    whole(mirror)


def test_a_change_of_shape_that_is_undone_leaves_no_trace(mirror: Any) -> None:
    call(mirror, "sync", 0)
    mirror.sql("update orders set total = 5 where id = 7; alter table orders rename note to remark")
    assert "remark" in call(mirror, "sync", 4).stderr
    mirror.sql("alter table orders rename remark to note; update orders set total = 6 where id = 8")
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
    """The policy ``error``: the table stands still, no other value is written, and nothing of it is lost."""
    mirror.sql(
        "create table readings (id int primary key, taken timestamp, amount numeric(10,2), clock time);"
        "insert into readings values (1, 'infinity', 1, '12:00'), (2, '2024-02-29', 2, '23:59:59.999999')"
    )
    done = call(mirror, "sync", 4)
    assert "VALUE_OUT_OF_CONTRACT: column public.readings.taken (timestamp without time zone) holds 'infinity'" in done.stderr
    mirror.sql("update readings set taken = '2024-01-01' where id = 1")
    call(mirror, "resume readings", 0)
    whole(mirror)
    # In the change stream the value stays among the changes, whatever the row holds by now.
    for number, (column, value) in enumerate((("amount", "NaN"), ("clock", "24:00"))):
        mirror.sql(f"insert into readings values ({number + 10}, null, {number}, null)")
        mirror.sql(f"update customers set email = '{column}' where id = 1; insert into readings (id, {column}) values (3, '{value}')")
        (parked,) = json.loads(call(mirror, "sync --json", 4).stdout)["parked"]
        assert parked["code"] == "VALUE_OUT_OF_CONTRACT"
        assert f"column public.readings.{column} " in parked["what"]
        assert value in parked["what"]
        assert rows(mirror, "select email from customers where id = 1") == [[column]]
        mirror.sql("delete from readings where id = 3")
        (refusal,) = json.loads(call(mirror, "resume readings --json", 4).stdout)["refused"]
        assert refusal["code"] == "VALUE_OUT_OF_CONTRACT"
        call(mirror, ("status", "tables")[number], 0)
        call(mirror, "resume readings --reload", 0)
        whole(mirror)
