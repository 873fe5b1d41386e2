"""The benchmarks themselves: what they wrote is in the lake, and each figure has its limit. Their times nobody judges here."""

import pytest

from icelake import bench
from icelake.bench.workloads import WORKLOADS


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_a_backlog_is_applied_and_verified(name: str) -> None:
    said: list[str] = []
    result = bench.run(f"apply.{name}", 1000, said.append, pairs=1)
    assert result["verified"]
    assert result["changes"] >= 1800  # over the unix socket and over TCP; some rows are drawn twice
    figures = {figure["what"]: figure for figure in result["figures"]}
    for what in (f"apply.{name}", f"apply.{name} over TCP"):
        assert figures[what]["ratio"] == pytest.approx(figures[what]["value"] / figures[f"{what}: the limit"]["value"], abs=0.001)
        assert len(figures[what]["pairs"]) == 1
