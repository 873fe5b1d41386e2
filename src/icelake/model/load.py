"""Load state: which key ranges of a table are in the lake, and from which LSN on each follows the stream.

The key space is cut into consecutive intervals, each named by its upper bound. An interval is loaded at a consistent point L,
or not loaded yet. An interval that is not loaded may be *held*: the lake has rows of it that are no longer trusted, and to load it is
to compare them with the source and mend what differs. A streamed change to a key is admitted only if its interval is loaded and its
commit LSN is >= L (docs/protocol.md, Load, join, repair). A bound is ``(key, 1)`` "through key" or ``(key, 0)`` "just before key",
so a single key can be an interval of its own: that is how one row is repaired. The last bound is always None: the end of the key space.
Keys are tuples of PostgreSQL's text for each key column; ordering them is the caller's business (``order``). A tuple that is a
prefix of keys sorts before them: so the rows of one leaf of a partitioned table, whose key begins with the leaf's OID, are an interval.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from icelake.model.lsn import format_lsn, parse_lsn

Key = tuple[str, ...]
Bound = tuple[Key, int]
Order = Callable[[Key], Any]
"""Maps a key to something Python orders as the source orders the key."""


@dataclass(frozen=True, slots=True)
class Interval:
    upper: Bound | None
    lsn: int | None
    """The consistent point L it was read at; None: not loaded."""
    held: bool = False
    """Not loaded, and the lake may have rows of it."""


@dataclass(frozen=True, slots=True)
class LoadState:
    """Consecutive intervals in key order, the last with ``upper=None``. Immutable; every change gives a new one."""

    intervals: tuple[Interval, ...] = (Interval(None, None),)

    @property
    def complete(self) -> bool:
        return all(interval.lsn is not None for interval in self.intervals)

    @property
    def whole_from(self) -> int:
        """The first position at which the table is consistent with others: the largest L. Needs ``complete``."""
        return self.newest

    @property
    def newest(self) -> int:
        """The largest L: no row came from a later state of the source. 0 if nothing is loaded."""
        return max(interval.lsn or 0 for interval in self.intervals)

    @staticmethod
    def suspect() -> "LoadState":
        """The lake has rows, and none of them is trusted."""
        return LoadState((Interval(None, None, held=True),))

    def next_missing(self) -> tuple[Bound | None, Interval] | None:
        """The first interval that is not loaded and what it begins after (None: the start of the key space), or None."""
        lower: Bound | None = None
        for interval in self.intervals:
            if interval.lsn is None:
                return lower, interval
            lower = interval.upper
        return None

    def loaded(self, lower: Bound | None, upper: Bound | None, lsn: int) -> "LoadState":
        """The first part of a missing interval, from ``lower`` to ``upper``, is now in the lake as of ``lsn``."""
        out: list[Interval] = []
        previous: Bound | None = None
        done = False
        for interval in self.intervals:
            if not done and previous == lower and interval.lsn is None:
                out.append(Interval(upper, lsn))
                if upper != interval.upper:
                    out.append(interval)
                done = True
            else:
                out.append(interval)
            previous = interval.upper
        if not done:
            raise ValueError(f"no missing interval starts at {lower}")
        return LoadState(tuple(out))

    def forget(self, keys: Sequence[Key], order: Order) -> "LoadState":
        """Make each key an interval of its own that is not loaded: its row will be read again from the source."""
        intervals = list(self.intervals)
        for key in keys:
            at = self._find(intervals, key, order)
            whole = intervals[at]
            if whole.lsn is None:
                continue
            before = intervals[at - 1].upper if at else None
            parts = [Interval((key, 0), whole.lsn), Interval((key, 1), None), whole]
            if before == (key, 0):
                parts = parts[1:]
            if whole.upper == (key, 1):
                parts = parts[:-1]
            intervals[at : at + 1] = parts
        return LoadState(tuple(intervals))

    def distrust(self, lower: Bound, upper: Bound, order: Order) -> "LoadState":
        """What is between the bounds is held and not loaded, but for intervals that are not loaded and reach beyond them."""

        def place(bound: Bound | None) -> tuple[bool, Any, int]:
            return (True, None, 0) if bound is None else (False, order(bound[0]), bound[1])

        out: list[Interval] = []
        start, low, high = None, place(lower), place(upper)
        for interval in self.intervals:
            end = place(interval.upper)
            inside = start is not None and start >= low and end <= high
            if end <= low or (start is not None and start >= high) or (interval.lsn is None and not inside):
                out.append(interval)
            else:
                if start is None or start < low:
                    out.append(Interval(lower, interval.lsn))
                out.append(Interval(upper if end > high else interval.upper, None, held=True))
                if end > high:
                    out.append(interval)
            start = end
        return LoadState(tuple(_joined(out)))

    def settled(self, position: int) -> "LoadState":
        """Join neighbours whose L the stream has passed: their L no longer decides anything."""
        out: list[Interval] = []
        for interval in self.intervals:
            settled = interval.lsn is not None and interval.lsn <= position
            if settled and out and out[-1].lsn is not None and out[-1].lsn <= position:
                out[-1] = Interval(interval.upper, max(out[-1].lsn, interval.lsn or 0))
            else:
                out.append(interval)
        return LoadState(tuple(out))

    def find(self, key: Key, order: Order) -> int:
        """The number of the interval that holds ``key``."""
        return self._find(self.intervals, key, order)

    @staticmethod
    def _find(intervals: Sequence[Interval], key: Key, order: Order) -> int:
        # (key, 1) is the smallest bound that includes the key: the first bound >= it ends the key's interval.
        inner = [interval.upper for interval in intervals if interval.upper is not None]
        return bisect_left(inner, (order(key), 1), key=lambda bound: (order(bound[0]), bound[1]))

    def overlapping(self, lower: Bound, upper: Bound, order: Order) -> list[Interval]:
        """The intervals that hold a part of what is between the bounds."""
        low, high = (order(lower[0]), lower[1]), (order(upper[0]), upper[1])
        out, start = [], None
        for interval in self.intervals:
            end = None if interval.upper is None else (order(interval.upper[0]), interval.upper[1])
            if (end is None or end > low) and (start is None or start < high):
                out.append(interval)
            start = end
        return out

    def dump(self) -> str:
        """JSON for the table property ``icelake.load``."""
        return json.dumps(
            [
                [
                    list(i.upper[0]) if i.upper else None,
                    i.upper[1] if i.upper else None,
                    None if i.lsn is None else format_lsn(i.lsn),
                    *([True] if i.held else []),
                ]
                for i in self.intervals
            ],
            separators=(",", ":"),
        )

    @staticmethod
    def parse(text: str) -> "LoadState":
        """The inverse of ``dump``. Raises ValueError or TypeError on anything else."""
        return LoadState(
            tuple(
                Interval(None if key is None else (tuple(key), flag), None if lsn is None else parse_lsn(lsn), *held)
                for key, flag, lsn, *held in json.loads(text)
            )
        )


def leaf_bounds(leaf: int) -> tuple[Bound, Bound]:
    """Between which bounds the rows of a leaf are, in a table whose key begins with the leaf's OID."""
    return ((str(leaf),), 0), ((str(leaf + 1),), 0)


def _joined(intervals: Sequence[Interval]) -> list[Interval]:
    """Neighbours that are not loaded and alike are one: they can be read in one range."""
    out: list[Interval] = []
    for interval in intervals:
        if out and interval.lsn is None and out[-1].lsn is None and interval.held == out[-1].held:
            out[-1] = interval
        else:
            out.append(interval)
    return out
