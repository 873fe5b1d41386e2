"""An HTTP proxy in front of an S3 server that breaks what passes through it, on real sockets.

Each request is given a fault (or none) by the test's own choice. Whatever the fault, a request is passed on whole or not at all, so
what the server holds afterwards is what some S3 server would hold.
"""

import http.client
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self
from urllib.parse import urlsplit

Fault = Literal["reset", "lost", "torn", "slow", "late", "corrupt", "500", "503", "429", "501", "507", "clock", "region", "405"]
"""
reset: the connection is reset, nothing reached the server. lost: the server did it, the answer never came. torn: the answer ends in
its middle. slow: the answer trickles. late: no answer in time; the server does it a moment later. corrupt: a byte of the body changes
on the way. clock, region: refused as S3 refuses a request signed at another time, or for another region. A number: the answer of a
server that did nothing.
"""
PASSING: tuple[Fault, ...] = ("reset", "lost", "torn", "slow", "corrupt", "500", "503", "429")
"""Those after which another try works."""

Choice = Callable[[str, str], Fault | None]
"""(method, path with query) -> what to do to it."""


def sometimes(seed: int, probability: float, faults: tuple[Fault, ...] = PASSING) -> Choice:
    """Each request fails with this probability, the same ones for the same seed and order."""
    rng = random.Random(seed)
    return lambda method, path: rng.choice(faults) if rng.random() < probability else None


def first(count: int, fault: Fault, method: str = "PUT", path: str = "") -> Choice:
    """The first ``count`` requests of this method with ``path`` in their path fail."""
    left = [count]

    def choose(got: str, where: str) -> Fault | None:
        if got == method and path in where and left[0] > 0:
            left[0] -= 1
            return fault
        return None

    return choose


class Proxy:
    """``with Proxy(server.endpoint) as proxy``: ``proxy.endpoint`` is the S3 to use, ``proxy.choose`` what happens to requests."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.choose: Choice = lambda method, path: None
        self.seen: Counter[tuple[str, str]] = Counter()
        """Requests by (method, fault or "")."""
        self.delay = 0.0
        """Seconds every request waits before it is passed on."""
        self.busy = self.most = 0
        """Requests whose answer is being made now, and at most so far."""
        self.lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            through = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def faults(self) -> int:
        """Requests that had a fault."""
        return sum(count for (_, fault), count in self.seen.items() if fault)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed leave in the middle of things."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


_CODES = {405: "MethodNotAllowed", 501: "NotImplemented", 503: "SlowDown", 507: "InsufficientStorage"}
_REFUSALS: dict[str, tuple[int, str]] = {"clock": (403, "RequestTimeTooSkewed"), "region": (400, "AuthorizationHeaderMalformed")}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    through: Proxy
    busy = 0
    """1 while this connection's request counts as busy."""

    def do_GET(self) -> None:
        proxy = self.through
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with proxy.lock:
            fault = proxy.choose(self.command, self.path)
            proxy.seen[self.command, fault or ""] += 1
            proxy.busy += 1
            self.busy = 1
            proxy.most = max(proxy.most, proxy.busy)
        time.sleep(proxy.delay)
        try:
            self.answer(fault, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.answered()

    def answered(self) -> None:
        """Whoever has the whole answer may ask again at once: the request ends before the end of its answer is sent."""
        with self.through.lock:
            self.through.busy -= self.busy
            self.busy = 0

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 - names of the standard library

    def answer(self, fault: Fault | None, body: bytes) -> None:
        if fault == "reset":
            self.drop(reset=True)
            return
        if fault is not None and (fault in _REFUSALS or fault.isdigit()):
            self.plain(*_REFUSALS[fault] if fault in _REFUSALS else (int(fault), _CODES.get(int(fault), "InternalError")))
            return
        if fault == "late":
            time.sleep(1.0)
        if fault == "corrupt" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        status, headers, answer = self.forward(body)
        self.answered()
        if fault in ("lost", "late"):
            self.drop()
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if fault == "torn" and answer:
            self.wfile.write(answer[: len(answer) // 2])
            self.drop()
        elif fault == "slow":
            step = max(1, len(answer) // 4)
            for at in range(0, len(answer), step):
                self.wfile.write(answer[at : at + step])
                time.sleep(0.01)
        else:
            self.wfile.write(answer)

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.through.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            # The length a HEAD announces is not that of what follows.
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def plain(self, status: int, code: str) -> None:
        answer = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
        if self.command == "HEAD":
            answer = b""
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def drop(self, *, reset: bool = False) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def log_message(self, *args: object) -> None:
        """Nothing: a test says what it needs."""
