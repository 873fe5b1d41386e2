"""Partitioned, sorted and version 2 tables: DuckDB and PyIceberg read the same rows, and find each through the partition it is in."""

import datetime as dt
import operator
import random
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyiceberg.expressions
import pytest
from pyiceberg.table import StaticTable

from icelake.engines.duckdb import iceberg_scan
from icelake.model.layout import SOURCES, Layout, PartitionField, SortField
from icelake.storage.local import LocalStorage
from icelake.tables import layout as layouts
from icelake.tables import transforms
from tests.conformance.test_engines_read import Engines, model
from tests.unit.tables.mirror import Mirror, Row, relation

ask: Any = pyiceberg.expressions
SHAPE = relation(
    ("id", "long"),
    ("country", "string"),
    ("placed_at", "timestamptz"),
    ("on", "date"),
    ("price", "decimal(12,2)"),
    ("customer", "int"),
    ('odd "näme" 1', "string"),
    name="orders",
)
LAYOUTS: dict[str, tuple[int, list[str], list[str]]] = {
    "identity": (3, ["country", "on"], []),
    "times": (2, ["day(placed_at)", "year(on)"], ["placed_at desc nulls last"]),
    "buckets": (3, ["bucket(4, id)", "bucket(2, country)"], ["country nulls last", "id desc"]),
    "truncated": (2, ["truncate(1, country)", "truncate(50, customer)"], []),
    "names and numbers": (3, ['"odd ""näme"" 1"', "price"], ['"odd ""näme"" 1" desc']),
    "sorted": (2, [], ["country", "price desc"]),
}
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def row(key: int, chance: random.Random) -> Row:
    values = (
        chance.choice(["de", "", "🦆quack"]),
        EPOCH + dt.timedelta(days=chance.randrange(3), microseconds=chance.randrange(2)),
        dt.date(1970, 1, 1) + dt.timedelta(days=chance.choice([-400, -1, 0])),
        chance.choice([Decimal("-0.01"), Decimal("9999999999.99"), Decimal("-1000.00")]),
        chance.choice([-51, -1, 2**31 - 1]),
        chance.choice(["plain", 'q"']),
    )
    return (key, *(None if chance.random() < 0.12 else value for value in values))


def history(mirror: Mirror, chance: random.Random) -> Iterator[None]:
    """Commits of every kind; stops after those to look at."""
    mirror.commit([row(key, chance) for key in range(30)])
    yield
    for _ in range(7):
        keys = chance.sample(range(50), 9)
        gone = [key for key in keys[6:] if key in mirror.model]
        mirror.commit([row(key, chance) for key in keys[:6]], delete=gone)
    yield
    while mirror.compact() is not None:
        pass
    yield
    mirror.commit([row(key, chance) for key in range(0, 40, 4)])
    mirror.compact(list(mirror.table.files)[::2])
    mirror.commit([row(key, chance) for key in range(1, 40, 5)], delete=[key for key in range(3, 40, 11) if key in mirror.model])
    yield


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    found = Engines(tmp_path)
    yield found
    found.duckdb.close()


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_layouts(tmp_path: Path, engines: Engines, name: str) -> None:
    """Rows that change, move partition, go and are compacted; then asked for by what they are laid out by."""
    format_version, partition, sort = LAYOUTS[name]
    layout = Layout(tuple(map(PartitionField.parse, partition)), tuple(map(SortField.parse, sort)), format_version)
    mirror = Mirror(SHAPE, LocalStorage(), str(tmp_path), layout=layout)
    past: dict[int, list[tuple[Any, ...]]] = {}
    for _ in history(mirror, random.Random(name)):
        engines.agree(mirror)
        past[mirror.head()["snapshot-id"]] = model(mirror)
    location = mirror.loaded().metadata_location
    first, *_ = past
    assert engines.duckdb_rows(mirror, first, location) == past[first]
    assert engines.pyiceberg_rows(mirror, location, first) == past[first]
    for column in dict.fromkeys([*(one.column for one in layout.partition), *(one.column for one in layout.sort)]):
        place = [known.name for known in SHAPE.columns].index(column)
        stored = {key: values[place] for key, values in mirror.model.items()}
        find(engines, mirror, column, stored, sorted({value for value in stored.values() if value is not None}, key=str)[:3])


def find(engines: Engines, mirror: Mirror, column: str, stored: dict[int, Any], values: list[Any]) -> None:
    """Ask for these values of a column in each way engines leave out files by: no row is hidden."""
    location = mirror.loaded().metadata_location
    source = iceberg_scan((location, mirror.table.snapshot_id))
    table = StaticTable.from_metadata(location)
    quoted = '"' + column.replace('"', '""') + '"'
    kind = next(known.iceberg for known in mirror.shape.columns if known.name == column)
    conditions: list[tuple[str, Any, Callable[[Any], bool]]] = [
        (f"{quoted} IS NULL", ask.IsNull(column), lambda found: found is None),
        (f"{quoted} IS NOT NULL", ask.NotNull(column), lambda found: found is not None),
    ]
    for value in values:
        for sign, expression, holds in (
            ("=", ask.EqualTo, operator.eq),
            ("<", ask.LessThan, operator.lt),
            (">=", ask.GreaterThanOrEqual, operator.ge),
        ):
            right: Callable[[Any], bool] = partial(matches, holds, value)
            conditions.append(
                (
                    f"{quoted} {sign} {literal(value, kind)}",
                    # One range is enough of it; it has no < of a boolean, and takes the bytes of a literal for text.
                    None if sign != "=" and (value != values[0] or kind in ("boolean", "binary")) else expression(column, spoken(value)),
                    right,
                )
            )
    expected = [sorted(key for key, value in stored.items() if holds(value)) for _, _, holds in conditions]
    lists = ", ".join(f"(SELECT list(id ORDER BY id) FROM {source} WHERE {sql})" for sql, _, _ in conditions)
    (found,) = engines.duckdb.sql(f"SELECT {lists}").fetchall()
    for (sql, asked, _), theirs, wanted in zip(conditions, found, expected, strict=True):
        assert (theirs or []) == wanted, f"DuckDB: {sql}"
        if asked is not None:
            ids = table.scan(row_filter=asked, selected_fields=("id",)).to_arrow().column("id").sort().to_pylist()
            assert ids == wanted, f"PyIceberg: {sql}"


def matches(holds: Callable[[Any, Any], bool], value: Any, found: Any) -> bool:
    return found is not None and holds(found, value)


def literal(value: Any, kind: str) -> str:
    """A constant DuckDB can hold against partitions and bounds."""
    match value:
        case bytes():
            return "'" + "".join(f"\\x{byte:02x}" for byte in value) + "'::blob"
        case str():
            return "'" + value.replace("'", "''") + "'"
    text = value.isoformat() if isinstance(value, dt.date | dt.time) else str(value)
    return f"'{text}'::{ {'long': 'bigint'}.get(kind, kind) }"


def spoken(value: Any) -> Any:
    """A constant as PyIceberg wants it."""
    return value.isoformat() if isinstance(value, dt.date | dt.time) else value


DAYS = (-800, -366, -31, -1, 0, 31, 365, 18_262)
MOMENTS = [EPOCH + dt.timedelta(days=day, microseconds=micros) for day in DAYS for micros in (0, 3_599_999_999)]
VALUES: dict[str, list[Any]] = {
    "boolean": [True, False],
    "int": [-101, -100, -51, -50, -1, 0, 49, 50, 2**31 - 1],
    "long": [-51, -50, -1, 0, 49, 50, 2**63 - 1, -(2**63) + 200],
    "decimal(9,2)": [Decimal("-0.01"), Decimal("0.00"), Decimal("-1000.00"), Decimal("-999.99"), Decimal("9999999.99")],
    "decimal(38,2)": [Decimal("-0.01"), Decimal("0.00"), Decimal("-50.00"), Decimal("9" * 36 + ".99")],
    "string": ["", "a", "ab", "ünï", "🦆q", "\U0010ffff", "\ufffd", "NULL"],
    "binary": [b"", b"\x00", b"\xff\xff", b"ab", b"abc"],
    "date": [dt.date(1970, 1, 1) + dt.timedelta(days=day) for day in DAYS],
    "time": [dt.time(0), dt.time(1, 2, 3, 4), dt.time(23, 59, 59, 999_999)],
    "timestamp": [moment.replace(tzinfo=None) for moment in MOMENTS],
    "timestamptz": MOMENTS,
}


@pytest.mark.parametrize("kind", list(VALUES))
def test_partitions_never_hide_a_row(tmp_path: Path, engines: Engines, kind: str) -> None:
    """Every transform of every type that is offered: each value is found through the partition that its transform puts it in."""
    bare = kind.partition("(")[0]
    chance = random.Random(kind)
    for transform in (name for name, kinds in SOURCES.items() if bare in kinds):
        width = {"bucket": 7, "truncate": 1 if kind in ("string", "binary") else 50}.get(transform)
        layout = Layout((PartitionField("v", transform, width),), format_version=chance.choice([2, 3]))
        mirror = Mirror(relation(("id", "long"), ("v", kind), name=transform), LocalStorage(), str(tmp_path), layout=layout)
        values = VALUES[kind]
        late = [value for value in values if not hidden_by_duckdb(kind, transform, value)]
        mirror.commit([*enumerate(late), (1000, None)])
        # What is asked for may be older than all that is stored.
        find(engines, mirror, "v", {key: one[1] for key, one in mirror.model.items()}, chance.sample(values, min(4, len(values))))


def hidden_by_duckdb(kind: str, transform: str, value: Any) -> bool:
    return kind.startswith("timestamp") and transform in ("day", "month") and value.replace(tzinfo=None) < dt.datetime(1970, 1, 1)


@pytest.mark.parametrize("transform", ["day", "month"])
def test_duckdb_hides_times_before_1970(tmp_path: Path, engines: Engines, transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why they are refused (PARTITION_BEFORE_1970). If this fails, DuckDB was mended and they need not be any more."""
    monkeypatch.setattr(layouts, "_partitioned", lambda field, column: transforms.apply(field.transform, field.width, column))
    shape = relation(("id", "long"), ("v", "timestamptz"))
    mirror = Mirror(shape, LocalStorage(), str(tmp_path), layout=Layout((PartitionField("v", transform),)))
    mirror.commit([(1, dt.datetime(1967, 10, 23, 12, tzinfo=dt.UTC))])
    engines.agree(mirror)
    with pytest.raises(AssertionError, match="DuckDB"):
        find(engines, mirror, "v", {1: mirror.model[1][1]}, [mirror.model[1][1]])
