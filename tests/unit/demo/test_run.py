"""The demo whole: a short one proves what it says, an interrupted one leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from icelake.demo.build import Size
from icelake.demo.run import Options, Part, run
from icelake.errors import ProjectError, Unreachable

SCRIPT = """
import json
from icelake.demo.build import Size
from icelake.demo.run import Options, run
size = Size(customers=100, products=30, orders=100, days=2)
print(json.dumps(run(Options(seconds=60, workers=1, rate=100, size=size), answers_on_stdout=False)))
"""


def ours(folder: Path) -> list[str]:
    """Processes that have to do with the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes() or os.readlink(entry / "cwd").startswith(str(folder)):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_a_short_demo_is_verified_and_leaves_only_what_was_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = Options(seconds=3, workers=2, rate=300, size=Size(customers=200, products=50, orders=200, days=2), keep=tmp_path / "kept")
    document = run(options, answers_on_stdout=True)
    assert document["verified"] is True
    assert document["books_balance"] is True
    assert document["tables"] == 14
    assert document["changes"] > 0
    assert 0 < document["freshness_p50_ms"] <= document["freshness_p99_ms"]
    said = capsys.readouterr()
    for title in ("First answer after", "Sales per minute", "Stock running out", "then and now", f"equal at {document['lsn']}"):
        assert title in said.out
    json.dumps(document)
    assert {entry.name for entry in (tmp_path / "kept").iterdir()} == {"icelake.toml", "shop.dsn", "lake"}
    with pytest.raises(ProjectError, match="DEMO_FOLDER_IN_USE"):
        run(options, answers_on_stdout=True)


def test_a_demo_that_gets_nowhere_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icelake.demo.run.FIRST_ANSWER_LIMIT", 0.0)
    options = Options(seconds=3, workers=1, rate=1, size=Size(customers=10, products=5, orders=5, days=1))
    with pytest.raises(Unreachable, match=r"DEMO_TIMEOUT.*\(loading\)"):
        run(options, answers_on_stdout=False)


def test_an_interrupted_demo_leaves_nothing() -> None:
    place = Path(tempfile.mkdtemp(prefix="icelake-t-", dir="/tmp"))
    place.chmod(0o711)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "TMPDIR": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as demo:
            assert demo.stderr is not None
            for line in demo.stderr:
                if "First answer" in line:
                    break
            assert ours(place)
            demo.send_signal(signal.SIGTERM)
            _, errors = demo.communicate(timeout=60)
            assert demo.returncode != 0
            assert errors.rstrip().endswith("KeyboardInterrupt")
        deadline = time.monotonic() + 20
        while ours(place) or os.listdir(place):
            assert time.monotonic() < deadline, (ours(place), os.listdir(place))
            time.sleep(0.05)
    finally:
        subprocess.run(["rm", "-rf", place], check=True)


def test_a_part_keeps_its_error() -> None:
    def fails(_: threading.Event) -> None:
        raise ZeroDivisionError

    def waits(stop: threading.Event) -> None:
        stop.wait()

    with Part("fails", fails) as part:
        part.join()
        with pytest.raises(ZeroDivisionError):
            part.check()
    with Part("waits", waits) as part:
        part.check()
    assert not part.is_alive()
