"""Sessions with the server, and what its errors mean.

Every connection IceLake opens to a source is opened here, with the same session settings, so a value prints the same text wherever
it is read. Never puts a password into an error. Fails with ``Unreachable`` for what may pass by itself (no answer, a lock, no free
slot right now) and ``Refused`` for what somebody has to mend, with the statement that mends it.
"""

import re
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, TypeVar, cast

import psycopg
from psycopg import conninfo, sql
from psycopg.rows import TupleRow

from icelake.errors import Gap, IcelakeError, ProjectError, Refused, Unreachable
from icelake.sources.postgres.types import SESSION

Connection = psycopg.Connection[TupleRow]
_Answer = TypeVar("_Answer")

ALWAYS = {
    **SESSION,
    # A policy that would hide rows from our role is an error then, not a smaller table.
    "row_security": "off",
    # pgoutput tells of a publication that is gone by a warning only (18+).
    "client_min_messages": "warning",
    # Names mean the server's own, whatever schemas a database has.
    "search_path": "pg_catalog",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}

_SAID_BEFORE_A_SQLSTATE: tuple[tuple[str, str], ...] = (
    # libpq gives no SQLSTATE for a connection that was refused at the door, only the server's words.
    (r"password authentication failed|no password supplied|authentication failed", "28P01"),
    (r"no pg_hba\.conf entry|permission denied to start WAL sender|must be superuser or replication role", "28000"),
    (r'database ".*" does not exist', "3D000"),
    (r'role ".*" (does not exist|is not permitted to log in)', "28000"),
    (r"exceeds \"?max_wal_senders|all replication .*slots are in use", "53300"),
    (r"permission denied for database", "42501"),
)


def conninfo_of(dsn: str, **more: str) -> str:
    """The connection string with IceLake's settings added. Raises ProjectError, without the text, if it cannot be read."""
    try:
        given = conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        raise ProjectError(
            "BAD_DSN",
            "the PostgreSQL connection string cannot be read",
            "it is neither a postgresql:// address nor key=value words (it is not shown: it may hold a password)",
            "write postgresql://user@host:5432/database; characters such as @ : / in the password are written %40 %3A %2F",
        ) from None
    if _misread(dsn):
        raise ProjectError(
            "BAD_DSN",
            "the PostgreSQL connection string cannot be read",
            "an @ or / stands where it cannot: probably it is the password's own (it is not shown)",
            "characters such as @ : / in the password are written %40 %3A %2F",
        )
    options = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in ALWAYS.items())
    settings: dict[str, str] = {
        "connect_timeout": "10",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        # Keepalives do not count while something sent is unanswered.
        "tcp_user_timeout": "60000",
        **{name: str(value) for name, value in given.items() if value is not None},
        "application_name": "icelake",
        "client_encoding": "UTF8",
        **more,
    }
    settings["options"] = " ".join(part for part in (given.get("options"), options, more.get("options")) if isinstance(part, str) and part)
    return conninfo.make_conninfo("", **settings)


def _misread(dsn: str) -> bool:
    """Whether libpq takes part of the password for something else, which it then repeats: it ends at the first @, or earlier at a /."""
    scheme, _, rest = dsn.partition("://")
    place = rest.partition("?")[0] if scheme in ("postgresql", "postgres") else ""
    return place.count("@") > 1 or "@" in place.partition("/")[2]


def address(dsn: str) -> str:
    """``user@host:port/database``: how a server is named in messages."""
    known = conninfo.conninfo_to_dict(dsn)
    host = known.get("host") or known.get("hostaddr") or "local socket"
    return f"{known.get('user') or 'default user'}@{host}:{known.get('port') or 5432}/{known.get('dbname') or known.get('user') or ''}"


def connect(dsn: str, *, replication: bool = False, statement_seconds: int = 60, lock_seconds: int = 10) -> Connection:
    """A session in autocommit. ``statement_seconds`` 0: no limit. Replication sessions take replication commands and plain SQL.

    Raises ProjectError (the string itself), Refused (password, role, database), Unreachable (no answer, too many connections).
    """
    timeouts = f"-c statement_timeout={statement_seconds * 1000} -c lock_timeout={lock_seconds * 1000}"
    more = {"replication": "database"} if replication else {}
    text = conninfo_of(dsn, options=timeouts, **more)
    try:
        # A replication connection refuses the extended protocol, and with it what psycopg prepares at the fifth time.
        connection = psycopg.connect(text, autocommit=True, prepare_threshold=None if replication else 5)
        if (replication or not statement_seconds) and connection.info.server_version >= 170000:
            # The transaction may be long. No option of the connection: what an older server does not know it refuses.
            connection.execute("set transaction_timeout = 0")
        return connection
    except psycopg.Error as error:
        raise explain(error, dsn, "cannot connect to PostgreSQL") from None


@contextmanager
def session(dsn: str, doing: str, *, replication: bool = False, statement_seconds: int = 60) -> Iterator[Connection]:
    """A session for one piece of work, closed after it; PostgreSQL's errors inside come out explained."""
    connection = connect(dsn, replication=replication, statement_seconds=statement_seconds)
    try:
        yield connection
    except psycopg.Error as error:
        raise explain(error, dsn, doing) from error
    finally:
        connection.close()


class Kept:
    """A session for a question that is asked again and again: opened for the first of them, and anew if it broke since the last.

    Several threads may ask, one after the other.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: Connection | None = None
        self._closed = False
        self._asking = Lock()

    def ask(self, doing: str, question: Callable[[Connection], _Answer]) -> _Answer:
        """``question`` of the session. Once it is closed, of one that is opened for it."""
        # Not asked for the lock then: whoever has it may wait for a server that answers nothing.
        if not self._closed:
            with self._asking:
                if not self._closed:
                    return self._asked(doing, question)
        with session(self._dsn, doing) as server:
            return question(server)

    def _asked(self, doing: str, question: Callable[[Connection], _Answer]) -> _Answer:
        for kept in (self._connection, None):
            if kept is None:
                self._connection = connect(self._dsn)
            assert self._connection is not None
            try:
                return question(self._connection)
            except psycopg.Error as error:
                lost = self._connection.broken
                self._let_go()
                if not (lost and kept is not None) or self._closed:
                    raise explain(error, self._dsn, doing) from error
        raise AssertionError("a new session is asked once")

    def close(self, patience: float = 1.0) -> None:
        """Whoever is asking is not waited for: the question is cancelled, and the session theirs to close if that takes longer."""
        self._closed = True
        asked = self._connection
        if asked is not None and self._asking.locked():
            with suppress(psycopg.Error):
                asked.cancel_safe(timeout=patience)
        if self._asking.acquire(timeout=patience):
            try:
                self._let_go()
            finally:
                self._asking.release()

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def run(connection: Connection, statement: str | sql.Composable, arguments: Any = None) -> list[TupleRow]:
    """Execute and fetch all rows. The statement is program text or a ``psycopg.sql`` composition, never text from outside."""
    cursor = connection.execute(cast("Any", statement), arguments)
    return cursor.fetchall() if cursor.description is not None else []


def readable(descriptor: int, seconds: float) -> bool:
    """Wait until the socket has something to read, ``seconds`` at most."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def explain(error: psycopg.Error, dsn: str, doing: str) -> IcelakeError:
    """An error of psycopg as one of ours: what was being done, what the server said, and what mends it."""
    said = _words(error)
    state = error.sqlstate or next((code for pattern, code in _SAID_BEFORE_A_SQLSTATE if re.search(pattern, said)), "")
    return explain_state(state, said, dsn, doing)


def explain_state(state: str, said: str, dsn: str, doing: str) -> IcelakeError:
    """The same by SQLSTATE ('' if none was given) and the server's words."""
    where = address(dsn)
    user = conninfo.conninfo_to_dict(dsn).get("user") or "this role"
    what = f"{doing} ({where})"
    grant_replication = f'ALTER ROLE "{user}" REPLICATION;  (on a managed service its own grant, such as GRANT rds_replication TO "{user}")'
    if state == "28P01":
        return Refused("AUTHENTICATION_FAILED", what, said, "check the user and the password the project's secret reference names")
    if "max_wal_senders" in said or (state == "53300" and "replication" in said):
        return Unreachable(
            "NO_FREE_WALSENDER", what, said, "ALTER SYSTEM SET max_wal_senders = 20;  then restart PostgreSQL, or end an unused replica"
        )
    if state == "53400" and "replication slots" in said:
        return Unreachable(
            "NO_FREE_SLOT",
            what,
            said,
            "drop a slot nobody uses (SELECT pg_drop_replication_slot('…')) or ALTER SYSTEM SET max_replication_slots = 20;  and restart",
        )
    if state in {"28000", "42501"} and re.search(r"replication|WAL sender", said, re.IGNORECASE) and "pg_hba" not in said:
        return Refused("NO_REPLICATION_PRIVILEGE", what, said, grant_replication)
    if state == "28000":
        return Refused(
            "CONNECTION_REFUSED_BY_SERVER", what, said, "let this role and address in: a line in pg_hba.conf, or LOGIN for the role"
        )
    if state == "3D000":
        return Refused("NO_SUCH_DATABASE", what, said, "name an existing database in the connection string")
    if state == "42501":
        return Refused("PERMISSION_DENIED", what, said, "have the owner grant what the message names")
    if state == "55000" and "wal_level" in said:
        return Refused("WAL_LEVEL", what, said, "ALTER SYSTEM SET wal_level = 'logical';  then restart PostgreSQL")
    if state == "58P01" or (state == "55000" and "slot" in said):
        return Gap(
            "SLOT_LOST",
            what,
            said,
            "changes the lake never saw are gone from the source: the tables must be loaded again from a new slot; "
            "raise max_slot_wal_keep_size so it does not happen again",
        )
    if state == "55P03":
        return Unreachable("LOCKED", what, said, "somebody holds a lock on the table (pg_locks); it is tried again")
    if state == "57014":
        return Unreachable("STATEMENT_TIMEOUT", what, said, "the server is slow or a statement_timeout is too short; it is tried again")
    if state and state[:2] not in {"08", "53", "57", "58", "40", "XX"}:
        return Refused(
            "SOURCE_ERROR", what, f"{said} (SQLSTATE {state})", "see the server's log; the statement cannot be repeated as it is"
        )
    return Unreachable("SOURCE_UNREACHABLE", what, said or "no answer", "it is tried again; check that PostgreSQL runs and can be reached")


def _words(error: psycopg.Error) -> str:
    """The message of the server, or of libpq (which never repeats a password), on one line."""
    said = (error.diag.message_primary if error.sqlstate else None) or str(error)
    if error.sqlstate and error.diag.message_detail:
        said = f"{said} ({error.diag.message_detail})"
    return " ".join(said.split())
