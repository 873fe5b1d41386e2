"""Benchmarks: commands that print JSON, each figure beside a limit or a peer measured in the same run.

A shared machine's absolute times say little; ratios do. Nothing here asserts a time.
"""

import importlib
import resource
from collections.abc import Callable
from typing import Any

from icelake.errors import ProjectError

BENCHES = {
    "apply.mixed": "a backlog of updates, inserts and deletes into Iceberg, against pg_recvlogical draining the same WAL to /dev/null",
    "apply.insert_only": "the same of inserts",
    "apply.toast": "the same of documents whose text the updates leave alone",
    "apply.tpcc": "the same of orders, payments and deliveries over 9 tables",
    "apply.stream": "updates, inserts and deletes as they are made, against pg_recvlogical taking them as they are made",
    "load": "an initial load of lineitem, against COPY (FORMAT binary) of the same rows to /dev/null",
    "read.after_updates": "queries after a tenth of the rows was updated in a hundred commits, against the same rows freshly loaded",
    "commit.dv_seconds": "a commit that deletes 1,000 rows of each of 100 files, against writing as many files",
    "commit.exponent": "how the time of a commit grows with the rows of its table",
    "memory": "the most memory a sync holds while it loads two tables of ten million keys, and follows them",
    "startup": "the first sync on a machine, whose kernels are not compiled, against those that come after it",
    "freshness": "the age of what a fresh query answers while 2,000 rows a second change in eight tables",
    "peers": "the same changes by turns applied by IceLake, DuckDB, PyIceberg and dlt, each installed for the occasion",
    "catalog": "eight writers that append over HTTP to one table and to a hundred, against the Iceberg project's REST server (needs Java)",
    "soak": "a commit a second for as long as you like: commit time, metadata size and read time of each tenth of the run",
}
"""Name -> what it measures. A benchmark is the module of its name here, with ``run(variant, size, pairs, note) -> figures``."""
PAIRS = 5


def run(name: str, size: float | None, note: Callable[[str], None], pairs: int = PAIRS) -> dict[str, Any]:
    """``{"name", "figures": [{"what", "value", "unit", "against", "ratio"}], "verified", …}``. ``size``: None is the benchmark's default.

    ``pairs``: how often ours and its limit are measured, by turns. ``note`` is told of progress in sentences. Raises ProjectError for
    an unknown name.
    """
    if name not in BENCHES:
        raise ProjectError("UNKNOWN_BENCH", f"there is no benchmark {name}", "", f"one of: {', '.join(BENCHES)}")
    module, _, variant = name.partition(".")
    figures: dict[str, Any] = importlib.import_module(f"icelake.bench.{module}").run(variant, size, pairs, note)
    return {"name": name, **figures}


def figure(what: str, value: float, unit: str, against: str | None = None, limit: float | None = None) -> dict[str, Any]:
    """One figure; ``ratio`` is value / limit, of things of which more is better."""
    return {
        "what": what,
        "value": round(value, 3),
        "unit": unit,
        "against": against,
        "ratio": round(value / limit, 3) if limit else None,
    }


def peak_memory() -> dict[str, Any]:
    """The figure of this process so far: before ``verify`` it is the applier's."""
    return figure("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")
