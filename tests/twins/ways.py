"""The two ways to run a kernel. Compiled, as users do; interpreted, with every index checked.

Compiled code checks no index, and numba's own check (NUMBA_BOUNDSCHECK) lets -1 pass as the last element. So the same function is run
by Python over arrays that refuse what is below 0 or beyond the end, and any value that their type cannot hold. Compiled, arrays lie
between margins that must be left alone. Both ways must leave every array the same.
"""

import random
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any

import numpy as np

Kernel = Any
TWINS: dict[Kernel, Callable[..., Any]] = {}
"""Kernel -> the plain function that says what it does."""
PARTS: dict[Kernel, Kernel] = {}
"""A kernel that has no meaning by itself -> the one whose twin says what both do together."""


def twin(kernel: Kernel) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def name(function: Callable[..., Any]) -> Callable[..., Any]:
        TWINS[kernel] = function
        return function

    return name


def part(whole: Kernel, *kernels: Kernel) -> None:
    PARTS.update(dict.fromkeys(kernels, whole))


class Guarded:
    """An array as kernels see it, that knows its bounds. Numbers of less than 64 bits are Python's, so that none of them wraps."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = array.shape

    def __len__(self) -> int:
        return len(self.array)

    def _at(self, index: Any) -> tuple[int, ...]:
        places = tuple(int(one) for one in (index if isinstance(index, tuple) else (index,)))
        if len(places) != len(self.shape) or not all(0 <= place < size for place, size in zip(places, self.shape, strict=True)):
            raise IndexError(f"{places} of {self.shape}")
        return places

    def __getitem__(self, index: Any) -> Any:
        value = self.array[self._at(index)]
        return value if value.itemsize == 8 and value.dtype.kind in "iu" else value.item()

    def __setitem__(self, index: Any, value: Any) -> None:
        kind = self.array.dtype
        if kind.kind in "iu" and not np.iinfo(kind).min <= int(value) <= np.iinfo(kind).max:
            raise OverflowError(f"{value} as {kind}")
        self.array[self._at(index)] = value


@lru_cache
def _globals(module: str) -> dict[str, Any]:
    """A module's names, where every kernel is the function that was compiled; those that it calls are, too."""
    found = dict(vars(sys.modules[module]))
    for name, value in list(found.items()):
        if hasattr(value, "py_func"):
            function = value.py_func
            own = found if function.__module__ == module else _globals(function.__module__)
            found[name] = FunctionType(function.__code__, own, name)
    return found


def interpreted(kernel: Kernel, instead: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """``instead``: what its module's names mean then."""
    found = _globals(kernel.py_func.__module__)
    if instead:
        return FunctionType(kernel.py_func.__code__, {**found, **instead}, kernel.__name__)
    function: Callable[..., Any] = found[kernel.__name__]
    return function


MARGIN = 3


def _between_margins(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the same array within a longer one, the longer one)"""
    around = np.empty((array.shape[0] + 2 * MARGIN, *array.shape[1:]), array.dtype)
    around.reshape(-1).view(np.uint8)[:] = np.frombuffer(random.Random(array.nbytes).randbytes(around.nbytes), np.uint8)
    around[MARGIN : MARGIN + array.shape[0]] = array
    inside = around[MARGIN : MARGIN + array.shape[0]]
    inside.flags.writeable = array.flags.writeable
    return inside, around


def _value(found: Any) -> Any:
    return tuple(_value(one) for one in found) if isinstance(found, tuple) else found.item() if isinstance(found, np.generic) else found


def run(kernel: Kernel, *arguments: Any) -> tuple[Any, list[np.ndarray]]:
    """(what it gives, its arrays afterwards), which both ways agree about. ``arguments`` are not changed."""
    compiled, margins = [], []
    for one in arguments:
        if isinstance(one, np.ndarray):
            one, around = _between_margins(one)
            margins.append((one, around, around.copy()))
        compiled.append(one)
    gave = _value(kernel(*compiled))
    for one, around, before in margins:
        before[MARGIN : MARGIN + one.shape[0]] = one
        assert around.tobytes() == before.tobytes(), f"{kernel} wrote beside an array"
    checked = [Guarded(one.copy()) if isinstance(one, np.ndarray) else one for one in arguments]
    with np.errstate(over="ignore"):
        assert _value(interpreted(kernel)(*checked)) == gave, kernel
    after = [one for one in compiled if isinstance(one, np.ndarray)]
    for one, other in zip(after, [one for one in checked if isinstance(one, Guarded)], strict=True):
        assert one.tobytes() == other.array.tobytes(), kernel
    return gave, after
