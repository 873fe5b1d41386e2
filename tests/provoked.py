"""Every error of docs/reference/errors.md is provoked by a test: what the tests made happen is written down, and what is missing fails.

Provoked is a code that the package itself raised, or refused a table with, while a test ran: in this process (what a test made by
hand is none of it), or in a command whose words a test read (``said``). ``--every-error``, which ``make test`` gives, compares that
with the page at the end of a run of the whole suite, whichever workers ran what. Where a component is lacking (``lacked``) what is
missing is only said: nobody can provoke everything there. That a test also looks at the code is for ``tests/unit/test_errors.py``.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from icelake import errors
from icelake.model.relation import Refusal

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "errors.md"
PACKAGE = Path(errors.__file__).parent
_IN_WORDS = re.compile(r'"code": ?"([A-Z0-9_]+)"|\bicelake: ([A-Z0-9_]+): ')

raised: set[str] = set()
"""Codes, by this process and by the workers that have ended."""
lacked: set[str] = set()
"""Components without which tests were skipped, by the fixture ``lacking``."""


def documented() -> set[str]:
    return set(re.findall(r"^## ([A-Z0-9_]+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def said(words: str) -> str:
    """The words of a command, as a test read them: the codes in them count."""
    raised.update(json or people for json, people in _IN_WORDS.findall(words))
    return words


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-error", action="store_true", help="fail if a run of the whole suite did not provoke every documented error")


@pytest.fixture(scope="session", autouse=True)
def _errors_are_written_down() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for kind in (errors.IcelakeError, Refusal):
            patch.setattr(kind, "__init__", _noted(kind.__init__))
        yield


def _noted(made: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *words: Any, **more: Any) -> None:
        made(self, *words, **more)
        if Path(sys._getframe(1).f_code.co_filename).is_relative_to(PACKAGE):
            raised.add(self.code)

    return init


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["provoked"] = sorted(raised)
    elif _asked(config) and exitstatus == pytest.ExitCode.OK and documented() - raised and not lacked:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    raised.update(getattr(node, "workeroutput", {}).get("provoked", ()))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        lacked.update(re.findall(r"^Skipped: lacking (\w+):", report.longrepr[2]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _asked(config):
        without = f" (without {', '.join(sorted(lacked))})" if lacked else ""
        missing = ", ".join(sorted(documented() - raised)) or "none"
        terminalreporter.write_line(f"errors: {len(documented())} documented{without}, not provoked: {missing}")


def _asked(config: pytest.Config) -> bool:
    """Of a part of the suite nobody can ask it."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    return whole and bool(config.option.every_error)
