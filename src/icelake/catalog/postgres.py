"""The catalog's database on PostgreSQL: rows locked in one order, one transaction a block, several servers at once.

Promises: what a block changed is durable when it has ended without an error (``synchronous_commit`` is never less than ``on``), or none of
it happened. Blocks that change names or places (``alone``) hold one advisory lock; commits to tables hold their rows. A server process that
hangs in a block loses it after ``_IDLE`` seconds, and with it the locks.
Fails with ``Unreachable`` (CATALOG_UNREACHABLE, CATALOG_BUSY; nothing done), ``CommitUnknown`` (the connection broke at COMMIT),
``Refused`` (DISK_FULL, CATALOG_DENIED, CATALOG_NEWER, CATALOG_ERROR; nothing done). Never shows the DSN's password.
Source: PostgreSQL documentation, 13.3 Explicit Locking, 20.5 Write Ahead Log (synchronous_commit).
"""

import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import errors

from icelake.catalog.database import Rows, Started, check_version, unknown
from icelake.errors import IcelakeError, ProjectError, Refused, Unreachable

SCHEMA = "icelake_catalog"
_LOCK = 0x1CE1A4E
"""Of blocks that are alone (pg_advisory_xact_lock)."""
_CONNECTIONS = 12
"""Of a process at most; blocks that find none wait."""
_PATIENCE = "10s"
"""How long a block waits for a lock."""
_IDLE = "30s"

_DDL = """
CREATE TABLE tables (
    namespace text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    uuid text COLLATE "C" NOT NULL UNIQUE,
    version integer NOT NULL,
    location text COLLATE "C" NOT NULL UNIQUE,
    metadata_location text COLLATE "C" NOT NULL UNIQUE,
    metadata bytea NOT NULL,
    kind text NOT NULL,
    PRIMARY KEY (namespace, name)
);
CREATE TABLE namespaces (name text COLLATE "C" PRIMARY KEY, properties bytea NOT NULL);
CREATE TABLE former (location text COLLATE "C" NOT NULL, uuid text COLLATE "C" NOT NULL, PRIMARY KEY (location, uuid));
CREATE TABLE leases (id text PRIMARY KEY, holder text NOT NULL, until double precision NOT NULL, snapshots bytea NOT NULL);
CREATE TABLE machine (boot text PRIMARY KEY);
"""
_STEPS = (_DDL,)
"""Each makes its version of the schema of the one before."""


class _Block:
    """A connection, for statements with ``?``."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def execute(self, statement: str, arguments: Sequence[Any] = ()) -> Rows:
        return self.connection.execute(_spoken(statement), arguments)


@lru_cache(256)
def _spoken(statement: str) -> bytes:
    return statement.replace("%", "%%").replace("?", "%s").encode()


class Postgres:
    """``catalog.database.Database``. ``dsn`` is asked each time a connection is made: passwords change."""

    locked, kept = " FOR UPDATE", " FOR SHARE"

    def __init__(self, dsn: Callable[[], str], started: Started) -> None:
        self._dsn = dsn
        self._started = started
        self._places = threading.BoundedSemaphore(_CONNECTIONS)
        self._idle: list[psycopg.Connection[Any]] = []
        self._opening = threading.Lock()
        self._known = False
        """Whether this process has looked what the database is."""

    @property
    def where(self) -> str:
        """The database and its host, for people."""
        try:
            known = psycopg.conninfo.conninfo_to_dict(self._dsn())
        except (psycopg.Error, IcelakeError):
            return "in PostgreSQL"
        return f"{known.get('dbname', '')} at {known.get('host', '')}"

    @contextmanager
    def reading(self) -> Iterator[_Block]:
        with self._translated(), self._connection() as connection:
            yield _Block(connection)

    @contextmanager
    def writing(self, *, alone: bool = False) -> Iterator[_Block]:
        with self._translated(), self._connection() as connection:
            connection.execute("BEGIN")
            try:
                if alone:
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                yield _Block(connection)
            except BaseException:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise
            try:
                connection.execute("COMMIT")
            except psycopg.Error as error:
                if _refused(error):
                    raise
                raise unknown(self.where, error) from error

    def close(self) -> None:
        """Let idle connections go."""
        with self._opening:
            while self._idle:
                self._idle.pop().close()
            self._known = False

    # ------------------------------------------------------------------------------------------------------- inside

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        with self._places:
            connection = self._taken()
            try:
                yield connection
            finally:
                fit = not connection.closed and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                if fit:
                    self._idle.append(connection)
                else:
                    connection.close()

    def _taken(self) -> psycopg.Connection[Any]:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._made()
            if _alive(connection):
                return connection
            connection.close()

    def _made(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(
            self._dsn(),
            autocommit=True,
            connect_timeout=10,
            application_name="icelake catalog",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=30_000,
        )
        try:
            connection.execute(f"SET search_path = {SCHEMA}; SET lock_timeout = '{_PATIENCE}'".encode())
            connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE}'".encode())
            connection.execute(
                "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')"
            )
            with self._opening:
                if not self._known:
                    self._prepare(connection)
                    self._known = True
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        found = connection.execute("SELECT to_regclass(%s)::text", (f"{SCHEMA}.version",)).fetchone()
        version = 0
        if found is not None and found[0] is not None:
            row = connection.execute("SELECT number FROM version").fetchone()
            version = row[0] if row else 0
        check_version(self.where, version, len(_STEPS))
        if version < len(_STEPS):
            self._upgrade(connection)
        block = _Block(connection)
        if self._started.due(block):
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                if self._started.due(block):
                    self._started.do(block)

    @staticmethod
    def _upgrade(connection: psycopg.Connection[Any]) -> None:
        with connection.transaction():
            # Another process may have been faster.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}".encode())
            connection.execute("CREATE TABLE IF NOT EXISTS version (number integer NOT NULL)")
            row = connection.execute("SELECT number FROM version").fetchone()
            for step in _STEPS[row[0] if row else 0 :]:
                connection.execute(step.encode())
            connection.execute("DELETE FROM version")
            connection.execute("INSERT INTO version VALUES (%s)", (len(_STEPS),))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._translate(error) from error

    def _translate(self, error: psycopg.Error) -> IcelakeError:
        why = (error.diag.message_primary or str(error)).strip()
        match error:
            case errors.DataError() | errors.UntranslatableCharacter():
                what = "what the request names cannot be stored"
                return ProjectError("CATALOG_BAD_REQUEST", what, why, "this is an error of the writer that sent it")
            case errors.LockNotAvailable() | errors.DeadlockDetected() | errors.SerializationFailure() | errors.TooManyConnections():
                return Unreachable("CATALOG_BUSY", f"the catalog {self.where} is busy", why, "it is tried again; if it stays, see pg_locks")
            case errors.DiskFull():
                return Refused("DISK_FULL", f"no space for the catalog {self.where}", why, "free space there, then start again")
            case errors.InsufficientPrivilege() | errors.InvalidAuthorizationSpecification() | errors.InvalidCatalogName():
                fix = f"the role must own the schema {SCHEMA}, or be allowed to make it in this database"
                return Refused("CATALOG_DENIED", f"cannot use the catalog {self.where}", why, fix)
            case psycopg.OperationalError() | psycopg.InterfaceError():
                fix = "it is tried again; if it stays, look at the server and the network"
                return Unreachable("CATALOG_UNREACHABLE", f"the catalog {self.where} does not answer", why, fix)
        return Refused("CATALOG_ERROR", f"the catalog {self.where} failed", why, "report this with the command that was run")


def _alive(connection: psycopg.Connection[Any]) -> bool:
    """Nothing is sent to an idle connection but its end, and what the server wants to tell all."""
    if connection.closed:
        return False
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    if not waiting.poll(0):
        return True
    with suppress(psycopg.Error):
        connection.execute("SELECT 1")
        return True
    return False


def _refused(error: psycopg.Error) -> bool:
    """Whether the server itself said that a COMMIT did not happen: not that it, or the connection, is going away."""
    return error.sqlstate is not None and error.sqlstate[:2] not in ("08", "57", "58", "XX")
