"""``icelake tables``: the mirrors at a glance, or one of them in detail."""

import argparse

from icelake.cli import output, project


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="schema.table, or table alone when it is in public")


def run(args: argparse.Namespace) -> int:
    with project.lakehouse(args) as lakehouse:
        if args.name is None:
            tables = lakehouse.tables()
            if args.json:
                output.document({"tables": tables})
                return 0
            headings = {
                "name": "table",
                "state": "state",
                "rows": "rows",
                "files": "files",
                "size": "size",
                "snapshots": "snapshots",
                "lsn": "LSN",
                "changed": "changed",
            }
            output.records(
                [{**one, "size": output.size(one["bytes"])} for one in tables], headings, numbers=("rows", "files", "size", "snapshots")
            )
            return 0
        table = lakehouse.table(args.name)
    if args.json:
        output.document(table)
        return 0
    facts = ("name", "source", "identity", "state", "rows", "files", "delete_files", "bytes", "lsn", "changed", "location", "metadata")
    output.table(["", ""], [[fact.replace("_", " "), table[fact]] for fact in facts])
    if table["parked"] is not None:
        parked = table["parked"]
        output.note(f"parked: {parked['code']}: {parked['what']}\n  why:  {parked['why']}\n  next: {parked['fix']}")
    keyed = [{**column, "key": "key" if column["name"] in table["key"] else ""} for column in table["columns"]]
    output.records(keyed, {"name": "column", "type": "Iceberg type", "postgres": "PostgreSQL type", "key": ""})
    output.records(table["snapshots_kept"][:20], {"snapshot": "snapshot", "made": "made", "operation": "operation", "lsn": "LSN"})
    return 0
