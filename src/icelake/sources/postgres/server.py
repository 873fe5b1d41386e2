"""A PostgreSQL database as ``ports.Source``: who it is, what its tables are, its publication and slot, and ranges of its rows.

Promises: a range is read exactly as of the consistent point it names; the publication and the slot are made once and never
replaced; every session is short and bounded by time-outs except the reading of a range. Never writes to a user's table, never
drops anything but the slot it is asked to drop, never publishes a table whose updates or deletes would then fail for its owner.
Fails with the errors of ``session.explain``.
"""

import secrets
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import psycopg
import pyarrow as pa
from psycopg import pq, sql

from icelake.errors import Gap, Refused, Unreachable
from icelake.model.ident import append_publication
from icelake.model.load import Bound, leaf_bounds
from icelake.model.lsn import parse_lsn
from icelake.model.membership import Leaf, Membership
from icelake.model.relation import TABLEOID, Refusal, Relation, SlotState, SourceIdentity, TableId
from icelake.ports import RangeEnd, RangeRead
from icelake.sources.postgres import releases, schema
from icelake.sources.postgres.copy_out import Ahead, copied
from icelake.sources.postgres.copy_text import decode_copy, last_line
from icelake.sources.postgres.session import Connection, Kept, connect, explain, explain_state, readable, run, session
from icelake.sources.postgres.stream import PgStream, slot_in_use, slot_state

_COMPARE = "`icelake resume --reload` compares every table with the source"
EVERYTHING = "insert, update, delete, truncate"
_APPEND = "insert, truncate"
"""What the publications send. Updates and deletes of a table whose rows nothing names would fail for its users once published."""


class PostgresSource:
    """Implements ``ports.Source`` over psycopg. Holds no connection between calls but those of the stream it gave last.

    ``slot_seconds``: how long to wait for running transactions before giving up making a slot, and for another walsender to
    let go of ours. ``buffer_bytes``: how much of the stream is received ahead. ``piece_bytes``: of the log are fetched at once as long
    as the stream is that far behind. ``append_only``: tables (``schema.name``) that are
    mirrored by their inserts and truncates alone.
    """

    def __init__(
        self,
        dsn: str,
        name: str = "source",
        *,
        append_only: Collection[str] = (),
        slot_seconds: float = 60.0,
        busy_seconds: float = 5.0,
        buffer_bytes: int = 1 << 26,
        piece_bytes: int | None = 1 << 26,
    ) -> None:
        self.append_only = frozenset(append_only)
        self.dsn = dsn
        self.name = name
        self.slot_seconds = slot_seconds
        self.busy_seconds = busy_seconds
        self.buffer_bytes = buffer_bytes
        self.piece_bytes = piece_bytes
        self._kept: Kept | None = None
        """The session of the stream, which asks for what is published at every commit."""

    def identify(self) -> SourceIdentity:
        with session(self.dsn, "cannot identify the server", replication=True) as server:
            system_id, timeline, flushed, database = run(server, "IDENTIFY_SYSTEM")[0]
            return SourceIdentity(str(system_id), int(timeline), str(database), server.info.server_version, parse_lsn(str(flushed)))

    def switched_from(self, timeline: int) -> int | None:
        """See ``ports.Source.switched_from``. PostgreSQL documentation, 54.4 (TIMELINE_HISTORY)."""
        with session(self.dsn, "cannot read the server's timelines", replication=True) as server:
            now = int(run(server, "IDENTIFY_SYSTEM")[0][1])
            if now <= timeline:
                return None
            content = run(server, sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(now)))[0][1]
        text = content.decode() if isinstance(content, bytes) else str(content)
        for line in text.splitlines():
            # parent timeline, where it was left, why
            parts = line.split("#")[0].split(maxsplit=2)
            if len(parts) >= 2 and int(parts[0]) == timeline:
                return parse_lsn(parts[1])
        return None

    def current_lsn(self) -> int:
        """Every commit acknowledged to a client before this call ends before this position (it is flushed)."""
        with session(self.dsn, "cannot ask for the position") as server:
            return parse_lsn(str(run(server, "select pg_catalog.pg_current_wal_flush_lsn()")[0][0]))

    # ------------------------------------------------------------------------------------------------- tables, publication

    def describe(self, tables: Sequence[str]) -> Sequence[Relation | Refusal]:
        with session(self.dsn, "cannot look up the tables") as server:
            return schema.describe(server, tables, self.append_only)

    def publish(self, publication: str, relations: Sequence[Relation]) -> None:
        """See ``ports.Source.publish``. Raises Refused NOT_TABLE_OWNER / PUBLICATION_CHANGED, UnsupportedTable."""
        with session(self.dsn, "cannot publish the tables") as server:
            for name, operations in _publications(publication).items():
                self._publish(
                    server, publication, name, operations, [one for one in relations if (one.identity == "none") == (operations == _APPEND)]
                )

    def _publish(self, server: Connection, slot: str, publication: str, operations: str, relations: Sequence[Relation]) -> None:
        there = published(server, publication, operations)
        leaves = _leaves_outside(server, publication, [relation.oid for relation in relations if relation.partitioned])
        missing = [one for one in relations if (one.oid in leaves if one.partitioned else one.id not in (there or ()))]
        # The lake's slot is called like its first publication (model.ident). Without one nothing was missed by anybody.
        forgets = releases.forgets_late_tables(server.info.server_version) is not None
        late = forgets and bool(relations) and there is not None and slot_state(server, slot) is not None
        if there is not None and not missing:
            # It may have been added by a process that did not live to go on from there.
            if late:
                self._remind(server, publication, relations)
            return
        for relation in missing:
            schema.must_be(relation, _now(server, relation), "cannot be published")
        name = sql.Identifier(publication)
        tables = [table for relation in missing for table in (leaves[relation.oid] if relation.partitioned else [_table(relation)])]
        listed = sql.SQL("TABLE ") + sql.SQL(", ").join(sql.SQL("ONLY {}").format(table) for table in tables)
        if there is None:
            statement = sql.SQL("CREATE PUBLICATION {} {} WITH (publish = {})").format(
                name, sql.SQL("FOR ") + listed if tables else sql.SQL(""), sql.Literal(operations)
            )
        else:
            statement = sql.SQL("ALTER PUBLICATION {} ADD {}").format(name, listed)
        try:
            run(server, statement)
        except psycopg.errors.DuplicateObject:
            # Somebody was faster with the same: what matters is what is there now.
            now = published(server, publication, operations)
            if now is None or not {relation.id for relation in relations if not relation.partitioned} <= now.keys():
                raise
            if _leaves_outside(server, publication, [relation.oid for relation in relations if relation.partitioned]):
                raise
        except psycopg.errors.InsufficientPrivilege as error:
            if operations == _APPEND and not missing:
                return  # whoever made the other publication need not make one that holds nothing
            role = schema.quoted(server.info.user)
            raise Refused(
                "NOT_TABLE_OWNER",
                f"cannot publish {', '.join(str(relation.id) for relation in missing)}",
                f"{error.diag.message_primary}: only its owner may publish a table, and a publication needs CREATE on the database",
                f"GRANT CREATE ON DATABASE {schema.quoted(server.info.dbname)} TO {role}; ALTER TABLE … OWNER TO {role}; "
                f"or have the owner run: {statement.as_string(server)};",
            ) from None
        if late:
            self._remind(server, publication, relations)

    def _remind(self, server: Connection, publication: str, relations: Sequence[Relation]) -> None:
        """Make the walsender see tables that were added, on a server where it may not (``releases.forgets_late_tables``).

        A transaction that wrote to the table before it joined (A) and is decoded after A is decoded with the catalog as of its
        first change, and what that says, "not published", stays in the walsender's caches: A's own invalidation was executed
        before. From there on, changes to the table are lost, of any transaction. What such transactions wrote themselves is in
        the ranges: these are read later, and making their slot waits for every running transaction. So: wait until all that ran
        at A have ended, which making a slot does, and then have another invalidation sent (B). Whatever is decoded after B began
        to write after A, sees the table published, and nothing can make the caches forget it. B must be a row of
        pg_publication_rel: altering the publication's options leaves the list of a table's publications cached as it was.
        """
        with session(self.dsn, f"cannot wait for transactions older than publication {publication}", replication=True) as waiting:
            self._make_slot(waiting, f"icelake_wait_{secrets.token_hex(8)}", "TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        name = sql.Identifier(f"icelake_wait_{secrets.token_hex(8)}")
        owned = next((relation for relation in relations if schema.may_publish(server, relation.oid)), relations[0])
        try:
            with server.transaction():
                run(server, sql.SQL("CREATE PUBLICATION {} FOR TABLE ONLY {}").format(name, _table(owned)))
                run(server, sql.SQL("DROP PUBLICATION {}").format(name))
        except psycopg.errors.InsufficientPrivilege as error:
            version, role = server.info.server_version, schema.quoted(server.info.user)
            table = schema.qualified(owned.schema, owned.name)
            raise Refused(
                "LATE_TABLE_ON_OLD_RELEASE",
                f"PostgreSQL {releases.shown(version)} can lose changes to tables that join publication {publication} now",
                f"the server must be reminded of them by a publication made and dropped, and {error.diag.message_primary}",
                f"update to PostgreSQL {releases.forgets_late_tables(version)} or later; or "
                f"GRANT CREATE ON DATABASE {schema.quoted(server.info.dbname)} TO {role}; ALTER TABLE {table} OWNER TO {role};",
            ) from None

    def published(self, publication: str) -> Mapping[TableId, str]:
        doing = "cannot look up the publication"
        if self._kept is not None:
            return self._kept.ask(doing, partial(_published, publication))
        with session(self.dsn, doing) as server:
            return _published(publication, server)

    def withdraw(self, publication: str) -> Mapping[TableId, str]:
        out: dict[TableId, str] = {}
        with session(self.dsn, "cannot take tables out of the publication") as server:
            unnamed = run(
                server,
                f"""
                select rn.nspname, root.relname, n.nspname, c.relname
                from pg_catalog.pg_publication p
                join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
                join pg_catalog.pg_class c on c.oid = r.prrelid
                join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                join pg_catalog.pg_class root on root.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)
                join pg_catalog.pg_namespace rn on rn.oid = root.relnamespace
                where p.pubname = %s and p.pubupdate and {_UNNAMED} order by c.oid""",
                [publication],
            )
            for namespace, name, *itself in unnamed:
                table = TableId(str(namespace), str(name))
                item = sql.SQL("ALTER PUBLICATION {} DROP TABLE ONLY {}")
                statement = item.format(sql.Identifier(publication), sql.Identifier(*map(str, itself)))
                left = ""
                try:
                    # Its owner may be building an index, whose end would wait for us.
                    with server.transaction():
                        server.execute("SET LOCAL lock_timeout = '100ms'")
                        server.execute(statement)
                except (psycopg.errors.UndefinedObject, psycopg.errors.UndefinedTable):
                    pass  # someone took it out, or dropped it, just now
                except psycopg.errors.LockNotAvailable:
                    left = "somebody works on the table: it is taken out of the publication when that is over"
                except psycopg.errors.InsufficientPrivilege:
                    left = f"meanwhile have the publication's owner run: {statement.as_string(server)};"
                out[table] = out.get(table) or left
        return out

    # ---------------------------------------------------------------------------------------------------------------- slot

    def slot(self, name: str) -> SlotState | None:
        with session(self.dsn, "cannot look up the slot") as server:
            return slot_state(server, name)

    def create_slot(self, name: str) -> int:
        """See ``ports.Source.create_slot``. Raises Refused SLOT_EXISTS / WAL_LEVEL / NO_REPLICATION_PRIVILEGE and Unreachable
        SLOT_WAITS_FOR_TRANSACTION / NO_FREE_SLOT / NO_FREE_WALSENDER."""
        with session(self.dsn, f"cannot make slot {name}", replication=True) as server:
            # A slot that follows a failover costs nothing where there is no standby.
            options = "(SNAPSHOT 'nothing', FAILOVER true)" if server.info.server_version >= 170000 else "NOEXPORT_SNAPSHOT"
            try:
                return self._make_slot(server, name, f"LOGICAL pgoutput {options}")[0]
            except Refused as refused:
                if refused.code == "SOURCE_ERROR" and self.slot(name) is not None:
                    raise Refused("SLOT_EXISTS", f"slot {name} exists already", refused.why, "use it, or drop it first") from None
                raise

    def drop_slot(self, name: str) -> None:
        """A slot that is not there is fine. Raises Refused SLOT_IN_USE."""
        with session(self.dsn, f"cannot drop slot {name}") as server:
            try:
                run(server, "select pg_catalog.pg_drop_replication_slot(%s)", [name])
            except psycopg.errors.UndefinedObject:
                return
            except psycopg.errors.ObjectInUse as error:
                raise slot_in_use(name, str(error.diag.message_primary)) from None

    def _make_slot(self, server: Connection, name: str, how: str) -> tuple[int, str]:
        """(consistent point, name of the exported snapshot or ''). Bounded: PostgreSQL waits for every running transaction."""
        pgconn = server.pgconn
        deadline = time.monotonic() + self.slot_seconds
        pgconn.send_query(f"CREATE_REPLICATION_SLOT {schema.quoted(name)} {how}".encode())
        waited_out, blocking = False, ""
        while pgconn.is_busy():
            if not readable(pgconn.socket, deadline - time.monotonic()):
                if waited_out:
                    raise Unreachable("SOURCE_UNREACHABLE", f"cannot make slot {name}", "the server does not answer", "it is tried again")
                waited_out, blocking = True, _who_blocks(self.dsn, pgconn.backend_pid)
                server.cancel_safe(timeout=5)
                deadline = time.monotonic() + 10
                continue
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.TUPLES_OK:
            point, snapshot = result.get_value(0, 1), result.get_value(0, 2)
            assert point is not None
            return parse_lsn(point.decode()), (snapshot or b"").decode()
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode() if result is not None else ""
        said = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode() if result is not None else ""
        if waited_out:
            raise Unreachable(
                "SLOT_WAITS_FOR_TRANSACTION",
                f"a replication slot could not be made within {self.slot_seconds:g} s",
                f"PostgreSQL first waits for every running transaction to end: {blocking}",
                "it is tried again; end the transaction, or SELECT pg_terminate_backend(pid)",
            )
        raise explain_state(state, said, self.dsn, "cannot make a replication slot")

    # -------------------------------------------------------------------------------------------------------------- stream

    def stream(self, slot: str, publication: str, start: int, relations: Sequence[Relation], parked: Sequence[Relation] = ()) -> PgStream:
        """See ``ports.Source.stream``. Raises Gap SLOT_MISSING / SLOT_LOST / SLOT_AHEAD, Refused SLOT_IN_USE /
        PUBLICATION_CHANGED, UnsupportedTable when a table is not what the lake holds."""
        unpublished = {relation.id for relation in relations} - self.published(publication).keys()
        if unpublished:
            raise Refused(
                "PUBLICATION_CHANGED",
                f"publication {publication} no longer holds {', '.join(sorted(map(str, unpublished)))}",
                "changes made while a table was out of it were never sent",
                f"{_COMPARE}, `icelake resume TABLE --reload` one",
                table=str(min(unpublished, key=str)),
            )
        deadline = time.monotonic() + self.busy_seconds
        while True:
            # A walsender outlives its client by a moment.
            state = self.slot(slot)
            if state is None:
                raise Gap(
                    "SLOT_MISSING",
                    f"slot {slot} does not exist",
                    "it was dropped, or the server was replaced",
                    _COMPARE,
                )
            if state.lost is not None:
                raise Gap(
                    "SLOT_LOST",
                    f"slot {slot} is lost",
                    state.lost,
                    f"raise max_slot_wal_keep_size so it does not happen again; then {_COMPARE}",
                )
            try:
                held = self._by_oid(relations)
                # A parked table may be a leaf of another by now: its changes are that one's.
                raw = {oid: relation for oid, relation in self._by_oid(parked).items() if oid not in held}
                stream = PgStream(
                    self.dsn, slot, self._both(publication), start, held, raw, buffer_bytes=self.buffer_bytes, piece_bytes=self.piece_bytes
                )
                break
            except Refused as refused:
                if refused.code != "SLOT_IN_USE" or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)
        self._kept = stream.kept
        stream.receive()
        return stream

    def _by_oid(self, relations: Sequence[Relation]) -> dict[int, Relation]:
        """Whose changes come under which OID: those of a partitioned table under the OIDs of its leaves."""
        found = {relation.oid: relation for relation in relations if not relation.partitioned}
        if roots := {relation.oid: relation for relation in relations if relation.partitioned}:
            with session(self.dsn, "cannot look up the partitions") as server:
                found |= {leaf.oid: roots[leaf.root] for leaf in schema.leaves_of(server, list(roots))}
        return found

    def _both(self, publication: str) -> list[str]:
        """The publications to ask for. Before PostgreSQL 18 a stream ends with an error at one that does not exist."""
        append = append_publication(publication)
        with session(self.dsn, "cannot look up the publication") as server:
            found = run(server, "select from pg_catalog.pg_publication p where p.pubname = %s", [append])
        return [publication, append] if found else [publication]

    # --------------------------------------------------------------------------------------------------------------- ranges

    def read_range(self, relation: Relation, lower: Bound | None, upper: Bound | None, limit: int) -> "RangeReading":
        return RangeReading(self, relation, lower, upper, limit)

    def exported_snapshot(self, held: ExitStack) -> tuple[int, int, Connection]:
        """(consistent point L, its timeline, a session reading exactly what was committed before L, which lives as long as ``held``).

        The slot and its walsender are given back at once: the snapshot holds what it needs by itself.
        """
        reader = held.enter_context(closing(connect(self.dsn, statement_seconds=0)))
        with session(self.dsn, "cannot take a snapshot", replication=True) as server:
            timeline = int(run(server, "IDENTIFY_SYSTEM")[0][1])
            name = f"icelake_read_{secrets.token_hex(8)}"
            lsn, snapshot = self._make_slot(server, name, "TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT")
            run(reader, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            run(reader, sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        return lsn, timeline, reader


class RangeReading:
    """The context manager of ``read_range``: enter it to get the snapshot, leave it to let the snapshot go."""

    def __init__(self, source: PostgresSource, relation: Relation, lower: Bound | None, upper: Bound | None, limit: int) -> None:
        inside = [bound for bound in (lower, upper) if bound is not None and not _between_leaves(relation, bound)]
        if not relation.key_is_ordered and not _single(lower, upper) and inside:
            raise ValueError(f"{relation.id} is read whole or by single keys: the order of its key is not known here")
        self._source = source
        self._relation = relation
        self._lower = lower
        self._upper = upper
        self._limit = limit if relation.key_is_ordered else None
        self._enough = limit
        self._held = ExitStack()

    def __enter__(self) -> RangeRead:
        doing = f"cannot read {self._relation.id}"
        try:
            lsn, timeline, reader = self._source.exported_snapshot(self._held)
            known = self._check(reader)
            end = RangeEnd()
            rows = self._held.enter_context(closing(Ahead(partial(self._rows, reader, end))))
            return RangeRead(lsn, rows, end, timeline, known)
        except psycopg.Error as error:
            self._held.close()
            raise explain(error, self._source.dsn, doing) from error
        except BaseException:
            self._held.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self._held.close()

    def _check(self, reader: Connection) -> int:
        """The table is still what the lake holds, and the rows of a plain one are the snapshot's. A leaf's turn comes when it is read.

        How many rows it has, by the server's statistics; 0 if it never counted them.
        """
        relation = self._relation
        found = run(reader, "select relfilenode, greatest(reltuples, 0)::bigint from pg_catalog.pg_class where oid = %s", [relation.oid])
        if not relation.partitioned:
            if not self._lock(reader, _table(relation)) or not found:
                schema.must_be(relation, None, "cannot be read")
        # Not by the reader: its catalog is that of the snapshot, while COPY goes by today's.
        with session(self._source.dsn, f"cannot look up {relation.id}") as today:
            schema.must_be(relation, _now(today, relation), "cannot be read")
        if not relation.partitioned:
            self._same_storage(reader, relation.oid, _table(relation), found[0][0])
        return int(found[0][1]) if found else 0

    def _lock(self, reader: Connection, name: sql.Identifier) -> bool:
        """Whether there is a table of that name."""
        try:
            run(reader, sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(name))
        except psycopg.errors.UndefinedTable:
            return False
        return True

    def _same_storage(self, reader: Connection, oid: int, name: sql.Identifier, storage: int) -> None:
        """The locked table of that name is the one the snapshot knows, and has the rows it had.

        TRUNCATE and rewriting ALTERs are not MVCC-safe (PostgreSQL documentation, 13.6): a snapshot taken before one would see
        an empty table. From the lock on there can be none; whether there was one shows in the file the snapshot knows.
        """
        now = run(reader, "select %s::regclass::oid, pg_catalog.pg_relation_filenode(%s::oid)", [name.as_string(reader), oid])
        if tuple(now[0]) != (oid, storage):
            raise self._just_changed("truncated or rewritten")

    def _just_changed(self, how: str) -> Unreachable:
        return Unreachable(
            "TABLE_REWRITTEN",
            f"cannot read {self._relation.id} as of the snapshot just taken",
            f"it was {how} in that moment",
            "it is tried again",
        )

    def _parts(self, reader: Connection) -> Iterator[tuple[sql.Identifier, Bound | None, Bound | None, Bound | None]]:
        """What holds the range's rows, in key order: the table, or the leaves it has in the snapshot, locked.

        Each with the bounds within it, and the bound behind it if the range may be cut there.
        """
        relation = self._relation
        if not relation.partitioned:
            yield _table(relation), self._lower, self._upper, None
            return
        for leaf in schema.leaves_of(reader, [relation.oid]):
            within = _within_leaf(self._lower, self._upper, leaf.oid) if relation.key else (None, None)
            if within is None:
                continue
            name = sql.Identifier(leaf.schema, leaf.name)
            if not self._lock(reader, name):
                raise self._just_changed("partitioned otherwise")
            self._same_storage(reader, leaf.oid, name, leaf.storage)
            yield name, *within, leaf_bounds(leaf.oid)[1] if relation.key and within[1] is None else None

    def _rows(self, reader: Connection, end: RangeEnd, wanted: Callable[[], bool]) -> Generator[pa.RecordBatch, None, None]:
        relation = self._relation
        count, last = 0, b""
        try:
            for table, lower, upper, behind in self._parts(reader):
                limit = None if self._limit is None else self._limit - count
                statement = range_query(relation, lower, upper, limit, table)
                # A thread that only receives, or the server would wait while a block is decoded.
                with closing(Ahead(partial(copied, reader, statement), wanted)) as blocks:
                    for block in blocks:
                        rows = decode_copy(block, relation.columns, str(relation.id))
                        count, last = count + rows.num_rows, block
                        yield rows
                if count >= self._enough and self._limit is None and behind is not None:
                    end.bound = behind
                    return
                if self._limit is not None and count >= self._limit:
                    break
        except psycopg.errors.UndefinedColumn:
            # Of a leaf that was not locked yet when the shape was looked at.
            raise self._just_changed("altered") from None
        except psycopg.Error as error:
            raise explain(error, self._source.dsn, f"cannot read {relation.id}") from error
        if self._limit is None or count < self._limit:
            end.bound = self._upper
            return
        texts = dict(zip((column.name for column in relation.columns), last_line(last, len(relation.columns)), strict=True))
        end.bound = tuple(texts[name] or "" for name in relation.key), 1


def range_query(
    relation: Relation, lower: Bound | None, upper: Bound | None, limit: int | None, table: sql.Identifier | None = None
) -> sql.Composed:
    """The SELECT of a range, in key order if ``limit`` is given. Its text form is what pgoutput prints: no cast in the list.

    ``table``: the leaf that holds the rows, of a partitioned table; bounds and order are then those of the key within the leaf.
    """
    key = tuple(column for column in relation.key_columns if column.attnum != TABLEOID)
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in key)
    conditions: list[sql.Composable] = []
    for bound, after, before in ((lower, ">", ">="), (upper, "<=", "<")):
        if bound is None:
            continue
        # Bare literals: PostgreSQL reads each as the type of the column it is compared with.
        values = sql.SQL(", ").join(sql.Literal(text) for text in bound[0])
        conditions.append(sql.SQL("ROW({}) {} ROW({})").format(names, sql.SQL(after if bound[1] else before), values))
    if lower is not None and upper is not None and _single(lower, upper):
        # 1.0 and 1.00 are equal numerics, as 'a' and 'A' are equal citexts, but not the same key: the lake keeps their text.
        # concat() gives what the type's output function prints, where a cast to text may not (char(n) loses its padding).
        conditions += [
            sql.SQL('pg_catalog.concat({}) = {} COLLATE "C"').format(sql.Identifier(column.name), sql.Literal(text))
            for text, column in zip(lower[0], key, strict=True)
            if column.iceberg == "string"
        ]
    query = sql.SQL("SELECT {} FROM ONLY {}").format(
        sql.SQL(", ").join(sql.Identifier(column.name) for column in relation.columns), table or _table(relation)
    )
    if conditions:
        query += sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions)
    if limit is not None:
        query += sql.SQL(" ORDER BY {} LIMIT {}").format(names, sql.Literal(limit))
    return query


def _published(publication: str, server: Connection) -> Mapping[TableId, str]:
    """See ``ports.Source.published``."""
    found: dict[TableId, str] = {}
    for name, operations in _publications(publication).items():
        there = published(server, name, operations)
        if there is None and name == publication:
            raise Refused(
                "PUBLICATION_CHANGED",
                f"publication {publication} is gone",
                "changes made while it was gone were never sent",
                _COMPARE,
            )
        # A table in both sends all of its changes, as the first of them says.
        found = {**(there or {}), **found}
    return {**found, **_roots(server, list(_publications(publication)))}


def _publications(publication: str) -> dict[str, str]:
    """The two publications of a mirror, by name, and what each publishes: the tables whose rows can be named, and the others."""
    return {publication: EVERYTHING, append_publication(publication): _APPEND}


def _now(server: Connection, relation: Relation) -> Relation | Refusal | None:
    return schema.describe_oid(server, relation.oid, append_only=relation.identity == "none")


def _table(relation: Relation) -> sql.Identifier:
    return sql.Identifier(relation.schema, relation.name)


def _single(lower: Bound | None, upper: Bound | None) -> bool:
    return lower is not None and upper is not None and lower[0] == upper[0]


def _between_leaves(relation: Relation, bound: Bound) -> bool:
    """Whether a bound of a partitioned table falls between two leaves (``model.load.leaf_bounds``)."""
    return relation.partitioned and len(bound[0]) == 1


def _within_leaf(lower: Bound | None, upper: Bound | None, leaf: int) -> tuple[Bound | None, Bound | None] | None:
    """The part of a range that is in one leaf, as bounds of the rest of the key; None if there is none."""
    bounds: list[Bound | None] = []
    for bound, is_lower in ((lower, True), (upper, False)):
        there = leaf if bound is None else int(bound[0][0])
        if bound is None or (there < leaf if is_lower else there > leaf):
            bounds.append(None)
        elif there != leaf:
            return None
        elif len(bound[0]) == 1:
            # Just before the leaf's first row.
            if not is_lower:
                return None
            bounds.append(None)
        else:
            bounds.append((bound[0][1:], bound[1]))
    return bounds[0], bounds[1]


def _leaves_outside(server: Connection, publication: str, roots: Sequence[int]) -> dict[int, list[sql.Identifier]]:
    """The leaves of these partitioned tables that are not in the publication, by root."""
    found: dict[int, list[sql.Identifier]] = {}
    if roots:
        there = run(
            server,
            """select r.prrelid from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
               where p.pubname = %s""",
            [publication],
        )
        members = {row[0] for row in there}
        for leaf in schema.leaves_of(server, roots):
            if leaf.oid not in members:
                found.setdefault(leaf.root, []).append(sql.Identifier(leaf.schema, leaf.name))
    return found


# What the publication sends may have been changed and changed back (its xmin).
_MEMBER = "concat_ws('.', p.oid, p.xmin, r.oid)"
_ATTRIBUTES = """
    (select md5(string_agg(a.attnum || ':' || a.xmin, ',' order by a.attnum))
     from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)"""
# What PostgreSQL asks before it lets anyone update or delete a row of a published table (RelationGetIndexList).
_UNNAMED = """
    case c.relreplident
    when 'n' then true
    when 'f' then current_setting('server_version_num')::int >= 180000
         and exists (select from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attgenerated <> '' and not a.attisdropped)
    else not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indimmediate and i.indisvalid
                     and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end) end"""


def published(server: Connection, publication: str, operations: str) -> dict[TableId, str] | None:
    """Its tables, each with its mark (``model.membership``); None if there is no such publication.

    Raises Refused if it does not send exactly these operations, or not whole.
    """
    # TABLES IN SCHEMA came with PostgreSQL 15.
    schemas = "false"
    if server.info.server_version >= 150000:
        schemas = "exists (select from pg_catalog.pg_publication_namespace s where s.pnpubid = p.oid)"
    found = run(
        server,
        f"""
        select p.puballtables or {schemas},
               concat_ws(', ', case when p.pubinsert then 'insert' end, case when p.pubupdate then 'update' end,
                               case when p.pubdelete then 'delete' end, case when p.pubtruncate then 'truncate' end), p.pubviaroot,
               coalesce(to_jsonb(p) ->> 'pubgencols', 'n') <> 'n',
               exists (select from pg_catalog.pg_publication_rel r where r.prpubid = p.oid
                       and (to_jsonb(r) ->> 'prqual' is not null or to_jsonb(r) ->> 'prattrs' is not null))
        from pg_catalog.pg_publication p where p.pubname = %s""",
        [publication],
    )
    if not found:
        return None
    more, publishes, via_root, generated, filtered = found[0]
    wrong = [
        text
        for is_so, text in (
            (more, "it publishes all tables, or whole schemas"),
            (publishes != operations, f"it does not publish {operations}, but {publishes or 'nothing'}"),
            (via_root, "publish_via_partition_root is on"),
            (generated, "it publishes generated columns"),
            (filtered, "it has a row filter or a column list"),
        )
        if is_so
    ]
    if wrong:
        raise Refused(
            "PUBLICATION_CHANGED",
            f"publication {publication} does not send what it should",
            "; ".join(wrong),
            f"DROP PUBLICATION {schema.quoted(publication)};  then `icelake resume --reload` compares every table with the source",
        )
    rows = run(
        server,
        f"""
        select n.nspname, c.relname, {_MEMBER}, c.relfilenode, {_ATTRIBUTES}, p.pubupdate and {_UNNAMED}
        from pg_catalog.pg_publication p
        join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
        join pg_catalog.pg_class c on c.oid = r.prrelid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where p.pubname = %s and not c.relispartition""",
        [publication],
    )
    return {TableId(str(row[0]), str(row[1])): str(Membership(row[2], str(row[3]), str(row[4]), row[5])) for row in rows}


def _roots(server: Connection, publications: Sequence[str]) -> dict[TableId, str]:
    """The partitioned tables of the database, each with its mark. It is their leaves that are in publications; a table without a leaf
    is there too. A leaf in several of the publications sends what the first of them says."""
    found: dict[TableId, Membership] = {}
    rows = run(
        server,
        schema.LEAVES.format(roots="c.relkind = 'p' and not c.relispartition")
        + f"""
        select n.nspname, o.relname, {_ATTRIBUTES.replace("c.oid", "o.oid")},
               l.oid, coalesce(m.member, ''), l.joined, l.relfilenode,
               case when m.member is not null then {_ATTRIBUTES} end, coalesce(m.updates and {_UNNAMED}, false)
        from pg_catalog.pg_class o
        join pg_catalog.pg_namespace n on n.oid = o.relnamespace
        left join leaf l on l.root = o.oid
        left join pg_catalog.pg_class c on c.oid = l.oid
        left join lateral (
            select {_MEMBER} as member, p.pubupdate as updates
            from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
            where r.prrelid = l.oid and p.pubname = any(%(names)s) order by array_position(%(names)s, p.pubname::text) limit 1
        ) m on true
        where o.relkind = 'p' and not o.relispartition order by l.oid""",
        {"names": list(publications)},
    )
    for namespace, name, attributes, oid, member, joined, storage, columns, unnamed in rows:
        table = TableId(str(namespace), str(name))
        mark = found.setdefault(table, Membership("", "", str(attributes)))
        if oid is not None:
            leaf = Leaf(oid, member, joined, str(storage), columns or "")
            found[table] = replace(mark, unnamed=mark.unnamed or unnamed, leaves=(*mark.leaves, leaf))
    return {table: str(mark) for table, mark in found.items()}


def _who_blocks(dsn: str, pid: int) -> str:
    """Who keeps ``pid`` waiting. pg_locks shows everybody's; other sessions' details need pg_read_all_stats."""
    with session(dsn, "cannot look up running transactions") as server:
        rows = run(
            server,
            """
            select l.pid, p.gid, a.usename::text, a.application_name, a.state,
                   extract(epoch from clock_timestamp() - coalesce(a.xact_start, p.prepared))::bigint
            from pg_catalog.pg_locks l
            left join pg_catalog.pg_stat_activity a on a.pid = l.pid
            left join pg_catalog.pg_prepared_xacts p on p.transaction = l.transactionid
            where l.locktype = 'transactionid' and l.granted and l.mode = 'ExclusiveLock' and l.pid is distinct from %(pid)s
              and l.transactionid in (select w.transactionid from pg_catalog.pg_locks w where w.pid = %(pid)s and not w.granted)""",
            {"pid": pid},
        )
    found = [
        (f"pid {blocker}" if blocker else f"prepared transaction {gid!r}")
        + (f" of {user}" if user else "")
        + (f" ({application or 'no application name'}, {state})" if state else "")
        + (f", running for {seconds} s" if seconds is not None else "")
        for blocker, gid, user, application, state, seconds in rows
    ]
    return "; ".join(found) or "it ended just now"
