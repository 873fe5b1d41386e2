"""The desk: requests for a cut between two processes, one owner a source, reports."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from icelake.errors import Refused, Unreachable
from icelake.observe import desk as desk_module
from icelake.observe.desk import Hold, SqliteDesk
from icelake.ports import HoldRequest


@pytest.fixture
def applier(tmp_path: Path) -> Iterator[SqliteDesk]:
    desk = SqliteDesk(tmp_path / "shop.db")
    yield desk
    desk.close()


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[SqliteDesk]:
    desk = SqliteDesk(tmp_path / "shop.db")
    yield desk
    desk.close()


def child(path: Path, program: str) -> subprocess.Popen[str]:
    start = f"import sys, time\nfrom icelake.observe.desk import SqliteDesk\ndesk = SqliteDesk({str(path)!r})\n"
    return subprocess.Popen([sys.executable, "-c", start + program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def test_a_request_from_asking_to_the_answer(applier: SqliteDesk, asker: SqliteDesk) -> None:
    assert applier.hold_wanted() is None
    request = asker.request_hold(60)
    assert asker.hold_state(request) == Hold("wanted", None, None, None)
    assert applier.hold_wanted() == HoldRequest(request, None)
    applier.hold_granted(request)
    assert asker.hold_state(request).state == "granted"
    assert applier.hold_wanted() == HoldRequest(request, None)
    asker.set_hold_lsn(request, (1 << 64) - 1)
    assert applier.hold_wanted() == HoldRequest(request, (1 << 64) - 1)
    applier.hold_answered(request, 77, "lease")
    assert asker.hold_state(request) == Hold("answered", (1 << 64) - 1, 77, "lease")
    assert applier.hold_wanted() is None
    asker.withdraw(request)
    assert asker.hold_state(request).state == "answered"


def test_the_oldest_request_comes_first_and_a_withdrawn_one_never(applier: SqliteDesk, asker: SqliteDesk) -> None:
    first, second = asker.request_hold(60), asker.request_hold(60)
    assert applier.hold_wanted() == HoldRequest(first, None)
    asker.withdraw(first)
    assert applier.hold_wanted() == HoldRequest(second, None)
    applier.hold_answered(first, 1, "x")
    assert asker.hold_state(first).state == "withdrawn"
    asker.withdraw(second)
    assert applier.hold_wanted() is None


def test_one_object_may_ask_and_answer(applier: SqliteDesk) -> None:
    assert applier.hold_wanted() is None
    request = applier.request_hold(60)
    assert applier.hold_wanted() == HoldRequest(request, None)
    applier.set_hold_lsn(request, 5)
    assert applier.hold_wanted() == HoldRequest(request, 5)
    applier.hold_answered(request, 1, "x")
    assert applier.hold_wanted() is None


def test_a_deadline_ends_a_request_without_anybody_writing(applier: SqliteDesk, asker: SqliteDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asker.request_hold(60)
    assert applier.hold_wanted() is not None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert applier.hold_wanted() is None
    assert asker.hold_state(request).state == "over"
    # A clock that was set back does not keep it alive for hours.
    monkeypatch.setattr(time, "time", lambda: now - 7200)
    assert applier.hold_wanted() is None
    assert asker.hold_state("unknown").state == "over"


def test_a_killed_asker_stops_nobody(applier: SqliteDesk, tmp_path: Path) -> None:
    asker = child(tmp_path / "shop.db", "print(desk.request_hold(600), flush=True)\ntime.sleep(600)")
    assert asker.stdout is not None
    request = asker.stdout.readline().strip()
    assert applier.hold_wanted() == HoldRequest(request, None)
    os.kill(asker.pid, signal.SIGKILL)
    asker.communicate()
    assert applier.hold_wanted() is None


def test_polling_does_not_query(applier: SqliteDesk, asker: SqliteDesk) -> None:
    asker.request_hold(60)
    applier.hold_wanted()
    seen: list[str] = []
    assert applier._connection is not None
    applier._connection.set_trace_callback(seen.append)
    for _ in range(5):
        applier.hold_wanted()
    assert set(seen) == {"PRAGMA data_version"}


def test_one_owner_at_a_time(applier: SqliteDesk, asker: SqliteDesk, tmp_path: Path) -> None:
    assert asker.owner() is None
    with applier.own("shop"):
        assert asker.owner() == os.getpid()
        with pytest.raises(Refused, match=rf"pid {os.getpid()}\) is syncing source 'shop'") as caught, asker.own("shop"):
            pass
        assert caught.value.code == "ALREADY_RUNNING"
    assert asker.owner() is None
    with asker.own("shop"):
        pass
    owner = child(tmp_path / "shop.db", "with desk.own('shop'):\n    print('mine', flush=True)\n    time.sleep(600)")
    assert owner.stdout is not None
    owner.stdout.readline()
    assert asker.owner() == owner.pid
    with pytest.raises(Refused), asker.own("shop"):
        pass
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    assert asker.owner() is None
    with asker.own("shop"):
        pass


def test_who_only_looks_does_not_keep_an_owner_out(applier: SqliteDesk, tmp_path: Path) -> None:
    looker = child(tmp_path / "shop.db", "print('go', flush=True)\nwhile True:\n    desk.owner()")
    assert looker.stdout is not None
    looker.stdout.readline()
    for _ in range(20):
        with applier.own("shop"):
            pass
    os.kill(looker.pid, signal.SIGKILL)
    looker.communicate()


def test_reports(applier: SqliteDesk, asker: SqliteDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asker.latest_report() is None
    applier.report({"position": "0/1", "lag": 5})
    applier.report({"position": "0/2", "where": tmp_path})
    report = asker.latest_report()
    assert report is not None
    assert (report["position"], report["where"], report["pid"], report["alive"]) == ("0/2", str(tmp_path), os.getpid(), True)
    assert report["reported"].endswith("+00:00")
    other = child(tmp_path / "shop.db", "desk.report({'position': '0/3'})")
    other.communicate()
    assert [(one["position"], one["alive"]) for one in asker.reports()] == [("0/3", False), ("0/2", True)]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    applier.report({"position": "0/4"})
    assert [one["position"] for one in asker.reports()] == ["0/4"]


def test_a_damaged_desk_says_that_it_may_go(applier: SqliteDesk, tmp_path: Path) -> None:
    (tmp_path / "shop.db").write_bytes(b"nothing of the kind" * 300)
    with pytest.raises(Refused) as caught:
        applier.hold_wanted()
    assert caught.value.code == "DESK_UNUSABLE"
    assert "delete" in caught.value.fix
    with pytest.raises(Refused):
        SqliteDesk(tmp_path / "no" / "desk.db").owner()
    with pytest.raises(Refused):
        SqliteDesk(tmp_path / "no" / "desk.db").report({})


def test_a_busy_desk_is_temporary(applier: SqliteDesk, asker: SqliteDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "_BUSY_SECONDS", 0.01)
    applier.report({})
    assert applier._connection is not None
    applier._connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unreachable, match="DESK_BUSY"):
        asker.report({})
    applier._connection.execute("ROLLBACK")
    asker.report({})
