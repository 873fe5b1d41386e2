"""Rows read by COPY … TO STDOUT ahead of who takes them: a thread receives and decodes, as far as a few blocks.

Promises: the blocks in order, whole lines each; whatever ends the reading is raised where it is taken. Never holds more than
``_AHEAD`` blocks and the one that is being made. Sources: PostgreSQL documentation 34.10 (libpq: COPY), 54.2.6 (COPY Operations: a
message is a row).
"""

import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Generic, TypeVar

import psycopg
from psycopg import pq, sql

from icelake.sources.postgres.receive import EMPTY, ENDED, LineReceiver
from icelake.sources.postgres.session import Connection, readable

_BLOCK = 1 << 22
_AHEAD = 4
_PAUSE = 0.1
"""Seconds after which a thread that waits looks whether it is still wanted."""

_NAP = 0.0005

_Item = TypeVar("_Item")


class GivenUp(Exception):
    """Nobody takes what is read any more."""


def copied(connection: Connection, query: sql.Composable, wanted: Callable[[], bool]) -> Generator[bytes, None, None]:
    """The text of a query's rows, in blocks of whole lines. Raises GivenUp when it is not ``wanted`` any more, else psycopg.Error."""
    pgconn = connection.pgconn
    pgconn.send_query(sql.SQL("COPY ({}) TO STDOUT").format(query).as_bytes(connection))

    def wait() -> None:
        while not readable(pgconn.socket, _PAUSE):
            if not wanted():
                raise GivenUp

    while pgconn.is_busy():
        wait()
        pgconn.consume_input()
    result = pgconn.get_result()
    if result is not None and result.status == pq.ExecStatus.COPY_OUT:
        receiver = LineReceiver(pgconn, _BLOCK)
        status, napped = EMPTY, False
        while status != ENDED:
            status, block = receiver.receive()
            if block:
                yield block
            if status == EMPTY and napped:
                wait()
            elif status == EMPTY:
                # The server sends 8 KiB at a time, and to be told of each costs more than to receive it.
                time.sleep(_NAP)
            napped = status == EMPTY and not napped
        result = pgconn.get_result()
    while pgconn.get_result() is not None:
        pass
    if result is None or result.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(result) if result is not None else psycopg.OperationalError("the server gave no answer")


class Ahead(Generic[_Item]):
    """An iterator over what a generator gives, which runs in a thread of its own. ``close`` ends it and waits for the thread."""

    def __init__(
        self, make: Callable[[Callable[[], bool]], Generator[_Item, None, None]], wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """``make``: the generator; what it is given tells whether it is still wanted.

        ``wanted``: the same of who takes what it gives, if that is such a generator, too.
        """
        self._closed = threading.Event()
        self._items: queue.Queue[tuple[_Item | None, BaseException | None]] = queue.Queue(_AHEAD)
        self._parent = wanted
        self._generator = make(self._wanted)
        self._thread = threading.Thread(target=self._run, name="read a range", daemon=True)
        self._thread.start()

    def _wanted(self) -> bool:
        return self._parent() and not self._closed.is_set()

    def _run(self) -> None:
        end: BaseException = StopIteration()
        try:
            for item in self._generator:
                if not self._give(item, None):
                    self._generator.close()
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is taken
            end = error
        self._give(None, end)

    def _give(self, item: _Item | None, end: BaseException | None) -> bool:
        while self._wanted():
            try:
                self._items.put((item, end), timeout=_PAUSE)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> "Ahead[_Item]":
        return self

    def __next__(self) -> _Item:
        item, end = None, None
        while item is None and end is None:
            if not self._wanted():
                raise GivenUp
            with suppress(queue.Empty):
                item, end = self._items.get(timeout=_PAUSE)
        if end is not None:
            self._items.put((None, StopIteration()))
            raise end
        assert item is not None
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
