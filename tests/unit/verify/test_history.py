"""A history that is not its mirror's is found out: every way it can be wrong, beside one that is right."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from icelake.ingest.history import History, load_or_create
from icelake.model.marker import Marker
from icelake.model.relation import TableId
from icelake.tables.table import Table, one_batch

KEYED = "create table t (id int primary key, v text, f float8); insert into t values (1, 'a', '-0'), (2, null, 'NaN'), (3, 'c', 0)"
KEYLESS = (
    "create table t (id int, v text, f float8); alter table t replica identity full; insert into t values (1, 'a', '-0'), (1, 'a', '-0')"
)


class Told:
    """The mirror of t with a history, and what is told there besides."""

    def __init__(self, pair: Any, made: str) -> None:
        self.pair = pair
        for statement in made.split("; "):
            pair.sql(statement)
        pair.mirror("public.t")
        self.table = self.open(TableId("public", "t"))
        loaded = load_or_create(pair.catalog, pair.catalog.load(self.table.id), pair.id, 1)
        self.history = History(self.open(loaded.id))
        self.history.begin(self.table, 1)
        self.commit()
        self.rows = one_batch(pair.rows("public.t"))

    def open(self, table: TableId) -> Table:
        pair = self.pair
        return Table.open(pair.catalog.load(table), pair.storage, pair.clock, pair.chance)

    def commit(self) -> None:
        part = self.history.prepare(Marker(self.pair.id, "1", 1, "slot", 1, "a"), self.table.snapshot_id)
        self.pair.storage.flush()
        (loaded,) = self.pair.catalog.commit([part])
        self.history.done([loaded])
        self.pair.snapshots[str(self.history.id)] = loaded.metadata["current-snapshot-id"]

    def forget(self, position: int) -> None:
        """Someone takes a row out of the history."""
        self.pair.change(self.history.id, lambda table, delta: delta.delete(np.array([min(table.files)]), np.array([position])))

    def verify(self) -> Any:
        report = self.pair.verify()
        assert [table["equal"] for table in report["tables"]] == [True]
        (replayed,) = report["histories"]
        assert report["equal"] == replayed["equal"]
        return replayed


@pytest.mark.parametrize("made", [KEYED, KEYLESS])
def test_a_right_one_is_equal(pair: Any, made: str) -> None:
    told = Told(pair, made)
    replayed = told.verify()
    assert (replayed["equal"], replayed["rows"], replayed["replayed_rows"]) == (True, told.rows.num_rows, told.rows.num_rows)
    # A reset, and rows that go and come again, in and out of one commit.
    told.history.mended(told.rows.slice(0, 1).select(["id"]) if made == KEYED else told.rows.slice(0, 1), None, 2)
    told.history.reset(2)
    told.history.loaded(told.rows, 3)
    told.commit()
    told.history.mended(told.rows.select(["id"]) if made == KEYED else told.rows, told.rows, 4)
    told.commit()
    assert told.verify()["equal"]


def goes(told: Told) -> None:
    told.history.mended(told.rows.slice(0, 1).select(["id"]), None, 2)


def becomes_another(told: Told) -> None:
    first, last = told.rows.slice(0, 1), told.rows.slice(2, 1)
    told.history.mended(first.select(["id"]), last.set_column(0, "id", first.column(0)), 2)


def comes_twice(told: Told) -> None:
    told.history.loaded(told.rows.slice(0, 1), 2)


def all_go(told: Told) -> None:
    told.history.reset(2)


@pytest.mark.parametrize(
    ("tell", "counts", "side"),
    [
        (goes, {"extra": 1}, "mirror"),
        (becomes_another, {"different": 1}, "both"),
        (comes_twice, {"missing": 1}, "history"),
        (all_go, {"extra": 3}, "mirror"),
    ],
)
def test_a_wrong_one_is_named(pair: Any, tell: Callable[[Told], None], counts: dict[str, int], side: str) -> None:
    told = Told(pair, KEYED)
    tell(told)
    told.commit()
    replayed = told.verify()
    assert {kind: replayed[kind] for kind in ("missing", "extra", "different") if replayed[kind]} == counts
    assert replayed["samples"][0]["key"] == {"id": "1"}
    assert {sample["side"] for sample in replayed["samples"]} == {side}
    assert replayed["problems"] == (["1 keys did not come as often as they went"] if tell is comes_twice else [])


def test_rows_that_are_gone_from_it(pair: Any) -> None:
    told = Told(pair, KEYED)
    told.forget(1)
    replayed = told.verify()
    assert "not 3 with each number once" in replayed["problems"][0]
    assert (replayed["extra"], replayed["samples"]) == (1, [{"key": {"id": "2"}, "side": "mirror"}])


def test_equal_rows_are_counted(pair: Any) -> None:
    told = Told(pair, KEYLESS)
    told.history.loaded(told.rows.slice(0, 1), 2)
    told.commit()
    replayed = told.verify()
    assert (replayed["missing"], replayed["samples"]) == (1, [{"key": {"id": "1", "v": "a", "f": "-0"}, "side": "history"}])
    told.history.mended(told.rows, None, 3)
    told.history.mended(told.rows, None, 3)
    told.commit()
    assert "1 rows did not come as often as they went" in told.verify()["problems"][0]
