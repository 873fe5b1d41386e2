"""What is written here, DuckDB and PyIceberg read as the same rows, after every kind of commit."""

import datetime as dt
import random
import struct
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.table import StaticTable

from icelake.engines.duckdb import connect, iceberg_scan
from icelake.model.relation import Relation
from icelake.ports import arrow_schema
from icelake.storage.local import LocalStorage
from tests.unit.tables.mirror import Mirror, Row, batch, relation

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


def row(key: int, chance: random.Random) -> Row:
    values = [None if chance.random() < 0.15 else chance.choice(values) for values in SCALARS.values()]
    return (key, *values, chance.choice(["plain", None, "ünï"]))


def canonical(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows in key order, as bits: -0.0 is not 0.0, and NaN is NaN."""
    columns: list[list[Any]] = []
    for column in table.columns:
        kind = column.type
        if pa.types.is_temporal(kind):
            column = column.cast(pa.int32() if pa.types.is_date(kind) else pa.int64())
        values = column.to_pylist()
        if pa.types.is_floating(kind):
            values = [None if v is None else "nan" if v != v else struct.pack("<d", v) for v in values]
        columns.append(values)
    return sorted(zip(*columns, strict=True))


def model(mirror: Mirror) -> list[tuple[Any, ...]]:
    return canonical(pa.Table.from_batches([batch(mirror.shape, list(mirror.model.values()))]))


class Engines:
    """Both readers on one metadata.json."""

    def __init__(self, folder: Path) -> None:
        self.duckdb = connect([folder], memory_limit="256MB", threads=1)

    def _select(self, shape: Relation) -> str:
        def said(name: str, kind: str) -> str:
            quoted = '"' + name.replace('"', '""') + '"'
            return f"replace({quoted}::varchar, '-', '')" if kind == "uuid" else quoted

        return ", ".join(said(column.name, column.iceberg) for column in shape.columns)

    def duckdb_rows(self, mirror: Mirror, snapshot: int | None, location: str) -> list[tuple[Any, ...]]:
        found = self.duckdb.sql(f"SELECT {self._select(mirror.shape)} FROM {iceberg_scan((location, snapshot))}").to_arrow_table()
        columns = []
        for place, (column, kind) in enumerate(zip(mirror.shape.columns, arrow_schema(mirror.shape.columns).types, strict=True)):
            values: Any = found.column(place)
            if column.iceberg == "uuid":
                values = pa.array([None if v is None else bytes.fromhex(v) for v in values.to_pylist()], pa.binary(16))
            columns.append(values.cast(kind))
        return canonical(pa.table(columns, names=[column.name for column in mirror.shape.columns]))

    def duckdb_ids(self, snapshot: int, location: str) -> dict[Any, tuple[int, int]]:
        found = self.duckdb.sql(f"SELECT id, _row_id, _last_updated_sequence_number FROM {iceberg_scan((location, snapshot))}").fetchall()
        return {key: (row_id, updated) for key, row_id, updated in found}

    def pyiceberg_rows(self, mirror: Mirror, location: str, snapshot: int | None = None) -> list[tuple[Any, ...]]:
        found = StaticTable.from_metadata(location).scan(snapshot_id=snapshot).to_arrow()
        columns = []
        for column, kind in zip(mirror.shape.columns, arrow_schema(mirror.shape.columns).types, strict=True):
            values: Any = found.column(column.name)
            if column.iceberg == "uuid":
                values = pa.array([None if v is None else getattr(v, "bytes", v) for v in values.to_pylist()], pa.binary(16))
            columns.append(values.cast(kind))
        return canonical(pa.table(columns, names=[column.name for column in mirror.shape.columns]))

    def agree(self, mirror: Mirror) -> None:
        """Memory, reopened, DuckDB and PyIceberg all have the model's rows; DuckDB has its row ids."""
        location = mirror.loaded().metadata_location
        expected = model(mirror)
        assert canonical(_everything(mirror)) == expected
        snapshot = mirror.table.snapshot_id
        assert self.duckdb_rows(mirror, snapshot, location) == expected
        assert self.pyiceberg_rows(mirror, location) == expected
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
    mirror = lake(tmp_path, EVERYTHING)
    chance = random.Random(7)
    engines.agree(mirror)

    # Every special value of every type at least once, and a row of nulls.
    longest = max(len(values) for values in SCALARS.values())
    first = [(key, *(values[key % len(values)] for values in SCALARS.values()), "x") for key in range(longest)]
    mirror.commit([*first, (1000, *(None for _ in SCALARS), None)])
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
