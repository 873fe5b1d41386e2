"""dlt: ``sql_database`` by the column ``changed``, merged into Iceberg on the filesystem
(https://dlthub.com/docs/dlt-ecosystem/destinations/iceberg, …/verified-sources/sql_database/advanced#incremental-loading).

It reads the source itself, so a batch is only the word that there is something. What was deleted it cannot see. Its source for logical
replication, ``pg_replication``, is not in the package: ``dlt init`` fetches it from a repository.
"""

import os
from pathlib import Path

import dlt
import pyarrow.parquet as pq
from dlt.common.libs.pyiceberg import get_iceberg_tables
from dlt.sources.sql_database import sql_table
from turn import left, main


def pipeline(folder: Path) -> dlt.Pipeline:
    destination = dlt.destinations.filesystem(bucket_url=f"file://{folder}/warehouse")
    return dlt.pipeline("peer", pipelines_dir=str(folder / "pipelines"), destination=destination, dataset_name="peer")


def item() -> "dlt.sources.DltResource":
    return sql_table(
        os.environ["SOURCE"],
        table="item",
        backend="pyarrow",
        reflection_level="full_with_precision",
        incremental=dlt.sources.incremental("changed"),
        primary_key="id",
        write_disposition={"disposition": "merge", "strategy": "upsert"},
    )


def load(folder: Path) -> None:
    pipeline(folder).run(item(), table_format="iceberg", write_disposition="append")


def apply(batch: Path) -> None:
    pipeline(batch.parent).run(item(), table_format="iceberg")


def read(folder: Path) -> tuple[int, int]:
    pq.write_table(get_iceberg_tables(pipeline(folder), "item")["item"].scan().to_arrow(), folder / "after.parquet")
    return left(folder / "warehouse")


main(load, apply, read)
