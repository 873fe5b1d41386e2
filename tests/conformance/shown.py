"""What engines show of what was mirrored: a column for each type, with the type's edge values, read as a user of the engine would.

``shown.json`` beside this file is what was seen, and docs/reference/types.md is written from it. A test compares (``as_recorded``),
so an engine that changes fails it; with ICELAKE_RECORD set it writes down instead what it sees. Reading with an engine is told apart
from what is stored: that is read from the Parquet files, and ``verify`` holds it against the source.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

from icelake.lakehouse import Lakehouse
from icelake.model.relation import Column
from icelake.stack.postgres import Postgres
from icelake.tables.schema import relation_of
from tests.conformance.test_engines_read import canonical, typed
from tests.unit.verify.test_run import LITERALS

RECORD = Path(__file__).with_suffix(".json")

VALUES: dict[str, list[str]] = {
    **LITERALS,
    "timestamp": [*LITERALS["timestamp"], "294247-01-10 04:00:54.775806", "294247-01-10 04:00:54.775807"],
    "timestamptz": [*LITERALS["timestamptz"], "294247-01-10 04:00:54.775806+00", "294247-01-10 04:00:54.775807+00"],
    "money": ["0", "-0.01", "92233720368547758.07", "-92233720368547758.08"],
    "mood": ["sad", 'q"uo,te', "NULL"],
    "citext": ["Ab", ""],
    "interval": ["0", "-1 mon 40 days", "178000000 years", "2562047788:00:54.775807", "-00:00:00.000001"],
    "xml": [],  # this server is built without libxml and can make no value of it
    "inet": ["10.0.0.1", "10.0.0.1/8", "::1/64"],
    "cidr": ["10.0.0.0/8", "::/0"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "bit(3)": ["101"],
    "varbit": ["", "10"],
    "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF"],
    "xid8": ["0", "18446744073709551615"],
    "tsvector": ["", "'fat':2A 'it''s'"],
    "tsquery": ["", "'fat' & !'rat':*"],
    "int2vector": ["", "1 -2"],
    "oidvector": ["", "1 4294967295"],
    "hstore": ['"a"=>NULL, "b"=>"c \\"d"', ""],
    "ltree": ["top.science", ""],
    "vector": ["[1,2.5,-3e-7]"],
    "halfvec": ["[1,0.1]"],
    "sparsevec": ["{1:1.5,3:2}/5"],
    "geometry": ["0101000000000000000000F03F0000000000000040"],
    "geography": ["0101000020E6100000000000000000F03F0000000000000040"],
    "box": ["(1,1),(0,0)"],
    "jsonpath": ['$."a"[*]'],
    "bool[]": ["{}", "{t,NULL}"],
    "int8[]": ["{}", "{NULL}", "{9223372036854775807,-9223372036854775808,NULL}"],
    "float8[]": ["{NaN,-0,Infinity,NULL}"],
    "numeric(38,10)[]": ["{}", f"{{{'9' * 28}.{'9' * 10},NULL}}"],
    "text[]": ["{}", '{"",NULL,"NULL"," a","{x}"}'],
    "bytea[]": ["{}", r'{"\\x00ff","\\x",NULL}'],
    "date[]": ["{}", '{"4713-11-24 BC",5874897-12-31,NULL}'],
    "time[]": ["{23:59:59.999999,NULL}"],
    "timestamp[]": ["{}", '{"294247-01-10 04:00:54.775807"}', '{"4713-11-24 00:00:00 BC","294247-01-10 04:00:54.775806",NULL}'],
    "timestamptz[]": ["{}", '{"294247-01-10 04:00:54.775807+00"}', '{"4713-11-24 00:00:00+00 BC","294247-01-10 04:00:54.775806+00",NULL}'],
    "uuid[]": ["{}", "{ffffffff-ffff-4fff-bfff-ffffffffffff,NULL}"],
    "interval[]": ["{}", '{"-1 mon 40 days",NULL}'],
    "hstore[]": ["{}", r'{"\"a\"=>NULL",NULL}'],
    "pair": ["(1,)", "(,)", '(-1,"a b")'],
    "pair[]": ["{}", "{NULL}", '{"(1,a)",NULL,"(,)"}'],
    "visit": ["(,)", '("294247-01-10 04:00:54.775807",)', '("294247-01-10 04:00:54.775806","{a,NULL}")', "(,{})"],
    "ident": ["(ffffffff-ffff-4fff-bfff-ffffffffffff)", "()"],
    "trip": ["()", "({})", r'("{NULL,""(1,a)""}")'],
    "int4range": ["empty", "(,)", "[1,5)"],
    "numrange": ["empty", "[1.50,NaN]", "(,Infinity)"],
    "daterange": ["empty", "[4713-11-24 BC,5874897-12-31)", "(,)"],
    "tstzrange": [
        "empty",
        '[,"294247-01-10 04:00:54.775807+00"]',
        '["4713-11-24 00:00:00+00 BC","294247-01-10 04:00:54.775806+00"]',
        "(,)",
    ],
    "int4multirange": ["{}", "{[1,3),(5,)}"],
}
"""PostgreSQL type -> its values; NULLs come besides. They are what the lake can hold: what it cannot is the project's choice."""

TYPES = """
create type mood as enum ('sad', 'q"uo,te', 'NULL');
create type pair as (a integer, b text);
create type visit as (at timestamp, tags text[]);
create type ident as (u uuid);
create type trip as (stops pair[]);
create extension vector;
"""
ABSENT = {"hstore": ["hstore"], "citext": ["citext"], "ltree": ["ltree"], "postgis": ["geometry", "geography"]}
"""Extensions the server lacks: their types are made here by name, with the text that is put in. Only ``verify`` cannot read those."""


def _pretend(session: psycopg.Connection[Any], folder: Path) -> None:
    """Extensions of these names on the server, which have nothing but their types."""
    made = (
        "create type {0}; create function {0}_in(cstring) returns {0} language internal immutable strict as 'textin';"
        " create function {0}_out({0}) returns cstring language internal immutable strict as 'textout';"
        " create type {0} (input = {0}_in, output = {0}_out, like = pg_catalog.text);"
    )
    shared = folder / "extension"
    shared.mkdir(parents=True)
    for extension, types in ABSENT.items():
        (shared / f"{extension}.control").write_text("default_version = '1.0'\n")
        (shared / f"{extension}--1.0.sql").write_text("\n".join(map(made.format, types)))
    (home,) = session.execute("show data_directory").fetchone() or ("",)
    for path in [folder, *folder.rglob("*")]:
        shutil.chown(path, (Path(home) / "base").owner())
    session.execute(f"set extension_control_path = '{folder}:$system'")
    for extension in ABSENT:
        session.execute(f"create extension {extension}")


def _table(kind: str) -> str:
    """An engine that refuses a type may refuse the whole table: Spark does, where a column is a ``time`` or has one inside."""
    if kind in ("time", "time[]"):
        return {"time": "times", "time[]": "lists_of_times"}[kind]
    return "absent" if any(kind.removesuffix("[]") in names for names in ABSENT.values()) else "types"


@dataclass(frozen=True, slots=True)
class Stored:
    """A mirrored column as it is in its table's files; ``id`` is the table's key."""

    location: str
    column: Column
    literals: Sequence[str]
    """By id; later rows have NULL."""
    values: dict[int, Any]
    """By id; in ``canonical`` form."""


@contextmanager
def mirrored(folder: Path) -> Iterator[dict[str, Stored]]:
    """The columns, by PostgreSQL type."""
    (folder / "icelake.toml").write_text('[project]\nname = "shown"\n[sources.main]\ndsn = { file = "dsn" }\ntables = ["public.*"]\n')
    with Postgres(settings={"fsync": "off"}) as server, psycopg.connect(server.dsn, autocommit=True) as session:
        (folder / "dsn").write_text(server.dsn)
        _pretend(session, server.data / "shared")
        session.execute(TYPES)
        tables: dict[str, dict[str, str]] = {}
        for number, kind in enumerate(VALUES):
            tables.setdefault(_table(kind), {})[kind] = f"c{number}"
        for table, columns in tables.items():
            declared = ", ".join(f"{name} {kind}" for kind, name in columns.items())
            session.execute(f"create table {table} (id bigint primary key, {declared})")
            marks = ", ".join(f"%s::text::{kind}" for kind in columns)
            for key in range(1 + max(len(VALUES[kind]) for kind in columns)):
                session.execute(f"insert into {table} values ({key}, {marks})", [next(iter(VALUES[kind][key:]), None) for kind in columns])
        with Lakehouse.open(folder) as lake:
            lake.sync()
            report = lake.verify([table for table in tables if table != "absent"])
            assert report["equal"], report
            found = {table["name"]: table for table in lake.tables()}
            stored = {table: dict(_stored(found[f"public.{table}"], columns)) for table, columns in tables.items()}
        yield {kind: stored[_table(kind)][kind] for kind in VALUES}


def _stored(table: dict[str, Any], columns: dict[str, str]) -> Iterator[tuple[str, Stored]]:
    relation = relation_of(orjson.loads(Path(table["metadata"]).read_bytes()))
    rows = pa.concat_tables([pq.read_table(file) for file in Path(table["location"]).glob("data/**/*.parquet")])
    for kind, name in columns.items():
        column = next(column for column in relation.columns if column.name == name)
        yield kind, Stored(table["metadata"], column, VALUES[kind], _by_id(rows.select(["id", name]), column))


def _by_id(rows: pa.Table, column: Column) -> dict[int, Any]:
    return dict(canonical(pa.table([rows.column(0), typed(rows.column(1), column)], names=["id", column.name])))


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as its users have it: ``read(location, column, some)`` gives what it calls the column's type, and the table's ids,
    the column and (else that itself) how it prints it, of all rows or of none. ``errors`` are what it refuses with."""

    name: str
    version: str
    read: Callable[[str, str, bool], tuple[str, pa.Table]]
    errors: tuple[type[Exception], ...]


def shown(engine: Engine, stored: Stored) -> dict[str, Any]:
    """``{"refused": why}``, or ``{"as": type}`` and, where the engine differs, ``"instead": {literal: what is shown}`` and
    ``"without_rows": why a result without rows is refused``."""
    try:
        kind, rows = engine.read(stored.location, stored.column.name, True)
    except engine.errors as error:
        return {"refused": _brief(error)}
    answer: dict[str, Any] = {"as": kind}
    found = _by_id(rows, stored.column)
    assert list(found) == list(stored.values)
    literals = dict(enumerate(stored.literals))
    keys: list[Any] = rows.column(0).to_pylist()
    printed = zip(keys, rows.column(rows.num_columns - 1), strict=True)
    if instead := {literals.get(key, "NULL"): str(value) for key, value in printed if found[key] != stored.values[key]}:
        answer["instead"] = instead
    try:
        _, none = engine.read(stored.location, stored.column.name, False)
        assert none.num_rows == 0
    except engine.errors as error:
        answer["without_rows"] = _brief(error)
    return answer


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:120]


def as_recorded(engine: Engine, tables: dict[str, Stored]) -> None:
    """The engine shows what ``shown.json`` says; ICELAKE_RECORD: ``shown.json`` says what the engine shows."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    found = {kind: shown(engine, stored) for kind, stored in tables.items()}
    if os.environ.get("ICELAKE_RECORD"):
        record[engine.name] = {"version": engine.version, "types": found}
        RECORD.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return
    seen = record[engine.name]
    unlike = {kind: now for kind, now in found.items() if now != seen["types"].get(kind)}
    assert (engine.version, found) == (seen["version"], seen["types"]), (
        f"{engine.name} {engine.version} (recorded: {seen['version']}) shows {unlike}. "
        "If that is how it is from now on: run this with ICELAKE_RECORD=1, and then `make docs`"
    )
