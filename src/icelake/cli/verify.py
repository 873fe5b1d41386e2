"""``icelake verify``: exit code 0 if lake and source are equal at one LSN, 1 if not."""

import argparse
import sys
from typing import TYPE_CHECKING

from icelake.cli import output, project

if TYPE_CHECKING:
    from icelake.ports import Json

DIFFERENCE = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)
    parser.add_argument("tables", metavar="TABLE", nargs="*", help="schema.table; default: all")
    parser.add_argument("--source", metavar="NAME", help="which source, if the project has several")


def run(args: argparse.Namespace) -> int:
    told = sys.stderr.isatty() and not args.json

    def report(progress: "Json") -> None:
        if told:
            output.note("  ".join(f"{key} {value}" for key, value in progress.items()))

    with project.lakehouse(args) as lakehouse:
        result = lakehouse.verify(args.tables, source=args.source, report=report)
    if args.json:
        output.document(result)
        return 0 if result["equal"] else DIFFERENCE
    headings = {
        "name": "table",
        "source_rows": "source rows",
        "lake_rows": "lake rows",
        "missing": "missing",
        "extra": "extra",
        "different": "different",
    }
    output.records(result["tables"], headings, numbers=list(headings)[1:])
    if result.get("histories"):
        replayed = {"name": "history", "rows": "rows", "replayed_rows": "replayed rows", "mirror_rows": "mirror rows"}
        replayed |= {name: name for name in ("missing", "extra", "different")}
        output.records(result["histories"], replayed, numbers=list(replayed)[1:])
    for table in [*result["tables"], *result.get("histories", ())]:
        for problem in table.get("problems", ()):
            output.note(f"{table['name']}: {problem}")
        for sample in table.get("samples", ()):
            output.document({"table": table["name"], **sample})
    for skipped in result.get("skipped", ()):
        output.document({"skipped": skipped})
    for left in result["not_mirrored"]:
        output.note(f"not mirrored: {left['name']}: {left['code']}: {left['why']}")
    print(f"{'equal' if result['equal'] else 'NOT equal'} at LSN {result['lsn']}")
    return 0 if result["equal"] else DIFFERENCE
