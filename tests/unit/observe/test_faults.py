"""Where a process shall die is said exactly, or not at all."""

import pytest

from icelake.errors import ProjectError
from icelake.observe.faults import VARIABLE, fault_point


@pytest.mark.parametrize("text", ["nonsense", "catalog.commit:after", "catalog.commit:after:soon", "catalog.commit:during:1"])
def test_a_mistyped_fault_point_is_refused(text: str) -> None:
    with pytest.raises(ProjectError, match="FAULT_SYNTAX"):
        fault_point({VARIABLE: text})


def test_nothing_is_planted_unless_it_is_asked_for() -> None:
    assert fault_point({}) is None
    assert fault_point({VARIABLE: ""}) is None
