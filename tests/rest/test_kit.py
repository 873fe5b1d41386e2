"""The Iceberg project's own REST compatibility kit, on the served catalog: tables, views, namespaces, as Java clients use them."""

from pathlib import Path

import pytest

from icelake.stack.java import java_home
from tests.conftest import Lacking
from tests.rck.kit import run
from tests.rest.conftest import ENVIRONMENT, Store, serving

PROPERTIES = {"CATALOG_RCK_REQUIRES__NAMESPACE__CREATE": "true", "CATALOG_RCK_SUPPORTS__NAMES__WITH__DOT": "true"}
PLACES = ("/tmp/ns", "/tmp/newdb")
"""Where the kit wants some of its tables, whatever a catalog thinks of it."""


@pytest.mark.timeout(600)
def test_the_compatibility_kit(store: Store, tmp_path: Path, lacking: Lacking) -> None:
    if java_home() is None:
        lacking("java", "no Java 17 or 21 in JAVA_HOME, on PATH or in /usr/lib/jvm")
    lake = tmp_path / "lake"
    lake.mkdir()
    also = [word for place in (*PLACES, str(tmp_path)) for word in ("--also", place)]
    with serving(lake, *also, environment={**ENVIRONMENT, **store}) as (uri, _):
        result = run(uri, tmp_path / "kit", PROPERTIES)
    assert result.failures == ()
    assert result.passed >= 144
