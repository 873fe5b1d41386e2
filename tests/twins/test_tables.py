"""The kernels of hashes and indexes, compiled and interpreted, against their twins."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.tables import bag_index, key_index, keys, transforms
from tests.twins import tables as twins
from tests.twins.tables import U64, Hash, Row
from tests.twins.ways import run

often = settings(deadline=None, max_examples=1000 if os.environ.get("ICELAKE_FULL") else 25)
words = st.one_of(st.integers(0, U64 - 1), st.sampled_from([0, 1, 2**31, 2**32, 2**63 - 1, 2**63, U64 - 1]))
seeds = st.tuples(words, words)


def unsigned(numbers: Any, width: int | None = None) -> np.ndarray:
    found = np.array(list(numbers), np.uint64)
    return found if width is None else found.reshape(-1, width)


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


# ------------------------------------------------------------------------------------------------------------------- hashes


@given(st.integers(1, 2**31), words, words, words, words)
@often
def test_homes(size: int, k0: int, k1: int, a: int, b: int) -> None:
    found, _ = run(keys.home_slot, size, *unsigned([k0, k1, a, b]))
    assert found == twins.home_slot(size, k0, k1, a, b)
    assert 0 <= found < size


def bitmap(values: Sequence[object], skip: int) -> np.ndarray:
    """Which are there, from a bit on; no bitmap where all are."""
    if None not in values:
        return frozen(np.empty(0, np.uint8))
    return frozen(np.packbits([True] * skip + [value is not None for value in values], bitorder="little"))


longs = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 2**63 - 1, -(2**63)])
COLUMNS: dict[Any, tuple[st.SearchStrategy[Any], Callable[[list[Any]], list[np.ndarray]], Callable[[Any], bytes]]] = {
    keys._absorb_word: (longs, lambda column: [np.array([value or 0 for value in column], np.int64)], twins.word),
    keys._absorb_wide: (
        st.binary(min_size=16, max_size=16),
        lambda column: [np.frombuffer(b"".join(value or bytes(16) for value in column), np.uint64)],
        twins.wide,
    ),
    keys._absorb_bytes: (
        st.binary(max_size=20),
        lambda column: [
            np.cumsum([0, *(len(value or b"") for value in column)]).astype(np.int32),
            np.frombuffer(b"".join(value or b"" for value in column), np.uint8),
        ],
        twins.text,
    ),
    keys._absorb_list: (
        st.lists(st.tuples(words, words), max_size=3),
        lambda column: [
            np.cumsum([0, *(len(value or ()) for value in column)]).astype(np.int64),
            unsigned(half for value in column for one in value or () for half in one),
        ],
        twins.listed,
    ),
}


@given(data=st.data(), seed=seeds, skip=st.integers(0, 9), rows=st.integers(0, 4))
@often
def test_hashes(data: st.DataObject, seed: tuple[int, int], skip: int, rows: int) -> None:
    state = np.zeros((rows, 5), np.uint64)
    _, (state,) = run(keys._begin, *unsigned(seed), state)
    assert state.tolist() == [[*twins.begun(seed), 0]] * rows
    written: list[list[bytes]] = [[] for _ in range(rows)]
    for kernel in data.draw(st.lists(st.sampled_from(list(COLUMNS)), max_size=4)):
        values, arrays, twin = COLUMNS[kernel]
        column = data.draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        _, (state, *_) = run(kernel, state, *map(frozen, arrays(column)), bitmap(column, skip), skip)
        for row, value in zip(written, column, strict=True):
            row.append(twin(value))
    _, (_, out) = run(keys._finish, state, np.zeros((rows, 2), np.uint64))
    assert [tuple(row) for row in out.tolist()] == [twins.hashed(row, seed) for row in written]


@given(st.lists(st.none() | longs, max_size=9), st.integers(0, 9))
@often
def test_integers_are_their_own_hashes(column: list[int | None], skip: int) -> None:
    bits = bitmap(column, skip)
    values = frozen(np.array([value or 0 for value in column], np.int64))
    _, (*_, out) = run(keys._plain, values, bits, skip, np.zeros((len(column), 2), np.uint64))
    assert [tuple(row) for row in out.tolist()] == [twins.plain(value) for value in column]
    assert [run(keys._null, bits, skip + at)[0] for at in range(len(column))] == [value is None for value in column]
    assert [twins.null(bits.tobytes(), skip + at) for at in range(len(column))] == [value is None for value in column]


@given(st.lists(st.binary(max_size=11), max_size=5))
@often
def test_partition_hashes(values: list[bytes]) -> None:
    ends = np.cumsum([len(value) for value in values], dtype=np.int64)
    data = frozen(np.frombuffer(b"".join(values), np.uint8))
    starts = np.array([0, *ends[:-1]][: len(values)], np.int64)
    _, (*_, out) = run(transforms._murmur3, data, starts, ends, np.zeros(len(values), np.int32))
    assert out.tolist() == [twins.murmur3(value) for value in values]


# ---------------------------------------------------------------------------------------------------------------- key index

# A few hashes, in tables that are nearly full: they meet at home, and are pushed round the end.
hashes = st.tuples(st.sampled_from([0, 1, 2**63]), st.sampled_from([0, U64 - 1]))
# Files count from 1.
places = st.tuples(st.sampled_from([1, 2, 3, 2**31 - 1]), st.sampled_from([0, 1, 2**32 - 2])).map(lambda pair: pair[0] << 32 | pair[1])
rows_of_keys = st.lists(st.tuples(hashes, st.tuples(places, st.sampled_from([0, 7, U64 - 1]))), max_size=6)
FREE = int(key_index._FREE)
other_numbers = st.lists(st.sampled_from([-1, 1, 2, 3, 4, 5]), min_size=4, max_size=4)


class Table:
    """A table of the kernels, and the dict it stands for."""

    def __init__(self, size: int, seed: tuple[int, int]) -> None:
        self.rows = np.zeros((size, 4), np.uint64)
        self.rows[:, 2] = FREE
        self.seed = unsigned(seed)
        self.index: dict[Hash, Row] = {}

    def slots(self) -> list[Hash | None]:
        return [None if where == FREE else (a, b) for a, b, where, _ in self.rows.tolist()]

    def same(self) -> None:
        """The same rows, and each where a search for it goes."""
        there = [((a, b), (where, ident)) for a, b, where, ident in self.rows.tolist() if where != FREE]
        assert dict(there) == self.index
        assert len(there) == len(self.index)
        slots = self.slots()
        for key in {*self.index, (5, 5)}:
            home = twins.home_slot(len(slots), *self.seed.tolist(), *key)
            at, _ = run(key_index._find, self.rows, *self.seed, *unsigned(key))
            assert at == twins.find(slots, home, key)
            assert (at >= 0) == (key in self.index)

    def run(self, kernel: Any, *arguments: Any) -> tuple[Any, list[np.ndarray]]:
        gave, (self.rows, *others) = run(kernel, self.rows, *self.seed, *arguments)
        return gave, others


def four(rows: Sequence[tuple[Hash, Row]]) -> np.ndarray:
    return unsigned([number for key, row in rows for number in (*key, *row)], 4)


def two(pairs: Sequence[Hash]) -> np.ndarray:
    return unsigned([number for pair in pairs for number in pair], 2)


def before_of(before: np.ndarray) -> list[Row | None]:
    return [None if where == FREE else (where, ident) for where, ident in before.tolist()]


@given(data=st.data(), seed=seeds, spare=st.integers(1, 3))
@often
def test_a_key_index(data: st.DataObject, seed: tuple[int, int], spare: int) -> None:
    table = Table(6 + spare, seed)  # all hashes there are, and a free place or more
    for what in data.draw(
        st.lists(st.sampled_from(["put", "put", "put", "remove", "insert", "undo", "free", "copy", "rename"]), max_size=6)
    ):
        rows = data.draw(rows_of_keys)
        wanted = [key for key, _ in rows]
        had = len(table.index)
        before = np.zeros((len(rows), 2), np.uint64)
        if what == "insert":
            gave, _ = table.run(key_index._insert, four(rows))
            assert gave == twins.insert(table.index, rows)
        elif what == "free":
            for key in wanted:
                if key in table.index:
                    at, _ = run(key_index._find, table.rows, *table.seed, *unsigned(key))
                    table.run(key_index._free, at)
                    twins.free(table.index, key)
                    table.same()
        elif what == "copy":
            numbers = data.draw(other_numbers) if data.draw(st.booleans()) else []
            other = Table(len(table.rows) + data.draw(st.integers(0, 9)), seed)
            gave, (_, other.rows, _) = run(key_index._copy, table.rows, other.rows, *table.seed, np.array(numbers, np.int64))
            expected = twins.renumbered(table.index, numbers) if numbers else dict(table.index)
            if expected is None:
                assert gave == -1
                continue
            assert gave == len(expected)
            table, table.index = other, expected
        elif what == "rename":
            numbers = data.draw(other_numbers)
            gave, (renamed, _) = run(key_index._rename, table.rows, np.array(numbers, np.int64))
            expected = twins.renumbered(table.index, numbers)
            assert gave == (expected is not None and len(expected) == len(table.index))
            if gave:
                assert expected is not None
                table.rows, table.index = renamed, expected
        else:
            changed = four(rows) if what != "remove" else two(wanted)
            kernel = key_index._remove if what == "remove" else key_index._put
            was = dict(table.index)
            gave, (_, before) = table.run(kernel, changed, before)
            expected_before = twins.remove(table.index, wanted) if what == "remove" else twins.put(table.index, rows)
            assert before_of(before) == expected_before
            assert gave == abs(len(table.index) - had)
            if what == "undo":
                table.same()
                had = len(table.index)
                more, _ = table.run(key_index._undo, np.concatenate([changed[:, :2], before], axis=1))
                twins.undo(table.index, wanted, expected_before)
                assert table.index == was
                assert more == len(table.index) - had
        table.same()
    wanted = data.draw(st.lists(hashes, max_size=5))
    n = len(wanted)
    _, (_, *found) = table.run(key_index._lookup, two(wanted), np.zeros(n, np.int32), np.zeros(n, np.int64), np.zeros(n, np.int64))
    assert list(zip(*(one.tolist() for one in found), strict=True)) == twins.lookup(table.index, wanted)


@given(rows_of_keys, st.lists(st.integers(-1, 5), max_size=5), st.integers(1, 4), seeds)
@often
def test_a_key_index_is_written_in_pieces(rows: list[tuple[Hash, Row]], numbers: list[int], room: int, seed: tuple[int, int]) -> None:
    table = Table(24, seed)
    table.run(key_index._put, four(rows), np.zeros((len(rows), 2), np.uint64))
    twins.put(table.index, rows)
    pieces: list[list[int]] = []
    at, filled = 0, room
    while at < len(table.rows) and filled >= 0:
        (at, filled), (*_, out) = run(key_index._dump, table.rows, at, np.array(numbers, np.int64), np.zeros((room, 4), np.uint64))
        pieces += out[: max(filled, 0)].tolist()
    expected = twins.renumbered(table.index, numbers)
    if expected is None or len(expected) < len(table.index):
        assert filled == -1  # a row without a number is never left out
    else:
        assert {(a, b): (where, ident) for a, b, where, ident in pieces} == expected
        assert len(pieces) == len(expected)


def test_a_row_leaves_a_run_that_goes_round_the_end() -> None:
    """Keys whose home is the last slot stand in the first ones; each can leave first."""
    seed = (3, 4)
    at_home = {home: [key for key in ((a, 0) for a in range(400)) if twins.home_slot(8, *seed, *key) == home] for home in (6, 7, 0)}
    keys_there = [at_home[6][0], *at_home[7][:3], at_home[0][0]]
    for gone in keys_there:
        table = Table(8, seed)
        rows = [(key, (1 << 32 | number, number)) for number, key in enumerate(keys_there)]
        table.run(key_index._put, four(rows), np.zeros((len(rows), 2), np.uint64))
        twins.put(table.index, rows)
        table.same()
        table.run(key_index._remove, two([gone]), np.zeros((1, 2), np.uint64))
        twins.remove(table.index, [gone])
        table.same()


# ---------------------------------------------------------------------------------------------------------------- bag index


@given(data=st.data(), seed=seeds)
@often
def test_a_bag_index(data: st.DataObject, seed: tuple[int, int]) -> None:
    slots = bag_index._new_slots(20)
    following = np.full(40, -7, np.int32)
    k0, k1 = unsigned(seed)
    bag: dict[Hash, list[int]] = {}
    nodes = 0
    for what in data.draw(st.lists(st.sampled_from(["push", "push", "pop", "copy"]), max_size=7)):
        wanted = data.draw(st.lists(hashes, max_size=5))
        if what == "push":
            new = np.arange(nodes, nodes + len(wanted), dtype=np.int32)
            nodes += len(wanted)
            gave, (slots, following, *_) = run(bag_index._push, slots, following, k0, k1, two(wanted), new)
            assert gave == twins.push(bag, zip(wanted, new.tolist(), strict=True))
        elif what == "pop":
            gave, (slots, following, _, popped) = run(
                bag_index._pop, slots, following, k0, k1, two(wanted), np.zeros(len(wanted), np.int32)
            )
            assert popped.tolist() == twins.pop(bag, wanted)
        else:
            gave, (_, slots) = run(bag_index._copy, slots, bag_index._new_slots(20), k0, k1)
            bag = twins.kept(bag)
            assert gave == len(bag)
    everything = [key for key, there in bag.items() for _ in there]
    _, (*_, popped) = run(bag_index._pop, slots, following, k0, k1, two(everything), np.zeros(len(everything), np.int32))
    assert popped.tolist() == twins.pop(bag, everything)
