"""A running START_REPLICATION as ``ports.Stream``: received ahead into a bounded buffer by a thread, decoded when taken.

Promises: transactions come whole and in commit order; the server is told of nothing but what was confirmed; memory is bounded by the
buffer whatever the size of a transaction, because the server waits while it is full. Never confirms on its own, never hands over a
change of a relation that is not exactly what the lake holds. Changes of tables the lake does not hold are dropped. Fails from
``wait`` and ``take``: Unreachable (connection gone), Gap (slot lost), Refused (publication gone), UnsupportedTable, Corrupt; after a
failure the stream is over.

A walsender sends one change after the other, which costs it more than decoding them. So what is far behind is fetched by SQL first:
``pg_logical_slot_get_binary_changes`` on a temporary copy of the slot, a large piece of WAL a call; the slot itself is only moved to what
was confirmed. Sources: PostgreSQL documentation, 9.28.6 (Replication Management Functions), 54.4 (Streaming Replication Protocol), 54.9
(Message Formats), 55.2 (COPY).
"""

import os
import re
import secrets
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import psycopg
from psycopg import pq, sql

from icelake.errors import Corrupt, Gap, IcelakeError, Refused, Unreachable, ValueOutOfContract
from icelake.model.lsn import format_lsn, parse_lsn
from icelake.model.relation import Refusal, Relation, SlotState
from icelake.ports import Chunk
from icelake.sources.postgres import schema
from icelake.sources.postgres.pgoutput import Decoder, DecoderState, Raw, RelationMessage
from icelake.sources.postgres.receive import EMPTY, ENDED, FULL, MESSAGE, Receiver
from icelake.sources.postgres.session import Connection, Kept, connect, explain, explain_state, readable, run, session
from icelake.sources.postgres.types import ALTERABLE

_Answer = TypeVar("_Answer")

_XLOG_DATA, _KEEPALIVE = ord("w"), ord("k")
_BEGIN, _COMMIT, _RELATION, _TRUNCATE = (ord(letter) for letter in "BCRT")
_ROW_CHANGES = frozenset(b"IUD")
_HEADER = 25
"""XLogData: 'w', start and end of WAL, clock; the pgoutput message follows."""
_BATCH = 1 << 18
"""Bytes the receiver gathers before it hands them to the buffer."""
_LARGEST = 8
"""So many times ``piece_bytes`` is the largest piece."""
_LOOK = 32
"""So many times ``piece_bytes`` the slot's restart_lsn may be behind what was confirmed, to be moved before anything is read."""
_MARGIN = 1 << 20
"""Bytes of the flushed log that no piece takes while the log grows: what is flushed may end in the middle of a record."""
_FLUSHES, _FLUSH_PAUSE = 8, 0.03
"""How often it is looked whether what was logged is flushed, and the seconds between: PostgreSQL's WAL writer does it every 0.2 s."""
_PAGE_HEADER = 40
"""Bytes of the longest header of a page of the log."""
_AHEAD = 4
"""The share of a chunk that is worth being decoded ahead: one of so many."""
_PATIENCE = 2.0
"""Seconds that a look-up may take to notice that the stream is closed."""
_REST = 10.0
"""Seconds between the last piece and the walsender, at most."""
_REPLY_PAUSE = 0.05
"""Seconds between answers to a server that keeps asking."""
_ASK_PAUSE = 0.02
"""Seconds between questions where the server is. One that is asked again as soon as it has answered does nothing else: for half a minute
10,000 answers a second were seen, and not one change."""
_SHUTDOWN_REQUESTS = 100
"""A server that shuts down asks again at every answer until everything it sent is confirmed: this often, we let it go."""
_POSTGRES_EPOCH = 946_684_800
_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_ROW = struct.Struct(">hi")
"""COPY BINARY: a row is the number of its columns, then each one's length and bytes; -1 columns are the end."""
_LSN = struct.Struct(">Q")
_FRAME = struct.Struct("<I")
_STATUS = struct.Struct(">cQQQqB")


def slot_in_use(slot: str, said: str) -> Refused:
    return Refused(
        "SLOT_IN_USE",
        f"slot {slot} is in use",
        said,
        "another icelake, or a connection that has not noticed its end, holds it: stop it, or SELECT pg_terminate_backend(pid)",
    )


def slot_state(server: Connection, name: str) -> SlotState | None:
    found = run(
        server,
        sql.SQL(
            """
            select s.slot_name, coalesce(s.plugin, ''), coalesce(s.database, ''), s.active_pid, s.confirmed_flush_lsn,
                   coalesce(to_jsonb(s) ->> 'invalidation_reason',
                            case when s.wal_status = 'lost' then 'its WAL was removed (max_slot_wal_keep_size)' end,
                            case when to_jsonb(s) ->> 'conflicting' = 'true' then 'it conflicted with recovery' end)
            from pg_catalog.pg_replication_slots s where s.slot_name = {}"""
        ).format(name),
    )
    if not found:
        return None
    slot_name, plugin, database, active_pid, confirmed, lost = found[0]
    return SlotState(slot_name, plugin, database, active_pid, parse_lsn(confirmed) if confirmed else 0, lost)


def not_ahead(state: SlotState | None, slot: str, start: int) -> None:
    """Raises Gap unless the slot still has everything after ``start``."""
    if state is None or state.confirmed_flush_lsn > start:
        moved = format_lsn(state.confirmed_flush_lsn) if state else "gone"
        raise Gap(
            "SLOT_AHEAD",
            f"slot {slot} has moved past what the lake holds",
            f"the slot is at {moved}, the lake at {format_lsn(start)}: somebody else confirmed what lies between",
            "`icelake resume --reload` begins a new slot and compares every table with the source",
        )


def _row(data: bytes) -> memoryview:
    """The one value of a row of COPY BINARY, before which the header may be; empty at the end."""
    if data.startswith(_SIGNATURE):
        (extension,) = struct.unpack_from(">i", data, len(_SIGNATURE) + 4)
        data = data[len(_SIGNATURE) + 8 + extension :]
    if data in (b"", b"\xff\xff"):
        return memoryview(b"")
    if len(data) <= _ROW.size or _ROW.unpack_from(data) != (1, len(data) - _ROW.size):
        raise Corrupt("STREAM_CORRUPT", f"no row of one value: {data[:16]!r}", "", "report this")
    return memoryview(data)[_ROW.size :]


@dataclass(frozen=True, slots=True)
class _Transaction:
    """A complete one in the buffer. ``commit_lsn`` is where its commit record starts, ``end`` the byte after its last frame."""

    commit_lsn: int
    end_lsn: int
    end: int


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Frames from where the last take ended up to ``end``, which are in the buffer still, and are being decoded."""

    end: int
    before: DecoderState
    decoded: Future[Chunk]


class PgStream:
    """Implements ``ports.Stream``. Made by ``PostgresSource.stream``; owns its connection and its thread.

    Offsets count bytes since the stream began. All fields below the lock are shared with the receiver and change under it.
    """

    def __init__(
        self,
        dsn: str,
        slot: str,
        publications: Sequence[str],
        start: int,
        held: Mapping[int, Relation],
        parked: Mapping[int, Relation] | None = None,
        *,
        buffer_bytes: int = 1 << 26,
        piece_bytes: int | None = None,
    ) -> None:
        """Start replication; nothing is received, and nothing told to the server, before ``receive``.

        ``held`` and ``parked``: whose changes come under which OID; of a partitioned table, the OID of each leaf. ``piece_bytes``: of the
        log are fetched in one call as long as there are as many; None: none are.
        """
        self._dsn = dsn
        self._slot = slot
        self._publications = publications
        self._publication = publications[0]
        self._start = start
        self._held = held
        self._parked = parked or {}
        self._held_names = {relation.id for relation in held.values()}
        self._capacity = buffer_bytes
        self._piece = piece_bytes
        self._fetched = start
        self._copy = ""
        self.behind = False
        self._streaming = False
        """Whether a walsender was begun."""
        self._decoder = Decoder(self._agree)
        self._decoding: threading.Thread | None = None
        self._asked_to_decode: SimpleQueue[tuple[bytes, Future[Chunk]] | None] = SimpleQueue()
        self._ahead: _Ahead | None = None
        """While it is there, the decoder is its thread's."""
        self.kept = Kept(dsn)
        """For look-ups, by who takes; closed with the stream."""
        self._connection = connect(dsn, replication=True, statement_seconds=0, lock_seconds=0)
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._thread: threading.Thread | None = None
        self._seen = 0
        self._described: dict[int, Relation | Refusal | None] = {}
        self._columns: dict[int, list[tuple[int, str, int, int]]] = {}

        # Known to the receiver alone.
        self._begun: int | None = None
        self._skipping = False
        self._skipped_relations: list[bytes] = []
        self._foreign = np.empty(0, np.int64)
        self._publication_gone = ""
        self._reply_due = False
        self._requests = 0
        self._requested_at = 0.0
        self._told_at = 0.0

        self._changed = threading.Condition()
        self.buffered = 0
        self.complete = start
        self.server_lsn = start
        self._buffer = bytearray()
        self._taken = 0
        self._transactions: deque[_Transaction] = deque()
        self._frame_ends: deque[int] = deque()
        self._open_lsn: int | None = None
        self._confirmed = 0
        self._confirmed_told = 0
        self._asked = False
        self._news = 0
        self._enough: int | None = None
        """What somebody who waits, waits for."""
        self._more = False
        """Whether somebody waited for more than was here, since the last piece came."""
        self._failure: BaseException | None = None
        self._closing = False
        try:
            self._begin()
        except BaseException:
            self._release()
            raise

    def _begin(self) -> None:
        timeout_ms = int(run(self._connection, "select setting from pg_catalog.pg_settings where name = 'wal_sender_timeout'")[0][0])
        self._every = min(10.0, timeout_ms / 3000) if timeout_ms else 10.0
        self.timeline = int(run(self._connection, "IDENTIFY_SYSTEM")[0][1])
        self._connection.add_notice_handler(self._noticed)
        self._connection.pgconn.nonblocking = 0
        self._receiver = Receiver(self._connection.pgconn, _BATCH)
        self.behind = self._is_behind()
        if self.behind:
            # Said at once, though only the copy is sure of it.
            not_ahead(self._free_slot(), self._slot, self._start)
        else:
            self._start_replication()

    def _start_replication(self) -> None:
        named = sql.Literal(", ".join(map(schema.quoted, self._publications))).as_string()
        pgconn = self._connection.pgconn
        self._streaming = True
        try:
            pgconn.send_query(
                f"START_REPLICATION SLOT {schema.quoted(self._slot)} LOGICAL {format_lsn(self._fetched)} "
                f"(proto_version '1', publication_names {named}, messages 'false')".encode()
            )
            while pgconn.is_busy():
                if not readable(pgconn.socket, 60):
                    raise Unreachable("SOURCE_UNREACHABLE", "replication did not start", "the server does not answer", "it is tried again")
                pgconn.consume_input()
            result = pgconn.get_result()
        except psycopg.Error as error:
            raise explain(error, self._dsn, "cannot start replication") from error
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise self._ended(result, starting=True)
        pgconn.nonblocking = 1
        # Only now, with the slot ours, can nobody move it any more; PostgreSQL itself would silently start further on.
        with session(self._dsn, "cannot look up the slot") as server:
            not_ahead(slot_state(server, self._slot), self._slot, max(self._fetched, self._start))

    # ------------------------------------------------------------------------------------------------- what is far behind

    def _is_behind(self) -> bool:
        """Whether a piece of log waits, and the server lets pieces be fetched."""
        if self._piece is None or not self._may_fetch():
            return False
        ((waits,),) = run(self._connection, sql.SQL("select pg_catalog.pg_current_wal_flush_lsn() - {}").format(format_lsn(self._fetched)))
        return int(waits) >= self._piece

    def _may_fetch(self) -> bool:
        """Whether the server lets pieces be fetched: the rights, and a slot that need not look busy meanwhile."""
        functions = (
            "pg_copy_logical_replication_slot(name,name,boolean)",
            "pg_logical_slot_get_binary_changes(name,pg_lsn,integer,text[])",
            "pg_replication_slot_advance(name,pg_lsn)",
            "pg_drop_replication_slot(name)",
        )
        rights = (sql.SQL("pg_catalog.has_function_privilege({}, 'execute')").format(f"pg_catalog.{name}") for name in functions)
        # PostgreSQL 18: a slot that nobody streams from is idle, and lost after that time.
        ((may,),) = run(
            self._connection,
            sql.SQL(
                "select not pg_catalog.pg_is_in_recovery() "
                "and coalesce(pg_catalog.current_setting('idle_replication_slot_timeout', true), '0') = '0' and {}"
            ).format(sql.SQL(" and ").join(rights)),
        )
        return bool(may)

    def _come_near(self) -> None:
        """Bring the slot's restart_lsn near, as far as a look at the log there takes no time.

        It follows where the log is decoded. What was fetched by SQL was decoded for a copy of the slot.
        """
        assert self._piece is not None
        move = (
            "select pg_catalog.pg_replication_slot_advance(slot_name, confirmed_flush_lsn) from pg_catalog.pg_replication_slots "
            "where slot_name = {slot} and confirmed_flush_lsn - restart_lsn > {least} and confirmed_flush_lsn - restart_lsn < {most}"
        )
        # In use: that is told where it is copied.
        with suppress(psycopg.errors.ObjectInUse):
            run(self._connection, sql.SQL(move).format(slot=self._slot, least=self._piece, most=_LOOK * self._piece))

    def _next_piece(self) -> int | None:
        """Up to where the next piece goes; None if what is left is not worth one.

        Each is decoded from the slot's restart_lsn on, which follows only where the server noted what runs (every 15 s) and an open
        transaction holds back. So a piece is as large as what is decoded again with it, or two thirds of what there is (after a checkpoint
        the first half is pages more than changes), within bounds: the server keeps a piece's changes in temporary files. Where twice as
        much is decoded again the walsender goes on, which does so once. A copy does not fail over, and so does not wait for
        ``synchronized_standby_slots`` as the slot does: the lake would run ahead of them.
        """
        if self._piece is None:
            return None
        end = self._whole_records()
        found = run(
            self._connection,
            sql.SQL(
                "select {end}::pg_catalog.pg_lsn - {at}::pg_catalog.pg_lsn, {at}::pg_catalog.pg_lsn - s.restart_lsn "
                "from pg_catalog.pg_replication_slots s where s.slot_name = {slot} and s.restart_lsn is not null "
                "and (to_jsonb(s) ->> 'failover' is distinct from 'true' "
                "or coalesce(pg_catalog.current_setting('synchronized_standby_slots', true), '') = '')"
            ).format(at=format_lsn(self._fetched), slot=self._copy or self._slot, end=format_lsn(end)),
        )
        if not found:
            return None
        behind, again = (int(number) for number in found[0])
        size = min(max(self._piece, again, 2 * behind // 3), _LARGEST * self._piece)
        if behind < self._piece or again > 2 * size:
            return None
        # What would be left is no piece: it comes with this one.
        return end if behind < size + self._piece else self._fetched + size

    def _whole_records(self) -> int:
        """Up to where the log is flushed and ends with a whole record. A call that met a part of one would wait for the rest."""
        ((inserted, block),) = run(
            self._connection, "select pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.current_setting('wal_block_size')::int"
        )
        end, flushed = parse_lsn(inserted), 0
        if end % block <= _PAGE_HEADER:
            # Behind a page's header, where the next record begins: the last one ended before.
            end -= end % block
        for _ in range(_FLUSHES):
            flushed = parse_lsn(run(self._connection, "select pg_catalog.pg_current_wal_flush_lsn()")[0][0])
            if end <= flushed:
                return end
            time.sleep(_FLUSH_PAUSE)
        return flushed - _MARGIN

    def _free_slot(self) -> SlotState | None:
        state = slot_state(self._connection, self._slot)
        if state is not None and state.active_pid is not None:
            raise slot_in_use(self._slot, f"it is active for PID {state.active_pid}")
        return state

    def _copy_slot(self) -> bool:
        """Make a slot of this session that reads what ours would, and keeps the log it needs for as long. False: the server cannot."""
        self._free_slot()
        copy = f"icelake_read_{secrets.token_hex(8)}"
        try:
            run(self._connection, sql.SQL("select pg_catalog.pg_copy_logical_replication_slot({}, {}, true)").format(self._slot, copy))
        except psycopg.Error as error:
            if error.sqlstate is None or self._connection.closed:
                raise explain(error, self._dsn, "cannot read from the slot") from error
            return False
        # Nobody can move the copy any more.
        not_ahead(slot_state(self._connection, copy), self._slot, self._start)
        self._copy = copy
        return True

    def _catch_up(self) -> None:
        """Fetch pieces as long as there are any worth it, then let a walsender go on."""
        try:
            self._come_near()
            until = self._next_piece()
            fetched = until is not None and self._copy_slot()
            while fetched and not self._closing and until is not None and self._fetch(until):
                if time.monotonic() >= self._told_at + self._every:
                    self._advance(self._connection)
                until = self._next_piece()
            self.behind = False
            if fetched:
                self._until_wanted()
            if not self._closing:
                # An error of the session has dropped it.
                drop = "select pg_catalog.pg_drop_replication_slot(slot_name) from pg_catalog.pg_replication_slots where slot_name = {}"
                run(self._connection, sql.SQL(drop).format(self._copy))
                self._copy = ""
                self._start_replication()
        except (psycopg.errors.ObjectInUse, Refused) as error:
            if isinstance(error, Refused) and error.code != "SLOT_IN_USE":
                raise
            # Nobody held it when the stream began: whoever does is met, or gone, when the next one begins.
            why = error.why if isinstance(error, Refused) else str(error).partition("\n")[0]
            raise Unreachable("SOURCE_UNREACHABLE", f"slot {self._slot} is in use", why, "it is tried again") from error

    def _until_wanted(self) -> None:
        """Rest until the applier waits for more than what is here, or closes; not for long.

        A walsender decodes again what was decoded for the copy, on a core that somebody else may need for what it sent.
        """
        until = time.monotonic() + _REST
        while not self._closing and not self._more and time.monotonic() < until:
            self._pause(until - time.monotonic(), room=False)

    def _fetch(self, until: int) -> bool:
        """Receive every transaction whose commit record starts before ``until``. False: the server has no room, and sent none."""
        pgconn = self._connection.pgconn
        named = ", ".join(map(schema.quoted, self._publications))
        changes = sql.SQL("pg_catalog.pg_logical_slot_get_binary_changes({}, {}, null, {})").format(
            self._copy, format_lsn(until), sql.SQL(", ").join(["proto_version", "1", "publication_names", named, "messages", "false"])
        )
        statement = sql.SQL("copy (select data from {}) to stdout (format binary)").format(changes)
        pgconn.send_query(statement.as_bytes(self._connection))
        while pgconn.is_busy():
            self._pause(60, room=True)
            if self._closing:
                return False
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_OUT:
            raise self._ended(result)
        before = self._taken_and_buffered()
        status = FULL
        while status != ENDED:
            room = self.buffered < self._capacity
            if not room or status == EMPTY:
                self._pause(60, room=room)
            if self._closing:
                return False
            if room:
                status = self._pull(rows=True)
        result = pgconn.get_result()
        while pgconn.get_result() is not None:
            pass
        if result is None or result.status != pq.ExecStatus.COMMAND_OK:
            state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"") if result is not None else b""
            # Class 53, insufficient resources: it gathers a piece's changes before it sends the first.
            if state.startswith(b"53") and self._taken_and_buffered() == before:
                return False
            raise self._ended(result)
        # Where the server stopped reading, which may be behind ``until``: it ends with a whole record.
        reached = slot_state(self._connection, self._copy)
        with self._changed:
            if reached is not None:
                self._fetched = reached.confirmed_flush_lsn
            if self._failure is None:
                self.server_lsn = max(self.server_lsn, self._fetched)
            self._news += 1
            # Who is not helped by it waits already.
            self._more = self._enough is not None and not self._came(self._enough)
            self._changed.notify_all()
        return reached is not None

    def _advance(self, server: Connection) -> None:
        """Tell the server what was confirmed, without a walsender. It reads the log up to there for that."""
        self._told_at = time.monotonic()
        confirmed = self._confirmed
        if confirmed <= self._confirmed_told:
            return
        advance = sql.SQL(
            "select pg_catalog.pg_replication_slot_advance(slot_name, {lsn}) from pg_catalog.pg_replication_slots "
            "where slot_name = {slot} and confirmed_flush_lsn < {lsn}"
        )
        run(server, advance.format(slot=self._slot, lsn=format_lsn(confirmed)))
        self._confirmed_told = confirmed

    def receive(self) -> None:
        """Begin to receive."""
        self._thread = threading.Thread(target=self._run, name=f"receive {self._slot}", daemon=True)
        self._thread.start()

    # -------------------------------------------------------------------------------------------------- the applier's side

    def wait(self, timeout: float, enough: int = 0) -> bool:
        with self._changed:
            self._enough = enough
            if not self._came(enough) and not self._more:
                self._more = True
                self._wake()
            self._changed.wait_for(lambda: self._came(enough) or self._failure is not None, timeout)
            self._enough = None
            if self._failure is not None:
                raise self._failure
            came, self._seen = self._news != self._seen, self._news
            return came

    def _came(self, enough: int) -> bool:
        """Whether there is news, and so much in the buffer. Holds the lock."""
        return self._news != self._seen and self.buffered >= enough

    def take(self, *, before: int | None = None, max_bytes: int = 1 << 25) -> Chunk | None:
        ahead = self._settled(before, max_bytes)
        with self._changed:
            end = self._end_of_take(before, max_bytes) if ahead is None else ahead.end
            if end is None:
                if self._failure is not None:
                    raise self._failure
                return None
            frames = self._drawn(end - self._taken, copied=ahead is not None)
            self._taken = end
            self.buffered = len(self._buffer)
            while self._transactions and self._transactions[0].end <= end:
                self._transactions.popleft()
            while self._frame_ends and self._frame_ends[0] <= end:
                self._frame_ends.popleft()
        self._wake()
        self._ahead = None
        try:
            chunk = self._decode(frames) if ahead is None else ahead.decoded.result()
            del frames
            self._still_made_of_the_same(chunk)
            self._decode_ahead(max_bytes)
            return chunk
        except ValueOutOfContract as error:
            lasting = ValueOutOfContract(
                error.code,
                error.what,
                f"{error.why}; the change that brought it stays in the source's log, whatever the row holds by now",
                "say what such values become (out_of_range in the project file), then `icelake resume` the table",
                table=error.table,
            )
            self._give_up(lasting)
            raise lasting from None
        except BaseException as error:
            self._give_up(error)
            raise

    def _settled(self, before: int | None, max_bytes: int) -> _Ahead | None:
        """What was decoded ahead, if it may be taken now; else the decoder is where it was before that."""
        ahead = self._ahead
        if ahead is None:
            return None
        with self._changed:
            end = self._end_of_take(before, max_bytes)
        if end is not None and end >= ahead.end:
            return ahead
        # Somebody wants less. Nobody is kept from receiving meanwhile.
        ahead.decoded.exception()
        self._decoder.restore(ahead.before)
        self._ahead = None
        return None

    def _drawn(self, size: int, *, copied: bool) -> bytes | bytearray:
        """So many bytes out of the buffer; nothing, if whoever wants them has a copy. Holds the lock."""
        if size == len(self._buffer):
            frames, self._buffer = self._buffer, bytearray()
            return b"" if copied else frames
        frames = bytearray() if copied else self._buffer[:size]
        del self._buffer[:size]
        return frames

    def _decode(self, frames: bytes | bytearray) -> Chunk:
        # One look at the catalog is late enough for everything that was received before it.
        self._described, self._columns = {}, {}
        return self._decoder.decode(memoryview(frames))

    def _decode_ahead(self, max_bytes: int) -> None:
        """Begin to decode what is taken next, if it is much: whoever takes it applies what was taken before meanwhile."""
        with self._changed:
            end = self._end_of_take(None, max_bytes) if self.buffered >= max_bytes // _AHEAD and self._failure is None else None
            # A single value that is larger would be in memory once more.
            if end is None or end - self._taken > max_bytes:
                return
            frames = bytes(memoryview(self._buffer)[: end - self._taken])
        if self._decoding is None:
            # A daemon: a server that does not answer a look-up must not keep the process.
            thread = threading.Thread(target=self._decode_asked, name=f"decode {self._slot}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return  # no more threads
            self._decoding = thread
        ahead = _Ahead(end, self._decoder.state, Future())
        self._asked_to_decode.put((frames, ahead.decoded))
        self._ahead = ahead

    def _decode_asked(self) -> None:
        while (asked := self._asked_to_decode.get()) is not None:
            frames, decoded = asked
            try:
                decoded.set_result(self._decode(frames))
            except BaseException as error:  # noqa: BLE001 - it is raised again by who takes it
                decoded.set_exception(error)
            del asked, frames, decoded

    def _give_up(self, error: BaseException) -> None:
        """Frames that could not be decoded are gone from the buffer: going on would lose them."""
        with self._changed:
            self._failure = error
            self._buffer.clear()
            self._transactions.clear()
            self._frame_ends.clear()
            self._open_lsn = None

    def _end_of_take(self, before: int | None, max_bytes: int) -> int | None:
        """Where to cut: after as many whole transactions as fit, else inside the first one, else nowhere."""
        limit = self._taken + max_bytes
        end: int | None = None
        for transaction in self._transactions:
            if (before is not None and transaction.commit_lsn >= before) or transaction.end > limit:
                break
            end = transaction.end
        if end is not None:
            return end
        if self._transactions:
            first_lsn, large = self._transactions[0].commit_lsn, True
        elif self._open_lsn is not None:
            first_lsn, large = self._open_lsn, len(self._buffer) >= min(max_bytes, self._capacity)
        else:
            return None
        if not large or (before is not None and first_lsn >= before):
            return None
        for frame_end in self._frame_ends:
            if end is not None and frame_end > limit:
                break
            end = frame_end
        assert end is not None  # what is buffered ends with a frame
        return min(end, self._transactions[0].end) if self._transactions else end

    def blocked(self, before: int) -> bool:
        with self._changed:
            if self._transactions:
                return self._transactions[0].commit_lsn >= before
            if self._open_lsn is not None:
                return self._open_lsn >= before
            return self.server_lsn >= before

    def ask(self) -> None:
        self._asked = True
        self._wake()

    def confirm(self, lsn: int) -> None:
        self._confirmed = max(self._confirmed, lsn)
        self._wake()

    def close(self) -> None:
        """Tell the server what was confirmed last, end replication, give the slot back. Takes about a second at worst."""
        self._closing = True
        if self._thread is not None:
            self._wake()
            while self._thread.is_alive():
                self._thread.join(2)
                if not self._streaming and self._thread.is_alive():
                    # A statement that takes its time; it may have begun just after the last look at _closing.
                    with suppress(psycopg.Error):
                        self._connection.cancel_safe(timeout=1)
            self._thread = None
        self._release()

    def _release(self) -> None:
        self.kept.close()
        if self._decoding is not None:
            self._asked_to_decode.put(None)
            self._decoding.join(_PATIENCE)
        self._connection.close()
        if self._wake_in >= 0:
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._wake_in = self._wake_out = -1

    def _wake(self) -> None:
        if self._wake_in < 0:
            return  # closed: nobody is there to be woken
        try:
            os.write(self._wake_in, b"x")
        except BlockingIOError:
            return  # it has been woken often enough already

    # ------------------------------------------------------------------------------------------------- the receiver's side

    def _run(self) -> None:
        try:
            self._loop()
        except psycopg.Error as error:
            self._fail(explain(error, self._dsn, "the replication connection broke"))
        except BaseException as error:  # noqa: BLE001 - it is raised again from wait() and take()
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        # At once, not when the caller closes: a server that shuts down waits for us.
        self._connection.close()
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _loop(self) -> None:
        if not self._streaming:
            self._catch_up()
        more = True
        while not self._closing:
            seconds = self._tell()
            room = self.buffered < self._capacity
            if not (room and more):
                self._pause(seconds, room=room)
            if room:
                more = self._pull() != EMPTY
        self._end()

    def _pause(self, seconds: float, *, room: bool) -> None:
        """Until there is something to do, or ``seconds`` have passed. Without ``room`` what the server sends is nothing to do."""
        poll = select.poll()
        poll.register(self._wake_out, select.POLLIN)
        if room:
            poll.register(self._connection.pgconn.socket, select.POLLIN)
        poll.poll(seconds * 1000)
        self._drain_wake()

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake_out, 4096)
        except BlockingIOError:
            return

    def _tell(self, now_at_least: bool = False) -> float:
        """A standby status update, if one is due: the confirmed position and nothing else. Returns seconds until the next is due."""
        now = time.monotonic()
        due = self._told_at + (_REPLY_PAUSE if self._reply_due else self._every)
        if self._asked:
            due = min(due, self._told_at + _ASK_PAUSE)
        if not (now_at_least or self._confirmed != self._confirmed_told or now >= due):
            self._connection.pgconn.flush()
            return due - now
        asked, self._asked = self._asked, False
        lsn = self._confirmed_told = self._confirmed
        clock = int((time.time() - _POSTGRES_EPOCH) * 1_000_000)
        self._connection.pgconn.put_copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, clock, asked))
        self._connection.pgconn.flush()
        self._told_at, self._reply_due = now, False
        return self._every

    def _requested(self) -> None:
        """The server wants an answer. Now and then that is a sign of life; at every answer again, it is shutting down."""
        now = time.monotonic()
        self._requests = self._requests + 1 if now < self._requested_at + 1 else 1
        self._requested_at, self._reply_due = now, True
        if self._requests > _SHUTDOWN_REQUESTS:
            raise Unreachable(
                "SOURCE_SHUTTING_DOWN",
                "PostgreSQL is shutting down",
                "it waits until everything it sent is confirmed, which took too long",
                "it is tried again when the server is back; nothing is lost",
            )

    def _pull(self, *, rows: bool = False) -> int:
        """Receive what is there, a batch at most; how that ended. ``rows``: of COPY, not a walsender's messages."""
        try:
            return self._received(rows)
        except (struct.error, IndexError, ValueError) as error:
            why = f"a message is shorter than it says, or no text ({error})"
            raise Corrupt("STREAM_CORRUPT", "a message of the stream is torn", why, "report this") from error

    def _received(self, rows: bool) -> int:
        batch = bytearray()
        done: list[_Transaction] = []
        base = self._taken_and_buffered()
        begun, complete, server_lsn = self._begun, self.complete, self.server_lsn
        news, status = 0, MESSAGE
        while status == MESSAGE and len(batch) < _BATCH:
            one = self._skipping or bool(self._skipped_relations)
            received = self._receiver.receive(begun, self._start, self._foreign, one=one, rows=rows)
            status, begun, data = received.status, received.begun, received.message
            for commit_lsn, end_lsn, end in received.transactions.tolist():
                done.append(_Transaction(commit_lsn, end_lsn, base + len(batch) + end))
                complete, server_lsn = max(complete, end_lsn), max(server_lsn, end_lsn)
            batch += received.frames.data
            news += received.messages
            if status != MESSAGE:
                continue
            if rows:
                message = _row(data)
                if not message:
                    continue
            elif data[0] == _XLOG_DATA:
                message = memoryview(data)[_HEADER:]
            elif data[0] == _KEEPALIVE:
                position = _LSN.unpack_from(data, 1)[0]
                # Inside a transaction nothing is promised about its own commit.
                server_lsn = max(server_lsn, position if begun is None else min(position, begun))
                if data[17] == 1:
                    self._requested()
                continue
            else:
                raise Corrupt("STREAM_CORRUPT", f"unknown replication message {data[:1]!r}", "", "report this")
            kind = message[0]
            if kind == _BEGIN:
                begun = _LSN.unpack_from(message, 1)[0]
                self._skipping = begun < self._start
            elif kind == _RELATION:
                self._announced(message)
            for part in self._kept(kind, message):
                batch += _FRAME.pack(len(part))
                batch += part
            if kind == _COMMIT:
                end_lsn = _LSN.unpack_from(message, 10)[0]
                if begun is None:
                    raise Corrupt("STREAM_CORRUPT", f"a commit at {format_lsn(end_lsn)} without a begin", "", "report this")
                if not self._skipping:
                    done.append(_Transaction(begun, end_lsn, base + len(batch)))
                    complete = max(complete, end_lsn)
                server_lsn = max(server_lsn, end_lsn)
                begun, self._skipping = None, False
        self._begun = begun
        ended = None
        if status == ENDED and not rows:
            ended = self._ended(self._connection.pgconn.get_result())
        if self._publication_gone:
            # What came after the warning may lack changes: none of this batch is handed over.
            ended = Refused(
                "PUBLICATION_CHANGED",
                f"publication {self._publication} is gone",
                self._publication_gone,
                "`icelake resume --reload` makes it again and compares every table with the source",
            )
            batch, done = bytearray(), []
        with self._changed:
            if self._failure is None and not (self._publication_gone and ended):
                self._buffer += batch
                self.buffered = len(self._buffer)
                if batch:
                    self._frame_ends.append(base + len(batch))
                self._transactions += done
                self._open_lsn = None if self._skipping else begun
                self.complete, self.server_lsn = complete, server_lsn
            if news:
                self._news += news
                self._changed.notify_all()
        if ended is not None:
            raise ended
        return status

    def _taken_and_buffered(self) -> int:
        with self._changed:
            return self._taken + len(self._buffer)

    def _announced(self, message: memoryview) -> None:
        """A relation message: note a table the lake does not hold. One that bears the name of a held table is not let pass so."""
        oid = int.from_bytes(message[1:5], "big")
        if oid in self._held or oid in self._parked:
            return
        namespace, name, _ = bytes(message[5:]).split(b"\0", 2)
        called = (namespace.decode() or "pg_catalog", name.decode())
        if not any((table.namespace, table.name) == called for table in self._held_names):
            self._foreign = np.union1d(self._foreign, [oid])

    def _kept(self, kind: int, message: memoryview) -> tuple[bytes | memoryview, ...]:
        """The frames to keep of a message while something is to be left out."""
        if self._skipping:
            # The server tells a relation once a session, so it must not be lost with a transaction the lake holds already.
            if kind == _RELATION and int.from_bytes(message[1:5], "big") not in self._foreign:
                self._skipped_relations.append(bytes(message))
            return ()
        if kind == _BEGIN and self._skipped_relations:
            kept, self._skipped_relations = tuple(self._skipped_relations), []
            return (message, *kept)
        if not len(self._foreign):
            return (message,)
        if kind == _RELATION or kind in _ROW_CHANGES:
            return () if int.from_bytes(message[1:5], "big") in self._foreign else (message,)
        if kind == _TRUNCATE:
            oids = [oid for (oid,) in struct.iter_unpack(">I", message[6:]) if oid not in self._foreign]
            return (struct.pack(f">cIB{len(oids)}I", b"T", len(oids), message[5], *oids),) if oids else ()
        return (message,)

    def _noticed(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        # PostgreSQL 18 goes on without a publication that is gone, with this warning (object_not_in_prerequisite_state), in any language.
        said = diagnostic.message_primary or ""
        named = diagnostic.source_function == "LoadPublications" or re.search(rf"(?<!\w){re.escape(self._publication)}(?!\w)", said)
        if diagnostic.sqlstate == "55000" and named:
            self._publication_gone = said

    def _ended(self, result: pq.abc.PGresult | None, *, starting: bool = False) -> IcelakeError:
        """Why the server ended replication, or would not start it."""
        field = pq.DiagnosticField
        state = (result.error_field(field.SQLSTATE) or b"").decode() if result is not None else ""
        said = (result.error_field(field.MESSAGE_PRIMARY) or b"").decode() if result is not None else ""
        if state == "55006":
            return slot_in_use(self._slot, said)
        if state == "42704" and starting:
            return Gap(
                "SLOT_MISSING", f"slot {self._slot} does not exist", said, "`icelake resume --reload` compares every table with the source"
            )
        if state == "42704":
            return Refused(
                "PUBLICATION_CHANGED",
                f"publication {self._publication} is gone",
                said,
                "`icelake resume --reload` makes it again and compares every table with the source",
            )
        return explain_state(state, said or "the server ended the stream", self._dsn, "replication stopped")

    def _end(self) -> None:
        """End politely, so the last confirmation is read and the slot is free when this returns; but do not wait for long."""
        pgconn = self._connection.pgconn
        if not self._streaming and pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            # In the middle of a piece.
            self._connection.cancel_safe(timeout=1)
            if self._confirmed > self._confirmed_told:
                with session(self._dsn, "cannot confirm what the lake holds", statement_seconds=5) as server:
                    self._advance(server)
            return
        if not self._streaming:
            if self._confirmed <= self._confirmed_told:
                return
            # A walsender is told without reading anything. The copy goes with the session.
            self._start_replication()
        self._tell(now_at_least=True)
        pgconn.put_copy_end(None)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            pgconn.flush()
            size, _ = pgconn.get_copy_data(1)
            if size < 0:
                while time.monotonic() < deadline and pgconn.is_busy():
                    readable(pgconn.socket, 0.1)
                    pgconn.consume_input()
                return
            if size == 0:
                readable(pgconn.socket, 0.1)
                pgconn.consume_input()

    # ----------------------------------------------------------------------------------------------------------- relations

    def _agree(self, message: RelationMessage) -> Relation | Raw:
        """The relation the lake holds for a relation message. Raises UnsupportedTable unless message, catalog and lake agree.

        The message has no attnums, so they come from pg_attribute now, and count only if names and types are the message's.
        """
        if (parked := self._parked.get(message.oid)) is not None:
            oid = parked.oid if parked.partitioned else message.oid
            if oid not in self._columns:
                self._columns[oid] = self._look_up("cannot look up a table", partial(_columns_now, parked, oid))
            return Raw(parked.id, _attnums(parked, self._columns[oid], message))
        by_name = {(relation.schema, relation.name): relation for relation in self._held.values()}
        held = self._held.get(message.oid) or by_name[message.schema, message.name]
        # That what is a leaf here still is one, the next commit makes sure.
        oid = held.oid if held.partitioned else message.oid
        if oid not in self._described:
            of = partial(schema.describe_oid, oid=oid, append_only=held.identity == "none")
            self._described[oid] = self._look_up("cannot look up a table", of)
        now = self._described[oid]
        doing = "cannot be followed"
        schema.must_be(held, now, doing)
        schema.raise_if_changed(held, _disagreement(held, message), doing)
        return held

    def _look_up(self, doing: str, question: Callable[[Connection], _Answer]) -> _Answer:
        if self._closing:
            raise Unreachable("SOURCE_UNREACHABLE", doing, "the stream is closed", "it is tried again")
        return self.kept.ask(doing, question)

    def _still_made_of_the_same(self, chunk: Chunk) -> None:
        """Raises UnsupportedTable if a composite type or an enum in the chunk's tables was altered: no relation message tells of that.

        An attribute dropped and another added leave as many as there were. Whoever wrote such values altered the type before, so
        looking after they came is soon enough.
        """
        made = {
            change.relation.oid: change.relation
            for change in chunk.changes
            if any(kind in column.source for column in change.relation.columns for kind in ALTERABLE)
        }
        if not made:
            return
        for oid, held in made.items():
            now = self._look_up("cannot look up a type", partial(schema.describe_oid, oid=oid, append_only=held.identity == "none"))
            if isinstance(now, Relation):
                schema.raise_if_changed(held, schema.altered_types(held, now), "cannot be followed")


def _columns_now(relation: Relation, oid: int, server: Connection) -> list[tuple[int, str, int, int]]:
    return [] if schema.dropped_since(server, relation) else schema.published_columns(server, oid)


def _attnums(held: Relation, now: Sequence[tuple[int, str, int, int]], message: RelationMessage) -> tuple[int, ...] | None:
    """Which columns a message's columns are: the lake's if names and types are the lake's, the catalog's if they are the
    catalog's; None if they are neither's, or both's and these are different columns (one was dropped and made again).

    None, too, if some were dropped and others added since: a column that came or went may have borne another's name when the
    change was made. Otherwise their number alone tells which columns there were. A leaf has the columns of its root in an order of its
    own; their attnums are the root's.
    """
    known, there = {column.attnum for column in held.sent}, {column[0] for column in now}
    if there and known - there and there - known:
        return None
    told = [(column.name, column.type_oid, column.typmod) for column in message.columns]
    lake = [(c.attnum, c.name, c.type_oid, c.typmod) for c in held.sent]
    found = set()
    for columns in (lake, now):
        ordered = sorted(columns, key=lambda c: told.index(c[1:]) if c[1:] in told else -1) if held.partitioned else columns
        if [c[1:] for c in ordered] == told:
            found.add(tuple(c[0] for c in ordered))
    return found.pop() if len(found) == 1 else None


def _disagreement(held: Relation, message: RelationMessage) -> list[str]:
    """How a relation message differs from the relation (which is the catalog's, too): then it is of the table's past."""
    told = [(column.name, column.type_oid, column.typmod) for column in message.columns]
    sent = held.sent
    here = [(column.name, column.type_oid, column.typmod) for column in sent]
    if not held.partitioned and (message.schema, message.name) != (held.schema, held.name):
        return [f"it was called {message.schema}.{message.name} when the change was made"]
    # Columns added since are at the end; what the change has in them is their default. A leaf has an order of its own.
    same = set(told) == set(here[: len(told)]) if held.partitioned else told == here[: len(told)]
    if not same or not {c.attnum for c in held.key_columns if c.attnum > 0} <= {c.attnum for c in sent[: len(told)]}:
        return [f"when the change was made its columns were {', '.join(name for name, _, _ in told)}, of other names or types"]
    if held.identity == "none" or message.replica_identity == "f":
        return []
    if held.identity == "full":
        return ["when the change was made its replica identity was not FULL"]
    if message.replica_identity == "n" or {c.name for c in message.columns if c.key} != {c.name for c in held.key_columns if c.attnum > 0}:
        return ["when the change was made another key named its rows, or none"]
    return []
