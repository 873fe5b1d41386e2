"""Where the processes of one lakehouse leave word for each other: who syncs a source, how it goes, and verify's wish for a cut.

Promises: of all processes on this machine at most one owns a source (an operating system lock, gone with its process), and a
request that nobody needs any more stops nobody: it has a deadline, and its asker must be alive.
Never holds data: the file may be deleted at any time when nothing runs. What was written last may be lost in a power cut.
Fails with ``Refused`` ALREADY_RUNNING, ``Refused`` DESK_UNUSABLE (the file is damaged or may not be written), and ``Unreachable``.
"""

import errno
import fcntl
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from icelake.errors import IcelakeError, Refused, Unreachable
from icelake.ports import HoldRequest, Json, ResumeRequest

_BUSY_SECONDS = 5.0
_REPORTS_SECONDS = 3600.0
"""Reports of other processes are kept this long."""
_LOCK_TRIES = 10
_DDL = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS holds (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    pid INTEGER NOT NULL,
    pids TEXT NOT NULL,
    made REAL NOT NULL,
    deadline REAL NOT NULL,
    state TEXT NOT NULL,
    lsn TEXT,
    cut_id INTEGER,
    lease_id TEXT
);
CREATE TABLE IF NOT EXISTS wishes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    pid INTEGER NOT NULL,
    pids TEXT NOT NULL,
    made REAL NOT NULL,
    deadline REAL NOT NULL,
    tables TEXT NOT NULL,
    reload INTEGER NOT NULL,
    answer TEXT
);
CREATE TABLE IF NOT EXISTS reports (
    pid INTEGER NOT NULL,
    pids TEXT NOT NULL,
    time REAL NOT NULL,
    status BLOB NOT NULL,
    PRIMARY KEY (pid, pids)
);
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class Hold:
    """What became of a request for a cut."""

    state: str
    """``wanted``, ``granted``, ``answered``, ``withdrawn`` or ``over`` (its deadline)."""
    lsn: int | None
    cut_id: int | None
    lease_id: str | None


class SqliteDesk:
    """``ports.Desk``, and the side of those who ask and watch. One file a source; threads may share an object."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._seen: int | None = None
        """SQLite's data_version when ``_open_holds`` was read; it moves when another connection writes."""
        self._open_holds: list[tuple[str, int, str, float, float, str | None]] = []
        self._open_wishes: list[tuple[str, int, str, float, float, str, int]] = []

    # ---------------------------------------------------------------------------------------------------- the applier

    def hold_wanted(self) -> HoldRequest | None:
        """The oldest open request. Cheap enough for every turn of a loop: it reads only when somebody wrote."""
        self._look()
        for ident, pid, pids, made, deadline, lsn in self._open_holds:
            if _open(made, deadline) and _alive(pid, pids):
                return HoldRequest(ident, None if lsn is None else int(lsn))
        return None

    def _look(self) -> None:
        with self._using() as connection:
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if version != self._seen:
                self._open_holds = connection.execute(
                    "SELECT id, pid, pids, made, deadline, lsn FROM holds WHERE state IN ('wanted', 'granted') ORDER BY number"
                ).fetchall()
                self._open_wishes = connection.execute(
                    "SELECT id, pid, pids, made, deadline, tables, reload FROM wishes WHERE answer IS NULL ORDER BY number"
                ).fetchall()
                self._seen = version

    def resume_wanted(self) -> ResumeRequest | None:
        """The oldest open request; as cheap as ``hold_wanted``."""
        self._look()
        for ident, pid, pids, made, deadline, tables, reload in self._open_wishes:
            if _open(made, deadline) and _alive(pid, pids):
                return ResumeRequest(ident, tuple(orjson.loads(tables)), bool(reload))
        return None

    def resume_answered(self, request: str, refusals: Sequence[IcelakeError]) -> None:
        answer = [{"code": r.code, "what": r.what, "why": r.why, "fix": r.fix, "table": r.table} for r in refusals]
        self._write("UPDATE wishes SET answer = ? WHERE id = ?", orjson.dumps(answer).decode(), request)

    def hold_granted(self, request: str) -> None:
        self._write("UPDATE holds SET state = 'granted' WHERE id = ? AND state = 'wanted'", request)

    def hold_answered(self, request: str, cut_id: int, lease_id: str) -> None:
        self._write(
            "UPDATE holds SET state = 'answered', cut_id = ?, lease_id = ? WHERE id = ? AND state IN ('wanted', 'granted')",
            cut_id,
            lease_id,
            request,
        )

    def report(self, status: Json) -> None:
        now = time.time()
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM reports WHERE time < ?", (now - _REPORTS_SECONDS,))
            row = (os.getpid(), _pids(), now, orjson.dumps(status, default=str))
            connection.execute("INSERT OR REPLACE INTO reports VALUES (?, ?, ?, ?)", row)
            connection.execute("COMMIT")

    @contextmanager
    def own(self, source: str) -> Iterator[None]:
        """Be the one process that syncs ``source`` for as long as the block runs. Raises Refused ALREADY_RUNNING."""
        fd = self._lock_file()
        try:
            for turn in range(_LOCK_TRIES):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # Somebody who only looks (``owner``) holds it for an instant.
                    if turn + 1 == _LOCK_TRIES:
                        raise Refused(
                            "ALREADY_RUNNING",
                            f"another icelake process (pid {_read_pid(fd) or 'unknown'}) is syncing source {source!r}",
                            "a source has one owner at a time",
                            "wait for it, or stop it; `icelake status` shows what it does",
                        ) from None
                    time.sleep(0.02)
            try:
                os.ftruncate(fd, 0)
                os.pwrite(fd, str(os.getpid()).encode(), 0)
            except OSError as error:
                raise _unusable(error, self._path) from error
            try:
                yield
            finally:
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    # ------------------------------------------------------------------------------------------------------ who watches

    def owner(self) -> int | None:
        """The process that syncs the source (0 if its number is not known), or None."""
        fd = self._lock_file()
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_pid(fd)
        else:
            return None
        finally:
            os.close(fd)

    def reports(self) -> list[Json]:
        """The last report of each process, newest first, with ``pid``, ``reported`` (ISO 8601, UTC) and ``alive``."""
        with self._using() as connection:
            rows = connection.execute("SELECT pid, pids, time, status FROM reports ORDER BY time DESC").fetchall()
        return [
            {
                **orjson.loads(status),
                "pid": pid,
                "reported": datetime.fromtimestamp(made, UTC).isoformat(timespec="milliseconds"),
                "alive": _alive(pid, pids),
            }
            for pid, pids, made, status in rows
        ]

    def latest_report(self) -> Json | None:
        """The newest of ``reports``."""
        found = self.reports()
        return found[0] if found else None

    # -------------------------------------------------------------------------------------------------------- who asks

    def request_hold(self, deadline: float) -> str:
        """Ask the applier for a cut at an LSN that is told later; it forgets the request after ``deadline`` seconds. Its id."""
        return self._request("holds", deadline, {"state": "wanted"})

    def request_resume(self, tables: Sequence[str], reload: bool, deadline: float) -> str:
        """Ask the applier to let parked tables go on; it forgets the request after ``deadline`` seconds. Its id."""
        return self._request("wishes", deadline, {"tables": orjson.dumps(list(tables)).decode(), "reload": reload})

    def _request(self, kind: str, deadline: float, what: Mapping[str, Any]) -> str:
        ident, now = str(uuid.uuid4()), time.time()
        row = {"id": ident, "pid": os.getpid(), "pids": _pids(), "made": now, "deadline": now + deadline, **what}
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"DELETE FROM {kind} WHERE deadline < ?", (now - _REPORTS_SECONDS,))
            connection.execute(f"INSERT INTO {kind} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
            connection.execute("COMMIT")
            self._seen = None
        return ident

    def resume_answer(self, request: str) -> list[Json] | None:
        """What could not be done, each as code, what, why, fix and table; None while there is no answer."""
        with self._using() as connection:
            row = connection.execute("SELECT answer FROM wishes WHERE id = ?", (request,)).fetchone()
        return None if row is None or row[0] is None else list(orjson.loads(row[0]))

    def set_hold_lsn(self, request: str, lsn: int) -> None:
        """The cut shall hold exactly the commits before ``lsn``."""
        # As text: SQLite's integers end at 2^63.
        self._write("UPDATE holds SET lsn = ? WHERE id = ? AND state IN ('wanted', 'granted')", str(lsn), request)

    def hold_state(self, request: str) -> Hold:
        """What became of it. An answer stays one, whatever the time; a request nobody knows (any more) is ``over``."""
        with self._using() as connection:
            row = connection.execute("SELECT state, lsn, cut_id, lease_id, made, deadline FROM holds WHERE id = ?", (request,)).fetchone()
        if row is None:
            return Hold("over", None, None, None)
        state, lsn, cut_id, lease_id, made, deadline = row
        if state in ("wanted", "granted") and not _open(made, deadline):
            state = "over"
        return Hold(state, None if lsn is None else int(lsn), cut_id, lease_id)

    def withdraw(self, request: str) -> None:
        """It is not needed any more; without effect once it is answered."""
        self._write("UPDATE holds SET state = 'withdrawn' WHERE id = ? AND state IN ('wanted', 'granted')", request)

    def close(self) -> None:
        with self._lock:
            self._seen = None
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # ---------------------------------------------------------------------------------------------------------- inside

    def _write(self, statement: str, *values: Any) -> None:
        with self._using() as connection:
            connection.execute(statement, values)
            # data_version does not move for what this connection writes.
            self._seen = None

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                yield self._connection
            except sqlite3.Error as error:
                if self._connection is not None and self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise _translate(error, self._path) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                # Somebody is making the same file WAL at this moment; then it is, or it works as well without.
                if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
            connection.execute("PRAGMA synchronous = NORMAL")
            if connection.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('holds', 'wishes', 'reports')").fetchone() != (3,):
                connection.executescript(_DDL)
        except BaseException:
            connection.close()
            raise
        return connection

    def _lock_file(self) -> int:
        path = f"{self._path}.lock"
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unusable(error, path) from error


def _open(made: float, deadline: float) -> bool:
    # A clock that was set back must not make a request live on.
    return made - 60 <= time.time() <= deadline


def _pids() -> str:
    """Which numbering of processes we live in: in a container, pid 7 is someone else."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _alive(pid: int, pids: str) -> bool:
    """Whether the process is there; True where that cannot be told."""
    if pids != _pids():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read_pid(fd: int) -> int:
    text = os.pread(fd, 20, 0)
    return int(text) if text.isdigit() else 0


def _unusable(error: OSError, path: Path | str) -> Refused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused("DISK_FULL", f"cannot write {path}", str(error), "free space where the lake's folder is, then start again")
    return Refused("DESK_UNUSABLE", f"cannot open {path}", str(error), "run as the user who owns the lake's folder")


def _translate(error: sqlite3.Error, path: Path) -> IcelakeError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unreachable("DESK_BUSY", f"{path} is busy", str(error), "it is tried again")
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_room(path)):
        return Refused("DISK_FULL", f"cannot write {path}", str(error), "free space where the lake's folder is, then start again")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return Refused("DESK_UNUSABLE", f"{path} is damaged", str(error), "delete the file while nothing runs: it holds no data")
    return Refused("DESK_UNUSABLE", f"cannot use {path}", str(error), "run as the user who owns the lake's folder")


def _no_room(path: Path) -> bool:
    """SQLite reports a full disk as an I/O error where it was growing its shared memory file."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < 1 << 16
