"""The Iceberg project's own REST catalog server, its reference: its JDBC catalog in SQLite, behind Jetty.

Promises a server that is gone at the end of the block, or of this process in whatever way. It listens on all addresses, on a free port:
it has no option for one. Fails with ``Unreachable`` and the end of its log, else as ``icelake.stack.java`` does.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from icelake.stack.java import command
from icelake.stack.supervisor import Supervisor

LOCK = Path(__file__).with_name("iceberg_rest.lock.toml")
"""The jars of the server, and of the compatibility kit it comes with."""

_NOTHING: Mapping[str, str] = MappingProxyType({})
_READY = re.compile(r"Started oejs\.ServerConnector@.*\{[^{}]*:(\d+)\}")
_JVM = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.log.org.eclipse.jetty.server=info")


@contextmanager
def iceberg_rest(folder: Path, environment: Mapping[str, str] = _NOTHING) -> Iterator[str]:
    """``with iceberg_rest(folder) as uri``: the catalog is ``folder/catalog.sqlite``, tables go below ``folder/warehouse``.

    ``environment``: more properties of the JDBC catalog, each named CATALOG_ and its name in capitals, with __ for - and _ for a dot.
    ``folder`` is made if absent.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    log.unlink(missing_ok=True)
    given = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "CATALOG_REST_PORT": "0",
        "CATALOG_URI": f"jdbc:sqlite:{folder}/catalog.sqlite",
        "CATALOG_WAREHOUSE": (folder / "warehouse").as_uri(),
        **environment,
    }
    argv = command(LOCK, "org.apache.iceberg.rest.RESTCatalogServer", folder=folder, options=_JVM)
    with Supervisor() as java:
        java.start(argv, log=log, env=given, cwd=folder)
        java.wait_until(lambda: _READY.search(log.read_text(errors="replace")) is not None, 60)
        found = _READY.search(log.read_text(errors="replace"))
        assert found is not None
        yield f"http://127.0.0.1:{found[1]}"
