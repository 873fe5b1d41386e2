"""The supervised PostgreSQL: who it runs as, who may log in, and that nothing of it is left."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import icelake
from icelake.errors import ProjectError, Unreachable
from icelake.stack import postgres
from icelake.stack.binaries import Binaries, wheel
from icelake.stack.postgres import Postgres, server_user
from tests.conftest import every_version

QUICK = {"fsync": "off", "shared_buffers": "8MB"}
SOURCE = Path(icelake.__file__).parents[1]


@pytest.fixture(scope="module")
def server(binaries: Binaries) -> Iterator[Postgres]:
    with Postgres(version=binaries, settings=QUICK) as running:
        yield running


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            child = int(entry.parent.name)
            found += [child, *descendants(child)]
    return found


def wait_gone(pids: list[int], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids) or folder.exists():
        assert time.monotonic() < deadline, f"left behind: {[p for p in pids if alive(p)]}, {folder} {folder.exists()}"
        time.sleep(0.02)


@every_version
def test_is_a_source_for_logical_replication(server: Postgres) -> None:
    for dsn in (server.dsn, server.dsn_tcp, server.dsn_socket):
        with psycopg.connect(dsn) as connection:
            show = {
                name: connection.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
                for name in ("server_version", "wal_level", "max_replication_slots", "max_wal_senders", "data_checksums", "server_encoding")
            }
    assert show == {
        "server_version": server.binaries.release,
        "wal_level": "logical",
        "max_replication_slots": "20",
        "max_wal_senders": "20",
        "data_checksums": "on",
        "server_encoding": "UTF8",
    }


@every_version
def test_password_is_required(server: Postgres) -> None:
    for dsn in (server.dsn_tcp, server.dsn_socket):
        for wrong in ("", "guess"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(dsn.replace(server.password, wrong), passfile="/nonexistent").close()


@every_version
def test_password_is_on_no_command_line_and_in_no_file(server: Postgres) -> None:
    for pid in [server.pid, *descendants(os.getpid())]:
        assert server.password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    for file in (server.data.parent).rglob("*"):
        if file.is_file() and "programs" not in file.parts and "base" not in file.parts and "pg_wal" not in file.parts:
            assert server.password.encode() not in file.read_bytes(), file


@every_version
def test_runs_as_nobody_special_in_folders_of_its_own(server: Postgres) -> None:
    expected = server_user()[0] if os.geteuid() == 0 else os.geteuid()
    uids = Path(f"/proc/{server.pid}/status").read_text().split("Uid:")[1].split("\n")[0].split()
    assert {int(uid) for uid in uids} == {expected}
    for folder in (server.data, server.socket_folder):
        assert folder.stat().st_uid == expected
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not server.data.is_relative_to(SOURCE.parent)
    if os.geteuid() == 0:
        assert Path(f"/proc/{server.pid}/exe").resolve().is_relative_to(server.data.parent)


def test_two_at_once_go_with_their_folders(binaries: Binaries) -> None:
    with Postgres(version=binaries, settings=QUICK) as one, Postgres(version=binaries, settings=QUICK) as other:
        folders = [one.data.parent, other.data.parent]
        pids = [one.pid, other.pid, *descendants(one.pid), *descendants(other.pid)]
        assert one.port != other.port
        assert one.password != other.password
        with psycopg.connect(one.dsn) as a, psycopg.connect(other.dsn) as b:
            assert a.execute("SELECT 1").fetchone() == b.execute("SELECT 1").fetchone()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(one.dsn.replace(one.password, other.password)).close()
    assert not any(alive(pid) for pid in pids)
    assert not any(folder.exists() for folder in folders)


def test_goes_on_after_stop_crash_and_restart(binaries: Binaries) -> None:
    with Postgres(version=binaries, settings=QUICK) as server:
        with psycopg.connect(server.dsn) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS n")
        port = server.port
        backends = descendants(server.pid)
        server.kill9()
        assert not any(alive(pid) for pid in [server.pid, *backends])
        server.start()
        os.kill(server.pid, signal.SIGKILL)  # by someone else: its backends may still be there when we start
        while server.running:
            time.sleep(0.001)
        server.start()
        server.stop("immediate")
        server.start()
        server.restart(settings={"wal_level": "replica"})
        assert server.port == port
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (100,)
            assert connection.execute("SHOW wal_level").fetchone() == ("replica",)
        with pytest.raises(Unreachable, match=r'(?s)POSTGRES_START.*unrecognized configuration parameter "no_such_setting"'):
            server.restart(settings={"no_such_setting": "1"})


def test_lasting_folder_keeps_data_and_password() -> None:
    place = Path(tempfile.mkdtemp(prefix="icelake-test-", dir="/var/tmp" if os.geteuid() == 0 else None))
    place.chmod(0o711)
    before = place.stat()
    try:
        with Postgres(place, settings=QUICK) as server:
            with psycopg.connect(server.dsn) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
            password = server.password
        assert (place / "password").stat().st_mode & 0o777 == 0o600
        with Postgres(place, settings=QUICK) as again:
            assert again.password == password
            with psycopg.connect(again.dsn) as connection:
                assert connection.execute("SELECT n FROM kept").fetchone() == (7,)
        (place / "password").unlink()
        with pytest.raises(ProjectError, match="POSTGRES_NO_PASSWORD"):
            Postgres(place, settings=QUICK).start()
        after = place.stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    finally:
        subprocess.run(["rm", "-rf", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes user")
def test_a_folder_closed_to_the_server_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ProjectError, match="POSTGRES_FOLDER_CLOSED"):
        Postgres(closed).start()
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not list(closed.iterdir())


def test_a_database_that_cannot_be_made_says_why() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15 << 20, limits[1]))  # a segment of WAL has 16 MiB
    try:
        with pytest.raises(Unreachable, match="POSTGRES_INITDB"):
            Postgres(settings=QUICK).start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_folder_is_short_enough_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_SOCKET_PATH_LIMIT", 30)
    with pytest.raises(ProjectError, match=r"(?s)POSTGRES_NO_TEMP.*too long for a socket"):
        Postgres(settings=QUICK).start()


def test_a_standby_that_cannot_be_copied_says_why(server: Postgres) -> None:
    with pytest.raises(Unreachable, match=r"(?s)POSTGRES_BASEBACKUP.*replication slot name"):
        server.standby("not a name").start()


def test_port_in_use_is_said(server: Postgres) -> None:
    with pytest.raises(Unreachable, match="Address already in use"):
        Postgres(settings=QUICK, port=server.port).start()


CHILD = """
import os, sys, time
from icelake.stack.postgres import Postgres
server = Postgres(settings={"fsync": "off", "shared_buffers": "8MB"})
server.start()
how = sys.argv[1]
fork = os.fork() if how == "fork" else -1
if fork == 0:
    time.sleep(20)
    os._exit(0)
print(server.pid, os.stat(server.data).st_uid, fork, server.data.parent, flush=True)
if how in ("wait", "fork"):
    time.sleep(60)
elif how == "raise":
    raise RuntimeError("on purpose")
"""


def run_child(how: str, python: str = sys.executable, user: int | None = None) -> tuple[subprocess.Popen[str], int, int, int, Path]:
    """A process that starts a server and then does as told; the server's pid and uid, the pid it forked, the folder."""
    site = wheel("18").parent
    child = subprocess.Popen(
        [python, "-c", CHILD, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{SOURCE}:{site}", "TMPDIR": "/tmp"},
    )
    assert child.stdout is not None
    pid, uid, fork, folder = child.stdout.readline().split()
    return child, int(pid), int(uid), int(fork), Path(folder)


@pytest.mark.parametrize("how", ["wait", "fork"])
def test_ends_when_its_parent_is_killed(how: str) -> None:
    """Also when a process it forked still holds the pipe to the watchdog open."""
    child, pid, _, fork, folder = run_child(how)
    with child:
        below = [each for each in descendants(child.pid) if each != fork]
        assert pid in below
        child.kill()
        wait_gone(below, folder)
        if fork > 0:
            os.kill(fork, signal.SIGKILL)


def test_ends_when_its_parent_forgets_it() -> None:
    child, pid, _, _, folder = run_child("raise")
    with child:
        child.wait(30)
        wait_gone([pid], folder)


def test_ends_when_its_watchdog_is_killed() -> None:
    with Postgres(settings=QUICK) as server:
        folder, pids = server.data.parent, [server.pid, *descendants(server.pid)]
        status = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        os.kill(int(status[1]), signal.SIGKILL)
    wait_gone(pids, folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_runs_for_an_ordinary_user() -> None:
    uid = 65534
    interpreters = [sys.executable, sys._base_executable, "/usr/bin/python3", "/usr/local/bin/python3"]  # type: ignore[attr-defined]
    for python in interpreters:
        real = Path(python).resolve()
        if all(postgres._may_enter(p.parent, uid, uid) for p in (real, SOURCE / "icelake", wheel("18"))) and (
            subprocess.run([real, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode == 0
        ):
            break
    else:
        pytest.skip("the checkout or its Python lies where no other user may enter")
    child, pid, owner, _, folder = run_child("wait", str(real), uid)
    with child:
        assert owner == uid
        assert Path(f"/proc/{pid}/exe").resolve().is_relative_to(wheel("18"))
        child.kill()
        wait_gone([pid], folder)


@every_version
def test_a_standby_follows_and_is_promoted(server: Postgres) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as primary:
        primary.execute("CREATE TABLE t AS SELECT 1 AS n")
        with server.standby("sb") as standby:
            folder, password = standby.data.parent, standby.password
            primary.execute("INSERT INTO t VALUES (2)")
            with psycopg.connect(standby.dsn, autocommit=True) as reader:
                assert reader.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
                deadline = time.monotonic() + 30
                while reader.execute("SELECT count(*) FROM t").fetchone() != (2,):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            slots = primary.execute("SELECT slot_name, active FROM pg_replication_slots WHERE slot_type = 'physical'").fetchall()
            assert slots == [("sb", True)]
            for pid in (standby.pid, *descendants(os.getpid())):
                assert password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            standby.promote()
            with psycopg.connect(standby.dsn, autocommit=True) as writer:
                writer.execute("INSERT INTO t VALUES (3)")
            standby.restart()
            with psycopg.connect(standby.dsn) as reader:
                assert reader.execute("SELECT count(*), pg_is_in_recovery() FROM t").fetchone() == (3, False)
                row = reader.execute("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)").fetchone()
                assert row == ("00000002",)
            assert primary.execute("SELECT count(*) FROM t").fetchone() == (2,)
        assert not folder.exists()


def test_a_standby_that_does_not_come_to_it_is_not_promoted(server: Postgres) -> None:
    with server.standby() as standby:
        with psycopg.connect(standby.dsn) as reader:
            (startup,) = reader.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'").fetchone() or (0,)
        os.kill(startup, signal.SIGSTOP)
        try:
            with pytest.raises(Unreachable, match="POSTGRES_PROMOTE"):
                standby.promote(seconds=1)
        finally:
            os.kill(startup, signal.SIGCONT)


def test_shared_memory_and_ports_are_looked_at() -> None:
    assert isinstance(postgres._shared_memory_usable(), bool)
    assert 1024 < postgres._free_port() < 65536


def test_without_posix_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_shared_memory_usable", lambda: False)
    with Postgres(settings=QUICK) as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("SHOW dynamic_shared_memory_type").fetchone() == ("mmap",)
