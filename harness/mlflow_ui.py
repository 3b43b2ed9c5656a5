"""MLflow's user interface for local stores: two processes instead of fifteen, opened on the run table."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import TrackingError, UsageError
from harness.files import Folders
from harness.mlflow_store import artifact_root, connect, is_remote, search
from harness.progress import say

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

START_SECONDS = 180.0


@dataclass(frozen=True)
class UiCommand:
    """How to start the server.

    Attributes:
        argv: Command line; without the store's address, which may hold a password.
        env: Variables to set besides the caller's.
        url: Where it answers.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    url: str


def ui_command(uri: str, folders: Folders, *, host: str = "127.0.0.1", port: int = 5000) -> UiCommand:
    """The command that serves a local store: one worker, no job runner, nothing sent home.

    Raises:
        UsageError: If `uri` is a server already.
    """
    if is_remote(uri):
        raise UsageError("a server has its own user interface; there is nothing to start.")
    argv = (sys.executable, "-P", "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1")
    artifacts = ("--artifacts-destination", str(artifact_root(folders.home)))
    env = {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return UiCommand(argv + artifacts, env, f"http://{host}:{port}")


def ui_link(base: str, experiment_id: str | None) -> str:
    """Address of an experiment's run table; MLflow's own start page opens on another view."""
    path = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning" if experiment_id else ""
    return base.rstrip("/") + path


def newest_experiment(client: MlflowClient) -> str | None:
    """Id of the experiment that was written to last, or None before the first run."""
    ids = [experiment.experiment_id for experiment in client.search_experiments(max_results=1000)]
    runs = search(client, ids, "") if ids else []
    return str(runs[0].info.experiment_id) if runs else None


def serve_ui(uri: str, folders: Folders, *, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Serves the user interface until Ctrl-C and prints its link once it answers; a server's link is only printed.

    Returns:
        Exit code.

    Raises:
        TrackingError: If the store cannot be read or the server does not start.
        UsageError: If the port is taken.
    """
    experiment = newest_experiment(connect(uri, folders))
    if is_remote(uri):
        print(ui_link(_without_credentials(uri), experiment))
        return 0
    with socket.socket() as probe:
        if probe.connect_ex((host, port)) == 0:
            raise UsageError(f"port {port} of {host} is taken; choose another with --port.")
    command = ui_command(uri, folders, host=host, port=port)
    log = folders.home / "mlflow-ui.log"
    # `kill` must take the server along like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with log.open("w") as output:
        server = subprocess.Popen(
            command.argv, env=os.environ | command.env, cwd=folders.home, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _wait(server, command.url, log)
            print(ui_link(command.url, experiment), flush=True)
            say("Ctrl-C stops the server.")
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()
            server.wait()


def _without_credentials(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(f"MLflow's server ended with code {server.returncode}; its output is in {log}.")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise TrackingError(f"MLflow's server did not answer within {START_SECONDS:.0f} s; its output is in {log}.")
