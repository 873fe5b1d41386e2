"""The compiled loops under numba's own bounds checks. What they compute stands in ``tests/twins``."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(arguments: list[str], **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, cwd=HERE.parents[3], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_hostile_input_reaches_beyond_an_array(tmp_path: Path) -> None:
    # Compiled anew with every index checked: reads and writes past an end are errors here, where they would pass in silence.
    files = [str(HERE / name) for name in ("test_pgoutput.py", "test_copy_text.py", "test_values.py", "test_parts.py")]
    which = "noise or damaged or torn or never or cannot"
    run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which, *files],
        NUMBA_BOUNDSCHECK="1",
        NUMBA_CACHE_DIR=str(tmp_path),
        HYPOTHESIS_STORAGE_DIRECTORY=str(tmp_path),
    )
    assert list(tmp_path.rglob("*.nbc"))  # it did compile, for this run
