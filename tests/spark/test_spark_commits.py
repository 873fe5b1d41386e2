"""What Spark commits is right in the eyes of the guard: it demands nothing that the reference does not keep."""

import uuid
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
    "year": "partitioned by (years(day), hours(at), price)",
}


class Shell:
    """A catalog of Spark's own in a folder, called ``name``."""

    def __init__(self, spark: Any, folder: Path, name: str) -> None:
        self.spark = spark
        self.folder = folder
        self.name = name
        for key, value in {
            "": "org.apache.iceberg.spark.SparkCatalog",
            ".type": "hadoop",
            ".warehouse": str(folder),
            ".cache-enabled": "false",
        }.items():
            spark.conf.set(f"spark.sql.catalog.{name}{key}", value)

    def sql(self, table: str, *statements: str) -> None:
        """``{t}`` in a statement is the table, ``{c}`` the catalog."""
        for statement in statements:
            self.spark.sql(statement.replace("{t}", f"{self.name}.shop.{table}").replace("{c}", self.name))

    def replay(self, table: str) -> int:
        folder = self.folder / "shop" / table / "metadata"
        return replay(str(max(folder.glob("v*.metadata.json"), key=lambda path: int(path.name[1:].split(".")[0]))))


def lazily(version: int) -> str:
    """The properties of a table whose rows are deleted by files of deletes where there are such."""
    way = "merge-on-read" if version > 1 else "copy-on-write"
    modes = "".join(f", 'write.{kind}.mode' = '{way}'" for kind in ("delete", "update", "merge"))
    return f"tblproperties ('format-version' = '{version}', 'commit.manifest.min-count-to-merge' = '3'{modes})"


MERGE = (
    "merge into {t} t using (select 5L as id, 'merged' as name union all select 500, 'new') s on t.id = s.id "
    "when matched then update set name = s.name when not matched then insert (id, name) values (s.id, s.name)"
)


def story(shell: Shell, name: str, layout: str, version: int) -> None:
    shell.sql(
        name,
        f"create table {{t}} ({COLUMNS}) using iceberg {layout} {lazily(version)}",
        *(f"insert into {{t}} {ROWS} from range({first}, {first + 12})" for first in (0, 20, 40)),
        "delete from {t} where id in (3, 21, 41)",
        "delete from {t} where id % 5 = 2",
        "update {t} set price = 7 where id % 4 = 1",
        MERGE,
        f"call {{c}}.system.rewrite_data_files(table => 'shop.{name}', options => map('rewrite-all', 'true'))",
        "delete from {t} where id % 7 = 3",
        f"call {{c}}.system.rewrite_manifests('shop.{name}')",
    )
    if version == 2:
        shell.sql(name, f"call {{c}}.system.rewrite_position_delete_files(table => 'shop.{name}', options => map('rewrite-all', 'true'))")
    shell.sql(
        name,
        f"insert overwrite {{t}} {ROWS} from range(60, 66)",
        "alter table {t} add column extra string",
        "alter table {t} rename column price to cost",
        "alter table {t} add partition field bucket(2, id)",
        f"insert into {{t}} select *, 'x' from ({ROWS} from range(70, 80))",
        "delete from {t} where id in (60, 71)",
        "alter table {t} create branch try",
        f"insert into {{t}}.branch_try select *, 'y' from ({ROWS} from range(80, 84))",
        "delete from {t}.branch_try where id = 81",
        f"insert into {{t}} select *, 'z' from ({ROWS} from range(90, 94))",
        "delete from {t} where id < 70",
        "delete from {t}",
        f"insert into {{t}} select *, 'z' from ({ROWS} from range(90, 94))",
    )


@pytest.fixture
def shell(spark: Any, tmp_path: Path) -> Shell:
    return Shell(spark, tmp_path, f"c{uuid.uuid4().hex}")


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_commit(shell: Shell, version: int) -> None:
    names = list(LAYOUTS) if version == 3 else ["none", "name", "day"]
    found = 0
    for name in names:
        story(shell, name, LAYOUTS[name], version)
        found += shell.replay(name)
    assert found >= 18 * len(names)


def test_tables_made_of_queries_and_replaced(shell: Shell) -> None:
    for version in (2, 3):
        name = f"made{version}"
        made = f"table {{t}} using iceberg partitioned by (name) {lazily(version)} as {ROWS}"
        shell.sql(name, f"create {made} from range(10)", "delete from {t} where id = 3")
        shell.sql(name, f"create or replace {made} from range(5, 20)", "delete from {t} where id = 7", f"replace {made} from range(4)")
        assert shell.replay(name) == 5


def test_what_is_staged_is_published(shell: Shell) -> None:
    for version in (2, 3):
        name = f"staged{version}"
        shell.sql(name, f"create table {{t}} ({COLUMNS}) using iceberg {lazily(version)}", f"insert into {{t}} {ROWS} from range(10)")
        shell.sql(name, "alter table {t} set tblproperties ('write.wap.enabled' = 'true')", f"insert into {{t}} {ROWS} from range(10, 20)")
        shell.spark.conf.set("spark.wap.id", "one")
        shell.sql(name, f"insert into {{t}} {ROWS} from range(20, 30)")
        shell.spark.conf.unset("spark.wap.id")
        shell.sql(name, "delete from {t} where id in (1, 11)")
        shell.sql(name, f"call {{c}}.system.publish_changes('shop.{name}', 'one')", f"insert into {{t}} {ROWS} from range(30, 40)")
        first = shell.spark.sql(f"select snapshot_id from {shell.name}.shop.{name}.snapshots order by committed_at limit 1").first()[0]
        shell.sql(name, f"call {{c}}.system.rollback_to_snapshot('shop.{name}', {first})", f"insert into {{t}} {ROWS} from range(50, 60)")
        assert shell.replay(name) == 7


def test_tables_that_are_upgraded(shell: Shell) -> None:
    """Version 3 gives row ids to all that is there, and deletion vectors take the place of position deletes."""
    found = 0
    for name, first in (("none", 1), ("none", 2), ("name", 2), ("day", 1)):
        table = f"{name}_{first}"
        shell.sql(
            table,
            f"create table {{t}} ({COLUMNS}) using iceberg {LAYOUTS[name]} {lazily(first)}",
            *(f"insert into {{t}} {ROWS} from range({start}, {start + 12})" for start in (0, 20)),
            "delete from {t} where id in (3, 21)",
        )
        upgrade = "alter table {t} set tblproperties ('format-version' = '3', 'write.delete.mode' = 'merge-on-read')"
        more = f"insert into {{t}} {ROWS} from range(60, 64)"
        deletes = ("delete from {t} where id in (4, 22)", "delete from {t} where id in (5, 23)")
        shell.sql(table, upgrade, *((*deletes, more) if first == 1 else (more, *deletes)), "delete from {t} where id < 8")
        shell.sql(table, f"call {{c}}.system.rewrite_data_files(table => 'shop.{table}', options => map('rewrite-all', 'true'))")
        found += shell.replay(table)
    assert found >= 32
