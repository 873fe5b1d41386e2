"""A source whose next transaction is always there before the last ones are applied: nothing waits for it to rest."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from icelake.ports import Chunk
from icelake.sources.postgres.stream import PgStream
from icelake.stack.postgres import Postgres
from tests.mirrored import mirrored
from tests.museum.exhibit import Exhibit, steps


@pytest.fixture
def busy(server: Postgres, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Exhibit]:
    """Two rows of a table are in the lake; from then on each look at the stream makes the next transaction."""
    with mirrored(Exhibit, server, tmp_path, request.node.name) as exhibit:
        exhibit.sql("create table a (id int generated always as identity primary key)", "insert into a select from generate_series(1, 2)")
        exhibit.sync()
        real = PgStream.take
        in_a_row = 0

        def take(stream: PgStream, **limits: Any) -> Chunk | None:
            nonlocal in_a_row
            chunk = real(stream, **limits)
            in_a_row = in_a_row + 1 if chunk is not None else 0
            assert in_a_row < 500, "nobody stops taking"
            exhibit.sql("insert into a default values")
            while not stream._transactions:
                stream.wait(0.05)
            return chunk

        with monkeypatch.context() as patch:
            patch.setattr(PgStream, "take", take)
            exhibit.sql("insert into a default values")
            yield exhibit
        exhibit.whole()


def test_a_batch_ends(busy: Exhibit) -> None:
    with busy.applier() as (_, applier):
        kinds = list(steps(applier, 60))
    assert kinds.count("commit") > 10, kinds


def test_snapshots_are_thinned(busy: Exhibit) -> None:
    with busy.applier() as (_, applier):
        # The next commit is due when one is done, as it is on a machine or a store that is slow.
        applier.settings = replace(applier.settings, commit_interval=0.0, upkeep_commits=3)
        kinds = list(steps(applier, 60))
    assert kinds.count("commit") > 10, kinds
    assert kinds.count("upkeep") >= kinds.count("commit") // 4, kinds
