"""What is written here, DuckDB and PyIceberg read as the same rows, after every kind of commit."""

import datetime as dt
import random
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.table import StaticTable

from icelake.engines.duckdb import connect, iceberg_scan
from icelake.model.relation import Column, Relation
from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType, parse
from icelake.ports import arrow_schema, arrow_type
from icelake.storage.local import LocalStorage
from tests.unit.tables.mirror import Mirror, Row, batch, relation
from tests.unit.tables.test_schema import DEFAULTS

SCALARS: dict[str, list[Any]] = {
    "boolean": [True, False],
    "int": [0, -1, 2**31 - 1, -(2**31)],
    "long": [0, -1, 2**63 - 1, -(2**63)],
    "float": [0.0, -0.0, 1.5, float("nan"), float("inf"), float("-inf"), 3.4028234663852886e38, 1e-45],
    "double": [0.0, -0.0, 0.1, float("nan"), float("inf"), float("-inf"), 1.7976931348623157e308, 5e-324],
    "decimal(9,2)": [Decimal("0.00"), Decimal("-9999999.99"), Decimal("9999999.99"), Decimal("-1.28")],
    "decimal(18,4)": [Decimal("0.0001"), Decimal("-99999999999999.9999"), Decimal("99999999999999.9999")],
    "decimal(38,10)": [Decimal("1E-10"), Decimal("-" + "9" * 28 + "." + "9" * 10), Decimal("9" * 28 + ".5")],
    "string": [
        "",
        "a",
        "NULL",
        "\x01\t\n\"',;",
        "e" * 16,
        "e" * 17,
        "é" * 40,
        "🦆" * 20,
        "\U0010ffff" * 17,
        "\ud7ff" * 18,
        "'",
        "x" * 9000,
    ],
    "binary": [b"", b"\x00", b"\xff" * 16, b"\xff" * 40, bytes(range(256)), b"abc"],
    # PostgreSQL's own limits: 4713-01-01 BC and the last day or microsecond it can say.
    "date": [0, -1, -2_440_588, 2_145_031_948, -719_163, 2_932_896],
    "time": [0, 1, 86_399_999_999],
    "timestamp": [0, -1, -210_866_803_200_000_000, 9_223_371_331_199_999_999, -62_135_596_800_000_001, 1_700_000_000_123_456],
    "timestamptz": [0, -1, -210_866_803_200_000_000, 9_223_371_331_199_999_999, 253_402_300_800_000_000, 1_700_000_000_123_456],
    "uuid": [bytes(16), b"\xff" * 16, b"\x80" + bytes(15), uuid.UUID("00112233-4455-6677-8899-aabbccddeeff").bytes],
}
NAMES = {kind: "c_" + "".join(c if c.isalnum() else "_" for c in kind) for kind in SCALARS}
EVERYTHING = relation(("id", "long"), *((name, kind) for kind, name in NAMES.items()), ('Weird.näme "q"', "string"), name="everything")


EVERY_VALUE = [*SCALARS.values(), ["plain", None, "ünï"]]

U = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff").bytes
RANGE = "struct<lower: {0}, upper: {0}, bounds: string>"
NO_RANGE = {"lower": None, "upper": None, "bounds": "empty"}
NESTED: dict[str, list[Any]] = {
    **{f"list<{kind}>": [[*values, None], [], [None], [values[-1]] * 3] for kind, values in SCALARS.items()},
    # An array of a composite, a composite with an array.
    "list<struct<a: int, b: string, c: uuid>>": [
        [{"a": 1, "b": "x", "c": U}, None, {"a": None, "b": None, "c": None}],
        [],
        [None],
        [{"a": 2, "b": "", "c": None}],
    ],
    "struct<tags: list<string>, n: int>": [{"tags": ["a", None, ""], "n": 1}, {"tags": [], "n": None}, {"tags": None, "n": 2}],
    "struct<a: int, b: string, c: uuid, d: decimal(9,2), e: timestamptz, f: double>": [
        {"a": 1, "b": "x", "c": U, "d": Decimal("1.25"), "e": 0, "f": -0.0},
        {"a": None, "b": None, "c": None, "d": None, "e": None, "f": None},
        {"a": 2, "b": "y" * 40, "c": None, "d": Decimal("-1.28"), "e": -1, "f": float("nan")},
    ],
    'struct<"Weird.näme \\"q\\"": int, "a b": list<string>>': [{'Weird.näme "q"': 1, "a b": ["x"]}, {'Weird.näme "q"': None, "a b": None}],
    # hstore
    "map<string, string>": [[("a", "1"), ("b", None)], [], [("", "")], [("z", None), ("a", "after z")]],
    "map<string, list<int>>": [[("a", [1, None]), ("b", None), ("c", [])], []],
    # Ranges and multiranges.
    RANGE.format("int"): [
        {"lower": 1, "upper": 5, "bounds": "[)"},
        {"lower": None, "upper": 7, "bounds": "()"},
        {"lower": None, "upper": None, "bounds": "()"},
        NO_RANGE,
    ],
    RANGE.format("timestamptz"): [
        {"lower": 0, "upper": None, "bounds": "[)"},
        {"lower": -1, "upper": 9_223_371_331_199_999_999, "bounds": "[]"},
    ],
    f"list<{RANGE.format('decimal(12,2)')}>": [
        [{"lower": Decimal("1.00"), "upper": Decimal("2.50"), "bounds": "[)"}, {"lower": Decimal("3.00"), "upper": None, "bounds": "[)"}],
        [],
        [NO_RANGE],
    ],
    # interval
    "struct<months: int, days: int, micros: long>": [
        {"months": -1, "days": 40, "micros": -(2**63)},
        {"months": 0, "days": 0, "micros": 0},
        {"months": 2**31 - 1, "days": -(2**31), "micros": 2**63 - 1},
    ],
    "list<struct<months: int, days: int, micros: long>>": [[{"months": -1, "days": 40, "micros": 5}, None], []],
    "list<struct<m: map<string, struct<l: list<uuid>>>>>": [
        [{"m": [("k", {"l": [U, None]}), ("z", None), ("y", {"l": None})]}, None, {"m": None}, {"m": []}],
        [{"m": [("k", {"l": []})]}],
    ],
}
PARTS = relation(("id", "long"), *((f"c{place}", kind) for place, kind in enumerate(NESTED)), name="parts")


def any_row(key: int, chance: random.Random, values: Sequence[Sequence[Any]]) -> Row:
    return (key, *(None if chance.random() < 0.15 else chance.choice(some) for some in values))


def bits(kind: pa.DataType) -> pa.DataType:
    """A type with the numbers that dates and times are inside: Python's cannot be as far from today as PostgreSQL's."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(bits(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(bits(kind.key_type), bits(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(place).name, bits(kind.field(place).type)) for place in range(kind.num_fields)])
    if pa.types.is_temporal(kind):
        return pa.int32() if pa.types.is_date(kind) else pa.int64()
    return pa.binary(16) if kind == pa.uuid() else kind


def comparable(value: Any) -> Any:
    match value:
        case float():
            return "nan" if value != value else struct.pack("<d", value)
        case dict():
            return tuple((name, comparable(part)) for name, part in value.items())
        case list() | tuple():
            return tuple(map(comparable, value))
    return value


def canonical(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows in key order, as bits: -0.0 is not 0.0, and NaN is NaN."""
    stored: list[Any] = [column.cast(bits(column.type)) for column in table.columns]
    columns = [map(comparable, column.to_pylist()) for column in stored]
    return sorted(zip(*columns, strict=True))


def typed(values: Any, column: Column) -> Any:
    """What an engine gave for a column, in the type it is carried in here. Engines give uuids as text, bytes or a type of their own."""
    kind = arrow_type(column.iceberg)
    if "uuid" not in column.iceberg:
        return values.cast(kind)
    found = [without_uuids(value, parse(column.iceberg)) for value in values.cast(bits(values.type)).to_pylist()]
    return pa.array(found, bits(kind)).cast(kind)


def without_uuids(value: Any, kind: IcebergType) -> Any:
    match kind:
        case _ if value is None:
            return None
        case Primitive("uuid"):
            return value if isinstance(value, bytes) else uuid.UUID(value).bytes
        case ListType(element):
            return [without_uuids(part, element) for part in value]
        case MapType(key, item):
            return [(without_uuids(k, key), without_uuids(v, item)) for k, v in value]
        case StructType(fields):
            return {name: without_uuids(value[name], part) for name, part in fields}
    return value


def model(mirror: Mirror) -> list[tuple[Any, ...]]:
    return canonical(pa.Table.from_batches([batch(mirror.shape, list(mirror.model.values()))]))


def as_pyiceberg(value: Any, kind: IcebergType) -> Any:
    """What PyIceberg 0.12 shows for a value: a null list of structs, or map to structs, is empty there (its ``ArrowProjectionVisitor``
    makes such arrays anew, without their nulls). Everything else is as it is."""
    match kind:
        case ListType(StructType()) | MapType(_, StructType()) if value is None:
            return []
        case _ if value is None:
            return None
        case ListType(element):
            return [as_pyiceberg(part, element) for part in value]
        case MapType(key, item):
            return [(as_pyiceberg(k, key), as_pyiceberg(v, item)) for k, v in value]
        case StructType(fields):
            return {name: as_pyiceberg(value[name], part) for name, part in fields}
    return value


def model_in_pyiceberg(mirror: Mirror) -> list[tuple[Any, ...]]:
    kinds = [parse(column.iceberg) for column in mirror.shape.columns]
    rows = [tuple(map(as_pyiceberg, row, kinds)) for row in mirror.model.values()]
    return canonical(pa.Table.from_batches([batch(mirror.shape, rows)]))


class Engines:
    """Both readers on one metadata.json."""

    def __init__(self, folder: Path) -> None:
        self.duckdb = connect([folder], memory_limit="256MB", threads=1)

    def _select(self, shape: Relation) -> str:
        return ", ".join('"' + column.name.replace('"', '""') + '"' for column in shape.columns)

    def duckdb_rows(self, mirror: Mirror, snapshot: int | None, location: str) -> list[tuple[Any, ...]]:
        return self._duckdb(mirror, iceberg_scan((location, snapshot)))

    def duckdb_latest(self, mirror: Mirror, location: str) -> list[tuple[Any, ...]]:
        """As whoever knows only the metadata.json reads it: main, with the current schema."""
        return self._duckdb(mirror, f"iceberg_scan('{location}')")

    def _duckdb(self, mirror: Mirror, source: str) -> list[tuple[Any, ...]]:
        found = self.duckdb.sql(f"SELECT {self._select(mirror.shape)} FROM {source}").to_arrow_table()
        columns = [typed(found.column(place), column) for place, column in enumerate(mirror.shape.columns)]
        return canonical(pa.table(columns, names=[column.name for column in mirror.shape.columns]))

    def duckdb_ids(self, snapshot: int, location: str) -> dict[Any, tuple[int, int]]:
        found = self.duckdb.sql(f"SELECT id, _row_id, _last_updated_sequence_number FROM {iceberg_scan((location, snapshot))}").fetchall()
        return {key: (row_id, updated) for key, row_id, updated in found}

    def pyiceberg_rows(self, mirror: Mirror, location: str, snapshot: int | None = None) -> list[tuple[Any, ...]]:
        scan = StaticTable.from_metadata(location).scan(snapshot_id=snapshot)
        if any("uuid" in column.iceberg != "uuid" for column in mirror.shape.columns) and not scan.count():
            # PyIceberg 0.12: no result without rows where a uuid is inside another type (Arrow makes no such empty array).
            with pytest.raises(pa.ArrowNotImplementedError, match="extension"):
                scan.to_arrow()
            return []
        found = scan.to_arrow()
        columns = [typed(found.column(column.name), column) for column in mirror.shape.columns]
        return canonical(pa.table(columns, names=[column.name for column in mirror.shape.columns]))

    def agree(self, mirror: Mirror) -> None:
        """Memory, reopened, DuckDB and PyIceberg all have the model's rows; DuckDB has its row ids."""
        location = mirror.loaded().metadata_location
        expected = model(mirror)
        assert canonical(_everything(mirror)) == expected
        snapshot = mirror.table.snapshot_id
        assert self.duckdb_rows(mirror, snapshot, location) == expected
        assert self.pyiceberg_rows(mirror, location) == model_in_pyiceberg(mirror)
        if snapshot is not None and mirror.table.has_lineage:
            ids = {key: (mirror.ids[key], mirror.updated[key]) for key in mirror.model}
            assert self.duckdb_ids(snapshot, location) == ids


def _everything(mirror: Mirror) -> pa.Table:
    names = [column.name for column in mirror.shape.columns]
    table = mirror.reopen()
    parts = [table.live_rows(no, names)[1].select(names) for no in table.files]
    return pa.concat_tables(parts) if parts else arrow_schema(mirror.shape.columns).empty_table()


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    found = Engines(tmp_path)
    yield found
    found.duckdb.close()


def lake(tmp_path: Path, shape: Relation) -> Mirror:
    return Mirror(shape, LocalStorage(), str(tmp_path))


def test_every_type_through_every_kind_of_commit(tmp_path: Path, engines: Engines) -> None:
    through_every_kind_of_commit(lake(tmp_path, EVERYTHING), engines, EVERY_VALUE)


def test_every_nested_type_through_every_kind_of_commit(tmp_path: Path, engines: Engines) -> None:
    through_every_kind_of_commit(lake(tmp_path, PARTS), engines, list(NESTED.values()))


def through_every_kind_of_commit(mirror: Mirror, engines: Engines, values: Sequence[Sequence[Any]]) -> None:
    chance = random.Random(7)

    def row(key: int, chance: random.Random) -> Row:
        return any_row(key, chance, values)

    engines.agree(mirror)

    # Every special value of every type at least once, and a row of nulls.
    longest = max(len(some) for some in values)
    first = [(key, *(some[key % len(some)] for some in values)) for key in range(longest)]
    mirror.commit([*first, (1000, *(None for _ in values))])
    engines.agree(mirror)

    mirror.commit([row(key, chance) for key in range(100, 180)])
    engines.agree(mirror)
    # Updates and deletes over both files: deletion vectors and a file with explicit row ids.
    mirror.commit([row(key, chance) for key in (0, 3, 101, 102, 500)], delete=[1, 103, 1000])
    engines.agree(mirror)
    # Vectors replaced by larger ones; a row that was updated is updated again.
    mirror.commit([row(key, chance) for key in (0, 104, 501)], delete=[105, 2])
    engines.agree(mirror)
    # The first file goes whole, and its vector with it.
    mirror.commit(delete=[key for key in range(longest) if key in mirror.model])
    assert mirror.head()["summary"]["operation"] == "delete"
    engines.agree(mirror)
    mirror.compact(list(mirror.table.files))
    assert mirror.head()["summary"]["operation"] == "replace"
    engines.agree(mirror)
    mirror.commit([row(key, chance) for key in (110, 600)], delete=[111])
    engines.agree(mirror)
    snapshots = [snapshot["snapshot-id"] for snapshot in mirror.table.metadata["snapshots"]]
    assert mirror.expire(snapshots[:-2])
    engines.agree(mirror)
    mirror.commit([row(key, chance) for key in range(10)], truncate=True)
    engines.agree(mirror)
    mirror.commit(truncate=True)
    engines.agree(mirror)
    mirror.commit([row(1, chance)])
    engines.agree(mirror)


def test_many_small_commits(tmp_path: Path, engines: Engines) -> None:
    """Manifests merged, files compacted and snapshots expired on the way; older snapshots still read as they were."""
    mirror = lake(tmp_path, relation(("id", "long"), ("text", "string"), ("amount", "decimal(12,2)"), ("at", "timestamptz")))
    chance = random.Random(11)
    past: dict[int, list[tuple[Any, ...]]] = {}
    for step in range(60):
        keys = [chance.randrange(200) for _ in range(4)]
        moment = dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=step)
        put = {key: (key, f"{key} in {step}", Decimal(step) / 4, moment) for key in keys}
        gone = [key for key in chance.sample(sorted(mirror.model), min(2, len(mirror.model))) if key not in put]
        mirror.commit(list(put.values()), delete=gone)
        mirror.compact()
        past[mirror.head()["snapshot-id"]] = model(mirror)
        if step % 20 == 19:
            engines.agree(mirror)
            present = [snapshot["snapshot-id"] for snapshot in mirror.table.metadata["snapshots"]]
            mirror.expire([snapshot for snapshot in present[:-5] if chance.random() < 0.7])
    location = mirror.loaded().metadata_location
    for snapshot in [snapshot["snapshot-id"] for snapshot in mirror.table.metadata["snapshots"]]:
        if snapshot in past:
            assert engines.duckdb_rows(mirror, snapshot, location) == past[snapshot]
            assert engines.pyiceberg_rows(mirror, location, snapshot) == past[snapshot]


@pytest.mark.parametrize("kind", list(SCALARS))
def test_bounds_never_hide_a_row(tmp_path: Path, engines: Engines, kind: str) -> None:
    """Two files, one with each value alone: whatever an engine prunes by bounds, it finds the value by equality."""
    mirror = lake(tmp_path, relation(("id", "long"), ("v", kind)))
    values = SCALARS[kind]
    for key, value in enumerate(values):
        mirror.commit([(key, value), (key + 100, None)])
    location = mirror.loaded().metadata_location
    source = iceberg_scan((location, mirror.table.snapshot_id))
    stored = pa.table({"k": pa.array(range(len(values)), pa.int64()), "v": pa.array(values, arrow_schema(mirror.shape.columns).types[1])})
    engines.duckdb.register("wanted", stored)
    cast = "replace(t.v::varchar, '-', '') = hex(w.v)" if kind == "uuid" else "t.v = w.v"
    if kind == "uuid":
        cast = "lower(replace(t.v::varchar, '-', '')) = lower(hex(w.v))"
    for key in range(len(values)):
        # A constant, so that it can be pushed down to the files.
        (found,) = engines.duckdb.sql(
            f"SELECT count(*) FROM {source} t, (SELECT v FROM wanted WHERE k = {key}) w WHERE {cast} AND t.id = {key}"
        ).fetchall()[0]
        assert found == 1, values[key]
        if kind in ("int", "long", "string", "double", "float") and values[key] == values[key]:
            text = (
                "'" + values[key].replace("'", "''") + "'"
                if kind == "string"
                else f"'{values[key]!r}'::{ {'long': 'bigint'}.get(kind, kind) }"
            )
            matching = sum(value == values[key] for value in values)
            assert engines.duckdb.sql(f"SELECT count(*) FROM {source} WHERE v = {text}").fetchall() == [(matching,)]


def counts(engines: Engines, mirror: Mirror, condition: str) -> tuple[int, int]:
    """How many rows DuckDB and PyIceberg find; both may skip files by their bounds."""
    location = mirror.loaded().metadata_location
    (in_duckdb,) = engines.duckdb.sql(f"SELECT count(*) FROM iceberg_scan('{location}') WHERE {condition}").fetchall()[0]
    return in_duckdb, len(StaticTable.from_metadata(location).scan(row_filter=condition, selected_fields=("id",)).to_arrow())


def test_bounds_of_struct_fields_never_hide_a_row(tmp_path: Path, engines: Engines) -> None:
    mirror = lake(tmp_path, relation(("id", "long"), ("r", RANGE.format("int"))))
    for key in range(5):
        mirror.commit([(key, {"lower": key * 10, "upper": None, "bounds": "[)"}), (key + 100, None), (key + 200, NO_RANGE)])
    for key in range(5):
        assert counts(engines, mirror, f"r.lower = {key * 10}") == (1, 1)
    assert counts(engines, mirror, "r.lower > 15") == (3, 3)
    assert counts(engines, mirror, "r.bounds = 'empty'") == (5, 5)
    assert counts(engines, mirror, "r.lower IS NULL") == (10, 10)


def test_a_table_that_follows_its_source(tmp_path: Path, engines: Engines) -> None:
    """Files from before a column show its default, files from before a type grew are read by it; names do not matter."""
    mirror = lake(
        tmp_path,
        relation(("id", "long"), ("n", "int"), ("f", "float"), ("d", "decimal(9,2)"), ("l", "list<struct<a: int>>"), ("gone", "string")),
    )
    mirror.commit([(key, key * 10, key / 3, Decimal(key) / 4, [{"a": key}, None], "x") for key in range(6)])
    mirror.commit([(1, -5, None, None, [], None)], delete=[5])
    first, first_shape, first_rows = mirror.table.snapshot_id, mirror.shape, model(mirror)

    added = [Column(f"a{place}", 100 + place, 0, -1, "added", kind, default=text) for place, (kind, text, _, _) in enumerate(DEFAULTS)] + [
        Column("parts", 200, 0, -1, "added", "struct<u: list<uuid>>"),
        Column("none", 201, 0, -1, "added", "int"),
    ]
    values = tuple(value for _, _, _, value in DEFAULTS)
    mirror.evolve(replace(mirror.shape, columns=(*mirror.shape.columns, *added)), lambda row: (*row, *values, None, None))
    location = mirror.loaded().metadata_location
    assert engines.duckdb_latest(mirror, location) == model(mirror)
    assert engines.pyiceberg_rows(mirror, location) == model_in_pyiceberg(mirror)
    # At a snapshot both read by the schema the snapshot was made with.
    names = [column.name for column in first_shape.columns]
    assert engines.duckdb.sql(f"SELECT * FROM {iceberg_scan((location, first))}").columns == names
    assert StaticTable.from_metadata(location).scan(snapshot_id=first).to_arrow().column_names == names

    # A null that was written is not the default.
    nothing = (None,) * len(DEFAULTS)
    mirror.commit(
        [(2, 0, None, None, None, None, *nothing, {"u": [U, None]}, 5), (7, 7, 7.5, None, None, "y", *values, {"u": None}, None)],
        delete=[0],
    )
    engines.agree(mirror)
    for place in (place for place, (kind, *_) in enumerate(DEFAULTS) if kind in ("int", "long")):
        value = DEFAULTS[place][3]
        alike = sum(row[6 + place] == value for row in mirror.model.values())
        assert counts(engines, mirror, f"a{place} = {value}") == (alike, alike)
        assert counts(engines, mirror, f"a{place} IS NULL") == (1, 1)
        assert counts(engines, mirror, f"a{place} = 12345") == (0, 0)

    wider = {"n": "long", "f": "double", "d": "decimal(20,2)", "l": "list<struct<a: long>>"}
    columns = [replace(column, iceberg=wider.get(column.name, column.iceberg)) for column in mirror.shape.columns if column.name != "gone"]
    columns[1] = replace(columns[1], name="gone")  # the name is free again
    mirror.evolve(
        replace(mirror.shape, columns=tuple(columns)),
        lambda row: (*row[:2], None if row[2] is None else float(np.float32(row[2])), *row[3:5], *row[6:]),
    )
    assert engines.duckdb_latest(mirror, mirror.loaded().metadata_location) == model(mirror)
    mirror.commit([(3, 2**40, 0.1, Decimal("123456789012.25"), [{"a": 2**40}], *nothing, None, None)])
    engines.agree(mirror)
    for condition in ("gone = 40", "gone = -5", f"gone > {2**39}", f"gone = {2**40}", "d = 1.00", "d > 100000000000", "f = 7.5", "f = 0.1"):
        assert counts(engines, mirror, condition) == (1, 1), condition
    mirror.compact(list(mirror.table.files))
    engines.agree(mirror)
    # The past is as it was.
    was = Mirror.__new__(Mirror)
    was.shape = first_shape
    assert engines.duckdb_rows(was, first, mirror.loaded().metadata_location) == first_rows
    assert engines.pyiceberg_rows(was, mirror.loaded().metadata_location, first) == first_rows
