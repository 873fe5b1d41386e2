"""Arrays, composites, ranges, multiranges, hstore and vectors: what a real server prints of them, against psycopg's own loaders."""

import datetime as dt
import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.multirange import Multirange, MultirangeInfo, register_multirange
from psycopg.types.range import Range, RangeInfo, register_range

from icelake.errors import Corrupt, UnsupportedTable, ValueOutOfContract
from icelake.model.relation import Column, Relation
from icelake.sources.postgres.copy_text import decode_copy
from icelake.sources.postgres.pgoutput import Decoder
from icelake.sources.postgres.schema import describe
from icelake.sources.postgres.session import connect
from icelake.sources.postgres.types import Leaf, dump, iceberg_type, load
from icelake.sources.postgres.values import Fields, reader, to_arrow
from icelake.stack.postgres import Postgres
from tests.unit.sources.postgres.wire import frame

SETUP = r"""
create extension vector;
create type mood as enum ('sad', 'ok', 'q"uo,te', 'null');
create domain posted as numeric(12,2) check (value > -1e9);
create domain tags as text[];
create type inner_t as ("N, o" int, gone text, t text[], m mood);
alter type inner_t drop attribute gone;
create type outer_t as (street text, i inner_t, "all" inner_t[], p posted);
create type wrapped as (one text);
create domain checked as outer_t;
create type textrange as range (subtype = text, collation = "C", multirange_type_name = textmultirange);
create type daysrange as range (subtype = date);
create table parts (id int primary key, ta text[], tg tags, na posted[], oa outer_t, ob outer_t[], ch checked, ws wrapped[],
                    tr textrange, trs textrange[], mr textmultirange, dr daysrange, im int8multirange);
alter table parts replica identity full;
create publication p for all tables;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off"}) as running:
        with psycopg.connect(running.dsn, autocommit=True) as session:
            session.execute(SETUP)
        yield running


@pytest.fixture(scope="module")
def pg(server: Postgres) -> Iterator[psycopg.Connection[Any]]:
    with connect(server.dsn) as running:
        running.autocommit = True
        running.execute("set search_path = pg_catalog, public")
        for name in ("inner_t", "outer_t", "wrapped"):
            info = CompositeInfo.fetch(running, name)
            assert info is not None
            register_composite(info, running)
        spans = RangeInfo.fetch(running, "textrange")
        assert spans is not None
        register_range(spans, running)
        many = MultirangeInfo.fetch(running, "textmultirange")
        assert many is not None
        register_multirange(many, running)
        days = RangeInfo.fetch(running, "daysrange")
        assert days is not None
        register_range(days, running)
        yield running


def described(pg: psycopg.Connection[Any], table: str) -> Relation:
    (found,) = describe(pg, [f"public.{table}"])
    assert isinstance(found, Relation), found
    return found


def copied(pg: psycopg.Connection[Any], relation: Relation, order: str = "id") -> pa.RecordBatch:
    with pg.cursor() as cursor, cursor.copy(f"COPY (SELECT * FROM public.{relation.name} ORDER BY {order}) TO STDOUT") as copy:
        batch = decode_copy(b"".join(bytes(block) for block in copy), relation.columns, str(relation.id))
    batch.validate(full=True)
    return batch


def plain(value: Any) -> Any:
    """What psycopg loads, in the form of the lake's values."""
    match value:
        case list():
            return [plain(element) for element in value]
        case Multirange():
            return [plain(element) for element in value]
        case Range():
            if value.isempty:
                return {"lower": None, "upper": None, "bounds": "empty"}
            return {"lower": plain(value.lower), "upper": plain(value.upper), "bounds": value.bounds}
        case tuple():
            return [plain(part) for part in value]
        case Decimal():
            return str(value)  # as psycopg has a domain's values
    return value


def lake(value: Any) -> Any:
    """The lake's values without the names of composites' fields, which psycopg gives as tuples."""
    match value:
        case {"bounds": _}:
            return {key: lake(part) for key, part in value.items()}
        case dict():
            return [lake(part) for part in value.values()]
        case list():
            return [lake(element) for element in value]
        case Decimal():
            return str(value)
    return value


texts = st.none() | st.text(st.sampled_from("ab,;\"'\\{}()[] \t\n\r\v\fNULnul=>é🧊."), max_size=5)
words = texts.map(lambda text: text or "")
lists = st.none() | st.lists(texts, max_size=4)
moods = st.none() | st.sampled_from(["sad", "ok", 'q"uo,te', "null"])
amounts = st.none() | st.decimals(-(10**8), 10**8, places=2)
inners = st.none() | st.tuples(st.none() | st.integers(-(2**31), 2**31 - 1), lists, moods)
outers = st.none() | st.tuples(texts, inners, st.none() | st.lists(inners, max_size=3), amounts)


def ranges(bound: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pair: Any = st.tuples(st.none() | bound, st.none() | bound).map(
        lambda pair: pair if None in pair or pair[0] <= pair[1] else (pair[1], pair[0])
    )
    return st.builds(lambda pair, bounds: Range(pair[0], pair[1], bounds), pair, st.sampled_from(["[)", "(]", "()", "[]"]))


# In the C collation PostgreSQL compares bytes, as sorting by UTF-8 does.
spans = ranges(words.map(lambda text: text.replace("🧊", "x").replace("é", "y")))
days = ranges(st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 30)))
numbers = ranges(st.integers(-(2**60), 2**60))
rows = st.tuples(
    lists, lists, st.none() | st.lists(amounts, max_size=3), outers, st.none() | st.lists(outers, max_size=3), outers,
    st.none() | st.lists(st.none() | st.tuples(texts), max_size=3), st.none() | spans, st.none() | st.lists(st.none() | spans, max_size=3),
    st.none() | st.lists(spans, max_size=3), st.none() | days, st.none() | st.lists(numbers, max_size=3),
)  # fmt: skip

INSERT = """
insert into public.parts select %s, %s::text[], %s::text[], %s::numeric[], {outer}, {outers}, {outer}, {wrapped},
       %s::textrange, %s::textrange[], (select range_agg(r) from unnest(%s::textrange[]) r), %s::daysrange,
       (select range_agg(r) from unnest(%s::int8range[]) r)
""".format(outer="%s::text::outer_t", outers="%s::text::outer_t[]", wrapped="%s::text::wrapped[]")


def record(value: Any) -> str | None:
    """A composite's text, everything quoted: another spelling than the server's own."""
    return None if value is None else "(" + ",".join("" if v is None else _quoted(text_of(v)) for v in value) + ")"


def array(value: Any) -> str | None:
    return None if value is None else "{" + ",".join("NULL" if v is None else _quoted(text_of(v)) for v in value) + "}"


def _quoted(text: str | None) -> str:
    assert text is not None
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def text_of(value: Any) -> str | None:
    return record(value) if isinstance(value, tuple) else array(value) if isinstance(value, list) else str(value)


@settings(
    deadline=None,
    max_examples=10,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(rows, min_size=1, max_size=8))
def test_parts_by_copy_and_by_pgoutput(pg: psycopg.Connection[Any], made: list[tuple[Any, ...]]) -> None:
    relation = described(pg, "parts")
    pg.execute("truncate public.parts")
    pg.execute("select pg_create_logical_replication_slot('parts', 'pgoutput', true)")
    try:
        for number, row in enumerate(made):
            ta, tg, na, oa, ob, ch, ws, tr, trs, mr, dr, im = row
            pg.execute(INSERT, [number, ta, tg, na, record(oa), array(ob), record(ch), array(ws), tr, trs, mr, dr, im])
        batch = copied(pg, relation)
        # psycopg knows no arrays of domains, and not that () has one attribute.
        expected = pg.execute(
            "select id, ta, tg, na::numeric[], oa, ob, ch, null, tr, trs, mr, dr, im from public.parts order by id"
        ).fetchall()
        for at, column in enumerate(relation.columns):
            if column.name != "ws":
                assert lake(batch.column(at).to_pylist()) == [plain(row[at]) for row in expected], column.name
        assert lake(batch.column("ws").to_pylist()) == [plain(row[6]) for row in made]
        # What went in came out: psycopg's loaders are not the only witness.
        assert batch.column("ta").to_pylist() == [row[0] for row in made]
        assert lake(batch.column("ob").to_pylist()) == [plain(row[4]) for row in made]
        assert lake(batch.column("ch").to_pylist()) == [plain(row[5]) for row in made]
        sent = pg.execute(
            "select data from pg_logical_slot_get_binary_changes('parts', null, null, 'proto_version', '1', 'publication_names', 'p')"
        ).fetchall()
        (changes,) = Decoder(lambda message: relation).decode(frame(*[bytes(row[0]) for row in sent])).changes
        assert changes.new.filter(pa.array(changes.op == 0)).to_pylist() == batch.to_pylist()
    finally:
        pg.execute("select pg_drop_replication_slot('parts')")


LITERALS: list[tuple[str, str, Any]] = [
    ("int[]", "{}", []),
    ("int[]", "{1,NULL,-3}", [1, None, -3]),
    ("int2[]", "{-32768,32767}", [-32768, 32767]),
    ("text[]", '{"NULL",NULL,null,"null",""," a","{x}"}', ["NULL", None, None, "null", "", " a", "{x}"]),
    ("bool[]", "{t,f,NULL}", [True, False, None]),
    ("float8[]", "{1.5,-0,1e300}", [1.5, 0.0, 1e300]),
    ("numeric(5,2)[]", "{1,2.25}", [Decimal("1.00"), Decimal("2.25")]),
    ("numeric[]", "{1.50,NaN,Infinity}", ["1.50", "NaN", "Infinity"]),
    ("bytea[]", r'{"\\x00ff5c","\\x"}', [b"\x00\xff\\", b""]),
    ("date[]", '{2024-01-31,"0044-03-15 BC"}', None),
    ("timestamptz[]", '{"2024-01-31 00:00:00.5+00"}', [dt.datetime(2024, 1, 31, 0, 0, 0, 500000, dt.UTC)]),
    ("time[]", "{23:59:59.999999}", [dt.time(23, 59, 59, 999999)]),
    ("uuid[]", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", [bytes.fromhex("a0eebc999c0b4ef8bb6d6bb9bd380a11")]),
    ("interval[]", '{"1 mon -1 days",00:00:01}', [{"months": 1, "days": -1, "micros": 0}, {"months": 0, "days": 0, "micros": 1000000}]),
    ("money[]", "{$1.50}", [Decimal("1.50")]),
    ("box[]", "{(1,1),(0,0);NULL}", ["(1,1),(0,0)", None]),
    ("jsonb[]", '{"{\\"a\\": [1, \\"x\\"]}"}', ['{"a": [1, "x"]}']),
    ("inet[]", "{10.0.0.1,10.0.0.0/8}", ["10.0.0.1", "10.0.0.0/8"]),
    ("bit(2)[]", "{10,01}", ["10", "01"]),
    ("tags[]", '{"{a,b}","{}",NULL}', [["a", "b"], [], None]),
    ("mood[]", '{sad,"q\\"uo,te","null"}', ["sad", 'q"uo,te', "null"]),
    ("int4range", "empty", {"lower": None, "upper": None, "bounds": "empty"}),
    ("int4range", "(,)", {"lower": None, "upper": None, "bounds": "()"}),
    ("int4range", "[1,5]", {"lower": 1, "upper": 6, "bounds": "[)"}),
    ("numrange", "[1.50,NaN]", {"lower": "1.50", "upper": "NaN", "bounds": "[]"}),
    ("textrange", "[empty,]", {"lower": "empty", "upper": None, "bounds": "[)"}),
    ("textrange", '["",")]"]', {"lower": "", "upper": ")]", "bounds": "[]"}),
    ("tsrange", '["2024-01-01","2024-01-02 00:00:00.5")', None),
    ("int4multirange", "{}", []),
    ("int4multirange", "{[1,3),(5,)}", [{"lower": 1, "upper": 3, "bounds": "[)"}, {"lower": 6, "upper": None, "bounds": "[)"}]),
    ("textmultirange", '{["a,]","b}"]}', [{"lower": "a,]", "upper": "b}", "bounds": "[]"}]),
    ("int4range[]", '{empty,"[1,2)",NULL}', None),
    ("wrapped", "()", {"one": None}),
    ("wrapped", '("")', {"one": ""}),
    ("inner_t", '(1,"{a,\\"b c\\"}",ok)', {"N, o": 1, "t": ["a", "b c"], "m": "ok"}),
    ("outer_t[]", "{NULL}", [None]),
    ("vector(3)", "[1,2.5,-3e-7]", [1.0, 2.5, -3.000000106112566e-07]),
    ("halfvec", "[1,0.1]", [1.0, 0.0999755859375]),
    ("sparsevec", "{1:1.5,3:2}/5", "{1:1.5,3:2}/5"),
    ("vector[]", '{"[1,2]",NULL}', [[1.0, 2.0], None]),
    ("point", "(1,2)", "(1,2)"),
    ("path", "((1,2),(3,4))", "((1,2),(3,4))"),
    ("oidvector", "1 2", "1 2"),
    ("tsvector", "'a':1 'b'", "'a':1 'b'"),
]


def test_a_table_of_types_and_values(pg: psycopg.Connection[Any]) -> None:
    """Every literal in a column of its own, with the server's own text in another row's reading of it: to_jsonb where it can."""
    columns = ", ".join(f"c{number} {pg_type}" for number, (pg_type, _, _) in enumerate(LITERALS))
    pg.execute(f"create table public.literals (id int primary key, {columns})")
    values = ", ".join(f"%s::text::{pg_type}" for pg_type, _, _ in LITERALS)
    pg.execute(f"insert into public.literals select 1, {values}", [literal for _, literal, _ in LITERALS])
    pg.execute("insert into public.literals values (0)")
    relation = described(pg, "literals")
    batch = copied(pg, relation)
    for column, (pg_type, literal, expected) in zip(relation.columns[1:], LITERALS, strict=True):
        found = batch.column(column.name)
        assert not found[0].is_valid, pg_type
        assert found[1].is_valid, pg_type
        assert str(column.iceberg) == str(iceberg_type(load(column.source) if column.source else Leaf("tsvector"))), pg_type
        if expected is not None:
            assert found[1].as_py() == expected, (pg_type, literal)
    (bc,) = [batch.column(f"c{n}") for n, (t, _, _) in enumerate(LITERALS) if t == "date[]"]
    assert bc[1].values.cast(pa.int32()).to_pylist() == [19753, -735160]


def of(pg_type: str, source: str, **more: Any) -> Column:
    return Column("c", 1, 0, -1, pg_type, str(iceberg_type(load(source))), source=source, **more)


BEYOND = [
    ("int[]", '{"array":"int4"}', "{{1,2},{3,4}}", None),
    ("int[]", '{"array":"int4"}', "[0:1]={1,2}", None),
    ("int[]", '{"array":"int4"}', "[-5:-4][1:2]={{1,2},{3,4}}", None),
    ("date[]", '{"array":"date"}', "{2024-01-31,infinity}", [dt.date(2024, 1, 31), None]),
    ("time[]", '{"array":"time"}', "{24:00:00,00:00:00}", [None, dt.time(0)]),
    ("numeric(3,1)[]", '{"array":"numeric(3,1)"}', "{NaN,1.5}", [None, Decimal("1.5")]),
    ("r", '{"composite":[[1,"d","date"],[2,"n",{"array":"int4"}],[3,"x","int4"]]}',
     '(-infinity,"{{1},{2}}",7)', {"d": None, "n": None, "x": 7}),
    ("tsrange", '{"range":"timestamp"}',
     '["2024-01-01 00:00:00",infinity)', {"lower": dt.datetime(2024, 1, 1), "upper": None, "bounds": "[)"}),
    ("interval", '"interval"', "infinity", None),
    ("interval[]", '{"array":"interval"}', "{-infinity}", [None]),
    ("datemultirange", '{"multirange":"date"}', "{[infinity,)}", [{"lower": None, "upper": None, "bounds": "[)"}]),
    ("date", '"date"', "-infinity", None),
    ("timestamptz", '"timestamptz"', "infinity", None),
    ("numeric(3,1)", '"numeric(3,1)"', "Infinity", None),
]  # fmt: skip


@pytest.mark.parametrize(("pg_type", "source", "text", "innermost"), BEYOND)
def test_values_that_cannot_be_held(pg_type: str, source: str, text: str, innermost: Any) -> None:
    column = of(pg_type, source)
    with pytest.raises(ValueOutOfContract) as caught:
        to_arrow(pa.array([None, text]), column)
    assert pg_type in caught.value.what
    assert caught.value.why
    values = to_arrow(pa.array([text, None, text]), of(pg_type, source, out_of_range="null"))
    values.validate(full=True)
    assert values.to_pylist() == [innermost, None, innermost]
    kept = Column("c", 1, 0, -1, pg_type, "string", source=source)
    assert to_arrow(pa.array([text, None]), kept).to_pylist() == [text, None]


def test_many_values_that_cannot_be_held_become_null_among_those_that_can() -> None:
    texts = ["infinity" if n % 3 == 0 else "2024-01-31" for n in range(1000)]
    found = to_arrow(pa.array(texts), of("date", '"date"', out_of_range="null")).to_pylist()
    assert found == [None if n % 3 == 0 else dt.date(2024, 1, 31) for n in range(1000)]
    lists = ["{{1},{2}}" if n % 3 == 0 else f"{{{n}}}" for n in range(1000)]
    found = to_arrow(pa.array(lists), of("int[]", '{"array":"int4"}', out_of_range="null")).to_pylist()
    assert found == [None if n % 3 == 0 else [n] for n in range(1000)]


def test_the_null_policy_does_not_pass_over_damage() -> None:
    for source, text in (('"date"', "infinit"), ('{"array":"int4"}', "{{1,2}"), ('"interval"', "nan"), ('{"array":"date"}', "{infinite}")):
        with pytest.raises(Corrupt, match="VALUE_CORRUPT"):
            to_arrow(pa.array([text]), of("x", source, out_of_range="null"))


def test_an_error_tells_which_part() -> None:
    column = of("home[]", '{"array":{"composite":[[1,"when",{"range":"date"}]]}}')
    with pytest.raises(ValueOutOfContract, match=r"column c\[\]\.when\.upper \(home\[\]\) holds 'infinity'"):
        to_arrow(pa.array(['{"(\\"[2024-01-01,infinity)\\")"}']), column)


TEXT_PAIR = '{"composite":[[1,"a","text"],[2,"b","text"]]}'


@pytest.mark.parametrize(
    ("source", "text"),
    [
        *[('{"array":"text"}', t) for t in [
            "", "{", "}", "a", "{a", "a}", "{a,}", "{,a}", "{,}", "{a,,b}", '{"a}', '{"a"b}', '{a"b"}', '{"a\\}', '{"a\\n"}', "{a b}",
            "{a\\b}", "{a}x", "{a{b}", "{}}", "{{}", '{"a""b"}', "[1:2]={a", "{a;b c}",
            '{"}',
        ]],
        *[(TEXT_PAIR, t) for t in ["", "(", ")", "a,b", "(a,b", '("a,b)', '("a\\"",b)', '("a"x,b)', "(a b,c)", "((a),b)", '(a,"b\\)']],
        *[('{"range":"int4"}', t) for t in ["", "[", "[]", "[1]", "[1,2", "{1,2}", "[1,2,3)", "Empty", "emptx", "[1 ,2)", "[[1,2)"]],
        *[('{"multirange":"int4"}', t) for t in ["", "{[1,2)", "{empty}", "{[1,2),}", "{1,2}", "{[1,2)[3,4)}", '{["1,2)}', "{)[1,2}"]],
        *[('"hstore"', t) for t in [
            '"a"', '"a"=>', '"a"=>b', 'a=>"b"', '"a"=>"b",', '"a"=>"b", ', '"a"=>"b","c"=>"d"', 'NULL=>"a"', '"a"="b"',
            '"a"=>"b"x', '"a"=>"b',
        ]],
        *[('"vector"', t) for t in ["", "[", "1,2", "[1,]", "[1;2]", "[NULL]", "[1,2", "{1}", "[ 1]"]],
        *[('"interval"', t) for t in [
            "", " ", "1", "1 day ", " 1 day", "1 day 1 mon", "1 year  1 mon", "1:00:00", "00:60:00", "00:00:60", "00:00:00.",
            "00:00:00.1234567", "2147483648 days", "178956971 years", "2562047788:00:54.775808", "-2562047788:00:54.775809",
            "9999999999:00:00", "P1Y", "@ 1 day",
        ]],
        *[('"money"', t) for t in ["", "$", "1.00", "$1", "$1.0", "$1,00.00", "$1234.00", "-1.00", "$-1.00", "€1.00", "$1.00 "]],
        *[('"geometry"', t) for t in ["0", "0g", "\\x00"]],
    ],
)  # fmt: skip
def test_texts_that_postgres_never_prints(source: str, text: str) -> None:
    for policy in ("error", "null"):
        with pytest.raises(Corrupt, match="column c"):
            to_arrow(pa.array([None, text]), of("x", source, out_of_range=policy))


@pytest.mark.parametrize(("text", "found"), [("(a)", 1), ("()", 1), ("(a,b,c)", 3), ('(a,"b,c",,)', 4)])
def test_a_composite_with_other_attributes_is_another_type(text: str, found: int) -> None:
    with pytest.raises(UnsupportedTable, match=f"came with {found} attributes, and its composite type had 2"):
        to_arrow(pa.array(["(a,b)", None, text]), of("pair", TEXT_PAIR))


def test_a_composite_altered_while_it_is_followed(pg: psycopg.Connection[Any]) -> None:
    """PostgreSQL announces no relation anew when a type its column has is altered: the values themselves must tell."""
    pg.execute("create type public.moving as (a int, b text)")
    pg.execute("create table public.moved (id int primary key, c public.moving)")
    relation = described(pg, "moved")
    pg.execute("select pg_create_logical_replication_slot('moved', 'pgoutput')")
    decoder = Decoder(lambda message: relation)
    changes = "select data from pg_logical_slot_get_binary_changes('moved', null, null, 'proto_version', '1', 'publication_names', 'p')"
    try:
        pg.execute("insert into public.moved values (1, row(1, 'x'))")
        (found,) = decoder.decode(frame(*[bytes(row[0]) for row in pg.execute(changes)])).changes
        assert found.new.column("c").to_pylist() == [{"a": 1, "b": "x"}]
        pg.execute("alter type public.moving add attribute c int")
        pg.execute("insert into public.moved values (2, row(1, 'x', 2))")
        with pytest.raises(UnsupportedTable, match=r"column public\.moved\.c .* came with 3 attributes, and its composite type had 2"):
            decoder.decode(frame(*[bytes(row[0]) for row in pg.execute(changes)]))
    finally:
        pg.execute("select pg_drop_replication_slot('moved')")


def test_more_text_than_offsets_can_count_is_an_error() -> None:
    # Only fields that overlap can be that large: nothing of them is read.
    fields = Fields(np.zeros(8, np.uint8), np.zeros(3, np.int32), np.full(3, 2**30, np.int32))
    fields.buffer.flags.writeable = False
    for source in ('{"array":"int4"}', TEXT_PAIR, '"hstore"', '"text"'):
        with pytest.raises(Corrupt, match="more than 2 GiB"):
            reader(of("x", source))(fields)


SOURCES = [
    '{"array":"text"}', '{"array":"int4"}', '{"array":"other","by":";"}', TEXT_PAIR, '{"array":' + TEXT_PAIR + "}", '{"range":"int4"}',
    '{"range":"text"}', '{"array":{"range":"date"}}', '{"multirange":"int4"}', '{"multirange":"text"}', '"hstore"', '"vector"',
    '"interval"', '"money"', '"geometry"', '{"array":"bytea"}', '{"composite":[[1,"a",{"array":"text"}]]}', '{"array":"interval"}',
    '{"array":"bool"}',
]  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.none() | st.binary(max_size=12) | st.lists(st.sampled_from([*'{}()[],;"\\ 01a=>', "NULL", "empty", '""', "\\\\", "=>", ", "]),
                                                      max_size=14).map(lambda pieces: "".join(pieces).encode()),
        max_size=5,
    )
)  # fmt: skip
def test_noise_in_parts_is_read_or_refused(values: list[bytes | None]) -> None:
    for source in SOURCES:
        try:
            found = to_arrow(pa.array(values, pa.binary()), of("x", source))
        except (Corrupt, ValueOutOfContract, UnsupportedTable):
            continue
        found.validate(full=True)
        assert [v is None for v in found.to_pylist()] == [v is None for v in values]


def _hstore(pairs: dict[str, str | None]) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return ", ".join(f"{quoted(key)}=>{'NULL' if value is None else quoted(value)}" for key, value in pairs.items())


@settings(deadline=None)
@given(st.lists(st.none() | st.dictionaries(words, texts, max_size=4), max_size=5))
def test_hstore(values: list[dict[str, str | None] | None]) -> None:
    found = to_arrow(pa.array([None if v is None else _hstore(v) for v in values], pa.string()), of("hstore", '"hstore"'))
    found.validate(full=True)
    assert [None if v is None else dict(v) for v in found.to_pylist()] == values
    assert [None if v is None else [k for k, _ in v] for v in found.to_pylist()] == [None if v is None else list(v) for v in values]


def test_ewkb() -> None:
    point = "0101000020E6100000000000000000F03F0000000000000040"
    assert to_arrow(pa.array([point, None]), of("geometry", '"geometry"')).to_pylist() == [bytes.fromhex(point), None]


@given(st.sampled_from([*SOURCES, '{"enum":[[7,"sad"],[8,"o\\"k"]]}', '{"array":{"enum":[]}}']))
def test_a_type_is_its_text(source: str) -> None:
    assert dump(load(source)) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        '"nothing"',
        "{}",
        '{"array":"x"}',
        '{"composite":[]}',
        '{"composite":[["a"]]}',
        "[]",
        "1",
        '"numeric(1)"',
        '"enum"',
        '{"enum":[1]}',
    ],
)
def test_what_is_no_type(text: str) -> None:
    with pytest.raises(ValueError, match="not a PostgreSQL type"):
        load(text)


def test_types_of_extensions_by_name_and_extension(server: Postgres, tmp_path: Path) -> None:
    """Types that look like those of extensions this server has not: their text is theirs, whatever we put in."""
    folder = tmp_path / "extension"
    folder.mkdir()
    base = (
        "create type {0}; create function {0}_in(cstring) returns {0} language internal immutable strict as 'textin';"
        " create function {0}_out({0}) returns cstring language internal immutable strict as 'textout';"
        " create type {0} (input = {0}_in, output = {0}_out, like = pg_catalog.text);"
    )
    for extension, types in {"hstore": ["hstore"], "citext": ["citext"], "postgis": ["geometry", "geography"], "ltree": ["ltree"]}.items():
        (folder / f"{extension}.control").write_text("default_version = '1.0'\n")
        (folder / f"{extension}--1.0.sql").write_text("\n".join(base.format(name) for name in types))
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("create database extended")
    with psycopg.connect(server.dsn_of("extended"), autocommit=True) as admin:
        home = Path(admin.execute("show data_directory").fetchone()[0])  # type: ignore[index]
        shutil.copytree(folder, home / "shared" / "extension")
        for path in [home / "shared", *(home / "shared").rglob("*")]:
            shutil.chown(path, (home / "base").owner())
        admin.execute(f"set extension_control_path = '{home / 'shared'}:$system'")
        admin.execute("create extension hstore; create extension citext; create extension postgis; create extension ltree")
        admin.execute("create schema own; " + base.format("own.hstore").replace("own.hstore_", "own.h_"))
        admin.execute(
            "create table t (id int primary key, h hstore, hs hstore[], c citext, g geometry, gg geography, l ltree, o own.hstore);"
            """ insert into t values (1, '"a"=>NULL, "b"=>"c d"', array['"x"=>"y"'::hstore], 'Ab', '0101', '0102', 'a.b', 'not one')"""
        )
        with connect(server.dsn_of("extended")) as session:
            relation = described(session, "t")
            assert [column.iceberg for column in relation.columns[1:]] == [
                "map<string, string>", "list<map<string, string>>", "string", "binary", "binary", "string", "string",
            ]  # fmt: skip
            (row,) = copied(session, relation).to_pylist()
        assert row == {
            "id": 1, "h": [("a", None), ("b", "c d")], "hs": [[("x", "y")]], "c": "Ab", "g": b"\1\1", "gg": b"\1\2", "l": "a.b",
            "o": "not one",
        }  # fmt: skip
