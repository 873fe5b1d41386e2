"""The kernels that read PostgreSQL's bytes, compiled and interpreted, against their twins."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icelake.sources.postgres import kernels as k
from tests.twins import postgres as twins
from tests.twins.postgres import WRONG, Scanned, Text, column
from tests.twins.ways import run
from tests.unit.sources.postgres import wire

often = settings(deadline=None, max_examples=1000 if os.environ.get("ICELAKE_FULL") else 25)
UNSENT = object()


def fixed(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def fields(texts: Sequence[Any], beside: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts in a buffer with something else between them: whoever reads on reads that."""
    data = bytearray()
    start, length = [], []
    for text in texts:
        start.append(len(data))
        length.append(k.NULL if text is None else k.UNCHANGED if text is UNSENT else len(text))
        data += text if isinstance(text, bytes) else b""
        data += beside
    return fixed(bytes(data)), np.array(start, np.int32), np.array(length, np.int32)


def ints(count: int, kind: Any = np.int32) -> np.ndarray:
    """Room for numbers, not empty before."""
    return np.full(count, -7, np.int64).astype(kind)


# ---------------------------------------------------------------------------------------------------------------- numbers


@given(st.binary(min_size=8, max_size=8))
@often
def test_numbers(data: bytes) -> None:
    for kernel, twin, at in ((k._u16, twins.u16, 6), (k.u32, twins.u32, 4), (k.i64, twins.i64, 0), (k._two, twins.two, 6)):
        assert run(kernel, fixed(data), at)[0] == twin(data, at)


@given(st.from_regex(rb"[/0-9:]{2}", fullmatch=True))
def test_two_digits(data: bytes) -> None:
    assert run(k._two, fixed(data), 0)[0] == twins.two(data, 0)


def test_a_hexadecimal_digit() -> None:
    for byte in range(256):
        assert run(k._nibble, byte)[0] == twins.nibble(byte)


# --------------------------------------------------------------------------------------------------- the text of one value

digits = st.text("0123456789", max_size=25).map(str.encode)
edges = st.sampled_from([2**n + d for n in (0, 7, 15, 31, 32, 63, 64, 127) for d in (-1, 0, 1)])
numbers = st.one_of(edges, edges.map(int.__neg__), st.integers(-(10**40), 10**40), st.integers(-99, 99)).map(lambda n: str(n).encode())
leading = st.builds(
    lambda sign, zeros, rest: sign + zeros + rest, st.sampled_from([b"", b"-", b"+"]), st.sampled_from([b"", b"0", b"00"]), digits
)
days = st.builds(
    lambda year, month, day: b"%04d-%02d-%02d" % (year, month, day),
    st.one_of(st.integers(0, 12_000), st.sampled_from([1, 4, 100, 400, 1900, 2000, 4714, 290_000, 294_247, 294_248, 5_874_897, 9_999_999])),
    st.integers(0, 13),
    st.integers(0, 32),
)
times = st.builds(
    lambda hour, minute, second, fraction: b"%02d:%02d:%02d" % (hour, minute, second) + fraction,
    st.integers(0, 24),
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from([b"", b"", b".5", b".000001", b".775807", b".775808", b".999999", b".", b".1234567"]),
)
zones = st.sampled_from(
    [b"", b"+00", b"-00", b"+14", b"-15:59:59", b"+05:30", b"+99:59:59", b"-99", b"+5", b"+00:60", b"+00:00:60", b"+00:"]
)
eras = st.sampled_from([b"", b"", b"", b" BC", b" AD", b"BC"])
special = st.sampled_from([b"", b"-", b"NaN", b"Infinity", b"-Infinity", b"infinity", b"-infinity", b"24:00:00", b" BC", b"nan", b"-NaN"])
dates = st.builds(bytes.__add__, days, eras)
timestamps = st.builds(lambda *pieces: b"".join(pieces), days, st.just(b" "), times, zones, eras)
decimals = st.builds(
    lambda sign, whole, fraction: sign + whole + fraction,
    st.sampled_from([b"", b"-"]),
    st.one_of(digits, st.just(b"9" * 38), st.just(b"0" * 5)),
    st.one_of(st.just(b""), digits.map(lambda text: b"." + text), st.just(b".500" + b"0" * 30)),
)
floats = st.one_of(
    st.floats().map(lambda value: repr(value).encode()),
    st.builds(lambda number, power: number + b"e%+d" % power, decimals, st.integers(-400, 400)),
    st.sampled_from([b"1e", b"1e+", b"1.", b".5", b"1e5e5", b"-", b"1.e5", b"0e-999", b"0.000", b"-0", b"-Infinit", b"Infinitz", b"Inf"]),
)
uuids = st.uuids().map(lambda value: str(value).encode())
hexadecimal = st.binary(max_size=20).map(lambda data: data.hex().encode())


def damaged(texts: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[Text]]:
    """Such texts, nulls among them, some with a byte changed, lost or added."""

    def spoil(text: bytes, at: int, byte: int, how: int) -> bytes:
        at %= len(text) + 1
        return text[:at] + (bytes([byte]) if how < 2 else b"") + text[at + (how > 0) :]

    odd = st.one_of(st.integers(0, 255), st.sampled_from(b'0:9/-+. \\"xXgGe'))
    return st.lists(
        st.one_of(st.none(), texts, texts, texts, texts, special, st.builds(spoil, texts, st.integers(0, 99), odd, st.integers(0, 2))),
        max_size=6,
    )


beside = st.sampled_from([b"0", b"00000000", b"", b"-", b"f", b" BC", b"+00", b'"', b"\\"])


def same_column(
    kernel: Any, texts: list[Text], around: bytes, read: Callable[[bytes], object], *more: Any, kind: Any, wide: int = 1
) -> Any:
    """Reads them all; (what is expected, and what was written for those)."""
    at, after = run(kernel, *fields(texts, around), *more, ints(len(texts) * wide, kind))
    count, expected = column(texts, read)
    assert at == count, (texts, read)
    return expected, after[-1][: count * wide]


@given(damaged(numbers | leading), beside)
@often
def test_integers(texts: list[Text], around: bytes) -> None:
    for low, high, kind in (
        (-(2**15), 2**15 - 1, np.int32),
        (-(2**31), 2**31 - 1, np.int32),
        (-(2**63), 2**63 - 1, np.int64),
        (0, 2**32 - 1, np.int64),
    ):
        expected, found = same_column(k.parse_int, texts, around, partial(twins.integer, low=low, high=high), low, high, kind=kind)
        assert found.tolist() == [value or 0 for value in expected]


@given(damaged(st.sampled_from([b"t", b"f", b"true", b"T", b"1"])), beside)
@often
def test_booleans(texts: list[Text], around: bytes) -> None:
    at, after = run(k.parse_bool, *fields(texts, around), np.zeros((len(texts) + 7) // 8, np.uint8))
    count, expected = column(texts, twins.boolean)
    assert at == count
    assert np.unpackbits(after[-1], bitorder="little")[:count].tolist() == [bool(value) for value in expected]


@given(damaged(dates), beside)
@example([b"5874897-12-31", b"4714-11-24 BC", b"0001-01-01 BC", b"0004-02-29 BC", b"0001-02-29 BC"], b"0")
@often
def test_days(texts: list[Text], around: bytes) -> None:
    expected, found = same_column(k.parse_date, texts, around, twins.day, kind=np.int32)
    assert found.tolist() == [value or 0 for value in expected]


@given(damaged(times), beside)
@often
def test_times(texts: list[Text], around: bytes) -> None:
    expected, found = same_column(k.parse_time, texts, around, twins.time_of_day, kind=np.int64)
    assert found.tolist() == [value or 0 for value in expected]


@given(damaged(timestamps), beside)
@example([b"294247-01-10 04:00:54.775807+00", b"294247-01-10 04:00:54.775808+00"], b"")
@example([b"294247-01-14 04:00:00+99:00:00", b"294247-01-10 05:00:00+01", b"294247-01-10 04:00:54.775807-00:00:01"], b"")
@example([b"290307-12-21 00:00:00 BC", b"290308-12-21 20:00:00 BC"], b"")
@often
def test_timestamps(texts: list[Text], around: bytes) -> None:
    for zoned in (False, True):
        expected, found = same_column(k.parse_timestamp, texts, around, partial(twins.timestamp, zoned=zoned), zoned, kind=np.int64)
        assert found.tolist() == [value or 0 for value in expected]


@given(damaged(decimals | numbers), beside)
@often
def test_decimals(texts: list[Text], around: bytes) -> None:
    for precision, scale in ((38, 0), (38, 37), (38, 10), (10, 2), (1, 1)):
        expected, found = same_column(
            k.parse_decimal,
            texts,
            around,
            partial(twins.decimal, precision=precision, scale=scale),
            precision,
            scale,
            kind=np.uint64,
            wide=2,
        )
        assert [int.from_bytes(one, "little", signed=True) for one in np.split(found.view(np.uint8), len(expected) or 1)][
            : len(expected)
        ] == [value or 0 for value in expected]


@given(damaged(uuids), beside)
@often
def test_uuids(texts: list[Text], around: bytes) -> None:
    expected, found = same_column(k.parse_uuid, texts, around, twins.uuid_bytes, kind=np.uint8, wide=16)
    assert found.tobytes() == b"".join(bytes(16) if value is None else value for value in expected)


@given(damaged(hexadecimal | hexadecimal.map(lambda text: b"\\x" + text)), beside)
@often
def test_bytes(texts: list[Text], around: bytes) -> None:
    for prefix in (b"\\x", b""):
        buffer, start, length = fields(texts, around)
        at, (*_, sizes) = run(k.hex_lengths, buffer, start, length, len(prefix), ints(len(texts)))
        count, expected = column(texts, partial(twins.hex_length, prefix=prefix))
        assert at == count
        assert sizes[:count].tolist() == [-1 if size is None else size for size in expected]
        if count < len(texts):
            continue
        offsets = np.array([0, *np.cumsum(np.maximum(sizes, 0))], np.int32)
        at, (*_, out) = run(k.parse_hex, buffer, start, length, len(prefix), offsets, ints(int(offsets[-1]), np.uint8))
        count, read = column(texts, partial(twins.hex_bytes, prefix=prefix))
        assert at == count
        together = b"".join(value for value in read if isinstance(value, bytes))
        assert out.tobytes()[: len(together)] == together


@given(damaged(floats), beside)
@often
def test_floats(texts: list[Text], around: bytes) -> None:
    at, _ = run(k.check_floats, *fields(texts, around))
    count, _ = column(texts, twins.is_float)
    assert at == count
    texts = texts[:count]
    for kind in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            values = np.array([0 if text is None else float(text) for text in texts], np.float64).astype(kind)
        wrong = [text is not None and twins.was_read(text, float(value)) is WRONG for text, value in zip(texts, values, strict=True)]
        assert run(k.check_float_results, *fields(texts, around), values)[0] == (wrong.index(True) if any(wrong) else count)


# ------------------------------------------------------------------------------------------------------------- whole columns

lengths = st.lists(st.sampled_from([k.UNCHANGED, k.NULL, 0, 1, 5, 2**30 - 1, 2**30, 2**31 - 1]), max_size=20)


@given(lengths)
@example([2**30, 2**30 - 1])
@example([2**30, 2**30])
@often
def test_lengths(sizes: list[int]) -> None:
    length = np.array(sizes, np.int32)
    bitmap = np.zeros((len(sizes) + 7) // 8, np.uint8)
    nulls, valid = twins.validity(sizes)
    found, after = run(k.nulls, length, bitmap)
    assert found == nulls
    assert np.unpackbits(after[-1], bitorder="little")[: len(sizes)].tolist() == valid
    assert run(k.unsent, length, np.zeros(len(sizes), np.bool_))[1][-1].tolist() == twins.unsent(sizes)
    (total, missing), (_, offsets, laid) = run(k.lay_out, length, ints(len(sizes) + 1), bitmap)
    expected = twins.offsets(sizes)
    if expected is None:
        assert total == -1
        return
    assert (total, missing, offsets.tolist(), laid.tolist()) == (expected[-1], nulls, expected, after[-1].tolist())


@given(
    st.lists(st.none() | st.binary(max_size=6) | st.sampled_from([b"plain", b"\x7f", b"\x80", b"a\0", "ä".encode()]), max_size=6), beside
)
@often
def test_gathering(texts: list[Text], around: bytes) -> None:
    offsets = np.array(twins.offsets([len(text or b"") for text in texts]), np.int32)
    plain, (*_, out) = run(k.gather, *fields(texts, around), offsets, ints(int(offsets[-1]), np.uint8))
    assert (plain, out.tobytes()) == twins.gathered(texts)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 2))
@often
def test_groups(layout: list[int], more: int) -> None:
    groups = max(layout, default=-1) + 1 + more
    _, (_, order, bounds) = run(k.group, np.array(layout, np.int32), groups, ints(len(layout)), ints(groups + 1, np.int64))
    assert [order[bounds[g] : bounds[g + 1]].tolist() for g in range(groups)] == twins.group(layout, groups)


# ----------------------------------------------------------------------------------------------------------------- COPY text

pieces = st.sampled_from([b"a", b"1", b"\\N", b"\\", b"\\\\", b"\\n", b"\\t", b"\\x", b"\\.", b"\xff", b"\r", b"N", b"\\b\\f\\r\\v"])
rows_of_text = st.lists(st.lists(pieces | st.sampled_from([b"\t", b"\t", b"\n", b"\n"]), max_size=20).map(b"".join), max_size=4).map(
    b"".join
)
whole_lines = st.lists(st.tuples(*[st.lists(pieces, max_size=3).map(b"".join)] * 3).map(b"\t".join), max_size=4).map(
    lambda found: b"".join(line + b"\n" for line in found)
)


@given(rows_of_text | whole_lines, st.integers(1, 3) | st.just(3))
@often
def test_lines(block: bytes, columns: int) -> None:
    count, _ = run(k.count_lines, fixed(block))
    assert count == twins.count_lines(block)
    shape = (columns, count)
    at, (_, start, length, escaped) = run(
        k.scan_lines, fixed(block), np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(columns, np.int64)
    )
    wrong, rows = twins.lines(block, columns)
    assert at == wrong
    if wrong < 0:
        found = [
            [None if length[c, n] < 0 else block[start[c, n] : start[c, n] + length[c, n]] for c in range(columns)] for n in range(count)
        ]
        assert found == rows
        assert escaped.tolist() == [sum(b"\\" in (row[c] or b"") for row in rows) for c in range(columns)]


@given(st.lists(st.none() | st.lists(pieces, max_size=4).map(b"".join), max_size=6), st.sampled_from([b"", b"n", b"\\"]))
@often
def test_escapes(texts: list[Text], around: bytes) -> None:
    buffer, start, length = fields(texts, around)
    at, (*_, out, new_start, new_length) = run(
        k.unescape, buffer, start, length, ints(len(buffer), np.uint8), ints(len(texts)), ints(len(texts))
    )
    count, expected = column(texts, twins.unescaped)
    assert at == count
    places = zip(new_start[:count].tolist(), new_length[:count].tolist(), strict=True)
    assert [None if size < 0 else out[begin : begin + size].tobytes() for begin, size in places] == expected


# --------------------------------------------------------------------------------------------------------- values with parts

letters = st.sampled_from(
    [
        b"a",
        b"1",
        b"NULL",
        b"null",
        b'"',
        b'""',
        b"\\",
        b"\\\\",
        b'\\"',
        b",",
        b";",
        b" ",
        b"\n",
        b"{",
        b"}",
        b"(",
        b")",
        b"[",
        b"]",
        b"=>",
        b", ",
        b"\xff",
        b"\0",
    ]
)
noise = st.lists(letters, max_size=8).map(b"".join)
words = st.lists(st.sampled_from([b"a", b"1", b"NULL", b"-", b"\xc3\xa4"]), min_size=1, max_size=3).map(b"".join)
anything = st.lists(letters, max_size=4).map(b"".join)
quoted = anything.map(lambda text: b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"')
doubled = anything.map(lambda text: b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'""') + b'"')
ranges = st.builds(
    lambda a, b, c, d: a + b + b"," + c + d,
    st.sampled_from([b"[", b"("]),
    words | doubled,
    words | doubled | st.just(b""),
    st.sampled_from([b"]", b")"]),
)


def between(first: bytes, items: st.SearchStrategy[bytes], delimiter: bytes, last: bytes, most: int = 4) -> st.SearchStrategy[bytes]:
    return st.lists(items, max_size=most).map(lambda found: first + delimiter.join(found) + last)


GRAMMARS: dict[int, tuple[st.SearchStrategy[bytes], bytes]] = {
    k.ARRAY: (between(b"{", words | quoted, b",", b"}"), b","),
    k.RECORD: (between(b"(", words | doubled | st.just(b""), b",", b")"), b","),
    k.RANGE: (ranges, b","),
    k.MULTIRANGE: (between(b"{", ranges, b",", b"}"), b","),
    k.VECTOR: (between(b"[", words, b",", b"]"), b","),
    k.HSTORE: (between(b"", st.builds(lambda key, value: key + b"=>" + value, quoted, quoted | st.just(b"NULL")), b", ", b""), b","),
}


@pytest.mark.parametrize("grammar", GRAMMARS)
@given(data=st.data())
@often
def test_parts(grammar: int, data: st.DataObject) -> None:
    right, delimiter = GRAMMARS[grammar]
    if grammar == k.ARRAY and data.draw(st.booleans()):
        delimiter = b";"
        right = between(b"{", words | quoted, b";", b"}")
    texts = data.draw(damaged(right | right | noise))
    width = data.draw(st.sampled_from([-1, -1, 2]))
    room = data.draw(st.sampled_from([100, 100, 3, 0]))
    buffer, start, length = fields(texts, data.draw(st.sampled_from([b"", b'"', b",", b"}", b"\\"])))
    total = sum(len(text or b"") for text in texts)
    rows: list[list[Text] | None] = []
    for text in texts:
        row = None if text is None else twins.parts(text, grammar, delimiter)
        if text is not None and (row is None or width not in (-1, len(row)) or sum(len(one or ()) for one in rows) + len(row) > room):
            break
        rows.append(row)
    _, (*_, out, part_start, part_length, offsets, state) = run(
        k.split, buffer, start, length, grammar, delimiter[0], width,
        ints(total, np.uint8), ints(room), ints(room), ints(len(texts) + 1), np.zeros(3, np.int64),
    )  # fmt: skip
    done, filled, count = state.tolist()
    assert done == len(rows), texts
    places = zip(part_start[:count].tolist(), part_length[:count].tolist(), strict=True)
    found = [None if size < 0 else out[begin : begin + size].tobytes() for begin, size in places]
    assert [None if row is None else found[offsets[at] : offsets[at + 1]] for at, row in enumerate(rows)] == rows
    assert filled == sum(len(one or b"") for one in found)


# ----------------------------------------------------------------------------------------------------------------- pgoutput

ORDERS = wire.relation(100, "orders", [("id", 23), ("t", 25), ("n", 23)], ["id"])
value = st.one_of(st.none(), st.just(wire.UNSENT), st.integers(-99, 99), st.binary(max_size=5))
row = st.one_of(st.tuples(value, value, value), st.tuples(st.integers(1, 9), value, value), st.lists(value, max_size=4))
oids = st.sampled_from([100, 100, 100, 7, 50, 2**32 - 1])
message = st.one_of(
    st.builds(wire.insert, oids, row),
    st.builds(wire.update, oids, row),
    st.builds(wire.update, oids, row, key=row),
    st.builds(wire.update, oids, row, old=row),
    st.builds(wire.delete, oids, key=row),
    st.builds(wire.delete, oids, old=row),
)
LSNS = st.sampled_from([0, 5, 2**63 - 1])
other = st.one_of(
    st.builds(wire.begin, LSNS, st.sampled_from([0, 10**15, 2**63 - 1])),
    st.builds(wire.commit, LSNS, LSNS, st.sampled_from([0, 10**15])),
    st.builds(wire.truncate, oids),
    st.just(wire.relation_message(ORDERS)),
    st.sampled_from([b"Y" + bytes(9), b"O", b"M" + bytes(20), b"S" + bytes(12), b"?", b""]),
)


def spoiled(messages: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def spoil(text: bytes, at: int, byte: int, lost: int) -> bytes:
        at %= len(text) + 1
        return text[:at] + (bytes([byte]) if lost < 2 else b"") + text[at + 1 :] if lost else text[:at]

    byte = st.one_of(st.integers(0, 255), st.sampled_from(b"tunNKO\x00\x03"))
    return st.one_of(messages, messages, messages, st.builds(spoil, messages, st.integers(0, 60), byte, st.integers(0, 2)))


def transactions(messages: list[bytes]) -> bytes:
    return wire.frame(wire.begin(5), *messages, wire.commit(5, 6))


@given(
    st.one_of(
        st.lists(spoiled(message | other), max_size=6).map(lambda found: wire.frame(*found)),
        spoiled(st.lists(message | other, max_size=5).map(transactions)),
        st.lists(message, max_size=5).map(transactions),
    ),
    st.booleans(),
)
@often
def test_frames(data: bytes, inside: bool) -> None:
    layouts = {50: 1, 100: 0, 2**32 - 1: 2}
    known = np.array(sorted(layouts), np.int64), np.array([layouts[oid] for oid in sorted(layouts)], np.int32)
    was = Scanned(open=inside, final_lsn=5 if inside else 0)
    room = len(data) // 4 + 2
    state = np.zeros(k.STATE, np.int64)
    state[k.OPEN], state[k.FINAL_LSN] = was.open, was.final_lsn
    arrays: list[Any] = [
        state,
        *known,
        np.zeros((len(data) // 25 + 1, 3), np.int64),
        ints(room, np.uint8),
        *(ints(room) for _ in range(3)),
        ints(room, np.int64),
    ]
    while True:
        status, (_, *arrays) = run(k.scan_frames, fixed(data), *arrays)
        was = twins.scan_frames(data, layouts, was)
        state, _, _, begun, kind, body, end, layout, lsn = arrays
        count = int(state[k.COUNT])
        changes = zip(*(one[:count].tolist() for one in (kind, body, end, layout, lsn)), strict=True)
        assert status == was.status
        assert list(changes) == was.changes
        assert [tuple(one) for one in begun[: state[k.BEGUN]].tolist()] == was.begun
        places = (k.AT, k.OPEN, k.FINAL_LSN, k.POSITION, k.COMMIT_TIME, k.TRANSACTIONS)
        assert [int(state[place]) for place in places] == [was.at, was.open, was.final_lsn, was.position, was.commit_time, was.transactions]
        if status not in (k.RELATION, k.TRUNCATED):
            break
        assert (int(body[count]), int(end[count])) == was.message


@given(
    st.lists(spoiled(message | st.just(b"T")), max_size=5),
    st.sampled_from([((0, 1, 2), (0, -1, -1)), ((2, -1, 0), (1, -1, 0)), ((0, 1, 2), (0, 1, 2)), ((-1, -1, 0), (-1, -1, -1))]),
    st.booleans(),
)
@often
def test_tuples(messages: list[bytes], columns: tuple[tuple[int, ...], tuple[int, ...]], whole: bool) -> None:
    target, key = columns
    messages = [one for one in messages if one[:1] in (b"I", b"U", b"D", b"T")]
    data = b"N\x00\x03ttt".join(messages)
    kind, body, end, at = [], [], [], 0
    for one in messages:
        kind.append(one[0])
        body.append(min(at + 5, at + len(one)))
        end.append(at + len(one))
        at += len(one) + 6
    wanted, keys, n = max(target) + 1, max(key) + 1, len(messages)
    (status, where), (*_, op, start, length, key_start, key_length, missing) = run(
        k.scan_tuples, fixed(data), np.arange(n, dtype=np.int32), np.array(kind, np.uint8), np.array(body, np.int32),
        np.array(end, np.int32),
        np.array(target, np.int32), np.array(key, np.int32), whole,
        np.full(n, 9, np.uint8), np.zeros((wanted, n), np.int32), np.zeros((wanted, n), np.int32),
        np.zeros((keys, n), np.int32), np.zeros((keys, n), np.int32), np.zeros(wanted, np.int64),
    )  # fmt: skip

    def places(starts: np.ndarray, sizes: np.ndarray, at: int) -> dict[int, object]:
        return {c: (int(starts[c, at]), size) if (size := int(sizes[c, at])) >= 0 else size for c in range(len(starts))}

    unsent = [0] * wanted
    for at in range(n):
        expected = twins.change(data, kind[at], body[at], end[at], target, key, whole)
        if isinstance(expected, set):
            assert status in expected
            assert where == body[at]
            return

        def simply(places: dict[int, twins.Place], width: int) -> dict[int, object]:
            return {c: k.NULL if c not in places else places[c] if places[c][1] >= 0 else places[c][1] for c in range(width)}

        assert int(op[at]) == expected.op
        assert places(start, length, at) == simply(expected.new, wanted)
        assert places(key_start, key_length, at) == simply(expected.key, keys)
        for c in range(wanted):
            unsent[c] += int(length[c, at]) == k.UNCHANGED
    assert status == k.DONE
    assert missing.tolist() == unsent
