"""What an expiry lets go is written down, and deleted when its time has come: by whoever is there then, and only if nobody needs it."""

from typing import Any

import pytest

from icelake.errors import Refused, Unreachable
from icelake.ingest import garbage
from icelake.ingest.garbage import GARBAGE, Bin
from icelake.model.relation import TableId
from icelake.ports import LoadedTable, TableChange
from icelake.tables.expire import expire
from tests.unit.tables.mirror import SMALL, Mirror, relation

TABLE = SMALL.id


class Lake:
    """A mirror, and a control table beside it."""

    def __init__(self) -> None:
        self.mirror = Mirror(SMALL)
        self.files = self.mirror.storage.files
        self.control = TableId("icelake", "control")
        self.mirror.catalog.create(self.control, {"type": "struct", "schema-id": 0, "fields": []}, {})
        self.bin = self.another_process()
        self.now = 0

    def another_process(self) -> Bin:
        return Bin(self.mirror.storage, self.mirror.chance)

    def load(self, table: TableId) -> LoadedTable:
        return self.mirror.catalog.load(table)

    def grow(self, snapshots: int) -> list[int]:
        """Snapshots of which each leaves nothing of the one before; their ids."""
        for _ in range(snapshots):
            self.mirror.commit(truncate=True)
            self.mirror.commit([(1, "x")])
        return [snapshot["snapshot-id"] for snapshot in self.load(TABLE).metadata["snapshots"]]

    def expire(self, drop: list[int]) -> list[str]:
        """An upkeep that drops these, as the applier does it. The files it lets go."""
        self.now += 1000
        self.bin.empty(self.load(self.control), self.load, self.now)
        change, files = expire(self.load(TABLE), drop, self.mirror.storage)
        update = self.bin.add(self.load(self.control), {TABLE: files}, self.now)
        self.mirror.catalog.commit([TableChange(self.control, [], [update]), change])
        return files

    def there(self, files: list[str]) -> int:
        return len(self.files.keys() & set(files))

    def lists(self) -> set[str]:
        return {location for location in self.files if location.endswith(".garbage.json")}


def test_files_go_in_the_upkeep_after_their_time_and_their_list_in_the_one_after_that() -> None:
    lake = Lake()
    ids = lake.grow(6)
    files = lake.expire(ids[:4])
    assert lake.there(files) == len(files) > 8
    (first,) = lake.lists()
    lake.bin.empty(lake.load(lake.control), lake.load, lake.now - 1)
    assert lake.there(files) == len(files), "too early"
    more = lake.expire(ids[4:6])
    assert (lake.there(files), lake.there(more)) == (0, len(more))
    assert first in lake.lists(), "named by the list that followed it"
    assert first not in lake.load(lake.control).metadata["properties"][GARBAGE]
    lake.expire(ids[6:8])
    assert first not in lake.lists()
    lake.mirror.check()


def test_a_process_that_comes_later_goes_on_with_it() -> None:
    lake = Lake()
    ids = lake.grow(4)
    files = lake.expire(ids[:4])
    for location in files[: len(files) // 2]:  # what the one before it had deleted when it died
        lake.files.pop(location)
    lake.another_process().empty(lake.load(lake.control), lake.load, lake.now)
    assert lake.there(files) == 0


def test_a_list_that_was_emptied_is_read_once() -> None:
    lake = Lake()
    ids = lake.grow(4)
    lake.expire(ids[:2])
    (location,) = lake.lists()
    lake.mirror.storage.reads.clear()
    for _ in range(3):
        lake.bin.empty(lake.load(lake.control), lake.load, lake.now)
    assert lake.mirror.storage.reads.count(location) == 1


def test_what_a_branch_of_somebody_else_needs_stays() -> None:
    """It began at a snapshot while that was being dropped."""
    lake = Lake()
    ids = lake.grow(3)
    change, files = expire(lake.load(TABLE), ids[:2], lake.mirror.storage)
    old = lake.load(TABLE).snapshot(ids[1])
    assert old is not None
    branch = {
        **old,
        "snapshot-id": 77,
        "parent-snapshot-id": ids[1],
        "sequence-number": lake.load(TABLE).metadata["last-sequence-number"] + 1,
        "summary": {"operation": "append"},
        "timestamp-ms": lake.load(TABLE).metadata["last-updated-ms"],
        "first-row-id": lake.load(TABLE).metadata["next-row-id"],
        "added-rows": 0,
    }
    ref = {"action": "set-snapshot-ref", "ref-name": "theirs", "type": "branch", "snapshot-id": 77}
    lake.mirror.catalog.commit([TableChange(TABLE, [], [{"action": "add-snapshot", "snapshot": branch}, ref])])
    update = lake.bin.add(lake.load(lake.control), {TABLE: files}, 0)
    lake.mirror.catalog.commit([TableChange(lake.control, [], [update]), change])
    needed = {location for location in files if location == old["manifest-list"]}
    assert needed, "the branch reads through a file that was let go"
    lake.bin.empty(lake.load(lake.control), lake.load, 0)
    assert needed <= lake.files.keys()
    assert 0 < lake.there(files) < len(files)


def test_a_table_that_is_gone_leaves_nothing() -> None:
    lake = Lake()
    files = lake.expire(lake.grow(3)[:2])
    other = relation(("id", "long"), name="other").id
    update = lake.bin.add(lake.load(lake.control), {other: files}, 0)
    lake.mirror.catalog.commit([TableChange(lake.control, [], [update])])
    lake.another_process().empty(lake.load(lake.control), lake.load, 0)
    assert lake.there(files) == 0


def test_a_list_that_somebody_took_for_an_orphan_and_one_that_is_damaged_stop_nobody() -> None:
    lake = Lake()
    ids = lake.grow(4)
    files = lake.expire(ids[:2])
    (location,) = lake.lists()
    whole = lake.files[location]
    lake.files[location] = whole[:-3]
    more = lake.expire(ids[2:4])
    assert lake.there(files) == len(files)
    lake.expire(ids[4:5])
    assert location in lake.load(lake.control).metadata["properties"][GARBAGE], "what was not emptied is still named"
    assert lake.there(more) == 0
    del lake.files[location]
    lake.expire(ids[5:6])
    assert location not in lake.load(lake.control).metadata["properties"][GARBAGE]


def test_what_cannot_be_deleted_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake()
    ids = lake.grow(4)
    files = lake.expire(ids[:2])
    for error in (Unreachable("X", "no answer"), Refused("Y", "not allowed")):
        with monkeypatch.context() as patch:
            patch.setattr(lake.mirror.storage, "flush", failing(error))
            assert lake.bin.empty(lake.load(lake.control), lake.load, lake.now) is error
    more = lake.expire(ids[2:4])
    assert lake.there(files) == 0
    assert lake.bin.empty(lake.load(lake.control), lake.load, lake.now) is None
    assert lake.there(more) == 0


def failing(error: Exception) -> Any:
    def fail() -> None:
        raise error

    return fail


def test_what_a_pause_left_behind_is_deleted_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake()
    ids = lake.grow(6)
    lists = []
    for at in range(0, 6, 2):
        change, files = expire(lake.load(TABLE), ids[at : at + 2], lake.mirror.storage)
        update = lake.bin.add(lake.load(lake.control), {TABLE: files}, at)
        lake.mirror.catalog.commit([TableChange(lake.control, [], [update]), change])
        lists.append(files)
    monkeypatch.setattr(garbage, "_AT_ONCE", 2)
    lake.bin.empty(lake.load(lake.control), lake.load, 10)
    assert [lake.there(files) > 0 for files in lists] == [False, False, True]
    lake.bin.empty(lake.load(lake.control), lake.load, 10)
    assert lake.there(lists[2]) == 0
