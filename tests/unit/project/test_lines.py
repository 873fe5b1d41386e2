"""Keys are found on the line they stand on, whatever TOML stands around them."""

from icelake.project.lines import key_lines, line_of

TEXT = '''\
# [not.a.table]
top = """
fake = 1
[fake]
"""
a.b = 1   # c = 2
[one]
list = [
  "x = 1", # y = 2
  { z = 3 },
]
after = \'\'\'it's
here\'\'\'
"quoted.key" = { in = 1 } # ]
[one."two.three"]
k="\\\\"
last = 1
[[many]]
first = 1'''


def test_every_key() -> None:
    assert key_lines(TEXT) == {
        ("top",): 2,
        ("a",): 6,
        ("a", "b"): 6,
        ("one",): 7,
        ("one", "list"): 8,
        ("one", "after"): 12,
        ("one", "quoted.key"): 14,
        ("one", "two.three"): 15,
        ("one", "two.three", "k"): 16,
        ("one", "two.three", "last"): 17,
        ("many",): 18,
        ("many", "first"): 19,
    }


def test_the_longest_beginning_that_is_written() -> None:
    lines = key_lines(TEXT)
    assert line_of(lines, ("one", "quoted.key", "in")) == 14
    assert line_of(lines, ("one", "nowhere")) == 7
    assert line_of(lines, ("nowhere",)) is None
