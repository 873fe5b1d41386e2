"""Iceberg types with parts, for property tests: any type, any value of it, and when two values are the same."""

import decimal
import struct
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from icelake.model.types import IcebergType, ListType, MapType, Primitive, StructType

INT64 = st.integers(-(2**63), 2**63 - 1)
PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": INT64,
    "float": st.floats(width=32),
    "double": st.floats(),
    "decimal(9,2)": st.integers(-(10**9) + 1, 10**9 - 1).map(lambda n: Decimal(n).scaleb(-2)),
    "decimal(38,5)": st.integers(-(10**38) + 1, 10**38 - 1).map(lambda n: Decimal(n).scaleb(-5, decimal.Context(prec=60))),
    "string": st.text(max_size=20),
    "binary": st.binary(max_size=20),
    "date": st.integers(-(2**31), 2**31 - 1),
    "time": st.integers(0, 86_400_000_000 - 1),
    "timestamp": INT64,
    "timestamptz": INT64,
    "uuid": st.binary(min_size=16, max_size=16),
}
"""Iceberg type -> its values as Arrow takes them; times are counts."""

_NAMES = st.text(st.sampled_from("ab .\"'é"), min_size=1, max_size=4)


def _around(inner: st.SearchStrategy[IcebergType]) -> st.SearchStrategy[IcebergType]:
    fields = st.lists(st.tuples(_NAMES, inner), min_size=1, max_size=3, unique_by=lambda field: field[0].lower())
    return inner.map(ListType) | st.builds(MapType, inner, inner) | fields.map(lambda parts: StructType(tuple(parts)))


TYPES: st.SearchStrategy[IcebergType] = st.recursive(st.sampled_from(sorted(PRIMITIVES)).map(Primitive), _around, max_leaves=5)
"""Any type, nested or not."""


def values(kind: IcebergType) -> st.SearchStrategy[Any]:
    """Any value of the type, null too, as Arrow takes it."""
    match kind:
        case ListType(element):
            some: st.SearchStrategy[Any] = st.lists(values(element), max_size=3)
        case MapType(key, value):
            entries = st.tuples(values(key).filter(lambda k: k is not None), values(value))
            some = st.lists(entries, max_size=3, unique_by=lambda entry: repr(same(entry[0], key)))
        case StructType(fields):
            some = st.fixed_dictionaries({name: values(part) for name, part in fields})
        case Primitive(name):
            some = PRIMITIVES[name]
    return st.none() | some


def same(value: Any, kind: IcebergType) -> Any:
    """Equal for two values just if they are the same value: floats by their bits, maps by what is in them."""
    if value is None:
        return None
    match kind:
        case ListType(element):
            return [same(part, element) for part in value]
        case MapType(key, inner):
            return sorted(((same(k, key), same(v, inner)) for k, v in value), key=repr)
        case StructType(fields):
            return [same(value[name], part) for name, part in fields]
        case Primitive("float" | "double"):
            return "nan" if value != value else struct.pack("<d", value)
        case Primitive():
            return value
