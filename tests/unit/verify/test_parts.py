"""Values with parts: the same value has the same text on both sides, and every neighbour of it another.

PostgreSQL makes the source's values from SQL literals, Arrow the lake's from Python values: neither side is made from the other.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice
from typing import Any

import duckdb
import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icelake.model.types import IcebergType, ListType, MapType, StructType, parse
from icelake.stack.postgres import Postgres
from icelake.verify.canonical import Form, form
from icelake.verify.pgtype import PgType, PgTypes

EPOCH = dt.date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class Shape:
    """A type on both sides. A value is what Arrow takes; ``near`` gives values that differ from it in as little as may be."""

    sql: str
    lake: str
    values: st.SearchStrategy[Any]
    literal: Callable[[Any], str]
    near: Callable[[Any], Iterator[Any]]


def written(value: str, kind: str) -> str:
    return "'" + value.replace("'", "''") + f"'::{kind}"


def leaf(sql: str, lake: str, values: st.SearchStrategy[Any], text: Callable[[Any], str], near: Callable[[Any], Iterator[Any]]) -> Shape:
    return Shape(sql, lake, values, lambda value: f"NULL::{sql}" if value is None else written(text(value), sql), near)


def near_text(value: str) -> Iterator[str]:
    yield from (value + " ", value[:-1], value.swapcase(), value + "\\", '"' + value + '"', "{" + value + "}", value + ",")


def near_float(bits: int) -> Callable[[float], Iterator[float]]:
    kind = np.float32 if bits == 32 else np.float64

    def near(value: float) -> Iterator[float]:
        yield -value
        yield float(np.nextafter(kind(value), kind(0)))

    return near


def date_text(days: int) -> str:
    return (dt.date.min + dt.timedelta(days + EPOCH - 1)).isoformat()


def moment_text(micros: int) -> str:
    return (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=micros)).isoformat(" ")


NASTY = st.sampled_from(
    ["", "null", "NULL", "nULL", "NULLs", " ", "\t", "\n", "\x0b", "\x85", "\u00a0", "a,b", "{}", "{", '"', '\\"', "\\", "''"]
)
TEXT = leaf(
    "text",
    "string",
    st.one_of(NASTY, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)),
    str,
    near_text,
)
INT = leaf("int4", "int", st.integers(-(2**31), 2**31 - 1), str, lambda value: iter([value ^ 1]))
LONG = leaf("int8", "long", st.integers(-(2**63), 2**63 - 1), str, lambda value: iter([value ^ 1]))
BOOL = leaf("bool", "boolean", st.booleans(), str, lambda value: iter([not value]))
FLOAT = leaf("float4", "float", st.floats(width=32), repr, near_float(32))
DOUBLE = leaf("float8", "double", st.floats(), repr, near_float(64))
BYTES = leaf("bytea", "binary", st.binary(max_size=4), lambda value: "\\x" + value.hex(), lambda value: iter([value + b"\0", value[:-1]]))
MONEY_LIKE = st.integers(-(10**9) + 1, 10**9 - 2).map(lambda value: Decimal(value).scaleb(-2))
DECIMAL = leaf("numeric(9,2)", "decimal(9,2)", MONEY_LIKE, str, lambda value: iter([value + Decimal("0.01")]))
FRACTION = leaf(
    "numeric(3,3)",
    "decimal(3,3)",
    st.integers(-999, 998).map(lambda value: Decimal(value).scaleb(-3)),
    str,
    lambda value: iter([value + Decimal("0.001")]),
)
NAMED = leaf("numeric", "decimal(9,2)", MONEY_LIKE, lambda value: str(value).rstrip("0"), lambda value: iter([value + Decimal("0.01")]))
MONEY = leaf("money", "decimal(19,2)", MONEY_LIKE, str, lambda value: iter([value + Decimal("0.01")]))
DATE = leaf("date", "date", st.integers(-EPOCH + 1, 2_932_894), date_text, lambda value: iter([value ^ 1]))
TIME = leaf("time", "time", st.integers(0, 86_399_999_999), lambda value: moment_text(value)[11:], lambda value: iter([value ^ 1]))
MOMENT = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
TIMESTAMP = leaf("timestamp", "timestamp", MOMENT, moment_text, lambda value: iter([value ^ 1]))
TIMESTAMPTZ = leaf("timestamptz", "timestamptz", MOMENT, lambda value: moment_text(value) + "+00", lambda value: iter([value ^ 1]))
UUID = leaf("uuid", "uuid", st.uuids().map(str), str, lambda value: iter([value[:-1] + ("1" if value[-1] == "0" else "0")]))
BPCHAR = leaf("char(3)", "string", st.sampled_from(["   ", "a  ", " a ", "ab "]), str, lambda value: iter([]))
INET = leaf("inet", "string", st.sampled_from(["10.0.0.1", "10.0.0.0/8", "::1"]), str, lambda value: iter([]))
BOX = leaf("box", "string", st.sampled_from(["(1,1),(0,0)", "(2,1),(0,0)"]), str, lambda value: iter([]))
JSON = leaf("json", "string", st.sampled_from(["null", '{"a":  1}', '{"a": 1}', '"x"', "[]"]), str, lambda value: iter([]))
MOOD = leaf("public.mood", "string", st.sampled_from(["ok", "so so", "NULL"]), str, lambda value: iter([]))
MANY = leaf("numeric", "string", st.sampled_from(["NaN", "Infinity", "1.0", "1.00", "-1"]), str, lambda value: iter([]))


def near_list(shape: Shape, value: Sequence[Any]) -> Iterator[Any]:
    value = list(value)
    yield [*value, None]
    yield value[:-1]
    yield value[::-1]
    for place, element in enumerate(value):
        yield [*value[:place], None, *value[place + 1 :]]
        if element is not None:
            yield from ([*value[:place], other, *value[place + 1 :]] for other in shape.near(element))


def array(shape: Shape) -> Shape:
    def literal(value: Any) -> str:
        return "NULL" if value is None else f"ARRAY[{', '.join(map(shape.literal, value))}]::{shape.sql}[]"

    return Shape(
        f"{shape.sql}[]",
        f"list<{shape.lake}>",
        st.lists(st.none() | shape.values, max_size=4),
        literal,
        lambda value: near_list(shape, value),
    )


def row(name: str, **fields: Shape) -> Shape:
    def literal(value: Any) -> str:
        if value is None:
            return f"NULL::public.{name}"
        return f"ROW({', '.join(shape.literal(value[field]) for field, shape in fields.items())})::public.{name}"

    def near(value: dict[str, Any]) -> Iterator[Any]:
        yield dict.fromkeys(value)
        for field, shape in fields.items():
            yield {**value, field: None}
            if value[field] is not None:
                yield from ({**value, field: other} for other in shape.near(value[field]))

    return Shape(
        f"public.{name}",
        str(StructType(tuple((field, parse(shape.lake)) for field, shape in fields.items()))),
        st.tuples(*(st.none() | shape.values for shape in fields.values())).map(lambda values: dict(zip(fields, values, strict=True))),
        literal,
        near,
    )


EMPTY = {"lower": None, "upper": None, "bounds": "empty"}


def span(name: str, shape: Shape, bounds: Sequence[str] = ("[)", "(]", "()", "[]")) -> Shape:
    @st.composite
    def values(draw: st.DrawFn) -> Any:
        if draw(st.integers(0, 5)) == 0:
            return EMPTY
        lower, upper = sorted([draw(shape.values), draw(shape.values)])
        shown = list(draw(st.sampled_from(bounds)))
        if lower == upper:
            shown = list("[]") if "[]" in bounds else shown
            lower = None if shown != ["[", "]"] else lower
        if draw(st.integers(0, 3)) == 0:
            upper = None
        return {
            "lower": lower,
            "upper": upper,
            "bounds": ("(" if lower is None else shown[0]) + (")" if upper is None else shown[1]),
        }

    def literal(value: Any) -> str:
        if value is None:
            return f"NULL::{name}"
        if value["bounds"] == "empty":
            return f"'empty'::{name}"
        return f"{name}({shape.literal(value['lower'])}, {shape.literal(value['upper'])}, '{value['bounds']}')"

    def near(value: dict[str, Any]) -> Iterator[Any]:
        yield EMPTY
        yield {"lower": None, "upper": None, "bounds": "()"}
        for side, bound in (("lower", f"({value['bounds'][1:]}"), ("upper", f"{value['bounds'][:1]})")):
            if value[side] is not None:
                yield {**value, side: None, "bounds": bound}
                if "[]" in bounds and value["lower"] != value["upper"]:
                    yield {**value, "bounds": bound}

    return Shape(name, f"struct<lower: {shape.lake}, upper: {shape.lake}, bounds: string>", values(), literal, near)


def near_interval(value: dict[str, int]) -> Iterator[Any]:
    yield from ({**value, part: value[part] ^ 1} for part in value)
    yield {**value, "months": 0, "days": value["months"]}


INTERVAL = Shape(
    "interval",
    "struct<months: int, days: int, micros: long>",
    st.fixed_dictionaries(
        {
            "months": st.integers(-(2**31) + 2, 2**31 - 2),
            "days": st.integers(-(2**31) + 2, 2**31 - 2),
            "micros": st.integers(-(2**63) + 2, 2**63 - 2),
        }
    ),
    lambda value: (
        "NULL::interval" if value is None else f"'{value['months']} mons {value['days']} days {value['micros']} microseconds'::interval"
    ),
    near_interval,
)
HSTORE = Shape(
    "public.hstore",
    "map<string, string>",
    st.dictionaries(TEXT.values, st.none() | TEXT.values, max_size=4).map(lambda value: sorted(value.items())),
    lambda value: (
        "NULL"
        if value is None
        else f"public.pairs(ARRAY[{', '.join(TEXT.literal(key) for key, _ in value)}]::text[], "
        f"ARRAY[{', '.join(TEXT.literal(one) for _, one in value)}]::text[])"
    ),
    lambda value: iter([sorted({**dict(value), "a key": None}.items()), value[1:], [(key, (one or "") + "x") for key, one in value]]),
)
FINITE = st.floats(width=16, allow_nan=False, allow_infinity=False)


def vector(kind: str) -> Shape:
    return Shape(
        f"public.{kind}",
        "list<float>",
        st.lists(FINITE, min_size=1, max_size=4),
        lambda value: f"NULL::public.{kind}" if value is None else f"'{value!r}'::public.{kind}",
        lambda value: iter([value[::-1], [*value, 0.0], [-value[0], *value[1:]]]),
    )


ITEM = row("item", **{"a": INT, "B b": TEXT, "price": DECIMAL, "at": TIMESTAMP, "tags": array(TEXT), "é{0}": DOUBLE})
ONE = row("one", a=INT)
ORDER = row("order", items=array(ITEM), one=ONE, during=span("pg_catalog.tstzrange", TIMESTAMPTZ), every=INTERVAL, attributes=HSTORE)
SHAPES = {
    **{f"{one.sql} as {one.lake}": one for one in (BOOL, FLOAT, DOUBLE, BYTES, NAMED, FRACTION, MONEY, UUID, TIMESTAMPTZ, BPCHAR, INET)},
    **{
        f"{one.sql}[] of {one.lake}": array(one)
        for one in (
            *(TEXT, INT, LONG, BOOL, FLOAT, DOUBLE, BYTES, DECIMAL, FRACTION, NAMED, MONEY, DATE, TIME, TIMESTAMP, TIMESTAMPTZ, UUID),
            *(BPCHAR, INET, BOX, JSON, MOOD, MANY, INTERVAL, HSTORE, ITEM, ONE),
        )
    },
    "one": ONE,
    "item": ITEM,
    "order": ORDER,
    "order[]": array(ORDER),
    "int4range": span("pg_catalog.int4range", INT, ["[)"]),
    "daterange": span("pg_catalog.daterange", DATE, ["[)"]),
    "tsrange": span("pg_catalog.tsrange", TIMESTAMP),
    "floatrange": span("public.floatrange", leaf("float8", "double", st.floats(allow_nan=False), repr, near_float(64))),
    "textrange[]": array(span("public.textrange", TEXT)),
    "interval": INTERVAL,
    "hstore": HSTORE,
    "vector": vector("vector"),
    "halfvec": vector("halfvec"),
    "vector[]": array(vector("vector")),
}


def arrow(kind: IcebergType) -> Any:
    match kind:
        case ListType(element):
            return pa.list_(pa.field("element", arrow(element)))
        case MapType(key, value):
            return pa.map_(arrow(key), arrow(value))
        case StructType(fields):
            return pa.struct([(name, arrow(of)) for name, of in fields])
    if kind.decimal:
        return pa.decimal128(*kind.decimal)
    return {
        "boolean": pa.bool_(),
        "int": pa.int32(),
        "long": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "string": pa.string(),
        "binary": pa.binary(),
        "date": pa.date32(),
        "time": pa.time64("us"),
        "timestamp": pa.timestamp("us"),
        "timestamptz": pa.timestamp("us", "UTC"),
        "uuid": pa.string(),  # Arrow has no lists of its extension type
    }[kind.name]


class Bench:
    """PostgreSQL and DuckDB, each with values of its own making."""

    def __init__(self, dsn: str) -> None:
        self.postgres = psycopg.connect(dsn, autocommit=True)
        self.duckdb = duckdb.connect()
        run = self.postgres.execute
        run("SET TimeZone = 'UTC'; SET lc_monetary = 'C'; SET extra_float_digits = 3; SET DateStyle = 'ISO, YMD'")
        run("CREATE EXTENSION vector; CREATE TYPE mood AS ENUM ('ok', 'so so', 'NULL')")
        run('CREATE TYPE item AS (a int, gone text, "B b" text, price numeric(9,2), at timestamp, tags text[], "é{0}" float8)')
        run("ALTER TYPE item DROP ATTRIBUTE gone")
        run("CREATE TYPE one AS (a int); CREATE TYPE floatrange AS RANGE (subtype = float8)")
        run('CREATE TYPE textrange AS RANGE (subtype = text, collation = "C")')
        self.hstore = run("SELECT 1 FROM pg_available_extensions WHERE name = 'hstore'").fetchone() is not None
        if self.hstore:
            run("CREATE EXTENSION hstore")
            run("CREATE FUNCTION pairs(text[], text[]) RETURNS hstore LANGUAGE sql AS 'SELECT public.hstore($1, $2)'")
        else:
            # The wheel has none: a type that is read in the same way stands in for it.
            run("CREATE DOMAIN hstore AS jsonb")
            run("CREATE FUNCTION pairs(text[], text[]) RETURNS hstore LANGUAGE sql AS 'SELECT jsonb_object($1, $2)::public.hstore'")
            run(
                "CREATE FUNCTION each(hstore, OUT key text, OUT value text) RETURNS SETOF record LANGUAGE sql "
                "AS 'SELECT key, value FROM jsonb_each_text($1)'"
            )
        run('CREATE TYPE "order" AS (items item[], one one, during tstzrange, every interval, attributes hstore)')
        run("CREATE DOMAIN d_money AS numeric(5,2); CREATE DOMAIN d_list AS int[]")
        run("CREATE DOMAIN d_inner AS item; CREATE DOMAIN d_item AS d_inner")
        run("CREATE DOMAIN d_range AS int4range; CREATE DOMAIN d_text AS text; CREATE DOMAIN d_float AS float8")
        run("SET search_path = pg_catalog")
        self.types = PgTypes(self.postgres)

    def type(self, sql: str) -> PgType:
        self.postgres.execute(f"CREATE TABLE public.typed (v {sql})")
        try:
            found = self.postgres.execute(
                "SELECT atttypid, atttypmod FROM pg_attribute WHERE attrelid = 'public.typed'::regclass AND attname = 'v'"
            ).fetchone()
            assert found is not None
            return self.types.read(*found) if self.hstore else standing_in(self.types.read(*found))
        finally:
            self.postgres.execute("DROP TABLE public.typed")

    def form(self, sql: str, lake: str, null: bool = False) -> Form:
        found = form(self.type(sql), parse(lake), null)
        assert found is not None
        return found

    def source(self, how: Form, literals: Sequence[str], sql: str) -> list[str | None]:
        """As COPY prints it."""
        rows = ", ".join(f"({number}, {literal}::{sql})" for number, literal in enumerate(literals))
        sent = f"SELECT n, {how.source('v')} AS sent FROM (VALUES {rows}) AS x (n, v)"
        found = self.postgres.execute(f"SELECT CASE WHEN sent IS DISTINCT FROM NULL THEN concat(sent) END FROM ({sent}) AS y ORDER BY n")
        return [row[0] for row in found]

    def lake(self, how: Form, values: Sequence[Any], lake: str) -> list[str | None]:
        self.duckdb.register("x", pa.table({"n": range(len(values)), "v": pa.array(values, arrow(parse(lake)))}))
        value = {"uuid": "CAST(v AS UUID)", "list<uuid>": "CAST(v AS UUID[])"}.get(lake, "v")
        query = f"SELECT {how.lake('v')} FROM (SELECT n, {value} AS v FROM x) ORDER BY n"
        return [row[0] for row in self.duckdb.execute(query).fetchall()]


def standing_in(kind: PgType) -> PgType:
    if kind.name == "jsonb":
        return PgType("hstore.hstore", "public.hstore", schema="public")
    return replace(kind, parts=tuple((name, standing_in(part)) for name, part in kind.parts))


@pytest.fixture(scope="module")
def bench(server: Postgres) -> Iterator[Bench]:
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE parts TEMPLATE template0")
        made = Bench(server.dsn_of("parts"))
        try:
            yield made
        finally:
            made.postgres.close()
            made.duckdb.close()
            admin.execute("DROP DATABASE parts WITH (FORCE)")


@pytest.mark.parametrize("name", SHAPES)
def test_equal_values_have_equal_texts_and_every_neighbour_another(bench: Bench, name: str) -> None:
    shape = SHAPES[name]
    how = bench.form(shape.sql, shape.lake)
    deep = name.startswith("order")

    @settings(max_examples=5 if deep else 12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(st.lists(shape.values, min_size=1, max_size=2))
    def check(drawn: list[Any]) -> None:
        values = [None, *drawn, *(other for value in drawn for other in islice(shape.near(value), 40))]
        source = bench.source(how, [shape.literal(value) for value in values], shape.sql)
        assert source == bench.lake(how, values, shape.lake)
        assert source[0] is None
        texts: dict[str, str | None] = {}
        for value, text in zip(values, source, strict=True):
            assert texts.setdefault(repr(value), text) == text
        assert len(set(texts.values())) == len(texts)

    check()


def test_a_map_has_no_order_but_each_key_counts(bench: Bench) -> None:
    how = bench.form(HSTORE.sql, HSTORE.lake)
    literal = HSTORE.literal([("b", "1"), ("aa", None), ("é", "NULL"), ("", "")])
    orders = [[("é", "NULL"), ("", ""), ("aa", None), ("b", "1")], [("b", "1"), ("é", "NULL"), ("aa", None), ("", "")]]
    wrong = [[*orders[0], ("bb", "1")], [("é", None), *orders[0][1:]], orders[0][1:]]
    (text,) = bench.source(how, [literal], HSTORE.sql)
    assert [text == other for other in bench.lake(how, [*orders, *wrong], HSTORE.lake)] == [True, True, False, False, False]


UNFIT: list[tuple[str, str, str, Any]] = [
    ("numeric(9,2)", "decimal(9,2)", "'NaN'", None),
    ("numeric", "decimal(4,2)", "'NaN'", None),
    ("numeric", "decimal(4,2)", "'-Infinity'", None),
    ("numeric", "decimal(4,2)", "100", None),
    ("numeric", "decimal(4,2)", "-99.995", None),
    ("numeric", "decimal(4,2)", "1.001", None),
    ("numeric(20,5)", "decimal(2,2)", "1", None),
    ("numeric", "decimal(4,2)", "-99.990000", Decimal("-99.99")),
    ("numeric(4,-2)", "decimal(6,0)", "123456", Decimal(123500)),
    ("date", "date", "'infinity'", None),
    ("time", "time", "'24:00'", None),
    ("timestamp", "timestamp", "'-infinity'", None),
    ("timestamp", "timestamp", "'294247-01-10 04:00:54.775808'", None),
    ("timestamptz", "timestamptz", "'294276-12-31 23:59:59+00'", None),
    ("timestamptz", "timestamptz", "'294247-01-10 04:00:54.775807+00'", 2**63 - 1),
    ("interval", INTERVAL.lake, "'infinity'", None),
    ("int[]", "list<int>", "ARRAY[[1, 2], [3, 4]]", None),
    ("int[]", "list<int>", "'[0:1]={1,2}'", None),
    ("int[]", "list<int>", "'[1:2]={1,2}'", [1, 2]),
    ("float8[]", "list<double>", "ARRAY[[1], [2]]", None),
    ("date[]", "list<date>", "'{1970-01-02,infinity}'", [1, None]),
    ("numeric(9,2)[]", "list<decimal(9,2)>", "'{1.5,NaN}'", [Decimal("1.50"), None]),
    ("numeric(9,2)[]", "list<decimal(9,2)>", "'[2:3]={1.5,NaN}'", None),
    ("public.item[]", f"list<{ITEM.lake}>", "ARRAY[ROW(1, 'b', 'NaN', 'infinity', '{{a}}', 0.5)::public.item]", "item"),
    ("tstzrange", SHAPES["order"].lake.split("during: ")[1].split(", every")[0], "'[1970-01-01 00:00:00+00,infinity)'", "range"),
    ("public.d_list", "list<int>", "ARRAY[[1], [2]]", None),
    ("public.d_list[]", "list<list<int>>", "ARRAY['{1,2}'::public.d_list, '{{1},{2}}'::public.d_list]", [[1, 2], None]),
]
WHOLE = {
    "item": [{"a": 1, "B b": "b", "price": None, "at": None, "tags": None, "é{0}": 0.5}],
    "range": {"lower": 0, "upper": None, "bounds": "[)"},
}


@pytest.mark.parametrize(("sql", "lake", "literal", "instead"), UNFIT)
def test_a_value_that_does_not_fit_is_null_by_policy_and_else_nothing_the_lake_has(
    bench: Bench, sql: str, lake: str, literal: str, instead: Any
) -> None:
    expected = WHOLE[instead] if isinstance(instead, str) else instead
    null = bench.form(sql, lake, null=True)
    (text,) = bench.source(null, [literal], sql)
    assert [text] == bench.lake(null, [expected], lake)
    error = bench.form(sql, lake)
    (kept,) = bench.source(error, [literal], sql)
    fits = literal in ("-99.990000", "123456", "'[1:2]={1,2}'", "'294247-01-10 04:00:54.775807+00'")
    assert kept is not None
    assert (kept == text) == fits


def test_domains_are_looked_through(bench: Bench) -> None:
    cases: list[tuple[str, str, str, Any]] = [
        ("public.d_money", "decimal(5,2)", "1.5", Decimal("1.50")),
        ("public.d_item", ITEM.lake, "ROW(1, NULL, NULL, NULL, NULL, NULL)::public.item", {"a": 1}),
        ("public.d_list", "list<int>", "ARRAY[1, NULL]", [1, None]),
        ("public.d_range", SHAPES["int4range"].lake, "'[1,5)'", {"lower": 1, "upper": 5, "bounds": "[)"}),
        ("public.d_text[]", "list<string>", "ARRAY['a b']", ["a b"]),
        ("public.d_float[]", "list<double>", "ARRAY[1.5]", [1.5]),
        ("int4multirange", f"list<{SHAPES['int4range'].lake}>", "'{}'", []),
        ("int4multirange", f"list<{SHAPES['int4range'].lake}>", "'{[1,5),[7,)}'", "multirange"),
    ]
    many = [{"lower": 1, "upper": 5, "bounds": "[)"}, {"lower": 7, "upper": None, "bounds": "[)"}]
    for sql, lake, literal, value in cases:
        how = bench.form(sql, lake)
        assert bench.source(how, [literal], sql) == bench.lake(how, [many if value == "multirange" else value], lake), sql


def test_an_extension_s_type_is_known_by_the_extension(bench: Bench) -> None:
    assert bench.type("public.vector(3)").name == "vector.vector"
    assert bench.type("public.halfvec[]").parts[0][1].name == "vector.halfvec"
    assert bench.type("public.mood").name == ""
    bench.postgres.execute("CREATE TYPE public.interval AS ENUM ('long')")
    assert bench.type("public.interval").name == ""
    bench.postgres.execute("DROP TYPE public.interval")
