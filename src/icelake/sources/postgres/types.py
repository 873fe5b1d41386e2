"""The type contract from PostgreSQL to Iceberg, lossless or loud: what a column becomes, and which columns can be keys.

Promises: a type loses no value silently. A type that is not listed becomes a string that holds PostgreSQL's exact text. What is
named a key type prints different keys differently; an order given here is exactly the order PostgreSQL's B-tree has. Does no I/O.
Source: PostgreSQL documentation, chapter 8 (Data Types); catalog/pg_type.dat for the OIDs, which never change.
"""

import json
import re
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from icelake.model.load import Key, Order
from icelake.model.relation import Column, Relation
from icelake.model.types import IcebergType, ListType, Primitive, StructType, parse
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

# ------------------------------------------------------------------------------------------------------------- scalars


@dataclass(frozen=True, slots=True)
class Scalar:
    """What the contract says of a type without parts of its own."""

    iceberg: str
    text: str
    """Its text under ``SESSION``, for people."""
    oid: int = 0
    """Of a type that PostgreSQL brings along; 0: an extension's, found by its name."""
    extension: str = ""
    beyond: str = ""
    """Which values PostgreSQL can hold and ``iceberg`` cannot; empty: none."""


_INFINITE = "`infinity`, `-infinity`"

SCALARS: Final[dict[str, Scalar]] = {
    "bool": Scalar("boolean", "`t`, `f`", 16),
    "int2": Scalar("int", "decimal digits", 21),
    "int4": Scalar("int", "decimal digits", 23),
    "int8": Scalar("long", "decimal digits", 20),
    "oid": Scalar("long", "decimal digits", 26),
    "float4": Scalar("float", "shortest that reads back the same", 700),
    "float8": Scalar("double", "shortest that reads back the same", 701),
    "numeric": Scalar("string", "as stored, with its scale; also `NaN`, `Infinity`, `-Infinity`", 1700),
    "money": Scalar("decimal(19,2)", "`-$1,234.56`", 790),
    "text": Scalar("string", "itself", 25),
    "varchar": Scalar("string", "itself", 1043),
    "bpchar": Scalar("string", "padded with blanks to its length", 1042),
    "char": Scalar("string", "one byte, `\\ooo` beyond ASCII", 18),
    "name": Scalar("string", "itself", 19),
    "enum": Scalar("string", "its label"),
    "citext": Scalar("string", "itself", extension="citext"),
    "bytea": Scalar("binary", "`\\x` and hexadecimal digits", 17),
    "date": Scalar("date", "`2024-01-31`, `0044-03-15 BC`", 1082, beyond=_INFINITE),
    "time": Scalar("time", "`04:05:06.789`", 1083, beyond="`24:00:00`"),
    "timetz": Scalar("string", "`04:05:06.789+02`", 1266),
    "timestamp": Scalar("timestamp", "`2024-01-31 04:05:06.789`", 1114, beyond=f"{_INFINITE}, from `294247-01-10 04:00:54.775808` on"),
    "timestamptz": Scalar(
        "timestamptz", "`2024-01-31 04:05:06.789+00`", 1184, beyond=f"{_INFINITE}, from `294247-01-10 04:00:54.775808+00` on"
    ),
    "interval": Scalar(
        "struct<months: int, days: int, micros: long>",
        "`1 year 2 mons -3 days +04:05:06.789`",
        1186,
        beyond=_INFINITE,
    ),
    "uuid": Scalar("uuid", "lower-case hexadecimal digits, grouped 8-4-4-4-12", 2950),
    "json": Scalar("string", "itself", 114),
    "jsonb": Scalar("string", "PostgreSQL's normal form", 3802),
    "xml": Scalar("string", "itself", 142),
    "inet": Scalar("string", "`10.0.0.1`, `10.0.0.1/8`", 869),
    "cidr": Scalar("string", "`10.0.0.0/8`", 650),
    "macaddr": Scalar("string", "`08:00:2b:01:02:03`", 829),
    "macaddr8": Scalar("string", "`08:00:2b:01:02:03:04:05`", 774),
    "bit": Scalar("string", "`0` and `1`", 1560),
    "varbit": Scalar("string", "`0` and `1`", 1562),
    "pg_lsn": Scalar("string", "`16/B374D848`", 3220),
    "xid8": Scalar("string", "decimal digits", 5069),
    "tsvector": Scalar("string", "`'fat':2 'rat':3`", 3614),
    "tsquery": Scalar("string", "`'fat' & 'rat'`", 3615),
    "int2vector": Scalar("string", "`1 2 3`", 22),
    "oidvector": Scalar("string", "`1 2 3`", 30),
    "hstore": Scalar("map<string, string>", '`"key"=>"value", "other"=>NULL`', extension="hstore"),
    "ltree": Scalar("string", "`top.science`", extension="ltree"),
    "vector": Scalar("list<float>", "`[1,2.5,-3e-07]`", extension="vector"),
    "halfvec": Scalar("list<float>", "`[1,2.5,-3e-07]`", extension="vector"),
    "sparsevec": Scalar("string", "`{1:1.5,3:2}/5`", extension="vector"),
    "geometry": Scalar("binary", "EWKB in hexadecimal digits", extension="postgis"),
    "geography": Scalar("binary", "EWKB in hexadecimal digits", extension="postgis"),
    "other": Scalar("string", "what PostgreSQL prints"),
}
"""By pg_type.typname; ``enum`` is any enum and ``other`` any base type that is not listed."""

BY_OID: Final[dict[int, str]] = {scalar.oid: name for name, scalar in SCALARS.items() if scalar.oid}
BY_EXTENSION: Final[dict[tuple[str, str], str]] = {(scalar.extension, name): name for name, scalar in SCALARS.items() if scalar.extension}


# ------------------------------------------------------------------------------------------------------------ type trees


@dataclass(frozen=True, slots=True)
class Leaf:
    """A type without parts of its own: one of ``SCALARS``. ``declared`` is (precision, scale), of a numeric that has them."""

    name: str
    declared: tuple[int, int] | None = None
    labels: tuple[tuple[int, str], ...] = ()
    """(pg_enum.oid, label) of an enum."""


@dataclass(frozen=True, slots=True)
class ArrayOf:
    element: "PgType"
    delimiter: str = ","
    """pg_type.typdelim of the element: one ASCII character."""


@dataclass(frozen=True, slots=True)
class Composite:
    """``attributes``: (attnum, name, type) of those that are not dropped, in order; at least one."""

    attributes: tuple[tuple[int, str, "PgType"], ...]


@dataclass(frozen=True, slots=True)
class RangeOf:
    bound: "PgType"


@dataclass(frozen=True, slots=True)
class MultirangeOf:
    bound: "PgType"


PgType = Leaf | ArrayOf | Composite | RangeOf | MultirangeOf
"""What the text of a value is made of. A domain is what it is over; types have no OIDs here, which differ between equal ones."""

ALTERABLE: Final = ('"enum"', '"composite"')
"""What the text of a type (``dump``) holds if ALTER TYPE can change how its values print."""

_NUMERIC = re.compile(r"numeric\((\d+),(-?\d+)\)")


def dump(source: PgType) -> str:
    """A type as the JSON text ``Column.source`` holds."""
    return json.dumps(_written(source), ensure_ascii=False, separators=(",", ":"))


def _written(source: PgType) -> Any:
    match source:
        case Leaf("enum", _, labels):
            return {"enum": labels}
        case Leaf(name, declared):
            return name if declared is None else f"{name}({declared[0]},{declared[1]})"
        case ArrayOf(element, delimiter):
            return {"array": _written(element)} if delimiter == "," else {"array": _written(element), "by": delimiter}
        case Composite(attributes):
            return {"composite": [[attnum, name, _written(kind)] for attnum, name, kind in attributes]}
        case RangeOf(bound):
            return {"range": _written(bound)}
        case MultirangeOf(bound):
            return {"multirange": _written(bound)}


@lru_cache(maxsize=4096)
def load(text: str) -> PgType:
    """The inverse of ``dump``. Raises ValueError for anything else."""
    try:
        return _read(json.loads(text))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"not a PostgreSQL type: {text!r}") from error


def _read(value: Any) -> PgType:
    match value:
        case str():
            declared = _NUMERIC.fullmatch(value)
            if declared is not None:
                return Leaf("numeric", (int(declared[1]), int(declared[2])))
            if value in SCALARS and value != "enum":
                return Leaf(value)
        case {"enum": [*labels]}:
            return Leaf("enum", labels=tuple((oid, label) for oid, label in labels))
        case {"array": element}:
            return ArrayOf(_read(element), value.get("by", ","))
        case {"composite": [_, *_] as attributes}:
            return Composite(tuple((attnum, name, _read(kind)) for attnum, name, kind in attributes))
        case {"range": bound}:
            return RangeOf(_read(bound))
        case {"multirange": bound}:
            return MultirangeOf(_read(bound))
    raise ValueError(f"not a type: {value!r}")


def same(held: PgType, now: PgType) -> bool:
    """Whether what was read as ``held`` still reads so: a type may have got no other parts, but an enum may have got labels."""
    match held, now:
        case Leaf("enum", _, old), Leaf("enum", _, new):
            return set(old) <= set(new)
        case ArrayOf(old_element, old_by), ArrayOf(new_element, new_by):
            return old_by == new_by and same(old_element, new_element)
        case Composite(old_parts), Composite(new_parts):
            return [part[:2] for part in old_parts] == [part[:2] for part in new_parts] and all(
                same(old_part[2], new_part[2]) for old_part, new_part in zip(old_parts, new_parts, strict=True)
            )
        case (RangeOf(old_bound), RangeOf(new_bound)) | (MultirangeOf(old_bound), MultirangeOf(new_bound)):
            return same(old_bound, new_bound)
    return held == now


def altered(held: Column, now: Column) -> bool:
    """Whether values of a column whose type has kept its OID read otherwise now than they did.

    A column that is kept as text does not mind what that is made of, except where PostgreSQL prints rows anew that nobody touched: with
    the labels of their enums, and the attributes of their composites.
    """
    return (held.iceberg != "string" or any(kind in held.source for kind in ALTERABLE)) and not same(type_of(held), type_of(now))


def type_of(column: Column) -> PgType:
    """What the values of a described column are made of."""
    if column.source:
        return load(column.source)
    return leaf(column.type_oid, column.typmod)


def leaf(type_oid: int, typmod: int) -> Leaf:
    """A type PostgreSQL brings along, by its OID. Raises KeyError for another."""
    name = BY_OID[type_oid]
    return Leaf(name, numeric_precision(typmod) if name == "numeric" else None)


def numeric_precision(typmod: int) -> tuple[int, int] | None:
    """(precision, scale) of a numeric's typmod, None when it has none. The scale may be negative or exceed the precision.

    Source: utils/adt/numeric.c, make_numeric_typmod: precision in the upper 16 bits, scale in 11 bits with sign, plus VARHDRSZ.
    """
    if typmod < 4:
        return None
    packed = typmod - 4
    return packed >> 16 & 0xFFFF, (packed & 0x7FF ^ 1024) - 1024


_STRING: Final = Primitive("string")


def iceberg_type(source: PgType) -> IcebergType:
    """What a type becomes in the lake unless the project wishes otherwise.

    ``numeric(p,s)`` is a decimal only if 0 <= s <= p <= 38; any other numeric is a string holding PostgreSQL's exact text.
    """
    match source:
        case Leaf("numeric", declared):
            if declared is not None and 0 <= declared[1] <= declared[0] <= 38:
                return Primitive(f"decimal({declared[0]},{declared[1]})")
            return _STRING
        case Leaf(name):
            return parse(SCALARS[name].iceberg)
        case ArrayOf(element):
            return ListType(iceberg_type(element))
        case Composite(attributes):
            return StructType(tuple((name, iceberg_type(kind)) for _, name, kind in attributes))
        case RangeOf(bound):
            return StructType((("lower", iceberg_type(bound)), ("upper", iceberg_type(bound)), ("bounds", _STRING)))
        case MultirangeOf(bound):
            return ListType(iceberg_type(RangeOf(bound)))


def can_be_beyond(source: PgType, iceberg: IcebergType) -> bool:
    """Whether PostgreSQL can hold a value of the type that ``iceberg`` cannot."""
    if iceberg == _STRING:
        return False
    match source:
        case Leaf("numeric"):
            return True
        case Leaf(name):
            return bool(SCALARS[name].beyond)
        case ArrayOf():
            return True
        case Composite(attributes):
            assert isinstance(iceberg, StructType)
            return any(can_be_beyond(kind, to) for (_, _, kind), (_, to) in zip(attributes, iceberg.fields, strict=True))
        case RangeOf(bound) | MultirangeOf(bound):
            return can_be_beyond(bound, iceberg_type(bound))


# ------------------------------------------------------------------------------------------------------------------ keys


def key_is_ordered(columns: Sequence[Column], bytewise: Collection[str] = ()) -> bool:
    """Whether ``order`` can reproduce PostgreSQL's order of a key of these columns.

    ``bytewise`` names the columns whose collation compares bytes (C, POSIX, ucs_basic, or C.UTF-8 of the builtin provider);
    text in any other collation has no order here. Nor has bpchar: it compares without its padding, which sorts below control characters.
    """
    return all(_column_order(column, column.name in bytewise) is not None for column in columns)


def order(relation: Relation) -> Order:
    """Maps a key (PostgreSQL's text of each key column, in key order) to a tuple that Python orders as the source does.

    Trusts ``relation.key_is_ordered``: text keys are then bytewise. For a relation whose key is not ordered here the result
    still tells equal keys from different ones, but its order, but for that of leaves, means nothing to PostgreSQL. Raises ValueError for a
    text that is not of its type.
    """
    if not relation.key_is_ordered and not relation.partitioned:
        return lambda key: key
    # Leaves, which come first in a key, have an order in any case.
    known = relation.key_columns if relation.key_is_ordered else relation.key_columns[:1]
    parts = [(_column_order(column, True) or str) if column in known else str for column in relation.key_columns]
    if len(parts) == 1:
        only = parts[0]
        return lambda key: (only(key[0]),)

    def ordered(key: Key) -> tuple[Any, ...]:
        # What names a leaf alone is shorter.
        return tuple([part(text) for part, text in zip(parts, key, strict=False)])

    return ordered


def _column_order(column: Column, bytewise: bool) -> Callable[[str], Any] | None:
    source = type_of(column)
    if not isinstance(source, Leaf):
        return None
    if column.iceberg == "string":
        # What is kept as text is compared as text here, by its bytes: only text compares so in PostgreSQL.
        return str.encode if source.name in ("text", "varchar", "name") and bytewise else None
    return _ORDERED.get(source.name)


def _bool(text: str) -> bool:
    if text not in ("t", "f"):
        raise ValueError(f"not a boolean: {text!r}")
    return text == "t"


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(f"not a finite number: {text!r}")
    return value


def _bytes(text: str) -> bytes:
    if not text.startswith("\\x"):
        raise ValueError(f"not bytes: {text!r}")
    return bytes.fromhex(text[2:])


_ORDERED: Final[dict[str, Callable[[str], Any]]] = {
    "bool": _bool,
    "int2": int,
    "int4": int,
    "int8": int,
    "oid": int,
    "numeric": _decimal,
    "money": lambda text: _decimal(text.replace("$", "").replace(",", "")),
    "uuid": lambda text: uuid.UUID(text).bytes,
    "bytea": _bytes,
    "date": parse_date,
    "time": parse_time,
    "timestamp": parse_timestamp,
    "timestamptz": parse_timestamp,
}
