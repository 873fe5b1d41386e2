"""What stands between a PostgreSQL server and being mirrored: looked at, never changed.

Promises: every finding says what is so and, if it is not well, the statement that mends it; an ``error`` would stop the mirror, a
``warn`` may hurt the source or the mirror later. A server that cannot be reached is a finding, not an exception.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from icelake.errors import IcelakeError
from icelake.model.relation import Relation
from icelake.sources.postgres import schema
from icelake.sources.postgres.session import Connection, address, run, session

Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    code: str
    what: str
    fix: str = ""


def check(dsn: str, tables: Sequence[str], append_only: Collection[str] = ()) -> list[Finding]:
    """Everything the source needs, in the order a person would mend it; ``tables`` as in ``Source.describe``.

    ``append_only``: those of them (``schema.name``) that are mirrored by their inserts and truncates alone.
    """
    found: list[Finding] = []
    try:
        with session(dsn, "cannot examine the server") as server:
            found.append(Finding("ok", "REACHABLE", f"connected to {address(dsn)}"))
            for look in _LOOKS:
                found += look(server)
            found += _tables(server, tables, append_only)
        with session(dsn, "cannot open a replication connection", replication=True) as server:
            run(server, "IDENTIFY_SYSTEM")
        found.append(Finding("ok", "REPLICATION_CONNECTION", "replication connections are let in"))
    except IcelakeError as error:
        what = f"{error.what}: {error.why}" if error.why else error.what
        if error.code not in {finding.code for finding in found}:
            found.append(Finding("error", error.code, what, error.fix))
    return found


def _setting(server: Connection, name: str) -> str:
    """The setting in its base unit, as pg_settings has it; '' where this version has none."""
    rows = run(server, "select setting from pg_catalog.pg_settings where name = %s", [name])
    return str(rows[0][0]) if rows else ""


def _version(server: Connection) -> list[Finding]:
    version = server.info.server_version
    shown = f"PostgreSQL {version // 10000}.{version % 10000}"
    if version < 140000:
        return [Finding("error", "VERSION", f"{shown} is too old", "upgrade to PostgreSQL 14 or later")]
    return [Finding("ok", "VERSION", shown)]


def _standby(server: Connection) -> list[Finding]:
    if run(server, "select pg_catalog.pg_is_in_recovery()")[0][0]:
        return [Finding("error", "STANDBY", "this server is a standby: publications are made on the primary", "name the primary instead")]
    return []


def _encoding(server: Connection) -> list[Finding]:
    encoding = run(server, "select pg_catalog.getdatabaseencoding()")[0][0]
    if encoding == "SQL_ASCII":
        return [
            Finding(
                "error",
                "ENCODING",
                "the database's encoding is SQL_ASCII: its texts may be bytes of any encoding",
                "dump it and load it into a database of encoding UTF8",
            )
        ]
    return [Finding("ok", "ENCODING", f"the database's encoding is {encoding}")]


def _wal_level(server: Connection) -> list[Finding]:
    level = _setting(server, "wal_level")
    if level != "logical":
        fix = "ALTER SYSTEM SET wal_level = 'logical';  then restart PostgreSQL"
        return [Finding("error", "WAL_LEVEL", f"wal_level is {level}: the log does not hold what a mirror needs", fix)]
    return [Finding("ok", "WAL_LEVEL", "wal_level is logical")]


def _room(server: Connection) -> list[Finding]:
    out = []
    for setting, used, code in (
        ("max_replication_slots", "select pg_catalog.count(*) from pg_catalog.pg_replication_slots", "NO_FREE_SLOT"),
        ("max_wal_senders", "select pg_catalog.count(*) from pg_catalog.pg_stat_replication", "NO_FREE_WALSENDER"),
    ):
        most = int(_setting(server, setting))
        free = most - int(run(server, used)[0][0])
        fix = f"ALTER SYSTEM SET {setting} = {max(20, most + 10)};  then restart PostgreSQL"
        if free < 1:
            out.append(Finding("error", code, f"all {most} of {setting} are in use", fix))
        elif free < 2:
            out.append(Finding("warn", code, f"one of {most} of {setting} is free: the mirror needs two while it loads or verifies", fix))
        else:
            out.append(Finding("ok", code.replace("NO_", ""), f"{free} of {most} of {setting} are free"))
    return out


def _retention(server: Connection) -> list[Finding]:
    keep = int(_setting(server, "max_slot_wal_keep_size"))
    if keep < 0:
        return [
            Finding(
                "warn",
                "WAL_WITHOUT_LIMIT",
                "max_slot_wal_keep_size is -1: while the mirror stands still, its slot keeps WAL until the server's disk is full",
                "ALTER SYSTEM SET max_slot_wal_keep_size = '64GB';  SELECT pg_reload_conf();  (the slot is lost beyond it)",
            )
        ]
    if keep < 1024:
        return [
            Finding(
                "warn",
                "WAL_LIMIT_SMALL",
                f"max_slot_wal_keep_size is {keep} MB: a short standstill of the mirror loses its slot, and everything is loaded again",
                "ALTER SYSTEM SET max_slot_wal_keep_size = '64GB';  SELECT pg_reload_conf();",
            )
        ]
    return [Finding("ok", "WAL_LIMIT", f"a slot keeps {keep} MB of WAL at most")]


def _role(server: Connection) -> list[Finding]:
    role, replication, superuser, create = run(
        server,
        """select current_user::text, r.rolreplication, r.rolsuper,
                  pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
           from pg_catalog.pg_roles r where r.rolname = current_user""",
    )[0]
    out = []
    name, database = schema.quoted(role), schema.quoted(server.info.dbname)
    if not (replication or superuser):
        fix = f"ALTER ROLE {name} REPLICATION;  (on a managed service its own grant, such as GRANT rds_replication TO {name})"
        out.append(Finding("error", "NO_REPLICATION_PRIVILEGE", f"role {role} may not replicate", fix))
    if not create:
        out.append(
            Finding(
                "warn",
                "NO_CREATE_PRIVILEGE",
                f"role {role} may not create a publication in this database, so it must be there already",
                f"GRANT CREATE ON DATABASE {database} TO {name};",
            )
        )
    return out or [Finding("ok", "ROLE", f"role {role} may replicate and publish")]


def _old_transactions(server: Connection) -> list[Finding]:
    rows = run(
        server,
        """select pid, usename::text, application_name, pg_catalog.date_part('epoch', pg_catalog.now() - state_change)::int8
           from pg_catalog.pg_stat_activity
           where state like 'idle in transaction%' and state_change < pg_catalog.now() - interval '1 minute'
             and datname = pg_catalog.current_database()
           order by state_change""",
    )
    out = [
        Finding(
            "warn",
            "IDLE_IN_TRANSACTION",
            f"pid {pid} ({user}, {application or 'no application name'}) has been idle in a transaction for {seconds} s: "
            "if it has written, no slot can be made before it ends",
            f"end it, or SELECT pg_terminate_backend({pid});",
        )
        for pid, user, application, seconds in rows
    ]
    prepared = run(server, "select gid from pg_catalog.pg_prepared_xacts where prepared < pg_catalog.now() - interval '1 minute'")
    out += [
        Finding(
            "warn",
            "PREPARED_TRANSACTION",
            f"prepared transaction {gid!r} is older than a minute: no slot can be made before it ends",
            "COMMIT PREPARED or ROLLBACK PREPARED it",
        )
        for (gid,) in prepared
    ]
    return out


def _decoding(server: Connection) -> list[Finding]:
    out = []
    memory_kb = int(_setting(server, "logical_decoding_work_mem"))
    if memory_kb < 65536:
        fix = "ALTER SYSTEM SET logical_decoding_work_mem = '64MB';  SELECT pg_reload_conf();"
        what = f"logical_decoding_work_mem is {memory_kb} kB: the server writes all but small transactions to disk before it sends them"
        out.append(Finding("warn", "DECODING_MEMORY", what, fix))
    timeout_ms = int(_setting(server, "wal_sender_timeout"))
    if 0 < timeout_ms < 10_000:
        fix = "ALTER SYSTEM SET wal_sender_timeout = '60s';  SELECT pg_reload_conf();"
        out.append(Finding("warn", "WAL_SENDER_TIMEOUT", f"wal_sender_timeout is {timeout_ms} ms: a short stall breaks the stream", fix))
    elif timeout_ms == 0:
        fix = "ALTER SYSTEM SET wal_sender_timeout = '60s';  SELECT pg_reload_conf();"
        what = "wal_sender_timeout is off: after a broken network the slot stays in use until TCP gives up"
        out.append(Finding("warn", "WAL_SENDER_TIMEOUT", what, fix))
    return out or [Finding("ok", "DECODING", "the server's decoding memory and walsender time-out will do")]


def _tables(server: Connection, tables: Sequence[str], append_only: Collection[str]) -> list[Finding]:
    out: list[Finding] = []
    for table in schema.describe(server, tables, append_only):
        if isinstance(table, Relation):
            how = ", append-only: updates and deletes of it do not reach its mirror" if table.identity == "none" else ""
            out.append(Finding("ok", "TABLE", f"{table.id} can be mirrored{how}"))
            if not schema.may_publish(server, table.oid):
                role = schema.quoted(server.info.user)
                out.append(
                    Finding(
                        "warn",
                        "NOT_TABLE_OWNER",
                        f"{table.id} belongs to another role, and only its owner may publish it, so it must be published already",
                        f"GRANT its owner's role TO {role};  or have the owner add the table to the publication",
                    )
                )
        else:
            out.append(Finding("error", table.code, f"{table.schema}.{table.name}: {table.why}", table.fix))
    return out


_LOOKS: tuple[Callable[[Connection], list[Finding]], ...] = (
    _version,
    _standby,
    _encoding,
    _wal_level,
    _room,
    _retention,
    _role,
    _old_transactions,
    _decoding,
)
