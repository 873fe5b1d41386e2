"""The net effect of a chunk's changes on each key, in one pass.

Every change is (kind, old key, new key). One sequential kernel follows each key through the chunk, so that of a row that was
inserted, updated twice and moved to another key only its last version is written, the version before the chunk is removed
once, and its row id and its unchanged TOAST values are traced back to where they come from.

It never guesses: an insert of a key that is live, or an update or delete of one that is not, is reported, not repaired. The
caller compares the first expectation of every key with the key index, so a row that was lost or applied twice cannot pass.

Rows without a key are a multiset: there the id of a whole row stands for the key (``follow_bag``). A change takes the equal row that
came last in the chunk, and one from before the chunk only when there is none; the caller takes those from the index, which must have them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from icelake.compiled import kernel

INSERT, UPDATE, DELETE, TRUNCATE, SKIP = 0, 1, 2, 3, 4
"""Kinds: as ``ports`` has them, plus changes that are not admitted."""

ABSENT, PRESENT = 0, 1
"""What the first change to a key says about the row before the chunk."""

NONE = -1
"""No previous version: the row is new, or its past is not in the lake."""


Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Net:
    """What a chunk comes to. Key ids number the distinct keys (``first[id]``: a row of the stacked hashes)."""

    expected: npt.NDArray[np.uint8]
    """By key id: PRESENT or ABSENT before the chunk (or before the chunk's first TRUNCATE)."""
    current: Ints
    """By key id: the change whose new row is live at the end, or a negative number: the key is not live."""
    origin: Ints
    """By change: the key id whose row before the chunk this row continues, or NONE: a new row."""
    previous: Ints
    """By change: the change that made the version before; -2 - key id: that version is the row before the chunk; or NONE."""
    truncated: bool


@kernel
def _factorize(hashes, wanted, slots, ids, first):  # type: ignore[no-untyped-def]
    # Dense numbers for 128-bit hashes: open addressing over the row numbers. Unwanted rows get -1. How many there are.
    mask = np.uint64(slots.shape[0] - 1)
    count = 0
    for i in range(hashes.shape[0]):
        if not wanted[i]:
            ids[i] = -1
            continue
        a = hashes[i, 0]
        b = hashes[i, 1]
        # Integer keys are their own hash, so they are mixed before they choose a slot.
        h = (a ^ (b * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xFF51AFD7ED558CCD)
        at = (h >> np.uint64(29)) & mask
        while True:
            known = slots[at]
            if known < 0:
                slots[at] = count
                first[count] = i
                ids[i] = count
                count += 1
                break
            j = first[known]
            if hashes[j, 0] == a and hashes[j, 1] == b:
                ids[i] = known
                break
            at = (at + np.uint64(1)) & mask
    return count


@kernel
def _follow(kind, old, new, expected, current, origin, previous):  # type: ignore[no-untyped-def]
    # ``expected`` comes full of 255, the others of -1.
    truncated = False
    for i in range(kind.shape[0]):
        k = kind[i]
        if k == 4:
            continue
        if k == 3:
            truncated = True
            for key in range(current.shape[0]):
                current[key] = -2
            continue
        if k != 0:
            a = old[i]
            was = current[a]
            if was == -2:
                return i, truncated
            if was == -1:
                expected[a] = 1
                if k == 1:
                    origin[i] = a
                    previous[i] = -2 - a
            elif k == 1:
                origin[i] = origin[was]
                previous[i] = was
            current[a] = -2
        if k != 2:
            b = new[i]
            there = current[b]
            if there >= 0:
                return i, truncated
            if there == -1:
                expected[b] = 0
            current[b] = i
    return -1, truncated


@dataclass(frozen=True, slots=True)
class NetBag:
    """What a chunk comes to where rows are a multiset. Row ids number the distinct rows."""

    taken: Ints
    """Row ids of the rows from before the chunk that changes took, in their order; a row id as often as it was taken."""
    takers: Ints
    """The change that took each of them."""
    live: Ints
    """The changes whose new rows are there at the end, in order."""
    origin: Ints
    """By change: the number in ``taken`` of the row it continues, or NONE: a new row."""
    truncated: bool


@kernel
def _follow_bag(kind, old, new, head, below, live, origin, taken, takers):  # type: ignore[no-untyped-def]
    # ``head`` and ``below`` are the live changes of each row, the last first; these and ``origin`` come full of -1.
    count = 0
    # Changes before the last TRUNCATE are as if they had not been, but for the rows they took.
    floor = 0
    truncated = False
    for i in range(kind.shape[0]):
        k = kind[i]
        if k == 4:
            continue
        if k == 3:
            truncated = True
            floor = i
            continue
        if k != 0:
            a = old[i]
            was = head[a]
            if was >= floor:
                head[a] = below[was]
                live[was] = False
                origin[i] = origin[was]
            elif truncated:
                return i, floor, truncated, count
            else:
                taken[count] = a
                takers[count] = i
                origin[i] = count
                count += 1
        if k != 2:
            b = new[i]
            below[i] = head[b]
            head[b] = i
            live[i] = True
    return -1, floor, truncated, count


@kernel
def _resolve(unchanged, previous, rows, out):  # type: ignore[no-untyped-def]
    for j in range(rows.shape[0]):
        i = rows[j]
        while unchanged[i] and previous[i] >= 0:
            i = previous[i]
        if unchanged[i]:
            out[j] = previous[i]  # -2 - key id, or NONE
        else:
            out[j] = i


def factorize(hashes: npt.NDArray[np.uint64], wanted: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Number the distinct hashes. ``hashes`` [n, 2]; gives (key id a row, -1 where not wanted; first row of each key id)."""
    n = len(hashes)
    slots = np.full(max(16, 1 << (2 * n - 1).bit_length()), NONE, np.int64)
    ids, first = np.empty(n, np.int64), np.empty(n, np.int64)
    count = _factorize(hashes, wanted, slots, ids, first)
    return ids, first[:count]


def follow(kind: npt.NDArray[np.uint8], old: Ints, new: Ints, keys: int) -> tuple[int, Net]:
    """Run the changes in order. Gives (the number of the change that contradicts an earlier one, or -1; the net effect).

    ``old`` and ``new`` are key ids (an update that keeps its key has the same in both). A key that no admitted change touches
    keeps ``expected`` 255.
    """
    expected, current = np.full(keys, 255, np.uint8), np.full(keys, NONE, np.int64)
    origin, previous = np.full(len(kind), NONE, np.int64), np.full(len(kind), NONE, np.int64)
    bad, truncated = _follow(kind, old, new, expected, current, origin, previous)
    return int(bad), Net(expected, current, origin, previous, bool(truncated))


def follow_bag(kind: npt.NDArray[np.uint8], old: Ints, new: Ints, rows: int) -> tuple[int, NetBag]:
    """``follow`` for rows without a key; ``old`` and ``new`` are ids of whole rows.

    The first is the number of a change of a row that cannot be there because of an earlier TRUNCATE, or -1.
    """
    n = len(kind)
    head, below, origin = (np.full(size, NONE, np.int64) for size in (rows, n, n))
    taken, takers, live = np.empty(n, np.int64), np.empty(n, np.int64), np.zeros(n, np.bool_)
    bad, floor, truncated, count = _follow_bag(kind, old, new, head, below, live, origin, taken, takers)
    return int(bad), NetBag(taken[:count], takers[:count], floor + np.flatnonzero(live[floor:]), origin, bool(truncated))


def resolve(unchanged: npt.NDArray[np.bool_], previous: Ints, rows: Ints) -> Ints:
    """For each live change in ``rows``: which change holds the column's value, or -2 - key id (the lake), or NONE (nobody)."""
    out = np.empty(len(rows), np.int64)
    _resolve(unchanged, previous, rows, out)
    return out
