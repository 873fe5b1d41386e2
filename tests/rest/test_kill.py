"""kill -9 of the server, and of its PostgreSQL, while clients commit over two tables: what was acknowledged is there, none by half."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from icelake.ports import Json
from icelake.stack.postgres import Postgres
from tests.rest.conftest import ENVIRONMENT, Served, Store, database, serving
from tests.rest.test_protocol import ident, make, snapshot, unmoved

WRITERS, COMMITS = 4, 12
KILLS = 20 if os.environ.get("ICELAKE_FULL") else 3


class Load:
    """Writers that commit to two tables at once, and remember what was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self._numbers = iter(range(1, 1_000_000))
        self._lock = threading.Lock()

    def look(self, served: Served) -> None:
        """Both tables have the same history, with everything that was acknowledged."""
        logs = [[entry["snapshot-id"] for entry in metadata["snapshot-log"]] for metadata in self._tables(served).values()]
        assert logs[0] == logs[1]
        assert set(self.acknowledged) <= set(logs[0])

    @contextmanager
    def running(self, served: Served, until: Callable[[int], bool]) -> Iterator[threading.Event]:
        """``until``: whether a status that is neither 204 nor 409 ends a writer. The event: ``COMMITS`` more are done."""
        enough, before = threading.Event(), len(self.acknowledged)

        def write(_: int) -> None:
            while True:
                with self._lock:
                    made = next(self._numbers)
                try:
                    changes = [
                        {
                            "identifier": ident(name),
                            "requirements": [unmoved(metadata.get("current-snapshot-id"))],
                            "updates": snapshot(metadata, made),
                        }
                        for name, metadata in self._tables(served).items()
                    ]
                    status = served.ask("POST", "transactions/commit", {"table-changes": changes}).status
                except (OSError, HTTPException):
                    return  # killed, perhaps while it answered
                except AssertionError:
                    # What reading was told; of the database, and not of what it holds.
                    status = 503
                if status not in (204, 409) and until(status):
                    return
                with self._lock:
                    self.acknowledged.extend([made] if status == 204 else [])
                    if len(self.acknowledged) - before >= COMMITS:
                        enough.set()

        with ThreadPoolExecutor(WRITERS) as pool:
            writing = [pool.submit(write, writer) for writer in range(WRITERS)]
            yield enough
            for one in writing:
                one.result(60)

    @staticmethod
    def _tables(served: Served) -> dict[str, Json]:
        return {name: served.made("GET", f"namespaces/shop/tables/{name}")["metadata"] for name in ("a", "b")}


def shop(served: Served) -> None:
    served.made("POST", "namespaces", {"namespace": ["shop"]})
    for name in ("a", "b"):
        make(served, name)


def unexpected(status: int) -> bool:
    raise AssertionError(f"status {status}")


def test_what_was_acknowledged_is_there(new_store: Store, tmp_path: Path) -> None:
    load = Load()
    for life in range(KILLS + 1):
        with serving(tmp_path, environment={**ENVIRONMENT, **new_store}, killed=life < KILLS) as (uri, process):
            served = Served(uri, tmp_path)
            if life == 0:
                shop(served)
            load.look(served)
            if life == KILLS:
                assert len(load.acknowledged) >= KILLS * COMMITS
                return
            with load.running(served, unexpected) as enough:
                assert enough.wait(60)
                process.kill()


def test_a_database_that_is_killed(tmp_path: Path) -> None:
    """The server goes on: what it cannot do is an error, and what nobody knows is said to be unknown."""
    load = Load()
    statuses: list[int] = []

    def told(status: int) -> bool:
        statuses.append(status)
        assert status in (503, 504), status
        return True

    with Postgres() as running, database(running) as store:
        with serving(tmp_path, environment={**ENVIRONMENT, **store}) as (uri, process):
            served = Served(uri, tmp_path)
            shop(served)
            for _ in range(KILLS):
                with load.running(served, told) as enough:
                    assert enough.wait(60)
                    running.kill9()
                running.restart()
                load.look(served)
            assert process.poll() is None
        assert len(load.acknowledged) >= KILLS * COMMITS
        assert statuses


def test_two_servers_on_one_database(new_store: Store, tmp_path: Path) -> None:
    """Writers of both, over the same tables, until both are killed."""
    environment = {**ENVIRONMENT, **new_store}
    load = Load()
    with (
        serving(tmp_path, environment=environment, killed=True) as (one, first),
        serving(tmp_path, environment=environment, killed=True) as (other, second),
    ):
        shop(Served(one, tmp_path))
        with load.running(Served(one, tmp_path), unexpected) as enough, load.running(Served(other, tmp_path), unexpected) as more:
            assert enough.wait(60)
            assert more.wait(60)
            first.kill()
            second.kill()
    with serving(tmp_path, environment=environment) as (uri, _):
        load.look(Served(uri, tmp_path))
