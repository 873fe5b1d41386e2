"""One libFuzzer process: ``python -m tests.fuzz.child TARGET [libFuzzer's arguments]``. Ends as libFuzzer ends it."""

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

import atheris

from icelake.errors import IcelakeError


def main() -> None:
    name, *arguments = sys.argv[1:]
    target = importlib.import_module(f"tests.fuzz.{name}")
    # Interpreted kernels compute with numpy's scalars, which warn where 64 bits wrap around.
    warnings.simplefilter("ignore")

    def read(data: bytes) -> None:
        with suppress(IcelakeError):
            target.run(data)

    # Everything that is compiled at its first call is compiled here, not under libFuzzer's clock.
    for seed in target.seeds():
        read(seed)
    for module in target.WATCHED:
        for function in _functions(module):
            atheris.instrument_func(function)
    mutator = getattr(target, "mutate", None)
    atheris.Setup([sys.argv[0], *arguments], read, **({"custom_mutator": mutator} if mutator else {}))
    atheris.Fuzz()


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """All that the module defines, methods too. Not what numba compiled: those are no functions of Python any more."""
    for thing in vars(module).values():
        if isinstance(thing, type) and thing.__module__ == module.__name__:
            for member in vars(thing).values():
                yield from _own(module, member)
        else:
            yield from _own(module, thing)


def _own(module: ModuleType, thing: Any) -> Iterator[FunctionType]:
    for inner in (thing, getattr(thing, "__func__", None), getattr(thing, "fget", None), getattr(thing, "func", None)):
        # What dataclasses generate has no file, and nothing in it to find.
        if isinstance(inner, FunctionType) and inner.__code__.co_filename == module.__file__:
            yield inner


if __name__ == "__main__":
    main()
