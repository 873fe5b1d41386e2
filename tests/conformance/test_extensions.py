"""Types that extensions bring, from servers that really have them: hstore, citext, ltree and PostGIS on a PostgreSQL the system's packages
installed (component ``postgis`` of ICELAKE_REQUIRE), the first three on other versions too, pgvector on the wheel's.

Each row goes through load, insert, update, delete and change of key; then DuckDB, PyIceberg and ``verify`` must have the values that
functions of the extension itself take apart in the source: not its text, which is what is mirrored.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pyiceberg.table import StaticTable

from icelake.errors import ProjectError
from icelake.lakehouse import Lakehouse
from icelake.model.relation import TableId
from icelake.stack.binaries import Binaries, installed
from icelake.stack.postgres import Postgres
from icelake.tables.table import Table
from tests.conftest import Lacking
from tests.mirrored import Mirrored, mirrored

SETTINGS = {"fsync": "off"}


class Shop(Mirrored):
    def parked(self) -> list[str]:
        """Bring the lake to the source; the codes of the tables that are parked."""
        return [parked["code"] for parked in self.sync()["parked"]]

    def agree(self, truth: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
        """After a sync both engines have of each column of these tables what its SQL gives in the source, and so says verify.

        How many rows each table has.
        """
        assert self.parked() == []
        with Lakehouse.open(self.folder) as lakehouse:
            assert lakehouse.verify()["equal"]
            return {table: self._agree(lakehouse, table, columns) for table, columns in truth.items()}

    def _agree(self, lakehouse: Lakehouse, table: str, truth: Mapping[str, str]) -> int:
        source = self.sql(f"select {', '.join(truth.values())} from {table}")
        listed = ", ".join(f'"{name}"' for name in truth)
        duckdb = lakehouse.query(f"select {listed} from {table}").to_pylist()
        pyiceberg = StaticTable.from_metadata(lakehouse.table(table)["metadata"]).scan().to_arrow().select(list(truth)).to_pylist()
        expected = Counter(repr(plain(list(row))) for row in source)
        assert Counter(repr(plain(list(row.values()))) for row in duckdb) == expected
        assert Counter(repr(plain(list(row.values()))) for row in pyiceberg) == expected
        return len(source)

    def row_ids(self, table: str, column: str) -> dict[Any, int]:
        with Lakehouse.open(self.folder) as lakehouse:
            loaded = lakehouse._catalog.load(TableId("public", table))
            opened = Table.open(loaded, lakehouse._storage, lakehouse._clock, lakehouse._chance)
            rows = [row for no in opened.files for row in opened.live_rows(no, [column])[1].to_pylist()]
        return {row[column]: row["_row_id"] for row in rows}


def plain(value: Any) -> Any:
    """A value that looks the same whoever gave it: as PostgreSQL's JSON has bytes and numbers, a map or struct as its sorted entries."""
    match value:
        case bytes():
            return f"\\x{value.hex()}"
        case int():
            return float(value)
        case dict():
            return sorted((name, plain(part)) for name, part in value.items())
        case [tuple(), *_]:
            return sorted((name, plain(part)) for name, part in value)
        case [*parts]:
            return [plain(part) for part in parts]
    return value


@pytest.fixture(scope="module")
def server(lacking: Lacking) -> Iterator[Postgres]:
    try:
        found = installed("postgis")
    except ProjectError as error:
        lacking("postgis", f"{error.what}: {error.why}")
    with Postgres(version=found, settings=SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def newest() -> Iterator[Postgres]:
    with Postgres(settings=SETTINGS) as running:
        yield running


@pytest.fixture
def shop(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    with mirrored(Shop, server, tmp_path, request.node.name, "hstore citext ltree postgis") as shop:
        yield shop


@pytest.fixture
def contrib(binaries: Binaries, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """A version that brings its contrib modules; those of the wheel do not."""
    with Postgres(version=binaries, settings=SETTINGS) as running:
        with psycopg.connect(running.dsn) as session:
            if session.execute("select from pg_available_extensions where name = 'ltree'").fetchone() is None:
                pytest.skip(f"PostgreSQL {binaries.release} here has no contrib modules")
        with mirrored(Shop, running, tmp_path, request.node.name, "hstore citext ltree") as shop:
            yield shop


@pytest.fixture
def vectors(newest: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    with mirrored(Shop, newest, tmp_path, request.node.name, "vector") as shop:
        yield shop


def parts(array: str, of: str) -> str:
    """SQL: an array of ``of`` each element ``x``; null stays null."""
    return f"case when {array} is not null then array(select {of} from unnest({array}) x) end"


@dataclass(frozen=True)
class Case:
    """A table of some columns (name -> type), rows for it as SQL lists, and what ``agree`` asks the source for each column."""

    table: str
    columns: Mapping[str, str]
    rows: Sequence[str]
    truth: Mapping[str, str]

    @property
    def keyed(self) -> dict[str, str]:
        return {"id": "id", **self.truth}

    @property
    def bag(self) -> str:
        """A table of the same columns, without a key."""
        return f"{self.table}_bag"

    def load(self) -> Iterator[str]:
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns.items())
        yield f"create table {self.table} (id int primary key, {columns})"
        yield f"create table {self.bag} ({columns})"
        yield f"alter table {self.bag} replica identity full"
        for number, row in enumerate(self.rows):
            yield f"insert into {self.table} values ({number}, {row})"
            yield f"insert into {self.bag} values ({row}), ({row})"

    def change(self) -> Iterator[str]:
        """Every row is inserted, moved by an update, deleted and set to null, with and without a key."""
        table, bag, count, nothing = self.table, self.bag, len(self.rows), ", ".join(["null"] * len(self.columns))
        for number, row in enumerate(self.rows):
            yield f"insert into {table} values ({number + 100}, {row})"
        yield f"insert into {table} values (200, {nothing}), (201, {nothing})"
        moved = ", ".join(f"{name} = n.{name}" for name in self.columns)
        yield f"update {table} t set {moved} from {table} n where n.id = (t.id + 1) % {count} and t.id < {count}"
        yield f"delete from {table} where id = 100"
        yield f"update {table} set id = id + 1000 where id > 100"
        for number, name in enumerate(self.columns):
            yield f"update {table} set {name} = null where id = {number % count}"
        yield f"insert into {bag} values ({nothing})"
        yield f"delete from {bag} where ctid in (select max(ctid) from {bag} group by {bag}::text)"
        yield f"insert into {bag} values ({self.rows[0]}), ({self.rows[-1]})"
        yield f"update {bag} set {next(iter(self.columns))} = null where ctid = (select min(ctid) from {bag})"


HSTORE = Case(
    "h",
    {"h": "hstore", "hs": "hstore[]", "d": "tags", "c": "labelled"},
    [
        """'"a"=>"1", "b"=>NULL', array['"x"=>"y"'::hstore, null, ''], 'k=>v', row(1, 'a=>NULL')""",
        """'', array[]::hstore[], '"q\\"uo\\\\te"=>"it''s"', row(null, null)""",
        """hstore(array['ü','', 'NULL','{}'], array['', 'NULL', null, E'tab\\t,"']), array['b=>2, a=>1'::hstore], '', null""",
        "(select hstore(array_agg('k' || n), array_agg(repeat(n::text, n))) from generate_series(1, 200) n), null, null, row(2, 'z=>1')",
    ],
    {
        "h": "hstore_to_jsonb(h)",
        "hs": parts("hs", "hstore_to_jsonb(x)"),
        "d": "hstore_to_jsonb(d)",
        "c": "case when c is distinct from null then jsonb_build_object('at', (c).at, 'tags', hstore_to_jsonb((c).tags)) end",
    },
)
TEXTS = Case(
    "c",
    {"c": "citext", "cs": "citext[]", "l": "ltree", "ls": "ltree[]", "q": "lquery", "t": "ltxtquery"},
    [
        """'Straße', array['A', 'a', null, '', 'NULL']::citext[], 'Top.Sea', array['a.b', null, 'A.B']::ltree[], '*.a|b*.c', 'a & !b'""",
        """'STRASSE', array[]::citext[], '', array[]::ltree[], 'x', 'x'""",
        """E'é\\n',  array['x,y', E'"\\\\']::citext[], 'a.a.a', array['', 'z']::ltree[], null, null""",
        """repeat('Ab', 5000), null, (repeat('n.', 3000) || 'n')::ltree, null, '!x', 'x*@'""",
    ],
    {"c": "c::text", "cs": "cs::text[]", "l": "ltree2text(l)", "ls": parts("ls", "ltree2text(x)"), "q": "q::text", "t": "t::text"},
)
WKT = """
point(1 2); SRID=4326;point(1 2); SRID=3857;point z (1 2 3); point m (1 2 4); SRID=4326;point zm (1 2 3 4); point empty
SRID=4326;point empty; point z empty; linestring empty; linestring (0 0, 1 1e-300, -0.5 1e300); multipoint m (0 0 1, 1 1 2)
polygon ((0 0, 4 0, 4 4, 0 4, 0 0), (1 1, 2 1, 2 2, 1 2, 1 1)); multipolygon empty; geometrycollection empty
SRID=4326;geometrycollection z (point z (1 2 3), linestring z empty); circularstring (0 0, 1 1, 2 0)
curvepolygon (circularstring (0 0, 4 0, 4 4, 0 4, 0 0)); triangle ((0 0, 1 0, 0 1, 0 0)); tin (((0 0 0, 0 0 1, 0 1 0, 0 0 0)))
polyhedralsurface (((0 0 0, 0 0 1, 0 1 1, 0 1 0, 0 0 0)))
"""
SHAPES = re.split(r"; |\n", WKT.strip())


def placed(number: int, shape: str) -> str:
    plane = f"'{shape}'::geometry"
    some = f"array[{plane}, null, 'point(0 0)']" if number % 3 else "array[]::geometry[]" if number else "null"
    place = f"'point({number} {-number})'" if number % 2 else "'point empty'" if number else "null"
    return f"{plane}, {some}, 'SRID=4326;pointzm({number} 2 3 -0.0)', {place}, array[{place}]::geography[], row('s', {plane}), {plane}"


POSTGIS = Case(
    "g",
    {
        "g": "geometry",
        "gs": "geometry[]",
        "p": "geometry(pointzm, 4326)",
        "d": "place",
        "ds": "geography[]",
        "c": "stop",
        "b": "box3d",
    },
    [placed(number, shape) for number, shape in enumerate(SHAPES)],
    {
        "g": "ST_AsEWKB(g)",
        "gs": parts("gs", "ST_AsEWKB(x)"),
        "p": "ST_AsEWKB(p)",
        # ST_AsEWKB knows only geometry; the two share their binary form.
        "d": "ST_AsEWKB(d::geometry)",
        "ds": parts("ds", "ST_AsEWKB(x::geometry)"),
        "c": "case when c is distinct from null then jsonb_build_object('name', (c).name, 'at', ST_AsEWKB((c).at)) end",
        "b": "b::text",
    },
)
VECTORS = Case(
    "v",
    {"v": "vector", "vs": "vector[]", "w": "vector(3)", "h": "halfvec", "hs": "halfvec[]", "s": "sparsevec", "ss": "sparsevec[]"},
    [
        """'[1,-0,3e-45]', array['[1]', null, '[2,3]']::vector[], '[1,2,3]', '[0.1,65504]', array['[1]']::halfvec[], '{1:1.5,3:2}/5',
           array['{}/1']::sparsevec[]""",
        "'[3.4028235e38]', array[]::vector[], '[0.1,-0.2,1e-7]', '[-0]', array[null]::halfvec[], '{}/3', array[]::sparsevec[]",
        """(select array_agg(n / 7.0)::vector from generate_series(1, 1536) n), null, null, '[6e-8]', null, null,
           array[null, '{2:1}/2']::sparsevec[]""",
    ],
    {
        "v": "v::real[]::float8[]",
        "vs": parts("vs", "to_jsonb(x::real[]::float8[])"),
        "w": "w::real[]::float8[]",
        "h": "h::vector::real[]::float8[]",
        "hs": parts("hs", "to_jsonb(x::vector::real[]::float8[])"),
        "s": "s::text",
        "ss": "ss::text[]",
    },
)


def through_every_change(shop: Shop, *cases: Case) -> None:
    shop.sql(*(statement for case in cases for statement in case.load()))
    truth = {table: truth for case in cases for table, truth in ((case.table, case.keyed), (case.bag, case.truth))}
    found = shop.agree(truth)
    assert found == {table: rows for case in cases for table, rows in ((case.table, len(case.rows)), (case.bag, 2 * len(case.rows)))}
    for case in cases:
        for statement in case.change():
            shop.sql(statement)
    found = shop.agree(truth)
    assert {case.table: found[case.table] for case in cases} == {case.table: 2 * len(case.rows) + 1 for case in cases}


LABELLED = "create type labelled as (at int, tags hstore); create domain tags as hstore"


def test_types_of_the_installed_server(shop: Shop) -> None:
    shop.sql(LABELLED, "create domain place as geography(point, 4326)", "create type stop as (name text, at geometry)")
    through_every_change(shop, HSTORE, TEXTS, POSTGIS)


@pytest.mark.versions(17)
def test_types_of_contrib_modules(contrib: Shop) -> None:
    contrib.sql(LABELLED)
    through_every_change(contrib, HSTORE, TEXTS)


def test_types_of_pgvector(vectors: Shop) -> None:
    through_every_change(vectors, VECTORS)


def test_a_column_with_a_constant_default_is_followed(shop: Shop) -> None:
    """Rows from before have the default without having been written: its text is in PostgreSQL's catalog, as an array's."""
    shop.sql("create table t (id int primary key)", "insert into t values (1), (2)")
    assert shop.parked() == []
    shop.sql(
        "alter table t add g geometry default 'SRID=4326;point(1 2)', add c citext default 'Ab,c', add l ltree default 'a.b', "
        "add b box3d default 'BOX3D(1 2 3,4 5 6)', add p geography",
        "insert into t (id) values (3)",
        "update t set c = 'x' where id = 2",
    )
    truth = {"id": "id", "g": "ST_AsEWKB(g)", "c": "c::text", "l": "ltree2text(l)", "b": "b::text", "p": "ST_AsEWKB(p::geometry)"}
    assert shop.agree({"t": truth}) == {"t": 3}


KEYS = {
    "ci": ("citext", "Straße", "STRAße", "b"),
    "co": ("text collate nocase", "ABC", "abc", "b"),
    "vc": ("varchar(9) collate nocase", "Ä", "ä", "b"),
    "lt": ("ltree", "Top.A", "top.a", "b"),
    "bp": ("bpchar", "a", "a  ", "b"),
    "ge": ("geometry", "point(0 1)", "point(-0 1)", "point(0 2)"),
}
"""Table -> the type of its key, and three values, of which the first two are one key for PostgreSQL if the type says so."""
IDENTITIES = {
    "default": "select",
    "full": "alter table {0} replica identity full",
    "index": "alter table {0} replica identity using index {0}_pkey",
}


def test_a_key_is_what_is_stored_and_not_what_equals_it(shop: Shop) -> None:
    """PostgreSQL sends the old key whenever the new one is another value, bit by bit, also where the two are equal to it. So a change

    between equal keys is a change of key here as there, under one row id; and no two keys that are equal there are ever both here.
    """
    shop.sql("create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    tables = {f"{name}_default": kind for name, kind in KEYS.items()} | {f"ci_{identity}": KEYS["ci"] for identity in IDENTITIES}
    truth = {
        table: {"k": "ST_AsEWKB(k)" if kind == "geometry" else "concat(k)", "n": "n", "big": "big"} for table, (kind, *_) in tables.items()
    }
    for table, (kind, one, _, other) in tables.items():
        identity = IDENTITIES[table.partition("_")[2]].format(table)
        shop.sql(f"create table {table} (k {kind} primary key, n int, big text)", identity)
        shop.sql(f"alter table {table} alter big set storage external")
        shop.sql(f"insert into {table} values ('{one}', 1, repeat('1', 9000)), ('{other}', 2, repeat('2', 9000))")
    assert set(shop.agree(truth).values()) == {2}
    before = {table: shop.row_ids(table, "n") for table in tables}

    for table, (_, one, like, _) in tables.items():
        shop.sql(f"update {table} set k = '{like}' where k = '{one}'")
    assert set(shop.agree(truth).values()) == {2}
    assert {table: shop.row_ids(table, "n") for table in tables} == before

    equal = {}
    for table, (kind, one, like, other) in tables.items():
        ((equal[table],),) = shop.sql(f"select '{one}'::{kind} = '{like}'::{kind}")
        shop.sql(
            # There and back, and around by way of each other's keys, within one transaction.
            f"update {table} set k = '{one}' where n = 1",
            f"update {table} set k = '{like}' where n = 1",
            f"delete from {table} where n = 2",
            f"update {table} set k = '{other}' where n = 1",
            f"insert into {table} values ('{like}', 3, repeat('3', 9000))",
            f"update {table} set k = '{one}' where k = '{like}'",
        )
        shop.sql(f"insert into {table} values ('{like}', 4, 'new') on conflict (k) do update set n = 5")
        shop.sql(f"insert into {table} values ('{one}', 6, 'new') on conflict (k) do update set k = '{like}' where {equal[table]}")
    assert {table.partition("_")[0] for table in tables if equal[table]} == {"ci", "co", "vc", "bp"}
    assert shop.agree(truth) == {table: 2 if equal[table] else 3 for table in tables}

    # And where the lake compares instead of following.
    for table, (_, one, like, _) in tables.items():
        shop.sql(f"update {table} set k = '{one}' where k = '{like}' and {equal[table]}", f"delete from {table} where n = 1")
    with Lakehouse.open(shop.folder) as lakehouse:
        lakehouse.resume(list(tables), reload=True)
    assert shop.agree(truth) == {table: 1 if equal[table] else 2 for table in tables}
