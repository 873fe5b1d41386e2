"""One canonical text for every value, produced on both sides: by PostgreSQL for the source, by DuckDB for the lake.

Promises: two values have the same text exactly if the lake holds the source's value; NULL has none, so it differs from ''.
The text is PostgreSQL's own output (bpchar padding, numeric scale and json spacing included) except

- date: days since 1970-01-01; time, timestamp, timestamptz: seconds since midnight or 1970-01-01 UTC with six decimals, as
  extract(epoch) gives them (exact numerics, also BC and beyond the year 9999).
- float4, float8: the bytes of the IEEE number in hexadecimal. -0 and 0 differ, since the lake must hold what was stored; all NaN
  are one value, as PostgreSQL has it.
- a value with parts (array, composite, range, multirange, interval, hstore): PostgreSQL's text of the one-dimensional text array
  of its parts' canonical texts. So the rules by which PostgreSQL quotes array elements are the only ones, and an array whose
  elements are their own canonical text is sent as it is. Parts: a composite's attributes; lower, upper and bounds of a range;
  months, days and microseconds; keys and values of an hstore in order of the keys' bytes.
- vector, halfvec: the bytes of its floats, one after the other.

A value that PostgreSQL can hold and the lake's type cannot (NaN in a decimal, infinity, 24:00, an array with another lower bound)
is ``!``, which no value of the lake is, or NULL where the mirror's policy says so: the innermost one.

A lake column of type ``string`` holds the source's exact text, whatever its type there. Any other pair of types that is not in
the contract has no form: the caller must report the column, never leave it out silently.
Source: PostgreSQL documentation, chapters 8 (Data Types; 8.15.6 for the quoting of array elements) and 9 (Functions); DuckDB
documentation, Functions.
"""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal

import numpy as np

from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType, parse
from icelake.verify.pgtype import PgType

Sql = Callable[[str], str]
"""The SQL expression of a value -> that of something about it."""


def as_it_is(value: str) -> str:
    return value


@dataclass(frozen=True, slots=True)
class Form:
    """How a value becomes canonical text."""

    source: Sql = as_it_is
    """PostgreSQL: something whose output text is the canonical text."""
    lake: Sql = as_it_is
    """DuckDB: the canonical text."""
    text: bool = False
    """``source`` is of type text already."""
    plain: bool = False
    """The text is of letters, digits and ``.-`` only, and not NULL: no array quotes it."""
    show: Callable[[str], str] = str
    """Canonical text -> PostgreSQL's output text (ISO, UTC), for keys in reports."""


def form(source: PgType, lake: IcebergType, null: bool = False) -> Form | None:
    """The form of a column, None if the pair of types is not in the type contract.

    ``null``: values the lake's type cannot hold are NULL in the lake by the mirror's policy.
    """
    return _form(source, lake, null, 0)


def quoted(name: str) -> str:
    """An identifier, in either database's SQL."""
    return '"' + name.replace('"', '""') + '"'


def _form(source: PgType, lake: IcebergType, null: bool, depth: int) -> Form | None:
    if lake == _STRING:
        return _TEXT
    if isinstance(lake, Primitive):
        if lake.decimal is not None:
            return _decimal(source, *lake.decimal, null)
        leaf = _LEAVES.get((source.name, lake.name))
        return None if leaf is None else _fitting(leaf[0], leaf[1], null)
    if source.kind in ("array", "multirange"):
        element = _form(source.parts[0][1], lake.element, null, depth + 1) if isinstance(lake, ListType) else None
        return None if element is None else _list(source, element, null, depth)
    if source.kind == "composite" and isinstance(lake, StructType):
        return _composite(source, lake, null, depth)
    if source.kind == "range" and isinstance(lake, StructType) and [name for name, _ in lake.fields] == ["lower", "upper", "bounds"]:
        return _range(source, lake, null, depth)
    if source.name == "interval" and lake == _INTERVAL:
        # extract() from an interval is exact: numeric, and no part carries into another.
        months = "(extract(year FROM {0}) * 12 + extract(month FROM {0}))::text"
        micros = "(extract(hour FROM {0}) * 3600000000 + extract(minute FROM {0}) * 60000000 + extract(microseconds FROM {0}))::text"
        parts = [
            _Part(months.format, _field("months"), _NUMBER_TEXT),
            _Part("extract(day FROM {0})::text".format, _field("days"), _NUMBER_TEXT),
            _Part(micros.format, _field("micros"), _NUMBER_TEXT),
        ]
        return _fitting(_struct(parts, depth), "NOT isfinite({0})".format, null)
    if source.name == "hstore.hstore" and lake == _STRINGS:
        return _hstore(source.schema, depth)
    if source.name in ("vector.vector", "vector.halfvec") and lake == ListType(Primitive("float")):
        return _vector(source, depth)
    return None


def _fitting(form: Form, unfit: Sql | None, null: bool) -> Form:
    """``form`` for the values that fit the lake's type. ``unfit``: a condition in PostgreSQL that is never true for NULL."""
    if unfit is None:
        return form
    instead = "NULL" if null else "'!'"
    return replace(form, source=lambda value: f"CASE WHEN {unfit(value)} THEN {instead} ELSE {form.source(value)} END")


def _printed(value: str) -> str:
    """PostgreSQL: the output text of a value as text. A cast to text is something else for bpchar, boolean and inet.

    ``IS NULL`` would also be true of a row of nulls.
    """
    return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN concat({value}) END"


def _source_text(form: Form, value: str) -> str:
    sent = form.source(value)
    return sent if form.text else _printed(sent)


# ---------------------------------------------------------------------------------------------------- values with parts


@dataclass(frozen=True, slots=True)
class _Part:
    source: Sql
    lake: Sql
    form: Form


def _array(texts: str, plain: bool, depth: int) -> str:
    """DuckDB: PostgreSQL's text of the text array that this list of canonical texts is; NULL for NULL."""
    text = f"t{depth}"
    if plain:
        element = f"coalesce({text}, 'NULL')"
    else:
        escaped = f"""replace(replace({text}, '\\', '\\\\'), '"', '\\"')"""
        quoting = f"""WHEN regexp_matches({text}, '{_QUOTED}') THEN '"' || {escaped} || '"'"""
        element = f"CASE WHEN {text} IS NULL THEN 'NULL' {quoting} ELSE {text} END"
    return f"'{{' || array_to_string(list_transform({texts}, lambda {text}: {element}), ',') || '}}'"


_QUOTED = r'^$|[{}",\\ \t\n\r\x0b\f]|^[Nn][Uu][Ll][Ll]$'
"""Array elements PostgreSQL quotes: empty, with a brace, delimiter, quote, backslash or white space in it, or the word NULL."""


def _list(source: PgType, element: Form, null: bool, depth: int) -> Form:
    name = f"e{depth}"

    def lake(value: str) -> str:
        texts = value if element.lake is as_it_is else f"list_transform({value}, lambda {name}: {element.lake(name)})"
        return _array(texts, element.plain, depth)

    if source.kind == "array" and source.parts[0][1].delimiter == "," and element.source is as_it_is:
        # Other dimensions and lower bounds are in the text too, and no list in the lake has such a text.
        return Form(lambda value: f"CASE WHEN {_shaped(value)} THEN NULL ELSE {value} END", lake) if null else Form(lake=lake)

    def parts(value: str) -> str:
        # In a select list, not in FROM, which would make a NULL among composites a row of nulls.
        elements = f"SELECT {_source_text(element, name)} FROM (SELECT unnest({value}) AS {name}) AS u"
        return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN concat(ARRAY({elements})) END"

    return _fitting(Form(parts, lake, text=True), _shaped if source.kind == "array" else None, null)


def _shaped(value: str) -> str:
    return f"array_ndims({value}) > 1 OR array_lower({value}, 1) <> 1"


def _struct(parts: Sequence[_Part], depth: int) -> Form:
    plain = all(part.form.plain for part in parts)

    def source(value: str) -> str:
        texts = ", ".join(_source_text(part.form, part.source(value)) for part in parts)
        return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN concat(ARRAY[{texts}]) END"

    def lake(value: str) -> str:
        texts = ", ".join(part.form.lake(part.lake(value)) for part in parts)
        return f"CASE WHEN {value} IS NOT NULL THEN {_array(f'[{texts}]', plain, depth)} END"

    return Form(source, lake, text=True)


def _composite(source: PgType, lake: StructType, null: bool, depth: int) -> Form | None:
    if [name for name, _ in source.parts] != [name for name, _ in lake.fields]:
        return None
    parts = []
    for (name, of), (_, kind) in zip(source.parts, lake.fields, strict=True):
        found = _form(of, kind, null, depth + 1)
        if found is None:
            return None
        parts.append(_Part(_attribute(name), _field(name), found))
    return _struct(parts, depth)


def _attribute(name: str) -> Sql:
    return lambda value: f"({value}).{quoted(name)}"


def _field(name: str) -> Sql:
    literal = "'" + name.replace("'", "''") + "'"
    return lambda value: f"struct_extract({value}, {literal})"


def _range(source: PgType, lake: StructType, null: bool, depth: int) -> Form | None:
    kinds = [kind for _, kind in lake.fields]
    lower, upper = (_form(source.parts[0][1], kind, null, depth + 1) for kind in kinds[:2])
    if lower is None or upper is None or kinds[2] != _STRING:
        return None
    bounds = (
        "CASE WHEN isempty({0}) THEN 'empty' ELSE CASE WHEN lower_inc({0}) THEN '[' ELSE '(' END "
        "|| CASE WHEN upper_inc({0}) THEN ']' ELSE ')' END END"
    )
    return _struct(
        [
            _Part("lower({0})".format, _field("lower"), lower),
            _Part("upper({0})".format, _field("upper"), upper),
            _Part(bounds.format, _field("bounds"), Form(text=True)),
        ],
        depth,
    )


def _hstore(schema: str, depth: int) -> Form:
    entry = f"e{depth}"

    def source(value: str) -> str:
        pairs = f"SELECT key, value FROM {quoted(schema)}.each({value}) ORDER BY convert_to(key, 'UTF8')"
        return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN concat(ARRAY(SELECT unnest(ARRAY[key, value]) FROM ({pairs}) AS u)) END"

    def lake(value: str) -> str:
        pair = f"[struct_extract({entry}, 'key'), struct_extract({entry}, 'value')]"
        texts = f"flatten(list_transform(list_sort(map_entries({value})), lambda {entry}: {pair}))"
        return f"CASE WHEN {value} IS NOT NULL THEN {_array(texts, False, depth)} END"

    return Form(source, lake, text=True)


def _vector(source: PgType, depth: int) -> Form:
    schema, element = quoted(source.schema), f"e{depth}"
    cast = f"::{schema}.vector" if source.name == "vector.halfvec" else ""

    def lake(value: str) -> str:
        # A vector has no NULL in it; neither is this text one of hexadecimal digits.
        return f"array_to_string(list_transform({value}, lambda {element}: coalesce({_hex(element)}, 'NULL')), '')"

    # Two 16-bit numbers come first: how many dimensions, and 0.
    return Form(lambda value: f"substr(encode({schema}.vector_send({value}{cast}), 'hex'), 9)", lake, text=True, plain=True)


# ------------------------------------------------------------------------------------------------ values without parts


def _decimal(source: PgType, precision: int, scale: int, null: bool) -> Form | None:
    # DuckDB prints decimal(2,2) as '.05', PostgreSQL as '0.05'.
    lake = "regexp_replace(CAST({0} AS VARCHAR), '^(-?)\\.', '\\10.')" if precision == scale else "CAST({0} AS VARCHAR)"
    if source.name == "money" and (precision, scale) == (19, 2):
        return Form("{0}::numeric::text".format, lake.format, text=True, plain=True, show=_show_money)
    if source.name != "numeric":
        return None
    if source.text == f"numeric({precision},{scale})":
        # What does not fit is NaN alone, whose text is no decimal's.
        return Form("nullif({0}, 'NaN')".format if null else as_it_is, lake.format, plain=True)
    fits = Form(f"round({{0}}, {scale})::text".format, lake.format, text=True, plain=True)
    # Also true of NaN and infinities: PostgreSQL puts NaN above all numbers.
    return _fitting(fits, f"({{0}} <> round({{0}}, {scale}) OR abs({{0}}) >= '1e{precision - scale}'::numeric)".format, null)


def _show_date(text: str) -> str:
    return _iso_date(int(text)) if _SECONDS.fullmatch(text) else text


def _show_time(text: str) -> str:
    return _iso_time(_micros(text)) if _SECONDS.fullmatch(text) else text


def _show_timestamp(text: str, zone: str = "") -> str:
    if not _SECONDS.fullmatch(text):
        return text
    days, micros = divmod(_micros(text), 86_400_000_000)
    day, _, era = _iso_date(days).partition(" ")
    return f"{day} {_iso_time(micros)}{zone}" + (f" {era}" if era else "")


def _show_timestamptz(text: str) -> str:
    return _show_timestamp(text, "+00")


def _show_float(text: str) -> str:
    if text == "NaN":
        return text
    data = bytes.fromhex(text)
    number = np.float32(struct.unpack(">f", data)[0]) if len(data) == 4 else np.float64(struct.unpack(">d", data)[0])
    return str(number).removesuffix(".0").replace("inf", "Infinity")


def _show_money(text: str) -> str:
    # As lc_monetary = C has it.
    return f"{'-' if text.startswith('-') else ''}${Decimal(text.removeprefix('-')):,}"


def _micros(seconds: str) -> int:
    return int(seconds.replace(".", ""))


def _iso_date(days: int) -> str:
    # Python's calendar ends at the years 1 and 9999; the Gregorian one repeats every 400 years of 146,097 days.
    cycle, rest = divmod(days + date(1970, 1, 1).toordinal() - 1, 146_097)
    day = date.fromordinal(rest + 1)
    year = day.year + 400 * cycle
    return f"{year:04d}-{day:%m-%d}" if year > 0 else f"{1 - year:04d}-{day:%m-%d} BC"


def _iso_time(micros: int) -> str:
    seconds, fraction = divmod(micros, 1_000_000)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{text}.{fraction:06d}".rstrip("0") if fraction else text


_SECONDS = re.compile(r"-?\d+(\.\d{6})?")

_STRING = Primitive("string")
_STRINGS = MapType(_STRING, _STRING)
_INTERVAL = parse("struct<months: int, days: int, micros: long>")


def _hex(value: str) -> str:
    return f"lower(hex(CAST(CAST({value} AS BIT) AS BLOB)))"


def _float(send: str) -> Form:
    return Form(
        f"CASE WHEN {{0}} = 'NaN' THEN 'NaN' ELSE encode({send}({{0}}), 'hex') END".format,
        lambda value: f"CASE WHEN isnan({value}) THEN 'NaN' ELSE {_hex(value)} END",
        text=True,
        plain=True,
        show=_show_float,
    )


def _seconds(of: str) -> str:
    # A product of decimals: exact, and with six decimals.
    return f"CAST(CAST({of} AS DECIMAL(19,0)) * 0.000001 AS VARCHAR)"


def _timestamp(duckdb_type: str, latest: str, show: Callable[[str], str]) -> tuple[Form, Sql]:
    # The largest and smallest 64-bit numbers are moments in Iceberg, but infinities to DuckDB, which counts those as NULL.
    lake = (
        f"CASE {{0}} WHEN {duckdb_type} 'infinity' THEN '9223372036854.775807' "
        f"WHEN {duckdb_type} '-infinity' THEN '-9223372036854.775807' ELSE {_seconds('epoch_us({0})')} END"
    )
    # PostgreSQL rounds what it cannot count from 1970 in 64 bits, and already the very last of what it can.
    source = f"CASE WHEN {{0}} = {latest} THEN '9223372036854.775807' ELSE extract(epoch FROM {{0}})::text END"
    return Form(source.format, lake.format, text=True, plain=True, show=show), f"(NOT isfinite({{0}}) OR {{0}} > {latest})".format


_TEXT = Form()
_NUMBER = Form(lake="CAST({0} AS VARCHAR)".format, plain=True)
_NUMBER_TEXT = replace(_NUMBER, text=True)
_BYTES = Form(lake="'\\x' || lower(hex({0}))".format)
_SHAPE = Form(lambda value: f"lower({_printed(value)})", "lower(hex({0}))".format, text=True, plain=True)
_DATE = Form(
    "({0} - DATE '1970-01-01')::text".format, "CAST({0} - DATE '1970-01-01' AS VARCHAR)".format, text=True, plain=True, show=_show_date
)
_TIME = Form("extract(epoch FROM {0})::text".format, _seconds("epoch_us({0})").format, text=True, plain=True, show=_show_time)

_LEAVES: dict[tuple[str, str], tuple[Form, Sql | None]] = {
    ("bool", "boolean"): (Form(lake="CASE {0} WHEN true THEN 't' WHEN false THEN 'f' END".format, plain=True), None),
    **{(name, iceberg): (_NUMBER, None) for name in ("int2", "int4", "int8", "oid") for iceberg in ("int", "long")},
    ("float4", "float"): (_float("float4send"), None),
    ("float8", "double"): (_float("float8send"), None),
    ("bytea", "binary"): (_BYTES, None),
    ("postgis.geometry", "binary"): (_SHAPE, None),
    ("postgis.geography", "binary"): (_SHAPE, None),
    ("uuid", "uuid"): (_NUMBER, None),
    ("date", "date"): (_DATE, "NOT isfinite({0})".format),
    ("time", "time"): (_TIME, "{0} = TIME '24:00'".format),
    ("timestamp", "timestamp"): _timestamp("TIMESTAMP", "TIMESTAMP '294247-01-10 04:00:54.775807'", _show_timestamp),
    ("timestamptz", "timestamptz"): _timestamp("TIMESTAMPTZ", "TIMESTAMPTZ '294247-01-10 04:00:54.775807+00'", _show_timestamptz),
}
"""(PostgreSQL's type, the lake's): the form, and when a value does not fit the lake's type."""
