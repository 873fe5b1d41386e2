"""The PostgreSQL source against a real server: what ``ports.Source`` and ``ports.Stream`` promise, and every way it can go wrong."""

import re
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from icelake.errors import Corrupt, Gap, IcelakeError, ProjectError, Refused, Unreachable, UnsupportedTable
from icelake.model.load import Bound, leaf_bounds
from icelake.model.membership import Membership
from icelake.model.relation import Refusal, Relation, TableId
from icelake.ports import DELETE, INSERT, TRUNCATE, UPDATE, RangeRead, Source
from icelake.sources.postgres.server import PostgresSource, range_query
from icelake.sources.postgres.session import run, session
from icelake.sources.postgres.stream import PgStream
from icelake.stack.binaries import Binaries
from icelake.stack.postgres import Postgres
from icelake.verify.source import SourceSnapshot
from tests.between import Between
from tests.conformance.conftest import SETTINGS, Shop, caught_up, operations, until
from tests.conftest import every_version


def read(source: Source, relation: Relation, lower: Bound | None, upper: Bound | None, limit: int) -> tuple[pa.Table, int, Bound | None]:
    with source.read_range(relation, lower, upper, limit) as reading:
        rows = list(reading.rows)
    table = pa.Table.from_batches(rows) if rows else pa.table({})
    return table, reading.lsn, reading.upper.bound


# ------------------------------------------------------------------------------------------- server, publication, slot


@every_version
def test_says_which_server_it_is(shop: Shop, binaries: Binaries) -> None:
    who = shop.source.identify()
    assert who.system_id == str(shop.sql("select system_identifier from pg_control_system()")[0][0])
    assert (who.timeline, who.database, who.version // 10000) == (1, shop.source.name, binaries.major)


@every_version
def test_publishes_idempotently_and_notices_a_weakened_publication(shop: Shop, binaries: Binaries) -> None:
    shop.sql("create table a (id int primary key)")
    shop.sql('create table "B b" (id int primary key)')
    a, b = shop.relation("public.a"), shop.relation("public.B b")
    with pytest.raises(Refused, match="PUBLICATION_CHANGED"):
        shop.source.published("p")
    for _ in range(2):
        shop.source.publish("p", [a])
    shop.source.publish("p", [a, b])
    members = shop.source.published("p")
    assert members.keys() == {TableId("public", "a"), TableId("public", "B b")}
    shop.sql("alter publication p drop table a")
    shop.sql("alter publication p add table a")
    again = shop.source.published("p")
    assert again[TableId("public", "a")] != members[TableId("public", "a")]
    assert again[TableId("public", "B b")] == members[TableId("public", "B b")]
    if binaries.major >= 15:
        for narrowed in ("a where (id > 5)", "a (id)"):
            shop.sql(f'alter publication p set table {narrowed}, "B b"')
            with pytest.raises(Refused, match="row filter"):
                shop.source.published("p")
        shop.sql('alter publication p set table a, "B b"')
    shop.sql("alter publication p set (publish = 'insert, update')")
    with pytest.raises(Refused, match="PUBLICATION_CHANGED"):
        shop.source.published("p")
    with pytest.raises(Refused, match="PUBLICATION_CHANGED"):
        shop.source.publish("p", [a, b])


def test_never_publishes_a_table_whose_updates_would_then_fail(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    a = shop.relation("public.a")
    shop.sql("alter table a drop constraint a_pkey")
    with pytest.raises(UnsupportedTable, match="no primary key"):
        shop.source.publish("p", [a])


def test_says_that_nothing_names_the_rows_of_a_published_table_any_more(shop: Shop) -> None:
    """Exactly when PostgreSQL refuses its users' updates."""
    shop.sql("create table a (id int primary key, u int not null unique, v int)")
    shop.sql("insert into a values (1, 1, 1)")
    shop.source.publish("p", [shop.relation("public.a")])
    for change, lost in (
        ("replica identity full", False),
        ("replica identity nothing", True),
        ("replica identity using index a_u_key", False),
        ("drop constraint a_u_key", True),
        ("replica identity default", False),
        ("drop constraint a_pkey", True),
        ("add primary key (id) deferrable", True),
        ("replica identity full", False),
        ("add column g int generated always as (v + 1) stored", True),
        ("drop column g", False),
    ):
        shop.sql(f"alter table a {change}")
        assert Membership.parse(shop.source.published("p")[TableId("public", "a")]).unnamed == lost, change
        if lost:
            with pytest.raises(psycopg.Error, match="cannot update table"):
                shop.sql("update a set v = v + 1")
        else:
            shop.sql("update a set v = v + 1")


def test_a_publication_that_sends_more_is_refused(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    shop.source.publish("p", [shop.relation("public.a")])
    shop.sql("alter publication p add tables in schema public")
    with pytest.raises(Refused, match="all tables, or whole schemas"):
        shop.source.published("p")
    shop.sql("drop publication p; create publication p for all tables with (publish = 'insert, update, delete, truncate')")
    with pytest.raises(Refused, match="all tables, or whole schemas"):
        shop.source.published("p")


def test_what_nothing_names_is_withdrawn(shop: Shop) -> None:
    """And nothing else: not the leaves that have a key, and not what only sends inserts."""
    shop.sql("create table a (id int primary key); create table b (id int primary key); create table log (line text)")
    shop.sql("create table r (id int primary key) partition by list (id)")
    shop.sql("create table r1 partition of r for values in (1); create table r2 partition of r for values in (2)")
    shop.source.append_only = frozenset({"public.log"})
    shop.source.publish("p", [shop.relation(f"public.{name}") for name in ("a", "b", "log", "r")])
    shop.sql("alter table a drop constraint a_pkey; alter table r2 replica identity nothing")
    with psycopg.connect(shop.source.dsn) as builder:
        builder.execute("create index on r2 (id)")
        left = shop.source.withdraw("p")
        assert left.keys() == {TableId("public", "a"), TableId("public", "r")}
        assert left[TableId("public", "a")] == ""
        assert "somebody works on the table" in left[TableId("public", "r")]
    assert shop.source.withdraw("p") == {TableId("public", "r"): ""}
    assert shop.source.withdraw("p") == {}
    with psycopg.connect(shop.source.dsn) as session:
        rows = session.execute("select tablename from pg_publication_tables where pubname like 'p%' order by 1").fetchall()
    assert rows == [("b",), ("log",), ("r1",)]
    shop.sql("delete from a; delete from r2")


def test_an_append_only_table_is_published_beside_the_others(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    shop.sql("create table log (line text)")
    shop.source.append_only = frozenset({"public.log"})
    (a, log), start = shop.followed("public.a", "public.log")
    assert (a.identity, log.identity) == ("key", "none")
    assert shop.source.published("p").keys() == {a.id, log.id}
    stream = shop.source.stream(shop.slot, "p", start, [a, log])
    shop.sql("insert into log values ('x'), (null)")
    shop.sql("update log set line = 'y'")
    shop.sql("delete from log")
    shop.sql("insert into a values (1)")
    shop.sql("truncate log, a")
    # Another identity is none of its mirror's business.
    shop.sql("alter table log replica identity full")
    shop.sql("insert into log values ('z')")
    chunks = caught_up(stream, shop.now())
    logged = [changes for chunk in chunks for changes in chunk.changes if changes.relation == log]
    assert [(op, new) for changes in logged for op, new in zip(changes.op, changes.new.to_pylist(), strict=True)] == [
        (INSERT, {"line": "x"}),
        (INSERT, {"line": None}),
        (TRUNCATE, {"line": None}),
        (INSERT, {"line": "z"}),
    ]
    assert [op for op, _, _ in operations(chunks, "a")] == [INSERT, TRUNCATE]
    stream.close()
    # Neither publication may send more, or less.
    shop.sql("alter publication p_append set (publish = 'insert, update, truncate')")
    with pytest.raises(Refused, match="but insert, update, truncate"):
        shop.source.published("p")
    shop.sql("drop publication p_append")
    assert shop.source.published("p").keys() == {a.id}
    with pytest.raises(Refused, match=r"no longer holds public\.log"):
        shop.source.stream(shop.slot, "p", start, [a, log])


def test_rows_without_a_key_come_whole(shop: Shop) -> None:
    shop.sql("create table bag (n int, f float8, big text)")
    shop.sql("alter table bag alter column big set storage external, replica identity full")
    shop.sql("insert into bag select n % 2, '-0', repeat('z', 9000) from generate_series(1, 7) n")
    (bag,), start = shop.followed("public.bag")
    assert (bag.identity, bag.key) == ("full", ())
    rows, _, bound = read(shop.source, bag, None, None, 2)  # one range, whatever the limit
    assert (rows.num_rows, bound) == (7, None)
    stream = shop.source.stream(shop.slot, "p", start, [bag])
    shop.sql("update bag set f = 0 where n = 0")
    shop.sql("delete from bag where f = 0")
    (first, *more) = [changes for chunk in caught_up(stream, shop.now()) for changes in chunk.changes]
    old = pa.Table.from_batches([changes.old for changes in (first, *more) if changes.old is not None])
    assert sorted((str(row["f"]), len(row["big"])) for row in old.to_pylist()) == [("-0.0", 9000)] * 7 + [("0.0", 9000)] * 3
    assert {len(text) for changes in (first, *more) for text in changes.new["big"].to_pylist() if text is not None} == {9000}
    # A key of later days is another table.
    shop.sql("alter table bag add column id int generated always as identity primary key")
    shop.sql("insert into bag values (1)")
    with pytest.raises(UnsupportedTable, match="TABLE_CHANGED"):
        caught_up(stream, shop.now())
    stream.close()


@every_version
def test_makes_keeps_and_drops_a_slot(shop: Shop) -> None:
    assert shop.source.slot(shop.slot) is None
    point = shop.source.create_slot(shop.slot)
    state = shop.source.slot(shop.slot)
    assert state is not None
    assert (state.plugin, state.database, state.active_pid, state.lost) == ("pgoutput", shop.source.name, None, None)
    assert state.confirmed_flush_lsn == point
    with pytest.raises(Refused, match="SLOT_EXISTS"):
        shop.source.create_slot(shop.slot)
    shop.source.drop_slot(shop.slot)
    shop.source.drop_slot(shop.slot)
    assert shop.source.slot(shop.slot) is None


def test_a_slot_that_waits_for_a_transaction_names_who_holds_it(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    impatient = PostgresSource(shop.dsn, slot_seconds=0.3)
    with psycopg.connect(shop.dsn, application_name="nightly job") as idle:
        idle.execute("insert into a values (1)")
        with pytest.raises(Unreachable, match="SLOT_WAITS_FOR_TRANSACTION") as caught:
            impatient.create_slot(shop.slot)
        assert f"pid {idle.info.backend_pid}" in caught.value.why
        assert "nightly job" in caught.value.why
        with pytest.raises(Unreachable, match="SLOT_WAITS_FOR_TRANSACTION"):
            impatient.read_range(shop.relation("public.a"), None, None, 10).__enter__()
    with psycopg.connect(shop.dsn, autocommit=True) as idle:
        idle.execute("begin")
        idle.execute("insert into a values (2)")
        idle.execute("prepare transaction 'forgotten'")
        with pytest.raises(Unreachable, match="'forgotten'"):
            impatient.create_slot(shop.slot)
        idle.execute("rollback prepared 'forgotten'")
    assert shop.source.slot(shop.slot) is None
    assert shop.source.create_slot(shop.slot) > 0


def test_errors_name_what_mends_them_and_never_the_password(shop: Shop, server: Postgres) -> None:
    secret = "hunter2-secret"
    shop.sql(f"create role reader_{shop.source.name} login password '{secret}'")
    reader = f"postgresql://reader_{shop.source.name}:{secret}@127.0.0.1:{server.port}/{shop.source.name}"
    cases: list[tuple[str, str, type[IcelakeError]]] = [
        (shop.dsn.replace(server.password, secret), "AUTHENTICATION_FAILED", Refused),
        (server.dsn_of("absent"), "NO_SUCH_DATABASE", Refused),
        (reader, "NO_REPLICATION_PRIVILEGE", Refused),
        (f"postgresql://x:{secret}@127.0.0.1:1/x", "SOURCE_UNREACHABLE", Unreachable),
        (f"postgresql://x:{secret}@nowhere.invalid/x", "SOURCE_UNREACHABLE", Unreachable),
        (f"postgresql://x:a@{secret}:5/x@127.0.0.1:1/x", "BAD_DSN", ProjectError),
        (f"no dsn {secret}", "BAD_DSN", ProjectError),
    ]
    for dsn, code, kind in cases:
        with pytest.raises(kind) as caught:
            PostgresSource(dsn).create_slot("x")
        assert caught.value.code == code
        assert caught.value.fix
        for password in (secret, server.password):
            assert password not in str(caught.value)
    with pytest.raises(Refused, match="REPLICATION"):
        PostgresSource(reader).drop_slot("x")
    shop.sql("create table a (id int primary key)")
    shop.sql(f"grant select on a to reader_{shop.source.name}")
    with pytest.raises(Refused, match="NOT_TABLE_OWNER") as caught:
        PostgresSource(reader).publish("p", [shop.relation("public.a")])
    assert "CREATE PUBLICATION" in caught.value.fix
    shop.sql("drop table a")
    shop.sql(f"drop role reader_{shop.source.name}")


def test_what_a_session_may_meet(shop: Shop, server: Postgres) -> None:
    """Each from the server's own mouth, in a session of ours."""
    shop.sql("create table a (id int primary key)")
    shop.sql(f"create role guest_{shop.source.name} login password 'guest'")
    shop.sql(f"create role nobody_{shop.source.name} password 'guest'")

    def of(role: str) -> str:
        return f"postgresql://{role}_{shop.source.name}:guest@127.0.0.1:{server.port}/{shop.source.name}"

    def meets(statement: str, code: str, kind: type[IcelakeError], dsn: str = shop.dsn) -> None:
        with pytest.raises(kind, match=code), session(dsn, "cannot ask", statement_seconds=1) as asked:
            run(asked, statement)

    meets("select pg_sleep(60)", "STATEMENT_TIMEOUT", Unreachable)
    meets("select 1 / 0", "SOURCE_ERROR", Refused)
    meets("select * from public.a", "PERMISSION_DENIED", Refused, of("guest"))
    meets("select 1", "CONNECTION_REFUSED_BY_SERVER", Refused, of("nobody"))
    with psycopg.connect(shop.dsn) as somebody:
        somebody.execute("lock table a in access exclusive mode")
        meets("begin; lock table public.a in access share mode nowait", "LOCKED", Unreachable)
    shop.sql(f"drop role guest_{shop.source.name}, nobody_{shop.source.name}")


@pytest.mark.parametrize(
    ("sent", "instead"),
    [
        (rb"(?s)(d\x00\x00..)w", rb"\1x"),
        (rb"(?s)d\x00\x00\x00\x32(w.{24})B.{20}", b"d\x00\x00\x00\x1d\\1"),
        (rb"(?s)d\x00\x00\x00\x32(w.{24}B.{4}).{16}", b"d\x00\x00\x00\x22\\1"),
    ],
    ids=["of another kind", "without a message", "torn"],
)
def test_bytes_that_no_walsender_sends_are_refused(shop: Shop, sent: bytes, instead: bytes) -> None:
    """As PostgreSQL's documentation has it (55.4), a CopyData message here is WAL ('w') or a keepalive ('k')."""
    shop.sql("create table a (id int primary key)")
    a = shop.relation("public.a")
    shop.source.publish("p", [a])
    start = shop.source.create_slot(shop.slot)
    shop.sql("insert into a values (1)")
    with Between(shop.dsn, lambda said: re.sub(sent, instead, said)) as broken:
        stream = PostgresSource(broken.dsn, busy_seconds=0).stream(shop.slot, "p", start, [a])
        with closing(stream), pytest.raises(Corrupt, match="STREAM_CORRUPT"):
            until(stream, lambda: stream.take() is not None)


def test_lines_longer_than_a_block_are_read_where_they_stand(shop: Shop) -> None:
    shop.sql("create table a (id int primary key, t text)")
    shop.sql("insert into a select g, repeat(chr(97 + g % 26), case when g % 7 = 0 then 5000000 else g end) from generate_series(1, 30) g")
    shop.sql("insert into a select g, repeat('y', 1000) from generate_series(100, 15000) g")
    a = shop.relation("public.a")
    with shop.source.read_range(a, None, None, 20_000) as read:
        rows = [row for batch in read.rows for row in zip(batch.column("id").to_pylist(), batch.column("t").to_pylist(), strict=True)]
    assert rows == shop.sql("select id, t from a order by id")


def test_a_server_that_is_not_set_up_for_it(binaries: Binaries) -> None:
    settings = SETTINGS | {"wal_level": "replica", "max_replication_slots": "1"}
    with Postgres(version=binaries, settings=settings) as server:
        source = PostgresSource(server.dsn)
        with pytest.raises(Refused, match="WAL_LEVEL") as caught:
            source.create_slot("s")
        assert "wal_level" in caught.value.fix
        with pytest.raises(Refused, match="VERIFY_NOT_LOGICAL"), SourceSnapshot(server.dsn) as snapshot:
            snapshot.take(30)
        server.restart(settings={"wal_level": "logical"})
        source.create_slot("s")
        with pytest.raises(Unreachable, match="NO_FREE_SLOT"):
            source.create_slot("t")
        with pytest.raises(Unreachable, match="VERIFY_NO_SLOT"), SourceSnapshot(server.dsn) as snapshot:
            snapshot.take(30)
        server.restart(settings={"max_wal_senders": "0"})
        with pytest.raises(Unreachable, match="NO_FREE_WALSENDER"):
            source.identify()
        server.restart(settings={"max_wal_senders": "2", "max_slot_wal_keep_size": "1MB", "wal_keep_size": "0"})
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("create table a (id int primary key)")
            (a,) = source.describe(["public.a"])
            assert isinstance(a, Relation)
            source.publish("p", [a])
            slot = source.slot("s")
            assert slot is not None
            for _ in range(4):
                admin.execute("insert into a select coalesce(max(id), 0) + 1 from a")
                admin.execute("select pg_switch_wal()")
            admin.execute("checkpoint")
        lost = source.slot("s")
        assert lost is not None
        assert lost.lost
        with pytest.raises(Gap, match="SLOT_LOST"):
            source.stream("s", "p", slot.confirmed_flush_lsn, [a])


# -------------------------------------------------------------------------------------------------------------- stream


@every_version
def test_every_kind_of_change(shop: Shop) -> None:
    shop.sql("create table a (id int, part text, v text, big text, primary key (part, id))")
    shop.sql("alter table a alter column big set storage external")
    shop.sql("insert into a values (1, 'x', 'old', repeat('z', 9000)), (2, 'x', 'two', null)")
    (a,), start = shop.followed("public.a")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    assert (stream.complete, stream.server_lsn, stream.buffered) == (start, start, 0)
    assert stream.take() is None
    shop.sql("insert into a values (3, 'y', null, '')")
    shop.sql("update a set v = 'new' where id = 1")
    shop.sql("update a set id = 20, part = 'w' where id = 2")
    shop.sql("delete from a where id = 3")
    shop.sql("truncate a")
    end = shop.now()
    chunks = caught_up(stream, end)
    key = {"part": None, "id": None}
    assert operations(chunks) == [
        (INSERT, {"id": 3, "part": "y", "v": None, "big": ""}, key),
        (UPDATE, {"id": 1, "part": "x", "v": "new", "big": None}, {"part": "x", "id": 1}),
        (UPDATE, {"id": 20, "part": "w", "v": "two", "big": None}, {"part": "x", "id": 2}),
        (DELETE, {"id": None, "part": None, "v": None, "big": None}, {"part": "y", "id": 3}),
        (TRUNCATE, {"id": None, "part": None, "v": None, "big": None}, key),
    ]
    unchanged = [
        bool(flag) for chunk in chunks for changes in chunk.changes for flag in changes.unchanged.get("big", [False] * len(changes.op))
    ]
    assert unchanged == [False, True, False, False, False]
    assert sum(chunk.transactions for chunk in chunks) == 5
    assert chunks[-1].position == stream.complete
    stream.close()


@pytest.mark.parametrize("text", [False, True])
def test_a_composite_type_altered_to_as_many_attributes(shop: Shop, text: bool) -> None:
    shop.sql("create type pair as (x int, y text)")
    shop.sql("create table a (id int primary key, p pair)")
    (a,), start = shop.followed("public.a")
    if text:
        a = replace(a, columns=(a.columns[0], replace(a.columns[1], iceberg="string")))
    stream = shop.source.stream(shop.slot, "p", start, [a])
    shop.sql("insert into a values (1, row(1, 'one'))")
    assert len(operations(caught_up(stream, shop.now()))) == 1
    # The stream says nothing of it, and the values look as before.
    shop.sql("alter type pair drop attribute y")
    shop.sql("alter type pair add attribute z text")
    shop.sql("insert into a values (2, row(2, 'not y'))")
    # Nor of row 1, which PostgreSQL prints anew: as (1,).
    with pytest.raises(UnsupportedTable, match=r"the type public\.pair of column p was altered"):
        caught_up(stream, shop.now())
    stream.close()


def test_full_identity_needs_no_old_value_from_the_lake(shop: Shop) -> None:
    shop.sql("create table a (id int primary key, v int, big text)")
    shop.sql("alter table a alter column big set storage external, replica identity full")
    shop.sql("insert into a values (1, 1, repeat('z', 9000))")
    (a,), start = shop.followed("public.a")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    shop.sql("update a set v = 2")
    ((op, new, old),) = operations(caught_up(stream, shop.now()))
    assert (op, new["big"], old) == (UPDATE, "z" * 9000, {"id": 1})
    stream.close()


def test_only_what_was_confirmed_is_told_and_a_new_stream_goes_on_from_it(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    (a,), start = shop.followed("public.a")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    shop.sql("insert into a values (1)")
    first = caught_up(stream, shop.now())[-1].position
    assert first is not None
    shop.sql("insert into a values (2)")
    caught_up(stream, shop.now())
    stream.close()
    state = shop.source.slot(shop.slot)
    assert state is not None
    assert (state.confirmed_flush_lsn, state.active_pid) == (start, None)

    stream = shop.source.stream(shop.slot, "p", start, [a])
    stream.confirm(first)
    assert len(operations(caught_up(stream, shop.now()))) == 2
    stream.close()
    state = shop.source.slot(shop.slot)
    assert state is not None
    assert state.confirmed_flush_lsn == first

    stream = shop.source.stream(shop.slot, "p", first, [a])
    assert [new["id"] for _, new, _ in operations(caught_up(stream, shop.now()))] == [2]
    stream.close()
    # Behind what was confirmed, PostgreSQL would silently leave transactions out.
    with pytest.raises(Gap, match="SLOT_AHEAD"):
        shop.source.stream(shop.slot, "p", start, [a])
    with pytest.raises(Gap, match="SLOT_MISSING"):
        shop.source.stream("absent", "p", start, [a])


def test_before_stops_at_a_commit_and_blocked_knows_when_none_is_left(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    (a,), start = shop.followed("public.a")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    for n in range(5):
        shop.sql("insert into a values (%s)", [n])
    with shop.source.read_range(a, None, None, 100) as reading:
        at = reading.lsn
        assert sum(len(batch) for batch in reading.rows) == 5
    for n in range(5, 10):
        shop.sql("insert into a values (%s)", [n])
    end = shop.now()
    assert not stream.blocked(at)
    chunks = caught_up(stream, at, before=at)
    assert [new["id"] for _, new, _ in operations(chunks)] == [0, 1, 2, 3, 4]
    assert all(changes.commit_lsn.max() < at for chunk in chunks for changes in chunk.changes)
    until(stream, lambda: stream.complete > at)
    assert stream.blocked(at)
    assert stream.take(before=at) is None
    assert not stream.blocked(end)
    assert [new["id"] for _, new, _ in operations(caught_up(stream, end))] == [5, 6, 7, 8, 9]
    assert stream.blocked(end)
    stream.close()


def test_a_transaction_larger_than_the_buffer(shop: Shop) -> None:
    shop.sql("create table a (id int primary key, t text)")
    (a,), start = shop.followed("public.a")
    shop.sql("insert into a values (0, 'before')")
    shop.sql("insert into a select i, repeat('x', 10000) from generate_series(1, 20000) i")
    shop.sql("insert into a values (-1, 'after')")
    end = shop.now()
    shop.source.buffer_bytes = 1 << 22
    stream = shop.source.stream(shop.slot, "p", start, [a])
    until(stream, lambda: stream.buffered >= 1 << 22)
    ids: list[int] = []
    shapes = []
    while not stream.blocked(end):
        stream.wait(0.2)
        while (chunk := stream.take()) is not None:
            assert stream.buffered < 1 << 23
            shapes.append((chunk.open, chunk.transactions, chunk.position is None))
            ids += [new["id"] for _, new, _ in operations([chunk])]
        if stream.server_lsn < end:
            stream.ask()
    stream.close()
    assert ids == [0, *range(1, 20001), -1]
    assert shapes[0] == (False, 1, False)
    assert set(shapes[1:-1]) >= {(True, 0, True)}
    assert len(shapes) > 40
    assert not shapes[-1][0]


def test_server_lsn_moves_when_only_another_database_writes(shop: Shop, server: Postgres) -> None:
    shop.sql("create table a (id int primary key)")
    (a,), start = shop.followed("public.a")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    with psycopg.connect(server.dsn, autocommit=True) as other:
        other.execute("create table if not exists elsewhere (id int)")
        other.execute("insert into elsewhere select generate_series(1, 1000)")
    end = shop.now()
    assert caught_up(stream, end) == []
    assert stream.server_lsn >= end
    assert stream.complete == start
    # A position between transactions can be confirmed, and started from.
    position = stream.server_lsn
    stream.confirm(position)
    stream.close()
    state = shop.source.slot(shop.slot)
    assert state is not None
    assert state.confirmed_flush_lsn == position
    stream = shop.source.stream(shop.slot, "p", position, [a])
    shop.sql("insert into a values (1)")
    assert len(operations(caught_up(stream, shop.now()))) == 1
    stream.close()


def test_tables_the_lake_does_not_hold_are_left_out(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    shop.sql("create table b (id int primary key)")
    (a, _), start = shop.followed("public.a", "public.b")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    shop.sql("insert into b values (1)")
    shop.sql("with x as (insert into b values (2)) insert into a values (2)")
    shop.sql("truncate a, b")
    shop.sql("truncate b")
    chunks = caught_up(stream, shop.now())
    assert [(op, new["id"]) for op, new, _ in operations(chunks)] == [(INSERT, 2), (TRUNCATE, None)]
    assert {changes.relation for chunk in chunks for changes in chunk.changes} == {a}
    assert sum(chunk.transactions for chunk in chunks) == 4
    stream.close()


def test_a_transaction_the_lake_holds_already_is_dropped_whole(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    shop.sql("create table b (id int primary key)")
    (a, _), start = shop.followed("public.a", "public.b")
    shop.sql("with x as (insert into b values (1)) insert into a values (1), (2)")
    middle = shop.now()
    shop.sql("insert into a values (3)")
    end = shop.now()
    # PostgreSQL leaves it out by itself, so it is asked for more than the stream then lets through.
    stream = PgStream(shop.dsn, shop.slot, "p", start, {a.oid: a})
    stream._start = stream.complete = middle
    stream.receive()
    chunks = caught_up(stream, end)
    # The relation message that came with the dropped transaction is kept: without it the next could not be read.
    assert [new["id"] for _, new, _ in operations(chunks)] == [3]
    assert sum(chunk.transactions for chunk in chunks) == 1
    stream.close()


def test_a_slot_in_use_names_its_user(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    (a,), start = shop.followed("public.a")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    state = shop.source.slot(shop.slot)
    assert state is not None
    with pytest.raises(Refused, match="SLOT_IN_USE") as caught:
        shop.source.stream(shop.slot, "p", start, [a])
    assert str(state.active_pid) in caught.value.why
    with pytest.raises(Refused, match="SLOT_IN_USE"):
        shop.source.drop_slot(shop.slot)
    stream.close()
    shop.source.drop_slot(shop.slot)


def test_a_killed_walsender_is_unreachable_for_now(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    (a,), start = shop.followed("public.a")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    shop.sql("insert into a values (1)")
    until(stream, lambda: stream.complete > start)
    shop.sql("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s", [shop.slot])
    with pytest.raises(Unreachable):
        until(stream, lambda: False)
    # What was whole before it broke may still be taken; then it breaks here, too.
    assert len(operations([chunk for chunk in [stream.take()] if chunk])) == 1
    with pytest.raises(Unreachable):
        stream.take()
    stream.close()
    stream = shop.source.stream(shop.slot, "p", start, [a])
    assert len(operations(caught_up(stream, shop.now()))) == 1
    stream.close()


def test_a_server_that_shuts_down_is_not_held_up_by_what_is_not_confirmed(binaries: Binaries) -> None:
    with Postgres(version=binaries, settings=SETTINGS) as server:
        source = PostgresSource(server.dsn)
        with psycopg.connect(server.dsn, autocommit=True) as session:
            session.execute("create table a (id int primary key)")
            (a,) = source.describe(["public.a"])
            assert isinstance(a, Relation)
            source.publish("p", [a])
            start = source.create_slot("s")
            stream = source.stream("s", "p", start, [a])
            session.execute("insert into a values (1)")
            until(stream, lambda: stream.complete > start)
        server.stop("fast")
        with pytest.raises(Unreachable, match="SOURCE_SHUTTING_DOWN"):
            until(stream, lambda: False)
        stream.close()
        server.start()
        stream = source.stream("s", "p", start, [a])
        until(stream, lambda: stream.complete > start)
        assert len(operations([chunk for chunk in [stream.take()] if chunk])) == 1
        server.kill9()
        with pytest.raises(Unreachable):
            until(stream, lambda: False)
        stream.close()


@every_version
def test_a_publication_dropped_meanwhile_loses_nothing_silently(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    (a,), start = shop.followed("public.a")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    shop.sql("insert into a values (1)")
    until(stream, lambda: stream.complete > start)
    shop.sql("drop publication p")
    shop.sql("insert into a values (2)")
    shop.source.publish("p", [a])
    shop.sql("insert into a values (3)")
    end = shop.now()
    with pytest.raises(Refused, match="PUBLICATION_CHANGED"):
        caught_up(stream, end)
    stream.close()
    stream = shop.source.stream(shop.slot, "p", start, [a])
    with pytest.raises(Refused, match="PUBLICATION_CHANGED"):
        caught_up(stream, end)
    stream.close()
    shop.sql("alter publication p drop table a")
    with pytest.raises(Refused, match=r"no longer holds public\.a") as left:
        shop.source.stream(shop.slot, "p", start, [a])
    assert left.value.table == "public.a"  # it stops alone
    shop.sql("drop publication p")
    with pytest.raises(Refused, match="PUBLICATION_CHANGED"):
        shop.source.stream(shop.slot, "p", start, [a])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("alter table a add column more int", "column more (integer) was added"),
        ("alter table a drop column v", "column v was dropped"),
        ("alter table a drop column v; alter table a add column v text", "column v was dropped"),
        ("alter table a rename column v to w", "column v is now called w"),
        ("alter table a alter column v type varchar(9)", "from text to character varying(9)"),
        ("alter table a rename to z; insert into z values (7)", "now called public.z"),
        ("alter table a drop constraint a_pkey, add primary key (id, v)", "rows by the key (id, v), they did by the key (id)"),
        ("alter table a drop constraint a_pkey", "it has no primary key"),
        ("alter table a replica identity nothing", "its replica identity is NOTHING"),
        (
            "create unique index i on a (v, id); alter table a replica identity using index i",
            "rows by the key (v, id), they did by the key (id)",
        ),
    ],
)
def test_a_table_of_another_shape_is_not_followed(shop: Shop, change: str, told: str) -> None:
    shop.sql("create table a (id int primary key, v text not null default '')")
    (a,), start = shop.followed("public.a")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    shop.sql("insert into a values (1)")
    assert len(operations(caught_up(stream, shop.now()))) == 1
    shop.sql(change)
    if "rename to z" not in change:
        shop.sql("insert into a values (2)")
    with pytest.raises(UnsupportedTable, match=r"TABLE_CHANGED|TABLE_GREW") as caught:
        caught_up(stream, shop.now())
    assert told in caught.value.why or caught.value.code == "TABLE_GREW"
    assert caught.value.table == "public.a"
    # It stays over: the frames it could not decode are not to be passed by.
    with pytest.raises(UnsupportedTable, match=r"TABLE_CHANGED|TABLE_GREW"):
        stream.take()
    stream.close()
    with pytest.raises(UnsupportedTable, match=r"TABLE_CHANGED|TABLE_GREW|TABLE_REPLACED"):
        read(shop.source, a, None, None, 10)


@every_version
def test_a_change_of_the_tables_past_is_not_read_as_todays(shop: Shop) -> None:
    shop.sql("create table a (id int primary key, v text)")
    (a,), start = shop.followed("public.a")
    shop.sql("alter table a rename column v to w")
    shop.sql("insert into a values (1)")
    shop.sql("alter table a rename column w to v")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    with pytest.raises(UnsupportedTable, match="when the change was made"):
        caught_up(stream, shop.now())
    stream.close()


def test_close_is_prompt_while_the_server_is_sending(shop: Shop) -> None:
    shop.sql("create table a (id int primary key, t text)")
    (a,), start = shop.followed("public.a")
    shop.sql("insert into a select i, repeat('x', 1000) from generate_series(1, 30000) i")
    shop.source.buffer_bytes = 1 << 20
    stream = shop.source.stream(shop.slot, "p", start, [a])
    until(stream, lambda: stream.buffered >= 1 << 20)
    stream.close()
    assert not [thread for thread in threading.enumerate() if shop.slot in thread.name]
    # Its walsender is gone or going: the next stream gets the slot.
    shop.source.stream(shop.slot, "p", start, [a]).close()


# -------------------------------------------------------------------------------------------------------------- ranges


def test_ranges_follow_one_another_in_key_order(shop: Shop) -> None:
    shop.sql('create table a (v text, n int, s text collate "C", primary key (s, n))')
    keys = [(s, n) for s in ("", "a", "a\tb", "a\\", "b\n", "\N{SNOWMAN}", "\\N", "o'clock", '"') for n in range(-3, 4)]
    for s, n in keys:
        shop.sql("insert into a values (%s, %s, %s)", [f"{n}{s}", n, s])
    a = shop.relation("public.a")
    assert a.key_is_ordered
    seen: list[dict[str, Any]] = []
    lower: Bound | None = None
    while True:
        table, _, bound = read(shop.source, a, lower, None, 10)
        seen += table.to_pylist()
        if bound is None:
            break
        assert bound[1] == 1
        lower = bound
    assert [(row["s"], row["n"]) for row in seen] == sorted(keys, key=lambda key: (key[0].encode(), key[1]))
    assert all(row["v"] == f"{row['n']}{row['s']}" for row in seen)
    one, _, bound = read(shop.source, a, (("a\tb", "2"), 0), (("a\tb", "2"), 1), 10)
    assert one.to_pylist() == [{"v": "2a\tb", "n": 2, "s": "a\tb"}]
    assert bound == (("a\tb", "2"), 1)
    part, _, bound = read(shop.source, a, (("a", "-3"), 1), (("a", "2"), 0), 10)
    assert part["n"].to_pylist() == [-2, -1, 0, 1]
    assert bound == (("a", "2"), 0)


def test_a_key_without_an_order_is_read_whole_or_singly(shop: Shop) -> None:
    shop.sql("create table a (id numeric primary key)")
    shop.sql("insert into a select i / 10.0 from generate_series(1, 26) i")
    shop.sql("update a set id = 1.30 where id = 1.3")
    a = shop.relation("public.a")
    assert not a.key_is_ordered
    whole, _, bound = read(shop.source, a, None, None, 5)
    assert (len(whole), bound) == (26, None)
    text = next(text for text in map(str, whole["id"].to_pylist()) if text.startswith("0.7"))
    one, _, _ = read(shop.source, a, ((text,), 0), ((text,), 1), 5)
    assert one["id"].to_pylist() == [text]
    # Equal for PostgreSQL, another key for the lake.
    assert len(read(shop.source, a, (("1.3",), 0), (("1.3",), 1), 5)[0]) == 0
    assert len(read(shop.source, a, (("1.30",), 0), (("1.30",), 1), 5)[0]) == 1
    with pytest.raises(ValueError, match="whole"):
        shop.source.read_range(a, ((text,), 1), None, 5)
    shop.sql("create table b (id char(3) primary key, v int)")
    shop.sql("insert into b values ('x', 1), ('', 2)")
    for text in ("x  ", "   "):
        assert len(read(shop.source, shop.relation("public.b"), ((text,), 0), ((text,), 1), 5)[0]) == 1
    assert len(read(shop.source, shop.relation("public.b"), (("x",), 0), (("x",), 1), 5)[0]) == 0


def test_ranges_use_the_primary_key(shop: Shop) -> None:
    shop.sql('create table a (b int, a text collate "C", v text, primary key (a, b))')
    shop.sql("insert into a select i, i % 100, repeat('v', 100) from generate_series(1, 20000) i")
    shop.sql("create table n (id numeric(10,2) primary key, v text)")
    shop.sql("insert into n select i, repeat('v', 100) from generate_series(1, 20000) i")
    shop.sql("analyze")
    for name, lower, upper in (("a", ("50", "3"), ("60", "9")), ("n", ("50.00",), ("5000.00",))):
        relation = shop.relation(f"public.{name}")
        for bounds in (((lower, 1), (upper, 1)), ((lower, 0), (upper, 0)), ((lower, 1), None), (None, (upper, 1)), (None, None)):
            with psycopg.connect(shop.dsn) as session:
                plan = session.execute(sql.SQL("explain ") + range_query(relation, bounds[0], bounds[1], 500)).fetchall()
            text = "\n".join(line for (line,) in plan)
            assert f"Index Scan using {name}_pkey" in text, text
            assert "Sort" not in text
            if bounds != (None, None):
                assert "Index Cond" in text
                assert "Filter" not in text


def test_a_range_takes_its_time_whatever_the_time_outs_of_its_role(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    shop.sql("insert into a values (1)")
    a = shop.relation("public.a")
    for setting in ("transaction_timeout", "idle_in_transaction_session_timeout", "statement_timeout"):
        shop.sql(f"alter database {shop.source.name} set {setting} = '200ms'")
    with shop.source.read_range(a, None, None, 10) as reading:
        time.sleep(0.5)
        assert [batch.to_pylist() for batch in reading.rows] == [[{"id": 1}]]


def test_a_range_left_early_lets_everything_go(shop: Shop) -> None:
    shop.sql("create table a (id int primary key, t text)")
    shop.sql("insert into a select i, repeat('x', 1000) from generate_series(1, 50000) i")
    a = shop.relation("public.a")
    with shop.source.read_range(a, None, None, 10**9) as reading:
        assert len(next(reading.rows)) > 0
        assert not shop.sql(
            "select 1 from pg_replication_slots where slot_name like 'icelake_read_%%' and database = current_database()", []
        )
    deadline = time.monotonic() + 10
    while shop.sql("select 1 from pg_stat_activity where application_name = 'icelake' and datname = current_database()"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_truncation_between_snapshot_and_reading_is_noticed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.sql("create table a (id int primary key)")
    shop.sql("insert into a values (1)")
    a = shop.relation("public.a")
    real = shop.source.exported_snapshot

    def truncated(held: Any) -> Any:
        taken = real(held)
        shop.sql("truncate a")
        return taken

    monkeypatch.setattr(shop.source, "exported_snapshot", truncated)
    with pytest.raises(Unreachable, match="TABLE_REWRITTEN"):
        read(shop.source, a, None, None, 10)


@every_version
def test_ranges_and_the_stream_filtered_by_their_points_make_the_table(shop: Shop) -> None:
    """The load protocol itself: a streamed change counts for a key from its range's L on, and every change is in one of the two."""
    shop.sql("create table a (id int primary key, v int)")
    shop.sql("insert into a select i, 0 from generate_series(1, 2000) i")
    (a,), start = shop.followed("public.a")
    stopping = threading.Event()

    def trade(seed: int) -> None:
        with psycopg.connect(shop.dsn, autocommit=True) as trader:
            n = seed
            while not stopping.is_set():
                n = (n * 1103515245 + 12345) % 2**31
                key = n % 2500
                with trader.transaction():
                    trader.execute("insert into a values (%s, %s) on conflict (id) do update set v = a.v + 1", [key, n % 1000])
                    if n % 5 == 0:
                        trader.execute("delete from a where id = %s", [(key * 7) % 2500])
                    if n % 7 == 0:
                        moved = (key * 3) % 2500
                        trader.execute(
                            "update a set id = id + 5000 where id = %s and not exists (select from a where id = %s)", [moved, moved + 5000]
                        )

    traders = [threading.Thread(target=trade, args=(seed,)) for seed in (1, 2)]
    for trader in traders:
        trader.start()
    try:
        stream = shop.source.stream(shop.slot, "p", start, [a])
        ranges: list[tuple[int, int]] = []
        rows: dict[int, int] = {}
        lower: Bound | None = None
        while True:
            table, point, bound = read(shop.source, a, lower, None, 300)
            rows |= {row["id"]: row["v"] for row in table.to_pylist()}
            ranges.append((int(bound[0][0]) if bound else 2**31, point))
            if bound is None:
                break
            lower = bound
    finally:
        stopping.set()
        for trader in traders:
            trader.join()
    chunks = caught_up(stream, shop.now())
    stream.close()
    assert len(ranges) > 4

    def counts(key: int, lsn: int) -> bool:
        return lsn >= next(point for upper, point in ranges if key <= upper)

    for chunk in chunks:
        for changes in chunk.changes:
            for op, lsn, new, old in zip(
                changes.op, changes.commit_lsn.tolist(), changes.new.to_pylist(), changes.old_key.to_pylist(), strict=True
            ):
                if op in (UPDATE, DELETE) and counts(old["id"], lsn):
                    del rows[old["id"]]
                if op in (INSERT, UPDATE) and counts(new["id"], lsn):
                    rows[new["id"]] = new["v"]
    assert sorted(rows.items()) == shop.sql("select id, v from a order by id")
    assert any(isinstance(found, Refusal) for found in shop.source.describe(["public.absent"]))


# -------------------------------------------------------------------------------------------------------------- partitions

ROOT = """
create table t (id int, k int, v text, primary key (id, k)) partition by list (k);
create table t1 partition of t for values in (1);
create table t2 (v text, gone int, k int not null, id int not null); alter table t2 drop gone;
alter table t attach partition t2 for values in (2);
create table t34 partition of t for values in (3, 4) partition by list (k); create table t3 partition of t34 for values in (3)
"""


def leaf_oids(shop: Shop) -> dict[str, int]:
    return {name: int(oid) for name, oid in shop.sql("select relname::text, oid from pg_class where relname like 't%' and relkind = 'r'")}


def marks(shop: Shop) -> Membership:
    return Membership.parse(shop.source.published("p")[TableId("public", "t")])


@every_version
def test_leaves_are_published_and_their_changes_are_the_roots(shop: Shop) -> None:
    for statement in ROOT.split(";"):
        shop.sql(statement)
    (t,), start = shop.followed("public.t")
    oids = leaf_oids(shop)
    before = marks(shop)
    assert {leaf.oid for leaf in before.leaves} == {oids["t1"], oids["t2"], oids["t3"]}
    assert all(leaf.publication for leaf in before.leaves)
    shop.sql("insert into t values (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')")
    shop.sql("update t set k = 2 where id = 1")
    shop.sql("truncate t2")
    shop.sql("truncate t")
    # A table that its walsender has met as one that is not published, becomes a leaf.
    shop.sql("create table t5 (like t including all)")
    shop.sql("insert into t5 values (4, 5, 'before')")
    shop.sql("alter table t attach partition t5 for values in (5)")
    after = marks(shop)
    t5 = leaf_oids(shop)["t5"]
    assert before.other_leaves(after) == (t5,)
    shop.sql("insert into t values (5, 5, 'not sent')")
    shop.source.publish("p", [t])
    shop.sql("insert into t values (6, 5, 'sent')")
    stream = shop.source.stream(shop.slot, "p", start, [t])
    found = [(op, new["tableoid"] or old["tableoid"], new["id"] or old["id"]) for op, new, old in operations(caught_up(stream, shop.now()))]
    stream.close()
    assert sorted(found, key=str) == sorted(
        [
            (INSERT, oids["t1"], 1),
            (INSERT, oids["t2"], 2),
            (INSERT, oids["t3"], 3),
            (DELETE, oids["t1"], 1),
            (INSERT, oids["t2"], 1),
            (TRUNCATE, oids["t2"], None),
            *((TRUNCATE, oids[name], None) for name in ("t1", "t2", "t3")),
            (INSERT, t5, 6),
        ],
        key=str,
    )
    # Whatever was its leaf, and is none, comes no more.
    shop.sql("alter table t detach partition t34")
    shop.sql("insert into t34 values (7, 3, 'alone')")
    shop.sql("alter table t attach partition t34 for values in (3, 4)")
    again = marks(shop)
    assert after.other_leaves(again) == (oids["t3"], t5)  # the way up to the root is another one; t5 is published by now


@every_version
def test_ranges_go_from_leaf_to_leaf(shop: Shop) -> None:
    for statement in ROOT.split(";"):
        shop.sql(statement)
    shop.sql("insert into t select g, 1 + g % 3, 'v' || g from generate_series(1, 30) g")
    t = shop.relation("public.t")
    oids = leaf_oids(shop)
    whole, _, bound = read(shop.source, t, None, None, 1000)
    assert bound is None
    expected = shop.sql("select id, k, v, tableoid::int8 from t order by tableoid, id, k")
    assert [tuple(row.values()) for row in whole.to_pylist()] == expected
    for limit in (1, 4, 10, 25):
        seen: list[dict[str, Any]] = []
        lower: Bound | None = None
        while True:
            table, _, bound = read(shop.source, t, lower, None, limit)
            assert len(table) <= limit
            seen += table.to_pylist()
            if bound is None:
                break
            lower = bound
        assert [tuple(row.values()) for row in seen] == expected
    first, second = leaf_bounds(oids["t2"])
    part, _, bound = read(shop.source, t, first, second, 1000)
    assert {row["tableoid"] for row in part.to_pylist()} == {oids["t2"]}
    assert (len(part), bound) == (10, second)
    key = (str(oids["t1"]), "3", "1")
    one, _, _ = read(shop.source, t, (key, 0), (key, 1), 1000)
    assert [row["id"] for row in one.to_pylist()] == [3]
    none, _, bound = read(shop.source, t, *leaf_bounds(1), 1000)
    assert (len(none), bound) == (0, leaf_bounds(1)[1])


def test_ranges_hold_the_leaves_of_their_snapshot(shop: Shop) -> None:
    for statement in ROOT.split(";"):
        shop.sql(statement)
    shop.sql("insert into t select g, 1 + g % 3, 'v' || g from generate_series(1, 30) g")
    shop.sql("create table t4 (like t including all)")
    shop.sql("insert into t4 values (1, 4, 'd')")
    t = shop.relation("public.t")
    shop.sql("set lock_timeout = '1s'")

    def meanwhile(statement: str, look: Callable[[RangeRead], None]) -> None:
        """After the snapshot, and before the leaf is read, which begins by itself: once it has begun the statement would wait for it."""
        for _ in range(50):
            with shop.source.read_range(t, None, None, 1000) as reading:
                try:
                    shop.sql(statement)
                except psycopg.errors.LockNotAvailable:
                    continue
                look(reading)
                return
        raise AssertionError(f"the reader was always faster: {statement}")

    def refused(reading: RangeRead) -> None:
        with pytest.raises(Unreachable, match="TABLE_REWRITTEN"):
            list(reading.rows)

    for statement, rows in (("alter table t34 attach partition t4 for values in (4)", 30), ("alter table t detach partition t2", 31)):

        def whole(reading: RangeRead, rows: int = rows) -> None:
            assert sum(map(len, reading.rows)) == rows

        meanwhile(statement, whole)
    for statement in ("truncate t1", "drop table t4", "alter table t3 rename to other", "alter table t rename v to w"):
        meanwhile(statement, refused)


@pytest.mark.versions(15)
def test_a_leaf_that_generates_what_its_root_does_not(shop: Shop) -> None:
    """PostgreSQL allows that before 16: the leaf's changes would lack a column of the mirror."""
    shop.sql("create table t (id int, twice int, primary key (id)) partition by range (id)")
    shop.sql("create table t1 (id int not null, twice int generated always as (id * 2) stored)")
    shop.sql("alter table t attach partition t1 for values from (1) to (9)")
    (refused,) = shop.source.describe(["public.t"])
    assert isinstance(refused, Refusal)
    assert (refused.code, "twice" in refused.why) == ("PARTITION_DIFFERS", True)
