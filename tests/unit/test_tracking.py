import json
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from harness import mlflow_store, tracking
from harness.config import TrackingConfig
from harness.errors import DataError, TrackingError
from harness.files import Folders
from harness.mlflow_store import connect, describe, legal_names, redact
from harness.outbox import entries
from harness.predictions import save_predictions
from harness.testing.records import make_predictions, make_record
from harness.tracking import Tracker, load_runs, tracking_uri


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Path]:
    save_predictions(make_predictions(0.8), tmp_path / "p.parquet")
    (tmp_path / "best.safetensors").write_bytes(b"weights")
    (tmp_path / "mask.json").write_text("{}")
    return {
        "predictions.parquet": tmp_path / "p.parquet",
        "mask.json": tmp_path / "mask.json",
        "checkpoint/model.safetensors": tmp_path / "best.safetensors",
    }


def record_of(method: str = "redeem", **options):
    return make_record(method, make_predictions(0.8), **options)


def test_uri_order(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(TrackingConfig(), folders) == f"sqlite:///{folders.home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert tracking_uri(TrackingConfig(), folders) == "http://team:5000"
    assert tracking_uri(TrackingConfig(uri="sqlite:///x.db"), folders) == "sqlite:///x.db"


@pytest.mark.parametrize(
    "text",
    [
        "http://me:hunter2@host:1/x",
        "http://me:p@hunter2@host",
        "see postgresql://u:hunter2@h/db now",
        "http://h/?token=hunter2&x=1",
    ],
)
def test_credentials_are_redacted(text: str) -> None:
    assert "hunter2" not in redact(text)
    assert "***" in redact(text)


def test_round_trip(uri: str, folders: Folders, artifacts: dict[str, Path]) -> None:
    record = record_of(config={"method": {"name": "redeem", "long": "x" * 9000, "odd=key": [1, 2]}})
    record.history = [{f"train/term {term}": float(epoch) for term in range(11)} for epoch in range(100)]
    record.history[3]["train/term 0"] = float("inf")
    tracker = Tracker(uri, "harness/openmoji", folders)
    assert tracker.find(record.run_id) is None

    mlflow_id = tracker.log(record, artifacts)

    assert tracker.find(record.run_id) == tracking.StoredStatus("finished", mlflow_id)
    assert entries(folders) == []
    (stored,) = load_runs(uri)
    assert stored.record.to_json() == record.to_json()
    assert (stored.mlflow_run_id, stored.experiment_id) == (mlflow_id, "1")
    np.testing.assert_array_equal(stored.predictions().logits, make_predictions(0.8).logits)

    client = connect(uri)
    run = client.get_run(mlflow_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "redeem · both_0.7 · seed 0"
    assert run.data.tags["harness.dataset"] == "openmoji"
    assert run.data.tags["harness.mask_fingerprint"] == "m" * 64
    assert "0.8000" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["test/accuracy"] == pytest.approx(0.8)
    assert run.data.metrics["pattern/text.image/accuracy"] == record.results[0].per_pattern["text+image"]["accuracy"]
    assert run.data.params["method.name"] == "redeem"
    assert run.data.params["method.odd_key"] == "[1, 2]"
    assert run.data.params["method.long"].endswith("(whole in config.yaml)")
    assert len(client.get_metric_history(mlflow_id, "train/term 1")) == 100
    assert len(client.get_metric_history(mlflow_id, "train/term 0")) == 99
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == record.dataset["fingerprint"][:32]
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", f"both_0.7 · mask {'m' * 16}")]
    files = {item.path for item in client.list_artifacts(mlflow_id)}
    assert files == {
        "record.json", "config.yaml", "environment.json", "predictions.parquet", "mask.json", "checkpoint",
    }  # fmt: skip
    config = Path(run.info.artifact_uri.removeprefix("file://").replace("%20", " ")) / "config.yaml"
    assert "x" * 9000 in config.read_text()


def test_a_second_log_replaces_the_first(uri: str, folders: Folders) -> None:
    tracker = Tracker(uri, "e", folders)
    failed = record_of(status="failed")
    first = tracker.log(failed, {})
    assert tracker.find(failed.run_id) == tracking.StoredStatus("failed", first)
    second = tracker.log(record_of(), {})
    assert tracker.find(failed.run_id) == tracking.StoredStatus("finished", second)
    (stored,) = load_runs(uri)
    assert stored.record.status == "finished"
    old = connect(uri).get_run(first)
    assert old.info.lifecycle_stage == "deleted"
    assert old.data.tags["harness.superseded_by"] == second


@pytest.mark.parametrize("method", ["log_inputs", "log_artifacts", "set_terminated", "set_tag"])
def test_a_delivery_that_dies_half_way_is_not_a_run_and_is_repaired(
    uri: str, folders: Folders, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from mlflow.tracking import MlflowClient

    tracker = Tracker(uri, "e", folders)
    tracker.log(record_of(status="failed"), {})

    def die(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, die)
        with pytest.raises(KeyboardInterrupt):
            tracker.log(record_of(), {})
    half_written = [stored.record.status for stored in load_runs(uri)]
    assert half_written == (["finished"] if method == "set_tag" else ["failed"])
    assert len(entries(folders)) == 1

    again = Tracker(uri, "e", folders)
    status = again.find(record_of().run_id)
    assert status is not None
    assert status.status == "finished"
    assert entries(folders) == []
    client = connect(uri)
    assert [run.info.run_id for run in client.search_runs(["1"])] == [status.mlflow_run_id]


def test_filters_and_order(uri: str, folders: Folders) -> None:
    for method, seed in (("redeem", 0), ("redeem", 1), ("majority", 0)):
        record = record_of(method, train_seed=seed)
        record.started = f"2026-01-0{seed + 1}T00:00:00+00:00"
        Tracker(uri, "a" if method == "redeem" else "b", folders).log(record, {})

    def names(**filters: str) -> list[str]:
        return [f"{run.record.method}{run.record.seeds['train_seed']}" for run in load_runs(uri, filters=filters)]

    assert sorted(names()) == ["majority0", "redeem0", "redeem1"]
    assert names(method="redeem") == ["redeem0", "redeem1"]
    assert names(method="redeem,majority", train_seed="1") == ["redeem1"]
    assert names(experiment="b") == ["majority0"]
    assert names(experiment="none") == []
    assert names(protocol="text_0.7") == []


def test_a_run_that_cannot_be_read_does_not_hide_the_others(
    uri: str, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(uri, "e", folders)
    tracker.log(record_of(), {})
    run_id = tracker.log(record_of("future"), {})
    path = Path(urllib.request.url2pathname(connect(uri).get_run(run_id).info.artifact_uri.removeprefix("file://")))
    newer = json.loads((path / "record.json").read_text()) | {"schema_version": 99}
    (path / "record.json").write_text(json.dumps(newer))
    assert [run.record.method for run in load_runs(uri)] == ["redeem"]
    assert f"MLflow run {run_id} is left out" in capsys.readouterr().err


def test_a_database_is_listed_as_a_server_is_searched(
    uri: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was replaced, deleted, not written to its end, or is not ours, is in neither list."""
    tracker = Tracker(uri, "e", folders)
    tracker.log(record_of(status="failed"), {})
    kept = [tracker.log(record_of(), {}), Tracker(uri, "f", folders).log(record_of("majority", status="failed"), {})]
    client = connect(uri)
    client.delete_run(tracker.log(record_of("knn_vote"), {}))
    Tracker(uri, "gone", folders).log(record_of("redeem", train_seed=5), {})
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    client.create_run("0", tags={"harness.run_id": "it is still running"})
    client.set_terminated(client.create_run("0", tags={"mlflow.runName": "of somebody else"}).info.run_id)

    def by_id(runs: list[mlflow_store.Listed]) -> list[mlflow_store.Listed]:
        return sorted(runs, key=lambda run: run.mlflow_run_id)

    asked = ["harness.method"], ["cost/total_seconds", "test/accuracy"]
    quick = by_id(mlflow_store.listed(uri, *asked))
    assert [run.mlflow_run_id for run in quick] == sorted(kept)
    assert {run.tags["harness.method"]: run.experiment for run in quick} == {"redeem": "e", "majority": "f"}
    assert any(run.metrics.keys() == set(asked[1]) for run in quick)

    def other_layout(*arguments: object) -> None:
        raise sqlite3.OperationalError("no such table: runs")

    monkeypatch.setattr(mlflow_store, "_select", other_layout)
    assert by_id(mlflow_store.listed(uri, *asked)) == quick


def test_missing_predictions_are_named(uri: str, folders: Folders) -> None:
    Tracker(uri, "e", folders).log(record_of(), {})
    with pytest.raises(DataError, match=r"predictions\.parquet"):
        load_runs(uri)[0].predictions()


def test_a_store_that_is_not_there(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="there is no MLflow database"):
        load_runs(f"sqlite:///{tmp_path / 'none.db'}")
    (tmp_path / "text.db").write_text("not a database")
    with pytest.raises(TrackingError, match="is not an MLflow database"):
        connect(f"sqlite:///{tmp_path / 'text.db'}", folders)


def test_a_dead_server_fails_fast_and_the_run_is_kept(folders: Folders, artifacts: dict[str, Path]) -> None:
    tracker = Tracker("http://me:hunter2@127.0.0.1:9", "e", folders)
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"\*\*\*@127\.0\.0\.1:9 cannot be reached"):
        tracker.find("0" * 64)
    with pytest.raises(tracking.OutboxError, match="harness sync") as caught:
        tracker.log(record_of(), artifacts)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    found = tracker.find(record_of().run_id)
    assert found == tracking.StoredStatus("finished", "")
    assert time.monotonic() - start < 5.0


def test_deleted_experiment_is_explained(uri: str, folders: Folders) -> None:
    tracker = Tracker(uri, "gone", folders)
    tracker.log(record_of(), {})
    client = connect(uri)
    client.delete_experiment("1")
    with pytest.raises(TrackingError, match="was deleted; restore it with"):
        tracker.find(record_of().run_id)


def test_experiment_created_by_another_process_in_between(
    uri: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    client = connect(uri)
    expected = client.create_experiment("race")
    real = MlflowClient.get_experiment_by_name
    answers = iter([None])

    def late(self: MlflowClient, name: str) -> object:
        return next(answers, real(self, name))

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert mlflow_store.ensure_experiment(client, uri, "race", folders) == expected


def test_first_use_by_four_processes_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom harness.config import PathsConfig\nfrom harness.files import Folders\n"
        "from harness.testing.records import make_predictions, make_record\nfrom harness.tracking import Tracker\n"
        "home, seed = sys.argv[1:]\nfolders = Folders.resolve(PathsConfig(home=home))\n"
        "record = make_record('redeem', make_predictions(0.8), train_seed=int(seed))\n"
        "Tracker(f'sqlite:///{home}/mlflow.db', 'harness/openmoji', folders).log(record, {})\n"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE, text=True) for seed in range(4)]
    assert [worker.communicate()[1] for worker in workers] == [""] * 4
    assert [worker.returncode for worker in workers] == [0] * 4
    runs = load_runs(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert sorted(run.record.seeds["train_seed"] for run in runs) == [0, 1, 2, 3]
    assert {run.experiment_id for run in runs} == {"1"}


def test_filters_know_the_comma_of_protocol_names(uri: str, folders: Folders) -> None:
    tracker = Tracker(uri, "e", folders)
    names = ["train:complete,test:both_0.7", "both_0.7", "complete"]
    for name in names:
        tracker.log(record_of(protocol=name), {})

    def found(text: str) -> list[str]:
        return sorted(run.record.protocol["name"] for run in load_runs(uri, filters={"protocol": text}))

    assert found("train:complete,test:both_0.7") == [names[0]]
    assert found("train:complete, test:both_0.7,complete") == ["complete", names[0]]
    assert found("both_0.7") == ["both_0.7"]


def test_mlflow_is_silent(uri: str, folders: Folders) -> None:
    record = record_of()
    record.save(folders.home / "record.json")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from harness.config import PathsConfig\nfrom harness.files import Folders\n"
        "from harness.record import RunRecord\nfrom harness.tracking import Tracker, load_runs\n"
        f"home = {str(folders.home)!r}\nuri = {uri!r}\n"
        "tracker = Tracker(uri, 'e', Folders.resolve(PathsConfig(home=home)))\n"
        "tracker.log(RunRecord.load(Path(home) / 'record.json'), {})\n"
        "assert len(load_runs(uri)) == 1\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=folders.home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (folders.home / "mlruns").exists()


def test_names_are_legal_and_stay_apart() -> None:
    names = ["acc", "pattern/text+image/acc", "a=b", "a,b", "a//b", "/x", "..", "größe", "x" * 300]
    legal = legal_names(names)
    assert legal["acc"] == "acc"
    assert legal["pattern/text+image/acc"] == "pattern/text.image/acc"
    assert len(set(legal.values())) == len(names)
    from mlflow.utils.validation import _validate_metric_name

    for name in legal.values():
        _validate_metric_name(name)


def test_description_names_the_score_and_the_failure() -> None:
    assert "accuracy (both_0.7): **0.8000**" in describe(record_of())
    assert "**failed** TrainingError" in describe(record_of(status="failed"))
