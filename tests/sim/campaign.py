"""Many schedules on several processes, and the hunt for planted bugs. Results are plain documents, ready for JSON.

A campaign may keep what it knows in a file: then it can be interrupted, and goes on with the seeds that were not played. It refuses
to go on with other code than it began with, because what was counted says nothing of that.
"""

import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

CHUNK = 25
TELL = 30.0
"""Seconds from one word of how far it is to the next."""
KEEP = 10.0
"""Seconds after which what was counted is written again."""
HEAVY = ("fastavro", "numba", "numpy", "orjson", "pyarrow.parquet", "pyroaring")


def play_many(seeds: list[int]) -> list[Any]:
    """Play these seeds in this process."""
    from tests.sim.run import schedule

    gc.disable()
    results = [schedule(seed) for seed in seeds]
    gc.collect()
    return results


def _chunks(first: int, count: int) -> Iterator[list[int]]:
    seeds = iter(range(first, first + count))
    while chunk := list(islice(seeds, CHUNK)):
        yield chunk


@dataclass(slots=True)
class Count:
    """What was played, chunk by chunk, and what came of it."""

    first: int
    code: str = ""
    chunks: set[int] = field(default_factory=set)
    """The first seeds of the chunks that were played, each whole."""
    seconds: float = 0.0
    hits: Counter[str] = field(default_factory=Counter)
    totals: Counter[str] = field(default_factory=Counter)
    least: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, results: list[Any]) -> None:
        self.chunks.add(results[0].seed)
        for result in results:
            self.hits.update({f"{call} / {fault}": count for (call, fault), count in result.hits.items()})
            self.totals.update(schedules=1, faults=result.faults, processes=result.processes, steps=result.steps)
            self.totals.update(cuts=result.cuts, answers=result.answers)
            if result.error is not None:
                self.failures.append({"seed": result.seed, "error": result.error})
            for name in ("transactions", "tables", "faults"):
                self.least[name] = min(self.least.get(name, 1 << 30), getattr(result, name))

    def write(self, path: Path) -> None:
        document = {one.name: getattr(self, one.name) for one in fields(self)} | {"chunks": sorted(self.chunks)}
        beside = path.with_name(path.name + ".new")
        beside.write_text(json.dumps(document, indent=1))
        os.replace(beside, path)

    @staticmethod
    def read(path: Path, first: int, code: str) -> "Count":
        """What the file holds, or nothing yet. Raises ValueError if that is of other code, or of other seeds."""
        if not path.exists():
            return Count(first, code)
        document = json.loads(path.read_text())
        if (document["first"], document["code"]) != (first, code):
            raise ValueError(f"{path} counts schedules of other code, or from another seed: what it says is over; name another file")
        counted = {"chunks": set(document["chunks"]), "hits": Counter(document["hits"]), "totals": Counter(document["totals"])}
        return Count(**{**document, **counted})


def code() -> str:
    """A digest of all that can change what a schedule does: the product, and this package without its tests and planted bugs."""
    root = Path(__file__).parents[2]
    here = [path for path in (root / "tests" / "sim").glob("*.py") if path.name != "bugs.py" and not path.name.startswith("test_")]
    digest = hashlib.sha256()
    for path in sorted([*(root / "src" / "icelake").rglob("*.py"), *here]):
        digest.update(f"{path.relative_to(root)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def campaign(first: int, count: int, jobs: int, state: Path | None = None) -> dict[str, Any]:
    """Play many schedules; a JSON document of what happened. ``state``: the file that keeps it, and what is to be gone on with.

    Raises ValueError if the file counts something else.
    """
    from tests.sim.run import PAIRS

    known = Count.read(state, first, code()) if state is not None else Count(first)
    before, began = known.seconds, time.monotonic()
    told = written = began

    def account(results: list[Any]) -> None:
        nonlocal told, written
        known.add(results)
        now = time.monotonic()
        known.seconds = before + now - began
        for result in results:
            if result.error is not None:
                print(f"seed {result.seed}: {result.error}", file=sys.stderr, flush=True)
        if state is not None and now - written >= KEEP:
            written = now
            known.write(state)
        if now - told >= TELL:
            told = now
            played = known.totals["schedules"]
            print(f"{played} of {count} schedules, {len(known.failures)} failed, {known.seconds:.0f} s", file=sys.stderr, flush=True)

    chunks = (chunk for chunk in _chunks(first, count) if chunk[0] not in known.chunks)
    try:
        if jobs <= 1:
            for chunk in chunks:
                account(play_many(chunk))
        else:
            with multiprocessing.get_context("spawn").Pool(jobs) as pool:
                for results in pool.imap_unordered(play_many, chunks):
                    account(results)
    finally:
        if state is not None:
            known.write(state)
    return {
        "schedules": known.totals["schedules"],
        "seconds": round(known.seconds, 1),
        "failures": known.failures,
        "least": known.least,
        "totals": dict(known.totals),
        "hits": {f"{call} / {fault}": known.hits[f"{call} / {fault}"] for call, fault in PAIRS},
    }


def hunt(task: tuple[str, int]) -> dict[str, Any]:
    """Plant a bug and play seeds until one catches it. Runs in a process of its own that has imported nothing of the product."""
    from tests.sim.bugs import BUGS, known_seeds, plant

    name, limit = task
    plant(BUGS[name])
    try:
        from tests.sim.run import schedule
    except ValueError as error:
        return {"bug": name, "seed": None, "error": f"cannot be planted any more: {error}"}

    gc.disable()
    known = known_seeds()
    for seed in dict.fromkeys([*([known[name]] if name in known else []), *range(limit)]):
        result = schedule(seed)
        if result.error is not None:
            return {"bug": name, "seed": seed, "error": result.error}
    return {"bug": name, "seed": None, "error": None}


def hunt_all(names: Sequence[str], limit: int, jobs: int) -> dict[str, Any]:
    """Hunt each bug in a fork of this process, then play every seed that caught one without any bug: the control."""
    began = time.monotonic()
    for heavy in HEAVY:
        importlib.import_module(heavy)
    # One task a child: each child imports the product anew, with its own bug in it.
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        found = list(pool.imap(hunt, [(name, limit) for name in names], chunksize=1))
        caught = sorted({entry["seed"] for entry in found if entry["seed"] is not None})
        control = pool.apply(play_many, (caught,))
    return {
        "bugs": found,
        "control": [{"seed": result.seed, "error": result.error} for result in control if result.error is not None],
        "seconds": round(time.monotonic() - began, 1),
    }
