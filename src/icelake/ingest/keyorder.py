"""Keys of Arrow rows as something Python orders the way PostgreSQL orders them, and as PostgreSQL's text.

``sortable`` gives for a row what ``sources.postgres.types.order`` gives for the text of its key. Only key types for which
``Relation.key_is_ordered`` can be true need an order; other keys are never compared, because their tables are loaded in one range.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from icelake.model.load import Key
from icelake.model.relation import Column
from icelake.sources.postgres.values import to_text


def sortable(keys: pa.RecordBatch) -> list[tuple[Any, ...]]:
    """One tuple a row. Times become their integers, which also reach beyond what Python's datetime can hold."""
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
