"""What the programs that write pages of docs/ share."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def keep(path: Path, text: str) -> int:
    """Write the page; with ``--check`` only compare, and 1 when it is old. The exit code."""
    if "--check" in sys.argv[1:]:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.relative_to(ROOT)} is not what the code says: make docs", file=sys.stderr)
            return 1
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return 0
