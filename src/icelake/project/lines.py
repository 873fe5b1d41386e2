"""On which line of a TOML text each key stands, so that an error can name it.

tomllib does not tell. This reads text that tomllib has already accepted, so it only has to find where keys begin and values end;
keys inside an inline table belong to the line of the key that holds it.
"""

import re

_KEY = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_VALUE = re.compile(
    r'''"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*|[\[{]|[\]}]|\n|[^\n]''',
    re.DOTALL,
)

Path = tuple[str, ...]


def key_lines(text: str) -> dict[Path, int]:
    """Key path -> line, counted from 1. A table's path is on the line of its header."""
    lines: dict[Path, int] = {}
    table: Path = ()
    at = 0
    line = 1
    while at < len(text):
        if text[at] == "\n":
            line, at = line + 1, at + 1
        elif text[at].isspace():
            at += 1
        elif text[at] == "#":
            at = _end_of_line(text, at)
        elif text[at] == "[":
            array = text.startswith("[[", at)
            table, at = _path(text, at + 1 + array)
            lines.setdefault(table, line)
            at = _end_of_line(text, at)
        else:
            key, at = _path(text, at)
            for depth in range(1, len(key) + 1):
                lines.setdefault(table + key[:depth], line)
            at, passed = _skip_value(text, at + 1)
            line += passed
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of the longest beginning of ``path`` that is written in the file."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def _path(text: str, at: int) -> tuple[Path, int]:
    parts: list[str] = []
    while True:
        match = _KEY.match(text, at)
        if match is None:
            return tuple(parts), at
        parts.append(next(group for group in match.groups() if group is not None))
        at = match.end()
        if not text.startswith(".", at):
            return tuple(parts), at
        at += 1


def _skip_value(text: str, at: int) -> tuple[int, int]:
    """Past the value that begins at ``at``, up to its line's end; and how many lines it went over."""
    depth = lines = 0
    while match := _VALUE.match(text, at):
        token = match[0]
        if token == "\n" and depth == 0:
            break
        depth += (token in "[{") - (token in "]}")
        lines += token.count("\n")
        at = match.end()
    return at, lines


def _end_of_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end
