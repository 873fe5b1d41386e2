"""What every storage promises, shown on each of them: whole files, durable after ``flush``, never replaced, found by folder.

A new storage joins by an entry in ``places``: a way to open it and the location everything goes below.
"""

import io
import random
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icelake.errors import Corrupt, ProjectError, Refused
from icelake.storage.local import LocalStorage
from icelake.storage.s3 import S3Storage
from tests.conftest import Lacking
from tests.s3.server import SeaweedFS, running, settings

BIG = 20 << 20
"""More than S3 takes in one request here."""


@dataclass
class Place:
    """A storage and where it may write; ``reopen`` gives another one of the same, as another process would have."""

    storage: LocalStorage | S3Storage
    root: str
    reopen: Callable[[], LocalStorage | S3Storage]

    def listed(self, folder: str = "") -> dict[str, int]:
        found = list(self.storage.list(f"{self.root}/{folder}".rstrip("/")))
        assert len({file.location for file in found}) == len(found)
        return {file.location.removeprefix(f"{self.root}/"): file.size for file in found}


@pytest.fixture(scope="module")
def server(lacking: Lacking) -> Iterator[SeaweedFS]:
    with running(lacking) as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    opened: list[LocalStorage | S3Storage] = []

    def folder() -> LocalStorage | S3Storage:
        opened.append(LocalStorage())
        return opened[-1]

    def s3() -> LocalStorage | S3Storage:
        opened.append(S3Storage(root, settings(request.getfixturevalue("server"), tmp_path)))
        return opened[-1]

    root = str(tmp_path / "lake") if request.param == "folder" else f"s3://lake/{uuid.uuid4().hex}"
    reopen = folder if request.param == "folder" else s3
    yield Place(reopen(), root, reopen)
    for storage in opened:
        storage.close()


def test_write_read_list_delete(place: Place) -> None:
    storage, lake = place.storage, place.root
    storage.write(f"{lake}/a/data/1", b"one")
    storage.write(f"{lake}/a/data/2", pa.py_buffer(b"two22"))
    storage.write(f"{lake}/ab/3", b"")
    storage.flush()
    for reader in (storage, place.reopen()):
        assert reader.read(f"{lake}/a/data/1") == b"one"
        assert reader.read(f"{lake}/a/data/2", 1, 3) == b"wo2"
        assert reader.read(f"{lake}/a/data/2", 3) == b"22"
        assert reader.read(f"{lake}/a/data/2", 5) == b""
        assert reader.read(f"{lake}/ab/3") == b""
        for name, content in (("a/data/2", b"two22"), ("ab/3", b"")):
            with reader.open(f"{lake}/{name}") as file:
                assert file.read() == content
    # A prefix is a folder: a does not reach into ab, which may be another table.
    assert place.listed("a") == {"a/data/1": 3, "a/data/2": 5}
    assert place.listed() == {"a/data/1": 3, "a/data/2": 5, "ab/3": 0}
    assert place.listed("none") == {}
    storage.delete(f"{lake}/a/data/1")
    storage.delete(f"{lake}/a/data/1")
    storage.delete(f"{lake}/nowhere/at/all")
    assert place.listed("a/") == {"a/data/2": 5}
    storage.flush()


def test_modified_is_a_time(place: Place) -> None:
    place.storage.write(f"{place.root}/1", b"1")
    place.storage.flush()
    (file,) = place.storage.list(place.root)
    assert abs(file.modified - Path("/proc/self").stat().st_mtime) < 3600


def test_what_was_written_can_be_read_before_the_flush(place: Place) -> None:
    storage, lake = place.storage, place.root
    for number in range(50):
        storage.write(f"{lake}/{number}", b"x" * number)
        assert storage.read(f"{lake}/{number}") == b"x" * number
        assert storage.read(f"{lake}/{number}", number // 2, number - number // 2) == b"x" * (number - number // 2)
        with storage.open(f"{lake}/{number}") as file:
            assert file.size() == number
    with pytest.raises(Corrupt) as caught:
        storage.read(f"{lake}/7", 5, 3)
    assert caught.value.code == "FILE_SHORT"
    storage.flush()


def test_missing_and_short_files_are_corrupt(place: Place) -> None:
    path = f"{place.root}/f"
    for read in (place.storage.read, place.storage.open, lambda location: place.storage.read(location, 3, 4)):
        with pytest.raises(Corrupt) as caught:
            read(path)
        assert caught.value.code == "FILE_MISSING"
    place.storage.write(path, b"abc")
    place.storage.flush()
    for offset, length in ((1, 3), (3, 1), (9, 1)):
        with pytest.raises(Corrupt) as caught:
            place.storage.read(path, offset, length)
        assert caught.value.code == "FILE_SHORT"


@pytest.mark.parametrize("path", ["relative/file", "{root}/a/../b", "{root}/a/./b", "gs://bucket/file", ""])
def test_only_plain_locations(place: Place, path: str) -> None:
    with pytest.raises(ProjectError) as caught:
        place.storage.write(path.format(root=place.root), b"")
    assert caught.value.code == "STORAGE_LOCATION"


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_nothing_beside_the_lake_in_a_bucket(place: Place) -> None:
    with pytest.raises(ProjectError) as caught:
        place.storage.write(f"{place.root}2/f", b"")
    assert caught.value.code == "STORAGE_LOCATION"


def write_and_flush(storage: LocalStorage | S3Storage, location: str, data: bytes) -> None:
    storage.write(location, data)
    storage.flush()


def test_same_bytes_may_be_written_again_others_never(place: Place) -> None:
    storage, path = place.storage, f"{place.root}/f"
    storage.write(path, b"abc")
    storage.write(path, b"abc")
    storage.flush()
    storage.write(path, b"abc")
    storage.flush()
    for other in (storage, place.reopen()):
        with pytest.raises(Refused) as caught:
            write_and_flush(other, path, b"abd")
        assert caught.value.code == "LOCATION_REUSED"
    assert place.reopen().read(path) == b"abc"


def test_deleted_before_it_was_flushed(place: Place) -> None:
    storage, lake = place.storage, place.root
    for number in range(40):
        storage.write(f"{lake}/{number}", b"x" * 1000)
    for number in range(0, 40, 2):
        storage.delete(f"{lake}/{number}")
    storage.flush()
    assert place.listed() == {str(number): 1000 for number in range(1, 40, 2)}
    storage.write(f"{lake}/0", b"again")
    storage.flush()
    assert storage.read(f"{lake}/0") == b"again"


def test_more_than_one_page(place: Place) -> None:
    names = {f"d{number % 7}/{number:05d}": number % 3 for number in range(1100)}
    for name, size in names.items():
        place.storage.write(f"{place.root}/{name}", b"x" * size)
    place.storage.flush()
    assert place.listed() == names
    for name in names:
        place.storage.delete(f"{place.root}/{name}")
    assert place.listed() == {}
    place.storage.flush()


def test_names_with_every_sign(place: Place) -> None:
    names = ["a%20b", "ä ö/ß", "x?y#z+&=", "'q'\"", "日本/表", "[*]", "a..b", "~"]
    for name in names:
        place.storage.write(f"{place.root}/{name}", name.encode())
    place.storage.flush()
    assert place.listed() == {name: len(name.encode()) for name in names}
    for name in names:
        assert place.reopen().read(f"{place.root}/{name}") == name.encode()
        place.storage.delete(f"{place.root}/{name}")
    assert place.listed() == {}


def test_large_files_whole_and_in_parts(place: Place) -> None:
    data = random.Random(1).randbytes(BIG)
    place.storage.write(f"{place.root}/big", data)
    place.storage.flush()
    place.storage.write(f"{place.root}/big", data)
    place.storage.flush()
    other = place.reopen()
    assert other.read(f"{place.root}/big") == data
    rng = random.Random(2)
    with other.open(f"{place.root}/big") as file:
        assert file.size() == BIG
        assert file.seek(BIG) == BIG
        assert file.read(1) == b""
        for _ in range(60):
            at, length = rng.randrange(BIG), rng.choice((0, 1, 100, 70_000, 3 << 20))
            file.seek(at)
            assert file.tell() == at
            assert file.read(length) == data[at : at + length]


def test_parquet_by_row_group(place: Place) -> None:
    table = pa.table({"n": range(300_000), "t": [f"value {n % 1000} of {n}" for n in range(300_000)]})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=50_000, compression="none")
    assert len(sink.getvalue()) > 3 << 20
    place.storage.write(f"{place.root}/t.parquet", sink.getvalue())
    place.storage.flush()
    with place.reopen().open(f"{place.root}/t.parquet") as source:
        file = pq.ParquetFile(source)
        for group in (5, 0, 3):
            assert file.read_row_group(group).equals(table.slice(group * 50_000, 50_000))
        assert file.read(columns=["n"]).equals(table.select(["n"]))


def test_several_threads(place: Place) -> None:
    def work(worker: int) -> None:
        for number in range(30):
            location = f"{place.root}/{worker}/{number}"
            place.storage.write(location, f"{worker} {number}".encode())
            if number % 3 == 0:
                place.storage.flush()
                assert place.storage.read(location) == f"{worker} {number}".encode()
            if number % 5 == 4:
                place.storage.delete(location)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    place.storage.flush()
    assert sorted(place.listed()) == sorted(f"{worker}/{number}" for worker in range(4) for number in range(30) if number % 5 != 4)
