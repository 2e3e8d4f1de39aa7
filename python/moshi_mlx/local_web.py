"""python -m moshi_mlx.local_web: talk with Moshi in the browser, or with any client of the published protocol."""

import argparse
import sys
from collections.abc import Sequence

from .cli.options import add_model_options, add_sampling_options, at_least, run_program


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="moshi-local-web",
        description="Serves a page to talk with Moshi in, and WebSocket protocols at /api/chat and /api/stream.",
        epilog="For this machine only, unless --host says otherwise; others then need TLS and the printed address.",
    )
    add_model_options(parser)
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host", default="localhost", help="where to listen; 0.0.0.0 is everywhere (default: localhost)"
    )
    server.add_argument("--port", type=int, default=8998, help="0 lets the system choose (default: 8998)")
    server.add_argument("--ssl", metavar="DIR", help="folder with cert.pem and key.pem (default: made where needed)")
    server.add_argument("--no-browser", action="store_true", help="don't open the page")
    server.add_argument("--static", metavar="DIR|none", help="another page than the one that comes along, or none")
    server.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="let pages of this site converse, too"
    )
    sessions = parser.add_argument_group("sessions")
    sessions.add_argument(
        "--max-sessions", type=at_least(1), metavar="N", help="conversations at once (default: as many as keep up)"
    )
    sessions.add_argument(
        "--max-waiting", type=at_least(0), default=16, metavar="N", help="clients in the queue (default: 16)"
    )
    sessions.add_argument(
        "--session-minutes", type=at_least(0.0), default=60.0, metavar="M", help="of a conversation (default: 60)"
    )
    add_sampling_options(parser)
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """Parse the options and serve until interrupted.

    Raises:
        MoshiError: whatever went wrong.
    """
    args = parser().parse_args(argv)
    from .web.serve import serve

    return serve(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_program(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
