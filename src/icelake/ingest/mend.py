"""Rows of the lake that are no longer trusted, compared with the source range by range; only what differs is written.

It is loading, of a range the lake has rows of (docs/protocol.md, Load, join, repair): the rows come from the same snapshot with the
same consistent point L, and a row that is there already, value for value, stays where it is. Rows keep their row ids. Memory: a bit
for every row the lake has, and the batches at hand.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.ingest.followed import Keyed
from icelake.ingest.keyorder import sortable
from icelake.model.load import Bound
from icelake.tables.keys import hash_rows
from icelake.tables.table import one_batch


class Mending:
    """One range of a table whose running batch is empty. Feed it all rows of the range, then ``finish``."""

    def __init__(self, followed: Keyed, lsn: int) -> None:
        """``lsn``: as of which the rows are read."""
        self._followed = followed
        self._lsn = lsn
        self._seen: dict[int, npt.NDArray[np.bool_]] = {}
        self.added = self.changed = self.removed = 0

    def rows(self, batches: Iterable[pa.RecordBatch]) -> int:
        """Compare and mend; how many rows the source has."""
        return sum(self._batch(batch) for batch in self._followed.written_now_and_then(batches))

    def _batch(self, batch: pa.RecordBatch) -> int:
        followed, n = self._followed, batch.num_rows
        if not n:
            return 0
        table, seed = followed.table, followed.index.seed
        keys = followed._hash(batch.select(list(followed.relation.key)))
        file_no, position, row_id = followed.index.lookup(keys)
        there = np.flatnonzero(file_no >= 0)
        new = np.flatnonzero(file_no < 0)
        for no in np.unique(file_no[there]):
            if int(no) not in table.files:
                raise followed.error("rows of a range that is being compared came twice")
            self._seen_of(int(no))[position[there[file_no[there] == no]]] = True
        if len(there):
            names = [column.name for column in followed.relation.columns]
            stored = one_batch(table.read(file_no[there], position[there], names))
            unlike = there[(hash_rows(batch.take(there), seed) != hash_rows(stored, seed)).any(axis=1)]
            if len(unlike):
                ids = row_id[unlike].copy()
                for at in np.flatnonzero(ids < 0) if table.has_lineage else ():
                    ids[at] = table.files[int(file_no[unlike[at]])].first_row_id + position[unlike[at]]
                followed._begin().delete(file_no[unlike], position[unlike])
                followed._append(batch.take(unlike), keys[unlike], ids)
                self._tell(batch.take(unlike), batch.take(unlike))
                self.changed += len(unlike)
        if len(new):
            followed._append(batch.take(new), keys[new], np.full(len(new), -1, np.int64))
            self._tell(None, batch.take(new))
            self.added += len(new)
        return n

    def finish(self, lower: Bound | None, upper: Bound | None) -> None:
        """Rows of the range that the source did not give leave the lake. The range is known to be between these bounds now."""
        followed = self._followed
        for no in self._files(lower, upper):
            positions = self._live(no)
            unseen = positions[~self._seen_of(no)[positions]]
            if not len(unseen):
                continue
            keys = one_batch(followed.table.read(np.full(len(unseen), no), unseen, list(followed.relation.key)))
            inside = np.flatnonzero(self._inside(keys, lower, upper))
            if len(inside):
                followed._begin().delete(np.full(len(inside), no, np.int32), unseen[inside])
                self._tell(keys.take(inside), None)
                hashes = followed._hash(keys.take(inside))
                file_no, position, _ = followed.index.lookup(hashes)
                # An entry may be another row's by now: one that this range brought under the same key.
                followed.index.remove(hashes[(file_no == no) & (position == unseen[inside])])
                self.removed += len(inside)

    def _seen_of(self, no: int) -> npt.NDArray[np.bool_]:
        if no not in self._seen:
            self._seen[no] = np.zeros(self._followed.table.files[no].record_count, np.bool_)
        return self._seen[no]

    def _files(self, lower: Bound | None, upper: Bound | None) -> list[int]:
        """The files that may hold rows of the range: of a partitioned table, those with rows of its leaves."""
        table = self._followed.table
        if not table.relation.partitioned:
            return list(table.files)
        first, last = _leaves(lower, upper)
        return table.files_with(first, last)

    def _tell(self, old: pa.RecordBatch | None, rows: pa.RecordBatch | None) -> None:
        """The history, which rows left (a batch that has their keys) and which came."""
        if self._followed.history is not None:
            keys = old.select(list(self._followed.relation.key)) if old is not None else None
            self._followed.history.mended(keys, rows, self._lsn)

    def _live(self, no: int) -> npt.NDArray[np.int64]:
        file = self._followed.table.files[no]
        live = np.ones(file.record_count, np.bool_)
        if file.deletes is not None:
            live[np.fromiter(file.deletes, np.int64, len(file.deletes))] = False
        return np.flatnonzero(live).astype(np.int64)

    def _inside(self, keys: pa.RecordBatch, lower: Bound | None, upper: Bound | None) -> npt.NDArray[np.bool_]:
        if lower is None and upper is None:
            return np.ones(keys.num_rows, np.bool_)
        if self._followed.relation.partitioned and all(bound is None or len(bound[0]) == 1 for bound in (lower, upper)):
            leaf, (first, last) = keys.column(0).to_numpy(), _leaves(lower, upper)
            within: npt.NDArray[np.bool_] = (leaf >= first) & (leaf <= last)
            return within
        order = self._followed.order
        low = None if lower is None else (order(lower[0]), lower[1])
        high = None if upper is None else (order(upper[0]), upper[1])
        rows = sortable(keys, self._followed.relation)
        return np.array([(low is None or (key, 1) > low) and (high is None or (key, 1) <= high) for key in rows], np.bool_)


def _leaves(lower: Bound | None, upper: Bound | None) -> tuple[int, int]:
    """The first and the last leaf that a range of a partitioned table can reach into."""
    first = 0 if lower is None else int(lower[0][0])
    if upper is None:
        return first, 1 << 32
    # A bound of a leaf alone is just before it.
    return first, int(upper[0][0]) - (len(upper[0]) == 1)
