"""``icelake bench commit.dv_seconds`` and ``commit.exponent``: what one commit takes, and whether it grows with the table.

*dv_seconds*: a transaction deletes 1,000 rows of each of 100 files. Timed is the applier's whole step: changes decoded, keys looked up,
deletion vectors merged, written and synced, manifests, the validator, the catalog. The limit is what has to reach the disk: as many files
of the vectors' size, written and synced one after the other. Each pair is a lake of its own with two such commits, the first into files
without vectors, the second into files with them. ``size``: files.

*exponent*: tables of 10^5 rows and ten times more up to ``size`` (10^7); transactions that update 1,000 of the newest 10,000 rows. The
exponent is the slope of log(seconds) over log(rows), of medians.
"""

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from icelake.bench import figure, peak_memory
from icelake.bench.rig import Rig, rig
from icelake.ingest.applier import Progress
from icelake.lakehouse import Lakehouse

FILES = 100
DELETED = 1_000
"""Rows of each file, a commit."""
ROWS = 10_000_000
COMMITS = 25

_SPREAD = """
create table spread (id bigint primary key, part int not null, note text not null);
insert into spread select g, g % {files}, 'note ' || g % 1000 from generate_series(0, {files} * 5000 - 1) g;
"""
_GROWING = "create table growing (id bigint primary key, n int not null, note text not null);"


def run(variant: str, size: float | None, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module."""
    if variant == "dv_seconds":
        with rig(extra='[tables."public.spread"]\npartition = ["part"]\n', settings={"max_wal_size": "16GB"}) as bench:
            return _vectors(bench, int(size or FILES), pairs, note)
    with rig(settings={"max_wal_size": "16GB"}) as bench:
        return _growth(bench, int(size or ROWS), note)


def _vectors(bench: Rig, files: int, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    took: list[list[float]] = []
    limits: list[float] = []
    equal = True
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        for pair in range(pairs):
            connection.execute("drop table if exists spread")
            for statement in _SPREAD.format(files=files).strip().split("\n"):
                connection.execute(statement)
            with bench.another_lake() as lakehouse:
                lakehouse.sync()
                steps = []
                for first in (0, DELETED):
                    there = set(_vector_files(lakehouse))
                    connection.execute(f"delete from spread where id / {files} between {first} and {first + DELETED - 1}")
                    steps.append(_commit_seconds(lakehouse))
                    made = [size for path, size in _vector_files(lakehouse).items() if path not in there]
                assert len(made) == files, f"{len(made)} deletion vectors were written, not {files}"
                limits.append(_written_and_synced(lakehouse.project.lake, made))
                if pair == pairs - 1:
                    equal = bool(lakehouse.verify()["equal"])
            took.append(steps)
            note(f"{files} files, {DELETED:,} rows each: {steps[0]:.3f} s, then {steps[1]:.3f} s; the files alone {limits[-1]:.3f} s")
    first_ones, merged = (statistics.median(steps[n] for steps in took) for n in range(2))
    limit = statistics.median(limits)
    against = f"{files} files of that size written and synced one after the other"
    return {
        "verified": equal,
        "figures": [
            {
                **figure("commit.dv_seconds", merged, "s", against, limit),
                "pairs": [round(steps[1] / alone, 3) for steps, alone in zip(took, limits, strict=True)],
            },
            figure("into files without vectors", first_ones, "s", against, limit),
            figure("the limit", limit, "s"),
            peak_memory(),
        ],
    }


def _growth(bench: Rig, most: int, note: Callable[[str], None]) -> dict[str, Any]:
    sizes = [10**n for n in range(5, 10) if 10**n <= most]
    medians: list[float] = []
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        connection.execute(_GROWING)
        for before, rows in itertools.pairwise([0, *sizes]):
            note(f"making {rows:,} rows of it")
            connection.execute(f"insert into growing select g, 0, 'note ' || g % 1000 from generate_series({before}, {rows - 1}) g")
            bench.lakehouse.sync()
            seconds = []
            for _ in range(COMMITS):
                newest = f"select {rows - 1} - (random() * 9999)::int from generate_series(1, {DELETED})"
                connection.execute(f"update growing set n = n + 1 where id in ({newest})")
                seconds.append(_commit_seconds(bench.lakehouse))
            medians.append(statistics.median(seconds))
            note(f"{rows:,} rows: {medians[-1] * 1000:.1f} ms a commit of {DELETED:,} updates")
    memory = peak_memory()
    equal = bool(bench.lakehouse.verify()["equal"])
    points = [(math.log(rows), math.log(seconds)) for rows, seconds in zip(sizes, medians, strict=True)]
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else 0.0
    return {
        "verified": equal,
        "figures": [
            figure("commit.exponent", slope, f"log(seconds) / log(rows), {sizes[0]:.0e} to {sizes[-1]:.0e} rows"),
            *(figure(f"a commit at {rows:.0e} rows", seconds, "s") for rows, seconds in zip(sizes, medians, strict=True)),
            memory,
        ],
    }


def _commit_seconds(lakehouse: Lakehouse) -> float:
    """Bring the lake up to date; the time of all steps that brought changes in."""
    took: list[float] = []

    def report(progress: Progress, _status: dict[str, Any]) -> None:
        if progress.changes:
            took.append(progress.seconds)

    lakehouse.sync(report=report)
    assert took, "nothing was committed"
    return sum(took)


def _vector_files(lakehouse: Lakehouse) -> dict[Path, int]:
    return {path: path.stat().st_size for path in lakehouse.project.lake.rglob("*.puffin")}


def _written_and_synced(folder: Path, sizes: list[int]) -> float:
    place = folder / "limit"
    place.mkdir()
    began = time.monotonic()
    for number, size in enumerate(sizes):
        with (place / str(number)).open("wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    seconds = time.monotonic() - began
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    return seconds
