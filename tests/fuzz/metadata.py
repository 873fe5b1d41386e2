"""Table metadata as a catalog holds it: everything that is made of a document, and our own commits to it.

The first byte chooses a document our writers made; the rest is another in its place, or, if it begins with ``[``, a list of changes to
ours: each a path (of keys and numbers) and the value put there.
"""

import random
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any, Final

import orjson

from icelake.catalog import metadata as table_metadata
from icelake.errors import Corrupt
from icelake.model import layout as model_layout
from icelake.model import marker, types
from icelake.model.layout import Layout, PartitionField, SortField
from icelake.model.marker import Marker
from icelake.model.relation import TableId
from icelake.ports import Json, LoadedTable
from icelake.tables import layout, schema, table
from icelake.tables.expire import expire
from icelake.tables.schema import evolve
from icelake.tables.table import Table
from tests.unit.tables.mirror import MemoryStorage, Mirror, SeededChance, TestClock, relation

WATCHED = (table_metadata, layout, schema, table, types, marker, model_layout)
_ID: Final = TableId("public", "t")
_SHAPE: Final = relation(
    ("id", "long"),
    ("day", "date"),
    ("price", "decimal(12,2)"),
    ("tags", "list<string>"),
    ("address", "struct<street: string, no: int>"),
    ("more", "map<string, string>"),
)
_LAST: Final = (1 << 62) - 100
"""Counters end there."""
_MARKER: Final = Marker("s", "7", 1, "slot", 99, "a")


@cache
def _documents() -> tuple[tuple[bytes, MemoryStorage], ...]:
    made = []
    for layout_ in (
        Layout(),
        Layout((PartitionField("day", "month"), PartitionField("id", "bucket", 2)), (SortField("price"),)),
        Layout((), (), 2),
    ):
        mirror = Mirror(_SHAPE, layout=layout_)
        rows = [(n, None, None, None, None, None) for n in range(3)]
        for some in (rows[:2], rows[2:]):
            delta = mirror.table.delta()
            delta.append(_batch(some), None)
            mirror.send(delta, _MARKER.summary())
        grown = relation(*((c.name, c.iceberg) for c in _SHAPE.columns), ("later", "uuid"))
        mirror.evolve(grown, lambda row: row)
        made.append((orjson.dumps(mirror.loaded().metadata), mirror.storage))
    return tuple(made)


def _batch(rows: list[tuple[Any, ...]]) -> Any:
    from tests.unit.tables.mirror import batch

    return batch(_SHAPE, rows)


def run(data: bytes) -> None:
    documents = _documents()
    ours, storage = documents[(data or b"\0")[0] % len(documents)]
    text = data[1:]
    if text[:1] == b"[":
        changed = _changed(ours, text)
        if changed is None:
            return
        text = changed
    try:
        document = table_metadata.read(text)
    except ValueError:
        return  # as it says; the catalog makes Corrupt of it
    loaded = LoadedTable(_ID, document, "/m.json")
    clock, chance = TestClock(), SeededChance(0)
    opened = Table.open(loaded, storage, clock, chance)
    opened.marker()
    for content in (0, 1):
        opened.header(content)
    evolve(document, _SHAPE)
    assert loaded.snapshot(loaded.head) is not None or loaded.head is None
    table_metadata.check(document, loaded.unmoved())
    heads = {ref["snapshot-id"] for ref in document["refs"].values()}
    drop = [one["snapshot-id"] for one in document["snapshots"] if one["snapshot-id"] not in heads]
    change, _ = expire(loaded, drop, storage)
    after = table_metadata.apply(document, change.updates, 1_800_000_000_000)
    if not opened.files or max(document["last-sequence-number"], document.get("next-row-id", 0)) >= _LAST:
        return
    delta = opened.delta()
    delta.truncate()
    change = delta.prepare({"test": "1"}, {"a": "b"})
    after = table_metadata.apply(after, change.updates, 1_800_000_000_000)
    after, _ = table_metadata.with_history(document, "/m.json", after)
    assert table_metadata.read(orjson.dumps(after)) == after


def _changed(ours: bytes, changes: bytes) -> bytes | None:
    document = orjson.loads(ours)
    try:
        listed = orjson.loads(changes)
        for path, value in listed:
            inner = document
            for step in path[:-1]:
                inner = inner[step]
            if value == "delete":
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
        return orjson.dumps(document)
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    """Another change in the list of changes, or what libFuzzer does."""
    import atheris

    chance = random.Random(seed)
    if chance.random() < 0.3 or data[1:2] != b"[":
        return bytes(atheris.Mutate(data, largest))
    try:
        listed = orjson.loads(data[1:])
        path = _somewhere(orjson.loads(_documents()[data[0] % 3][0]), chance)
        if listed and chance.random() < 0.3:
            del listed[chance.randrange(len(listed))]
        listed.append([path, chance.choice(_VALUES)])
        made: bytes = data[:1] + orjson.dumps(listed[-6:])
    except (ValueError, TypeError):
        return bytes(atheris.Mutate(data, largest))
    return made if len(made) <= largest else data


def _somewhere(document: Any, chance: random.Random) -> list[Any]:
    path: list[Any] = []
    while document and isinstance(document, (dict, list)) and (not path or chance.random() < 0.8):
        step = chance.choice(list(document) if isinstance(document, dict) else list(range(len(document))))
        path.append(step)
        document = document[step]
    return path


_VALUES: Final[tuple[Any, ...]] = (
    None,
    "delete",
    True,
    -1,
    0,
    1,
    2,
    3,
    1000,
    1 << 31,
    (1 << 63) - 1,
    1e300,
    "",
    "main",
    "x",
    "null",
    "-1",
    "decimal(99,2)",
    "binary",
    "date",
    "bucket[0]",
    "void",
    [],
    {},
    [[]],
    {"type": "list", "element-id": 1, "element": "int", "element-required": False},
    {"type": "struct", "fields": []},
    {"type": "map", "key-id": 1, "key": "x", "value-id": 2, "value": {}, "value-required": False},
)


def _nest(depth: int) -> Any:
    kind: Any = "int"
    for _ in range(depth):
        kind = {"type": "list", "element-id": 99, "element": kind, "element-required": False}
    return kind


def seeds() -> Iterator[bytes]:
    for number, (text, _) in enumerate(_documents()):
        document: Json = deepcopy(orjson.loads(text))
        yield bytes([number]) + b"[]"
        yield bytes([number]) + text[:4095]
        yield bytes([number]) + orjson.dumps([[["schemas", 0, "fields", 1, "type"], _nest(20)]])
        yield bytes([number]) + orjson.dumps([[["refs"], {}], [["snapshots"], []]])
        small = {key: value for key, value in document.items() if key not in ("snapshots", "properties")}
        yield bytes([number]) + orjson.dumps({**small, "snapshots": [], "refs": {}, "properties": {}})[:4095]


__all__ = ["WATCHED", "Corrupt", "mutate", "run", "seeds"]
