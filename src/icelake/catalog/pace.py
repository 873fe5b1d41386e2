"""Who lost a race for a table is told so one after the other, not all at once.

When one of many writers commits, all others have worked in vain. Told at once, all load the table and try again, one wins, and the others
have worked in vain again: with eight writers five requests of six. So the first is told at once, and each further one later by the time
that a commit to the table takes at present; alone, nobody waits. The limit of what writers can do is then their own work, not their
number. Waits at most ``LONGEST`` seconds, holds no thread, and knows nothing that a lost process would lose.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass

LONGEST = 0.2
_SHORTEST, _SLOWEST = 0.001, 0.05
"""Seconds between two who are told."""
_WEIGHT = 0.2
"""Of the newest commit in the mean."""
_TABLES = 10_000
"""Remembered; of others nothing is known."""


@dataclass(slots=True)
class _Table:
    apart: float = _SHORTEST
    """Seconds between commits, of late."""
    committed: float = 0.0
    told: float = 0.0
    """When the last one is told."""


class Pace:
    """``now`` is in seconds, of one clock that does not go back. For one thread."""

    def __init__(self) -> None:
        self._tables: OrderedDict[str, _Table] = OrderedDict()

    def committed(self, table: str, now: float | None = None) -> None:
        """Somebody won."""
        now = time.monotonic() if now is None else now
        one = self._of(table)
        one.apart += _WEIGHT * (min(max(now - one.committed, _SHORTEST), _SLOWEST) - one.apart)
        one.committed = now

    def wait(self, table: str, now: float | None = None) -> float:
        """Somebody lost: in how many seconds he is told."""
        now = time.monotonic() if now is None else now
        one = self._of(table)
        one.told = max(now, min(one.told + one.apart, now + LONGEST))
        return one.told - now

    def _of(self, table: str) -> _Table:
        found = self._tables.setdefault(table, _Table())
        self._tables.move_to_end(table)
        if len(self._tables) > _TABLES:
            self._tables.popitem(last=False)
        return found
