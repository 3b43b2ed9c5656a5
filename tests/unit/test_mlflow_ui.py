import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.files import Folders
from harness.mlflow_ui import serve_ui, ui_command, ui_link
from harness.testing.records import make_predictions, make_record
from harness.tracking import Tracker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_command_starts_few_processes_and_shows_no_password(folders: Folders) -> None:
    command = ui_command("postgresql://me:hunter2@db/runs", folders, port=5001)
    line = " ".join(command.argv)
    assert "hunter2" not in line
    assert "--workers 1" in line
    assert command.env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert command.env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert command.url == "http://127.0.0.1:5001"


def test_link_opens_the_run_table() -> None:
    assert ui_link("http://h:1/", "7") == "http://h:1/#/experiments/7/runs?workflowType=machine_learning"
    assert ui_link("http://h:1", None) == "http://h:1"


def test_a_server_is_not_served_again(folders: Folders) -> None:
    with pytest.raises(UsageError, match="nothing to start"):
        ui_command("http://team:5000", folders)


def test_a_taken_port_is_named(uri: str, folders: Folders) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="is taken; choose another with --port"):
            serve_ui(uri, folders, port=taken.getsockname()[1])


@pytest.mark.slow
def test_it_serves_takes_runs_over_http_and_stops_with_all_its_processes(
    uri: str, folders: Folders, tmp_path: Path
) -> None:
    Tracker(uri, "e", folders).log(make_record("redeem", make_predictions(0.8)), {})
    port = free_port()
    code = (
        "import sys\nfrom harness.config import PathsConfig\nfrom harness.files import Folders\n"
        "from harness.mlflow_ui import serve_ui\n"
        "sys.exit(serve_ui(sys.argv[1], Folders.resolve(PathsConfig(home=sys.argv[2])), port=int(sys.argv[3])))\n"
    )
    command = [sys.executable, "-P", "-c", code, uri, str(folders.home), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            assert server.stdout is not None
            link = server.stdout.readline().strip()
            assert link == f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning"
            tracker = Tracker(f"http://127.0.0.1:{port}", "over http", folders)
            record = make_record("map", make_predictions(0.7))
            stored = tracker.log(record, {})
            found = tracker.find(record.run_id)
            assert found is not None
            assert found.mlflow_run_id == stored
        finally:
            os.kill(server.pid, signal.SIGTERM)
        assert server.wait(30) == 0
    time.sleep(0.5)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
    assert not (tmp_path / "mlruns").exists()
