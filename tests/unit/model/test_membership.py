"""Marks: their text, and what two of them tell."""

from dataclasses import replace

import pytest

from icelake.model.membership import Leaf, Membership

ONE, TWO = Leaf(16400, "5.6", ".100", "16400", "ab"), Leaf(16410, "5.7", ".100.90", "16410", "cd")
ROOT = Membership("", "0", "ff", leaves=(ONE, TWO))


@pytest.mark.parametrize("mark", [Membership("1.2", "3", "a"), Membership("1.2", "3", "a", True), ROOT, replace(ROOT, unnamed=True)])
def test_the_text_of_a_mark_is_read_back(mark: Membership) -> None:
    assert Membership.parse(str(mark)) == mark


@pytest.mark.parametrize("text", ["", "1|2", "1|2|3|16400", "1|2|3|x:1:2:3:4"])
def test_what_is_no_mark(text: str) -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal"):
        Membership.parse(text)


@pytest.mark.parametrize(
    ("leaf", "left", "rewritten", "other"),
    [
        (TWO, False, False, ()),
        (replace(TWO, storage="9"), False, False, ()),
        (replace(TWO, columns="9"), False, False, ()),
        (replace(TWO, storage="9", columns="9"), False, True, ()),
        (replace(TWO, publication="5.8"), True, False, ()),
        (replace(TWO, publication=""), True, False, (16410,)),
        # Detached and attached: whatever else is new of it, its rows are read again.
        (replace(TWO, joined=".101.90", publication="", storage="9", columns="9"), False, False, (16410,)),
        (replace(TWO, oid=16420), False, False, (16410, 16420)),
        (replace(TWO, oid=16420, publication=""), False, False, (16410, 16420)),
        (None, False, False, (16410,)),
    ],
)
def test_what_became_of_a_leaf(leaf: Leaf | None, left: bool, rewritten: bool, other: tuple[int, ...]) -> None:
    now = replace(ROOT, leaves=(ONE,) if leaf is None else (ONE, leaf))
    assert (ROOT.left(now), ROOT.rewritten(now), ROOT.other_leaves(now)) == (left, rewritten, other)


def test_a_leaf_that_is_published_only_now() -> None:
    before = replace(ROOT, leaves=(ONE, replace(TWO, publication="")))
    assert (before.left(ROOT), before.other_leaves(ROOT)) == (False, (16410,))
