"""The default training loop: AdamW, warm-up and linear decay, early stopping on validation, resumable.

Runs on Accelerate (device, mixed precision, several processes).  Every epoch starts from its own derived seed, so a
run that was killed and resumed ends in the same weights as one that was not.  Several processes share every batch:
each computes the gradient of its part, the parts are added up weighted by their samples, and all take the same step.
"""

from __future__ import annotations

import hashlib
import io
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

from harness import processes
from harness.backbone import Backbone
from harness.config import TrainerConfig
from harness.errors import TrainingError, UsageError
from harness.files import atomic_write
from harness.masking import ObservedDataset
from harness.method import Method
from harness.progress import note, say, track
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

    def samples(self, step: int) -> int:
        """Samples of one batch."""
        return min(self.batch_size, self.size - step * self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng(derive_seed(self.seed, "order", self.epoch)).permutation(self.size)
        for start in range(0, self.size, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


class Shares:
    """What this process computes of every batch: `accumulate` parts of the `processes * accumulate` it is cut into.

    A batch is cut in its own order into parts that differ by one sample at most; a part may be empty.

    Args:
        batches: Whole batches.
        accumulate: Parts per process.
    """

    drop_last = False

    def __init__(self, batches: EpochBatches, accumulate: int) -> None:
        self.batches, self.accumulate = batches, accumulate

    def __len__(self) -> int:
        return len(self.batches) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        first = processes.rank() * self.accumulate
        for batch in self.batches:
            parts = np.array_split(np.asarray(batch, dtype=np.int64), processes.count() * self.accumulate)
            yield from (part.tolist() for part in parts[first : first + self.accumulate])


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
        device: One of `harness.devices.DEVICES`.
        folder: Where the checkpoint lives; None keeps none.
        run_id: Written into the checkpoint and checked when it is read.

    Raises:
        UsageError: If the device does not compute in the precision, or there are fewer processes than were started.
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
        try:
            self.accelerator: Any = Accelerator(
                mixed_precision=config.precision, cpu=device == "cpu", dataloader_config=None
            )
        except ValueError as error:  # e.g. a GPU without bf16
            raise UsageError(f"trainer.precision={config.precision}: {error}") from error
        if self.accelerator.num_processes != processes.count():
            raise UsageError(
                f"Accelerate sees {self.accelerator.num_processes} processes, the environment says "
                f"{processes.count()}; start them with `accelerate launch` or `torchrun`."
            )
        self.device: torch.device = self.accelerator.device
        if self.device.type == "cpu":
            if config.precision == "fp16":  # Accelerate would compute in full precision and say nothing
                raise UsageError("trainer.precision=fp16 needs a GPU; on the CPU use bf16 or no.")
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
        # No wrapper that adds gradients up by itself: stages train some parameters only, and a part may be empty.
        model: Any = self.accelerator.prepare_model(method, evaluation_mode=True)
        saved = processes.from_main(self._load_checkpoint)
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
                start = method.start_stage
                processes.together(lambda stage=stage, start=start: start(stage, train))  # type: ignore[misc]
                processes.as_in_main(method.state_dict().values())
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
        shares = Shares(sampler, config.accumulate)
        loader: Any = DataLoader(train, batch_sampler=shares, collate_fn=_as_is)  # type: ignore[arg-type]
        optimizer: Any = torch.optim.AdamW(
            [group for group in method.parameter_groups(config.weight_decay) if group["params"]], lr=peak, fused=True
        )
        optimizer = self.accelerator.prepare(optimizer)
        best: dict[str, Any] = {"score": -math.inf, "state": trainable_state(method)}
        waited = 0
        if saved is not None:
            restore_state(method, saved["state"], str(self._checkpoint_path))
            optimizer.load_state_dict(saved["optimizer"])
            best = {"score": saved["best_score"], "state": saved["best_state"]}
            waited = int(saved["waited"])
        done = sum(entry["stage"] == number for entry in result.history)
        for epoch in track(range(done, epochs), f"epochs of stage {stage.name}", most=True):
            if waited >= config.patience:
                break
            # Counted over all stages, so that no two of them share batch orders or draws.
            sampler.epoch = len(result.history)
            seed_everything(self.train_seed, "epoch", sampler.epoch, *_own_draws())
            rates = [
                peak * _schedule(step, epochs * len(sampler), config.warmup)
                for step in range(epoch * len(sampler), (epoch + 1) * len(sampler))
            ]
            entry = {"stage": float(number), **self._train_epoch(model, optimizer, loader, rates, sampler)}
            processes.as_in_main(method.buffers())
            logits = self.predict(method, select)
            metrics = processes.from_main(lambda logits=logits: selection.evaluate(logits, select))  # type: ignore[misc]
            result.selection_looks[select.split] += 1
            entry.update({f"{select.split}/{name}": float(value) for name, value in metrics.items()})
            result.history.append(entry)
            score = selection.score(metrics, select.split)
            if score > best["score"]:
                best = {"score": score, "state": trainable_state(method)}
                result.best_epoch, result.best_metrics, waited = sampler.epoch, dict(metrics), 0
            else:
                waited += 1
            better = "the best so far" if not waited else f"{waited} after the best"
            note(f"{select.split} {selection.metric} {metrics[selection.metric]:.4f}, {better}")
            result.seconds = time.perf_counter() - self._clock
            self._save_checkpoint(method, optimizer, best, waited, result)
        result.learned = sorted({*(result.learned or ()), *_learned(method, optimizer)})
        restore_state(method, best["state"], "the best epoch")

    def _train_epoch(
        self, model: Any, optimizer: Any, loader: Any, rates: Sequence[float], sampler: EpochBatches
    ) -> dict[str, float]:
        """One pass with a learning rate per step; returns means of all scalars and the last learning rate."""
        model.train()
        sums: dict[str, Tensor] = {}
        optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        # In the model's order: a norm depends on the order of its terms.
        parameters = [parameter for parameter in model.parameters() if id(parameter) in optimized]
        parts = iter(loader)
        for step, rate in enumerate(rates):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            error: Exception | None = None
            try:
                for _ in range(self.config.accumulate):
                    batch: Batch = next(parts).to(self.device)
                    if len(batch):
                        weight = len(batch) / sampler.samples(step)
                        for name, value in self._add_gradient(model, batch, weight, step, sampler.epoch).items():
                            sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value
            except Exception as caught:
                error = caught
            self._add_up_gradients(parameters, error)
            if self.config.grad_clip > 0:
                clipped = parameters if processes.count() > 1 else model.parameters()
                self.accelerator.clip_grad_norm_(clipped, self.config.grad_clip)
            optimizer.step()
        totals: dict[str, float] = {}
        for own in processes.everywhere(lambda: {name: float(value) for name, value in sums.items()}):
            for name, number in own.items():
                totals[name] = totals.get(name, 0.0) + number
        return {**{name: total / len(rates) for name, total in totals.items()}, "lr": rates[-1]}

    def _add_gradient(self, model: Any, batch: Batch, weight: float, step: int, epoch: int) -> dict[str, Tensor]:
        """Adds the gradient of a part of a batch, weighted by its samples; returns its weighted scalars."""
        with self.accelerator.autocast():
            output: StepOutput = model(batch)
        if not torch.isfinite(output.loss):
            raise TrainingError(
                f"loss is {output.loss.item()} at step {step} of epoch {epoch}, "
                f"samples {', '.join(batch.ids[:5])}, …; "
                "lower trainer.lr, set trainer.grad_clip, or look at these samples.\n"
                f"all {len(batch)} samples of the step: {', '.join(batch.ids)}"
            )
        self.accelerator.backward(output.loss if weight == 1.0 else output.loss * weight)
        return {name: value.detach().float() * weight for name, value in _scalars(output).items()}

    def _add_up_gradients(self, parameters: Sequence[Tensor], error: Exception | None) -> None:
        """Makes the gradients of all processes their sum, and the failure of one the failure of all.

        A parameter that no process has a gradient of keeps none, so that the optimiser leaves it alone.
        """
        if processes.count() == 1:
            if error is not None:
                raise error
            return
        gradients = [torch.zeros_like(p) if p.grad is None or error is not None else p.grad for p in parameters]
        flags = [float(p.grad is not None) for p in parameters] + [float(error is not None)]
        flat = torch.cat([*(gradient.float().flatten() for gradient in gradients), torch.tensor(flags).to(self.device)])
        processes.add_up(flat)
        *there, failed = flat[-len(flags) :].tolist()
        if failed:
            processes.fail_together(error)
        start = 0
        for parameter, known in zip(parameters, there, strict=True):
            if known:
                summed = flat[start : start + parameter.numel()].view_as(parameter)
                parameter.grad = summed.to(parameter.dtype, copy=True)
            start += parameter.numel()

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
        """Logits `[n, C]` float32 of a split in its order; the method is left in its former mode.

        Processes take the batches in turn, and all get all logits.
        """
        self.looks[view.split] += 1
        starts = range(0, len(view), self.config.eval_batch_size)
        training = method.training
        method.eval()

        def own() -> list[FloatArray]:
            return [self._logits(method, view, start) for start in starts[processes.rank() :: processes.count()]]

        shares = processes.everywhere(own)
        method.train(training)
        parts = [shares[number % len(shares)][number // len(shares)] for number in range(len(starts))]
        return np.concatenate(parts).astype(np.float32)

    def _logits(self, method: Method, view: ObservedDataset, start: int) -> FloatArray:
        batch: Batch = view.batch(np.arange(start, min(start + self.config.eval_batch_size, len(view))))
        batch.full = None
        with self.accelerator.autocast():
            logits = method(batch.to(self.device))
        array: FloatArray = logits.float().cpu().numpy()
        return array

    @property
    def _checkpoint_path(self) -> Path | None:
        return None if self.folder is None else self.folder / CHECKPOINT

    def _load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint of this run; one that is damaged is set aside, so that training starts over.

        Raises:
            TrainingError: If it is of another run.
        """
        path = self._checkpoint_path
        if path is None or not path.is_file():
            return None
        try:
            content = path.read_bytes()
            digest, _, payload = content.partition(b"\n")
            if hashlib.sha256(payload).hexdigest().encode() != digest:
                raise ValueError("its checksum is wrong")
            saved: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except Exception as error:
            aside = path.with_name(path.name + ".damaged")
            path.replace(aside)
            say(f"warning: checkpoint {path} is damaged ({error}); it is now {aside.name}, and training starts over.")
            return None
        if saved["run_id"] != self.run_id:
            raise TrainingError(
                f"checkpoint {path} belongs to run {saved['run_id'][:12]}…, this is run {self.run_id[:12]}…; "
                "it was made with another configuration: delete it to train from the start."
            )
        return saved

    def _save_checkpoint(
        self, method: Method, optimizer: Any, best: Mapping[str, Any], waited: int, result: FitResult
    ) -> None:
        """Writes a line with the sha256 of what follows, then what `torch.load(weights_only=True)` reads."""
        path = self._checkpoint_path
        if path is None:
            return
        state = {
            "run_id": self.run_id,
            "stage": method.stage,
            "state": trainable_state(method),
            "optimizer": optimizer.state_dict(),
            "best_score": best["score"],
            "best_state": best["state"],
            "waited": waited,
            "result": vars(result).copy(),
        }

        def write() -> None:
            payload = io.BytesIO()
            torch.save(state, payload)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                file.write(hashlib.sha256(payload.getbuffer()).hexdigest().encode() + b"\n")
                file.write(payload.getbuffer())

        processes.from_main(write)


def _own_draws() -> tuple[object, ...]:
    """What tells the draws of a process that is not the main one from the main one's."""
    return ("process", processes.rank()) if processes.rank() else ()


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
    """Linear warm-up over w = `int(warmup * total)` steps, from 1 / (w + 1) on, then linear decay towards 0."""
    rising = int(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    return max(0.0, (total - step) / max(1, total - rising))


def count_parameters(method: Method) -> tuple[int, int]:
    """Trainable and total number of parameters."""
    sizes: Sequence[tuple[int, bool]] = [(p.numel(), p.requires_grad) for p in method.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
