"""``icelake bench memory``: the most memory ``icelake sync`` ever holds, with millions of keys.

A table of ``size`` rows keyed by a bigint, and then, on a server and in a lake of its own, one keyed by a text and an int. A process of its
own loads it, and others follow changes: a tenth of the rows updated, inserted and deleted, three times. Memory is resident memory, the
pages of mapped files among it; all our processes are one. The limit is 1,024 MiB.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg

from icelake.bench import figure
from icelake.bench.rig import ICELAKE, Rig, rig

ROWS = 10_000_000
LIMIT = 1024.0
"""MiB."""
ROUNDS = 3

_TABLES = {
    "int64": (
        """
create table numbered (id bigint primary key, n int not null, note text not null);
insert into numbered select g, g % 17, 'note ' || g % 1000 from generate_series(1, {rows}) g;
vacuum analyze numbered;
""",
        """
update numbered set n = n + 1 where id % 30 = {n};
delete from numbered where id % 120 = 10 + {n};
insert into numbered select {rows} * ({n} + 2) + g, 0, 'new' from generate_series(1, {rows} / 120) g;
""",
    ),
    "text and int": (
        """
create table named (name text, part int, n int not null, note text not null, primary key (name, part));
insert into named select 'customer-' || g / 2, g % 2, g % 17, 'note ' || g % 1000 from generate_series(1, {rows}) g;
vacuum analyze named;
""",
        """
update named set n = n + 1 where hashtext(name) % 30 = {n};
delete from named where hashtext(name) % 60 = -10 - {n};
insert into named select 'new-{n}-' || g, g % 7, 0, 'new' from generate_series(1, {rows} / 120) g;
""",
    ),
}
"""By kind of key: the table, and a round of changes."""


_MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process begins with the peak of the one that it was forked from. So a small one stands between it and this one, which has verified."""


def run(_variant: str, size: float | None, _pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module."""
    rows = int(size or ROWS)
    peaks: dict[str, list[float]] = {}
    equal = True
    for key, (table, changes) in _TABLES.items():
        with rig(settings={"max_wal_size": "16GB"}) as bench:
            note(f"making a table of {rows:,} rows, keyed by {key}")
            peaks[key] = _peaks(bench, table.format(rows=rows), [changes.format(rows=rows, n=n) for n in range(ROUNDS)], note)
            note("comparing the lake with the source")
            equal = bool(bench.lakehouse.verify()["equal"]) and equal
    return {
        "verified": equal,
        "rows": rows,
        "figures": [
            figure("apply.rss_mb", max(map(max, peaks.values())), "MiB", "what it may be", LIMIT),
            *(figure(f"while loading, key {key}", found[0], "MiB") for key, found in peaks.items()),
            *(figure(f"while following, key {key}", max(found[1:]), "MiB") for key, found in peaks.items()),
        ],
    }


def _peaks(bench: Rig, table: str, rounds: list[str], note: Callable[[str], None]) -> list[float]:
    """MiB while the table is loaded, then while each round of changes is followed."""
    peaks = []
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        for statement in table.strip().split("\n"):
            connection.execute(statement)
        peaks.append(_peak(bench))
        note(f"loading: {peaks[-1]:,.0f} MiB at most")
        for changes in rounds:
            with connection.transaction():
                for statement in changes.strip().split("\n"):
                    connection.execute(statement)
            peaks.append(_peak(bench))
            note(f"following: {peaks[-1]:,.0f} MiB at most")
    return peaks


def _peak(bench: Rig) -> float:
    """MiB that a process which brings the lake up to date holds at most."""
    command = [sys.executable, "-S", "-c", _MEASURE, *ICELAKE, "sync", "--json"]
    return int(subprocess.run(command, cwd=bench.folder, stdout=subprocess.PIPE, check=True).stdout) / 1024
