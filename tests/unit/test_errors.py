"""Every documented error is looked for: ``tests.provoked`` sees that each is raised, and here somebody must name it."""

import ast
import re

from tests.provoked import ROOT, documented


def test_every_documented_code_is_named_by_a_test() -> None:
    """In a text that is no docstring. A code that no test names is at best met by the way."""
    named: set[str] = set()
    for file in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        spoken = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in spoken:
                named |= set(re.findall(r"[A-Z0-9_]{3,}", node.value))
    assert documented() - named == set()
