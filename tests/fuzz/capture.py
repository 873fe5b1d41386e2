"""``python -m tests.fuzz.capture``: has a PostgreSQL write changes of every type, and keeps what it sent as seeds in ``real``."""

from pathlib import Path
from typing import Final

import psycopg

from icelake.model.relation import Column
from icelake.stack.postgres import Postgres
from tests.fuzz.tables import SCALARS
from tests.unit.sources.postgres.wire import frame

REAL: Final = Path(__file__).parent / "real"
_VALUES: Final = {
    "bool": "true",
    "float4": "1e-30",
    "float8": "'-Infinity'",
    "numeric": "-1234567890.12",
    "money": "-1234.50",
    "bytea": r"'\x00ff'",
    "date": "'0044-03-15 BC'",
    "time": "'23:59:59.999999'",
    "timestamp": "'1999-12-31 23:59:59.5'",
    "timestamptz": "'2026-01-01 00:00:00.000001+00'",
    "interval": "'1 year 2 mons -3 days 04:05:06.7'",
    "uuid": "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
}


def _column(column: Column) -> str:
    return f"{column.name} {'numeric(12,2)' if column.pg_type == 'numeric' else column.pg_type}"


_BEYOND: Final = {"date": "infinity", "timestamp": "-infinity", "timestamptz": "infinity", "numeric": "NaN", "time": "24:00"}
_SETUP: Final = """
create extension vector;
create type pair as (a int, b text);
create type nested as (n pair, l date[]);
create type texts as range (subtype = text);
create table parts (id int primary key, p2 int[], p3 text[], p4 pair[], p5 pair, p6 nested, p7 int4range, p8 daterange, p9 int4multirange,
                    p10 texts, p12 vector);
alter table parts replica identity full;
create table appended (id int, c2 text, c3 numeric(12,2));
create table two_keys (id int, c2 text, c3 numeric(12,2), primary key (c2, id));
alter table two_keys alter c2 set storage external;
create table other (a int primary key, b text);
create publication p for all tables;
"""
_CHANGES: Final = {
    "parts": r"""
        insert into parts values (1, '{1,NULL,-3}', '{"a\"b",NULL,"","NULL"}', '{"(1,x)",NULL}', '(1,"q""uo, te")',
                                  '("(2,y)",{2026-01-01})', '[1,5)', 'empty', '{[1,3),[5,9)}', '[a,"b c"]', '[1,2.5,-3]');
        insert into parts values (2);
        update parts set id = 3 where id = 2; delete from parts""",
    "large": "insert into two_keys values (1, repeat('x', 2500), 1); update two_keys set c3 = 2; delete from two_keys",
    "others": "insert into appended values (1, 'ä', 1); insert into other values (1); update other set a = 2; truncate appended, other",
    "schema": "alter table other add column c date default '2026-01-01'; insert into other values (5, 'x'); "
    "select pg_logical_emit_message(true, 'a', 'b')",
}


def main() -> None:
    (REAL / "pgoutput").mkdir(parents=True, exist_ok=True)
    values = ", ".join(_VALUES.get(column.pg_type, "'7'") for column in SCALARS)
    beyond = {column.name: _BEYOND[column.pg_type] for column in SCALARS if column.pg_type in _BEYOND}
    changes = {
        "scalars": f"insert into scalars values (1, {values}); insert into scalars values (2); "
        "update scalars set id = 3 where id = 1; delete from scalars",
        "lenient": f"insert into lenient (id, {', '.join(beyond)}) values {(1, *beyond.values())}; truncate lenient",
        **_CHANGES,
    }
    with Postgres(settings={"fsync": "off"}) as server, psycopg.connect(server.dsn, autocommit=True) as session:
        for name in ("scalars", "lenient"):
            session.execute(f"create table {name} (id int primary key, {', '.join(map(_column, SCALARS))})".encode())
        session.execute(_SETUP)
        session.execute("select pg_create_logical_replication_slot('s', 'pgoutput')")
        for name, statements in changes.items():
            with session.transaction():
                session.execute(statements.encode())
            found = session.execute(
                "select data from pg_logical_slot_get_binary_changes("
                "'s', null, null, 'proto_version', '1', 'publication_names', 'p', 'messages', 'true')"
            ).fetchall()
            (REAL / "pgoutput" / name).write_bytes(frame(*(row[0] for row in found)))


if __name__ == "__main__":
    main()
