"""128-bit keyed hashes of keys and of whole rows, the same for a key or row in every process that has the seed.

Promises: equal keys have equal hashes, and unequal keys of one table have unequal ones as far as 128 bits and a secret seed go
(SipHash-2-4-128, Aumasson and Bernstein 2012). A single int or long key is not hashed: its hash *is* the value, so such keys
can never collide. An int and a long, or a float and a double, of the same value are the same key, so a widened column keeps its
hashes. Keys are equal as PostgreSQL has it (0.0 is -0.0); rows are equal if every value of theirs is the same value.
Never compiles at import; the first call loads numba's cache. Fails with ``UnsupportedTable`` on a type that is no key.

The encoding under the hash is a sequence of 64-bit words: per column a header word (0 for null, 1 for a value of fixed width,
2 + length in bytes for text and binary), then the value, little-endian and padded with zeros. It can be read back unambiguously
for a given table, so values cannot run into one another. Inside a row, a struct is one value of 16 bytes, the hash of its fields; a
list is 2 + its length and the hashes of its elements; a map is the list of its entries, ordered by their hashes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icelake.compiled import kernel
from icelake.errors import UnsupportedTable

Hashes = npt.NDArray[np.uint64]
"""[n, 2]"""

_ONES = (1 << 64) - 1


@kernel
def home_slot(size, k0, k1, a, b):  # type: ignore[no-untyped-def]
    """Where a hash belongs in an open-addressing table of ``size`` slots; ``k0``, ``k1``: the table's seed.

    Integer keys are their own hash, so all are mixed, with the seed, before they choose a slot (the finalizer of MurmurHash3).
    """
    x = a ^ (b * np.uint64(0x9E3779B97F4A7C15)) ^ k0
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x = (x + k1) * np.uint64(0xC4CEB9FE1A85EC53)
    return np.int64(((x >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))


def hash_keys(keys: pa.RecordBatch, seed: tuple[int, int]) -> Hashes:
    """One hash a row of the key columns, in their order: uint64 [n, 2]. ``seed``: two 64-bit numbers.

    Raises UnsupportedTable for a column type that ``ports.arrow_type`` does not give.
    """
    n = keys.num_rows
    columns = keys.columns
    if len(columns) == 1 and pa.types.is_signed_integer(columns[0].type):
        column = columns[0]
        out = np.empty((n, 2), np.uint64)
        if n:
            _plain(_fixed(column), *_validity(column), out)
        return out
    if not columns:
        raise UnsupportedTable("KEY_MISSING", "a key without columns", "rows cannot be told apart", "give the table a primary key")
    for column in columns:
        if pa.types.is_nested(column.type):
            raise _no_key(column.type)
    return _hash(columns, n, seed, exact=False)


def hash_rows(rows: pa.RecordBatch, seed: tuple[int, int]) -> Hashes:
    """One hash a row of all columns, nested ones too, in their order: uint64 [n, 2]. ``seed``: two 64-bit numbers.

    Two rows have one hash only if every value is the same: null is only null, -0.0 is not 0.0, all NaNs are one, and maps are the
    same whatever the order of their entries. Raises UnsupportedTable for a column type that ``ports.arrow_type`` does not give.
    """
    return _hash(rows.columns, rows.num_rows, seed, exact=True)


def _hash(columns: Sequence["pa.Array[Any]"], n: int, seed: tuple[int, int], *, exact: bool) -> Hashes:
    out = np.empty((n, 2), np.uint64)
    if not n:
        return out
    state = np.empty((n, 5), np.uint64)
    _begin(np.uint64(seed[0] & _ONES), np.uint64(seed[1] & _ONES), state)
    for column in columns:
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            _absorb_bytes(state, *_text(column, np.dtype(np.int32)), *_validity(column))
        elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
            _absorb_bytes(state, *_text(column, np.dtype(np.int64)), *_validity(column))
        elif pa.types.is_fixed_size_binary(kind) or pa.types.is_decimal128(kind):
            _absorb_wide(state, _wide(column), *_validity(column))
        elif pa.types.is_struct(kind):
            _absorb_wide(state, _read_only(_hash(_parts(column), n, seed, exact=exact)), *_validity(column))
        elif pa.types.is_list(kind) or pa.types.is_map(kind):
            offsets, below = _elements(column)
            hashes = _hash([below], len(below), seed, exact=exact)
            if pa.types.is_map(kind):
                row = np.repeat(np.arange(n), np.diff(offsets))
                hashes = hashes[np.lexsort((hashes[:, 1], hashes[:, 0], row))]
            _absorb_list(state, _read_only(offsets), _read_only(hashes), *_validity(column))
        else:
            _absorb_word(state, _fixed(column, exact=exact), *_validity(column))
    _finish(state, out)
    return out


def _no_key(kind: pa.DataType) -> UnsupportedTable:
    return UnsupportedTable("KEY_TYPE", f"a key column of type {kind}", "such values have no canonical form here", "choose another key")


# -------------------------------------------------------------------------------- Arrow arrays as read-only numpy arrays


def _view(buffer: pa.Buffer | None, dtype: np.dtype[Any], start: int, count: int) -> npt.NDArray[Any]:
    if buffer is None or not count:
        array: npt.NDArray[Any] = np.empty(0, dtype)
    else:
        array = np.frombuffer(memoryview(buffer), dtype, count, start * dtype.itemsize)
    # Always read-only, whatever the buffer is: numba compiles again for every combination.
    array.flags.writeable = False
    return array


def _validity(column: "pa.Array[Any]") -> tuple[npt.NDArray[Any], int]:
    """(bitmap, first bit); an empty bitmap: no nulls."""
    if not column.null_count:
        return _view(None, np.dtype(np.uint8), 0, 0), 0
    start, skip = divmod(column.offset, 8)
    return _view(column.buffers()[0], np.dtype(np.uint8), start, (skip + len(column) + 7) // 8), skip


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = np.ascontiguousarray(array).reshape(-1)
    array.flags.writeable = False
    return array


def _parts(column: Any) -> list[Any]:
    """The fields of a struct array, row by row its own."""
    return [column.field(place) for place in range(column.type.num_fields)]


def _elements(column: Any) -> tuple[npt.NDArray[np.int64], Any]:
    """(offsets [n + 1], from 0; all elements) of a list array; of a map, whose elements are structs of key and value."""
    offsets = _view(column.buffers()[1], np.dtype(np.int32), column.offset, len(column) + 1).astype(np.int64)
    return offsets - offsets[0], column.values.slice(offsets[0], offsets[-1] - offsets[0])


def _fixed(column: "pa.Array[Any]", *, exact: bool = False) -> npt.NDArray[Any]:
    """Values of at most 64 bits as int64; floats as the bits of a canonical double. ``exact``: which keeps the sign of zero."""
    kind, n, at = column.type, len(column), column.offset
    values: npt.NDArray[Any]
    if pa.types.is_boolean(kind):
        start, skip = divmod(at, 8)
        bits = np.unpackbits(_view(column.buffers()[1], np.dtype(np.uint8), start, (skip + n + 7) // 8), bitorder="little")
        values = bits[skip : skip + n].astype(np.int64)
    elif pa.types.is_int64(kind) or pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        values = _view(column.buffers()[1], np.dtype(np.int64), at, n)
    elif pa.types.is_int32(kind) or pa.types.is_date32(kind):
        values = _view(column.buffers()[1], np.dtype(np.int32), at, n).astype(np.int64)
    elif pa.types.is_float32(kind) or pa.types.is_float64(kind):
        dtype = np.dtype(np.float32) if pa.types.is_float32(kind) else np.dtype(np.float64)
        floats = _view(column.buffers()[1], dtype, at, n).astype(np.float64)
        if not exact:
            # 0.0 and -0.0 are one key to PostgreSQL, and so are all NaNs.
            floats += 0.0
        floats[np.isnan(floats)] = np.nan
        values = floats.view(np.int64)
    else:
        raise _no_key(kind)
    values.flags.writeable = False
    return values


def _wide(column: "pa.Array[Any]") -> npt.NDArray[Any]:
    """16-byte values (uuid, decimal) as uint64 [n * 2]."""
    if column.type.byte_width != 16:
        raise UnsupportedTable("KEY_TYPE", f"a key column of type {column.type}", "only 16 bytes are expected", "choose another key")
    return _view(column.buffers()[1], np.dtype(np.uint64), column.offset * 2, len(column) * 2)


def _text(column: "pa.Array[Any]", dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(offsets [n + 1], all bytes)"""
    _, offsets, data = column.buffers()
    return _view(offsets, dtype, column.offset, len(column) + 1), _view(data, np.dtype(np.uint8), 0, data.size if data is not None else 0)


# --------------------------------------------------------------------------------------------------------------- kernels
# state [n, 5]: SipHash's v0..v3, and how many words were absorbed.


@kernel
def _null(bitmap, bit):  # type: ignore[no-untyped-def]
    return bitmap.shape[0] != 0 and (bitmap[bit >> 3] >> (bit & 7)) & 1 == 0


@kernel
def _round(v0, v1, v2, v3):  # type: ignore[no-untyped-def]
    v0 += v1
    v1 = (v1 << np.uint64(13)) | (v1 >> np.uint64(51))
    v1 ^= v0
    v0 = (v0 << np.uint64(32)) | (v0 >> np.uint64(32))
    v2 += v3
    v3 = (v3 << np.uint64(16)) | (v3 >> np.uint64(48))
    v3 ^= v2
    v0 += v3
    v3 = (v3 << np.uint64(21)) | (v3 >> np.uint64(43))
    v3 ^= v0
    v2 += v1
    v1 = (v1 << np.uint64(17)) | (v1 >> np.uint64(47))
    v1 ^= v2
    v2 = (v2 << np.uint64(32)) | (v2 >> np.uint64(32))
    return v0, v1, v2, v3


@kernel
def _absorb(state, row, word):  # type: ignore[no-untyped-def]
    v0, v1, v2, v3 = state[row, 0], state[row, 1], state[row, 2], state[row, 3] ^ word
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    state[row, 0] = v0 ^ word
    state[row, 1] = v1
    state[row, 2] = v2
    state[row, 3] = v3
    state[row, 4] += np.uint64(1)


@kernel
def _begin(k0, k1, state):  # type: ignore[no-untyped-def]
    for row in range(state.shape[0]):
        state[row, 0] = k0 ^ np.uint64(0x736F6D6570736575)
        state[row, 1] = k1 ^ np.uint64(0x646F72616E646F6D) ^ np.uint64(0xEE)
        state[row, 2] = k0 ^ np.uint64(0x6C7967656E657261)
        state[row, 3] = k1 ^ np.uint64(0x7465646279746573)
        state[row, 4] = np.uint64(0)


@kernel
def _finish(state, out):  # type: ignore[no-untyped-def]
    for row in range(state.shape[0]):
        _absorb(state, row, (state[row, 4] * np.uint64(8)) << np.uint64(56))
        v0, v1, v2, v3 = state[row, 0], state[row, 1], state[row, 2] ^ np.uint64(0xEE), state[row, 3]
        for _ in range(4):
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        out[row, 0] = v0 ^ v1 ^ v2 ^ v3
        v1 ^= np.uint64(0xDD)
        for _ in range(4):
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        out[row, 1] = v0 ^ v1 ^ v2 ^ v3


@kernel
def _plain(values, bitmap, skip, out):  # type: ignore[no-untyped-def]
    for row in range(values.shape[0]):
        if _null(bitmap, skip + row):
            out[row, 0] = np.uint64(0)
            out[row, 1] = np.uint64(1)
        else:
            out[row, 0] = np.uint64(values[row])
            out[row, 1] = np.uint64(0)


@kernel
def _absorb_word(state, values, bitmap, skip):  # type: ignore[no-untyped-def]
    for row in range(state.shape[0]):
        if _null(bitmap, skip + row):
            _absorb(state, row, np.uint64(0))
        else:
            _absorb(state, row, np.uint64(1))
            _absorb(state, row, np.uint64(values[row]))


@kernel
def _absorb_wide(state, values, bitmap, skip):  # type: ignore[no-untyped-def]
    for row in range(state.shape[0]):
        if _null(bitmap, skip + row):
            _absorb(state, row, np.uint64(0))
        else:
            _absorb(state, row, np.uint64(1))
            _absorb(state, row, values[2 * row])
            _absorb(state, row, values[2 * row + 1])


@kernel
def _absorb_list(state, offsets, hashes, bitmap, skip):  # type: ignore[no-untyped-def]
    for row in range(state.shape[0]):
        if _null(bitmap, skip + row):
            _absorb(state, row, np.uint64(0))
            continue
        _absorb(state, row, np.uint64(2 + offsets[row + 1] - offsets[row]))
        for at in range(2 * offsets[row], 2 * offsets[row + 1]):
            _absorb(state, row, hashes[at])


@kernel
def _absorb_bytes(state, offsets, data, bitmap, skip):  # type: ignore[no-untyped-def]
    for row in range(state.shape[0]):
        if _null(bitmap, skip + row):
            _absorb(state, row, np.uint64(0))
            continue
        at = np.int64(offsets[row])
        end = np.int64(offsets[row + 1])
        _absorb(state, row, np.uint64(2 + end - at))
        while at < end:
            word = np.uint64(0)
            for byte in range(8):
                if at + byte < end:
                    word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
            _absorb(state, row, word)
            at += 8
