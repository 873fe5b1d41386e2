"""``icelake resume``: let parked tables go on, by replaying what was kept of them or by comparing them with the source."""

import argparse

from icelake.cli import output, project
from icelake.cli.sync import Report
from icelake.errors import Refused


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)
    parser.add_argument(
        "tables", metavar="TABLE", nargs="*", help="schema.table, or table alone when only one has that name (default: all)"
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="compare with the source and mend what differs, instead of replaying; without TABLE: all of the source, from a new slot",
    )
    parser.add_argument("--source", metavar="NAME", help="which source, if the project has several")


def run(args: argparse.Namespace) -> int:
    with project.lakehouse(args) as lakehouse:
        report = None if args.json else Report(follow=False, json=False)
        done = lakehouse.resume(args.tables, reload=args.reload, source=args.source, report=report)
    if args.json:
        output.document(done)
    else:
        output.note(f"resumed: {', '.join(done['resumed']) or 'nothing'}")
        for refusal in done["refused"]:
            output.note(f"icelake: {refusal['code']}: {refusal['what']}\n  why:  {refusal['why']}\n  next: {refusal['fix']}")
    return Refused.exit_code if done["refused"] else 0
