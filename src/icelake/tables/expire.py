"""Expiry: which snapshots to keep as they age, and which files nobody needs once the others are dropped.

Promises never to name a file that a retained snapshot of the table references. Deletes nothing itself: the files it names may go
once the commit that drops the snapshots is durable (``ingest.garbage``). Statistics files are not its business. Raises Corrupt when
a manifest cannot be read, and ValueError when a snapshot is asked for that must stay.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from icelake.ports import Json, LoadedTable, Storage, TableChange
from icelake.tables.manifests import DELETED, decode_manifest, decode_manifest_list
from icelake.tables.table import LINE

_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000


@dataclass(frozen=True, slots=True)
class Policy:
    """How snapshots thin with age: up to ``age_ms`` old, the last one of every ``step_ms`` of time stays (0: all do).

    Ages grow; every step must divide the next, so that what a coarser step keeps was kept by the finer one. Older than the last
    age: nothing stays.
    """

    tiers: tuple[tuple[int, int], ...] = (
        (_MINUTE, 0),
        (10 * _MINUTE, 10 * _SECOND),
        (_HOUR, 5 * _MINUTE),
        (_DAY, _HOUR),
        (30 * _DAY, _DAY),
    )

    def __post_init__(self) -> None:
        for (age, step), (next_age, next_step) in zip(self.tiers, self.tiers[1:], strict=False):
            if not age < next_age or not 0 <= step < next_step or (step and next_step % step):
                raise ValueError(f"ages must grow and every step divide the next: {self.tiers}")


def keep(snapshots: Sequence[Json], now_ms: int, policy: Policy, protected: Collection[int] = (), head: int | None = None) -> set[int]:
    """Ids of the snapshots that stay: by the policy, the protected ones, and main's head (default: the newest)."""
    if not snapshots:
        return set()
    present = {snapshot["snapshot-id"] for snapshot in snapshots}
    if head is None:
        head = max(snapshots, key=lambda snapshot: int(snapshot["sequence-number"]))["snapshot-id"]
    kept = present.intersection({head, *protected})
    last: dict[tuple[int, int], tuple[int, int, int]] = {}
    for snapshot in snapshots:
        made = snapshot["timestamp-ms"]
        order = (made, snapshot["sequence-number"], snapshot["snapshot-id"])
        for _, step in policy.tiers:
            if step:
                place = (step, made // step)
                last[place] = max(last.get(place, order), order)
    for snapshot in snapshots:
        made, ident = snapshot["timestamp-ms"], snapshot["snapshot-id"]
        reach = [step for age, step in policy.tiers if now_ms - made <= age]
        if reach and (reach[0] == 0 or last[reach[0], made // reach[0]][2] == ident):
            kept.add(ident)
    return kept


def expire(loaded: LoadedTable, drop: Collection[int], storage: Storage) -> tuple[TableChange, list[str]]:
    """(the change that drops these snapshots, files to delete once it is durable).

    On a linear history the cost grows with what is dropped: a file lives through consecutive snapshots, so
    one that neither the retained neighbour before nor the one after a dropped run has, nobody has. Otherwise every retained
    snapshot is asked.
    """
    metadata = loaded.metadata
    snapshots = {snapshot["snapshot-id"]: snapshot for snapshot in metadata.get("snapshots", ())}
    dropped = set(drop)
    heads = {ref["snapshot-id"] for ref in metadata.get("refs", {}).values()}
    if heads & dropped or not dropped <= snapshots.keys():
        raise ValueError(f"snapshots that cannot be dropped: {sorted((heads & dropped) | (dropped - snapshots.keys()))}")
    updates: list[Json] = [{"action": "remove-snapshots", "snapshot-ids": sorted(dropped)}] if dropped else []
    change = TableChange(loaded.id, loaded.unmoved(), updates)
    files = _unneeded(snapshots, dropped, heads, loaded.head, _Reachable(storage))
    return change, sorted(files)


def still_needed(loaded: LoadedTable, files: Collection[str], storage: Storage) -> set[str]:
    """Those of ``files``, which an expiry let go, that a snapshot of the table needs all the same.

    None, while all snapshots are of one line and main is its end: the commit that dropped them found main where it was planned, and what
    is made later refers to what its parent does. Somebody else's branch may have begun at a snapshot that was being dropped.
    """
    snapshots = {snapshot["snapshot-id"]: snapshot for snapshot in loaded.metadata.get("snapshots", ())}
    heads = {ref["snapshot-id"] for ref in loaded.metadata.get("refs", {}).values()}
    if not snapshots or _history(snapshots, heads, loaded.head) is not None:
        return set()
    return _Reachable(storage).all(snapshots.values()).intersection(files)


def _unneeded(snapshots: dict[int, Json], dropped: set[int], heads: set[int], main: int | None, reachable: "_Reachable") -> set[str]:
    history = _history(snapshots, heads, main)
    if history is None:
        return reachable.only(
            (snapshots[ident] for ident in snapshots if ident in dropped),
            (snapshots[ident] for ident in snapshots if ident not in dropped),
        )
    unneeded: set[str] = set()
    run: list[Json] = []
    before: list[Json] = []
    for snapshot in history:
        if snapshot["snapshot-id"] in dropped:
            run.append(snapshot)
            continue
        if run:
            unneeded |= reachable.only(run, [*before, snapshot])
            run = []
        before = [snapshot]
    return unneeded


def _history(snapshots: dict[int, Json], heads: set[int], main: int | None) -> list[Json] | None:
    """All snapshots, oldest first, if each was made on the newest one there was and the last is main; else None."""
    lines = {snapshot["summary"].get(LINE) for snapshot in snapshots.values()}
    if heads != {main} or len(lines) != 1 or None in lines:
        return None
    line = sorted(snapshots.values(), key=lambda snapshot: int(snapshot["sequence-number"]))
    return line if line[-1]["snapshot-id"] == main else None


class _Reachable:
    """What snapshots reference. Remembers manifests, which neighbours share."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lists: dict[str, dict[str, int]] = {}
        self._live: dict[str, frozenset[str]] = {}

    def only(self, gone: Iterable[Json], stay: Iterable[Json]) -> set[str]:
        """Files the snapshots ``gone`` reference and those in ``stay`` do not: manifest lists, manifests, data, Puffins."""
        staying = {snapshot["manifest-list"]: snapshot for snapshot in stay}
        going = {snapshot["manifest-list"]: snapshot for snapshot in gone if snapshot["manifest-list"] not in staying}
        if not going:
            return set()
        needed: dict[str, int] = {}
        for snapshot in staying.values():
            needed |= self._manifests(snapshot)
        manifests: dict[str, int] = {}
        for snapshot in going.values():
            manifests |= self._manifests(snapshot)
        lonely = {path: length for path, length in manifests.items() if path not in needed}
        files = {file for path, length in lonely.items() for file in self._files(path, length)}
        # No snapshot lists a file twice, so a manifest that stood beside every lonely one cannot hold their files.
        everywhere = set.intersection(*(set(self._manifests(snapshot)) for snapshot in going.values()))
        for path, length in needed.items():
            if files and path not in everywhere:
                files -= self._files(path, length)
        return going.keys() | lonely.keys() | files

    def all(self, snapshots: Iterable[Json]) -> set[str]:
        """Files these snapshots reference."""
        manifests: dict[str, int] = {}
        lists: set[str] = set()
        for snapshot in snapshots:
            manifests |= self._manifests(snapshot)
            lists.add(snapshot["manifest-list"])
        return lists.union(manifests, *(self._files(path, length) for path, length in manifests.items()))

    def _manifests(self, snapshot: Json) -> dict[str, int]:
        location = snapshot["manifest-list"]
        if location not in self._lists:
            _, records = decode_manifest_list(self._storage.read(location), location, snapshot["summary"])
            self._lists[location] = {record["manifest_path"]: record["manifest_length"] for record in records}
        return self._lists[location]

    def _files(self, path: str, length: int) -> frozenset[str]:
        if path not in self._live:
            _, entries = decode_manifest(self._storage.read(path, 0, length), path)
            self._live[path] = frozenset(entry["data_file"]["file_path"] for entry in entries if entry["status"] != DELETED)
        return self._live[path]
