"""Run a service as a child that cannot outlive us.

Promises: when this process ends, in whatever way (kill -9 too), the service and all its descendants end, and the folders it was
told to remove are gone; Ctrl-C in the terminal does not reach the service before we decide. Never signals a process it did not
start, never needs procps. Fails with ``Unreachable`` (the service did not come up; with the last lines of its log) or
``Refused`` (the watchdog itself failed). The work is done by ``watchdog.py``, a process of its own on the other end of a pipe.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from icelake.errors import Refused, Unreachable
from icelake.stack.watchdog import remove

Plan = Sequence[tuple[int, float]]
"""Signals in order, each with the seconds the service may take to end before the next one is sent."""

GENTLE: Plan = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))


class Supervisor:
    """One watchdog process, running one service at a time. Safe to use from several threads; a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = 0
        self._log: Path | None = None
        self._removed: list[Path] = []
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("watchdog.py")), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={},
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def remove_at_end(self, path: Path) -> None:
        """This folder with all in it (or this file or socket) goes when the service has ended for good."""
        self._removed.append(path)
        self._ask("remove", path=str(path))

    def start(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path,
        user: tuple[int, int] | None = None,
        plan: Plan = GENTLE,
    ) -> int:
        """Start the service in its own session; its pid. ``argv[0]`` is a full path; output is appended to ``log``.

        ``user`` (uid, gid): drop to this user first, without further groups. ``plan``: how to end it, also when we die.
        """
        self._log = log
        reply = self._ask(
            "start",
            argv=list(argv),
            log=str(log),
            env=dict(env),
            cwd=str(cwd),
            user=list(user) if user else None,
            plan=[[int(number), seconds] for number, seconds in plan],
        )
        return int(reply["pid"])

    def poll(self) -> int | None:
        """The exit status of the service (negative: the signal that ended it); None while it runs."""
        status = self._ask("poll")["status"]
        return None if status is None else int(status)

    def wait(self, seconds: float) -> int:
        """The exit status, once the service ended by itself. Raises Unreachable if it does not."""
        status: int | None = None

        def ended() -> bool:
            nonlocal status
            status = self.poll()
            return status is not None

        self.wait_until(ended, seconds, "end", may_end=True)
        assert status is not None
        return status

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str = "get ready", *, may_end: bool = False) -> None:
        """Return when ``condition()`` holds. Raises Unreachable, with the end of the log, if the service ends or time runs out."""
        deadline = time.monotonic() + seconds
        while not condition():
            status = None if may_end else self.poll()
            if status is not None and not condition():
                raise Unreachable("SERVICE_ENDED", f"the service ended with status {status} before it could {what}", self.log_tail())
            if time.monotonic() > deadline:
                raise Unreachable("SERVICE_TIMEOUT", f"the service did not {what} within {seconds:g} s", self.log_tail())
            time.sleep(0.01)

    def stop(self, plan: Plan = ()) -> int | None:
        """End the service and all it left behind, by ``plan`` (default: the one it was started with); its exit status."""
        status = self._ask("stop", plan=[[int(number), seconds] for number, seconds in plan])["status"]
        return None if status is None else int(status)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the service's log; empty if there is none."""
        if self._log is None or not self._log.exists():
            return ""
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - (1 << 14)))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """End the service, remove the folders, end the watchdog. May be called twice."""
        if self._process.poll() is None:
            with contextlib.suppress(Refused):  # it died first; its service got the parent-death signal
                self._ask("end")
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a question the watchdog did not live to read
                    stream.close()
        self._process.wait()
        for path in self._removed:  # still there only if the watchdog was killed
            remove(str(path))

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None and stdout is not None
            self._sent += 1
            try:
                stdin.write(json.dumps({"id": self._sent, "do": do, **arguments}).encode() + b"\n")
                stdin.flush()
                # A reply we did not wait for (Ctrl-C came while waiting) is skipped.
                while (line := stdout.readline()) and (reply := json.loads(line))["id"] != self._sent:
                    pass
            except (BrokenPipeError, ValueError):
                line = b""
        if not line:
            raise Refused("WATCHDOG_GONE", "the process that watches over the service ended", self._last_words())
        if "error" in reply:
            raise Refused("WATCHDOG_FAILED", f"the service could not be handled ({do})", str(reply["error"]))
        return dict(reply)

    def _last_words(self) -> str:
        if self._process.poll() is None or self._process.stderr is None or self._process.stderr.closed:
            return ""
        return self._process.stderr.read().decode(errors="replace").strip()
