"""The marker: which source position a table's commit holds, kept *inside* the commit.

Every snapshot the applier makes carries these keys in its summary and the table carries them as properties (the copy that
survives expiry). The marker in main's ancestry is authoritative. The control table's snapshots carry the same keys plus the
epoch and the cut (docs/protocol.md, One owner).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from icelake.model.lsn import format_lsn, parse_lsn
from icelake.model.parking import PARKED

SOURCE = "icelake.source"
SYSTEM = "icelake.system"
TIMELINE = "icelake.timeline"
SLOT = "icelake.slot"
LSN = "icelake.lsn"
ATTEMPT = "icelake.attempt"
EPOCH = "icelake.epoch"
COMMIT_TIME = "icelake.commit-time"
CUT = "icelake.cut"
LOAD = "icelake.load"
MEMBERSHIP = "icelake.membership"
"""Property of a mirror: ``model.membership`` as of its last commit."""


@dataclass(frozen=True, slots=True)
class Marker:
    """Everything with end LSN <= ``lsn`` is in the table; nothing later is. ``attempt`` names the commit that put it there."""

    source: str
    """The lake's own id of the source: a UUID made when the control table was."""
    system_id: str
    timeline: int
    slot: str
    lsn: int
    attempt: str

    def summary(self) -> dict[str, str]:
        return {
            SOURCE: self.source,
            SYSTEM: self.system_id,
            TIMELINE: str(self.timeline),
            SLOT: self.slot,
            LSN: format_lsn(self.lsn),
            ATTEMPT: self.attempt,
        }

    @staticmethod
    def read(summary: Mapping[str, str]) -> "Marker | None":
        """The marker a snapshot summary or property map holds, or None. Raises KeyError/ValueError when it is mangled."""
        if LSN not in summary:
            return None
        return Marker(
            source=summary[SOURCE],
            system_id=summary[SYSTEM],
            timeline=int(summary[TIMELINE]),
            slot=summary[SLOT],
            lsn=parse_lsn(summary[LSN]),
            attempt=summary[ATTEMPT],
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """One position at which every table in ``tables`` is consistent with every other: a snapshot of the control table.

    ``commit_time`` is the running maximum of source commit times, microseconds since 1970 UTC (0: none seen yet).
    ``tables`` maps ``str(TableId)`` to a snapshot id; a table that is still loading is not in it.
    """

    id: int
    """The control table's snapshot id."""
    lsn: int
    commit_time: int
    made_ms: int
    epoch: int
    tables: Mapping[str, int]
    parked: Mapping[str, str] = field(default_factory=dict)
    """Tables that are not in the cut because they are parked, and the code of what stopped each."""

    def summary(self) -> dict[str, str]:
        return {
            EPOCH: str(self.epoch),
            COMMIT_TIME: str(self.commit_time),
            CUT: json.dumps(dict(self.tables), separators=(",", ":"), sort_keys=True),
            **({PARKED: json.dumps(dict(self.parked), sort_keys=True)} if self.parked else {}),
        }

    @staticmethod
    def read(snapshot: Mapping[str, object]) -> "Cut":
        """From a control-table snapshot in Iceberg's JSON form. ``lsn`` is 0 while the source has no position yet."""
        summary = snapshot["summary"]
        assert isinstance(summary, Mapping)
        made = snapshot["timestamp-ms"]
        ident = snapshot["snapshot-id"]
        assert isinstance(made, int) and isinstance(ident, int)
        return Cut(
            id=ident,
            lsn=parse_lsn(summary[LSN]) if LSN in summary else 0,
            commit_time=int(summary[COMMIT_TIME]),
            made_ms=made,
            epoch=int(summary[EPOCH]),
            tables={name: int(snap) for name, snap in json.loads(summary[CUT]).items()},
            parked=json.loads(summary.get(PARKED, "{}")),
        )
