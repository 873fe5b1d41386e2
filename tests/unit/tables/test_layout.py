"""Rows in their partitions and in their order, and what the metadata says of it."""

import dataclasses
import datetime as dt
import io
import math
import random
import struct
from decimal import Decimal
from typing import Any

import fastavro
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.conversions import to_bytes
from pyiceberg.table.metadata import TableMetadataUtil

from icelake.errors import ValueOutOfContract
from icelake.model.layout import Layout, PartitionField, SortField
from icelake.tables import transforms
from icelake.tables.layout import partition_spec, serialized, sort_order
from icelake.tables.schema import iceberg_schema
from tests.unit.tables.mirror import Mirror, batch, relation

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
SHAPE = relation(("id", "long"), ("country", "string"), ("at", "timestamptz"), ("price", "decimal(20,2)"), ("f", "double"), ("n", "int"))


def layout(partition: str = "", sort: str = "", format_version: int = 3) -> Layout:
    fields = [PartitionField.parse(text) for text in partition.split(";") if text]
    return Layout(tuple(fields), tuple(SortField.parse(text) for text in sort.split(";") if text), format_version)


def row(key: int, chance: random.Random) -> tuple[Any, ...]:
    return (
        key,
        chance.choice([None, "", "de", "fr", "🦆"]),
        chance.choice([None, EPOCH, EPOCH + dt.timedelta(days=chance.randrange(3), microseconds=chance.randrange(2))]),
        chance.choice([None, Decimal("-0.01"), Decimal("100.00"), Decimal("-123456789012345678.90")]),
        chance.choice([None, 0.0, -0.0, math.inf, -math.inf, 1.5]),
        chance.choice([None, -7, 7, 2**31 - 1]),
    )


LAYOUTS = [
    layout("country"),
    layout("day(at);bucket(3, id);country", "n;f desc"),
    layout("bucket(2, price);truncate(5, n)", "country nulls last;at desc nulls first"),
    layout("", "f;id desc"),
    layout("price;at", "n desc"),
]


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_every_file_is_one_partition_in_order(number: int) -> None:
    chance = random.Random(number)
    wanted = dataclasses.replace(LAYOUTS[number], format_version=2 + number % 2)
    mirror = Mirror(SHAPE, layout=wanted)
    assert mirror.table.layout.declared == wanted
    for _ in range(3):
        mirror.commit([row(key, chance) for key in chance.sample(range(100), 30)])
        mirror.check()
    for file in mirror.table.files.values():
        stored = pq.read_table(mirror.storage.open(file.path))
        for one, value in zip(mirror.table.layout.fields, file.partition, strict=True):
            column = stored.column(one.declared.column).combine_chunks()
            found = transforms.apply(one.declared.transform, one.declared.width, column)
            assert len(found.unique()) == 1
            assert (found[0].as_py() is None) == (value is None)
        # Sorting again moves no row: files are in order, and of equal rows the first came first.
        order, _ = mirror.table.layout.arrange(stored)
        assert order is None


@pytest.mark.parametrize(("order", "expected"), [("f", "None -inf -1.5 -0.0 0.0 inf nan"), ("f desc", "nan inf 0.0 -0.0 -1.5 -inf None")])
def test_floats_are_sorted_as_the_spec_says(order: str, expected: str) -> None:
    for kind in ("float", "double"):
        mirror = Mirror(relation(("id", "long"), ("f", kind)), layout=layout("", order))
        mirror.commit(list(enumerate([math.nan, 0.0, None, -0.0, math.inf, -math.inf, -1.5])))
        (file,) = mirror.table.files.values()
        assert " ".join(map(str, pq.read_table(mirror.storage.open(file.path)).column("f").to_pylist())) == expected


def test_rows_are_where_append_says() -> None:
    chance = random.Random(1)
    mirror = Mirror(SHAPE, layout=LAYOUTS[1])
    rows = [row(key, chance) for key in range(100)]
    delta = mirror.table.delta()
    placed = delta.append(batch(SHAPE, rows), None)
    found = mirror.table.read(placed.file_no, placed.positions, ["id", "country"], delta=delta)
    assert found.column("id").to_pylist() == [r[0] for r in rows]
    assert found.column("country").to_pylist() == [r[1] for r in rows]


def test_many_partitions_in_one_batch() -> None:
    """As many files as partitions, each row in its own, and no more work than that."""
    shape = relation(("id", "long"), ("n", "int"))
    mirror = Mirror(shape, layout=layout("n", "id desc"))
    mirror.commit([(key, key % 200) for key in range(1000)])
    assert len(mirror.table.files) == 200
    assert {file.partition for file in mirror.table.files.values()} == {(n,) for n in range(200)}
    assert mirror.head()["summary"]["changed-partition-count"] == "200"
    mirror.commit([(3, 199)], delete=[205])
    # Row 3 left partition 3, row 205 partition 5, row 3 came to partition 199.
    assert mirror.head()["summary"]["changed-partition-count"] == "3"
    mirror.check()


def test_a_row_that_moves_partition_keeps_its_id() -> None:
    mirror = Mirror(SHAPE, layout=layout("country"))
    mirror.commit([(key, "de", EPOCH, None, None, None) for key in range(3)])
    mirror.commit([(1, "fr", EPOCH, None, None, None)])
    mirror.commit([(1, None, EPOCH, None, None, None)])
    assert mirror.ids[1] == 1
    assert {file.partition: file.live_count for file in mirror.table.files.values()} == {("de",): 2, (None,): 1}
    vector = next(entry for manifest in mirror.table.manifests if manifest.content == 1 for entry in manifest.entries)
    assert vector.partition == ("de",)
    mirror.check()


def test_rows_of_two_partitions_are_never_compacted_together() -> None:
    mirror = Mirror(SHAPE, layout=layout("country"))
    for key in range(7):
        mirror.commit([(key, "de", EPOCH, None, None, None), (100 + key, None, EPOCH, None, None, None)])
    assert mirror.compact() is None
    mirror.commit([(7, "de", EPOCH, None, None, None), (107, None, EPOCH, None, None, None)])
    # Both are full: one call takes both, each into a file of its own.
    head = mirror.compact()
    assert head is not None
    assert sorted((file.partition, file.record_count) for file in mirror.table.files.values() if file.partition[0]) == [(("de",), 8)]
    assert head["summary"]["changed-partition-count"] == "2"
    assert len(mirror.table.files) == 2
    mirror.check()


# --------------------------------------------------------------------------------------------------------------- metadata


def test_the_spec_and_the_order_in_json() -> None:
    schema = iceberg_schema(SHAPE)
    wanted = layout("country;day(at);bucket(16, id);truncate(4, country)", "at desc;n nulls last")
    assert partition_spec(wanted, schema) == {
        "spec-id": 0,
        "fields": [
            {"source-id": 2, "field-id": 1000, "name": "country", "transform": "identity"},
            {"source-id": 3, "field-id": 1001, "name": "at_day", "transform": "day"},
            {"source-id": 1, "field-id": 1002, "name": "id_bucket", "transform": "bucket[16]"},
            {"source-id": 2, "field-id": 1003, "name": "country_trunc", "transform": "truncate[4]"},
        ],
    }
    assert sort_order(wanted, schema) == {
        "order-id": 1,
        "fields": [
            {"transform": "identity", "source-id": 3, "direction": "desc", "null-order": "nulls-last"},
            {"transform": "identity", "source-id": 6, "direction": "asc", "null-order": "nulls-last"},
        ],
    }
    assert sort_order(Layout(), schema) == {"order-id": 0, "fields": []}


def test_partition_fields_have_names_nobody_takes_for_a_column() -> None:
    shape = relation(("id", "long"), ("ID_Bucket", "int"), ("1a b", "string"), ("_1a_x20b", "int"))
    fields = partition_spec(layout('bucket(4, id);"1a b";ID_Bucket'), iceberg_schema(shape))["fields"]
    assert [field["name"] for field in fields] == ["id_bucket_2", "_1a_x20b_2", "ID_Bucket"]


@pytest.mark.parametrize("format_version", [2, 3])
def test_pyiceberg_reads_the_same_layout(format_version: int) -> None:
    """Metadata, manifest lists and manifests, by another's eyes: partition values, their summaries, sort order ids."""
    chance = random.Random(2)
    mirror = Mirror(SHAPE, layout=layout("country;day(at);price;bucket(3, n)", "n", format_version))
    mirror.commit([row(key, chance) for key in range(40)])
    mirror.commit([row(key, chance) for key in range(0, 40, 3)])
    theirs = TableMetadataUtil.parse_obj(mirror.table.metadata)
    assert theirs.format_version == format_version
    assert [str(field.transform) for field in theirs.spec().fields] == ["identity", "day", "identity", "bucket[3]"]
    partition_type = theirs.spec().partition_type(theirs.schema())
    kinds = [str(field.field_type) for field in partition_type.fields]
    types: list[Any] = [field.field_type for field in partition_type.fields]
    assert kinds == ["string", "date", "decimal(20, 2)", "int"]
    for manifest in mirror.table.manifests:
        data = mirror.storage.files[manifest.path]
        reader = fastavro.reader(io.BytesIO(data))
        entries: list[Any] = list(reader)
        schema: Any = orjson.loads(reader.metadata["avro.schema"])
        fields = next(f for f in schema["fields"] if f["name"] == "data_file")["type"]["fields"]
        assert ("first_row_id" in {field["name"] for field in fields}) == (format_version == 3)
        record = next(f for f in fields if f["name"] == "partition")["type"]
        assert [(field["name"], field["field-id"]) for field in record["fields"]] == [
            ("country", 1000), ("at_day", 1001), ("price", 1002), ("n_bucket", 1003),
        ]  # fmt: skip
        stored = [field["type"][1] for field in record["fields"]]
        assert [kind if isinstance(kind, str) else kind["logicalType"] for kind in stored] == ["string", "date", "decimal", "int"]
        # fastavro makes dates and decimals of the logical types, if they are right.
        for entry in entries:
            price = entry["data_file"]["partition"]["price"]
            assert price is None or price in {Decimal("-0.01"), Decimal("100.00"), Decimal("-123456789012345678.90")}
            assert entry["data_file"]["sort_order_id"] == (1 if manifest.content == 0 else None)
        for place, (kind, summary) in enumerate(zip(types, manifest.record["partitions"], strict=True)):
            values = [tuple(entry["data_file"]["partition"].values())[place] for entry in entries]
            there = [value for value in values if value is not None]
            assert summary["contains_null"] == (None in values)
            assert summary["contains_nan"] is False
            assert summary["lower_bound"] == (to_bytes(kind, min(there)) if there else None)
            assert summary["upper_bound"] == (to_bytes(kind, max(there)) if there else None)


def test_times_duckdb_would_hide_are_refused() -> None:
    before = EPOCH - dt.timedelta(microseconds=1)
    for transform, refused in (("day", True), ("month", True), ("year", False), ("hour", False)):
        mirror = Mirror(SHAPE, layout=layout(f"{transform}(at)"))
        mirror.commit([(1, None, EPOCH, None, None, None), (2, None, None, None, None, None)])
        if not refused:
            mirror.commit([(3, None, before, None, None, None)])
            continue
        with pytest.raises(ValueOutOfContract, match=r"(?s)PARTITION_BEFORE_1970.*year\(at\)"):
            mirror.commit([(3, None, before, None, None, None)])


@given(st.integers(1, 38), st.data())
@settings(max_examples=60, deadline=None)
def test_decimals_are_bounds_as_the_spec_has_them(precision: int, data: st.DataObject) -> None:
    kind = f"decimal({precision},0)"
    number = data.draw(st.integers(-(10**precision) + 1, 10**precision - 1))
    mirror = Mirror(relation(("id", "long"), ("d", kind)), layout=layout("d"))
    mirror.commit([(1, Decimal(number))])
    (file,) = mirror.table.files.values()
    (value,) = file.partition
    assert int.from_bytes(value, "big", signed=True) == number
    shortest = serialized(value, kind)
    assert int.from_bytes(shortest, "big", signed=True) == number
    assert len(shortest) == ((number if number >= 0 else ~number).bit_length() // 8 + 1)
    mirror.check()


def test_days_before_christ_are_partitions() -> None:
    shape = relation(("id", "long"), ("on", "date"), ("at", "timestamp"))
    mirror = Mirror(shape, layout=layout("on;year(at)"))
    delta = mirror.table.delta()
    rows = pa.RecordBatch.from_arrays(
        [
            pa.array([1, 2], pa.int64()),
            pa.array([-2_440_588, 2_145_031_948], pa.int32()).view(pa.date32()),
            pa.array([-210_866_803_200_000_000, 9_223_371_331_199_999_999], pa.int64()).view(pa.timestamp("us")),
        ],
        names=["id", "on", "at"],
    )
    delta.append(rows, None)
    mirror.send(delta)
    again = mirror.reopen()
    assert {file.partition for file in again.files.values()} == {(-2_440_588, -6683), (2_145_031_948, 292_277)}
    assert struct.pack("<i", -2_440_588) in [summary["lower_bound"] for m in again.manifests for summary in m.record["partitions"]]
