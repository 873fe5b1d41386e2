"""The protocols the rooms meet through. The applier reaches the world only through these, so a simulator can play the world.

Bulk data is Arrow. Anything here may raise the errors of ``icelake.errors``; ``Unreachable`` and ``CommitUnknown`` are the ones
a caller may meet at any call and must survive.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.errors import IcelakeError
from icelake.model.load import Bound
from icelake.model.relation import Column, Refusal, Relation, SlotState, SourceIdentity, TableId
from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType, parse

INSERT, UPDATE, DELETE, TRUNCATE = 0, 1, 2, 3
"""Values of ``ChangeSet.op``."""


def arrow_type(iceberg: str) -> pa.DataType:
    """The Arrow type IceLake carries an Iceberg type in. Raises ValueError for a text that is not one (``model.types``)."""
    return _arrow(parse(iceberg))


_ARROW: Mapping[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "uuid": pa.binary(16),
}


def _arrow(kind: IcebergType) -> pa.DataType:
    match kind:
        case ListType(element):
            return pa.list_(pa.field("element", _arrow(element)))
        case MapType(key, value):
            return pa.map_(_arrow(key), _arrow(value))
        case StructType(fields):
            return pa.struct([pa.field(name, _arrow(part)) for name, part in fields])
        case Primitive():
            declared = kind.decimal
            return pa.decimal128(*declared) if declared is not None else _ARROW[kind.name]


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of rows of these columns: names and types only, everything nullable."""
    return pa.schema([pa.field(column.name, arrow_type(column.iceberg)) for column in columns])


# ---------------------------------------------------------------------------------------------------------------- source


@dataclass(frozen=True, slots=True)
class Transactions:
    """The transactions that changes come from, in source order; every array has one entry a transaction."""

    commit_lsn: npt.NDArray[np.uint64]
    """Ascending."""
    xid: npt.NDArray[np.int64]
    """The 32 bits the stream sends."""
    commit_time: npt.NDArray[np.int64]
    """µs since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """One table's changes of one chunk, in source order. Every array has one entry a change (``len(op)``)."""

    relation: Relation
    op: npt.NDArray[np.uint8]
    commit_lsn: npt.NDArray[np.uint64]
    """Begin.final_lsn of the change's transaction: the *start* of its commit record; compare with a range's L."""
    new: pa.RecordBatch
    """``arrow_schema(relation.columns)``; a row of nulls for deletes and truncates. Unchanged TOAST values are null here.

    Of a partitioned table all changes are of one leaf, and a truncate, which empties that leaf, has its ``tableoid``."""
    old_key: pa.RecordBatch
    """``arrow_schema(relation.key_columns)``: the key before the change, for updates (always filled) and deletes; else nulls.

    Without columns unless ``relation.identity`` is "key"."""
    unchanged: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """Column name -> where its value was not sent (unchanged TOAST, pgoutput 'u'). Columns without any are left out."""
    old: pa.RecordBatch | None = None
    """Like ``new``, the row before the change, for updates and deletes; only if ``relation.identity`` is "full", and then nothing
    is ``unchanged``."""
    transactions: Transactions | None = None
    """Those of the changes, and perhaps others; None: not known."""
    place: Callable[[], npt.NDArray[np.int64]] | None = None
    """Gives of each its place among its transaction's changes of this table, from 1: the same whenever it is sent. None: not known."""


@dataclass(frozen=True, slots=True)
class RawChanges:
    """A parked table's changes of one chunk, in source order, as they came: one entry a change."""

    table: TableId
    commit_lsn: npt.NDArray[np.uint64]
    relation: bytes
    """The Relation message they were sent under."""
    attnums: tuple[int, ...] | None
    """Of that message's columns, in its order; None if it cannot be told which columns they are."""
    messages: pa.BinaryArray
    """Insert, Update, Delete and Truncate messages, whole; a Truncate names this table alone."""
    place: npt.NDArray[np.int64]
    """What ``ChangeSet.place`` gives."""
    transactions: Transactions
    """Those of the changes, and perhaps others."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Decoded changes: some whole transactions, and perhaps the beginning of one more.

    ``position`` is the end LSN of the last transaction *completed* in this chunk, None if none was; ``open`` tells that the
    chunk ends inside a transaction, so a commit must wait for a later chunk with a position.
    """

    changes: Sequence[ChangeSet]
    position: int | None
    commit_time: int
    """The largest source commit time of the completed transactions, µs since 1970 UTC; 0 if none."""
    transactions: int
    open: bool
    bytes: int
    raw: Sequence[RawChanges] = ()


class Stream(Protocol):
    """A running START_REPLICATION (protocol version 1: whole transactions in commit order). Not thread-safe for its caller."""

    @property
    def timeline(self) -> int:
        """The timeline the server was on when the stream began."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes received and not taken yet (bounded; the server waits when it is full). Like the next two, it may grow at any time."""
        ...

    @property
    def complete(self) -> int:
        """End LSN of the last complete transaction received, taken or not; the start position before the first."""
        ...

    @property
    def server_lsn(self) -> int:
        """Every commit before this position has been *received* (keepalives and transactions). Never less than ``complete``."""
        ...

    @property
    def behind(self) -> bool:
        """Whether the source is known to have much that was not received yet: what it changes is not worth tidying now."""
        ...

    def wait(self, timeout: float, enough: int = 0) -> bool:
        """Receive until something new came or ``timeout`` seconds passed; True if something did (keepalives count).

        What is new ends the waiting only once ``enough`` bytes are buffered.
        """
        ...

    def take(self, *, before: int | None = None, max_bytes: int = 1 << 25) -> Chunk | None:
        """Decode and hand over what is buffered, about ``max_bytes`` at most, preferring to end at a transaction boundary.

        With ``before``, only transactions whose *commit* LSN is < ``before``. A transaction larger than ``max_bytes`` comes in
        several chunks, all but the last of them ``open``. None: there is nothing to take.
        Raises UnsupportedTable (a relation is not, or no longer, what the lake holds), ValueOutOfContract, Corrupt.
        """
        ...

    def blocked(self, before: int) -> bool:
        """True once every transaction with commit LSN < ``before`` has been *taken* (and none can come any more)."""
        ...

    def ask(self) -> None:
        """Ask the server for a keepalive now, so ``server_lsn`` moves."""
        ...

    def confirm(self, lsn: int) -> None:
        """Tell the server that everything up to ``lsn`` is durable here; it may forget it (standby status update 'r')."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RangeRead:
    """A key range as of consistent point ``lsn``. ``rows`` yields batches of ``arrow_schema(relation.columns)``, in key order.

    ``upper`` is known only after ``rows`` is exhausted: the bound through the last row read if the limit cut the range short, else
    the bound that was asked for. Iterate inside the ``with`` block of ``Source.read_range``.
    """

    lsn: int
    rows: Iterator[pa.RecordBatch]
    upper: "RangeEnd"
    timeline: int
    """The timeline ``lsn`` is on."""
    table_rows: int = 0
    """How many rows the whole table has by the source's statistics, 0 if it does not know: a hint."""


@dataclass(slots=True)
class RangeEnd:
    bound: Bound | None = None


class RangeReading(Protocol):
    """The context manager ``read_range`` gives: the snapshot, its slot and its transaction live as long as it is open."""

    def __enter__(self) -> RangeRead: ...

    def __exit__(self, *exc: object) -> None: ...


class Source(Protocol):
    """A PostgreSQL database that changes can be read from."""

    def identify(self) -> SourceIdentity: ...

    def switched_from(self, timeline: int) -> int | None:
        """The LSN at which the server's history left that timeline (everything that ends before or at it is in both).

        None: the server's timeline does not descend from it.
        """
        ...

    def describe(self, tables: Sequence[str]) -> Sequence[Relation | Refusal]:
        """What the named tables (``schema.name``; ``schema.*`` for all of a schema) are *now*, by pg_attribute."""
        ...

    def publish(self, publication: str, relations: Sequence[Relation]) -> None:
        """Make the publication hold at least these tables with insert, update, delete, truncate. Idempotent.

        Those of identity "none" go into a publication beside it (``model.ident.append_publication``) that sends inserts and truncates
        only: the updates and deletes of such a table would fail for its users once they are published. No other is added to either.
        Of a partitioned table the leaves are added that it has now.
        """
        ...

    def published(self, publication: str) -> Mapping[TableId, str]:
        """The tables of the publication and of the one beside it, each with the text of its ``model.membership``.

        Partitioned tables are all there, whose leaves are what is published: which of them are, their marks say.

        Raises Refused if the publication is gone, or if one of the two does not send what it should.
        """
        ...

    def withdraw(self, publication: str) -> Mapping[TableId, str]:
        """Take every table out whose mark says ``unnamed``: its updates and deletes fail for its users as long as it is there.

        Of a partitioned table, such leaves. Which tables: '' if all of it is out, else what is in the way and what helps. Waits for
        nobody, and may be called at any time.
        """
        ...

    def slot(self, name: str) -> SlotState | None: ...

    def create_slot(self, name: str) -> int:
        """A permanent pgoutput slot; the consistent point."""
        ...

    def drop_slot(self, name: str) -> None: ...

    def stream(self, slot: str, publication: str, start: int, relations: Sequence[Relation], parked: Sequence[Relation] = ()) -> Stream:
        """Start replication of both publications at ``start``. The relations are what the lake holds; a relation message must agree.
        Changes of a partitioned table are those of the leaves it has now: after another one came, a new stream is wanted.

        Changes of ``parked`` tables come raw, whatever they are. An error that is about one table alone names it (``error.table``).
        """
        ...

    def read_range(self, relation: Relation, lower: Bound | None, upper: Bound | None, limit: int) -> RangeReading:
        """At most about ``limit`` rows with ``lower`` < key <= ``upper``, under a snapshot exported by a temporary slot.

        A relation whose key order cannot be reproduced is always read whole (bounds must be None or a single key), a partitioned one
        leaf by leaf (bounds may also be between leaves). Which leaves there are, the snapshot says.
        """
        ...


# --------------------------------------------------------------------------------------------------------------- storage


@dataclass(frozen=True, slots=True)
class StoredFile:
    location: str
    size: int
    modified: float
    """Seconds since 1970."""


class Storage(Protocol):
    """Immutable files by location (an absolute path, or a URI). Nothing written is durable before ``flush`` returned."""

    def write(self, location: str, data: bytes | pa.Buffer) -> None:
        """Make the file. Locations are never reused; writing one twice with the same bytes is allowed."""
        ...

    def put(self, location: str, data: bytes) -> None:
        """Make the file; it is there for every reader when this returns, but a power cut may take it, or a part of it."""
        ...

    def flush(self) -> None:
        """Everything written so far survives a power cut: files and the folders that name them. What was deleted is gone."""
        ...

    def read(self, location: str, offset: int = 0, length: int | None = None) -> bytes: ...

    def open(self, location: str) -> pa.NativeFile:
        """For random access (Parquet). The caller closes it."""
        ...

    def delete(self, location: str) -> None:
        """Remove; a file that is not there is fine."""
        ...

    def list(self, prefix: str) -> Iterator[StoredFile]: ...


# --------------------------------------------------------------------------------------------------------------- catalog

Json = dict[str, Any]
"""A JSON object in the shape of the Iceberg spec or REST specification."""


@dataclass(frozen=True, slots=True)
class LoadedTable:
    id: TableId
    metadata: Json
    """Table metadata (Iceberg spec, Appendix C). Shared and cached: never change it."""
    metadata_location: str

    @property
    def head(self) -> int | None:
        """The snapshot main points at; None while there is none."""
        main = self.metadata.get("refs", {}).get("main")
        return None if main is None else main["snapshot-id"]

    def snapshot(self, snapshot_id: int | None) -> Json | None:
        """A retained snapshot in its JSON form, or None."""
        return next((one for one in self.metadata.get("snapshots", ()) if one["snapshot-id"] == snapshot_id), None)

    def unmoved(self) -> list[Json]:
        """The requirements (REST specification, TableRequirement) that nobody has made this another table, or moved main."""
        return [
            {"type": "assert-table-uuid", "uuid": self.metadata["table-uuid"]},
            {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": self.head},
        ]


@dataclass(frozen=True, slots=True)
class TableChange:
    """One table's part of a commit: ``requirements`` and ``updates`` in REST form (TableRequirement, TableUpdate).

    Empty ``updates`` only checks the requirements: that is how a commit is fenced by the control table without changing it.
    """

    id: TableId
    requirements: Sequence[Json]
    updates: Sequence[Json]

    @property
    def new_snapshot(self) -> int | None:
        """The snapshot it makes, None if it makes none."""
        return next((update["snapshot"]["snapshot-id"] for update in self.updates if update["action"] == "add-snapshot"), None)


@dataclass(frozen=True, slots=True)
class Lease:
    """Snapshots somebody is reading: they and their files stay until ``until`` (seconds since 1970) or release."""

    id: str
    holder: str
    until: float
    snapshots: Mapping[TableId, int]


class CatalogReader(Protocol):
    """The read side: all that ``verify``, ``query`` and other judges may use."""

    def tables(self) -> Sequence[TableId]: ...

    def load(self, table: TableId) -> LoadedTable: ...

    def lease(self, holder: str, snapshots: Mapping[TableId, int], seconds: float) -> Lease:
        """Raises CommitConflict if one of the snapshots is already gone."""
        ...

    def release(self, lease_id: str) -> None: ...

    def leases(self) -> Sequence[Lease]:
        """Those not yet over."""
        ...


class Catalog(CatalogReader, Protocol):
    """Tables by name, and commits over many of them that happen whole or not at all."""

    def create(
        self,
        table: TableId,
        schema: Json,
        properties: Mapping[str, str],
        location: str | None = None,
        *,
        partition_spec: Json | None = None,
        sort_order: Json | None = None,
        format_version: int = 3,
    ) -> LoadedTable:
        """A new, empty table; unpartitioned, unsorted and of format version 3 unless said otherwise. Raises AlreadyExists."""
        ...

    def commit(self, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        """All changes or none, durable when it returns; the new state of each, in order.

        Raises CommitConflict (409; a requirement failed, nothing done), CommitUnknown (no answer), NoSuchTable.
        A failed assert-ref-snapshot-id is always a conflict: nothing is retried or rebased here.
        """
        ...


# ----------------------------------------------------------------------------------------------------- clock and chance


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970 UTC; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds; never goes back."""
        ...

    def sleep(self, seconds: float) -> None: ...


class Chance(Protocol):
    def snapshot_id(self) -> int:
        """A positive 63-bit number nobody else has."""
        ...

    def uuid(self) -> str: ...


# ------------------------------------------------------------------------------------- words left for other processes


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """``verify`` asking the applier for a cut on exactly the commits before an LSN it does not know yet."""

    id: str
    lsn: int | None
    """None while the asker is still making its snapshot."""


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """Somebody asking that parked tables go on."""

    id: str
    tables: tuple[str, ...]
    """``schema.name``; empty: the whole source, from a new slot."""
    reload: bool
    """Compare with the source instead of replaying what was kept."""


class Desk(Protocol):
    """Where the processes of one lakehouse leave word for each other. Losing it loses no data."""

    def hold_wanted(self) -> HoldRequest | None:
        """The oldest request that is not answered and whose asker is still within its deadline."""
        ...

    def hold_granted(self, request: str) -> None:
        """The applier will make no further cut until the request has an LSN, is withdrawn, or its deadline is over."""
        ...

    def hold_answered(self, request: str, cut_id: int, lease_id: str) -> None: ...

    def resume_wanted(self) -> ResumeRequest | None:
        """The oldest request that is not answered and whose asker is still within its deadline."""
        ...

    def resume_answered(self, request: str, refusals: Sequence[IcelakeError]) -> None:
        """What was asked is done, but for these."""
        ...

    def report(self, status: Json) -> None:
        """What ``icelake status`` shows: replaces the last report of this process."""
        ...
