"""Iceberg tables written by PyIceberg, so that what the engine reads was not made by us."""

import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.io import load_file_io
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.schema import Schema
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import new_table_metadata
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import TableRequirement, TableUpdate, update_table_metadata


class FolderCatalog(NoopCatalog):
    """A catalog that is nothing but metadata files in a folder."""

    def commit_table(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> CommitTableResponse:
        for requirement in requirements:
            requirement.validate(table.metadata)
        metadata = update_table_metadata(table.metadata, updates, metadata_location=table.metadata_location)
        location = f"{metadata.location}/metadata/{len(metadata.snapshots):05d}-{uuid.uuid4()}.metadata.json"
        ToOutputFile.table_metadata(metadata, table.io.new_output(location))
        return CommitTableResponse.model_validate({"metadata": metadata, "metadata-location": location})


@dataclass
class Lake:
    folder: Path

    def make(self, name: str, schema: Schema, *batches: list[dict]) -> Table:
        """A table of these rows, one snapshot a batch."""
        location = str(self.folder / name.replace(".", "/"))
        io = load_file_io({}, location)
        metadata = new_table_metadata(schema, UNPARTITIONED_PARTITION_SPEC, UNSORTED_SORT_ORDER, location, {})
        first = f"{location}/metadata/00000-{uuid.uuid4()}.metadata.json"
        ToOutputFile.table_metadata(metadata, io.new_output(first))
        table = Table(tuple(name.split(".")), metadata, first, io, FolderCatalog("folder"))
        for rows in batches:
            table.append(pa.Table.from_pylist(rows, schema=table.schema().as_arrow()))
        return table


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")
