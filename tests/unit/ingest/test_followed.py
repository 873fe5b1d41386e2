"""Tables whose rows have no key: chunks applied to a real table, against a plain list; and what must not be passed over."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.errors import Corrupt, Refused, UnsupportedTable
from icelake.ingest import followed as following
from icelake.ingest.followed import Followed, follow
from icelake.model.layout import Layout
from icelake.model.load import LoadState
from icelake.model.marker import LOAD, MEMBERSHIP, Marker
from icelake.model.membership import Membership
from icelake.model.relation import Relation
from icelake.ports import DELETE, INSERT, TRUNCATE, UPDATE, ChangeSet, arrow_schema
from icelake.tables import bag_index
from icelake.tables.layout import layout_properties
from icelake.tables.schema import iceberg_schema, table_properties
from icelake.tables.table import Table
from tests.unit.tables.mirror import Mirror, batch, relation

Row = tuple[Any, ...]
Change = tuple[int, Row | None, Row | None]
"""(operation, old row, new row)"""

BAG = replace(relation(("n", "int"), ("f", "double"), key=()), identity="full", key_is_ordered=False)
LOG = replace(BAG, identity="none")
L = 100
MEMBER = Membership("1.1", "1", "1")


class Rig:
    """A followed table in a catalog of its own, loaded at ``L`` with some rows."""

    def __init__(self, shape: Relation, rows: Sequence[Row] = (), version: int = 3) -> None:
        self.shape = shape
        self.mirror = Mirror(replace(shape, name="unused"))
        layout = layout_properties(Layout(format_version=version))
        properties = {**table_properties(shape), **layout, LOAD: LoadState().dump(), MEMBERSHIP: str(MEMBER)}
        self.mirror.catalog.create(shape.id, iceberg_schema(shape), properties, format_version=version)
        self.number = 0
        self.open()
        self.followed.load_rows([batch(shape, rows)] if rows else [], L)
        self.followed.loaded_until(self.followed.load.loaded(None, None, L))
        self.commit()

    def open(self) -> None:
        mirror = self.mirror
        table = Table.open(mirror.catalog.load(self.shape.id), mirror.storage, mirror.clock, mirror.chance)
        self.followed: Followed
        self.followed = follow(table)
        assert not self.followed.open_index(None)

    def apply(self, *changes: Change, lsn: int = L) -> None:
        nothing = (None,) * len(self.shape.columns)
        new = batch(self.shape, [change[2] or nothing for change in changes])
        old = batch(self.shape, [change[1] or nothing for change in changes])
        op = np.array([change[0] for change in changes], np.uint8)
        keys = pa.RecordBatch.from_arrays([], schema=arrow_schema(()))
        whole = old if self.shape.identity == "full" else None
        self.followed.apply(ChangeSet(self.shape, op, np.full(len(op), lsn, np.uint64), new, keys, {}, whole))

    def commit(self) -> None:
        self.number += 1
        parts = self.followed.prepare(Marker("s", "1", 1, "slot", L + self.number, str(self.number)))
        if not parts:
            for location in self.followed.idle():
                self.mirror.storage.delete(location)
            return
        self.followed.done(self.mirror.catalog.commit(parts))

    def compact(self) -> None:
        change = self.followed.compact(Marker("s", "1", 1, "slot", L, "compaction"))
        if change is not None:
            self.followed.done(self.mirror.catalog.commit([change]))

    def rows(self) -> Counter[str]:
        table = self.followed.table
        names = [column.name for column in self.shape.columns]
        rows = [row for no in table.files for row in table.live_rows(no, names)[1].to_pylist()]
        ids = [row.pop("_row_id") for row in rows]
        assert len(set(ids)) == len(ids) or set(ids) == {-1}
        return Counter(repr(tuple(row[name] for name in names)) for row in rows)


def counted(rows: Sequence[Row]) -> Counter[str]:
    return Counter(map(repr, rows))


ROWS = [(n, f) for n in (None, 1) for f in (0.0, -0.0, None)]
STEPS = ["insert", "update", "delete"] * 4 + ["truncate", "chunk", "chunk", "commit", "commit", "reopen", "give up", "compact"]


@settings(max_examples=40, deadline=None)
@given(
    first=st.lists(st.sampled_from(ROWS), max_size=6),
    steps=st.lists(st.sampled_from(STEPS), max_size=40),
    version=st.sampled_from([2, 3]),
    data=st.data(),
)
def test_a_multiset_is_what_was_done_to_it(first: list[Row], steps: list[str], version: int, data: st.DataObject) -> None:
    rig = Rig(BAG, first, version)
    held, kept = list(first), list(first)
    chunk: list[Change] = []

    def hand_over() -> None:
        if chunk:
            rig.apply(*chunk)
            chunk.clear()

    for step in [*steps, "commit"]:
        if step == "insert":
            held.append(data.draw(st.sampled_from(ROWS)))
            chunk.append((INSERT, None, held[-1]))
        elif step in ("update", "delete") and held:
            old = held.pop(data.draw(st.integers(0, len(held) - 1)))
            new = data.draw(st.sampled_from(ROWS)) if step == "update" else None
            held += [new] if new is not None else []
            chunk.append((UPDATE if new is not None else DELETE, old, new))
        elif step == "truncate":
            held.clear()
            chunk.append((TRUNCATE, None, None))
        elif step == "chunk":
            hand_over()
        elif step == "give up":
            hand_over()
            rig.followed.rollback()
            held = list(kept)
        elif step in ("commit", "compact", "reopen"):
            hand_over()
            rig.commit()
            kept = list(held)
            if step == "compact":
                rig.compact()
            if step == "reopen":
                rig.open()
            assert rig.rows() == counted(held)


def test_a_large_batch_that_ends_with_a_truncate_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A staging table that one transaction fills and empties."""
    monkeypatch.setattr(bag_index, "_UNDO_BYTES", 100)
    rig = Rig(BAG)
    files = set(rig.mirror.storage.files)
    rig.apply(*((INSERT, None, (n, 0.0)) for n in range(20)))
    rig.apply((TRUNCATE, None, None))
    rig.commit()
    assert set(rig.mirror.storage.files) == files
    rig.apply((INSERT, None, (1, 0.0)))
    rig.commit()
    assert rig.rows() == counted([(1, 0.0)])


@pytest.mark.parametrize("version", [2, 3])
def test_rows_without_ids_are_found_where_a_rewrite_moved_them(version: int) -> None:
    """The index holds them in another order than the files do: places that became free are used again."""
    rig = Rig(BAG, [], version)
    held: list[Row] = []
    for take, bring in [(0, 2)] * 6 + [(1, 2)] * 6:
        taken = [held.pop(len(held) // 2) for _ in range(take)]
        new = [(10 * rig.number + n, 0.0) for n in range(bring)]
        rig.apply(*((DELETE, row, None) for row in taken), *((INSERT, None, row) for row in new))
        held += new
        rig.commit()
    files = set(rig.followed.table.files)
    rig.compact()
    assert set(rig.followed.table.files) != files
    while held:
        rig.apply((DELETE, held.pop(), None))
        rig.commit()
        assert rig.rows() == counted(held)


@pytest.mark.parametrize("operation", [UPDATE, DELETE])
@pytest.mark.parametrize(
    ("before", "row"),
    [
        ([], (1, -0.0)),
        ([], (None, 0.0)),
        ([(INSERT, None, (1, -0.0)), (DELETE, (1, -0.0), None)], (1, -0.0)),
        ([(INSERT, None, (1, 0.0)), (DELETE, (1, 0.0), None), (DELETE, (1, 0.0), None)], (1, 0.0)),
        ([(UPDATE, (1, 0.0), (1, None))], (1, 0.0)),
        ([(TRUNCATE, None, None)], (1, 0.0)),
    ],
)
@pytest.mark.parametrize("in_one_chunk", [True, False])
def test_a_row_that_is_not_there_cannot_be_taken(operation: int, before: list[Change], row: Row, in_one_chunk: bool) -> None:
    rig = Rig(BAG, [(1, 0.0)])
    last: Change = (operation, row, (1, 5.0))
    if not in_one_chunk:
        rig.apply(*before)
        before = []
    with pytest.raises(Corrupt, match="MIRROR_DIVERGED"):
        rig.apply(*before, last)
    rig.followed.rollback()
    assert rig.rows() == counted([(1, 0.0)])
    rig.apply((DELETE, (1, 0.0), None))
    rig.commit()
    assert rig.rows() == Counter()


@pytest.mark.parametrize("shape", [BAG, LOG])
def test_what_was_committed_before_it_was_read_is_in_it_already(shape: Relation) -> None:
    rig = Rig(shape, [(1, 0.0)])
    rig.apply((INSERT, None, (1, 0.0)), (TRUNCATE, None, None), lsn=L - 1)
    rig.commit()
    assert rig.rows() == counted([(1, 0.0)])
    rig.apply((INSERT, None, (1, 0.0)), lsn=L)
    rig.commit()
    assert rig.rows() == counted([(1, 0.0)] * 2)


@pytest.mark.parametrize("again", [[(1, 0.5)], [(3, 0.5), (3, 0.5)]], ids=["in the lake already", "twice"])
def test_a_key_that_a_range_brings_again_is_not_loaded(again: list[Row]) -> None:
    rig = Rig(replace(BAG, identity="key", key=("n",)), [(1, 1.0), (2, 2.0)])
    with pytest.raises(Corrupt, match="MIRROR_DIVERGED"):
        rig.followed.load_rows([batch(rig.shape, [(4, 4.0), *again])], L)
    rig.followed.rollback()
    rig.followed.load_rows([batch(rig.shape, [(3, 3.0), (4, 4.0)])], L)
    rig.commit()
    assert rig.rows() == counted([(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)])


def test_rows_of_a_range_leave_the_memory_before_their_files_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(LOG)
    monkeypatch.setattr(following, "_HELD_BYTES", 40)
    # 12 bytes a row, and a few for what is null.
    rig.followed.load_rows([batch(LOG, [(n, float(n))]) for n in range(9)], L)
    assert rig.followed.delta is not None
    assert len(rig.followed.delta.written) >= 2
    rig.commit()
    assert rig.rows() == counted([(n, float(n)) for n in range(9)])


def test_an_append_only_table_holds_what_was_inserted() -> None:
    rig = Rig(LOG, [(1, 0.0), (1, 0.0)])
    rig.apply((INSERT, None, (1, 0.0)), (INSERT, None, (None, None)))
    rig.commit()
    assert rig.rows() == counted([(1, 0.0)] * 3 + [(None, None)])
    rig.apply((INSERT, None, (2, 0.0)), (TRUNCATE, None, None), (INSERT, None, (3, 0.0)))
    rig.apply((INSERT, None, (4, 0.0)))
    rig.commit()
    assert rig.rows() == counted([(3, 0.0), (4, 0.0)])
    for operation in (UPDATE, DELETE):
        with pytest.raises(Refused, match="PUBLICATION_CHANGED"):
            rig.apply((operation, None, (1, 1.0)))


def test_nothing_names_its_rows_any_more() -> None:
    rig = Rig(BAG)
    rig.followed.is_member(str(MEMBER))
    with pytest.raises(UnsupportedTable, match="REPLICA_IDENTITY_LOST"):
        rig.followed.is_member(str(replace(MEMBER, unnamed=True)))
