"""Partition transforms over whole columns: which partition each row belongs to.

Promises the values of the spec (Iceberg spec, Partition Transforms; Appendix B, 32-bit Hash Requirements) for every value of every
type they take, dates before Christ included. Null stays null. A value whose result the result type cannot hold (the hour of a
timestamp in the year 250000, a truncated -2147483648) raises ValueOutOfContract; it is never wrapped around.

Our own, because PyIceberg's are either one value at a time or need a library in Rust of their own; they are held against each other in
tests. Never compiles at import.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from icelake.compiled import kernel
from icelake.errors import ValueOutOfContract

_HOUR = 3_600_000_000
_DAY = 24 * _HOUR
_EPOCH_YEAR = {"year": "M8[Y]", "month": "M8[M]"}


def result_type(transform: str, kind: str) -> str:
    """The Iceberg type of what ``transform`` makes of a column of type ``kind``."""
    if transform in ("identity", "truncate"):
        return kind
    # The spec says int; engines write the day as the date it is, which has the same bytes.
    return "date" if transform == "day" else "int"


def apply(transform: str, width: int | None, column: "pa.Array[Any]") -> "pa.Array[Any]":
    """``transform`` of each value, in the Arrow type of ``result_type``."""
    match transform:
        case "identity":
            return column
        case "year" | "month" | "day" | "hour":
            return _time(transform, column)
        case "bucket":
            assert width is not None
            return _nulled((hashes(column) & 0x7FFF_FFFF) % width, column, pa.int32())
    assert transform == "truncate"
    assert width is not None
    return _truncate(width, column)


def hashes(column: "pa.Array[Any]") -> npt.NDArray[np.int64]:
    """The 32-bit Murmur3 hash (x86 variant, seed 0), signed, of each value as the spec encodes it; anything for nulls."""
    n, kind = len(column), column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        _, offsets, data = column.buffers()
        assert offsets is not None
        edges = np.frombuffer(memoryview(offsets), np.int32, n + 1, column.offset * 4).astype(np.int64)
        values = np.empty(0, np.uint8) if data is None else np.frombuffer(memoryview(data), np.uint8)
        return _hash(values, edges[:-1], edges[1:])
    if pa.types.is_decimal128(kind):
        # The unscaled value in as few bytes, big-endian, as two's complement allows.
        stored = column.buffers()[1]
        assert stored is not None
        number = np.ascontiguousarray(np.frombuffer(memoryview(stored), np.uint8, n * 16, column.offset * 16).reshape(n, 16)[:, ::-1])
        sign = number[:, :1] >> 7
        idle = (number[:, :-1] == sign * 255) & (number[:, 1:] >> 7 == sign)
        ends = np.arange(1, n + 1, dtype=np.int64) * 16
        return _hash(number.reshape(-1), ends - 16 + np.cumprod(idle, axis=1).sum(axis=1), ends)
    ends = np.arange(1, n + 1, dtype=np.int64) * 8
    return _hash(whole_numbers(column).view(np.uint8), ends - 8, ends)


def whole_numbers(column: "pa.Array[Any]") -> npt.NDArray[np.int64]:
    """Days, microseconds or whole numbers of a column of a type that is stored as one; 0 for nulls."""
    kind = column.type
    stored = column.view(pa.int32() if pa.types.is_date32(kind) or pa.types.is_int32(kind) else pa.int64())
    return np.ascontiguousarray(stored.fill_null(0).to_numpy().astype(np.int64))


def _time(transform: str, column: "pa.Array[Any]") -> "pa.Array[Any]":
    values = whole_numbers(column)
    days = pa.types.is_date32(column.type)
    if transform == "day":
        return column if days else _nulled(np.floor_divide(values, _DAY), column, pa.date32())
    if transform == "hour":
        return _nulled(np.floor_divide(values, _HOUR), column, pa.int32())
    whole = values.view("M8[D]" if days else "M8[us]").astype(_EPOCH_YEAR[transform])
    return _nulled(whole.astype(np.int64), column, pa.int32())


def _truncate(width: int, column: "pa.Array[Any]") -> "pa.Array[Any]":
    kind = column.type
    if pa.types.is_string(kind):
        return pc.utf8_slice_codeunits(column, 0, width)  # Arrow means code points
    if pa.types.is_binary(kind):
        return pc.binary_slice(column, 0, width)
    values = whole_numbers(column)
    rest = np.mod(values, width)
    if (values < np.iinfo(np.int64).min + rest).any():
        raise _too_large(column)
    return _nulled(values - rest, column, kind)


def _nulled(values: npt.NDArray[Any], column: "pa.Array[Any]", kind: pa.DataType) -> "pa.Array[Any]":
    """``values`` in Arrow type ``kind``, null where ``column`` is."""
    narrow = pa.types.is_int32(kind) or pa.types.is_date32(kind)
    if narrow and len(values) and not -(1 << 31) <= int(values.min()) <= int(values.max()) < 1 << 31:
        raise _too_large(column)
    stored = values.astype(np.int32 if narrow else np.int64)
    mask = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    found: pa.Array[Any] = pa.array(stored, mask=mask)
    return found.view(kind)


def _too_large(column: "pa.Array[Any]") -> ValueOutOfContract:
    return ValueOutOfContract(
        "PARTITION_VALUE",
        f"a value of type {column.type} has no partition",
        "the table's partition transform makes a number of it that its type cannot hold",
        "nothing was committed; partition the table by something else, in a new lake",
    )


def _hash(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    out = np.empty(len(starts), np.int32)
    # Always read-only, whatever the buffer was: numba compiles again for every combination.
    data = data.view()
    data.flags.writeable = False
    _murmur3(data, starts, ends, out)
    return out.astype(np.int64)


@kernel
def _mixed(k):  # type: ignore[no-untyped-def]
    # numba makes 64 bits of what 32 bits do to one another.
    k = np.uint32(k * np.uint32(0xCC9E2D51))
    k = np.uint32((k << np.uint32(15)) | (k >> np.uint32(17)))
    return np.uint32(k * np.uint32(0x1B873593))


@kernel
def _murmur3(data, starts, ends, out):  # type: ignore[no-untyped-def]
    for row in range(starts.shape[0]):
        at, end = starts[row], ends[row]
        length = end - at
        h = np.uint32(0)
        while at + 4 <= end:
            k = np.uint32(0)
            for byte in range(4):
                k = np.uint32(k | (np.uint32(data[at + byte]) << np.uint32(8 * byte)))
            h = np.uint32(h ^ _mixed(k))
            h = np.uint32((h << np.uint32(13)) | (h >> np.uint32(19)))
            h = np.uint32(h * np.uint32(5) + np.uint32(0xE6546B64))
            at += 4
        if at < end:
            k = np.uint32(0)
            for byte in range(end - at):
                k = np.uint32(k | (np.uint32(data[at + byte]) << np.uint32(8 * byte)))
            h = np.uint32(h ^ _mixed(k))
        h = np.uint32(h ^ np.uint32(length))
        h = np.uint32(h ^ (h >> np.uint32(16)))
        h = np.uint32(h * np.uint32(0x85EBCA6B))
        h = np.uint32(h ^ (h >> np.uint32(13)))
        h = np.uint32(h * np.uint32(0xC2B2AE35))
        h = np.uint32(h ^ (h >> np.uint32(16)))
        out[row] = np.int32(h)
