import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap, BitMap64

from icelake.errors import Corrupt
from icelake.tables.deletion_vectors import BLOB_OFFSET, bitmap_of, decode, encode, positions_of, puffin, puffin_blobs

SETS = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**40)), min_size=1, max_size=200)


@given(SETS)
def test_a_vector_comes_back_as_it_was(positions: list[int]) -> None:
    bitmap = bitmap_of(np.array(positions, np.int64))
    assert positions_of(bitmap).tolist() == sorted(set(positions))
    assert decode(encode(bitmap), len(set(positions)), "x") == bitmap


@given(SETS)
def test_the_blob_is_laid_out_as_the_spec_says(positions: list[int]) -> None:
    blob = encode(bitmap_of(np.array(positions, np.int64)))
    body = blob[4:-4]
    assert struct.unpack(">I", blob[:4])[0] == len(body)
    assert struct.unpack(">I", blob[-4:])[0] == zlib.crc32(body)
    assert body[:4].hex() == "d1d33964"
    (count,) = struct.unpack("<Q", body[4:12])
    rest = body[12:]
    found: set[int] = set()
    keys: list[int] = []
    for _ in range(count):
        (key,) = struct.unpack("<I", rest[:4])
        keys.append(key)
        inner = BitMap.deserialize(rest[4:])
        rest = rest[4 + len(inner.serialize()) :]
        found.update(key << 32 | low for low in inner)
    assert keys == sorted(keys)
    assert found == set(positions)
    assert rest == b""


def test_the_footer_says_where_the_vector_is() -> None:
    blob = encode(bitmap_of(np.array([1, 5, 70_000], np.int64)))
    file = puffin(blob, "/lake/a.parquet", 3)
    (described,) = puffin_blobs(file, "x")
    assert file[described["offset"] : described["offset"] + described["length"]] == blob
    assert described["offset"] == BLOB_OFFSET
    assert described["properties"] == {"referenced-data-file": "/lake/a.parquet", "cardinality": "3"}


def test_negative_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        bitmap_of(np.array([3, -1], np.int64))


def test_a_wrong_cardinality_is_corrupt() -> None:
    blob = encode(bitmap_of(np.array([1, 2], np.int64)))
    with pytest.raises(Corrupt, match="it holds 2 positions"):
        decode(blob, 3, "x")


@given(st.data())
def test_damaged_bytes_are_never_believed(data: st.DataObject) -> None:
    bitmap = bitmap_of(np.array([1, 5, 9, 2**33], np.int64))
    blob = bytearray(encode(bitmap))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt):
        decode(bytes(blob), 4, "x")
    whole = encode(bitmap)
    with pytest.raises(Corrupt):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))], 4, "x")


@given(st.binary(max_size=60), st.integers(0, 60))
def test_a_puffin_file_of_nonsense_is_corrupt(noise: bytes, cut: int) -> None:
    for file in (noise, b"PFA1" + noise + b"PFA1", puffin(b"x" * 30, "/p", 1)[:cut]):
        with pytest.raises(Corrupt, match="DELETION_VECTOR_CORRUPT"):
            puffin_blobs(file, "x")


def test_a_vector_of_numbers_that_are_no_positions_is_corrupt() -> None:
    for number in (1 << 63, (1 << 64) - 1):
        with pytest.raises(Corrupt, match="no position"):
            decode(encode(BitMap64([1, number])), 2, "x")
    assert positions_of(decode(encode(BitMap64([(1 << 63) - 1])), 1, "x")).tolist() == [(1 << 63) - 1]


@pytest.mark.parametrize("blobs", [b"5", b"null", b"{}", b'"x"', b"[1]"])
def test_a_footer_without_a_list_of_blobs_is_corrupt(blobs: bytes) -> None:
    footer = b'{"blobs":' + blobs + b"}"
    file = b"PFA1" + b"PFA1" + footer + struct.pack("<i", len(footer)) + bytes(4) + b"PFA1"
    with pytest.raises(Corrupt, match="not the JSON of the spec"):
        puffin_blobs(file, "x")


def test_runs_are_for_few_long_ones() -> None:
    """Readers ask a vector for every row: a bitmap they look at, among runs they search."""
    scattered = np.flatnonzero(np.arange(65_536) % 40 < 4)
    assert len(encode(bitmap_of(scattered))) > 8192
    assert len(encode(bitmap_of(np.arange(60_000)))) < 64
    # Also one that was written as runs before it grew.
    grown = decode(encode(bitmap_of(np.arange(60_000))), 60_000, "x") | bitmap_of(scattered + (1 << 16))
    assert 8192 < len(encode(grown)) < 8192 + 128
