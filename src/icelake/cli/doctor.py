"""``icelake doctor``: what is missing or unsafe. Exit code 1 if there is a problem, 0 if not."""

import argparse
from dataclasses import asdict

from icelake.cli import output, project

PROBLEM = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)
    parser.add_argument("--deep", action="store_true", help="read the tables too: count the rows with values the lake cannot hold")


def run(args: argparse.Namespace) -> int:
    from icelake.project import findings, load_project

    about_project = findings(load_project(args.project, args.profile))
    found = [{"table": "", "why": "", "then": "", **asdict(finding)} for finding in about_project]
    # Without its secrets and its folder there is no lakehouse to ask further.
    if not any(finding.level == "problem" for finding in about_project):
        with project.lakehouse(args) as lakehouse:
            found.extend(lakehouse.doctor(args.deep))
    healthy = not any(finding["level"] == "problem" for finding in found)
    if args.json:
        output.document({"healthy": healthy, "findings": found})
    else:
        shown = [
            {**finding, "what": _joined(": ", finding["what"], finding["why"]), "fix": _joined("\n", finding["fix"], finding["then"])}
            for finding in found
        ]
        output.records(shown, {"level": "", "source": "source", "code": "code", "what": "what", "fix": "what mends it"})
    return 0 if healthy else PROBLEM


def _joined(by: str, *parts: str) -> str:
    return by.join(part for part in parts if part)
