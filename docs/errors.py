"""Writes docs/reference/errors.md from the code: every code an error is raised with, in the words of the source.

Reads the source as text, runs none of it. `--check` only compares and exits 1 when the page is old.
"""

import ast
import sys

from pages import ROOT, keep

PACKAGE = ROOT / "src" / "icelake"
PAGE = ROOT / "docs" / "reference" / "errors.md"

HEAD = """\
# Errors

Written by `make docs` from the code. An error has a code, what happened, why, and the next step; with `--json` it is
`{"error": {"code", "what", "why", "fix", "temporary"}}` on stdout. Words in braces are filled in. A Refusal is about one table that
cannot be mirrored: `sync` and `status` list it under `refused`, and `doctor` says its next step. Where the project names the table by
itself, or it is mirrored already, it is an UnsupportedTable (exit 4) with the same code.

| exit code | kinds | meaning |
|---|---|---|
"""

REFUSALS = {"Refusal": 2, "Reason": 0}
"""What stands against one table, and the place of the code among the arguments: why and fix follow."""

MEANINGS = {
    2: "the project file or the command line",
    3: "a service can't be reached; trying again can help",
    4: "refused: going on could lose or falsify data",
}


def kinds() -> dict[str, int]:
    """Error class -> exit code, with what it inherits."""
    tree = ast.parse((PACKAGE / "errors.py").read_text(encoding="utf-8"))
    codes: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            own = [
                part.value.value
                for part in node.body
                if isinstance(part, ast.Assign | ast.AnnAssign)
                and isinstance(part.value, ast.Constant)
                and ast.unparse(part.targets[0] if isinstance(part, ast.Assign) else part.target) == "exit_code"
            ]
            inherited = [codes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in codes]
            for code in (own or inherited)[:1]:
                assert isinstance(code, int)
                codes[node.name] = code
    return codes


def words(node: ast.expr | None) -> str:
    """The text of a literal as a person reads it: the expressions of an f-string stay, in braces."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(words(part) for part in parts)
        case ast.FormattedValue(value=value):
            return "{" + ast.unparse(value) + "}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return words(left) + words(right)
        case ast.IfExp(body=body, orelse=orelse):
            return " / ".join(text for text in (words(body), words(orelse)) if text)
        case None:
            return ""
        case _:
            return "…"


def codes_of(node: ast.expr) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return [text] if text.isupper() else []
        case ast.IfExp(body=body, orelse=orelse):
            return [*codes_of(body), *codes_of(orelse)]
        case ast.Name(id=constant):
            return [constant] if constant.isupper() else []
        case _:
            return []


def errors(known: dict[str, int]) -> dict[str, list[tuple[str, str, str, str]]]:
    """Code -> (kind, what, why, fix), once for each way it is raised."""
    found: dict[str, list[tuple[str, str, str, str]]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
            keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            if name in known and node.args:
                code, texts, kind = node.args[0], node.args[1:], name
            elif name in REFUSALS and len(node.args) == REFUSALS[name] + 3:
                code, texts, kind = node.args[REFUSALS[name]], [ast.Constant(""), *node.args[-2:]], "Refusal"
            elif name == "error" and len(node.args) >= 3 and codes_of(node.args[0]):
                # The project file's errors are made by a method that adds file, line and key.
                code, texts, kind = node.args[0], node.args[2:], "ProjectError"
            else:
                continue
            what, why, fix = (
                words(texts[number]) if number < len(texts) else words(keywords.get(part))
                for number, part in enumerate(("what", "why", "fix"))
            )
            for text in codes_of(code):
                entry = (kind, what, why, fix)
                if entry not in found.setdefault(text, []):
                    found[text].append(entry)
    return found


def page() -> str:
    known = kinds()
    lines = [HEAD]
    for number, meaning in MEANINGS.items():
        names = ", ".join(name for name, value in known.items() if value == number)
        lines.append(f"| {number} | {names} | {meaning} |\n")
    lines.append("\n1 is no error: a check (`verify`, `doctor`) found something. 70 is a bug in icelake, 130 an interruption.\n")
    for code, ways in sorted(errors(known).items()):
        lines.append(f"\n## {code}\n")
        for kind, what, why, fix in ways:
            told = [f"**{kind}** (exit {known[kind]}): {clean(what)}" if kind in known else f"**{kind}**"]
            if clean(why) not in ("", "…"):
                told.append(f"why: {clean(why)}")
            if clean(fix) not in ("", "…"):
                told.append(f"next: {clean(fix)}")
            lines.append("\n" + "<br>\n".join(told) + "\n")
    return "".join(lines)


def clean(text: str) -> str:
    return " ".join(text.split()).replace("<", "\\<").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    sys.exit(keep(PAGE, page()))
