"""Ten thousand schedules hold every invariant, and every planted bug breaks one.

ICELAKE_SIM_SCHEDULES and ICELAKE_SIM_JOBS change how many, and on how many processes; ICELAKE_SIM_REPORT names a file for the
figures. A failure names its seed: ``python -m tests.sim --seed N --trace`` plays it again, step by step.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tests.sim.campaign as campaigns
from tests.sim.bugs import BUGS, Bug, known_seeds, patched

ROOT = Path(__file__).parents[2]
SCHEDULES = int(os.environ.get("ICELAKE_SIM_SCHEDULES", "10000"))
JOBS = os.environ.get("ICELAKE_SIM_JOBS", str(os.cpu_count() or 1))


def _sim(*arguments: str) -> Any:
    # A process of its own: the order of sets of strings is fixed there, and bugs are planted before the product is imported.
    run = subprocess.run([sys.executable, "-m", "tests.sim", "--json", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert run.stdout, f"python -m tests.sim {' '.join(arguments)} ended with {run.returncode}"
    return json.loads(run.stdout)


@pytest.mark.sim
@pytest.mark.timeout(7200)
def test_every_schedule_holds_every_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    document = _sim("--schedules", str(SCHEDULES), "--jobs", JOBS)
    if report := os.environ.get("ICELAKE_SIM_REPORT"):
        Path(report).write_text(json.dumps(document, indent=1))
    with capsys.disabled():
        print()
        for pair, count in sorted(document["hits"].items()):
            print(f"{count:8}  {pair}")
        print(f"{document['schedules']} schedules in {document['seconds']} s, least {document['least']}, totals {document['totals']}")
    assert document["failures"] == []
    assert document["schedules"] == SCHEDULES
    assert document["least"]["transactions"] >= 50
    assert document["least"]["tables"] >= 3
    assert document["least"]["faults"] >= 2
    rare = {pair: count for pair, count in document["hits"].items() if count < min(100, SCHEDULES // 100)}
    assert not rare, "fault pairs that hardly ever struck"


@pytest.mark.parametrize("bug", list(BUGS.values()), ids=list(BUGS))
def test_every_bug_can_be_planted(bug: Bug) -> None:
    for module in {patch.module for patch in bug.patches}:
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        compile(patched(Path(spec.origin).read_text(), [patch for patch in bug.patches if patch.module == module]), module, "exec")


@pytest.mark.sim
@pytest.mark.timeout(7200)
def test_every_planted_bug_is_caught_and_the_control_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(BUGS) >= 60
    assert known_seeds().keys() <= BUGS.keys()
    document = _sim("--bugs", "--jobs", JOBS)
    with capsys.disabled():
        print()
        for entry in document["bugs"]:
            print(f"{entry['bug']}: seed {entry['seed']}: {entry['error']}")
    assert {entry["bug"] for entry in document["bugs"] if entry["seed"] is not None} == set(BUGS)
    assert document["control"] == []


def test_a_seed_plays_the_same_schedule_every_time() -> None:
    assert _sim("--seed", "7") == _sim("--seed", "7")


def test_a_campaign_goes_on_where_it_was_left_and_only_with_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "CHUNK", 1)
    state = tmp_path / "campaign.json"
    assert campaigns.campaign(7, 1, 1, state)["schedules"] == 1
    played: list[int] = []
    play = campaigns.play_many

    def noted(seeds: list[int]) -> list[Any]:
        played.extend(seeds)
        return play(seeds)

    monkeypatch.setattr(campaigns, "play_many", noted)
    document = campaigns.campaign(7, 2, 1, state)
    assert (played, document["schedules"], document["failures"]) == ([8], 2, [])
    assert document["totals"]["faults"] == sum(document["hits"].values())
    with pytest.raises(ValueError, match="another seed"):
        campaigns.campaign(8, 2, 1, state)
    monkeypatch.setattr(campaigns, "code", lambda: "another")
    with pytest.raises(ValueError, match="other code"):
        campaigns.campaign(7, 2, 1, state)
