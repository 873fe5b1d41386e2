"""A PostgreSQL server of our own, of any version from 14 to 18 (``stack.binaries``), and standbys of it.

Promises: password authentication everywhere, loopback and a private socket folder only, the server and its temporary folder are
gone when this process ends in whatever way. Started by root it runs as an existing unprivileged user, with binaries and data in
a folder made for it. Never imports the wheel's Python package (whose server object changes permissions of parent folders, adds
a user and outlives its parent), never adds a user, never changes permissions of a folder it did not make.
Fails with ``Unreachable`` and the last lines of the server's log, or ``ProjectError`` where the caller can mend it.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal, Self

import psycopg

from icelake.errors import ProjectError, Unreachable
from icelake.stack.binaries import Binaries, Version, client, find
from icelake.stack.supervisor import Plan, Supervisor

_SERVER_BINARIES = ("postgres", "initdb")
_SOCKET_PATH_LIMIT = 100
"""sun_path holds 108 bytes with the final zero; the socket's own name takes the rest."""

Mode = Literal["smart", "fast", "immediate"]
_STOP: Mapping[Mode, Plan] = {
    "smart": ((signal.SIGTERM, 60.0), (signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)),
    "fast": ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)),
    "immediate": ((signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)),
}
_AT_OUR_DEATH: Plan = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 10.0))

SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class Postgres:
    """A server for as long as the ``with`` block: ``with Postgres() as server: psycopg.connect(server.dsn)``.

    ``folder``: where the data stays for the next time (made if absent); None: a temporary folder, removed at the end.
    ``version``: which PostgreSQL; one that is not in the wheel is downloaded the first time.
    ``settings``: server settings, over ``SETTINGS`` (``{"fsync": "off"}`` for quick tests). ``port``: None takes a free one.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        version: Version | Binaries = 18,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        start_seconds: float = 90.0,
    ) -> None:
        self.folder = folder.resolve() if folder else None
        self.settings = {**SETTINGS, **(settings or {})}
        self.port = port or 0
        """TCP port on 127.0.0.1; known once started."""
        self.password = ""
        self.pid = 0
        self._choose_port = port is None
        self._start_seconds = start_seconds
        self._user = server_user() if os.geteuid() == 0 else None
        self._supervisor: Supervisor | None = None
        self._run = Path()
        self._data = Path()
        self._programs = Path()
        self._version = version
        self._primary: Postgres | None = None
        self._primary_slot: str | None = None

    # ---------------------------------------------------------------------------------------------------------- life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the server (the first time: make the database) and return when it accepts connections."""
        if self._supervisor is None:
            try:
                self._prepare()
                self._launch_first()
            except BaseException:
                self.close()
                raise
        else:
            self._launch()

    def stop(self, mode: Mode = "fast") -> None:
        """Shut down as ``pg_ctl stop -m`` does; with ``start`` it goes on with its data."""
        if self._supervisor is not None:
            self._supervisor.stop(_STOP[mode])

    def kill9(self) -> None:
        """kill -9 for the server and all its backends, as a crash would: the next ``start`` recovers from the WAL."""
        if self._supervisor is not None:
            self._supervisor.stop(((signal.SIGKILL, 10.0),))

    def restart(self, mode: Mode = "fast", settings: Mapping[str, str] | None = None) -> None:
        """Stop and start on the same port, with changed settings if given."""
        self.stop(mode)
        self.settings |= settings or {}
        self.start()

    def standby(self, slot: str | None = None, *, settings: Mapping[str, str] | None = None) -> "Postgres":
        """A hot standby of this running server, to be started (``with server.standby(...) as standby``) while this one runs.

        A copy by pg_basebackup with streaming replication and ``hot_standby_feedback``; ``slot``: through a physical slot of that
        name, made for it here. ``settings`` go over this server's. ``{"sync_replication_slots": "on"}`` (17+) needs a slot.
        """
        follower = Postgres(version=self.binaries, settings={**self.settings, **(settings or {})}, start_seconds=self._start_seconds)
        follower._primary = self
        follower._primary_slot = slot
        return follower

    def promote(self, seconds: int = 60) -> None:
        """Make a standby a primary, on a new timeline; returns when it takes writes."""
        with closing(psycopg.connect(self.dsn, autocommit=True)) as session:
            done = session.execute("select pg_promote(true, %s)", [seconds]).fetchone()
        if done != (True,):
            raise Unreachable("POSTGRES_PROMOTE", f"the standby was not promoted within {seconds} s", self._tail())

    def _tail(self) -> str:
        return self._supervisor.log_tail() if self._supervisor is not None else ""

    def close(self) -> None:
        """Stop for good; a temporary folder is removed. May be called twice."""
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None

    @property
    def running(self) -> bool:
        return self.pid != 0 and self._supervisor is not None and self._supervisor.poll() is None

    # ------------------------------------------------------------------------------------------------------- addresses

    @property
    def dsn(self) -> str:
        """A libpq URL over TCP, with the password: keep it out of logs and command lines."""
        return self.dsn_tcp

    @property
    def dsn_tcp(self) -> str:
        return self.dsn_of("postgres")

    @property
    def dsn_socket(self) -> str:
        return f"postgresql://postgres:{self.password}@/postgres?host={self.socket_folder}&port={self.port}"

    def dsn_of(self, database: str) -> str:
        """The TCP URL of another database of this server."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def environment(self) -> dict[str, str]:
        """PG* variables for programs of PostgreSQL, so that no password is on a command line. To be added to their own."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGPASSWORD": self.password,
            "PGDATABASE": "postgres",
        }

    @property
    def socket_folder(self) -> Path:
        return self._run / "s"

    @property
    def temporary(self) -> Path:
        """A folder of this user that goes with the server, however this process ends: for what belongs to the same run."""
        return self._run

    @property
    def data(self) -> Path:
        """The data directory. As root: owned by the server's user."""
        return self._data

    @property
    def log(self) -> Path:
        return (self.folder or self._run) / "postgres.log"

    @property
    def binaries(self) -> Binaries:
        """The installation it runs from. Finding it may download it."""
        if not isinstance(self._version, Binaries):
            self._version = find(self._version)
        return self._version

    @staticmethod
    def bin(name: str) -> Path:
        """A client program (pgbench, psql, pg_recvlogical, ...) of PostgreSQL 18, to be run by the caller with ``environment``."""
        return client(name)

    # ------------------------------------------------------------------------------------------------------ preparations

    def _prepare(self) -> None:
        """Folders, binaries, database. Everything temporary is in ``_run``, which the watchdog removes."""
        binaries = self.binaries
        self._supervisor = Supervisor()
        self._run = Path(tempfile.mkdtemp(prefix="icelake-pg-", dir=_short_folder(self._user)))
        self._supervisor.remove_at_end(self._run)
        if self._user:
            # Ours (so nobody can swap what is in it); the server's user may only pass through to its own folders.
            self._run.chmod(0o711)
        self._programs = self._copy_programs(binaries) if self._user and not binaries.in_place else binaries.bin
        self._make_folder(self.socket_folder)
        if self.folder:
            self._claim(self.folder)
        self._data = (self.folder or self._run) / "data"
        kept = self.folder / "password" if self.folder else None
        if (self._data / "PG_VERSION").exists():
            if kept is None or not kept.exists():
                raise ProjectError(
                    "POSTGRES_NO_PASSWORD", f"{self._data} holds a database whose password is not known", f"{kept} is missing"
                )
            self.password = kept.read_text()
        elif self._primary is not None:
            self.password = self._primary.password
            self._clone(self._primary)
        else:
            self.password = secrets.token_hex(24)
            self._initdb()
            if kept:
                with open(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
                    file.write(self.password)

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        if self._user:
            os.chown(folder, *self._user)

    def _claim(self, folder: Path) -> None:
        """The caller's own folder for lasting data: made if absent, never changed if it was there."""
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o711 if self._user else 0o700)
        if self._user and not _may_enter(folder, *self._user):
            name = pwd.getpwuid(self._user[0]).pw_name if self._user[0] != 65534 else "nobody"
            raise ProjectError(
                "POSTGRES_FOLDER_CLOSED",
                f"PostgreSQL cannot keep its data in {folder}",
                f"it refuses to run as root, and the user it runs as ({name}) may not enter that folder or one above it",
                "name a folder every user may enter, for example under /var/tmp; the data itself stays private",
            )

    def _copy_programs(self, binaries: Binaries) -> Path:
        """What the server needs of the binaries (22 MB), copied where its user can read it: they may lie under /root.

        A copy for each server takes 0.1 s and leaves nothing to share, to guard or to grow stale. Copied, not linked: these
        files change their owner.
        """
        target = self._run / "programs"
        programs = binaries.copy(target, _SERVER_BINARIES)
        if self._user:
            for parent, _, files in os.walk(target):
                for path in (parent, *(os.path.join(parent, file) for file in files)):
                    os.chown(path, *self._user, follow_symlinks=False)
                    if not os.path.islink(path):
                        os.chmod(path, 0o500 if os.path.isdir(path) or os.access(path, os.X_OK) else 0o400)
        return programs

    def _initdb(self) -> None:
        assert self._supervisor is not None
        self._make_folder(self._data)
        secret = self._run / "initial-password"
        try:
            descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w") as file:
                if self._user:
                    os.fchown(descriptor, *self._user)
                file.write(self.password + "\n")
            log = self._run / "initdb.log"
            self._supervisor.start(
                [
                    str(self._programs / "initdb"),
                    f"--pgdata={self._data}",
                    "--username=postgres",
                    f"--pwfile={secret}",
                    "--auth-local=scram-sha-256",
                    "--auth-host=scram-sha-256",
                    "--encoding=UTF8",
                    # The built-in provider (17+) sorts by code point whatever the C library here calls its locales.
                    *(["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self.binaries.major >= 17 else []),
                    "--locale=C",
                    "--data-checksums",
                    "--no-instructions",
                    # A temporary database does not have to survive a power cut.
                    *([] if self.folder else ["--no-sync"]),
                ],
                log=log,
                env=_ENVIRONMENT,
                cwd=self._data,
                user=self._user,
                plan=((signal.SIGKILL, 10.0),),
            )
            status = self._supervisor.wait(self._start_seconds)
        finally:
            secret.unlink(missing_ok=True)
        if status != 0:
            if self.folder:
                shutil.rmtree(self._data, ignore_errors=True)  # ours, made above, and useless half made
            raise Unreachable("POSTGRES_INITDB", f"initdb ended with status {status}", self._supervisor.log_tail())

    def _clone(self, primary: "Postgres") -> None:
        """The primary's data directory, copied over its replication protocol, and where to stream on from."""
        assert self._supervisor is not None
        self._make_folder(self._data)
        slot = ["--create-slot", f"--slot={self._primary_slot}"] if self._primary_slot else []
        self._supervisor.start(
            [str(client("pg_basebackup")), f"--pgdata={self._data}", "--wal-method=stream", "--checkpoint=fast", "--no-sync", *slot],
            log=self._run / "basebackup.log",
            env={**_ENVIRONMENT, **primary.environment},
            cwd=self._run,
            plan=((signal.SIGKILL, 10.0),),
        )
        if (status := self._supervisor.wait(self._start_seconds)) != 0:
            raise Unreachable("POSTGRES_BASEBACKUP", f"pg_basebackup ended with status {status}", self._supervisor.log_tail())
        # The password hands itself on in a file only the server's user may read, as PostgreSQL's own tools leave it.
        follow = {
            "primary_conninfo": f"host=127.0.0.1 port={primary.port} user=postgres password={primary.password} dbname=postgres",
            "hot_standby_feedback": "on",
            **({"primary_slot_name": self._primary_slot} if self._primary_slot else {}),
        }
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in follow.items())
        (self._data / "standby.signal").touch()
        if self._user:
            for parent, folders, files in os.walk(self._data):
                for name in (*folders, *files):
                    os.chown(os.path.join(parent, name), *self._user, follow_symlinks=False)

    # ------------------------------------------------------------------------------------------------------------ start

    def _launch_first(self) -> None:
        """A free port can be taken by someone else between looking and using it: then look again."""
        for attempts_left in (4, 3, 2, 1, 0):
            if self._choose_port:
                self.port = _free_port()
            try:
                self._launch()
                return
            except Unreachable as error:
                taken = "could not bind" in error.why or "could not create any TCP/IP sockets" in error.why
                if not (self._choose_port and taken and attempts_left):
                    raise

    def _launch(self) -> None:
        assert self._supervisor is not None
        settings = {
            **({} if _shared_memory_usable() else {"dynamic_shared_memory_type": "mmap"}),
            **self.settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_folder),
        }
        argv = [str(self._programs / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        self.pid = self._supervisor.start(argv, log=self.log, env=_ENVIRONMENT, cwd=self._data, user=self._user, plan=_AT_OUR_DEATH)
        try:
            self._supervisor.wait_until(self._ready, self._start_seconds)
        except Unreachable as error:
            self._supervisor.stop(_STOP["immediate"])
            raise Unreachable(
                "POSTGRES_START", "PostgreSQL did not start", f"{error.what}\n{error.why}", "see the log's last lines above"
            ) from error

    def _ready(self) -> bool:
        """What ``pg_ctl start -w`` waits for: our postmaster's own word in postmaster.pid (line 8)."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"


_ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def server_user() -> tuple[int, int]:
    """(uid, gid) of the unprivileged user a root process runs the server as: postgres, else nobody, else 65534."""
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return entry.pw_uid, entry.pw_gid
    return 65534, 65534


def _may_enter(folder: Path, uid: int, gid: int) -> bool:
    """Whether that user, without further groups, may pass through ``folder`` and every folder above it."""
    for each in (folder, *folder.parents):
        status = each.stat()
        if status.st_uid == uid:
            allowed = status.st_mode & stat.S_IXUSR
        elif status.st_gid == gid:
            allowed = status.st_mode & stat.S_IXGRP
        else:
            allowed = status.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def _short_folder(user: tuple[int, int] | None) -> Path:
    """Where the temporary folder goes: short enough for a socket's path, and open to the server's user."""
    tried = []
    for folder in (Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")):
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            tried.append(f"{folder}: not writable")
        elif len(str(folder)) + len("/icelake-pg-12345678/s/.s.PGSQL.65535") > _SOCKET_PATH_LIMIT:
            tried.append(f"{folder}: its path is too long for a socket")
        elif user and not _may_enter(folder, *user):
            tried.append(f"{folder}: the server's user may not enter it")
        else:
            return folder
    raise ProjectError("POSTGRES_NO_TEMP", "no temporary folder can be used for PostgreSQL", "; ".join(tried), "set TMPDIR")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _shared_memory_usable() -> bool:
    """Whether POSIX shared memory will do; in containers /dev/shm can be absent, closed or tiny."""
    folder = Path("/dev/shm")
    try:
        space = os.statvfs(folder)
        mode = folder.stat().st_mode
    except OSError:
        return False
    open_to_all = mode & 0o1777 == 0o1777
    return open_to_all and space.f_bavail * space.f_frsize >= 64 << 20 and os.access(folder, os.W_OK)
