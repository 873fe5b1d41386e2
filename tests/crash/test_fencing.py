"""Two processes on one source at once: the lock says so kindly; where it does not reach, the fence lets only one of them commit.

docs/protocol.md, One owner. The lock lies in the lake's folder, so a process that looks for it elsewhere is what another machine over
a shared folder would be. A zombie is a process that was stopped (SIGSTOP) for so long that another took over, and then goes on.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from icelake.stack.postgres import Postgres
from tests.crash.shop import Lake, Trader, lake, make_tables
from tests.provoked import said

pytestmark = pytest.mark.crash

ELSEWHERE = """
import os, signal, sys
from pathlib import Path
from icelake import cli, lakehouse
from icelake.observe.desk import SqliteDesk

STOP_AT = int(os.environ.get("STOP_AT", "0"))

class Elsewhere(lakehouse.Lakehouse):
    "A lakehouse that does not find the lock; it may stop before it sends one of its commits."

    def __init__(self, project):
        super().__init__(project)
        send, self._sent = self._catalog.commit, 0
        def commit(changes):
            self._sent += 1
            if self._sent == STOP_AT:
                os.kill(os.getpid(), signal.SIGSTOP)
            return send(changes)
        self._catalog.commit = commit

    def _desk(self, source):
        return SqliteDesk(Path(os.environ["DESK"]) / f"{source}.db")

lakehouse.Lakehouse = Elsewhere
sys.exit(cli.main(sys.argv[1:]))
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


def walsenders_wait(server: Postgres, how_long: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"alter system set wal_sender_timeout = '{how_long}'")
        connection.execute("select pg_reload_conf()")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as running:
        make_tables(running)
        # A walsender whose client is stopped is given up after this time; until then nobody else gets the slot.
        walsenders_wait(running, "3s")
        yield running


@pytest.fixture
def running() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes of a test, all gone at its end."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def elsewhere(server: Postgres, tmp_path: Path, running: list["subprocess.Popen[bytes]"]) -> Start:
    """``sync --follow`` of the lake by a process with a desk of its own."""
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)

    def start(stop_at: int = 0, fault: str | None = None) -> "subprocess.Popen[bytes]":
        desk = tmp_path / f"desk{len(running)}"
        desk.mkdir()
        more = {"CRASH_DSN": server.dsn, "DESK": str(desk), "STOP_AT": str(stop_at), **({"ICELAKE_FAULT": fault} if fault else {})}
        process = subprocess.Popen(
            [sys.executable, script, "sync", "--follow", "--json", "-C", tmp_path / "project"],
            env={**os.environ, **more, "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        running.append(process)
        return process

    return start


def committed(process: "subprocess.Popen[bytes]", commits: int) -> Any:
    """Read what it reports until it has made so many commits."""
    assert process.stdout is not None
    for line in process.stdout:
        status = orjson.loads(line)
        if status.get("commits", 0) >= commits:
            return status
    assert process.stderr is not None
    raise AssertionError(f"it ended with {process.wait()}: {process.stderr.read().decode()[-2000:]}")


def fenced(process: "subprocess.Popen[bytes]") -> None:
    """It ends by itself: exit code 4 and FENCED, which says that nothing is lost."""
    assert process.stdout is not None
    assert process.stderr is not None
    lines = process.stdout.read().splitlines()
    err = process.stderr.read().decode()
    assert process.wait() == 4, (lines[-1:], err)
    error = orjson.loads(said(lines[-1].decode()))["error"]
    assert error["code"] == "FENCED", error
    assert "nothing is lost" in error["fix"]
    assert "Traceback" not in err


def stopped(process: "subprocess.Popen[bytes]") -> None:
    """Until it has stopped itself."""
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert process.poll() is None
        time.sleep(0.02)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out.splitlines()[-1:], err.decode()[-2000:])


def equal(lake: Lake) -> None:
    code, report = lake.run("verify")
    assert report.get("equal"), report
    assert code == 0
    assert len(report["tables"]) == 3


def epoch(lake: Lake) -> int:
    _, status = lake.run("status")
    return int(status["sources"][0]["epoch"])


def test_the_lock_names_the_one_that_runs(server: Postgres, tmp_path: Path, running: list["subprocess.Popen[bytes]"]) -> None:
    with lake(tmp_path / "project", server) as one, Trader(server.dsn):
        first = one.start("sync", "--follow")
        running.append(first)
        before = committed(first, 1)["epoch"]
        for command in (("sync", "--follow"), ("sync",)):
            code, document = one.run(*command)
            assert (code, document["error"]["code"]) == (4, "ALREADY_RUNNING")
            assert f"pid {first.pid}" in document["error"]["what"]
            assert "icelake status" in document["error"]["fix"]
        assert epoch(one) == before
        equal(one)
        end(first)
        equal(one)


def test_the_second_takes_over_and_the_first_is_fenced(server: Postgres, tmp_path: Path, elsewhere: Start) -> None:
    """Again and again, each newcomer fences the one before."""
    with lake(tmp_path / "project", server) as one, Trader(server.dsn):
        first = elsewhere()
        before = committed(first, 2)["epoch"]
        for _ in range(2):
            second = elsewhere()
            fenced(first)
            assert committed(second, 2)["epoch"] == before + 1
            first, before = second, before + 1
        end(first)
        equal(one)


@pytest.mark.parametrize("number", [2, 3, 9])
def test_a_zombie_in_the_middle_of_a_commit(server: Postgres, tmp_path: Path, elsewhere: Start, number: int) -> None:
    """It wakes up with everything written and the request on its lips: at the first position, a range, and batches."""
    with lake(tmp_path / "project", server) as one, Trader(server.dsn):
        zombie = elsewhere(stop_at=number)
        stopped(zombie)
        second = elsewhere()
        before = committed(second, 2)["epoch"]
        zombie.send_signal(signal.SIGCONT)
        fenced(zombie)
        assert committed(second, 1)["epoch"] == before
        end(second)
        equal(one)


def test_a_zombie_wakes_up_after_its_successor_was_killed(server: Postgres, tmp_path: Path, elsewhere: Start) -> None:
    with lake(tmp_path / "project", server) as one, Trader(server.dsn):
        zombie = elsewhere(stop_at=8)
        stopped(zombie)
        for fault in ("catalog.commit:after:4", "storage.flush:before:4", "stream.confirm:before:2"):
            successor = elsewhere(fault=fault)
            successor.communicate(timeout=90)
            assert successor.returncode == -signal.SIGKILL
        zombie.send_signal(signal.SIGCONT)
        fenced(zombie)
        equal(one)


def test_stopped_anywhere_and_woken_while_others_are_killed(server: Postgres, tmp_path: Path, elsewhere: Start) -> None:
    with lake(tmp_path / "project", server) as one, Trader(server.dsn):
        for round_ in range(2):
            zombie = elsewhere()
            committed(zombie, 1 + round_)
            time.sleep(0.03 * round_)
            zombie.send_signal(signal.SIGSTOP)
            second = elsewhere()
            committed(second, 2)
            zombie.send_signal(signal.SIGCONT)
            fenced(zombie)
            second.kill()
        equal(one)


def test_a_zombie_that_still_holds_the_slot_is_named(server: Postgres, tmp_path: Path, elsewhere: Start) -> None:
    """Its connection lives as long as the server lets it; the next step of SLOT_IN_USE ends it at once."""
    with psycopg.connect(server.dsn, autocommit=True) as connection, lake(tmp_path / "project", server) as one:
        walsenders_wait(server, "0")
        try:
            zombie = elsewhere(stop_at=7)
            with Trader(server.dsn):
                stopped(zombie)
            code, document = one.run("sync")
            assert (code, document["error"]["code"]) == (4, "SLOT_IN_USE")
            assert "pg_terminate_backend" in document["error"]["fix"]
            connection.execute("select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where active")
            equal(one)
            zombie.send_signal(signal.SIGCONT)
            fenced(zombie)
        finally:
            walsenders_wait(server, "3s")
