"""What the engine promises: the snapshots it was given, exact values, nothing outside the lake, errors that say what to do."""

import datetime as dt
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

from icelake.engines.duckdb import DuckDBEngine, TableAt, connect, extension_file, named
from icelake.errors import Corrupt, IcelakeError, ProjectError, Refused

ORDERS = Schema(
    NestedField(1, "id", LongType(), required=True), NestedField(2, "customer", LongType()), NestedField(3, "note", StringType())
)
PEOPLE = Schema(NestedField(1, "customer", LongType(), required=True), NestedField(2, "name", StringType()))


def now(table: Table) -> TableAt:
    snapshot = table.current_snapshot()
    return table.metadata_location, snapshot.snapshot_id if snapshot else None


@pytest.fixture
def engine(lake: Any) -> Iterator[DuckDBEngine]:
    with DuckDBEngine([lake.folder]) as engine:
        yield engine


@pytest.fixture
def shop(lake: Any) -> dict[str, TableAt]:
    orders = lake.make("public.orders", ORDERS, [{"id": 1, "customer": 7, "note": "a"}], [{"id": 2, "customer": 7, "note": None}])
    people = lake.make("crm.people", PEOPLE, [{"customer": 7, "name": "Ada"}])
    return {"public.orders": now(orders), "crm.people": now(people)}


def test_names_resolve_as_in_postgresql(engine: DuckDBEngine, shop: dict[str, TableAt]) -> None:
    for sql in (
        "select count(*) from orders",
        "select count(*) from public.orders",
        'from "public"."orders" select count(*)',
        "select count(*) from ORDERS join crm.people using (customer)",
        "with o as (select * from orders) select count(*) from o natural join people",
    ):
        assert engine.query(sql, shop).column(0).to_pylist() == [2], sql


def test_a_cte_hides_a_table_of_its_name(engine: DuckDBEngine, shop: dict[str, TableAt]) -> None:
    assert engine.query("with orders as (select 5 as n) select n from orders", shop).column(0).to_pylist() == [5]


def test_public_comes_first_and_other_namesakes_need_their_schema(engine: DuckDBEngine, lake: Any) -> None:
    tables = {
        f"{schema}.t": now(lake.make(f"{schema}.t", PEOPLE, [{"customer": n, "name": ""}])) for n, schema in enumerate(("public", "b"))
    }
    assert engine.query("select customer from t", tables).column(0).to_pylist() == [0]
    assert engine.query("select customer from b.t", tables).column(0).to_pylist() == [1]
    tables["c.t"] = tables.pop("public.t")
    with pytest.raises(ProjectError, match=r"SQL_AMBIGUOUS_TABLE.*\n.*b\.t, c\.t"):
        engine.query("select * from t", tables)


def test_odd_names(engine: DuckDBEngine, lake: Any) -> None:
    name = 'we"ird Straße'
    tables = {f"my schema.{name}": now(lake.make("odd.t", PEOPLE, [{"customer": 3, "name": "x"}]))}
    assert engine.query('select customer from "my schema"."we""ird Straße"', tables).column(0).to_pylist() == [3]
    assert engine.query('select customer from "we""ird Straße"', tables).column(0).to_pylist() == [3]


def test_only_tables_the_sql_may_mean_are_opened() -> None:
    assert named("select * from orders where note = 'people'", ["a.orders", "a.people", "a.order", "b.orders"]) == (
        "a.orders",
        "a.people",
        "b.orders",
    )


def test_a_query_sees_the_snapshot_it_was_given(engine: DuckDBEngine, lake: Any) -> None:
    table = lake.make("public.orders", ORDERS, *[[{"id": n, "customer": 1, "note": "x"}] for n in range(3)])
    counts = [
        engine.query("select count(*) from orders", {"public.orders": (table.metadata_location, snapshot.snapshot_id)}).column(0)[0].as_py()
        for snapshot in table.metadata.snapshots
    ]
    assert counts == [1, 2, 3]


@pytest.mark.parametrize("written", [False, True])
def test_before_the_first_snapshot_a_table_is_empty_with_its_columns(engine: DuckDBEngine, lake: Any, written: bool) -> None:
    table = lake.make("public.orders", ORDERS, *([[{"id": 1, "customer": 1, "note": "x"}]] if written else []))
    answer = engine.query("select * from orders", {"public.orders": (table.metadata_location, None)})
    assert answer.num_rows == 0
    assert answer.schema.types == [pa.int64(), pa.int64(), pa.string()]
    assert answer.column_names == ["id", "customer", "note"]


def test_every_type_keeps_its_value(engine: DuckDBEngine, lake: Any) -> None:
    utc = dt.UTC
    values: dict[str, tuple[Any, Any, Any]] = {
        "flag": (BooleanType(), True, pa.bool_()),
        "small": (IntegerType(), -(2**31), pa.int32()),
        "big": (LongType(), 2**63 - 1, pa.int64()),
        "real": (FloatType(), 1.5, pa.float32()),
        "double": (DoubleType(), 5e-324, pa.float64()),
        "price": (DecimalType(38, 9), Decimal("12345678901234567890123456789.123456789"), pa.decimal128(38, 9)),
        "text": (StringType(), "ø\U0001f9ca'\"\n", pa.string()),
        "bytes": (BinaryType(), b"\x00\xff", pa.binary()),
        "day": (DateType(), dt.date(1, 1, 1), pa.date32()),
        "hour": (TimeType(), dt.time(23, 59, 59, 999999), pa.time64("us")),
        "local": (TimestampType(), dt.datetime(9999, 12, 31, 23, 59, 59, 999999), pa.timestamp("us")),
        "instant": (TimestamptzType(), dt.datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=utc), pa.timestamp("us", "UTC")),
        "uuid": (UUIDType(), uuid.UUID(int=2**127 + 1), pa.string()),
    }
    schema = Schema(*(NestedField(n, name, kind) for n, (name, (kind, _, _)) in enumerate(values.items(), 1)))
    row = {name: value.bytes if isinstance(value, uuid.UUID) else value for name, (_, value, _) in values.items()}
    table = lake.make("public.t", schema, [row, dict.fromkeys(row)])
    answer = engine.query("select * from t", {"public.t": now(table)})
    assert answer.schema.types == [kind for _, _, kind in values.values()]
    expected = {name: str(value) if isinstance(value, uuid.UUID) else value for name, (_, value, _) in values.items()}
    assert answer.to_pylist() == [expected, dict.fromkeys(expected)]


def test_sums_of_bigint_do_not_become_floating_point(engine: DuckDBEngine, shop: dict[str, TableAt]) -> None:
    total = engine.query("select sum(id + 9007199254740992) from orders", shop).column(0)
    assert total.to_pylist() == [Decimal(2 * 9007199254740992 + 3)]


def test_an_answer_can_be_read_in_batches_or_left_half_read(engine: DuckDBEngine, shop: dict[str, TableAt]) -> None:
    with engine.read("select i from range(300000) r(i)", shop, rows=10_000) as reader:
        assert reader.read_next_batch().num_rows > 0
    with engine.read("select i from range(300000) r(i)", shop) as reader:
        assert sum(batch.num_rows for batch in reader) == 300_000
    assert engine.query("select count(*) from duckdb_databases() where database_name like '_lake%'", shop).column(0).to_pylist() == [1]


def test_threads_ask_at_different_snapshots_at_once(engine: DuckDBEngine, lake: Any) -> None:
    table = lake.make("public.orders", ORDERS, *[[{"id": n, "customer": 1, "note": "x"}] for n in range(4)])
    answers: dict[int, list[int]] = {}

    def ask(number: int, snapshot: int) -> None:
        at = {"public.orders": (table.metadata_location, snapshot)}
        answers[number] = [engine.query("select count(*) from orders", at).column(0)[0].as_py() for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(n, s.snapshot_id)) for n, s in enumerate(table.metadata.snapshots, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: [n] * 5 for n in range(1, 5)}


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("select * from read_text('/etc/hostname')", "SQL_NOT_ALLOWED"),
        ("select * from '/etc/hostname'", "SQL_"),
        ("copy orders to '/tmp/never.csv'", "SQL_NOT_A_QUERY"),
        ("explain copy (select 1) to '/tmp/never.csv'", "SQL_NOT_A_QUERY"),
        ("/* ß */ explain (analyze, format json) copy (select 1) to '/tmp/never.csv'", "SQL_NOT_A_QUERY"),
        ("explain analyze with t as (select 1) insert into orders select * from t", "SQL_NOT_A_QUERY"),
        ("explain analyze create table t as select 1", "SQL_NOT_A_QUERY"),
        ("select 1; select 2", "SQL_NOT_A_QUERY"),
        ("", "SQL_NOT_A_QUERY"),
        ("drop view orders", "SQL_NOT_A_QUERY"),
        ("set memory_limit='9GB'", "SQL_NOT_A_QUERY"),
        ("selec 1", "SQL_ERROR"),
        ("select nonesuch from orders", "SQL_ERROR"),
        ("select note::int from orders", "SQL_ERROR"),
        ("select * from shop", "SQL_UNKNOWN_TABLE"),
    ],
)
def test_refused(engine: DuckDBEngine, shop: dict[str, TableAt], sql: str, code: str) -> None:
    with pytest.raises(ProjectError, match=code):
        engine.query(sql, shop)


def test_an_error_half_way_through_the_answer_is_ours_too(engine: DuckDBEngine, shop: dict[str, TableAt]) -> None:
    sql = "select if(i = 2900000, ('x' || i)::int, 1) from range(3000000) t(i)"
    with pytest.raises(ProjectError, match="x2900000"):
        engine.query(sql, shop)


def test_an_unknown_table_is_told_its_neighbours(engine: DuckDBEngine, shop: dict[str, TableAt]) -> None:
    with pytest.raises(ProjectError, match=r"no table ordres\n.*near: public\.orders"):
        engine.query("select * from ordres", shop)
    with pytest.raises(ProjectError, match=r"near: public\.orders"):
        engine.query("select * from publik.orders", shop)


def test_python_variables_are_no_tables(engine: DuckDBEngine, shop: dict[str, TableAt]) -> None:
    frame = pa.table({"x": [1]})
    with pytest.raises(ProjectError, match="SQL_UNKNOWN_TABLE"):
        engine.query("select * from frame", shop)
    assert frame.num_rows == 1


def test_a_missing_data_file_is_named(engine: DuckDBEngine, lake: Any) -> None:
    table = lake.make("public.orders", ORDERS, [{"id": 1, "customer": 1, "note": "x"}])
    (file,) = (lake.folder / "public/orders/data").iterdir()
    file.unlink()
    with pytest.raises(Corrupt, match=file.name):
        engine.query("select note from orders", {"public.orders": now(table)})


def test_a_missing_metadata_file_is_named(engine: DuckDBEngine, lake: Any) -> None:
    table = lake.make("public.orders", ORDERS, [{"id": 1, "customer": 1, "note": "x"}])
    location, snapshot = now(table)
    Path(location).unlink()
    with pytest.raises(Corrupt, match=Path(location).name):
        engine.query("select note from orders", {"public.orders": (location, snapshot)})


def test_a_query_too_large_for_its_memory_is_refused_and_one_with_scratch_spills(lake: Any, tmp_path: Path) -> None:
    lake.folder.mkdir()
    sql = "select i from range(6000000) r(i) order by hash(i) offset 5999999"
    with DuckDBEngine([lake.folder], memory_limit="32MB", threads=1) as engine, pytest.raises(Refused, match="QUERY_OUT_OF_MEMORY"):
        engine.query(sql, {})
    with DuckDBEngine([lake.folder], memory_limit="32MB", threads=1, scratch=tmp_path / "scratch") as engine:
        assert engine.query(sql, {}).num_rows == 1


def test_connect_is_locked_to_its_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for folder in ("in", "out"):
        (tmp_path / folder / "x.csv").write_text("a\n1\n")
    with connect([tmp_path / "in"]) as connection:
        assert connection.execute(f"select a from read_csv('{tmp_path}/in/x.csv')").fetchall() == [(1,)]
        for statement in (f"from read_csv('{tmp_path}/out/x.csv')", f"from read_csv('{tmp_path}/in/../out/x.csv')", "set threads=1"):
            with pytest.raises(Exception, match=r"disabled by configuration|has been locked"):
                connection.execute(statement)


def test_an_extension_that_is_not_installed_is_named() -> None:
    with pytest.raises(IcelakeError, match=r"(?s)DUCKDB_EXTENSION_MISSING.*pip install duckdb-extension-spatial=="):
        extension_file("spatial")


def test_it_works_without_home_or_network_and_leaves_nothing_behind(lake: Any, tmp_path: Path) -> None:
    table = lake.make("public.orders", ORDERS, [{"id": 1, "customer": 1, "note": "x"}])
    program = """
import json, sys
from icelake.engines.duckdb import DuckDBEngine
folder, location, snapshot = json.loads(sys.argv[1])
with DuckDBEngine([folder]) as engine:
    print(engine.query("select note from orders", {"public.orders": (location, snapshot)}).to_pylist())
"""
    home = tmp_path / "home"
    home.mkdir()
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, json.dumps([str(lake.folder), *now(table)])],
        env={"HOME": str(home), "https_proxy": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[{'note': 'x'}]\n", "")
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
