"""A command of ours as a process of its own, and what it takes while it runs: memory, open files, CPU time."""

import json
import os
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

from icelake.bench.rig import ICELAKE

_EVERY = 0.02
"""Seconds between two looks at the process."""


class Watched:
    """``with Watched(folder, "sync", "--follow") as process``: it is stopped at the end, and must end well.

    ``memory``: the most resident memory in MiB it and what it started held, pages of mapped files among them. The kernel's own high-water
    mark is read for the process itself; of processes it starts, what they hold when looked at is added.
    """

    def __init__(self, folder: Path, *words: str, data: int | None = None) -> None:
        """``data``: bytes of memory of its own it may have at most, used or not (RLIMIT_DATA)."""
        self.memory = 0.0
        self.files = 0
        self.seconds = 0.0
        """CPU time, known once it has ended."""
        self._output = (folder / f"{words[0]}-{time.monotonic_ns()}.out").open("w+")
        self._errors = (folder / f"{words[0]}-{time.monotonic_ns()}.err").open("w+")
        self._process = subprocess.Popen(
            [*ICELAKE, *words, "--json"],
            cwd=folder,
            stdout=self._output,
            stderr=self._errors,
        )
        if data is not None:
            resource.prlimit(self.pid, resource.RLIMIT_DATA, (data, data))
        self._code: int | None = None
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._code is None:
            self._process.send_signal(signal.SIGTERM)
            if exc[0] is None:
                assert self.wait() == 0, self.errors
            else:
                self._process.kill()
                self.wait()
        self._output.close()
        self._errors.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def wait(self) -> int:
        """Until it ends; its exit code."""
        if self._code is None:
            _, status, used = os.wait4(self.pid, 0)
            self.seconds = used.ru_utime + used.ru_stime
            self._code = self._process.returncode = os.waitstatus_to_exitcode(status)
            self._watching.join()
        return self._code

    def answer(self) -> Any:
        """The document it printed at its end. It must have ended well."""
        assert self.wait() == 0, f"exit {self._code}\n{self.errors}"
        self._output.seek(0)
        return json.loads(self._output.read())

    def _watch(self) -> None:
        while self._code is None:
            try:
                own, others = _high_water(self.pid), sum(_resident(child) for child in _children(self.pid))
                self.memory = max(self.memory, own + others)
                self.files = max(self.files, len(os.listdir(f"/proc/{self.pid}/fd")))
            except (OSError, KeyError):
                return  # it has ended
            time.sleep(_EVERY)


def _status(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def _high_water(pid: int) -> float:
    return _status(pid, "VmHWM:")


def _resident(pid: int) -> float:
    return _status(pid, "VmRSS:")


def _children(pid: int) -> list[int]:
    """All processes below it."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *_children(child)]
    return found
