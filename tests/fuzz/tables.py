"""The tables whose changes and values are fuzzed: every way to read a value, every way to tell rows apart."""

from dataclasses import replace
from typing import Final

from icelake.model.relation import TABLEOID, Column, Relation
from icelake.sources.postgres.types import (
    BY_OID,
    ArrayOf,
    Composite,
    Leaf,
    MultirangeOf,
    PgType,
    RangeOf,
    dump,
    iceberg_type,
    leaf,
)
from icelake.sources.postgres.types import SCALARS as SCALAR_TYPES

_NUMERIC_12_2: Final = (12 << 16) + 2 + 4


def _made_of(name: str, attnum: int, oid: int, source: PgType) -> Column:
    return Column(name, attnum, oid, -1, f"type {oid}", str(iceberg_type(source)), source=dump(source))


def _scalar(attnum: int, oid: int, typmod: int = -1) -> Column:
    return Column(f"c{attnum}", attnum, oid, typmod, BY_OID[oid], str(iceberg_type(leaf(oid, typmod))))


_ID: Final = Column("id", 1, 23, -1, "integer", "int", nullable=False)
_INT, _TEXT, _DAY = Leaf("int4", None), Leaf("text", None), Leaf("date", None)
_PAIR: Final = Composite(((1, "a", _INT), (2, "b", _TEXT)))

# Types without a fixed OID have 0: a relation message may give them any.
_READERS: Final = ("bool", "int2", "int8", "oid", "float4", "float8", "numeric", "money", "text", "bytea", "date", "time", "timestamp")
SCALARS: Final = tuple(
    _scalar(n, SCALAR_TYPES[name].oid, _NUMERIC_12_2 if name == "numeric" else -1)
    for n, name in enumerate((*_READERS, "timestamptz", "interval", "uuid"), 2)
)
"""One of each that is read in a way of its own; the others are text."""
_SOURCES: Final[tuple[tuple[int, PgType], ...]] = (
    (1007, ArrayOf(_INT, ",")),
    (1009, ArrayOf(_TEXT, ",")),
    (0, ArrayOf(_PAIR, ",")),
    (0, _PAIR),
    (0, Composite(((1, "n", _PAIR), (2, "l", ArrayOf(_DAY, ","))))),
    (3904, RangeOf(_INT)),
    (3912, RangeOf(_DAY)),
    (4451, MultirangeOf(_INT)),
    (0, RangeOf(_TEXT)),
    (0, Leaf("hstore", None)),
    (0, Leaf("vector", None)),
    (0, Leaf("geometry", None)),
)
PARTS: Final = tuple(_made_of(f"p{n}", n, oid, source) for n, (oid, source) in enumerate(_SOURCES, 2))

_SCALAR_TABLE: Final = Relation(1, "public", "scalars", (_ID, *SCALARS), ("id",))
_SHORT: Final = (_ID, _scalar(2, 25), _scalar(3, 1700, _NUMERIC_12_2))
TABLES: Final = {
    relation.name: relation
    for relation in (
        _SCALAR_TABLE,
        Relation(2, "public", "parts", (_ID, *PARTS), (), identity="full"),
        Relation(3, "public", "lenient", tuple(replace(c, out_of_range="null") if c is not _ID else c for c in (_ID, *SCALARS)), ("id",)),
        Relation(4, "public", "appended", _SHORT, (), identity="none"),
        Relation(5, "public", "two_keys", (_SHORT[0], replace(_SHORT[1], nullable=False), _SHORT[2]), ("c2", "id")),
        Relation(
            6,
            "public",
            "grown",
            (*_SHORT, replace(_scalar(4, 20), default="17"), replace(_scalar(5, 25), default="late"), _scalar(6, 1082)),
            ("id",),
        ),
        Relation(
            7,
            "public",
            "leaves",
            (Column("tableoid", TABLEOID, 26, -1, "oid", "long", nullable=False), *_SHORT),
            ("tableoid", "id"),
        ),
    )
}
"""By name. Any other table is one whose changes are kept as they come."""
