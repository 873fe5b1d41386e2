"""``python -m tests.rck URI``: what the kit says of the catalog there, as one JSON document.

python -m tests.rck http://127.0.0.1:8181
python -m tests.rck http://127.0.0.1:8181 --only ViewCatalogTests.replaceView  the tests in whose class.method this is found
python -m tests.rck http://127.0.0.1:8181 --set warehouse=w --set rck.supports-names-with-dot=true
python -m tests.rck --fixture                                                  against the server that comes with the kit
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from icelake.stack.iceberg_rest import iceberg_rest
from tests.rck.kit import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rck", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    catalog = parser.add_mutually_exclusive_group(required=True)
    catalog.add_argument("uri", nargs="?", help="of the catalog, without v1")
    catalog.add_argument("--fixture", action="store_true", help="start the kit's own server and ask that")
    parser.add_argument("--only", default="", metavar="REGEX", help="run these tests only")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a property of the client")
    parser.add_argument("--folder", type=Path, help="keep JUnit's report and the log here")
    parser.add_argument("--seconds", type=float, default=600.0, help="when to give up")
    arguments = parser.parse_args()
    properties = dict(pair.split("=", 1) for pair in arguments.set)
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rck-")))
        uri = arguments.uri or stack.enter_context(iceberg_rest(folder / "fixture"))
        environment = {f"CATALOG_{name.upper().replace('-', '__').replace('.', '_')}": value for name, value in properties.items()}
        result = run(uri, folder, environment, only=arguments.only, seconds=arguments.seconds)
    print(json.dumps(asdict(result), indent=1, ensure_ascii=False))
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
