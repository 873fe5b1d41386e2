"""Compaction: many tiny files, or files with many deleted rows, become few whole ones. No row changes.

Promises that every row keeps its row id and the sequence number that last changed it (Iceberg spec, Row Lineage), that the source
marker stays where it was, and that one call reads a bounded amount. Runs between two cuts, on the table's present snapshot: no
delta may be open. Raises Corrupt when a file cannot be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.tables.data_files import TARGET_BYTES, TARGET_ROWS
from icelake.tables.layout import Partition
from icelake.tables.schema import LAST_UPDATED, ROW_ID
from icelake.tables.table import OPEN_BYTES, Delta, LiveFile, Table, one_batch

MAX_BYTES = 32 << 20
"""Bytes of data files one call reads, about; a single larger file is still taken."""
MAX_ROWS = 2 << 20
FANOUT = 8
"""Files of about one size are merged when there are this many, so each row is rewritten O(log n) times."""
_SMALLEST = 64 << 10
_SMALL = 4 << 20
"""Files below this are few at rest: readers open each, which takes as long as some 10,000 of its rows."""
_WHOLE = 32 << 20
"""Files from this size on are not merged any more."""
_FULL = OPEN_BYTES // 2
"""Nor files of so many Arrow bytes, which a file that is written is full with, or half full where the rows ended."""
_YOUNG = 64
"""Of so many files of a size it is looked whether they are full; those before them are, or were merged when they were young."""
_NEIGHBOURS_WHOLE = 4 << 20
"""The same in a table whose files have an order: there is more of them then, and each is cheap to read."""
_FANIN = 4
"""So many times a full file's Arrow bytes are read at once, at most, of hollow files."""
_HOLLOW = 0.3
"""Share of deleted rows from which on a file is worth rewriting by itself, if it is larger than the smallest tier."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Where the rows of a rewrite were and where they are now: one entry a row in every array."""

    keys: pa.RecordBatch
    was_file_no: npt.NDArray[np.int32]
    was_position: npt.NDArray[np.int64]
    file_no: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    row_ids: npt.NDArray[np.int64]


_PLACES = ("was_file_no", "was_position", "file_no", "positions", "row_ids")
"""The arrays of ``Moved``, in their order."""


def choose(table: Table, max_bytes: int = MAX_BYTES, max_rows: int = MAX_ROWS, *, at_rest: bool = False) -> list[int]:
    """Numbers of the files most worth rewriting now, in the order of their row ids; empty if none is.

    ``at_rest``: nobody changes the table for a while, so small files, of a partition, may become one already if there are two: a row is
    rewritten until it is in a file that is not small, once each time the table comes to rest. Hollow files have their turn at commits:
    a caller who has what it waits for is not kept for them.
    """
    fanout = 2 if at_rest else FANOUT
    tiers: dict[tuple[int, Partition], list[LiveFile]] = {}
    hollows: dict[Partition, list[LiveFile]] = {}
    for file in table.files.values():
        hollow = file.live_count < file.record_count * (1 - _HOLLOW)
        if hollow and not at_rest and (file.size >= _SMALLEST or table.arrow_bytes(file.no) >= _FULL):
            hollows.setdefault(file.partition, []).append(file)
        if file.size < (_SMALL if at_rest else _WHOLE):
            tiers.setdefault((0 if at_rest else _tier(file.size), file.partition), []).append(file)
    if hollows:
        return _as_one(table, next(iter(hollows.values())), max_bytes, max_rows)
    for place, files in tiers.items():
        if len(files) >= fanout:
            files.sort(key=lambda file: (file.first_row_id, file.sequence_number))
            tiers[place] = [file for file in files[-_YOUNG:] if not _is_full(table, file)]
    full = [place for place, files in tiers.items() if len(files) >= fanout]
    smallest = min((tier for tier, _ in full), default=0)
    # As many partitions as the budget allows, or a table of many would fall behind; files of two are never merged.
    chosen: list[int] = []
    size = rows = 0
    for place in full:
        if place[0] != smallest or size > max_bytes or rows > max_rows:
            continue
        group: list[int] = []
        # Oldest first: rows that came together stay together.
        for file in tiers[place]:
            size += file.size
            rows += file.record_count
            if (chosen or len(group) > 1) and (size > max_bytes or rows > max_rows):
                break
            group.append(file.no)
        if len(group) > 1:
            chosen += group
    return chosen


def _as_one(table: Table, files: Sequence[LiveFile], max_bytes: int, max_rows: int) -> list[int]:
    """As many of these files as what is left of them makes one, and as may be read at once; or the first."""
    chosen: list[int] = []
    size = rows = whole = 0
    left = 0.0
    for file in sorted(files, key=lambda file: (file.first_row_id, file.sequence_number)):
        arrow = table.arrow_bytes(file.no)
        size += file.size
        rows += file.record_count
        whole += arrow
        left += arrow * file.live_count / file.record_count
        if chosen and (not arrow or size > max_bytes or rows > max_rows or whole > _FANIN * OPEN_BYTES or left > OPEN_BYTES):
            break
        chosen.append(file.no)
        if not arrow:
            break  # nobody knows how large its rows are
    return chosen


def choose_neighbours(files: Sequence[LiveFile]) -> list[int]:
    """Of a table that grows at its end, and whose files (all of them, oldest first) have an order: the numbers of the last few that shall

    become one now, in that order; empty if there are too few. They are always neighbours, so the order is as it was.

    A file is *behind* if those after it have grown as large as it is together. Once ``FANOUT`` files (the last one counts) are that, the
    oldest of them and all after it become one: so a row is rewritten when the file it is in doubles, O(log n) times, and after the last
    whole file there are never more than ``FANOUT`` and the logarithm of a whole file's size.
    """
    start = next((at + 1 for at in reversed(range(len(files))) if files[at].size >= _NEIGHBOURS_WHOLE), 0)
    behind, oldest, after = 1, len(files) - 1, 0
    for at in reversed(range(start, len(files))):
        if at < len(files) - 1 and files[at].size <= after:
            behind, oldest = behind + 1, at
        after += files[at].size
    return [file.no for file in files[oldest:]] if behind >= FANOUT else []


def rewrite(table: Table, file_nos: Sequence[int]) -> tuple[Delta, Moved]:
    """The live rows of these files, in their order, in new files, as a delta that makes a ``replace`` snapshot; and where they went."""
    names = [column.name for column in table.relation.columns]
    delta = table.delta(replace=True)
    for no in file_nos:
        delta.remove(no)
    parts: list[Moved] = []
    held: list[tuple[int, npt.NDArray[np.int64], pa.Table]] = []
    for at, no in enumerate(file_nos):
        held.append((no, *table.live_rows(no, names)))
        # Of files that compress well, all would not find room at once.
        if at == len(file_nos) - 1 or sum(rows.nbytes for _, _, rows in held) >= TARGET_BYTES:
            parts.append(_append(delta, held, names))
            held = []
    return delta, Moved(
        one_batch(pa.Table.from_batches([part.keys for part in parts])),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in _PLACES),
    )


def _append(delta: Delta, held: Sequence[tuple[int, npt.NDArray[np.int64], pa.Table]], names: list[str]) -> Moved:
    """Rows of some files at some positions, in new files."""
    rows = pa.concat_tables([rows for _, _, rows in held])
    row_ids = rows.column(ROW_ID).to_numpy()
    content = rows.select(names)
    placed = delta.append(content, row_ids, rows.column(LAST_UPDATED).to_numpy())
    return Moved(
        one_batch(content.select(list(delta.table.relation.key))),
        np.repeat(np.array([no for no, _, _ in held], np.int32), [len(positions) for _, positions, _ in held]),
        np.concatenate([positions for _, positions, _ in held]),
        placed.file_no,
        placed.positions,
        row_ids,
    )


def _is_full(table: Table, file: LiveFile) -> bool:
    """Whether a file that is written ends about here, however small it is on disk: merged, such files would be as many as before."""
    return table.arrow_bytes(file.no) >= _FULL or file.record_count >= TARGET_ROWS // 2


def _tier(size: int) -> int:
    tier, limit = 0, _SMALLEST
    while size >= limit:
        tier, limit = tier + 1, limit * FANOUT
    return tier
