"""LocalStorage: what is written whole stays, what cannot be written is not there, and the order of syncing."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from icelake.errors import Corrupt, ProjectError, Refused
from icelake.storage import local
from icelake.storage.local import LocalStorage


@pytest.fixture
def storage() -> Iterator[LocalStorage]:
    storage = LocalStorage()
    yield storage
    storage.close()


def test_write_read_list_delete(storage: LocalStorage, tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    storage.write(f"{lake}/a/data/1", b"one")
    storage.write(f"{lake}/a/data/2", pa.py_buffer(b"two22"))
    storage.write(f"{lake}/ab/3", b"")
    storage.flush()
    assert storage.read(f"{lake}/a/data/1") == b"one"
    assert storage.read(f"{lake}/a/data/2", 1, 3) == b"wo2"
    assert storage.read(f"{lake}/a/data/2", 3) == b"22"
    assert storage.read(f"{lake}/ab/3") == b""
    with storage.open(f"{lake}/a/data/2") as file:
        assert file.read() == b"two22"
    # A prefix is a folder: /lake/a does not reach into /lake/ab, which may be another table.
    assert sorted((file.location, file.size) for file in storage.list(f"{lake}/a")) == [(f"{lake}/a/data/1", 3), (f"{lake}/a/data/2", 5)]
    assert list(storage.list(f"{lake}/none")) == []
    storage.delete(f"{lake}/a/data/1")
    storage.delete(f"{lake}/a/data/1")
    storage.delete(f"{lake}/nowhere/at/all")
    assert [file.location for file in storage.list(f"{lake}/a/")] == [f"{lake}/a/data/2"]


def test_missing_and_short_files_are_corrupt(storage: LocalStorage, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    for read in (storage.read, storage.open):
        with pytest.raises(Corrupt) as caught:
            read(path)
        assert caught.value.code == "FILE_MISSING"
    storage.write(path, b"abc")
    with pytest.raises(Corrupt) as caught:
        storage.read(path, 1, 3)
    assert caught.value.code == "FILE_SHORT"


@pytest.mark.parametrize("location", ["relative/file", "s3://bucket/file", "/a/../b", "/a/./b", ""])
def test_only_plain_absolute_paths(storage: LocalStorage, location: str) -> None:
    with pytest.raises(ProjectError):
        storage.write(location, b"")


def test_same_bytes_may_be_written_again_others_never(storage: LocalStorage, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    storage.write(path, b"abc")
    storage.write(path, b"abc")
    storage.flush()
    storage.write(path, b"abc")
    with pytest.raises(Refused) as caught:
        storage.write(path, b"abd")
    assert caught.value.code == "LOCATION_REUSED"
    storage.flush()
    assert storage.read(path) == b"abc"


def test_flush_syncs_files_before_their_folders_and_new_folders_parents(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def record(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", record)
    storage.write(f"{tmp_path}/t/data/1", b"1")
    storage.write(f"{tmp_path}/t/metadata/2", b"2")
    assert synced == []
    storage.flush()
    files = [f"{tmp_path}/t/data/1", f"{tmp_path}/t/metadata/2"]
    assert sorted(synced[:2]) == files
    assert {f"{tmp_path}/t/data", f"{tmp_path}/t/metadata", f"{tmp_path}/t", str(tmp_path)} <= set(synced[2:])
    synced.clear()
    storage.flush()
    assert synced == []
    storage.write(f"{tmp_path}/t/data/3", b"3")
    storage.flush()
    assert synced == [f"{tmp_path}/t/data/3", f"{tmp_path}/t/data"]


def test_many_files_are_synced_in_parallel_and_none_is_forgotten(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))
    monkeypatch.setattr(local, "_OPEN_FILES", 10)
    paths = [tmp_path / f"f{number}" for number in range(25)]
    for path in paths:
        storage.write(str(path), b"x")
    storage.flush()
    assert {path.stat().st_ino for path in paths} <= synced


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_refused_and_leaves_nothing(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.write

    def full(fd: int, data: memoryview) -> int:
        if len(data) < 3:
            raise OSError(number, os.strerror(number))
        return real(fd, data[:2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(Refused) as caught:
            storage.write(f"{tmp_path}/f", b"abcde")
    assert caught.value.code == "DISK_FULL"
    assert list(tmp_path.iterdir()) == []
    storage.write(f"{tmp_path}/f", b"abcde")
    storage.flush()
    assert storage.read(f"{tmp_path}/f") == b"abcde"


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, "DISK_ERROR"), (errno.ENOSPC, "DISK_FULL")])
def test_a_failed_sync_is_never_forgotten(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """A full disk may show only here: space is given late."""

    def broken(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))

    storage.write(f"{tmp_path}/f", b"abc")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(Refused) as caught:
            storage.flush()
    assert caught.value.code == code
    # The kernel would say yes now, having dropped the page.
    with pytest.raises(Refused):
        storage.flush()


def test_a_deleted_file_or_folder_does_not_stop_the_flush(storage: LocalStorage, tmp_path: Path) -> None:
    storage.write(f"{tmp_path}/a/1", b"1")
    storage.write(f"{tmp_path}/b/2", b"2")
    storage.delete(f"{tmp_path}/a/1")
    (tmp_path / "a").rmdir()
    storage.flush()
    storage.write(f"{tmp_path}/a/3", b"3")
    storage.flush()
    assert storage.read(f"{tmp_path}/a/3") == b"3"


def test_a_file_where_a_folder_should_be(storage: LocalStorage, tmp_path: Path) -> None:
    storage.write(f"{tmp_path}/f", b"")
    with pytest.raises((Corrupt, Refused)):
        storage.write(f"{tmp_path}/f/g", b"")
