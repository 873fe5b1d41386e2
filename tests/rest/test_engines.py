"""PyIceberg and DuckDB read and write through the served catalog, at once with each other and with racing commits."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.types import IntegerType, ListType, LongType, MapType, NestedField, StringType, StructType

from icelake.catalog.fresh import fresh
from tests.rest.conftest import Served
from tests.rest.test_protocol import ident, make, snapshot, unmoved

FULL = bool(os.environ.get("ICELAKE_FULL"))
ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["a", None, "c"]})


def test_pyiceberg_from_beginning_to_end(iceberg: Catalog) -> None:
    table = iceberg.create_table("shop.t", ROWS.schema, properties={"a": "1"})
    table.append(ROWS)
    table.delete("id = 2")
    with table.update_schema() as update:
        update.add_column("z", StringType())
        update.rename_column("name", "called")
    with table.update_spec() as spec:
        spec.add_identity("id")
    table.append(pa.table({"id": pa.array([9], pa.int64()), "called": ["n"], "z": ["z"]}))
    table.overwrite(pa.table({"id": pa.array([1], pa.int64()), "called": ["one"], "z": ["new"]}), "id = 1")
    assert sorted(iceberg.load_table("shop.t").scan().to_arrow().to_pylist(), key=lambda row: row["id"]) == [
        {"id": 1, "called": "one", "z": "new"},
        {"id": 3, "called": "c", "z": None},
        {"id": 9, "called": "n", "z": "z"},
    ]
    first = table.history()[0].snapshot_id
    assert table.scan(snapshot_id=first).to_arrow().num_rows == 3
    table.manage_snapshots().create_tag(first, "before").create_branch(first, "try").commit()
    assert set(iceberg.load_table("shop.t").refs()) == {"main", "before", "try"}
    iceberg.rename_table("shop.t", "shop.u")
    assert iceberg.list_tables("shop") == [("shop", "u")]
    with iceberg.create_table_transaction("shop.made", ROWS.schema) as transaction:
        transaction.append(ROWS)
    assert iceberg.load_table("shop.made").scan().to_arrow().num_rows == 3
    iceberg.purge_table("shop.u")
    iceberg.drop_table("shop.made")
    assert iceberg.list_tables("shop") == []


def test_duckdb_reads_and_writes(iceberg: Catalog, duck: duckdb.DuckDBPyConnection) -> None:
    duck.execute("create table lake.shop.d (id bigint, name varchar)")
    duck.execute("insert into lake.shop.d values (1, 'a'), (2, 'b')")
    assert iceberg.load_table("shop.d").scan().to_arrow().to_pylist() == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    duck.execute("begin")
    duck.execute("insert into lake.shop.d select i, 'x' from range(10, 20) t(i)")
    duck.execute("commit")
    iceberg.load_table("shop.d").append(ROWS)
    assert duck.execute("select count(*), sum(id) from lake.shop.d").fetchone() == (15, 154)
    iceberg.create_table("shop.t", ROWS.schema).append(ROWS)
    assert duck.execute("select d.id, t.name from lake.shop.d join lake.shop.t on d.id = t.id where d.id = 3").fetchall() == [(3, "c")]
    duck.execute("drop table lake.shop.d")
    assert iceberg.list_tables("shop") == [("shop", "t")]


def test_no_row_of_racing_first_appends_is_lost(iceberg: Catalog, guarded: Served) -> None:
    """Each of them finds a table without a snapshot."""
    writers, rounds = (16, 50) if FULL else (8, 2)
    for number in range(rounds):
        iceberg.create_table(f"shop.t{number}", ROWS.schema)
        together = threading.Barrier(writers)

        def write(writer: int, name: str = f"shop.t{number}", together: threading.Barrier = together) -> None:
            catalog = load_catalog("served", type="rest", uri=guarded.uri)
            table = catalog.load_table(name)
            together.wait()
            while True:
                try:
                    table.append(pa.table({"id": pa.array([writer], pa.int64()), "name": ["x"]}))
                    return
                except CommitFailedException:
                    table.refresh()

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writers)))
        rows = iceberg.load_table(f"shop.t{number}").scan().to_arrow()
        assert sorted(map(int, rows["id"].to_numpy())) == list(range(writers))


def test_racing_commits_over_two_tables_never_differ(served: Served) -> None:
    served.made("POST", "namespaces", {"namespace": ["shop"]})
    for name in ("a", "b"):
        make(served, name)
    writers, rounds = (8, 50) if FULL else (8, 12)
    won = [0] * writers
    sent: list[int] = []
    together = threading.Barrier(writers)

    def write(writer: int) -> None:
        together.wait()
        for number in range(rounds):
            now = {name: served.made("GET", f"namespaces/shop/tables/{name}")["metadata"] for name in ("a", "b")}
            made = 1000 * writer + number + 1
            changes = [
                {
                    "identifier": ident(name),
                    "requirements": [unmoved(metadata.get("current-snapshot-id"))],
                    "updates": snapshot(metadata, made),
                }
                for name, metadata in now.items()
            ]
            status = served.ask("POST", "transactions/commit", {"table-changes": changes}).status
            assert status in (204, 409)
            if status == 204:
                won[writer] += 1
                sent.append(made)
            a, b = (served.made("GET", f"namespaces/shop/tables/{name}")["metadata"] for name in ("a", "b"))
            # The later look sees at least as much, in the same order.
            history = [entry["snapshot-id"] for entry in b["snapshot-log"]]
            assert [entry["snapshot-id"] for entry in a["snapshot-log"]] == history[: len(a["snapshot-log"])]

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    a, b = (
        [entry["snapshot-id"] for entry in served.made("GET", f"namespaces/shop/tables/{name}")["metadata"]["snapshot-log"]]
        for name in ("a", "b")
    )
    assert a == b
    assert sorted(a) == sorted(sent)
    assert sum(won) == len(a) > writers


def nested() -> Schema:
    point = StructType(
        NestedField(31, "x", IntegerType(), required=True), NestedField(30, "y", ListType(40, LongType(), element_required=False))
    )
    return Schema(
        NestedField(5, "m", MapType(7, StringType(), 8, point, value_required=True)),
        NestedField(1, "l", ListType(9, point_again(), element_required=True)),
        NestedField(3, "id", LongType(), required=True),
        identifier_field_ids=[3],
    )


def point_again() -> StructType:
    return StructType(NestedField(60, "a", IntegerType()), NestedField(61, "b", MapType(70, StringType(), 71, LongType())))


def test_ids_are_given_as_the_reference_gives_them() -> None:
    """PyIceberg's are tested against Java's."""
    schema = nested()
    made: Any = fresh(schema.model_dump(), None, None).schema
    assert Schema.model_validate(made) == assign_fresh_schema_ids(schema)
