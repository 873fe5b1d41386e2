"""What a real PostgreSQL prints, decoded from COPY and from pgoutput, against what its own SQL says each value is."""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import localcontext
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from icelake.errors import ValueOutOfContract
from icelake.model.relation import Column, Relation
from icelake.model.types import Primitive, parse
from icelake.ports import DELETE, INSERT, TRUNCATE, UPDATE, Chunk
from icelake.sources.postgres.copy_text import decode_copy, last_line
from icelake.sources.postgres.pgoutput import Decoder, RelationMessage
from icelake.sources.postgres.type_catalog import TypeCatalog
from icelake.sources.postgres.types import SESSION, iceberg_type, key_is_ordered, leaf, order
from icelake.sources.postgres.values import to_arrow, to_text
from icelake.stack.postgres import Postgres
from tests.unit.sources.postgres.wire import frame

RANDOM = random.Random(20261122)
ROWS = 400


@dataclass(frozen=True)
class Case:
    """A column, how to insert its values, what SQL says they are, and how the Arrow value is brought to the same form."""

    name: str
    pg_type: str
    values: Sequence[Any]
    insert: str
    truth: str
    canonical: Callable[[pa.Array], list[Any]]


def _scaled(array: pa.Array) -> list[Any]:
    with localcontext(prec=80):
        return [None if v is None else str(int(v.scaleb(array.type.scale))) for v in array.to_pylist()]


def _text_hex(array: pa.Array) -> list[Any]:
    return [None if v is None else v.encode().hex() for v in array.to_pylist()]


def _hex(array: pa.Array) -> list[Any]:
    return [None if v is None else v.hex() for v in array.to_pylist()]


def _number(array: pa.Array) -> list[Any]:
    width = array.type.bit_width
    return [None if v is None else str(v) for v in array.cast(pa.int32() if width == 32 else pa.int64()).to_pylist()]


def _floats(code: str) -> Callable[[pa.Array], list[Any]]:
    return lambda array: [None if v is None else struct.pack(code, v).hex() for v in array.to_pylist()]


def _decimals(digits: int, scale: int) -> list[str]:
    def one() -> str:
        whole = "".join(RANDOM.choice("0123456789") for _ in range(RANDOM.randint(1, digits)))
        at = len(whole) - RANDOM.randint(0, min(scale, len(whole)))
        return RANDOM.choice(["", "-"]) + (whole[:at][: digits - scale] or "0") + ("." + whole[at:] if at < len(whole) else "")

    top = "9" * (digits - scale) + ("." + "9" * scale if scale else "")
    return ["0", "-0", top, f"-{top}", "0.00" if scale else "1", *[one() for _ in range(ROWS)]]


def _texts() -> list[str]:
    pieces = [
        "\\",
        "\\N",
        "\\.",
        "\t",
        "\n",
        "\r",
        "\b",
        "\f",
        "\v",
        "'",
        '"',
        "é",
        "漢字",
        "🧊",
        "a",
        "b",
        " ",
        "\\t",
        "\x7f",
        "\x01",
        "NULL",
        "",
    ]
    return ["", "\\N", "\\.", "N", *["".join(RANDOM.choices(pieces, k=RANDOM.randint(0, 12))) for _ in range(ROWS)], "x" * 5000]


def _bits(code: str, width: int) -> list[str]:
    def one() -> str:
        return repr(struct.unpack(code, RANDOM.randbytes(width))[0])

    edges = ["0", "-0", "NaN", "Infinity", "-Infinity", "1", "0.1", "-1.5", "1e10", "123456789"]
    if code == ">f":
        edges += ["1e-45", "1.1754944e-38", "3.4028235e38", "16777216", "16777217", "0.30000001"]
    else:
        edges += ["5e-324", "2.2250738585072014e-308", "1.7976931348623157e308", "9007199254740993", "0.30000000000000004"]
    return [*edges, *[one() for _ in range(ROWS)]]


def _ints(low: int, high: int) -> list[int]:
    return [low, high, 0, 1, low + 1, high - 1, *[RANDOM.randint(low, high) >> RANDOM.randint(0, 40) for _ in range(ROWS)]]


def _days() -> list[int]:
    """Days since 1970 over all that PostgreSQL has: 4714-11-24 BC to 5874897-12-31."""
    low, high = -2_440_588, 2_145_031_948
    edges = [low, high, 0, -1, -719_162, -719_163, 2_932_896, 2_932_897, 11_016, 59]
    return [*edges, *[RANDOM.randint(-800_000, 4_000_000) for _ in range(ROWS)], *[RANDOM.randint(low, high) for _ in range(ROWS)]]


def _time_micros() -> list[int]:
    return [
        0,
        1,
        86_399_999_999,
        43_200_000_000,
        *[RANDOM.randrange(86_400_000_000) // (s := 10 ** RANDOM.randint(0, 6)) * s for _ in range(ROWS)],
    ]


def _instants() -> list[int]:
    """Microseconds since 1970 over all that PostgreSQL has and int64 can hold: 4714-11-24 BC to 294247-01-10."""
    low, high = -210_866_803_200_000_000, 2**63 - 1
    near = [RANDOM.randint(-(10**16), 10**16) // (s := 10 ** RANDOM.randint(0, 6)) * s for _ in range(ROWS)]
    return [low, high, 0, -1, 1, -62_135_596_800_000_001, -62_135_596_800_000_000, *near, *[RANDOM.randint(low, high) for _ in range(ROWS)]]


def _intervals() -> list[str]:
    edges = [
        "0",
        "178956970 years 7 mons",
        "-178956970 years -8 mons",
        "2147483647 days",
        "-2147483648 days",
        "1 year 2 mons -3 days 04:05:06.789",
    ]
    edges += ["2562047788:00:54.775807", "-2562047788:00:54.775807", "1 year -2 mons", "-1 mons +1 day -00:00:01", "1 day 24:00:00.000001"]
    some = [
        f"{RANDOM.randint(-30, 30)} mons {RANDOM.randint(-40, 40)} days {RANDOM.randint(-(10**12), 10**12) >> RANDOM.randint(0, 40)} us"
        for _ in range(ROWS)
    ]
    return [*edges, *some]


_ADD = "+ (%(v)s::int8 / 86400000000) * interval '1 day' + (%(v)s::int8 %% 86400000000) * interval '1 microsecond'"
_EPOCH = "trunc(extract(epoch from {c}) * 1000000)::text"
# Near the end of int64 extract(epoch from a timestamp) is no longer exact: its day and its time are.
_DAY_AND_TIME = (
    "(({c} AT TIME ZONE 'UTC')::date - date '1970-01-01')::numeric * 86400000000"
    " + trunc(extract(epoch from ({c} AT TIME ZONE 'UTC')::time) * 1000000)"
)
_INSTANT = f"({_DAY_AND_TIME})::text"
_LOCAL = _INSTANT.replace(" AT TIME ZONE 'UTC'", "")
_TEXT = "encode(convert_to({c}::text, 'UTF8'), 'hex')"
# A cast to text is another function than output for some types: inet's shows /32.
_OUTPUT = "CASE WHEN {c} IS NOT NULL THEN encode(convert_to(format('%s', {c}), 'UTF8'), 'hex') END"
CASES = [
    Case("b", "bool", [True, False], "%(v)s", "{c}::int::text", lambda a: [None if v is None else str(int(v)) for v in a.to_pylist()]),
    Case("i2", "int2", _ints(-(2**15), 2**15 - 1), "%(v)s", "{c}::text", _number),
    Case("i4", "int4", _ints(-(2**31), 2**31 - 1), "%(v)s", "{c}::text", _number),
    Case("i8", "int8", _ints(-(2**63), 2**63 - 1), "%(v)s", "{c}::text", _number),
    Case("o", "oid", _ints(0, 2**32 - 1), "%(v)s", "{c}::int8::text", _number),
    Case("f4", "float4", _bits(">f", 4), "%(v)s::text::float4", "encode(float4send({c}), 'hex')", _floats(">f")),
    Case("f8", "float8", _bits(">d", 8), "%(v)s::text::float8", "encode(float8send({c}), 'hex')", _floats(">d")),
    Case("n12", "numeric(12,2)", _decimals(12, 2), "%(v)s::text::numeric", "trunc({c} * 100)::text", _scaled),
    Case("n38", "numeric(38,10)", _decimals(38, 10), "%(v)s::text::numeric", "trunc({c} * 10000000000)::text", _scaled),
    Case("n380", "numeric(38,0)", _decimals(38, 0), "%(v)s::text::numeric", "{c}::text", _scaled),
    Case("n3838", "numeric(38,38)", _decimals(38, 38), "%(v)s::text::numeric", "trunc({c} * 1e38::numeric)::text", _scaled),
    Case("n19", "numeric(19,4)", _decimals(19, 4), "%(v)s::text::numeric", "trunc({c} * 10000)::text", _scaled),
    Case("nx", "numeric", ["NaN", "Infinity", "-Infinity", "1.50", *_decimals(60, 20)], "%(v)s::text::numeric", _TEXT, _text_hex),
    Case("nn", "numeric(3,-2)", ["12345", "-99900", "NaN", "0"], "%(v)s::text::numeric", _TEXT, _text_hex),
    Case("n24", "numeric(2,4)", ["0.0012", "-0.0099", "0"], "%(v)s::text::numeric", _TEXT, _text_hex),
    Case("t", "text", _texts(), "%(v)s", "encode(convert_to({c}, 'UTF8'), 'hex')", _text_hex),
    Case("vc", "varchar(9000)", _texts(), "%(v)s", "encode(convert_to({c}, 'UTF8'), 'hex')", _text_hex),
    Case("bp", "char(12)", ["", "abc", "a\tb", " lead", "漢字"], "%(v)s", "encode(bpcharsend({c}), 'hex')", _text_hex),
    Case("nm", "name", ["pg_class", "", "Ünïcode"], "%(v)s", "encode(namesend({c}), 'hex')", _text_hex),
    Case("ch", '"char"', ["x", "", "\\", "\\310"], "%(v)s::text::\"char\"", _TEXT, _text_hex),
    Case("by", "bytea", [b"", b"\0", b"\\x", bytes(range(256)), *[RANDOM.randbytes(RANDOM.randint(0, 40)) for _ in range(ROWS)]],
         "%(v)s", "encode({c}, 'hex')", _hex),
    Case("d", "date", _days(),
         "date '1970-01-01' + %(v)s::int", "({c} - date '1970-01-01')::text", _number),
    Case("tm", "time", _time_micros(), "time '00:00' + %(v)s::int8 * interval '1 microsecond'", _EPOCH, _number),
    Case("ttz", "timetz", ["00:00:00+00", "23:59:59.999999-15:59:59", "24:00:00+05:30"], "%(v)s::text::timetz", _TEXT, _text_hex),
    Case("ts", "timestamp", _instants(), f"timestamp '1970-01-01' {_ADD}", _LOCAL, _number),
    Case("tz", "timestamptz", _instants(), f"timestamptz '1970-01-01 00:00+00' {_ADD}", _INSTANT, _number),
    Case("u", "uuid", [RANDOM.randbytes(16).hex() for _ in range(ROWS)], "%(v)s::text::uuid", "encode(uuid_send({c}), 'hex')", _hex),
    Case("j", "json", ['{"a": [1, 2.50,  null], "b\\n": "\\u00e9"}', "  1 ", '"\\\\"'], "%(v)s::text::json", _TEXT, _text_hex),
    Case("mo", "money", ["0", "-0.05", "1234.5", "92233720368547758.07", "-92233720368547758.08", *_decimals(15, 2)],
         "%(v)s::text::money", "trunc({c}::numeric * 100)::text", _scaled),
    Case("iv", "interval", _intervals(), "%(v)s::text::interval",
         "concat_ws(' ', extract(year from {c}) * 12 + extract(month from {c}), extract(day from {c}),"
         " trunc(extract(hour from {c}) * 3600000000 + extract(minute from {c}) * 60000000 + extract(microseconds from {c})))",
         lambda a: ["" if v is None else " ".join(map(str, v.values())) for v in a.to_pylist()]),
    Case("e", "mood", ["sad", "ok", 'q"uo,te'], "%(v)s::text::mood", _TEXT, _text_hex),
    Case("dm", "posted", ["1.5", "99999999.99"], "%(v)s::text::numeric", "trunc({c} * 100)::text", _scaled),
    Case("dd", "day", ["2024-01-31", "0001-01-01"], "%(v)s::text::date", "({c} - date '1970-01-01')::text", _number),
    *[Case(name, pg_type, values, f"%(v)s::text::{pg_type}", _OUTPUT, _text_hex) for name, pg_type, values in [
        ("ip", "inet", ["10.0.0.1", "10.0.0.1/8", "::1", "2001:db8::/32"]), ("ci", "cidr", ["10.0.0.0/8", "2001:db8::/32"]),
        ("ma", "macaddr", ["08:00:2b:01:02:03"]), ("m8", "macaddr8", ["08:00:2b:01:02:03:04:05"]), ("bi", "bit(3)", ["101", "000"]),
        ("vb", "varbit", ["", "1", "0101010101"]), ("ls", "pg_lsn", ["0/0", "16/B374D848"]), ("x8", "xid8", ["0", "18446744073709551615"]),
        ("tv", "tsvector", ["fat rat", "it''s"]), ("tq", "tsquery", ["fat & rat"]),
        ("pt", "point", ["(1.5,-2)"]), ("bx", "box", ["(1,2),(3,4)"]),
        ("jp", "jsonpath", ["$.a[*]"]), ("rc", "regclass", ["pg_class"]), ("iv2", "int2vector", ["1 2 3"]),
    ]],
    Case("jb", "jsonb", ['{"b": 1, "a": [1, 2.50, null]}', "null", '"\\t"'], "%(v)s::text::jsonb", _TEXT, _text_hex),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off"}) as running:
        yield running


def connect(server: Postgres, **settings: str) -> psycopg.Connection[Any]:
    options = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in {**SESSION, **settings}.items())
    return psycopg.connect(server.dsn, options=options, autocommit=True)


def columns_of(connection: psycopg.Connection[Any], table: str) -> tuple[Column, ...]:
    rows = connection.execute(
        "SELECT attname, attnum, atttypid, atttypmod, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    ).fetchall()
    types = TypeCatalog(connection, [row[2] for row in rows])
    out = []
    for name, attnum, oid, typmod, pg_type in rows:
        source, kind = types.of(oid, typmod)
        out.append(Column(name, attnum, oid, typmod, pg_type, kind, source=source))
    return tuple(out)


def copy_out(connection: psycopg.Connection[Any], query: str) -> bytes:
    with connection.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT") as copy:
        return b"".join(bytes(block) for block in copy)


def changes(connection: psycopg.Connection[Any], slot: str, decoder: Decoder) -> Chunk:
    rows = connection.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1', 'publication_names', 'p')", [slot]
    ).fetchall()
    return decoder.decode(frame(*[bytes(row[0]) for row in rows]))


def relation_of(connection: psycopg.Connection[Any], table: str, key: Sequence[str]) -> Relation:
    row = connection.execute("SELECT %s::regclass::oid::int8", [table]).fetchone()
    assert row is not None
    return Relation(row[0], "public", table, columns_of(connection, table), tuple(key))


def test_every_type_by_copy_and_by_pgoutput(server: Postgres) -> None:
    with connect(server) as pg:
        pg.execute("CREATE TYPE mood AS ENUM ('sad', 'ok', 'q\"uo,te')")
        pg.execute("CREATE DOMAIN posted AS numeric(10,2) CHECK (value > 0); CREATE DOMAIN day AS date")
        definition = ", ".join(f"{case.name} {case.pg_type}" for case in CASES)
        pg.execute(f"CREATE TABLE every (id int PRIMARY KEY, {definition})")
        pg.execute("CREATE PUBLICATION p FOR TABLE every")
        pg.execute("SELECT pg_create_logical_replication_slot('every', 'pgoutput')")
        with pg.transaction(), pg.cursor() as cursor:
            for case in CASES:
                # One row a value, all other columns null: a wrong null shows as well as a wrong value.
                cursor.executemany(
                    f"INSERT INTO every (id, {case.name}) VALUES ((SELECT count(*) FROM every), {case.insert})",
                    [{"v": value} for value in case.values[:60]],
                )
        with pg.transaction(), pg.cursor() as cursor:
            for case in CASES:
                cursor.executemany(
                    f"UPDATE every SET {case.name} = {case.insert} WHERE id = %(id)s",
                    [{"v": value, "id": n} for n, value in enumerate(case.values[60:])],
                )
        columns = columns_of(pg, "every")
        copied = copy_out(pg, "SELECT * FROM every ORDER BY id")
        batch = decode_copy(copied, columns)
        batch.validate(full=True)
        for case in CASES:
            truth = [row[0] for row in pg.execute(f"SELECT {case.truth.format(c=case.name)} FROM every ORDER BY id")]
            assert case.canonical(batch.column(case.name)) == truth, case.name
        assert last_line(copied, len(columns))[0] == str(batch.num_rows - 1)

        # The same from the change stream: the last version of every row.
        relation = relation_of(pg, "every", ["id"])
        chunk = changes(pg, "every", Decoder(lambda message: relation))
        (found,) = chunk.changes
        found.new.validate(full=True)
        assert set(found.op.tolist()) == {INSERT, UPDATE}
        last = {n: at for at, n in enumerate(found.new.column("id").to_pylist())}
        streamed = found.new.take(pa.array([last[n] for n in range(batch.num_rows)]))
        for name in batch.schema.names:
            # Float NaNs differ from themselves; bit for bit is what was promised anyway.
            assert repr(_raw(streamed.column(name))) == repr(_raw(batch.column(name))), name

        # And back, for what can be a key: PostgreSQL's own text.
        fields = [line.split(b"\t") for line in copied.split(b"\n")[:-1]]
        for at, column in enumerate(columns):
            if isinstance(parse(column.iceberg), Primitive) and column.iceberg not in ("float", "double"):
                texts = to_text(batch.column(at), column)
                assert [None if f == b"\\N" else _plain(f) for f in (line[at] for line in fields)] == texts, column


def _raw(array: pa.Array) -> list[Any]:
    if pa.types.is_date(array.type):
        array = array.cast(pa.int32())
    elif pa.types.is_temporal(array.type):
        array = array.cast(pa.int64())
    return array.to_pylist()


def _plain(field: bytes) -> str:
    """COPY's escapes undone, in one pass over the characters."""
    out, at = bytearray(), 0
    known = {ord("b"): 8, ord("f"): 12, ord("n"): 10, ord("r"): 13, ord("t"): 9, ord("v"): 11, 92: 92}
    while at < len(field):
        if field[at] == 92:
            at += 1
            out.append(known[field[at]])
        else:
            out.append(field[at])
        at += 1
    return out.decode()


@pytest.mark.parametrize(
    ("pg_type", "literal"),
    [
        ("date", "infinity"),
        ("date", "-infinity"),
        ("timestamp", "infinity"),
        ("timestamptz", "-infinity"),
        ("timestamp", "294247-01-10 04:00:54.775808"),
        ("timestamp", "294276-12-31 23:59:59.999999"),
        ("timestamptz", "294247-01-10 04:00:54.775808+00"),
        ("time", "24:00:00"),
        ("interval", "infinity"),
        ("numeric(5,2)", "NaN"),
    ],
)
def test_what_iceberg_cannot_hold_is_refused(server: Postgres, pg_type: str, literal: str) -> None:
    with connect(server) as pg:
        row = pg.execute("SELECT %s::regtype::oid::int8", [pg_type]).fetchone()
        assert row is not None
        typmod = (5 << 16 | 2) + 4 if pg_type.startswith("numeric") else -1
        column = Column("wrong", 1, row[0], typmod, pg_type, str(iceberg_type(leaf(row[0], typmod))))
        lines = copy_out(pg, f"SELECT '{literal}'::{pg_type}")
        with pytest.raises(ValueOutOfContract, match="wrong") as caught:
            decode_copy(lines, [column], "shop.orders")
        assert "shop.orders.wrong" in caught.value.what
        assert literal.split(maxsplit=1)[0] in caught.value.what
        assert caught.value.fix


@pytest.mark.parametrize("zone", ["America/St_Johns", "Asia/Kathmandu", "Africa/Monrovia", "UTC"])
def test_an_instant_is_the_same_in_every_time_zone(server: Postgres, zone: str) -> None:
    # Sessions of ours are in UTC; should one not be, its offsets (with seconds, before standard time) still count.
    with connect(server, TimeZone=zone) as pg:
        instants = [n for n in _instants() if n < 2**63 - 10**12][::4]
        lines = copy_out(
            pg, "SELECT " + _ADDED + " FROM unnest('{" + ",".join(map(str, instants)) + "}'::int8[]) WITH ORDINALITY AS u(v, n) ORDER BY n"
        )
        (column,) = (Column("t", 1, 1184, -1, "timestamptz", "timestamptz"),)
        assert decode_copy(lines, [column]).column(0).cast(pa.int64()).to_pylist() == instants


_ADDED = "timestamptz '1970-01-01 00:00+00' + (v / 86400000000) * interval '24 hours' + (v % 86400000000) * interval '1 microsecond'"


def test_keys_sort_as_the_server_sorts_them(server: Postgres) -> None:
    with connect(server) as pg:
        for pg_type, expression in [
            ("int8", "(random() * 1e6)::int8 - 500000"),
            ("oid", "(random() * 4e9)::int8::oid"),
            ("uuid", "gen_random_uuid()"),
            ("date", "date '0001-01-01' + (random() * 4000000)::int - 1000000"),
            ("timestamp", "timestamp '0001-01-01' + (random() * 8e6 - 1e6) * interval '1 day'"),
            ("timestamptz", "timestamptz '0001-01-01 00:00+00' + (random() * 8e6 - 1e6) * interval '1 day'"),
            ("numeric(20,5)", "(random() * 1e9 - 5e8)::numeric(20,5)"),
            ("bool", "random() < 0.5"),
            ("money", "(random() * 1e9 - 5e8)::numeric(20,2)::money"),
            ("bytea", "substr(uuid_send(gen_random_uuid()), 1, (random() * 3)::int)"),
            ('text COLLATE "C"', "substr('aAbBzZéäñ漢🧊~', (random() * 12)::int, (random() * 5)::int)"),
        ]:
            pg.execute("DROP TABLE IF EXISTS sorted")
            pg.execute(f"CREATE TABLE sorted (k {pg_type})")
            pg.execute(f"INSERT INTO sorted SELECT {expression} FROM generate_series(1, 300)")
            relation = relation_of(pg, "sorted", ["k"])
            assert key_is_ordered(relation.key_columns, {"k"}), pg_type
            batch = decode_copy(copy_out(pg, "SELECT k FROM sorted ORDER BY k"), relation.columns)
            keys = [(text,) for text in to_text(batch.column(0), relation.columns[0]) if text is not None]
            assert len(keys) == 300
            assert sorted(keys, key=order(relation)) == keys, pg_type


def test_a_session_of_changes(server: Postgres) -> None:
    """Everything pgoutput can say about a row, said by a real server."""
    with connect(server) as pg:
        pg.execute("CREATE TABLE doc (id int, line text, title text, body text, PRIMARY KEY (line, id))")
        pg.execute("ALTER TABLE doc ALTER body SET STORAGE EXTERNAL")
        pg.execute("CREATE TABLE whole (id int PRIMARY KEY, n int, body text)")
        pg.execute("ALTER TABLE whole ALTER body SET STORAGE EXTERNAL, REPLICA IDENTITY FULL")
        pg.execute("ALTER PUBLICATION p ADD TABLE doc, whole")
        pg.execute("SELECT pg_create_logical_replication_slot('doc', 'pgoutput')")
        doc, whole = relation_of(pg, "doc", ["line", "id"]), relation_of(pg, "whole", ["id"])
        asked: list[RelationMessage] = []

        def relations(message: RelationMessage) -> Relation:
            asked.append(message)
            return {doc.oid: doc, whole.oid: whole}[message.oid]

        long = "x" * 5000
        with pg.transaction():
            pg.execute("INSERT INTO doc VALUES (1, 'a', 'one', %s), (2, 'b', NULL, NULL)", [long])
            pg.execute("UPDATE doc SET title = 'uno' WHERE id = 1")
            pg.execute("UPDATE doc SET line = 'c', title = '' WHERE id = 1")
            pg.execute("DELETE FROM doc WHERE id = 2")
        with pg.transaction():
            pg.execute("INSERT INTO whole VALUES (1, 1, %s)", [long])
            pg.execute("UPDATE whole SET n = 2")
            pg.execute("UPDATE whole SET id = 7, n = NULL")
            pg.execute("DELETE FROM whole")
            pg.execute("TRUNCATE whole, doc")
        before = pg.execute("SELECT (extract(epoch from clock_timestamp()) * 1000000)::int8").fetchone()
        decoder = Decoder(relations)
        chunk = changes(pg, "doc", decoder)

        assert [(m.schema, m.name, m.replica_identity) for m in asked[:2]] == [("public", "doc", "d"), ("public", "whole", "f")]
        assert sorted(asked[2:], key=str) == sorted(asked[:2], key=str)  # TRUNCATE makes the server name both once more
        assert [(c.key, c.name) for c in asked[0].columns] == [(True, "id"), (True, "line"), (False, "title"), (False, "body")]
        assert chunk.transactions == 2
        assert not chunk.open
        assert before is not None
        assert before[0] - 60_000_000 < chunk.commit_time <= before[0]
        confirmed = pg.execute("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = 'doc'").fetchone()
        assert confirmed is not None
        assert chunk.position is not None
        assert chunk.position <= int(confirmed[0])
        docs, wholes = chunk.changes
        assert docs.relation is doc
        assert docs.op.tolist() == [INSERT, INSERT, UPDATE, UPDATE, DELETE, TRUNCATE]
        assert len(set(docs.commit_lsn.tolist())) == 2
        assert docs.commit_lsn[-1] == wholes.commit_lsn[0]
        assert [tuple(row.values()) for row in docs.new.to_pylist()] == [
            (1, "a", "one", long),
            (2, "b", None, None),
            (1, "a", "uno", None),
            (1, "c", "", None),
            (None, None, None, None),
            (None, None, None, None),
        ]
        assert {name: where.tolist() for name, where in docs.unchanged.items()} == {"body": [False, False, True, True, False, False]}
        assert [tuple(row.values()) for row in docs.old_key.to_pylist()] == [
            (None, None), (None, None), ("a", 1), ("a", 1), ("b", 2), (None, None),
        ]  # fmt: skip
        # With the full old row at hand, what was not sent is filled in.
        assert wholes.op.tolist() == [INSERT, UPDATE, UPDATE, DELETE, TRUNCATE]
        assert wholes.unchanged == {}
        assert [tuple(row.values()) for row in wholes.new.to_pylist()] == [
            (1, 1, long), (1, 2, long), (7, None, long), (None, None, None), (None, None, None),
        ]  # fmt: skip
        assert wholes.old_key.column(0).to_pylist() == [None, 1, 1, 7, None]


def test_a_column_dropped_and_added_again_is_asked_about_again(server: Postgres) -> None:
    with connect(server) as pg:
        pg.execute("CREATE TABLE swap (id int PRIMARY KEY, v text)")
        pg.execute("ALTER PUBLICATION p ADD TABLE swap")
        pg.execute("SELECT pg_create_logical_replication_slot('swap', 'pgoutput')")
        asked: list[RelationMessage] = []
        first = relation_of(pg, "swap", ["id"])

        def relations(message: RelationMessage) -> Relation:
            asked.append(message)
            return first if len(asked) == 1 else second

        pg.execute("INSERT INTO swap VALUES (1, 'before')")
        pg.execute("ALTER TABLE swap DROP v, ADD v text")
        pg.execute("INSERT INTO swap VALUES (2, 'after')")
        second = relation_of(pg, "swap", ["id"])
        assert second != first
        chunk = changes(pg, "swap", Decoder(relations))
        # The two messages are the same bytes: only asking again can tell the columns apart.
        assert len(asked) == 2
        assert asked[0] == asked[1]
        assert [change.relation for change in chunk.changes] == [first, second]
        assert [change.new.column("v").to_pylist() for change in chunk.changes] == [["before"], ["after"]]


def test_a_value_out_of_contract_leaves_the_decoder_as_it_was(server: Postgres) -> None:
    with connect(server) as pg:
        pg.execute("CREATE TABLE odd (id int PRIMARY KEY, d date)")
        pg.execute("ALTER PUBLICATION p ADD TABLE odd")
        pg.execute("SELECT pg_create_logical_replication_slot('odd', 'pgoutput')")
        relation = relation_of(pg, "odd", ["id"])
        decoder = Decoder(lambda message: relation)
        pg.execute("INSERT INTO odd VALUES (1, 'infinity')")
        with pytest.raises(ValueOutOfContract, match=r"public\.odd\.d \(date\)"):
            changes(pg, "odd", decoder)
        assert not decoder.open
        with pg.transaction():
            pg.execute(sql.SQL("INSERT INTO odd VALUES (2, '0044-03-15 BC')"))
            pg.execute("UPDATE odd SET d = NULL WHERE id = 1")
        # The relation message went with the refused chunk: without it the next changes mean nothing.
        fresh = Decoder(lambda message: relation)
        found = changes(pg, "odd", fresh).changes[0]
        assert to_text(found.new.column("d"), relation.columns[1]) == ["0044-03-15 BC", None]
        assert to_arrow(pa.array(["0044-03-15 BC"]), relation.columns[1]).cast(pa.int32()).to_pylist() == [-735_160]
