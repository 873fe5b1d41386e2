"""What is read ahead comes in order, and whoever stops taking it is not kept waiting."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial

import pytest

from icelake.sources.postgres.copy_out import Ahead, GivenUp

Wanted = Callable[[], bool]


def numbers(count: int, made: list[int], wanted: Wanted) -> Generator[int, None, None]:
    for number in range(count):
        made.append(number)
        yield number


def waiting(wanted: Wanted) -> Generator[int, None, None]:
    """As one that waits for a server which sends nothing."""
    while wanted():
        time.sleep(0.01)
    raise GivenUp
    yield 0


def test_items_come_in_order_and_few_are_ahead() -> None:
    made: list[int] = []
    with closing(Ahead(partial(numbers, 100, made))) as items:
        assert next(items) == 0
        time.sleep(0.1)
        assert len(made) < 10
        assert list(items) == list(range(1, 100))
        with pytest.raises(StopIteration):
            next(items)


def test_what_ends_the_reading_is_raised_where_it_is_taken_and_again() -> None:
    def failing(wanted: Wanted) -> Generator[int, None, None]:
        yield 1
        raise KeyError("gone")

    with closing(Ahead(failing)) as items:
        assert next(items) == 1
        with pytest.raises(KeyError):
            next(items)
        assert list(items) == []


@pytest.mark.timeout(20)
def test_who_stops_taking_is_not_kept_waiting() -> None:
    threads = threading.active_count()
    made: list[int] = []
    full = Ahead(partial(numbers, 100, made))
    assert next(full) == 0
    full.close()
    idle = Ahead(waiting)
    idle.close()

    def within(wanted: Wanted) -> Generator[int, None, None]:
        with closing(Ahead(waiting, wanted)) as items:
            yield from items

    nested = Ahead(within)
    time.sleep(0.1)
    nested.close()
    assert threading.active_count() == threads
    assert len(made) < 10
