"""The row index of tables without a key, against a plain list: equal rows, batches given up, rewrites, and a million of one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from icelake.errors import Corrupt
from icelake.model.relation import Column, Relation
from icelake.tables import bag_index
from icelake.tables.bag_index import BagIndex
from icelake.tables.key_index import Identity
from icelake.tables.keys import Hashes, hash_rows
from icelake.tables.schema import ROW_ID

SEED = (3, 4)
RELATION = Relation(1, "public", "t", (Column("v", 1, 25, -1, "text", "string"),), (), False, "full")


def batch(values: Sequence[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"v": pa.array([None if value == 0 else f"row {value}" for value in values], pa.string())})


def hashes(values: Sequence[int]) -> Hashes:
    return hash_rows(batch(values), SEED)


@dataclass
class FakeFile:
    path: str
    first_row_id: int
    rows: dict[int, tuple[int, int]]
    """position -> (value, row id)"""

    @property
    def identity(self) -> Identity:
        return self.path, None


@dataclass
class FakeTable:
    files: dict[int, FakeFile] = field(default_factory=dict)
    relation: Relation = RELATION

    def live_rows(self, file_no: int, columns: Sequence[str]) -> tuple[npt.NDArray[np.int64], pa.Table]:
        rows = self.files[file_no].rows
        table = pa.Table.from_batches([batch([value for value, _ in rows.values()])]).select(list(columns))
        return np.array(list(rows), np.int64), table.append_column(ROW_ID, pa.array([row_id for _, row_id in rows.values()], pa.int64()))


class Machine(RuleBasedStateMachine):
    """The model: value -> its places, the last last; a place is (file, position, row id)."""

    @initialize(small=st.booleans())
    def begin(self, small: bool) -> None:
        self.table = FakeTable()
        self.index = BagIndex(SEED)
        self.index.reconcile(self.table)
        self.undo_bytes = bag_index._UNDO_BYTES
        bag_index._UNDO_BYTES = 200 if small else 1 << 20
        self.numbers = 0
        self.row_ids = 0
        self.places: dict[int, list[tuple[int, int, int]]] = {}
        self.kept: dict[int, list[tuple[int, int, int]]] = {}
        self.firsts: dict[int, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "undo_bytes"):
            bag_index._UNDO_BYTES = self.undo_bytes

    @rule(values=st.lists(st.integers(0, 3), min_size=1, max_size=8), known=st.booleans())
    def put(self, values: list[int], known: bool) -> None:
        """Rows of a new file; their row ids are their own, or those of the file."""
        self.numbers += 1
        first = self.firsts[self.numbers] = self.row_ids
        self.row_ids += len(values)
        ids = np.arange(first, first + len(values)) if known else np.full(len(values), -1)
        self.index.put(hashes(values), self.numbers, np.arange(len(values)), ids)
        for position, value in enumerate(values):
            self.places.setdefault(value, []).append((self.numbers, position, first + position))

    @rule(values=st.lists(st.integers(0, 3), min_size=1, max_size=8))
    def take(self, values: list[int]) -> None:
        file_no, position, row_id = self.index.take(hashes(values))
        for at, value in enumerate(values):
            places = self.places.get(value, [])
            if not places:
                assert file_no[at] == -1
                continue
            no, where, ident = places.pop()
            assert (int(file_no[at]), int(position[at])) == (no, where)
            assert row_id[at] in (-1, ident)
            assert row_id[at] == ident or self.firsts[no] + where == ident

    @rule()
    def clear(self) -> None:
        self.index.clear()
        self.places = {}

    @rule()
    def commit(self) -> None:
        self.index.commit(None, {})
        self.kept = {value: list(places) for value, places in self.places.items()}

    @rule()
    def rollback(self) -> None:
        lost = self.index._undo is None
        self.index.rollback()
        self.places = {value: list(places) for value, places in self.kept.items()}
        if lost:
            with pytest.raises(Corrupt, match="KEY_INDEX_STALE"):
                self.index.take(hashes([1]))
            self.restart()

    @precondition(lambda self: self.index._undo is not None)
    @rule(data=st.data())
    def rewrite(self, data: st.DataObject) -> None:
        """Between batches, the rows of some files go to a new one, in the order of their row ids."""
        self.commit()
        files = sorted({no for places in self.places.values() for no, _, _ in places})
        if not files:
            return
        chosen = data.draw(st.sets(st.sampled_from(files), min_size=1))
        moved = sorted(
            (ident, value, at, no, where)
            for value, places in self.places.items()
            for at, (no, where, ident) in enumerate(places)
            if no in chosen
        )
        self.numbers += 1
        self.firsts[self.numbers] = -(1 << 40)  # every row of a rewritten file names its row id
        count = len(moved)
        row_ids = np.array([ident for ident, *_ in moved], np.int64)
        was_file_no, was_position = (np.array([one[place] for one in moved], np.int64) for place in (3, 4))
        self.index.move(was_file_no.astype(np.int32), was_position, np.full(count, self.numbers, np.int32), np.arange(count), row_ids)
        for position, (ident, value, at, _, _) in enumerate(moved):
            self.places[value][at] = (self.numbers, position, ident)
        if data.draw(st.booleans()):
            self.commit()
        else:
            self.rollback()

    @rule()
    def restart(self) -> None:
        """Another process: whatever was not committed is gone, and the table is read."""
        files: dict[int, dict[int, tuple[int, int]]] = {}
        for value, places in self.kept.items():
            for no, position, ident in places:
                files.setdefault(no, {})[position] = (value, ident)
        self.table.files = {no: FakeFile(f"f{no}", self.firsts[no], dict(sorted(rows.items()))) for no, rows in sorted(files.items())}
        self.index = BagIndex(SEED)
        assert self.index.reconcile(self.table).files_read == len(files)
        self.kept = {}
        for no, file in self.table.files.items():
            for position, (value, ident) in file.rows.items():
                self.kept.setdefault(value, []).append((no, position, ident))
        self.places = {value: list(places) for value, places in self.kept.items()}

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "index"):
            assert len(self.index) == sum(map(len, self.places.values()))


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_a_million_equal_rows_cost_what_a_million_different_ones_do() -> None:
    """Each look-up looks at one row: were a chain walked, this would not end."""
    index = BagIndex(SEED)
    index.reconcile(FakeTable())
    count = 1_000_000
    same = np.repeat(hashes([1]), count, axis=0)
    index.put(same, 1, np.arange(count), -1)
    index.put(hashes([2]), 2, 0, -1)
    index.commit(None, {})
    file_no, position, _ = index.take(same[: count // 2])
    assert (file_no == 1).all()
    assert np.array_equal(np.sort(position), np.arange(count // 2, count))
    index.rollback()
    file_no, position, _ = index.take(same)
    assert np.array_equal(np.sort(position), np.arange(count))
    assert index.take(hashes([1, 2]))[0].tolist() == [-1, 2]


def test_a_rewrite_of_other_rows_than_are_held_is_noticed() -> None:
    index = BagIndex(SEED)
    index.reconcile(FakeTable())
    index.put(hashes([1, 1]), 1, np.arange(2), -1)
    index.commit(None, {})
    with pytest.raises(Corrupt, match="KEY_INDEX_CORRUPT"):
        index.move(np.array([1, 1], np.int32), np.array([0, 2]), np.array([2, 2], np.int32), np.array([0, 1]), np.array([0, 2]))


def test_it_is_not_asked_before_it_was_compared() -> None:
    with pytest.raises(Corrupt, match="KEY_INDEX_STALE"):
        BagIndex(SEED).clear()


COLUMNS: Mapping[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "float": (pa.float32(), st.sampled_from([0.0, -0.0, 1.5, float("inf")])),
    "double": (pa.float64(), st.sampled_from([0.0, -0.0, 5e-324])),
    "text": (pa.string(), st.sampled_from(["", "a", "\0a"])),
    "bytes": (pa.binary(), st.sampled_from([b"", b"a", b"a\0"])),
    "int": (pa.int32(), st.sampled_from([0, 1])),
    "bool": (pa.bool_(), st.booleans()),
}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_rows_have_one_hash_exactly_if_they_are_the_same(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=3, unique=True))
    rows = data.draw(st.lists(st.tuples(*(st.none() | COLUMNS[name][1] for name in names)), min_size=1, max_size=12))
    columns = [pa.array(list(values), COLUMNS[name][0]) for name, values in zip(names, zip(*rows, strict=True), strict=True)]
    together = pa.RecordBatch.from_arrays(columns, names=names)
    found = [tuple(pair) for pair in hash_rows(together, SEED).tolist()]
    spelled = [repr(row) for row in rows]  # tells -0.0 from 0.0
    assert len(set(found)) == len(set(spelled)) == len(set(zip(found, spelled, strict=True)))
    # The same rows in a slice of something longer, as they come out of a file.
    longer = pa.concat_batches([together, together])  # type: ignore[attr-defined]
    assert [tuple(pair) for pair in hash_rows(longer.slice(len(rows)), SEED).tolist()] == found
