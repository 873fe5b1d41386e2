"""``icelake init``: make a project. Never overwrites a file."""

import argparse
import re
from pathlib import Path

from icelake.cli import output
from icelake.errors import ProjectError

TOML = """\
# What IceLake mirrors, and where to. Checked on load; `icelake doctor` looks further.

[project]
name = "{name}"
profile = "embedded"            # one process; stack and external are not in this version

[lake]
folder = "lake"                 # everything IceLake writes; relative to this file
# warehouse = "s3://bucket/prefix"  # the tables' files on S3 instead, with [lake.s3] endpoint, access_key and secret_key

[sources.{name}]
dsn = {{ env = "{variable}" }}{pad}# or {{ file = "path" }}: a secret is a reference
tables = [{tables}]           # schema.table or schema.*; each needs a key, or REPLICA IDENTITY FULL
exclude = []

# [tables."public.orders"]
# readers = ["duckdb", "spark"]   # engines that must be able to read it: duckdb, flink, pyiceberg, spark, trino
# out_of_range = "error"          # what a value its Iceberg type cannot hold becomes: error, null or text
# append_only = false             # true: mirror what is inserted and nothing else, for a table whose changes name no row

[commit]
interval_ms = 1000              # a commit at most this often, or when batch_mb MiB of changes wait
batch_mb = 256

[retention]                     # how snapshots and cuts thin with age
keep_all = "1m"                 # all of the last minute, then [one per, up to this age]
thin = [["10s", "10m"], ["5m", "1h"], ["1h", "1d"], ["1d", "30d"]]
grace = "10m"                   # files stay this long after their last snapshot went, for who still reads it

[query]
memory_limit = "512MB"
"""

IGNORE = """\
/lake/
*.dsn
.env
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=Path(), help="where (default: here)")
    parser.add_argument("--name", help="the project's name (default: the folder's)")
    parser.add_argument("--env", metavar="NAME", help="the environment variable that will hold the DSN (default: NAME_DSN)")
    parser.add_argument("--tables", metavar="T", nargs="+", default=["public.*"], help="schema.table or schema.* (default: public.*)")


def run(args: argparse.Namespace) -> int:
    folder: Path = args.folder
    name = args.name or _name(folder.absolute().name)
    if re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", name) is None:
        raise ProjectError("BAD_NAME", f"{name!r} is not a name", "", "lower-case letters, digits, _ and -; begin with a letter")
    variable = args.env or f"{name.upper().replace('-', '_')}_DSN"
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) is None:
        raise ProjectError("BAD_NAME", f"{variable!r} is not the name of an environment variable", "", "letters, digits and _")
    for pattern in args.tables:
        if re.fullmatch(r'[^.*"\\]+\.(\*|[^.*"\\]+)', pattern) is None:
            raise ProjectError("BAD_NAME", f"{pattern!r} names no tables", "", "schema.table or schema.*")
    tables = ", ".join(f'"{pattern}"' for pattern in args.tables)
    text = TOML.format(name=name, variable=variable, pad=" " * max(1, 14 - len(variable)), tables=tables)
    files = {folder / "icelake.toml": text, folder / ".gitignore": IGNORE}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = [str(file) for file, content in files.items() if _make(file, content)]
    except OSError as error:
        raise ProjectError("INIT_NOT_WRITABLE", f"{error.filename} cannot be made", error.strerror or "", "name another folder") from error
    if args.json:
        output.document({"project": str(folder.absolute()), "name": name, "files": made})
    else:
        place = "" if folder == Path() else f" -C {folder}"
        output.note(f"made {', '.join(made)}")
        output.note(f"next: export {variable}='host=… dbname=… user=… password=…'")
        output.note(f"      icelake doctor{place} && icelake sync{place} && icelake verify{place}")
    return 0


def _make(file: Path, content: str) -> bool:
    """Write a new file. An icelake.toml that is there already is an error; any other file is left as it is."""
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(content)
    except FileExistsError as error:
        if file.name == ".gitignore":
            return False
        raise ProjectError("PROJECT_EXISTS", f"there is a project already: {file}", "", "edit it, or name another folder") from error
    return True


def _name(text: str) -> str:
    """The nearest valid name, or ``lake``."""
    return re.sub(r"^[^a-z]+|[^a-z0-9_-]+", "-", text.lower()).strip("-")[:40] or "lake"
