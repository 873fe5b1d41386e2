"""Keys of Arrow rows as something Python orders the way PostgreSQL orders them, and as PostgreSQL's text.

``sortable`` gives for a row what ``sources.postgres.types.order`` gives for the text of its key. Where PostgreSQL's order of the key
is not known here (``Relation.key_is_ordered`` is false), both give the text, which tells keys apart and means no more than that; the
leaves of a partitioned table have an order in any case.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from icelake.model.load import Key
from icelake.model.relation import TABLEOID, Column, Relation
from icelake.sources.postgres.values import to_text


def sortable(keys: pa.RecordBatch, relation: Relation) -> list[tuple[Any, ...]]:
    """One tuple a row; of a row without a key, nulls. Times become their integers, which reach beyond Python's datetime."""
    if not relation.key_is_ordered:
        texts: list[Sequence[Any]] = [
            values.to_pylist() if column.attnum == TABLEOID else to_text(values, column)
            for values, column in zip(keys.columns, relation.key_columns, strict=True)
        ]
        return list(zip(*texts, strict=True))
    columns = []
    for column in keys.columns:
        if pa.types.is_timestamp(column.type) or pa.types.is_time64(column.type):
            column = column.cast(pa.int64())
        elif pa.types.is_date32(column.type):
            column = column.cast(pa.int32())
        elif pa.types.is_string(column.type):
            column = column.cast(pa.binary())  # "C" collation: by the bytes of the UTF-8 text
        columns.append(column.to_pylist())
    return list(zip(*columns, strict=True))


def key_text(keys: pa.RecordBatch, columns: Sequence[Column]) -> list[Key]:
    """PostgreSQL's text of each key: a literal the source reads back as the same value. Keys have no nulls."""
    texts = [[text or "" for text in to_text(values, column)] for values, column in zip(keys.columns, columns, strict=True)]
    return list(zip(*texts, strict=True))
