"""Which tables of a real server can be mirrored, and in which words the others are refused."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from icelake.model.relation import Column, Refusal, Relation
from icelake.sources.postgres import schema, type_catalog
from icelake.sources.postgres.choices import as_held
from icelake.sources.postgres.copy_text import decode_copy
from icelake.sources.postgres.schema import describe, describe_oid, differences
from icelake.sources.postgres.server import PostgresSource, range_query
from icelake.sources.postgres.session import Connection, connect, run
from icelake.sources.postgres.values import to_text
from icelake.stack.postgres import Postgres

SETUP = """
create schema s; create schema icelake; create schema nothing;
create table s.plain (id bigint primary key, "Name" varchar(20) not null, price numeric(12,2), gone int, note text);
alter table s.plain drop column gone;
create table s."odd.name ""x" (b int, a text, v bool, primary key (a, b) include (v));
create table s.identity_full (id int primary key); alter table s.identity_full replica identity full;
create table s.full_no_key (id int, name text); alter table s.full_no_key replica identity full;
create table s.full_deferrable (id int primary key deferrable); alter table s.full_deferrable replica identity full;
create table s.full_generated (id int primary key, twice int generated always as (id * 2) stored);
alter table s.full_generated replica identity full;
create table s.full_virtual (id int, twice int generated always as (id * 2)); alter table s.full_virtual replica identity full;
create table s.generated (id int primary key, double_id int generated always as (id * 2) stored, lazy int generated always as (id + 1));
create table s.posix_key (id text collate "POSIX" primary key);
create table s.wide_number (id numeric primary key, big numeric(50,3));
create table s.no_key (id int);
create table s.deferrable_key (id int primary key deferrable);
create table s.identity_nothing (id int primary key); alter table s.identity_nothing replica identity nothing;
create table s.identity_index (id int primary key, u int not null unique);
alter table s.identity_index replica identity using index identity_index_u_key;
create table s.index_order (a int not null, b text not null, c int); create unique index by_b_a on s.index_order (b, a) include (c);
alter table s.index_order replica identity using index by_b_a;
create table s.index_gone (id int primary key, u int not null unique);
alter table s.index_gone replica identity using index index_gone_u_key; alter table s.index_gone drop constraint index_gone_u_key;
create table s.index_nulls (a int, b int); insert into s.index_nulls values (null, 1), (null, 2);
alter table s.index_nulls add constraint given not null a not valid; create unique index by_a on s.index_nulls (a);
alter table s.index_nulls replica identity using index by_a;
create table s.only_generated (id int generated always as (1) stored primary key);
create unlogged table s.unlogged (id int primary key);
create table s.parted (id int primary key) partition by range (id);
create table s.leaf partition of s.parted for values from (0) to (10);
create table s.branch partition of s.parted for values from (10) to (20) partition by range (id);
create table s.twig partition of s.branch for values from (10) to (15);
create table s.unlogged_leaf (id int primary key) partition by range (id);
create unlogged table s.unlogged_1 partition of s.unlogged_leaf for values from (0) to (10);
create foreign data wrapper nowhere; create server nowhere foreign data wrapper nowhere;
create table s.foreign_leaf (id int) partition by range (id);
create foreign table s.foreign_1 partition of s.foreign_leaf for values from (0) to (10) server nowhere;
create table s.nothing_leaf (id int primary key) partition by range (id);
create table s.nothing_1 partition of s.nothing_leaf for values from (0) to (10);
create table s.nothing_2 partition of s.nothing_leaf for values from (10) to (20); alter table s.nothing_2 replica identity nothing;
create table s.full_leaf (id int) partition by range (id);
create table s.full_1 partition of s.full_leaf for values from (0) to (10); alter table s.full_1 replica identity full;
create table s.full_2 partition of s.full_leaf for values from (10) to (20);
create table s.keyless_leaf (id int) partition by range (id);
create table s.keyless_1 partition of s.keyless_leaf for values from (0) to (10);
create table s.hidden_leaf (id int primary key) partition by range (id);
create table s.hidden_1 partition of s.hidden_leaf for values from (0) to (10);
create table s.policed_leaf (id int primary key) partition by range (id);
create table s.policed_1 partition of s.policed_leaf for values from (0) to (10); alter table s.policed_1 enable row level security;
create table s.parent (id int primary key); create table s.child (primary key (id)) inherits (s.parent);
create view s.seen as select 1 as id;
create materialized view s.kept as select 1 as id;
create sequence s.counter;
create domain s.positive as int check (value > 0); create type s.mood as enum ('sad', 'ok');
create table s.typed (id int primary key, p s.positive, m s.mood, tags text[], span int4range, stay interval);
create table s.float_key (id float8 primary key);
create table s.bytes_key (id bytea primary key);
create type s.pair as (a int, gone int, b text); alter type s.pair drop attribute gone;
create type s.nothing as (); create domain s.pairs as s.pair[]; create domain s.code as char(3);
create table s.row_type (x s.mood, y numeric(5,1)[]);
create table s.made (id int primary key, p s.pair, ps s.pairs, n s.nothing, r s.row_type, wide numeric(50,3)[], one xid, two int2vector,
                     bx box[], st int4multirange);
create table s.array_key (id int[] primary key); create table s.pair_key (id s.pair primary key);
create table s.range_key (id int4range primary key); create table s.interval_key (id interval primary key);
create collation s.loose (locale = 'C'); create table s.loose_key (id text collate s.loose primary key);
update pg_collation set collisdeterministic = false where collname = 'loose'; -- this build has no ICU, which makes them
create table s.vector_key (id tsvector primary key);
create table s.many_keys (a s.mood, b inet, c cidr, d macaddr, e bit(3), f varbit, g money, h s.code, i "char", j name, k timetz, l bytea,
                          m numeric, n pg_lsn, o uuid, primary key (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o));
create table s.json_key (id jsonb primary key);
create table s.generated_key (id int, twice int generated always as (id * 2) stored primary key);
create table s.reserved (id int primary key, _row_id bigint);
create table s.secret (id int primary key, code text);
create table s.policed (id int primary key); alter table s.policed enable row level security;
create table icelake.mine (id int primary key);
create role clerk login password 'x'; grant usage on schema s to clerk;
grant select on all tables in schema s to clerk; revoke select on s.secret, s.hidden_1 from clerk; grant select (id) on s.secret to clerk;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off"}) as running:
        with psycopg.connect(running.dsn, autocommit=True) as session:
            session.execute(SETUP)
        yield running


@pytest.fixture
def session(server: Postgres) -> Iterator[Connection]:
    with connect(server.dsn) as running:
        yield running


def only(session: Connection, name: str) -> Relation | Refusal:
    (found,) = describe(session, [f"s.{name}"])
    assert (found.schema, found.name) == ("s", name)
    return found


def test_a_plain_table_by_attnum(session: Connection) -> None:
    found = only(session, "plain")
    assert isinstance(found, Relation)
    assert found.columns == (
        Column("id", 1, 20, -1, "bigint", "long", False),
        Column("Name", 2, 1043, 24, "character varying(20)", "string", False),
        Column("price", 3, 1700, (12 << 16 | 2) + 4, "numeric(12,2)", "decimal(12,2)", True),
        Column("note", 5, 25, -1, "text", "string", True),
    )
    assert (found.key, found.key_is_ordered) == (("id",), True)


def test_the_key_in_its_own_order_without_included_columns(session: Connection) -> None:
    found = only(session, 'odd.name "x')
    assert isinstance(found, Relation)
    assert found.key == ("a", "b")


def test_full_identity_is_fine_and_generated_columns_are_left_out(session: Connection) -> None:
    assert isinstance(only(session, "identity_full"), Relation)
    found = only(session, "generated")
    assert isinstance(found, Relation)
    assert [column.name for column in found.columns] == ["id"]


@pytest.mark.parametrize(
    ("name", "identity", "key"),
    [
        ("plain", "key", ("id",)),
        ("identity_full", "key", ("id",)),
        ("full_no_key", "full", ()),
        ("full_deferrable", "full", ()),
        ("identity_index", "key", ("u",)),
        ("index_order", "key", ("b", "a")),
        ("float_key", "key", ("id",)),
        ("bytes_key", "key", ("id",)),
        ("json_key", "key", ("id",)),
    ],
)
def test_what_names_rows(session: Connection, name: str, identity: str, key: tuple[str, ...]) -> None:
    found = only(session, name)
    assert isinstance(found, Relation), found
    assert (found.identity, found.key) == (identity, key)
    assert found.key_is_ordered == (key in {("id",), ("u",), ("b", "a")} and name not in {"float_key", "json_key"})


def test_append_only_is_a_choice_whatever_names_rows(session: Connection) -> None:
    names = ["s.no_key", "s.deferrable_key", "s.identity_nothing", "s.index_gone", "s.full_generated", "s.generated_key", "s.plain"]
    for name in names:
        (found,) = describe(session, [name], names)
        assert isinstance(found, Relation), found
        assert (found.identity, found.key, found.key_is_ordered) == ("none", (), False)
        assert describe_oid(session, found.oid, append_only=True) == found
    for name, code in (("s.unlogged", "NOT_A_PLAIN_TABLE"), ("s.only_generated", "NO_COLUMNS")):
        (other,) = describe(session, [name], [name])
        assert isinstance(other, Refusal)
        assert other.code == code


@pytest.mark.parametrize("name", ["no_key", "deferrable_key", "identity_nothing", "index_gone"])
def test_a_table_whose_rows_nothing_names_is_told_every_way_out(session: Connection, name: str) -> None:
    found = only(session, name)
    assert isinstance(found, Refusal)
    for way in (f'ALTER TABLE "s"."{name}" REPLICA IDENTITY FULL;', f'append_only = true in [tables."s.{name}"]'):
        assert way in found.fix


def test_whether_a_key_is_ordered_goes_by_its_collation(session: Connection) -> None:
    ordered = {}
    for name in ("posix_key", 'odd.name "x', "wide_number"):
        found = only(session, name)
        assert isinstance(found, Relation)
        ordered[name] = found.key_is_ordered
    # The database's own collation is the builtin C.UTF-8, which compares bytes.
    assert ordered == {"posix_key": True, 'odd.name "x': True, "wide_number": False}


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("no_key", "NO_PRIMARY_KEY", "no primary key"),
        ("deferrable_key", "DEFERRABLE_PRIMARY_KEY", "deferrable"),
        ("identity_nothing", "REPLICA_IDENTITY", "NOTHING"),
        ("index_gone", "REPLICA_IDENTITY", "an index that is gone"),
        ("full_generated", "REPLICA_IDENTITY", "FULL"),
        ("full_virtual", "REPLICA_IDENTITY", "FULL"),
        ("index_nulls", "REPLICA_IDENTITY", "may hold nulls"),
        ("unlogged", "NOT_A_PLAIN_TABLE", "unlogged"),
        ("leaf", "IS_PARTITION", "in whose mirror"),
        ("branch", "IS_PARTITION", "in whose mirror"),
        ("unlogged_leaf", "NOT_A_PLAIN_TABLE", "its partition s.unlogged_1 is unlogged"),
        ("foreign_leaf", "NOT_A_PLAIN_TABLE", "its partition s.foreign_1 is a foreign table"),
        ("nothing_leaf", "REPLICA_IDENTITY", "changes of its partition s.nothing_2"),
        ("full_leaf", "REPLICA_IDENTITY", "changes of its partition s.full_2"),
        ("keyless_leaf", "NO_PRIMARY_KEY", "no primary key"),
        ("seen", "NOT_A_PLAIN_TABLE", "a view"),
        ("kept", "NOT_A_PLAIN_TABLE", "materialized"),
        ("counter", "NOT_A_PLAIN_TABLE", "sequence"),
        ("array_key", "UNSUPPORTED_KEY", "several parts"),
        ("pair_key", "UNSUPPORTED_KEY", "several parts"),
        ("range_key", "UNSUPPORTED_KEY", "several parts"),
        ("interval_key", "UNSUPPORTED_KEY", "several parts"),
        ("generated_key", "GENERATED_KEY", "generated"),
        ("reserved", "RESERVED_COLUMN_NAME", "_row_id"),
        ("absent", "TABLE_NOT_FOUND", "no such table"),
    ],
)
def test_refusals(session: Connection, name: str, code: str, words: str) -> None:
    found = only(session, name)
    assert isinstance(found, Refusal)
    assert found.code == code
    assert words in found.why
    assert found.fix


def test_a_partitioned_table_has_a_column_more(session: Connection) -> None:
    found = only(session, "parted")
    assert isinstance(found, Relation)
    assert (found.partitioned, found.identity, found.key, found.key_is_ordered) == (True, "key", ("tableoid", "id"), True)
    assert [(c.name, c.attnum, c.iceberg, c.nullable) for c in found.columns] == [("id", 1, "int", False), ("tableoid", -6, "long", False)]
    assert [c.name for c in found.sent] == ["id"]
    assert [leaf.name for leaf in schema.leaves_of(session, [found.oid])] == ["leaf", "twig"]
    for name in ("parent", "child"):  # inheritance is something else: each has its own rows
        one = only(session, name)
        assert isinstance(one, Relation)
        assert not one.partitioned


def test_every_type_is_known_by_what_it_is_made_of(session: Connection) -> None:
    typed, made = only(session, "typed"), only(session, "made")
    assert isinstance(typed, Relation)
    assert isinstance(made, Relation)
    mood = re.search(r'\{"enum":\[\[\d+,"sad"\],\[\d+,"ok"\]\]\}', "".join(c.source for c in typed.columns))
    assert mood is not None
    assert {c.name: (c.source, c.iceberg) for c in typed.columns} == {
        "id": ("", "int"),
        "p": ('"int4"', "int"),
        "m": (mood[0], "string"),
        "tags": ('{"array":"text"}', "list<string>"),
        "span": ('{"range":"int4"}', "struct<lower: int, upper: int, bounds: string>"),
        "stay": ("", "struct<months: int, days: int, micros: long>"),
    }
    pair = '{"composite":[[1,"a","int4"],[3,"b","text"]]}'
    assert {c.name: (c.source, c.iceberg) for c in made.columns} == {
        "id": ("", "int"),
        "p": (pair, "struct<a: int, b: string>"),
        "ps": ('{"array":' + pair + "}", "list<struct<a: int, b: string>>"),
        "n": ('"other"', "string"),
        "r": ('{"composite":[[1,"x",' + mood[0] + '],[2,"y",{"array":"numeric(5,1)"}]]}', "struct<x: string, y: list<decimal(5,1)>>"),
        "wide": ('{"array":"numeric(50,3)"}', "list<string>"),
        "one": ('"other"', "string"),
        "two": ("", "string"),
        "bx": ('{"array":"other","by":";"}', "list<string>"),
        "st": ('{"multirange":"int4"}', "list<struct<lower: int, upper: int, bounds: string>>"),
    }


def test_keys_of_every_kind(session: Connection) -> None:
    found = only(session, "many_keys")
    assert isinstance(found, Relation)
    assert (len(found.key), found.key_is_ordered) == (15, False)
    # Every key is found by its text alone, and so is where it lies between others.
    row = ("ok", "10.0.0.1/8", "10.0.0.0/8", "08:00:2b:01:02:03", "101", "", "-$1,234.50", "ab ", "\\310", "n", "24:00:00+05:30", "\\x00ff")
    key = (*row, "1.50", "16/B374D848", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
    session.execute(f"insert into s.many_keys values ({', '.join(['%s'] * len(key))})", key)
    session.execute(f"insert into s.many_keys values ({', '.join(['%s'] * len(key))})", ("sad", *key[1:]))
    copy = "COPY ({}) TO STDOUT"
    with session.cursor() as cursor, cursor.copy(sql.SQL(copy).format(range_query(found, (key, 0), (key, 1), None))) as lines:
        batch = decode_copy(b"".join(bytes(line) for line in lines), found.columns)
    assert [tuple(texts) for texts in zip(*[to_text(batch.column(c.name), c) for c in found.columns], strict=True)] == [key]
    session.rollback()
    found = only(session, "bytes_key")
    assert isinstance(found, Relation)
    assert found.key_is_ordered


def test_what_rows_from_before_a_column_have_in_it(server: Postgres, session: Connection) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as owner:
        owner.execute("create table s.grown (id int primary key); insert into s.grown values (1)")
        for number, (kind, value) in enumerate(
            (
                ("text", "'a\"b\\c{},'"), ("text", "''"), ("text", "'NULL'"), ("text", "e'\\n'"), ("int[]", "'[0:1]={7,8}'"),
                ("s.pair", "row(1, 'x y')"), ("text[]", "array['a b', null]"), ("bytea", "'\\x00ff'"), ("int4range", "'[1,5)'"),
                ("box", "'(1,1),(0,0)'"), ("box[]", "'{(1,1),(0,0);(2,2),(1,1)}'"), ("float8", "'-0'"), ("timestamptz", "'infinity'"),
                ("s.pairs", "array[row(1, null)::s.pair]"),
            )
        ):  # fmt: skip
            owner.execute(f"alter table s.grown add column c{number} {kind} default {value}")
    found = only(session, "grown")
    assert isinstance(found, Relation)
    columns = found.columns[1:]
    printed = ", ".join(f"pg_catalog.concat({column.name})" for column in columns)
    assert run(session, f"select {printed} from s.grown") == [tuple(column.default for column in columns)]


def test_a_type_that_was_altered_is_another(server: Postgres, session: Connection) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as owner:
        owner.execute("create type s.changing as (a int, b text)")
        owner.execute("create table s.uses (id int primary key, c s.changing[])")
        held = only(session, "uses")
        assert isinstance(held, Relation)
        session.rollback()
        for change, words in (
            ("add attribute d int", '[3,"d","int4"]'),
            ("drop attribute b", "was altered from"),
            ("rename attribute a to z", '[1,"z","int4"]'),
        ):
            owner.execute(f"alter type s.changing {change}")
            now = describe_oid(session, held.oid)
            session.rollback()
            (difference,) = differences(held, now)
            assert difference.startswith("the type s.changing[] of column c was altered")
            assert words in difference
        owner.execute("alter type s.changing drop attribute d")
        owner.execute("alter type s.changing rename attribute z to a")
        owner.execute("alter type s.changing add attribute b text")
        # The same names and types again, but another attribute: values written before have none.
        assert differences(held, describe_oid(session, held.oid))


def test_labels_of_an_enum_may_be_added_but_not_renamed(server: Postgres, session: Connection) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as owner:
        owner.execute("create type s.size as enum ('small', 'large'); create type s.sized as (of s.size)")
        owner.execute("create table s.sizes (id int primary key, one s.size, many s.sized[])")
        held = only(session, "sizes")
        assert isinstance(held, Relation)
        session.rollback()
        owner.execute("alter type s.size add value 'medium' before 'large'")
        now = describe_oid(session, held.oid)
        session.rollback()
        assert isinstance(now, Relation)
        assert differences(held, now) == []
        assert as_held(now, held) == held
        owner.execute("alter type s.size rename value 'small' to 'tiny'")
        now = describe_oid(session, held.oid)
        assert isinstance(now, Relation)
        assert [difference[:30] for difference in differences(held, now)] == [
            "the type s.size of column one ",
            "the type s.sized[] of column m",
        ]
        assert as_held(now, held) != held


def test_the_number_of_queries_does_not_grow_with_the_tables(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(connection: Connection, statement: Any, arguments: Any = None) -> Any:
        asked.append(statement)
        return run(connection, statement, arguments)

    for module in (schema, type_catalog):
        monkeypatch.setattr(module, "run", counted)
    with connect(server.dsn) as session:
        assert len(describe(session, ["s.*"])) > 30
    # Tables, columns, types; leaves and their defaults where a table is partitioned.
    assert len(asked) == 5


def test_what_this_role_may_not_see(server: Postgres) -> None:
    with connect(server.dsn.replace("postgres:" + server.password, "clerk:x")) as clerk:
        secret, policed, mine = describe(clerk, ["s.secret", "s.policed", "s.plain"])
        assert isinstance(secret, Refusal | Relation)
        by_name = {found.name: found for found in (secret, policed, mine)}
        assert isinstance(by_name["plain"], Relation)
        hidden, rows = by_name["secret"], by_name["policed"]
        assert isinstance(hidden, Refusal)
        assert (hidden.code, "code" in hidden.why, 'TO "clerk"' in hidden.fix) == ("NO_SELECT_PRIVILEGE", True, True)
        assert isinstance(rows, Refusal)
        assert rows.code == "ROW_SECURITY"
        # Leaves are read by themselves: it is their rights and policies that count.
        hidden, rows = describe(clerk, ["s.hidden_leaf", "s.policed_leaf"])
        assert isinstance(hidden, Refusal)
        assert (hidden.code, 'GRANT SELECT ON "s"."hidden_1" TO "clerk"' in hidden.fix) == ("NO_SELECT_PRIVILEGE", True)
        assert isinstance(rows, Refusal)
        assert (rows.code, "s.policed_1" in rows.why) == ("ROW_SECURITY", True)


def test_patterns(server: Postgres, session: Connection) -> None:
    source = PostgresSource(server.dsn)
    found = source.describe(["s.*", "s.plain", "s.seen", "nothing.*", "icelake.mine", "plain", "pg_catalog.pg_class"])
    names = {(table.schema, table.name) for table in found}
    assert len(names) == len(found)
    codes = {f"{table.schema}.{table.name}": table.code for table in found if isinstance(table, Refusal)}
    assert codes["icelake.mine"] == "RESERVED_SCHEMA"
    assert codes["pg_catalog.pg_class"] == "SYSTEM_TABLE"
    assert codes["nothing.*"] == "TABLE_NOT_FOUND"
    assert codes[".plain"] == "TABLE_NOT_FOUND"
    assert ("s", "counter") not in names  # a schema's tables are not its sequences and views
    assert ("s", "seen") in names  # unless one is named
    assert ("s", "parted") in names  # and no partitions, whose rows are their root's
    assert not names & {("s", "leaf"), ("s", "branch"), ("s", "twig")}


def test_differences_are_told_by_attnum(session: Connection) -> None:
    held = only(session, "plain")
    assert isinstance(held, Relation)
    assert describe_oid(session, held.oid) == held
    assert describe_oid(session, 1) is None
    assert differences(held, held) == []
    assert differences(held, None) == ["the table was dropped"]
    first, second, third, fourth = held.columns
    renamed = replace(held, columns=(first, second, third, replace(fourth, name="remark")))
    assert differences(held, renamed) == ["column note is now called remark"]
    again = replace(held, columns=(first, second, third, replace(fourth, attnum=6)))
    assert differences(held, again) == ["column note was dropped", "column note (text) was added"]
    retyped = replace(held, columns=(replace(first, type_oid=23, pg_type="integer"), second, third, fourth))
    assert differences(held, retyped) == ["column id changed its type from bigint to integer"]
    assert differences(held, replace(held, key=("Name",))) == ["its changes now name rows by the key (Name), they did by the key (id)"]
    assert differences(held, replace(held, oid=5)) == ["the table was dropped and made again"]
