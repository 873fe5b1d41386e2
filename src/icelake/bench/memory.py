"""``icelake bench memory``: the most memory ``icelake sync`` ever holds, with millions of keys.

Two tables of ``size`` rows each, one keyed by a bigint, one by a text and an int. A process of its own loads them, and others follow
changes of both: a twentieth of the rows updated, inserted and deleted, three times. Memory is resident memory, the pages of mapped files
among it; all our processes are one. The limit is 1,024 MiB.
"""

import os
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg

from icelake.bench import figure
from icelake.bench.rig import ICELAKE, Rig, rig

ROWS = 10_000_000
LIMIT = 1024.0
"""MiB."""
ROUNDS = 3

_TABLES = """
create table numbered (id bigint primary key, n int not null, note text not null);
insert into numbered select g, g % 17, 'note ' || g % 1000 from generate_series(1, {rows}) g;
create table named (name text, part int, n int not null, note text not null, primary key (name, part));
insert into named select 'customer-' || g / 2, g % 2, g % 17, 'note ' || g % 1000 from generate_series(1, {rows}) g;
"""
_CHANGES = """
update numbered set n = n + 1 where id % 30 = {n};
delete from numbered where id % 120 = 10 + {n};
insert into numbered select {rows} * ({n} + 2) + g, 0, 'new' from generate_series(1, {rows} / 120) g;
update named set n = n + 1 where hashtext(name) % 30 = {n};
delete from named where hashtext(name) % 60 = -10 - {n};
insert into named select 'new-{n}-' || g, g % 7, 0, 'new' from generate_series(1, {rows} / 120) g;
"""


def run(_variant: str, size: float | None, _pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module."""
    with rig(settings={"max_wal_size": "16GB"}) as bench:
        return _run(bench, int(size or ROWS), note)


def _run(bench: Rig, rows: int, note: Callable[[str], None]) -> dict[str, Any]:
    peaks = []
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        note(f"making two tables of {rows:,} rows")
        for statement in _TABLES.format(rows=rows).strip().split("\n"):
            connection.execute(statement)
        peaks.append(_peak(bench))
        note(f"loading: {peaks[-1]:,.0f} MiB at most")
        for n in range(ROUNDS):
            with connection.transaction():
                for statement in _CHANGES.format(rows=rows, n=n).strip().split("\n"):
                    connection.execute(statement)
            peaks.append(_peak(bench))
            note(f"following: {peaks[-1]:,.0f} MiB at most")
    note("comparing the lake with the source")
    equal = bool(bench.lakehouse.verify()["equal"])
    return {
        "verified": equal,
        "rows": 2 * rows,
        "figures": [
            figure("apply.rss_mb", max(peaks), "MiB", "what it may be", LIMIT),
            figure("while loading", peaks[0], "MiB"),
            figure("while following", max(peaks[1:]), "MiB"),
        ],
    }


def _peak(bench: Rig) -> float:
    """MiB that a process which brings the lake up to date holds at most."""
    command = [*ICELAKE, "sync", "--json"]
    with subprocess.Popen(command, cwd=bench.folder, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_maxrss / 1024
