"""Deletion vectors: the positions of a data file that are no rows any more, one vector a Puffin file.

Promises blobs and Puffin files as the spec has them (Iceberg spec, Deletion Vectors; Puffin spec, deletion-vector-v1), always one
blob a file, because DuckDB 1.5.5 reads wrong rows when several share one. Reading checks every length, the magic and the CRC,
and raises Corrupt; it never returns a vector it has a doubt about. No I/O.
"""

import array
import zlib
from collections.abc import Mapping
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pyroaring import BitMap64

from icelake.errors import Corrupt

PUFFIN_MAGIC = b"PFA1"
BLOB_TYPE = "deletion-vector-v1"
POSITION_FIELD = 2147483645
"""The reserved field id of a row's position in its file, which the blob is about."""
BLOB_OFFSET = len(PUFFIN_MAGIC)
"""Where the only blob of our Puffin files begins: content_offset of the manifest entry."""

_BITMAP_MAGIC = b"\xd1\xd3\x39\x64"
_BE_U32 = Struct(">I")
_LE_I32 = Struct("<i")
_MAX_CARDINALITY = 1 << 40
_WORTH_RUNS = 4
"""So many times smaller must a vector be as runs. Readers ask it for every row, and search among the runs; a bitmap they only look at."""


def bitmap_of(positions: npt.NDArray[np.int64]) -> BitMap64:
    """The set of these positions (>= 0, any order, duplicates allowed)."""
    if len(positions) and int(positions.min()) < 0:
        raise ValueError("a position in a file cannot be negative")
    # pyroaring takes array.array five times faster than numpy arrays.
    return BitMap64(array.array("Q", positions.astype(np.uint64, copy=False).tobytes()), optimize=False)


def positions_of(bitmap: BitMap64) -> npt.NDArray[np.int64]:
    """The positions in ascending order."""
    return np.frombuffer(bitmap.to_array(), np.uint64).astype(np.int64)


def encode(bitmap: BitMap64) -> bytes:
    """The blob: big-endian length, magic, 64-bit portable roaring, big-endian CRC-32 of magic and bitmap."""
    plain, runs = bitmap.serialize(), bitmap.copy()
    runs.run_optimize()
    short = runs.serialize()
    body = _BITMAP_MAGIC + (short if len(short) * _WORTH_RUNS <= len(plain) else plain)
    return _BE_U32.pack(len(body)) + body + _BE_U32.pack(zlib.crc32(body))


def decode(blob: bytes, cardinality: int, where: str) -> BitMap64:
    """The vector of a blob that must hold ``cardinality`` positions. ``where`` names it in errors."""
    if len(blob) < 20 or _BE_U32.unpack_from(blob)[0] != len(blob) - 8:
        raise _corrupt(where, "the blob's length is wrong")
    body = blob[4:-4]
    if body[:4] != _BITMAP_MAGIC:
        raise _corrupt(where, "the blob has not the magic of a deletion vector")
    if zlib.crc32(body) != _BE_U32.unpack(blob[-4:])[0]:
        raise _corrupt(where, "the checksum does not fit")
    try:
        bitmap = BitMap64.deserialize(body[4:])
    except ValueError as error:
        raise _corrupt(where, f"not a roaring bitmap ({error})") from error
    if len(bitmap) != cardinality or not 0 < cardinality < _MAX_CARDINALITY:
        raise _corrupt(where, f"it holds {len(bitmap)} positions, its manifest entry says {cardinality}")
    if bitmap.max() >= 1 << 63:
        raise _corrupt(where, f"it holds {bitmap.max()}, which is no position")
    return bitmap


def puffin(blob: bytes, data_path: str, cardinality: int) -> bytes:
    """A Puffin file holding this one vector, at ``BLOB_OFFSET``, uncompressed."""
    footer = orjson.dumps(
        {
            "blobs": [
                {
                    "type": BLOB_TYPE,
                    "fields": [POSITION_FIELD],
                    # The vector's snapshot is not known to the file: it is inherited, as the spec demands.
                    "snapshot-id": -1,
                    "sequence-number": -1,
                    "offset": BLOB_OFFSET,
                    "length": len(blob),
                    "properties": {"referenced-data-file": data_path, "cardinality": str(cardinality)},
                }
            ],
            "properties": {"created-by": "IceLake"},
        }
    )
    return b"".join(
        (PUFFIN_MAGIC, blob, PUFFIN_MAGIC, footer, _LE_I32.pack(len(footer)), bytes(4), PUFFIN_MAGIC),
    )


def puffin_blobs(file: bytes, where: str) -> list[Mapping[str, Any]]:
    """The blob descriptions of a whole Puffin file with an uncompressed footer. ``where`` names it in errors."""
    if len(file) < 20 or file[:4] != PUFFIN_MAGIC or file[-4:] != PUFFIN_MAGIC:
        raise _corrupt(where, "not a Puffin file")
    (length,) = _LE_I32.unpack(file[-12:-8])
    start = len(file) - 12 - length
    if length < 0 or start < 8 or file[start - 4 : start] != PUFFIN_MAGIC or file[-8:-4] != bytes(4):
        raise _corrupt(where, "the Puffin footer is mangled")
    try:
        blobs = orjson.loads(file[start : start + length])["blobs"]
        if not isinstance(blobs, list) or not all(isinstance(blob, dict) for blob in blobs):
            raise TypeError("its blobs are no list of objects")
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise _corrupt(where, "the Puffin footer is not the JSON of the spec") from error
    return blobs


def _corrupt(where: str, why: str) -> Corrupt:
    return Corrupt(
        "DELETION_VECTOR_CORRUPT",
        f"a deletion vector cannot be trusted: {where}",
        why,
        "restore the file from a copy, or load the tables again into a new lake",
    )
