"""Secrets are read when used, and never show."""

from pathlib import Path

import pytest

from icelake.errors import ProjectError
from icelake.project import FILE, Secret, findings, load_project


def test_never_in_a_repr() -> None:
    for secret in (Secret("text", "password=hunter2"), Secret("env", "DSN")):
        assert "hunter2" not in f"{secret!r} {secret}"
    assert str(Secret("env", "DSN")) == "(env DSN)"


def test_environment() -> None:
    assert Secret("env", "DSN").reveal({"DSN": "host=x"}) == "host=x"
    with pytest.raises(ProjectError, match=r"DSN is not set\n.*export DSN"):
        Secret("env", "DSN").reveal({})


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    with pytest.raises(ProjectError, match="SECRET_FILE"):
        Secret("file", str(file)).reveal()
    file.write_text("\n")
    with pytest.raises(ProjectError, match="is empty"):
        Secret("file", str(file)).reveal()
    file.write_text("host=x password=p\n")
    assert Secret("file", str(file)).reveal() == "host=x password=p"


@pytest.mark.parametrize(
    ("dsn", "codes"),
    [
        ('"host=x dbname=y"', ["PROJECT"]),
        ('"host=x password=hunter2"', ["SECRET_IN_FILE", "PROJECT"]),
        ('"postgresql://me:hunter2@host/db"', ["SECRET_IN_FILE", "PROJECT"]),
        ('"postgresql://me@host/db"', ["PROJECT"]),
        ('{ env = "NO_SUCH_VARIABLE_HERE" }', ["SECRET_NOT_SET", "PROJECT"]),
        ('{ file = "open.dsn" }', ["SECRET_READABLE", "PROJECT"]),
        ('{ file = "closed.dsn" }', ["PROJECT"]),
    ],
)
def test_findings(tmp_path: Path, dsn: str, codes: list[str]) -> None:
    for name, mode in (("open.dsn", 0o644), ("closed.dsn", 0o600)):
        (tmp_path / name).write_text("host=x password=hunter2")
        (tmp_path / name).chmod(mode)
    (tmp_path / FILE).write_text(f'[project]\nname = "x"\n[sources.shop]\ndsn = {dsn}\ntables = ["public.*"]\n')
    found = findings(load_project(tmp_path))
    assert [finding.code for finding in found] == codes
    assert "hunter2" not in repr(found)
