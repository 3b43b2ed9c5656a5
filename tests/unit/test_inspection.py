"""`harness inspect`: what is measured, that it is kept beside the record, and that it is no part of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import registry
from harness.cli import main
from harness.compose import compose, from_dict
from harness.config import PathsConfig
from harness.errors import DataError
from harness.files import Folders
from harness.findings import FINDINGS_FILE, Findings
from harness.inspection import agreement, inspect_run, label_text, predicted_text, recovery
from harness.record import RunRecord
from harness.runner import Outcome, run_cells
from harness.tracking import load_runs
from harness.types import TaskSpec

Capture = pytest.CaptureFixture[str]
SMALL = ["dataset=synthetic", "dataset.samples=240", "backbone.hidden_size=16", "trainer.epochs=1", "device=cpu"]
CLASSES = TaskSpec("multiclass", 3, ("cat", "dog", "owl"), "accuracy")
LABELS = TaskSpec("multilabel", 3, ("cat", "dog", "owl"), "f1_macro")
NUMBERS = TaskSpec("regression", 2, (), "mae")


def test_perfect_recovery() -> None:
    true = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    found = recovery("both_0.7", "text", "image", true.copy(), true)
    assert (found.count, found.cosine, found.error) == (3, pytest.approx(1.0), 0.0)
    assert found.quantiles == pytest.approx([1.0] * 5)


def test_the_mean_embedding_has_error_one_and_is_as_near_to_others() -> None:
    true = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]])
    found = recovery("both_0.7", "text", "image", np.tile(true.mean(0), (3, 1)), true)
    assert found.error == pytest.approx(1.0)
    assert found.others == pytest.approx(found.cosine)


def test_zeros_have_cosine_zero_and_one_sample_has_nothing_to_compare_with() -> None:
    found = recovery("both_0.7", "text", "image", np.zeros((1, 4)), np.ones((1, 4)))
    assert (found.cosine, found.others, found.error) == (0.0, None, None)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 1000))
def test_others_are_all_pairs_of_different_samples(count: int, width: int, seed: int) -> None:
    found, true = np.random.default_rng(seed).normal(size=(2, count, width))
    cosines = [[one @ other / np.linalg.norm(one) / np.linalg.norm(other) for other in true] for one in found]
    pairs = [cosines[i][j] for i in range(count) for j in range(count) if i != j]
    measured = recovery("c", "p", "m", found, true)
    assert measured.others == pytest.approx(np.mean(pairs), abs=1e-9)
    assert measured.cosine == pytest.approx(np.mean([cosines[i][i] for i in range(count)]))


def test_labels_agree() -> None:
    assert (agreement(np.int64(2), np.int64(2)), agreement(np.int64(2), np.int64(1))) == (1.0, 0.0)
    both, one, none = np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.zeros(3)
    assert (agreement(both, one), agreement(both, both), agreement(none, none)) == (0.5, 1.0, 1.0)


def test_labels_and_predictions_for_people() -> None:
    assert label_text(CLASSES, np.int64(2)) == predicted_text(CLASSES, np.array([0.0, 1.0, 2.0])) == "owl"
    assert label_text(LABELS, np.array([1.0, 0.0, 1.0])) == predicted_text(LABELS, np.array([1.0, -1.0, 0.0]))
    assert label_text(LABELS, np.zeros(3)) == "none"
    assert label_text(NUMBERS, np.array([0.25, -1.0])) == "0.25, -1"
    assert predicted_text(CLASSES, None) == ""


def test_inspectors_are_no_part_of_a_runs_identity() -> None:
    for name in registry.methods.names():
        plugin = registry.methods.get(name)
        counted = {file.name for file in (*plugin.source_files(), *plugin.shared_files())}
        assert counted
        assert "inspector.py" not in counted


def test_findings_round_trip_and_refuse_what_they_are_not() -> None:
    found = Findings("r" * 64, [recovery("c", "a", "b", np.eye(2), np.eye(2))], remarks=["a remark"])
    assert Findings.from_json(found.to_json(), "here") == found
    newer = json.dumps(found.to_dict() | {"schema_version": 99})
    with pytest.raises(DataError, match="newer harness"):
        Findings.from_json(newer, "here")
    for broken in ("", "[]", "{}", '{"schema_version": 1}'):
        with pytest.raises(DataError, match="here: no findings"):
            Findings.from_json(broken, "here")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A store with a finished run of `knn_impute`, one of `zero_fill`, and one of `knn_impute` without weights."""
    folder = tmp_path_factory.mktemp("home with space")
    (folder / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    common = [*SMALL, "protocol=any_0.5", f"paths.home={folder}"]
    outcomes: list[Outcome] = [
        *run_cells(compose([*common, "method=knn_impute,zero_fill"])),
        *run_cells(compose([*common, "method=knn_impute", "train_seed=1", "tracking.checkpoint=false"])),
    ]
    assert [outcome.record.status for outcome in outcomes] == ["finished"] * 3
    return folder


def ids(home: Path, method: str) -> list[str]:
    runs = load_runs(f"sqlite:///{home / 'mlflow.db'}", filters={"method": method})
    return [run.record.run_id for run in runs]


def test_a_run_is_inspected_and_keeps_what_was_found(home: Path, capsys: Capture) -> None:
    uri, run_id = f"sqlite:///{home / 'mlflow.db'}", ids(home, "knn_impute")[0]
    (before,) = load_runs(uri, filters={"run_id": run_id})
    assert before.findings() is None
    assert main(["inspect", run_id[:10], f"paths.home={home}", "--examples", "2", "--json"]) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    # The beginning of a run id, as the report shows it, is enough.
    (after,) = load_runs(uri, filters={"run_id": run_id[:16]})
    found = after.findings()
    assert found is not None
    assert found.to_dict() == printed
    assert after.record == before.record
    assert after.attached == (FINDINGS_FILE,)

    assert found.remarks == []
    counts = after.record.results[0].pattern_counts
    assert {(one.pattern, one.modality, one.count) for one in found.recoveries} == {
        (pattern, other, counts[pattern]) for pattern, other in (("a", "b"), ("b", "a"))
    }
    train = set(_split_ids(after.record, "train"))
    for example in found.examples:
        assert example.use not in example.pattern.split("+")
        assert sum(other.weight for other in example.neighbours) == pytest.approx(1.0)
        assert {other.sample for other in example.neighbours} <= train
        assert all(other.agrees == float(other.label == example.label) for other in example.neighbours)
    assert len(found.examples) == 4
    assert main(["inspect", run_id, f"paths.home={home}"]) == 0
    assert "asks for" in capsys.readouterr().out


def _split_ids(record: RunRecord, split: str) -> list[str]:
    table = from_dict(record.config).dataset.load(Path(), Path())
    return [table.ids[row] for row in table.splits[split]]


def test_what_cannot_be_inspected_is_said_in_one_line(home: Path, capsys: Capture) -> None:
    assert main(["inspect", ids(home, "zero_fill")[0], f"paths.home={home}"]) == 2
    assert "zero_fill neither reconstructs nor retrieves" in capsys.readouterr().err
    assert main(["inspect", "ffff", f"paths.home={home}"]) == 2
    assert main(["inspect", f"paths.home={home}"]) == 2
    assert main(["inspect", "ab", "--examples", "-1", f"paths.home={home}"]) == 2
    capsys.readouterr()
    without = next(
        run.record.run_id for run in load_runs(f"sqlite:///{home / 'mlflow.db'}") if run.record.seeds["train_seed"] == 1
    )
    assert main(["inspect", without, f"paths.home={home}"]) != 0
    assert "checkpoint/model.safetensors" in capsys.readouterr().err


def test_reconstruction_is_compared_with_the_hidden_values_of_the_same_network(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that answers the truth is perfect; one that answers zeros is not, and both are measured alike."""
    from harness.methods.knn_impute.inspector import KnnImputeInspector

    run = load_runs(f"sqlite:///{home / 'mlflow.db'}", filters={"run_id": ids(home, "knn_impute")[0]})[0]
    folders = Folders.resolve(PathsConfig(home=str(home)))
    seen = []
    plain = KnnImputeInspector.embedded

    def watched(self: KnnImputeInspector, batch: object) -> object:
        seen.append(batch)
        return plain(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(KnnImputeInspector, "embedded", watched)
    monkeypatch.setattr(
        KnnImputeInspector,
        "recovered",
        lambda self, batch: {name: value * 0 for name, value in plain(self, batch).items()},
    )
    found = inspect_run(run, folders)
    assert all(one.cosine == 0.0 for one in found.recoveries)
    assert all(batch.present.all() for batch in seen)  # type: ignore[attr-defined]
