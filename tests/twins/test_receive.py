"""The loop over libpq's messages, against a twin: compiled over C functions that play libpq from a script, and interpreted."""

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from icelake.sources.postgres import receive
from icelake.sources.postgres.receive import EMPTY, ENDED, FULL, MESSAGE
from tests.twins.postgres import i64, u32
from tests.twins.ways import Guarded, interpreted, twin
from tests.unit.sources.postgres import wire

often = settings(deadline=None, max_examples=1000 if os.environ.get("ICELAKE_FULL") else 100)
BROKEN = receive._BROKEN
END = "COPY is over"
FAULT = "PQgetCopyData fails"
CUT = "PQconsumeInput fails"
Arrivals = Sequence[Sequence[bytes | str]]
"""What each look at the socket brings; nothing after the last."""


@dataclass
class Received:
    status: int = EMPTY
    frames: bytes = b""
    transactions: list[tuple[int, int, int]] = field(default_factory=list)
    begun: int | None = None
    news: int = 0
    message: bytes = b""
    naps: int = 0


@twin(receive._receive)
def received(
    arrivals: Arrivals, begun: int | None, start: int, foreign: Sequence[int], room: int, most: int, *, one: bool, rows: bool
) -> Received:
    """Take what has come, as long as it is ours, fits and comes; ``most`` transactions."""
    got = Received(begun=begun)
    looks = iter(arrivals)
    waiting: list[bytes | str] = []
    since, looked = 0, False
    while True:
        if not waiting:
            if looked:
                if one or since < 8 or got.naps == 25:
                    return got
                got.naps, since = got.naps + 1, 0
            waiting, looked = list(next(looks, [])), True
            if CUT in waiting:
                got.status = BROKEN
                return got
            continue
        message = waiting.pop(0)
        if isinstance(message, str):
            got.status = ENDED if message == END else BROKEN
            return got
        looked = False
        since += 1
        got.news += 1
        body = _framed(message, rows=rows)
        kind = body[:1]
        ours = not one and len(got.frames) + 4 + len(body) <= room
        if kind == b"B":
            ours = ours and len(body) >= 21 and got.begun is None and i64(body, 1) >= start
        elif kind == b"C":
            ours = ours and len(body) >= 26 and got.begun is not None and len(got.transactions) < most
        else:
            ours = ours and len(body) >= 5 and kind in (b"I", b"U", b"D")
        if not ours:
            got.status, got.message = MESSAGE, message
            return got
        if kind in (b"B", b"C") or u32(body, 1) not in foreign:
            got.frames += wire.frame(body)
        if kind == b"B":
            got.begun = i64(body, 1)
        if kind == b"C":
            assert got.begun is not None
            got.transactions.append((got.begun, i64(body, 10), len(got.frames)))
            got.begun = None
        if 2 * len(got.frames) > room:
            got.status = FULL
            return got


@twin(receive._receive_lines)
def received_lines(arrivals: Arrivals, held: bytes, room: int) -> tuple[int, bytes, bytes]:
    """(status, the lines that came behind ``held``, the one that has no room)."""
    looks = iter(arrivals)
    waiting: list[bytes | str] = []
    looked = False
    while True:
        if not waiting:
            if looked:
                return EMPTY, held, b""
            waiting, looked = list(next(looks, [])), True
            if CUT in waiting:
                return BROKEN, held, b""
            continue
        message = waiting.pop(0)
        if isinstance(message, str):
            return (ENDED if message == END else BROKEN), held, b""
        looked = False
        if len(held) + len(message) > room:
            return MESSAGE, held, message
        held += message


def _framed(message: bytes, *, rows: bool) -> bytes:
    """The pgoutput message within an XLogData, or within a row of one value; empty: none."""
    if rows:
        return message[6:] if message[:2] == b"\0\1" and u32(message, 2) == len(message) - 6 and len(message) > 6 else b""
    return message[25:] if message[:1] == b"w" else b""


class Libpq:
    """The four C functions, from a script. A message lies in memory of its own, so that it can only be given back once."""

    def __init__(self, arrivals: Arrivals) -> None:
        self.looks = iter(arrivals)
        self.waiting: list[bytes | str] = []
        self.given: dict[int, Any] = {}
        self.naps = 0

    def get(self, _connection: int, cell: int, nowait: int) -> int:
        assert nowait == 1
        if not self.waiting:
            return 0
        message = self.waiting.pop(0)
        if isinstance(message, str):
            return -1 if message == END else -2
        memory = ctypes.create_string_buffer(message, max(1, len(message)))
        address = ctypes.addressof(memory)
        self.given[address] = memory
        ctypes.c_int64.from_address(cell).value = address
        return len(message)

    def consume(self, _connection: int) -> int:
        self.waiting = list(next(self.looks, []))
        return CUT not in self.waiting

    def free(self, address: int) -> None:
        del self.given[int(address)]

    def usleep(self, microseconds: int) -> int:
        assert microseconds == 200
        self.naps += 1
        return 0

    def names(self) -> dict[str, Any]:
        """What stands for C in the loop when Python runs it."""
        return {
            "_get_copy_data": lambda _, *more: self.get(*more),
            "_consume_input": lambda _, *more: self.consume(*more),
            "_freemem": lambda _, *more: self.free(*more),
            "_usleep": lambda _, *more: self.usleep(*more),
            "_bytes_at": lambda address: address,
            "carray": lambda address, size: Guarded(np.frombuffer(ctypes.string_at(int(address), int(size)), np.uint8)),
        }

    def addresses(self) -> list[Any]:
        """The functions, for compiled code; they live as long as this."""
        long, short = ctypes.c_int64, ctypes.c_int
        self.functions = (
            ctypes.CFUNCTYPE(short, long, long, short)(self.get),
            ctypes.CFUNCTYPE(short, long)(self.consume),
            ctypes.CFUNCTYPE(None, long)(self.free),
            ctypes.CFUNCTYPE(short, short)(self.usleep),
        )
        return [ctypes.cast(function, ctypes.c_void_p).value for function in self.functions]


def both_ways(
    arrivals: Arrivals, begun: int | None, start: int, foreign: Sequence[int], room: int, most: int, flags: Any
) -> Iterator[Received]:
    for compiled in (True, False):
        libpq = Libpq(arrivals)
        frames, transactions, state = np.zeros(room, np.uint8), np.zeros((most, 3), np.int64), np.zeros(receive._STATE, np.int64)
        state[receive._BEGUN] = receive._NONE if begun is None else begun
        cell = state.ctypes.data + receive._POINTER * state.itemsize
        arguments: list[Any] = [flags["one"], flags["rows"], start, np.array(foreign, np.int64), frames, transactions, state]
        if compiled:
            status = receive._receive(*libpq.addresses(), 7, cell, *arguments)
        else:
            loop = interpreted(receive._receive, libpq.names())
            status = loop(0, 0, 0, 0, 7, cell, *(Guarded(one) if isinstance(one, np.ndarray) else one for one in arguments))
        used, done, open_ = int(state[receive._USED]), int(state[receive._DONE]), int(state[receive._BEGUN])
        message = b""
        if status == MESSAGE:
            memory = libpq.given.pop(int(state[receive._POINTER]))
            assert int(state[receive._SIZE]) <= len(memory)
            message = memory.raw[: int(state[receive._SIZE])]
        assert not libpq.given  # all others were given back
        there = [(one, two, three) for one, two, three in transactions[:done].tolist()]
        open_at = None if open_ == receive._NONE else open_
        yield Received(int(status), frames[:used].tobytes(), there, open_at, int(state[receive._NEWS]), message, libpq.naps)


LSNS = st.sampled_from([0, 5, 9, 2**62])
row = st.lists(st.integers(0, 99), max_size=2)
bodies = st.one_of(
    st.builds(wire.begin, LSNS),
    st.builds(wire.commit, LSNS, LSNS),
    st.builds(wire.insert, st.sampled_from([1, 2, 2**32 - 1]), row),
    st.builds(wire.insert, st.sampled_from([1, 2, 2**32 - 1]), row),
    st.builds(wire.delete, st.sampled_from([1, 2]), key=row),
    st.sampled_from([b"", b"B", b"C" + bytes(24), b"I\0\0\0", b"R" + bytes(9), b"T" + bytes(9)]),
)
whole = st.lists(st.builds(wire.insert, st.sampled_from([1, 2]), row), max_size=9).map(
    lambda rows: [wire.begin(9), *rows, wire.commit(9, 10)]
)


def enveloped(body: bytes, rows: bool) -> bytes:
    return b"\0\1" + len(body).to_bytes(4, "big") + body if rows else b"w" + bytes(24) + body


@given(
    data=st.data(),
    rows=st.booleans(),
    begun=st.sampled_from([None, None, 0, 5]),
    start=st.sampled_from([0, 5, 6]),
    foreign=st.lists(st.sampled_from([1, 2, 2**32 - 1]), max_size=2, unique=True),
    room=st.integers(0, 60) | st.sampled_from([150, 1000]),
    most=st.integers(1, 3),
    one=st.sampled_from([False, False, False, True]),
)
@often
def test_messages(
    data: st.DataObject, rows: bool, begun: int | None, start: int, foreign: list[int], room: int, most: int, one: bool
) -> None:
    message = st.one_of(*[bodies.map(lambda body: enveloped(body, rows))] * 8, st.sampled_from([END, FAULT, b"", b"w", b"\0", b"\xff\xff"]))
    chunk = st.lists(message, max_size=4) | whole.map(lambda found: [enveloped(body, rows) for body in found]) | st.just([CUT])
    arrivals = data.draw(st.lists(chunk, max_size=4))
    expected = received(arrivals, begun, start, foreign, room, most, one=one, rows=rows)
    for found in both_ways(arrivals, begun, start, foreign, room, most, {"one": one, "rows": rows}):
        assert found == expected


def test_it_does_not_nap_for_ever() -> None:
    bursts = [[enveloped(wire.insert(1, [n]), False) for n in range(8)], []] * 40
    for found in both_ways(bursts, 5, 0, [], 100_000, 1, {"one": False, "rows": False}):
        assert (found.status, found.naps, found.news) == (EMPTY, 25, 26 * 8)
        assert found == received(bursts, 5, 0, [], 100_000, 1, one=False, rows=False)


@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=9) | st.sampled_from([END, FAULT]), max_size=4) | st.just([CUT]), max_size=4),
    st.binary(max_size=5),
    st.integers(5, 20),
)
@often
def test_lines(arrivals: Arrivals, held: bytes, room: int) -> None:
    expected = received_lines(arrivals, held, room)
    for compiled in (True, False):
        libpq = Libpq(arrivals)
        lines, state = np.zeros(room, np.uint8), np.zeros(receive._STATE, np.int64)
        lines[: len(held)] = np.frombuffer(held, np.uint8)
        state[receive._USED] = len(held)
        cell = state.ctypes.data + receive._POINTER * state.itemsize
        if compiled:
            status = receive._receive_lines(*libpq.addresses()[:3], 7, cell, lines, state)
        else:
            status = interpreted(receive._receive_lines, libpq.names())(0, 0, 0, 7, cell, Guarded(lines), Guarded(state))
        message = b""
        if status == MESSAGE:
            message = libpq.given.pop(int(state[receive._POINTER])).raw[: int(state[receive._SIZE])]
        else:
            assert state[receive._POINTER] == 0
        assert not libpq.given
        assert (int(status), lines[: int(state[receive._USED])].tobytes(), message) == expected


def test_a_frame_that_lacks_a_few_bytes_of_room_is_the_callers() -> None:
    body = wire.insert(1, [7])
    for lacking in range(6):
        room = 4 + len(body) - lacking
        for found in both_ways([[enveloped(body, False)]], 5, 0, [], room, 1, {"one": False, "rows": False}):
            assert found.status == (FULL if not lacking else MESSAGE)
            assert found == received([[enveloped(body, False)]], 5, 0, [], room, 1, one=False, rows=False)
