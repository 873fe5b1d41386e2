"""Where the rows of a table without a key are: hash of the whole row -> its many places. A cache, in memory only.

Promises: ``take`` gives one place of a row and no other row's, the one that came last first; taking and putting cost the same
however many equal rows there are; ``rollback`` undoes the running batch exactly. Nothing of it is kept on disk: ``reconcile`` reads
every row of the table, at each start. Never decides by itself that the table is wrong about a row.
Fails with ``Corrupt`` when it is asked before ``reconcile`` (KEY_INDEX_STALE), and when a rewrite moved other rows than it holds.

In memory: nodes, one a row, in arrays (place, row id, next equal row), and an open-addressing table from the row's hash to the first
node of its chain. Hashes whose last row went stay until the table grows.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.compiled import kernel
from icelake.errors import Corrupt
from icelake.model.relation import Relation
from icelake.tables.key_index import Identity, IndexedFile, Reconciled
from icelake.tables.keys import Hashes, hash_rows, home_slot
from icelake.tables.schema import ROW_ID

Numbers = npt.NDArray[np.int64]

_SMALLEST = 64
_FULL = 0.7
"""How full the table gets before it grows."""
_UNDO_BYTES = 512 << 20
"""A batch with more than this is not undone row by row: giving it up means reading the table again."""
_NONE, _FREE = -1, -2
"""Heads of chains: no row of this hash any more; no hash."""


class ReadableTable(Protocol):
    """What the index needs of a table: its live files, and their live rows."""

    @property
    def relation(self) -> Relation: ...

    @property
    def files(self) -> Mapping[int, IndexedFile]: ...

    def live_rows(self, file_no: int, columns: Sequence[str]) -> tuple[Numbers, pa.Table]:
        """(positions, these columns and ``_row_id``) of the live rows of one file."""
        ...


@dataclass(slots=True)
class _Bag:
    """Chains of nodes."""

    slots: npt.NDArray[np.uint64] = field(default_factory=lambda: _new_slots(_SMALLEST))
    """[size, 3]: hash, hash, head of the chain."""
    hashes: int = 0
    """Slots in use, those of empty chains too."""
    place: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    """File number in the upper half, position in the lower; _NONE: a free node."""
    row_id: Numbers = field(default_factory=lambda: np.empty(0, np.int64))
    following: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    free: list[npt.NDArray[np.int32]] = field(default_factory=list)
    """Nodes that were given back, in the order they are used again (last first)."""
    nodes: int = 0
    """Nodes that were ever used: the arrays are longer."""
    count: int = 0
    """Rows."""


class BagIndex:
    """See the module. Not thread-safe."""

    def __init__(self, seed: tuple[int, int] | None = None) -> None:
        """Empty; use ``reconcile``. ``seed`` None: a random one."""
        self.seed = seed or (secrets.randbits(64), secrets.randbits(64))
        self._k0, self._k1 = np.uint64(self.seed[0]), np.uint64(self.seed[1])
        self._bag = _Bag()
        self._ready = False
        self._undo: list[Callable[[], None]] | None = []
        self._pending = 0
        self._taken: list[npt.NDArray[np.int32]] = []

    def __len__(self) -> int:
        """Rows, with the running batch."""
        return self._bag.count

    # ------------------------------------------------------------------------------------------------ look up and change

    def take(self, hashes: Hashes) -> tuple[npt.NDArray[np.int32], Numbers, Numbers]:
        """One row of each hash is gone, as many as it is there times: (file number or -1: there is none left, position,

        row id or -1: the file's first row id + position), each [n].
        """
        self._check()
        bag, wanted = self._bag, np.ascontiguousarray(hashes)
        nodes = np.empty(len(wanted), np.int32)
        _pop(bag.slots, bag.following, self._k0, self._k1, wanted, nodes)
        found = nodes >= 0
        at = nodes[found]
        file_no, position = np.full(len(nodes), -1, np.int32), np.zeros(len(nodes), np.int64)
        row_id = np.full(len(nodes), -1, np.int64)
        file_no[found], position[found] = bag.place[at] >> 32, bag.place[at] & 0xFFFF_FFFF
        row_id[found] = bag.row_id[at]
        bag.count -= len(at)
        self._taken.append(at)
        there = wanted[found]

        def undo() -> None:
            self._push(bag, there[::-1], at[::-1])
            bag.count += len(at)

        self._note(undo, there.nbytes + at.nbytes)
        return file_no, position, row_id

    def put(self, hashes: Hashes, file_no: npt.ArrayLike, position: npt.ArrayLike, row_id: npt.ArrayLike) -> None:
        """One row more of each hash. Each array [n], or one value for all; positions below 2^32."""
        self._check()
        self._add(hashes, file_no, position, row_id)

    def _add(self, hashes: Hashes, file_no: npt.ArrayLike, position: npt.ArrayLike, row_id: npt.ArrayLike) -> None:
        bag, new = self._bag, np.ascontiguousarray(hashes)
        nodes = self._allocate(bag, len(new))
        bag.place[nodes] = (np.asarray(file_no, np.int64) << 32) | np.asarray(position, np.int64)
        bag.row_id[nodes] = np.asarray(row_id, np.int64)
        self._push(bag, new, nodes)
        bag.count += len(nodes)

        def undo() -> None:
            _pop(bag.slots, bag.following, self._k0, self._k1, np.ascontiguousarray(new[::-1]), np.empty(len(nodes), np.int32))
            bag.count -= len(nodes)
            self._release(bag, nodes)

        self._note(undo, new.nbytes + nodes.nbytes)

    def clear(self) -> None:
        """No row is there any more (TRUNCATE)."""
        self._check()
        bag, taken = self._bag, self._taken

        def undo() -> None:
            self._bag, self._taken = bag, taken

        self._bag, self._taken = _Bag(), []
        self._note(undo, 0)

    def move(
        self,
        was_file_no: npt.NDArray[np.int32],
        was_position: Numbers,
        file_no: npt.NDArray[np.int32],
        position: Numbers,
        row_ids: Numbers,
    ) -> None:
        """All rows of some files are elsewhere now. Each array [n]: where a row was and is, and its row id (-1: its file's, or none).

        Rows are told by their places: in a version 2 table they have no ids. Raises Corrupt unless these are exactly the rows it holds
        of the files.
        """
        self._check()
        bag = self._bag
        was = (was_file_no.astype(np.int64) << 32) | was_position
        held = bag.place[: bag.nodes]
        nodes = np.flatnonzero(np.isin(held >> 32, np.unique(was_file_no)) & (held != _NONE))
        nodes = nodes[np.argsort(held[nodes])]
        order = np.argsort(was)
        old_place, old_row_id = bag.place[nodes], bag.row_id[nodes]
        if not np.array_equal(old_place, was[order]):
            why = "a rewrite moved other rows than the row index holds"
            raise Corrupt("KEY_INDEX_CORRUPT", why, fix="start again: the index is read from the table")
        bag.place[nodes] = (file_no[order].astype(np.int64) << 32) | position[order]
        bag.row_id[nodes] = row_ids[order]

        def undo() -> None:
            bag.place[nodes], bag.row_id[nodes] = old_place, old_row_id

        self._note(undo, nodes.nbytes * 3)

    # ------------------------------------------------------------------------------------------------------------ commit

    def commit(self, snapshot_id: int | None, files: Mapping[int, Identity]) -> None:
        """The running batch is in the table: keep it. (The table's snapshot and files do not matter to what is not kept on disk.)"""
        self._check()
        for nodes in self._taken:
            self._release(self._bag, nodes)
        self._end()

    def rollback(self) -> None:
        """Undo the running batch. After a very large one the index must be reconciled before it is used again."""
        undo = self._undo
        if undo is None:
            self._bag, self._ready = _Bag(), False
        else:
            for step in reversed(undo):
                step()
        self._end()

    def reconcile(self, table: ReadableTable) -> Reconciled:
        """Make this the index of the table as it is now, by reading all of it, file by file. Ends a running batch."""
        self._bag, self._ready = _Bag(), False
        self._end()
        names = [column.name for column in table.relation.columns]
        for no in table.files:
            positions, rows = table.live_rows(no, names)
            ids: Numbers = rows.column(ROW_ID).to_numpy()
            done = 0
            for batch in rows.select(names).to_batches():
                end = done + batch.num_rows
                self._add(hash_rows(batch, self.seed), no, positions[done:end], ids[done:end])
                done = end
            self._end()
        self._ready = True
        return Reconciled(rebuilt=True, files_read=len(table.files))

    # ------------------------------------------------------------------------------------------------------------ inside

    def _check(self) -> None:
        if not self._ready:
            raise Corrupt("KEY_INDEX_STALE", "the key index was asked before it was compared with its table", fix="start again")

    def _end(self) -> None:
        self._undo, self._pending, self._taken = [], 0, []

    def _note(self, undo: Callable[[], None], size: int) -> None:
        self._pending += size
        if self._undo is not None:
            self._undo.append(undo)
            if self._pending > _UNDO_BYTES:
                self._undo = None

    def _push(self, bag: _Bag, hashes: Hashes, nodes: npt.NDArray[np.int32]) -> None:
        need = bag.hashes + len(hashes)
        if need > _FULL * len(bag.slots):
            slots = _new_slots(max(int(need / _FULL) + 1, len(bag.slots) + (len(bag.slots) >> 1)))
            bag.hashes = int(_copy(bag.slots, slots, self._k0, self._k1))
            bag.slots = slots
        chained = np.ascontiguousarray(hashes), np.ascontiguousarray(nodes)
        bag.hashes += int(_push(bag.slots, bag.following, self._k0, self._k1, *chained))

    @staticmethod
    def _allocate(bag: _Bag, count: int) -> npt.NDArray[np.int32]:
        """So many nodes that are in no chain."""
        out = np.empty(count, np.int32)
        done = 0
        while done < count and bag.free:
            last = bag.free.pop()
            used = min(len(last), count - done)
            out[done : done + used] = last[len(last) - used :]
            if used < len(last):
                bag.free.append(last[: len(last) - used])
            done += used
        more = count - done
        if bag.nodes + more > len(bag.place):
            size = max(_SMALLEST, bag.nodes + more, len(bag.place) + (len(bag.place) >> 1))
            bag.place, bag.row_id, bag.following = (_longer(array, size) for array in (bag.place, bag.row_id, bag.following))
        out[done:] = np.arange(bag.nodes, bag.nodes + more, dtype=np.int32)
        bag.nodes += more
        return out

    @staticmethod
    def _release(bag: _Bag, nodes: npt.NDArray[np.int32]) -> None:
        if len(nodes):
            bag.place[nodes] = _NONE
            bag.free.append(nodes)


def _longer(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    out = np.empty(size, array.dtype)
    out[: len(array)] = array
    return out


def _new_slots(size: int) -> npt.NDArray[np.uint64]:
    slots = np.empty((size, 3), np.uint64)
    slots[:, 2] = np.int64(_FREE).astype(np.uint64)
    return slots


@kernel
def _find(slots, k0, k1, a, b):  # type: ignore[no-untyped-def]
    """The hash's slot; or -1 - the slot where it would go."""
    at = home_slot(slots.shape[0], k0, k1, a, b)
    while np.int64(slots[at, 2]) != _FREE:
        if slots[at, 0] == a and slots[at, 1] == b:
            return at
        at += 1
        if at == slots.shape[0]:
            at = np.int64(0)
    return -1 - at


@kernel
def _push(slots, following, k0, k1, hashes, nodes):  # type: ignore[no-untyped-def]
    """Put each node at the head of its hash's chain. How many hashes are new."""
    new = 0
    for i in range(nodes.shape[0]):
        at = _find(slots, k0, k1, hashes[i, 0], hashes[i, 1])
        if at < 0:
            at = -1 - at
            slots[at, 0] = hashes[i, 0]
            slots[at, 1] = hashes[i, 1]
            slots[at, 2] = np.uint64(np.int64(_NONE))
            new += 1
        following[nodes[i]] = np.int32(np.int64(slots[at, 2]))
        slots[at, 2] = np.uint64(nodes[i])
    return new


@kernel
def _pop(slots, following, k0, k1, hashes, nodes):  # type: ignore[no-untyped-def]
    """Take the head off each hash's chain; -1 where there is none."""
    for i in range(hashes.shape[0]):
        at = _find(slots, k0, k1, hashes[i, 0], hashes[i, 1])
        nodes[i] = _NONE if at < 0 else np.int64(slots[at, 2])
        if nodes[i] >= 0:
            slots[at, 2] = np.uint64(np.int64(following[nodes[i]]))


@kernel
def _copy(slots, new, k0, k1):  # type: ignore[no-untyped-def]
    """The chains that have a row, into an empty table. How many."""
    count = 0
    for i in range(slots.shape[0]):
        if np.int64(slots[i, 2]) < 0:
            continue
        at = -1 - _find(new, k0, k1, slots[i, 0], slots[i, 1])
        for word in range(3):
            new[at, word] = slots[i, word]
        count += 1
    return count
