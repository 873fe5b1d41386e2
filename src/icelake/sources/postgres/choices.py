"""What a project chooses for columns over the type contract, applied to a relation; and what a mirror once chose.

Promises: a choice is carried out or refused by name with the choices there are, never ignored. A mirror's types are fixed when it is
made: ``as_held`` gives a relation as described now the choices of the mirror, whatever the project says by then.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from icelake.model.relation import Choice, Column, Refusal, Relation
from icelake.model.types import parse
from icelake.sources.postgres.types import Leaf, altered, can_be_beyond, key_is_ordered, type_of

OutOfRange = Literal["error", "null", "text"]


class _Nonsense(Exception):
    """``why`` a choice cannot be, and how to ``fix`` it."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why, fix)
        self.why = why
        self.fix = fix


def choose(relation: Relation, out_of_range: OutOfRange, columns: Mapping[str, Choice], *, exact: bool = True) -> Relation | Refusal:
    """The relation with these choices, as a new mirror is to hold it.

    ``out_of_range`` is for the columns that are not in ``columns`` or do not say, and are no key. ``exact``: the choices are this
    table's own, so what they name must be there and must matter; else they are those of a pattern.
    """
    try:
        own = [column.name for column in relation.columns if column.attnum > 0]
        if exact and (unknown := sorted(columns.keys() - set(own))):
            raise _Nonsense(f"it has no column {', '.join(unknown)}", f"choose of: {', '.join(own)}")
        chosen = tuple(
            _choose(column, column.name in relation.key, out_of_range, columns.get(column.name), exact) if column.attnum > 0 else column
            for column in relation.columns
        )
    except _Nonsense as nonsense:
        return Refusal(relation.schema, relation.name, "COLUMN_CHOICE", nonsense.why, nonsense.fix)
    made = replace(relation, columns=chosen)
    if made.key_is_ordered:
        # What now is text has its source's order no longer; collations have been looked at already.
        made = replace(made, key_is_ordered=key_is_ordered(made.key_columns, made.key))
    return made


def _choose(column: Column, key: bool, out_of_range: OutOfRange, choice: Choice | None, exact: bool) -> Column:
    own = choice or Choice()
    policy = own.out_of_range or ("error" if key else out_of_range)
    iceberg = own.type or column.iceberg
    if iceberg.startswith("decimal") and own.type:
        source = type_of(column)
        if not isinstance(source, Leaf) or source.name != "numeric":
            raise _Nonsense(
                f"column {column.name} is {column.pg_type}, which cannot be {own.type}",
                f'only numeric columns can be decimals: leave out its type ({column.iceberg} then), or choose type = "string"',
            )
        if own.out_of_range == "text":
            raise _Nonsense(
                f"column {column.name} cannot be {own.type} and keep its text",
                'choose type = "string", or out_of_range = "error" or "null"',
            )
    if key and own.out_of_range == "null":
        raise _Nonsense(
            f"column {column.name} is part of the key, and a key is never null",
            'choose out_of_range = "error", or "text" (the column is a string then)',
        )
    beyond = can_be_beyond(type_of(column), parse(iceberg))
    if exact and not beyond and own.type is None and own.out_of_range in ("null", "text"):
        raise _Nonsense(
            f"every value of column {column.name} ({column.pg_type}) is one that {iceberg} can hold",
            'leave out its out_of_range; type = "string" makes it text',
        )
    if policy == "text" and beyond and own.type is None:
        return replace(column, iceberg="string")
    return replace(column, iceberg=iceberg, out_of_range="null" if policy == "null" and beyond else "error")


def as_held(now: Relation, held: Relation, *, resuming: bool = False) -> Relation:
    """A relation as described ``now``, with what the mirror ``held`` chose for columns whose type is still the same.

    ``resuming``: if the project says by now that values out of contract become null, they do.
    """
    known = {column.attnum: column for column in held.columns}
    return replace(now, columns=tuple(_as_held(column, known.get(column.attnum), resuming) for column in now.columns))


def _as_held(now: Column, held: Column | None, resuming: bool) -> Column:
    if held is None or (held.type_oid, held.typmod) != (now.type_oid, now.typmod):
        return now
    if altered(held, now):
        return now
    nulls = resuming and now.out_of_range == "null" and now.iceberg == held.iceberg
    policy = "null" if nulls else held.out_of_range
    # A type's name may have changed without the type, and what is kept as text does not mind what it is made of.
    return replace(now, iceberg=held.iceberg, out_of_range=policy, pg_type=held.pg_type, source=held.source)
