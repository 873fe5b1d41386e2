"""Canonical text: what has a form, and how keys are shown."""

import psycopg
import pytest

from icelake.model.types import Primitive, parse
from icelake.stack.postgres import Postgres
from icelake.verify.canonical import as_it_is, form
from icelake.verify.pgtype import PgType


@pytest.mark.parametrize(
    ("name", "text", "iceberg"),
    [
        ("int8", "bigint", "int8"),
        ("int8", "bigint", "double"),
        ("int4", "integer", "decimal(9,0)"),
        ("money", "money", "decimal(18,2)"),
        ("float8", "double precision", "float"),
        ("timestamp", "timestamp without time zone", "timestamptz"),
        ("timetz", "time with time zone", "time"),
        ("", "mood", "int"),
        ("int4", "integer", "struct"),
        ("int4", "integer", "timestamp_ns"),
    ],
)
def test_a_pair_of_types_outside_the_contract_has_no_form(name: str, text: str, iceberg: str) -> None:
    assert form(PgType(name, text), Primitive(iceberg)) is None


LAKE = {kind: kind for kind in ("date", "time", "timestamp", "timestamptz")} | {
    "float4": "float",
    "float8": "double",
    "money": "decimal(19,2)",
}

INT = PgType("int4", "integer")


@pytest.mark.parametrize(
    ("source", "iceberg"),
    [
        (INT, "list<int>"),
        (INT, "struct<a: int>"),
        (INT, "map<string, string>"),
        (PgType("_int4", "integer[]", "array", (("", INT),)), "list<string>"),
        (PgType("_int4", "integer[]", "array", (("", INT),)), "list<double>"),
        (PgType("_int4", "integer[]", "array", (("", INT),)), "int"),
        (PgType("", "pair", "composite", (("a", INT), ("b", INT))), "struct<a: int>"),
        (PgType("", "pair", "composite", (("a", INT), ("b", INT))), "struct<b: int, a: int>"),
        (PgType("", "pair", "composite", (("a", INT), ("b", INT))), "struct<a: int, b: double>"),
        (PgType("int4range", "int4range", "range", (("", INT),)), "struct<lower: int, upper: int>"),
        (PgType("int4range", "int4range", "range", (("", INT),)), "struct<lower: int, upper: int, bounds: int>"),
        (PgType("interval", "interval"), "struct<months: int, days: int, micros: int>"),
        (PgType("hstore.hstore", "hstore"), "map<string, int>"),
        (PgType("", "hstore"), "map<string, string>"),
        (PgType("vector.vector", "vector(3)"), "list<double>"),
        (PgType("", "vector(3)"), "list<float>"),
    ],
)
def test_parts_outside_the_contract_have_no_form(source: PgType, iceberg: str) -> None:
    found = form(source, parse(iceberg))
    # A list of strings may hold the texts of anything.
    assert (found is None) == (iceberg != "list<string>")


def test_a_string_holds_the_text_of_any_type() -> None:
    for name in ("text", "bpchar", "jsonb", "timetz", "numeric", "interval", ""):
        plain = form(PgType(name, name), Primitive("string"))
        assert plain is not None
        assert (plain.source, plain.lake) == (as_it_is, as_it_is)


def test_keys_are_shown_as_postgresql_prints_them(server: Postgres) -> None:
    literals = {
        "date": ["1970-01-01", "2024-02-29", "0001-01-01", "0001-12-31 BC", "4713-01-01 BC", "9999-12-31", "10000-01-01", "5874897-12-31"],
        "time": ["00:00:00", "23:59:59.999999", "12:30:00.5"],
        "timestamp": ["1970-01-01 00:00:00", "1969-12-31 23:59:59.999999", "0044-03-15 01:02:03.04 BC", "294246-12-31 23:59:59.999999"],
        "timestamptz": ["2024-01-02 03:04:05+00", "0001-01-01 00:00:00.1+00 BC", "12024-01-02 03:04:05.123456+00"],
        "float4": ["0", "-0", "0.1", "1.5", "NaN", "Infinity", "-Infinity"],
        "float8": ["0", "-0", "0.1", "12345.678", "NaN", "Infinity", "-Infinity"],
        "money": ["12.30", "-0.05", "1234567.00"],
    }
    with psycopg.connect(server.dsn, autocommit=True, options="-c TimeZone=UTC -c DateStyle=ISO") as connection:
        for kind, values in literals.items():
            how = form(PgType(kind, kind), Primitive(LAKE[kind]))
            assert how is not None
            for value in values:
                source = how.source(f"'{value}'::{kind}")
                row = connection.execute(f"SELECT {source}::text, '{value}'::{kind}::text").fetchone()
                assert row is not None
                assert how.show(row[0]) == row[1]
