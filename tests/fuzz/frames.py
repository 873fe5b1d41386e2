"""The scans of pgoutput's frames and tuples alone, for relations that are known, as fast as they go. Input as ``pgoutput`` has it.

What they find is believed by all that reads values: so every field lies inside the bytes, and every number written is one asked for.
"""

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from icelake.sources.postgres import kernels
from icelake.sources.postgres.values import read_only
from tests.fuzz.pgoutput import mutate as mutate_frames
from tests.unit.sources.postgres.wire import UNSENT, begin, commit, delete, frame, insert, truncate, update

WATCHED = (kernels,)
_OIDS: Final = np.array([1, 2, 3, 9], np.int64)
_LAYOUTS: Final = np.array([0, 1, 2, 3], np.int32)
_SHAPES: Final = tuple(
    (np.array(target, np.int32), np.array(key, np.int32), whole)
    for target, key, whole in (
        ([0, 1, 2], [0, -1, -1], False),
        ([2, -1, 0, 1], [1, -1, 0, -1], False),
        ([0, 1], [0, 1], True),
        ([0, -1, 1], [-1, -1, -1], False),
    )
)
"""Of each relation: where its columns go, which are of the key, whether the whole row is."""


def run(data: bytes) -> None:
    buffer = read_only(data)
    size = len(data)
    state = np.zeros(kernels.STATE, np.int64)
    begun = np.empty((size // 25 + 1, 3), np.int64)
    room = size // 4 + 2
    kind = np.empty(room, np.uint8)
    body, end, layout = (np.empty(room, np.int32) for _ in range(3))
    lsn = np.empty(room, np.int64)
    while True:
        status = kernels.scan_frames(buffer, state, _OIDS, _LAYOUTS, begun, kind, body, end, layout, lsn)
        count = int(state[kernels.COUNT])
        if status not in (kernels.RELATION, kernels.TRUNCATED):
            break
        assert 0 < int(body[count]) < int(end[count]) <= size
    if status != kernels.DONE or not count:
        return
    order, bounds = np.empty(count, np.int32), np.empty(len(_SHAPES) + 1, np.int32)
    kernels.group(layout[:count], len(_SHAPES), order, bounds)
    assert sorted(order.tolist()) == list(range(count))
    for number, (target, key, whole) in enumerate(_SHAPES):
        rows = order[bounds[number] : bounds[number + 1]]
        n = len(rows)
        if not n:
            continue
        op = np.empty(n, np.uint8)
        columns, keys = int(target.max()) + 1, int(key.max()) + 1
        fields = [np.empty((wide, n), np.int32) for wide in (columns, columns, keys, keys)]
        told = (buffer, rows, kind, body, end, target, key, whole)
        status, at = kernels.scan_tuples(*told, op, *fields, np.zeros(columns, np.int64))
        if status != kernels.DONE:
            assert 0 <= at <= size
            return
        for start, length in (fields[:2], fields[2:]):
            there = length >= 0
            assert (length >= kernels.UNCHANGED).all()
            assert (start[there] >= 0).all()
            assert (start[there].astype(np.int64) + length[there] <= size).all()


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    return mutate_frames(b"\0" + data, largest, seed)[1:]


def seeds() -> Iterator[bytes]:
    short, four = (1, "one", None), (1, None, "x", "y")
    made = (
        *(insert(oid, row) for oid, row in ((1, short), (2, four), (3, short[:2]), (9, short))),
        update(1, (2, UNSENT, None), key=(1, None, None)),
        update(2, (2, UNSENT, "x", UNSENT), old=four),
        update(3, (2, UNSENT), old=(1, "x")),
        delete(1, key=(1, None, None)),
        delete(3, old=(None, None)),
        truncate(1, 2),
    )
    yield frame(begin(9), *made, commit(9, 10), begin(11))
    yield from (frame(begin(9), message, commit(9, 10)) for message in made)
    yield frame(begin(9), b"M" + bytes(4), struct.pack("!cI", b"R", 1) + bytes(5))
