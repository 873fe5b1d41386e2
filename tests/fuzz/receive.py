"""``Receiver.receive``, through libpq: this process is the server, too, and sends as CopyData what an input has.

The first byte's bits say how it is received (0: COPY BINARY, 1: one message at a time, 2: inside a transaction, 3: one table's changes are
left out); then messages follow, each a u16 big-endian length and its bytes. Each execution reads all it sent, so one connection lasts for
all of them.
"""

import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from psycopg import pq

from icelake.sources.postgres import receive
from icelake.sources.postgres.receive import EMPTY, FULL, MESSAGE, Receiver
from tests.unit.sources.postgres.wire import begin, commit, insert

# The loop itself is compiled: what came of it, as ``run`` sees it, has to guide the search.
WATCHED = (receive, sys.modules[__name__])
_ROOM: Final = 8192
_FOREIGN: Final = np.array([5, 77], np.int64)
_MARK: Final = b"\x00mark"
"""Ends what an execution sent."""


class _Server:
    """One connection in COPY, of which this is the other side."""

    def __init__(self, *, both: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(Path(folder, ".s.PGSQL.5432")))
            listening.listen(1)
            serving = threading.Thread(target=self._serve, args=(listening, b"W" if both else b"H"))
            serving.start()
            # Polled, because libpq's own waiting keeps the other side from running.
            self.connection: Any = pq.PGconn.connect_start(f"host={folder} user=x sslmode=disable gssencmode=disable".encode())
            while self.connection.connect_poll() not in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
                time.sleep(0.001)
            assert self.connection.status == pq.ConnStatus.OK, self.connection.error_message
            self.connection.send_query(b"COPY")
            while self.connection.is_busy():
                time.sleep(0.001)
                self.connection.consume_input()
            result: Any = self.connection.get_result()
            assert result.status == (pq.ExecStatus.COPY_BOTH if both else pq.ExecStatus.COPY_OUT)
            serving.join()
        self.receiver = Receiver(self.connection, _ROOM)

    def _serve(self, listening: socket.socket, answer: bytes) -> None:
        self._socket, _ = listening.accept()
        # A write never waits: an execution sends less than this before anything is read.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        (size,) = struct.unpack("!I", self._socket.recv(4))
        self._socket.recv(size - 4)
        self._socket.sendall(b"R" + struct.pack("!II", 8, 0) + b"Z" + struct.pack("!Ic", 5, b"I"))
        self._socket.recv(1024)
        self._socket.sendall(answer + struct.pack("!IBH", 7, 1, 0))

    def send(self, messages: list[bytes]) -> None:
        self._socket.sendall(b"".join(b"d" + struct.pack("!I", len(message) + 4) + message for message in messages))


@cache
def _server(both: bool) -> _Server:
    return _Server(both=both)


def run(data: bytes) -> None:
    flags, messages = (data or b"\0")[0], _messages(data)
    rows, one = bool(flags & 1), bool(flags & 2)
    begun = 9 if flags & 4 else None
    foreign = _FOREIGN if flags & 8 else _FOREIGN[:0]
    server = _server(not rows)
    messages = [message for message in messages if message and message != _MARK]
    server.send([*messages, _MARK])
    header = 6 if rows else 25
    seen: list[tuple[bool, bytes]] = []  # whether it came as a frame
    while True:
        received = server.receiver.receive(begun, 0, foreign, one=one, rows=rows)
        begun = received.begun
        frames = received.frames.tobytes()
        place, ends = 0, [end for _, _, end in received.transactions.tolist()]
        assert ends == sorted(ends)
        while place < len(frames):
            (size,) = struct.unpack_from("<I", frames, place)
            assert frames[place + 4] in b"BCIUD"
            seen.append((True, frames[place + 4 : place + 4 + size]))
            place += 4 + size
            if ends and ends[0] == place:
                ends.pop(0)
        # Frames end where they say, and transactions end with a frame.
        assert place == len(frames)
        assert not ends
        if received.status == MESSAGE:
            if received.message == _MARK:
                break
            seen.append((False, received.message))
        else:
            assert received.status in (FULL, EMPTY)
    # Every message comes out again, in its order, but for changes of tables that are left out.
    for message in messages:
        if seen and seen[0] in ((False, message), (True, message[header:])):
            del seen[0]
        else:
            assert foreign.size
            assert message[header : header + 1] in (b"I", b"U", b"D")
            assert message[header + 1 : header + 5] in _LEFT_OUT
    assert not seen


def _messages(data: bytes) -> list[bytes]:
    at, messages = 1, []
    while at + 2 <= len(data):
        (size,) = struct.unpack_from("!H", data, at)
        messages.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return messages


def _written(flags: int, messages: list[bytes]) -> bytes:
    return bytes([flags]) + b"".join(struct.pack("!H", len(message)) + message for message in messages)


_LEFT_OUT: Final = tuple(struct.pack("!I", oid) for oid in (5, 77))


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    """Another message, or another order of them."""
    import atheris

    chance, messages = random.Random(seed), _messages(data)
    if not messages or chance.random() < 0.2:
        return bytes(atheris.Mutate(data, largest))
    at = chance.randrange(len(messages))
    if chance.random() < 0.7:
        messages[at] = bytes(atheris.Mutate(messages[at], len(messages[at]) + 16))
    elif chance.random() < 0.5:
        messages.insert(chance.randrange(len(messages) + 1), messages[at])
    else:
        del messages[at]
    made = _written(data[0] if chance.random() < 0.9 else chance.randrange(16), messages)
    return made if len(made) <= largest else data


def seeds() -> Iterator[bytes]:
    wal = b"w" + bytes(24)
    changes = [begin(9), insert(5, (1, None)), insert(6, (2, "x")), commit(9, 10), begin(11)]
    for flags in range(16):
        header = [struct.pack("!hi", 1, len(change)) if flags & 1 else wal for change in changes]
        sent = [front + change for front, change in zip(header, changes, strict=True)] + [b"k" + bytes(17)]
        yield _written(flags, sent)
