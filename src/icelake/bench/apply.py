"""``icelake bench apply``: a backlog of changes into Iceberg, everything on (commits, fsync, key index, validator, upkeep).

The limit is the server's own: ``pg_recvlogical`` draining the same WAL, through the same plugin and publication, to /dev/null
over the same unix socket, once before and once after ours. ``size`` is the number of changes (60 % updates, 20 % inserts,
20 % deletes, in transactions of 100, on a 7-column table that holds as many rows before).
"""

import os
import resource
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psycopg

from icelake.bench import figure
from icelake.bench.rig import Rig, rig
from icelake.model.lsn import format_lsn, parse_lsn

CHANGES = 300_000
PER_TRANSACTION = 100
SLOT = "bench_limit"

TABLE = """
create table item (
    id bigint primary key, customer int not null, sku text not null, price numeric(12,2) not null,
    quantity int not null, paid boolean not null, changed timestamptz not null
);
insert into item
select g, g % 5000, 'sku-' || g % 997, (g % 10000) / 100.0, g % 17, g % 2 = 0, timestamptz '2026-01-01' + g * interval '1 second'
from generate_series(1, {rows}) g;
"""

WORK = """
do $$
declare
    rows bigint := {rows};
    top bigint := {rows};
    low bigint := 1;
begin
    for t in 1..{transactions} loop
        update item set quantity = quantity + 1, price = price + 0.01, changed = changed + interval '1 minute'
        where id in (select low + 20 + (random() * (top - low - 20))::bigint from generate_series(1, {updates}));
        insert into item select top + g, g, 'new-' || g, g, g, true, timestamptz '2026-02-01' from generate_series(1, {inserts}) g;
        top := top + {inserts};
        delete from item where id >= low and id < low + {deletes};
        low := low + {deletes};
        commit;
    end loop;
end $$;
"""


def run(size: float | None, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module. ``size``: changes (default 300,000)."""
    changes = int(size or CHANGES)
    with rig(settings={"max_wal_size": "16GB", "autovacuum": "off"}) as bench:
        return _run(bench, changes, note)


def _run(bench: Rig, changes: int, note: Callable[[str], None]) -> dict[str, Any]:
    rows = changes
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        note(f"making a table of {rows:,} rows")
        connection.execute(TABLE.format(rows=rows))
        began = time.monotonic()
        bench.lakehouse.sync()
        loaded = time.monotonic() - began
        note(f"loaded at {rows / loaded:,.0f} rows/s")
        publication = connection.execute("select pubname from pg_publication where pubupdate").fetchone()
        assert publication is not None
        connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
        note(f"making {changes:,} changes")
        share = PER_TRANSACTION // 5
        connection.execute(WORK.format(rows=rows, transactions=changes // PER_TRANSACTION, updates=3 * share, inserts=share, deletes=share))
        row = connection.execute("select pg_current_wal_flush_lsn()").fetchone()
        assert row is not None
        end = parse_lsn(row[0])
        # A record behind the end, so that pg_recvlogical sees that it is over.
        connection.execute("select pg_logical_emit_message(false, 'bench', 'end')")

        limits = [_drain(bench, connection, publication[0], end, note)]
        before = resource.getrusage(resource.RUSAGE_SELF)
        began = time.monotonic()
        status = bench.lakehouse.sync(until=format_lsn(end))
        seconds = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_SELF)
        limits.append(_drain(bench, connection, publication[0], end, note))
        applied = int(status["changes"])
        note("comparing the lake with the source")
        equal = bench.lakehouse.verify()["equal"]
    limit = applied / (sum(limits) / len(limits))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    against = "pg_recvlogical to /dev/null over the unix socket, mean of a run before and one after"
    return {
        "verified": equal,
        "changes": applied,
        "commits": status["commits"],
        "figures": [
            figure("apply.mixed", applied / seconds, "changes/s", against, limit),
            figure("apply.mixed per CPU second", applied / cpu, "changes/s"),
            figure("limit", limit, "changes/s"),
            figure("load", rows / loaded, "rows/s"),
            figure("peak memory", after.ru_maxrss / 1024, "MiB"),
        ],
    }


def _drain(bench: Rig, connection: psycopg.Connection[Any], publication: str, end: int, note: Callable[[str], None]) -> float:
    """Seconds pg_recvlogical takes for the same WAL, from a copy of the slot so that it can be drained again."""
    connection.execute("select pg_copy_logical_replication_slot(%s, %s)", (SLOT, f"{SLOT}_copy"))
    began = time.monotonic()
    subprocess.run(
        [
            str(bench.postgres.bin("pg_recvlogical")),
            *("--dbname", "postgres", "--slot", f"{SLOT}_copy", "--start", "--file", os.devnull, "--no-loop"),
            *("--option", "proto_version=1", "--option", f"publication_names={publication}", "--endpos", format_lsn(end)),
        ],
        env={**os.environ, **bench.postgres.environment, "PGHOST": str(bench.postgres.socket_folder)},
        check=True,
        capture_output=True,
    )
    seconds = time.monotonic() - began
    connection.execute("select pg_drop_replication_slot(%s)", (f"{SLOT}_copy",))
    note(f"pg_recvlogical drained it in {seconds:.2f} s")
    return seconds
