"""Every type of the contract, as columns are drawn from it: how PostgreSQL is told its values, edges among them.

A value is an SQL expression. ``beyond`` are values that PostgreSQL can hold and the lake's type cannot. ``SCHEMA`` in a type's name or a
value stands for the schema of the example, which has the types of ``TYPES`` for itself.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

SCHEMA = "⟦schema⟧"
"""Not a word any drawn text has."""
TYPES = (
    f"""create type {SCHEMA}.mood as enum ('ok', 'so so', 'NULL', 'q"', '{{,}}', 'ünï')""",
    f'create type {SCHEMA}.pair as (n int, "T ü" text, m numeric(6,2), at timestamp, l text[])',
    f"create type {SCHEMA}.nest as (p {SCHEMA}.pair, ps {SCHEMA}.pair[], m {SCHEMA}.mood, r int4range, i interval)",
    f"create domain {SCHEMA}.amount as numeric(9,2) check (value is distinct from 13.13)",
    f"create domain {SCHEMA}.words as text[]",
    f"create domain {SCHEMA}.code as char(3)",
    f"create domain {SCHEMA}.twin as {SCHEMA}.pair",
    f"create type {SCHEMA}.span as range (subtype = float8)",
)
COLLATION = "create collation if not exists public.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
"""Where the server knows ICU: text whose equality is not that of its bytes."""
EXTENSIONS = ("citext", "hstore", "ltree", "vector")


@dataclass(frozen=True)
class Kind:
    """A type. ``sample``: one of its values, always the same. ``leaf``: it has no parts, so that a column can be added with a default.

    ``needs``: what the server must have, beside being ``since`` or newer: an extension, ``xml`` or ``icu``.
    """

    sql: str
    values: st.SearchStrategy[str]
    sample: str
    beyond: tuple[str, ...] = ()
    key: bool = False
    leaf: bool = True
    since: int = 14
    needs: str = ""

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(self.sql)


def literal(text: str, sql: str) -> str:
    return "'" + text.replace("'", "''") + f"'::{sql}"


def kind(
    sql: str,
    edges: Sequence[str],
    more: st.SearchStrategy[str] | None = None,
    *,
    beyond: Sequence[str] = (),
    key: bool = True,
    since: int = 14,
    needs: str = "",
) -> Kind:
    """A type without parts: its values by their texts."""
    texts = st.sampled_from(list(edges)) if more is None else st.one_of(st.sampled_from(list(edges)), more)
    return Kind(
        sql,
        texts.map(lambda text: literal(text, sql)),
        literal(edges[0], sql),
        tuple(literal(text, sql) for text in beyond),
        key,
        since=since,
        needs=needs,
    )


def integers(bits: int) -> st.SearchStrategy[str]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).map(str)


def scaled(digits: int, scale: int) -> st.SearchStrategy[str]:
    return st.integers(1 - 10**digits, 10**digits - 1).map(lambda number: f"{number}e{-scale}")


MOMENTS = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999).map(
    lambda micros: (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=micros)).isoformat(" ")
)
DATES = st.integers(-719_162, 2_932_896).map(lambda days: (dt.date(1970, 1, 1) + dt.timedelta(days)).isoformat())
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
TEXTS = (
    "",
    "a",
    " ",
    "NULL",
    "null",
    "\\N",
    "\\.",
    "\t\n\r\x01",
    "'",
    '"',
    "a,b",
    "{}",
    "(,)",
    "ünï",
    "🦆" * 9,
    "A",
    "e" * 17,
    "\ufeff",
    "\x7f",
)
TEXT = st.one_of(st.sampled_from(TEXTS), st.text(CHARACTERS, max_size=5))
TIMES = ["00:00", "23:59:59.999999", "12:00:00.5", "00:00:00.000001"]
MOMENT_EDGES = [
    "1970-01-01",
    "2024-02-29 12:00:00.123456",
    "1969-12-31 23:59:59.999999",
    "4714-11-24 00:00:00 BC",
    "0001-01-01 00:00:00",
    "10000-01-01 00:00:00.000001",
    "294247-01-10 04:00:54.775806",
    "0044-03-15 23:59:59.5 BC",
]
FOREVER = ["infinity", "-infinity", "294248-01-01"]
FLOATS = ["0", "-0", "1.5", "NaN", "Infinity", "-Infinity", "1e-20"]
JSON = ['{"a":  1}', '{"a": 1, "a": 2}', "null", '"x"', "[1.0, 1.00]", '"\\u00e9"', '{"ü": [{}, [], ""]}']

LEAVES: tuple[Kind, ...] = (
    kind("bool", ["t", "f"]),
    kind("int2", ["0", "-32768", "32767"], integers(16)),
    kind("int4", ["0", "-2147483648", "2147483647"], integers(32)),
    kind("int8", ["0", "-9223372036854775808", "9223372036854775807"], integers(64)),
    kind("oid", ["0", "4294967295"]),
    kind("float4", [*FLOATS, "1e-45", "3.4028235e38", "16777217"], st.floats(width=32).map(repr)),
    kind("float8", [*FLOATS, "5e-324", "1.7976931348623157e308", "0.1"], st.floats().map(repr)),
    kind("numeric", ["0", "1.0", "1.00", "NaN", "Infinity", "-Infinity", "1e-20", "9" * 60 + ".5", "-0.000"], scaled(20, 7)),
    kind("numeric(9,2)", ["0", "-9999999.99", "9999999.99", "-0.01"], scaled(9, 2), beyond=["NaN"]),
    kind("numeric(38,10)", ["0", "1e-10", "9" * 28 + "." + "9" * 10], scaled(38, 10), beyond=["NaN"]),
    kind("numeric(3,3)", ["0.5", "-0.125", "0"], scaled(3, 3), beyond=["NaN"]),
    kind("numeric(38,0)", ["0", "9" * 38, "-" + "9" * 38], beyond=["NaN"]),
    kind("numeric(40,2)", ["0", "9" * 38 + ".99", "NaN"]),
    kind("numeric(5,-2)", ["0", "1200", "-9999900", "NaN"], since=15),
    kind("numeric(2,5)", ["0", "0.00099", "-0.00001", "NaN"], since=15),
    kind("money", ["0", "-92233720368547758.08", "92233720368547758.07", "1.5"]),
    kind("text", TEXTS, TEXT),
    kind('text collate "C"', TEXTS, TEXT),
    kind("varchar(9)", TEXTS, TEXT),
    kind("char(4)", ["", "a", "a b", "ünï", "\x01"], TEXT.map(lambda text: text[:4])),
    kind('"char"', ["", "a", "\\200", "'"]),
    kind("name", ["", "pg", "Ü"], TEXT),
    kind("bytea", ["\\x", "\\x00", "\\xff", "\\x5c4e", "\\x" + "ff" * 40], st.binary(max_size=9).map(lambda data: f"\\x{data.hex()}")),
    kind(
        "date",
        ["1970-01-01", "2024-02-29", "4714-11-24 BC", "5874897-12-31", "1969-12-31", "10000-01-01", "0001-12-31 BC"],
        DATES,
        beyond=["infinity", "-infinity"],
    ),
    kind("time", TIMES, beyond=["24:00"]),
    kind("time(3)", ["00:00", "23:59:59.999"], beyond=["24:00"]),
    kind("timetz", ["00:00+00", "23:59:59.999999-15:59", "24:00+05:30"]),
    kind("timestamp", MOMENT_EDGES, MOMENTS, beyond=FOREVER),
    kind("timestamp(0)", MOMENT_EDGES[:1], MOMENTS, beyond=FOREVER),
    kind("timestamptz", [f"{moment.removesuffix(' BC')}+00{' BC' * moment.endswith(' BC')}" for moment in MOMENT_EDGES], beyond=FOREVER),
    kind("uuid", ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"], st.uuids().map(str)),
    kind("json", JSON, key=False),
    kind("jsonb", JSON),
    kind("xml", ["<a>ü</a>", "", "<a x='1'/>&lt;"], key=False, needs="xml"),
    kind("inet", ["10.0.0.1", "10.0.0.1/8", "::1"]),
    kind("cidr", ["10.0.0.0/8", "::/0"]),
    kind("macaddr", ["08:00:2b:01:02:03"]),
    kind("macaddr8", ["08:00:2b:01:02:03:04:05"]),
    kind("bit(3)", ["101", "000"]),
    kind("bit varying", ["", "1", "01" * 9]),
    kind("pg_lsn", ["0/0", "FFFFFFFF/FFFFFFFF"]),
    kind("xid8", ["0", "18446744073709551615"]),
    kind("tsvector", ["", "'a':1A,2 'b c'", "''''"]),
    kind("tsquery", ["", "a & !b", "a <-> b"]),
    kind("int2vector", ["", "1 2 3"], key=False),
    kind("oidvector", ["", "1 2 3"]),
    kind("point", ["(0,-0)", "(1e-300,NaN)"], key=False),
    kind("box", ["(1,1),(0,0)", "(2,1),(-0,0)"], key=False),
    kind("jsonpath", ["$.a[*]", '$."ü"'], key=False),
    kind("pg_snapshot", ["10:20:10,14"], key=False),
    kind(f"{SCHEMA}.mood", ["ok", "so so", "NULL", 'q"', "{,}", "ünï"]),
    kind(f"{SCHEMA}.amount", ["0", "-1.5", "9999999.99"], beyond=["NaN"]),
    kind(f"{SCHEMA}.code", ["", "a", "abc"]),
    kind("public.citext", ["a", "A", "", "ß"], TEXT, needs="citext"),
    kind("public.ltree", ["top.science", "a", ""], needs="ltree"),
    kind("text collate public.nocase", ["a", "A", "", "b"], needs="icu"),
)
BY_NAME: Mapping[str, Kind] = {one.sql: one for one in LEAVES}


def array(of: Kind) -> Kind:
    element = st.one_of(of.values, st.just("NULL"))
    sql = f"{of.sql.split(' collate ')[0]}[]"
    fits = st.lists(element, max_size=3).map(lambda values: f"ARRAY[{', '.join(values)}]::{sql}")
    beyond = [f"ARRAY[[{of.sample}], [NULL]]::{sql}", f"array_fill({of.sample}, ARRAY[2], ARRAY[0])::{sql}"]
    beyond += [f"ARRAY[{of.sample}, {one}]::{sql}" for one in of.beyond[:2]]
    return Kind(sql, fits, f"ARRAY[{of.sample}, NULL]::{sql}", tuple(beyond), leaf=False, since=of.since, needs=of.needs)


def composite(name: str, parts: Sequence[Kind]) -> Kind:
    sql = f"{SCHEMA}.{name}"
    fits = st.tuples(*(st.one_of(part.values, st.just("NULL")) for part in parts)).map(lambda values: f"ROW({', '.join(values)})::{sql}")
    samples = [part.sample for part in parts]
    beyond = [
        f"ROW({', '.join([*samples[:at], one, *samples[at + 1 :]])})::{sql}" for at, part in enumerate(parts) for one in part.beyond[:2]
    ]
    return Kind(sql, fits, f"ROW({', '.join(samples)})::{sql}", tuple(beyond), leaf=False)


def parted(sql: str, texts: Sequence[str], *, beyond: Sequence[str] = (), needs: str = "") -> Kind:
    """A type with parts, by the texts of its values."""
    return replace(kind(sql, texts, beyond=beyond, key=False, needs=needs), leaf=False)


PAIR = composite(
    "pair",
    [
        BY_NAME["int4"],
        BY_NAME["text"],
        replace(BY_NAME["numeric(9,2)"], sql="numeric(6,2)", values=st.just("1.25"), sample="1.25", beyond=("'NaN'",)),
        BY_NAME["timestamp"],
        array(BY_NAME["text"]),
    ],
)
INTERVAL = parted(
    "interval",
    ["0", "1 year 2 mons -3 days 04:05:06.789", "-178956970 years -8 mons", "2147483647 days", "-9223372036854775807 us", "1 day -1 us"],
)
FOREVER_INTERVAL = replace(INTERVAL, since=17, beyond=("'infinity'::interval", "'-infinity'::interval"))
INT_RANGE = parted("int4range", ["[1,5)", "empty", "(,)", "[-2147483648,2147483646]", "(,7]", "[3,]"])
NEST = composite("nest", [PAIR, array(PAIR), BY_NAME[f"{SCHEMA}.mood"], INT_RANGE, INTERVAL])

PARTED: tuple[Kind, ...] = (
    INTERVAL,
    FOREVER_INTERVAL,
    PAIR,
    NEST,
    array(PAIR),
    array(NEST),
    replace(PAIR, sql=f"{SCHEMA}.twin"),
    INT_RANGE,
    parted("int8range", ["[1,5)", "empty", "(,-9223372036854775808)"]),
    parted("numrange", ["[1.0,1.00]", "empty", "(-1e-20,Infinity)", "[NaN,NaN]", "(1,)"]),
    parted("tsrange", ["[2024-01-01,2024-02-29 12:00:00.000001)", "empty", "(,)"], beyond=["[2024-01-01,infinity]", "(-infinity,)"]),
    parted("tstzrange", ["[1960-01-01 00:00+00,)", "empty"], beyond=["(-infinity,infinity)"]),
    parted("daterange", ["[2024-01-01,2024-02-29]", "(,1969-12-31)", "empty"], beyond=["[2024-01-01,infinity)"]),
    parted(f"{SCHEMA}.span", ["[-0,0]", "(1.5,Infinity]", "empty", "[NaN,NaN]"]),
    parted("int4multirange", ["{}", "{[1,3),[5,)}", "{(,)}"]),
    parted("datemultirange", ["{}", "{[2024-01-01,2024-02-01),[2025-01-01,)}"], beyond=["{[2024-01-01,infinity)}"]),
    parted("nummultirange", ["{}", "{[1.0,2),[3,Infinity)}"]),
    array(INT_RANGE),
    array(INTERVAL),
    replace(array(BY_NAME["text"]), sql=f"{SCHEMA}.words"),
    parted("public.hstore", ['"a"=>"1","b"=>NULL', "", '""=>"", "z"=>"ü,\\""'], needs="hstore"),
    parted("public.vector(3)", ["[1,2.5,-3e-07]", "[0,-0,1]"], needs="vector"),
    parted("public.halfvec", ["[1,2.5]", "[-0]"], needs="vector"),
    *(array(BY_NAME[name]) for name in ("bool", "int8", "float4", "float8", "numeric", "numeric(9,2)", "text", "char(4)", "bytea", "date")),
    *(
        array(BY_NAME[name])
        for name in ("time", "timestamp", "timestamptz", "uuid", "jsonb", "inet", "box", f"{SCHEMA}.mood", f"{SCHEMA}.amount")
    ),
)
KINDS: tuple[Kind, ...] = (*LEAVES, *PARTED)

BIG: Mapping[str, Callable[[int], str]] = {
    "text": lambda n: f"repeat('big {n} ', 2000)",
    "varchar": lambda n: f"(select string_agg(md5((g * {n})::text), '') from generate_series(1, 120) g)",
    "bytea": lambda n: f"decode((select string_agg(md5((g * {n})::text), '') from generate_series(1, 120) g), 'hex')",
    "jsonb": lambda n: f"jsonb_build_object('big', (select string_agg(md5((g * {n})::text), ',') from generate_series(1, 120) g))",
    "numeric": lambda n: f"('1.' || repeat('{n % 10}7', 5000))::numeric",
    "text[]": lambda n: f"array_fill(repeat('x{n}', 50), ARRAY[90])",
}
"""Types of columns that may hold values PostgreSQL moves out of the row, with such values."""


def offered(version: int, has: frozenset[str], *, key: bool = False) -> list[Kind]:
    """What a server of that version has."""
    return [one for one in KINDS if one.since <= version and (not one.needs or one.needs in has) and (one.key or not key)]
