"""Files in local folders; a location is a plain absolute path, or that as ``file:/path`` (which is the same file).

Promises: after ``flush`` every file written before it, and every folder that names it, survives a power cut. A file that could
not be written whole is not there. Never replaces a file, never follows a relative path.
Fails with ``Refused`` (DISK_FULL, DISK_ERROR, STORAGE_DENIED, LOCATION_REUSED), ``Corrupt`` (a file that should be there and is
not, or is too short) and ``Unreachable`` (anything that may pass by itself). When the disk refuses to sync, the kernel may drop
the data and report success the next time, so this object never flushes again: start anew, with new files.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import pyarrow as pa

from icelake.errors import Corrupt, IcelakeError, ProjectError, Refused, Unreachable
from icelake.model.location import canonical
from icelake.ports import StoredFile

_Thing = TypeVar("_Thing")

_SYNC_THREADS = 16
"""A file system writes its journal once for all who wait for it together."""
_OPEN_FILES = 256
"""Files kept open until they are synced. With more they are synced early: the limit of open files is often 1,024."""
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class LocalStorage:
    """``ports.Storage`` over the local file system. May be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A file stays open until it is synced: an error of writing back is reported to a descriptor that was open then.
        self._files: dict[str, int] = {}
        self._folders: dict[str, None] = {}
        self._known: set[str] = set()
        self._broken: IcelakeError | None = None
        self._pool: ThreadPoolExecutor | None = None

    def write(self, location: str, data: bytes | pa.Buffer) -> None:
        path = _absolute(location)
        with self._lock:
            try:
                fd = self._created(path)
            except FileExistsError:
                self._again(path, data)
                return
            except OSError as error:
                raise _translate(error, f"cannot write {path}") from error
            _fill(path, fd, data)
            self._files[path] = fd
            self._folders[os.path.dirname(path)] = None
            if len(self._files) > _OPEN_FILES:
                self._sync_files()

    def put(self, location: str, data: bytes) -> None:
        path = _absolute(location)
        try:
            try:
                fd = os.open(path, _NEW, 0o644)
            except FileNotFoundError:
                with self._lock:
                    fd = self._created(path)
        except FileExistsError:
            with self._lock:
                self._again(path, data)
            return
        except OSError as error:
            raise _translate(error, f"cannot write {path}") from error
        _fill(path, fd, data)
        try:
            os.close(fd)
        except OSError as error:
            # Some file systems say only now that there is no room.
            with suppress(OSError):
                os.unlink(path)
            raise _translate(error, f"cannot write {path}") from error

    def _created(self, path: str) -> int:
        """A new file, its folders made if need be. For who holds the lock."""
        folder = os.path.dirname(path)
        if folder not in self._known:
            self._make(folder)
        try:
            return os.open(path, _NEW, 0o644)
        except FileNotFoundError:
            # Somebody removed the folder since it was made.
            self._known.clear()
            self._make(folder)
            return os.open(path, _NEW, 0o644)

    def flush(self) -> None:
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._sync_files()
            # A folder after its files: a name that survives must not lead to an empty file.
            folders = list(self._folders)
            self._sync(_sync_folder, folders)
            for folder in folders:
                del self._folders[folder]

    def read(self, location: str, offset: int = 0, length: int | None = None) -> bytes:
        """``length`` bytes from ``offset`` (all from there if None). Raises Corrupt when there are fewer."""
        path = _absolute(location)
        try:
            with open(path, "rb", buffering=0) as file:
                if offset:
                    file.seek(offset)
                if length is None:
                    return file.read()
                data = file.read(length)
                while len(data) < length:
                    more = file.read(length - len(data))
                    if not more:
                        raise Corrupt(
                            "FILE_SHORT",
                            f"{path} ends {length - len(data)} bytes too early",
                            f"{length} bytes at {offset} were expected",
                            "restore the file from a backup, or load the table again",
                        )
                    data += more
                return data
        except OSError as error:
            raise _translate(error, f"cannot read {path}") from error

    def open(self, location: str) -> pa.NativeFile:
        # Not a memory map: there a disk error is a SIGBUS, which ends the process instead of raising.
        path = _absolute(location)
        try:
            return pa.OSFile(path, "rb")
        except OSError as error:
            raise _translate(error, f"cannot read {path}") from error

    def delete(self, location: str) -> None:
        path = _absolute(location)
        with self._lock:
            fd = self._files.pop(path, None)
            if fd is not None:
                os.close(fd)
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                return
            except OSError as error:
                raise _translate(error, f"cannot delete {path}") from error

    def list(self, prefix: str) -> Iterator[StoredFile]:
        """The files below the folder ``prefix``, in no order; files and folders that vanish meanwhile are passed over.

        ``/lake/t`` never lists ``/lake/t2``: a prefix is a folder, not the beginning of a name.
        """
        folders = [_absolute(prefix)]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                            continue
                        with suppress(FileNotFoundError):
                            found = entry.stat(follow_symlinks=False)
                            if stat.S_ISREG(found.st_mode):
                                yield StoredFile(entry.path, found.st_size, found.st_mtime)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise _translate(error, f"cannot list {folder}") from error

    def close(self) -> None:
        """Give up what was not flushed and let the threads go. The object must not be used afterwards."""
        with self._lock:
            for fd in self._files.values():
                os.close(fd)
            self._files.clear()
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def _make(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        # Also folders that were there already: who made them may have died before syncing their names.
        while folder not in self._known:
            self._known.add(folder)
            if os.access(folder, os.W_OK):
                self._folders[folder] = None
            folder = os.path.dirname(folder)

    def _again(self, path: str, data: bytes | pa.Buffer) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                same = os.fstat(fd).st_size == memoryview(data).nbytes and _read_all(fd) == memoryview(data)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise _translate(error, f"cannot write {path}") from error
        if not same:
            os.close(fd)
            raise Refused(
                "LOCATION_REUSED",
                f"{path} is there already, with other bytes",
                "a location is used once; a file in the lake is never replaced",
                "find out what else writes into this folder",
            )
        if path in self._files:
            os.close(fd)
        else:
            self._files[path] = fd
        self._folders[os.path.dirname(path)] = None

    def _sync_files(self) -> None:
        paths = list(self._files)
        self._sync(os.fsync, [self._files[path] for path in paths])
        for path in paths:
            os.close(self._files.pop(path))

    def _sync(self, one: Callable[[_Thing], None], things: Sequence[_Thing]) -> None:
        try:
            if len(things) <= _SYNC_THREADS:
                for thing in things:
                    one(thing)
            else:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(_SYNC_THREADS, "icelake-sync")
                for _ in self._pool.map(one, things):
                    pass
        except OSError as error:
            self._broken = _translate(error, "the disk did not take what was written")
            raise self._broken from error


def _absolute(location: str) -> str:
    if location.startswith("file:"):
        location = canonical(location)
    if not location.startswith("/") or os.path.normpath(location) != location.rstrip("/"):
        raise ProjectError(
            "STORAGE_LOCATION",
            f"not a plain absolute path: {location!r}",
            "local storage holds files by absolute path, without a scheme and without . or ..",
            "name the lake's folder by its absolute path",
        )
    return location.rstrip("/")


def _fill(path: str, fd: int, data: bytes | pa.Buffer) -> None:
    """A new file's content; the file is gone again if it does not get it."""
    try:
        _write_all(fd, data)
    except BaseException as error:
        os.close(fd)
        with suppress(OSError):
            os.unlink(path)
        if isinstance(error, OSError):
            raise _translate(error, f"cannot write {path}") from error
        raise


def _write_all(fd: int, data: bytes | pa.Buffer) -> None:
    view = memoryview(data).cast("B")
    while view.nbytes:
        view = view[os.write(fd, view) :]


def _read_all(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        return file.read()


def _sync_folder(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # removed with everything in it: there is no name left to keep
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _translate(error: OSError, what: str) -> IcelakeError:
    why = error.strerror or str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return Refused("DISK_FULL", what, why, "free space (or raise the quota) where the lake's folder is, then start again")
        case errno.ENOENT | errno.ENOTDIR:
            return Corrupt("FILE_MISSING", what, why, "restore the file from a backup, or load the table again")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return Refused("STORAGE_DENIED", what, why, "run as the user who owns the lake's folder, or give this user the right")
        case errno.EIO | errno.EUCLEAN | errno.ENXIO:
            return Refused(
                "DISK_ERROR", what, why, "look at the system's log; replace the disk or restore the lake's folder, then start again"
            )
        case _:
            return Unreachable("STORAGE_UNREACHABLE", what, why, "it is tried again; if it stays, look at the system's log")
