"""pgbench against a followed source: ``verify`` is equal while it runs and after it.

Short here; the size of ``make test-full`` is scale 10 and 60 seconds on 4 connections.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import orjson
import psycopg

from icelake.stack.postgres import Postgres

FULL = bool(os.environ.get("ICELAKE_FULL"))
SCALE, SECONDS = (10, 60) if FULL else (1, 6)
ICELAKE = Path(sys.executable).parent / "icelake"


def icelake(folder: Path, *words: str) -> dict[str, object]:
    done = subprocess.run([ICELAKE, *words, "-C", folder, "--json"], capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    answer: dict[str, object] = orjson.loads(done.stdout.splitlines()[-1])
    return answer


def test_pgbench_is_mirrored_while_it_runs(tmp_path: Path) -> None:
    with Postgres() as server:
        environment = {**os.environ, **server.environment}
        pgbench = str(server.bin("pgbench"))
        subprocess.run([pgbench, "-i", "-q", "-s", str(SCALE)], env=environment, check=True, capture_output=True)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("alter table pgbench_history add column id bigint generated always as identity primary key")
        (tmp_path / "dsn").write_text(server.dsn)
        (tmp_path / "icelake.toml").write_text('[project]\nname = "bench"\n[sources.main]\ndsn = { file = "dsn" }\ntables = ["public.*"]\n')
        icelake(tmp_path, "sync")
        follower = subprocess.Popen([ICELAKE, "sync", "--follow", "-C", tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            # Else the first verify may be quicker, and own the source itself.
            while not connection.execute("select from pg_replication_slots where active and not temporary").fetchall():
                time.sleep(0.05)
        load = subprocess.Popen([pgbench, "-c", "4", "-T", str(SECONDS)], env=environment, stdout=subprocess.PIPE)
        during = 0
        while load.poll() is None:
            report = icelake(tmp_path, "verify")
            assert report["equal"], report
            during += load.poll() is None
        out, _ = load.communicate()
        assert load.returncode == 0
        report = icelake(tmp_path, "verify")
        assert report["equal"], report
        tables = report["tables"]
        assert isinstance(tables, list)
        history = next(table for table in tables if table["name"] == "public.pgbench_history")
        done = int(next(line for line in out.decode().splitlines() if "actually processed" in line).split(":")[1].split("/")[0])
        assert history["source_rows"] == history["lake_rows"] == done
        follower.terminate()
        assert follower.wait(60) == 0
        if FULL:
            print(f"{done} transactions, {during} verifications while pgbench ran, all equal")
            assert during >= 1
