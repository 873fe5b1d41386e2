"""S3Storage where the network and the server fail: nothing acknowledged is lost, nothing is invented, nothing shows the keys."""

import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icelake.engines.duckdb import connect
from icelake.errors import Corrupt, IcelakeError, ProjectError, Refused, Unreachable
from icelake.storage import s3
from icelake.storage.s3 import S3Storage
from tests.conftest import Lacking
from tests.s3 import server as s3_server
from tests.s3.proxy import PASSING, Fault, Proxy, first, sometimes
from tests.s3.server import SeaweedFS, running

Open = Callable[..., S3Storage]


@pytest.fixture(scope="module")
def server(lacking: Lacking) -> Iterator[SeaweedFS]:
    with running(lacking) as server:
        yield server


@pytest.fixture
def proxy(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(s3, "_FIRST_DELAY", 0.002)
    monkeypatch.setattr(s3, "_LONGEST_DELAY", 0.05)
    with Proxy(server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def opened(server: SeaweedFS, proxy: Proxy, tmp_path: Path) -> Iterator[Open]:
    """Opens storages of one warehouse, through the proxy."""
    storages: list[S3Storage] = []
    warehouse = f"s3://lake/{uuid.uuid4().hex}"

    def open_(bucket: str = "lake", *, keys: tuple[str, str] = ("", ""), endpoint: str = "", **options: float) -> S3Storage:
        reach = s3_server.settings(server, tmp_path, endpoint=endpoint or proxy.endpoint, access_key=keys[0], secret_key=keys[1])
        storages.append(S3Storage(warehouse.replace("/lake/", f"/{bucket}/"), reach, **options))  # type: ignore[arg-type]
        return storages[-1]

    yield open_
    proxy.choose = lambda method, path: None
    for storage in storages:
        storage.close()


def at(storage: S3Storage, name: str) -> str:
    return f"{storage._warehouse}/{name}"


def content(storage: S3Storage) -> dict[str, bytes]:
    return {file.location.rpartition("/")[2]: storage.read(file.location) for file in storage.list(storage._warehouse)}


@pytest.mark.parametrize("fault", PASSING)
def test_every_call_outlasts_every_passing_fault(opened: Open, proxy: Proxy, fault: Fault) -> None:
    storage = opened()
    proxy.choose = first(2, fault)
    storage.write(at(storage, "f"), b"x" * 5000)
    storage.flush()
    proxy.choose = first(2, fault, "GET")
    assert storage.read(at(storage, "f")) == b"x" * 5000
    proxy.choose = first(2, fault, "GET")
    assert storage.read(at(storage, "f"), 10, 20) == b"x" * 20
    proxy.choose = first(2, fault, "GET")
    with storage.open(at(storage, "f")) as file:
        assert file.read() == b"x" * 5000
    proxy.choose = first(2, fault, "GET", "list-type")
    assert [file.size for file in storage.list(storage._warehouse)] == [5000]
    for many in (False, True):
        proxy.choose = first(2, fault, "POST" if many else "DELETE")
        for name in ("f", "g") if many else ("f",):
            storage.delete(at(storage, name))
        storage.flush()
        assert list(storage.list(storage._warehouse)) == []
    if fault not in ("corrupt", "torn", "slow"):  # which need a body, and the last no second try
        assert proxy.faults() >= 10


@pytest.mark.parametrize("fault", ["reset", "lost", "torn", "503", "corrupt"])
def test_a_large_object_outlasts_them_too(opened: Open, proxy: Proxy, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_SINGLE", 1 << 20)
    storage = opened()
    data = bytes(range(256)) * (11 << 12)
    for method, path in (("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId")):
        name = uuid.uuid4().hex
        proxy.choose = first(1, fault, method, path)
        storage.write(at(storage, name), data)
        storage.flush()
        assert storage.read(at(storage, name)) == data
    assert proxy.faults() == 3


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.sampled_from(["write", "write", "write", "delete", "flush", "read"]), st.integers(0, 7)), max_size=40),
    seed=st.integers(0, 1 << 30),
    probability=st.sampled_from([0.1, 0.4]),
)
def test_nothing_acknowledged_is_lost_and_nothing_is_invented(
    opened: Open, proxy: Proxy, steps: list[tuple[str, int]], seed: int, probability: float
) -> None:
    storage = opened()
    run = uuid.uuid4().hex
    model: dict[str, bytes] = {}
    proxy.choose = sometimes(seed, probability)
    for number, (what, which) in enumerate([*steps, ("flush", 0)]):
        name = f"{run}{which}"
        if what == "write":
            data = model.get(name, f"{number} ".encode() * (1 + number * 50))
            storage.write(at(storage, name), data)
            model[name] = data
        elif what == "delete":
            storage.delete(at(storage, name))
            model.pop(name, None)
        elif what == "flush":
            storage.flush()
        elif name in model:
            assert storage.read(at(storage, name)) == model[name]
        else:
            with pytest.raises(Corrupt):
                storage.read(at(storage, name))
    storage.close()
    proxy.choose = lambda method, path: None
    there = {name: data for name, data in content(opened()).items() if name.startswith(run)}
    assert there == model


def test_what_failed_is_owed_until_it_succeeded(opened: Open, proxy: Proxy) -> None:
    storage = opened(patience=0.1)
    storage.write(at(storage, "before"), b"1")
    storage.flush()
    proxy.choose = lambda method, path: "503" if method == "PUT" else None
    storage.write(at(storage, "owed"), b"2")
    for _ in range(3):
        with pytest.raises(Unreachable) as caught:
            storage.flush()
        assert caught.value.temporary
        assert "SlowDown" in caught.value.why
    # Also when it fails behind a caller's back: the next call says so.
    storage.delete(at(storage, "owed"))
    storage.flush()
    storage.write(at(storage, "early"), b"3")
    deadline = time.monotonic() + 30
    while storage._uploads[f"{storage._warehouse.removeprefix('s3://lake/')}/early"].error is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(Unreachable):
        storage.write(at(storage, "next"), b"4")
    assert storage.read(at(storage, "early")) == b"3"
    proxy.choose = lambda method, path: None
    storage.write(at(storage, "next"), b"4")
    storage.flush()
    assert content(opened()) == {"before": b"1", "early": b"3", "next": b"4"}


def test_what_is_larger_than_all_that_may_be_owed_is_sent_again_by_the_next_write(opened: Open, proxy: Proxy) -> None:
    storage = opened(patience=0.1, in_flight=100)
    proxy.choose = lambda method, path: "503" if method == "PUT" else None
    storage.write(at(storage, "large"), b"x" * 200)
    for _ in range(3):
        with pytest.raises(Unreachable):
            storage.write(at(storage, "next"), b"4")
    proxy.choose = lambda method, path: None
    storage.write(at(storage, "next"), b"4")
    storage.flush()
    assert content(opened()) == {"large": b"x" * 200, "next": b"4"}


def test_a_delete_that_failed_is_said_and_the_object_stays(opened: Open, proxy: Proxy) -> None:
    storage = opened(patience=0.1)
    for name in "abc":
        storage.write(at(storage, name), b"x")
    storage.flush()
    proxy.choose = lambda method, path: "503" if method in ("DELETE", "POST") else None
    for name in "abc":
        storage.delete(at(storage, name))
    assert len(list(storage.list(storage._warehouse))) == 3
    with pytest.raises(Unreachable, match="cannot delete"):
        storage.flush()
    proxy.choose = lambda method, path: None
    storage.flush()
    storage.delete(at(storage, "a"))
    assert sorted(content(storage)) == ["b", "c"]


def test_what_was_deleted_is_gone_when_a_flush_returns(opened: Open, proxy: Proxy) -> None:
    storage = opened()
    for number in range(20):
        storage.write(at(storage, str(number)), b"x")
    storage.flush()
    proxy.choose = lambda method, path: "slow" if method in ("DELETE", "POST") else None
    for number in range(20):
        storage.delete(at(storage, str(number)))
    storage.flush()
    proxy.choose = lambda method, path: None
    assert content(opened()) == {}


def test_no_object_appears_after_it_was_deleted(opened: Open, proxy: Proxy) -> None:
    """A delete waits for the upload it overtakes, however the upload ends."""
    storage = opened()
    proxy.choose = lambda method, path: "slow" if method == "PUT" else None
    for number in range(30):
        storage.write(at(storage, str(number)), b"x" * 100_000)
        storage.delete(at(storage, str(number)))
    storage.flush()
    assert content(storage) == {}


@pytest.mark.parametrize("bytes_in_flight", [1000, 1 << 20])
def test_as_much_at_once_as_is_allowed_and_no_more(opened: Open, proxy: Proxy, bytes_in_flight: int) -> None:
    storage = opened(parallel=3, in_flight=bytes_in_flight)
    proxy.choose = lambda method, path: "slow" if method == "PUT" else None
    for number in range(20):
        storage.write(at(storage, str(number)), b"x" * 600)
    storage.flush()
    assert len(content(storage)) == 20
    assert proxy.most <= (1 if bytes_in_flight == 1000 else 3)
    if bytes_in_flight > 1000:
        assert proxy.most > 1


def test_a_damaged_upload_is_refused_by_the_server(opened: Open, proxy: Proxy) -> None:
    storage = opened(patience=0.2)
    proxy.choose = lambda method, path: "corrupt" if method == "PUT" else None
    storage.write(at(storage, "f"), b"right")
    with pytest.raises(Unreachable):
        storage.flush()
    proxy.choose = lambda method, path: None
    with pytest.raises(Corrupt, match="FILE_MISSING"):
        opened().read(at(storage, "f"))
    storage.flush()
    assert opened().read(at(storage, "f")) == b"right"


def test_a_request_that_lands_after_its_time_out(opened: Open, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_REQUEST", timedelta(milliseconds=500))
    storage = opened()
    proxy.choose = first(1, "late")
    storage.write(at(storage, "f"), b"x" * 1000)
    storage.flush()
    deadline = time.monotonic() + 30
    while proxy.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert proxy.seen["PUT", "late"] == 1
    assert proxy.seen["PUT", ""] >= 1
    assert content(storage) == {"f": b"x" * 1000}


def test_a_server_without_conditional_requests(opened: Open, proxy: Proxy) -> None:
    storage = opened()
    proxy.choose = first(1, "501")
    storage.write(at(storage, "f"), b"one")
    storage.flush()
    storage.write(at(storage, "f"), b"one")
    storage.flush()
    storage.write(at(storage, "f"), b"two")
    with pytest.raises(Refused, match="LOCATION_REUSED"):
        storage.flush()
    assert opened().read(at(storage, "f")) == b"one"


def every_call(storage: S3Storage) -> Iterator[Callable[[], object]]:
    def write() -> None:
        storage.write(at(storage, "f"), b"x")
        storage.flush()

    def delete() -> None:
        storage.delete(at(storage, "f"))
        storage.flush()

    yield write
    storage.delete(at(storage, "f"))
    yield lambda: storage.read(at(storage, "g"))
    yield lambda: storage.open(at(storage, "g"))
    yield lambda: list(storage.list(storage._warehouse))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [("secret", "S3_CREDENTIALS"), ("access", "S3_CREDENTIALS"), ("bucket", "S3_NO_BUCKET"), ("down", "STORAGE_UNREACHABLE")],
)
def test_what_is_wrong_is_said_with_the_next_step_and_without_the_keys(opened: Open, server: SeaweedFS, wrong: str, code: str) -> None:
    bad = "nobody-may-see-this"
    storage = opened(
        "no-such-bucket" if wrong == "bucket" else "lake",
        keys=(bad if wrong == "access" else "", bad if wrong == "secret" else ""),
        endpoint="http://127.0.0.1:1" if wrong == "down" else "",
        patience=0.05,
    )
    for call in every_call(storage):
        with pytest.raises(IcelakeError) as caught:
            call()
        assert caught.value.code == code
        assert isinstance(caught.value, Unreachable if wrong == "down" else Refused)
        assert caught.value.why
        assert caught.value.fix
        said = "".join(traceback.format_exception(caught.value)) + repr(storage._store)
        assert server.secret_key not in said
        if wrong == "secret":
            assert bad not in said


def test_a_full_server_is_waited_for_and_said(opened: Open, proxy: Proxy) -> None:
    storage = opened(patience=0.05)
    proxy.choose = first(1000, "507")
    storage.write(at(storage, "f"), b"x")
    with pytest.raises(Unreachable, match="no room") as caught:
        storage.flush()
    assert caught.value.code == "S3_FULL"
    proxy.choose = lambda method, path: None
    storage.flush()
    assert content(storage) == {"f": b"x"}


@pytest.mark.parametrize(("fault", "code"), [("clock", "S3_CLOCK"), ("region", "S3_REGION"), ("405", "S3_REFUSED")])
def test_what_an_s3_refuses_is_said_with_the_next_step(opened: Open, proxy: Proxy, fault: Fault, code: str) -> None:
    storage = opened(patience=0.05)
    proxy.choose = first(1000, fault)
    storage.write(at(storage, "f"), b"x")
    with pytest.raises(Refused, match=code) as caught:
        storage.flush()
    assert caught.value.fix


def test_keys_that_no_query_can_use_are_said_and_not_shown(server: SeaweedFS, tmp_path: Path) -> None:
    reach = s3_server.settings(server, tmp_path, secret_key="torn\0file")
    with pytest.raises(ProjectError, match="S3_SETTINGS") as caught:
        connect(["s3://lake/x"], s3=reach)
    assert "torn" not in "".join(traceback.format_exception(caught.value))


def test_the_environment_decides_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_BUCKET"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    storage = opened()
    storage.write(at(storage, "f"), b"x")
    storage.flush()
    assert content(storage) == {"f": b"x"}


def test_a_secret_that_is_not_there_is_said_at_once(opened: Open, server: SeaweedFS, tmp_path: Path) -> None:
    reach = s3_server.settings(server, tmp_path)
    (tmp_path / "secret").write_text("")
    with pytest.raises(ProjectError, match="SECRET_FILE"):
        S3Storage("s3://lake/x", reach)


def test_other_schemes_of_the_same_warehouse(opened: Open) -> None:
    storage = opened()
    storage.write(at(storage, "t/f"), b"x")
    storage.flush()
    for scheme in ("s3a", "s3n", "S3"):
        assert [file.location for file in storage.list(storage._warehouse.replace("s3:", f"{scheme}:") + "/t/")] == [at(storage, "t/f")]


def test_acknowledged_objects_survive_the_servers_crash(opened: Open, server: SeaweedFS) -> None:
    storage = opened()
    for number in range(50):
        storage.write(at(storage, str(number)), str(number).encode() * 1000)
    storage.flush()
    server.kill9()
    server.start()
    assert content(opened()) == {str(number): str(number).encode() * 1000 for number in range(50)}
