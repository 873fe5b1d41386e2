"""A stream that begins far behind: large pieces of the log by SQL, then a walsender, and the same changes whichever brings them."""

import resource
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from icelake.errors import Gap, Refused, Unreachable, ValueOutOfContract
from icelake.model.lsn import parse_lsn
from icelake.model.relation import Relation
from icelake.sources.postgres import stream as module
from icelake.sources.postgres.pgoutput import Decoder, DecoderState
from icelake.sources.postgres.server import PostgresSource
from icelake.sources.postgres.session import Kept
from icelake.sources.postgres.stream import PgStream
from tests.conformance.conftest import SETTINGS, Shop, caught_up, operations, until
from tests.conftest import every_version

PIECE = 1 << 15
Row = tuple[int, dict[str, Any], dict[str, Any]]


@pytest.fixture(autouse=True)
def fetched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a piece was asked for, and came."""
    count: Counter[str] = Counter()
    fetch = PgStream._fetch

    def counted(self: PgStream, until: int) -> bool:
        came = fetch(self, until)
        count["came" if came else "refused"] += 1
        return came

    monkeypatch.setattr(PgStream, "_fetch", counted)
    monkeypatch.setattr(module, "_MARGIN", 1 << 12)
    return count


def copies(shop: Shop) -> list[Any]:
    return shop.sql("select slot_name from pg_replication_slots where database = current_database() and slot_name like 'icelake_read_%'")


def history(shop: Shop) -> tuple[Relation, int]:
    """A table and a history of many pieces: small transactions, one open through several pieces, one larger than all, a truncation."""
    shop.sql("create table a (id int primary key, t text, big text)")
    shop.sql("alter table a alter column big set storage external")
    shop.sql("create table b (id int primary key)")
    (a, _), start = shop.followed("public.a", "public.b")
    with psycopg.connect(shop.dsn) as other:
        other.execute("insert into a values (-1, 'open for long')")
        for n in range(1500):
            shop.sql("insert into a values (%s, %s)", [n, "x" * (n % 300)])
        other.execute("update a set id = -2 where id = -1")
        other.commit()
    # With a checkpoint the server notes what runs: decoding can begin there.
    shop.sql("checkpoint")
    shop.sql("insert into a select i, 'large', repeat('y', 3000) from generate_series(10000, 13000) i")
    shop.sql("checkpoint")
    shop.sql("update a set t = 'changed' where id % 3 = 0")
    shop.sql("checkpoint")
    shop.sql("insert into b select generate_series(1, 100)")
    shop.sql("truncate a")
    for n in range(500):
        shop.sql("insert into a values (%s)", [n])
        shop.sql("delete from a where id = %s", [n // 2])
    return a, start


def rows(shop: Shop, a: Relation, start: int, piece: int | None, **how: Any) -> list[Row]:
    shop.source.piece_bytes = piece
    with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
        return operations(caught_up(stream, shop.now(), **how))


def test_what_was_decoded_ahead_is_taken_or_decoded_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the lake at a commit wants less than was decoded ahead: then that is as if nobody had looked at it."""
    ahead, restored = Counter[str](), Counter[str]()
    begin, restore = PgStream._decode_ahead, Decoder.restore

    def begun(self: PgStream, max_bytes: int) -> None:
        begin(self, max_bytes)
        ahead["begun" if self._ahead is not None else "not"] += 1

    def again(self: Decoder, state: DecoderState) -> None:
        restored["again"] += 1
        restore(self, state)

    monkeypatch.setattr(PgStream, "_decode_ahead", begun)
    monkeypatch.setattr(Decoder, "restore", again)
    shop.sql("create table a (id int primary key, t text)")
    (a,), start = shop.followed("public.a")
    commits = []
    for n in range(300):
        commits.append(shop.now())
        # A large transaction now and then, a shape that is told again, and values that come unchanged.
        last = 1000 * n + (300 if n % 50 else 900)
        shop.sql("insert into a select i, repeat('x', 50) from generate_series(%s::int, %s::int) i", [1000 * n, last])
        if n % 20 == 0:
            shop.sql("alter table a alter column t set statistics 100")
        shop.sql("update a set id = id + 950 where id = %s", [1000 * n])
    end = shop.now()
    expected = rows(shop, a, start, None)
    taken: list[Row] = []
    with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
        until(stream, lambda: stream.server_lsn >= end or stream.buffered > 1 << 22)
        position = start
        for turn in range(300):
            before = next((commit for commit in commits if commit > position), None) if turn % 3 == 0 else None
            chunk = stream.take(before=before, max_bytes=1 << 17)
            if chunk is not None:
                position = chunk.position or position
                assert before is None or position <= before
                taken += operations([chunk])
        taken += operations(caught_up(stream, shop.now(), max_bytes=1 << 17))
    assert taken == expected
    assert ahead["begun"] > 10
    assert restored["again"] > 10


def test_what_cannot_be_decoded_is_said_when_it_is_taken(shop: Shop) -> None:
    shop.sql("create table a (id int primary key, t numeric(5,2))")
    (a,), start = shop.followed("public.a")
    shop.sql("insert into a select i, 1 from generate_series(1, 20000) i")
    for n in range(100):
        shop.sql("insert into a values (%s, 2)", [100_000 + n])
    shop.sql("insert into a values (200000, 'NaN')")
    stream = shop.source.stream(shop.slot, "p", start, [a])
    with closing(stream):
        end = shop.now()
        until(stream, lambda: stream.server_lsn >= end)
        taken: list[Row] = []

        def take() -> None:
            while (chunk := stream.take(max_bytes=1 << 10)) is not None:
                taken.extend(operations([chunk]))

        with pytest.raises(ValueOutOfContract):
            take()
        # All that was committed before, but what came in one chunk with it.
        assert 20_000 < len(taken) <= 20_100
        assert [new["id"] for _, new, _ in taken] == [*range(1, 20_001), *range(100_000, 80_000 + len(taken))]
        with pytest.raises(ValueOutOfContract):
            stream.take()


def test_a_server_that_is_asked_all_the_time_does_something_else_too(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    (a,), start = shop.followed("public.a")
    with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
        assert isinstance(stream, PgStream)
        stream.wait(1)
        before, began = stream._news, time.monotonic()
        while time.monotonic() < began + 1:
            stream.ask()
            stream.wait(0.1)
        # 10,000 if each answer is asked for at once.
        assert 5 < stream._news - before < 500


def test_look_ups_share_a_session_that_may_break(shop: Shop) -> None:
    shop.sql("create table a (id int primary key)")
    (a,), start = shop.followed("public.a")
    others = "select pid from pg_stat_activity where application_name = 'icelake' and backend_type = 'client backend'"
    with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
        for _ in range(3):
            published = shop.source.published("p")
            (one,) = shop.sql(others)
        shop.sql("select pg_terminate_backend(%s, 10000)", one)
        assert shop.source.published("p") == published
        (another,) = shop.sql(others)
        assert another != one
        stream.wait(0)  # raises if the stream had broken
    for again in (False, True):
        if again:
            assert shop.source.published("p") == published
        # A backend ends a moment after its session was closed.
        deadline = time.monotonic() + 30
        while shop.sql(others):
            assert time.monotonic() < deadline, "a session was left open"
            time.sleep(0.02)


def test_who_asks_for_ever_keeps_nobody(shop: Shop) -> None:
    """Neither whoever closes the session, nor who asks after that."""
    kept = Kept(shop.dsn)
    asking, answer = threading.Event(), threading.Event()

    def question(_: object) -> bool:
        asking.set()
        return answer.wait(60)

    thread = threading.Thread(target=kept.ask, args=("wait", question))
    thread.start()
    asking.wait()
    began = time.monotonic()
    kept.close(0.1)
    assert kept.ask("look", lambda server: server.execute("select 1").fetchall()) == [(1,)]
    assert thread.is_alive()
    assert time.monotonic() < began + 30
    answer.set()
    thread.join()
    kept.close()


@every_version
def test_pieces_bring_what_a_walsender_brings(shop: Shop, fetched: Counter[str]) -> None:
    a, start = history(shop)
    expected = rows(shop, a, start, None)
    assert not fetched
    assert len(expected) > 6000
    assert rows(shop, a, start, PIECE) == expected
    assert fetched["came"] >= 4
    assert rows(shop, a, start, PIECE, max_bytes=1 << 14) == expected
    shop.source.buffer_bytes = 1 << 16
    assert rows(shop, a, start, PIECE) == expected
    assert not fetched["refused"]
    assert not copies(shop)


def test_the_slot_moves_to_what_was_confirmed(shop: Shop, fetched: Counter[str]) -> None:
    a, start = history(shop)
    expected = rows(shop, a, start, None)
    shop.source.piece_bytes, shop.source.buffer_bytes = PIECE, 1 << 12
    taken: list[Row] = []
    confirmed, moved = start, False
    with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
        assert isinstance(stream, PgStream)
        stream._every = 0  # seconds between two looks at what is confirmed
        while len(taken) < 1200:
            stream.wait(0.2)
            while len(taken) < 1200 and (chunk := stream.take()) is not None:
                taken += operations([chunk])
                if chunk.position is not None:
                    confirmed = chunk.position
                    stream.confirm(confirmed)
                    state = shop.source.slot(shop.slot)
                    moved |= state is not None and start < state.confirmed_flush_lsn <= confirmed
        assert copies(shop)  # it is still catching up
    assert moved
    assert fetched["came"] >= 2
    state = shop.source.slot(shop.slot)
    assert state is not None
    assert state.confirmed_flush_lsn == confirmed
    assert not copies(shop)
    assert taken + rows(shop, a, confirmed, PIECE) == expected
    shop.sql("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [shop.slot])
    with pytest.raises(Gap, match="SLOT_AHEAD"):
        shop.source.stream(shop.slot, "p", start, [a])


def test_nothing_is_lost_or_repeated_where_a_walsender_goes_on(shop: Shop, fetched: Counter[str]) -> None:
    shop.sql("create table a (id int primary key, t text)")
    (a,), start = shop.followed("public.a")
    shop.source.piece_bytes = PIECE
    stop = threading.Event()

    def write(first: int) -> None:
        with psycopg.connect(shop.dsn, autocommit=True) as other:
            n = first
            while not stop.is_set():
                with other.transaction():
                    other.execute("insert into a values (%s, %s)", [n, "x" * 200])
                    if n % 50 == 0:
                        other.execute("insert into a select %s + i, 'many' from generate_series(1, 200) i", [10 * n + 10**7])
                if n % 50 == 0:
                    other.execute("checkpoint")
                n += 3

    writers = [threading.Thread(target=write, args=(3 * n + n,)) for n in range(3)]
    for writer in writers:
        writer.start()
    took = []
    try:
        for _ in range(4):
            time.sleep(1)
            with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
                while copies(shop):
                    chunks = caught_up(stream, shop.now())
                    took += operations(chunks)
                    start = next((chunk.position for chunk in reversed(chunks) if chunk.position is not None), start)
                chunks = caught_up(stream, shop.now())
                took += operations(chunks)
                start = next((chunk.position for chunk in reversed(chunks) if chunk.position is not None), start)
                stream.confirm(start)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    took += rows(shop, a, start, PIECE)
    assert fetched["came"] >= 4
    ids = [new["id"] for _, new, _ in took]
    assert sorted(ids) == [number for (number,) in shop.sql("select id from a order by 1")]


@pytest.mark.parametrize("stop", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_piece_that_ends_in_the_middle(shop: Shop, fetched: Counter[str], stop: str) -> None:
    """The connection breaks, or the server has an error and the session lives: what came of the piece would come again."""
    a, start = history(shop)
    expected = rows(shop, a, start, None)
    shop.source.piece_bytes, shop.source.buffer_bytes = shop.now() - start - PIECE, 1 << 16
    with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
        until(stream, lambda: stream.buffered >= 1 << 16)
        shop.sql(f"select {stop}(active_pid) from pg_replication_slots where slot_name like 'icelake_read_%'")
        with pytest.raises(Unreachable):
            caught_up(stream, shop.now())
    assert not fetched
    shop.source.buffer_bytes = 1 << 26
    assert rows(shop, a, start, 1 << 20) == expected
    assert fetched["came"]


@pytest.mark.parametrize("what", ["slots", "temporary files"])
def test_a_server_without_room_is_read_by_a_walsender(shop: Shop, fetched: Counter[str], what: str) -> None:
    a, start = history(shop)
    expected = rows(shop, a, start, None)
    try:
        if what == "slots":
            while len(shop.sql("select 1 from pg_replication_slots")) < int(SETTINGS["max_replication_slots"]):
                shop.sql("select pg_create_physical_replication_slot('full_' || count(*)) from pg_replication_slots")
        else:
            shop.sql("alter role postgres set temp_file_limit = '1MB'")
            shop.sql("alter role postgres set work_mem = '1MB'")
        assert rows(shop, a, start, shop.now() - start - PIECE) == expected
        assert dict(fetched) == ({} if what == "slots" else {"refused": 1})
        assert not copies(shop)
    finally:
        shop.sql("alter role postgres reset all")
        shop.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'full_%'")


@pytest.mark.parametrize(
    "function",
    [
        "pg_copy_logical_replication_slot(name,name,boolean)",
        "pg_logical_slot_get_binary_changes(name,pg_lsn,integer,text[])",
        "pg_replication_slot_advance(name,pg_lsn)",
        "pg_drop_replication_slot(name)",
    ],
)
def test_who_may_not_call_the_functions_is_served_by_a_walsender(shop: Shop, fetched: Counter[str], function: str) -> None:
    a, start = history(shop)
    role = f"clerk_{shop.source.name}"
    shop.sql(f"create role {role} login replication password 'x'")
    shop.sql(f"grant select on a, b to {role}")
    shop.sql(f"revoke execute on function {function} from public")
    try:
        clerk = PostgresSource(make_conninfo(shop.dsn, user=role, password="x"), "c", piece_bytes=PIECE)
        with closing(clerk.stream(shop.slot, "p", start, [a])) as stream:
            assert len(operations(caught_up(stream, shop.now()))) > 6000
        assert not fetched
    finally:
        shop.sql(f"grant execute on function {function} to public")
        shop.sql(f"drop owned by {role}")
        shop.sql(f"drop role {role}")


@pytest.mark.versions(18)
def test_a_slot_that_is_lost_when_idle_is_streamed_from(shop: Shop, fetched: Counter[str]) -> None:
    a, start = history(shop)
    shop.sql("alter system set idle_replication_slot_timeout = '1h'")
    shop.sql("select pg_reload_conf()")
    try:
        assert len(rows(shop, a, start, PIECE)) > 6000
        assert not fetched
    finally:
        shop.sql("alter system reset idle_replication_slot_timeout")
        shop.sql("select pg_reload_conf()")


def test_a_slot_moved_while_it_is_copied(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    a, start = history(shop)
    look = module.slot_state

    def moved(server: Any, name: str) -> Any:
        state = look(server, name)
        if name == shop.slot:
            shop.sql("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [shop.slot])
        return state

    monkeypatch.setattr(module, "slot_state", moved)
    with pytest.raises(Gap, match="SLOT_AHEAD"):
        rows(shop, a, start, PIECE)


def test_a_walsender_begins_when_somebody_waits_for_more(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It decodes again what the pieces were decoded from: not while what they brought is still to be applied."""
    a, start = history(shop)
    expected, end = rows(shop, a, start, None), shop.now()
    shop.source.piece_bytes = PIECE
    resting, rest = threading.Event(), PgStream._until_wanted

    def rests(stream: PgStream) -> None:
        resting.set()
        rest(stream)

    monkeypatch.setattr(PgStream, "_until_wanted", rests)
    active = "select active from pg_replication_slots where slot_name = %s"

    def streaming() -> bool:
        return shop.sql(active, [shop.slot]) == [(True,)]

    with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
        assert resting.wait(30)
        taken = stream.take()
        assert taken is not None
        assert not streaming()
        until(stream, streaming)
        assert not copies(shop)
        assert operations([taken, *caught_up(stream, end)]) == expected
    # Who is through when the pieces are, and says so, is heard all the same.
    resting.clear()
    with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
        assert resting.wait(30)
        confirmed = stream.complete
        stream.confirm(confirmed)
    state = shop.source.slot(shop.slot)
    assert state is not None
    assert (state.confirmed_flush_lsn, state.active_pid) == (confirmed, None)
    assert not copies(shop)


@pytest.mark.parametrize("confirms", [True, False])
def test_a_slot_in_use_when_a_piece_has_come(shop: Shop, confirms: bool) -> None:
    """It may be free again soon: begun again, the stream waits for it as ever, and says who holds it if it does not get it."""
    a, start = history(shop)
    shop.source.piece_bytes, shop.source.buffer_bytes = PIECE, 1 << 12
    with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
        until(stream, lambda: stream.buffered > 0)
        with closing(PgStream(shop.dsn, shop.slot, ["p"], start, {a.oid: a})):
            if confirms:
                stream.confirm(start + 8)
            with pytest.raises(Unreachable, match="in use"):
                caught_up(stream, shop.now())


def test_a_piece_that_ends_in_a_page_header(shop: Shop, fetched: Counter[str]) -> None:
    """The record behind it is read with it, though it starts later: a walsender that begins there would send it again."""
    shop.sql("create table a (id int primary key)")
    (a,), start = shop.followed("public.a")
    for n in range(600):
        shop.sql("insert into a values (%s)", [n])
    with psycopg.connect(shop.dsn) as other:

        def at() -> int:
            return parse_lsn(other.execute("select pg_current_wal_insert_lsn()").fetchall()[0][0])

        def message(size: int) -> None:
            other.execute("select pg_logical_emit_message(false, 'x', repeat('y', %s))", [size])

        # How much longer than its text a message's record is.
        while True:
            before = at()
            message(1000)
            if before // 8192 == (after := at()) // 8192:
                break
        other.rollback()
        for n in range(50):
            other.execute("insert into a values (%s)", [10000 + n])
            if 8192 - at() % 8192 < 2000:
                message(3000)
            message(8192 - at() % 8192 - (after - before - 1000))
            commit = at()
            other.commit()
            if commit % 8192 == 24:
                break
        assert commit % 8192 == 24  # the first record of its page
    for n in range(300):
        shop.sql("insert into a values (%s)", [20000 + n])
    shop.sql("select pg_logical_emit_message(true, 'x', 'flush')")
    expected = rows(shop, a, start, None)
    for until_commit in (-24, -16, -8, 0, 8):
        assert rows(shop, a, start, commit + until_commit - start) == expected
    assert fetched["came"] >= 5


def test_messages_of_every_size_leave_what_is_beside_the_frames_alone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's buffer is filled to its last byte, and not beyond; what does not fit is handed over whole."""
    room = 700
    monkeypatch.setattr(module, "_BATCH", room)
    shop.sql("create table a (id int primary key, t text)")
    (a,), start = shop.followed("public.a")
    shop.sql("insert into a select i, repeat('x', i) from generate_series(1, 1500) i")
    shop.sql("insert into a select 1500 + i, repeat('x', i) from generate_series(1, 1500) i")
    guarded = np.full(room + 64, 170, np.uint8)
    for piece in (None, PIECE):
        shop.source.piece_bytes = piece
        stream = PgStream(shop.dsn, shop.slot, ["p"], start, {a.oid: a}, piece_bytes=piece)
        stream._receiver._frames = guarded[:room]
        stream.receive()
        with closing(stream):
            found = operations(caught_up(stream, shop.now()))
        assert [(new["id"], len(new["t"])) for _, new, _ in found] == [(i, (i - 1) % 1500 + 1) for i in range(1, 3001)]
        assert (guarded[room:] == 170).all()
        assert (guarded[:room] != 170).any()


def test_what_libpq_allocated_is_freed(shop: Shop) -> None:
    shop.sql("create table a (id int primary key, t text)")
    (a,), start = shop.followed("public.a")
    shop.sql("insert into a select i, repeat('x', 2000) from generate_series(1, 40000) i")
    held = []
    for _ in range(6):
        with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
            while not stream.blocked(shop.now()):
                stream.take()
                stream.ask()
                stream.wait(0.1)
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    # 80 MB came each time. What allocators keep for later is there after the first few.
    assert held[-1] - held[2] < 120_000_000


def test_who_holds_the_slot_is_said(shop: Shop) -> None:
    a, start = history(shop)
    shop.source.piece_bytes = PIECE
    walsender = PgStream(shop.dsn, shop.slot, ["p"], start, {a.oid: a})
    with pytest.raises(Refused, match="SLOT_IN_USE"):
        shop.source.stream(shop.slot, "p", start, [a])
    walsender.close()


@pytest.mark.versions(17)
def test_a_slot_that_waits_for_standbys_is_not_copied(shop: Shop, fetched: Counter[str]) -> None:
    """The copy would not wait: the lake could then hold what a promoted standby never had."""
    a, start = history(shop)
    shop.source.piece_bytes = PIECE
    shop.sql("select pg_create_physical_replication_slot('standby', true)")
    shop.sql("alter system set synchronized_standby_slots = 'standby'")
    shop.sql("select pg_reload_conf()")
    try:
        with closing(shop.source.stream(shop.slot, "p", start, [a])) as stream:
            time.sleep(1)
            assert stream.take() is None  # the standby has confirmed nothing
            assert not fetched
            shop.sql("alter system reset synchronized_standby_slots")
            shop.sql("select pg_reload_conf()")
            assert len(operations(caught_up(stream, shop.now()))) > 6000
    finally:
        shop.sql("alter system reset synchronized_standby_slots")
        shop.sql("select pg_reload_conf()")
        shop.sql("select pg_drop_replication_slot('standby')")
    assert rows(shop, a, start, PIECE)
    assert fetched["came"]


def test_a_publication_dropped_in_the_middle(shop: Shop, fetched: Counter[str]) -> None:
    a, start = history(shop)
    shop.sql("drop publication p")
    shop.sql("insert into a select generate_series(20000, 21000)")
    shop.source.publish("p", [a])
    shop.sql("insert into a select generate_series(30000, 31000)")
    shop.source.piece_bytes = PIECE
    stream = shop.source.stream(shop.slot, "p", start, [a])
    with closing(stream), pytest.raises(Refused, match="PUBLICATION_CHANGED"):
        caught_up(stream, shop.now())
    assert fetched["came"]


def test_an_open_transaction_that_holds_the_log_back(shop: Shop, fetched: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces end where more than twice the largest would be decoded again with each."""
    asked: list[int] = []
    fetch = PgStream._fetch

    def noted(self: PgStream, until: int) -> bool:
        asked.append(until - self._fetched)
        return fetch(self, until)

    monkeypatch.setattr(PgStream, "_fetch", noted)
    shop.sql("create table a (id int primary key, t text)")
    (a,), start = shop.followed("public.a")
    with psycopg.connect(shop.dsn) as other:
        other.execute("insert into a values (-1)")
        for n in range(3000):
            shop.sql("insert into a values (%s, repeat('x', 700))", [n])
        other.commit()
    expected = rows(shop, a, start, None)
    assert rows(shop, a, start, PIECE) == expected
    largest = module._LARGEST * PIECE
    assert 2 * largest <= sum(asked) <= 3 * largest < shop.now() - start
    assert max(asked) <= largest + PIECE
