"""What the applier does between cuts so that a commit a second can go on for ever: thin cuts and snapshots, and what they held with them.

A cut that is kept keeps the snapshots it names; a lease keeps the snapshots it names; everything else that is old goes. The files
are deleted later (``ingest.garbage``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from icelake.model.marker import Cut
from icelake.model.relation import TableId
from icelake.ports import Json, Lease, LoadedTable, Storage, TableChange
from icelake.tables.expire import Policy, expire, keep


@dataclass(frozen=True, slots=True)
class Expiry:
    """A planned expiry: what to commit, and which files nobody needs once that is done."""

    control: Sequence[Json]
    """Updates of the control table."""
    changes: Sequence[TableChange]
    """Of the other tables."""
    files: Mapping[TableId, Sequence[str]]

    def fenced(self, fence: TableChange, more: Json) -> list[TableChange]:
        """The whole commit, with one more update of the control table, whose part says that this epoch still owns the source."""
        return [replace(fence, updates=[*self.control, more]), *self.changes]


def plan_expiry(
    control: LoadedTable,
    tables: Mapping[TableId, LoadedTable],
    leases: Iterable[Lease],
    policy: Policy,
    now_ms: int,
    storage: Storage,
) -> Expiry:
    """Which cuts and snapshots to drop now. Cost grows with what is dropped, not with the tables."""
    snapshots = control.metadata.get("snapshots", [])
    kept = keep(snapshots, now_ms, policy, protected=frozenset({control.metadata["current-snapshot-id"]}))
    needed: dict[TableId, set[int]] = {table: set() for table in tables}
    names = {str(table): table for table in tables}
    for snapshot in snapshots:
        if snapshot["snapshot-id"] in kept:
            for name, snapshot_id in Cut.read(snapshot).tables.items():
                if name in names:
                    needed[names[name]].add(snapshot_id)
    leased: dict[TableId, set[int]] = {}
    for lease in leases:
        for table, snapshot_id in lease.snapshots.items():
            leased.setdefault(table, set()).add(snapshot_id)
    changes: list[TableChange] = []
    files: dict[TableId, Sequence[str]] = {}
    for loaded, keeping in [(control, set(kept)), *((tables[table], ids) for table, ids in needed.items())]:
        keeping = keeping | leased.get(loaded.id, set())
        keeping |= {ref["snapshot-id"] for ref in loaded.metadata.get("refs", {}).values()}
        present = {snapshot["snapshot-id"] for snapshot in loaded.metadata.get("snapshots", [])}
        drop = present - keeping
        if drop:
            change, files[loaded.id] = expire(loaded, drop, storage)
            changes.append(change)
    own = [update for change in changes if change.id == control.id for update in change.updates]
    return Expiry(own, [change for change in changes if change.id != control.id], files)
