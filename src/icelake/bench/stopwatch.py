"""What each kernel takes to compile, as numba's events tell: for a process of ``icelake bench startup``, and next to nothing to import."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numba.core import event


class _Stopwatch(event.Listener):
    """s of CPU by kernel that Python called, with all that is compiled for it."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}
        self._began: list[float] = []

    def on_start(self, _event: Any) -> None:
        self._began.append(time.thread_time())

    def on_end(self, event: Any) -> None:
        took = time.thread_time() - self._began.pop()
        if not self._began:
            function = event.data["dispatcher"].py_func
            name = f"{function.__module__.removeprefix('icelake.')}.{function.__name__}"
            self.took[name] = self.took.get(name, 0.0) + took


def timed(main: Callable[[Sequence[str]], int]) -> int:
    """``main`` with the words of this process after the first, which names the file that is told what took how long."""
    stopwatch = _Stopwatch()
    with event.install_listener("numba:compile", stopwatch):
        code = main(sys.argv[2:])
    Path(sys.argv[1]).write_text(json.dumps(stopwatch.took))
    return code
