"""``icelake bench startup``: the first ``icelake sync`` on a machine, whose kernels are not compiled, against those that come after it.

``size`` rows of a table with columns of the common types are loaded by one process; another one brings updates, inserts and deletes of
them. Measured is CPU time, and the time that passes. Cold, both begin with an empty folder for compiled code; warm, another lake is
filled in the same way with the code that is there then. What each kernel took to compile is as numba's events tell, in the processes
that compiled it; a kernel's time has in it that of those it calls, where nobody had called them before.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from icelake.bench import figure
from icelake.bench.rig import ICELAKE, Rig, rig

ROWS = 1_000
HEAVIEST = 8
"""Kernels that are told by name."""

_TIMED = "import sys; from icelake.bench.stopwatch import timed; from icelake.cli import main; sys.exit(timed(main))"
_TABLE = """
create table small (id bigint primary key, n int, note text, price numeric(10,2), at timestamptz, day date, ok boolean, x float8);
insert into small select g, g % 17, 'note ' || g, g, now(), current_date, g % 2 = 0, g / 7.0 from generate_series(1, {rows}) g;
"""
_CHANGES = """
update small set n = n + 1 where id % 3 = 0;
insert into small select -id, n, note, price, at, day, ok, x from small where id % 5 = 0;
delete from small where id % 7 = 0;
"""


def run(_variant: str, size: float | None, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module."""
    with rig() as bench, psycopg.connect(bench.dsn, autocommit=True) as connection:
        return _run(bench, connection, int(size or ROWS), pairs, note)


def _run(bench: Rig, connection: psycopg.Connection[Any], rows: int, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    took: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    compiled: dict[str, float] = {}
    counts = dict.fromkeys(took, 0)
    equal = True
    for _ in range(pairs):
        with TemporaryDirectory(prefix="icelake-compiled-") as code:
            for which, measured in took.items():
                connection.execute("drop table if exists small")
                _each(connection, _TABLE.format(rows=rows))
                with bench.another_lake() as lakehouse:
                    folder = lakehouse.project.file.parent
                    load = _sync(folder, code)
                    _each(connection, _CHANGES)
                    follow = _sync(folder, code)
                    equal = equal and bool(lakehouse.verify()["equal"])
                measured.append((load[0] + follow[0], load[1] + follow[1]))
                for name, seconds in [*load[2].items(), *follow[2].items()]:
                    compiled[name] = compiled.get(name, 0.0) + seconds / pairs
                    counts[which] += 1
                note(f"{which}: {measured[-1][0]:.1f} s of CPU, {measured[-1][1]:.1f} s to load {rows:,} rows and follow changes")
    cold_cpu, warm_cpu = (statistics.median(cpu for cpu, _ in measured) for measured in took.values())
    cold_wall, warm_wall = (statistics.median(wall for _, wall in measured) for measured in took.values())
    version = _measured([*ICELAKE, "--version"], Path(), {})[0]
    rooms: dict[str, float] = {}
    for name, seconds in compiled.items():
        room = name.rpartition(".")[0]
        rooms[room] = rooms.get(room, 0.0) + seconds
    against = "the same with the kernels compiled"
    return {
        "verified": equal,
        "rows": rows,
        "compiled": counts,
        "figures": [
            {
                **figure("startup.cpu", cold_cpu, "s of CPU", against, warm_cpu),
                "pairs": [round(one[0] / other[0], 3) for one, other in zip(took["cold"], took["warm"], strict=True)],
            },
            figure("startup.wall", cold_wall, "s", against, warm_wall),
            figure("icelake --version", version, "s of CPU"),
            *(figure(f"compiling {room}", seconds, "s of CPU") for room, seconds in _most(rooms)),
            *(figure(f"of it {name}", seconds, "s of CPU") for name, seconds in _most(compiled)[:HEAVIEST]),
        ],
    }


def _most(seconds: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda one: -one[1])


def _each(connection: psycopg.Connection[Any], statements: str) -> None:
    for statement in statements.strip().split("\n"):
        connection.execute(statement)


def _sync(folder: Path, code: str) -> tuple[float, float, dict[str, float]]:
    """(s of CPU, s, s of CPU by kernel) of one ``icelake sync`` that keeps compiled code in ``code``."""
    told = Path(code) / "told.json"
    command = [sys.executable, "-c", _TIMED, str(told), "sync", "--json"]
    cpu, wall = _measured(command, folder, {"NUMBA_CACHE_DIR": code})
    return cpu, wall, json.loads(told.read_text())


def _measured(command: list[str], folder: Path, more: dict[str, str]) -> tuple[float, float]:
    began = time.monotonic()
    with subprocess.Popen(command, cwd=folder, env={**os.environ, **more}, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime, time.monotonic() - began
