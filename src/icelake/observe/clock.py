"""The real clock and real chance, for the ports of those names."""

import secrets
import time
import uuid


class SystemClock:
    """``ports.Clock`` over the operating system's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class SystemChance:
    """``ports.Chance`` over the operating system's random numbers."""

    def snapshot_id(self) -> int:
        return secrets.randbits(62) + 1

    def uuid(self) -> str:
        return str(uuid.uuid4())
