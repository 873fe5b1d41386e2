"""How verify and the applier agree on one LSN, with the applier in another process or in this one.

``hold`` comes before the source's snapshot is made: from then on no cut is made until the LSN is known. ``cut_at`` gives the cut
that holds exactly the commits before it, and a lease on its snapshots. ``withdraw`` takes everything back that was not used.
Every wait has an end: fails with Unreachable, and the applier then goes on by itself.
"""

import time
from collections.abc import Callable
from typing import Protocol

from icelake.errors import Unreachable
from icelake.ports import CatalogReader
from icelake.verify.lake import read_cut

LEASE_SECONDS = 600.0
"""Verify renews its lease long before this is over; a verify that was killed lets go after it."""


class Handshake(Protocol):
    def hold(self) -> None: ...

    def cut_at(self, lsn: int) -> tuple[int, str]:
        """(cut id, lease id); the caller releases the lease."""
        ...

    def withdraw(self) -> None:
        """After a failure or at the end: nothing stays held. May be called at any time, also twice."""
        ...


class HoldState(Protocol):
    """What became of a request."""

    @property
    def state(self) -> str:
        """``wanted``, ``granted`` or ``answered``; anything else: it is over."""
        ...

    @property
    def cut_id(self) -> int | None: ...

    @property
    def lease_id(self) -> str | None: ...


class AskingDesk(Protocol):
    """The asker's side of ``ports.Desk``."""

    def request_hold(self, deadline: float) -> str:
        """Ask; the applier forgets it after ``deadline`` seconds. Gives the request's id."""
        ...

    def set_hold_lsn(self, request: str, lsn: int) -> None: ...

    def hold_state(self, request: str) -> HoldState: ...

    def withdraw(self, request: str) -> None: ...


class AtDesk:
    """With an applier that runs in another process: word is left at the desk. All times in seconds."""

    def __init__(
        self,
        desk: AskingDesk,
        catalog: CatalogReader,
        *,
        grant: float = 30.0,
        hold: float = 180.0,
        answer: float = 60.0,
        poll: float = 0.02,
    ) -> None:
        self._desk = desk
        self._catalog = catalog
        self._grant = grant
        self._hold = hold
        self._answer = answer
        self._poll = poll
        self._request: str | None = None

    def hold(self) -> None:
        self._request = self._desk.request_hold(self._hold)
        self._wait("granted", self._grant, "the applier did not stop making cuts")

    def cut_at(self, lsn: int) -> tuple[int, str]:
        assert self._request is not None
        self._desk.set_hold_lsn(self._request, lsn)
        answer = self._wait("answered", self._answer, "the applier did not reach the LSN")
        self._request = None
        assert answer.cut_id is not None and answer.lease_id is not None
        return answer.cut_id, answer.lease_id

    def withdraw(self) -> None:
        if self._request is None:
            return
        request, self._request = self._request, None
        self._desk.withdraw(request)
        # The answer may have come just before: its lease is ours to let go.
        state = self._desk.hold_state(request)
        if state.state == "answered" and state.lease_id is not None:
            self._catalog.release(state.lease_id)

    def _wait(self, wanted: str, seconds: float, what: str) -> HoldState:
        assert self._request is not None
        deadline = time.monotonic() + seconds
        while True:
            state = self._desk.hold_state(self._request)
            if state.state == wanted:
                return state
            if state.state not in ("wanted", "granted") or time.monotonic() > deadline:
                raise Unreachable(
                    "VERIFY_APPLIER_SILENT",
                    f"{what} within {seconds:g} s",
                    "the process that syncs this source is busy, stuck or gone",
                    "look at `icelake status`; then run verify again",
                )
            time.sleep(self._poll)


class InProcess:
    """Without one: ``bring(lsn)`` brings the tables to exactly the commits before the LSN and gives the cut's id."""

    def __init__(self, bring: Callable[[int], int], catalog: CatalogReader) -> None:
        self._bring = bring
        self._catalog = catalog

    def hold(self) -> None:
        """Nobody makes cuts meanwhile: the caller owns the source."""

    def cut_at(self, lsn: int) -> tuple[int, str]:
        cut = self._bring(lsn)
        return cut, self._catalog.lease("verify", read_cut(self._catalog, cut).snapshots, LEASE_SECONDS).id

    def withdraw(self) -> None:
        """Nothing was asked of anybody."""
