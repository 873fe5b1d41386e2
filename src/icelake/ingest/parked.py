"""A parked table: its mirror stands still, its changes are kept raw, and how they are played again.

Promises: of a table that can be replayed, every change after ``Parking.since`` is in the spool, in source order, in the same
commits as everybody else's changes, so the slot moves on. The spool is bounded: past the limit its table is told to be compared
with the source instead (or everything stops, if that is the policy). So are its files: they are merged as they come. Never decodes
while the table is parked. Fails with Refused PARKED_FULL under the policy ``stop``, with Corrupt SPOOL_CORRUPT when what was kept is not
what was written, and in ``replay`` with what decoding fails with.

The order is explicit. Changes are numbered from 1 without gaps, as they came from the source; a file holds consecutive numbers, from
the lowest to the highest. Merging takes neighbours only and keeps that, and a replay believes nothing else.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from icelake.errors import AlreadyExists, Corrupt, NoSuchTable, Refused, UnsupportedTable
from icelake.model.marker import Marker
from icelake.model.parking import PARKED, SPOOL_OF, Parking, spool_of
from icelake.model.relation import Column, Relation, TableId
from icelake.ports import Catalog, Chance, ChangeSet, Clock, LoadedTable, RawChanges, Storage, TableChange, arrow_schema, arrow_type
from icelake.sources.postgres.pgoutput import Decoder, RelationMessage, replayed
from icelake.tables.rewrite import choose_neighbours, rewrite
from icelake.tables.schema import iceberg_schema, relation_of, table_properties
from icelake.tables.table import Delta, Table

PastLimit = Literal["reload", "stop"]
REPLAY_ROWS = 100_000
"""Changes that are decoded at once."""
AS_BEFORE = b""
"""Instead of a Relation message: it is the one of the change before. Else a wide table's file of small changes, which compresses to

nothing, would be as large in memory as all its messages.
"""


def _shape(spool: TableId) -> Relation:
    def column(attnum: int, name: str, pg_type: str, iceberg: str, nullable: bool) -> Column:
        return Column(name=name, attnum=attnum, type_oid=0, typmod=-1, pg_type=pg_type, iceberg=iceberg, nullable=nullable)

    columns = (
        column(1, "number", "bigint", "long", False),
        column(2, "commit_lsn", "bigint", "long", False),
        column(3, "relation", "bytea", "binary", False),
        column(4, "attnums", "text", "string", True),
        column(5, "change", "bytea", "binary", False),
        column(6, "xid", "bigint", "long", False),
        column(7, "commit_time", "timestamp with time zone", "timestamptz", False),
        column(8, "seq", "bigint", "long", False),
    )
    return Relation(oid=0, schema=spool.namespace, name=spool.name, columns=columns, key=("number",))


@dataclass(frozen=True, slots=True)
class Kept:
    """Some changes of one Relation message, in order, as they came out of the spool."""

    relation: bytes
    attnums: tuple[int, ...] | None
    commit_lsn: Sequence[int]
    messages: Sequence[bytes]
    xid: Sequence[int]
    commit_time: Sequence[int]
    seq: Sequence[int]
    """As ``RawChanges.place``."""


class Parked:
    """See the module. Between commits there is no ``delta``; a batch fills it, and ``done`` or ``rollback`` ends it."""

    def __init__(self, mirror: LoadedTable, note: Parking, spool: Table | None) -> None:
        """Use ``open``. ``spool`` is None if the changes are not kept."""
        self.mirror = mirror
        self.note = note
        self.spool = spool
        self.id = mirror.id
        self.relation = relation_of(mirror.metadata)
        self._delta: Delta | None = None
        self._kept = 0
        self._next_note = note
        self._first: dict[int, int] = {}
        """File number -> the number of its first change."""
        self._number = 0
        """The number of the last change kept."""
        if spool is not None and spool.files:
            files = list(spool.files)
            first: list[Any] = spool.read(np.array(files), np.zeros(len(files), np.int64), ["number"]).column(0).to_pylist()
            self._first = dict(zip(files, first, strict=True))
            self._number = max(at + spool.files[no].record_count - 1 for no, at in self._first.items())

    @staticmethod
    def open(mirror: LoadedTable, note: Parking, catalog: Catalog, storage: Storage, clock: Clock, chance: Chance) -> "Parked":
        """Of a table whose spool is gone nothing can be replayed."""
        try:
            spool = Table.open(catalog.load(spool_of(mirror.id)), storage, clock, chance) if note.replay else None
        except NoSuchTable:
            spool, note = None, replace(note, replay=False)
        return Parked(mirror, note, spool)

    # ------------------------------------------------------------------------------------------------------- a batch

    def keep(self, raw: RawChanges) -> None:
        """Add a chunk's changes to the running batch; a table whose changes are not kept lets them go."""
        n = len(raw.messages)
        if self.spool is None or not n:
            return
        numbers = np.arange(self._number + self._kept + 1, self._number + self._kept + n + 1, dtype=np.int64)
        attnums = None if raw.attnums is None else ",".join(map(str, raw.attnums))
        of = np.searchsorted(raw.transactions.commit_lsn, raw.commit_lsn)
        rows = pa.RecordBatch.from_arrays(
            [
                pa.array(numbers),
                pa.array(raw.commit_lsn.astype(np.int64)),
                pa.array([raw.relation, *[AS_BEFORE] * (n - 1)], pa.binary()),
                pa.array([attnums] * n, pa.string()),
                raw.messages,
                pa.array(raw.transactions.xid[of]),
                pa.array(raw.transactions.commit_time[of]).cast(arrow_type("timestamptz")),
                pa.array(raw.place),
            ],
            schema=arrow_schema(self.spool.relation.columns),
        )
        if self._delta is None:
            self._delta = self.spool.delta()
        self._delta.append(rows, None)
        self._kept += n

    def write(self) -> None:
        """Write the changes of the running batch that are in memory."""
        if self._delta is not None:
            self._delta.write()

    def prepare(self, marker: Marker, limit: int, past: PastLimit) -> list[TableChange]:
        """The batch as these tables' part of a commit: of the spool, and of the mirror if the changes are not kept any longer."""
        if self.spool is None or self._delta is None:
            return []
        if sum(file.size for file in self.spool.files.values()) <= limit:
            return [self._delta.prepare(marker.summary(), {})]
        if past == "stop":
            raise Refused(
                "PARKED_FULL",
                f"{self.id} is parked, and what was kept of its changes has reached the limit of {limit >> 20} MiB",
                f"it stopped because of {self.note.code}: {self.note.why}",
                f"mend that and `icelake resume {self.id}`; nothing is lost, but the slot keeps WAL meanwhile",
            )
        self._delta.truncate()
        why = f"{self.note.why}; what was kept of its changes reached the limit of {limit >> 20} MiB and was let go"
        self._next_note = replace(self.note, why=why, fix=f"`icelake resume {self.id} --reload`", replay=False)
        return [self._delta.prepare(marker.summary(), {}), note_change(self.mirror, self._next_note)]

    def done(self, after: Sequence[LoadedTable]) -> list[str]:
        """The commit with these parts in it succeeded. Files that were written on the way and are in no snapshot."""
        if self.spool is None or self._delta is None:
            return []
        outcome, unused = self._delta.outcome, list(self._delta.unused)
        assert outcome is not None
        self.spool.adopt(after[0], self._delta)
        # New files are in the place of those that went, or at the end.
        number = min((self._first.pop(no) for no in outcome.removed), default=self._number + 1)
        for file in outcome.files:
            self._first[file.no] = number
            number += file.record_count
        self._number += self._kept
        if len(after) > 1:
            self.mirror, self.note, self.spool = after[1], self._next_note, None
        self._end()
        return unused

    def rollback(self) -> list[str]:
        """Forget the batch; the files it wrote."""
        written = list(self._delta.written) if self._delta is not None else []
        self._next_note = self.note
        self._end()
        return written

    def _end(self) -> None:
        self._delta = None
        self._kept = 0

    # ------------------------------------------------------------------------------------------------------- upkeep

    def compact(self, marker: Marker, *, at_rest: bool = False) -> TableChange | None:
        """A batch that only makes fewer files of what is kept, or None if there is nothing worth it. Needs no running batch."""
        if self.spool is None or at_rest:
            return None
        chosen = choose_neighbours([self.spool.files[no] for no in self._ordered()])
        if not chosen:
            return None
        self._delta, _ = rewrite(self.spool, chosen)
        # As a mirror's: no source position moves.
        return self._delta.prepare({"icelake.attempt": marker.attempt}, {})

    def _ordered(self) -> list[int]:
        """The spool's files in the order of their changes."""
        return sorted(self._first, key=self._first.__getitem__)

    # ------------------------------------------------------------------------------------------------------- replay

    def kept(self) -> Iterator[Kept]:
        """Everything in the spool, in source order, in runs of one Relation message."""
        spool = self.spool
        if spool is None:
            return
        names = [column.name for column in spool.relation.columns]
        number, relation = 1, AS_BEFORE
        for no in self._ordered():
            _, rows = spool.live_rows(no, names)
            if not np.array_equal(rows.column("number").to_numpy(), np.arange(number, number + rows.num_rows)):
                raise self._corrupt(f"{spool.files[no].path} does not hold changes {number} to {number + rows.num_rows - 1}, in that order")
            number += rows.num_rows
            for at in range(0, rows.num_rows, REPLAY_ROWS):
                for run in _runs(rows.slice(at, REPLAY_ROWS), relation):
                    if not run.relation:
                        raise self._corrupt(f"{spool.files[no].path} begins without a Relation message")
                    relation = run.relation
                    yield run

    def _corrupt(self, why: str) -> Corrupt:
        return Corrupt(
            "SPOOL_CORRUPT",
            f"the changes of {self.id} that were kept cannot be replayed",
            why,
            f"`icelake resume {self.id} --reload` compares the table with the source instead",
            table=str(self.id),
        )

    def emptied(self) -> TableChange | None:
        """The part of a commit after which the spool is empty; None if it is."""
        if self.spool is None or not self.spool.files:
            return None
        delta = self.spool.delta()
        delta.truncate()
        return delta.prepare({}, {})


def note_change(mirror: LoadedTable, note: Parking) -> TableChange:
    """The part of a commit that parks a mirror, or writes another note."""
    return TableChange(mirror.id, mirror.unmoved(), [{"action": "set-properties", "updates": {PARKED: note.dump()}}])


def make_spool(mirror: TableId, source: str, catalog: Catalog) -> LoadedTable:
    """The spool of a mirror, made if it is not there. ``source``: the lake's id of the source."""
    ident = spool_of(mirror)
    try:
        return catalog.load(ident)
    except NoSuchTable:
        shape = _shape(ident)
        try:
            return catalog.create(ident, iceberg_schema(shape), {**table_properties(shape), SPOOL_OF: f"{source}/{mirror}"})
        except AlreadyExists:
            return catalog.load(ident)


def replay(kept: Kept, held: Relation) -> Sequence[ChangeSet]:
    """Kept changes as changes of the table the lake has now. Raises UnsupportedTable when nobody knows which columns they had."""
    attnums = kept.attnums
    if attnums is None:
        raise UnsupportedTable(
            "RESUME_NEEDS_RELOAD",
            f"changes of {held.id} that were kept cannot be replayed",
            "its columns were changed more than once meanwhile, and nobody can tell any more which columns these changes had",
            f"`icelake resume {held.id} --reload` compares the table with the source instead",
            table=str(held.id),
        )

    def as_sent(message: RelationMessage) -> Relation:
        # A column is its attnum: what it was called in the message does not matter.
        called = {attnum: column.name for attnum, column in zip(attnums, message.columns, strict=True)}
        columns = tuple(replace(column, name=called.get(column.attnum, f"\0{column.attnum}")) for column in held.columns)
        names = {old.name: new.name for old, new in zip(held.columns, columns, strict=True)}
        return replace(held, columns=columns, key=tuple(names[name] for name in held.key))

    relations = [kept.relation] * len(kept.messages)
    chunk = Decoder(as_sent).decode(replayed(kept.commit_lsn, kept.commit_time, kept.xid, relations, kept.messages))
    return [replace(_renamed(changes, held), place=partial(np.array, kept.seq, np.int64)) for changes in chunk.changes]


def _renamed(changes: ChangeSet, held: Relation) -> ChangeSet:
    names = {sent.name: column.name for sent, column in zip(changes.relation.columns, held.columns, strict=True)}
    return replace(
        changes,
        relation=held,
        new=pa.RecordBatch.from_arrays(changes.new.columns, schema=arrow_schema(held.columns)),
        old_key=pa.RecordBatch.from_arrays(changes.old_key.columns, schema=arrow_schema(held.key_columns)),
        unchanged={names[name]: mask for name, mask in changes.unchanged.items()},
    )


def _runs(rows: pa.Table, before: bytes) -> Iterator[Kept]:
    """``before``: the Relation message of the change before these."""
    relations: list[Any] = rows.column("relation").to_pylist()
    attnums: list[Any] = rows.column("attnums").to_pylist()
    commit_lsn: list[Any] = rows.column("commit_lsn").to_pylist()
    messages: list[Any] = rows.column("change").to_pylist()
    xid: list[Any] = rows.column("xid").to_pylist()
    commit_time: list[Any] = rows.column("commit_time").cast(pa.int64()).to_pylist()
    seq: list[Any] = rows.column("seq").to_pylist()
    relations = list(itertools.accumulate(relations, lambda last, here: last if here == AS_BEFORE else here, initial=before))[1:]
    start = 0
    for end in range(1, len(relations) + 1):
        if end < len(relations) and (relations[end], attnums[end]) == (relations[start], attnums[start]):
            continue
        numbers = attnums[start]
        known = None if numbers is None else tuple(int(text) for text in numbers.split(",") if text)
        of = slice(start, end)
        yield Kept(relations[start], known, commit_lsn[of], messages[of], xid[of], commit_time[of], seq[of])
        start = end
