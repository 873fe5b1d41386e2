"""The command line: ``icelake COMMAND``.

Promises: data goes to stdout and everything else to stderr; with ``--json`` stdout holds JSON only, errors too; exit codes are 0 ok,
1 a check found a difference, 2 usage or project file, 3 a service can't be reached, 4 refused for safety, 130 interrupted. This
module and the commands' heads import next to nothing: ``--help`` must answer at once, so bodies import what they need when they run.
"""

import argparse
import contextlib
import difflib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from icelake.errors import IcelakeError, ProjectError

COMMANDS = {
    "init": "make a project: icelake.toml and .gitignore",
    "demo": "a shop that keeps trading, its changes in Iceberg, its questions answered, all verified",
    "sync": "bring the tables to the source's position, once or for good",
    "resume": "let parked tables go on: replay what was kept, or compare them with the source",
    "query": "ask the lake in SQL, now or at a time, cut, snapshot or LSN",
    "tables": "size, rows, freshness and snapshots of the tables, or of one in detail",
    "cuts": "the points in time at which all tables are consistent with each other",
    "status": "each source: who syncs it, how far the lake is, how far behind",
    "catalog": "serve the tables to every engine that speaks the Iceberg REST protocol",
    "verify": "prove that the lake equals the source at one LSN, or list the keys that differ",
    "bench": "the benchmark of that name, each figure beside its limit or peer",
    "doctor": "what is missing or unsafe here, with the command that mends it",
}
"""Name -> one sentence. A command is the module of its name here, with ``arguments(parser)`` and ``run(args) -> exit code``."""

BUG, INTERRUPTED, BROKEN_PIPE = 70, 130, 141


class _Parser(argparse.ArgumentParser):
    """argparse, with errors that are ours."""

    def error(self, message: str) -> NoReturn:
        raise ProjectError("USAGE", message, "", f"{self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. The only place where errors end."""
    # Arrow's allocator gives freed memory back at once. It reads this when Arrow is loaded, which no command has done yet.
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "0")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except IcelakeError as error:
        with contextlib.suppress(BrokenPipeError):
            _tell(error, as_json="--json" in words)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our answer has gone (`| head`). Python must not complain about it again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception:  # noqa: BLE001 - the last door: exit code 1 would say that a check found a difference
        traceback.print_exc()
        print("icelake: this is a bug in icelake; nothing was confirmed that is not durable", file=sys.stderr)
        return BUG


def _run(words: list[str]) -> int:
    parser = _Parser(prog="icelake", description="PostgreSQL changes in Apache Iceberg: exactly once, queried and proven.")
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, sentence in COMMANDS.items():
        command = commands.add_parser(name, help=sentence, description=sentence[0].upper() + sentence[1:] + ".")
        if name == chosen:
            module = importlib.import_module(f"icelake.cli.{name}")
            command.add_argument("--json", action="store_true", help="print one JSON document (one a line when following)")
            module.arguments(command)
            command.set_defaults(run=module.run)
    if chosen is not None and chosen not in COMMANDS:
        near = difflib.get_close_matches(chosen, COMMANDS, n=1)
        raise ProjectError(
            "UNKNOWN_COMMAND", f"there is no command {chosen}", f"did you mean {near[0]}?" if near else "", f"one of: {', '.join(COMMANDS)}"
        )
    args = parser.parse_args(words)
    if args.version:
        from importlib.metadata import version

        print(f"icelake {version('icelake')}")
        return 0
    if chosen is None:
        parser.print_help()
        return 0 if not words else ProjectError.exit_code
    code = args.run(args)
    assert isinstance(code, int)
    return code


def _tell(error: IcelakeError, *, as_json: bool) -> None:
    if as_json:
        document = {"code": error.code, "what": error.what, "why": error.why, "fix": error.fix, "temporary": error.temporary}
        print(json.dumps({"error": document}, ensure_ascii=False), flush=True)
    else:
        from icelake.cli import output

        output.note(f"icelake: {error}")
