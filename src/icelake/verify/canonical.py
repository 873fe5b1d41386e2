"""One canonical text for every value, produced on both sides: by PostgreSQL for the source, by DuckDB for the lake.

Promises: two values have the same text exactly if the lake holds the source's value; NULL has none, so it differs from ''.
The text is PostgreSQL's own output (bpchar padding, numeric scale and json spacing included) except

- date: days since 1970-01-01; time, timestamp, timestamptz: microseconds since midnight or 1970-01-01 UTC. PostgreSQL counts
  them (exact numerics, also BC and beyond the year 9999); infinity stays a word, which no number in the lake equals.
- float4, float8: PostgreSQL's shortest round-trip text, parsed by DuckDB and printed by it, as the lake's number is. -0 and 0
  differ, since the lake must hold what was stored; all NaN are one value, as PostgreSQL has it.

A lake column of type ``string`` holds the source's exact text, whatever its type there. Any other pair of types that is not in
the contract has no form: the caller must report the column, never leave it out silently.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True, slots=True)
class Form:
    """How one column becomes canonical text. ``{0}`` stands for the column in each expression."""

    source: str = "{0}"
    """PostgreSQL: what COPY sends; its output text is the canonical text, or all that ``text`` needs."""
    text: str = "{0}"
    """DuckDB: canonical text from what COPY sent."""
    lake: str = "{0}"
    """DuckDB: canonical text from the lake's value."""
    show: Callable[[str], str] = str
    """Canonical text -> PostgreSQL's output text (ISO, UTC), for keys in reports."""


def form(type_name: str, type_text: str, iceberg: str) -> Form | None:
    """The form of a column, None if the pair of types is not in the type contract.

    ``type_name`` is pg_type.typname ('' for a type that is not PostgreSQL's own), ``type_text`` format_type()'s text,
    ``iceberg`` the lake's type as the spec spells it.
    """
    if iceberg == "string":
        return _TEXT
    decimal = _DECIMAL.fullmatch(iceberg)
    if decimal is not None:
        declared = _NUMERIC.fullmatch(type_text)
        if type_name != "numeric" or declared is None or declared.groups() != decimal.groups():
            return None
        return _PURE_FRACTION if decimal[1] == decimal[2] else _PRINTED
    return _FORMS.get((type_name, iceberg))


def _show_date(text: str) -> str:
    return _iso_date(int(text)) if _NUMBER.fullmatch(text) else text


def _show_time(text: str) -> str:
    return _iso_time(int(text)) if _NUMBER.fullmatch(text) else text


def _show_timestamp(text: str, zone: str = "") -> str:
    if not _NUMBER.fullmatch(text):
        return text.lower()
    days, micros = divmod(int(text), 86_400_000_000)
    day, _, era = _iso_date(days).partition(" ")
    return f"{day} {_iso_time(micros)}{zone}" + (f" {era}" if era else "")


def _show_timestamptz(text: str) -> str:
    return _show_timestamp(text, "+00")


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


_NUMBER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"decimal\((\d+), ?(\d+)\)")
_NUMERIC = re.compile(r"numeric\((\d+),(\d+)\)")

_TEXT = Form()
_PRINTED = Form(lake="CAST({0} AS VARCHAR)")
# DuckDB prints decimal(2,2) as '.05', PostgreSQL as '0.05'.
_PURE_FRACTION = Form(lake="regexp_replace(CAST({0} AS VARCHAR), '^(-?)\\.', '\\10.')")
_BOOLEAN = Form(lake="CASE {0} WHEN true THEN 't' WHEN false THEN 'f' END")
_FLOAT = Form(text="CAST(CAST({0} AS REAL) AS VARCHAR)", lake="CAST(CAST({0} AS REAL) AS VARCHAR)")
_DOUBLE = Form(text="CAST(CAST({0} AS DOUBLE) AS VARCHAR)", lake="CAST(CAST({0} AS DOUBLE) AS VARCHAR)")
_BYTES = Form(lake="'\\x' || lower(hex({0}))")
_DATE = Form(
    source="CASE WHEN isfinite({0}) THEN ({0} - DATE '1970-01-01')::text ELSE {0}::text END",
    lake="CAST({0} - DATE '1970-01-01' AS VARCHAR)",
    show=_show_date,
)
# extract(epoch) is numeric with six decimals since PostgreSQL 14, exact over the whole range; 'Infinity' and '-Infinity' end in y.
_SECONDS = "extract(epoch FROM {0})"
_MICROS = "CASE WHEN ends_with({0}, 'y') THEN {0} ELSE CAST(CAST(replace({0}, '.', '') AS HUGEINT) AS VARCHAR) END"
_TIME = Form(source=_SECONDS, text=_MICROS, lake="CAST(epoch_us({0}) AS VARCHAR)", show=_show_time)


def _timestamp(duckdb_type: str, show: Callable[[str], str]) -> Form:
    # The largest and smallest 64-bit numbers are moments in Iceberg, but infinities to DuckDB, which counts those as NULL.
    lake = (
        f"CASE {{0}} WHEN {duckdb_type} 'infinity' THEN '9223372036854775807' "
        f"WHEN {duckdb_type} '-infinity' THEN '-9223372036854775807' ELSE CAST(epoch_us({{0}}) AS VARCHAR) END"
    )
    return Form(source=_SECONDS, text=_MICROS, lake=lake, show=show)


_FORMS: dict[tuple[str, str], Form] = {
    ("bool", "boolean"): _BOOLEAN,
    **{(name, iceberg): _PRINTED for name in ("int2", "int4", "int8", "oid") for iceberg in ("int", "long")},
    ("float4", "float"): _FLOAT,
    ("float8", "double"): _DOUBLE,
    ("bytea", "binary"): _BYTES,
    ("uuid", "uuid"): _PRINTED,
    ("date", "date"): _DATE,
    ("time", "time"): _TIME,
    ("timestamp", "timestamp"): _timestamp("TIMESTAMP", _show_timestamp),
    ("timestamptz", "timestamptz"): _timestamp("TIMESTAMPTZ", _show_timestamptz),
}
