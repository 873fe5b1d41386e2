"""The museum's page and its tests say the same: no exhibit without a test, no test of the museum that is not on the page."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "explanation" / "museum.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def functions(file: Path) -> dict[str, str]:
    """Name -> docstring of every test in a file, methods included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {
        node.name: ast.get_docstring(node) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_exhibit_is_there(file: str, name: str) -> None:
    assert name in functions(ROOT / file)


def test_every_loss_has_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| published")]
    assert len(rows) > 30
    assert [row for row in rows if "::test_" not in row] == []


def test_the_museum_holds_nothing_else() -> None:
    for file in (ROOT / "tests" / "museum").glob("test_*.py"):
        for name, said in functions(file).items():
            assert (f"tests/museum/{file.name}", name) in NAMED
            assert said, f"{name} does not say whose loss it is"
