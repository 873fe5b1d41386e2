"""A relay in front of a PostgreSQL server, for what no server of ours says: older versions, bytes that are wrong.

Works on what one read of the socket brought; a text that two reads tear apart passes unchanged, so choose short ones.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Between:
    """``with Between(dsn, change) as relay: connect(relay.dsn)``. ``change``: what the server said -> what the client hears."""

    def __init__(self, dsn: str, change: Callable[[bytes], bytes]) -> None:
        there = conninfo_to_dict(dsn)
        self._there = (str(there["host"]), int(str(there["port"])))
        self._change = change
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self._listener.getsockname()[1], sslmode="disable", gssencmode="disable")

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._there)
                self._sockets += [client, server]
                threading.Thread(target=self._pass, args=(client, server, bytes), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, self._change), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(change(data))
            target.shutdown(socket.SHUT_WR)
