"""A wire between icelake and its server that can be cut, torn, slow, or go dead without a word. Real sockets, bytes unchanged."""

import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

_TURN = 50
"""Milliseconds after which a pump looks whether it was cut."""
_PIECE = 1 << 16


@dataclass(slots=True, eq=False)
class _Pair:
    near: socket.socket
    far: socket.socket
    cut: bool = False
    ended: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Wire:
    """``with Wire(lambda: server.port) as wire``: who connects to ``wire.port`` on 127.0.0.1 speaks with the server."""

    def __init__(self, server: Callable[[], int]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._pairs: set[_Pair] = set()
        self._lock = threading.Lock()
        self._alive = threading.Event()
        self._alive.set()
        self._delay = 0.0
        self._refuses = False
        self._left: int | None = None
        self._torn = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._alive.set()
        self._cut()

    # --------------------------------------------------------------------------------------------------------- disasters

    def reset(self, seconds: float) -> None:
        """Every connection is reset, and for so long every new one."""
        self._refuses = True
        self._cut()
        time.sleep(seconds)
        self._refuses = False

    def tear(self, after: int, seconds: float) -> None:
        """Once the server has sent so many more bytes (or after this time), that connection ends there, and all others with it."""
        self._torn.clear()
        self._left = after
        self._torn.wait(seconds)
        self._left = None
        self._cut()

    def dead(self, seconds: float) -> None:
        """Nothing passes, neither bytes nor the end of a connection; then everything that waited does."""
        self._alive.clear()
        time.sleep(seconds)
        self._alive.set()

    def slow(self, delay: float, seconds: float) -> None:
        """Every piece (64 KiB at most) takes ``delay`` seconds."""
        self._delay = delay
        time.sleep(seconds)
        self._delay = 0.0

    # ------------------------------------------------------------------------------------------------------------- bytes

    def _cut(self) -> None:
        with self._lock:
            for pair in self._pairs:
                pair.cut = True

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                _close(near, reset=True)
                continue
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._alive.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._server()), timeout=10)
        except OSError:
            _close(near, reset=True)
            return
        near.setblocking(False)
        far.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(near, far)
        with self._lock:
            self._pairs.add(pair)
        threading.Thread(target=self._pump, args=(pair, near, far), daemon=True).start()
        self._pump(pair, far, near)

    def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := self._received(pair, source):
                if source is pair.far and self._left is not None:
                    data, whole = data[: self._left], len(data)
                    self._left = max(0, self._left - whole)
                    if self._left == 0:
                        self._send(pair, sink, data)
                        self._torn.set()
                        pair.cut = True
                self._send(pair, sink, data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pair.cut = True
        with pair.lock:
            pair.ended += 1
            last = pair.ended == 2
        if last:
            with self._lock:
                self._pairs.discard(pair)
            _close(pair.near, reset=pair.cut)
            _close(pair.far, reset=pair.cut)

    def _received(self, pair: _Pair, source: socket.socket) -> bytes:
        self._until(pair, source, select.POLLIN)
        data = source.recv(_PIECE)
        while not self._alive.wait(_TURN / 1000):
            self._look(pair)
        if self._delay:
            time.sleep(self._delay)
        return data

    def _send(self, pair: _Pair, sink: socket.socket, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._until(pair, sink, select.POLLOUT)
            rest = rest[sink.send(rest) :]

    def _until(self, pair: _Pair, end: socket.socket, what: int) -> None:
        poll = select.poll()
        poll.register(end, what)
        self._look(pair)
        while not poll.poll(_TURN):
            self._look(pair)

    def _look(self, pair: _Pair) -> None:
        if pair.cut:
            raise ConnectionResetError


def _close(end: socket.socket, *, reset: bool) -> None:
    if reset:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
