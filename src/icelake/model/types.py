"""Iceberg types as text and as values: what a column is in the lake.

The text is the spec's own for primitives, and ``list<T>``, ``map<K, V>``, ``struct<name: T, name: T>`` around them; a field's
name that is no plain identifier is written as a JSON string. There are no field ids in it: those belong to a table's schema.
Everything nested is optional, except a map's keys. ``parse(str(t)) == t`` and ``str(parse(text)) == text``.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache

_PRIMITIVES = frozenset(
    {
        "boolean",
        "int",
        "long",
        "float",
        "double",
        "string",
        "binary",
        "date",
        "time",
        "timestamp",
        "timestamptz",
        "uuid",
    }
)
_DECIMAL = re.compile(r"decimal\((\d{1,2}),(\d{1,2})\)")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(r'\s*(decimal\(\d+,\d+\)|[A-Za-z_][A-Za-z0-9_]*|"(?:[^"\\]|\\.)*"|[<>:,])')


@dataclass(frozen=True, slots=True)
class Primitive:
    """A type without parts, as the spec spells it: ``long``, ``decimal(12,2)``."""

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def decimal(self) -> tuple[int, int] | None:
        """(precision, scale) of a decimal, None for anything else."""
        match = _DECIMAL.fullmatch(self.name)
        return None if match is None else (int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class ListType:
    element: "IcebergType"

    def __str__(self) -> str:
        return f"list<{self.element}>"


@dataclass(frozen=True, slots=True)
class MapType:
    key: "IcebergType"
    value: "IcebergType"

    def __str__(self) -> str:
        return f"map<{self.key}, {self.value}>"


@dataclass(frozen=True, slots=True)
class StructType:
    fields: tuple[tuple[str, "IcebergType"], ...]
    """(name, type) in order; at least one."""

    def __str__(self) -> str:
        return f"struct<{', '.join(f'{_written(name)}: {kind}' for name, kind in self.fields)}>"


IcebergType = Primitive | ListType | MapType | StructType


def holds(kind: IcebergType, primitive: str) -> bool:
    """Whether the type is that primitive or has it inside."""
    match kind:
        case Primitive(name):
            return name == primitive
        case ListType(element):
            return holds(element, primitive)
        case MapType(key, value):
            return holds(key, primitive) or holds(value, primitive)
        case StructType(fields):
            return any(holds(part, primitive) for _, part in fields)


@lru_cache(maxsize=4096)
def parse(text: str) -> IcebergType:
    """The type a text names. Raises ValueError for anything that is not one."""
    parser = _Parser(text)
    found = parser.type()
    if parser.peek() is not None:
        raise parser.wrong()
    return found


def _written(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[str] = []
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None:
                raise self.wrong()
            self._tokens.append(match[1])
            at = match.end()
        self._tokens.reverse()

    def wrong(self) -> ValueError:
        return ValueError(f"not an Iceberg type: {self._text!r}")

    def peek(self) -> str | None:
        return self._tokens[-1] if self._tokens else None

    def _next(self, expected: str | None = None) -> str:
        if not self._tokens or (expected is not None and self._tokens[-1] != expected):
            raise self.wrong()
        return self._tokens.pop()

    def type(self) -> IcebergType:
        word = self._next()
        if self.peek() != "<":
            primitive = Primitive(word)
            declared = primitive.decimal
            if word not in _PRIMITIVES and (declared is None or not 1 <= declared[0] <= 38 or declared[1] > declared[0]):
                raise self.wrong()
            return primitive
        self._next("<")
        found: IcebergType
        if word == "list":
            found = ListType(self.type())
        elif word == "map":
            key = self.type()
            self._next(",")
            found = MapType(key, self.type())
        elif word == "struct":
            fields = [self._field()]
            while self.peek() == ",":
                self._next(",")
                fields.append(self._field())
            if len({name for name, _ in fields}) != len(fields):
                raise self.wrong()
            found = StructType(tuple(fields))
        else:
            raise self.wrong()
        self._next(">")
        return found

    def _field(self) -> tuple[str, IcebergType]:
        word = self._next()
        if word[0] == '"':
            try:
                word = str(json.loads(word))
            except ValueError:
                raise self.wrong() from None
        elif not _PLAIN.fullmatch(word):
            raise self.wrong()
        self._next(":")
        return word, self.type()
