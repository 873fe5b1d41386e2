"""``icelake sync``: bring the tables to the source's position, once or for good.

The first Ctrl-C or SIGTERM ends after the step under way, so that its work is kept; a second Ctrl-C ends at once, which is safe too.
"""

import argparse
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

from icelake.cli import output, project
from icelake.errors import ProjectError, Refused

if TYPE_CHECKING:
    from icelake.ingest.applier import Progress
    from icelake.ports import Json

INTERRUPTED = 130
TERMINATED = 143


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)
    parser.add_argument("--until", metavar="LSN|now", help="the position to reach (default: now)")
    parser.add_argument("--follow", action="store_true", help="go on until stopped")
    parser.add_argument("--source", metavar="NAME", help="which source, if the project has several")


def run(args: argparse.Namespace) -> int:
    if args.follow and args.until is not None:
        raise ProjectError("USAGE", "--until and --follow exclude each other", "", "icelake sync --help")
    stop = threading.Event()
    signals: list[int] = []

    def ask_to_stop(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        signals.append(number)
        stop.set()

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with project.lakehouse(args) as lakehouse:
            status = lakehouse.sync(
                source=args.source,
                until=args.until or "now",
                follow=args.follow,
                stop=stop,
                report=Report(follow=args.follow, json=args.json),
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if args.json:
        output.document({"kind": "end", **status} if args.follow else status)
    else:
        output.note(_sentence(status))
        for parked in status["parked"]:
            output.note(f"icelake: {parked['code']}: {parked['what']}: parked since {parked['since']}")
            output.note(f"  why:  {parked['why']}\n  next: {parked['fix']}")
    if signal.SIGINT in signals:
        return INTERRUPTED
    if signals and not args.follow and not status["reached"]:
        return TERMINATED
    wanting = [parked for parked in status["parked"] if parked["code"] != "LEFT_OUT"]
    return 0 if args.follow or not wanting else Refused.exit_code


class Report:
    """Tells people once a second and programs of every step that did something."""

    def __init__(self, *, follow: bool, json: bool) -> None:
        self.follow = follow
        self.json = json
        self.told = 0.0

    def __call__(self, progress: "Progress", status: "Json") -> None:
        if progress.kind == "wait":
            return
        if self.json:
            if self.follow:
                error = {} if progress.error is None else {"error": {"code": progress.error.code, "what": progress.error.what}}
                output.document({"kind": progress.kind, **status, **error})
            return
        if progress.error is not None:
            output.note(f"icelake: {'it stops alone' if progress.kind == 'park' else 'trying again'}: {progress.error}")
        elif time.monotonic() - self.told >= (1.0 if sys.stderr.isatty() else 10.0):
            self.told = time.monotonic()
            output.note(_sentence(status))


def _sentence(status: "Json") -> str:
    parts = [f"at {status.get('position')}", f"{status.get('changes', 0):,} changes in {status.get('commits', 0):,} commits"]
    if status.get("rows_loaded"):
        parts.append(f"{status['rows_loaded']:,} rows loaded")
    if status.get("loading"):
        parts.append(f"loading {', '.join(status['loading'])}")
    if status.get("lag_bytes"):
        parts.append(f"{output.size(status['lag_bytes'])} behind")
    if status.get("parked"):
        parts.append("parked: " + ", ".join(f"{one['table']} ({one['code']})" for one in status["parked"]))
    if status.get("refused"):
        parts.append("refused: " + ", ".join(f"{one['table']} ({one['code']})" for one in status["refused"]))
    return "; ".join(parts)
