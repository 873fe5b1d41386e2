"""The arguments every command about a project shares, and the lakehouse they name."""

import argparse
import ctypes
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from icelake.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from icelake.lakehouse import Lakehouse


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


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

    _give_back()
    with announced(output.note), Lakehouse(project) as found:
        yield found


def _give_back() -> None:
    """Large arrays go back to the system when they are freed, whatever their number: glibc's malloc else keeps those below a size that

    grows up to 32 MiB, and what was in use once is in use for good (mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD). Other C
    libraries have no mallopt, and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_MMAP_THRESHOLD, 1 << 20), (_TRIM_THRESHOLD, 4 << 20)):
            mallopt(parameter, value)
