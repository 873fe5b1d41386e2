"""Load state: intervals of the key space, against a plain map of keys."""

from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.model.load import LoadState, leaf_bounds

KEYS = [(str(k),) for k in range(12)]


def order(key: tuple[str, ...]) -> int:
    return int(key[0])


step = st.one_of(
    st.tuples(st.just("load"), st.integers(0, 11)),
    st.tuples(st.just("forget"), st.integers(0, 11)),
    st.tuples(st.just("settle"), st.integers(0, 30)),
)


@settings(max_examples=500, deadline=None)
@given(steps=st.lists(step, max_size=25))
def test_every_key_is_loaded_exactly_where_the_model_says(steps: list[tuple[str, int]]) -> None:
    state = LoadState()
    model: dict[int, int | None] = dict.fromkeys(range(12))
    lsn = 0
    for what, number in steps:
        lsn += 1
        if what == "load" and (missing := state.next_missing()) is not None:
            lower, upper = missing[0], missing[1].upper
            inside = [
                k
                for k in range(12)
                if (lower is None or (k, 1) > (order(lower[0]), lower[1])) and (upper is None or (k, 1) <= (order(upper[0]), upper[1]))
            ]
            end = upper
            if number in inside and (number,) != upper:
                end = ((str(number),), 1)
                inside = [k for k in inside if k <= number]
            state = state.loaded(lower, end, lsn)
            model.update(dict.fromkeys(inside, lsn))
        elif what == "forget":
            state = state.forget([(str(number),)], order)
            model[number] = None
        elif what == "settle":
            state = state.settled(number)
        assert LoadState.parse(state.dump()) == state
        assert state.intervals[-1].upper is None
        for k in range(12):
            got = state.intervals[state.find((str(k),), order)].lsn
            expected = model[k]
            # Joining settled neighbours may raise an L, never past the position both were settled at.
            assert (got is None) == (expected is None)
            if got is not None and expected is not None:
                assert got >= expected
        assert state.complete == (state.next_missing() is None)


def pair_order(key: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(map(int, key))


ROWS = [(leaf, k) for leaf in range(1, 5) for k in range(4)]
leaf_step = st.one_of(
    st.tuples(st.just("load"), st.integers(0, len(ROWS) - 1)),
    st.tuples(st.just("forget"), st.integers(0, len(ROWS) - 1)),
    st.tuples(st.just("leaf"), st.integers(1, 4)),
    st.tuples(st.just("settle"), st.integers(0, 30)),
)


@settings(max_examples=500, deadline=None)
@given(steps=st.lists(leaf_step, max_size=20))
def test_a_leaf_is_distrusted_and_no_other(steps: list[tuple[str, int]]) -> None:
    """Rule leaves. What is loaded of a leaf is held then; what was not loaded stays so; neighbours are left alone."""
    state = LoadState()
    model: dict[tuple[int, int], int | None] = dict.fromkeys(ROWS)
    held: set[tuple[int, int]] = set()
    lsn = 0
    for what, number in steps:
        lsn += 1
        if what == "load" and (missing := state.next_missing()) is not None:
            lower, upper = missing[0], missing[1].upper
            low = None if lower is None else (pair_order(lower[0]), lower[1])
            high = None if upper is None else (pair_order(upper[0]), upper[1])
            inside = [row for row in ROWS if (low is None or (row, 1) > low) and (high is None or (row, 1) <= high)]
            row = ROWS[number]
            end = upper
            if row in inside:
                end = ((str(row[0]), str(row[1])), 1)
                inside = [one for one in inside if one <= row]
            state = state.loaded(lower, end, lsn)
            model.update(dict.fromkeys(inside, lsn))
            held -= set(inside)
        elif what == "forget":
            leaf, k = ROWS[number]
            if model[leaf, k] is not None:
                model[leaf, k] = None
            state = state.forget([(str(leaf), str(k))], pair_order)
        elif what == "leaf":
            lower, upper = leaf_bounds(number)
            loaded = {row for row in ROWS if row[0] == number and model[row] is not None}
            overlapping = state.overlapping(lower, upper, pair_order)
            assert any(one.lsn is not None for one in overlapping) or not loaded
            state = state.distrust(lower, upper, pair_order)
            model.update(dict.fromkeys(loaded))
            held |= loaded
            assert all(one.lsn is None for one in state.overlapping(lower, upper, pair_order))
        else:
            state = state.settled(number)
        assert LoadState.parse(state.dump()) == state
        assert state.intervals[-1].upper is None
        for row in ROWS:
            interval = state.intervals[state.find((str(row[0]), str(row[1])), pair_order)]
            assert (interval.lsn is None) == (model[row] is None), row
            assert interval.held or row not in held, row
    bounds = [(pair_order(one.upper[0]), one.upper[1]) for one in state.intervals if one.upper is not None]
    assert bounds == sorted(set(bounds))
