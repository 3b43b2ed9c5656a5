"""`harness ui`: MLflow's pages on the recorded runs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from harness.cli.parsing import Parser
from harness.cli.store import STORE_HELP, read_store
from harness.errors import EXIT_CELL_FAILED, EXIT_OK, UsageError

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
    from harness.mlflow_store import connect, is_remote
    from harness.progress import say

    if not 0 < arguments.port < 65536:
        raise UsageError(f"--port {arguments.port} is not between 1 and 65535.")
    store = read_store(arguments.overrides)
    if is_remote(store.uri):
        print(store.shown)
        return EXIT_OK
    connect(store.uri, store.folders)
    say(f"runs of {store.shown}; end with Ctrl-C.")
    print(f"http://{arguments.host}:{arguments.port}/#/experiments", flush=True)
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--workers", "1"]
    # One worker and no job queue: 2 processes and 0.4 GB instead of 15 and 1.6 GB.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # From the home folder, because `python -m` puts the current one in front of the import path.
    process = subprocess.Popen(
        [*server, "--host", arguments.host, "--port", str(arguments.port)],
        env=quiet | dict(os.environ),
        cwd=store.folders.home,
    )
    try:
        return EXIT_OK if process.wait() == 0 else EXIT_CELL_FAILED
    except KeyboardInterrupt:
        process.wait()
        return EXIT_OK
