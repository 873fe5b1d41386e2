"""A live mirror whose tables are partitioned, sorted and of both format versions: equal to its source, whatever moves where."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from icelake.errors import ProjectError, UnsupportedTable
from icelake.lakehouse import Lakehouse
from icelake.stack.postgres import Postgres
from tests.journeys.conftest import Shell, shop_on

PROJECT = """\
[project]
name = "shop"
[sources.shop]
dsn = "{dsn}"
tables = ["public.*"]
[tables."public.orders"]
partition = ["day(placed)", "bucket(4, customer)", "note"]
sort = ["customer", "placed desc nulls last"]
[tables."public.customers"]
readers = ["duckdb", "athena"]
partition = ["year(born)"]
"""
CHANGES = [
    # Rows change their partition, lose what they were partitioned by, go, and come again under other keys.
    "update orders set placed = placed + interval '1 day' where id % 3 = 0; update orders set note = null where id % 50 = 1",
    "delete from orders where id % 7 = 2; update customers set born = born - 4000 where id % 2 = 0",
    "delete from orders where customer > 190",
    "delete from customers where id > 190; insert into customers select n, 'new', '1931-01-01' from generate_series(191, 195) n",
    "insert into orders (customer, total, placed, note) select n, n, '2020-02-29', null from generate_series(1, 99) n",
]


@pytest.fixture
def shop(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shell]:
    with shop_on(server, tmp_path, request.node.nodeid) as shell:
        shell.sql("delete from orders where id > 400; update orders set note = 'note ' || id % 3 where note is not null")
        (tmp_path / "icelake.toml").write_text(PROJECT.format(dsn=shell.dsn))
        yield shell


def other(shop: Shell, was: str, now: str) -> None:
    file = shop.folder / "icelake.toml"
    text = file.read_text()
    assert was in text
    file.write_text(text.replace(was, now))


def refused(shop: Shell, was: str, now: str, code: str) -> None:
    """With that other setting a sync ends in that error."""
    other(shop, was, now)
    with Lakehouse.open(shop.folder) as lake, pytest.raises(UnsupportedTable, match=code):
        lake.sync()
    other(shop, now, was)


def test_a_shop_in_partitions(shop: Shell) -> None:
    other(shop, 'tables = ["public.*"]', 'tables = ["public.orders", "public.customers"]')
    refused(shop, "bucket(4, customer)", "day(customer)", "(?s)LAYOUT_DOES_NOT_FIT.*identity, bucket, truncate")
    with Lakehouse.open(shop.folder) as lake:
        lake.sync()
        for change in CHANGES * 2:
            shop.sql(change)
            lake.sync()
        report = lake.verify()
        assert report["equal"] is True, report
        assert {table["name"] for table in lake.tables()} == {"public.customers", "public.orders"}
        (there,) = lake.query("select count(*) as n from orders where placed = '2020-02-29'").to_pylist()
        (born,) = lake.query("select count(*) as n from customers where born < '1965-01-01'").to_pylist()
        assert there["n"] > 0
        assert born["n"] > 0
    # The layout stays what it was when the tables were made.
    refused(shop, "bucket(4, customer)", "bucket(5, customer)", "LAYOUT_CHANGED")
    refused(shop, 'sort = ["customer"', 'sort = ["id"', "LAYOUT_CHANGED")
    with Lakehouse.open(shop.folder) as lake:
        assert lake.verify()["equal"] is True
    other(shop, 'partition = ["year(born)"]', 'partition = ["year(born)"]\nformat = 3')
    with pytest.raises(ProjectError, match="version 3 is not for athena"):
        Lakehouse.open(shop.folder)


def test_a_reader_that_cannot_read_a_column(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Spark refuses a table that has a ``time`` anywhere, so such a table is not made for it."""
    with shop_on(server, tmp_path, request.node.nodeid) as shell:
        shell.sql("create table opening (id int primary key, hours time[], until timestamp)")
        source = f'[sources.shop]\ndsn = "{shell.dsn}"\ntables = ["public.opening"]\n'
        readers = '[tables."public.opening"]\nreaders = ["duckdb", "spark"]\n'
        (tmp_path / "icelake.toml").write_text(f'[project]\nname = "shop"\n{source}{readers}')
        with Lakehouse.open(tmp_path) as lake, pytest.raises(UnsupportedTable, match=r"(?s)READER_CANNOT.*time columns \(hours\)"):
            lake.sync()


def test_deletes_in_the_partitions_a_condition_leaves_out(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """DuckDB estimates fewer than no rows then; it must answer all the same, joins and counts too."""
    with shop_on(server, tmp_path, request.node.nodeid) as shell:
        shell.sql("create table sold (id int primary key, place int not null)")
        source = f'[sources.shop]\ndsn = "{shell.dsn}"\ntables = ["public.sold"]\n'
        (tmp_path / "icelake.toml").write_text(f'[project]\nname = "shop"\n{source}[tables."public.sold"]\npartition = ["place"]\n')
        with Lakehouse.open(tmp_path) as lake:
            for place in (1, 3):
                shell.sql(f"insert into sold select {place} * 100 + n, {place} from generate_series(1, 20) n")
                lake.sync()
            shell.sql("delete from sold where id % 4 = 0")
            lake.sync()
            pairs = "select count(*) as n from sold a, sold b where a.place = 2 and b.place = {other}"
            counts = "select count(*) filter (where place = 3) as n, (select count(*) from sold where place = 2) as none from sold"
            assert lake.query(pairs.format(other=2)).to_pylist() == [{"n": 0}]
            assert lake.query(pairs.format(other=3)).to_pylist() == [{"n": 0}]
            assert lake.query(counts).to_pylist() == [{"n": 15, "none": 0}]
