"""The benchmarks themselves: what they wrote is in the lake, and each figure has its limit. Their times nobody judges here."""

import pytest

from icelake import bench
from icelake.bench import commit, read
from icelake.bench.workloads import WORKLOADS


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
    assert vectors["figures"][0]["ratio"] == pytest.approx(vectors["figures"][0]["value"] / vectors["figures"][2]["value"], rel=0.1)
    growth = bench.run("commit.exponent", 100_000, lambda _: None)
    assert growth["verified"]
    updated = bench.run("read.after_updates", 2000, lambda _: None, pairs=1)
    assert updated["verified"]


def test_memory_is_that_of_the_process_that_syncs() -> None:
    result = bench.run("memory", 1000, lambda _: None)
    assert result["verified"]
    assert 50 < result["figures"][0]["value"] < 4000


def test_the_first_sync_compiles_and_the_next_ones_find_it() -> None:
    result = bench.run("startup", 50, lambda _: None, pairs=1)
    assert result["verified"]
    assert result["compiled"]["cold"] > 10
    assert result["compiled"]["warm"] == 0
    figures = {figure["what"]: figure for figure in result["figures"]}
    rooms = ("sources.postgres.kernels", "sources.postgres.receive", "tables.keys", "tables.key_index", "ingest.collapse")
    assert all(figures[f"compiling {room}"]["value"] > 0 for room in rooms)
    assert figures["startup.cpu"]["ratio"] > 1
