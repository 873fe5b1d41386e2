"""``icelake bench apply.WORKLOAD``: a backlog of changes into Iceberg, everything on (commits, fsync, key index, validator, upkeep).

The limit is the server's own: ``pg_recvlogical`` draining the same WAL, through the same plugin and publication, to /dev/null, by the
same way (unix socket or TCP). Ours and the limit are measured in pairs, by turns the one or the other first; each pair is another
backlog, and the ratio told is the median of the pairs'. ``size`` is the number of changes of each backlog.

``apply.stream`` is the mixed workload live: ours, or pg_recvlogical, is there before the first change and takes them as they are made;
timed is from the first change until the last is in the lake, or sent.
"""

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from icelake.bench import figure, peak_memory
from icelake.bench.rig import Rig, rig
from icelake.bench.workloads import WORKLOADS, Workload
from icelake.ingest.applier import Progress
from icelake.model.lsn import format_lsn, parse_lsn

ROWS = 1_000_000
"""In the tables before, or as many as one backlog changes if that is less."""
SLOT = "bench_limit"
_ADVANCE = f"""
    select pg_replication_slot_advance(slot_name, confirmed_flush_lsn) from pg_replication_slots
    where slot_name <> '{SLOT}' and not active
"""


@dataclass(frozen=True, slots=True)
class _Pair:
    changes: int
    commits: int
    seconds: float
    limit: float
    """Seconds pg_recvlogical took for the same."""
    cpu: float
    """CPU seconds of this process."""


def run(variant: str, size: float | None, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module. ``variant``: a key of ``bench.workloads.WORKLOADS``, or ``stream``."""
    workload = WORKLOADS["mixed" if variant == "stream" else variant]
    changes = int(size or workload.size)
    with rig(settings={"max_wal_size": "16GB", "autovacuum": "off"}) as bench:
        return _run(bench, variant, workload, changes, pairs, note)


def _run(bench: Rig, variant: str, workload: Workload, changes: int, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    rows = min(ROWS, changes)
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        note(f"making the tables, {rows:,} rows")
        connection.execute(workload.tables.format(rows=rows))
        began = time.monotonic()
        loaded = int(bench.lakehouse.sync()["rows_loaded"])
        seconds = time.monotonic() - began
        note(f"loaded {loaded:,} rows at {loaded / seconds:,.0f} rows/s")
        done: dict[bool, list[_Pair]] = {False: [], True: []}
        for piece in range(2 * pairs):
            tcp = bool(piece % 2)
            work = workload.changes.format(rows=rows, changes=changes, piece=piece)
            if piece and workload.again:
                connection.execute(workload.again.format(rows=rows))
                connection.execute("checkpoint")
                bench.lakehouse.sync()
            if variant == "stream":
                again = workload.changes.format(rows=rows, changes=changes, piece=2 * piece + 1)
                work = workload.changes.format(rows=rows, changes=changes, piece=2 * piece)
                pair = _live_pair(bench, connection, (work, again), tcp=tcp, limit_first=piece % 4 < 2)
            else:
                pair = _pair(bench, connection, work, tcp=tcp, limit_first=piece % 4 < 2)
            done[tcp].append(pair)
            note(
                f"{'TCP' if tcp else 'unix socket'}: {pair.changes:,} changes in {pair.seconds:.2f} s, "
                f"pg_recvlogical {pair.limit:.2f} s: {pair.limit / pair.seconds:.2f} of it; {pair.commits} commits"
            )
        memory = peak_memory()
        note("comparing the lake with the source")
        equal = bench.lakehouse.verify()["equal"]
    return {
        "verified": equal,
        "workload": workload.what,
        "changes": sum(pair.changes for pair in (*done[False], *done[True])),
        "commits": sum(pair.commits for pair in (*done[False], *done[True])),
        "figures": [
            *_figures(f"apply.{variant}", done[False], "pg_recvlogical to /dev/null over the unix socket"),
            *_figures(f"apply.{variant} over TCP", done[True], "pg_recvlogical to /dev/null over TCP"),
            figure("load", loaded / seconds, "rows/s"),
            memory,
        ],
    }


def _figures(what: str, pairs: list[_Pair], against: str) -> list[dict[str, Any]]:
    rate = statistics.median(pair.changes / pair.seconds for pair in pairs)
    ratio = statistics.median(pair.limit / pair.seconds for pair in pairs)
    return [
        {**figure(what, rate, "changes/s", against, rate / ratio), "pairs": [round(pair.limit / pair.seconds, 3) for pair in pairs]},
        figure(f"{what} per CPU second", statistics.median(pair.changes / pair.cpu for pair in pairs), "changes/s"),
        figure(f"{what}: the limit", statistics.median(pair.changes / pair.limit for pair in pairs), "changes/s"),
    ]


def _pair(bench: Rig, connection: psycopg.Connection[Any], work: str, *, tcp: bool, limit_first: bool) -> _Pair:
    """One backlog, taken by both."""
    publication = _publication(connection)
    connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
    connection.execute(work)
    # Not in anybody's time. It also notes what runs, so that ours begins its next backlog here, as the other slot does, which is new.
    connection.execute("checkpoint")
    # So does what the lake holds already: the other slot's log begins with the backlog.
    connection.execute(_ADVANCE)
    end = _end(connection)
    # A record behind the end, so that pg_recvlogical sees that it is over.
    connection.execute("select pg_logical_emit_message(true, 'bench', 'end')")
    limit = _drain(bench, publication, end, tcp=tcp) if limit_first else None
    bench.reach(tcp=tcp)
    began, used = time.monotonic(), time.process_time()
    status = bench.lakehouse.sync(until=format_lsn(end))
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    bench.reach(tcp=False)
    limit = limit if limit is not None else _drain(bench, publication, end, tcp=tcp)
    connection.execute("select pg_drop_replication_slot(%s)", (SLOT,))
    return _Pair(int(status["changes"]), int(status["commits"]), seconds, limit, cpu)


def _drain(bench: Rig, publication: str, end: int, *, tcp: bool) -> float:
    """Seconds pg_recvlogical takes for what is in the slot."""
    return bench.run("pg_recvlogical", *_to_nowhere(publication), "--endpos", format_lsn(end), tcp=tcp)


def _to_nowhere(publication: str) -> tuple[str, ...]:
    take = ("--dbname", "postgres", "--slot", SLOT, "--start", "--file", os.devnull, "--no-loop")
    return (*take, "--option", "proto_version=1", "--option", f"publication_names={publication}")


def _live_pair(bench: Rig, connection: psycopg.Connection[Any], works: tuple[str, str], *, tcp: bool, limit_first: bool) -> _Pair:
    """As much live for the one, then for the other: what is made meanwhile is never the same twice."""
    first, second = works
    limit = _live_limit(bench, connection, first, tcp=tcp) if limit_first else None
    if limit is not None:
        bench.lakehouse.sync()
    bench.reach(tcp=tcp)
    commits, changes = 0, 0
    ready, reached, stop = threading.Event(), threading.Event(), threading.Event()
    target = [1 << 63]

    def report(progress: Progress, status: dict[str, Any]) -> None:
        nonlocal commits, changes
        ready.set()
        commits += progress.kind == "commit"
        changes += progress.changes
        if status["state"] == "running" and parse_lsn(status["position"]) >= target[0]:
            reached.set()

    def follow() -> None:
        try:
            bench.lakehouse.sync(follow=True, stop=stop, report=report)
        finally:
            ready.set()
            reached.set()

    following = threading.Thread(target=follow)
    following.start()
    ready.wait()
    began, used = time.monotonic(), time.process_time()
    connection.execute(second if limit_first else first)
    target[0] = _end(connection)
    reached.wait()
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    stop.set()
    following.join()
    bench.reach(tcp=False)
    return _Pair(changes, commits, seconds, limit if limit is not None else _live_limit(bench, connection, second, tcp=tcp), cpu)


def _live_limit(bench: Rig, connection: psycopg.Connection[Any], work: str, *, tcp: bool) -> float:
    """Seconds until all has been sent to a pg_recvlogical that was there before."""
    connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
    with bench.program("pg_recvlogical", *_to_nowhere(_publication(connection)), tcp=tcp) as process:
        sent = "select sent_lsn >= %s::pg_lsn from pg_stat_replication where application_name = 'pg_recvlogical'"
        while connection.execute(sent, ("0/0",)).fetchone() is None:
            time.sleep(0.01)
        began = time.monotonic()
        connection.execute(work)
        end = format_lsn(_end(connection))
        while connection.execute(sent, (end,)).fetchone() != (True,):
            time.sleep(0.005)
        seconds = time.monotonic() - began
        process.send_signal(signal.SIGINT)
    while connection.execute("select 1 from pg_replication_slots where slot_name = %s and active", (SLOT,)).fetchone():
        time.sleep(0.01)
    connection.execute("select pg_drop_replication_slot(%s)", (SLOT,))
    return seconds


def _publication(connection: psycopg.Connection[Any]) -> str:
    found = connection.execute("select pubname from pg_publication where pubupdate").fetchone()
    assert found is not None
    return str(found[0])


def _end(connection: psycopg.Connection[Any]) -> int:
    found = connection.execute("select pg_current_wal_flush_lsn()").fetchone()
    assert found is not None
    return parse_lsn(found[0])
