"""A team's MLflow server with a database behind it, and several machines that send their outboxes at once."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import outbox
from harness.config import PathsConfig
from harness.files import Folders
from harness.mlflow_store import connect, search
from harness.mlflow_sweeps import PARENT, PARENT_MARK, SweepRecord
from harness.predictions import save_predictions
from harness.testing.records import make_predictions, make_record
from harness.tracking import load_runs, log_sweep

pytestmark = pytest.mark.slow

WRITERS, RECORDS = 4, 10
#: Debian keeps the server's programs out of the path.
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
CELL = {
    "dataset": "openmoji",
    "protocol": "both_0.7",
    "supervision": "observed",
    "method": "redeem",
    "status": "finished",
}

WRITER = """
import sys
from harness.config import PathsConfig
from harness.files import Folders
from harness.outbox import sync
report = sync(sys.argv[1], Folders.resolve(PathsConfig(home=sys.argv[2])))
assert not report.failed, report.failed
print(*report.sent)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of this test's own; the address of an empty database."""
    found = shutil.which("initdb")
    programs = POSTGRES[-1] if POSTGRES else Path(found).resolve().parent if found else None
    if programs is None:
        pytest.skip("no PostgreSQL here: install Debian's package postgresql")
    pytest.importorskip("psycopg2", reason="needs psycopg2: pip install -e '.[postgres]'")
    # It refuses to run as root; Debian's package brings an account for it, which cannot enter pytest's folders.
    account: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        if account:
            shutil.chown(folder, **account)
        data = folder / "data"

        def run(program: str, *arguments: str) -> None:
            command = [str(programs / program), "-D", str(data), *arguments]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, **account)

        run("initdb", "-U", "harness", "-A", "trust", "--no-sync")
        options = f"-k {folder} -h 127.0.0.1 -p {port} -c fsync=off"
        run("pg_ctl", "-l", str(folder / "log"), "-o", options, "-w", "-t", "120", "start")
        try:
            yield f"postgresql+psycopg2://harness@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


@contextmanager
def server(database: str, folder: Path, workers: int) -> Iterator[str]:
    """MLflow's server, as a team runs it; its address."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", str(workers), "--backend-store-uri", database]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | settings, cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 300
            while True:
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(params=["sqlite", "postgresql"])
def team(request: pytest.FixtureRequest, tmp_path: Path, mlflow_template: Path) -> Iterator[str]:
    """Address of a server over a fresh database."""
    if request.param == "sqlite":
        (tmp_path / "team.db").write_bytes(mlflow_template.read_bytes())
        with server(f"sqlite:///{tmp_path / 'team.db'}", tmp_path, workers=2) as address:
            yield address
    else:
        with postgres() as database, server(database, tmp_path, workers=2) as address:
            yield address


def keep(home: Path, writer: int, predictions: Path) -> list[str]:
    """Records of one sweep in the outbox of one machine."""
    folders = Folders.resolve(PathsConfig(home=str(home)))
    kept = []
    for number in range(RECORDS):
        seed = writer * RECORDS + number
        config = {"method": {"name": "redeem"}, "tracking": {"sweep": "one sweep"}}
        record = make_record("redeem", make_predictions(0.8, seed=seed), train_seed=seed, config=config)
        outbox.put(folders, "harness/openmoji", record, {"predictions.parquet": predictions})
        kept.append(record.run_id)
    return kept


def test_concurrent_writers_store_every_record_once_below_one_parent(team: str, tmp_path: Path) -> None:
    save_predictions(make_predictions(0.8), tmp_path / "p.parquet")
    homes = [tmp_path / f"machine {number}" for number in range(WRITERS)]
    wanted = [run_id for number, home in enumerate(homes) for run_id in keep(home, number, tmp_path / "p.parquet")]

    command = [sys.executable, "-P", "-c", WRITER, team]
    writers = [
        subprocess.Popen([*command, str(home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for home in homes
    ]
    answers = [writer.communicate() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, answers
    assert Counter(run_id for out, _ in answers for run_id in out.split()) == Counter(wanted)
    for home in homes:
        assert outbox.entries(Folders.resolve(PathsConfig(home=str(home)))) == []

    cells = [{"run_id": run_id, **CELL, "train_seed": number} for number, run_id in enumerate(wanted)]
    sweep = SweepRecord("one sweep", "finished", ["harness/openmoji"], cells, finished="2026-01-01T00:00:00+00:00")
    parent = log_sweep(team, Folders.resolve(PathsConfig(home=str(homes[0]))), sweep, {})
    client = connect(team)
    (experiment,) = [found for found in client.search_experiments() if found.name == "harness/openmoji"]
    runs = search(client, [experiment.experiment_id], "")
    parents = [run for run in runs if PARENT_MARK in run.data.tags]
    children = [run for run in runs if PARENT_MARK not in run.data.tags]
    assert Counter(run.data.tags["harness.run_id"] for run in children) == Counter(wanted)
    assert {run.info.status for run in children} == {"FINISHED"}
    assert [run.info.run_id for run in parents] == [parent]
    assert {run.data.tags[PARENT] for run in children} == {parent}

    stored = load_runs(team)
    assert Counter(run.record.run_id for run in stored) == Counter(wanted)
    assert stored[0].predictions().ids == make_predictions(0.8).ids
