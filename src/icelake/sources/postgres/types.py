"""The type contract from PostgreSQL to Iceberg, lossless or loud: which Iceberg type a column gets, and how its keys are ordered.

Promises: a type named here loses no value silently; an order given here is exactly the order PostgreSQL's B-tree has. Never
guesses: a type it does not know is None, and the caller refuses the table by name. Does no I/O.
Source: PostgreSQL documentation, chapter 8 (Data Types); catalog/pg_type.dat for the OIDs, which never change.
"""

import uuid
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any, Final

from icelake.model.load import Key, Order
from icelake.model.relation import Column, Relation
from icelake.sources.postgres.calendar import parse_date, parse_time, parse_timestamp

SESSION: Final[dict[str, str]] = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "TimeZone": "UTC",
    "lc_monetary": "C",
}
"""Settings every connection must make, replication connections too: the text of a value depends on them."""

BOOL: Final = 16
BYTEA: Final = 17
CHAR: Final = 18
NAME: Final = 19
INT8: Final = 20
INT2: Final = 21
INT4: Final = 23
TEXT: Final = 25
OID: Final = 26
JSON: Final = 114
FLOAT4: Final = 700
FLOAT8: Final = 701
BPCHAR: Final = 1042
VARCHAR: Final = 1043
DATE: Final = 1082
TIME: Final = 1083
TIMESTAMP: Final = 1114
TIMESTAMPTZ: Final = 1184
TIMETZ: Final = 1266
NUMERIC: Final = 1700
UUID: Final = 2950
JSONB: Final = 3802

_ICEBERG: Final[dict[int, str]] = {
    BOOL: "boolean",
    BYTEA: "binary",
    CHAR: "string",
    NAME: "string",
    INT8: "long",
    INT2: "int",
    INT4: "int",
    TEXT: "string",
    OID: "long",
    JSON: "string",
    FLOAT4: "float",
    FLOAT8: "double",
    BPCHAR: "string",
    VARCHAR: "string",
    DATE: "date",
    TIME: "time",
    TIMESTAMP: "timestamp",
    TIMESTAMPTZ: "timestamptz",
    TIMETZ: "string",
    UUID: "uuid",
    JSONB: "string",
}


def iceberg_type(type_oid: int, typmod: int, pg_type: str) -> str | None:
    """The Iceberg primitive a column of this type is mirrored as, or None when the type is not supported.

    ``numeric(p,s)`` is a decimal only if 0 <= s <= p <= 38; any other numeric is a string holding PostgreSQL's exact text.
    ``pg_type`` (``format_type()``'s text) decides nothing: OIDs do.
    """
    if type_oid == NUMERIC:
        declared = numeric_precision(typmod)
        if declared is not None and 0 <= declared[1] <= declared[0] <= 38:
            return f"decimal({declared[0]},{declared[1]})"
        return "string"
    return _ICEBERG.get(type_oid)


def numeric_precision(typmod: int) -> tuple[int, int] | None:
    """(precision, scale) of a numeric's typmod, None when it has none. The scale may be negative or exceed the precision.

    Source: utils/adt/numeric.c, make_numeric_typmod: precision in the upper 16 bits, scale in 11 bits with sign, plus VARHDRSZ.
    """
    if typmod < 4:
        return None
    packed = typmod - 4
    return packed >> 16 & 0xFFFF, (packed & 0x7FF ^ 1024) - 1024


def key_is_ordered(columns: Sequence[Column], bytewise: Collection[str] = ()) -> bool:
    """Whether ``order`` can reproduce PostgreSQL's order of a key of these columns.

    ``bytewise`` names the columns whose collation compares bytes (C, POSIX, ucs_basic, or C.UTF-8 of the builtin provider);
    text in any other collation has no order here. Nor has bpchar: it compares without its padding, which sorts below control characters.
    """
    return all(_column_order(column, column.name in bytewise) is not None for column in columns)


def order(relation: Relation) -> Order:
    """Maps a key (PostgreSQL's text of each key column, in key order) to a tuple that Python orders as the source does.

    Trusts ``relation.key_is_ordered``: text keys are then bytewise. For a relation whose key is not ordered here the result
    still tells equal keys from different ones, but its order means nothing to PostgreSQL. Raises ValueError for a text that
    is not of its type.
    """
    if not relation.key_is_ordered:
        return lambda key: key
    parts = [_column_order(column, True) or str for column in relation.key_columns]
    if len(parts) == 1:
        only = parts[0]
        return lambda key: (only(key[0]),)

    def ordered(key: Key) -> tuple[Any, ...]:
        return tuple([part(text) for part, text in zip(parts, key, strict=True)])

    return ordered


def _column_order(column: Column, bytewise: bool) -> Callable[[str], Any] | None:
    oid = column.type_oid
    if oid in _ORDERED:
        return _ORDERED[oid]
    if oid == NUMERIC and column.iceberg.startswith("decimal"):
        return _decimal
    if oid in (TEXT, VARCHAR, NAME) and bytewise:
        return str.encode
    return None


def _bool(text: str) -> bool:
    if text not in ("t", "f"):
        raise ValueError(f"not a boolean: {text!r}")
    return text == "t"


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(f"not a finite number: {text!r}")
    return value


_ORDERED: Final[dict[int, Callable[[str], Any]]] = {
    BOOL: _bool,
    INT2: int,
    INT4: int,
    INT8: int,
    OID: int,
    UUID: lambda text: uuid.UUID(text).bytes,
    DATE: parse_date,
    TIME: parse_time,
    TIMESTAMP: parse_timestamp,
    TIMESTAMPTZ: parse_timestamp,
}
