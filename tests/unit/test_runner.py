"""One cell from config to record: identity, repeatability, skipping, failures, oracles, unreachable servers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from harness.compose import compose
from harness.errors import UsageError
from harness.predictions import split_conditions
from harness.record import RunRecord
from harness.runner import Outcome, run_cells

SMALL = ["dataset=synthetic", "dataset.samples=240", "backbone.hidden_size=16", "trainer.epochs=2", "device=cpu"]


def run(home: Path, *overrides: str, uri: str = "") -> list[Outcome]:
    store = uri or f"sqlite:///{home / 'runs.db'}"
    return run_cells(compose([*SMALL, f"paths.home={home}", f"tracking.uri={store}", *overrides]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_a_run_leaves_a_whole_record(home: Path) -> None:
    outcome = run(home, "method=redeem", "protocol=any_0.5")[0]
    record = outcome.record
    assert record.status == "finished", record.error
    assert not outcome.skipped
    assert outcome.mlflow_run_id
    assert all(check.passed for check in record.audits), record.audits
    assert {check.name for check in record.audits} >= {"non_interference", "bank:memory", "loss_terms", "masks"}
    result = record.results[0]
    assert result.condition == "any_0.5"
    low, high = result.intervals[record.primary_metric]
    assert low <= result.metrics[record.primary_metric] <= high
    assert sum(result.pattern_counts.values()) == record.dataset["splits"]["test"]
    assert len(record.history) == record.cost.epochs == 2
    assert record.cost.trainable_parameters > 0
    assert RunRecord.from_json(record.to_json()) == record


def test_a_finished_run_is_not_run_again(home: Path) -> None:
    first = run(home, "method=zero_fill", "protocol=any_0.5")[0]
    again = run(home, "method=zero_fill", "protocol=any_0.5")[0]
    assert (first.skipped, again.skipped) == (False, True)
    assert again.record == first.record
    assert np.array_equal(again.predictions().logits, first.predictions().logits)


def test_same_seeds_are_bit_identical_and_train_seed_leaves_masks_alone(home: Path) -> None:
    options = ["method=redeem", "protocol=any_0.7"]
    first = run(home, *options)[0]
    again = run(home, *options, "overwrite=always")[0]
    other = run(home, *options, "train_seed=1")[0]
    assert not again.skipped
    assert np.array_equal(first.predictions().logits, again.predictions().logits)
    assert not np.array_equal(first.predictions().logits, other.predictions().logits)
    assert first.record.protocol["mask_fingerprint"] == other.record.protocol["mask_fingerprint"]
    moved = run(home, *options, "mask_seed=1")[0]
    assert moved.record.protocol["mask_fingerprint"] != first.record.protocol["mask_fingerprint"]


def test_an_oracle_is_shown_everything_and_says_so(home: Path) -> None:
    record = run(home, "method=complete", "protocol=any_0.5")[0].record
    assert record.oracle
    assert record.protocol["mask_fingerprint"] != record.protocol["shown_fingerprint"]
    assert len(record.results[0].pattern_counts) == 1


def test_several_conditions_of_one_training(home: Path) -> None:
    outcome = run(home, "method=redeem", "protocol=patterns")[0]
    record = outcome.record
    assert record.status == "finished", record.error
    assert all(check.passed for check in record.audits), record.audits
    assert [(result.condition, result.kind) for result in record.results] == [
        ("pooled", "pool"),
        ("mean_of_patterns", "mean"),
        ("a", "condition"),
        ("b", "condition"),
        ("a+b", "condition"),
    ]
    assert record.protocol["conditions"] == ["a", "b", "a+b"]
    assert record.protocol["headline"] == "pooled"
    pooled, mean, *each = record.results
    metric = record.primary_metric
    assert mean.metrics[metric] == pytest.approx(np.mean([result.metrics[metric] for result in each]))
    assert pooled.pattern_counts == {result.condition: sum(result.pattern_counts.values()) for result in each}
    for result in record.results:
        low, high = result.intervals[metric]
        assert low <= result.metrics[metric] <= high
    assert len(record.history) == record.cost.epochs == 2
    predictions = split_conditions(outcome.predictions())
    assert list(predictions) == ["a", "b", "a+b"]
    assert all((part.present == part.present[0]).all() for part in predictions.values())
    again = run(home, "method=redeem", "protocol=patterns")[0]
    assert again.skipped
    assert again.record == record
    assert np.array_equal(again.predictions().logits, outcome.predictions().logits)
    assert again.predictions().condition == outcome.predictions().condition


def test_a_condition_scores_as_it_does_alone(home: Path) -> None:
    alone = run(home, "method=redeem", "protocol=train:both_0.7,test:any_0.5")[0]
    grid = run(home, "method=redeem", "protocol=train:both_0.7,test:any_0..1:0.5")[0]
    part = split_conditions(grid.predictions())["any_0.5"]
    assert np.array_equal(part.logits, alone.predictions().logits)
    single = alone.record.results
    assert [result.condition for result in single] == ["train:both_0.7,test:any_0.5"]
    there = next(result for result in grid.record.results if result.condition == "any_0.5")
    assert (there.metrics, there.intervals, there.per_pattern) == (
        single[0].metrics, single[0].intervals, single[0].per_pattern,
    )  # fmt: skip
    assert [result.kind for result in grid.record.results] == ["mean", "condition", "condition", "condition"]
    assert grid.record.results[0].condition == "mean_over_grid"


def test_an_oracle_is_shown_everything_under_every_condition(home: Path) -> None:
    outcome = run(home, "method=complete", "protocol=patterns")[0]
    assert outcome.predictions().present.all()
    parts = list(split_conditions(outcome.predictions()).values())
    assert all(np.array_equal(part.logits, parts[0].logits) for part in parts)
    scores = [result.metrics["accuracy"] for result in outcome.record.results]
    assert scores == pytest.approx([scores[0]] * 5)


def test_an_encoder_for_what_the_data_set_does_not_have_is_no_silent_typo(home: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown modality in encoders 'tezt'\. Did you mean 'text'"):
        run(home, "method=zero_fill", "protocol=any_0.5", "encoders.tezt=minilm")


def test_selection_on_test_needs_one_condition(home: Path) -> None:
    with pytest.raises(UsageError, match="'patterns' has 3 test conditions, choose a protocol with one"):
        run(home, "method=zero_fill", "protocol=patterns", "trainer.select_split=test")


def test_a_failing_cell_is_recorded_and_the_others_go_on(home: Path) -> None:
    outcomes = run(home, "method=zero_fill", "protocol=any_0.5", "trainer.lr=1e30,1e-3", "train_seed=7")
    assert [outcome.record.status for outcome in outcomes] == ["failed", "finished"]
    assert "loss is" in outcomes[0].record.error


def test_an_unreachable_server_leaves_the_record_in_the_outbox(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(tmp_path, "method=majority", "protocol=any_0.5", uri="http://127.0.0.1:9")[0]
    assert outcome.record.status == "finished"
    assert "harness sync" in capsys.readouterr().err
    assert (tmp_path / "outbox" / outcome.record.run_id).is_dir()


def test_options_that_open_hidden_values_need_complete_supervision(home: Path) -> None:
    with pytest.raises(UsageError, match="supervision=complete") as error:
        run(home, "method=redeem", "method.preset=official", "protocol=any_0.5")
    assert "\n" not in str(error.value)


def test_official_preset_runs_and_its_leaks_are_named(home: Path) -> None:
    record = run(home, "method=redeem", "method.preset=official", "supervision=complete", "protocol=any_0.5")[0].record
    assert record.status == "finished", record.error
    failed = {check.name for check in record.audits if not check.passed}
    assert failed == {"bank:memory", "self_retrieval:memory"}


def test_selecting_on_test_is_possible_and_caught(home: Path) -> None:
    record = run(home, "method=zero_fill", "protocol=any_0.5", "trainer.select_split=test")[0].record
    assert [check.name for check in record.audits if not check.passed] == ["selection_split"]


@pytest.mark.slow
def test_kill_9_at_three_random_moments_ends_in_the_same_record(tmp_path: Path) -> None:
    options = ["method=redeem", "protocol=any_0.5", "dataset=synthetic", "dataset.samples=1500", "trainer.epochs=12"]
    options += ["trainer.patience=12", "device=cpu"]

    def command(home: Path) -> list[str]:
        store = f"tracking.uri=sqlite:///{home / 'runs.db'}"
        code = "import sys; from harness.cli import main; sys.exit(main(sys.argv[1:]))"
        return [sys.executable, "-P", "-c", code, "run", "--no-table", *options, f"paths.home={home}", store]

    def finished(home: Path) -> Outcome:
        arguments = [*options, f"paths.home={home}", f"tracking.uri=sqlite:///{home / 'runs.db'}"]
        outcome = run_cells(compose(arguments))[0]
        assert outcome.skipped
        return outcome

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(whole), check=True, env=environment)
    moments = random.Random(0)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(command(killed), env=environment)
        deadline = time.monotonic() + 120
        # Killed a random while after the next checkpoint was written (or after it ended by itself).
        before = _checkpoint_time(killed)
        while _checkpoint_time(killed) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moments.random())
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills, "every run ended before it was killed; give it more epochs"
    subprocess.run(command(killed), check=True, env=environment)
    expected, got = finished(whole), finished(killed)
    # Another identity means that sources were edited while this test ran: such a run starts anew, as it must.
    assert got.record.run_id == expected.record.run_id
    assert np.array_equal(expected.predictions().logits, got.predictions().logits)
    assert got.record.history == expected.record.history
    assert got.record.results == expected.record.results
    assert got.record.audits == expected.record.audits


def _checkpoint_time(home: Path) -> float:
    return max((path.stat().st_mtime for path in home.glob("runs/*/last.pt")), default=0.0)
