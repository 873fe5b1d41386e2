"""What a project may choose for columns, what it may not, and that a mirror's choices outlive the project's."""

from dataclasses import replace
from typing import Any

import pytest

from icelake.model.relation import Choice, Column, Refusal, Relation
from icelake.sources.postgres.choices import as_held, choose
from icelake.sources.postgres.types import iceberg_type, key_is_ordered, load


def column(attnum: int, name: str, oid: int, source: str = "", typmod: int = -1) -> Column:
    made = Column(name, attnum, oid, typmod, f"type of {name}", "string", source=source)
    kinds = {20: "long", 25: "string", 1114: "timestamp", 1700: "string" if typmod < 0 else "decimal(10,2)"}
    return replace(made, iceberg=str(iceberg_type(load(source))) if source else kinds[oid])


TABLE = Relation(
    1,
    "public",
    "t",
    (
        column(1, "id", 20),
        column(2, "at", 1114),
        column(3, "amount", 1700),
        column(4, "price", 1700, typmod=(10 << 16 | 2) + 4),
        column(5, "note", 25),
        column(6, "days", 1182, '{"array":"date"}'),
        column(7, "words", 70000, '{"composite":[[1,"a","text"],[2,"b","int4"]]}'),
        column(8, "posted", 70001, '"numeric"'),
        column(9, "begun", 1114),
    ),
    ("id", "begun"),
)


def chosen(out_of_range: Any = "error", exact: bool = True, **columns: Choice) -> dict[str, tuple[str, str]]:
    found = choose(TABLE, out_of_range, columns, exact=exact)
    assert isinstance(found, Relation), found
    natural = {c.name: (c.iceberg, c.out_of_range) for c in TABLE.columns}
    return {c.name: (c.iceberg, c.out_of_range) for c in found.columns if natural[c.name] != (c.iceberg, c.out_of_range)}


def test_nothing_chosen_changes_nothing() -> None:
    assert chosen() == {}
    assert choose(TABLE, "error", {}) == TABLE


def test_a_table_s_policy_is_for_the_columns_it_matters_to_and_never_for_keys() -> None:
    assert chosen("null") == {"at": ("timestamp", "null"), "price": ("decimal(10,2)", "null"), "days": ("list<date>", "null")}
    assert chosen("text") == {"at": ("string", "error"), "price": ("string", "error"), "days": ("string", "error")}
    assert chosen("text", at=Choice(None, "error"), days=Choice(None, "null"), price=Choice("decimal(12,4)")) == {
        "days": ("list<date>", "null"),
        "price": ("decimal(12,4)", "error"),
    }


def test_types_of_columns() -> None:
    assert chosen(amount=Choice("decimal(20,4)"), posted=Choice("decimal(38,0)", "null"), words=Choice("string"), id=Choice("string")) == {
        "amount": ("decimal(20,4)", "error"),
        "posted": ("decimal(38,0)", "null"),
        "words": ("string", "error"),
        "id": ("string", "error"),
    }


def test_a_key_kept_as_text_has_no_order_here() -> None:
    found = choose(TABLE, "error", {"begun": Choice(None, "text")})
    assert isinstance(found, Relation)
    assert (TABLE.key_is_ordered, found.key_is_ordered) == (True, False)
    assert not key_is_ordered(found.key_columns, found.key)
    text = replace(TABLE, key=("id", "note"))
    found = choose(text, "null", {"note": Choice("string")})
    assert isinstance(found, Relation)
    assert found.key_is_ordered


@pytest.mark.parametrize(
    ("columns", "why", "fix"),
    [
        ({"nothing": Choice("string")}, "no column nothing", "choose of: id, at, amount"),
        ({"note": Choice("decimal(5,2)")}, "column note is type of note, which cannot be decimal(5,2)", 'type = "string"'),
        ({"days": Choice("decimal(5,2)")}, "cannot be decimal(5,2)", "only numeric columns"),
        ({"amount": Choice("decimal(5,2)", "text")}, "keep its text", 'out_of_range = "error" or "null"'),
        ({"begun": Choice(None, "null")}, "a key is never null", '"text"'),
        ({"note": Choice(None, "null")}, "one that string can hold", "leave out"),
        ({"id": Choice(None, "text")}, "one that long can hold", 'type = "string"'),
    ],
)
def test_nonsense(columns: dict[str, Choice], why: str, fix: str) -> None:
    found = choose(TABLE, "error", columns)
    assert isinstance(found, Refusal)
    assert (found.schema, found.name, found.code) == ("public", "t", "COLUMN_CHOICE")
    assert why in found.why
    assert fix in found.fix


def test_a_pattern_s_choices_need_not_fit_every_table() -> None:
    assert chosen(exact=False, nothing=Choice("string"), note=Choice(None, "null")) == {}
    assert isinstance(choose(TABLE, "error", {"note": Choice("decimal(5,2)")}, exact=False), Refusal)


def test_what_the_lake_holds_stays() -> None:
    held = choose(TABLE, "null", {"amount": Choice("decimal(20,4)"), "words": Choice("string")})
    assert isinstance(held, Relation)
    assert as_held(TABLE, held) == replace(held, key_is_ordered=TABLE.key_is_ordered)
    other = choose(TABLE, "text", {})
    assert isinstance(other, Relation)
    assert as_held(other, held) == held
    assert as_held(held, TABLE) == TABLE


def test_a_type_that_changed_is_not_hidden_by_what_the_lake_holds() -> None:
    held = choose(TABLE, "null", {"words": Choice(None, None)})
    assert isinstance(held, Relation)
    altered = '{"composite":[[1,"a","text"]]}'
    columns = tuple(
        replace(c, source=altered, iceberg="struct<a: string>") if c.name == "words" else replace(c, pg_type="renamed")
        for c in TABLE.columns
    )
    now = as_held(replace(TABLE, columns=columns), held)
    differing = [c.name for c, h in zip(now.columns, held.columns, strict=True) if c != h]
    assert differing == ["words"]
    as_text = choose(TABLE, "null", {"words": Choice("string")})
    assert isinstance(as_text, Relation)
    # Text of a composite: rows that nobody touched print anew.
    assert as_held(replace(TABLE, columns=columns), as_text).columns[6] != as_text.columns[6]
