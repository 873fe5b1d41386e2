"""The source side: a database as it was at one LSN, read at leisure while it goes on writing.

Promises: after ``take`` every row read is of the snapshot that holds exactly the transactions whose commit record lies before
``lsn`` (the consistent point of a temporary logical slot; PostgreSQL, CREATE_REPLICATION_SLOT ... SNAPSHOT 'export'). The slot
is gone again at once. A table emptied or rewritten behind the snapshot's back (TRUNCATE is not transactional for older
snapshots) is noticed, never read. Never writes, never hides rows by row-level security, never prints the password.
While it is open the server keeps old row versions (its xmin is held) and the locked tables cannot be altered or truncated.
Fails with Unreachable for what may pass, Refused for what somebody must change.
"""

import codecs
import secrets
import selectors
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import psycopg
import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from icelake.errors import IcelakeError, Refused, Unreachable
from icelake.model.lsn import parse_lsn
from icelake.model.relation import TableId
from icelake.verify.pgtype import PgType, PgTypes

BATCH_BYTES = 4 << 20
"""About how much text becomes one batch. A single larger row comes alone."""

_SETTINGS = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "TimeZone": "UTC",
    "lc_monetary": "C",
    "search_path": "pg_catalog",
    # An error instead of rows silently left out.
    "row_security": "off",
    "statement_timeout": "0",
    "lock_timeout": "10s",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}

_COLUMNS = """
SELECT attname, attnum, attgenerated <> '', atttypid, atttypmod FROM pg_attribute
WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT 'tableoid', -6, true, 'oid'::regtype, -1 WHERE %(partitioned)s ORDER BY attnum
"""
_KEYS = """
SELECT array_agg(a.attname::text) FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
      AND k.place <= i.indnkeyatts
GROUP BY i.indexrelid HAVING bool_and(a.attnotnull)
"""
_FIND = """
SELECT c.oid, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""
# pg_class and pg_inherits are read as of the snapshot, the functions answer for now.
_LEAVES = """
WITH RECURSIVE tree (oid) AS (
    SELECT %(oid)s::oid UNION ALL SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
    WHERE %(partitioned)s AND NOT i.inhdetachpending
)
SELECT c.oid, c.oid::regclass::text, c.relkind,
       c.relfilenode IS NOT DISTINCT FROM pg_relation_filenode(c.oid)
       AND (NOT %(partitioned)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s::oid)))
FROM tree JOIN pg_class c USING (oid) WHERE c.relkind <> 'p' ORDER BY c.oid
"""
_BLOCKERS = """
SELECT b.pid, a.usename, a.application_name, a.state, extract(epoch FROM clock_timestamp() - a.xact_start)::int
FROM unnest(pg_blocking_pids(%s)) AS b(pid) LEFT JOIN pg_stat_activity a USING (pid)
"""


@dataclass(frozen=True, slots=True)
class SourceColumn:
    name: str
    attnum: int
    generated: bool
    """Or another that the mirror need not have: ``tableoid``, which tells the leaves of a partitioned table apart."""
    type: PgType


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table as the snapshot's catalogs describe it."""

    id: TableId
    oid: int
    columns: tuple[SourceColumn, ...]
    keys: frozenset[frozenset[str]]
    """The columns of each unique index whose columns are NOT NULL: what may name a row."""
    leaves: tuple[int, ...] | None = None
    """The partitions that hold the rows of a partitioned table, by OID; None for a plain table."""
    problems: tuple[str, ...] = ()


class SourceSnapshot:
    """``with SourceSnapshot(dsn) as source: source.take(seconds)``. Two connections at first, one after ``take``."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._walsender: psycopg.Connection[Any]
        self._reader: psycopg.Connection[Any]
        self._types: PgTypes
        self.system_id = ""
        self.lsn = 0
        """The consistent point L; known after ``take``."""
        self.pid = 0
        """The backend that holds the snapshot."""
        self.taken_at = 0.0
        """``time.monotonic()`` of ``take``."""

    def __enter__(self) -> Self:
        self._reader = self._connect()
        try:
            if self._reader.info.server_version < 140000:
                raise Refused(
                    "SOURCE_TOO_OLD",
                    f"PostgreSQL {self._reader.info.server_version // 10000} cannot be verified",
                    "before version 14 it counts times only in floating point",
                    "upgrade the source to 14 or newer",
                )
            self._walsender = self._connect(replication="database")
        except BaseException:
            self._reader.close()
            raise
        self.pid = self._reader.info.backend_pid
        self._types = PgTypes(self._reader)
        return self

    def __exit__(self, *exc: object) -> None:
        self._walsender.close()
        self._reader.close()

    def take(self, seconds: float) -> int:
        """Make the snapshot; gives L. Waits at most ``seconds`` for the transactions that run now to end.

        Raises Unreachable naming the process it waits for.
        """
        system = self._command("IDENTIFY_SYSTEM", seconds)
        self.system_id = _text(system, 0)
        name = f"icelake_verify_{secrets.token_hex(6)}"
        options = "(SNAPSHOT 'export')" if self._walsender.info.server_version >= 150000 else "EXPORT_SNAPSHOT"
        slot = self._command(f"CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput {options}", seconds)
        try:
            self._reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self._reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(_text(slot, 2))))
        except psycopg.Error as error:
            raise _translate(error) from error
        self.lsn = parse_lsn(_text(slot, 1))
        self.taken_at = time.monotonic()
        # The slot has done its work: without it neither a slot, nor a walsender, nor WAL is held.
        self._walsender.close()
        return self.lsn

    def describe(self, tables: Sequence[TableId]) -> dict[TableId, SourceTable | None]:
        """Lock the tables against being rewritten, and say what they are in the snapshot; None: there is no such table.

        Raises Unreachable if one was truncated, rewritten, altered or dropped since the snapshot was made.
        """
        try:
            return {table: self._describe(table) for table in tables}
        except psycopg.Error as error:
            raise _translate(error) from error

    def rows(self, table: SourceTable, expressions: Sequence[str]) -> Iterator[pa.Table]:
        """All rows of the table in no order: one string column ``c0, c1, ...`` an expression (PostgreSQL; its output text).

        Those of its own, not of its children; of a partitioned table those of the partitions it has in the snapshot.
        """
        where = sql.Identifier(table.id.namespace, table.id.name).as_string(self._reader)
        # ATTACH PARTITION does not wait for readers, and is not seen through a snapshot; DETACH is.
        leaves = None if table.leaves is None else ",".join(map(str, table.leaves))
        item = f"ONLY {where}" if leaves is None else f"{where} WHERE tableoid = ANY ('{{{leaves}}}'::oid[])"
        names = [f"c{number}" for number in range(len(expressions))]
        try:
            for block in self._copy(f"COPY (SELECT {', '.join(expressions)} FROM {item}) TO STDOUT (FORMAT csv)"):
                yield _parse(block, names)
        except psycopg.Error as error:
            raise _translate(error) from error

    def _describe(self, table: TableId) -> SourceTable | None:
        found = self._reader.execute(_FIND, (table.namespace, table.name)).fetchone()
        if found is None:
            return None
        oid, kind = found
        partitioned = kind == "p"
        name = sql.Identifier(table.namespace, table.name)
        # With its partitions, but without the tables that inherit from a plain one.
        self._reader.execute(sql.SQL("LOCK TABLE {} {} IN ACCESS SHARE MODE").format(sql.SQL("" if partitioned else "ONLY"), name))
        named = self._reader.execute("SELECT to_regclass(%s)::oid", (name.as_string(self._reader),)).fetchone()
        if named is None or named[0] != oid:
            raise _changed(f"{table} is another table now")
        leaves = self._reader.execute(_LEAVES, {"oid": oid, "partitioned": partitioned}).fetchall()
        for _, leaf, leaf_kind, same in leaves:
            if leaf_kind == "r" and not same:
                raise _changed(f"{leaf} was truncated, rewritten or detached")
        columns = self._reader.execute(_COLUMNS, {"oid": oid, "partitioned": partitioned}).fetchall()
        return SourceTable(
            table,
            oid,
            tuple(
                SourceColumn(column, attnum, generated, self._types.read(type_oid, typmod))
                for column, attnum, generated, type_oid, typmod in columns
            ),
            frozenset(frozenset(row[0]) for row in self._reader.execute(_KEYS, (oid,))),
            tuple(leaf[0] for leaf in leaves) if partitioned else None,
            tuple(f"the partition {leaf} is a foreign table: no snapshot holds its rows" for _, leaf, kind, _ in leaves if kind == "f"),
        )

    def _connect(self, **options: str) -> psycopg.Connection[Any]:
        try:
            given = conninfo_to_dict(self._dsn)
        except psycopg.ProgrammingError:
            # libpq's message repeats parts of the text, and the password may be among them.
            raise Refused(
                "SOURCE_BAD_DSN", "the source's address is not a PostgreSQL connection string", "", "see libpq, Connection Strings"
            ) from None
        given.setdefault("connect_timeout", "10")
        try:
            connection = psycopg.connect(make_conninfo("", **{**given, "application_name": "icelake verify", **options}), autocommit=True)
        except psycopg.OperationalError as error:
            # No SQLSTATE comes with a refused connection, only the server's words.
            raise Unreachable(
                "VERIFY_NO_WALSENDER" if options else "SOURCE_UNREACHABLE",
                str(error).strip(),
                "verify needs a replication connection for a moment" if options else "no connection to the source",
                "ALTER ROLE ... REPLICATION; a free walsender (max_wal_senders)"
                if options
                else "check that the server runs, and the address, user, password and database",
            ) from error
        try:
            settings = dict(_SETTINGS)
            if connection.info.server_version >= 170000:
                settings["transaction_timeout"] = "0"
            if not options:
                for name, value in settings.items():
                    connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        except BaseException as error:
            connection.close()
            if isinstance(error, psycopg.Error):
                raise _translate(error) from error
            raise
        return connection

    def _command(self, command: str, seconds: float) -> pq.abc.PGresult:
        pgconn = self._walsender.pgconn
        deadline = time.monotonic() + seconds
        try:
            pgconn.send_query(command.encode())
            while pgconn.is_busy():
                if time.monotonic() > deadline:
                    raise self._waits_for(seconds)
                _wait(pgconn, 0.2)
            result = pgconn.get_result()
            while pgconn.get_result() is not None:
                pass
        except BaseException as error:
            # A backend that waits for a transaction does not notice that its client has gone.
            if not self._walsender.closed:
                self._walsender.cancel_safe(timeout=5.0)
            if isinstance(error, psycopg.Error):
                raise _translate(error) from error
            raise
        assert result is not None
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise _translate(psycopg.errors.error_from_result(result))
        return result

    def _waits_for(self, seconds: float) -> IcelakeError:
        rows = self._reader.execute(_BLOCKERS, (self._walsender.info.backend_pid,)).fetchall()
        who = [
            f"pid {pid} ({user}, {application or 'no application name'}, {state}, transaction open for {age} s)"
            if user is not None
            else "a prepared transaction (see pg_prepared_xacts)"
            for pid, user, application, state, age in rows
        ]
        return Unreachable(
            "VERIFY_WAITS_FOR_TRANSACTION",
            f"no snapshot within {seconds:g} s",
            f"it has to wait for the transactions that were running: {'; '.join(who) or 'none is named by pg_blocking_pids'}",
            "run verify again when that transaction is over, or end it: SELECT pg_terminate_backend(pid)",
        )

    def _copy(self, command: str) -> Iterator[bytes]:
        """Blocks of whole CSV rows. psycopg's own Copy costs several times as much a row."""
        pgconn = self._reader.pgconn
        parts: list[bytes | memoryview] = []
        size = 0
        try:
            pgconn.send_query(command.encode())
            result = self._result(pgconn)
            if result is None or result.status != pq.ExecStatus.COPY_OUT:
                assert result is not None
                self._drain(pgconn)
                raise psycopg.errors.error_from_result(result)
            while True:
                count, data = pgconn.get_copy_data(1)
                if count > 0:
                    parts.append(data)
                    size += count
                    if size >= BATCH_BYTES:
                        yield b"".join(parts)
                        parts, size = [], 0
                elif count == 0:
                    _wait(pgconn, 1.0)
                else:
                    break
            if parts:
                yield b"".join(parts)
            result = self._result(pgconn)
            self._drain(pgconn)
            assert result is not None
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result)
        except BaseException:
            # Left in the middle of a COPY, or in a failed transaction: nothing more can be read over it.
            self._reader.close()
            raise

    @staticmethod
    def _result(pgconn: pq.abc.PGconn) -> pq.abc.PGresult | None:
        while pgconn.is_busy():
            _wait(pgconn, 1.0)
        return pgconn.get_result()

    def _drain(self, pgconn: pq.abc.PGconn) -> None:
        while self._result(pgconn) is not None:
            pass


def _wait(pgconn: pq.abc.PGconn, seconds: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ)
        if selector.select(seconds):
            pgconn.consume_input()


def _parse(block: bytes, names: Sequence[str]) -> pa.Table:
    # PostgreSQL sends a row a message, so a block never ends inside a row, and quotes '' but not NULL.
    if block.startswith(codecs.BOM_UTF8):
        block = codecs.BOM_UTF8 + block  # the parser takes one away
    return pa_csv.read_csv(
        pa.BufferReader(block),  # type: ignore[arg-type]  # the stubs know only Python files
        read_options=pa_csv.ReadOptions(column_names=list(names), block_size=len(block) + 1, use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _text(result: pq.abc.PGresult, column: int) -> str:
    value = result.get_value(0, column)
    assert value is not None
    return bytes(value).decode()


def _changed(what: str) -> Unreachable:
    return Unreachable("VERIFY_TABLE_CHANGED", what, "it happened while verify was making its snapshot", "run verify again")


def _translate(error: psycopg.Error) -> IcelakeError:
    state = error.sqlstate or ""
    message = (error.diag.message_primary or str(error)).strip()
    if state in ("42P01", "42703", "3F000"):
        return _changed(message)
    if state == "55P03":
        return Unreachable(
            "VERIFY_TABLE_LOCKED",
            message,
            "somebody holds a table exclusively",
            "run verify again when ALTER, TRUNCATE or VACUUM FULL is over",
        )
    if state in ("53400", "53300"):
        return Unreachable(
            "VERIFY_NO_SLOT",
            message,
            "verify needs one replication slot and one walsender for a moment",
            "raise max_replication_slots / max_wal_senders, or drop a slot nobody uses",
        )
    if state == "42501":
        return Refused(
            "VERIFY_PRIVILEGE",
            message,
            "verify must see every row, and needs the REPLICATION attribute for its snapshot",
            "ALTER ROLE ... REPLICATION; GRANT SELECT ON ... TO ...; BYPASSRLS where a table has row-level security",
        )
    if state == "55000":
        return Refused(
            "VERIFY_NOT_LOGICAL", message, "a snapshot at an LSN needs wal_level = logical", "set wal_level = logical and restart"
        )
    if state[:2] in ("", "08", "57", "58", "53"):
        return Unreachable(
            "SOURCE_UNREACHABLE", message, "the connection to PostgreSQL failed", "check that the server runs; then run verify again"
        )
    return Refused("VERIFY_SOURCE_FAILED", message, f"PostgreSQL answered with SQLSTATE {state}", "see the server's log")
