"""What stands between a PostgreSQL server and being mirrored: looked at, never changed.

Promises: every finding says what is so, why it matters and, where a statement mends it, that statement, quoted and complete; a
``problem`` would stop the mirror or falsify it, a ``warning`` may hurt the source or the mirror later, a ``note`` is good to know.
A server that cannot be reached is a finding, not an exception. Reads catalogs only, rows only when asked for ``deep``.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from psycopg import sql

from icelake.errors import IcelakeError, Refused
from icelake.model.relation import Column, Refusal, Relation, excludes
from icelake.sources.postgres import releases, schema
from icelake.sources.postgres.server import EVERYTHING, published
from icelake.sources.postgres.session import ALWAYS, Connection, address, run, session
from icelake.sources.postgres.stream import slot_state

Level = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    code: str
    what: str
    why: str = ""
    """Why it matters."""
    fix: str = ""
    """Statements to execute as they stand, each ended by a semicolon; "" where none mends it."""
    then: str = ""
    """What is to be done besides, or instead."""
    table: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be looked at."""

    tables: Sequence[str]
    """As in ``Source.describe``."""
    slot: str | None = None
    """The lake's own, which is called like its publication; None if it has none yet."""
    deep: bool = False
    """Whether rows are counted that hold values the lake's types cannot."""
    append_only: Collection[str] = ()
    """Tables (``schema.name``) that are mirrored by their inserts and truncates alone."""
    patience: float = 60.0
    """Seconds from which on a transaction counts as long."""
    exclude: Collection[str] = ()
    """Tables (``schema.name`` or ``schema.*``) that are not to be mirrored."""
    judge: Callable[[Relation], Relation | Refusal] = lambda relation: relation
    """What the project makes of a table, or what stands against that."""
    large: int = 1 << 30
    """Bytes from which on a table is better not loaded in one go."""


def check(dsn: str, asked: Question) -> list[Finding]:
    """Everything the source needs, in the order a person would mend it."""
    found: list[Finding] = []
    try:
        with session(dsn, "cannot examine the server", statement_seconds=0 if asked.deep else 60) as server:
            found.append(Finding("ok", "REACHABLE", f"connected to {address(dsn)}"))
            for look in _LOOKS:
                found += look(server, asked)
        with session(dsn, "cannot open a replication connection", replication=True) as server:
            run(server, "IDENTIFY_SYSTEM")
        found.append(Finding("ok", "REPLICATION_CONNECTION", "replication connections are let in"))
    except IcelakeError as error:
        if error.code not in {finding.code for finding in found}:
            found.append(Finding("problem", error.code, error.what, error.why, *_statement(error.fix)))
    return found


def _statement(fix: str) -> tuple[str, str]:
    """(statement, advice) out of an error's ``fix``: a text with an ellipsis or without a verb of SQL in front is advice."""
    first, _, rest = fix.partition(";  ")
    if first.split(" ")[0] in {"ALTER", "GRANT", "DROP", "CREATE", "SELECT"} and "…" not in first:
        return first.rstrip(";") + ";", rest
    return "", fix


def _setting(server: Connection, name: str) -> str:
    """The setting in its base unit, as pg_settings has it; '' where this version has none."""
    rows = run(server, "select setting from pg_catalog.pg_settings where name = %s", [name])
    return str(rows[0][0]) if rows else ""


def _set(name: str, value: str) -> str:
    return f"ALTER SYSTEM SET {name} = {sql.Literal(value).as_string()}; SELECT pg_reload_conf();"


_RESTART = "restart PostgreSQL"


def _version(server: Connection, _: Question) -> list[Finding]:
    version = server.info.server_version
    shown = f"PostgreSQL {releases.shown(version)}"
    if version < 140000:
        return [
            Finding("problem", "VERSION", f"{shown} is too old", "it is no longer maintained", then="upgrade to PostgreSQL 14 or later")
        ]
    out = [Finding("ok", "VERSION", shown)]
    if (good := releases.decodes_badly(version)) is not None:
        if releases.forgets_late_tables(version):
            why = (
                "it loses changes to a table that is written to while it joins a publication; icelake reminds it of each table it adds "
                "itself, and cannot where others add them"
            )
        else:
            why = "DDL beside running transactions can end the stream with 'invalid memory alloc request size'"
        why += "; and a checkpoint can remove WAL that a slot still needs"
        out.append(Finding("warning", "OLD_RELEASE", f"{shown} has known bugs in logical decoding", why, then=f"update to {good} or later"))
    return out


def _standby(server: Connection, _: Question) -> list[Finding]:
    if run(server, "select pg_catalog.pg_is_in_recovery()")[0][0]:
        why = "publications are made on the primary"
        return [Finding("problem", "STANDBY", "this server is a standby", why, then="name the primary instead")]
    return []


def _session(server: Connection, _: Question) -> list[Finding]:
    """Whether this is a session of our own with the settings asked for: a pooler in between shares and forgets them."""
    out = []
    asked = {**ALWAYS, "application_name": "icelake"}
    rows = run(server, "select n, pg_catalog.current_setting(n) from pg_catalog.unnest(%s::text[]) n", [list(asked)])
    # What PostgreSQL shows has units and canonical spellings; these are as they were sent.
    lost = [name for name, value in rows if value != asked[name]]
    if lost or run(server, "select pg_catalog.pg_backend_pid()")[0][0] != server.info.backend_pid:
        what = f"the server does not keep {', '.join(lost)}" if lost else "the session is not with the server itself"
        why = "a connection pooler stands between: sessions share connections there, and replication connections do not go through"
        out.append(Finding("problem", "POOLER", what, why, then="name PostgreSQL's own address and port in the connection string"))
    role = schema.quoted(server.info.user)
    if _setting(server, "default_transaction_read_only") == "on":
        fix = f"ALTER ROLE {role} SET default_transaction_read_only = off;"
        out.append(Finding("problem", "READ_ONLY_ROLE", "transactions are read-only by default", "a publication could not be made", fix))
    return out


def _encoding(server: Connection, _: Question) -> list[Finding]:
    encoding = run(server, "select pg_catalog.getdatabaseencoding()")[0][0]
    what = f"the database's encoding is {encoding}"
    if encoding == "SQL_ASCII":
        why = "its texts may be bytes of any encoding, and the lake's are UTF-8"
        return [Finding("problem", "ENCODING", what, why, then="dump it and load it into a database of encoding UTF8")]
    if encoding != "UTF8":
        why = "the server converts every text; tables with a text in their key are loaded in one go, since its order is not known here"
        return [Finding("note", "ENCODING", what, why)]
    return [Finding("ok", "ENCODING", what)]


def _wal_level(server: Connection, _: Question) -> list[Finding]:
    level = _setting(server, "wal_level")
    if level != "logical":
        fix = "ALTER SYSTEM SET wal_level = 'logical';"
        return [Finding("problem", "WAL_LEVEL", f"wal_level is {level}", "the log does not hold what a mirror needs", fix, _RESTART)]
    return [Finding("ok", "WAL_LEVEL", "wal_level is logical")]


def _room(server: Connection, _: Question) -> list[Finding]:
    out = []
    for setting, used, code in (
        ("max_replication_slots", "select pg_catalog.count(*) from pg_catalog.pg_replication_slots", "NO_FREE_SLOT"),
        ("max_wal_senders", "select pg_catalog.count(*) from pg_catalog.pg_stat_replication", "NO_FREE_WALSENDER"),
    ):
        most = int(_setting(server, setting))
        free = most - int(run(server, used)[0][0])
        fix = f"ALTER SYSTEM SET {setting} = {max(20, most + 10)};"
        why = "the mirror needs two while it loads or verifies, one otherwise"
        if free < 1:
            out.append(Finding("problem", code, f"all {most} of {setting} are in use", why, fix, _RESTART))
        elif free < 2:
            out.append(Finding("warning", code, f"one of {most} of {setting} is free", why, fix, _RESTART))
        else:
            out.append(Finding("ok", code.replace("NO_", ""), f"{free} of {most} of {setting} are free"))
    return out


def _retention(server: Connection, _: Question) -> list[Finding]:
    out = []
    keep = int(_setting(server, "max_slot_wal_keep_size"))
    fix = _set("max_slot_wal_keep_size", "64GB")
    if keep < 0:
        why = "while the mirror stands still, its slot keeps WAL until the server's disk is full; with a limit the slot is lost instead"
        out.append(Finding("warning", "WAL_WITHOUT_LIMIT", "max_slot_wal_keep_size is -1", why, fix))
    elif keep < 1024:
        why = "a short standstill of the mirror loses its slot, and everything is loaded again"
        out.append(Finding("warning", "WAL_LIMIT_SMALL", f"max_slot_wal_keep_size is {keep} MB", why, fix))
    idle = int(_setting(server, "idle_replication_slot_timeout") or 0)
    if idle:
        why = "a mirror that stands still for that long loses its slot, and everything is loaded again"
        fix = _set("idle_replication_slot_timeout", "0")
        out.append(Finding("warning", "IDLE_SLOT_TIMEOUT", f"idle_replication_slot_timeout is {idle} s", why, fix))
    return out or [Finding("ok", "WAL_LIMIT", f"a slot keeps {keep} MB of WAL at most")]


def _role(server: Connection, _: Question) -> list[Finding]:
    role, replication, superuser, limit, create = run(
        server,
        """select current_user::text, r.rolreplication, r.rolsuper, r.rolconnlimit,
                  pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
           from pg_catalog.pg_roles r where r.rolname = current_user""",
    )[0]
    out = []
    name, database = schema.quoted(role), schema.quoted(server.info.dbname)
    if not (replication or superuser):
        then = f"on a managed service its own grant, such as GRANT rds_replication TO {name}"
        what = f"role {role} may not replicate"
        out.append(
            Finding("problem", "NO_REPLICATION_PRIVILEGE", what, "changes are read by replication", f"ALTER ROLE {name} REPLICATION;", then)
        )
    if not create:
        what = f"role {role} may not create a publication in this database"
        why = "the publication must be there already"
        out.append(Finding("warning", "NO_CREATE_PRIVILEGE", what, why, f"GRANT CREATE ON DATABASE {database} TO {name};"))
    if 0 <= limit < 5 and not superuser:
        what = f"role {role} may have {limit} connections at a time"
        why = "loading and verifying together use up to five"
        out.append(Finding("warning", "CONNECTION_LIMIT", what, why, f"ALTER ROLE {name} CONNECTION LIMIT -1;"))
    return out or [Finding("ok", "ROLE", f"role {role} may replicate and publish")]


def _old_transactions(server: Connection, asked: Question) -> list[Finding]:
    """In all databases: a new slot waits for every transaction that has written."""
    why = "no slot can be made before it ends, so nothing can be loaded or verified"
    rows = run(
        server,
        """select pid, usename::text, application_name, state, pg_catalog.date_part('epoch', pg_catalog.now() - xact_start)::int8
           from pg_catalog.pg_stat_activity
           where backend_xid is not null and xact_start < pg_catalog.now() - pg_catalog.make_interval(secs => %s)
             and pid <> pg_catalog.pg_backend_pid()
           order by xact_start""",
        [asked.patience],
    )
    out = [
        Finding(
            "warning",
            "LONG_TRANSACTION",
            f"pid {pid} ({user}, {application or 'no application name'}, {state}) is in a transaction for {seconds} s",
            why,
            f"SELECT pg_terminate_backend({pid});",
            "or wait for its end",
        )
        for pid, user, application, state, seconds in rows
    ]
    prepared = run(
        server,
        """select gid, owner::text, database::text from pg_catalog.pg_prepared_xacts
           where prepared < pg_catalog.now() - pg_catalog.make_interval(secs => %s)""",
        [asked.patience],
    )
    out += [
        Finding(
            "warning",
            "PREPARED_TRANSACTION",
            f"prepared transaction {gid!r} of {owner} in database {database} was left open",
            why,
            f"ROLLBACK PREPARED {sql.Literal(gid).as_string()};",
            "or COMMIT PREPARED, in its database: ask who prepared it",
        )
        for gid, owner, database in prepared
    ]
    return out


def _decoding(server: Connection, _: Question) -> list[Finding]:
    out = []
    memory_kb = int(_setting(server, "logical_decoding_work_mem"))
    if memory_kb < 65536:
        what, why = (
            f"logical_decoding_work_mem is {memory_kb} kB",
            "the server writes all but small transactions to disk before it sends them",
        )
        out.append(Finding("warning", "DECODING_MEMORY", what, why, _set("logical_decoding_work_mem", "64MB")))
    timeout_ms = int(_setting(server, "wal_sender_timeout"))
    if timeout_ms < 10_000:
        what = f"wal_sender_timeout is {timeout_ms} ms"
        why = "a short stall breaks the stream" if timeout_ms else "after a broken network the slot stays in use until TCP gives up"
        out.append(Finding("warning", "WAL_SENDER_TIMEOUT", what, why, _set("wal_sender_timeout", "60s")))
    return out or [Finding("ok", "DECODING", "the server's decoding memory and walsender time-out will do")]


def _failover(server: Connection, _: Question) -> list[Finding]:
    """What becomes of the mirror when a standby takes over."""
    standbys = run(
        server,
        """select r.application_name, s.slot_name from pg_catalog.pg_stat_replication r
           left join pg_catalog.pg_replication_slots s on s.active_pid = r.pid
           where s.slot_type is distinct from 'logical' and r.state in ('streaming', 'catchup') order by 2, 1""",
    )
    if not standbys:
        return []
    if server.info.server_version < 170000:
        why = "logical slots do not survive a failover before PostgreSQL 17: everything is loaded again then"
        return [
            Finding("note", "FAILOVER_WITHOUT_SLOT", f"{len(standbys)} standby(s) follow this server", why, then="upgrade to PostgreSQL 17")
        ]
    if _setting(server, "synchronized_standby_slots"):
        return [Finding("ok", "FAILOVER", "the lake is never ahead of the standbys that hold its slot")]
    slots = [slot for _, slot in standbys if slot]
    why = "the lake may hold what a promoted standby has not received, and must be loaded again then"
    then = "on the standby: sync_replication_slots = on, hot_standby_feedback = on, and a dbname in primary_conninfo"
    if not slots:
        return [Finding("warning", "FAILOVER_LOSES", "synchronized_standby_slots is empty", why, then=f"give the standby a slot; {then}")]
    return [
        Finding(
            "warning",
            "FAILOVER_LOSES",
            "synchronized_standby_slots is empty",
            why,
            _set("synchronized_standby_slots", ",".join(slots)),
            then,
        )
    ]


def _slots(server: Connection, asked: Question) -> list[Finding]:
    """The lake's own slot and publication, and what other lakes left behind."""
    out = []
    if asked.slot is not None:
        state = slot_state(server, asked.slot)
        then = "`icelake resume --reload` begins a new slot and compares every table with the source"
        if state is None:
            what = f"slot {asked.slot} does not exist"
            out.append(Finding("problem", "SLOT_GONE", what, "changes since the lake's position may be gone", then=then))
        elif state.lost:
            out.append(Finding("problem", "SLOT_LOST", f"slot {asked.slot} was invalidated: {state.lost}", "its WAL is gone", then=then))
        else:
            out.append(Finding("ok", "SLOT", f"slot {asked.slot} is there"))
        try:
            if published(server, asked.slot, EVERYTHING) is None:
                what = f"publication {asked.slot} is gone"
                out.append(Finding("problem", "PUBLICATION_CHANGED", what, "changes made meanwhile were never sent", then=then))
        except Refused as refused:
            out.append(Finding("problem", refused.code, refused.what, refused.why, then=then))
    rows = run(
        server,
        """select slot_name::text, pg_catalog.pg_size_pretty(pg_catalog.pg_wal_lsn_diff(
               case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn() else pg_catalog.pg_current_wal_lsn() end,
               restart_lsn))
           from pg_catalog.pg_replication_slots
           where slot_name like 'icelake\\_%%' and not active and not temporary and slot_name is distinct from %s
             and database = pg_catalog.current_database() order by 1""",
        [asked.slot],
    )
    out += [
        Finding(
            "warning",
            "ABANDONED_SLOT",
            f"slot {name} is in use by nobody and keeps {kept or 'no'} of WAL",
            "a lake that is gone leaves its slot behind, and the server's disk fills",
            f"SELECT pg_drop_replication_slot({sql.Literal(name).as_string()});",
            "unless another lake of this database stands still just now",
        )
        for name, kept in rows
    ]
    return out


def _tables(server: Connection, asked: Question) -> list[Finding]:
    out: list[Finding] = []
    for described in schema.describe(server, asked.tables, asked.append_only):
        name = f"{described.schema}.{described.name}"
        if excludes(asked.exclude, described.schema, described.name):
            continue
        table = asked.judge(described) if isinstance(described, Relation) else described
        if isinstance(table, Relation):
            about = _table(server, asked, table)
            out += [replace(finding, table=name) for finding in about]
            if not any(finding.level == "problem" for finding in about):
                how = ", append-only: updates and deletes of it do not reach its mirror" if table.identity == "none" else ""
                out.append(Finding("ok", "TABLE", f"{name} can be mirrored{how}", table=name))
        else:
            out.append(Finding("problem", table.code, f"{name} cannot be mirrored", table.why, *_statement(table.fix), table=name))
    return out


def _table(server: Connection, asked: Question, table: Relation) -> list[Finding]:
    out = []
    named = schema.qualified(table.schema, table.name)
    owner, identity, size, generated = run(
        server,
        """select pg_catalog.pg_get_userbyid(c.relowner)::text, c.relreplident::text,
                  (select pg_catalog.pg_table_size(c.oid) + coalesce(pg_catalog.sum(pg_catalog.pg_table_size(t.relid)), 0)::bigint
                   from pg_catalog.pg_partition_tree(c.oid) t where t.relid <> c.oid),
                  array(select a.attname::text from pg_catalog.pg_attribute a
                        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> '' order by a.attnum)
           from pg_catalog.pg_class c where c.oid = %s""",
        [table.oid],
    )[0]
    if not schema.may_publish(server, table.oid):
        what = f"{table.id} belongs to {owner}"
        why = "only its owner may publish it, so it must be published already"
        fix = f"GRANT {schema.quoted(owner)} TO {schema.quoted(server.info.user)};"
        out.append(Finding("warning", "NOT_TABLE_OWNER", what, why, fix, "or have the owner add the table to the publication"))
    if identity == "f" and table.key:
        what = f"{table.id} has REPLICA IDENTITY FULL and a key"
        why = "every update and delete writes the whole old row to the log, which the mirror does not need"
        out.append(Finding("note", "IDENTITY_FULL", what, why, f"ALTER TABLE {named} REPLICA IDENTITY DEFAULT;"))
    if generated:
        what = f"{table.id} has generated columns: {', '.join(generated)}"
        out.append(Finding("note", "GENERATED_COLUMNS", what, "they are left out of the mirror: the log does not hold them"))
    if size >= asked.large and not table.key_is_ordered:
        what = f"{table.id} holds {size >> 20} MiB, and the order of its key is not known here"
        why = "it is loaded in one transaction, which holds back VACUUM meanwhile and begins anew when it breaks"
        then = 'a key of integers, uuid, dates or text COLLATE "C" is loaded in ranges'
        out.append(Finding("warning", "LOADED_IN_ONE_GO", what, why, then=then))
    if asked.deep:
        out += _values(server, table)
    return out


def _values(server: Connection, table: Relation) -> list[Finding]:
    """How many rows hold values that the lake's types cannot, by column; the table is read once."""
    suspects = [(column, condition) for column in table.columns if (condition := _out_of_contract(column)) is not None]
    if not suspects:
        return []
    counts = [
        sql.SQL("pg_catalog.count(*) FILTER (WHERE {})").format(condition.format(column=sql.Identifier(column.name)))
        for column, condition in suspects
    ]
    source = sql.SQL("{}" if table.partitioned else "ONLY {}").format(sql.Identifier(table.schema, table.name))
    (row,) = run(server, sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(counts), source))
    out = []
    for (column, _), count in zip(suspects, row, strict=True):
        if count:
            what = f"{count} row(s) of {table.id} hold a value in {column.name} ({column.pg_type}) that {column.iceberg} cannot"
            if column.out_of_range == "null":
                out.append(Finding("note", "VALUES_OUT_OF_CONTRACT", what, "they become NULL in the lake, as the project says"))
            else:
                then = "change these values, or the column's type to text"
                out.append(Finding("problem", "VALUES_OUT_OF_CONTRACT", what, "the table stops at the first of them", then=then))
    return out


def _out_of_contract(column: Column) -> sql.SQL | None:
    """A condition on ``{column}`` that holds for PostgreSQL's values that the column's Iceberg type lacks; None if there are none."""
    match column.iceberg:
        case "date":
            return sql.SQL("NOT pg_catalog.isfinite({column})")
        case "timestamp" | "timestamptz":
            # Microseconds since 1970 in 64 bits end 30 years before PostgreSQL's, which count from 2000.
            return sql.SQL("NOT pg_catalog.isfinite({column}) OR {column} >= '294247-01-10 04:00:54.775808 UTC'")
        case "time":
            return sql.SQL("{column} = '24:00'")
        case iceberg if iceberg.startswith("decimal(") and column.pg_type.startswith("numeric"):
            return sql.SQL("{column} IN ('NaN', 'Infinity', '-Infinity')")
    return None


_LOOKS: tuple[Callable[[Connection, Question], list[Finding]], ...] = (
    _version,
    _standby,
    _session,
    _encoding,
    _wal_level,
    _room,
    _retention,
    _role,
    _old_transactions,
    _decoding,
    _failover,
    _slots,
    _tables,
)
