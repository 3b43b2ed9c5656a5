"""Contract of methods: what a plugin implements and what the harness gives it.

A method is an `nn.Module`.  It receives batches in which hidden values do not exist, returns logits, and never
draws masks, computes metrics or opens a split by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config import RetrievalConfig
from harness.errors import UsageError
from harness.types import Batch, DatasetSpec, FeatureSpec, StepOutput, TaskSpec

if TYPE_CHECKING:
    from harness.backbone import Backbone
    from harness.masking import ObservedDataset
    from harness.retrieval import Bank


@dataclass(frozen=True)
class MethodContext:
    """Everything a method may know before it sees data.

    Attributes:
        dataset: Modalities, task, classes.
        features: Shape of each modality's tokens and pooled vector, in spec order.
        build_backbone: Returns a new backbone for these features.
        supervision: `observed` or `complete`.
        retrieval: Search backend.
        train_seed: For methods that draw outside the trainer (e.g. random neighbours).
    """

    dataset: DatasetSpec
    features: Mapping[str, FeatureSpec]
    build_backbone: Callable[[], Backbone]
    supervision: str = "observed"
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    train_seed: int = 0

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modality names in the column order of `Batch.present`."""
        return self.dataset.modality_names


@dataclass(frozen=True)
class Stage:
    """One phase of training, with its own optimiser, schedule, early stopping and best epoch.

    Attributes:
        name: Shown in histories and checkpoints; unique within a method.
        epochs: Upper bound of passes; 0 means `trainer.epochs`.
        lr: Peak learning rate; 0 means `trainer.lr`.
    """

    name: str
    epochs: int = 0
    lr: float = 0.0


class Method(nn.Module, ABC):
    """Base class of all methods.

    Args:
        config: The plugin's options.
        context: Data set, features and backbone factory.

    Attributes:
        stage: Name of the current stage, set by the trainer; the last one when training is over or weights were loaded.
    """

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__()
        self.config: Any = config
        self.context = context
        self.task: TaskSpec = context.dataset.task
        self.modalities = context.modalities
        self.stage = self.stages()[-1].name

    def stages(self) -> Sequence[Stage]:
        """Phases of training in order; may read `self.config` and `self.modalities` only."""
        return (Stage("main"),)

    def start_stage(self, stage: Stage, train: ObservedDataset) -> None:
        """Work at the transition into a stage: copy a teacher, fill a database.

        Called once per stage, after the former stage's best weights were restored and not again when a killed run
        goes on, so what it computes must live in parameters or persistent buffers.  Must be deterministic.
        """

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters that the current stage optimises; the default is all that require gradients."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def prepare(self, train: ObservedDataset) -> None:
        """Builds what training needs from the observed training split: banks, statistics, vocabularies.

        Called once, before training or before weights are restored; must be deterministic.
        """

    def open_valid(self, valid: ObservedDataset) -> None:  # noqa: ARG002
        """Receives the validation split before `prepare`, only if `config.uses_valid()` declares it."""
        raise UsageError(f"{type(self).__name__} declares uses_valid() but does not take the validation split.")

    @abstractmethod
    def training_step(self, batch: Batch) -> StepOutput:
        """Loss of one training batch.  `batch.full` is set only under `supervision=complete`."""

    @abstractmethod
    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]` of a batch; called in eval mode without gradients, labels must not be read."""

    def forward(self, batch: Batch) -> Any:
        """Training step in train mode, logits in eval mode (so that wrappers like DDP see one entry)."""
        return self.training_step(batch) if self.training else self.predict_step(batch)

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The task's loss, averaged over the batch; see `task_loss`."""
        return task_loss(self.task, logits, labels)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups of the current stage; biases, norms and what `no_decay` names are not decayed."""
        named = list(self.trained())
        skip = set(self.no_decay())

        def spared(name: str, parameter: Tensor) -> bool:
            return parameter.ndim < 2 or any(part in skip for part in name.split("."))

        return [
            {"params": [p for n, p in named if not spared(n, p)], "weight_decay": weight_decay},
            {"params": [p for n, p in named if spared(n, p)], "weight_decay": 0.0},
        ]

    def no_decay(self) -> Sequence[str]:
        """Attribute names of parameters or modules without weight decay (prompts, label tables, embeddings)."""
        return ()

    def banks(self) -> Mapping[str, Bank]:
        """Banks of retrievable samples, for the audit; empty for methods that do not retrieve."""
        return {}

    def official_state(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Lays the tensors of a released state dict out as they are here: stacks, splits or reorders them.

        `harness import-checkpoint` calls this before `config.official_names` pairs names, so what is returned goes by
        the released names, and what is not known stays as it is.  Default: everything does.

        Raises:
            UsageError: If the released layout means nothing for this data set's modalities.
        """
        return theirs


def task_loss(task: TaskSpec, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (binary, multiclass), BCE over N·C (multilabel) or squared error (regression).

    Args:
        task: Decides the loss.
        logits: `[B, C]`.
        labels: `[B]` int64 or `[B, C]` float.

    Returns:
        Scalar mean.
    """
    logits = logits.float()
    if task.kind in ("binary", "multiclass"):
        return F.cross_entropy(logits, labels)
    if task.kind == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.mse_loss(logits, labels)


def class_prior_logits(task: TaskSpec, labels: Tensor) -> Tensor:
    """Logits `[C]` of the training labels' base rates (regression: their mean), Laplace-smoothed."""
    if task.kind in ("binary", "multiclass"):
        counts = torch.bincount(labels, minlength=task.num_outputs).float() + 1.0
        return (counts / counts.sum()).log()
    if task.kind == "multilabel":
        rate = (labels.sum(0) + 1.0) / (len(labels) + 2.0)
        return torch.logit(rate)
    return labels.mean(0)
