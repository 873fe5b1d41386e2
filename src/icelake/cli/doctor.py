"""``icelake doctor``: what is missing or unsafe. Exit code 1 if something is an error, 0 if not."""

import argparse
from dataclasses import asdict

from icelake.cli import output, project

PROBLEM = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)


def run(args: argparse.Namespace) -> int:
    from icelake.project import findings, load_project

    about_project = findings(load_project(args.project, args.profile))
    found = [asdict(finding) for finding in about_project]
    # Without its secrets and its folder there is no lakehouse to ask further.
    if not any(finding.level == "error" for finding in about_project):
        with project.lakehouse(args) as lakehouse:
            found.extend(lakehouse.doctor())
    healthy = not any(finding["level"] == "error" for finding in found)
    if args.json:
        output.document({"healthy": healthy, "findings": found})
    else:
        output.records(found, {"level": "", "source": "source", "code": "code", "what": "what", "fix": "what mends it"})
    return 0 if healthy else PROBLEM
