"""How the loops that are too slow in Python become machine code, and where that is kept: ``@kernel``, and numba's cache made safe.

Promises: nothing is compiled at import. What was compiled is kept for other processes in the first of these that can be written:
``NUMBA_CACHE_DIR``, ``__pycache__`` beside the source, the user's cache folder; where none can, every process compiles anew. Code is
used only if this numba made it, for this CPU, from these sources (those of the kernels it calls, too), and if it is whole: many
processes may compile at once, one may be killed while it writes, the disk may be full, a folder may be shared by machines.
"""

import hashlib
import pickle
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import caching, event

PATIENCE = 1.0
"""Seconds of compiling until it is worth a word."""


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call with arguments of new types. The GIL is not held while it runs."""
    compiled: Any = njit(nogil=True)(function)
    with suppress(RuntimeError):  # no folder to keep code in
        compiled._cache = _Cache(function)
    found: Callable[..., Any] = compiled
    return found


def announced(tell: Callable[[str], None]) -> AbstractContextManager[object]:
    """Within it ``tell`` hears, once, that this process has compiled for a second and goes on."""
    found: AbstractContextManager[object] = event.install_listener("numba:compile", _Patience(tell))
    return found


class _Patience(event.Listener):
    """Adds up what compiling takes. numba compiles one function at a time, and those it calls meanwhile."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell: Callable[[str], None] | None = tell
        self._began: list[float] = []
        self._took = 0.0

    def on_start(self, event: Any) -> None:
        if self._tell is not None and self._took >= PATIENCE and not self._began:
            kept = isinstance(event.data["dispatcher"]._cache, _Cache)
            self._tell(_ONCE if kept else _EVERY_TIME)
            self._tell = None
        self._began.append(time.monotonic())

    def on_end(self, event: Any) -> None:
        took = time.monotonic() - self._began.pop()
        if not self._began:
            self._took += took


_ONCE = "compiling the kernels, once on this machine: some 20 s of CPU in all"
_EVERY_TIME = (
    "compiling the kernels, in every process, because there is no folder to keep them in: set NUMBA_CACHE_DIR to one that can be written"
)


class _Cache(caching.FunctionCache):
    """The code of one function, for all types of arguments and all CPUs. Raises RuntimeError where there is no folder for it."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        # The code of a kernel holds that of the kernels it calls: numba would look at the function's own file only.
        named = [function.__globals__.get(name) for name in function.__code__.co_names]
        called = [one._cache.stamp for one in named if isinstance(getattr(one, "_cache", None), _Cache)]
        self.stamp = (self._impl.locator.get_source_stamp(), *called)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, self.stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk, a folder that went: then this process alone has it
            super().save_overload(sig, data)


def _digest(code: bytes) -> str:
    return hashlib.blake2b(code, digest_size=16).hexdigest()


class _Files(caching.IndexDataCacheFile):
    """An index, and files named by what is in them.

    numba numbers them by what it read of the index: of two processes at once, one could then be given what the other compiled for
    other arguments, and one that is killed leaves the new index with old code.
    """

    def save(self, key: Any, data: Any) -> None:
        code = self._dump(data)
        name = f"{Path(self._index_name).stem}.{_digest(code)}.nbc"
        with self._open_for_write(self._data_path(name)) as file:
            file.write(code)
        self._save_index({**self._load_index(), key: name})

    def _load_data(self, name: str) -> Any:
        code = Path(self._data_path(name)).read_bytes()
        if not name.endswith(f".{_digest(code)}.nbc"):
            raise OSError(f"{name} is not what was written")  # to numba it is as good as gone
        return pickle.loads(code)

    def _load_index(self) -> dict[Any, str]:
        try:
            found: dict[Any, str] = super()._load_index()
        except Exception:  # noqa: BLE001 - a torn pickle raises anything
            return {}
        return found
