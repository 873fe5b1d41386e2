"""The catalog's PostgreSQL where there is none; what it does as a database, ``tests/rest`` sees."""

from pathlib import Path

import pytest

from icelake.catalog.postgres import Postgres
from icelake.catalog.store import SqlCatalog
from icelake.errors import Unreachable
from tests.unit.catalog.test_store import FailingStorage, RealChance, SteppingClock


def test_a_server_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    dsn = "host=127.0.0.1 port=1 dbname=lake password=secret"
    catalog = SqlCatalog(lambda started: Postgres(lambda: dsn, started), str(tmp_path), FailingStorage(), SteppingClock(), RealChance())
    for call in (catalog.tables, lambda: catalog.create_namespace("shop", {})):
        with pytest.raises(Unreachable) as caught:
            call()
        assert caught.value.code == "CATALOG_UNREACHABLE"
        assert "secret" not in str(caught.value)
        assert "lake at 127.0.0.1" in caught.value.what
