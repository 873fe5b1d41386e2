"""``python -m tests.sim``: play schedules, replay a seed, or hunt a planted bug.

python -m tests.sim --seed 17 --trace          one schedule, step by step
python -m tests.sim --schedules 10000 --jobs 2 many, and how often each (port call, fault) pair was hit
python -m tests.sim --schedules 500000 --jobs 2 --state FILE  a campaign that can be interrupted and gone on with
python -m tests.sim --bug NAME                 the same with a bug planted in the applier: it must be caught
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

from tests.sim.campaign import campaign, hunt_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, help="play this seed alone, or the first of --schedules")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every step, and the traceback")
    parser.add_argument("--schedules", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--state", type=Path, help="with --schedules: keep the counts in this file, and go on from what it holds")
    parser.add_argument("--bugs", action="store_true", help="plant every bug in turn and search seeds for one that catches it")
    parser.add_argument("--learn", action="store_true", help="with --bugs: write down the seeds that caught them, which are tried first")
    parser.add_argument("--bug", help="plant this one; with --seed it is played with that seed alone")
    parser.add_argument("--limit", type=int, default=1000, help="with --bug and --bugs: seeds to try")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    if arguments.schedules:
        document = campaign(arguments.seed or 0, arguments.schedules, arguments.jobs, arguments.state)
        failed = bool(document["failures"])
        lines = [f"{count:8}  {pair}" for pair, count in sorted(document["hits"].items(), key=lambda item: item[1])]
        lines += [f"seed {failure['seed']}: {failure['error']}" for failure in document["failures"][:20]]
        lines.append(f"{document['schedules']} schedules, {len(document['failures'])} failed, {document['seconds']} s")
        lines.append(f"least {document['least']}, totals {document['totals']}")
    elif arguments.bugs or (arguments.bug and arguments.seed is None):
        from tests.sim.bugs import BUGS, SEEDS

        document = hunt_all([arguments.bug] if arguments.bug else list(BUGS), arguments.limit, arguments.jobs)
        if arguments.learn:
            seeds = {entry["bug"]: entry["seed"] for entry in document["bugs"] if entry["seed"] is not None}
            SEEDS.write_text(json.dumps(seeds, indent=1, ensure_ascii=False) + "\n")
        failed = bool(document["control"]) or any(entry["seed"] is None for entry in document["bugs"])
        lines = [f"{e['bug']}: seed {e['seed']}: {e['error']}" for e in document["bugs"]]
        lines.append(f"control failed: {document['control'] or 'never'}, {document['seconds']} s")
    else:
        if arguments.bug:
            from tests.sim.bugs import BUGS, plant

            plant(BUGS[arguments.bug])
        from tests.sim.run import schedule

        course = hashlib.sha256()

        def trace(text: str) -> None:
            course.update(text.encode())
            if arguments.trace:
                print(text)

        result = schedule(arguments.seed or 0, trace)
        failed = result.error is not None
        document = {"seed": result.seed, "error": result.error, "course": course.hexdigest()}
        lines = [str(result)]
    print(json.dumps(document) if arguments.json else "\n".join(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    # Sets of strings must come in the same order in every run of a seed.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
