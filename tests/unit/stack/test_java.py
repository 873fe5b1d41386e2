"""Which Java is taken, and what is said if there is none. Programs that say what Java says stand for it."""

from pathlib import Path

import pytest

from icelake.errors import ProjectError
from icelake.stack import iceberg_rest, java
from icelake.stack.maven import Locked, locked


def installed(folder: Path, version: str, *, code: int = 0) -> Path:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2026-01-20' >&2\nexit {code}\n")
    program.chmod(0o755)
    return folder


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Java on this machine."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))


@pytest.mark.usefixtures("nowhere")
def test_a_java_that_fits_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(installed(tmp_path / "fits", "21.0.9")))
    assert java.java_home() == tmp_path / "fits"


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(("version", "code"), [("25.0.1", 0), ("1.8.0_402", 0), ("17.0.1", 1)])
def test_another_java_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, code: int) -> None:
    monkeypatch.setenv("JAVA_HOME", str(installed(tmp_path / "other", version, code=code)))
    with pytest.raises(ProjectError) as refused:
        java.command(iceberg_rest.LOCK, "Main", folder=tmp_path)
    assert refused.value.code == "JAVA_NOT_FOUND"


def test_one_of_several_jars_of_a_version_is_named_by_its_classifier(tmp_path: Path) -> None:
    jars = {(jar.name, jar.classifier): jar for jar in locked(iceberg_rest.LOCK)}
    server = jars["iceberg-open-api", "test-fixtures"]
    assert server.path(tmp_path).name == f"iceberg-open-api-{server.version}-test-fixtures.jar"
    assert Locked("g", "a", "1", "").path(tmp_path) == tmp_path / "g" / "a" / "1" / "a-1.jar"
    assert all(len(jar.sha256) == 64 for jar in jars.values())
