"""``Table.open`` over manifest lists and manifests of somebody else, and ``expire``, which reads them in its own way.

The first byte says what the rest is, and of which format version the table is (its lowest bit): a file of either kind; the records of
one, as they follow our header; or, before a zero byte, the schema a file says it was written with, and behind it the records.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from icelake.errors import IcelakeError
from icelake.model.layout import Layout, PartitionField
from icelake.ports import LoadedTable
from icelake.tables import expire, manifests, table
from icelake.tables.manifests import _encode_container, codec_of, decode_manifest, decode_manifest_list
from icelake.tables.table import Table
from tests.unit.tables.mirror import MemoryStorage, Mirror, relation

WATCHED = (manifests, table, expire)
_LIST, _MANIFEST, _DELETES = range(3)
_SHAPE: Final = relation(("id", "long"), ("day", "date"), ("price", "decimal(12,2)"), ("text", "string"))


@dataclass(frozen=True, slots=True)
class _Lake:
    """A table with a manifest of data and one of deletes. ``paths``: of the manifest list and of those."""

    mirror: Mirror
    loaded: LoadedTable
    paths: tuple[str, str, str]


class _Replaced:
    """A storage in which one file is another."""

    def __init__(self, storage: MemoryStorage, path: str, data: bytes) -> None:
        self._storage = storage
        self._path = path
        self._data = data

    def read(self, location: str, offset: int = 0, length: int | None = None) -> bytes:
        # Whole, whatever the manifest list says of its length: what is wrong with a length is found in no other way.
        return self._data if location == self._path else self._storage.read(location, offset, length)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


@cache
def _lake(version: int) -> _Lake:
    layout = Layout((PartitionField("id", "bucket", 2), PartitionField("price")), (), version)
    mirror = Mirror(_SHAPE, layout=layout)
    mirror.commit([(n, None, None, f"row {n}") for n in range(6)])
    mirror.commit([], [1, 2])
    loaded = mirror.loaded()
    opened = mirror.reopen()
    content = {manifest.content: manifest.path for manifest in opened.manifests}
    head = loaded.snapshot(loaded.head)
    assert head is not None
    return _Lake(mirror, loaded, (head["manifest-list"], content[0], content[1]))


def run(data: bytes) -> None:
    kind, rest = (data or b"\0")[0], data[1:]
    lake = _lake(2 + (kind & 1))
    which = (kind >> 1) % 3
    path = lake.paths[which]
    ours = lake.mirror.storage.files[path]
    way = (kind >> 3) % 3
    if way == 1:
        header, _ = (decode_manifest if which else decode_manifest_list)(ours, path)
        rest = _encode_container(_schema(ours), header, [rest[1:]] * 1 if rest else [])
        rest = _with_count(rest, data[1] if len(data) > 1 else 0)
    elif way == 2:
        header, _ = (decode_manifest if which else decode_manifest_list)(ours, path)
        schema, _, body = rest.partition(b"\0")
        rest = _with_count(_encode_container(schema, header, [body[1:]]), body[0] if body else 0)
    storage: Any = _Replaced(lake.mirror.storage, path, rest)
    try:
        opened = Table.open(lake.loaded, storage, lake.mirror.clock, lake.mirror.chance)
        for file in opened.files.values():
            assert file.live_count <= file.record_count
            assert isinstance(file.path, str)
        for manifest in opened.manifests:
            for entry in manifest.entries:
                codec_of(opened.layout).decode_data_file(entry.data_file)
    except IcelakeError:
        pass
    snapshots = sorted(lake.loaded.metadata["snapshots"], key=lambda one: int(one["sequence-number"]))
    expire.expire(lake.loaded, [snapshots[0]["snapshot-id"]], storage)


def _schema(file: bytes) -> bytes:
    """The schema in a container of ours."""
    at = file.index(b"avro.schema") + len(b"avro.schema")
    size = shift = 0
    while True:
        size |= (file[at] & 127) << shift
        shift += 7
        at += 1
        if file[at - 1] < 128:
            return file[at : at + (size >> 1)]


def _with_count(file: bytes, count: int) -> bytes:
    """A container of one block, which says that it has this many records (below 64)."""
    sync = file[-16:]
    at = file.find(sync) + 16
    return file if at >= len(file) else file[:at] + bytes([(count & 63) << 1]) + file[at + 1 :]


def seeds() -> Iterator[bytes]:
    for kind in range(6):
        lake = _lake(2 + (kind & 1))
        file = lake.mirror.storage.files[lake.paths[kind >> 1]]
        sync = file[-16:]
        block = file[file.find(sync) + 16 : -16]
        size = 1 if block[1] < 128 else 2
        schema = _schema(file)
        count, body = block[0] >> 1, block[1 + size :]
        yield bytes([kind]) + file
        yield bytes([kind + 8, count]) + body
        yield bytes([kind + 16]) + schema + b"\0" + bytes([count]) + body
        yield bytes([kind + 16]) + _SMALL + b"\0" + bytes([1]) + body


_SMALL: Final = (
    b'{"type":"record","name":"r","fields":[{"name":"a","type":["null",{"type":"array","items":"long"}]},'
    b'{"name":"b","type":{"type":"map","values":{"type":"fixed","name":"f","size":4}}}]}'
)
