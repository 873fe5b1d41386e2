"""The catalog's database on SQLite: transactions that are committed together, and reading that never waits for them.

Promises: what a writer did is durable when its block has ended without an error, or none of it happened. Writers that come while others
wait for the disk are done in one transaction, each behind a savepoint of its own, so that one that fails takes nothing of the others, and
one sync serves all (as group commit in PostgreSQL and in file systems). A reader sees what is durable, and nothing else.
WAL, synchronous=FULL; several processes may use one file at once.
Fails with ``Unreachable`` (busy; nothing done), ``CommitUnknown`` (the COMMIT itself failed), ``Refused`` DISK_FULL and others (nothing
done), ``Corrupt`` (the file is no database, or is damaged).
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from icelake.catalog.database import Started, check_version, corrupt, unknown
from icelake.errors import IcelakeError, Refused, Unreachable
from icelake.ports import Clock

_DDL = """
CREATE TABLE IF NOT EXISTS tables (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    uuid TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    location TEXT NOT NULL UNIQUE,
    metadata_location TEXT NOT NULL UNIQUE,
    metadata BLOB NOT NULL,
    PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    id TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    until REAL NOT NULL,
    snapshots BLOB NOT NULL
) WITHOUT ROWID;
"""
_DDL_2 = """
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY,
    properties BLOB NOT NULL
) WITHOUT ROWID;
ALTER TABLE tables ADD COLUMN kind TEXT NOT NULL DEFAULT 'table';
INSERT INTO namespaces SELECT DISTINCT namespace, CAST('{}' AS BLOB) FROM tables;
CREATE TABLE former (
    location TEXT NOT NULL,
    uuid TEXT NOT NULL,
    PRIMARY KEY (location, uuid)
) WITHOUT ROWID;
"""
"""Namespaces have properties, and may be empty; views are where tables are, because they share their names; where a table was before it was
moved there may still be files of it."""
_DDL_3 = "CREATE TABLE machine (boot TEXT PRIMARY KEY) WITHOUT ROWID"
"""On which machines, each time they were started, the metadata files were looked after."""
_STEPS = (_DDL, _DDL_2, _DDL_3)
"""Each makes its version of the schema of the one before."""
_BUSY_SECONDS = 10.0
_WAL_WAITS = (0.01, 0.03, 0.1, 0.3, 1.0, None)
"""Seconds between tries; None: the last."""
_TOGETHER = 64
"""Writers in one transaction."""
_LOST = 0.05
"""Seconds after which a writer looks whether its transaction is one that nobody commits any more."""
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


@dataclass(slots=True, eq=False)
class _Transaction:
    """One that is open, or was."""

    writers: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    undone: Exception | None = None
    """Why it did not happen."""
    unknown: Exception | None = None
    """Why nobody knows."""


class Sqlite:
    """``catalog.database.Database``. ``path``: a file, or ``":memory:"``, which has one connection."""

    # Whoever writes is alone in the whole database.
    locked = kept = ""

    def __init__(self, path: str, started: Started, clock: Clock) -> None:
        self.where = path
        self._started = started
        self._clock = clock
        self._writers = threading.RLock()
        self._readers = threading.RLock()
        self._counting = threading.Lock()
        self._coming = 0
        """Writers that wait for their turn."""
        self._transaction: _Transaction | None = None
        self._known = False
        """Whether this process has looked what the file is."""
        self.writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None

    @property
    def _shared(self) -> bool:
        return self.where == ":memory:"

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._writers if self._shared else self._readers:
            try:
                yield self._read()
            except sqlite3.Error as error:
                raise _translate(error, self.where) from error

    @contextmanager
    def writing(self, *, alone: bool = False) -> Iterator[sqlite3.Connection]:
        """A block whose changes happen together. What it reads may be of others that are not durable yet, and then both are or none."""
        with self._turn():
            transaction = self._begun()
            connection = self._write()
            try:
                connection.execute("SAVEPOINT one")
                yield connection
                connection.execute("RELEASE one")
            except BaseException as error:
                self._undo(connection, transaction, error)
                if isinstance(error, sqlite3.Error):
                    raise _translate(error, self.where) from error
                raise
            finally:
                # A writer that waits goes on in the same transaction, and commits this one's changes with its own.
                if not self._coming or self._shared or transaction.writers >= _TOGETHER:
                    self._commit(transaction)
        # Whoever was to come may have been interrupted.
        while not transaction.ended.wait(_LOST):
            with self._writers:
                if not self._coming:
                    self._commit(transaction)
        if transaction.undone is not None:
            raise _again(transaction.undone, self.where) from transaction.undone
        if transaction.unknown is not None:
            raise unknown(self.where, transaction.unknown) from transaction.unknown

    def close(self) -> None:
        """Let the file go. The next call opens it again (a ``":memory:"`` database is lost)."""
        with self._writers, self._readers:
            if self._transaction is not None:
                self._commit(self._transaction)
            self._drop()

    # ------------------------------------------------------------------------------------------------------- inside

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._counting:
            self._coming += 1
        try:
            self._writers.acquire()
        finally:
            with self._counting:
                self._coming -= 1
        try:
            yield
        finally:
            self._writers.release()

    def _begun(self) -> _Transaction:
        if self._transaction is None:
            try:
                self._write().execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise _translate(error, self.where) from error
            self._transaction = _Transaction()
        self._transaction.writers += 1
        return self._transaction

    def _undo(self, connection: sqlite3.Connection, transaction: _Transaction, error: BaseException) -> None:
        """This writer's part; all of it where SQLite has given up the whole (a full disk)."""
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK TO one")
                connection.execute("RELEASE one")
                return
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        transaction.undone = error if isinstance(error, Exception) else sqlite3.OperationalError("interrupted")
        self._end(transaction)

    def _commit(self, transaction: _Transaction) -> None:
        if transaction.ended.is_set():
            return
        try:
            assert self.writer is not None
            self.writer.execute("COMMIT")
        except sqlite3.Error as error:
            # The commit record may be in the WAL already. The next call opens the file anew.
            transaction.unknown = error
            with self._readers:
                self._drop()
        self._end(transaction)

    def _end(self, transaction: _Transaction) -> None:
        self._transaction = None
        transaction.ended.set()

    def _drop(self) -> None:
        for connection in (self.writer, self._reader):
            if connection is not None:
                connection.close()
        self.writer = self._reader = None
        self._known = False

    def _write(self) -> sqlite3.Connection:
        if self.writer is None:
            self.writer = self._connected()
        return self.writer

    def _read(self) -> sqlite3.Connection:
        if self._shared:
            return self._write()
        if self._reader is None:
            self._reader = self._connected()
        return self._reader

    def _connected(self) -> sqlite3.Connection:
        new = not self._shared and not os.path.exists(self.where)
        try:
            connection = sqlite3.connect(self.where, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection, new)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise _translate(error, self.where) from error
        return connection

    def _prepare(self, connection: sqlite3.Connection, new: bool) -> None:
        for wait in _WAL_WAITS:
            # Turning a new database to WAL does not wait for another process that is doing the same.
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in _BUSY or wait is None:
                    raise
                self._clock.sleep(wait)
        connection.execute("PRAGMA synchronous = FULL")
        if self._known:
            return
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        check_version(self.where, version, len(_STEPS))
        if version < len(_STEPS):
            self._upgrade(connection)
        if self._started.due(connection):
            with _at_once(connection):
                if self._started.due(connection):
                    self._started.do(connection)
        if new:
            # SQLite syncs the database, but its name is the folder's.
            folder = os.open(os.path.dirname(os.path.abspath(self.where)), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        self._known = True

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        with _at_once(connection):
            # Another process may have been faster.
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            for number, step in enumerate(_STEPS, 1):
                for statement in step.split(";\n") if version < number else ():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {max(version, len(_STEPS))}")


@contextmanager
def _at_once(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction by itself."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _again(error: Exception, path: str) -> IcelakeError:
    """What undid a transaction, for another writer of it."""
    if isinstance(error, sqlite3.Error):
        return _translate(error, path)
    return Unreachable("CATALOG_BUSY", f"the catalog {path} gave up a transaction", str(error), "it is tried again")


def _translate(error: sqlite3.Error, path: str) -> IcelakeError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _BUSY:
        return Unreachable(
            "CATALOG_BUSY",
            f"the catalog {path} is busy",
            f"another process has been writing for more than {_BUSY_SECONDS:.0f} s",
            "it is tried again; if it stays, find the process that holds it",
        )
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_room(path)):
        return Refused("DISK_FULL", f"no space for the catalog {path}", str(error), "free space where the lake is, then start again")
    if code in _DAMAGED:
        return corrupt(path, str(error))
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return Refused(
            "CATALOG_DENIED",
            f"cannot open the catalog {path}",
            str(error),
            "run as the user who owns the lake's folder; the folder must exist and be writable",
        )
    if code == sqlite3.SQLITE_IOERR:
        return Refused("DISK_ERROR", f"cannot read or write the catalog {path}", str(error), "look at the system's log, then start again")
    return Refused("CATALOG_ERROR", f"the catalog {path} failed", str(error), "report this with the command that was run")


def _no_room(path: str) -> bool:
    """SQLite reports a full disk as an I/O error where it was growing its shared memory file."""
    try:
        disk = os.statvfs(os.path.dirname(os.path.abspath(path)))
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < 1 << 16
