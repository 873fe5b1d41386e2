"""``icelake bench catalog``: commits through the catalog over HTTP, beside the Iceberg project's own REST server.

Eight writers, each a process with one connection, append to Iceberg tables: a data file, a manifest, a manifest list and a request a
commit (``bench.append``). Ours (``icelake catalog serve`` over SQLite) and the reference (its JDBC catalog, over SQLite in a file too)
are there all the time, and have a turn each by turns with the same writers:

- **one_table**: all append to one table, until it has ``size`` snapshots; whoever was slower loads it again, and tries at once;
- **hundred_tables**: each writer goes round its own twelve or thirteen of a hundred tables, until all have five times as many together;
- **load_ms**: one client loads a table with 10,000 snapshots. That table is synthetic: its metadata names files that are not there.

A turn is the same commits for both, not the same time, so that tables grow alike; its tables are new ones. Its rate is the commits that
were acknowledged, from the first writer's start to the last acknowledgement. Times of commits are those of the requests that succeeded, in
all turns. The first turn of each is not counted: Java compiles meanwhile. After each turn a table must have as many snapshots as were
acknowledged, each on top of the one before it, and as many manifests.

**They promise different things**: ours answers when its database, which has the metadata's bytes too, is on the disk. The reference flushes
its database as SQLite does by itself (a rollback journal: four flushes a commit), and its metadata files never: after a loss of power the
database may name a file that is not there. Before each turn all that was written before is flushed, so that nobody pays for the other's.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from icelake.bench import figure
from icelake.bench.append import SCHEMA, Rest, rest, summary
from icelake.bench.rig import ICELAKE
from icelake.model.location import canonical
from icelake.ports import Json
from icelake.stack.iceberg_rest import iceberg_rest
from icelake.stack.supervisor import Supervisor
from icelake.tables.manifests import decode_manifest_list

WRITERS = 8
TABLES = 100
COMMITS = 200
"""Of a turn on one table."""
_MANY = 5
"""So many times as many are made on many tables, where nobody is in anybody's way."""
SNAPSHOTS = 10_000
"""Of the table that is loaded."""
LOADS = 20
_WARM_LOADS = 5
"""Loads before those that count."""
AGAINST = "the Iceberg project's REST server, which does not flush its metadata files"
_PROJECT = '[project]\nname = "bench"\n[sources.main]\ndsn = { file = "dsn" }\ntables = ["public.*"]\n'


@dataclass(frozen=True, slots=True)
class _Turn:
    commits: int
    seconds: float
    took: list[float]
    """ms of each acknowledged commit."""
    conflicts: int
    sound: bool
    """The tables have what was acknowledged, and nothing else."""

    @property
    def rate(self) -> float:
        return self.commits / self.seconds


@dataclass(slots=True)
class _Turns:
    """What both did of one kind, pair by pair."""

    ours: list[_Turn] = field(default_factory=list)
    theirs: list[_Turn] = field(default_factory=list)


def run(_variant: str, size: float | None, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module. ``size``: commits of a turn on one table. Raises ProjectError JAVA_NOT_FOUND."""
    commits = max(1, int(size or COMMITS))
    kinds = {"one_table": (1, commits), "hundred_tables": (TABLES, max(1, _MANY * commits // TABLES))}
    done = {kind: _Turns() for kind in kinds}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="icelake-bench-")))
        servers = [stack.enter_context(_icelake(folder / "ours")), stack.enter_context(iceberg_rest(folder / "theirs"))]
        writers = stack.enter_context(_writers())
        for pair in range(pairs + 1):
            for kind, (tables, each) in kinds.items():
                turns = [_turn(uri, writers, f"{kind}_{pair}", tables, each) for uri in servers]
                if pair:  # before that Java compiles, and nobody has loaded anything
                    done[kind].ours.append(turns[0])
                    done[kind].theirs.append(turns[1])
                ours, theirs = (f"{turn.rate:.0f} commits/s ({np.percentile(turn.took, 99):.0f} ms p99)" for turn in turns)
                note(f"{kind}: {ours}, the reference {theirs}{'' if pair else ' (not counted)'}")
        loads = _loads(servers)
        note(f"a table with {SNAPSHOTS:,} snapshots is loaded in {loads[0]:.1f} ms, by the reference in {loads[1]:.1f} ms")
    return {
        "verified": all(turn.sound for turns in done.values() for turn in (*turns.ours, *turns.theirs)),
        "commits": sum(turn.commits for turns in done.values() for turn in (*turns.ours, *turns.theirs)),
        "writers": WRITERS,
        "figures": [
            *(one for kind, turns in done.items() for one in _figures(f"catalog.{kind}", turns)),
            figure("catalog.load_ms", loads[0], "ms", "the same table loaded from the Iceberg project's REST server", loads[1]),
            figure("catalog.load_ms: the reference", loads[1], "ms"),
        ],
    }


def _figures(what: str, turns: _Turns) -> list[dict[str, Any]]:
    ratios = [ours.rate / theirs.rate for ours, theirs in zip(turns.ours, turns.theirs, strict=True)]
    rates = [statistics.median(turn.rate for turn in side) for side in (turns.ours, turns.theirs)]
    figures = [
        {
            **figure(what, rates[0], "commits/s", AGAINST),
            "ratio": round(statistics.median(ratios), 3),
            "pairs": [round(ratio, 3) for ratio in ratios],
        },
        figure(f"{what}: the reference", rates[1], "commits/s"),
    ]
    for percent in (50, 99):
        ours, theirs = (float(np.percentile([ms for turn in side for ms in turn.took], percent)) for side in (turns.ours, turns.theirs))
        figures += [
            figure(f"{what}, a commit's p{percent}", ours, "ms", AGAINST, theirs),
            figure(f"{what}, a commit's p{percent}: the reference", theirs, "ms"),
        ]
    for whose, side in (("", turns.ours), (": the reference", turns.theirs)):
        refused = sum(turn.conflicts for turn in side) / sum(turn.commits for turn in side)
        figures.append(figure(f"{what}, conflicts a commit{whose}", refused, "requests with status 409"))
    return figures


def _turn(uri: str, writers: "list[_Writer]", namespace: str, tables: int, each: int) -> _Turn:
    """All writers at once, on ``tables`` new tables until each has ``each`` snapshots; the tables are dropped afterwards."""
    with rest(uri) as catalog:
        paths = [_created(catalog, namespace, f"t{number}") for number in range(tables)]
        os.sync()
        for number, writer in enumerate(writers):
            writer.tell({"uri": uri, "tables": paths[number::WRITERS] if tables >= WRITERS else paths, "each": each})
        answers = [writer.answer() for writer in writers]
    acknowledged = sum((Counter(answer["acknowledged"]) for answer in answers), Counter[str]())
    # Another connection: servers close one that nobody spoke on.
    with rest(uri) as catalog:
        checked = [_dropped(catalog, path, acknowledged[path]) for path in paths]
    began, ended = min(answer["began"] for answer in answers), max(answer["ended"] for answer in answers)
    took = [ms for answer in answers for ms in answer["took"]]
    conflicts = sum(answer["conflicts"] for answer in answers)
    return _Turn(acknowledged.total(), ended - began, took, conflicts, all(checked) and acknowledged.total() == tables * each)


def _created(catalog: Rest, namespace: str, name: str) -> str:
    """Make a table, and its namespace if it is not there; its path."""
    catalog.ask("POST", "namespaces", {"namespace": [namespace], "properties": {}})
    catalog.made("POST", f"namespaces/{namespace}/tables", {"name": name, "schema": SCHEMA, "properties": {"format-version": "2"}})
    return f"namespaces/{namespace}/tables/{name}"


def _dropped(catalog: Rest, path: str, acknowledged: int) -> bool:
    """Take a table away, with its files. Whether what is in it is what was acknowledged: so many commits, one on top of the other."""
    metadata = catalog.made("GET", path)["metadata"]
    snapshots = sorted(metadata["snapshots"], key=lambda one: int(one["sequence-number"]))
    ids = [None, *(one["snapshot-id"] for one in snapshots)]
    sound = (
        len(snapshots) == acknowledged
        and metadata["refs"].get("main", {}).get("snapshot-id") == ids[-1]
        and [one.get("parent-snapshot-id") for one in snapshots] == ids[:-1]
        and [one["sequence-number"] for one in snapshots] == list(range(1, acknowledged + 1))
    )
    if snapshots:
        where = snapshots[-1]["manifest-list"]
        _, manifests = decode_manifest_list(Path(canonical(where)).read_bytes(), where, snapshots[-1]["summary"])
        sound = sound and {one["added_snapshot_id"] for one in manifests} == set(ids[1:]) and len(manifests) == acknowledged
    catalog.made("DELETE", path)
    shutil.rmtree(canonical(metadata["location"]))
    return sound


def _loads(servers: list[str]) -> list[float]:
    """ms a server takes to give a table with many snapshots to a client, the medians of loads by turns."""
    took: list[list[float]] = [[] for _ in servers]
    with ExitStack() as stack:
        catalogs = [stack.enter_context(rest(uri)) for uri in servers]
        paths = [_synthetic(catalog) for catalog in catalogs]
        for load in range(_WARM_LOADS + LOADS):
            for catalog, path, times in zip(catalogs, paths, took, strict=True):
                began = time.monotonic()
                status, said = catalog.ask("GET", path)
                seconds = time.monotonic() - began
                assert status == 200
                if load >= _WARM_LOADS:
                    times.append(seconds * 1000)
                elif not load:
                    assert len(json.loads(said)["metadata"]["snapshots"]) == SNAPSHOTS
    return [statistics.median(times) for times in took]


def _synthetic(catalog: Rest) -> str:
    """Register a table that looks as if it had been appended to ten thousand times; its path. Its manifest lists are not there."""
    path = _created(catalog, "loaded", "pattern")
    metadata = catalog.made("GET", path)["metadata"]
    location = f"{metadata['location'].rstrip('/')}_synthetic"
    snapshots: list[Json] = []
    for number in range(1, SNAPSHOTS + 1):
        before = snapshots[-1] if snapshots else None
        ident = number << 40
        snapshots.append(
            {
                "snapshot-id": ident,
                **({"parent-snapshot-id": before["snapshot-id"]} if before else {}),
                "sequence-number": number,
                "timestamp-ms": metadata["last-updated-ms"] - (SNAPSHOTS - number) * 1000,
                "manifest-list": f"{location}/metadata/snap-{ident}-1-{uuid.uuid4()}.avro",
                "summary": summary(before and before["summary"], 1000),
                "schema-id": 0,
            }
        )
    synthetic = {
        **metadata,
        "table-uuid": str(uuid.uuid4()),
        "location": location,
        "last-sequence-number": SNAPSHOTS,
        "snapshots": snapshots,
        "snapshot-log": [{"snapshot-id": one["snapshot-id"], "timestamp-ms": one["timestamp-ms"]} for one in snapshots],
        "current-snapshot-id": snapshots[-1]["snapshot-id"],
        "refs": {"main": {"snapshot-id": snapshots[-1]["snapshot-id"], "type": "branch"}},
    }
    file = f"{location}/metadata/{SNAPSHOTS:05d}-{uuid.uuid4()}.metadata.json"
    Path(canonical(file)).parent.mkdir(parents=True)
    Path(canonical(file)).write_text(json.dumps(synthetic))
    catalog.made("POST", "namespaces/loaded/register", {"name": "synthetic", "metadata-location": file})
    return "namespaces/loaded/tables/synthetic"


# -------------------------------------------------------------------------------------------------------------- processes


@contextmanager
def _icelake(folder: Path) -> Iterator[str]:
    """``icelake catalog serve`` on a project of its own, gone with this process; its URI."""
    folder.mkdir()
    (folder / "icelake.toml").write_text(_PROJECT)
    (folder / "dsn").touch(0o600)
    log = folder / "server.log"
    argv = [*ICELAKE, "catalog", "serve", "-C", str(folder), "--port", "0", "--json"]
    with Supervisor() as server:
        server.start(argv, log=log, env=os.environ, cwd=folder)
        server.wait_until(lambda: any(line.startswith("{") for line in log.read_text().splitlines()), 60)
        said = next(line for line in log.read_text().splitlines() if line.startswith("{"))
        try:
            yield str(json.loads(said)["uri"])
        except Exception as error:
            error.add_note(f"icelake catalog serve said: {log.read_text()[-2000:]}")
            raise


class _Writer:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, order: Json) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Json:
        """Raises CalledProcessError if it ended instead; it said why on stderr."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise subprocess.CalledProcessError(self._process.wait(), self._process.args)
        found: Json = json.loads(line)
        return found


@contextmanager
def _writers() -> Iterator[list[_Writer]]:
    """The writers, ready; they end when their input does."""
    with ExitStack() as stack:
        processes = []
        for _ in range(WRITERS):
            process = subprocess.Popen(
                [sys.executable, "-m", "icelake.bench.append"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            processes.append(process)
        writers = [_Writer(process) for process in processes]
        for writer in writers:
            writer.answer()
        yield writers
