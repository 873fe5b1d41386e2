"""Binaries from a Maven repository: unpacked once, whole, and only if they are what the lock names. Nothing here is downloaded."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import icelake
from icelake.errors import Corrupt, ProjectError, Unreachable
from icelake.stack import binaries
from icelake.stack.maven import Locked, fetched, locked

SOURCE = Path(icelake.__file__).parents[1]


def packed(cache: Path, version: str = "99.1.0") -> Locked:
    """A jar as they publish it, put where it would have been downloaded to."""
    txz = io.BytesIO()
    with tarfile.open(fileobj=txz, mode="w:xz") as archive:
        for name in ("bin/postgres", "lib/libpq.so.5", "share/postgresql/postgres.bki"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(name), 0o755
            archive.addfile(entry, io.BytesIO(name.encode()))
    jar = io.BytesIO()
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "")
        archive.writestr("postgres-linux-x86_64.txz", txz.getvalue())
    artifact = Locked("org.example", "binaries", version, hashlib.sha256(jar.getvalue()).hexdigest())
    path = artifact.path(cache / "maven")
    path.parent.mkdir(parents=True)
    path.write_bytes(jar.getvalue())
    return artifact


def test_the_lock_names_what_the_wheel_lacks() -> None:
    pinned = [artifact.version for artifact in locked(binaries._LOCK)]
    assert sorted([*binaries._WHEEL, *(int(version.split(".")[0]) for version in pinned)]) == sorted(binaries.VERSIONS)
    assert all(len(artifact.sha256) == 64 for artifact in locked(binaries._LOCK))


def test_unpacked_once_and_the_jar_is_not_kept(tmp_path: Path) -> None:
    artifact = packed(tmp_path)
    found = binaries.from_maven(artifact, tmp_path)
    assert (found.release, found.major) == ("99.1", 99)
    assert (found.bin / "postgres").read_text() == "bin/postgres"
    assert os.access(found.bin / "postgres", os.X_OK)
    assert not artifact.path(tmp_path / "maven").exists()
    assert binaries.from_maven(artifact, tmp_path) == found
    copied = found.copy(tmp_path / "copy", ["postgres"])
    assert (copied / "../share/postgresql/postgres.bki").exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {found.root.name, "copy", "maven", ".lock"}


def test_processes_that_ask_at_a_time_get_the_same(tmp_path: Path) -> None:
    artifact = packed(tmp_path)
    script = (
        "import sys; from pathlib import Path; from icelake.stack.binaries import from_maven; from icelake.stack.maven import Locked;"
        "print(from_maven(Locked('org.example', 'binaries', '99.1.0', sys.argv[1]), Path(sys.argv[2])).root)"
    )
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", script, artifact.sha256, tmp_path], env={"PYTHONPATH": str(SOURCE)}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = {one.communicate()[0].strip() for one in asking}
    assert [one.returncode for one in asking] == [0, 0, 0, 0]
    assert said == {str(tmp_path / f"postgres-99.1-{artifact.sha256[:12]}")}


def test_what_is_not_locked_is_removed(tmp_path: Path) -> None:
    artifact = packed(tmp_path)
    path = artifact.path(tmp_path / "maven")
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(Corrupt, match="NOT_WHAT_WAS_LOCKED"):
        binaries.from_maven(artifact, tmp_path)
    assert not path.exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith("postgres")]


def test_what_cannot_be_had_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Locked("org.example", "absent", "1.0", "0" * 64)
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "jgo.maven", None)
        with pytest.raises(ProjectError, match="MAVEN_NOT_INSTALLED") as caught:
            fetched(artifact, tmp_path)
        assert "icelake[stack]" in caught.value.fix
    with monkeypatch.context() as changed:
        changed.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        changed.setenv("https_proxy", "http://127.0.0.1:1")
        changed.setenv("NO_PROXY", "")
        changed.setenv("no_proxy", "")
        with pytest.raises(Unreachable, match="MAVEN_UNREACHABLE"):
            fetched(artifact, tmp_path)
    with monkeypatch.context() as changed:
        changed.setattr("platform.machine", lambda: "sparc")
        with pytest.raises(ProjectError, match="POSTGRES_NO_BINARIES"):
            binaries.from_maven(artifact, tmp_path)


def test_an_extension_is_found_with_the_newest_server_that_has_it(tmp_path: Path) -> None:
    def install(version: int, *extensions: str) -> None:
        controls = [f"share/postgresql/{version}/extension/{name}.control" for name in extensions]
        for path in (f"lib/postgresql/{version}/bin/postgres", *controls):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()

    install(14, "postgis")
    install(15, "postgis", "hstore")
    install(17, "hstore")
    install(99, "postgis")
    found = binaries.installed("postgis", tmp_path)
    assert (found.major, found.bin, found.in_place) == (15, tmp_path / "lib/postgresql/15/bin", True)
    assert binaries.installed("hstore", tmp_path).major == 17
    # Scripts of an extension, and no server beside them.
    (tmp_path / "lib/postgresql/15/bin/postgres").unlink()
    assert binaries.installed("postgis", tmp_path).major == 14
    with pytest.raises(ProjectError, match="POSTGRES_NO_EXTENSION"):
        binaries.installed("citext", tmp_path)


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert binaries.cache_folder() == tmp_path / "icelake"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/somewhere")
    assert binaries.cache_folder() == Path("/somewhere/.cache/icelake")


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_PACKAGE", "no_such_package")
    with pytest.raises(ProjectError, match=r"(?s)POSTGRES_NOT_INSTALLED.*pip install"):
        binaries.find(18)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(ProjectError, match="POSTGRES_NO_PROGRAM"):
        binaries.client("pg_nonsense")
