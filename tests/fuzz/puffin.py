"""Puffin files and the deletion vectors in them. The first byte says what the rest is:

0: a file; 1: a blob; 2: a bitmap, around which a blob is made whose lengths and checksum are right, for they keep nobody out who can write.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np

from icelake.tables import deletion_vectors
from icelake.tables.deletion_vectors import bitmap_of, decode, encode, positions_of, puffin, puffin_blobs

WATCHED = (deletion_vectors,)
_OTHER: Final = bitmap_of(np.array([0, 7, 1 << 33], np.int64))


def run(data: bytes) -> None:
    kind, rest = (data or b"\0")[0], data[1:]
    if kind == 0:
        for blob in puffin_blobs(rest, "x"):
            assert isinstance(blob, dict)
    elif kind == 1:
        _read(rest[1:], rest[0] if rest else 0)
    else:
        body = b"\xd1\xd3\x39\x64" + rest[2:]
        _read(struct.pack(">I", len(body)) + body + struct.pack(">I", zlib.crc32(body)), int.from_bytes(rest[:2], "little"))


def _read(blob: bytes, cardinality: int) -> None:
    bitmap = decode(blob, cardinality, "x")
    assert len(bitmap) == cardinality
    positions = positions_of(bitmap)
    # It is a set of positions that can be asked, changed and written again.
    assert len(positions) == cardinality
    assert (np.diff(positions) > 0).all()
    assert bitmap.max() == int(positions[-1])
    assert bitmap_of(positions) == bitmap
    assert (bitmap | _OTHER).issuperset(bitmap)
    assert decode(encode(bitmap), cardinality, "x") == bitmap


def seeds() -> Iterator[bytes]:
    runs, dense = np.arange(100, 5000), np.random.default_rng(0).integers(0, 1 << 16, 9000)
    for positions in ([5], [1, 5, 70_000, 1 << 33], runs, np.unique(dense)[:4500]):
        bitmap = bitmap_of(np.array(positions, np.int64))
        blob = encode(bitmap)
        yield b"\x02" + len(bitmap).to_bytes(2, "little") + blob[8:-4]
        yield b"\x02" + len(bitmap).to_bytes(2, "little") + bitmap.serialize()
        yield b"\x01" + bytes([len(bitmap) & 255]) + blob
        yield b"\x00" + puffin(blob, "/p", len(bitmap))
