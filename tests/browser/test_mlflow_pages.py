"""MLflow's own pages on a small store, as `harness ui` opens them: experiment, two runs compared, artifacts."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.config import PathsConfig
from harness.files import Folders
from harness.mlflow_sweeps import SweepRecord
from harness.predictions import save_predictions
from harness.reports.build import build_report
from harness.reports.render import to_note
from harness.testing.records import make_run
from harness.tracking import Tracker, log_sweep

pytestmark = pytest.mark.slow

SWEEP = "sweep-3f2a9c1e"
TITLE = f"2 methods × both_0.7 × 2 train seeds · {SWEEP}"


def fill(home: Path) -> None:
    """Two methods with two seeds each, below the parent of their sweep, which has a report."""
    folders = Folders.resolve(PathsConfig(home=str(home)))
    uri = f"sqlite:///{home / 'mlflow.db'}"
    runs, cells = [], []
    for method, accuracy in (("redeem", 0.8), ("zero_fill", 0.6)):
        for seed in (0, 1):
            config = {"method": {"name": method, "depth": 2}, "tracking": {"sweep": SWEEP}}
            run = make_run(method, accuracy + seed / 50, train_seed=seed, config=config)
            run.record.dataset["splits"] = {"train": 600, "valid": 200, "test": 200}
            assert run.scores is not None
            save_predictions(run.scores, home / "p.parquet")
            Tracker(uri, "harness/openmoji", folders).log(run.record, {"predictions.parquet": home / "p.parquet"})
            (home / "p.parquet").unlink()
            runs.append(run)
            cell = {"run_id": run.record.run_id, "dataset": "openmoji", "protocol": "both_0.7", "method": method}
            cells.append(cell | {"supervision": "observed", "train_seed": seed, "status": "finished"})
    board, files = build_report(runs, home / "report", ("html", "md", "svg"))
    artifacts = {f"report/{file.relative_to(home / 'report')}": file for file in files}
    sweep = SweepRecord(
        SWEEP, "finished", ["harness/openmoji"], cells, ["sweep", "method=redeem,zero_fill"], to_note(board)
    )
    sweep.started, sweep.finished = "2026-01-01T00:00:00+00:00", "2026-01-01T00:10:00+00:00"
    log_sweep(uri, folders, sweep, artifacts)


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[str]:
    """What `harness ui` prints."""
    home = tmp_path_factory.mktemp("home")
    (home / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    fill(home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-m", "harness", "ui", "--port", str(port), f"paths.home={home}"]
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        os.kill(server.pid, signal.SIGTERM)


@pytest.fixture
def page(chromium: Any, link: str) -> Iterator[Any]:
    """The page that the link opens; a request to anywhere else fails the test at its end."""
    server = link.partition("/#")[0]
    elsewhere: list[str] = []
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(120_000)
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((server, "data:", "blob:", "about:")) else elsewhere.append(request.url)
        ),
    )
    page.goto(link)
    yield page
    page.close()
    assert elsewhere == []


def open_sweep(page: Any) -> None:
    """Shows the runs below the sweep in the table."""
    page.locator(".ag-row", has_text=TITLE).locator("[col-id*='Run Name'] button").click()
    page.get_by_role("link", name="zero_fill · both_0.7 · seed 1").wait_for()


def test_from_the_experiment_over_two_runs_compared_to_an_artifact(page: Any) -> None:
    page.get_by_role("link", name=TITLE).wait_for()
    assert page.get_by_role("link", name="redeem").count() == 0, "runs of a sweep are folded below it"
    open_sweep(page)

    for name in ("redeem · both_0.7 · seed 0", "zero_fill · both_0.7 · seed 0"):
        number = page.locator(".ag-row", has_text=name).first.get_attribute("row-index")
        page.locator(f".ag-row[row-index='{number}'] .ag-checkbox-input").first.click()
    page.get_by_role("button", name="Compare").first.click()
    page.get_by_text("Comparing 2 Runs").wait_for()
    page.get_by_text("pattern/text.image/accuracy").first.wait_for()
    shown = page.inner_text("body")
    for part in ("redeem · both_0.7 · seed 0", "zero_fill · both_0.7 · seed 0", "test/accuracy", "0.8", "0.6"):
        assert part in shown

    page.locator("a[href*='/runs/']").first.click()
    page.get_by_role("tab", name="Artifacts").wait_for()
    page.get_by_text("Parent run", exact=True).wait_for()
    page.get_by_text("both_0.7 · mask mmmmmmmmmmmmmmmm").first.wait_for()
    overview = page.inner_text("body")
    for part in (TITLE, "redeem on openmoji under both_0.7", "accuracy (both_0.7): 0.8000"):
        assert part in overview

    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("record.json").first.click()
    page.get_by_text('"name": "split overlap"').first.wait_for()


def test_the_sweep_has_its_table_its_runs_and_a_report_that_works(page: Any) -> None:
    page.get_by_role("link", name=TITLE).click()
    page.get_by_text("Child runs", exact=True).wait_for()
    page.get_by_role("cell", name="[0.5400, 0.6800]").first.wait_for()
    assert page.get_by_role("link", name="redeem · both_0.7 · seed 1").count() == 1

    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("report", exact=True).first.click()
    page.get_by_text("report.html").first.click()
    report = page.frame_locator("iframe")
    report.locator("body.ready").wait_for()
    report.get_by_role("searchbox").fill("zero_fill")
    report.get_by_text("1 of 2 rows", exact=True).wait_for()
