"""A history beside its mirror, both real tables: whatever is loaded, changed, owed, emptied and mended, a replay gives the mirror."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.errors import UnsupportedTable
from icelake.ingest.followed import Keyed, follow
from icelake.ingest.history import History, in_step, load_or_create
from icelake.ingest.mend import Mending
from icelake.model.history import COLUMNS, PARTITION, HistoryNote, history_of
from icelake.model.load import LoadState
from icelake.model.marker import LOAD, MEMBERSHIP, SOURCE, Marker
from icelake.model.membership import Membership
from icelake.model.relation import Column, Relation
from icelake.ports import DELETE, INSERT, TRUNCATE, UPDATE, ChangeSet, TableChange, Transactions
from icelake.sources.postgres.pgoutput import places
from icelake.tables.history import evolved, history_schema
from icelake.tables.schema import evolve, iceberg_schema, table_properties
from icelake.tables.table import Table
from tests.unit.tables.mirror import Mirror, batch, relation

Row = tuple[int, int, str | None]
Change = tuple[int, int, Row | None, Row | None]
"""(commit LSN, operation, old row, new row)"""
SHAPE = Relation(
    16_384,
    "public",
    "t",
    (
        Column("id", 1, 23, -1, "integer", "int", nullable=False),
        Column("v", 2, 23, -1, "integer", "int"),
        Column("big", 3, 25, -1, "text", "string"),
    ),
    ("id",),
)
KEYS = range(8)
SPLIT = (("3",), 1)


class Rig:
    """A source that is a dict, and a mirror of it that is loaded up to key 3 or wholly."""

    def __init__(self, split: bool) -> None:
        self.mirror = Mirror(replace(SHAPE, name="unused"))
        properties = {**table_properties(SHAPE), LOAD: LoadState().dump(), MEMBERSHIP: str(Membership("1.1", "1", "1"))}
        self.mirror.catalog.create(SHAPE.id, iceberg_schema(SHAPE), properties)
        self.source: dict[int, Row] = {key: (key, 0, f"big {key}") for key in KEYS if key % 2}
        self.lsn = self.position = 100
        """Of the next change; and up to where changes were applied."""
        self.number = 0
        self.queue: list[Change] = []
        self.sent: list[list[Change]] = []
        """Since the last commit."""
        self.open()
        self.load(SPLIT if split else None)

    def loaded(self) -> Any:
        return self.mirror.catalog.load(SHAPE.id)

    def table(self, loaded: Any) -> Table:
        return Table.open(loaded, self.mirror.storage, self.mirror.clock, self.mirror.chance)

    def open(self) -> None:
        followed = follow(self.table(self.loaded()))
        assert not followed.open_index(None)
        assert isinstance(followed, Keyed)
        self.followed = followed
        loaded = load_or_create(self.mirror.catalog, self.loaded(), "s", self.position)
        followed.history = History(self.table(loaded))
        if not in_step(loaded, self.loaded()):
            followed.history.begin(followed.table, self.position)
            part = followed.history.prepare(self.marker(), followed.table.snapshot_id)
            followed.history.done(self.mirror.catalog.commit([part]))

    def marker(self) -> Marker:
        self.number += 1
        return Marker("s", "1", 1, "slot", self.position, str(self.number))

    def load(self, upper: Any = None) -> None:
        """The first missing interval, up to ``upper``."""
        missing = self.followed.load.next_missing()
        if missing is None:
            return
        lower, interval = missing
        upper = upper or interval.upper
        low = (int(lower[0][0]), lower[1]) if lower else (-1, 0)
        high = (int(upper[0][0]), upper[1]) if upper else (99, 1)
        rows = batch(SHAPE, [row for key, row in sorted(self.source.items()) if low < (key, 1) <= high])
        if interval.held:
            mending = Mending(self.followed, self.lsn)
            mending.rows([rows])
            mending.finish(lower, upper)
        else:
            self.followed.load_rows([rows], self.lsn)
        self.followed.loaded_until(self.followed.load.loaded(lower, upper, self.lsn))
        self.commit()

    def change(self, operation: int, old: Row | None, new: Row | None) -> None:
        self.queue.append((self.lsn, operation, old, new))

    def apply(self) -> None:
        """What the source has sent, as one chunk."""
        if not self.queue:
            return
        changes, self.queue = self.queue, []
        self.position = changes[-1][0] + 5
        self.sent.append(changes)
        nothing: Any = (None, None, None)
        # An update that leaves the large value alone does not send it.
        unchanged = np.array([old is not None and new is not None and old[2] == new[2] for _, _, old, new in changes])
        new = [(*(row or nothing)[:2], None if kept else (row or nothing)[2]) for (*_, row), kept in zip(changes, unchanged, strict=True)]
        lsn = np.array([lsn for lsn, *_ in changes], np.uint64)
        of = np.unique(lsn)
        self.followed.apply(
            ChangeSet(
                SHAPE,
                np.array([op for _, op, _, _ in changes], np.uint8),
                lsn,
                batch(SHAPE, new),
                batch(SHAPE, [old or nothing for *_, old, _ in changes]).select(["id"]),
                {"big": unchanged} if unchanged.any() else {},
                transactions=Transactions(of, of.astype(np.int64) + 7, of.astype(np.int64) * 1_000_000),
                place=lambda: places(lsn, 0),
            )
        )

    def commit(self) -> None:
        parts = self.followed.prepare(self.marker())
        if parts:
            self.followed.done(self.mirror.catalog.commit(parts))
        else:
            self.followed.idle()
        self.sent = []

    def give_up(self) -> None:
        """The batch is thrown away and sent again."""
        self.followed.rollback()
        again, self.sent = self.sent, []
        for changes in [*again, self.queue]:
            self.queue = changes
            self.apply()

    def rows(self) -> list[dict[str, Any]]:
        assert self.followed.history is not None
        table = self.followed.history.table
        names = [name for name, *_ in COLUMNS if name != PARTITION]
        found = [row for no in table.files for row in table.live_rows(no, names)[1].to_pylist()]
        return sorted(found, key=lambda row: row["number"])

    def held(self) -> dict[int, Row]:
        table = self.followed.table
        found = [row for no in table.files for row in table.live_rows(no, ["id", "v", "big"])[1].to_pylist()]
        return {row["id"]: (row["id"], row["v"], row["big"]) for row in found}

    def check(self) -> None:
        state: dict[int, Row] = {}
        for place, row in enumerate(self.rows(), start=1):
            assert row["number"] == place
            if row["op"] in ("truncate", "reset"):
                state.clear()
            if row["old_key"] is not None:
                del state[row["old_key"]["id"]]
            if row["row"] is not None:
                new = tuple(row["row"].values())
                assert new[0] not in state
                state[new[0]] = new
        assert state == self.held()


STEPS = ["insert", "update", "grow", "move", "delete", "end"] * 4
STEPS += ["truncate", "chunk", "chunk", "commit", "load", "ahead", "reopen", "give up", "distrust"]


@settings(max_examples=40, deadline=None)
@given(split=st.booleans(), steps=st.lists(st.sampled_from(STEPS), max_size=40), data=st.data())
def test_a_replay_gives_the_mirror(split: bool, steps: list[str], data: st.DataObject) -> None:
    rig = Rig(split)
    rig.check()
    serial = 0
    for step in steps:
        serial += 1
        old = rig.source.get(data.draw(st.sampled_from(KEYS)))
        key = data.draw(st.sampled_from(KEYS))
        if step == "insert" and key not in rig.source:
            rig.source[key] = (key, serial, f"big {serial}")
            rig.change(INSERT, None, rig.source[key])
        elif step in ("update", "grow", "move") and old is not None:
            new = (key if step == "move" else old[0], serial, f"big {serial}" if step == "grow" else old[2])
            if new[0] != old[0] and new[0] in rig.source:
                continue
            del rig.source[old[0]]
            rig.source[new[0]] = new
            rig.change(UPDATE, old, new)
        elif step == "delete" and old is not None:
            del rig.source[old[0]]
            rig.change(DELETE, old, None)
        elif step == "truncate":
            rig.source.clear()
            rig.change(TRUNCATE, None, None)
        elif step == "end":
            rig.lsn += 10
        elif step == "chunk":
            rig.apply()
        elif step == "give up":
            rig.give_up()
        elif step in ("load", "ahead"):
            # A range may be read long before the stream gets there.
            if step == "load":
                rig.apply()
            rig.commit()
            rig.lsn += 10
            rig.load()
        elif step == "distrust":
            rig.apply()
            rig.commit()
            rig.followed.load = rig.followed._next_load = LoadState.suspect()
            rig.lsn += 10
            rig.load(SPLIT if data.draw(st.booleans()) else None)
        elif step == "commit":
            rig.apply()
            rig.commit()
            rig.check()
        elif step == "reopen":
            rig.apply()
            rig.commit()
            rig.open()
    rig.apply()
    rig.commit()
    rig.lsn += 10
    while not rig.followed.load.complete:
        rig.load()
        rig.check()
    assert rig.held() == rig.source


def test_what_leaves_to_be_read_again_is_told() -> None:
    """A row comes from what is not loaded over a key that the lake has, without its large value."""
    rig = Rig(split=True)
    rig.change(UPDATE, (3, 0, "big 3"), (30, 0, "big 3"))
    rig.change(UPDATE, (5, 0, "big 5"), (3, 0, "big 5"))
    rig.source = {1: rig.source[1], 3: (3, 0, "big 5"), 30: (30, 0, "big 3"), 7: rig.source[7]}
    rig.apply()
    rig.commit()
    rig.check()
    assert [(row["op"], row["old_key"], row["row"]) for row in rig.rows()[2:]] == [("mend", {"id": 3}, None)]
    while not rig.followed.load.complete:
        rig.lsn += 10
        rig.load()
        rig.check()
    assert rig.held() == rig.source


def test_rows_know_their_transaction_and_their_place() -> None:
    rig = Rig(split=False)
    rig.change(INSERT, None, (10, 1, "a"))
    rig.change(UPDATE, (10, 1, "a"), (10, 2, "a"))
    rig.lsn += 10
    rig.change(DELETE, (10, 2, "a"), None)
    rig.apply()
    rig.commit()
    found = [(row["op"], row["commit_lsn"], row["seq"], row["xid"], row["commit_time"].timestamp()) for row in rig.rows()[-3:]]
    assert found == [("insert", 100, 1, 107, 100.0), ("update", 100, 2, 107, 100.0), ("delete", 110, 1, 117, 110.0)]
    assert rig.rows()[-2]["row"] == {"id": 10, "v": 2, "big": "a"}
    # What was done and undone is nothing to the mirror.
    rig.change(INSERT, None, (11, 1, "a"))
    rig.change(DELETE, (11, 1, "a"), None)
    rig.apply()
    rig.commit()
    assert [row["op"] for row in rig.rows()[-2:]] == ["insert", "delete"]


def test_places_go_on_over_chunks() -> None:
    lsn = np.array([5, 5, 9, 9, 9, 12], np.uint64)
    assert places(lsn, 3).tolist() == [4, 5, 1, 2, 3, 1]


def test_it_is_not_in_step_when_someone_else_wrote_or_it_was_off() -> None:
    rig = Rig(split=False)
    before = len(rig.rows())
    history, rig.followed.history = rig.followed.history, None
    rig.change(DELETE, (1, 0, "big 1"), None)
    del rig.source[1]
    rig.apply()
    rig.commit()
    assert history is not None
    assert not in_step(rig.mirror.catalog.load(history.id), rig.loaded())
    rig.open()
    rig.check()
    assert [row["op"] for row in rig.rows()[before:]] == ["reset", "load", "load", "load"]
    table = rig.table(rig.mirror.catalog.load(history.id))
    delta = table.delta()
    delta.remove(next(iter(table.files)))
    rig.mirror.catalog.commit([delta.prepare({"by": "another"}, {})])
    assert not in_step(rig.mirror.catalog.load(history.id), rig.loaded())


def test_names_that_are_taken() -> None:
    rig = Rig(split=False)
    catalog = rig.mirror.catalog
    for name, properties, why in (("a", {}, "none of this source"), ("b", {SOURCE: "s"}, "mirror of a table")):
        shape = replace(SHAPE, name=name)
        made = catalog.create(shape.id, iceberg_schema(shape), table_properties(shape))
        other = replace(shape, name=f"{name}_history")
        catalog.create(other.id, iceberg_schema(other), {**table_properties(other), **properties})
        with pytest.raises(UnsupportedTable, match=f"HISTORY_NAME_TAKEN.*{why}"):
            load_or_create(catalog, made, "s", 0)


def test_the_schema_follows_field_by_field() -> None:
    shape = relation(("id", "long"), ("a.b", "struct<x: int, y: list<string>>"), ("m", "map<string, int>"), key=("id",))
    mirror = Mirror(shape)
    loaded = mirror.loaded()
    schema = history_schema(loaded.metadata)
    assert [field["id"] for field in schema["fields"]] == list(range(1, 9))
    old_key, row = (field["type"]["fields"] for field in schema["fields"][6:])
    assert [(field["id"], field["name"]) for field in old_key] == [(12, "id")]
    assert [(field["id"], field["name"]) for field in row] == [(11, "id"), (13, "a.b"), (15, "m")]
    made = load_or_create(mirror.catalog, loaded, "s", 7)
    assert HistoryNote.read(made.metadata["properties"]) == HistoryNote(None, 0, 7)
    assert made.id == history_of(shape.id)
    assert evolved(made.id, made.metadata, loaded.metadata) == []
    renamed = replace(shape, columns=(shape.columns[0], replace(shape.columns[1], name="other"), shape.columns[2]), last_attnum=3)
    (after,) = mirror.catalog.commit([mirror_change(mirror, evolve(loaded.metadata, renamed))])
    (made,) = mirror.catalog.commit([replace(mirror_change(mirror, evolved(made.id, made.metadata, after.metadata)), id=made.id)])
    assert evolved(made.id, made.metadata, after.metadata) == []
    assert [field["name"] for field in schema_of(made)["fields"][7]["type"]["fields"]] == ["id", "other", "m"]
    assert [field["id"] for field in schema_of(made)["fields"][7]["type"]["fields"]] == [11, 13, 15]


def mirror_change(mirror: Mirror, updates: Sequence[Any]) -> Any:
    return TableChange(mirror.shape.id, [], updates)


def schema_of(loaded: Any) -> Any:
    return next(schema for schema in loaded.metadata["schemas"] if schema["schema-id"] == loaded.metadata["current-schema-id"])
