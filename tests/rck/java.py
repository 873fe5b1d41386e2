"""Java with the jars of ``jgo.lock.toml`` on its class path, as the argument list of a process.

Promises the locked jars whatever else is installed; what is not there yet is downloaded to the environment's ``maven`` folder. Needs
Java 17 or 21. Fails with ``ProjectError``, ``Unreachable`` or ``Corrupt`` as ``icelake.stack.maven`` does.
"""

import importlib
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from icelake.errors import ProjectError, Unreachable
from icelake.stack.maven import Locked, alone, fetched, trust_store
from tests.spark.conftest import JAVA, java_home

LOCK = Path(__file__).with_name("jgo.lock.toml")


@dataclass(frozen=True)
class Jar(Locked):
    """An entry of the lock that may have a classifier: one of several jars of the same name and version."""

    classifier: str = ""

    def path(self, repository: Path) -> Path:
        plain = super().path(repository)
        return plain.with_stem(f"{plain.stem}-{self.classifier}") if self.classifier else plain


def command(main: str, *words: str, folder: Path, options: tuple[str, ...] = ()) -> list[str]:
    """How to run the class ``main``. Temporary files go to ``folder``; ``options`` are the JVM's."""
    home = java_home()
    if home is None:
        raise ProjectError("JAVA_NOT_FOUND", f"no Java {' or '.join(map(str, JAVA))} in JAVA_HOME, on PATH or in /usr/lib/jvm")
    jars = ":".join(map(str, class_path()))
    return [f"{home}/bin/java", "-XX:-UsePerfData", f"-Djava.io.tmpdir={folder}", *options, "-cp", jars, main, *words]


def class_path() -> list[Path]:
    repository = Path(sys.prefix) / "maven"
    paths = []
    for entry in tomllib.loads(LOCK.read_text(encoding="utf-8"))["dependencies"]:
        jar = Jar(entry["groupId"], entry["artifactId"], entry["version"], entry["sha256"], classifier=entry.get("classifier", ""))
        if jar.classifier:
            _download(jar, repository)
        paths.append(fetched(jar, repository))
    return paths


def _download(jar: Jar, repository: Path) -> None:
    """What ``fetched`` does not: it knows no classifiers, but takes the file that is there."""
    with alone(repository), pytest.MonkeyPatch.context() as environment:
        if jar.path(repository).exists():
            return
        if (store := trust_store()) and not {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"} & set(os.environ):
            environment.setenv("REQUESTS_CA_BUNDLE", store)
        try:
            maven = importlib.import_module("jgo.maven")
            component = maven.MavenContext(repo_cache=repository).project(jar.group, jar.name).at_version(jar.version)
            component.artifact(jar.classifier, jar.packaging).resolve()
        except (ImportError, OSError, RuntimeError) as error:
            what = f"cannot fetch {jar.path(repository).name} from Maven Central"
            raise Unreachable("MAVEN_UNREACHABLE", what, " ".join(str(error).split())) from error
