"""What the kernels of ``tables`` promise, in plain Python. A hash is two 64-bit numbers, an index a dict of hashes."""

import struct
from collections.abc import Iterable, Sequence

from icelake.tables import bag_index, key_index, keys, transforms
from tests.twins.ways import part, twin

U32, U64 = 2**32, 2**64
Hash = tuple[int, int]
Row = tuple[int, int]
"""File number in the upper half and position, and row id."""

# ------------------------------------------------------------------------------------------------------------------- hashes


@twin(keys.home_slot)
def home_slot(size: int, k0: int, k1: int, a: int, b: int) -> int:
    x = a ^ (b * 0x9E3779B97F4A7C15) % U64 ^ k0
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD % U64
    x ^= x >> 33
    x = (x + k1) * 0xC4CEB9FE1A85EC53 % U64
    return (x >> 32) * size >> 32


@twin(keys._begin)
def begun(seed: tuple[int, int]) -> list[int]:
    """SipHash's state before the first word."""
    k0, k1 = seed
    return [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]


def siphash(data: bytes, seed: tuple[int, int]) -> Hash:
    """SipHash-2-4-128, from its paper; ``tests/unit/tables/test_keys.py`` has the authors' test vectors."""

    def rotate(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) % U64

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) % U64
            v[1] = rotate(v[1], 13) ^ v[0]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[3]) % U64
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) % U64
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) % U64
            v[1] = rotate(v[1], 17) ^ v[2]
            v[2] = rotate(v[2], 32)

    v = begun(seed)
    tail = data[len(data) // 8 * 8 :]
    last = (len(data) & 255) << 56 | int.from_bytes(tail, "little")
    for word in [*struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8]), last]:
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xEE
    rounds(4)
    first = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    rounds(4)
    return first, v[0] ^ v[1] ^ v[2] ^ v[3]


# How one value is written before it is hashed; None is a null.


@twin(keys._plain)
def plain(value: int | None) -> Hash:
    """A single integer is its own hash."""
    return (0, 1) if value is None else (value % U64, 0)


@twin(keys._absorb_word)
def word(value: int | None) -> bytes:
    return struct.pack("<Q", 0) if value is None else struct.pack("<Qq", 1, value)


@twin(keys._absorb_wide)
def wide(value: bytes | None) -> bytes:
    """16 bytes."""
    return struct.pack("<Q", 0) if value is None else struct.pack("<Q", 1) + value


@twin(keys._absorb_bytes)
def text(value: bytes | None) -> bytes:
    return struct.pack("<Q", 0) if value is None else struct.pack("<Q", 2 + len(value)) + value + bytes(-len(value) % 8)


@twin(keys._absorb_list)
def listed(value: Sequence[Hash] | None) -> bytes:
    """Hashes of the elements."""
    return (
        struct.pack("<Q", 0) if value is None else struct.pack("<Q", 2 + len(value)) + b"".join(struct.pack("<QQ", *one) for one in value)
    )


@twin(keys._finish)
def hashed(values: Iterable[bytes], seed: tuple[int, int]) -> Hash:
    """Of all that was absorbed."""
    return siphash(b"".join(values), seed)


@twin(keys._null)
def null(bitmap: bytes, bit: int) -> bool:
    """Least significant bit first; without a bitmap nothing is null."""
    return bool(bitmap) and not int.from_bytes(bitmap, "little") >> bit & 1


part(keys._finish, keys._absorb, keys._round)


@twin(transforms._murmur3)
def murmur3(data: bytes) -> int:
    """MurmurHash3 x86 32-bit with seed 0, as a signed number (Iceberg specification, appendix B)."""

    def rotate(x: int, by: int) -> int:
        return (x << by | x >> (32 - by)) % U32

    h = 0
    for at in range(0, len(data), 4):
        block = data[at : at + 4]
        h ^= rotate(int.from_bytes(block, "little") * 0xCC9E2D51 % U32, 15) * 0x1B873593 % U32
        if len(block) == 4:
            h = (rotate(h, 13) * 5 + 0xE6546B64) % U32
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B % U32
    h = (h ^ h >> 13) * 0xC2B2AE35 % U32
    h ^= h >> 16
    return h - U32 if h >= U32 // 2 else h


part(transforms._murmur3, transforms._mixed)


# ---------------------------------------------------------------------------------------------------------------- key index


@twin(key_index._find)
def find(slots: Sequence[Hash | None], home: int, key: Hash) -> int:
    """From its home on, round the end: where the key is; or -1 - the first free place."""
    for at in [*range(home, len(slots)), *range(home)]:
        if slots[at] in (key, None):
            return at if slots[at] == key else -1 - at
    raise AssertionError("a table always has a free place")


@twin(key_index._free)
def free(index: dict[Hash, Row], key: Hash) -> None:
    del index[key]


@twin(key_index._lookup)
def lookup(index: dict[Hash, Row], wanted: Iterable[Hash]) -> list[tuple[int, int, int]]:
    """(file number, position, row id), or (-1, 0, -1)."""
    found = (index.get(key) for key in wanted)
    return [(-1, 0, -1) if row is None else (row[0] >> 32, row[0] % U32, row[1] if row[1] < U64 // 2 else row[1] - U64) for row in found]


@twin(key_index._put)
def put(index: dict[Hash, Row], rows: Iterable[tuple[Hash, Row]]) -> list[Row | None]:
    """What was there before each."""
    before = []
    for key, row in rows:
        before.append(index.get(key))
        index[key] = row
    return before


@twin(key_index._remove)
def remove(index: dict[Hash, Row], gone: Iterable[Hash]) -> list[Row | None]:
    return [index.pop(key, None) for key in gone]


@twin(key_index._undo)
def undo(index: dict[Hash, Row], changed: Sequence[Hash], before: Sequence[Row | None]) -> None:
    for key, row in reversed(list(zip(changed, before, strict=True))):
        index.pop(key, None)
        if row is not None:
            index[key] = row


@twin(key_index._insert)
def insert(index: dict[Hash, Row], rows: Iterable[tuple[Hash, Row]]) -> tuple[int, int]:
    """(the first whose key is there, where it is), and no further; or (-1, 0)."""
    for at, (key, row) in enumerate(rows):
        if key in index:
            return at, index[key][0]
        index[key] = row
    return -1, 0


@twin(key_index._copy)
@twin(key_index._dump)
@twin(key_index._rename)
def renumbered(index: dict[Hash, Row], numbers: Sequence[int]) -> dict[Hash, Row] | None:
    """Other numbers for the files, -1: left out; None: a file has no number."""
    if any(row[0] >> 32 >= len(numbers) for row in index.values()):
        return None
    return {key: (numbers[row[0] >> 32] << 32 | row[0] % U32, row[1]) for key, row in index.items() if numbers[row[0] >> 32] >= 0}


# ---------------------------------------------------------------------------------------------------------------- bag index


@twin(bag_index._push)
def push(bag: dict[Hash, list[int]], rows: Iterable[tuple[Hash, int]]) -> int:
    """How many hashes are new; one that lost all its rows is not."""
    before = len(bag)
    for key, node in rows:
        bag.setdefault(key, []).append(node)
    return len(bag) - before


@twin(bag_index._pop)
def pop(bag: dict[Hash, list[int]], wanted: Iterable[Hash]) -> list[int]:
    """The node that came last to each; -1: there is none."""
    return [bag[key].pop() if bag.get(key) else -1 for key in wanted]


@twin(bag_index._copy)
def kept(bag: dict[Hash, list[int]]) -> dict[Hash, list[int]]:
    return {key: nodes for key, nodes in bag.items() if nodes}


part(bag_index._push, bag_index._find)
