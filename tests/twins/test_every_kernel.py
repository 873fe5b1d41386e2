"""No kernel without a twin, and none that is compiled before somebody needs it."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType

import icelake
import tests.twins.test_collapse
import tests.twins.test_postgres
import tests.twins.test_receive
import tests.twins.test_tables
from tests.twins.ways import PARTS, TWINS, Kernel


def kernels() -> dict[str, Kernel]:
    """All there are in the package, each under the module that has it."""
    found = {}
    for module in pkgutil.walk_packages(icelake.__path__, "icelake."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if hasattr(value, "py_func") and value.py_func.__module__ == module.name:
                found[f"{module.name}.{name}"] = value
    return found


def test_every_kernel_has_a_twin() -> None:
    found = kernels()
    assert len(found) > 60
    assert [name for name, kernel in found.items() if kernel not in TWINS and kernel not in PARTS] == []
    for kernel, whole in PARTS.items():
        assert whole in TWINS
        # What is only a part is called by what has the twin, or by another part of it.
        callers = [whole, *(one for one, other in PARTS.items() if other is whole)]
        assert any(kernel.__name__ in caller.py_func.__code__.co_names for caller in callers), kernel


def test_every_twin_is_compared() -> None:
    """Each twin's kernel is run by a test of this folder."""
    modules = [tests.twins.test_collapse, tests.twins.test_postgres, tests.twins.test_receive, tests.twins.test_tables]
    assert [kernel for kernel in TWINS if not any(kernel in _named(module) for module in modules)] == []


def _named(module: ModuleType) -> list[Kernel]:
    """What a module's code calls by the name of another module: ``kernels.parse_int``."""
    places = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Attribute)]
    return [getattr(vars(module).get(node.value.id), node.attr, None) for node in places if isinstance(node.value, ast.Name)]


def test_nothing_is_compiled_at_import() -> None:
    program = "from tests.twins.test_every_kernel import kernels; assert not any(k.signatures for k in kernels().values())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
