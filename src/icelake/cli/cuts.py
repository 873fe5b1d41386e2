"""``icelake cuts``: the points in time a question can be asked at."""

import argparse

from icelake.cli import output, project


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)
    parser.add_argument("--limit", metavar="N", type=int, help="only the newest N")


def run(args: argparse.Namespace) -> int:
    with project.lakehouse(args) as lakehouse:
        cuts = lakehouse.cuts()
    if args.limit is not None:
        cuts = cuts[: max(0, args.limit)]
    if args.json:
        output.document({"cuts": cuts})
        return 0
    headings = {
        "cut": "cut",
        "source": "source",
        "lsn": "LSN",
        "commit_time": "committed at the source until",
        "made": "made",
        "count": "tables",
    }
    output.records([{**cut, "count": len(cut["tables"])} for cut in cuts], headings, numbers=("count",))
    return 0
