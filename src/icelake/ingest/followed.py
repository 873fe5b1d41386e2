"""One table the applier follows: its Iceberg table, its row index, its load state, and what the running batch does to it.

Changes are applied strictly: a change that contradicts what the lake holds (an insert of a key that is there, an update or
delete of one that is not) raises Corrupt ``MIRROR_DIVERGED`` and nothing of the batch is committed. The only changes left
out are those the load state rules out (docs/protocol.md, Load, join, repair).

How changes name rows (``Relation.identity``) makes three kinds: ``Keyed`` rows are found by their key, those of a ``Multiset`` by all
their values, those of an ``AppendOnly`` table not at all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.errors import Corrupt, Refused, UnsupportedTable
from icelake.ingest import collapse
from icelake.ingest.history import History
from icelake.ingest.keyorder import key_text, sortable
from icelake.model.load import Interval, LoadState, leaf_bounds
from icelake.model.marker import LOAD, MEMBERSHIP, Marker
from icelake.model.membership import Membership
from icelake.model.relation import TABLEOID, TableId
from icelake.ports import DELETE, INSERT, TRUNCATE, UPDATE, ChangeSet, LoadedTable, TableChange
from icelake.sources.postgres.types import order
from icelake.tables.bag_index import BagIndex
from icelake.tables.key_index import Identity, IndexFiles, KeyIndex
from icelake.tables.keys import Hashes, hash_keys, hash_rows
from icelake.tables.rewrite import Moved, choose, rewrite
from icelake.tables.table import Delta, Table, one_batch

LOAD_BYTES = 64 << 20
"""Arrow bytes of rows that are put in order at once, or put together of what was sent and what the lake holds."""
_HELD_BYTES = 256 << 20
"""Arrow bytes of rows from one range in files that are not full, after which they are written."""
_TELLING_ROWS = 50
_FILLED_BYTES = 16 << 20
"""Arrow bytes of rows, about, whose unchanged values are read from the lake at once."""


class RowIndex(Protocol):
    """What every kind of row index has in common."""

    def put(self, hashes: Hashes, file_no: npt.ArrayLike, position: npt.ArrayLike, row_id: npt.ArrayLike) -> object: ...

    def clear(self) -> None: ...

    def commit(self, snapshot_id: int | None, files: Mapping[int, Identity]) -> None: ...

    def rollback(self) -> None: ...


class Followed(ABC):
    """A followed table. Between commits ``delta`` is None; a batch fills it, and ``done`` or ``rollback`` ends it.

    What is common to all kinds; ``follow`` makes the right one, and ``open_index`` comes before the first batch.
    """

    _index: RowIndex

    def __init__(self, table: Table) -> None:
        self.table = table
        self.relation = table.relation
        self.id = table.id
        self.load = LoadState.parse(table.metadata["properties"][LOAD])
        self._next_load = self.load
        self.delta: Delta | None = None
        self.changes = 0
        self.row_bytes = 0
        """Arrow bytes of a row, as the last range had them; 0: none was read yet."""
        self.membership = Membership.parse(table.metadata["properties"][MEMBERSHIP])
        self._next_membership = self.membership
        self._emptied: set[tuple[int, int]] = set()
        """(leaf, file) of the running batch: the file has no row of the leaf any more."""
        self.history: History | None = None
        """In step with the table, if one is kept: whatever is done to rows here is told there."""

    @abstractmethod
    def open_index(self, files: IndexFiles | None) -> str:
        """Read the row index and compare it with the table; why what was kept of it was not (all) believed, '' if it was.

        ``files``: where a key index is kept; None: in memory only. A multiset's is never kept. Raises Corrupt ``KEY_TWICE``.
        """

    # ------------------------------------------------------------------------------------------------ changes

    def apply(self, changes: ChangeSet) -> None:
        """Add a chunk's changes to the running batch."""
        self.changes += len(changes.op)
        self._apply(changes)

    @abstractmethod
    def _apply(self, changes: ChangeSet) -> None: ...

    def _truncate(self, changes: ChangeSet) -> None:
        """What the changes' TRUNCATE takes: every row, or of a partitioned table those of the leaf the changes are of."""
        if self.relation.partitioned:
            self._empty(_leaf_of(changes))
        else:
            self._begin().truncate()
            self._index.clear()

    def _empty(self, leaf: int) -> None:
        """Every row of a leaf goes, those of the running batch too."""
        delta = self._begin()
        delta.write()
        names = [column.name for column in self.relation.columns if column.attnum == TABLEOID or column.name in self._naming]
        for no in [*self.table.files_with(leaf), *delta.files_with(leaf)]:
            # A file that is written gains no rows: once is enough, however often a batch has the leaf truncated.
            if (leaf, no) in self._emptied:
                continue
            self._emptied.add((leaf, no))
            if no in self.table.files:
                positions, stored = self.table.live_rows(no, names)
            else:
                positions = np.arange(delta.rows(no), dtype=np.int64)
                stored = self.table.read(np.full(len(positions), no), positions, names, delta=delta)
            rows = one_batch(stored.select(names))
            leaves: npt.NDArray[np.int64] = rows.column(self.relation.leaf).to_numpy()
            there = np.flatnonzero(leaves == leaf)
            if len(there):
                delta.delete(np.full(len(there), no, np.int32), positions[there])
                self._unname(rows.take(there))

    @property
    def _naming(self) -> Sequence[str]:
        """The columns that name rows."""
        return self.relation.key

    @abstractmethod
    def _unname(self, rows: pa.RecordBatch) -> None:
        """Rows of a leaf, all it has, are gone; these are the columns that name them."""

    def _admit(self, changes: ChangeSet) -> npt.NDArray[np.uint8]:
        """The kind of each change once the load state had its say. Without a key there is one interval; ``Keyed`` knows more."""
        (interval,) = self._next_load.intervals
        if interval.lsn is None:
            return np.full(len(changes.op), collapse.SKIP, np.uint8)
        return np.where(changes.commit_lsn < np.uint64(interval.lsn), np.uint8(collapse.SKIP), changes.op)

    # --------------------------------------------------------------------------------------------------- load

    def load_rows(self, batches: Iterable[pa.RecordBatch], lsn: int, table_rows: int = 0) -> int:
        """Add rows read from the source as of ``lsn`` to the running batch; how many. ``table_rows``: how many there will be, about."""
        count = size = 0
        # Rows that have an order are ordered file by file.
        for batch in self.written_now_and_then(_gathered(batches, LOAD_BYTES if self.table.layout.sort else 0)):
            self._begin()
            self._load(batch)
            if self.history is not None:
                self.history.loaded(batch, lsn)
            count += batch.num_rows
            size += batch.nbytes
        # A few rows, whatever they are read for, say nothing of the others.
        if count >= _TELLING_ROWS:
            self.row_bytes = -(-size // count)
        return count

    def written_now_and_then(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches of a range; between them files are written that are not full: with many partitions none of them may be."""
        held = 0
        for batch in batches:
            yield batch
            held += batch.nbytes
            if held >= _HELD_BYTES:
                self.write()
                held = 0

    @abstractmethod
    def _load(self, rows: pa.RecordBatch) -> None: ...

    def loaded_until(self, state: LoadState) -> None:
        """The running batch brings the table to this load state."""
        self._begin()
        self._next_load = state

    def whole_at(self, position: int) -> bool:
        """Whether the table, with the running batch, is consistent with the others at ``position``."""
        return self._next_load.complete and self._next_load.whole_from <= position

    def is_member(self, text: str | None) -> None:
        """``text``: the table's mark now, from the publication. Raises Refused if changes may be missing from the stream."""
        now = check_member(self.table, text, self.membership)
        if self.membership.other_leaves(now):
            raise UnsupportedTable(
                "LEAVES_CHANGED",
                f"{self.id} has other partitions than its mirror knows",
                "one was made, attached, detached or dropped, and its rows came or went without a change",
                "the mirror is told, and goes on",
                table=str(self.id),
            )
        self._next_membership = now

    # ------------------------------------------------------------------------------------------------- commit

    def write(self) -> None:
        """Write the rows of the running batch that are in memory."""
        for part in (self.delta, self.history):
            if part is not None:
                part.write()

    def prepare(self, marker: Marker) -> list[TableChange]:
        """The batch as a commit's parts at ``marker``: this table's, and its history's. Empty if it leaves the table as it is."""
        load = self._next_load.settled(marker.lsn)
        # Readers see a snapshot under the schema it was made with.
        head = self.table.snapshot(self.table.snapshot_id)
        shown = head is None or head["schema-id"] == self.table.metadata["current-schema-id"]
        still = shown and load == self.load and self._next_membership == self.membership
        # What a chunk did and undid is a history all the same.
        if still and (self.delta is None or self.delta.is_empty) and not (self.history is not None and self.history.pending):
            return []
        self._next_load = load
        properties = {**marker.summary(), LOAD: load.dump(), MEMBERSHIP: str(self._next_membership)}
        return with_history(self._begin().prepare(marker.summary(), properties), self.history, marker)

    def unchanged(self) -> TableChange:
        """A part of a commit that only demands that the table is as it was."""
        return self._begin().prepare({}, {})

    def done(self, after: Sequence[LoadedTable]) -> list[str]:
        """The commit with these parts in it succeeded. Files that were written on the way and are in no snapshot."""
        assert self.delta is not None
        unused = list(self.delta.unused)
        self.table.adopt(after[0], self.delta)
        if len(after) > 1:
            assert self.history is not None
            unused += self.history.done(after[1:])
        self.load = self._next_load
        self.membership = self._next_membership
        self._end()
        self._index.commit(self.table.snapshot_id, self.identities())
        return unused

    def idle(self) -> list[str]:
        """The batch left the table as it is. Files that were written on the way and are in no snapshot."""
        unused = list(self.delta.unused) if self.delta is not None else []
        self.load = self._next_load
        if self.delta is not None:
            # Whatever the batch did to the index it took back itself (by TRUNCATE), and an undo may have been too large to keep.
            self._index.commit(self.table.snapshot_id, self.identities())
        self._end()
        return unused

    def rollback(self) -> list[str]:
        """Forget the batch. The files it wrote, which nobody knows if it was never sent to the catalog."""
        written = list(self.delta.written) if self.delta is not None else []
        if self.history is not None:
            written += self.history.rollback()
        self._next_load = self.load
        self._next_membership = self.membership
        self._index.rollback()
        self._end()
        return written

    def identities(self) -> dict[int, tuple[str, str | None]]:
        """What the key index is stamped with: the live files and their deletion vectors."""
        return {no: file.identity for no, file in self.table.files.items()}

    # -------------------------------------------------------------------------------------------- compaction

    def compact(self, marker: Marker, *, at_rest: bool = False) -> TableChange | None:
        """A batch that only rewrites small or hollow files, or None if there is nothing worth it. Needs no running batch."""
        chosen = choose(self.table, at_rest=at_rest)
        if not chosen:
            return None
        delta, moved = rewrite(self.table, chosen)
        self.delta = delta
        self._moved(moved)
        # A rewrite moves no source position: the marker below it in main's ancestry stays the one that counts.
        return delta.prepare({"icelake.attempt": marker.attempt}, {})

    @abstractmethod
    def _moved(self, moved: Moved) -> None:
        """Rows are elsewhere now: all rows of some files."""

    # ------------------------------------------------------------------------------------------------ inside

    def _begin(self) -> Delta:
        if self.delta is None:
            self.delta = self.table.delta()
            self._emptied.clear()
        return self.delta

    def _end(self) -> None:
        self.delta = None
        self.changes = 0

    def _append(self, rows: pa.RecordBatch, hashes: Hashes | None, row_ids: npt.NDArray[np.int64]) -> None:
        placed = self._begin().append(rows, row_ids if (row_ids >= 0).any() else None)
        if hashes is not None:
            self._index.put(hashes, placed.file_no, placed.positions, row_ids)

    def _row_ids(
        self,
        origin: npt.NDArray[np.int64],
        file_no: npt.NDArray[np.int32],
        position: npt.NDArray[np.int64],
        row_id: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """The row ids that rows keep: -1 for new rows, and for rows whose only past is in this same commit."""
        out = np.full(len(origin), -1, np.int64)
        old = np.flatnonzero(origin >= 0)
        base = origin[old]
        out[old] = row_id[base]
        derived = old[row_id[base] < 0]
        base = origin[derived]
        for no in np.unique(file_no[base]):
            file = self.table.files.get(int(no))
            if file is None or not self.table.has_lineage:
                continue
            here = file_no[base] == no
            out[derived[here]] = file.first_row_id + position[base[here]]
        return out

    def error(self, what: str) -> Corrupt:
        return Corrupt(
            "MIRROR_DIVERGED",
            f"{self.id}: {what}",
            "a row was lost, doubled or changed by someone else",
            f"nothing was committed; `icelake resume {self.id} --reload` compares it with the source and mends what differs",
        )


class Keyed(Followed):
    """Changes name rows by a key, which no two rows share."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self.order = order(self.relation)

    def open_index(self, files: IndexFiles | None) -> str:
        self._index = self.index = KeyIndex.load(files, self.table.metadata["table-uuid"])
        return self.index.reconcile(self.table).reason

    def _apply(self, changes: ChangeSet) -> None:
        while True:
            kind = self._admit(changes)
            owed = self._follow(changes, kind)
            if owed is None:
                return
            self._owe(owed, int(changes.commit_lsn[0]))

    def _owe(self, keys: pa.RecordBatch, lsn: int) -> None:
        """Rows came here from a part of the table that is not loaded, with values that were not sent: nobody here has them.

        So their keys are not loaded either: the rows are read again from the source, later than this change. What the lake holds
        under such a key goes, because the changes that would have removed it are dropped with the others.
        """
        hashes = self._hash(keys)
        _, first = collapse.factorize(hashes, np.ones(len(hashes), np.bool_))
        keys, hashes = keys.take(first), hashes[first]
        file_no, position, _ = self.index.lookup(hashes)
        there = np.flatnonzero(file_no >= 0)
        if len(there):
            self._begin().delete(file_no[there], position[there])
            self.index.remove(hashes[there])
            if self.history is not None:
                self.history.mended(keys.take(there), None, lsn)
        self._next_load = self._next_load.forget(key_text(keys, self.relation.key_columns), self.order)

    def _follow(self, changes: ChangeSet, kind: npt.NDArray[np.uint8]) -> pa.RecordBatch | None:
        """Add the changes of these kinds. If that is not possible: nothing was done, and the keys of the rows that are owed."""
        n = len(kind)
        has_new = kind < DELETE
        has_old = (kind == UPDATE) | (kind == DELETE)
        names = list(self.relation.key)
        hashes = np.concatenate([self._hash(changes.new.select(names)), self._hash(changes.old_key)])
        ids, first = collapse.factorize(hashes, np.concatenate([has_new, has_old]))
        new, old = ids[:n], ids[n:]
        bad, net = collapse.follow(kind, old, new, len(first))
        keys = hashes[first]
        file_no, position, row_id = self.index.lookup(keys)
        touched = net.expected != 255
        wrong = touched & ((net.expected == collapse.PRESENT) != (file_no >= 0))
        if bad >= 0 or wrong.any():
            if bad < 0:
                worst = int(np.flatnonzero(wrong)[0])
                bad = int(np.flatnonzero((new == worst) | (old == worst))[0])
            raise self._diverged(changes, bad)

        live = np.flatnonzero(net.current >= 0)
        # A history has every row there was, the mirror those that are there at the end.
        rows = np.flatnonzero(has_new) if self.history is not None else net.current[live]
        gone = np.flatnonzero(net.expected == collapse.PRESENT)
        delta = self._begin()

        # Values that were not sent: from an earlier change of this chunk, or from the row in the lake.
        sources = {name: collapse.resolve(mask, net.previous, rows) for name, mask in changes.unchanged.items()}
        unknown = np.zeros(len(rows), np.bool_)
        from_lake = np.zeros(len(rows), np.bool_)
        for source in sources.values():
            unknown |= source == collapse.NONE
            from_lake |= source < collapse.NONE
        if unknown.any():
            return changes.new.select(names).take(rows[unknown])

        def filled(part: npt.NDArray[np.int64]) -> pa.RecordBatch:
            """The rows with these numbers in ``rows``, whole."""
            base = net.origin[rows[part[from_lake[part]]]]
            stored = self.table.read(file_no[base], position[base], list(sources), delta=delta) if len(base) else None
            slot = np.cumsum(from_lake[part]) - 1
            taken = []
            for field, column in zip(changes.new.schema, changes.new.columns, strict=True):
                at = rows[part]
                if field.name in sources:
                    at = sources[field.name][part]
                    lake = at < collapse.NONE
                    if stored is not None and lake.any():
                        # What is read is large, what was sent is small: only what is wanted of either is put together.
                        sent = column.take(np.where(lake, 0, at))
                        column = pa.concat_arrays([sent, *stored.column(field.name).chunks])
                        at = np.where(lake, len(part) + slot, np.arange(len(part)))
                taken.append(column.take(at))
            return pa.RecordBatch.from_arrays(taken, schema=changes.new.schema)

        if from_lake.any() and self.history is None and not net.truncated:
            # The values were not sent, so the chunk's size does not bound theirs. Read in the order of their places, each part of a
            # file is read about once.
            base = np.where(from_lake, net.origin[rows], 0)
            order = np.lexsort((np.where(from_lake, position[base], 0), np.where(from_lake, file_no[base], -1)))
            row_ids = self._row_ids(net.origin[rows], file_no, position, row_id)
            for part, whole in _parts(order, filled):
                self._append(whole, keys[live[part]], row_ids[part])
            rows = rows[:0]
            table = None
        else:
            table = filled(np.arange(len(rows)))
        if self.history is not None:
            assert table is not None
            self.history.changed(changes, kind, table)
            rows, every = net.current[live], rows
            table = table.take(np.searchsorted(every, rows))

        if net.truncated:
            self._truncate(changes)
        else:
            if len(gone):
                delta.delete(file_no[gone], position[gone])
            dead = gone[net.current[gone] < 0]
            if len(dead):
                self.index.remove(keys[dead])
        if table is not None and len(rows):
            row_ids = self._row_ids(net.origin[rows], file_no, position, row_id)
            self._append(table, keys[live], row_ids)
        return None

    def _admit(self, changes: ChangeSet) -> npt.NDArray[np.uint8]:
        """The kind of each change once the load state had its say."""
        op, commit_lsn = changes.op, changes.commit_lsn
        truncates = commit_lsn[op == TRUNCATE]
        loaded = self._truncatable(changes) if len(truncates) else []
        if loaded and ((truncates >= np.uint64(min(loaded))) & (truncates < np.uint64(max(loaded)))).any():
            # Some ranges were read before the TRUNCATE and some after: the table (or the leaf) is loaded again from the start.
            self._truncate(changes)
            if self.history is not None:
                self.history.reset(int(truncates.max()), _leaf_of(changes) if self.relation.partitioned else None)
            self._next_load = self._reloading(changes)
            return np.full(len(op), collapse.SKIP, np.uint8)
        intervals = self._next_load.intervals
        if len(intervals) == 1:
            return super()._admit(changes)
        bounds = [None if i.upper is None else (self.order(i.upper[0]), i.upper[1]) for i in intervals]
        starts = np.array([np.iinfo(np.uint64).max if i.lsn is None else i.lsn for i in intervals], np.uint64)
        new_ok = commit_lsn >= starts[self._interval(changes.new.select(list(self.relation.key)), bounds)]
        old_ok = commit_lsn >= starts[self._interval(changes.old_key, bounds)]
        kind = np.full(len(op), collapse.SKIP, np.uint8)
        kind[(op == INSERT) & new_ok] = INSERT
        kind[(op == DELETE) & old_ok] = DELETE
        kind[(op == UPDATE) & old_ok & new_ok] = UPDATE
        kind[(op == UPDATE) & old_ok & ~new_ok] = DELETE
        kind[(op == UPDATE) & ~old_ok & new_ok] = INSERT
        if loaded:
            kind[(op == TRUNCATE) & (commit_lsn >= np.uint64(max(loaded)))] = TRUNCATE
        return kind

    def _truncatable(self, changes: ChangeSet) -> list[int]:
        """The L of everything that is loaded of what a TRUNCATE among the changes empties."""
        intervals: Sequence[Interval] = self._next_load.intervals
        if self.relation.partitioned:
            intervals = self._next_load.overlapping(*leaf_bounds(_leaf_of(changes)), self.order)
        return [interval.lsn for interval in intervals if interval.lsn is not None]

    def _reloading(self, changes: ChangeSet) -> LoadState:
        if self.relation.partitioned:
            return self._next_load.distrust(*leaf_bounds(_leaf_of(changes)), self.order)
        return LoadState()

    def _unname(self, rows: pa.RecordBatch) -> None:
        self.index.remove(self._hash(rows.select(list(self.relation.key))))

    def _interval(self, keys: pa.RecordBatch, bounds: list[tuple[tuple[object, ...], int] | None]) -> npt.NDArray[np.int64]:
        """The number of each key's interval. Rows without a (whole) key get any number: their side is not looked at."""
        out = np.zeros(keys.num_rows, np.int64)
        inner = [bound for bound in bounds if bound is not None]
        there = keys.columns[-1].is_valid().to_numpy(zero_copy_only=False)
        comparable = sortable(keys, self.relation)
        for row, key in enumerate(comparable):
            if not there[row]:
                continue
            low, high = 0, len(inner)
            while low < high:
                middle = (low + high) // 2
                if inner[middle] < (key, 1):
                    low = middle + 1
                else:
                    high = middle
            out[row] = low
        return out

    def load_rows(self, batches: Iterable[pa.RecordBatch], lsn: int, table_rows: int = 0) -> int:
        self.index.expect(table_rows)
        return super().load_rows(batches, lsn)

    def _load(self, rows: pa.RecordBatch) -> None:
        hashes = self._hash(rows.select(list(self.relation.key)))
        placed = self._begin().append(rows, None)
        if self.index.put(hashes, placed.file_no, placed.positions, -1) < len(hashes):
            raise self.error("rows of a range that is being loaded are in the lake already, or came twice")

    def _moved(self, moved: Moved) -> None:
        self.index.put(self._hash(moved.keys), moved.file_no, moved.positions, moved.row_ids)

    def _hash(self, keys: pa.RecordBatch) -> Hashes:
        return hash_keys(keys, self.index.seed)

    def _diverged(self, changes: ChangeSet, row: int) -> Corrupt:
        names = list(self.relation.key)
        keys = changes.old_key if changes.op[row] == DELETE else changes.new.select(names)
        verb = {INSERT: "inserts", UPDATE: "updates", DELETE: "deletes"}[int(changes.op[row])]
        (key,) = keys.slice(row, 1).to_pylist()
        return self.error(f"a change {verb} {key}, which does not fit what the lake holds")


class Multiset(Followed):
    """Changes name rows by all their values, and rows may be equal: a delete takes one of them, an update goes on as one of them."""

    def open_index(self, files: IndexFiles | None) -> str:
        self._index = self.index = BagIndex()
        self.index.reconcile(self.table)
        return ""

    def _apply(self, changes: ChangeSet) -> None:
        assert changes.old is not None
        kind = self._admit(changes)
        n = len(kind)
        has_old = (kind == UPDATE) | (kind == DELETE)
        hashes = np.concatenate([self._hash(changes.new), self._hash(changes.old)])
        ids, first = collapse.factorize(hashes, np.concatenate([kind < DELETE, has_old]))
        bad, net = collapse.follow_bag(kind, ids[n:], ids[:n], len(first))
        file_no, position, row_id = self.index.take(hashes[first][net.taken])
        if bad < 0 and (file_no < 0).any():
            bad = int(net.takers[np.flatnonzero(file_no < 0)[0]])
        if bad >= 0:
            verb = "updates" if changes.op[bad] == UPDATE else "deletes"
            raise self.error(f"change {bad} of a chunk {verb} a row that the lake does not hold")
        if self.history is not None:
            self.history.changed(changes, kind, changes.new.take(np.flatnonzero(kind < DELETE)))
        delta = self._begin()
        if net.truncated:
            self._truncate(changes)
        else:
            delta.delete(file_no, position)
        if len(net.live):
            row_ids = self._row_ids(net.origin[net.live], file_no, position, row_id)
            self._append(changes.new.take(net.live), hashes[net.live], row_ids)

    def _load(self, rows: pa.RecordBatch) -> None:
        self._append(rows, self._hash(rows), np.full(rows.num_rows, -1, np.int64))

    def _moved(self, moved: Moved) -> None:
        self.index.move(moved.was_file_no, moved.was_position, moved.file_no, moved.positions, moved.row_ids)

    def _hash(self, rows: pa.RecordBatch) -> Hashes:
        return hash_rows(rows, self.index.seed)

    @property
    def _naming(self) -> Sequence[str]:
        return [column.name for column in self.relation.columns]

    def _unname(self, rows: pa.RecordBatch) -> None:
        self.index.take(self._hash(rows))


class NoIndex:
    """The row index of a table whose rows are never looked for."""

    def put(self, hashes: Hashes, file_no: npt.ArrayLike, position: npt.ArrayLike, row_id: npt.ArrayLike) -> None: ...

    def clear(self) -> None: ...

    def commit(self, snapshot_id: int | None, files: Mapping[int, Identity]) -> None: ...

    def rollback(self) -> None: ...


class AppendOnly(Followed):
    """Nothing names rows: only inserts and truncates are published, and the mirror holds what was inserted since the last truncate."""

    def open_index(self, files: IndexFiles | None) -> str:
        self._index = NoIndex()
        return ""

    def _apply(self, changes: ChangeSet) -> None:
        kind = self._admit(changes)
        if ((kind == UPDATE) | (kind == DELETE)).any():
            raise Refused(
                "PUBLICATION_CHANGED",
                f"updates or deletes of {self.id} were published, whose mirror is append-only",
                "someone changed its publication, or added the table to another one of the mirror's",
                f"take append_only off the table, then `icelake resume {self.id} --reload`",
                table=str(self.id),
            )
        truncates = np.flatnonzero(kind == TRUNCATE)
        inserts = np.flatnonzero(kind == INSERT)
        if self.history is not None:
            self.history.changed(changes, kind, changes.new.take(inserts))
        if len(truncates):
            self._truncate(changes)
            inserts = inserts[inserts > truncates[-1]]
        if len(inserts):
            self._append(changes.new.take(inserts), None, np.full(len(inserts), -1, np.int64))

    def _load(self, rows: pa.RecordBatch) -> None:
        self._append(rows, None, np.full(rows.num_rows, -1, np.int64))

    def _moved(self, moved: Moved) -> None: ...

    def _unname(self, rows: pa.RecordBatch) -> None: ...


def _leaf_of(changes: ChangeSet) -> int:
    """The leaf that the changes are of, one of which is a TRUNCATE."""
    values = changes.new.column(changes.relation.leaf)
    return int(values[int(np.flatnonzero(changes.op == TRUNCATE)[0])].as_py())


def follow(table: Table) -> Followed:
    """The table as its rows are named."""
    match table.relation.identity:
        case "key":
            return Keyed(table)
        case "full":
            return Multiset(table)
        case "none":
            return AppendOnly(table)


def with_history(change: TableChange, history: History | None, marker: Marker) -> list[TableChange]:
    """A mirror's part of a commit, and beside it that of its history."""
    return [change] if history is None else [change, history.prepare(marker, change.new_snapshot)]


def check_member(table: Table, text: str | None, held: Membership | None = None) -> Membership:
    """A table's mark now, from the publication (None: it is not in it), compared with the mark it had (``held``: its property's).

    Raises Refused, naming the table, if changes may be missing from the stream.
    """
    before = held or Membership.parse(table.metadata["properties"][MEMBERSHIP])
    now = Membership.parse(text) if text is not None else None
    if now is None or before.left(now):
        raise left_publication(table.id)
    if now.unnamed:
        raise identity_lost(table.id)
    if before.rewritten(now):
        raise UnsupportedTable(
            "TABLE_REWRITTEN",
            f"the rows of {table.id} were rewritten in the source",
            "an ALTER TABLE changed a column and all rows, which PostgreSQL does not send as changes",
            f"`icelake resume {table.id} --reload` compares it with the source and mends what differs",
            table=str(table.id),
        )
    return now


def identity_lost(table: TableId, meanwhile: str = "") -> UnsupportedTable:
    """``meanwhile``: what someone must do besides, if the table could not be taken out of its publication."""
    return UnsupportedTable(
        "REPLICA_IDENTITY_LOST",
        f"nothing names the rows of {table} any more",
        "its primary key or its replica identity was taken away; as long as such a table is published, PostgreSQL refuses its users every "
        "UPDATE and DELETE, so it is taken out of the publication: changes from then on are not in the stream",
        f"bring back what named its rows, then `icelake resume {table} --reload`" + (f"; {meanwhile}" if meanwhile else ""),
        table=str(table),
    )


def left_publication(table: TableId) -> Refused:
    return Refused(
        "PUBLICATION_CHANGED",
        f"{table} left its publication",
        "someone took it out, made the table or the publication anew, or changed what that sends: changes meanwhile are not in the stream",
        f"`icelake resume {table} --reload` publishes it again, compares it with the source and mends what differs",
        table=str(table),
    )


def _parts(
    order: npt.NDArray[np.int64], whole: Callable[[npt.NDArray[np.int64]], pa.RecordBatch]
) -> Iterator[tuple[npt.NDArray[np.int64], pa.RecordBatch]]:
    """The rows ``order`` numbers, in parts of about ``LOAD_BYTES``, each made of smaller ones: nobody knows yet how large rows are."""
    at, step, held, first, total = 0, 1, [], 0, 0
    while at < len(order):
        held.append(whole(order[at : at + step]))
        at += held[-1].num_rows
        total += held[-1].nbytes
        step = max(1, min(8 * step, step * _FILLED_BYTES // max(1, held[-1].nbytes)))
        if total >= LOAD_BYTES or at == len(order):
            yield order[first:at], _one(held)
            held, first, total = [], at, 0


def _gathered(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about ``size`` bytes: small batches would make small files."""
    held: list[pa.RecordBatch] = []
    total = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        held.append(batch)
        total += batch.nbytes
        if total >= size:
            yield _one(held)
            held, total = [], 0
    if held:
        yield _one(held)


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    # Arrow would copy a single one too.
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)  # type: ignore[attr-defined]
