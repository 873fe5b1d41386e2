"""The lake itself is harmed: a full disk, a key index that cannot be believed, another program that writes into a mirror.

Found out, said or mended, and nothing lost (docs/explanation/policies.md). Through the real command, on a real PostgreSQL.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pytest

from icelake.catalog.store import SqlCatalog
from icelake.model.relation import TableId
from icelake.observe.clock import SystemChance, SystemClock
from icelake.ports import arrow_schema
from icelake.storage.local import LocalStorage
from icelake.tables.rewrite import rewrite
from icelake.tables.table import Delta, Table
from tests.journeys.refusals import MANY, Following, call, refused, whole, with_project

ORDERS = TableId("public", "orders")


@pytest.fixture
def mirror(shell: Any) -> Any:
    """The shop, with a project; not mirrored yet."""
    return with_project(shell)


@contextmanager
def small_disk(folder: Path, lacking: Callable[[str, str], NoReturn]) -> Iterator[None]:
    """A file system of 24 MB."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "icelake-test", str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        lacking("mount", f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Take what is free but ``leave`` bytes."""
    path = folder / "ballast"
    state = os.statvfs(folder)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, state.f_bavail * state.f_frsize - leave))
    return path


def test_disk_full(mirror: Any, lacking: Callable[[str, str], NoReturn]) -> None:
    lake = mirror.folder / "lake"
    with small_disk(lake, lacking):
        call(mirror, "sync", 0)
        with Following(mirror) as following:
            following.streams()
            ballast = fill(lake, 200_000)
            mirror.sql("insert into orders (customer, total, note) select 1, n, md5(n::text) from generate_series(1, 60000) n")
            following.refused("DISK_FULL")
        ballast.unlink()
        whole(mirror)
        # From a disk with a little room to one with none at all.
        for leave in (65_536, 20_480, 0):
            mirror.sql("update customers set email = email || 'x'; update orders set total = total + 1 where id % 3 = 0")
            ballast = fill(lake, leave)
            refused(mirror, "DISK_FULL")
            ballast.unlink()
        whole(mirror)


def test_corrupt_key_index(mirror: Any) -> None:
    call(mirror, "sync", 0)
    folder = next(path.parent for path in (mirror.folder / "lake" / "index").rglob("base") if "orders" in str(path.parent))

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)

    def cut_short(path: Path) -> None:
        os.truncate(path, path.stat().st_size - 7)

    def nonsense(path: Path) -> None:
        path.write_bytes(b"nonsense")

    # A damaged base is written anew with parts, so these come behind it.
    for harm, pattern in (
        (nonsense, "base"),
        (flip, "part-*"),
        (cut_short, "part-*"),
        (flip, "base"),
        (flip, "log-*"),
        (cut_short, "log-*"),
    ):
        mirror.sql("update orders set note = coalesce(note, '') || 'x' where id % 5 = 0; delete from orders where id % 500 = 1")
        assert json.loads(call(mirror, "sync --json", 0).stdout)["rebuilt_indexes"] == []
        mirror.sql("update orders set total = total + 1 where id % 4 = 0; insert into orders (customer, total) values (1, 1)")
        harmed = [path for path in folder.glob(pattern) if path.stat().st_size]
        assert harmed, list(folder.iterdir())
        for path in harmed:
            harm(path)
        status = json.loads(call(mirror, "sync --json", 0).stdout)
        (found,) = status["rebuilt_indexes"]
        assert (found["table"], bool(found["why"])) == ("public.orders", True)
    (source,) = json.loads(call(mirror, "status --json", 0).stdout)["sources"]
    assert source["applier"]["rebuilt_indexes"] == [found]
    shutil.rmtree(folder)
    mirror.sql("update orders set total = total + 1")
    whole(mirror)


# ------------------------------------------------------------------------------------------------------------ other writers


@contextmanager
def other_writer(shell: Any) -> Iterator[tuple[SqlCatalog, Table]]:
    """Another program with the catalog open, and the table of orders in its hands."""
    lake = shell.folder / "lake"
    storage, clock, chance = LocalStorage(), SystemClock(), SystemChance()
    catalog = SqlCatalog.sqlite(str(lake / "catalog.db"), str(lake / "warehouse"), storage, clock, chance)
    try:
        yield catalog, Table.open(catalog.load(ORDERS), storage, clock, chance)
        storage.flush()
    finally:
        catalog.close()
        storage.close()


def append(table: Table) -> Delta:
    row = {"id": 77_777, "customer": 1, "total": Decimal("1.00"), "placed": 0, "note": None}
    delta = table.delta()
    delta.append(pa.RecordBatch.from_pylist([row], arrow_schema(table.relation.columns)), None)
    return delta


def delete(table: Table) -> Delta:
    delta = table.delta()
    delta.delete(np.array([next(iter(table.files))], np.int32), np.array([0], np.int64))
    return delta


@pytest.mark.parametrize("change", [append, delete])
def test_table_changed_by_someone_else(mirror: Any, change: Callable[[Table], Delta]) -> None:
    call(mirror, "sync", 0)
    mirror.sql(MANY.format(1000))
    with other_writer(mirror) as (catalog, table):
        catalog.commit([change(table).prepare({"by": "another"}, {})])
    assert "icelake: TABLE_CHANGED_BY_OTHERS: public.orders" in call(mirror, "sync", 4).stderr
    call(mirror, "resume orders --reload", 0)
    whole(mirror)
    # And under the eyes of a process that follows.
    with Following(mirror) as following:
        mirror.sql("insert into customers values (5001, 'n')")
        following.has(1)
        with other_writer(mirror) as (catalog, table):
            catalog.commit([change(table).prepare({"by": "another"}, {})])
        mirror.sql("update orders set total = total + 1 where id % 7 = 0")
        following.parks("public.orders", "TABLE_CHANGED_BY_OTHERS")
        call(mirror, "resume orders --reload", 0)
        following.until(lambda status: not status["parked"] and not status["loading"])
        following.stop()
    whole(mirror)


def test_a_rewrite_by_someone_else_is_followed(mirror: Any) -> None:
    call(mirror, "sync", 0)
    mirror.sql("delete from orders where id % 3 = 0; update orders set note = 'u' where id % 5 = 0")
    call(mirror, "sync", 0)
    with Following(mirror) as following:
        for number in range(3):
            with other_writer(mirror) as (catalog, table):
                delta, _ = rewrite(table, list(table.files))
                catalog.commit([delta.prepare({"by": "another"}, {})])
            mirror.sql(f"update orders set note = 'r{number}' where id % 7 = 0; insert into customers values ({6000 + number}, 'r')")
            following.has((number + 1) * 287)
        following.stop()
    with other_writer(mirror) as (catalog, table):
        delta, _ = rewrite(table, list(table.files))
        catalog.commit([delta.prepare({"by": "another"}, {})])
    mirror.sql("update orders set total = 0 where id % 11 = 0")
    whole(mirror)
