"""The process between us and a service: it holds one end of a pipe, and when the pipe closes it ends the service.

Promises: however its parent dies (kill -9 too), the service and all its descendants end and the temporary folder goes.
Never imports anything but the standard library: ``supervisor.py`` runs this file as a script, ``python -I -S watchdog.py PPID``.
Requests and replies are JSON lines on stdin and stdout (see ``supervisor.py``, the only caller). An error in a request is its
reply; when the watchdog itself is killed, the kernel's parent-death signal still ends the service. Linux only (prctl).

One service at a time: after its main process is gone, every process it left behind was re-parented to us (child subreaper) and
is killed.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

Plan = list[tuple[int, float]]
"""Signals in order, each with the seconds to wait for the process to end before the next."""


class Watchdog:
    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.libc = ctypes.CDLL(None, use_errno=True)
        if self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self.folders: list[str] = []
        self.pid: int | None = None
        self.status: int | None = None
        self.plan: Plan = []

    # ---------------------------------------------------------------------------------------------------------- requests

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "remove":
                self.folders.append(request["path"])
                return {}
            case "start":
                return {"pid": self.start(request)}
            case "poll":
                self.reap()
                return {"status": self.status}
            case "stop":
                return {"status": self.stop([(int(s), float(t)) for s, t in request["plan"]] or self.plan)}
            case other:
                raise ValueError(f"unknown request {other!r}")

    def start(self, request: dict[str, Any]) -> int:
        self.reap()
        if self.running():
            raise RuntimeError(f"process {self.pid} is still running")
        self.clear()  # what a crashed predecessor left would hold its shared memory and ports
        # A symbolic link in place of the log would make us write elsewhere with our rights.
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        me = os.getpid()
        # A signal sent to the child before it has its own dispositions must wait for them, not be lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = os.fork()
        if pid == 0:
            self.become(request, log, me)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(log)
        self.pid, self.status = pid, None
        self.plan = [(int(s), float(t)) for s, t in request["plan"]]
        return pid

    def become(self, request: dict[str, Any], log: int, watchdog: int) -> NoReturn:
        """In the forked child: turn into the service. Whatever goes wrong is in the log, with exit status 127."""
        try:
            null = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.setsid()
            os.umask(0o077)
            if request["user"] is not None:
                uid, gid = request["user"]
                os.setgroups([])
                os.setgid(gid)
                os.setuid(uid)
            # After setuid, which clears it. Should the watchdog be killed, the service is told by the kernel.
            self.libc.prctl(PR_SET_PDEATHSIG, self.first_signal(request), 0, 0, 0)
            if os.getppid() != watchdog:
                os._exit(127)
            os.chdir(request["cwd"])
            os.execve(request["argv"][0], request["argv"], request["env"])
        except (OSError, ValueError, TypeError) as error:
            os.write(2, f"could not run {request['argv'][0]}: {error}\n".encode())
        finally:
            os._exit(127)  # never back into the watchdog's own code

    @staticmethod
    def first_signal(request: dict[str, Any]) -> int:
        return int(request["plan"][0][0]) if request["plan"] else signal.SIGKILL

    # ---------------------------------------------------------------------------------------------------------- processes

    def running(self) -> bool:
        return self.pid is not None and self.status is None

    def reap(self) -> bool:
        """Take the exit status of whoever ended. False: no child is left at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.status = os.waitstatus_to_exitcode(status)

    def stop(self, plan: Plan) -> int | None:
        for number, seconds in plan:
            self.reap()
            if self.pid is None or not self.running():
                break
            os.kill(self.pid, number)  # not reaped yet, so the number is still its own
            deadline = time.monotonic() + seconds
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.005)
                self.reap()
        self.clear()
        return self.status

    def clear(self) -> None:
        """Kill what the service left behind and wait until it is gone. At most 10 s."""
        deadline = time.monotonic() + 10
        while self.reap() and time.monotonic() < deadline:
            if self.running():
                return  # still running: its children are its own
            for pid in children(os.getpid()):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def end(self) -> None:
        self.stop(self.plan)
        self.stop([(signal.SIGKILL, 10.0)])
        for path in self.folders:
            remove(path)

    # --------------------------------------------------------------------------------------------------------------- loop

    def run(self) -> None:
        pending = b""
        while True:
            ready, _, _ = select.select([0], [], [], 1.0)
            if os.getppid() != self.parent:  # the pipe may live on in a process our parent forked
                return
            if not ready:
                self.reap()
                continue
            data = os.read(0, 1 << 16)
            if not data:
                return
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                request = json.loads(line)
                if request["do"] == "end":
                    self.end()
                    reply(request, {})
                    return
                try:
                    reply(request, self.answer(request))
                except (OSError, RuntimeError, ValueError, KeyError) as error:
                    reply(request, {"error": f"{type(error).__name__}: {error}"})


def children(parent: int) -> Iterator[int]:
    """The pids of the direct children of ``parent``, from /proc; none where /proc is not mounted."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[1]) == parent:
            yield int(name)


def remove(path: str) -> None:
    """A folder with all in it, or one file or socket; what is not there is fine."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


def reply(request: dict[str, Any], answer: dict[str, Any]) -> None:
    try:
        os.write(1, json.dumps({"id": request["id"], **answer}).encode() + b"\n")
    except BrokenPipeError:
        return  # nobody to tell: the closed pipe on stdin ends us next


def leave(number: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    # Ctrl-C in the terminal is for our parent, who then tells us what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    watchdog = Watchdog(int(sys.argv[1]))
    try:
        watchdog.run()
    finally:
        watchdog.end()
