"""What every test may ask for: ``lacking``, so that a component that is absent is a skip here and a failure where it is required."""

import os
from collections.abc import Callable
from typing import NoReturn

import pytest

Lacking = Callable[[str, str], NoReturn]


@pytest.fixture(scope="session")
def lacking() -> Lacking:
    """``lacking("spark", "no Java found")``: skips the test, or fails it when ICELAKE_REQUIRE (comma separated) names the component."""
    required = {name.strip() for name in os.environ.get("ICELAKE_REQUIRE", "").split(",") if name.strip()}

    def absent(component: str, why: str) -> NoReturn:
        if component in required:
            pytest.fail(f"{component} is required (ICELAKE_REQUIRE) and absent: {why}")
        pytest.skip(f"{component}: {why}")

    return absent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that nobody waits for one that began last."""
    items.sort(key=lambda item: item.get_closest_marker("sim") is None)
