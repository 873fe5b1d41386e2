"""The socket that is listened on."""

import socket
from typing import Any

import pytest
import uvicorn

from icelake.catalog.serve import serve


def test_what_is_answered_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the client's machine has acknowledged what was sent before, which it puts off for 40 ms."""
    seen: list[int] = []

    def accept(_: uvicorn.Server, sockets: list[socket.socket]) -> None:
        (bound,) = sockets
        with socket.create_connection(bound.getsockname()), bound.accept()[0] as accepted:
            seen.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async def nothing(scope: Any, receive: Any, send: Any) -> None: ...

    monkeypatch.setattr(uvicorn.Server, "run", accept)
    serve(nothing, "127.0.0.1", 0, lambda _: None)
    assert seen == [1]
