"""The history of a table that somebody else wrote, held against the guard as if each of its commits had come through the catalog."""

from pathlib import Path

import orjson

from icelake.model.location import canonical
from icelake.ports import Json
from icelake.storage.local import LocalStorage
from icelake.tables.guard import Guard


def history(metadata_location: str) -> list[Json]:
    """All table metadata there was, the oldest first."""
    last: Json = orjson.loads(Path(canonical(metadata_location)).read_bytes())
    before = [entry["metadata-file"] for entry in last.get("metadata-log", ())]
    return [*(orjson.loads(Path(canonical(place)).read_bytes()) for place in before), last]


def replay(metadata_location: str) -> int:
    """Check each commit in turn; how many snapshots there were. Then the table at once, and without what may have expired."""
    storage = LocalStorage()
    guard = Guard(storage)
    try:
        seen: set[int] = set()
        base: Json | None = None
        for new in history(metadata_location):
            guard.check(base, new)
            seen |= {snapshot["snapshot-id"] for snapshot in new.get("snapshots") or ()}
            base = new
        assert base is not None
        guard.check(None, base)
        if base.get("current-snapshot-id", -1) not in (None, -1):
            head = [snapshot for snapshot in base["snapshots"] if snapshot["snapshot-id"] == base["current-snapshot-id"]]
            guard.check(None, {**base, "snapshots": head})
        return len(seen)
    finally:
        guard.close()
        storage.close()
