"""``icelake status``: each source, who syncs it and how far behind the lake is. Exit code 3 if a source can't be reached."""

import argparse

from icelake.cli import output, project
from icelake.errors import Unreachable


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)


def run(args: argparse.Namespace) -> int:
    with project.lakehouse(args) as lakehouse:
        status = lakehouse.status()
    reachable = all(source["reachable"] for source in status["sources"])
    if args.json:
        output.document(status)
        return 0 if reachable else Unreachable.exit_code
    headings = {
        "source": "source",
        "reachable": "reachable",
        "position": "lake at",
        "source_lsn": "source at",
        "lag": "behind",
        "in_cut": "tables",
        "cut": "cut",
    }
    shown = [
        {
            **source,
            "reachable": "yes" if source["reachable"] else f"no: {source.get('error', '')}",
            "lag": output.size(source.get("lag_bytes")),
            "in_cut": f"{source['tables_in_cut']} of {source['tables']}",
        }
        for source in status["sources"]
    ]
    output.records(shown, headings, numbers=("lag",))
    for source in status["sources"]:
        for table, code in source["parked"].items():
            output.note(f"parked: {table}: {code}; `icelake tables {table}` says why")
        applier = source.get("applier")
        if applier:
            output.table([f"{source['source']}: last report", ""], [[key.replace("_", " "), value] for key, value in applier.items()])
    return 0 if reachable else Unreachable.exit_code
