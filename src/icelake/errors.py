"""Every error IceLake raises on purpose.

    IcelakeError                 code, what happened, why, what to do next
    |- ProjectError              exit 2: the project file or the command line
    |- Unreachable               exit 3: a service that can be retried (temporary is True)
    |- Refused                   exit 4: going on could lose or falsify data
    |   |- Gap                   the source has moved past what the lake holds
    |   |- Fenced                another process owns this source now
    |   |- ForeignChange         someone else changed a mirror or the control table
    |   |- UnsupportedTable      a table (or its new shape) cannot be mirrored
    |   |- ValueOutOfContract    a value the table's Iceberg type cannot hold
    |   `- Corrupt               bytes that are not what they should be
    |- CommitConflict            409: nothing was changed
    |- CommitUnknown             the outcome of a commit is not known
    |- NoSuchTable               nor view, nor namespace
    `- AlreadyExists

Errors are caught only at the doors. ``temporary`` tells a runner whether trying again can help; ``exit_code`` is what the
command line returns.
"""

from typing import ClassVar


class IcelakeError(Exception):
    """The root. ``what`` happened to which thing, ``why`` as far as known, ``fix``: the next step. All are for people."""

    exit_code: ClassVar[int] = 4
    temporary: ClassVar[bool] = False

    def __init__(self, code: str, what: str, why: str = "", fix: str = "", *, table: str = "") -> None:
        super().__init__(code, what, why, fix)
        self.code = code
        self.what = what
        self.why = why
        self.fix = fix
        self.table = table
        """The mirror this is about and no other (``schema.name``), so that the others can go on; empty if it is about more."""

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}"]
        if self.why:
            lines.append(f"  why:  {self.why}")
        if self.fix:
            lines.append(f"  next: {self.fix}")
        return "\n".join(lines)


class ProjectError(IcelakeError):
    exit_code = 2


class Unreachable(IcelakeError):
    exit_code = 3
    temporary = True


class Refused(IcelakeError):
    """Going on could lose or falsify data, so we do not."""


class Gap(Refused):
    """Changes between the lake's position and what the source can still send are gone."""


class Fenced(Refused):
    """A newer epoch stands in the control table: this process is the zombie."""


class ForeignChange(Refused):
    """A mirror or the control table holds a commit that is not ours."""


class UnsupportedTable(Refused):
    """A table, or the shape it has now, cannot be mirrored truthfully."""


class ValueOutOfContract(Refused):
    """A value the column's Iceberg type cannot hold, under policy ``error``."""


class Corrupt(Refused):
    """Bytes (a file, a message) that are not what they must be."""


class CommitConflict(IcelakeError):
    """A requirement failed (HTTP 409): nothing of the whole transaction was done."""


class CommitUnknown(IcelakeError):
    """No answer: the commit may have happened, may happen later, or never will. Only the identical request may be sent again."""

    temporary = True


class NoSuchTable(IcelakeError):
    """The catalog has nothing of that name: no table, or (by its code) no view, no namespace."""


class AlreadyExists(IcelakeError):
    """The catalog has a table of that name already."""
