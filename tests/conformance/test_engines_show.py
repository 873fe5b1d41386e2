"""DuckDB and PyIceberg show of every type what docs/reference/types.md says; Spark does in tests/spark."""

from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from pyiceberg.table import StaticTable

from icelake.engines.duckdb import connect
from icelake.sources.postgres.types import SCALARS, Leaf, type_of
from tests.conformance import shown


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, shown.Stored]]:
    with shown.mirrored(tmp_path_factory.mktemp("shown")) as found:
        yield found


def test_every_type_of_the_contract_is_there(tables: dict[str, shown.Stored]) -> None:
    sources = [type_of(stored.column) for stored in tables.values()]
    assert {source.name for source in sources if isinstance(source, Leaf)} == set(SCALARS)


def test_duckdb(tables: dict[str, shown.Stored]) -> None:
    with closing(connect([Path(next(iter(tables.values())).location).parents[3]], threads=1)) as connection:

        def read(location: str, column: str, some: bool) -> tuple[str, pa.Table]:
            found = connection.sql(f"SELECT id, {column}, {column}::VARCHAR FROM iceberg_scan('{location}') WHERE {some}")
            kind = str(found.types[1])
            if "TIMESTAMP" in kind:
                # Arrow has no infinity: in it the last moment is what it was, which is not what SQL sees.
                found = found.project(f"#1, CASE WHEN #3 NOT LIKE '%infinity%' THEN {column} END, #3")
            return kind, found.to_arrow_table()

        shown.as_recorded(shown.Engine("DuckDB", duckdb.__version__, read, (duckdb.Error,)), tables)


def test_pyiceberg(tables: dict[str, shown.Stored]) -> None:
    def read(location: str, column: str, some: bool) -> tuple[str, pa.Table]:
        rows = "id >= 0" if some else "id < 0"
        found = StaticTable.from_metadata(location).scan(row_filter=rows, selected_fields=("id", column)).to_arrow()
        return str(found.schema.field(column).type), found

    shown.as_recorded(shown.Engine("PyIceberg", version("pyiceberg"), read, (pa.ArrowException, NotImplementedError)), tables)
