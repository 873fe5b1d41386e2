"""Agreeing on an LSN with an applier that answers, is slow, or is gone. The desk is real; the applier's side is played by the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from icelake.catalog.store import SqlCatalog
from icelake.errors import Unreachable
from icelake.observe.clock import SystemChance, SystemClock
from icelake.observe.desk import SqliteDesk
from icelake.storage.local import LocalStorage
from icelake.verify.handshake import AtDesk


class Applier(SqliteDesk):
    """The desk, at which somebody answers as he was told whenever verify looks."""

    grants = True
    answers = True
    cut = 7
    lease = ""

    def hold_state(self, request: str):
        wanted = self.hold_wanted()
        if wanted is not None and self.grants:
            self.hold_granted(wanted.id)
            if wanted.lsn is not None and self.answers:
                self.hold_answered(wanted.id, self.cut, self.lease)
        return super().hold_state(request)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Applier]:
    made = Applier(tmp_path / "desk.db")
    yield made
    made.close()


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqlCatalog]:
    storage = LocalStorage()
    made = SqlCatalog.sqlite(str(tmp_path / "catalog.db"), str(tmp_path / "warehouse"), storage, SystemClock(), SystemChance())
    yield made
    made.close()
    storage.close()


@pytest.fixture
def handshake(desk: Applier, catalog: SqlCatalog) -> AtDesk:
    desk.lease = catalog.lease("applier", {}, 60).id
    return AtDesk(desk, catalog, grant=0.05, hold=60, answer=0.05, poll=0.005)


def test_an_answer_is_a_cut_and_a_lease_that_the_caller_keeps(desk: Applier, catalog: SqlCatalog, handshake: AtDesk) -> None:
    handshake.hold()
    assert handshake.cut_at(42) == (7, desk.lease)
    handshake.withdraw()
    assert [lease.id for lease in catalog.leases()] == [desk.lease]


def test_an_applier_that_does_not_hold_is_an_error_and_the_request_is_taken_back(desk: Applier, handshake: AtDesk) -> None:
    desk.grants = False
    with pytest.raises(Unreachable, match="VERIFY_APPLIER_SILENT"):
        handshake.hold()
    assert desk.hold_wanted() is not None
    handshake.withdraw()
    handshake.withdraw()
    assert desk.hold_wanted() is None


def test_the_lease_of_an_answer_that_comes_too_late_is_let_go(desk: Applier, catalog: SqlCatalog, handshake: AtDesk) -> None:
    handshake.hold()
    wanted = desk.hold_wanted()
    assert wanted is not None
    desk.answers = False
    with pytest.raises(Unreachable, match="VERIFY_APPLIER_SILENT"):
        handshake.cut_at(42)
    desk.hold_answered(wanted.id, 7, desk.lease)
    handshake.withdraw()
    assert list(catalog.leases()) == []


def test_an_applier_that_gave_up_is_noticed_at_once(desk: Applier, handshake: AtDesk) -> None:
    handshake.hold()
    wanted = desk.hold_wanted()
    assert wanted is not None
    desk.withdraw(wanted.id)
    with pytest.raises(Unreachable, match="VERIFY_APPLIER_SILENT"):
        handshake.cut_at(42)
