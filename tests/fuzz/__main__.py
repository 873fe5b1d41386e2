"""``make fuzz``: runs a target's executions in processes of their own and counts them; see the package."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import LARGEST, SLOWEST, TARGETS

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
KEPT = ROOT / ".fuzz"
COMPILED = frozenset({"frames", "pgoutput", "values", "copy_text", "receive", "key_index"})
"""Targets with kernels."""
NEVER_INTERPRETED = frozenset({"receive"})
"""Its kernel calls C."""
INTERPRETED_SHARE = 50
LONGEST = "-max_len=4096"


@dataclass(frozen=True, slots=True)
class Part:
    """What one process did."""

    executions: int
    seconds: float
    cpu_seconds: float
    peak_mib: int
    crash: dict[str, str] | None

    def shown(self) -> dict[str, Any]:
        return {
            "executions": self.executions,
            "executions_per_second": round(self.executions / self.seconds) if self.seconds else 0,
            "cpu_seconds": round(self.cpu_seconds, 1),
            "peak_mib": self.peak_mib,
        }


def child(target: str, arguments: list[str], *, interpreted: bool) -> tuple[Part, str]:
    """Run one libFuzzer process to its end: what it did, and what it printed."""
    kernels = {"NUMBA_DISABLE_JIT": "1"} if interpreted else {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(KEPT / "kernels")}
    findings = KEPT / "findings" / target
    findings.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.child", target, f"-artifact_prefix={findings}/", f"-timeout={SLOWEST}"]
    command += [f"-rss_limit_mb={LARGEST}", "-print_final_stats=1", *arguments]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **kernels})
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    seconds = time.monotonic() - began
    counts = [int(found) for found in re.findall(r"^(?:stat::number_of_executed_units: |#)(\d+)", text, re.MULTILINE)]
    crash = None
    if process.returncode:
        kept = re.findall(r"Test unit written to (\S+)", text)
        crash = {"input": kept[-1] if kept else "", "said": _why(text)}
    return Part(max(counts, default=0), seconds, used.ru_utime + used.ru_stime, used.ru_maxrss >> 10, crash), text


def _why(text: str) -> str:
    """What a process said of its end."""
    found = text.find("=== Uncaught Python exception")
    if found < 0:
        found = text.find("ERROR: libFuzzer")
    return text[found : found + 3000] if found >= 0 else text[-3000:]


def fuzz(target: str, runs: int, corpus: Path, seed: int | None, *, short: bool = False) -> list[tuple[str, Part]]:
    """The parts of a run, the last of them the crash if there was one. ``short``: one way of reading is enough."""
    ways = [(False, runs)]
    if target in COMPILED - NEVER_INTERPRETED:
        ways = [(True, runs)] if short else [(True, max(1, runs // INTERPRETED_SHARE)), (False, runs)]
    parts: list[tuple[str, Part]] = []
    for interpreted, count in ways:
        arguments = [f"-runs={count}", LONGEST, *([f"-seed={seed}"] if seed is not None else [])]
        part, _ = child(target, [*arguments, str(corpus), str(CORPUS / target)], interpreted=interpreted)
        parts.append(("interpreted" if interpreted else "compiled" if target in COMPILED else "python", part))
        if part.crash:
            break
    return parts


def seeded(target: str, corpus: Path) -> Path:
    """The folder with the target's seeds in it."""
    corpus.mkdir(parents=True, exist_ok=True)
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    write = f"""if True:
        import pathlib, sys, tests.fuzz.{target} as target
        for number, seed in enumerate(target.seeds()):
            pathlib.Path(sys.argv[1], f"seed-{{number}}").write_bytes(seed)"""
    subprocess.run([sys.executable, "-c", write, str(corpus)], cwd=ROOT, check=True, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})
    return corpus


def merge(target: str, corpus: Path) -> None:
    """``CORPUS``: what was a finding, and the fewest of the rest that reach everything."""
    out = CORPUS / target
    with tempfile.TemporaryDirectory() as folder:
        fewest = Path(folder)
        interpreted = target in COMPILED - NEVER_INTERPRETED
        _, said = child(target, ["-merge=1", LONGEST, folder, str(corpus), str(out)], interpreted=interpreted)
        found = list(fewest.iterdir())
        if not found:
            raise SystemExit(said[-2000:])
        for old in out.iterdir():
            if not old.name.startswith("found-"):
                old.unlink()
        for new in found:
            shutil.copyfile(new, out / new.name[:16])


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, help="libFuzzer's; another each time unless given")
    parser.add_argument("--merge", action="store_true", help="write the committed corpus anew from what was found")
    options = parser.parse_args()
    if options.target is None:
        print("\n".join(TARGETS))
        return 0
    corpus = seeded(options.target, KEPT / options.target)
    if options.merge:
        merge(options.target, corpus)
        return 0
    parts = fuzz(options.target, options.runs, corpus, options.seed)
    crashes = [part.crash for _, part in parts if part.crash]
    result = {
        "target": options.target,
        "executions": sum(part.executions for _, part in parts),
        "parts": {way: part.shown() for way, part in parts},
        "peak_mib": max(part.peak_mib for _, part in parts),
        "crashes": crashes,
    }
    for crash in crashes:
        print(crash["said"], file=sys.stderr)
    print(json.dumps(result))
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
