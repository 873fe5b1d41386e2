"""The catalog on SQLite: one row a table, one database transaction a commit, however many tables it touches.

Promises: a commit happens whole or not at all, and is durable when it returns: metadata files first (written, synced), then the
pointers to them (one SQLite transaction, WAL, synchronous=FULL). Nothing is ever retried or rebased here. Several processes may
use one database at once; a reader never waits for a writer.
Never removes a snapshot that somebody holds a lease on.
Fails with ``CommitConflict`` (nothing done), ``Unreachable`` (busy; nothing done), ``CommitUnknown`` (the COMMIT itself failed),
``Refused`` DISK_FULL (nothing done), ``Corrupt`` (the database is not one, or is damaged).
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import orjson

from icelake.catalog import metadata as table_metadata
from icelake.errors import (
    AlreadyExists,
    CommitConflict,
    CommitUnknown,
    Corrupt,
    IcelakeError,
    NoSuchTable,
    ProjectError,
    Refused,
    Unreachable,
)
from icelake.model.location import canonical
from icelake.model.relation import TableId
from icelake.ports import Chance, Clock, Json, Lease, LoadedTable, Storage, TableChange

_SCHEMA_VERSION = 1
_BUSY_SECONDS = 10.0
_WAL_WAITS = (0.01, 0.03, 0.1, 0.3, 1.0, None)
"""Seconds between tries; None: the last."""
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
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


@dataclass(frozen=True, slots=True)
class _Row:
    version: int
    loaded: LoadedTable


class SqliteCatalog:
    """``ports.Catalog``. ``path`` is the database file, or ``":memory:"``; ``warehouse`` the location new tables go below."""

    def __init__(self, path: str, warehouse: str, storage: Storage, clock: Clock, chance: Chance) -> None:
        self._path = path
        self._warehouse = warehouse.rstrip("/")
        self._storage = storage
        self._clock = clock
        self._chance = chance
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._cache: dict[TableId, _Row] = {}

    # ------------------------------------------------------------------------------------------------------ reading

    def tables(self) -> Sequence[TableId]:
        """All tables, by name."""
        with self._reading() as connection:
            found = connection.execute("SELECT namespace, name FROM tables ORDER BY namespace, name").fetchall()
        return [TableId(namespace, name) for namespace, name in found]

    def load(self, table: TableId) -> LoadedTable:
        with self._reading() as connection:
            return self._row(connection, table).loaded

    # ------------------------------------------------------------------------------------------------------- leases

    def lease(self, holder: str, snapshots: Mapping[TableId, int], seconds: float) -> Lease:
        until = self._clock.now() + seconds
        lease = Lease(self._chance.uuid(), holder, until, dict(snapshots))
        held = orjson.dumps([[table.namespace, table.name, snapshot] for table, snapshot in snapshots.items()])
        with self._writing() as connection:
            for table, snapshot in snapshots.items():
                try:
                    known = self._row(connection, table).loaded.metadata["snapshots"]
                except NoSuchTable as error:
                    raise CommitConflict("SNAPSHOT_GONE", f"{table} is gone") from error
                if not any(one["snapshot-id"] == snapshot for one in known):
                    raise CommitConflict("SNAPSHOT_GONE", f"{table} has no snapshot {snapshot} any more", "it expired before it was leased")
            connection.execute("INSERT INTO leases VALUES (?, ?, ?, ?)", (lease.id, holder, until, held))
        return lease

    def release(self, lease_id: str) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM leases WHERE id = ?", (lease_id,))

    def leases(self) -> Sequence[Lease]:
        with self._reading() as connection:
            return self._leases(connection)

    # ------------------------------------------------------------------------------------------------------ writing

    def create(
        self,
        table: TableId,
        schema: Json,
        properties: Mapping[str, str],
        location: str | None = None,
        *,
        partition_spec: Json | None = None,
        sort_order: Json | None = None,
        format_version: int = 3,
    ) -> LoadedTable:
        """``ports.Catalog.create``. Without ``location`` the table gets a folder of its own below the warehouse."""
        uuid = self._chance.uuid()
        if location is None:
            # The uuid keeps tables apart that a file system might not: by case, or by characters that cannot be in a path.
            location = f"{self._warehouse}/{_in_path(table.namespace)}/{_in_path(table.name)}-{uuid.replace('-', '')[:8]}"
        location = location.rstrip("/")
        new = table_metadata.new_table(
            uuid,
            location,
            schema,
            properties,
            self._now_ms(),
            partition_spec=partition_spec,
            sort_order=sort_order,
            format_version=format_version,
        )
        written: list[str] = []
        with self._writing(written) as connection:
            found = connection.execute("SELECT 1 FROM tables WHERE namespace = ? AND name = ?", (table.namespace, table.name)).fetchone()
            if found:
                raise AlreadyExists("TABLE_EXISTS", f"the catalog has a table {table} already")
            self._check_location(connection, table, location)
            row, data = self._write(table, 0, new, written)
            self._storage.flush()
            connection.execute(
                "INSERT INTO tables VALUES (?, ?, ?, ?, ?, ?, ?)",
                (table.namespace, table.name, uuid, 0, location, row.loaded.metadata_location, data),
            )
        with self._lock:
            self._cache[table] = row
        return row.loaded

    def commit(self, changes: Sequence[TableChange]) -> Sequence[LoadedTable]:
        if len({change.id for change in changes}) != len(changes):
            raise ProjectError("CATALOG_BAD_REQUEST", "a commit names a table twice", "a table has one change in a commit")
        rows: list[_Row] = []
        written: list[str] = []
        outdated: list[str] = []
        with self._writing(written) as connection:
            bases = [self._row(connection, change.id) for change in changes]
            for change, base in zip(changes, bases, strict=True):
                table_metadata.check(base.loaded.metadata, change.requirements)
            writes: list[tuple[TableId, _Row, bytes]] = []
            for change, base in zip(changes, bases, strict=True):
                if not change.updates:
                    rows.append(base)
                    continue
                new = table_metadata.apply(base.loaded.metadata, change.updates, self._now_ms())
                if any(update["action"] == "remove-snapshots" for update in change.updates):
                    self._check_leases(connection, change.id, new)
                if new["location"] != base.loaded.metadata["location"]:
                    self._check_location(connection, change.id, new["location"])
                new, dropped = table_metadata.with_history(base.loaded.metadata, base.loaded.metadata_location, new)
                outdated += dropped
                row, data = self._write(change.id, base.version + 1, new, written)
                rows.append(row)
                writes.append((change.id, row, data))
            if writes:
                self._storage.flush()
            for table, row, data in writes:
                loaded = row.loaded
                connection.execute(
                    "UPDATE tables SET version = ?, location = ?, metadata_location = ?, metadata = ? WHERE namespace = ? AND name = ?",
                    (row.version, loaded.metadata["location"], loaded.metadata_location, data, table.namespace, table.name),
                )
        with self._lock:
            self._cache.update((change.id, row) for change, row in zip(changes, rows, strict=True))
        for location in outdated:
            # The commit is done; a file that cannot be deleted now is an orphan and is found as one.
            with suppress(IcelakeError):
                self._storage.delete(location)
        return [row.loaded for row in rows]

    def close(self) -> None:
        """Let the database go. The next call opens it again (a ``":memory:"`` catalog is lost)."""
        with self._lock:
            self._cache.clear()
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # ------------------------------------------------------------------------------------------------------- inside

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)

    def _row(self, connection: sqlite3.Connection, table: TableId) -> _Row:
        cached = self._cache.get(table)
        # Metadata locations are never reused, so a known one spares reading and parsing.
        known = cached.loaded.metadata_location if cached else None
        found = connection.execute(
            "SELECT version, metadata_location, CASE WHEN metadata_location = ? THEN NULL ELSE metadata END"
            " FROM tables WHERE namespace = ? AND name = ?",
            (known, table.namespace, table.name),
        ).fetchone()
        if found is None:
            self._cache.pop(table, None)
            raise NoSuchTable("NO_SUCH_TABLE", f"the catalog has no table {table}", fix="`icelake tables` lists those there are")
        version, location, data = found
        if data is None:
            assert cached is not None
            return cached
        try:
            parsed = table_metadata.read(data)
        except ValueError as error:
            raise _corrupt(self._path, f"the metadata of {table} is not a table's: {error}") from error
        row = _Row(version, LoadedTable(table, parsed, location))
        self._cache[table] = row
        return row

    def _write(self, table: TableId, version: int, new: Json, written: list[str]) -> tuple[_Row, bytes]:
        location = f"{new['location']}/metadata/{version:05d}-{self._chance.uuid()}.metadata.json"
        data = orjson.dumps(new)
        written.append(location)
        self._storage.write(location, data)
        return _Row(version, LoadedTable(table, new, location)), data

    def _leases(self, connection: sqlite3.Connection) -> list[Lease]:
        found = connection.execute("SELECT id, holder, until, snapshots FROM leases WHERE until > ? ORDER BY until", (self._clock.now(),))
        return [
            Lease(ident, holder, until, {TableId(namespace, name): snapshot for namespace, name, snapshot in orjson.loads(snapshots)})
            for ident, holder, until, snapshots in found
        ]

    def _check_leases(self, connection: sqlite3.Connection, table: TableId, new: Json) -> None:
        kept = {snapshot["snapshot-id"] for snapshot in new["snapshots"]}
        for lease in self._leases(connection):
            if table in lease.snapshots and lease.snapshots[table] not in kept:
                raise CommitConflict(
                    "SNAPSHOT_LEASED",
                    f"snapshot {lease.snapshots[table]} of {table} is being read",
                    f"{lease.holder} holds a lease on it for another {lease.until - self._clock.now():.0f} s",
                )

    @staticmethod
    def _check_location(connection: sqlite3.Connection, table: TableId, location: str) -> None:
        for namespace, name, taken in connection.execute("SELECT namespace, name, location FROM tables"):
            other = TableId(namespace, name)
            mine, theirs = f"{canonical(location)}/", f"{canonical(taken)}/"
            inside = mine.startswith(theirs) or theirs.startswith(mine)
            if inside and other != table:
                raise AlreadyExists(
                    "LOCATION_TAKEN",
                    f"{location} belongs to {other}",
                    "tables in one folder would take each other's files for their own",
                    "choose another location",
                )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._open()
            except sqlite3.Error as error:
                raise _translate(error, self._path) from error

    @contextmanager
    def _writing(self, written: Sequence[str] = ()) -> Iterator[sqlite3.Connection]:
        """One write transaction. ``written``: files made for it, deleted when it is certain that it did not happen."""
        with self._lock:
            try:
                connection = self._open()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    connection.execute("DELETE FROM leases WHERE until <= ?", (self._clock.now(),))
                    yield connection
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except Exception as error:
                for location in written:
                    with suppress(IcelakeError):
                        self._storage.delete(location)
                if isinstance(error, sqlite3.Error):
                    raise _translate(error, self._path) from error
                raise
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                # The commit record may be in the WAL already. The files stay, and the next call opens the database anew.
                self.close()
                raise CommitUnknown(
                    "COMMIT_UNKNOWN",
                    f"the catalog {self._path} did not say whether the commit happened",
                    str(error),
                    "the same commit is sent again until there is an answer",
                ) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            fresh = self._path != ":memory:" and not os.path.exists(self._path)
            connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection, fresh)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _prepare(self, connection: sqlite3.Connection, fresh: bool) -> None:
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
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise Refused(
                "CATALOG_NEWER",
                f"the catalog {self._path} was made by a newer IceLake",
                f"its version is {version}, this program knows {_SCHEMA_VERSION}",
                "use the newer program",
            )
        if version < _SCHEMA_VERSION:
            connection.executescript(f"BEGIN IMMEDIATE; {_DDL} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        if fresh:
            # SQLite syncs the database, but its name is the folder's.
            folder = os.open(os.path.dirname(os.path.abspath(self._path)), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _in_path(name: str) -> str:
    """A table's or namespace's name as part of a location: letters, digits, ``_`` and ``-`` stay."""
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in name)


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
        return _corrupt(path, str(error))
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


def _corrupt(path: str, why: str) -> Corrupt:
    return Corrupt("CATALOG_CORRUPT", f"the catalog {path} is damaged", why, "restore it from a backup; the tables' files are untouched")
