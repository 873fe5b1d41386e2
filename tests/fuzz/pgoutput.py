"""``Decoder.decode``: frames as a server sends them. The first byte says how many of them come in a first call, the rest in a second."""

import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from icelake.errors import IcelakeError
from icelake.model.relation import Relation, TableId
from icelake.ports import Chunk
from icelake.sources.postgres import kernels, pgoutput, values
from icelake.sources.postgres.pgoutput import Decoder, Raw, RelationMessage, replayed
from tests.fuzz.tables import TABLES
from tests.unit.sources.postgres.wire import UNSENT, begin, commit, delete, frame, insert, relation_message, truncate, update

WATCHED = (pgoutput, values, kernels)
_REAL: Final = Path(__file__).parent / "real" / "pgoutput"
"""What a PostgreSQL sent (``capture.py``)."""


def known(message: RelationMessage) -> Relation | Raw:
    """The table a message means, by its name."""
    found = TABLES.get(message.name)
    if found is None:
        return Raw(TableId(message.schema, message.name), None)
    told = {column.name: column.type_oid for column in message.columns}
    columns = tuple(column if column.type_oid else replace(column, type_oid=told.get(column.name, 0)) for column in found.columns)
    return replace(found, columns=columns)


def run(data: bytes) -> None:
    frames = list(_frames(data[1:]))
    first = b"".join(frames[: data[0]]) if data else b""
    rest = b"".join(frames)[len(first) :]
    decoder = Decoder(known)
    for part in (first, rest):
        was = decoder.open
        try:
            chunk = decoder.decode(part)
        except IcelakeError:
            # The decoder is as it was before the call.
            assert decoder.open == was
            assert decoder.decode(b"").open == was
            raise
        _look(chunk)


def _look(chunk: Chunk) -> None:
    for change in chunk.changes:
        for batch in (change.new, change.old_key, change.old):
            if batch is not None:
                batch.validate(full=True)
                assert batch.num_rows == len(change.op) or not batch.num_columns
        assert change.place is not None
        place = change.place()
        assert len(place) == len(change.op)
        assert int(place.min()) >= 1
        for name, unsent in change.unchanged.items():
            assert change.new.column(name).is_null().to_numpy(zero_copy_only=False)[unsent].all()
    for raw in chunk.raw:
        messages: list[Any] = raw.messages.to_pylist()
        lsn = [int(number) for number in raw.commit_lsn]
        nothing = [0] * len(lsn)
        # What was kept can be read again, one transaction for each run of one LSN.
        frames = replayed(lsn, nothing, nothing, [raw.relation] * len(lsn), messages)
        again = Decoder(known).decode(frames)
        (kept,) = again.raw
        assert kept.messages.to_pylist() == messages
        assert np.array_equal(kept.commit_lsn, raw.commit_lsn)


def _frames(data: bytes) -> Iterator[bytes]:
    """Frames with their lengths; what is no frame is one, too."""
    at = 0
    while at < len(data):
        size = 4 + int.from_bytes(data[at : at + 4], "little")
        yield data[at : at + size]
        at += size


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    """libFuzzer's mutations of one message or one value, lengths made right again; of the order of messages; or of anything."""
    import atheris

    chance = random.Random(seed)
    way = chance.random()
    frames = list(_frames(data[1:]))
    if way < 0.2 or not frames:
        return bytes(atheris.Mutate(data, largest))
    at = chance.randrange(len(frames))
    message = frames[at][4:]
    if way < 0.55:
        frames[at] = frame(bytes(atheris.Mutate(message, len(message) + 64)))
    elif way < 0.85:
        frames[at] = frame(_other_value(message, chance))
    elif way < 0.9:
        del frames[at]
    elif way < 0.95:
        frames.insert(chance.randrange(len(frames) + 1), frames[at])
    else:
        frames.insert(chance.randrange(len(frames) + 1), frame(chance.choice(_MESSAGES)))
    first = data[0] if chance.random() < 0.9 else chance.randrange(len(frames) + 2) & 255
    return (bytes([first]) + b"".join(frames))[:largest]


def _other_value(message: bytes, chance: random.Random) -> bytes:
    """The message with another text in one of its values."""
    import atheris

    if message[:1] not in (b"I", b"U", b"D"):
        return bytes(atheris.Mutate(message, len(message) + 16))
    places = []
    at = 6
    while at + 2 <= len(message):
        (columns,) = struct.unpack_from("!H", message, at)
        at += 2
        for _ in range(columns):
            if message[at : at + 1] == b"t" and at + 5 <= len(message):
                (size,) = struct.unpack_from("!I", message, at + 1)
                at += 4 + size
                if at < len(message):
                    places.append((at - size - 3, size))
            at += 1
            if at >= len(message):
                break
        at += 1
    if not places:
        return bytes(atheris.Mutate(message, len(message) + 16))
    where, size = chance.choice(places)
    text = bytes(atheris.Mutate(message[where + 4 : where + 4 + size], size + 16))
    return message[:where] + struct.pack("!I", len(text)) + text + message[where + 4 + size :]


def seeds() -> Iterator[bytes]:
    yield b"\x00"
    for file in sorted(_REAL.iterdir()):
        yield b"\x02" + file.read_bytes()
    yield from (bytes([first]) + frame(begin(9), *messages, commit(9, 10)) for first, messages in ((0, _written()), (9, _written())))


def _written() -> Iterable[bytes]:
    """Messages of what a server cannot be made to send at once."""
    short = (1, "one", "1.25")
    for name in ("appended", "two_keys", "grown", "leaves"):
        table = TABLES[name]
        yield relation_message(replace(table, columns=table.sent[:3]))
        yield insert(table.oid, short)
    yield update(5, (2, UNSENT, None), key=(1, "one", None))
    yield update(6, (1, UNSENT, "7"))
    yield delete(7, key=(1, None, None))
    yield relation_message(replace(TABLES["appended"], name="other", oid=99))
    yield insert(99, short)
    yield truncate(7, 99)


_MESSAGES: Final = (*_written(), begin(11), commit(11, 12), begin(9), commit(9, 10))
