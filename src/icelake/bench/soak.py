"""``icelake bench soak``: a commit a second for a long time; is the last minute as quick as the first?

A few tables of constant size are inserted into, updated and deleted from all the time. Commit time, the size of the tables'
metadata files, the number of files in the lake and the time of one query over all tables are sampled; each figure is the median of
the last tenth of the run, its limit the median of the second tenth (the first warms up and fills the first tier of retention).
A machine that others use is slower at some hours, so times are also given in units of a probe taken beside each sample (some
hashing and a few small synced files), and the CPU time a commit takes is given beside the time that passes: trading in another
thread of the process included, which is the same all the time. ``size`` is the length in minutes.
"""

import hashlib
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from icelake.bench import figure
from icelake.bench.rig import Rig, rig
from icelake.errors import IcelakeError
from icelake.ingest.applier import Progress

MINUTES = 60.0
TABLES = 3
ROWS = 20_000
SAMPLE_SECONDS = 15.0

TABLE = """
create table t{n} (id bigint primary key, name text not null, amount numeric(12,2) not null, changed timestamptz not null default now());
insert into t{n} select g, 'name ' || g, g / 100.0 from generate_series(1, {rows}) g;
"""
QUERY = " union all ".join(f"select count(*), sum(amount), max(changed) from t{n}" for n in range(TABLES))


@dataclass(slots=True)
class _Samples:
    commit: list[tuple[float, float]] = field(default_factory=list)
    metadata: list[tuple[float, float]] = field(default_factory=list)
    files: list[tuple[float, float]] = field(default_factory=list)
    read: list[tuple[float, float]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    probe: list[tuple[float, float]] = field(default_factory=list)
    processor: list[tuple[float, float]] = field(default_factory=list)
    resumed: tuple[float, int] = (0.0, 0)
    """CPU seconds and commits when the last sample was done."""


def run(_variant: str, size: float | None, _pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module. ``size``: minutes (default 60)."""
    seconds = (size or MINUTES) * 60
    with rig() as bench:
        return _run(bench, seconds, note)


def _run(bench: Rig, seconds: float, note: Callable[[str], None]) -> dict[str, Any]:
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        for n in range(TABLES):
            connection.execute(TABLE.format(n=n, rows=ROWS))
    bench.lakehouse.sync()
    samples = _Samples()
    stop = threading.Event()
    failure: list[IcelakeError] = []
    began = time.monotonic()
    samples.resumed = (time.process_time(), 0)

    def step(progress: Progress, _status: dict[str, Any]) -> None:
        if progress.kind == "commit" and progress.changes:
            samples.commit.append((time.monotonic() - began, progress.seconds))

    def follow() -> None:
        try:
            bench.lakehouse.sync(follow=True, stop=stop, report=step)
        except IcelakeError as error:
            failure.append(error)

    threads = [threading.Thread(target=follow), threading.Thread(target=_trade, args=(bench.dsn, stop))]
    for thread in threads:
        thread.start()
    try:
        while time.monotonic() - began < seconds and not failure:
            stop.wait(min(SAMPLE_SECONDS, max(0.1, began + seconds - time.monotonic())))
            _sample(bench, samples, time.monotonic() - began)
            note(
                f"{time.monotonic() - began:6.0f} s: {len(samples.commit)} commits, "
                f"last took {samples.commit[-1][1] * 1000 if samples.commit else 0:.0f} ms, read {samples.read[-1][1] * 1000:.0f} ms, "
                f"metadata {samples.metadata[-1][1] / 1024:.0f} KiB, {samples.files[-1][1]:.0f} files"
            )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failure:
        raise failure[0]
    equal = bench.lakehouse.verify()["equal"]
    return {
        "verified": equal,
        "commits": len(samples.commit),
        "figures": [
            _compared("commit time", samples.commit, "s", seconds),
            _compared("metadata size", samples.metadata, "bytes", seconds),
            _compared("files in the lake", samples.files, "files", seconds),
            _compared("read time", samples.read, "s", seconds),
            _compared("resident memory", samples.memory, "MiB", seconds),
            _compared("CPU time a commit", samples.processor, "s", seconds),
            _compared("commit time in probes", _per(samples.commit, samples.probe), "probes", seconds),
            _compared("read time in probes", _per(samples.read, samples.probe), "probes", seconds),
        ],
    }


def _trade(dsn: str, stop: threading.Event) -> None:
    low, top = 1, ROWS
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not stop.wait(0.2):
            with connection.transaction():
                for n in range(TABLES):
                    connection.execute(f"insert into t{n} select {top} + g, 'new', g from generate_series(1, 4) g")
                    connection.execute(f"delete from t{n} where id >= {low} and id < {low + 4}")
                    connection.execute(
                        f"update t{n} set amount = amount + 1, changed = now() "
                        f"where id in (select {low + 4} + (random() * {ROWS - 8})::int from generate_series(1, 12))"
                    )
            low, top = low + 4, top + 4


def _sample(bench: Rig, samples: _Samples, at: float) -> None:
    used, commits = time.process_time() - samples.resumed[0], len(samples.commit) - samples.resumed[1]
    if commits:
        samples.processor.append((at, used / commits))
    tables = bench.lakehouse.tables()
    samples.metadata.append((at, float(sum(Path(table["metadata"]).stat().st_size for table in tables))))
    samples.files.append((at, float(sum(1 for _ in (bench.folder / "lake" / "warehouse").rglob("*.*")))))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    samples.memory.append((at, pages * resource.getpagesize() / (1 << 20)))
    samples.probe.append((at, _probe(bench.folder)))
    began = time.monotonic()
    bench.lakehouse.query(QUERY)
    samples.read.append((at, time.monotonic() - began))
    samples.resumed = (time.process_time(), len(samples.commit))


def _probe(folder: Path) -> float:
    """Seconds for a fixed piece of work: 16 MiB hashed, four files of 64 KiB written and synced."""
    began = time.monotonic()
    hashlib.blake2b(bytes(16 << 20)).digest()
    for number in range(4):
        path = folder / f"probe-{number}"
        with path.open("wb") as file:
            file.write(bytes(64 << 10))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    return time.monotonic() - began


def _per(samples: list[tuple[float, float]], probes: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each sample in units of the probe nearest to it in time."""
    return [(at, value / min(probes, key=lambda probe: abs(probe[0] - at))[1]) for at, value in samples]


def _compared(what: str, samples: list[tuple[float, float]], unit: str, seconds: float) -> dict[str, Any]:
    def tenth(number: int) -> float:
        inside = [value for at, value in samples if number <= at / seconds * 10 < number + 1]
        return statistics.median(inside or [value for _, value in samples])

    return {
        **figure(what, tenth(9), unit, "the same in the second tenth of the run", tenth(1)),
        "tenths": [round(tenth(n), 4) for n in range(10)],
    }
