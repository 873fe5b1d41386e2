"""What making the batches costs that the peers are given: psycopg reads the changes from the slot ``peers`` by
``pg_logical_slot_get_binary_changes`` (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html), keeps the last
state of each key and makes the same batch of them, FOLDER/decoded.parquet.
"""

import os
import struct
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from turn import main

CHANGES = "select data from pg_logical_slot_get_binary_changes('peers', null, null, 'proto_version', '1', 'publication_names', 'peers')"
COLUMNS: dict[str, pa.DataType] = {
    "id": pa.int64(), "customer": pa.int32(), "sku": pa.string(), "price": pa.decimal128(12, 2), "quantity": pa.int32(),
    "paid": pa.string(), "changed": pa.timestamp("us", "UTC"), "deleted": pa.bool_(),
}  # fmt: skip
SIZE = struct.Struct(">i")


def values(message: bytes) -> list[bytes | None]:
    """The columns of the only tuple of an insert, of an update that leaves the key alone, or of a delete."""
    row: list[bytes | None] = []
    at = 8
    for _ in COLUMNS.keys() - {"deleted"}:
        if message[at] == ord("t"):
            (size,) = SIZE.unpack_from(message, at + 1)
            row.append(message[at + 5 : at + 5 + size])
            at += 5 + size
        else:
            row.append(None)
            at += 1
    return row


def load(folder: Path) -> None:
    pass


def apply(batch: Path) -> None:
    last: dict[bytes | None, list[bytes | None]] = {}
    with psycopg.connect(os.environ["SOURCE"], autocommit=True) as connection, connection.cursor(binary=True) as cursor:
        for (message,) in cursor.stream(CHANGES):
            if message[0] in b"IUD":
                row = values(message)
                last[row[0]] = [*row, b"true" if message[0] == ord("D") else b"false"]
    columns = [pa.array(column, pa.binary()).cast(pa.string()) for column in zip(*last.values(), strict=True)]
    table = pa.table([column.cast(kind) for column, kind in zip(columns, COLUMNS.values(), strict=True)], list(COLUMNS))
    table = table.set_column(5, "paid", pc.equal(table["paid"], pa.scalar("t")))
    pq.write_table(table, batch.parent / "after.parquet")


def read(folder: Path) -> tuple[int, int]:
    return 0, 0


main(load, apply, read)
