"""``icelake catalog serve``: the lake's tables for every engine that speaks the Iceberg REST protocol."""

import argparse

from icelake.cli import output, project
from icelake.errors import Refused

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def arguments(parser: argparse.ArgumentParser) -> None:
    project.arguments(parser)
    parser.add_argument("what", choices=["serve"], help="serve: answer until interrupted")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (this machine alone)")
    parser.add_argument("--port", type=int, default=8181, help="0: one that is free")
    parser.add_argument("--certificate", metavar="FILE", help="a certificate in PEM form: then it is HTTPS")
    parser.add_argument("--also", metavar="FOLDER", action="append", default=[], help="where tables may be, besides the warehouse")
    parser.add_argument("--key", metavar="FILE", help="the certificate's key, if it is not in the same file")


def run(args: argparse.Namespace) -> int:
    from icelake.catalog.serve import serve

    def listening(uri: str) -> None:
        if args.json:
            output.document({"uri": uri})
        else:
            output.note(f"the catalog is at {uri}; Ctrl-C ends it")

    if args.host not in LOOPBACK:
        raise Refused(
            "NO_USERS",
            f"the catalog does not listen on {args.host}",
            "it knows no users yet: whoever reaches it may change every table",
            f"one of {', '.join(LOOPBACK)}, or a proxy before it that knows who may",
        )
    with project.lakehouse(args) as lakehouse:
        serve(lakehouse.rest(LOOPBACK, args.also, output.note), args.host, args.port, listening, certificate=args.certificate, key=args.key)
    return 0
