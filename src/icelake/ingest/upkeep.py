"""What the applier does between cuts so that a commit a second can go on for ever: thin cuts and snapshots, delete what they held.

A cut that is kept keeps the snapshots it names; a lease keeps the snapshots it names; everything else that is old goes. Files
are deleted only after the commit that drops their snapshots is durable, so a crash leaves orphans, never holes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from icelake.model.marker import Cut
from icelake.model.relation import TableId
from icelake.ports import Lease, LoadedTable, Storage, TableChange
from icelake.tables.expire import Policy, expire, keep


@dataclass(frozen=True, slots=True)
class Expiry:
    """A planned expiry: what to commit, and which files nobody needs once that is done."""

    changes: Sequence[TableChange]
    files: Sequence[str]
    left: Mapping[TableId, set[int]]
    """The snapshots each table has when the changes are done, if nobody else changes it meanwhile."""

    def foresaw(self, after: LoadedTable) -> bool:
        """Whether a table is as planned: a snapshot made meanwhile, on a branch perhaps, may need the files."""
        return {snapshot["snapshot-id"] for snapshot in after.metadata.get("snapshots", ())} <= self.left[after.id]


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
    files: list[str] = []
    left: dict[TableId, set[int]] = {}
    # The control table first: a commit that drops snapshots is found out by its first table (ingest.commit.landed).
    for loaded, keeping in [(control, set(kept)), *((tables[table], ids) for table, ids in needed.items())]:
        keeping = keeping | leased.get(loaded.id, set())
        keeping |= {ref["snapshot-id"] for ref in loaded.metadata.get("refs", {}).values()}
        present = {snapshot["snapshot-id"] for snapshot in loaded.metadata.get("snapshots", [])}
        drop = present - keeping
        left[loaded.id] = present - drop
        if drop:
            change, unneeded = expire(loaded, drop, storage)
            changes.append(change)
            files.extend(unneeded)
    return Expiry(changes, files, left)
