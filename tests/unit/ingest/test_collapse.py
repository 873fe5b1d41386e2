"""The net effect of changes, against a plain replay."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.ingest import collapse

KEYS = 6


def replay(base: set[int], changes: list[tuple[int, int, int]]) -> tuple[int, dict[int, int]]:
    """(number of the first impossible change or -1, key -> change that made its live row) with rows of ``base`` as -1 - key."""
    live = {key: -1 - key for key in base}
    for number, (kind, old, new) in enumerate(changes):
        if kind == collapse.TRUNCATE:
            live.clear()
            continue
        if kind in (collapse.UPDATE, collapse.DELETE):
            if old not in live:
                return number, live
            del live[old]
        if kind in (collapse.INSERT, collapse.UPDATE):
            if new in live:
                return number, live
            live[new] = number
    return -1, live


change = st.tuples(
    st.sampled_from([collapse.INSERT, collapse.UPDATE, collapse.UPDATE, collapse.DELETE, collapse.TRUNCATE]),
    st.integers(0, KEYS - 1),
    st.integers(0, KEYS - 1),
)


@settings(max_examples=600, deadline=None)
@given(base=st.sets(st.integers(0, KEYS - 1)), changes=st.lists(change, max_size=14))
def test_net_effect_is_that_of_a_replay(base: set[int], changes: list[tuple[int, int, int]]) -> None:
    kind = np.array([c[0] for c in changes], np.uint8)
    old = np.array([c[1] for c in changes], np.int64)
    new = np.array([c[2] for c in changes], np.int64)
    impossible, live = replay(base, changes)
    bad, net = collapse.follow(kind, old, new, KEYS)
    touched = net.expected != 255
    wrong = [k for k in range(KEYS) if touched[k] and (net.expected[k] == collapse.PRESENT) != (k in base)]
    assert (bad >= 0 or bool(wrong)) == (impossible >= 0)
    if impossible >= 0:
        return
    for key in range(KEYS):
        if net.current[key] >= 0:
            assert live[key] == net.current[key]
        else:
            untouched = key in base and not touched[key] and not net.truncated
            assert (key in live) == untouched
    assert net.truncated == any(c[0] == collapse.TRUNCATE for c in changes)


@settings(max_examples=300, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(0, KEYS - 1), st.integers(0, KEYS - 1), st.booleans()), max_size=12))
def test_a_value_that_was_not_sent_is_that_of_the_version_before(moves: list[tuple[int, int, bool]]) -> None:
    """Updates only: each carries its number as value, or leaves the value as it was."""
    value = {key: -2 - key for key in range(KEYS)}
    row_of = {key: key for key in range(KEYS)}
    done: list[tuple[int, int, bool]] = []
    for old, new, unchanged in moves:
        if old not in value or (new != old and new in value):
            continue
        value[new] = value.pop(old) if unchanged else (value.pop(old), len(done))[1]
        row_of[new] = row_of.pop(old)
        done.append((old, new, unchanged))
    n = len(done)
    _, net = collapse.follow(
        np.full(n, collapse.UPDATE, np.uint8),
        np.array([d[0] for d in done], np.int64),
        np.array([d[1] for d in done], np.int64),
        KEYS,
    )
    live = np.flatnonzero(net.current >= 0)
    rows = net.current[live]
    got = collapse.resolve(np.array([d[2] for d in done], np.bool_), net.previous, rows)
    assert dict(zip(live.tolist(), got.tolist(), strict=True)) == {k: value[k] for k in live.tolist()}
    assert net.origin[rows].tolist() == [row_of[k] for k in live.tolist()]


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans()), max_size=40))
def test_equal_hashes_share_a_number_and_no_others(words: list[tuple[int, int, bool]]) -> None:
    hashes = np.array([w[:2] for w in words], np.uint64).reshape(-1, 2)
    wanted = np.array([w[2] for w in words], np.bool_)
    ids, first = collapse.factorize(hashes, wanted)
    assert [int(i) >= 0 for i in ids] == wanted.tolist()
    for i in np.flatnonzero(wanted):
        assert hashes[first[ids[i]]].tolist() == hashes[i].tolist()
    assert len({tuple(h) for h in hashes[first].tolist()}) == len(first)


ROWS = 3


def replay_bag(base: list[int], changes: list[tuple[int, int, int]]) -> tuple[int, list[int]]:
    """(number of the first impossible change or -1, the rows there are then)."""
    rows = list(base)
    for number, (kind, old, new) in enumerate(changes):
        if kind == collapse.TRUNCATE:
            rows.clear()
        if kind in (collapse.UPDATE, collapse.DELETE):
            if old not in rows:
                return number, rows
            rows.remove(old)
        if kind in (collapse.INSERT, collapse.UPDATE):
            rows.append(new)
    return -1, rows


bag_change = st.tuples(
    st.sampled_from([collapse.INSERT] * 6 + [collapse.UPDATE] * 5 + [collapse.DELETE] * 5 + [collapse.TRUNCATE]),
    st.integers(0, ROWS - 1),
    st.integers(0, ROWS - 1),
)


@settings(max_examples=300, deadline=None)
@given(base=st.lists(st.integers(0, ROWS - 1), max_size=8), changes=st.lists(bag_change, max_size=14))
def test_net_effect_on_equal_rows_is_that_of_a_replay(base: list[int], changes: list[tuple[int, int, int]]) -> None:
    kind = np.array([c[0] for c in changes], np.uint8)
    old = np.array([c[1] for c in changes], np.int64)
    new = np.array([c[2] for c in changes], np.int64)
    impossible, rows = replay_bag(base, changes)
    bad, net = collapse.follow_bag(kind, old, new, ROWS)
    held = list(base)
    lacking = []
    for row, taker in zip(net.taken.tolist(), net.takers.tolist(), strict=True):
        if row in held:
            held.remove(row)
        else:
            lacking.append(taker)
    # The first that cannot be is either known from the chunk alone, or takes what is not there.
    assert min([*lacking[:1], *([bad] if bad >= 0 else [])], default=-1) == impossible
    if impossible >= 0:
        return
    assert net.truncated == any(c[0] == collapse.TRUNCATE for c in changes)
    assert sorted(([] if net.truncated else held) + new[net.live].tolist()) == sorted(rows)
    # Every row before the chunk goes on in one row at most.
    origins = [number for number in net.origin[net.live].tolist() if number >= 0]
    assert len(set(origins)) == len(origins)
    if all(c[0] == collapse.UPDATE for c in changes):
        assert sorted(origins) == list(range(len(net.taken)))


def test_an_insert_and_a_delete_of_one_row_cancel() -> None:
    kind = np.array([collapse.INSERT, collapse.INSERT, collapse.UPDATE, collapse.DELETE], np.uint8)
    _, net = collapse.follow_bag(kind, np.array([-1, -1, 0, 1]), np.array([0, 0, 1, -1]), 2)
    assert (net.taken.tolist(), net.live.tolist(), net.origin[net.live].tolist()) == ([], [0], [collapse.NONE])
