"""Configuration: base classes of plugin configs and the config of one run.

These dataclasses are the code API and the Hydra schema at once (`harness.compose` turns a command line into
them).  Importing this module must stay light: no torch, transformers, hydra or mlflow.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from harness.devices import DEVICES
from harness.errors import UsageError
from harness.plugin import PluginConfig, check_choice, check_range

Fidelity = Literal["clean", "paper", "official"]


@dataclass
class MethodConfig(PluginConfig):
    """Base of method configs; `target` names a `harness.method.Method`.

    Attributes:
        preset: Name of the entry of `presets` whose values are the defaults of this run.
        uses_backbone: Whether the method runs on the `backbone` of the run config.
        trains: False for methods without gradient training (majority, neighbour votes).
        oracle: True for references that are shown every modality; they are reported, never ranked.
        reference: `"floor"` or `"ceiling"` for the rows between which recovered gap is measured.
        loss_terms: Names of `StepOutput.terms` that must be non-zero at least once in a run.
        official_names: Prefix of our tensor names -> prefix in the state dict of the released code, whole name parts;
            the longest that fits wins, and names without one are the same in both (`harness import-checkpoint`).
    """

    preset: str = "clean"

    uses_backbone: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    oracle: ClassVar[bool] = False
    reference: ClassVar[str | None] = None
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"clean": {}}
    official_names: ClassVar[Mapping[str, str]] = {}

    @property
    def label(self) -> str:
        """Variant shown behind the method's name in tables, e.g. `"image"` for `unimodal`; empty for none."""
        return ""

    def loss_terms(self) -> tuple[str, ...]:
        """Names of the loss terms this configuration declares; the audit fails when one is always zero."""
        return ("task",)

    def uses_valid(self) -> bool:
        """Whether the method is handed the validation split as evidence (a declared leak that the audit reports)."""
        return False

    @property
    def replays(self) -> bool:
        """Whether it replays released code, with that code's metrics beside the correct ones."""
        return self.preset == "official"

    def needs_complete_supervision(self) -> bool:
        """Whether an option reads true values of missing training modalities (`supervision=complete`)."""
        return False

    def validate_for(self, modalities: tuple[str, ...]) -> None:
        """Checks options that name modalities; raises `UsageError`."""


@dataclass
class EncoderConfig(PluginConfig):
    """Base of frozen-encoder configs; `target` names a `harness.encoder.Encoder`.

    Attributes:
        kinds: Modality kinds the encoder accepts.
    """

    kinds: ClassVar[tuple[str, ...]] = ()


@dataclass
class BackboneConfig(PluginConfig):
    """Base of backbone configs; `target` names a `harness.backbone.Backbone`.

    Attributes:
        token_encoders: Encoder per modality kind whose tokens the backbone embeds; None means the run's own
            frozen encoders.  Retrieval keys always come from the run's encoders.
    """

    token_encoders: ClassVar[Mapping[str, str] | None] = None

    def encoder_options(self) -> Mapping[str, Mapping[str, Any]]:
        """Options handed to `token_encoders`, per encoder name (e.g. the folder of a tokenizer)."""
        return {}


@dataclass
class MetricConfig(PluginConfig):
    """Base of metric entries; `target` names a function `(logits, labels) -> float`.

    Attributes:
        tasks: Task kinds the metric is defined for.
        higher_is_better: Direction.
    """

    card: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = ()
    higher_is_better: ClassVar[bool] = True


@dataclass
class TrainerConfig:
    """The shared training budget: the same for every method unless a run overrides it.

    Attributes:
        epochs: Upper bound of passes over the training split.
        batch_size: Training samples per step (over all devices).
        eval_batch_size: Samples per step without gradients.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay; not applied to biases, norms, prompts and label tables.
        warmup: Fraction of all steps with linearly rising learning rate; linear decay to zero after it.
        patience: Epochs without improvement on `valid` before training stops.
        grad_clip: Largest gradient norm; 0 switches clipping off.
        accumulate: Parts that a process cuts its share of a batch into, one after the other: less memory, the same
            step but for what a method draws or averages over a part.
        precision: `no`, `bf16` or `fp16` mixed precision (Accelerate).
        select_on: Metric that chooses the epoch; empty means the task's primary metric.
        select_split: Split that chooses the epoch: `valid`, or `test` to replay released code that selects on test
            (the audit reports it).
        cpu_matmul: torch matmul precision on CPU; `medium` lets oneDNN do fp32 products.
    """

    epochs: int = 20
    batch_size: int = 64
    eval_batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 5e-5
    warmup: float = 0.1
    patience: int = 10
    grad_clip: float = 0.0
    accumulate: int = 1
    precision: str = "no"
    select_on: str = ""
    select_split: str = "valid"
    cpu_matmul: str = "medium"

    def validate(self) -> None:
        """Checks ranges and choices; raises `UsageError`."""
        check_choice("trainer", "precision", self.precision, ("no", "bf16", "fp16"))
        check_choice("trainer", "select_split", self.select_split, ("valid", "test"))
        check_choice("trainer", "cpu_matmul", self.cpu_matmul, ("highest", "high", "medium"))
        for option in ("epochs", "batch_size", "eval_batch_size", "patience", "accumulate"):
            check_range("trainer", option, getattr(self, option), 1)
        check_range("trainer", "lr", self.lr, 0.0)
        check_range("trainer", "weight_decay", self.weight_decay, 0.0)
        check_range("trainer", "warmup", self.warmup, 0.0, 1.0)
        check_range("trainer", "grad_clip", self.grad_clip, 0.0)


@dataclass
class RetrievalConfig:
    """How neighbours are searched.

    Attributes:
        backend: `faiss` (exact inner product, required by default), `torch` (exact, explicit), or, approximate and
            meant for banks of above a million items, `faiss_ivf` and `faiss_hnsw`.
    """

    backend: str = "faiss"

    def validate(self) -> None:
        """Checks choices; raises `UsageError`."""
        check_choice("retrieval", "backend", self.backend, ("faiss", "torch", "faiss_ivf", "faiss_hnsw"))


def default_encoders() -> dict[str, str]:
    """Frozen encoder per modality kind; a modality's own name as key overrides its kind."""
    return {
        "text": "minilm",
        "image": "efficientnet_lite0",
        "audio": "log_mel",
        "features": "identity",
        "tabular": "identity",
    }


@dataclass
class PathsConfig:
    """Where files go; never part of a run's identity.

    Attributes:
        home: Base folder; empty means `$HARNESS_HOME`, else `~/.cache/missing-modality-harness`.
        data: Folder with data sets that a user supplies; empty means `<home>/data`.
    """

    home: str = ""
    data: str = ""


@dataclass
class TrackingConfig:
    """MLflow destination; never part of a run's identity.

    Attributes:
        uri: Empty means `$MLFLOW_TRACKING_URI`, else `sqlite:///<home>/mlflow.db`.
        experiment: Empty means `harness/<data set>`.
        checkpoint: Whether the best weights are logged as an artifact.
        sweep: Name of the sweep below which a run is nested; empty means none for `harness run`, and a name made of
            the cells for a sweep.
        system_metrics: Whether load and memory of the machine are sampled and logged (extra `monitor`).
    """

    uri: str = ""
    experiment: str = ""
    checkpoint: bool = True
    sweep: str = ""
    system_metrics: bool = False

    def validate(self) -> None:
        """Checks the name of a sweep; raises `UsageError`."""
        if not re.fullmatch(r"[\w .:+*/-]{0,100}", self.sweep):
            raise UsageError(
                f"tracking.sweep={self.sweep!r}: a name has at most 100 letters, digits, spaces and . : + * / - _"
            )


@dataclass
class TuningConfig:
    """Where the options of a tuned run come from (`harness tune`); part of its identity, never typed by hand.

    Attributes:
        study: First 16 hex digits of the study's sha256: everything that the search depended on.
        trials: Configurations that were tried.
        searched: Options that were searched.
        dataset: Data set on whose validation split they were chosen.
        protocol: Protocol of the search.
        metric: Metric that chose.
        train_seeds: Train seeds of every trial, over which the metric was averaged.
    """

    study: str
    trials: int
    searched: list[str]
    dataset: str
    protocol: str
    metric: str
    train_seeds: list[int]


@dataclass
class RunConfig:
    """One cell: one method under one protocol on one data set with one seed each.

    Attributes:
        method: Config of a registered method.
        dataset: Config of a registered data set.
        protocol: Name that a protocol family parses, e.g. `both_0.7`.
        supervision: `observed`: what is missing in training is gone; `complete`: training data are complete
            and missingness is simulated (the declared protocol of REDEEM, RAGPT and MMIN).
        backbone: Config of a registered backbone, for methods that use one.
        encoders: Frozen encoder per modality kind or modality name.
        encoder_options: Options per encoder name, e.g. `encoder_options.minilm.max_tokens=32`.
        trainer: Training budget.
        retrieval: How neighbours are searched.
        mask_seed: Decides which values are missing, nothing else.
        train_seed: Initialisation, batch order, dropout.
        eval_seed: Anything random at prediction time, and bootstrap resampling.
        overwrite: `never` (finished runs are skipped), `failed` (failed ones are run again), `always`.
        device: `auto` (the GPU, or the CPU where there is none), `cpu`, `cuda` or `mps`.
        paths: Where files go.
        tracking: Where the record goes.
        tuning: Where tuned options come from; None for options that nobody searched.
    """

    method: Any
    dataset: Any
    backbone: Any
    protocol: str = "both_0.7"
    supervision: str = "observed"
    encoders: dict[str, str] = field(default_factory=default_encoders)
    encoder_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    mask_seed: int = 0
    train_seed: int = 0
    eval_seed: int = 0
    overwrite: str = "failed"
    device: str = "auto"
    paths: PathsConfig = field(default_factory=PathsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    tuning: TuningConfig | None = None

    def validate(self) -> None:
        """Checks every part; raises `UsageError`."""
        check_choice("", "supervision", self.supervision, ("observed", "complete"))
        check_choice("", "device", self.device, DEVICES)
        check_choice("", "overwrite", self.overwrite, ("never", "failed", "always"))
        for part in (self.trainer, self.retrieval, self.tracking, self.method, self.dataset, self.backbone):
            part.validate()
        for option in ("mask_seed", "train_seed", "eval_seed"):
            check_range("", option, getattr(self, option), 0)


#: Parts of a `RunConfig` that do not change what a run computes.
NOT_IDENTITY = ("paths", "tracking", "device", "overwrite")
#: Trainer options that are younger than the first records, with the value that changes nothing.
_NEUTRAL: Mapping[str, Any] = {"accumulate": 1}


def identity_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plain config (`to_dict`, or a record's) that changes what a run computes."""
    part = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    trainer = part.get("trainer")
    if isinstance(trainer, Mapping):
        part["trainer"] = {key: value for key, value in trainer.items() if _NEUTRAL.get(key, ...) != value}
    return part


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, the same on every platform."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest_of(value: Any, length: int = 64) -> str:
    """First `length` hex digits of the sha256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]
