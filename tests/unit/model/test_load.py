"""Load state: intervals of the key space, against a plain map of keys."""

from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.model.load import LoadState

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
