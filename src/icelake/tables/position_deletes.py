"""Position deletes of format version 2: the positions of one data file that are no rows any more, as a Parquet file.

Promises files as the spec has them (Iceberg spec, Position Delete Files), always about one data file, which bounds and field 143
say, so a reader opens them only for that file. What deletion vectors are to version 3. Reading raises Corrupt on a file that is about
another data file, or has positions twice, or another number of them. No I/O.
"""

from struct import pack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap64

from icelake.errors import Corrupt
from icelake.tables.deletion_vectors import bitmap_of, positions_of

PATH_FIELD = 2147483546
POSITION_FIELD = 2147483545
"""Reserved fields of position deletes (Iceberg spec, Reserved Field IDs)."""
SUFFIX = "-deletes.parquet"

_SCHEMA = pa.schema(
    [
        # A dictionary in memory only: there is one path, and there may be millions of positions.
        pa.field("file_path", pa.dictionary(pa.int32(), pa.string()), nullable=False, metadata={"PARQUET:field_id": str(PATH_FIELD)}),
        pa.field("pos", pa.int64(), nullable=False, metadata={"PARQUET:field_id": str(POSITION_FIELD)}),
    ]
)


def encode(bitmap: BitMap64, data_path: str) -> bytes:
    """The file."""
    positions = positions_of(bitmap)
    paths = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(positions), np.int32), pa.int32()), pa.array([data_path]))
    out = pa.BufferOutputStream()
    dictionary: Any = ["file_path"]
    pq.write_table(
        pa.Table.from_arrays([paths, pa.array(positions)], schema=_SCHEMA),
        out,
        compression="zstd",
        compression_level=1,
        use_dictionary=dictionary,
        column_encoding={"pos": "DELTA_BINARY_PACKED"},
        store_schema=False,
    )
    return out.getvalue().to_pybytes()


def bounds(bitmap: BitMap64, data_path: str) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """(lower, upper) bounds of both columns. Never cut short: that the two of the path are equal is what makes a file one file's."""
    path = data_path.encode()
    return (
        {PATH_FIELD: path, POSITION_FIELD: pack("<q", bitmap.min())},
        {PATH_FIELD: path, POSITION_FIELD: pack("<q", bitmap.max())},
    )


def decode(file: bytes, data_path: str, count: int, where: str) -> BitMap64:
    """The positions of a file that must hold ``count`` of ``data_path``. ``where`` names it in errors."""
    try:
        rows = pq.ParquetFile(pa.BufferReader(file), read_dictionary=["file_path"]).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(where, f"it cannot be read ({error})") from error
    if [(field.name, field.type) for field in rows.schema] != [(field.name, field.type) for field in _SCHEMA]:
        raise _corrupt(where, f"its columns are {rows.schema.names}")
    positions = rows.column("pos").to_numpy()
    chunks: Any = rows.column("file_path").chunks
    if any(chunk.dictionary.to_pylist() != [data_path] for chunk in chunks):
        raise _corrupt(where, f"it is about other files than {data_path}")
    if len(positions) != count or not count or int(positions[0]) < 0 or (np.diff(positions) <= 0).any():
        raise _corrupt(where, f"it holds {len(positions)} positions, its manifest entry says {count}; or they do not ascend")
    return bitmap_of(positions)


def _corrupt(where: str, why: str) -> Corrupt:
    return Corrupt(
        "POSITION_DELETES_CORRUPT",
        f"a file of position deletes cannot be trusted: {where}",
        why,
        "restore the file from a copy, or load the tables again into a new lake",
    )
