"""The README does what it says: its shell blocks are run, in order, as they stand there."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from icelake import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_blocks_are_the_ones_known_here() -> None:
    assert [block.split("\n")[0].split("=")[0] for block in BLOCKS] == ["make demo", "make test", "icelake init shop", "export SHOP_DSN"]


def test_your_own_database(shell: Any) -> None:
    first, second = BLOCKS[2:]
    line = next(line for line in second.splitlines() if line.startswith("export SHOP_DSN="))
    shell.run(first)
    assert f"{shell.env['HOME']}" != str(Path.home())
    done = shell.run(second.replace(line, f"export SHOP_DSN='{shell.dsn}'"))
    assert "3000" in done.stdout
    assert re.search(r"^equal at LSN [0-9A-F]+/[0-9A-F]+$", done.stdout, re.MULTILINE)
    assert sorted(path.name for path in shell.folder.iterdir()) == ["home", "shop"]
    assert list((shell.folder / "home").iterdir()) == []


def test_the_two_commands_are_targets() -> None:
    for target in ("demo", "test"):
        plan = subprocess.run(["make", "-n", "-o", ".venv/.pyproject.toml", target], cwd=ROOT, capture_output=True, text=True, check=True)
        assert ("icelake demo" if target == "demo" else "-m pytest") in plan.stdout


def test_the_table_of_commands_is_complete() -> None:
    assert set(re.findall(r"^\| `icelake ([a-z]+)", README, re.MULTILINE)) == set(cli.COMMANDS)


def test_demo_ends_with_the_document(shell: Any) -> None:
    done = shell.run("icelake demo --seconds 5 --json")
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["verified"] is True
    assert document["tables"] >= 10
    assert document["changes"] > 0
    assert document["freshness_p50_ms"] <= document["freshness_p99_ms"]
