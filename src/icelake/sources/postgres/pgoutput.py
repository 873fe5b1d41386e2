"""pgoutput, protocol version 1, decoded: frames of replication messages -> Arrow columns, whole chunks at a time.

Promises: every change in source order within its table, its transaction's commit LSN beside it; a call either gives its chunk
or raises and leaves the decoder as it was. Never guesses: a change of an unknown relation, a tuple that does not fill its
message, a half-known key are Corrupt. Never asks the server anything: what a relation is, the caller decides.
Source: PostgreSQL documentation 54.9, Logical Replication Message Formats; replication/logical/proto.c.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.errors import Corrupt, UnsupportedTable, ValueOutOfContract
from icelake.model.lsn import format_lsn
from icelake.model.relation import TABLEOID, Relation, TableId
from icelake.ports import ChangeSet, Chunk, RawChanges, Transactions, arrow_schema
from icelake.sources.postgres import kernels
from icelake.sources.postgres.values import Fields, Reader, read_only, reader

_LARGEST: Final = 2**31 - 64
_U64: Final = 2**64 - 1
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000
_TRUNCATE: Final = ord("T")
_UPDATE, _DELETE = 1, 2
_WHY: Final[dict[int, str]] = {
    kernels.TORN_FRAME: "a frame's length goes beyond the bytes received",
    kernels.BAD_BEGIN: "a Begin message is malformed, or inside another transaction",
    kernels.BAD_COMMIT: "a Commit message is malformed, or does not belong to the transaction begun",
    kernels.OUTSIDE_TRANSACTION: "a change lies outside a transaction",
    kernels.BAD_MESSAGE: "a message is too short",
    kernels.UNKNOWN_RELATION: "a change came before the Relation message of its table",
    kernels.STREAMED: "a message of streaming or two-phase mode came, but protocol version 1 was asked for",
    kernels.UNKNOWN_MESSAGE: "pgoutput has no message of this type",
    kernels.BAD_TUPLE: "a tuple does not fill its message exactly",
    kernels.COLUMN_COUNT: "a tuple has another number of columns than its Relation message",
    kernels.KEY_MISSING: "a key column, or the row before the change, is not in the message",
}
_RETRY: Final = "start again: the stream is read anew from the last commit; if it comes back, report it with the server's version"


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A column as a Relation message has it. ``key``: part of the replica identity. There is no attnum in it."""

    key: bool
    name: str
    type_oid: int
    typmod: int


@dataclass(frozen=True, slots=True)
class RelationMessage:
    """A Relation message. ``replica_identity`` is pg_class.relreplident: d, n, f or i."""

    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[RelationColumn, ...]


def parse_relation(message: bytes | memoryview) -> RelationMessage:
    """A whole Relation message, from its ``R`` on. Raises Corrupt when it is anything else."""
    raw = bytes(message)
    try:
        if raw[:1] != b"R":
            raise ValueError("it is not a Relation message")
        (oid,) = struct.unpack_from("!I", raw, 1)
        schema, at = _cstring(raw, 5)
        name, at = _cstring(raw, at)
        identity, count = struct.unpack_from("!cH", raw, at)
        if identity not in (b"d", b"n", b"f", b"i"):
            raise ValueError(f"replica identity {identity!r}")
        at += 3
        columns = []
        for _ in range(count):
            (flags,) = struct.unpack_from("!B", raw, at)
            column, at = _cstring(raw, at + 1)
            type_oid, typmod = struct.unpack_from("!Ii", raw, at)
            at += 8
            columns.append(RelationColumn(bool(flags & 1), column, type_oid, typmod))
        if at != len(raw):
            raise ValueError(f"{len(raw) - at} bytes too many")
    except (struct.error, ValueError) as error:
        raise Corrupt("CHANGE_STREAM_CORRUPT", "a Relation message of the change stream cannot be read", str(error), _RETRY) from None
    return RelationMessage(oid, schema or "pg_catalog", name, identity.decode(), tuple(columns))


def _cstring(raw: bytes, at: int) -> tuple[str, int]:
    end = raw.find(b"\0", at)
    if end < 0:
        raise ValueError("a name has no end")
    return raw[at:end].decode("utf-8"), end + 1


@dataclass(frozen=True, slots=True)
class Raw:
    """A table whose changes are handed over as they came (``ports.RawChanges``)."""

    table: TableId
    attnums: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class _RawLayout:
    relation: Raw
    message: RelationMessage
    text: bytes

    @property
    def table(self) -> TableId:
        return self.relation.table


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the tuples of one relation message become the columns of its Relation. ``key``: what names rows, maybe all columns."""

    relation: Relation
    message: RelationMessage
    target: npt.NDArray[np.int32]
    key: npt.NDArray[np.int32]
    new_schema: pa.Schema
    key_schema: pa.Schema
    new_readers: tuple[Reader, ...]
    key_readers: tuple[Reader, ...]
    absent: tuple[int, ...]
    """Columns the message does not have, because they were added later: the changes have their default."""
    leaf: int | None
    """Where ``tableoid`` is among the columns of a partitioned table: the message's OID is its value."""

    @property
    def table(self) -> TableId:
        return self.relation.id

    @property
    def whole(self) -> bool:
        """Whether the whole old row is the key."""
        return self.relation.identity == "full"


def _layout(message: RelationMessage, relation: Relation) -> _Layout:
    places = {column.name: at for at, column in enumerate(message.columns)}
    absent: list[int] = []
    leaf: int | None = None
    target = np.full(len(message.columns), -1, np.int32)
    key = np.full(len(message.columns), -1, np.int32)
    for at, column in enumerate(relation.columns):
        if column.attnum == TABLEOID:
            leaf = at
            continue
        place = places.get(column.name)
        if place is None and column.name not in relation.key:
            absent.append(at)
            continue
        if place is None or message.columns[place].type_oid != column.type_oid:
            now = "is not sent" if place is None else f"has type {message.columns[place].type_oid}, not {column.type_oid}"
            raise UnsupportedTable(
                "TABLE_CHANGED",
                f"column {column.name} of {message.schema}.{message.name} {now}",
                "the table's columns in the change stream are not those of the lake's table",
                f"`icelake resume {relation.id}`, with --reload if its changes cannot be replayed",
                table=str(relation.id),
            )
        target[place] = at
    named = [c for c in (relation.columns if relation.identity == "full" else relation.key_columns) if c.attnum != TABLEOID]
    for at, column in enumerate(named):
        if column.name in places:
            key[places[column.name]] = at
    table = str(relation.id)
    return _Layout(
        relation,
        message,
        target,
        key,
        arrow_schema(relation.columns),
        arrow_schema(named),
        tuple(reader(column, table) for column in relation.columns),
        tuple(reader(column, table) for column in named),
        tuple(absent),
        leaf,
    )


@dataclass(slots=True)
class _Known:
    """The relations seen so far: ``oids`` sorted, ``current`` the layout each has now, as a number into ``layouts``."""

    layouts: list[_Layout | _RawLayout] = field(default_factory=list)
    oids: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    current: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def put(self, layout: _Layout | _RawLayout) -> "_Known":
        """These and one more, or one changed. What is in use keeps its number."""
        oid = layout.message.oid
        at = int(np.searchsorted(self.oids, oid))
        layouts = [*self.layouts, layout]
        if at < len(self.oids) and self.oids[at] == oid:
            current = self.current.copy()
            current[at] = len(layouts) - 1
            return _Known(layouts, self.oids, current)
        return _Known(layouts, np.insert(self.oids, at, oid), np.insert(self.current, at, len(layouts) - 1))

    def of(self, oid: int) -> int | None:
        at = int(np.searchsorted(self.oids, oid))
        return int(self.current[at]) if at < len(self.oids) and self.oids[at] == oid else None

    def without_old(self) -> "_Known":
        """Layouts nobody can refer to any more forgotten, so that a server that repeats itself for ever costs nothing."""
        if len(self.layouts) == len(self.oids):
            return self
        return _Known([self.layouts[n] for n in self.current], self.oids, np.arange(len(self.oids), dtype=np.int32))


@dataclass(frozen=True, slots=True)
class DecoderState:
    """What a decoder knows after some messages."""

    known: _Known
    open: bool
    begun: npt.NDArray[np.int64]
    counted: "Mapping[TableId, _Counted]"


class Decoder:
    """One replication connection's messages. ``relations`` is asked at *every* Relation message which Relation the table is:

    also at one that repeats the last, because a column dropped and added again leaves the message as it was. ``Raw`` keeps the
    table's changes undecoded. Whatever it raises (UnsupportedTable) goes to the caller of ``decode``. Make a new decoder for a new
    connection: the server then names every relation again. Not thread-safe.
    """

    def __init__(self, relations: Callable[[RelationMessage], Relation | Raw]) -> None:
        self._relations = relations
        self._known = _Known()
        self._open = False
        self._begun = np.zeros((0, 3), np.int64)
        """The transaction that is open, as ``kernels.scan_frames`` notes it; empty if none is."""
        self._counted: Mapping[TableId, _Counted] = {}

    @property
    def open(self) -> bool:
        """Whether the messages so far end inside a transaction."""
        return self._open

    @property
    def state(self) -> "DecoderState":
        """Where it is among the messages, for ``restore``."""
        return DecoderState(self._known, self._open, self._begun, self._counted)

    def restore(self, state: "DecoderState") -> None:
        """Be where it was: the messages since are decoded again."""
        self._known, self._open, self._begun, self._counted = state.known, state.open, state.begun, state.counted

    def decode(self, frames: bytes | bytearray | memoryview) -> Chunk:
        """Concatenated frames, each a u32 little-endian length and one message; below 2 GiB in all. They are not referred to afterwards.

        Raises Corrupt, ValueOutOfContract, and whatever ``relations`` raises; the decoder is then as it was before the call.
        """
        size = len(frames)
        if size > _LARGEST:
            raise ValueError("more than 2 GiB of frames in one call")
        buffer = read_only(frames)
        known = self._known
        state = np.zeros(kernels.STATE, np.int64)
        state[kernels.OPEN] = self._open
        state[kernels.BEGUN] = len(self._begun)
        if self._open:
            state[kernels.FINAL_LSN] = self._begun[0, 0]
        # As with the log: far more than is used.
        begun = np.empty((len(self._begun) + size // 25 + 1, 3), np.int64)
        begun[: len(self._begun)] = self._begun
        log = _Log.sized(size // 4 + 2)
        while True:
            status = kernels.scan_frames(
                buffer, state, known.oids, known.current, begun, log.kind, log.body, log.end, log.layout, log.lsn.view(np.int64)
            )
            if status == kernels.DONE:
                break
            if status == kernels.RELATION:
                known = self._relation(known, _message(buffer, log, state))
            elif status == kernels.TRUNCATED:
                _truncate(known, _message(buffer, log, state), log, state)
            else:
                raise _corrupt(status, int(state[kernels.AT]), state)
        begun = begun[: int(state[kernels.BEGUN])].copy()
        transactions_of = Transactions(begun[:, 0].astype(np.uint64), begun[:, 2].copy(), begun[:, 1].copy())
        counted = dict(self._counted)
        changes, raw = _change_sets(buffer, known, log, state, transactions_of, counted)
        transactions = int(state[kernels.TRANSACTIONS])
        chunk = Chunk(
            changes=changes,
            position=int(state[kernels.POSITION]) & _U64 if transactions else None,
            commit_time=int(state[kernels.COMMIT_TIME]),
            transactions=transactions,
            open=bool(state[kernels.OPEN]),
            bytes=size,
            raw=raw,
        )
        self._known = known.without_old()
        self._open = chunk.open
        self._begun = begun[len(begun) - 1 :] if chunk.open else begun[:0]
        self._counted = counted if chunk.open else {}
        return chunk

    def _relation(self, known: _Known, message: bytes) -> _Known:
        parsed = parse_relation(message)
        relation = self._relations(parsed)
        number = known.of(parsed.oid)
        if number is not None and known.layouts[number].message == parsed and known.layouts[number].relation == relation:
            return known
        if isinstance(relation, Raw):
            return known.put(_RawLayout(relation, parsed, message))
        return known.put(_layout(parsed, relation))


@dataclass(frozen=True, slots=True)
class _Log:
    """The changes of a chunk as ``kernels.scan_frames`` notes them."""

    kind: npt.NDArray[np.uint8]
    body: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]
    layout: npt.NDArray[np.int32]
    lsn: npt.NDArray[np.uint64]

    @staticmethod
    def sized(room: int) -> "_Log":
        # Far more than is used; pages never touched cost nothing.
        return _Log(
            np.empty(room, np.uint8),
            np.empty(room, np.int32),
            np.empty(room, np.int32),
            np.empty(room, np.int32),
            np.empty(room, np.uint64),
        )


def _message(buffer: npt.NDArray[np.uint8], log: _Log, state: npt.NDArray[np.int64]) -> bytes:
    count = int(state[kernels.COUNT])
    return buffer[int(log.body[count]) : int(log.end[count])].tobytes()


def _truncate(known: _Known, message: bytes, log: _Log, state: npt.NDArray[np.int64]) -> None:
    """A change for every relation a Truncate message names."""
    if len(message) < 6:
        raise _corrupt(kernels.BAD_MESSAGE, int(state[kernels.AT]), state)
    (count,) = struct.unpack_from("!I", message, 1)
    if len(message) != 6 + 4 * count:
        raise _corrupt(kernels.BAD_MESSAGE, int(state[kernels.AT]), state)
    at = int(state[kernels.COUNT])
    for oid in struct.unpack_from(f"!{count}I", message, 6):
        number = known.of(oid)
        if number is None:
            raise _corrupt(kernels.UNKNOWN_RELATION, int(state[kernels.AT]), state)
        log.kind[at] = _TRUNCATE
        log.body[at] = log.end[at] = 0
        log.layout[at] = number
        log.lsn[at] = int(state[kernels.FINAL_LSN]) & _U64
        at += 1
    state[kernels.COUNT] = at


def _corrupt(status: int, at: int, state: npt.NDArray[np.int64]) -> Corrupt:
    lsn = format_lsn(int(state[kernels.FINAL_LSN]) & _U64)
    what = f"the change stream cannot be read at byte {at} of the chunk, in or after the transaction committed at {lsn}"
    return Corrupt("CHANGE_STREAM_CORRUPT", what, _WHY[status], _RETRY)


@dataclass(frozen=True, slots=True)
class _Counted:
    """A table's changes that were seen last: the commit LSN of their transaction, and how many it made until then."""

    lsn: int = -1
    count: int = 0

    def before(self, commit_lsn: npt.NDArray[np.uint64]) -> int:
        """How many changes the transaction of the first of these made before."""
        return self.count if int(commit_lsn[0]) == self.lsn else 0

    def then(self, commit_lsn: npt.NDArray[np.uint64]) -> "_Counted":
        """After these, which follow."""
        last = int(commit_lsn[-1])
        here = len(commit_lsn) - int(np.searchsorted(commit_lsn, commit_lsn[-1]))
        return _Counted(last, here + (self.count if last == self.lsn else 0))


class _Places:
    """Of one table's changes of a chunk the places, worked out when they are asked for: most tables have no history."""

    def __init__(self, parts: Sequence[npt.NDArray[np.int32]], lsn: npt.NDArray[np.uint64], seen: _Counted) -> None:
        """``parts``: the changes (as rows of the log) of each leaf, or under each shape; together they are the table's."""
        self._parts = parts
        self._lsn = lsn
        self._seen = seen

    @cached_property
    def _rows(self) -> npt.NDArray[np.int32]:
        return self._parts[0] if len(self._parts) == 1 else np.sort(np.concatenate(self._parts))

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        lsn = self._lsn[self._rows]
        return places(lsn, self._seen.before(lsn))

    def of(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Of one of the parts."""
        return self._places if len(self._parts) == 1 else self._places[np.searchsorted(self._rows, rows)]

    def counted(self) -> _Counted:
        return self._seen.then(self._lsn[self._rows])


def places(commit_lsn: npt.NDArray[np.uint64], earlier: int) -> npt.NDArray[np.int64]:
    """Of each entry its place, from 1, among those of its commit LSN, which stand together; ``earlier`` more of the first came before.

    There is at least one.
    """
    n = len(commit_lsn)
    starts = np.flatnonzero(np.concatenate([[True], commit_lsn[1:] != commit_lsn[:-1]]))
    lengths = np.diff(np.append(starts, n))
    out: npt.NDArray[np.int64] = np.arange(1, n + 1, dtype=np.int64) - np.repeat(starts, lengths)
    out[: lengths[0]] += earlier
    return out


def _change_sets(
    buffer: npt.NDArray[np.uint8],
    known: _Known,
    log: _Log,
    state: npt.NDArray[np.int64],
    transactions: Transactions,
    counted: dict[TableId, _Counted],
) -> tuple[list[ChangeSet], list[RawChanges]]:
    """The noted changes as one ChangeSet (or RawChanges) a layout, in the order each first appears."""
    count = int(state[kernels.COUNT])
    decoded: list[ChangeSet] = []
    raw: list[RawChanges] = []
    if not count:
        return decoded, raw
    groups = len(known.layouts)
    order = np.empty(count, np.int32)
    bounds = np.empty(groups + 1, np.int32)
    kernels.group(log.layout[:count], groups, order, bounds)
    edges = bounds.tolist()
    present = [(int(order[edges[g]]), g) for g in range(groups) if edges[g] < edges[g + 1]]
    present.sort()
    of_table: dict[TableId, list[npt.NDArray[np.int32]]] = {}
    for _, g in present:
        of_table.setdefault(known.layouts[g].table, []).append(order[edges[g] : edges[g + 1]])
    place = {table: _Places(parts, log.lsn[:count], counted.get(table, _Counted())) for table, parts in of_table.items()}
    if state[kernels.OPEN]:
        counted |= {table: of.counted() for table, of in place.items()}
    for _, g in present:
        layout, rows = known.layouts[g], order[edges[g] : edges[g + 1]]
        if isinstance(layout, _RawLayout):
            raw.append(_raw_changes(buffer, layout, log, rows, place[layout.table].of(rows), transactions))
            continue
        try:
            changes = _change_set(buffer, layout, log, rows, state)
        except ValueOutOfContract as error:
            error.table = str(layout.relation.id)
            raise
        decoded.append(replace(changes, transactions=transactions, place=partial(place[layout.table].of, rows)))
    return decoded, raw


def _raw_changes(
    buffer: npt.NDArray[np.uint8],
    layout: _RawLayout,
    log: _Log,
    rows: npt.NDArray[np.int32],
    place: npt.NDArray[np.int64],
    transactions: Transactions,
) -> RawChanges:
    messages = []
    for row in rows.tolist():
        if log.kind[row] == _TRUNCATE:
            messages.append(truncate_message(layout.message.oid))
        else:
            # What the log frames begins behind the message's kind and OID.
            messages.append(buffer[int(log.body[row]) - 5 : int(log.end[row])].tobytes())
    relation = layout.relation
    return RawChanges(relation.table, log.lsn[rows], layout.text, relation.attnums, pa.array(messages, pa.binary()), place, transactions)


def truncate_message(oid: int) -> bytes:
    """A Truncate message of one relation, without options."""
    return struct.pack("!cIBI", b"T", 1, 0, oid)


def replayed(
    commit_lsn: Sequence[int], commit_time: Sequence[int], xid: Sequence[int], relations: Sequence[bytes], messages: Sequence[bytes]
) -> bytes:
    """Frames a ``Decoder`` takes, of changes that were kept raw: each run of one commit LSN is a transaction. Times: µs since 1970 UTC."""
    out = bytearray()
    last: int | None = None
    relation = b""

    def frame(message: bytes) -> None:
        nonlocal out
        out += len(message).to_bytes(4, "little") + message

    def commit() -> None:
        if last is not None:
            frame(struct.pack("!cBQQq", b"C", 0, last, last, 0))

    for lsn, time, number, under, message in zip(commit_lsn, commit_time, xid, relations, messages, strict=True):
        if lsn != last:
            commit()
            last = lsn
            frame(struct.pack("!cQqI", b"B", lsn, time - _POSTGRES_EPOCH_US, number))
        if under != relation:
            relation = under
            frame(relation)
        frame(message)
    commit()
    return bytes(out)


def _change_set(
    buffer: npt.NDArray[np.uint8], layout: _Layout, log: _Log, rows: npt.NDArray[np.int32], state: npt.NDArray[np.int64]
) -> ChangeSet:
    count = len(rows)
    columns, keys = len(layout.new_readers), len(layout.key_readers)
    op = np.empty(count, np.uint8)
    start, length = np.empty((columns, count), np.int32), np.empty((columns, count), np.int32)
    key_start, key_length = np.empty((keys, count), np.int32), np.empty((keys, count), np.int32)
    missing = np.zeros(columns, np.int64)
    told = (buffer, rows, log.kind, log.body, log.end, layout.target, layout.key, layout.whole)
    status, at = kernels.scan_tuples(*told, op, start, length, key_start, key_length, missing)
    if status != kernels.DONE:
        raise _corrupt(status, int(at), state)
    unchanged: dict[str, npt.NDArray[np.bool_]] = {}
    for number, many in enumerate(missing.tolist()):
        if many:
            unsent = np.empty(count, np.bool_)
            kernels.unsent(length[number], unsent)
            unchanged[layout.relation.columns[number].name] = unsent
    new = _with_defaults(_batch(buffer, start, length, layout.new_readers, layout.new_schema), layout, op <= _UPDATE)
    old = _batch(buffer, key_start, key_length, layout.key_readers, layout.key_schema)
    if layout.leaf is not None:
        # A truncate has that much of a row: it says which leaf.
        new = new.set_column(layout.leaf, new.schema.field(layout.leaf), _leaf(layout, op != _DELETE))
        if layout.relation.identity != "none":
            place = layout.leaf if layout.whole else layout.relation.key.index(new.schema.field(layout.leaf).name)
            old = old.add_column(place, new.schema.field(layout.leaf), _leaf(layout, (op == _UPDATE) | (op == _DELETE)))
    if layout.whole:
        old = _with_defaults(old, layout, (op == _UPDATE) | (op == _DELETE))
    return ChangeSet(
        relation=layout.relation,
        op=op,
        commit_lsn=log.lsn[rows],
        new=new,
        old_key=old.select([]) if layout.whole else old,
        unchanged=unchanged,
        old=old if layout.whole else None,
    )


def _leaf(layout: _Layout, rows: npt.NDArray[np.bool_]) -> Any:
    return pa.array(np.full(len(rows), layout.message.oid, np.int64), mask=~rows)


def _with_defaults(batch: pa.RecordBatch, layout: _Layout, rows: npt.NDArray[np.bool_]) -> pa.RecordBatch:
    """The columns the message does not have, with their default in these rows."""
    for number in layout.absent:
        text = layout.relation.columns[number].default
        if text is not None:
            value = read_only(text.encode())
            where = Fields(value, np.zeros(len(rows), np.int32), np.where(rows, len(value), kernels.NULL).astype(np.int32))
            batch = batch.set_column(number, layout.new_schema.field(number), layout.new_readers[number](where))
    return batch


def _batch(
    buffer: npt.NDArray[np.uint8],
    start: npt.NDArray[np.int32],
    length: npt.NDArray[np.int32],
    readers: tuple[Reader, ...],
    schema: pa.Schema,
) -> pa.RecordBatch:
    arrays: list[Any] = [read(Fields(buffer, start[n], length[n])) for n, read in enumerate(readers)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
