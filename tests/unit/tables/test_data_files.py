import decimal
import io
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg.conversions import to_bytes
from pyiceberg.types import BinaryType, BooleanType, DateType, DecimalType, DoubleType, FloatType, IntegerType, LongType, StringType

from icelake.errors import Corrupt
from icelake.model.types import IcebergType
from icelake.ports import arrow_type
from icelake.tables import data_files
from icelake.tables.data_files import DataFiles, Wanted, bounds, encode, in_file
from icelake.tables.keys import hash_rows
from icelake.tables.schema import Fields, fields_of, iceberg_schema, table_properties
from tests.unit.tables.mirror import MemoryStorage, Mirror, batch, relation
from tests.unit.tables.nested import PRIMITIVES
from tests.unit.tables.nested import TYPES as ANY_TYPE
from tests.unit.tables.nested import values as any_value

VALUES: dict[str, st.SearchStrategy[Any]] = {
    **{kind: values for kind, values in PRIMITIVES.items() if kind != "uuid"},
    "string": st.text(max_size=40) | st.text(st.sampled_from("a\U0010ffff\ud7ff\u00ff"), max_size=40),
    "binary": st.binary(max_size=40) | st.lists(st.sampled_from([0, 255]), max_size=40).map(bytes),
}
CASES = st.sampled_from(sorted(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), st.lists(VALUES[kind] | st.none(), max_size=12)))


def back(bound: bytes, kind: str) -> Any:
    """Single-value serialization read by the text of the spec, apart from the code under test."""
    if kind in ("int", "date"):
        return struct.unpack("<i", bound)[0]
    if kind in ("long", "timestamp", "timestamptz", "time"):
        return struct.unpack("<q", bound)[0]
    if kind in ("float", "double"):
        return struct.unpack("<f" if kind == "float" else "<d", bound)[0]
    if kind.startswith("decimal"):
        return Decimal(int.from_bytes(bound, "big", signed=True)).scaleb(-int(kind[:-1].split(",")[1]), decimal.Context(prec=60))
    if kind == "boolean":
        return bound == b"\x01"
    return bound.decode() if kind == "string" else bound


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(CASES)
def test_bounds_hold_every_value(case: tuple[str, list[Any]]) -> None:
    kind, values = case
    lower, upper = bounds(pa.array(values, arrow_type(kind)), kind)
    # NaN and null are in no bound.
    real = [value for value in values if value is not None and value == value]
    if not real:
        assert lower is upper is None
        return
    assert lower is not None
    assert back(lower, kind) <= min(real)
    if upper is None:
        assert kind in ("string", "binary")
        assert len(max(real)) > 16
    else:
        assert back(upper, kind) >= max(real)
        assert kind not in ("string", "binary") or len(back(upper, kind)) <= 16
    short = kind not in ("string", "binary") or max(len(value) for value in real) <= 16
    if short and upper is not None:
        assert (back(lower, kind), back(upper, kind)) == (min(real), max(real))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(CASES, st.integers(1, 3))
def test_bounds_are_the_same_whoever_finds_them(case: tuple[str, list[Any]], group: int) -> None:
    kind, values = case
    column = pa.array(values, arrow_type(kind))
    field = pa.field("c", column.type, metadata={"PARQUET:field_id": "1"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_files, "_GROUP_ROWS", group)
        record = encode(pa.Table.from_arrays([column], schema=pa.schema([field])), [kind]).record
    hidden = any(one["value"] for one in record["nan_value_counts"])
    lower, upper = (None, None) if hidden else bounds(column, kind)
    assert ([one["value"] for one in record["lower_bounds"]] or [None]) == [lower]
    assert ([one["value"] for one in record["upper_bounds"]] or [None]) == [upper]


def test_zeros_are_bounded_by_both_zeros() -> None:
    for values in ([0.0], [-0.0], [0.0, -0.0]):
        lower, upper = bounds(pa.array(values), "double")
        assert (lower, upper) == (struct.pack("<d", -0.0), struct.pack("<d", 0.0))


def test_uuids_have_no_bounds() -> None:
    assert bounds(pa.array([bytes(16)], pa.binary(16)), "uuid") == (None, None)


@pytest.mark.parametrize(
    ("kind", "theirs", "value", "said"),
    [
        ("int", IntegerType(), -7, -7),
        ("long", LongType(), 2**40, 2**40),
        ("boolean", BooleanType(), True, True),
        ("float", FloatType(), 1.5, 1.5),
        ("double", DoubleType(), -2.25, -2.25),
        ("date", DateType(), -719_163, -719_163),
        ("string", StringType(), "ünï", "ünï"),
        ("binary", BinaryType(), b"\x00\xff", b"\x00\xff"),
        *(
            ("decimal(10,2)", DecimalType(10, 2), Decimal(text), Decimal(text))
            for text in ("0.00", "1.27", "1.28", "-1.28", "-1.29", "99999999.99")
        ),
    ],
)
def test_bounds_are_serialized_as_pyiceberg_does(kind: str, theirs: Any, value: Any, said: Any) -> None:
    assert bounds(pa.array([value], arrow_type(kind)), kind) == (to_bytes(theirs, said), to_bytes(theirs, said))


SHAPE = relation(("id", "long"), ("f", "double"), ("s", "string"), ("u", "uuid"), ("d", "decimal(12,2)"))
FIELDS = fields_of({"current-schema-id": 0, "schemas": [iceberg_schema(SHAPE)], "properties": table_properties(SHAPE)})
TYPES = [column.iceberg for column in SHAPE.columns]
ROWS = [
    (1, 1.0, "a", bytes(16), Decimal("1.25")),
    (2, float("nan"), None, None, None),
    (3, None, "b", b"\xff" * 16, Decimal("-1.25")),
]


def test_metrics_of_a_file() -> None:
    encoded = encode(in_file(batch(SHAPE, ROWS), FIELDS.plain), TYPES)
    record = {
        name: {p["key"]: p["value"] for p in v} if isinstance(v, list) and name != "split_offsets" else v
        for name, v in encoded.record.items()
    }
    assert record["record_count"] == 3
    assert record["file_size_in_bytes"] == encoded.data.size
    assert record["value_counts"] == dict.fromkeys(range(1, 6), 3)
    assert record["null_value_counts"] == {1: 0, 2: 1, 3: 1, 4: 1, 5: 1}
    assert record["nan_value_counts"] == {2: 1}
    assert record["lower_bounds"].keys() == record["upper_bounds"].keys() == {1, 3, 5}
    assert record["split_offsets"] == [4]
    assert record["column_sizes"].keys() == set(range(1, 6))
    assert 0 < sum(record["column_sizes"].values()) < encoded.data.size


def test_nan_is_found_among_other_numbers(tmp_path: Path) -> None:
    """To DuckDB NaN is the greatest number, and statistics that leave it out are those of all."""
    encoded = encode(in_file(batch(SHAPE, ROWS), FIELDS.plain), TYPES)
    (tmp_path / "file.parquet").write_bytes(encoded.data)
    scan = f"read_parquet('{tmp_path}/file.parquet')"
    for condition, ids in (("= 'nan'", [2]), ("< 'nan'", [1]), ("> 5", [2]), ("= 1", [1])):
        assert duckdb.sql(f"select id from {scan} where f {condition}").fetchall() == [(ident,) for ident in ids], condition


def test_parquet_types_are_the_spec_s() -> None:
    encoded = encode(in_file(batch(SHAPE, ROWS), FIELDS.plain), TYPES)
    text = str(pq.ParquetFile(pa.BufferReader(encoded.data)).schema)
    assert "required int64 field_id=1 id" in text
    assert "optional fixed_len_byte_array(16) field_id=4 u (UUID)" in text
    assert "optional int64 field_id=5 d (Decimal(precision=12, scale=2))" in text
    metadata = pq.read_metadata(io.BytesIO(encoded.data)).metadata or {}
    assert b"ARROW:schema" not in metadata


def test_a_null_key_is_not_written() -> None:
    with pytest.raises(Corrupt, match=r"NULL_IN_REQUIRED.*NOT NULL"):
        in_file(batch(SHAPE, [(None, 1.0, "a", None, None)]), FIELDS.plain)


def wanted(*names: str) -> list[Wanted]:
    kinds = {column.name: column.iceberg for column in SHAPE.columns}
    return [Wanted(FIELDS.ids[name], name, arrow_type(kinds[name])) for name in names]


def stored(rows: list[Any]) -> tuple[DataFiles, MemoryStorage]:
    storage = MemoryStorage()
    storage.write("/f", encode(in_file(batch(SHAPE, rows), FIELDS.plain), TYPES).data)
    return DataFiles(storage), storage


def test_rows_are_found_across_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(n, float(n), f"t{n}", None, None) for n in range(5000)]
    monkeypatch.setattr(data_files, "_GROUP_BYTES", in_file(batch(SHAPE, rows), FIELDS.plain).nbytes // 5 + 5000)
    files, storage = stored(rows)
    assert pq.read_metadata(io.BytesIO(storage.files["/f"])).num_row_groups == 5
    for positions in ([0], [4999], [1023, 1024], [5, 5, 5, 2000, 4096], [], list(range(0, 5000, 7))):
        found = files.take("/f", 5000, wanted("s", "id"), np.array(positions, np.int64))
        assert found.column("id").to_pylist() == positions
        assert found.column("s").to_pylist() == [f"t{p}" for p in positions]
    assert files.read("/f", 5000, wanted("id")).num_rows == 5000


def test_columns_are_found_by_field_id() -> None:
    files, _ = stored(ROWS)
    found = files.read("/f", 3, [Wanted(3, "renamed", pa.string()), Wanted(99, "added", pa.int32()), *wanted("u")])
    assert found.to_pylist() == [
        {"renamed": "a", "added": None, "u": bytes(16)},
        {"renamed": None, "added": None, "u": None},
        {"renamed": "b", "added": None, "u": b"\xff" * 16},
    ]
    assert files.read("/f", 3, [Wanted(99, "added", pa.int32())]).num_rows == 3


def test_a_file_that_is_not_what_was_said_is_corrupt() -> None:
    files, storage = stored(ROWS)
    with pytest.raises(Corrupt, match="its manifest entry says 4"):
        files.read("/f", 4, wanted("id"))
    with pytest.raises(Corrupt, match="positions"):
        files.take("/f", 3, wanted("id"), np.array([3], np.int64))
    storage.write("/g", storage.files["/f"][:-9])
    with pytest.raises(Corrupt, match=r"(?s)DATA_FILE_CORRUPT.*cannot be read"):
        files.read("/g", 3, wanted("id"))


def test_dictionaries_are_for_columns_that_repeat() -> None:
    rows = [(n, None, "ab"[n % 2], None, None) for n in range(3000)]
    footer = encode(in_file(batch(SHAPE, rows), FIELDS.plain), TYPES).footer.row_group(0)
    assert footer.column(2).has_dictionary_page
    assert not footer.column(0).has_dictionary_page
    rows = [(n, None, f"text {n}", None, None) for n in range(3000)]
    assert not encode(in_file(batch(SHAPE, rows), FIELDS.plain), TYPES).footer.row_group(0).column(2).has_dictionary_page


# ------------------------------------------------------------------------------------------------------------- nested


def fields_for(*columns: tuple[str, str]) -> Fields:
    shape = relation(("id", "long"), *columns)
    return fields_of({"current-schema-id": 0, "schemas": [iceberg_schema(shape)], "properties": table_properties(shape)})


def file_of(fields: Fields, rows: list[Any]) -> data_files.Encoded:
    shape = fields.relation
    return encode(in_file(batch(shape, rows), fields.plain), [column.iceberg for column in shape.columns])


def metrics_of(encoded: data_files.Encoded, name: str) -> dict[int, Any]:
    return {pair["key"]: pair["value"] for pair in encoded.record[name]}


@st.composite
def nested_rows(draw: Any) -> tuple[list[tuple[str, str]], list[tuple[Any, ...]]]:
    kinds: list[IcebergType] = draw(st.lists(ANY_TYPE, min_size=1, max_size=2))
    rows = draw(st.lists(st.tuples(*(any_value(kind) for kind in kinds)), min_size=1, max_size=5))
    return [(f"c{place}", str(kind)) for place, kind in enumerate(kinds)], [(at, *row) for at, row in enumerate(rows)]


@settings(max_examples=60, deadline=None)
@given(nested_rows(), st.data())
def test_nested_values_come_back(table: tuple[list[tuple[str, str]], list[tuple[Any, ...]]], data: Any) -> None:
    columns, rows = table
    fields = fields_for(*columns)
    storage = MemoryStorage()
    storage.write("/f", file_of(fields, rows).data)
    wanted = [Wanted(fields.ids[c.name], c.name, arrow_type(c.iceberg)) for c in fields.relation.columns]
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, len(rows) - 1)))), np.int64)
    files = DataFiles(storage)
    for found, expected in (
        (files.read("/f", len(rows), wanted), rows),
        (files.take("/f", len(rows), wanted, positions), [rows[at] for at in positions]),
    ):
        whole = batch(fields.relation, expected)
        assert found.schema == whole.schema
        (found_batch,) = found.combine_chunks().to_batches() or [whole.slice(0, 0)]
        assert (hash_rows(found_batch, (1, 2)) == hash_rows(whole, (1, 2))).all()
        assert found_batch.num_rows == len(expected)


NESTED = fields_for(("r", "struct<lower: int, upper: double, bounds: string>"), ("l", "list<int>"), ("m", "map<string, uuid>"))


def test_nested_parquet_is_the_spec_s() -> None:
    text = str(file_of(NESTED, [(1, None, [1, None], [("a", bytes(16))])]).footer.schema)
    for line in (
        "optional group field_id=2 r {",
        "optional int32 field_id=5 lower;",
        "optional group field_id=3 l (List) {",
        "repeated group field_id=-1 list {",
        "optional int32 field_id=8 element;",
        "optional group field_id=4 m (Map) {",
        "repeated group field_id=-1 key_value {",
        "required binary field_id=9 key (String);",
        "optional fixed_len_byte_array(16) field_id=10 value (UUID);",
    ):
        assert line in text, text


def test_metrics_are_those_of_columns_and_struct_fields() -> None:
    rows = [
        (1, {"lower": 5, "upper": float("nan"), "bounds": "[)"}, [7], [("k", None)]),
        (2, {"lower": None, "upper": 2.5, "bounds": "empty"}, [], []),
        (3, None, None, None),
        (4, {"lower": -5, "upper": None, "bounds": None}, [None, 9], None),
    ]
    encoded = file_of(NESTED, rows)
    assert metrics_of(encoded, "value_counts") == dict.fromkeys((1, 5, 6, 7), 4)
    assert metrics_of(encoded, "null_value_counts") == {1: 0, 5: 2, 6: 2, 7: 2}
    assert metrics_of(encoded, "nan_value_counts") == {6: 1}
    lower, upper = metrics_of(encoded, "lower_bounds"), metrics_of(encoded, "upper_bounds")
    assert {ident: back(bound, "int") for ident, bound in lower.items() if ident == 5} == {5: -5}
    assert back(upper[5], "int") == 5
    assert (lower[7], upper[7]) == (b"[)", b"empty")
    assert lower.keys() == upper.keys() == {1, 5, 7}
    # The fields of a struct have bounds as columns have, where no NaN is among them.
    without = file_of(NESTED, rows[1:])
    assert [back(metrics_of(without, which)[6], "double") for which in ("lower_bounds", "upper_bounds")] == [2.5, 2.5]
    sizes = metrics_of(encoded, "column_sizes")
    assert sizes.keys() == {1, 5, 6, 7, 8, 9, 10}
    row_group = encoded.footer.row_group(0)
    assert list(sizes.values()) == [row_group.column(place).total_compressed_size for place in range(7)]


def test_a_file_too_old_for_a_column_has_its_default() -> None:
    files, _ = stored(ROWS)
    given_default = Wanted(99, "n", pa.int64(), pa.scalar(7, pa.int64()))
    assert files.read("/f", 3, [given_default]).column("n").to_pylist() == [7, 7, 7]
    nested = Wanted(98, "l", arrow_type("list<uuid>"))
    found = files.take("/f", 3, [nested, given_default, *wanted("id")], np.array([1, 2], np.int64))
    assert found.to_pylist() == [{"l": None, "n": 7, "id": 2}, {"l": None, "n": 7, "id": 3}]
    # One that the file has is not touched.
    assert files.read("/f", 3, [Wanted(3, "s", pa.string(), pa.scalar("x"))]).column("s").to_pylist() == ["a", None, "b"]


def test_a_file_narrower_than_its_column_is_widened() -> None:
    fields = fields_for(("n", "int"), ("f", "float"), ("d", "decimal(9,2)"), ("l", "list<struct<a: int>>"))
    storage = MemoryStorage()
    storage.write("/f", file_of(fields, [(1, -5, 0.1, Decimal("1.25"), [{"a": 3}, None]), (2, None, None, None, None)]).data)
    kinds = ["long", "double", "decimal(20,2)", "list<struct<a: long>>"]
    found = DataFiles(storage).read("/f", 2, [Wanted(place + 2, kind, arrow_type(kind)) for place, kind in enumerate(kinds)])
    assert found.to_pylist() == [
        {"long": -5, "double": 0.10000000149011612, "decimal(20,2)": Decimal("1.25"), "list<struct<a: long>>": [{"a": 3}, None]},
        dict.fromkeys(kinds),
    ]


def test_dictionaries_are_for_fields_that_repeat_too() -> None:
    rows = [(n, {"lower": n, "upper": 0.0, "bounds": "[)" if n % 2 else "empty"}, [n], None) for n in range(3000)]
    group = file_of(NESTED, rows).footer.row_group(0)
    assert [group.column(place).has_dictionary_page for place in range(7)] == [False, False, True, True, False, False, False]


def test_a_wide_value_has_a_row_group_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no statistics, of which the writer would keep many copies. The validator takes the file all the same."""
    monkeypatch.setattr(data_files, "_GROUP_BYTES", 1 << 20)
    mirror = Mirror(relation(("id", "long"), ("v", "string"), ("w", "struct<b: binary>"), ("l", "list<string>")))
    rows = [(key, "x" * (2 << 20), {"b": b"y" * (2 << 20)}, ["z" * (2 << 20)]) for key in range(3)]
    mirror.commit([*rows, (3, None, None, None)])
    mirror.commit([(1, "short", None, [])])
    mirror.check()
    path = next(file.path for file in mirror.table.files.values() if file.record_count == 4)
    footer = pq.read_metadata(io.BytesIO(mirror.storage.files[path]))
    assert footer.num_row_groups == 4
    assert [footer.row_group(0).column(place).is_stats_set for place in range(4)] == [True, False, False, False]


def test_as_many_columns_as_postgresql_has() -> None:
    kinds = ["int", "string", "decimal(12,2)", "list<int>", "struct<a: int, b: string>"]
    values = [7, "x", Decimal("1.25"), [1, None], {"a": None, "b": "y"}]
    mirror = Mirror(relation(("id", "long"), *((f"c{n}", kinds[n % 5]) for n in range(1599))))
    mirror.commit([(key, *(values[n % 5] for n in range(1599))) for key in range(3)])
    mirror.commit([(1, *([None] * 1599))], delete=[0])
    mirror.check()
