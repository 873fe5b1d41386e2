"""A lake on S3 over a bad network: a PostgreSQL mirrored, killed, asked and verified, while requests and answers get lost.

Short here: a few points to die at; the storage itself has its own tests.
"""

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pyiceberg.table import StaticTable

from icelake.engines.duckdb import HTTP
from icelake.errors import ProjectError, Refused, Unreachable
from icelake.ingest.applier import Progress, Settings
from icelake.lakehouse import Lakehouse
from icelake.ports import Json
from icelake.stack.postgres import Postgres
from icelake.storage.s3 import S3Storage
from tests.conftest import Lacking
from tests.crash.shop import Trader, lake, make_tables
from tests.s3.proxy import Proxy, sometimes
from tests.s3.server import SeaweedFS, running

pytestmark = pytest.mark.crash

FULL = bool(os.environ.get("ICELAKE_FULL"))
POINTS = (
    "storage.write:after:30",
    "storage.flush:before:9",
    "storage.flush:after:12",
    "catalog.commit:before:6",
    "catalog.commit:after:9",
    "storage.delete:after:3",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as running:
        make_tables(running)
        yield running


@pytest.fixture(scope="module")
def seaweedfs(lacking: Lacking) -> Iterator[SeaweedFS]:
    with running(lacking) as s3:
        yield s3


@pytest.fixture
def proxy(seaweedfs: SeaweedFS) -> Iterator[Proxy]:
    with Proxy(seaweedfs.endpoint) as proxy:
        yield proxy


def on_s3(folder: Path, seaweedfs: SeaweedFS, proxy: Proxy) -> str:
    """What the project file says of the lake; the keys are in files."""
    (folder / "access.key").write_text(seaweedfs.access_key)
    (folder / "secret.key").write_text(seaweedfs.secret_key)
    return (
        f'[retention]\nkeep_all = "1s"\nthin = [["2s", "4s"]]\ngrace = "0s"\n[lake]\nwarehouse = "s3a://lake/{folder.name}/"\n[lake.s3]\n'
        f'endpoint = "{proxy.endpoint}"\naccess_key = {{ file = "access.key" }}\nsecret_key = {{ file = "secret.key" }}\n'
    )


def test_mirrored_killed_asked_and_verified(server: Postgres, seaweedfs: SeaweedFS, proxy: Proxy, tmp_path: Path) -> None:
    proxy.choose = sometimes(1, 0.05)
    with lake(tmp_path, server, on_s3(tmp_path, seaweedfs, proxy)) as one:
        with Trader(server.dsn):
            for point in POINTS if FULL else POINTS[2:4]:
                one.die(point, "sync", "--follow", seconds=90)
        code, report = one.run("verify")
        assert (code, report["equal"]) == (0, True), report
        assert {table["name"] for table in report["tables"]} == {"public.account", "public.entry", "public.audit"}
        with psycopg.connect(server.dsn) as connection:
            row = connection.execute("select count(*), sum(balance)::text, min(note) from account").fetchone()
        with Lakehouse.open(tmp_path) as lakehouse:
            (answer,) = lakehouse.query("select count(*), sum(balance)::text, min(note) from account").to_pylist()
            assert tuple(answer.values()) == row
            assert proxy.faults() > 10
            proxy.choose = lambda method, path: None
            old_files_go(lakehouse, server, proxy)
            with psycopg.connect(server.dsn) as connection:
                row = connection.execute("select count(*), sum(balance)::text from account").fetchone()
            read_by_pyiceberg(lakehouse, seaweedfs, proxy, row)
            everything_is_below_the_warehouse(lakehouse, tmp_path, seaweedfs)
            refused_without_the_keys(lakehouse, tmp_path, seaweedfs, proxy)


def old_files_go(lakehouse: Lakehouse, server: Postgres, proxy: Proxy) -> None:
    """The upkeep after an expiry deletes what no snapshot needs, and only that: the tables are whole afterwards."""
    assert isinstance(lakehouse._files, S3Storage)
    first = {file.location for file in lakehouse._files.list(lakehouse.project.warehouse)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRASH_DSN", server.dsn)
        patch.setattr("icelake.lakehouse.Settings", partial(Settings, upkeep_commits=1))
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("update account set balance = balance + 1 where id between 1 and 50")
        stop, rounds = threading.Event(), 0

        def report(progress: Progress, _: Json) -> None:
            nonlocal rounds
            rounds += progress.kind == "upkeep"
            if rounds == 2:
                stop.set()

        lakehouse.sync(follow=True, stop=stop, report=report)
        assert lakehouse.verify()["equal"]
    left = {file.location for file in lakehouse._files.list(lakehouse.project.warehouse)}
    gone = {location for location in first - left if not location.endswith(".json")}
    assert gone
    assert proxy.seen["POST", ""] + proxy.seen["DELETE", ""] > 0


def read_by_pyiceberg(lakehouse: Lakehouse, seaweedfs: SeaweedFS, proxy: Proxy, row: tuple[object, ...] | None) -> None:
    properties = {
        "s3.endpoint": proxy.endpoint,
        "s3.access-key-id": seaweedfs.access_key,
        "s3.secret-access-key": seaweedfs.secret_key,
        "s3.region": seaweedfs.region,
        "s3.force-virtual-addressing": "false",
    }
    table = StaticTable.from_metadata(lakehouse.table("account")["metadata"], properties)
    read = table.scan(selected_fields=("balance",)).to_arrow()
    assert row is not None
    balances: list[Any] = read.column("balance").to_pylist()
    assert (len(balances), str(sum(balances))) == (row[0], row[1])


def everything_is_below_the_warehouse(lakehouse: Lakehouse, folder: Path, seaweedfs: SeaweedFS) -> None:
    """Files there, none here, and no key in what is here."""
    warehouse = f"s3://lake/{folder.name}"
    assert lakehouse.project.warehouse == warehouse
    assert isinstance(lakehouse._files, S3Storage)
    kinds = {file.location.rpartition(".")[2] for file in lakehouse._files.list(warehouse)}
    assert kinds >= {"parquet", "avro", "json"}
    assert all(one["location"].startswith(f"{warehouse}/public/") for one in lakehouse.tables())
    here = [file for file in (folder / "lake").rglob("*") if file.is_file()]
    assert not [file for file in here if file.suffix in (".parquet", ".avro")]
    assert not [file for file in here if seaweedfs.secret_key.encode() in file.read_bytes()]


def refused_without_the_keys(lakehouse: Lakehouse, folder: Path, seaweedfs: SeaweedFS, proxy: Proxy) -> None:
    """Queries and verify say what is wrong, and never a key; SQL cannot get at them, nor elsewhere."""
    for sql in (
        "select * from 's3://lake/other/f.parquet'",
        f"select * from read_text('{proxy.endpoint}/lake/x')",
        f"select * from 's3://lake/{folder.name}/x.parquet?s3_endpoint=127.0.0.1:1'",
    ):
        with pytest.raises((ProjectError, Refused)) as caught:
            lakehouse.query(sql)
        assert caught.value.code in ("SQL_NOT_ALLOWED", "LAKE_FILE_UNREADABLE")
    assert seaweedfs.secret_key not in str(lakehouse.query("from duckdb_secrets()").to_pylist())
    (folder / "secret.key").write_text("nobody-may-see-this")
    with pytest.raises(Refused, match="STORAGE_DENIED") as denied:
        lakehouse.query("select count(*) from account")
    assert "nobody-may-see-this" not in str(denied.value)
    (folder / "secret.key").write_text(seaweedfs.secret_key)
    proxy.choose = lambda method, path: "503"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HTTP, "http_retries", "1")
        with pytest.raises(Unreachable, match="STORAGE_UNREACHABLE"):
            lakehouse.query("select count(*) from account")
    proxy.choose = lambda method, path: None
