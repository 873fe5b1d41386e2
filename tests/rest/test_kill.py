"""kill -9 of the server while clients commit over two tables: every commit that was acknowledged is there, and none by half."""

import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from tests.rest.conftest import Served, serving
from tests.rest.test_protocol import ident, make, snapshot, unmoved

WRITERS, KILLS, COMMITS = 4, 3, 12


def test_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    numbers = iter(range(1, 1_000_000))
    for life in range(KILLS + 1):
        with serving(tmp_path, killed=life < KILLS) as (uri, process):
            served = Served(uri, tmp_path)
            if life == 0:
                served.made("POST", "namespaces", {"namespace": ["shop"]})
                for name in ("a", "b"):
                    make(served, name)
            # As the next life finds it.
            tables = {name: served.made("GET", f"namespaces/shop/tables/{name}")["metadata"] for name in ("a", "b")}
            logs = [[entry["snapshot-id"] for entry in metadata["snapshot-log"]] for metadata in tables.values()]
            assert logs[0] == logs[1]
            assert set(acknowledged) <= set(logs[0])
            if life == KILLS:
                assert len(acknowledged) >= KILLS * COMMITS
                return
            enough, lock, before = threading.Event(), threading.Lock(), len(acknowledged)

            def write(
                _: int, served: Served = served, enough: threading.Event = enough, lock: threading.Lock = lock, before: int = before
            ) -> None:
                while True:
                    with lock:
                        made = next(numbers)
                    try:
                        now = {name: served.made("GET", f"namespaces/shop/tables/{name}")["metadata"] for name in ("a", "b")}
                        changes = [
                            {
                                "identifier": ident(name),
                                "requirements": [unmoved(metadata.get("current-snapshot-id"))],
                                "updates": snapshot(metadata, made),
                            }
                            for name, metadata in now.items()
                        ]
                        status = served.ask("POST", "transactions/commit", {"table-changes": changes}).status
                    except (OSError, HTTPException):
                        return  # killed, perhaps while it answered
                    assert status in (204, 409)
                    with lock:
                        acknowledged.extend([made] if status == 204 else [])
                        if len(acknowledged) - before >= COMMITS:
                            enough.set()

            with ThreadPoolExecutor(WRITERS) as pool:
                writing = [pool.submit(write, writer) for writer in range(WRITERS)]
                assert enough.wait(60)
                process.kill()
                for one in writing:
                    one.result(60)
