"""Many schedules on several processes, and the hunt for planted bugs. Results are plain documents, ready for JSON."""

import gc
import importlib
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

CHUNK = 25
TELL = 30.0
"""Seconds from one word of how far it is to the next."""
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


def campaign(first: int, count: int, jobs: int) -> dict[str, Any]:
    """Play many schedules; a JSON document of what happened."""
    from tests.sim.run import PAIRS

    began = time.monotonic()
    hits: Counter[tuple[str, str]] = Counter()
    failures: list[dict[str, Any]] = []
    least = {"transactions": 1 << 30, "tables": 1 << 30, "faults": 1 << 30}
    totals: Counter[str] = Counter()

    told = began

    def account(results: list[Any]) -> None:
        nonlocal told
        for result in results:
            hits.update(result.hits)
            totals.update(schedules=1, faults=result.faults, processes=result.processes, steps=result.steps)
            totals.update(cuts=result.cuts, answers=result.answers)
            if result.error is not None:
                failures.append({"seed": result.seed, "error": result.error})
            for name, value in least.items():
                least[name] = min(value, getattr(result, name))
        if time.monotonic() - told >= TELL:
            told = time.monotonic()
            print(f"{totals['schedules']} of {count} schedules, {len(failures)} failed, {told - began:.0f} s", file=sys.stderr, flush=True)

    if jobs <= 1:
        for chunk in _chunks(first, count):
            account(play_many(chunk))
    else:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            for results in pool.imap_unordered(play_many, _chunks(first, count)):
                account(results)
    return {
        "schedules": totals["schedules"],
        "seconds": round(time.monotonic() - began, 1),
        "failures": failures,
        "least": least,
        "totals": dict(totals),
        "hits": {f"{call} / {fault}": hits[call, fault] for call, fault in PAIRS},
    }


def hunt(task: tuple[str, int]) -> dict[str, Any]:
    """Plant a bug and play seeds until one catches it. Runs in a process of its own that has imported nothing of the product."""
    from tests.sim.bugs import BUGS, plant

    name, limit = task
    plant(BUGS[name])
    try:
        from tests.sim.run import schedule
    except ValueError as error:
        return {"bug": name, "seed": None, "error": f"cannot be planted any more: {error}"}

    gc.disable()
    for seed in range(limit):
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
