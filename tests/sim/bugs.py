"""Bugs planted in the product's source as it is imported: what the simulator must catch.

Each is a rule of docs/protocol.md broken, or a loss others have published. ``plant`` changes what Python imports in this process;
the files of the checkout are not touched. A patch whose old text is not exactly once in the module is an error: a bug that can
no longer be planted must be written anew.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType


@dataclass(frozen=True, slots=True)
class Patch:
    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Bug:
    name: str
    breaks: str
    """The rule it breaks."""
    patches: tuple[Patch, ...]
    seed: int = 0
    """A seed that caught it; tried first."""


class _Loader(SourceFileLoader):
    def __init__(self, spec: ModuleSpec, patches: Sequence[Patch]) -> None:
        assert spec.origin is not None
        super().__init__(spec.name, spec.origin)
        self._patches = patches

    def get_code(self, fullname: str) -> CodeType:
        return compile(patched(Path(self.path).read_text(), self._patches), self.path, "exec", dont_inherit=True)


def patched(source: str, patches: Sequence[Patch]) -> str:
    """The source with every patch applied. Raises ValueError when an old text is not there exactly once."""
    for patch in patches:
        if source.count(patch.old) != 1:
            raise ValueError(f"{patch.module}: {source.count(patch.old)} places for {patch.old!r}")
        source = source.replace(patch.old, patch.new)
    return source


class _Planter(MetaPathFinder):
    def __init__(self, bug: Bug) -> None:
        self._patches: dict[str, list[Patch]] = {}
        for patch in bug.patches:
            self._patches.setdefault(patch.module, []).append(patch)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self._patches:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        return importlib.util.spec_from_loader(fullname, _Loader(spec, self._patches[fullname]))


def plant(bug: Bug) -> None:
    """Make this process import the product with the bug in it. The modules must not have been imported yet."""
    early = [patch.module for patch in bug.patches if patch.module in sys.modules]
    if early:
        raise ValueError(f"imported already: {', '.join(early)}")
    sys.meta_path.insert(0, _Planter(bug))


APPLIER = "icelake.ingest.applier"
CONTROL = "icelake.ingest.control"
COMMIT = "icelake.ingest.commit"
FOLLOWED = "icelake.ingest.followed"
UPKEEP = "icelake.ingest.upkeep"
STORE = "icelake.catalog.store"

_ALL = (Bug("example", "", ()),)

BUGS = {bug.name: bug for bug in _ALL}
