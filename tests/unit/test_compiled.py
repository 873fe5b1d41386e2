"""How compiled code is kept: who may find what, what is made of damage, and what is said while there is none."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from icelake import compiled
from icelake.compiled import _Files

DOUBLE = """
from icelake.compiled import kernel

@kernel
def double(x):
    return x + x
"""
QUADRUPLE = """
from icelake.compiled import kernel
from twice import double

@kernel
def quadruple(x):
    return double(double(x))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[[str, str], Any]:
    """A module as a new process would see it: nothing is compiled yet, and everything that was kept is there."""

    def module(name: str, source: str) -> Any:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, found)
        spec.loader.exec_module(found)
        return found

    return module


def compilations(kernel: Any) -> int:
    return sum(kernel.stats.cache_misses.values())


def test_what_was_compiled_is_found_by_the_next_process(load: Callable[[str, str], Any]) -> None:
    assert load("twice", DOUBLE).double(21) == 42
    again = load("twice", DOUBLE).double
    assert (again(21), again(1.5)) == (42, 3.0)
    assert compilations(again) == 1  # the float


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("nbi", lambda data: b""),
        ("nbi", lambda data: data[:-9]),
        ("nbc", lambda data: bytes(len(data))),
        ("nbc", lambda data: data[:-9] + b"\0" * 9),
    ],
)
def test_damaged_files_are_made_anew(kind: str, damage: Callable[[bytes], bytes], load: Callable[[str, str], Any], cache: Path) -> None:
    assert load("twice", DOUBLE).double(21) == 42
    (path,) = cache.rglob(f"*.{kind}")
    path.write_bytes(damage(path.read_bytes()))
    again = load("twice", DOUBLE).double
    assert (again(21), compilations(again)) == (42, 1)
    healed = load("twice", DOUBLE).double
    assert (healed(21), compilations(healed)) == (42, 0)


def test_a_kernel_is_made_anew_when_one_that_it_calls_has_changed(load: Callable[[str, str], Any]) -> None:
    load("twice", DOUBLE)
    assert load("four", QUADRUPLE).quadruple(3) == 12
    load("twice", DOUBLE.replace("x + x", "x * x"))
    assert load("four", QUADRUPLE).quadruple(3) == 81


def test_of_two_processes_at_once_none_gets_what_the_other_made_for_other_arguments(tmp_path: Path) -> None:
    one, other = (_Files(str(tmp_path), "f", "stamp") for _ in range(2))
    read = one._load_index

    def meanwhile() -> dict[Any, str]:
        found = read()
        one._load_index = read  # type: ignore[method-assign]
        other.save("float", "code for floats")
        return found

    one._load_index = meanwhile  # type: ignore[method-assign]
    one.save("int", "code for ints")
    assert one.load("int") == "code for ints"
    assert one.load("float") in ("code for floats", None)  # None: it is compiled once more
    other.save("float", "code for floats")
    assert (one.load("int"), one.load("float")) == ("code for ints", "code for floats")


def test_a_process_that_dies_while_it_writes_leaves_nothing_that_is_found(tmp_path: Path) -> None:
    _Files(str(tmp_path), "f", "old source").save("int", "old code")
    dying = _Files(str(tmp_path), "f", "new source")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("_open_for_write", "_save_index"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dying, step, die)
            with pytest.raises(KeyboardInterrupt):
                dying.save("int", "new code")
        assert _Files(str(tmp_path), "f", "new source").load("int") is None
        assert _Files(str(tmp_path), "f", "old source").load("int") == "old code"


def test_a_folder_that_cannot_be_written_any_more_stops_nobody(load: Callable[[str, str], Any], cache: Path) -> None:
    double = load("twice", DOUBLE).double
    for path in [*cache.rglob("*")][::-1]:
        path.rmdir()
    cache.rmdir()
    cache.write_text("not a folder")
    assert double(21) == 42


def test_without_a_folder_every_process_compiles_and_says_how_to_end_that(
    load: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # numba finds none: as with a read-only installation, no home and no NUMBA_CACHE_DIR.
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "ZipCacheLocator")
    assert told(monkeypatch, load("twice", DOUBLE).double) == [compiled._EVERY_TIME]
    assert "NUMBA_CACHE_DIR" in compiled._EVERY_TIME


def test_who_waits_for_the_compiler_is_told_once_and_only_then(load: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, load("twice", DOUBLE).double) == [compiled._ONCE]
    assert told(monkeypatch, load("twice", DOUBLE).double) == []
    assert told(monkeypatch, load("thrice", DOUBLE.replace("+ x", "+ x + x")).double, patience=1000.0) == []


def told(monkeypatch: pytest.MonkeyPatch, kernel: Any, patience: float = 0.0) -> list[str]:
    monkeypatch.setattr(compiled, "PATIENCE", patience)
    said: list[str] = []
    with compiled.announced(said.append):
        assert kernel(1) in (2, 3)
        assert kernel(1.5) in (3.0, 4.5)
    return said


PROGRAM = """
import sys; sys.path.insert(0, {folder!r})
from twice import double
assert double(21) == 42
print(sum(double.stats.cache_misses.values()))
"""


def test_one_folder_for_many_processes_and_several_kinds_of_machine(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(DOUBLE)

    def start(cpu: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), **({"NUMBA_CPU_NAME": cpu} if cpu else {})}
        program = [sys.executable, "-c", PROGRAM.format(folder=str(tmp_path))]
        return subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True)

    at_once = [start(cpu) for cpu in ("", "", "generic")]
    assert [process.communicate()[0].strip() for process in at_once] in (["1", "1", "1"], ["1", "0", "1"], ["0", "1", "1"])
    # Whoever wrote the index last may have left the other out: then that is compiled once more.
    assert sum(int(start(cpu).communicate()[0]) for cpu in ("", "generic")) <= 1
