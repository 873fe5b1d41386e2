"""Benchmarks: commands that print JSON, each figure beside a limit or a peer measured in the same run.

A shared machine's absolute times say little; ratios do. Nothing here asserts a time.
"""

import importlib
from collections.abc import Callable
from typing import Any

from icelake.errors import ProjectError

BENCHES = {
    "apply": "changes from a backlog of WAL into Iceberg, against pg_recvlogical draining the same WAL to /dev/null",
    "soak": "a commit a second for as long as you like: commit time, metadata size and read time of each tenth of the run",
}
"""Name -> what it measures. A benchmark is the module of its name here, with ``run(size, note) -> figures``."""


def run(name: str, size: float | None, note: Callable[[str], None]) -> dict[str, Any]:
    """``{"name", "figures": [{"what", "value", "unit", "against", "ratio"}], …}``. ``size``: None is the benchmark's own default.

    ``note`` is told of progress in sentences. Raises ProjectError for an unknown name.
    """
    if name not in BENCHES:
        raise ProjectError("UNKNOWN_BENCH", f"there is no benchmark {name}", "", f"one of: {', '.join(BENCHES)}")
    module = importlib.import_module(f"icelake.bench.{name}")
    figures: dict[str, Any] = module.run(size, note)
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
