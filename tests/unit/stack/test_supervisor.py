"""The supervisor and its watchdog, with small programs in the part of the service."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from icelake.errors import Refused, Unreachable
from icelake.stack.supervisor import Supervisor

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def start(supervisor: Supervisor, folder: Path, script: str, **more: object) -> int:
    return supervisor.start(["/bin/sh", "-c", script], log=folder / "log", env=ENVIRONMENT, cwd=folder, **more)  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_reports_how_the_service_ended(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        assert supervisor.poll() is None
        start(supervisor, tmp_path, "echo out; echo err >&2; exit 3")
        assert supervisor.wait(30) == 3
        assert supervisor.log_tail().split() == ["out", "err"]
        pid = start(supervisor, tmp_path, "sleep 60")
        os.kill(pid, signal.SIGKILL)
        assert supervisor.wait(30) == -signal.SIGKILL


def test_a_signal_right_after_the_start_is_not_lost(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        for _ in range(20):
            start(supervisor, tmp_path, "exec sleep 60")
            assert supervisor.stop(((signal.SIGTERM, 30.0),)) == -signal.SIGTERM


def test_a_deaf_service_gets_the_next_signal(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        start(supervisor, tmp_path, "trap '' TERM; echo deaf; while :; do sleep 0.05; done")
        supervisor.wait_until(lambda: "deaf" in supervisor.log_tail(), 30)
        assert supervisor.stop(((signal.SIGTERM, 0.1), (signal.SIGKILL, 10.0))) == -signal.SIGKILL


def test_what_a_service_leaves_behind_is_ended(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        start(supervisor, tmp_path, "setsid sleep 60 & setsid sh -c 'sleep 60 & sleep 60' & echo $!; wait")
        supervisor.wait_until(lambda: bool(supervisor.log_tail()), 30)
        orphan = int(supervisor.log_tail().split()[0])
        assert not gone(orphan)
        supervisor.stop()
        assert gone(orphan)


def test_one_service_at_a_time_and_another_after_it(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        start(supervisor, tmp_path, "sleep 60")
        with pytest.raises(Refused, match=r"(?s)WATCHDOG_FAILED.*still running"):
            start(supervisor, tmp_path, "sleep 60")
        supervisor.stop()
        start(supervisor, tmp_path, "exit 0")
        assert supervisor.wait(30) == 0


def test_health_says_why_not(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        start(supervisor, tmp_path, "echo no space left; exit 1")
        with pytest.raises(Unreachable, match=r"(?s)SERVICE_ENDED.*no space left"):
            supervisor.wait_until(lambda: False, 30)
        start(supervisor, tmp_path, "sleep 60")
        with pytest.raises(Unreachable, match=r"SERVICE_TIMEOUT.*within 0\.05 s"):
            supervisor.wait_until(lambda: False, 0.05)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with Supervisor() as supervisor:
        supervisor.start(["/no/such/program"], log=tmp_path / "log", env={}, cwd=tmp_path)
        assert supervisor.wait(30) == 127
        assert "could not run /no/such/program" in supervisor.log_tail()


def test_the_log_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with Supervisor() as supervisor, pytest.raises(Refused, match="symbolic link"):
        start(supervisor, tmp_path, "echo harm")
    assert (tmp_path / "precious").read_text() == ""


def test_folders_go_at_the_end_and_links_are_not_followed(tmp_path: Path) -> None:
    kept, temporary = tmp_path / "kept", tmp_path / "temporary"
    kept.mkdir()
    temporary.mkdir()
    (kept / "file").write_text("stays")
    (temporary / "link").symlink_to(kept)
    supervisor = Supervisor()
    supervisor.remove_at_end(temporary)
    supervisor.close()
    supervisor.close()
    assert not temporary.exists()
    assert (kept / "file").exists()


def test_an_interrupted_wait_does_not_mix_up_replies(tmp_path: Path) -> None:
    """Ctrl-C while a reply is under way: the next question must not get the old answer."""
    with Supervisor() as supervisor:
        start(supervisor, tmp_path, "trap '' TERM; echo deaf; while :; do sleep 0.05; done")
        supervisor.wait_until(lambda: "deaf" in supervisor.log_tail(), 30)
        heard = threading.Event()

        def press() -> None:
            # As people do if nothing happens: it is lost where it meets what may not raise (a finalizer, say).
            while not heard.wait(1.0):
                os.kill(os.getpid(), signal.SIGINT)

        def stop() -> None:
            try:
                supervisor.stop(((signal.SIGTERM, 8.0),))
            finally:
                heard.set()

        finger = threading.Thread(target=press)
        finger.start()
        with pytest.raises(KeyboardInterrupt):
            stop()
        finger.join()
        assert supervisor.poll() is None
        assert supervisor.stop(((signal.SIGKILL, 10.0),)) == -signal.SIGKILL


def test_a_killed_watchdog_is_noticed_and_takes_the_service_along(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with Supervisor() as supervisor:
        supervisor.remove_at_end(temporary)
        pid = start(supervisor, tmp_path, "exec sleep 60")
        os.kill(supervisor._process.pid, signal.SIGKILL)
        supervisor._process.wait()
        with pytest.raises(Refused, match="WATCHDOG_GONE"):
            supervisor.poll()
    deadline = time.monotonic() + 30
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not temporary.exists()


def test_a_terminated_watchdog_cleans_up(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with Supervisor() as supervisor:
        supervisor.remove_at_end(temporary)
        pid = start(supervisor, tmp_path, "sleep 60")
        supervisor._process.terminate()
        supervisor._process.wait(30)
        assert gone(pid)
        assert not temporary.exists()


def test_needs_only_the_standard_library() -> None:
    assert (
        "icelake"
        not in (Path(sys.modules["icelake.stack.supervisor"].__file__ or "").with_name("watchdog.py")).read_text().split('"""', 2)[2]
    )
