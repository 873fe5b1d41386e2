"""Losers of a race are told one after the other, and nobody waits alone."""

from itertools import pairwise

from icelake.catalog.pace import LONGEST, Pace


def test_who_is_alone_does_not_wait() -> None:
    pace = Pace()
    for at in range(10, 20):
        assert pace.wait("shop.t", float(at)) == 0.0
        pace.committed("shop.t", at + 0.5)


def test_those_who_come_together_are_told_a_commit_apart() -> None:
    pace = Pace()
    for number in range(100):
        pace.committed("shop.t", 10 + number / 100)
    waits = [pace.wait("shop.t", 11.0) for _ in range(5)]
    assert waits[0] == 0.0
    apart = [later - earlier for earlier, later in pairwise(waits)]
    assert all(0.009 < one < 0.011 for one in apart)
    assert pace.wait("shop.other", 11.0) == 0.0


def test_nobody_waits_for_long() -> None:
    pace = Pace()
    for number in range(100):
        pace.committed("shop.t", float(number))
    assert max(pace.wait("shop.t", 200.0) for _ in range(1000)) <= LONGEST + 1e-9
