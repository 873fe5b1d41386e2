"""How old is what a reader of the lake sees? Measured, not derived.

A heartbeat updates one row of PostgreSQL some times a second and notes when it sent each beat. A reader asks the lake for that row
with an ordinary query at the latest cut, over and over. A beat's freshness is the time from *sending* its transaction (so the
commit can only be later) until the first answer that holds it or a later beat has *arrived*: commit, capture, apply, commit to
Iceberg and the query are all in it. Beats sent before the first whole cut was readable belong to the load and are left out.
"""

import threading
import time
from collections.abc import Sequence


class Freshness:
    """Beats sent and seen. Times are ``time.monotonic()``. Safe for one sender, one reader and any number who look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: list[float] = []
        self._seen = 0
        self._counting_from: int | None = None
        self._ages: list[float] = []

    def next_beat(self) -> int:
        """The number of the beat that is sent now: 1, 2, ..."""
        with self._lock:
            self._sent.append(time.monotonic())
            return len(self._sent)

    def saw(self, beat: int) -> None:
        """A query has just answered ``beat``."""
        now = time.monotonic()
        with self._lock:
            if self._counting_from is None:
                self._counting_from = len(self._sent)
            first = max(self._seen, self._counting_from)
            self._ages.extend(now - sent for sent in self._sent[first:beat])
            self._seen = max(self._seen, beat)

    @property
    def samples(self) -> int:
        return len(self._ages)

    def recent(self, count: int) -> Sequence[float]:
        """The freshness of the last ``count`` beats seen, in seconds."""
        with self._lock:
            return self._ages[-count:]

    def lag(self) -> float | None:
        """Seconds since the oldest beat that is not seen yet was sent; None before the first answer."""
        with self._lock:
            if self._counting_from is None:
                return None
            return time.monotonic() - self._sent[self._seen] if self._seen < len(self._sent) else 0.0

    def percentile(self, part: float, first: int = 0) -> float | None:
        """Nearest rank, in seconds, over the samples from the ``first`` on; None without any."""
        with self._lock:
            ages = sorted(self._ages[first:])
        return ages[min(len(ages) - 1, int(part * len(ages)))] if ages else None
