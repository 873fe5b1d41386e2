"""What the demo shows while it runs: a live panel on a terminal, a line now and then elsewhere. All of it on stderr.

Answers are data and go where ``answers`` says: stdout for people, stderr when stdout is kept for one JSON document.
"""

import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from icelake.demo.questions import bar, sparkline

LINE_SECONDS = 5.0
SAMPLE_SECONDS = 1.0


@dataclass(slots=True)
class Figures:
    """One moment of the demo. Times in seconds."""

    elapsed: float
    phase: str
    traded: int
    """rows changed in PostgreSQL by the traders so far"""
    applied: int
    """changes applied to the lake so far, without the load"""
    loaded: int
    """rows loaded"""
    cuts: int
    lag_bytes: int | None
    lag_seconds: float | None
    p50: float | None
    p99: float | None
    rows: Mapping[str, int] = field(default_factory=dict)
    """lake rows by table"""


class Screen:
    """A context manager. ``show`` often; ``answer`` prints above the live panel."""

    def __init__(self, *, answers_on_stdout: bool) -> None:
        self._err = Console(stderr=True, highlight=False)
        self._out = Console(file=sys.stdout if answers_on_stdout else sys.stderr, highlight=False)
        if not self._out.is_terminal:
            self._out = Console(file=self._out.file, highlight=False, width=110, no_color=True)
        self._live = Live(console=self._err, refresh_per_second=8, transient=True) if self._err.is_terminal else None
        self._lined = 0.0
        self._last: tuple[float, int, int] | None = None
        self._traded: deque[float] = deque(maxlen=40)
        self._applied: deque[float] = deque(maxlen=40)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._err.print(Text(text), soft_wrap=True)

    def answer(self, what: RenderableType) -> None:
        if self._live and self._out.is_terminal:
            self._live.stop()  # two consoles on one terminal would draw over each other
            self._out.print(what)
            self._out.print()
            self._live.start()
        else:
            self._out.print(what)
            self._out.print()
            self._out.file.flush()

    def show(self, figures: Figures) -> None:
        """Call it every half second or so."""
        now = time.monotonic()
        if self._last and now - self._last[0] >= SAMPLE_SECONDS:
            seconds = now - self._last[0]
            self._traded.append((figures.traded - self._last[1]) / seconds)
            self._applied.append((figures.applied - self._last[2]) / seconds)
        if self._last is None or now - self._last[0] >= SAMPLE_SECONDS:
            self._last = now, figures.traded, figures.applied
        if self._live:
            self._live.update(self._panel(figures))
        elif now - self._lined >= LINE_SECONDS:
            self._lined = now
            self._err.print(Text(self._line(figures)), soft_wrap=True)

    def _line(self, f: Figures) -> str:
        return (
            f"{f.elapsed:5.1f} s  {f.phase}: traded {_rate(self._traded)} rows/s, applied {_rate(self._applied)} rows/s, "
            f"{f.cuts} cuts, lag {_bytes(f.lag_bytes)} / {_seconds(f.lag_seconds)}, freshness p50 {_seconds(f.p50)} p99 {_seconds(f.p99)}"
        )

    def _panel(self, f: Figures) -> RenderableType:
        left = Table.grid(padding=(0, 2))
        left.add_row("traded", f"{_rate(self._traded)} rows/s", Text(sparkline(self._traded), style="yellow"))
        left.add_row("applied", f"{_rate(self._applied)} rows/s", Text(sparkline(self._applied), style="cyan"))
        left.add_row("so far", f"{f.applied:,} changes", f"{f.loaded:,} rows loaded, {f.cuts:,} cuts")
        left.add_row("lag", _seconds(f.lag_seconds), _bytes(f.lag_bytes))
        left.add_row("freshness", f"p50 {_seconds(f.p50)}", f"p99 {_seconds(f.p99)}")
        tables = Table.grid(padding=(0, 2))
        highest = max(f.rows.values(), default=1) or 1
        for name, rows in f.rows.items():
            tables.add_row(name.removeprefix("shop."), Text(f"{rows:,}", justify="right"), Text(bar(rows / highest, 20), style="blue"))
        title = f"icelake demo · {f.phase} · {f.elapsed:.0f} s"
        return Panel(Group(left, Text(), tables), title=title, title_align="left", border_style="dim")


def _rate(values: deque[float]) -> str:
    recent = list(values)[-4:]
    return f"{sum(recent) / len(recent):,.0f}" if recent else "-"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if value >= 10 else f"{value * 1000:,.0f} ms"


def _bytes(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,} B" if value < 10_000 else f"{value / 1024:,.0f} kB" if value < 10_000_000 else f"{value / 2**20:,.0f} MB"
