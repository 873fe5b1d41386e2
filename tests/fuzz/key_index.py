"""The key index's files. The first byte says what the rest is: pieces, parted by ``0xFF 0xFE 0xFD``.

Even: the base's JSON, its first part, then for each record of the log its JSON and its rows; blocks, lengths and checksums are made right
around them, for they keep nobody out who can write. Odd: the files themselves (base, part, log).
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa

from icelake.tables import key_index, keys
from icelake.tables.key_index import KeyIndex
from icelake.tables.keys import hash_keys

WATCHED = (key_index, keys)
_BETWEEN: Final = b"\xff\xfe\xfd"
_UUID: Final = "u"
_SEED: Final = (1, 2)
_KEYS: Final = pa.RecordBatch.from_pydict({"k": pa.array(range(8), pa.int64())})


class Files:
    """``IndexFiles`` in memory."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        return self.data.get(name)

    def replace(self, name: str, data: bytes) -> None:
        self.data[name] = data

    def append(self, name: str, data: bytes) -> None:
        self.data[name] += data


@dataclass
class _File:
    identity: tuple[str, str | None]
    first: int
    """Its keys are two of ``_KEYS``, from this one on."""


@dataclass
class _Table:
    snapshot_id: int | None = 5
    files: Mapping[int, _File] = field(default_factory=lambda: {7: _File(("/a", None), 0), 9: _File(("/b", "/b.puffin"), 2)})

    def read_keys(self, no: int, /) -> tuple[pa.RecordBatch, Any, Any]:
        return _KEYS.slice(self.files[no].first, 2), np.array([0, 1], np.int64), np.array([10, 11], np.int64)


def run(data: bytes) -> None:
    kind, pieces = (data or b"\0")[0], data[1:].split(_BETWEEN)
    files = Files()
    if kind & 1:
        files.data = dict(zip(("base", "part-0-0", "log-0", "log-1"), pieces, strict=False))
    else:
        _enclose(files, pieces)
    index = KeyIndex.load(files, _UUID, seed=_SEED)
    table = _Table()
    index.reconcile(table)
    # What it is now is right as far as its files said who is where; it goes on from there.
    hashes = hash_keys(_KEYS, index.seed)
    index.lookup(hashes)
    before = len(index)
    index.put(hashes[6:], 9, np.array([4, 5]), -1)
    index.remove(hashes[:1])
    index.rollback()
    assert len(index) == before
    index.put(hashes[6:], 9, np.array([4, 5]), -1)
    index.commit(6, {no: one.identity for no, one in table.files.items()})
    index.clear()
    index.rollback()
    found = index.lookup(hashes[6:])
    assert found[0].tolist() == [9, 9]
    assert found[1].tolist() == [4, 5]
    again = KeyIndex.load(files, _UUID)
    assert len(again) == len(index)


def _enclose(files: Files, pieces: list[bytes]) -> None:
    text, part = pieces[0], pieces[1] if len(pieces) > 1 else b""
    try:
        base = orjson.loads(text)
        base["parts"] = [[name, count, zlib.crc32(part)] for name, count, _ in base["parts"]]
        text = orjson.dumps(base)
        files.data |= {str(name): part for name, _, _ in base["parts"]}
    except (ValueError, KeyError, TypeError):
        pass
    log = key_index._LOG_MAGIC + key_index._digest(text)
    for head, rows in zip(pieces[2::2], pieces[3::2], strict=False):
        log += _block(key_index._COUNT.pack(len(head)) + head + rows)
    files.data |= {"base": key_index._BASE_MAGIC + _block(text), "log-0": log, "log-1": log}


def _block(data: bytes) -> bytes:
    return key_index._HEADER.pack(len(data), zlib.crc32(data)) + data


def seeds() -> Iterator[bytes]:
    files, table = Files(), _Table()
    index = KeyIndex.load(files, _UUID, seed=_SEED)
    index.reconcile(table)
    hashes = hash_keys(_KEYS, _SEED)
    side = 1 - index._side
    base = _opened(files.data["base"][len(key_index._BASE_MAGIC) :])
    part = files.data[f"part-{index._side}-0"]
    index.put(hashes[4:6], 9, np.array([2, 3]), -1)
    index.remove(hashes[:1])
    index.commit(6, {7: ("/a", "/a.puffin"), 9: ("/b", "/b.puffin"), 11: ("/c", None)})
    index.clear()
    index.commit(7, {})
    log = files.data[f"log-{1 - side}"]
    records = []
    at = len(key_index._LOG_MAGIC) + 16
    while at < len(log):
        block = _opened(log[at:])
        size = int.from_bytes(block[:4], "little")
        records += [block[4 : 4 + size], block[4 + size :]]
        at += 8 + len(block)
    yield b"\0" + _BETWEEN.join([base, part, *records])
    yield b"\0" + _BETWEEN.join([base, part])
    yield b"\1" + _BETWEEN.join([files.data["base"], part, log])


def _opened(block: bytes) -> bytes:
    size = int.from_bytes(block[:4], "little")
    return block[8 : 8 + size]
