"""What the store asks of a database: blocks that read, and blocks whose changes happen together and are durable when they end.

Statements are plain SQL with ``?`` for arguments, the same for each database.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from icelake.errors import CommitUnknown, Corrupt, Refused


class Rows(Protocol):
    """What a statement found."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """Within a block."""

    def execute(self, statement: str, arguments: Sequence[Any] = ..., /) -> Rows: ...


@dataclass(frozen=True, slots=True)
class Started:
    """What is to be done when a process opens the database: if it is ``due``, ``do`` in a transaction by itself, if it still is."""

    due: Callable[[Connection], bool]
    do: Callable[[Connection], None]


class Database(Protocol):
    """``catalog.sqlite`` and ``catalog.postgres``.

    Blocks fail with ``Unreachable`` (nothing done), ``CommitUnknown`` (nobody knows), ``Corrupt`` and ``Refused`` (DISK_FULL,
    CATALOG_DENIED, CATALOG_NEWER, CATALOG_ERROR; nothing done).
    """

    @property
    def where(self) -> str:
        """For people."""
        ...

    locked: str
    """Behind a SELECT: its rows stay as they are until the block's end, and blocks that lock them too wait."""
    kept: str
    """The same, but many may keep a row at once; only who locks it waits."""

    def reading(self) -> AbstractContextManager[Connection]:
        """A block that sees what is durable, and waits for nobody."""
        ...

    def writing(self, *, alone: bool = False) -> AbstractContextManager[Connection]:
        """A block whose changes happen together, all or none. ``alone``: no other such block runs meanwhile."""
        ...

    def close(self) -> None:
        """Let the database go; the next block opens it again."""
        ...


def unknown(where: str, error: Exception) -> CommitUnknown:
    """A COMMIT without an answer."""
    return CommitUnknown(
        "COMMIT_UNKNOWN",
        f"the catalog {where} did not say whether the commit happened",
        str(error),
        "the same commit is sent again until there is an answer",
    )


def corrupt(where: str, why: str) -> Corrupt:
    """A catalog that cannot be believed."""
    return Corrupt("CATALOG_CORRUPT", f"the catalog {where} is damaged", why, "restore it from a backup; the tables' files are untouched")


def check_version(where: str, found: int, known: int) -> None:
    """Raises Refused CATALOG_NEWER if a database's schema is of a version that this program does not know."""
    if found > known:
        raise Refused(
            "CATALOG_NEWER",
            f"the catalog {where} was made by a newer IceLake",
            f"its version is {found}, this program knows {known}",
            "use the newer program",
        )
