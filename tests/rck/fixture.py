"""The Iceberg project's own REST catalog server, the one it tests the kit with: its JDBC catalog in SQLite, behind Jetty.

Promises a server that is gone at the end of the block, or of this process in whatever way. It listens on all addresses, on a free port:
it has no option for one. Fails with ``Unreachable`` and the end of its log, else as ``java`` does.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from icelake.stack.supervisor import Supervisor
from tests.rck.java import command
from tests.rck.kit import NOTHING

_READY = re.compile(r"Started oejs\.ServerConnector@.*\{[^{}]*:(\d+)\}")
_JVM = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.log.org.eclipse.jetty.server=info")


@contextmanager
def fixture(folder: Path, environment: Mapping[str, str] = NOTHING) -> Iterator[str]:
    """``with fixture(folder) as uri``: the catalog is ``folder/catalog.sqlite``, tables go below ``folder/warehouse``.

    ``environment``: more properties of the JDBC catalog, named as in ``kit.run``. ``folder`` is made if absent.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "fixture.log"
    log.unlink(missing_ok=True)
    given = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "CATALOG_REST_PORT": "0",
        "CATALOG_URI": f"jdbc:sqlite:{folder}/catalog.sqlite",
        "CATALOG_WAREHOUSE": (folder / "warehouse").as_uri(),
        **environment,
    }
    with Supervisor() as java:
        java.start(command("org.apache.iceberg.rest.RESTCatalogServer", folder=folder, options=_JVM), log=log, env=given, cwd=folder)
        java.wait_until(lambda: _READY.search(log.read_text(errors="replace")) is not None, 60)
        found = _READY.search(log.read_text(errors="replace"))
        assert found is not None
        yield f"http://127.0.0.1:{found[1]}"
