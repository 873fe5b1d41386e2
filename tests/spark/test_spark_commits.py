"""What Spark commits is right in the eyes of the guard: it demands nothing that the reference does not keep."""

from pathlib import Path
from typing import Any

import pytest

from tests.replayed import replay

# pyspark leaves the socket a result came through to the garbage collector.
pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

COLUMNS = "id bigint, name string, at timestamp, day date, price decimal(12, 2)"
ROWS = """select id, case id % 4 when 0 then null else concat('name ', id % 4) end as name,
    timestamp '2024-02-28 22:00:00' + make_interval(0, 0, 0, cast(id % 3 as int)) as at,
    date_add(date '2023-12-31', cast(id % 2 as int)) as day, cast(id % 3 as decimal(12, 2)) as price"""
LAYOUTS = {
    "none": "",
    "name": "partitioned by (name)",
    "bucket": "partitioned by (bucket(4, id))",
    "day": "partitioned by (days(at), truncate(3, name))",
    "year": "partitioned by (years(at), hours(at), day, price)",
}


class Shell:
    """A catalog of Spark's own in a folder. ``tables``: the names used."""

    def __init__(self, spark: Any, folder: Path) -> None:
        self.spark = spark
        self.folder = folder
        self.spark.conf.set("spark.sql.catalog.guarded", "org.apache.iceberg.spark.SparkCatalog")
        self.spark.conf.set("spark.sql.catalog.guarded.type", "hadoop")
        self.spark.conf.set("spark.sql.catalog.guarded.warehouse", str(folder))
        self.spark.conf.set("spark.sql.catalog.guarded.cache-enabled", "false")

    def sql(self, *statements: str) -> None:
        for statement in statements:
            self.spark.sql(statement)

    def location(self, name: str) -> str:
        folder = self.folder / "shop" / name / "metadata"
        return str(max(folder.glob("v*.metadata.json"), key=lambda path: int(path.name[1:].split(".")[0])))


def story(shell: Shell, name: str, layout: str, version: int) -> None:
    table = f"guarded.shop.{name}"
    merge = "'merge-on-read'" if version > 1 else "'copy-on-write'"
    shell.sql(
        f"create table {table} ({COLUMNS}) using iceberg {layout} tblproperties ('format-version' = '{version}', "
        f"'write.delete.mode' = {merge}, 'write.update.mode' = {merge}, 'write.merge.mode' = {merge}, 'commit.manifest.min-count-to-merge' = '3')",
        *(f"insert into {table} {ROWS} from range({first}, {first + 12})" for first in (0, 20, 40)),
        f"delete from {table} where id in (3, 21, 41)",
        f"delete from {table} where id % 5 = 2",
        f"update {table} set price = 7 where id % 4 = 1",
        f"merge into {table} t using (select 5L as id, 'merged' as name union all select 500L, 'new') s on t.id = s.id "
        "when matched then update set name = s.name when not matched then insert (id, name) values (s.id, s.name)",
        f"call guarded.system.rewrite_data_files(table => 'shop.{name}', options => map('rewrite-all', 'true'))",
        f"delete from {table} where id % 7 = 3",
        f"call guarded.system.rewrite_manifests('shop.{name}')",
    )
    if version == 2:
        shell.sql(f"call guarded.system.rewrite_position_delete_files(table => 'shop.{name}', options => map('rewrite-all', 'true'))")
    shell.sql(
        f"insert overwrite {table} {ROWS} from range(60, 66)",
        f"alter table {table} add column extra string",
        f"alter table {table} rename column price to cost",
        f"alter table {table} add partition field bucket(2, id)",
        f"insert into {table} select *, 'x' from ({ROWS} from range(70, 80))",
        f"delete from {table} where id in (60, 71)",
        f"alter table {table} create branch try",
        f"insert into {table}.branch_try select *, 'y' from ({ROWS} from range(80, 84))",
        f"delete from {table}.branch_try where id = 81",
        f"insert into {table} select *, 'z' from ({ROWS} from range(90, 94))",
        f"delete from {table} where id < 70",
        f"delete from {table}",
        f"insert into {table} select *, 'z' from ({ROWS} from range(90, 94))",
    )


@pytest.fixture
def shell(spark: Any, tmp_path: Path) -> Shell:
    return Shell(spark, tmp_path)


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_commit(shell: Shell, version: int) -> None:
    found = 0
    for name, layout in LAYOUTS.items():
        story(shell, name, layout, version)
        found += replay(shell.location(name))
    assert found > 100
