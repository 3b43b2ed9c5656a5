"""The default training loop: AdamW, warm-up and linear decay, early stopping on validation, resumable.

Runs on Accelerate (device, mixed precision, several processes).  Every epoch starts from its own derived seed, so a
run that was killed and resumed ends in the same weights as one that was not.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from harness.backbone import Backbone
from harness.config import TrainerConfig
from harness.errors import TrainingError
from harness.files import atomic_write
from harness.masking import ObservedDataset
from harness.method import Method
from harness.seeding import derive_seed, seed_everything
from harness.types import Batch, FloatArray, StepOutput

CHECKPOINT = "last.pt"
TRAINER_VERSION = "1"

#: `(logits, view) -> metrics` on the selection split.
Evaluate = Callable[[FloatArray, ObservedDataset], Mapping[str, float]]


@dataclass
class FitResult:
    """What training leaves behind besides the method's weights (set to the best epoch's).

    Attributes:
        history: One dict per epoch: `stage` (its number), `loss`, `loss/<term>`, `logged/<name>`, `lr`,
            `valid/<metric>`.
        best_epoch: Epoch (from 0, over all stages) whose weights were kept last; -1 when nothing was trained.
        best_metrics: Selection metrics of that epoch.
        seconds: Wall time of training, resumed parts included.
        resumed_from: Epochs that a checkpoint had already done.
        selection_looks: How often each split was evaluated during training.
        learned: Names of the parameters that got a gradient in some stage; None if nobody noted them.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    resumed_from: int = 0
    selection_looks: dict[str, int] = field(default_factory=dict)
    learned: list[str] | None = None


class EpochBatches:
    """Batch sampler: a fresh permutation per epoch that depends on seed and epoch only.

    Args:
        size: Number of samples.
        batch_size: Samples per batch; the last batch may be smaller.
        seed: Train seed.
    """

    drop_last = False

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng(derive_seed(self.seed, "order", self.epoch)).permutation(self.size)
        for start in range(0, self.size, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def trainable_state(method: Method) -> dict[str, Tensor]:
    """Trained parameters and persistent buffers, detached copies; a backbone's frozen weights are left out."""
    frozen = {
        f"{prefix}.{name}"
        for prefix, module in method.named_modules()
        if isinstance(module, Backbone)
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad
    }
    return {name: value.detach().cpu().clone() for name, value in method.state_dict().items() if name not in frozen}


def restore_state(method: Method, state: Mapping[str, Tensor], source: str) -> None:
    """Loads what `trainable_state` returned.

    Raises:
        TrainingError: If names or shapes are of another configuration.
    """
    expected = trainable_state(method)
    wrong = sorted(
        name
        for name in expected.keys() | state.keys()
        if name not in expected or name not in state or expected[name].shape != state[name].shape
    )
    if wrong:
        raise TrainingError(
            f"{source} belongs to another configuration: {len(wrong)} tensors differ, e.g. {wrong[0]}; "
            "delete it or restore the configuration it was made with."
        )
    method.load_state_dict(dict(state), strict=False)


@dataclass(frozen=True)
class Selection:
    """How an epoch is chosen.

    Attributes:
        evaluate: Metrics of logits on the selection split.
        metric: Which of them chooses.
        higher_is_better: Its direction.
    """

    evaluate: Evaluate
    metric: str
    higher_is_better: bool = True

    def score(self, metrics: Mapping[str, float], split: str) -> float:
        """The chosen metric, turned so that higher is better.

        Raises:
            TrainingError: If it is not defined on the split.
        """
        value = float(metrics[self.metric])
        if math.isnan(value):
            raise TrainingError(
                f"{self.metric} is not defined on split {split!r} (e.g. only one class there), so it cannot "
                "choose an epoch; set trainer.select_on to another metric."
            )
        return value if self.higher_is_better else -value


class Trainer:
    """Trains and queries one method.

    Args:
        config: The shared budget.
        train_seed: Batch order and dropout.
        device: `auto`, `cpu`, `cuda`, …
        folder: Where the checkpoint lives; None keeps none.
        run_id: Written into the checkpoint and checked when it is read.
    """

    def __init__(
        self,
        config: TrainerConfig,
        train_seed: int = 0,
        device: str = "auto",
        folder: Path | None = None,
        run_id: str = "",
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.config = config
        self.train_seed = train_seed
        self.folder = folder
        self.run_id = run_id
        if AcceleratorState._shared_state:
            # A former cell of this process may have used another precision or device.
            AcceleratorState._reset_state(reset_partial_state=True)
        #: How often each split was predicted.
        self.looks: Counter[str] = Counter()
        self.accelerator: Any = Accelerator(
            mixed_precision=config.precision, cpu=device == "cpu", dataloader_config=None
        )
        self.device: torch.device = self.accelerator.device
        if self.device.type == "cpu":
            torch.set_float32_matmul_precision(config.cpu_matmul)

    def fit(
        self,
        method: Method,
        train: ObservedDataset,
        select: ObservedDataset,
        evaluate: Evaluate,
        metric: str,
        higher_is_better: bool = True,
    ) -> FitResult:
        """Trains every stage until its budget or patience ends, restoring each stage's best epoch.

        Args:
            method: Prepared method, already on `device`.
            train: Training split.
            select: Split that chooses the epoch.
            evaluate: Metrics of logits on `select`.
            metric: Which of them chooses.
            higher_is_better: Its direction.

        Raises:
            TrainingError: If a loss is not finite, naming ids, or the checkpoint is of another configuration.
        """
        result = FitResult(selection_looks={select.split: 0})
        selection = Selection(evaluate, metric, higher_is_better)
        stages = method.stages()
        model: Any = self.accelerator.prepare(method)
        saved = self._load_checkpoint()
        first = 0
        if saved is not None:
            first = [stage.name for stage in stages].index(saved["stage"])
            result = FitResult(**saved["result"])
            result.resumed_from = len(result.history)
        self._clock = time.perf_counter() - result.seconds
        for number, stage in enumerate(stages[first:], start=first):
            method.stage = stage.name
            if saved is None:
                seed_everything(self.train_seed, "stage", stage.name)
                method.start_stage(stage, train)
            self._fit_stage(method, model, number, train, select, selection, result, saved)
            saved = None
        return result

    def _fit_stage(
        self,
        method: Method,
        model: Any,
        number: int,
        train: ObservedDataset,
        select: ObservedDataset,
        selection: Selection,
        result: FitResult,
        saved: Mapping[str, Any] | None,
    ) -> None:
        """Trains one stage, appending to `result`, and restores its best epoch's weights."""
        config, stage = self.config, method.stages()[number]
        epochs, peak = stage.epochs or config.epochs, stage.lr or config.lr
        method.zero_grad(set_to_none=True)
        sampler = EpochBatches(len(train), config.batch_size, self.train_seed)
        loader: Any = DataLoader(train, batch_sampler=sampler, collate_fn=_as_is)  # type: ignore[arg-type]
        optimizer: Any = torch.optim.AdamW(
            [group for group in method.parameter_groups(config.weight_decay) if group["params"]], lr=peak, fused=True
        )
        optimizer, loader = self.accelerator.prepare(optimizer, loader)
        best: dict[str, Any] = {"score": -math.inf, "state": trainable_state(method)}
        waited = 0
        if saved is not None:
            restore_state(method, saved["state"], str(self._checkpoint_path))
            optimizer.load_state_dict(saved["optimizer"])
            best = {"score": saved["best_score"], "state": saved["best_state"]}
            waited = int(saved["waited"])
        done = sum(entry["stage"] == number for entry in result.history)
        for epoch in range(done, epochs):
            if waited >= config.patience:
                break
            # Counted over all stages, so that no two of them share batch orders or draws.
            sampler.epoch = len(result.history)
            seed_everything(self.train_seed, "epoch", sampler.epoch)
            rates = [
                peak * _schedule(step, epochs * len(sampler), config.warmup)
                for step in range(epoch * len(sampler), (epoch + 1) * len(sampler))
            ]
            entry = {"stage": float(number), **self._train_epoch(model, optimizer, loader, rates, sampler.epoch)}
            metrics = selection.evaluate(self.predict(method, select), select)
            result.selection_looks[select.split] += 1
            entry.update({f"{select.split}/{name}": float(value) for name, value in metrics.items()})
            result.history.append(entry)
            score = selection.score(metrics, select.split)
            if score > best["score"]:
                best = {"score": score, "state": trainable_state(method)}
                result.best_epoch, result.best_metrics, waited = sampler.epoch, dict(metrics), 0
            else:
                waited += 1
            result.seconds = time.perf_counter() - self._clock
            self._save_checkpoint(method, optimizer, best, waited, result)
        result.learned = sorted({*(result.learned or ()), *_learned(method, optimizer)})
        restore_state(method, best["state"], "the best epoch")

    def _train_epoch(
        self, model: Any, optimizer: Any, loader: Any, rates: Sequence[float], epoch: int
    ) -> dict[str, float]:
        """One pass with a learning rate per step; returns means of all scalars and the last learning rate."""
        model.train()
        sums: dict[str, Tensor] = {}
        for step, (batch, rate) in enumerate(zip(loader, rates, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = rate
            with self.accelerator.autocast():
                output: StepOutput = model(batch)
            if not torch.isfinite(output.loss):
                raise TrainingError(
                    f"loss is {output.loss.item()} at step {step} of epoch {epoch}, "
                    f"samples {', '.join(batch.ids[:5])}, …; "
                    "lower trainer.lr, set trainer.grad_clip, or look at these samples."
                )
            optimizer.zero_grad()
            self.accelerator.backward(output.loss)
            if self.config.grad_clip > 0:
                self.accelerator.clip_grad_norm_(model.parameters(), self.config.grad_clip)
            optimizer.step()
            for name, value in _scalars(output).items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach().float()
        return {**{name: float(value) / len(rates) for name, value in sums.items()}, "lr": rates[-1]}

    def loss(self, method: Method, batch: Batch) -> StepOutput:
        """One training step without its update; the method is left in its former mode."""
        training = method.training
        method.train()
        with self.accelerator.autocast():
            output: StepOutput = method(batch.to(self.device))
        method.train(training)
        return output

    @torch.no_grad()
    def predict(self, method: Method, view: ObservedDataset) -> FloatArray:
        """Logits `[n, C]` float32 of a split in its order; the method is left in its former mode."""
        self.looks[view.split] += 1
        training = method.training
        method.eval()
        parts = []
        for start in range(0, len(view), self.config.eval_batch_size):
            batch: Batch = view.batch(np.arange(start, min(start + self.config.eval_batch_size, len(view))))
            batch.full = None
            with self.accelerator.autocast():
                logits = method(batch.to(self.device))
            parts.append(logits.float().cpu().numpy())
        method.train(training)
        return np.concatenate(parts).astype(np.float32)

    @property
    def _checkpoint_path(self) -> Path | None:
        return None if self.folder is None else self.folder / CHECKPOINT

    def _load_checkpoint(self) -> dict[str, Any] | None:
        path = self._checkpoint_path
        if path is None or not path.is_file():
            return None
        try:
            saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise TrainingError(
                f"checkpoint {path} is damaged ({type(error).__name__}); delete it to train from the start."
            ) from error
        if saved["run_id"] != self.run_id:
            raise TrainingError(
                f"checkpoint {path} belongs to run {saved['run_id'][:12]}…, this is run {self.run_id[:12]}…; "
                "it was made with another configuration: delete it to train from the start."
            )
        return saved

    def _save_checkpoint(
        self, method: Method, optimizer: Any, best: Mapping[str, Any], waited: int, result: FitResult
    ) -> None:
        path = self._checkpoint_path
        if path is None or not self.accelerator.is_main_process:
            return
        state = {
            "run_id": self.run_id,
            "stage": method.stage,
            "state": trainable_state(method),
            "optimizer": copy.deepcopy(optimizer.state_dict()),
            "best_score": best["score"],
            "best_state": best["state"],
            "waited": waited,
            "result": vars(result).copy(),
        }
        with atomic_write(path) as temporary:
            torch.save(state, temporary)


def _learned(method: Method, optimizer: Any) -> set[str]:
    """Names of the current stage's parameters that some gradient reached: AdamW's second moment remembers it."""
    moments = {name: optimizer.state.get(value, {}).get("exp_avg_sq") for name, value in method.trained()}
    return {name for name, moment in moments.items() if moment is not None and bool(moment.any())}


def _as_is(batch: Batch) -> Batch:
    """The data set already returns whole batches."""
    return batch


def _scalars(output: StepOutput) -> dict[str, Tensor]:
    """What the history keeps of a step, under the history's names."""
    return {
        "loss": output.loss,
        **{f"loss/{name}": value for name, value in output.terms.items()},
        **{f"logged/{name}": value for name, value in output.logged.items()},
    }


def _schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over `int(warmup * total)` steps from 0, then linear decay to 0."""
    rising = int(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    return max(0.0, (total - step) / max(1, total - rising))


def count_parameters(method: Method) -> tuple[int, int]:
    """Trainable and total number of parameters."""
    sizes: Sequence[tuple[int, bool]] = [(p.numel(), p.requires_grad) for p in method.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
