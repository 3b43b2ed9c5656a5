"""`harness ui`: MLflow's pages on the recorded runs."""

from __future__ import annotations

import argparse
from typing import Any

from harness.cli.parsing import Parser
from harness.cli.store import STORE_HELP, read_store
from harness.errors import UsageError

_EPILOG = """\
examples:
  harness ui
  harness ui --port 8080
  harness ui paths.home=/data/harness"""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help=STORE_HELP)
    result.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    result.add_argument("--port", type=int, default=5000, help="port to listen on (default: %(default)s)")
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Starts MLflow's server on the local store and stays until it ends; for a remote store names its address."""
    from harness.mlflow_ui import serve_ui

    if not 0 < arguments.port < 65536:
        raise UsageError(f"--port {arguments.port} is not between 1 and 65535.")
    store = read_store(arguments.overrides)
    return serve_ui(store.uri, store.folders, host=arguments.host, port=arguments.port)
