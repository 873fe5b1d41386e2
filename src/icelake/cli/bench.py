"""``icelake bench NAME``: figures, each beside the limit or the peer measured in the same run."""

import argparse

from icelake import bench
from icelake.cli import output


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="; ".join(f"{name}: {what}" for name, what in bench.BENCHES.items()).replace("%", "%%")
    )
    parser.add_argument("--size", metavar="N", type=float, help="how much of it; each benchmark has a default of its own")
    parser.add_argument(
        "--pairs",
        metavar="N",
        type=_pairs,
        default=bench.PAIRS,
        help=f"where a limit is measured, N times ours and the limit by turns; default: {bench.PAIRS}",
    )


def _pairs(text: str) -> int:
    if (pairs := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return pairs


def run(args: argparse.Namespace) -> int:
    from icelake.compiled import announced

    with announced(output.note):
        result = bench.run(args.name, args.size, output.note, args.pairs)
    if args.json:
        output.document(result)
        return 0
    headings = {"what": "what", "value": "value", "unit": "unit", "against": "against", "ratio": "ratio"}
    figures = [{key: "" if value is None else value for key, value in figure.items()} for figure in result["figures"]]
    output.records(figures, headings, numbers=("value", "ratio"))
    return 0
