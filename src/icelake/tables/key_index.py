"""Where each live row is: key hash -> (data file, position, row id). A cache: it can always be rebuilt from the table.

Promises: a look-up sees what the running batch did; ``commit`` keeps it and ``rollback`` undoes it exactly. After ``reconcile``
the index holds the live rows of exactly the table's files and deletion vectors, or it has raised. What is read back from disk
is believed only as far as checksums, the table's uuid and an unbroken chain of commits go; the rest is read from the table again.
Never syncs a file, never decides by itself that the table is wrong about a row.
Fails with ``Corrupt`` when two live rows have one key (KEY_TWICE), and when it is asked before ``reconcile`` (KEY_INDEX_STALE).

In memory: open addressing with linear probing and backward-shift deletion over rows of four 64-bit words: the hash (two words),
file number and position (one word, file in the upper half), row id. Above a size the table lives in an unlinked scratch file, so
that the system may page it out. On disk: a base (written in parts, whole or not at all) and a log of one record a commit.
"""

import errno
import hashlib
import mmap
import os
import secrets
import struct
import tempfile
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from icelake.compiled import kernel
from icelake.errors import Corrupt, IcelakeError, Refused, Unreachable
from icelake.tables.keys import Hashes, hash_keys, home_slot

Identity = tuple[str, str | None]
"""(path of the data file, path of its deletion vector's Puffin or None): what the live rows of a file depend on."""

_Words = npt.NDArray[np.uint64]

_PUT, _REMOVE, _CLEAR = 0, 1, 2
_Operation = tuple[int, npt.NDArray[np.uint64]]
"""Rows that were put, or keys that were removed."""
_SMALLEST = 64
_FULL = 0.7
"""How full the table gets before it grows."""
_SCRATCH_BYTES = 256 << 20
"""A table from this size on lives in a scratch file."""
_REDO_BYTES = 64 << 20
"""A batch with more than this is not logged: its commit writes a new base."""
_UNDO_BYTES = 512 << 20
"""A batch with more than this is not undone row by row: giving it up means reading the table's keys again."""
_ASIDE_BYTES = 32 << 20
"""What undoes a batch is kept in memory up to this size, and in a scratch file beyond it."""
_EXPECTED = 16 << 20
"""Keys that room is made for because somebody expects them: 731 MiB."""
_COPIED_ROWS = 1 << 20
"""Rows that a growing table copies before it lets go of them where they were: 32 MiB."""
_LOG_BYTES = 1 << 20
"""A log may always grow to this, and beyond it twice as big as the base."""
_PART_ROWS = 1 << 18
"""Rows in a part of the base: 8 MiB."""
_MAX_POSITION = 0xFFFF_FFFE

_BASE = "base"
_BASE_MAGIC = b"ICELAKE KEYS 1\n\0"
_LOG_MAGIC = b"ICELAKE KLOG 1\n\0"
_HEADER = struct.Struct("<II")
"""Before every checked block: its length in bytes, and its CRC-32."""
_COUNT = struct.Struct("<I")


class IndexFiles(Protocol):
    """The few small files of one index. Nothing needs to be durable, but ``replace`` must not mix old and new bytes."""

    def read(self, name: str) -> bytes | None: ...

    def replace(self, name: str, data: bytes) -> None: ...

    def append(self, name: str, data: bytes) -> None: ...


class FolderFiles:
    """``IndexFiles`` in a folder, which is made at the first write."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _translate(error, self._folder / name) from error

    def replace(self, name: str, data: bytes) -> None:
        path = self._folder / name
        new = self._folder / f"{name}.new"
        try:
            if not data:
                path.unlink(missing_ok=True)
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            new.write_bytes(data)
            new.replace(path)
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            raise _translate(error, path) from error

    def append(self, name: str, data: bytes) -> None:
        path = self._folder / name
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                written = os.write(fd, data)
                if written != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(fd)
        except OSError as error:
            raise _translate(error, path) from error


class IndexedFile(Protocol):
    """A live data file of a table."""

    @property
    def identity(self) -> Identity: ...


class IndexedTable(Protocol):
    """What the index needs of a table: its live files, and their live rows' keys."""

    @property
    def snapshot_id(self) -> int | None: ...

    @property
    def files(self) -> Mapping[int, IndexedFile]: ...

    def read_keys(self, no: int, /) -> tuple[pa.RecordBatch, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(key columns, positions, row ids) of the live rows of one file."""
        ...


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What ``reconcile`` had to do. ``reason``: why what was on disk was not (all) believed; empty if it was."""

    rebuilt: bool
    files_read: int
    reason: str = ""


class KeyIndex:
    """See the module. Not thread-safe."""

    def __init__(self, files: IndexFiles | None, table_uuid: str, seed: tuple[int, int], scratch: str | None = None) -> None:
        """An empty index; use ``load``."""
        self.seed = seed
        self.snapshot_id: int | None = None
        self.files: dict[int, Identity] = {}
        """The live files as of ``snapshot_id``. Until ``reconcile`` the numbers are the index's own; then they are the table's."""
        self._store = files
        self._uuid = table_uuid
        self._scratch = scratch
        self._k0, self._k1 = np.uint64(seed[0]), np.uint64(seed[1])
        self._rows = _new_table(_SMALLEST, None)
        self._count = 0
        self._ready = False
        self._reason = ""
        # The running batch: what undoes it, newest last, and what the log gets. None: too much to keep.
        self._undo: list[Callable[[], None]] | None = []
        self._redo: list[_Operation] | None = []
        self._pending = 0
        self._aside: _Aside | None = None
        # On disk: which of the two sides the base is on, how big it is, and whether base and log lead to ``snapshot_id``, so
        # that a record may follow.
        self._side = 0
        self._parts = 0
        self._base_bytes = 0
        self._log_bytes = 0
        self._chained = False

    @staticmethod
    def load(files: IndexFiles | None, table_uuid: str, *, seed: tuple[int, int] | None = None, scratch: str | None = None) -> "KeyIndex":
        """The index as it was last kept, to be reconciled with the table before use; empty where nothing can be believed.

        ``files`` None: memory only. ``seed``: for an index that is new; random if None. ``scratch``: the folder for big tables'
        scratch file (the system's folder for temporary files if None). Raises only what ``files.read`` raises.
        """
        index = KeyIndex(files, table_uuid, seed or (secrets.randbits(64), secrets.randbits(64)), scratch)
        if files is not None:
            try:
                index._load()
            except _NotBelievedError as doubt:
                index._forget(str(doubt))
            except (LookupError, TypeError, ValueError, ArithmeticError, struct.error) as misfit:
                # The checksums are right and the content is not: another version wrote it, or another hand.
                index._forget(f"it cannot be understood: {type(misfit).__name__}: {misfit}")
        return index

    def __len__(self) -> int:
        """Keys, with the running batch."""
        return self._count

    # ------------------------------------------------------------------------------------------------ look up and change

    def lookup(self, hashes: Hashes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(file number or -1: absent, position, row id or -1: the file's first row id + position), each [n]."""
        self._check()
        hashes = np.ascontiguousarray(hashes)
        n = len(hashes)
        file_no = np.empty(n, np.int32)
        position = np.empty(n, np.int64)
        row_id = np.empty(n, np.int64)
        _lookup(self._rows, self._k0, self._k1, hashes, file_no, position, row_id)
        return file_no, position, row_id

    def put(self, hashes: Hashes, file_no: npt.ArrayLike, position: npt.ArrayLike, row_id: npt.ArrayLike) -> int:
        """These keys are there now, wherever they were before. Each array [n], or one value for all; files count from 1.

        How many keys there are more: as many as were put, if none was there or came twice.
        """
        self._check()
        n = len(hashes)
        if not n:
            return 0
        rows = np.empty((n, 4), np.uint64)
        rows[:, :2] = hashes
        where = np.asarray(position, np.int64)
        if int(where.max()) > _MAX_POSITION or int(where.min()) < 0:
            raise Refused("FILE_TOO_LONG", f"a data file with a row at position {int(where.max())}", "the key index counts to 2^32")
        rows[:, 2] = (np.asarray(file_no, np.int64) << 32) | where
        rows[:, 3] = np.asarray(row_id, np.int64)
        if self._full(n):
            # Rows that only moved need no room.
            self._reserve(int(np.count_nonzero(self.lookup(hashes)[0] < 0)))
        before = np.empty((n, 2), np.uint64)
        added = int(_put(self._rows, self._k0, self._k1, rows, before))
        self._count += added
        self._note(_PUT, rows, None if added == n else before)
        return added

    def expect(self, rows: int) -> None:
        """So many keys will be there, about: room for them is made at once instead of again and again. May be far from true."""
        self._check()
        # An estimate may well be a little short.
        self._reserve(min(rows + rows // 16, _EXPECTED) - self._count)

    def remove(self, hashes: Hashes) -> None:
        """These keys are gone; those that were not there stay so."""
        self._check()
        keys = np.array(hashes, np.uint64, order="C")
        before = np.empty((len(keys), 2), np.uint64)
        self._count -= int(_remove(self._rows, self._k0, self._k1, keys, before))
        self._note(_REMOVE, keys, before)

    def clear(self) -> None:
        """No key is there any more (TRUNCATE)."""
        self._check()
        rows, count = self._rows, self._count

        def undo() -> None:
            self._rows, self._count = rows, count

        self._rows, self._count = _new_table(_SMALLEST, None), 0
        if self._undo is not None:
            self._undo.append(undo)
        # What the batch did before does not matter to the log any more.
        self._redo = [(_CLEAR, _NOTHING)]

    # ------------------------------------------------------------------------------------------------------------ commit

    def commit(self, snapshot_id: int | None, files: Mapping[int, Identity]) -> None:
        """The running batch is in the table, whose snapshot and live files are these: keep it, in memory and in the log.

        An error of the files leaves the index right in memory; the next commit then writes a new base.
        """
        self._check()
        redo = self._redo
        gone = [identity[0] for no, identity in self.files.items() if no not in files]
        changed = {no: identity for no, identity in files.items() if self.files.get(no) != identity}
        before, self.snapshot_id = self.snapshot_id, snapshot_id
        if gone or changed:
            self.files = dict(files)
        self._end()
        if redo is None or redo or gone or changed or before != snapshot_id:
            self._keep(before, gone, changed, redo)

    def rollback(self) -> None:
        """Undo the running batch. After a very large one the index must be reconciled before it is used again."""
        undo = self._undo
        self._end()
        if undo is None:
            self._forget("a very large batch was given up")
            return
        for step in reversed(undo):
            step()

    # --------------------------------------------------------------------------------------------------------- reconcile

    def reconcile(self, table: IndexedTable) -> Reconciled:
        """Make this the index of the table as it is now: at start, and after someone else's commit. Ends a running batch.

        Entries of files that are gone, or whose deletion vector is another, are dropped; the keys of files that are new or
        changed are read. Raises Corrupt KEY_TWICE when two live rows have one key; the index is empty then.
        """
        self.rollback()
        now = {no: file.identity for no, file in table.files.items()}
        if self.files and not self._renumber(now):
            self._forget("an entry named a file its table never had")
        reason, self._reason = self._reason, ""
        known = set(self.files.values())
        unread = {no: identity for no, identity in now.items() if identity not in known}
        gone = [identity[0] for identity in known.difference(now.values())]
        rebuilt = bool(unread) and len(unread) == len(now)
        redo: list[_Operation] | None = [] if self._chained and not rebuilt else None
        size = 0
        self._ready = False
        try:
            for no in unread:
                rows = self._read(table, no, now)
                size += len(rows)
                if size * 4 > self._count:
                    redo = None  # a new base costs little more than such a log
                if redo is not None:
                    redo.append((_PUT, rows))
        except BaseException:
            self._forget("reading the table's keys was cut short")
            raise
        before, self.snapshot_id = self.snapshot_id, table.snapshot_id
        self.files = now
        self._ready = True
        if unread or gone or before != self.snapshot_id or not self._chained:
            self._keep(before, gone, unread, redo, dropped=True)
        return Reconciled(rebuilt, len(unread), reason)

    def _read(self, table: IndexedTable, no: int, now: Mapping[int, Identity]) -> _Words:
        keys, positions, row_ids = table.read_keys(no)
        rows = np.empty((keys.num_rows, 4), np.uint64)
        rows[:, :2] = hash_keys(keys, self.seed)
        rows[:, 2] = (no << 32) | np.asarray(positions, np.int64)
        rows[:, 3] = np.asarray(row_ids, np.int64)
        self._reserve(len(rows))
        twice, where = _insert(self._rows, self._k0, self._k1, rows)
        if twice >= 0:
            (key,) = keys.slice(int(twice), 1).to_pylist()
            one, other = f"{now[no][0]} at {int(positions[twice])}", f"{now[int(where) >> 32][0]} at {int(where) & 0xFFFFFFFF}"
            raise Corrupt(
                "KEY_TWICE",
                f"two live rows for one key, {key}",
                f"they are in {one} and {other}",
                "`icelake resume TABLE --reload` compares it with the source and mends what differs",
            )
        self._count += len(rows)
        return rows

    def _renumber(self, now: Mapping[int, Identity]) -> bool:
        """Give the files the table's numbers, and drop the entries of those it does not have. False: an entry has no file."""
        numbers = {identity: no for no, identity in now.items()}
        if all(numbers.get(identity) == no for no, identity in self.files.items()):
            return True
        to = np.full(max(self.files) + 1, -1, np.int64)
        for no, identity in self.files.items():
            to[no] = numbers.get(identity, -1)
        if (to < 0).all():
            self._rows, self._count = _new_table(_SMALLEST, None), 0
            return True
        if (to >= 0).sum() == len(self.files):
            return bool(_rename(self._rows, to))
        rows, self._rows = self._rows, self._new(len(self._rows))
        self._count = int(_copy(rows, self._rows, self._k0, self._k1, to))
        return self._count >= 0

    # ------------------------------------------------------------------------------------------------------------ inside

    def _check(self) -> None:
        if not self._ready:
            raise Corrupt("KEY_INDEX_STALE", "the key index was asked before it was compared with its table", fix="start again")

    def _forget(self, reason: str) -> None:
        self._rows, self._count = _new_table(_SMALLEST, None), 0
        self.files, self.snapshot_id = {}, None
        self._ready = self._chained = False
        self._reason = reason

    def _end(self) -> None:
        self._undo, self._redo, self._pending, self._aside = [], [], 0, None

    def _note(self, kind: int, rows: _Words, before: _Words | None) -> None:
        """Remember how to undo and how to redo what was just done. ``before`` None: none of the keys was there."""
        self._pending += rows.nbytes + (0 if before is None else before.nbytes)
        if self._redo is not None:
            self._redo.append((kind, rows))
            if self._pending > _REDO_BYTES:
                self._redo = None
        if self._undo is None:
            return
        if self._pending > _UNDO_BYTES:
            self._undo = self._aside = None
            return
        aside = self._pending > _ASIDE_BYTES
        if before is not None:
            found = np.concatenate([rows[:, :2], before], axis=1)
        else:
            found = rows[:, :2].copy() if aside else rows
        get: Callable[[], _Words] = partial(np.asarray, found)
        if aside:
            # Where there is no room for it, memory does as well, as long as there is any.
            with suppress(OSError):
                self._aside = self._aside or _Aside(self._scratch)
                get = self._aside.put(found)

        def undo() -> None:
            back = get()
            if before is None:
                self._count -= int(_remove(self._rows, self._k0, self._k1, back, np.empty((len(back), 2), np.uint64)))
                return
            self._reserve(len(back))
            self._count += int(_undo(self._rows, self._k0, self._k1, back))

        self._undo.append(undo)

    def _full(self, more: int) -> bool:
        return self._count + more > _FULL * len(self._rows)

    def _reserve(self, more: int) -> None:
        if self._full(more):
            rows, need = self._rows, self._count + more
            # A table that grows by little is copied more often; a small one may be too large.
            growth = len(rows) if len(rows) * 32 < _SCRATCH_BYTES // 2 else len(rows) >> 2
            self._rows = self._new(max(int(need / _FULL) + 1, len(rows) + growth))
            # In both tables rows are about in the order of their hashes, so the new one fills from its beginning while the old one
            # goes: never are both of them in memory.
            for start in range(0, len(rows), _COPIED_ROWS):
                part = rows[start : start + _COPIED_ROWS]
                _copy(part, self._rows, self._k0, self._k1, _SAME_NUMBERS)
                _let_go(part)

    def _new(self, size: int) -> _Words:
        return _new_table(size, self._scratch)

    # ----------------------------------------------------------------------------------------------------------- on disk
    #
    # base         what is in it, checked: table, seed, snapshot, live files, parts with their checksums, side
    # part-S-N     rows of the table, S the side, N from 0 on; a row's file number is its place in the base's files, from 0 on
    # log-S        the digest of its base, then a record a commit
    # There are two sides, so that a new base never touches a byte of the one before it.

    def checkpoint(self) -> None:
        """Write a new base, which begins an empty log. Needs no running batch. ``commit`` does it when the log outgrows the base."""
        if self._store is None:
            return
        self._chained = False
        side = 1 - self._side
        numbers = np.full(max(self.files, default=-1) + 1, -1, np.int64)
        for place, no in enumerate(self.files):
            numbers[no] = place
        parts: list[list[Any]] = []
        at, total = 0, 0
        buffer = np.empty((min(_PART_ROWS, self._count), 4), np.uint64)
        while total < self._count:
            at, filled = (int(number) for number in _dump(self._rows, at, numbers, buffer))
            if filled <= 0:
                raise Corrupt("KEY_INDEX_CORRUPT", "the key index holds a row of a file that is not live", fix="start again: it is rebuilt")
            data = buffer[:filled].tobytes()
            name = f"part-{side}-{len(parts)}"
            self._store.replace(name, data)
            parts.append([name, filled, zlib.crc32(data)])
            total += filled
        base = {
            "table": self._uuid,
            "seed": [f"{half:016x}" for half in self.seed],
            "snapshot": self.snapshot_id,
            "keys": self._count,
            "files": list(self.files.values()),
            "parts": parts,
            "side": side,
        }
        block = orjson.dumps(base)
        log = _LOG_MAGIC + _digest(block)
        self._store.replace(f"log-{side}", log)
        self._store.replace(_BASE, _BASE_MAGIC + _HEADER.pack(len(block), zlib.crc32(block)) + block)
        old_side, old_parts = self._side, self._parts
        self._side, self._parts, self._base_bytes, self._log_bytes, self._chained = side, len(parts), total * 32, len(log), True
        # Empty is as good as gone.
        self._store.replace(f"log-{old_side}", b"")
        for number in range(old_parts):
            self._store.replace(f"part-{old_side}-{number}", b"")

    def _keep(
        self,
        before: int | None,
        gone: Sequence[str],
        changed: Mapping[int, Identity],
        redo: Sequence[_Operation] | None,
        *,
        dropped: bool = False,
    ) -> None:
        """Log how the index came from ``before`` to where it is, or write a new base. ``dropped``: entries of files went too."""
        if self._store is None:
            return
        if not self._chained or redo is None:
            self.checkpoint()
            return
        numbers = {no for kind, rows in redo if kind == _PUT for no in _numbers(rows)}
        head = orjson.dumps(
            {
                "before": before,
                "after": self.snapshot_id,
                "keys": self._count,
                "gone": gone,
                "changed": [[no, *identity] for no, identity in changed.items()],
                "named": [[no, self.files[no][0]] for no in numbers if no in self.files and no not in changed],
                "dropped": dropped,
                "operations": [[kind, len(rows)] for kind, rows in redo],
            }
        )
        pieces: list[Any] = [_COUNT.pack(len(head)), head, *(rows.reshape(-1).view(np.uint8).data for _, rows in redo if len(rows))]
        crc = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
        # A batch may be large: it is copied once.
        record = b"".join([_HEADER.pack(sum(map(len, pieces)), crc), *pieces])
        self._chained = False  # until it is written
        self._store.append(f"log-{self._side}", record)
        self._chained = True
        self._log_bytes += len(record)
        if self._log_bytes > max(_LOG_BYTES, 2 * self._base_bytes):
            self.checkpoint()

    def _load(self) -> None:
        """Read the base, and the log as far as it can be believed. Raises _NotBelievedError if that is not at all."""
        assert self._store is not None
        data = self._store.read(_BASE)
        if not data:
            return
        block = _checked(memoryview(data), len(_BASE_MAGIC)) if data.startswith(_BASE_MAGIC) else None
        if block is None:
            raise _NotBelievedError("the base is damaged")
        base = orjson.loads(block)
        if base["table"] != self._uuid:
            raise _NotBelievedError(f"the index is of another table, {base['table']}")
        side, parts, files = base["side"], base["parts"], [(path, vector) for path, vector in base["files"]]
        if side not in (0, 1) or [name for name, _, _ in parts] != [f"part-{side}-{number}" for number in range(len(parts))]:
            raise _NotBelievedError("the base names files that are none of an index")
        if len(dict(files)) != len(files) or base["keys"] != sum(count for _, count, _ in parts):
            raise _NotBelievedError("the base contradicts itself")
        self._side, self._parts = int(side), len(parts)
        one, other = (int(half, 16) for half in base["seed"])
        self._k0, self._k1 = np.uint64(one), np.uint64(other)  # raises on what is no seed
        self.seed = (one, other)
        try:
            self._rows = self._new(max(_SMALLEST, int(base["keys"] / _FULL) + 1))
        except (MemoryError, OSError, OverflowError) as error:
            raise _NotBelievedError(f"the base says it has {base['keys']} keys") from error
        for told in parts:
            rows = self._part(*told)
            if int(rows[:, 2].max()) >> 32 >= len(files):
                raise _NotBelievedError("the base holds a row of a file it does not name")
            rows[:, 2] += _ONE_FILE
            twice, _ = _insert(self._rows, self._k0, self._k1, rows)
            if twice >= 0:
                raise _NotBelievedError("the base holds a key twice")
            self._count += len(rows)
        self.files = dict(enumerate(files, 1))
        self.snapshot_id = _snapshot(base["snapshot"])
        self._base_bytes = self._count * 32
        self._chained = True
        self._replay(_digest(block))

    def _part(self, name: str, count: int, crc: int) -> _Words:
        """The rows of a part of the base."""
        assert self._store is not None
        part = self._store.read(name)
        if not part or len(part) != count * 32 or zlib.crc32(part) != crc:
            raise _NotBelievedError(f"{name} of the base is damaged or missing")
        return np.frombuffer(bytearray(part), np.uint64).reshape(-1, 4)

    def _replay(self, digest: bytes) -> None:
        assert self._store is not None
        log = memoryview(self._store.read(f"log-{self._side}") or b"")
        start = len(_LOG_MAGIC) + len(digest)
        if log[:start] != _LOG_MAGIC + digest:
            self._chained, self._reason = False, "the log is missing, or of another base"
            return
        self._log_bytes = len(log)
        paths = {identity[0]: no for no, identity in self.files.items()}
        fresh = len(paths) + 1
        while start < len(log):
            block = _checked(log, start)
            if block is None:
                # Nothing after a torn record counts. What came before it is whole, and as old as its last snapshot.
                self._chained, self._reason = False, f"the log is torn after {start} bytes of {len(log)}"
                return
            start += _HEADER.size + len(block)
            (size,) = _COUNT.unpack_from(block)
            head = orjson.loads(block[_COUNT.size : _COUNT.size + size])
            if head["before"] != self.snapshot_id:
                self._chained, self._reason = False, "a record of the log does not follow the one before it"
                return
            fresh = self._repeat(head, block[_COUNT.size + size :], paths, fresh)
            self.snapshot_id = _snapshot(head["after"])
            if self._count != head["keys"]:
                raise _NotBelievedError(f"the log leads to {self._count} keys, there were {head['keys']}")

    def _repeat(self, head: dict[str, Any], body: memoryview, paths: dict[str, int], fresh: int) -> int:
        """Do what one record says. ``paths``: the live files' numbers here; ``fresh``: the next number. Gives the next ``fresh``."""
        dead = [paths.pop(path) for path in head["gone"]]
        for no in dead:
            del self.files[no]
        if dead and head["dropped"]:
            to = np.arange(fresh, dtype=np.int64)
            to[dead] = -1
            rows, self._rows = self._rows, self._new(len(self._rows))
            self._count = int(_copy(rows, self._rows, self._k0, self._k1, to))
        numbers: dict[int, int] = {}
        for no, path, vector in head["changed"]:
            if path not in paths:
                paths[path], fresh = fresh, fresh + 1
            numbers[no] = paths[path]
            self.files[paths[path]] = (path, vector)
        for no, path in head["named"]:
            numbers[no] = paths[path]
        at = 0
        for kind, count in head["operations"]:
            width = 4 if kind == _PUT else 2
            if not 0 <= count * width * 8 <= len(body) - at:
                raise _NotBelievedError("a record of the log is shorter than it says")
            rows = np.frombuffer(bytearray(body[at : at + count * width * 8]), np.uint64).reshape(-1, width)
            at += rows.nbytes
            if kind == _CLEAR:
                self._rows, self._count = _new_table(_SMALLEST, None), 0
            elif kind == _REMOVE:
                self._count -= int(_remove(self._rows, self._k0, self._k1, rows, np.empty((count, 2), np.uint64)))
            else:
                for no in _numbers(rows):
                    if no not in numbers:  # a file that the batch made and emptied again
                        numbers[no], fresh = fresh, fresh + 1
                distinct, which = np.unique(rows[:, 2] >> np.uint64(32), return_inverse=True)
                here = np.array([numbers[int(no)] for no in distinct], np.uint64)[which]
                rows[:, 2] = (here << np.uint64(32)) | (rows[:, 2] & np.uint64(0xFFFF_FFFF))
                self._reserve(count)
                self._count += int(_put(self._rows, self._k0, self._k1, rows, np.empty((count, 2), np.uint64)))
        return fresh


class _NotBelievedError(Exception):
    """What is on disk cannot be trusted; why."""


def _snapshot(ident: Any) -> int | None:
    if ident is not None and not isinstance(ident, int):
        raise TypeError(f"{ident!r} is no snapshot")
    return ident


def _checked(data: memoryview, at: int) -> memoryview | None:
    """The checked block that begins at ``at``, or None if it is not whole."""
    if len(data) < at + _HEADER.size:
        return None
    size, crc = _HEADER.unpack_from(data, at)
    block = data[at + _HEADER.size : at + _HEADER.size + size]
    # Zeros are what a crash leaves of a file that had grown: no bytes with the checksum of no bytes.
    return block if size and len(block) == size and zlib.crc32(block) == crc else None


def _digest(block: bytes | memoryview) -> bytes:
    return hashlib.blake2b(block, digest_size=16).digest()


def _numbers(rows: _Words) -> set[int]:
    """The file numbers in ``rows``, which come in runs."""
    numbers = rows[:, 2] >> np.uint64(32)
    return {int(numbers[0]), *numbers[1:][numbers[1:] != numbers[:-1]].tolist()} if len(numbers) else set()


def _translate(error: OSError, path: Path) -> IcelakeError:
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused("DISK_FULL", f"cannot write {path}", why, "free space where the lake's folder is, then start again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Refused("STORAGE_DENIED", f"cannot use {path}", why, "run as the user who owns the lake's folder")
    return Unreachable("STORAGE_UNREACHABLE", f"cannot use {path}", why, "it is tried again; deleting the key index's folder is safe")


# ------------------------------------------------------------------------------------------------------------- the table

_NOTHING: _Words = np.empty((0, 2), np.uint64)
_SAME_NUMBERS = np.empty(0, np.int64)


def _new_table(size: int, scratch: str | None) -> _Words:
    """An empty table of ``size`` rows."""
    # Zeros that nobody touched take no memory.
    if size < _COPIED_ROWS:
        return np.zeros((size, 4), np.uint64)
    rows = _mapped(size, scratch) if size * 32 >= _SCRATCH_BYTES else None
    if rows is None:
        memory = mmap.mmap(-1, size * 32, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Touched all over in no order: in pages of 4 KiB, faults are two thirds of what it takes to fill one. NumPy asks for the same.
        with suppress(OSError, AttributeError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        rows = np.frombuffer(memory, np.uint64).reshape(size, 4)
    return rows


def _mapped(size: int, scratch: str | None) -> _Words | None:
    """A table in a file without a name. None where there is no room for one: memory does as well."""
    try:
        with tempfile.TemporaryFile(prefix="icelake-keys-", dir=scratch) as file:
            # Room is taken now: a full disk later would be a SIGBUS.
            os.posix_fallocate(file.fileno(), 0, size * 32)
            return np.frombuffer(mmap.mmap(file.fileno(), size * 32), np.uint64).reshape(size, 4)
    except OSError:
        return None


def _let_go(part: _Words) -> None:
    """These rows of a table, which come one after the other, are not needed any more."""
    memory: Any = part
    while isinstance(memory, np.ndarray):
        memory = memory.base
    memory = memory.obj if isinstance(memory, memoryview) else memory
    if not isinstance(memory, mmap.mmap):
        return  # a small table
    begin = part.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        memory.madvise(mmap.MADV_DONTNEED, first, last - first)


class _Aside:
    """Arrays in a file without a name instead of in memory. Raises OSError where there is no room."""

    def __init__(self, folder: str | None) -> None:
        with tempfile.TemporaryFile(prefix="icelake-undo-", dir=folder) as file:
            self._fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._fd)
        self._end = 0

    def put(self, array: _Words) -> Callable[[], _Words]:
        """What gives the array back."""
        start, shape, size = self._end, array.shape, array.nbytes
        view = memoryview(array.tobytes())
        while view:
            view = view[os.pwrite(self._fd, view, start + size - len(view)) :]
        self._end += size
        return lambda: np.frombuffer(bytearray(os.pread(self._fd, size, start)), np.uint64).reshape(shape)


# Kernels over ``rows`` [size, 4]: hash, hash, file number and position (_FREE: an empty row), row id. ``before`` [n, 2]: the last
# two words of a key's row before a change, _FREE in the first if there was none.

_FREE = np.uint64(0)
"""No row of any file: files are counted from 1."""
_ONE_FILE = np.uint64(1 << 32)


@kernel
def _find(rows, k0, k1, a, b):  # type: ignore[no-untyped-def]
    """The key's row; or -1 - the row where it would go."""
    at = home_slot(rows.shape[0], k0, k1, a, b)
    while rows[at, 2] != _FREE:
        if rows[at, 0] == a and rows[at, 1] == b:
            return at
        at += 1
        if at == rows.shape[0]:
            at = 0
    return -1 - at


@kernel
def _free(rows, k0, k1, hole):  # type: ignore[no-untyped-def]
    """Empty a row, and move rows that were pushed past it back, so that a search never meets a gap."""
    size = rows.shape[0]
    at = hole
    while True:
        at += 1
        if at == size:
            at = 0
        if rows[at, 2] == _FREE:
            break
        home = home_slot(rows.shape[0], k0, k1, rows[at, 0], rows[at, 1])
        # Does the hole lie on the way from the row's home to where it is?
        if (home <= hole < at) or (at < home and (home <= hole or hole < at)):
            for word in range(4):
                rows[hole, word] = rows[at, word]
            hole = at
    rows[hole, 2] = _FREE


@kernel
def _lookup(rows, k0, k1, hashes, file_no, position, row_id):  # type: ignore[no-untyped-def]
    for i in range(hashes.shape[0]):
        at = _find(rows, k0, k1, hashes[i, 0], hashes[i, 1])
        if at < 0:
            file_no[i] = -1
            position[i] = 0
            row_id[i] = -1
        else:
            file_no[i] = np.int32(rows[at, 2] >> np.uint64(32))
            position[i] = np.int64(rows[at, 2] & np.uint64(0xFFFFFFFF))
            row_id[i] = np.int64(rows[at, 3])


@kernel
def _put(rows, k0, k1, new, before):  # type: ignore[no-untyped-def]
    """How many keys there are more."""
    added = 0
    for i in range(new.shape[0]):
        at = _find(rows, k0, k1, new[i, 0], new[i, 1])
        if at < 0:
            at = -1 - at
            added += 1
            before[i, 0] = _FREE
            before[i, 1] = _FREE
        else:
            before[i, 0] = rows[at, 2]
            before[i, 1] = rows[at, 3]
        for word in range(4):
            rows[at, word] = new[i, word]
    return added


@kernel
def _remove(rows, k0, k1, keys, before):  # type: ignore[no-untyped-def]
    """How many keys there are less."""
    removed = 0
    for i in range(keys.shape[0]):
        at = _find(rows, k0, k1, keys[i, 0], keys[i, 1])
        if at < 0:
            before[i, 0] = _FREE
            before[i, 1] = _FREE
        else:
            before[i, 0] = rows[at, 2]
            before[i, 1] = rows[at, 3]
            _free(rows, k0, k1, at)
            removed += 1
    return removed


@kernel
def _undo(rows, k0, k1, found):  # type: ignore[no-untyped-def]
    """Bring back what ``_put`` or ``_remove`` found, last first: [n, 4], a key and its ``before``. How many keys there are more."""
    more = 0
    for i in range(found.shape[0] - 1, -1, -1):
        at = _find(rows, k0, k1, found[i, 0], found[i, 1])
        if found[i, 2] == _FREE:
            if at >= 0:
                _free(rows, k0, k1, at)
                more -= 1
            continue
        if at < 0:
            at = -1 - at
            more += 1
        for word in range(4):
            rows[at, word] = found[i, word]
    return more


@kernel
def _insert(rows, k0, k1, new):  # type: ignore[no-untyped-def]
    """Add keys that must not be there. (number of the first that was, where that was), or (-1, 0)."""
    for i in range(new.shape[0]):
        at = _find(rows, k0, k1, new[i, 0], new[i, 1])
        if at >= 0:
            return i, rows[at, 2]
        at = -1 - at
        for word in range(4):
            rows[at, word] = new[i, word]
    return -1, np.uint64(0)


@kernel
def _copy(rows, new, k0, k1, numbers):  # type: ignore[no-untyped-def]
    """Everything into an empty table, file numbers translated if ``numbers`` are given (-1: left out). How many; -1: no such number."""
    count = 0
    for i in range(rows.shape[0]):
        where = rows[i, 2]
        if where == _FREE:
            continue
        if numbers.shape[0]:
            old = np.int64(where >> np.uint64(32))
            if old >= numbers.shape[0]:
                return -1
            if numbers[old] < 0:
                continue
            where = (np.uint64(numbers[old]) << np.uint64(32)) | (where & np.uint64(0xFFFFFFFF))
        at = -1 - _find(new, k0, k1, rows[i, 0], rows[i, 1])
        new[at, 0] = rows[i, 0]
        new[at, 1] = rows[i, 1]
        new[at, 2] = where
        new[at, 3] = rows[i, 3]
        count += 1
    return count


@kernel
def _rename(rows, numbers):  # type: ignore[no-untyped-def]
    """Translate every file number where it stands; whether there was one for each."""
    for i in range(rows.shape[0]):
        where = rows[i, 2]
        if where == _FREE:
            continue
        old = np.int64(where >> np.uint64(32))
        if old >= numbers.shape[0] or numbers[old] < 0:
            return False
        rows[i, 2] = (np.uint64(numbers[old]) << np.uint64(32)) | (where & np.uint64(0xFFFFFFFF))
    return True


@kernel
def _dump(rows, start, numbers, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` from row ``start`` on, file numbers translated. (the next row, how many); how many is -1 if there is no number."""
    filled = 0
    at = start
    while at < rows.shape[0] and filled < out.shape[0]:
        where = rows[at, 2]
        if where != _FREE:
            old = np.int64(where >> np.uint64(32))
            if old >= numbers.shape[0] or numbers[old] < 0:
                return at, -1
            out[filled, 0] = rows[at, 0]
            out[filled, 1] = rows[at, 1]
            out[filled, 2] = (np.uint64(numbers[old]) << np.uint64(32)) | (where & np.uint64(0xFFFFFFFF))
            out[filled, 3] = rows[at, 3]
            filled += 1
        at += 1
    return at, filled
