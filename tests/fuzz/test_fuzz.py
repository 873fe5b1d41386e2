"""The short form: every committed input is read again, and the search goes on from there for a while, in the same order each time."""

import json
from pathlib import Path

import pytest

from tests.fuzz import TARGETS

pytest.importorskip("atheris", reason="atheris has no wheel for this platform")

from tests.fuzz.__main__ import CORPUS, fuzz, seeded

RUNS = {
    "frames": 10_000,
    "pgoutput": 1_000,
    "values": 5_000,
    "copy_text": 2_000,
    "receive": 20_000,
    "puffin": 20_000,
    "manifests": 3_000,
    "metadata": 2_000,
    "key_index": 2_000,
}
"""About as many as five seconds of a CPU allow."""


@pytest.mark.parametrize("target", TARGETS)
def test_what_others_wrote_is_read_or_refused(target: str, tmp_path: Path) -> None:
    runs = RUNS[target]
    parts = fuzz(target, runs, seeded(target, tmp_path / "corpus"), seed=1, short=True)
    for _, part in parts:
        assert part.crash is None, json.dumps(part.crash, indent=1)
        assert part.executions >= runs


def test_every_target_has_a_corpus() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    assert all(any(folder.iterdir()) for folder in CORPUS.iterdir())
