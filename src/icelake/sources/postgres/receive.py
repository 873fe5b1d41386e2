"""libpq's ``PQgetCopyData`` in a compiled loop: changes that a connection received as frames, without Python touching a message.

libpq goes on doing what it is for (sockets, TLS, the end of the stream, errors, notices); only the loop over its messages is here,
because in Python that loop costs more than all that is done with a change afterwards. Changes, Begin and Commit are taken in as they
come; every other message is the caller's. The GIL is not held meanwhile. Sources: PostgreSQL documentation 34.10 (libpq: COPY), 54.4
(XLogData), 54.9 (Message Formats), 55.2 (COPY).
"""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
from llvmlite import ir
from numba import carray, extending, types  # type: ignore[attr-defined]
from psycopg import pq

from icelake.compiled import kernel
from icelake.sources.postgres.kernels import i64, u32

# What a call ended with.
EMPTY: Final = 0
"""Nothing more has arrived."""
FULL: Final = 1
"""There is enough for now."""
MESSAGE: Final = 2
"""A message for the caller."""
ENDED: Final = 3
"""COPY is over; ``PQgetResult`` says why."""
_BROKEN: Final = 4

_HEADER: Final = 25
"""XLogData: 'w', start and end of WAL, clock; the pgoutput message follows."""
_ROW_HEADER: Final = 6
"""A row of COPY BINARY: one column, its length; the pgoutput message follows."""
_FRAME: Final = 4
_LEAST_COMMIT: Final = _FRAME + 26
_ENOUGH: Final = 1 << 16
"""Messages of one call: those that are left out fill no frames, and the caller has other things to do, too."""
_BUSY: Final = 8
"""So many messages at once, and the server is worth waiting for: woken by each message, both would do nothing else."""
_NAP_US: Final = 200
"""µs of waiting then. A unix socket holds a few hundred small messages; a server faster than that waits for us."""
_NAPS: Final = 25
"""In one call: the caller must hear of what has come, and may have something to tell the server."""
_XLOG_DATA, _BEGIN, _COMMIT, _INSERT, _UPDATE, _DELETE = (ord(letter) for letter in "wBCIUD")
_NONE: Final = -1

# Places in the state array (int64).
_USED, _DONE, _NEWS, _BEGUN, _POINTER, _SIZE, _STATE = range(7)
"""``_POINTER`` is written by libpq."""


@dataclass(slots=True)
class Received:
    """What one call received."""

    status: int
    frames: npt.NDArray[np.uint8]
    """Each a u32 little-endian length and a pgoutput message. Good until the next call."""
    transactions: npt.NDArray[np.int64]
    """Those completed: commit LSN, end LSN, and where in ``frames`` each ends."""
    begun: int | None
    """The commit LSN of the transaction that is open then."""
    messages: int
    message: bytes
    """The one that comes after the frames and is the caller's: a CopyData message, whole."""


class Receiver:
    """Empties one connection that is in COPY BOTH, or in COPY OUT. Not thread-safe; nobody else may use the connection meanwhile."""

    def __init__(self, connection: pq.abc.PGconn, room: int) -> None:
        """``room``: bytes of frames that one call gives at most."""
        self._connection: Any = connection
        self._functions = _libpq()
        self._frames = np.empty(room, np.uint8)
        self._transactions = np.empty((room // _LEAST_COMMIT + 1, 3), np.int64)
        self._state = np.zeros(_STATE, np.int64)
        self._cell = self._state.ctypes.data + _POINTER * self._state.itemsize

    def receive(self, begun: int | None, start: int, foreign: npt.NDArray[np.int64], *, one: bool, rows: bool) -> Received:
        """What has arrived, and what comes within a few ms while much comes. ``begun``: the open transaction's commit LSN.

        A Begin before ``start`` is the caller's. ``foreign``: OIDs of which no change is kept. ``one``: whatever comes next is the
        caller's. ``rows``: COPY BINARY gives the messages, in rows of one value; what frames the rows is the caller's.
        Raises psycopg.OperationalError if the connection broke.
        """
        state = self._state
        state[:] = 0
        state[_BEGUN] = _NONE if begun is None else begun
        pointer = self._connection.pgconn_ptr
        if pointer is None:
            raise psycopg.OperationalError("the connection is closed")
        status = int(_receive(*self._functions, pointer, self._cell, one, rows, start, foreign, self._frames, self._transactions, state))
        message = b""
        if status == MESSAGE:
            address = int(state[_POINTER])
            try:
                message = ctypes.string_at(address, int(state[_SIZE]))
            finally:
                ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._functions[2])(address)
        elif status == _BROKEN:
            self._connection.consume_input()  # says what is wrong
            raise psycopg.OperationalError(self._connection.get_error_message())
        begun = None if state[_BEGUN] == _NONE else int(state[_BEGUN])
        return Received(status, self._frames[: state[_USED]], self._transactions[: state[_DONE]], begun, int(state[_NEWS]), message)


class LineReceiver:
    """Empties one connection that is in COPY OUT, whose messages are lines of text, into blocks. Not thread-safe, as ``Receiver``."""

    def __init__(self, connection: pq.abc.PGconn, room: int) -> None:
        """``room``: bytes of a block; a longer line is a block of its own."""
        self._connection: Any = connection
        self._functions = _libpq()
        self._lines = np.empty(room, np.uint8)
        self._state = np.zeros(_STATE, np.int64)
        self._cell = self._state.ctypes.data + _POINTER * self._state.itemsize

    def receive(self) -> tuple[int, bytes]:
        """What has arrived since the last block: EMPTY and nothing yet, FULL and a block, or ENDED and the last one.

        Raises psycopg.OperationalError if the connection broke.
        """
        state = self._state
        if state[_POINTER]:
            return FULL, self._long()
        pointer = self._connection.pgconn_ptr
        if pointer is None:
            raise psycopg.OperationalError("the connection is closed")
        status = int(_receive_lines(*self._functions[:3], pointer, self._cell, self._lines, state))
        if status == EMPTY:
            return EMPTY, b""
        if status == _BROKEN:
            self._connection.consume_input()  # says what is wrong
            raise psycopg.OperationalError(self._connection.get_error_message())
        block, state[_USED] = self._lines[: state[_USED]].tobytes(), 0
        if status == MESSAGE and not block:
            return FULL, self._long()
        return (ENDED if status == ENDED else FULL), block

    def _long(self) -> bytes:
        """The line that had no room, which libpq holds."""
        address = int(self._state[_POINTER])
        self._state[_POINTER] = 0
        try:
            return ctypes.string_at(address, int(self._state[_SIZE]))
        finally:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._functions[2])(address)


def _libpq() -> tuple[int, int, int, int]:
    """The addresses of PQgetCopyData, PQconsumeInput, PQfreemem in the libpq that psycopg uses, and of usleep."""
    module = sys.modules[pq.PGconn.__module__]
    # What psycopg's extension was linked with is found through it, whatever it is called; without an extension psycopg has loaded it.
    library: Any = ctypes.CDLL(module.__file__) if pq.__impl__ != "python" else vars(module)["impl"].pq
    functions = library.PQgetCopyData, library.PQconsumeInput, library.PQfreemem, ctypes.CDLL(None).usleep
    get, consume, free, usleep = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
    return get, consume, free, usleep


def _call(result: Any, *arguments: Any) -> Any:
    """What calls the C function at ``values[0]`` with the other values."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        function = builder.inttoptr(values[0], ir.FunctionType(result, arguments).as_pointer())
        return builder.call(function, values[1:])

    return generate


intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic
_ADDRESS: Final = ir.IntType(64)
_INT: Final = ir.IntType(32)


@intrinsic
def _get_copy_data(_context: Any, function: Any, connection: Any, buffer: Any, nowait: Any) -> Any:
    """``int PQgetCopyData(PGconn *conn, char **buffer, int async)``"""
    return types.int32(types.int64, types.int64, types.int64, types.int32), _call(_INT, _ADDRESS, _ADDRESS, _INT)


@intrinsic
def _consume_input(_context: Any, function: Any, connection: Any) -> Any:
    """``int PQconsumeInput(PGconn *conn)``"""
    return types.int32(types.int64, types.int64), _call(_INT, _ADDRESS)


@intrinsic
def _freemem(_context: Any, function: Any, pointer: Any) -> Any:
    """``void PQfreemem(void *ptr)``"""
    return types.void(types.int64, types.int64), _call(ir.VoidType(), _ADDRESS)


@intrinsic
def _usleep(_context: Any, function: Any, microseconds: Any) -> Any:
    """``int usleep(useconds_t usec)``"""
    return types.int32(types.int64, types.int32), _call(_INT, _INT)


@intrinsic
def _bytes_at(_context: Any, address: Any) -> Any:
    """An address as a pointer to bytes."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint8)(types.int64), generate  # type: ignore[no-untyped-call]


@kernel
def _receive(
    get: Any,
    consume: Any,
    free: Any,
    usleep: Any,
    connection: Any,
    cell: Any,
    one: Any,
    rows: Any,
    start: Any,
    foreign: Any,
    frames: Any,
    transactions: Any,
    state: Any,
) -> Any:
    header = _ROW_HEADER if rows else _HEADER
    used: Any = 0
    done = 0
    naps = 0
    since = 0  # messages since the last nap
    looked = False  # since the last message
    while True:
        size: Any = np.int64(_get_copy_data(get, connection, cell, np.int32(1)))
        if size == 0:
            if looked:
                if one or since < _BUSY or naps == _NAPS:
                    return EMPTY
                _usleep(usleep, np.int32(_NAP_US))
                naps += 1
                since = 0
            if not _consume_input(consume, connection):
                return _BROKEN
            looked = True
            continue
        if size == -1:
            return ENDED
        if size < 0:
            return _BROKEN
        looked = False
        since += 1
        state[_NEWS] += 1
        message = carray(_bytes_at(state[_POINTER]), size)
        framed = size > header
        if rows:
            framed = framed and message[0] == 0 and message[1] == 1 and u32(message, np.int64(2)) == size - header
        else:
            framed = framed and message[0] == _XLOG_DATA
        kind = message[header] if framed else 0
        length = size - header
        ours: Any = not one and used + _FRAME + length <= len(frames)
        if kind == _BEGIN:
            ours = ours and length >= 21 and state[_BEGUN] == _NONE and i64(message, header + 1) >= start
        elif kind == _COMMIT:
            ours = ours and length >= 26 and state[_BEGUN] != _NONE and done < len(transactions)
        else:
            ours = ours and length >= 5 and kind in (_INSERT, _UPDATE, _DELETE)
        if not ours:
            state[_SIZE] = size
            return MESSAGE
        kept = True
        if kind == _BEGIN:
            state[_BEGUN] = i64(message, header + 1)
        elif kind != _COMMIT and len(foreign):
            oid = u32(message, header + 1)
            for n in range(len(foreign)):
                kept = kept and foreign[n] != oid
        if kept:
            for n in range(_FRAME):
                frames[used + n] = (length >> (8 * n)) & 255
            for n in range(length):
                frames[used + _FRAME + n] = message[header + n]
            used += _FRAME + length
            state[_USED] = used
        if kind == _COMMIT:
            transactions[done, 0] = state[_BEGUN]
            transactions[done, 1] = i64(message, header + 10)
            transactions[done, 2] = used
            done += 1
            state[_DONE] = done
            state[_BEGUN] = _NONE
        _freemem(free, state[_POINTER])
        if 2 * used > len(frames) or state[_NEWS] >= _ENOUGH:
            return FULL


@kernel
def _receive_lines(get: Any, consume: Any, free: Any, connection: Any, cell: Any, lines: Any, state: Any) -> Any:
    used: Any = state[_USED]
    looked = False  # since the last message
    while True:
        size: Any = np.int64(_get_copy_data(get, connection, cell, np.int32(1)))
        if size == 0:
            state[_USED] = used
            state[_POINTER] = 0
            if looked:
                return EMPTY
            if not _consume_input(consume, connection):
                return _BROKEN
            looked = True
            continue
        if size < 0:
            state[_USED] = used
            state[_POINTER] = 0
            return ENDED if size == -1 else _BROKEN
        looked = False
        if used + size > len(lines):
            state[_USED] = used
            state[_SIZE] = size
            return MESSAGE
        message = carray(_bytes_at(state[_POINTER]), size)
        for n in range(size):
            lines[used + n] = message[n]
        used += size
        _freemem(free, state[_POINTER])
