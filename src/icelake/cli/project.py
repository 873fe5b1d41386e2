"""The arguments every command about a project shares, and the lakehouse they name."""

import argparse
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from icelake.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from icelake.lakehouse import Lakehouse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-C", "--project", metavar="DIR", type=Path, default=Path(), help="the project's folder or icelake.toml (default: here)"
    )
    parser.add_argument("--profile", metavar="P", help="embedded (stack and external are not in this version)")


@contextmanager
def lakehouse(args: argparse.Namespace) -> "Iterator[Lakehouse]":
    """Open while the block lasts. Raises ProjectError, before anything heavy is loaded."""
    from icelake.project import load_project

    project = load_project(args.project, args.profile)
    from icelake.compiled import announced
    from icelake.lakehouse import Lakehouse

    with announced(output.note), Lakehouse(project) as found:
        yield found
