from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icelake.errors import Corrupt, ValueOutOfContract
from icelake.model.relation import Column
from icelake.sources.postgres.copy_text import decode_copy, last_line
from tests.unit.sources.postgres.wire import column

ESCAPES = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\"}
TEXT = [column(name, n, 25) for n, name in enumerate("abc", 1)]
MIXED = [column("id", 1, 20), column("t", 2, 25), column("b", 3, 17), column("d", 4, 1082)]

values = st.none() | st.text(st.sampled_from("\\N.\t\n\r\b\f\vab é漢🧊"), max_size=8)


def lines(rows: Sequence[Sequence[str | None]]) -> bytes:
    def field(value: str | None) -> str:
        return "\\N" if value is None else "".join(ESCAPES.get(c, c) for c in value)

    return "".join("\t".join(field(value) for value in row) + "\n" for row in rows).encode()


@settings(deadline=None)
@given(st.lists(st.tuples(values, values, values)))
@example([("\\N", None, "N"), ("\\.", "", "\\")])
def test_text_there_and_back(rows: list[tuple[str | None, ...]]) -> None:
    block = lines(rows)
    batch = decode_copy(block, TEXT)
    batch.validate(full=True)
    assert [tuple(row.values()) for row in batch.to_pylist()] == rows
    if rows:
        assert last_line(block, 3) == rows[-1]


def test_other_columns_beside_it() -> None:
    batch = decode_copy(lines([["1", "x", "\\xff00", "2024-01-01"], [None, None, None, None]]), MIXED)
    assert batch.column("b").to_pylist() == [b"\xff\x00", None]
    assert batch.column("id").to_pylist() == [1, None]


@pytest.mark.parametrize(
    "block", [b"a\n", b"a\tb\n", b"a\tb\tc\td\n", b"a\tb\tc", b"a\tb\tc\nx\ty\n", b"\n", b"a\tb\t\\x\n", b"a\tb\t\\\n", b"a\tb\tc\na"]
)
def test_lines_that_copy_never_writes(block: bytes) -> None:
    with pytest.raises(Corrupt, match="COPY_CORRUPT"):
        decode_copy(block, TEXT)


def test_an_error_names_the_line_and_the_table() -> None:
    with pytest.raises(Corrupt, match=r"line 3 of a block of rows of shop\.orders"):
        decode_copy(b"a\tb\tc\nd\te\tf\ng\n", TEXT, "shop.orders")


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([b"\\", b"\t", b"\n", b"\\N", b"a", b"1", b"\xff", b"\\x", b"\0", b"-", b"2024-01-01", b"\\."]), max_size=40)
)
def test_noise_is_read_or_refused(pieces: list[bytes]) -> None:
    for columns in (TEXT, MIXED):
        block = b"".join(pieces)
        found = outcome(block, columns)
        # What surrounds the block in memory makes no difference.
        around = b"\t1\n\\" + block + b"\n\\x\t"
        assert outcome(memoryview(around)[4 : 4 + len(block)], columns) == found


def outcome(block: bytes | memoryview, columns: list[Column]) -> object:
    try:
        return decode_copy(block, columns).to_pylist()
    except (Corrupt, ValueOutOfContract) as error:
        return str(error)
