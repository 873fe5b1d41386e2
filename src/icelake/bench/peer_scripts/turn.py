"""What the scripts of the peers share. ``python with_NAME.py WHAT FOLDER``, where WHAT is

- ``load``: make the peer's table of FOLDER/before.parquet;
- ``follow`` or ``apply``: for each line read (the name of a file in FOLDER) apply that batch of changes, durably and visibly, then
  answer with the seconds it took, the CPU seconds since the last answer, of this process and its children, and the MiB this process
  held at most;
- ``read``: write the peer's table to FOLDER/after.parquet, and say how many files and bytes are left.

A batch has the table's columns and ``deleted``: at most one row a key, its last state, or only the key and ``deleted``.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def main(load: Callable[[Path], None], apply: Callable[[Path], None], read: Callable[[Path], tuple[int, int]]) -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "load":
        load(folder)
    elif what == "read":
        files, size = read(folder)
        print(json.dumps({"files": files, "bytes": size}))
    else:
        answer(lambda line: apply(folder / line))


def answer(apply: Callable[[str], object]) -> None:
    """Apply what each line names."""
    print(json.dumps({"ready": True}), flush=True)
    used = spent()
    for line in sys.stdin:
        began = time.monotonic()
        apply(line.strip())
        seconds = time.monotonic() - began
        before, used = used, spent()
        print(json.dumps({"seconds": seconds, "cpu": used - before, "peak": peak()}), flush=True)


def spent() -> float:
    """CPU seconds of this process and the children it has waited for."""
    kinds = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(kind.ru_utime + kind.ru_stime for kind in kinds)


def peak() -> float:
    """MiB; ``ru_maxrss`` would begin with what the process held that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def left(folder: Path) -> tuple[int, int]:
    """Files below a folder, and their bytes."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return len(sizes), sum(sizes)
