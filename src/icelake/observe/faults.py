"""Die on purpose, at a chosen call of a port: how the crash tests hit every durable write of a real process.

``ICELAKE_FAULT=catalog.commit:after:3`` kills the process (SIGKILL, no clean-up) right after the third call of
``Catalog.commit`` returned; ``before`` kills it as that call begins. Unset, nothing is wrapped and nothing costs anything.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from icelake.errors import ProjectError

T = TypeVar("T")

VARIABLE = "ICELAKE_FAULT"


class FaultPoint:
    """One chosen call, counted over all the ports it was planted in."""

    def __init__(self, text: str) -> None:
        try:
            self.call, self.when, number = text.split(":")
            self.number = int(number)
        except ValueError:
            raise ProjectError("FAULT_SYNTAX", f"{VARIABLE}={text!r}", "expected PORT.CALL:before|after:N") from None
        if self.when not in ("before", "after"):
            raise ProjectError("FAULT_SYNTAX", f"{VARIABLE}={text!r}", "the second part is before or after")
        self.seen = 0

    def reach(self, call: str, when: str) -> None:
        if call != self.call:
            return
        if when == "before":
            self.seen += 1
        if when == self.when and self.seen == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


class _Planted:
    def __init__(self, port: str, target: Any, point: FaultPoint) -> None:
        self._port = port
        self._target = target
        self._point = point

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value
        return _counted(f"{self._port}.{name}", value, self._point)


def _counted(call: str, function: Callable[..., Any], point: FaultPoint) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        point.reach(call, "before")
        result = function(*args, **kwargs)
        point.reach(call, "after")
        # What a port call gives back may be a port itself.
        return _Planted("stream", result, point) if call == "source.stream" else result

    return counted


def fault_point(environment: Mapping[str, str]) -> FaultPoint | None:
    """The fault point the environment asks for, if any. Raises ProjectError if it is mistyped."""
    text = environment.get(VARIABLE)
    return FaultPoint(text) if text else None


def plant(port: str, target: T, point: FaultPoint | None) -> T:
    """``target``, dying at the point if the point is one of its calls."""
    if point is None:
        return target
    planted: Any = _Planted(port, target, point)
    return planted  # type: ignore[no-any-return]
