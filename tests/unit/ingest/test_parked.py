"""The spool of a parked table: what is kept comes back in its order, whatever was merged, reopened or given up meanwhile."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icelake.errors import Corrupt
from icelake.ingest.parked import Parked, make_spool
from icelake.model.marker import Marker
from icelake.model.parking import Parking, spool_of
from icelake.ports import RawChanges, Transactions
from icelake.tables import rewrite
from icelake.tables.rewrite import FANOUT, choose_neighbours
from icelake.tables.table import LiveFile, Table
from tests.unit.tables.mirror import SMALL, Mirror

NOTE = Parking(7, "TABLE_CHANGED", "t", "it has another shape", "", None, True)
Change = tuple[bytes, tuple[int, ...] | None, int, bytes]
"""(Relation message, attnums, commit LSN, change)"""


class Rig:
    """A parked table in a catalog of its own, and what must be in its spool."""

    def __init__(self) -> None:
        self.mirror = Mirror(SMALL)
        make_spool(SMALL.id, "source", self.mirror.catalog)
        self.expected: list[Change] = []
        self.running: list[Change] = []
        self.numbers = itertools.count(1)
        self.open()

    def open(self) -> None:
        mirror = self.mirror
        self.parked = Parked.open(mirror.loaded(), NOTE, mirror.catalog, mirror.storage, mirror.clock, mirror.chance)
        self.running.clear()

    def keep(self, count: int, size: int = 1, relation: bytes = b"R1", attnums: tuple[int, ...] | None = (1, 2)) -> None:
        made = [(relation, attnums, number, b"%d" % number + bytes(size)) for number in itertools.islice(self.numbers, count)]
        self.running += made
        lsn = np.array([change[2] for change in made], np.uint64)
        messages: pa.BinaryArray = pa.array([change[3] for change in made], pa.binary())
        of = Transactions(lsn, lsn.astype(np.int64), lsn.astype(np.int64))
        self.parked.keep(RawChanges(SMALL.id, lsn, relation, attnums, messages, np.ones(count, np.int64), of))

    def marker(self) -> Marker:
        return Marker("s", "1", 1, "slot", next(self.numbers), str(next(self.numbers)))

    def commit(self) -> None:
        changes = self.parked.prepare(self.marker(), 1 << 30, "reload")
        if changes:
            self.parked.done(self.mirror.catalog.commit(changes))
            self.expected += self.running
            self.running.clear()

    def compact(self) -> bool:
        change = self.parked.compact(self.marker())
        if change is None:
            return False
        self.parked.done(self.mirror.catalog.commit([change]))
        return True

    @property
    def spool(self) -> Table:
        assert self.parked.spool is not None
        return self.parked.spool

    def kept(self) -> list[Change]:
        return [
            (kept.relation, kept.attnums, lsn, message)
            for kept in self.parked.kept()
            for lsn, message in zip(kept.commit_lsn, kept.messages, strict=True)
        ]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_changes_come_back_in_their_order(data: st.DataObject) -> None:
    rig = Rig()
    for step in data.draw(st.lists(st.sampled_from(["commit"] * 9 + ["large", "chunks", "give up", "reopen"]), min_size=15, max_size=60)):
        if step in ("commit", "large"):
            rig.keep(data.draw(st.integers(1, 3)), 5000 if step == "large" else 1)
        elif step == "chunks":
            for _ in range(3):
                rig.keep(2, 1, data.draw(st.sampled_from([b"R1", b"R2"])), data.draw(st.sampled_from([(1, 2), (2,), (), None])))
        elif step == "give up":
            rig.keep(2)
            rig.parked.rollback()
            rig.running.clear()
        if step == "reopen":
            rig.open()
        elif step != "give up":
            rig.commit()
            rig.compact()
    assert rig.kept() == rig.expected
    rig.open()
    assert rig.kept() == rig.expected
    assert len(rig.spool.files) < FANOUT + 16


def test_a_day_of_small_commits_is_few_files_and_not_rewritten_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "_NEIGHBOURS_WHOLE", 40_000)
    rig = Rig()
    read: list[int] = []
    most = 0
    for _ in range(300):
        rig.keep(2, 200, b"a message " * 30)
        rig.commit()
        sizes = {no: file.size for no, file in rig.spool.files.items()}
        if rig.compact():
            read.append(sum(size for no, size in sizes.items() if no not in rig.spool.files))
        most = max(most, len(rig.spool.files))
    assert most <= FANOUT + 4
    # A merge every few commits, none of them of much more than a whole file.
    assert len(read) <= 300 // (FANOUT - 1)
    assert max(read) < 2 * 40_000
    assert sum(file.size for file in rig.spool.files.values()) < 60_000
    assert rig.kept() == rig.expected


def test_a_relation_message_is_kept_once_a_run() -> None:
    rig = Rig()
    rig.keep(1000, 1, b"x" * 5000)
    rig.commit()
    (no,) = rig.spool.files
    stored = rig.spool.live_rows(no, ["relation"])[1].column("relation").to_pylist()
    assert stored == [b"x" * 5000] + [b""] * 999
    assert rig.kept() == rig.expected


def test_a_spool_from_before_has_the_message_with_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    with monkeypatch.context() as before:
        before.setattr("icelake.ingest.parked.AS_BEFORE", b"R1")
        rig.keep(5)
        rig.commit()
    rig.keep(5)
    rig.commit()
    assert rig.kept() == rig.expected


@pytest.mark.parametrize("harm", ["a row gone", "out of order", "a file gone", "the first gone"])
def test_what_is_not_as_it_was_kept_is_not_replayed(harm: str) -> None:
    rig = Rig()
    for _ in range(4):
        rig.keep(3)
        rig.commit()
    spool = rig.mirror.catalog.load(spool_of(SMALL.id))
    table = Table.open(spool, rig.mirror.storage, rig.mirror.clock, rig.mirror.chance)
    delta, files = table.delta(), list(table.files)
    if harm == "a row gone":
        delta.delete(np.array([files[1]]), np.array([1]))
    elif harm == "out of order":
        delta, _ = rewrite.rewrite(table, [files[2], files[1]])
    else:
        delta.remove(files[0 if harm == "the first gone" else 1])
    rig.mirror.catalog.commit([delta.prepare({"by": "someone else"}, {})])
    rig.open()
    with pytest.raises(Corrupt, match="SPOOL_CORRUPT"):
        rig.kept()


# ------------------------------------------------------------------------------------------------ which files are merged


def files_of(sizes: Sequence[int]) -> list[LiveFile]:
    return [LiveFile(no, str(no), 1, size, 0, 1, ()) for no, size in enumerate(sizes)]


WHOLE = 1 << 16


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, WHOLE * 2) | st.integers(1, 40), max_size=400))
@example([1] * 2000)
@example([1, 100] * 300)
@example([*range(400, 0, -1)])
@example([2**n for n in range(15, 0, -1)] * 20)
def test_neighbours_at_the_end_are_merged_and_the_tail_stays_short(sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(rewrite, "_NEIGHBOURS_WHOLE", WHOLE)
        files: list[LiveFile] = []
        numbers = itertools.count()
        moved = 0
        for size in sizes:
            files.append(replace(files_of([size])[0], no=next(numbers)))
            chosen = choose_neighbours(files)
            if chosen:
                assert chosen == [file.no for file in files[-len(chosen) :]]
                assert len(chosen) >= FANOUT
                merged = sum(file.size for file in files[-len(chosen) :])
                moved += merged
                files[-len(chosen) :] = [replace(files_of([merged])[0], no=next(numbers))]
            last_whole = max((at for at, file in enumerate(files) if file.size >= WHOLE), default=-1)
            assert len(files) - 1 - last_whole <= FANOUT + math.log2(WHOLE)
        # A row moves when its file doubles; and once more for a smaller file that stood before it.
        assert moved <= sum(min(size, WHOLE) for size in sizes) * (2 * math.log2(WHOLE) + 2)


def test_few_files_are_left_alone() -> None:
    assert choose_neighbours([]) == []
    assert choose_neighbours(files_of([10] * (FANOUT - 1))) == []
    assert choose_neighbours(files_of([10] * FANOUT)) == list(range(FANOUT))
    # Larger than all that came after it: not worth it yet.
    assert choose_neighbours(files_of([1000] + [10] * FANOUT)) == list(range(1, FANOUT + 1))
    assert choose_neighbours(files_of([10] * FANOUT + [8 << 20])) == []
