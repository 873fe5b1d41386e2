"""Files from Maven Central, each with the SHA-256 a committed lock file names.

Promises: what it returns has the locked checksum, is downloaded once, and is whole (several processes may ask at a time). Needs the
package ``jgo``, which speaks to the repository, only for what is not there yet. Fails with ``ProjectError`` (jgo is absent),
``Unreachable`` (no network) or ``Corrupt`` (what came is not what was locked; it is removed).
"""

import fcntl
import hashlib
import importlib
import os
import ssl
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from icelake.errors import Corrupt, ProjectError, Unreachable


@dataclass(frozen=True, slots=True)
class Locked:
    """One ``[[dependencies]]`` entry of a lock file in jgo's format."""

    group: str
    name: str
    version: str
    sha256: str
    packaging: str = "jar"
    classifier: str = ""
    """One of several files of that name and version; '': the plain one."""

    def path(self, repository: Path) -> Path:
        """Where a Maven repository keeps it."""
        which = f"-{self.classifier}" if self.classifier else ""
        return repository.joinpath(*self.group.split("."), self.name, self.version, f"{self.name}-{self.version}{which}.{self.packaging}")


def locked(lock: Path) -> list[Locked]:
    """What the lock file names, in its order."""
    return [
        Locked(
            entry["groupId"],
            entry["artifactId"],
            entry["version"],
            entry["sha256"],
            entry.get("packaging", "jar"),
            entry.get("classifier", ""),
        )
        for entry in tomllib.loads(lock.read_text(encoding="utf-8"))["dependencies"]
    ]


def fetched(artifact: Locked, repository: Path) -> Path:
    """The artifact's file below ``repository`` (made if absent), downloaded unless it is there."""
    path = artifact.path(repository)
    with alone(repository):
        if not path.exists():
            _download(artifact, repository)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != artifact.sha256:
            path.unlink()
            raise Corrupt(
                "NOT_WHAT_WAS_LOCKED",
                f"{path.name} is not the file the lock names, so it was removed",
                f"its SHA-256 is {found}, locked is {artifact.sha256}",
                "try again: a broken download is mended by that; if not, do not use what comes",
            )
    return path


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process at a time, for as long as the block; whoever dies in it lets the others in. ``folder`` is made if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def trust_store() -> str | None:
    """Where this system keeps the certificates it trusts, as Python's ``ssl`` sees it; None if it has none.

    jgo would trust those that come with ``certifi`` only, and so fail behind a proxy that the system was told to trust.
    """
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return paths.cafile
    return paths.capath if paths.capath and any(Path(paths.capath).glob("*.0")) else None


def _download(artifact: Locked, repository: Path) -> None:
    what = f"cannot fetch {artifact.name} {artifact.version} from Maven Central"
    try:
        maven = importlib.import_module("jgo.maven")
    except ImportError as error:
        raise ProjectError("MAVEN_NOT_INSTALLED", what, str(error), "pip install 'icelake[stack]'") from None
    with _trusting_the_system():
        try:
            component = maven.MavenContext(repo_cache=repository).project(artifact.group, artifact.name).at_version(artifact.version)
            component.artifact(artifact.classifier, artifact.packaging).resolve()
        except (OSError, RuntimeError) as error:
            raise Unreachable("MAVEN_UNREACHABLE", what, " ".join(str(error).split()), "try again where the network allows it") from error


@contextmanager
def _trusting_the_system() -> Iterator[None]:
    """``requests`` reads its trust store from the environment."""
    store = trust_store()
    if store is None or {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"} & set(os.environ):
        yield
        return
    os.environ["REQUESTS_CA_BUNDLE"] = store
    try:
        yield
    finally:
        del os.environ["REQUESTS_CA_BUNDLE"]
