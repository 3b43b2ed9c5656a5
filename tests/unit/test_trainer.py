"""Training: same seed same weights, resumed equals uninterrupted, bad checkpoints and losses are one line."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.config import MethodConfig, TrainerConfig
from harness.errors import TrainingError, UsageError
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.method import Method, MethodContext, Stage
from harness.trainer import CHECKPOINT, EpochBatches, FitResult, Trainer, _schedule, trainable_state
from harness.types import Batch, DatasetSpec, FloatArray, ModalitySpec, Split, StepOutput, TaskSpec

SPEC = DatasetSpec(
    "toy", "1", (ModalitySpec("a", "features"),), TaskSpec("multiclass", 2, ("x", "y"), "accuracy"), "", "", "toy"
)
CONFIG = TrainerConfig(epochs=6, batch_size=16, patience=6, lr=0.02)


def view(split: Split, size: int = 60, seed: int = 0) -> ObservedDataset:
    rng = np.random.default_rng([seed, len(split)])
    labels = rng.integers(0, 2, size)
    tokens = (rng.normal(size=(size, 2, 4)) + labels[:, None, None]).astype(np.float32)
    array = FeatureArray(tokens, np.ones((size, 2), np.bool_), tokens.mean(1), np.arange(size))
    there = np.ones((size, 1), np.bool_)
    ids = [f"{split}{row}" for row in range(size)]
    return ObservedDataset(SPEC, split, ids, {"a": array}, np.arange(size), there, there, labels)


class Toy(Method):
    """Dropout and two layers: enough randomness for a resume to go wrong."""

    explode_at = -1

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.ReLU(), torch.nn.Linear(8, 2)
        )
        self.steps = 0

    def predict_step(self, batch: Batch) -> Tensor:
        logits: Tensor = self.net(batch.inputs["a"].pooled)
        return logits

    def training_step(self, batch: Batch) -> StepOutput:
        self.steps += 1
        loss = self.task_loss(self.predict_step(batch), batch.labels)
        loss = loss * float("nan") if self.steps == self.explode_at else loss
        return StepOutput(loss, {"task": loss}, {"samples": torch.tensor(float(len(batch)))})


class Staged(Toy):
    """A teacher is trained first; the student then learns from its frozen copy and from a draw at the transition."""

    target: Tensor

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.teacher = torch.nn.Linear(4, 2)
        self.register_buffer("target", torch.zeros(2))
        self.transitions: list[str] = []

    def stages(self) -> Sequence[Stage]:
        return (Stage("teacher", epochs=3, lr=0.1), Stage("student"))

    def start_stage(self, stage: Stage, train: ObservedDataset) -> None:
        self.transitions.append(stage.name)
        if stage.name == "student":
            self.target.copy_(self.teacher.weight.detach().sum(1) + torch.rand(2) + train.labels.mean())

    def trained(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        part = "teacher." if self.stage == "teacher" else "net."
        return ((name, parameter) for name, parameter in super().trained() if name.startswith(part))

    def predict_step(self, batch: Batch) -> Tensor:
        if self.stage == "teacher":
            logits: Tensor = self.teacher(batch.inputs["a"].pooled)
            return logits
        return super().predict_step(batch) + 0.01 * self.target


class Killed(Exception):
    pass


def toy(train: ObservedDataset, kind: type[Toy] = Toy) -> Toy:
    def no_backbone() -> Any:
        raise AssertionError("not used")

    return kind(MethodConfig(), MethodContext(SPEC, train.feature_specs, no_backbone))


def fit(
    folder: Path | None, seed: int = 0, die_after: int = 10**6, run_id: str = "run", kind: type[Toy] = Toy
) -> tuple[Toy, FitResult]:
    train, valid = view("train"), view("valid")

    torch.manual_seed(seed)
    method = toy(train, kind)
    looks = 0

    def evaluate(logits: FloatArray, split: ObservedDataset) -> Mapping[str, float]:
        nonlocal looks
        looks += 1
        if looks > die_after:
            raise Killed
        return {"accuracy": float((logits.argmax(1) == split.labels).mean())}

    trainer = Trainer(CONFIG, seed, "cpu", folder, run_id)
    return method, trainer.fit(method, train, valid, evaluate, "accuracy")


def same(left: Toy, right: Toy) -> bool:
    a, b = trainable_state(left), trainable_state(right)
    return all(torch.equal(a[name], b[name]) for name in a)


def test_learns_and_keeps_the_best_epoch() -> None:
    _, result = fit(None)
    scores = [epoch["valid/accuracy"] for epoch in result.history]
    assert result.best_metrics["accuracy"] == max(scores) > 0.8
    assert scores.index(max(scores)) == result.best_epoch
    assert result.selection_looks == {"valid": len(result.history)}


def test_history_keeps_the_mean_of_what_a_step_logs() -> None:
    """An epoch of 60 samples is three batches of 16 and one of 12; what is logged is no loss term."""
    _, result = fit(None)
    assert [epoch["logged/samples"] for epoch in result.history] == [15.0] * len(result.history)
    assert "loss/samples" not in result.history[0]


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    assert same(fit(None)[0], fit(None)[0])
    assert not same(fit(None)[0], fit(None, seed=1)[0])


@pytest.mark.parametrize("kind", [Toy, Staged])
@pytest.mark.parametrize("die_after", [1, 3, 5])
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path: Path, die_after: int, kind: type[Toy]) -> None:
    whole, expected = fit(None, kind=kind)
    with pytest.raises(Killed):
        fit(tmp_path, die_after=die_after, kind=kind)
    torch.manual_seed(123)
    resumed, result = fit(tmp_path, kind=kind)
    assert result.resumed_from == die_after
    assert same(whole, resumed)
    assert result.history == expected.history
    assert result.best_epoch == expected.best_epoch


def test_stages_follow_each_other_with_their_own_budget_and_parameters() -> None:
    method, result = fit(None, kind=Staged)
    assert isinstance(method, Staged)
    assert method.transitions == ["teacher", "student"]
    assert [epoch["stage"] for epoch in result.history] == [0.0] * 3 + [1.0] * 6
    assert max(epoch["lr"] for epoch in result.history[:3]) > CONFIG.lr >= max(e["lr"] for e in result.history[3:])
    assert result.best_epoch >= 3, "the student's best epoch is kept last"
    assert method.stage == "student"
    assert method.target.any()


def test_a_stage_that_was_begun_is_not_started_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, die_after=4, kind=Staged)
    method, _ = fit(tmp_path, kind=Staged)
    assert isinstance(method, Staged)
    assert method.transitions == []


def test_a_finished_checkpoint_trains_no_more(tmp_path: Path) -> None:
    first, _ = fit(tmp_path)
    again, result = fit(tmp_path, die_after=0)
    assert same(first, again)
    assert result.resumed_from == len(result.history)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(TrainingError, match="another configuration") as error:
        fit(tmp_path, run_id="other")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "another file"])
def test_a_damaged_checkpoint_is_set_aside_and_training_starts_over(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, expected = fit(tmp_path)
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"cut": content[:200], "one bit": content, "empty": b"", "another file": b"hello\nworld"}[damage]
    path.write_bytes(damaged)
    again, result = fit(tmp_path)
    assert "training starts over" in capsys.readouterr().err
    assert (tmp_path / f"{CHECKPOINT}.damaged").read_bytes() == damaged
    assert same(whole, again)
    assert (result.resumed_from, result.history) == (0, expected.history)


def test_a_checkpoint_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle that would create a file when it is loaded, with a right checksum."""
    payload = pickle.dumps(Opens(str(tmp_path / "executed")), protocol=2)
    digest = hashlib.sha256(payload).hexdigest().encode()
    (tmp_path / CHECKPOINT).write_bytes(digest + b"\n" + payload)
    fit(tmp_path)
    assert not (tmp_path / "executed").exists()
    assert "training starts over" in capsys.readouterr().err


class Opens:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_a_loss_that_is_not_finite_names_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "explode_at", 3)
    with pytest.raises(TrainingError, match=r"loss is nan at step 2 of epoch 0, samples train\d+, "):
        fit(None)


def test_patience_stops_training() -> None:
    train, valid = view("train"), view("valid")
    method = toy(train)
    trainer = Trainer(TrainerConfig(epochs=50, patience=3, batch_size=16), device="cpu")
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    result = trainer.fit(method, train, valid, lambda *_: {"accuracy": next(scores)}, "accuracy")
    assert len(result.history) == 5
    assert result.best_epoch == 1


def test_an_undefined_selection_metric_is_refused() -> None:
    train, valid = view("train"), view("valid")
    method = toy(train)
    with pytest.raises(TrainingError, match=r"accuracy is not defined on split 'valid'.*trainer.select_on"):
        Trainer(CONFIG, device="cpu").fit(method, train, valid, lambda *_: {"accuracy": float("nan")}, "accuracy")


def test_batches_depend_on_seed_and_epoch_only() -> None:
    def draw(seed: int, epoch: int) -> list[list[int]]:
        sampler = EpochBatches(10, 4, seed)
        sampler.epoch = epoch
        return list(sampler)

    assert draw(0, 1) == draw(0, 1)
    assert draw(0, 1) != draw(0, 2) != draw(1, 2)
    assert sorted(row for batch in draw(0, 1) for row in batch) == list(range(10))
    assert [len(batch) for batch in draw(0, 1)] == [4, 4, 2]


def test_schedule_rises_then_decays_to_zero() -> None:
    rates = [_schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_bf16_is_computed_in_bf16() -> None:
    train = view("train")
    method = toy(train).eval()
    full, half = (
        Trainer(replace(CONFIG, precision=precision), device="cpu").predict(method, train)
        for precision in ("no", "bf16")
    )
    assert not np.array_equal(full, half)
    assert np.array_equal(half, torch.from_numpy(half).bfloat16().float().numpy())
    assert np.allclose(full, half, atol=0.05)


def test_a_precision_that_the_device_lacks_is_an_error_and_not_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"trainer.precision=fp16 needs a GPU; on the CPU use bf16 or no"):
        Trainer(replace(CONFIG, precision="fp16"), device="cpu")

    def refuse(**options: Any) -> None:
        raise ValueError("bf16 mixed precision requires another GPU.")

    monkeypatch.setattr("accelerate.Accelerator", refuse)
    with pytest.raises(UsageError, match=r"trainer.precision=bf16: bf16 mixed precision requires another GPU"):
        Trainer(replace(CONFIG, precision="bf16"))
