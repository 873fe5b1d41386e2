"""The history of one followed table: a row for every effect the applier has on the mirror, in the same commits.

Promises: replayed in order of ``number`` (model.history), the rows of a history give its mirror, row for row, at every commit; every
admitted change is a row of its own, whole, also one that a later change of the same chunk hides; nothing else is a row but what was
loaded, mended and reset. Rows are only ever added, and compaction moves them without a change. A history that is not in step with its
mirror (it was switched off for a while, or someone else wrote the mirror) begins anew with a reset and the rows there are.
Fails with what writing fails with; never with a value, because the mirror took it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.errors import AlreadyExists, NoSuchTable, UnsupportedTable
from icelake.model import history as model
from icelake.model.history import HISTORY, HISTORY_OF, PARTITION, STOPPED, HistoryNote, history_of, mirror_of
from icelake.model.marker import SOURCE, Marker
from icelake.model.relation import TableId
from icelake.ports import DELETE, INSERT, TRUNCATE, UPDATE, Catalog, ChangeSet, Json, LoadedTable, TableChange, arrow_schema
from icelake.tables.history import history_properties, history_schema
from icelake.tables.rewrite import choose, rewrite
from icelake.tables.table import Delta, Table, one_batch

_OPS = {INSERT: model.INSERT, UPDATE: model.UPDATE, DELETE: model.DELETE, TRUNCATE: model.TRUNCATE}


class History:
    """Open, beside a mirror that it is in step with. Between commits there is no ``delta``; a batch fills it, and ``done`` or
    ``rollback`` ends it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.id = table.id
        self.note = HistoryNote.read(table.metadata["properties"])
        self._next = self.note
        self._schema = arrow_schema(table.relation.columns)
        self._delta: Delta | None = None

    @property
    def pending(self) -> bool:
        """Whether the running batch has rows."""
        return self._next.last != self.note.last

    # ---------------------------------------------------------------------------------------------------------- rows

    def changed(self, changes: ChangeSet, kind: npt.NDArray[np.uint8], new: pa.RecordBatch) -> None:
        """The changes that are admitted, as what they are (``kind``; any but these four: not admitted).

        ``new``: the rows after those that have one, whole, in order.
        """
        which = np.flatnonzero(kind <= TRUNCATE)
        kinds = kind[which]
        has_new, has_old = kinds < DELETE, (kinds == UPDATE) | (kinds == DELETE)
        row = np.where(has_new, np.cumsum(has_new) - 1, -1)
        old = changes.old if changes.old is not None else changes.old_key
        xid = time = None
        seq = changes.place()[which] if changes.place is not None else None
        if (of := changes.transactions) is not None:
            at = np.searchsorted(of.commit_lsn, changes.commit_lsn[which])
            xid, time = of.xid[at], of.commit_time[at]
        op = pa.array([_OPS[number] for number in range(TRUNCATE + 1)]).take(kinds)
        emptied = np.where(kinds == TRUNCATE, which, -1)
        leaf = _taken(changes.new.column(changes.relation.leaf), emptied) if changes.relation.partitioned else None
        self._add(op, changes.commit_lsn[which], old, np.where(has_old, which, -1), new, row, leaf, seq, xid, time)

    def loaded(self, rows: pa.RecordBatch, lsn: int) -> None:
        """Rows that were read from the source as of ``lsn``."""
        self._own(model.LOAD, lsn, None, rows)

    def mended(self, old: pa.RecordBatch | None, rows: pa.RecordBatch | None, lsn: int) -> None:
        """Rows that left (by what names them), came, or (both, in the same order) were replaced, without a change of the source."""
        self._own(model.MEND, lsn, old, rows)

    def reset(self, lsn: int, leaf: int | None = None) -> None:
        """Every row left, or those of a leaf."""
        self._own(model.RESET, lsn, None, None, leaf)
        if leaf is None:
            self._since(lsn)

    def _since(self, lsn: int) -> None:
        self._next = HistoryNote(self._next.mirror, self._next.last, lsn)

    def _own(self, op: str, lsn: int, old: pa.RecordBatch | None, rows: pa.RecordBatch | None, leaf: int | None = None) -> None:
        n = max(old.num_rows if old is not None else 0, rows.num_rows if rows is not None else 0, int(op == model.RESET))
        every, nothing = np.arange(n), np.full(n, -1)
        self._add(
            pa.array([op] * n, pa.string()),
            np.full(n, lsn, np.uint64),
            old,
            nothing if old is None else every,
            rows,
            nothing if rows is None else every,
            None if leaf is None else pa.array([leaf]),
        )

    def _add(
        self,
        op: Any,
        commit_lsn: npt.NDArray[np.uint64],
        old: pa.RecordBatch | None,
        old_at: npt.NDArray[np.int64],
        new: pa.RecordBatch | None,
        new_at: npt.NDArray[np.int64],
        leaf: Any,
        seq: npt.NDArray[np.int64] | None = None,
        xid: npt.NDArray[np.int64] | None = None,
        time: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """``old_at`` and ``new_at``: for each row of the history which row of ``old`` and ``new`` it has, -1 for none.

        ``leaf``: for each the OID of the leaf whose rows went, null for none.
        """
        n, last = len(commit_lsn), self._next.last
        if not n:
            return

        def longs(values: npt.NDArray[np.int64] | None) -> Any:
            return pa.nulls(n, pa.int64()) if values is None else pa.array(values, pa.int64())

        columns = {
            "number": pa.array(np.arange(last + 1, last + n + 1, dtype=np.int64)),
            "op": op,
            "commit_lsn": pa.array(commit_lsn.astype(np.int64)),
            "seq": longs(seq),
            "xid": longs(xid),
            "commit_time": longs(time).cast(pa.timestamp("us", "UTC")),
        }
        if PARTITION in self._schema.names:
            columns[PARTITION] = pa.nulls(n, pa.int64()) if leaf is None else leaf
        for name, batch, at in (("old_key", old, old_at), ("row", new, new_at)):
            if name in self._schema.names:
                columns[name] = _structs(batch, at, self._schema.field(name).type)
        rows = pa.RecordBatch.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)
        self._next = HistoryNote(self._next.mirror, last + n, self._next.since)
        self._begin().append(rows, None)

    def write(self) -> None:
        """Write the rows of the running batch that are in memory."""
        if self._delta is not None:
            self._delta.write()

    def _begin(self) -> Delta:
        if self._delta is None:
            self._delta = self.table.delta()
        return self._delta

    # ------------------------------------------------------------------------------------------------------- commit

    def begin(self, mirror: Table, lsn: int) -> None:
        """Take the mirror's rows as the beginning, after a reset if there is anything before. They are as of ``lsn`` or earlier."""
        if self.note.last:
            self.reset(lsn)
        self._since(lsn)
        names = [column.name for column in mirror.relation.columns]
        for no in sorted(mirror.files, key=lambda no: (mirror.files[no].first_row_id, mirror.files[no].sequence_number)):
            self.loaded(one_batch(mirror.live_rows(no, names)[1].select(names)), lsn)

    def prepare(self, marker: Marker, mirror: int | None) -> TableChange:
        """The batch as this table's part of the commit after which the mirror is at that snapshot."""
        self._next = HistoryNote(mirror, self._next.last, self._next.since)
        return self._begin().prepare(marker.summary(), {HISTORY: self._next.dump()})

    def done(self, after: Sequence[LoadedTable]) -> list[str]:
        """The commit with this part in it succeeded. Files that were written on the way and are in no snapshot."""
        assert self._delta is not None
        unused = list(self._delta.unused)
        self.table.adopt(after[0], self._delta)
        self.note = self._next
        self._end()
        return unused

    def rollback(self) -> list[str]:
        """Forget the batch; the files it wrote."""
        written = list(self._delta.written) if self._delta is not None else []
        self._next = self.note
        self._end()
        return written

    def _end(self) -> None:
        self._delta = None

    def compact(self, marker: Marker, *, at_rest: bool = False) -> TableChange | None:
        """A batch that only makes few files of many, or None if there is nothing worth it. Needs no running batch."""
        chosen = choose(self.table, at_rest=at_rest)
        if not chosen:
            return None
        self._delta, _ = rewrite(self.table, chosen)
        return self._delta.prepare({"icelake.attempt": marker.attempt}, {})


def in_step(history: LoadedTable, mirror: LoadedTable) -> bool:
    """Whether a replay of the history gives the mirror: it has all its rows, and nothing was done to the mirror since but rewrites."""
    note = HistoryNote.read(history.metadata["properties"])
    head = history.snapshot(history.head)
    if note.last != (int(head["summary"].get("total-records", -1)) if head is not None else 0):
        return False
    at = mirror.head
    while at != note.mirror:
        snapshot = mirror.snapshot(at)
        if snapshot is None or snapshot["summary"]["operation"] != "replace":
            return False
        at = snapshot.get("parent-snapshot-id")
    return True


def stopped(metadata: Json) -> list[Json]:
    """The updates (REST specification, TableUpdate) of a history that is not kept from here on; none if it is not already."""
    note = HistoryNote.read(metadata["properties"])
    if note.mirror == STOPPED:
        return []
    return [{"action": "set-properties", "updates": {HISTORY: HistoryNote(STOPPED, note.last, note.since).dump()}}]


def load_or_create(catalog: Catalog, mirror: LoadedTable, source: str, lsn: int) -> LoadedTable:
    """The history of a mirror, made if it is not there. ``source``: the lake's id of it; ``lsn``: where it begins."""
    ident = history_of(mirror.id)
    try:
        return _owned(catalog.load(ident), mirror.id, source)
    except NoSuchTable:
        schema = history_schema(mirror.metadata)
        note = HistoryNote(None, 0, lsn)
        properties = {**history_properties(ident, schema), HISTORY_OF: f"{source}/{mirror.id}", HISTORY: note.dump()}
        try:
            return catalog.create(ident, schema, properties, format_version=mirror.metadata["format-version"])
        except AlreadyExists:
            return _owned(catalog.load(ident), mirror.id, source)


def _owned(loaded: LoadedTable, mirror: TableId, source: str) -> LoadedTable:
    properties = loaded.metadata["properties"]
    if mirror_of(properties, source) == str(mirror):
        return loaded
    if properties.get(SOURCE) == source:
        raise UnsupportedTable(
            "HISTORY_NAME_TAKEN",
            f"{mirror} cannot have a history: {loaded.id} is the mirror of a table of the source",
            "the history of a table is called like the table, with _history behind it",
            f"take history off {mirror}, then `icelake resume {mirror}`; or rename {loaded.id} in PostgreSQL and load both into a new lake",
            table=str(mirror),
        )
    raise UnsupportedTable(
        "HISTORY_NAME_TAKEN",
        f"{mirror} cannot have a history: the catalog already has a table {loaded.id} that is none of this source",
        "someone else made it",
        f"move it out of the way, or take history off {mirror}; then `icelake resume {mirror}`",
        table=str(mirror),
    )


def _structs(batch: pa.RecordBatch | None, at: npt.NDArray[np.int64], kind: Any) -> Any:
    """For each number in ``at`` that row of the batch as a struct, null for -1."""
    absent = at < 0
    if batch is None or absent.all():
        return pa.nulls(len(at), kind)
    columns: Sequence[Any] = batch.columns
    if not np.array_equal(at, np.arange(batch.num_rows)):
        columns = [_taken(column, at) for column in columns]
    return pa.StructArray.from_arrays(columns, fields=list(kind), mask=pa.array(absent) if absent.any() else None)


def _taken(column: Any, at: npt.NDArray[np.int64]) -> Any:
    return column.take(pa.array(at, mask=at < 0))
