"""A served catalog, and a client that says what it got."""

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import duckdb
import psycopg
import pytest
from pyiceberg.catalog import Catalog, load_catalog

from icelake.engines.duckdb import extension_file
from icelake.stack.postgres import Postgres
from tests.provoked import raised

_CODE = re.compile(r"icelake: ([A-Z_]+)")
"""An error's code, where the server says it."""
ICELAKE = str(Path(sys.executable).parent / "icelake")
ENVIRONMENT = {**os.environ, "SHOP_DSN": "host=nowhere"}
PROJECT = """
[project]
name = "served"

[sources.shop]
dsn = { env = "SHOP_DSN" }
tables = ["public.*"]

[catalog]
"""
DATABASE = 'database = { env = "CATALOG_DSN" }\n'
Store = Mapping[str, str]
"""What the environment says of the catalog's database; nothing: it is SQLite."""


@dataclass(frozen=True, slots=True)
class Said:
    status: int
    body: Any
    headers: dict[str, str]

    @property
    def error(self) -> str:
        """The type of the error, '' if it is none."""
        return self.body["error"]["type"] if self.status >= 400 else ""

    @property
    def code(self) -> str:
        """Of the error, as people look it up."""
        found: str = self.body["error"]["stack"][0].removeprefix("icelake: ")
        return found


@dataclass(frozen=True, slots=True)
class Served:
    uri: str
    folder: Path

    @property
    def warehouse(self) -> Path:
        return self.folder / "lake" / "warehouse"

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Said:
        """``body``: an object, or bytes as they are."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = Request(f"{self.uri}/v1/{path}", data, {"content-type": "application/json", **(headers or {})}, method=method)
        try:
            with urlopen(request, timeout=60) as answer:
                found = answer.read()
                return Said(answer.status, json.loads(found) if found else None, dict(answer.headers))
        except HTTPError as error:
            found = error.read()
            raised.update(_CODE.findall(found.decode()))
            return Said(error.code, json.loads(found) if found else None, dict(error.headers))

    def made(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers, which is no error."""
        said = self.ask(method, path, body)
        assert said.status < 300, said
        return said.body


def part(*levels: str) -> str:
    """A name as part of a path."""
    return quote("\x1f".join(levels), safe="")


@contextmanager
def serving(
    folder: Path, *options: str, environment: Mapping[str, str] = ENVIRONMENT, killed: bool = False, guard: str = "warn"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The catalog of the project in the folder, which is made if there is none. ``killed``: within the block, by who uses it.

    ``guard``: most clients here make snapshots of which there is nothing but the metadata.
    """
    project = folder / "icelake.toml"
    if not project.exists():
        project.write_text(PROJECT + (DATABASE if "CATALOG_DSN" in environment else "") + f'guard = "{guard}"\n')
    command = [ICELAKE, "catalog", "serve", "-C", str(folder), "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["uri"], process
        finally:
            process.terminate()
            assert process.wait(30) in ((-9,) if killed else (0, 130, -15))


@contextmanager
def attached(uri: str, warehouse: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB that has the warehouse as ``lake``."""
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"}) as connection:
        for name in ("avro", "httpfs", "iceberg"):
            connection.execute(f"load '{extension_file(name)}'")
        options = "type iceberg, authorization_type 'none', access_delegation_mode 'none'"
        connection.execute(f"attach '{warehouse}' as lake ({options}, endpoint '{uri}')")
        yield connection


@pytest.fixture(scope="session")
def databases() -> Iterator[Postgres]:
    with Postgres(settings={"fsync": "off"}) as running:
        yield running


@contextmanager
def database(running: Postgres) -> Iterator[Store]:
    """One that is new, and gone at the end."""
    name = f"catalog_{uuid.uuid4().hex[:12]}"
    for statement in (f"create database {name}", f"drop database {name} with (force)"):
        with psycopg.connect(running.dsn, autocommit=True) as connection:
            connection.execute(statement.encode())
        if statement.startswith("create"):
            yield {"CATALOG_DSN": running.dsn_of(name)}


def _store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """What the catalog is kept in."""
    if request.param == "sqlite":
        yield {}
        return
    with database(request.getfixturevalue("databases")) as made:
        yield made


_STORES = ["sqlite", "postgres"]
store = pytest.fixture(_store, scope="module", params=_STORES, name="store")
new_store = pytest.fixture(_store, params=_STORES, name="new_store")
"""The same, with nothing in it."""


@pytest.fixture(scope="module")
def server(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, environment={**ENVIRONMENT, **store}) as (uri, _):
        yield Served(uri, folder)


@pytest.fixture
def guarded(store: Store, tmp_path: Path) -> Iterator[Served]:
    """One that refuses what would break a table."""
    with serving(tmp_path, environment={**ENVIRONMENT, **store}, guard="refuse") as (uri, _):
        served = Served(uri, tmp_path)
        yield served
        for name in served.made("GET", "namespaces")["namespaces"]:
            for kind in ("tables", "views"):
                for one in served.made("GET", f"namespaces/{part(*name)}/{kind}")["identifiers"]:
                    served.made("DELETE", f"namespaces/{part(*name)}/{kind}/{part(one['name'])}")
            served.made("DELETE", f"namespaces/{part(*name)}")


@pytest.fixture
def served(server: Served) -> Iterator[Served]:
    """A catalog with nothing in it."""
    yield server
    inside = server.made("GET", "namespaces")["namespaces"]
    while inside:
        levels = inside.pop()
        name = part(*levels)
        if below := server.made("GET", f"namespaces?parent={name}")["namespaces"]:
            inside += [levels, *below]
            continue
        for kind in ("tables", "views"):
            for one in server.made("GET", f"namespaces/{name}/{kind}")["identifiers"]:
                server.made("DELETE", f"namespaces/{name}/{kind}/{part(one['name'])}?purgeRequested=true")
        server.made("DELETE", f"namespaces/{name}")
    for file in server.warehouse.rglob("*.json"):
        file.unlink()


@pytest.fixture
def iceberg(guarded: Served) -> Catalog:
    """PyIceberg, with a namespace ``shop``."""
    catalog = load_catalog("served", type="rest", uri=guarded.uri)
    catalog.create_namespace("shop")
    return catalog


@pytest.fixture
def duck(guarded: Served) -> Iterator[duckdb.DuckDBPyConnection]:
    with attached(guarded.uri, "lake") as connection:
        yield connection
