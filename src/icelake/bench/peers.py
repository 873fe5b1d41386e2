"""``icelake bench peers``: the same changes of the same PostgreSQL, by turns applied by IceLake and by peers that install from PyPI.

Each side has a turn in each round, on a table of ``size`` rows that was loaded anew just before. A turn has two parts, and in both a piece
of changes is made, applied, and only then the next one made:

- **steady**: pieces of a hundredth of the table (10,000 changes), a commit each, as a mirror takes them that is a second behind;
- **backlog**: many pieces at once, in one commit if the side can.

Each part is a process of its own. It begins with a piece that is not counted: nobody pays for imports, and we do not for loading kernels.
What is compared is changes per CPU second of the client's processes (neither PostgreSQL's nor an S3 server's): wall time too, of the
backlogs. Each peer runs in an environment of its own, made here from a lock with hashes and thrown away, as a script of a few lines
(``bench/peer_scripts``) that does what the peer's documentation shows.

**The peers are given more than ours.** PyIceberg and DuckDB cannot read a replication slot, so they are given each batch ready, for
nothing: one row a key, in Parquet. What making such batches with psycopg costs is measured as a side of its own. dlt reads the source
itself, by the column that tells when a row was changed, and so does not see what is deleted. No peer is asked to prove anything, to survive
a kill, or to tidy up. Afterwards each peer's table is compared with the source, row by row.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from icelake.bench import figure
from icelake.bench.rig import Rig, rig
from icelake.bench.workloads import STAMPED
from icelake.stack.seaweedfs import SeaweedFS

ROWS = 1_000_000
PIECES = 100
"""A piece of changes is the table's rows divided by this, and a hundred changes at least."""
MADE = "after.parquet"
SCRIPTS = Path(__file__).parent / "peer_scripts"
_COLUMNS = {
    "id": pa.int64(), "customer": pa.int32(), "sku": pa.string(), "price": pa.decimal128(12, 2), "quantity": pa.int32(),
    "paid": pa.bool_(), "changed": pa.timestamp("us", "UTC"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    script: str
    """``bench/peer_scripts/with_SCRIPT.py``, and its lock beside it."""
    what: str
    steady: int
    """Pieces of the steady part; the slow get fewer, so that a turn ends in bearable time."""
    backlog: int
    """Pieces of the backlog; 0: larger batches are not cheaper to it."""
    given: bool = False
    """It is given each batch ready."""
    s3: bool = False
    """Its table is on an S3 server of its own, with a REST catalog."""


OURS = Side("icelake", "IceLake", 10, 30)
BATCHES = Side("psycopg", "psycopg making the batches", 3, 30)
"""Not a peer: what peers are given."""
PEERS = (
    Side("duckdb", "DuckDB MERGE INTO Iceberg", 10, 30, given=True, s3=True),
    Side("pyiceberg", "PyIceberg upsert", 2, 10, given=True),
    Side("dlt", "dlt sql_database, merge into Iceberg", 1, 0),
)


@dataclass(frozen=True, slots=True)
class _Part:
    changes: int
    seconds: float
    cpu: float
    peak: float
    """MiB that its process held at most."""


@dataclass(frozen=True, slots=True)
class _Turn:
    parts: dict[str, _Part]
    """``steady`` and ``backlog``."""
    left: dict[str, int] | None
    """Files, bytes, and of a peer the rows that differ from the source's, of ours whether ``verify`` was equal."""


@dataclass(slots=True)
class _Stream:
    """The source, and how much was made of the workload."""

    connection: psycopg.Connection[Any]
    rows: int
    piece: int
    made: int = 0

    def make(self, pieces: int, file: Path | None = None) -> tuple[int, str]:
        """Changes made, and the LSN behind them; ``file``: where what became of them is put, one row a key."""
        before, low, since = self._seen()
        for _ in range(pieces):
            self.connection.execute(STAMPED.changes.format(rows=self.rows, changes=self.piece, piece=self.made))
            self.made += 1
        self.connection.execute("select pg_stat_force_next_flush()")
        after, high, _ = self._seen()
        found = self.connection.execute("select pg_current_wal_flush_lsn()::text").fetchone()
        assert found is not None
        if file is not None:
            there = self.snapshot(f"where changed >= '{since}'")
            # The workload deletes the lowest ids.
            gone = pa.table({"id": np.arange(low, high), "deleted": np.ones(high - low, bool)})
            batch = there.append_column("deleted", pa.array(np.zeros(len(there), bool)))
            pq.write_table(pa.concat_tables([batch, gone], promote_options="default"), file)
        return after - before, str(found[0])

    def _seen(self) -> tuple[int, int, str]:
        """Changes ever made, as the server counts them; the lowest id; now."""
        found = self.connection.execute(
            "select n_tup_ins + n_tup_upd + n_tup_del, (select min(id) from item), clock_timestamp()::text"
            " from pg_stat_user_tables where relname = 'item'"
        ).fetchone()
        assert found is not None
        return int(found[0]), int(found[1]), str(found[2])

    def snapshot(self, where: str = "") -> pa.Table:
        """Rows of the source, by id."""
        with self.connection.cursor().copy(f"copy (select * from item {where} order by id) to stdout (format csv)") as copy:
            text = io.BytesIO(b"".join(copy))
        return csv.read_csv(
            text,
            read_options=csv.ReadOptions(column_names=list(_COLUMNS)),
            convert_options=csv.ConvertOptions(column_types=_COLUMNS, true_values=["t"], false_values=["f"]),
        )


def run(_variant: str, size: float | None, pairs: int, note: Callable[[str], None]) -> dict[str, Any]:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="icelake-peers-") as name:
        pythons = {OURS: sys.executable, BATCHES: sys.executable}
        for side in PEERS:
            note(f"making an environment for {side.script} (from {side.script}.lock, gone afterwards)")
            pythons[side] = _environment(Path(name) / side.script, SCRIPTS / f"{side.script}.lock")
        with rig(settings={"max_wal_size": "16GB", "autovacuum": "off"}) as bench:
            return _run(bench, int(size or ROWS), pairs, pythons, note)


def _run(bench: Rig, rows: int, pairs: int, pythons: Mapping[Side, str], note: Callable[[str], None]) -> dict[str, Any]:
    turns: dict[Side, list[_Turn]] = {side: [] for side in pythons}
    failures: list[str] = []
    with psycopg.connect(bench.dsn, autocommit=True) as connection:
        note(f"making a table of {rows:,} rows")
        connection.execute(STAMPED.tables.format(rows=rows))
        connection.execute("create publication peers for table item")
        stream = _Stream(connection, rows, max(100, rows // PIECES))
        for n in range(pairs):
            order = [*pythons][n % len(pythons) :] + [*pythons][: n % len(pythons)]
            for side in order:
                try:
                    turn = _turn(bench, stream, side, pythons[side])
                except subprocess.CalledProcessError as error:
                    # Of a peer, that is a finding, and the others are measured all the same; twice, and there is nothing to measure.
                    if side not in PEERS or failures:
                        raise
                    failures.append(f"{side.what}: {str(error.output)[-1000:]}")
                    note(f"failed, and is begun again: {failures[-1]}")
                    turn = _turn(bench, stream, side, pythons[side])
                turns[side].append(turn)
                parts = ", ".join(f"{what} {part.changes / part.cpu:,.0f} changes a CPU second" for what, part in turn.parts.items())
                note(f"{n + 1} of {pairs}, {side.what}: {parts}{f'; {turn.left}' if turn.left else ''}")
    left = {side.what: found[-1].left for side, found in turns.items() if found[-1].left}
    return {
        "verified": all(turn.left and turn.left["equal"] for turn in turns[OURS]),
        "workload": STAMPED.what,
        "rows": rows,
        "changes": sum(part.changes for side in turns.values() for turn in side for part in turn.parts.values()),
        "figures": _figures(turns),
        "left": left,
        "failures": failures,
    }


def _figures(turns: Mapping[Side, list[_Turn]]) -> list[dict[str, Any]]:
    """Ours beside each peer, then what each did. Ratios are of turns of the same round."""
    figures = []
    for part in ("steady", "backlog"):
        ours, batches = ([turn.parts[part] for turn in turns[side]] for side in (OURS, BATCHES))
        rate = statistics.median(_rate(one) for one in ours)
        for side in PEERS:
            theirs = [turn.parts[part] for turn in turns[side] if part in turn.parts]
            if not theirs:
                continue
            ratios = [_rate(our) / _rate(their) for our, their in zip(ours, theirs, strict=True)]
            figures.append(_beside(f"peers.{part} per CPU second", rate, side.what, ratios))
            if side.given:
                ratios = [
                    _rate(our) * (1 / _rate(their) + 1 / _rate(batch)) for our, their, batch in zip(ours, theirs, batches, strict=True)
                ]
                figures.append(_beside(f"peers.{part} per CPU second", rate, f"{side.what}, with {BATCHES.what}", ratios))
    for side, found in turns.items():
        for part in found[0].parts:
            those = [turn.parts[part] for turn in found]
            figures.append(figure(f"{part} per CPU second: {side.what}", statistics.median(_rate(one) for one in those), "changes/s"))
            if part == "backlog":  # ours waits for changes in the steady part
                figures.append(figure(f"{part}: {side.what}", statistics.median(one.changes / one.seconds for one in those), "changes/s"))
            figures.append(figure(f"{part}, peak memory: {side.what}", max(one.peak for one in those), "MiB"))
    return figures


def _rate(part: _Part) -> float:
    return part.changes / part.cpu


def _beside(what: str, value: float, against: str, ratios: list[float]) -> dict[str, Any]:
    ratio = statistics.median(ratios)
    return {**figure(what, value, "changes/s", against, value / ratio), "pairs": [round(one, 3) for one in ratios]}


def _turn(bench: Rig, stream: _Stream, side: Side, python: str) -> _Turn:
    """Loads the side's table, then has it follow, then catch up, and looks at what it holds."""
    stream.connection.execute("vacuum item")
    with ExitStack() as servers:
        if side == OURS:
            lake = servers.enter_context(bench.another_lake())
            lake.sync()
            command, folder, environment = [python, str(SCRIPTS / "with_icelake.py")], lake.project.file.parent, dict(os.environ)
        else:
            folder = Path(servers.enter_context(tempfile.TemporaryDirectory(prefix="icelake-peer-")))
            command, environment = [python, str(SCRIPTS / f"with_{side.script}.py")], _told(bench)
            if side.s3:
                environment |= _reached(servers.enter_context(SeaweedFS(catalog=True)))
            if side == BATCHES:
                stream.connection.execute("select pg_create_logical_replication_slot('peers', 'pgoutput')")
                servers.callback(stream.connection.execute, "select pg_drop_replication_slot('peers')")
            pq.write_table(stream.snapshot(), folder / "before.parquet")
            _finished([*command, "load", str(folder)], environment)
        parts = {"steady": _part(stream, [*command, "follow", str(folder)], environment, folder, [1] * side.steady, side)}
        if side.backlog:
            parts["backlog"] = _part(stream, [*command, "apply", str(folder)], environment, folder, [side.backlog], side)
        left = None
        if side in PEERS:
            left = json.loads(_finished([*command, "read", str(folder)], environment))
            left |= _differences(stream.snapshot(), pq.read_table(folder / MADE))
        elif side == OURS:
            sizes = [file.stat().st_size for file in (folder / "lake" / "warehouse").rglob("*") if file.is_file()]
            left = {"files": len(sizes), "bytes": sum(sizes), "equal": int(lake.verify()["equal"])}
        return _Turn(parts, left)


def _part(stream: _Stream, command: list[str], environment: dict[str, str], folder: Path, batches: list[int], side: Side) -> _Part:
    """A process that applies batch after batch, each made when the one before has been applied, after a piece that is not counted."""
    changes, seconds, cpu, peak, line = 0, 0.0, 0.0, 0.0, ""
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        for number, pieces in enumerate((1, *batches)):
            batch = None if side == OURS else folder / "batch.parquet"
            made, end = stream.make(pieces, batch)
            with suppress(BrokenPipeError):
                process.stdin.write(f"{batch.name if batch else end}\n")
                process.stdin.flush()
            if not (line := process.stdout.readline()):
                break
            answer = json.loads(line)
            if number:  # the first loads what is loaded once
                changes, seconds, cpu, peak = changes + made, seconds + answer["seconds"], cpu + answer["cpu"], answer["peak"]
            if batch is not None and side == BATCHES and any(_differences(pq.read_table(batch), pq.read_table(folder / MADE)).values()):
                raise RuntimeError(f"{side.what}: the batch is not the one that peers are given")
        process.stdin.close()
        process.wait()
    if process.returncode or not line:
        raise _failed(process.returncode, command, (folder / "said").read_text())
    return _Part(changes, seconds, cpu, peak)


def _finished(command: list[str], environment: dict[str, str]) -> str:
    """What a program said last. Raises CalledProcessError with its complaints."""
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        raise _failed(done.returncode, command, done.stderr)
    return done.stdout.strip().rpartition("\n")[2]


def _failed(code: int, command: list[str], said: str) -> subprocess.CalledProcessError:
    error = subprocess.CalledProcessError(code, command, said)
    error.add_note(said[-4000:])
    return error


def _differences(source: pa.Table, found: pa.Table) -> dict[str, int]:
    """Rows that are too many in what was found, missing in it, or other than they are in the source; no id is in the source twice."""
    source, found = source.sort_by("id"), found.select(source.column_names).cast(source.schema).sort_by("id")
    found_ids = found["id"].to_numpy()
    known = np.isin(found_ids, source["id"].to_numpy()) & (np.diff(found_ids, prepend=-1) != 0)
    both = found.filter(pa.array(known))
    expected = source.filter(pa.array(np.isin(source["id"].to_numpy(), found_ids)))
    other = np.zeros(len(both), bool)
    for name in source.column_names:
        theirs, right = (pc.fill_null(table[name].cast(pa.string()), pa.scalar("")) for table in (both, expected))
        other |= np.asarray(pc.not_equal(theirs, right))
    return {"too_many": len(found) - len(both), "missing": len(source) - len(both), "other": int(np.count_nonzero(other))}


def _told(bench: Rig) -> dict[str, str]:
    """The environment of a peer: where the source is, and not to report home."""
    return {**os.environ, "SOURCE": bench.postgres.dsn_tcp, "RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}


def _reached(s3: SeaweedFS) -> dict[str, str]:
    """How a peer reaches its S3 server (an address without http) and the catalog."""
    addresses = {
        "S3": s3.endpoint.removeprefix("http://"),
        "CATALOG": s3.catalog_endpoint,
        "TOKENS": f"{s3.catalog_endpoint}/v1/oauth/tokens",
    }
    return {**addresses, "BUCKET": s3.table_bucket or "", "ACCESS_KEY": s3.access_key, "SECRET_KEY": s3.secret_key}


def _environment(folder: Path, lock: Path) -> str:
    """The Python of a new environment with what a lock names, and nothing else."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--root-user-action=ignore")
    subprocess.run([*pip, "--require-hashes", "--only-binary=:all:", "-r", str(lock)], check=True, stdout=sys.stderr)
    return python
