"""A parked table: one that cannot be followed right now, while the others go on.

The note stands in the mirror's properties. The mirror stays as it was at ``since`` and is in no cut after that. What happens to
the table meanwhile is kept raw in its spool, ``<name>__parked`` (docs/protocol.md, Parked tables), unless a replay could not help.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from icelake.model.lsn import format_lsn, parse_lsn
from icelake.model.relation import TableId

PARKED = "icelake.parked"
"""Property of a mirror: ``Parking`` as JSON. Also a key of cuts: which tables are parked, with the code of each."""
SPOOL_OF = "icelake.spool-of"
"""Property of a spool: the table it belongs to."""
SUFFIX = "__parked"


@dataclass(frozen=True, slots=True)
class Parking:
    """Why a table stopped, and what may let it go on. ``code`` to ``fix`` are those of the error that stopped it."""

    since: int
    """The mirror holds everything with end LSN <= this."""
    code: str
    what: str
    why: str
    fix: str
    head: int | None
    """The mirror's snapshot when it was parked."""
    replay: bool
    """Whether its changes are kept and can be replayed; otherwise its rows must be compared with the source and mended."""

    def dump(self) -> str:
        document = {"since": format_lsn(self.since), "code": self.code, "what": self.what, "why": self.why, "fix": self.fix}
        return json.dumps({**document, "head": self.head, "replay": self.replay}, ensure_ascii=False)

    @staticmethod
    def read(properties: Mapping[str, str]) -> "Parking | None":
        """The note in a table's properties, if there is one. Raises KeyError/ValueError/TypeError when it is mangled."""
        text = properties.get(PARKED)
        if not text:
            return None
        document = json.loads(text)
        return Parking(
            parse_lsn(document["since"]),
            document["code"],
            document["what"],
            document["why"],
            document["fix"],
            document["head"],
            document["replay"],
        )


def spool_of(table: TableId) -> TableId:
    """The spool of a mirror."""
    return TableId(table.namespace, table.name + SUFFIX)
