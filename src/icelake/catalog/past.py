"""The catalog as it was at one point in time: every table at the snapshot it had then, and nothing that can be changed.

Promises: whoever is attached sees all tables of a source at one cut, however long it stays and whatever engine it is, because each
table's metadata ends with that snapshot. Tables that were not there then are not there. A snapshot that expired meanwhile is gone here
too: its table is then not found. Every change is refused (``READ_ONLY``).
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from icelake.catalog.store import LEVEL, Kind, SqlCatalog, named, shown
from icelake.errors import NoSuchTable, Refused
from icelake.model.relation import TableId
from icelake.ports import Json, LoadedTable


class Past:
    """The reading half of ``SqlCatalog`` over some tables, each at a snapshot."""

    def __init__(self, store: SqlCatalog, snapshots: Mapping[TableId, int], called: str) -> None:
        self._store = store
        self._snapshots = snapshots
        self._called = called

    def load(self, table: TableId) -> LoadedTable:
        missing = NoSuchTable("NO_SUCH_TABLE", f"Table does not exist: {named(table)}", f"the lake did not have it at {self._called}")
        if table not in self._snapshots:
            raise missing
        loaded = self._store.load(table)
        metadata = ended(loaded.metadata, self._snapshots[table])
        if metadata is None:
            raise missing
        return LoadedTable(table, metadata, loaded.metadata_location)

    load_whole = load

    def names(self, namespace: str, kind: Kind) -> list[str]:
        self.namespace(namespace)
        return sorted(table.name for table in self._snapshots if kind == "table" and table.namespace == namespace)

    def load_view(self, view: TableId) -> NoReturn:
        raise NoSuchTable("NO_SUCH_VIEW", f"View does not exist: {named(view)}", f"views have no past, and this is {self._called}")

    def namespaces(self, parent: str = "") -> list[str]:
        if parent:
            self.namespace(parent)
        first = f"{parent}{LEVEL}" if parent else ""
        below = {table.namespace for table in self._snapshots if table.namespace.startswith(first)}
        return sorted({first + name[len(first) :].partition(LEVEL)[0] for name in below})

    def namespace(self, name: str) -> dict[str, str]:
        if not any(f"{table.namespace}{LEVEL}".startswith(f"{name}{LEVEL}") for table in self._snapshots):
            raise NoSuchTable("NO_SUCH_NAMESPACE", f"Namespace does not exist: {shown(name)}", f"it had no table at {self._called}")
        return self._store.namespace(name)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        fix = "attach the lake without a point in time"
        raise Refused("READ_ONLY", f"nothing can be changed at {self._called}", "what was, stays", fix)

    create_namespace = set_namespace = drop_namespace = _refuse
    free = address = create_from = register = drop = purge = rename = commit_foreign = _refuse
    create_view = register_view = commit_view = _refuse


def ended(metadata: Json, snapshot_id: int) -> Json | None:
    """Table metadata as if the snapshot were its last: its schema, its ancestors, nothing after it. None if it is not there any more."""
    by_id = {snapshot["snapshot-id"]: snapshot for snapshot in metadata["snapshots"]}
    last = by_id.get(snapshot_id)
    if last is None:
        return None
    kept: list[Json] = []
    at: int | None = snapshot_id
    while at in by_id:
        # Each once, whatever somebody wrote for its parent.
        kept.append(by_id.pop(at))
        at = kept[-1].get("parent-snapshot-id")
    before = {snapshot["snapshot-id"] for snapshot in kept}
    log = [entry for entry in metadata["snapshot-log"] if entry["snapshot-id"] in before and entry["timestamp-ms"] <= last["timestamp-ms"]]
    if not log or log[-1]["snapshot-id"] != snapshot_id:
        log.append({"snapshot-id": snapshot_id, "timestamp-ms": last["timestamp-ms"]})
    schema = last.get("schema-id", metadata["current-schema-id"])
    return {
        **metadata,
        "current-snapshot-id": snapshot_id,
        "current-schema-id": schema if any(one["schema-id"] == schema for one in metadata["schemas"]) else metadata["current-schema-id"],
        "refs": {"main": {"type": "branch", "snapshot-id": snapshot_id}},
        "snapshots": kept[::-1],
        "snapshot-log": log,
        "metadata-log": [],
        "last-updated-ms": max(last["timestamp-ms"], log[-1]["timestamp-ms"]),
        **{key: [one for one in metadata.get(key, ()) if one["snapshot-id"] in before] for key in ("statistics", "partition-statistics")},
    }
