"""What every test may ask for.

``lacking``: a component that is absent is a skip here, and a failure where it is required. ``binaries``: a PostgreSQL; a test that
asks for it, by itself or through its server, runs on 18 alone, or on those it is marked with (``every_version``), or on all with
ICELAKE_FULL.
"""

import os
from collections.abc import Callable
from typing import NoReturn

import pytest

from icelake.errors import ProjectError, Unreachable
from icelake.stack.binaries import VERSIONS, Binaries, Version, find

pytest_plugins = ["tests.provoked"]

Lacking = Callable[[str, str], NoReturn]

every_version = pytest.mark.versions(*VERSIONS)


@pytest.fixture(scope="session")
def lacking() -> Lacking:
    """``lacking("spark", "no Java found")``: skips the test, or fails it when ICELAKE_REQUIRE (comma separated) names the component."""
    required = {name.strip() for name in os.environ.get("ICELAKE_REQUIRE", "").split(",") if name.strip()}

    def absent(component: str, why: str) -> NoReturn:
        if component in required:
            pytest.fail(f"{component} is required (ICELAKE_REQUIRE) and absent: {why}")
        pytest.skip(f"lacking {component}: {why}")

    return absent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres_version" in metafunc.fixturenames:
        marked = metafunc.definition.get_closest_marker("versions")
        wanted = VERSIONS if os.environ.get("ICELAKE_FULL") else marked.args if marked else VERSIONS[:1]
        metafunc.parametrize("postgres_version", wanted, scope="module", ids=lambda version: f"pg{version}")


@pytest.fixture(scope="module")
def binaries(postgres_version: Version, lacking: Lacking) -> Binaries:
    """The PostgreSQL this test runs on; its component is called ``postgres14`` and so on."""
    try:
        return find(postgres_version)
    except (ProjectError, Unreachable) as error:
        lacking(f"postgres{postgres_version}", f"{error.what}: {error.why}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that nobody waits for one that began last."""
    items.sort(key=lambda item: item.get_closest_marker("sim") is None)
