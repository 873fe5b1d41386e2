"""``icelake query``: ask DuckDB at one consistent point in time."""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from icelake.cli import output, project
from icelake.errors import ProjectError

if TYPE_CHECKING:
    import pyarrow as pa

LATER = ("trino", "spark", "flink", "all")


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)
    parser.add_argument("sql", metavar="SQL", help="one statement that reads; - reads it from stdin")
    parser.add_argument(
        "--at", metavar="X", help="a time (ISO 8601, in UTC if it has no zone), a cut's or a snapshot's id, or an LSN; default: the last"
    )
    parser.add_argument("--engine", metavar="E", default="duckdb", help="duckdb (the others are not in this version)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma separated, with a header; NULL is empty, '' is quoted")
    form.add_argument("--arrow", action="store_true", help="an Arrow IPC stream")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write there instead of stdout")
    parser.add_argument("--limit", metavar="N", type=int, help=f"rows drawn for people (on a terminal {output.TERMINAL_ROWS})")


def run(args: argparse.Namespace) -> int:
    if args.engine != "duckdb":
        known = args.engine in LATER
        raise ProjectError(
            "ENGINE_NOT_BUILT" if known else "UNKNOWN_ENGINE",
            f"the engine {args.engine} is not in this version" if known else f"there is no engine {args.engine}",
            "",
            "use --engine duckdb",
        )
    if args.json and (args.csv or args.arrow):
        raise ProjectError("USAGE", "one of --json, --csv and --arrow", "", "icelake query --help")
    if args.arrow and args.output is None and sys.stdout.isatty():
        raise ProjectError("USAGE", "an Arrow stream is not for a terminal", "", "add --output FILE, or a pipe")
    sql = sys.stdin.read() if args.sql == "-" else args.sql
    with project.lakehouse(args) as lakehouse:
        answer = lakehouse.query(sql, args.at)
    if args.output is None:
        _print(answer, args)
        return 0
    try:
        with args.output.open("w", encoding="utf-8", newline="") as file, redirect_stdout(file):
            _print(answer, args)
    except OSError as error:
        raise ProjectError(
            "OUTPUT_NOT_WRITABLE", f"{args.output} cannot be written", error.strerror or "", "name another --output"
        ) from error
    return 0


def _print(answer: "pa.Table", args: argparse.Namespace) -> None:
    """In the form that was asked for, to what is stdout now."""
    if args.json:
        types = [str(kind) for kind in answer.schema.types]
        output.document({"engine": "duckdb", "columns": answer.column_names, "types": types, "rows": list(output.rows(answer))})
    elif args.csv:
        output.csv(answer, sys.stdout)
    elif args.arrow:
        output.arrow(answer, sys.stdout.buffer)
    else:
        output.answer_table(answer, args.limit if args.limit is not None else output.TERMINAL_ROWS if sys.stdout.isatty() else None)
