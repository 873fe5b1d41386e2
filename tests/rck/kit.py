"""The kit as one call: ``run(uri, folder)`` starts a JVM with JUnit in it, waits and counts.

Promises a JVM that is gone when the call is, or when this process is, in whatever way; a test that does not end is a failure by its
name. ``folder`` keeps what JUnit reports (``open-test-report.xml``) and all that was printed (``kit.log``). The kit empties and drops the
namespaces ns, newdb, ns1, ns2 and other_ns before each test, so it refuses a catalog that has one of them when it starts, and leaves what
its last test made: each run needs a new catalog, and new folders below it. It gives some tables locations in /tmp/newdb and /tmp/ns and
some views locations in ``folder``, where it and the catalog must be able to write; runs of one environment take turns, and what was not
in /tmp before is removed. Fails with ``RuntimeError`` if no test ran, else as ``icelake.stack.java`` does.
"""

import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from xml.etree.ElementTree import Element, XMLPullParser

from icelake.errors import Unreachable
from icelake.stack.iceberg_rest import LOCK
from icelake.stack.java import command
from icelake.stack.maven import alone
from icelake.stack.supervisor import Supervisor

NOTHING: Mapping[str, str] = MappingProxyType({})

_CLASSES = ("org.apache.iceberg.rest.RESTCompatibilityKitCatalogTests", "org.apache.iceberg.rest.RESTCompatibilityKitViewCatalogTests")
_REPORT = "open-test-report.xml"
_LOG = "kit.log"
# It lives for seconds: the optimizing compiler would cost more than it gives.
_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Drck.local=false")
_STRAYS = (Path("/tmp/newdb"), Path("/tmp/ns"))
_FRAMES = 6
_ASSUMPTION = "org.junit.AssumptionViolatedException: assumption was not met due to: "


@dataclass(frozen=True, slots=True)
class Failure:
    """``name``: class and method, or the class alone if nothing of it could be run. ``message``: with the top of the stack."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """``left_out``: of each test that was aborted (by an assumption of its own) or skipped (it is disabled) the reason."""

    passed: int
    failed: int
    aborted: int
    skipped: int
    seconds: float
    failures: tuple[Failure, ...]
    left_out: Mapping[str, str]


def run(uri: str, folder: Path, environment: Mapping[str, str] = NOTHING, *, only: str = "", seconds: float = 600.0) -> Result:
    """Run it against the catalog at ``uri``. ``folder`` is made if absent.

    ``environment``: more properties of the client, each named CATALOG_ and its name in capitals, with __ for - and _ for a dot:
    ``{"CATALOG_RCK_REQUIRES__NAMESPACE__CREATE": "true"}`` for a catalog in which a table needs its namespace. ``only``: run the tests in
    whose ``class.method`` this regular expression is found; best of one class, as what the first leaves the second may refuse.
    ``seconds``: when to end the JVM.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_REPORT, _LOG):
        (folder / name).unlink(missing_ok=True)
    words = [
        "execute",
        "--disable-banner",
        "--disable-ansi-colors",
        "--details=none",
        "--include-engine=junit-jupiter",
        "--config=junit.platform.reporting.open.xml.enabled=true",
        f"--config=junit.platform.reporting.output.dir={folder}",
        *(f"--select-class={name}" for name in _CLASSES),
        *([f"--include-methodname=.*(?:{only}).*"] if only else []),
    ]
    argv = command(LOCK, "org.junit.platform.console.ConsoleLauncher", *words, folder=folder, options=_JVM)
    with alone(Path(sys.prefix) / "rck"), ExitStack() as after, Supervisor() as java:
        for path in _STRAYS:
            if not path.exists():
                after.callback(shutil.rmtree, path, ignore_errors=True)
        given = {"PATH": os.defpath, "HOME": str(folder), "CATALOG_URI": uri, **environment}
        began = time.monotonic()
        java.start(argv, log=folder / _LOG, env=given, cwd=folder)
        try:
            java.wait(seconds)
            why = "the JVM ended before it"
        except Unreachable:
            why = f"it had not ended when the kit had run for {seconds:g} s"
        java.stop()
        found = _read(folder / _REPORT, why, time.monotonic() - began)
        if not found.failures and not found.passed + found.aborted + found.skipped:
            raise RuntimeError(f"no test ran\n{java.log_tail()}")
    return found


def _read(report: Path, why: str, seconds: float) -> Result:
    """What JUnit wrote, to its end or to where it stopped writing. ``why``: what ended the tests that it says began, and no more.

    https://github.com/ota4j-team/open-test-reporting: an event when a test or a class of them begins, another when it ends.
    """
    parser: XMLPullParser[Element] = XMLPullParser(["end"])
    if report.exists():
        parser.feed(report.read_bytes())
    counts: Counter[str] = Counter()
    failures: list[Failure] = []
    left_out: dict[str, str] = {}
    begun: dict[str, tuple[str, bool]] = {}
    for event in parser.read_events():
        element = event[-1]
        assert isinstance(element, Element)
        kind = element.tag.rpartition("}")[2]
        if kind == "started":
            begun[element.attrib["id"]] = _named(element)
        elif kind == "finished":
            name, is_test = begun.pop(element.attrib["id"])
            result = element.find("{*}result")
            status = result.attrib["status"] if result is not None else ""
            counts[status] += is_test
            if status == "FAILED":
                failures.append(Failure(name, _message(element)))
            elif status != "SUCCESSFUL" and is_test:
                reason = _message(element).partition("\n")[0].removeprefix(_ASSUMPTION)
                left_out[name] = reason.strip(" []") or "an assumption without words"
    failures += [Failure(name, why) for name, is_test in begun.values() if is_test]
    return Result(counts["SUCCESSFUL"], len(failures), counts["ABORTED"], counts["SKIPPED"], round(seconds, 1), tuple(failures), left_out)


def _named(started: Element) -> tuple[str, bool]:
    """``class.method``, with ``[n]`` where a method is run with several arguments, and whether it is a test."""
    ident = started.findtext(".//{*}uniqueId", "")
    parts = [part.partition(":")[2].partition("(")[0].rpartition(".")[2] for part in ident.strip("[]").split("]/[")]
    return re.sub(r"\.#(\d+)$", r"[\1]", ".".join(parts[1:] or parts)), started.findtext(".//{*}type") == "TEST"


def _message(finished: Element) -> str:
    """The reason, or the exception with its causes and the first frames that are of Iceberg."""
    text = finished.findtext(".//{*}throwable") or finished.findtext(".//{*}reason") or ""
    lines, frames = [], 0
    for line in text.strip().splitlines():
        frame = line.lstrip().startswith(("at ", "... "))
        frames += frame and "org.apache.iceberg" in line
        if not frame or ("org.apache.iceberg" in line and frames <= _FRAMES):
            lines.append(line)
    return "\n".join(lines)
