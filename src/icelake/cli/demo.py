"""``icelake demo``: exit code 0 only if everything was verified equal, 1 if not. With ``--json`` the document is the last line."""

import argparse
from pathlib import Path

from icelake.cli import output
from icelake.errors import ProjectError

DIFFERENCE = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", metavar="N", type=float, default=45.0, help="how long the shop trades (default: 45)")
    parser.add_argument("--seed", metavar="N", type=int, default=7, help="another shop (default: 7)")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep the project and its lake there")
    parser.add_argument("--profile", metavar="P", default="embedded", help="embedded (stack and external are not in this version)")


def run(args: argparse.Namespace) -> int:
    if args.profile != "embedded":
        raise ProjectError("PROJECT_PROFILE_NOT_BUILT", f"the profile {args.profile} is not in this version", "", "use --profile embedded")
    if not 0 < args.seconds < 86_400:
        raise ProjectError("USAGE", f"--seconds {args.seconds:g} is no time to trade", "", "icelake demo --seconds 45")
    from icelake.demo import run as demo

    result = demo.run(demo.Options(seconds=args.seconds, seed=args.seed, keep=args.keep), answers_on_stdout=not args.json)
    if args.json:
        output.document(result)
    return 0 if result["verified"] else DIFFERENCE
