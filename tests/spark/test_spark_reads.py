"""What is written here Spark reads as the same rows with the same row ids, after every kind of commit and at older snapshots.

The scenarios are those of the other engines: wherever they ask PyIceberg or DuckDB, Spark is asked too and must say the same, and the
scenario holds that against its model. Spark loads the metadata.json itself; no catalog stands between.

Spark has no Iceberg ``time``: it refuses a whole table that has such a column, in all of its schemas (Iceberg 1.12.0,
``TypeToSparkType``). The tests assert that refusal, and read the other columns through a metadata.json without the ``time`` one.
"""

import random
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from icelake.ports import arrow_schema
from tests.conformance import test_engines_read as scenarios
from tests.unit.tables.mirror import Mirror, Row, relation

# pyspark leaves the socket a result came through to the garbage collector.
pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

REFUSAL = "Spark does not support time fields"
ROW_ID, UPDATED = "_row_id", "_last_updated_sequence_number"

Rows = list[tuple[Any, ...]]
Ids = dict[Any, tuple[int, int]]


def without_time(location: str) -> str:
    """The metadata.json at ``location``, or a copy of it that leaves ``time`` columns out of every schema."""
    metadata = orjson.loads(Path(location).read_bytes())
    timed = False
    for schema in metadata["schemas"]:
        kept = [field for field in schema["fields"] if field["type"] != "time"]
        timed = timed or kept != schema["fields"]
        schema["fields"] = kept
    if not timed:
        return location
    copy = Path(location).with_name("without-time-" + Path(location).name)
    copy.write_bytes(orjson.dumps(metadata))
    return str(copy)


class WithSpark(scenarios.Engines):
    """The engines of the scenarios, with Spark beside them."""

    def __init__(self, folder: Path, spark: Any) -> None:
        super().__init__(folder)
        self.spark = spark
        self.past: dict[int, tuple[Rows, Ids]] = {}

    def frame(self, location: str, snapshot: int | None = None) -> Any:
        reader = self.spark.read.format("iceberg")
        if snapshot is not None:
            reader = reader.option("versionAsOf", snapshot)
        return reader.load(without_time(location)).select("*", ROW_ID, UPDATED)

    def spark_rows(self, mirror: Mirror, location: str, snapshot: int | None = None) -> tuple[Rows, Ids]:
        """Rows in canonical form without their ``time`` columns, and the row ids and sequence numbers by key."""
        found = self.frame(location, snapshot).toArrow()
        shape = mirror.shape
        columns = {}
        for column, kind in zip(shape.columns, arrow_schema(shape.columns).types, strict=True):
            if column.iceberg == "time":
                continue
            values = found.column(column.name)
            if column.iceberg == "uuid":
                values = pa.array([None if text is None else uuid.UUID(text).bytes for text in values.to_pylist()], kind)
            columns[column.name] = values.cast(kind)
        assert found.column_names == [*columns, ROW_ID, UPDATED]
        ids = zip(*(found.column(name).to_pylist() for name in (shape.columns[0].name, ROW_ID, UPDATED)), strict=True)
        return scenarios.canonical(pa.table(columns)), {key: (row_id, updated) for key, row_id, updated in ids}

    def pyiceberg_rows(self, mirror: Mirror, location: str, snapshot: int | None = None) -> Rows:
        """PyIceberg's rows, which are Spark's."""
        rows = super().pyiceberg_rows(mirror, location, snapshot)
        assert self.spark_rows(mirror, location, snapshot)[0] == timeless(mirror, rows)
        return rows

    def agree(self, mirror: Mirror) -> None:
        """The engines have the model's rows, Spark its row ids too, now and at every snapshot that was looked at before and is retained."""
        super().agree(mirror)
        location = mirror.loaded().metadata_location
        ids = {key: (mirror.ids[key], mirror.updated[key]) for key in mirror.model}
        if mirror.table.snapshot_id is None:
            assert self.spark_rows(mirror, location) == ([], {})
        else:
            self.past[mirror.table.snapshot_id] = timeless(mirror, scenarios.model(mirror)), ids
        for snapshot in mirror.table.metadata.get("snapshots", ()):
            number = snapshot["snapshot-id"]
            if number in self.past:
                assert self.spark_rows(mirror, location, number) == self.past[number]


def timeless(mirror: Mirror, rows: Rows) -> Rows:
    """``rows`` without their ``time`` columns."""
    kept = [place for place, column in enumerate(mirror.shape.columns) if column.iceberg != "time"]
    return [tuple(row[place] for place in kept) for row in rows]


@pytest.fixture
def engines(tmp_path: Path, spark: Any) -> Iterator[WithSpark]:
    found = WithSpark(tmp_path, spark)
    yield found
    found.duckdb.close()


def test_every_type_through_every_kind_of_commit(tmp_path: Path, engines: WithSpark) -> None:
    scenarios.test_every_type_through_every_kind_of_commit(tmp_path, engines)
    assert len(engines.past) > 8


def test_many_small_commits(tmp_path: Path, engines: WithSpark) -> None:
    scenarios.test_many_small_commits(tmp_path, engines)
    assert engines.past


def test_a_time_column_makes_spark_refuse_the_table(tmp_path: Path, spark: Any) -> None:
    mirror = scenarios.lake(tmp_path, relation(("id", "long"), ("opens", "time")))
    mirror.commit([(1, 0)])
    location = mirror.loaded().metadata_location
    with pytest.raises(Exception, match=REFUSAL) as refused:
        spark.read.format("iceberg").load(location)
    assert type(refused.value).__name__ == "UnsupportedOperationException"
    # Nothing else of the table is in the way.
    (row,) = spark.read.format("iceberg").load(without_time(location)).collect()
    assert row.asDict() == {"id": 1}


def literal(kind: str, value: Any) -> str:
    """``value``, as stored, as a SQL constant Spark can hold against the bounds of a file."""
    if kind in ("binary", "uuid", "string"):
        data = value.encode() if kind == "string" else value
        return {"binary": f"X'{data.hex()}'", "string": f"decode(X'{data.hex()}', 'UTF-8')"}.get(kind) or f"'{uuid.UUID(bytes=data)}'"
    if kind in ("date", "timestamp", "timestamptz"):
        moment = f"date_from_unix_date({value})" if kind == "date" else f"timestamp_micros({value}L)"
        return f"CAST({moment} AS TIMESTAMP_NTZ)" if kind == "timestamp" else moment
    return f"CAST('{value}' AS {'BIGINT' if kind == 'long' else kind})"


def test_bounds_never_hide_a_row(tmp_path: Path, spark: Any) -> None:
    """Files with one value each: whatever Spark skips by their bounds, it finds every value by equality."""
    kinds = {kind: values for kind, values in scenarios.SCALARS.items() if kind != "time"}
    mirror = scenarios.lake(tmp_path, relation(("id", "long"), *((scenarios.NAMES[kind], kind) for kind in kinds)))
    chance = random.Random(3)
    for key in range(max(map(len, kinds.values()))):
        row: Row = (key, *(values[key] if key < len(values) else None for values in kinds.values()))
        # Bounds of files with a null, and of files with nothing else.
        mirror.commit([row, (key + 100, *(None for _ in kinds))] if chance.random() < 0.5 else [row])
    spark.read.format("iceberg").load(mirror.loaded().metadata_location).createOrReplaceTempView("bounds")
    for kind, values in kinds.items():
        name = scenarios.NAMES[kind]
        counts = ", ".join(f"(SELECT count(*) FROM bounds WHERE {name} = {literal(kind, value)})" for value in values)
        # Spark's equality: NaN is NaN, and -0.0 is 0.0.
        same = [
            struct.pack("<d", value + 0.0 if value == value else float("nan")) if kind in ("float", "double") else value for value in values
        ]
        assert spark.sql(f"SELECT {counts}").collect()[0] == tuple(map(same.count, same)), kind
