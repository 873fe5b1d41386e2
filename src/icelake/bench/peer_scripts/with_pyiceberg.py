"""PyIceberg: ``Table.upsert`` and ``Table.delete`` in one transaction (https://py.iceberg.apache.org/api/#upsert), catalog on SQLite."""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import In
from turn import left, main


def catalog(folder: Path) -> SqlCatalog:
    return SqlCatalog("peer", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")


def load(folder: Path) -> None:
    rows = pq.read_table(folder / "before.parquet")
    catalog(folder).create_namespace("peer")
    catalog(folder).create_table("peer.item", rows.schema).append(rows)


def apply(batch: Path) -> None:
    table = catalog(batch.parent).load_table("peer.item")
    changes = pq.read_table(batch)
    gone = changes.filter(pc.field("deleted"))["id"].to_pylist()
    with table.transaction() as transaction:
        if gone:
            transaction.delete(In("id", gone))  # type: ignore[call-arg, arg-type]  # as documented
        transaction.upsert(changes.filter(~pc.field("deleted")).drop_columns("deleted").cast(table.schema().as_arrow()), join_cols=["id"])


def read(folder: Path) -> tuple[int, int]:
    pq.write_table(catalog(folder).load_table("peer.item").scan().to_arrow(), folder / "after.parquet")
    return left(folder / "warehouse")


main(load, apply, read)
