"""An ASGI application on a socket, with uvicorn: bound before anything is said, ended by SIGINT or SIGTERM."""

import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from icelake.errors import ProjectError, Refused


def serve(
    app: Any, host: str, port: int, listening: Callable[[str], None], *, certificate: str | None = None, key: str | None = None
) -> None:
    """Answer until the process is told to end; requests that have begun are ended first. ``listening`` is told the URI.

    ``port`` 0: a free one. Raises Refused ADDRESS_TAKEN, ProjectError BAD_CERTIFICATE.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise Refused("ADDRESS_TAKEN", f"cannot listen on {host}:{port}", str(error), "name another --port, or --port 0") from error
    with bound:
        # Connections inherit it. asyncio sets it on sockets that were made with their protocol's number, which this one was not; and
        # without it the body of an answer, written after its headers, waits for a delayed acknowledgement: 40 ms.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            timeout_graceful_shutdown=10,
            lifespan="off",
        )
        try:
            config.load()
        except OSError as error:
            raise ProjectError("BAD_CERTIFICATE", "the certificate cannot be used", str(error), "name PEM files of a pair") from error
        name = f"[{host}]" if ":" in host else host
        listening(f"{'https' if certificate else 'http'}://{name}:{bound.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[bound])
