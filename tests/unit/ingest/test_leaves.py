"""A partitioned table's mirror against plain maps: changes of each leaf, leaves emptied, and leaves that came or went and are mended."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.errors import UnsupportedTable
from icelake.ingest.followed import Keyed, follow
from icelake.ingest.mend import Mending
from icelake.model.load import LoadState, leaf_bounds
from icelake.model.marker import LOAD, MEMBERSHIP, Marker
from icelake.model.membership import Leaf, Membership
from icelake.model.relation import TABLEOID, Relation
from icelake.ports import DELETE, INSERT, TRUNCATE, UPDATE, ChangeSet
from icelake.tables.schema import iceberg_schema, table_properties
from icelake.tables.table import Table
from tests.unit.tables.mirror import Mirror, batch, relation

Row = tuple[int, int, int]
"""(id, v, tableoid)"""

_PLAIN = relation(("id", "int"), ("v", "int"), ("tableoid", "long"), key=("tableoid", "id"))
SHAPE = replace(
    _PLAIN,
    columns=(
        replace(_PLAIN.columns[0], type_oid=23),
        _PLAIN.columns[1],
        replace(_PLAIN.columns[2], attnum=TABLEOID, type_oid=26, pg_type="oid"),
    ),
)
KEY = replace(SHAPE, columns=(SHAPE.columns[2], SHAPE.columns[0]))
LEAVES = (7, 8, 20)


class Rig:
    """The mirror, empty and loaded at 100."""

    def __init__(self) -> None:
        self.mirror = Mirror(replace(SHAPE, name="unused"))
        properties = {**table_properties(SHAPE), LOAD: LoadState().dump(), MEMBERSHIP: str(Membership("", "0", "1"))}
        self.mirror.catalog.create(SHAPE.id, iceberg_schema(SHAPE), properties)
        self.lsn = 100
        self.open()
        self.followed.loaded_until(self.followed.load.loaded(None, None, self.lsn))
        self.commit()

    def open(self) -> None:
        mirror = self.mirror
        table = Table.open(mirror.catalog.load(SHAPE.id), mirror.storage, mirror.clock, mirror.chance)
        opened = follow(table)
        assert not opened.open_index(None)
        assert isinstance(opened, Keyed)
        self.followed = opened

    def apply(self, leaf: int, changes: list[tuple[int, int, int, int]]) -> None:
        """(operation, old id, id, v) each"""
        self.lsn += 1
        new: list[tuple[Any, ...]] = []
        old: list[tuple[Any, ...]] = []
        for kind, before, ident, v in changes:
            new.append((ident, v, leaf) if kind in (INSERT, UPDATE) else (None, None, leaf if kind == TRUNCATE else None))
            old.append((leaf, before) if kind in (UPDATE, DELETE) else (None, None))
        op = np.array([change[0] for change in changes], np.uint8)
        self.followed.apply(ChangeSet(SHAPE, op, np.full(len(op), self.lsn, np.uint64), batch(SHAPE, new), batch(KEY, old)))

    def commit(self) -> None:
        parts = self.followed.prepare(Marker("s", "1", 1, "slot", self.lsn, str(self.lsn)))
        if not parts:
            self.followed.idle()
            return
        self.followed.done(self.mirror.catalog.commit(parts))

    def distrust(self, leaf: int) -> None:
        state = self.followed.load.distrust(*leaf_bounds(leaf), self.followed.order)
        change = self.followed.table.delta().prepare({}, {LOAD: state.dump()})
        self.mirror.catalog.commit([change])
        self.open()

    def mend(self, source: dict[tuple[int, int], int]) -> None:
        """Every range that is missing, read again."""
        while (missing := self.followed.load.next_missing()) is not None:
            lower, interval = missing
            assert lower is not None
            assert interval.upper is not None
            first, last = int(lower[0][0]), int(interval.upper[0][0]) - 1
            self.lsn += 1
            mending = Mending(self.followed, self.lsn)
            rows = [(ident, v, leaf) for (leaf, ident), v in sorted(source.items()) if first <= leaf <= last]
            mending.rows([batch(SHAPE, rows)] if rows else [])
            mending.finish(lower, interval.upper)
            self.followed.loaded_until(self.followed.load.loaded(lower, interval.upper, self.lsn))
            self.commit()

    def rows(self) -> dict[tuple[int, int], int]:
        table = self.followed.table
        found = [row for no in table.files for row in table.live_rows(no, ["id", "v", "tableoid"])[1].to_pylist()]
        out = {(row["tableoid"], row["id"]): row["v"] for row in found}
        assert len(out) == len(found)
        assert len(self.followed.index) == len(found)
        return out


Step = tuple[str, int, list[tuple[str, int, int]]]
steps = st.lists(
    st.tuples(
        st.sampled_from(["apply", "apply", "apply", "commit", "leaf", "compact"]),
        st.sampled_from(LEAVES),
        st.lists(
            st.tuples(st.sampled_from(["put", "put", "put", "delete", "move", "truncate"]), st.integers(0, 5), st.integers(0, 9)),
            max_size=8,
        ),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_a_mirror_of_leaves_is_what_its_leaves_are(steps: list[Step]) -> None:
    """Rules tableoid, leaf truncate, leaves."""
    rig = Rig()
    model: dict[tuple[int, int], int] = {}
    for what, leaf, wanted in steps:
        changes: list[tuple[int, int, int, int]] = []
        for verb, ident, v in wanted if what in ("apply", "leaf") else ():
            there = (leaf, ident) in model
            if verb == "truncate":
                changes.append((TRUNCATE, 0, 0, 0))
                model = {key: value for key, value in model.items() if key[0] != leaf}
            elif verb == "put":
                changes.append((UPDATE, ident, ident, v) if there else (INSERT, 0, ident, v))
                model[leaf, ident] = v
            elif verb == "delete" and there:
                changes.append((DELETE, ident, 0, 0))
                del model[leaf, ident]
            elif verb == "move" and there and (leaf, v) not in model:
                changes.append((UPDATE, ident, v, v))
                del model[leaf, ident]
                model[leaf, v] = v
        if what == "apply" and changes:
            rig.apply(leaf, changes)
        elif what == "leaf":
            # The changes of a leaf that came or went were in no stream: its range has them.
            rig.commit()
            rig.distrust(leaf)
            rig.mend(model)
        elif what == "commit":
            rig.commit()
            assert rig.rows() == model
        elif what == "compact":
            rig.commit()
            change = rig.followed.compact(Marker("s", "1", 1, "slot", rig.lsn, "compaction"))
            if change is not None:
                rig.followed.done(rig.mirror.catalog.commit([change]))
    rig.commit()
    assert rig.rows() == model
    rig.open()
    assert rig.rows() == model


def test_a_truncate_between_the_ranges_of_its_leaf() -> None:
    """Only that leaf is loaded from the start."""
    rig = Rig()
    rig.apply(7, [(INSERT, 0, 1, 1), (INSERT, 0, 5, 5)])
    rig.apply(8, [(INSERT, 0, 1, 1)])
    rig.commit()
    rig.distrust(7)
    middle = (("7", "3"), 1)
    lower, upper = leaf_bounds(7)
    state = rig.followed.load.loaded(lower, middle, 200).loaded(middle, upper, 300)
    rig.mirror.catalog.commit([rig.followed.table.delta().prepare({}, {LOAD: state.dump()})])
    rig.open()
    rig.lsn = 250
    rig.apply(7, [(TRUNCATE, 0, 0, 0), (INSERT, 0, 1, 9)])
    rig.apply(8, [(INSERT, 0, 2, 2)])
    rig.commit()
    assert rig.rows() == {(8, 1): 1, (8, 2): 2}
    assert [interval.lsn is None for interval in rig.followed.load.overlapping(lower, upper, rig.followed.order)] == [True]
    rig.mend({(7, 1): 9})
    assert rig.rows() == {(7, 1): 9, (8, 1): 1, (8, 2): 2}


def test_files_of_other_leaves_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaf that is new, empty or gone costs what it holds."""
    rig = Rig()
    for leaf in LEAVES:
        rig.apply(leaf, [(INSERT, 0, ident, ident) for ident in range(5)])
        rig.commit()
    rig.open()
    read: list[int] = []
    plain = Table.read

    def noted(self: Table, file_no: Any, positions: Any, columns: Any, **more: Any) -> pa.Table:
        for no in np.unique(file_no).tolist():
            leaves = self.files[no].leaves
            read.append(leaves[0] if leaves else 0)
        return plain(self, file_no, positions, columns, **more)

    monkeypatch.setattr(Table, "read", noted)
    rig.distrust(19)
    rig.mend({})
    assert read == []
    rig.distrust(20)
    rig.mend({})
    assert read == [20]
    assert rig.rows().keys() == {(leaf, ident) for leaf in (7, 8) for ident in range(5)}


def test_a_relation_without_leaves_has_none() -> None:
    plain: Relation = relation(("id", "int"), ("v", "int"))
    assert not plain.partitioned
    assert [column.name for column in plain.sent] == ["id", "v"]


def test_leaves_the_mirror_does_not_know_are_noticed() -> None:
    rig, known = Rig(), Leaf(7, "1.1", "5", "70", "a")
    rig.followed.membership = Membership("", "0", "1", leaves=(known,))
    rig.followed.is_member(str(rig.followed.membership))
    for now in ((), (known, replace(known, oid=8)), (replace(known, joined="6"),)):
        with pytest.raises(UnsupportedTable, match="LEAVES_CHANGED") as caught:
            rig.followed.is_member(str(Membership("", "0", "1", leaves=now)))
        assert caught.value.table == str(SHAPE.id)
