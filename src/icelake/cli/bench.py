"""``icelake bench NAME``: figures, each beside the limit or the peer measured in the same run."""

import argparse

from icelake import bench
from icelake.cli import output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="; ".join(f"{name}: {what}" for name, what in bench.BENCHES.items()).replace("%", "%%")
    )
    parser.add_argument("--size", metavar="N", type=float, help="how much of it; each benchmark has a default of its own")


def run(args: argparse.Namespace) -> int:

    result = bench.run(args.name, args.size, output.note)
    if args.json:
        output.document(result)
        return 0
    headings = {"what": "what", "value": "value", "unit": "unit", "against": "against", "ratio": "ratio"}
    output.records(result["figures"], headings, numbers=("value", "ratio"))
    return 0
