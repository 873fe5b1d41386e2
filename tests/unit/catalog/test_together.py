"""Commits of many threads: done together, each by itself whether it fails, and none answered before it is durable."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from icelake.catalog.store import SqlCatalog
from icelake.errors import CommitConflict, CommitUnknown, IcelakeError, Refused
from icelake.model.relation import TableId
from icelake.ports import LoadedTable, TableChange
from tests.unit.catalog.test_store import SCHEMA, FailingStorage, SteppingClock, database_of, files, open_catalog, writer

WRITERS = 12
TABLES = [TableId("shop", f"t{number}") for number in range(WRITERS)]


class Gate:
    """A connection whose COMMIT waits, and then fails if it is told to."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.real = real
        self.open, self.reached = threading.Event(), threading.Event()
        self.commits = 0
        self.fail: dict[str, int] = {}
        """Statement -> the error code it fails with."""
        self.updates = 0

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement == "COMMIT":
            self.commits += 1
            self.reached.set()
            assert self.open.wait(20)
        self.updates += statement.startswith("UPDATE")
        code = self.fail.get(statement.split(maxsplit=1)[0])
        if code is not None and (statement == "COMMIT" or self.updates == WRITERS // 2):
            error = sqlite3.OperationalError("planted")
            error.sqlite_errorcode = code
            if code == sqlite3.SQLITE_FULL:
                self.real.execute("ROLLBACK")  # as SQLite does by itself
            raise error
        return self.real.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqlCatalog]:
    catalog = open_catalog(tmp_path, FailingStorage(), SteppingClock())
    for table in TABLES:
        catalog.create(table, SCHEMA, {})
    yield catalog
    catalog.close()


def gated(catalog: SqlCatalog) -> Gate:
    gate = Gate(writer(catalog))
    database_of(catalog).writer = gate  # type: ignore[assignment]
    return gate


def touch(catalog: SqlCatalog, table: TableId, *, conflict: bool = False) -> LoadedTable:
    requirements = [{"type": "assert-table-uuid", "uuid": "another"}] if conflict else []
    (loaded,) = catalog.commit([TableChange(table, requirements, [{"action": "set-properties", "updates": {"touched": table.name}}])])
    return loaded


def behind(catalog: SqlCatalog, gate: Gate, pool: ThreadPoolExecutor, work: list[Callable[[], Any]]) -> list["Future[Any]"]:
    """The first is at its COMMIT when the others come; then the disk answers."""
    done = [pool.submit(work[0])]
    assert gate.reached.wait(20)
    done += [pool.submit(one) for one in work[1:]]
    while database_of(catalog)._coming < len(work) - 1:
        assert not any(one.done() for one in done), [one.exception() for one in done if one.done()]
    gate.open.set()
    return done


def test_who_waits_is_committed_together(catalog: SqlCatalog) -> None:
    gate = gated(catalog)
    with ThreadPoolExecutor(WRITERS) as pool:
        done = behind(catalog, gate, pool, [lambda table=table: touch(catalog, table) for table in TABLES])  # type: ignore[misc]
        assert [one.result(20).metadata["properties"]["touched"] for one in done] == [table.name for table in TABLES]
    assert gate.commits <= 3
    for table in TABLES:
        assert catalog.load(table).metadata["properties"]["touched"] == table.name


def test_a_reader_sees_nothing_that_is_not_durable(catalog: SqlCatalog) -> None:
    gate = gated(catalog)
    with ThreadPoolExecutor(WRITERS) as pool:
        first = pool.submit(touch, catalog, TABLES[0])
        assert gate.reached.wait(20)
        assert "touched" not in catalog.load(TABLES[0]).metadata["properties"]
        assert not first.done()
        gate.open.set()
        first.result(20)
    assert "touched" in catalog.load(TABLES[0]).metadata["properties"]


def test_one_that_fails_takes_nothing_of_the_others(catalog: SqlCatalog) -> None:
    """Refused by what is looked at within the transaction: its location has been taken since."""
    gate = gated(catalog)

    def take(number: int) -> LoadedTable:
        return catalog.create(TableId("shop", f"n{number}"), SCHEMA, {}, location=f"{catalog.places[0]}/one/place")

    with ThreadPoolExecutor(WRITERS) as pool:
        work: list[Callable[[], Any]] = [lambda: touch(catalog, TABLES[0])]
        work += [lambda number=number: take(number) for number in range(4)]  # type: ignore[misc]
        work += [lambda table=table: touch(catalog, table) for table in TABLES[1:5]]  # type: ignore[misc]
        done = behind(catalog, gate, pool, work)
        failed = [one.exception(20) for one in done[1:5]]
        assert sorted("ok" if error is None else error.code for error in failed if error is None or isinstance(error, IcelakeError)) == [
            "LOCATION_TAKEN"
        ] * 3 + ["ok"]
        for one in (done[0], *done[5:]):
            one.result(20)
    made = [table for table in catalog.tables() if table.name.startswith("n")]
    assert len(made) == 1
    assert files(Path(catalog.places[0])) >= {catalog.load(table).metadata_location for table in catalog.tables()}
    assert len(list((Path(catalog.places[0]) / "one" / "place").rglob("*.json"))) == 1


def test_a_conflict_does_not_wait_for_anybody(catalog: SqlCatalog) -> None:
    gate = gated(catalog)
    with ThreadPoolExecutor(WRITERS) as pool:
        first = pool.submit(touch, catalog, TABLES[0])
        assert gate.reached.wait(20)
        with pytest.raises(CommitConflict):
            touch(catalog, TABLES[1], conflict=True)
        gate.open.set()
        first.result(20)


def test_a_full_disk_undoes_all_that_were_together(catalog: SqlCatalog, tmp_path: Path) -> None:
    before, there = {table: catalog.load(table) for table in TABLES}, files(tmp_path)
    gate = gated(catalog)
    gate.fail = {"UPDATE": sqlite3.SQLITE_FULL}
    with ThreadPoolExecutor(WRITERS) as pool:
        done = behind(catalog, gate, pool, [lambda table=table: touch(catalog, table) for table in TABLES])  # type: ignore[misc]
        ends = [one.exception(20) for one in done]
    full = [end for end in ends if isinstance(end, Refused) and end.code == "DISK_FULL"]
    assert len(full) == WRITERS // 2 - 1  # the first was committed alone, those after the failure anew
    assert sum(end is None for end in ends) == WRITERS - len(full)
    changed = {table for table in TABLES if catalog.load(table) != before[table]}
    assert changed == {table for table, end in zip(TABLES, ends, strict=True) if end is None}
    assert len(files(tmp_path)) == len(there) + len(changed)


def test_nobody_knows_of_any_where_the_commit_fails(catalog: SqlCatalog, tmp_path: Path) -> None:
    gate = gated(catalog)
    gate.fail = {"COMMIT": sqlite3.SQLITE_IOERR}
    with ThreadPoolExecutor(WRITERS) as pool:
        done = behind(catalog, gate, pool, [lambda table=table: touch(catalog, table) for table in TABLES[:2]])  # type: ignore[misc]
        ends = [one.exception(20) for one in done]
    # The first was at its COMMIT alone; the second opened the file anew, and had it.
    assert isinstance(ends[0], CommitUnknown)
    assert ends[1] is None
    assert "touched" not in catalog.load(TABLES[0]).metadata["properties"]
    assert len(files(tmp_path)) == WRITERS + 2
    touch(catalog, TABLES[0])


def test_who_was_to_come_and_was_interrupted_keeps_nobody(catalog: SqlCatalog) -> None:
    database = database_of(catalog)
    database._coming += 1
    with ThreadPoolExecutor(1) as pool:
        left = pool.submit(touch, catalog, TABLES[0])
        while database._transaction is None:
            assert not left.done()
        database._coming -= 1
        left.result(20)
    assert catalog.load(TABLES[0]).metadata["properties"]["touched"] == "t0"


def test_a_commit_is_made_again_where_another_process_was_faster(catalog: SqlCatalog, tmp_path: Path) -> None:
    """Between what a commit was made of and its transaction. What it requires is looked at again."""
    other = open_catalog(tmp_path, FailingStorage(), SteppingClock())
    there, real = len(files(tmp_path)), catalog._move
    calls: list[int] = []

    def late(*args: Any) -> None:
        if not calls:
            touch(other, TABLES[0])
        calls.append(1)
        real(*args)

    catalog._move = late  # type: ignore[method-assign, assignment]
    change = [{"action": "set-properties", "updates": {"mine": "yes"}}]
    (loaded,) = catalog.commit([TableChange(TABLES[0], [], change)])
    assert len(calls) == 2
    assert loaded.metadata["properties"] == {"touched": "t0", "mine": "yes"}
    assert len(files(tmp_path)) == there + 2
    calls.clear()
    unmoved = [{"type": "assert-last-assigned-field-id", "last-assigned-field-id": 1}]
    other.commit([TableChange(TABLES[1], [], [{"action": "add-schema", "schema": _wider()}])])
    with pytest.raises(CommitConflict):
        catalog.commit([TableChange(TABLES[1], unmoved, change)])
    other.close()


def test_a_table_that_another_process_took_out_and_registered_again_is_another_row(catalog: SqlCatalog, tmp_path: Path) -> None:
    """Under its old file. What is remembered of it is not what a commit must find."""
    touch(catalog, TABLES[0])
    other = open_catalog(tmp_path, FailingStorage(), SteppingClock())
    other.register(TABLES[0], other.drop(TABLES[0]).metadata_location)
    (loaded,) = catalog.commit([TableChange(TABLES[0], [], [{"action": "set-properties", "updates": {"mine": "yes"}}])])
    assert loaded == other.load(TABLES[0])
    assert loaded.metadata["properties"] == {"touched": "t0", "mine": "yes"}
    other.close()


def _wider() -> dict[str, Any]:
    return {"type": "struct", "fields": [*SCHEMA["fields"], {"id": 2, "name": "more", "required": False, "type": "long"}]}
