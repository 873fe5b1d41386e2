import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.ports import Json, TableChange
from icelake.tables.expire import Policy, expire, keep
from icelake.tables.manifests import DELETED, decode_manifest, decode_manifest_list
from tests.unit.tables.mirror import SMALL, Mirror

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
NOW = 1_700_000_000_000


def made(*ages: int) -> list[Json]:
    """Snapshots of these ages in ms, oldest first; the id is the sequence number."""
    return [
        {"snapshot-id": number, "sequence-number": number, "timestamp-ms": NOW - age}
        for number, age in enumerate(sorted(ages, reverse=True), start=1)
    ]


def test_the_last_minute_stays_whole_and_the_past_thins() -> None:
    snapshots = made(*range(0, 2 * HOUR, SECOND))
    kept = keep(snapshots, NOW, Policy())
    ages = sorted(NOW - snapshot["timestamp-ms"] for snapshot in snapshots if snapshot["snapshot-id"] in kept)
    assert [age for age in ages if age <= MINUTE] == list(range(0, MINUTE + 1, SECOND))
    assert len([age for age in ages if MINUTE < age <= 10 * MINUTE]) in (54, 55)
    assert len([age for age in ages if 10 * MINUTE < age <= HOUR]) in (10, 11)
    assert len([age for age in ages if age > HOUR]) in (1, 2)


def test_main_s_head_and_the_protected_always_stay() -> None:
    snapshots = made(100 * DAY, 90 * DAY, 80 * DAY)
    assert keep(snapshots, NOW, Policy()) == {3}
    assert keep(snapshots, NOW, Policy(), protected=[1, 77]) == {1, 3}
    assert keep(snapshots, NOW, Policy(), head=2) == {2}
    assert keep([], NOW, Policy()) == set()


@given(st.lists(st.integers(0, 40 * DAY), max_size=60), st.lists(st.integers(0, 2 * DAY), min_size=1, max_size=6))
def test_thinning_often_keeps_what_thinning_once_keeps(ages: list[int], pauses: list[int]) -> None:
    """However often it ran before, a snapshot that a single late run would keep is still there."""
    snapshots = made(*ages)
    now, left = NOW, snapshots
    for pause in pauses:
        now += pause
        kept = keep(left, now, Policy())
        left = [snapshot for snapshot in left if snapshot["snapshot-id"] in kept]
    assert keep(snapshots, now, Policy()) == keep(left, now, Policy())


@pytest.mark.parametrize("tiers", [((10, 0), (5, 1)), ((10, 5), (20, 5)), ((10, 4), (20, 6)), ((10, -1),) * 2])
def test_a_policy_that_would_not_nest_is_refused(tiers: Any) -> None:
    with pytest.raises(ValueError, match="divide"):
        Policy(tiers)


def test_the_change_asks_for_the_head_it_saw() -> None:
    mirror = Mirror(SMALL)
    for key in range(3):
        mirror.commit([(key, "x")])
    first, second, head = [snapshot["snapshot-id"] for snapshot in mirror.table.metadata["snapshots"]]
    change, files = expire(mirror.loaded(), [second, first], mirror.storage)
    assert [requirement["type"] for requirement in change.requirements] == ["assert-table-uuid", "assert-ref-snapshot-id"]
    assert change.requirements[1]["snapshot-id"] == head
    assert change.updates == [{"action": "remove-snapshots", "snapshot-ids": sorted([first, second])}]
    assert len(files) == 2
    assert all("/snap-" in file for file in files)
    with pytest.raises(ValueError, match="cannot be dropped"):
        expire(mirror.loaded(), [head], mirror.storage)
    with pytest.raises(ValueError, match="cannot be dropped"):
        expire(mirror.loaded(), [12345], mirror.storage)
    assert expire(mirror.loaded(), [], mirror.storage)[0].updates == []


def referenced(mirror: Mirror, snapshots: list[Json]) -> set[str]:
    """Every file these snapshots need, by brute force."""
    out: set[str] = set()
    for snapshot in snapshots:
        out.add(snapshot["manifest-list"])
        _, records = decode_manifest_list(mirror.storage.files[snapshot["manifest-list"]], "x")
        for record in records:
            out.add(record["manifest_path"])
            _, entries = decode_manifest(mirror.storage.files[record["manifest_path"]], "x")
            out.update(entry["data_file"]["file_path"] for entry in entries if entry["status"] != DELETED)
    return out


def roll_back(mirror: Mirror, snapshot: int, ref: str = "main") -> None:
    """What another tool may do: point a reference at an older snapshot."""
    update = {"action": "set-snapshot-ref", "ref-name": ref, "type": "branch", "snapshot-id": snapshot}
    mirror.catalog.commit([TableChange(mirror.shape.id, [], [update])])
    mirror.table = mirror.reopen()
    mirror.model = {key: row for key, (row, _, _) in mirror.rows().items()}
    mirror.ids = {key: row_id for key, (_, row_id, _) in mirror.rows().items()}
    mirror.updated = {key: updated for key, (_, _, updated) in mirror.rows().items()}
    mirror.where = {}
    for no in mirror.table.files:
        keys, positions, _ = mirror.table.read_keys(no)
        for key, position in zip(keys.column(0).to_pylist(), positions.tolist(), strict=True):
            mirror.where[key] = (no, position)


@given(st.integers(0, 2**32), st.sampled_from(["straight", "rolled back", "branched"]))
@settings(max_examples=40, deadline=None)
def test_no_file_a_retained_snapshot_needs_is_named_and_none_is_left(seed: int, history: str) -> None:
    chance = random.Random(seed)
    mirror = Mirror(SMALL, seed=seed)
    for _ in range(chance.randrange(5, 30)):
        snapshots = [snapshot["snapshot-id"] for snapshot in mirror.table.metadata["snapshots"]]
        step = chance.random()
        if step < 0.1 and mirror.table.files:
            mirror.compact(chance.sample(sorted(mirror.table.files), chance.randint(1, len(mirror.table.files))))
        elif step < 0.15:
            mirror.commit(truncate=True)
        elif step < 0.3 and history == "rolled back" and len(snapshots) > 1:
            roll_back(mirror, chance.choice(snapshots))
        elif step < 0.25 and history == "branched" and len(snapshots) > 1:
            roll_back(mirror, chance.choice(snapshots), ref=f"b{len(snapshots)}")
        elif step < 0.5 and len(snapshots) > 1:
            heads = {ref["snapshot-id"] for ref in mirror.table.metadata["refs"].values()}
            drop = [snapshot for snapshot in snapshots if snapshot not in heads and chance.random() < 0.5]
            before = referenced(mirror, mirror.table.metadata["snapshots"])
            _, files = expire(mirror.loaded(), drop, mirror.storage)
            stay = [snapshot for snapshot in mirror.table.metadata["snapshots"] if snapshot["snapshot-id"] not in drop]
            needed = referenced(mirror, stay)
            assert not needed & set(files)
            assert set(files) == before - needed
            mirror.expire(drop)
            mirror.check()
        else:
            put = {chance.randrange(12): "x" for _ in range(chance.randrange(4))}
            gone = [key for key in mirror.model if key not in put and chance.random() < 0.2]
            mirror.commit(list(put.items()), gone)
    everything = {path for path in mirror.storage.files if not path.endswith(".json")}
    assert referenced(mirror, mirror.table.metadata["snapshots"]) <= everything


def test_cost_grows_with_what_is_dropped() -> None:
    mirror = Mirror(SMALL)
    for step in range(200):
        mirror.commit([(step, "x")])
    snapshots = [snapshot["snapshot-id"] for snapshot in mirror.table.metadata["snapshots"]]
    mirror.storage.reads.clear()
    expire(mirror.loaded(), snapshots[100:104], mirror.storage)
    assert len(mirror.storage.reads) < 30


def test_a_rollback_that_has_left_no_trace_but_its_orphan_is_seen() -> None:
    """The parents are expired, so only the line number tells that the orphan does not lie between its neighbours."""
    mirror = Mirror(SMALL)
    mirror.commit([(1, "a")])
    mirror.commit([(2, "b")])
    first, second = [snapshot["snapshot-id"] for snapshot in mirror.table.metadata["snapshots"]]
    mirror.commit(truncate=True)
    orphan = mirror.table.snapshot_id
    roll_back(mirror, second)
    mirror.commit([(3, "c")])
    third = mirror.table.snapshot_id
    mirror.commit([(4, "d")])
    mirror.expire([second])
    assert third is not None
    mirror.expire([third])
    assert orphan in {snapshot["snapshot-id"] for snapshot in mirror.table.metadata["snapshots"]}
    mirror.expire([first])
    assert set(mirror.rows(mirror.reopen())) == {1, 2, 3, 4}
