"""Canonical text: what has a form, and how keys are shown."""

import duckdb
import psycopg
import pytest

from icelake.stack.postgres import Postgres
from icelake.verify.canonical import form


@pytest.mark.parametrize(
    ("name", "text", "iceberg"),
    [
        ("int8", "bigint", "int8"),
        ("int8", "bigint", "double"),
        ("numeric", "numeric", "decimal(38, 2)"),
        ("numeric", "numeric(12,2)", "decimal(12, 3)"),
        ("numeric", "numeric(12,2)", "decimal(13, 2)"),
        ("int4", "integer", "decimal(9, 0)"),
        ("float8", "double precision", "float"),
        ("timestamp", "timestamp without time zone", "timestamptz"),
        ("timetz", "time with time zone", "time"),
        ("", "mood", "int"),
        ("int4", "integer", "struct"),
    ],
)
def test_a_pair_of_types_outside_the_contract_has_no_form(name: str, text: str, iceberg: str) -> None:
    assert form(name, text, iceberg) is None


def test_a_string_holds_the_text_of_any_type() -> None:
    for name in ("text", "bpchar", "jsonb", "timetz", "numeric", "interval", ""):
        plain = form(name, name, "string")
        assert plain is not None
        assert (plain.source, plain.text, plain.lake) == ("{0}", "{0}", "{0}")


def test_keys_are_shown_as_postgresql_prints_them(server: Postgres) -> None:
    literals = {
        "date": ["1970-01-01", "2024-02-29", "0001-01-01", "0001-12-31 BC", "4713-01-01 BC", "9999-12-31", "10000-01-01", "5874897-12-31"],
        "time": ["00:00:00", "23:59:59.999999", "12:30:00.5", "24:00:00"],
        "timestamp": ["1970-01-01 00:00:00", "1969-12-31 23:59:59.999999", "0044-03-15 01:02:03.04 BC", "294246-12-31 23:59:59.999999"],
        "timestamptz": ["2024-01-02 03:04:05+00", "0001-01-01 00:00:00.1+00 BC", "12024-01-02 03:04:05.123456+00"],
    }
    with psycopg.connect(server.dsn, autocommit=True, options="-c TimeZone=UTC -c DateStyle=ISO") as connection:
        for kind, values in literals.items():
            how = form(kind, kind, kind)
            assert how is not None
            for value in [*values, *(["infinity", "-infinity"] if kind != "time" else [])]:
                source = how.source.format(f"'{value}'::{kind}")
                row = connection.execute(f"SELECT {source}::text, '{value}'::{kind}::text").fetchone()
                assert row is not None
                text = duckdb.execute(f"SELECT {how.text.format('$1')}", [row[0]]).fetchone()
                assert text is not None
                assert how.show(text[0]) == row[1]
