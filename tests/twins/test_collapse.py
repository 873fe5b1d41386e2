"""The net effect of a chunk: its kernels, compiled and interpreted, against a replay."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.ingest import collapse
from icelake.ingest.collapse import ABSENT, DELETE, INSERT, NONE, PRESENT, SKIP, TRUNCATE, UPDATE
from tests.twins.ways import run, twin

often = settings(deadline=None, max_examples=1000 if os.environ.get("ICELAKE_FULL") else 80)
Change = tuple[int, int, int]
"""Kind, key before, key after."""
UNKNOWN = 255
DEAD = -2


@twin(collapse._factorize)
def factorize(hashes: Sequence[tuple[int, int]], wanted: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Distinct hashes are numbered as they come; (the number of each row, NONE where not wanted; where each number came first)."""
    first: dict[tuple[int, int], int] = {}
    for at, one in enumerate(hashes):
        if wanted[at]:
            first.setdefault(one, at)
    numbers = {one: number for number, one in enumerate(first)}
    return [numbers[one] if wanted[at] else NONE for at, one in enumerate(hashes)], list(first.values())


@dataclass
class Net:
    """As in ``collapse.Net``, of the changes before ``bad``."""

    bad: int = NONE
    truncated: bool = False
    expected: dict[int, int] = field(default_factory=dict)
    live: dict[int, int] = field(default_factory=dict)
    origin: dict[int, int] = field(default_factory=dict)
    previous: dict[int, int] = field(default_factory=dict)


@twin(collapse._follow)
def follow(changes: Sequence[Change]) -> Net:
    net = Net()
    for at, (kind, old, new) in enumerate(changes):
        if kind == TRUNCATE:
            net.truncated = True
            net.live.clear()
        if kind in (UPDATE, DELETE):
            known = net.truncated or old in net.expected
            if known and old not in net.live:
                net.bad = at
                return net
            if not known:
                net.expected[old] = PRESENT
            if kind == UPDATE:
                net.origin[at] = net.origin[net.live[old]] if known else old
                net.previous[at] = net.live[old] if known else -2 - old
            net.live.pop(old, None)
        if kind in (INSERT, UPDATE):
            if new in net.live:
                net.bad = at
                return net
            if not net.truncated:
                net.expected.setdefault(new, ABSENT)
            net.live[new] = at
            net.origin.setdefault(at, NONE)
            net.previous.setdefault(at, NONE)
    return net


@dataclass
class Bag:
    """As in ``collapse.NetBag``."""

    bad: int = NONE
    truncated: bool = False
    stacks: dict[int, list[int]] = field(default_factory=dict)
    taken: list[tuple[int, int]] = field(default_factory=list)
    """(row, taker)"""
    origin: dict[int, int] = field(default_factory=dict)


@twin(collapse._follow_bag)
def follow_bag(changes: Sequence[Change]) -> Bag:
    bag = Bag()
    for at, (kind, old, new) in enumerate(changes):
        if kind == TRUNCATE:
            bag.truncated = True
            bag.stacks.clear()
        if kind in (UPDATE, DELETE):
            if bag.stacks.get(old):
                bag.origin[at] = bag.origin[bag.stacks[old].pop()]
            elif bag.truncated:
                bag.bad = at
                return bag
            else:
                bag.origin[at] = len(bag.taken)
                bag.taken.append((old, at))
        if kind in (INSERT, UPDATE):
            bag.stacks.setdefault(new, []).append(at)
            bag.origin.setdefault(at, NONE)
    return bag


@twin(collapse._resolve)
def resolve(unchanged: Sequence[bool], previous: Sequence[int], row: int) -> int:
    """Back to the version that has the value, or out of the chunk."""
    return row if row < 0 or not unchanged[row] else resolve(unchanged, previous, previous[row])


KEYS = 4
kinds = st.sampled_from([INSERT] * 6 + [UPDATE] * 8 + [DELETE] * 5 + [TRUNCATE] * 3 + [SKIP])
changes = st.lists(st.tuples(kinds, st.integers(0, KEYS - 1), st.integers(0, KEYS - 1)), max_size=14)


def possible(found: list[Change]) -> list[Change]:
    """Without the changes that contradict those before them: drawn blindly, most chunks have one."""
    while (bad := follow(found).bad) >= 0:
        found = found[:bad] + found[bad + 1 :]
    return found


chunks = st.one_of(changes, changes.map(possible), changes.map(possible))


def columns(found: Sequence[Change]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kind, old, new = zip(*found, strict=True) if found else ((), (), ())
    return np.array(kind, np.uint8), np.array(old, np.int64), np.array(new, np.int64)


def full(size: int, of: int = NONE, kind: type = np.int64) -> np.ndarray:
    return np.full(size, of, kind)


words = st.sampled_from([0, 1, 2, 2**63, 2**64 - 1])


@given(st.lists(st.tuples(words, words, st.booleans()), max_size=12), st.sampled_from([16, 32]))
@often
def test_numbers_of_hashes(rows: list[tuple[int, int, bool]], size: int) -> None:
    hashes, wanted = [row[:2] for row in rows], [row[2] for row in rows]
    n = len(rows)
    count, (*_, ids, first) = run(
        collapse._factorize, np.array(hashes, np.uint64).reshape(-1, 2), np.array(wanted, np.bool_), full(size), full(n, 9), full(n)
    )
    assert (ids.tolist(), first[:count].tolist()) == factorize(hashes, wanted)


@given(chunks)
@often
def test_the_net_effect_on_keys(found: list[Change]) -> None:
    n = len(found)
    (bad, truncated), (*_, expected, current, origin, previous) = run(
        collapse._follow, *columns(found), full(KEYS, UNKNOWN, np.uint8), full(KEYS), full(n), full(n)
    )
    net = follow(found)
    assert (bad, truncated) == (net.bad, net.truncated)
    if bad >= 0:
        return  # what else was found is nobody's
    assert expected.tolist() == [net.expected.get(key, UNKNOWN) for key in range(KEYS)]
    assert {key: at for key, at in enumerate(current.tolist()) if at >= 0} == net.live
    for at in net.live.values():
        assert (origin[at], previous[at]) == (net.origin[at], net.previous[at])
        while previous[at] >= 0:
            at = int(previous[at])
            assert previous[at] == net.previous[at]


@given(chunks)
@often
def test_the_net_effect_on_equal_rows(found: list[Change]) -> None:
    n = len(found)
    (bad, floor, truncated, count), (*_, live, origin, taken, takers) = run(
        collapse._follow_bag, *columns(found), full(KEYS), full(n), np.zeros(n, np.bool_), full(n), full(n), full(n)
    )
    bag = follow_bag(found)
    assert (bad, truncated) == (bag.bad, bag.truncated)
    assert list(zip(taken[:count].tolist(), takers[:count].tolist(), strict=True)) == bag.taken
    if bad >= 0:
        return
    there = [at for at in range(floor, n) if live[at]]
    assert there == sorted(at for stack in bag.stacks.values() for at in stack)
    assert [int(origin[at]) for at in there] == [bag.origin[at] for at in there]


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 99)), max_size=10), st.data())
@often
def test_values_that_were_not_sent(versions: list[tuple[bool, int]], data: st.DataObject) -> None:
    unchanged = [one for one, _ in versions]
    previous = [min(before, at - 1) if before >= 0 and at else min(before, NONE) for at, (_, before) in enumerate(versions)]
    rows = data.draw(st.lists(st.integers(0, len(versions) - 1), max_size=5)) if versions else []
    _, (*_, out) = run(
        collapse._resolve, np.array(unchanged, np.bool_), np.array(previous, np.int64), np.array(rows, np.int64), full(len(rows), 7)
    )
    assert out.tolist() == [resolve(unchanged, previous, row) for row in rows]
