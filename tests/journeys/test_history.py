"""Histories on a real server: every change a row, whole, in the commit of its mirror; ``verify`` replays them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from icelake.lakehouse import Lakehouse
from icelake.stack.postgres import Postgres
from tests.mirrored import Mirrored, mirrored

BIG = "repeat('big', 3000)"


class Shop(Mirrored):
    def resume(self, *tables: str, reload: bool = False) -> Any:
        with Lakehouse.open(self.folder) as lake:
            return lake.resume(tables, reload=reload)

    def equal(self, *histories: str) -> None:
        with Lakehouse.open(self.folder) as lake:
            report = lake.verify()
        assert report["equal"], (report["tables"], report["histories"], report["skipped"])
        assert {one["name"] for one in report["histories"]} == {f"public.{name}" for name in histories}

    def ops(self, table: str) -> list[str]:
        return [op for (op,) in self.lake(f"select op from {table} order by number")]


@pytest.fixture
def shop(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    with mirrored(Shop, server, tmp_path, request.node.name) as shop:
        yield shop


ORDERS = (
    "create table other (id int primary key)",
    "create table orders (id int primary key, name text, big text, amount numeric(10,2), ref uuid)",
    "alter table orders alter big set storage external",
    f"""insert into orders select n, 'o' || n, case when n % 2 = 0 then {BIG} || n end, n / 4.0, gen_random_uuid()
        from generate_series(1, 6) n""",
)


@pytest.mark.parametrize("version", [2, 3])
def test_every_change_is_a_row(shop: Shop, version: int) -> None:
    shop.sql(*ORDERS)
    shop.project(f'[tables."public.orders"]\nhistory = true\nformat = {version}\n')
    shop.sync()
    assert shop.lake("select op, row.id, old_key from orders_history order by number") == [("load", n, None) for n in range(1, 7)]
    (xid,) = shop.sql(
        "update orders set name = 'a' where id = 2",
        "update orders set name = 'b' where id = 2",
        "update orders set id = 20 where id = 2",
        "delete from orders where id = 20",
        "insert into orders (id, name) values (2, 'again')",
        "update orders set id = 30 - id where id in (4, 6)",
        "select pg_current_xact_id()::text::bigint",
    )
    shop.sync()
    changes = "select seq, op, old_key.id, row.id, row.name, length(row.big) from orders_history where xid = {} order by commit_lsn, seq"
    assert shop.lake(changes.format(xid[0])) == [
        (1, "update", 2, 2, "a", 9001),
        (2, "update", 2, 2, "b", 9001),
        (3, "update", 2, 20, "b", 9001),
        (4, "delete", 20, None, None, None),
        (5, "insert", None, 2, "again", None),
        (6, "update", 4, 26, "o4", 9001),
        (7, "update", 6, 24, "o6", 9001),
    ]
    ((stamp,),) = shop.sql("select count(*) from orders where now() > '2020-01-01'")
    assert stamp == 6
    ((wrong,),) = shop.lake(f"select count(*) from orders_history where xid = {xid[0]} and abs(epoch(commit_time - now())) > 600")
    assert wrong == 0
    shop.equal("orders_history")
    shop.sql("insert into orders (id) values (50)", "truncate orders", "insert into orders (id, name) values (1, 'new')")
    shop.sql("insert into orders (id) values (51)", "delete from orders where id = 51")
    shop.sync()
    assert shop.ops("orders_history")[13:] == ["insert", "truncate", "insert", "insert", "delete"]
    shop.equal("orders_history")


def test_a_large_transaction_keeps_its_order(shop: Shop) -> None:
    """Over several chunks; what a later chunk changes is filled from what an earlier one brought."""
    shop.sql("create table t (id int primary key, v int, big text)", "alter table t alter big set storage external")
    shop.project('[tables."public.t"]\nhistory = true\n')
    shop.sync()
    shop.sql(
        f"insert into t select n, 0, {BIG} || n from generate_series(1, 9000) n",
        "update t set v = 1 where id % 3 = 0",
        "update t set id = -id where id % 100 = 0",
        "delete from t where id % 7 = 0",
    )
    shop.sync()
    ((rows, places, last, lacking),) = shop.lake(
        "select count(*), count(distinct seq), max(seq), count(*) filter (row is not null and row.big is null) from t_history"
    )
    ((expected,),) = shop.sql("select 9000 + 3000 + 90 + (9000 - (select count(*) from t))")
    assert (rows, places, last, lacking) == (expected, expected, expected, 0)
    shop.equal("t_history")


def test_rows_without_a_key_and_rows_that_only_come(shop: Shop) -> None:
    shop.sql(
        "create table bag (n int, f float8, big text)",
        "alter table bag replica identity full; alter table bag alter big set storage external",
        f"insert into bag select n % 2, '-0.0', {BIG} from generate_series(1, 8) n",
        "create table log (n int, at timestamptz)",
        "insert into log values (1, now())",
    )
    shop.project('[tables."public.*"]\nhistory = true\n[tables."public.log"]\nappend_only = true\nhistory = true\n')
    shop.sync()
    shop.sql(
        "delete from bag where ctid = (select ctid from bag where n = 1 limit 1)",
        "update bag set n = 5 where n = 1",
        "update bag set f = 0.0 where ctid = (select ctid from bag limit 1)",
        "insert into log values (2, null), (2, null)",
    )
    shop.sync()
    assert shop.lake("select op, old_key.n, row.n, length(row.big) from bag_history where seq < 3 order by number") == [
        ("delete", 1, None, None),
        ("update", 1, 5, 9000),
    ]
    shop.equal("bag_history", "log_history")
    shop.sql("truncate bag, log", "insert into log values (3, null)", "insert into bag values (1, 'NaN', null), (1, 'NaN', null)")
    shop.sync()
    assert shop.ops("log_history") == ["load", "insert", "insert", "truncate", "insert"]
    shop.equal("bag_history", "log_history")


def test_the_shape_follows_the_mirror(shop: Shop) -> None:
    shop.sql(*ORDERS)
    shop.project('[tables."public.orders"]\nhistory = true\n')
    shop.sync()
    shop.sql("alter table orders add column c int default 7, add column d text", "update orders set d = 'd', amount = 1 where id = 1")
    shop.sync()
    assert shop.lake("select distinct row.c, row.d from orders_history order by all") == [(7, "d"), (7, None)]
    shop.equal("orders_history")
    shop.sql("alter table orders rename name to label", "update orders set label = 'x' where id = 3")
    assert [entry["code"] for entry in shop.sync()["parked"]] == ["TABLE_CHANGED"]
    with Lakehouse.open(shop.folder) as lake:
        assert {table["name"]: table["state"] for table in lake.tables()} == {
            "public.orders": "parked",
            "public.orders_history": "parked",
            "public.other": "following",
        }
    (xid,) = shop.sql(
        "alter table orders alter amount type numeric(14,2), drop column ref",
        "update orders set amount = 1e11, label = 'y' where id = 2",
        "update orders set label = 'z' where id = 2",
        "select pg_current_xact_id()::text::bigint",
    )
    shop.sync()
    assert shop.resume()["refused"] == []
    assert shop.lake("select row.id, row.label from orders_history where op = 'load' order by number limit 2") == [(1, "o1"), (2, "o2")]
    # What was kept while it was parked has its transaction's id and time still.
    replayed = (
        "select seq, row.label, length(row.big), row.amount::text, commit_time is not null from orders_history where xid = {} order by seq"
    )
    assert shop.lake(replayed.format(xid[0])) == [(1, "y", 9001, "100000000000.00", True), (2, "z", 9001, "100000000000.00", True)]
    shop.equal("orders_history")
    # Compaction reads files of every shape there was.
    for n in range(12):
        shop.sql(f"update orders set d = '{n}' where id = 5")
        shop.sync()
    with Lakehouse.open(shop.folder) as lake:
        (files,) = [table["files"] for table in lake.tables() if table["name"] == "public.orders_history"]
    assert files < 12
    shop.equal("orders_history")


def test_a_comparison_is_told_row_by_row(shop: Shop) -> None:
    shop.sql(*ORDERS)
    shop.project('[tables."public.orders"]\nhistory = true\n')
    shop.sync()
    # A rewrite that changes rows is sent to nobody.
    shop.sql("alter table orders alter column name type text using case when id = 3 then 'mended' else name end")
    shop.sql("delete from orders where id = 1", "insert into orders (id, name) values (9, 'nine')")
    (parked,) = shop.sync()["parked"]
    assert parked["code"] == "TABLE_REWRITTEN"
    shop.resume("orders", reload=True)
    shop.sync()
    assert shop.lake("select op, old_key.id, row.id from orders_history where op <> 'load' order by row.id nulls last") == [
        ("mend", 3, 3),
        ("mend", None, 9),
        ("mend", 1, None),
    ]
    shop.equal("orders_history")
    # Another key: rows cannot be compared, so they leave and come again.
    shop.sql("alter table orders drop constraint orders_pkey, add primary key (name)")
    shop.sync()
    shop.resume("orders", reload=True)
    shop.sql("update orders set name = 'other' where id = 5")
    shop.sync()
    assert shop.lake("select op, old_key.name, row.name from orders_history order by number desc limit 1") == [("update", "o5", "other")]
    assert "reset" in shop.ops("orders_history")
    shop.equal("orders_history")


def test_switched_on_later_off_and_on_again(shop: Shop) -> None:
    shop.sql(*ORDERS)
    shop.project("")
    shop.sync()
    shop.sql("delete from orders where id = 1")
    shop.project('[tables."public.orders"]\nhistory = true\n')
    shop.sync()
    assert shop.ops("orders_history") == ["load"] * 5 or shop.ops("orders_history") == ["load"] * 6 + ["delete"]
    shop.equal("orders_history")
    before = len(shop.ops("orders_history"))
    shop.project("")
    shop.sql("delete from orders where id = 2")
    status = shop.sync()
    assert [(one["table"], one["state"]) for one in status["histories"]] == [("public.orders_history", "stopped")]
    shop.equal()
    shop.project('[tables."public.orders"]\nhistory = true\n')
    shop.sync()
    assert shop.ops("orders_history")[before:] == ["reset"] + ["load"] * 4
    shop.equal("orders_history")
    # A table that comes to the source under that name is not mirrored.
    shop.sql("create table orders_history (id int primary key)")
    (refused,) = shop.sync()["refused"]
    assert (refused["table"], refused["code"]) == ("public.orders_history", "RESERVED_NAME")


def test_a_name_that_is_taken(shop: Shop) -> None:
    shop.sql(*ORDERS, "create table orders_history (id int primary key)")
    shop.project("")
    shop.sync()
    shop.project('[tables."public.orders"]\nhistory = true\n')
    (parked,) = shop.sync()["parked"]
    assert parked["code"] == "HISTORY_NAME_TAKEN"
    shop.project("")
    shop.resume("orders")
    shop.equal()


PARTITIONED = (
    "create schema leaves",
    "create table sales (id int, k int, v text{}) partition by list (k)",
    "create table leaves.one partition of sales for values in (1)",
    "create table leaves.two partition of sales for values in (2)",
    "insert into sales select n, 1 + n % 2, 'v' || n from generate_series(1, 6) n",
)


@pytest.mark.parametrize("identity", ["key", "full", "append"])
def test_a_partition_is_emptied_and_its_table_is_not(shop: Shop, identity: str) -> None:
    shop.project(
        '[tables."public.sales"]\nhistory = true\n' + ("append_only = true\n" if identity == "append" else ""),
    )
    shop.sql(*(one.format(", primary key (id, k)" if identity == "key" else "") for one in PARTITIONED))
    if identity == "full":
        shop.sql("alter table leaves.one replica identity full", "alter table leaves.two replica identity full")
    shop.sync()
    if identity != "append":
        # A row that moves to another partition is one that went and one that came.
        moved = ("update sales set k = 2 where id = 2", "delete from sales where id = 4")
        (xid,) = shop.sql(*moved, "select pg_current_xact_id()::text::bigint")
        shop.sync()
        told = "select seq, op, old_key.id, row.id, row.k from sales_history where xid = {} order by seq"
        assert shop.lake(told.format(xid[0])) == [(1, "delete", 2, None, None), (2, "insert", None, 2, 2), (3, "delete", 4, None, None)]
    shop.equal("sales_history")
    (oids,) = shop.sql("select 'leaves.one'::regclass::oid, 'leaves.two'::regclass::oid")
    two, other_two = "insert into sales values (7, 1, 'x'), (8, 2, 'x')", "insert into sales values (9, 2, 'x'), (10, 1, 'x')"
    shop.sql(two, "truncate leaves.two", other_two)
    shop.sync()
    told = "select seq, op, partition, row.id from sales_history where xid is not null order by commit_lsn desc, seq desc limit 5"
    assert shop.lake(told)[::-1] == [
        (1, "insert", None, 7),
        (2, "insert", None, 8),
        (3, "truncate", oids[1], None),
        (4, "insert", None, 9),
        (5, "insert", None, 10),
    ]
    shop.equal("sales_history")
    # Every partition of the table is told of its own.
    shop.sql("truncate sales", "insert into sales values (11, 1, 'y')")
    shop.sync()
    emptied = shop.lake("select partition from sales_history where op = 'truncate' order by number")
    assert Counter(emptied[1:]) == Counter([(oids[0],), (oids[1],)])
    shop.equal("sales_history")
    # What comes and goes with a partition.
    shop.sql("insert into sales values (12, 2, 'z')", "alter table sales detach partition leaves.two")
    shop.sync()
    shop.equal("sales_history")
    shop.sql("insert into leaves.two values (13, 2, 'z')", "alter table sales attach partition leaves.two for values in (2)")
    shop.sync()
    shop.equal("sales_history")
    assert shop.lake("select count(*) from sales") == [(3,)]
    assert shop.resume("sales", reload=True)["refused"] == []
    shop.equal("sales_history")


def test_what_left_no_trace_while_it_was_off_is_not_passed_over(shop: Shop) -> None:
    """The mirror is as it was, but the history does not go on as if nothing had been."""
    shop.sql("create table t (id int primary key)", "create table other (id int primary key)", "insert into t values (1)")
    on = '[tables."public.t"]\nhistory = true\n'
    shop.project(on)
    shop.sync()
    shop.project("")
    shop.sql("insert into t values (2)", "delete from t where id = 2", "insert into other values (1)")
    shop.sync()
    shop.project(on)
    shop.sync()
    assert shop.ops("t_history") == ["load", "reset", "load"]
    shop.equal("t_history")
