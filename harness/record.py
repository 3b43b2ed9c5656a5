"""The record of a run: everything a reader needs to believe, compare and replay a score.

Plain data with a schema version; reading and writing it needs no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.errors import DataError
from harness.files import atomic_write

#: 2: several test conditions, with scores over all of them (`ConditionResult.kind`).
#: 3: audits of severity `note`, and what the audits took (`Cost.audit_seconds`).
RECORD_SCHEMA = 3
Status = Literal["running", "finished", "failed", "interrupted"]
#: A failed `leak` is not ranked, a failed `warning` has a badge; a `note` passed, but readers should know what it says.
Severity = Literal["leak", "warning", "note"]


@dataclass
class AuditResult:
    """Outcome of one leak check."""

    name: str
    passed: bool
    detail: str = ""
    severity: Severity = "leak"


@dataclass
class ConditionResult:
    """Scores under one test condition, or over all of several.

    Attributes:
        condition: Name of the condition (the protocol's, where it has only one), or of the score over all.
        metrics: Metric -> value over all test samples.
        intervals: Metric -> [low, high], 95 % percentile bootstrap over test samples; a sample that several
            conditions show is drawn with all its predictions.
        per_pattern: Pattern -> metric -> value.
        pattern_counts: Pattern -> number of test samples.
        kind: `condition`; `pool` for scores over the pool of all conditions' predictions, `mean` for the mean of
            the conditions' scores.
    """

    condition: str
    metrics: dict[str, float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    per_pattern: dict[str, dict[str, float]] = field(default_factory=dict)
    pattern_counts: dict[str, int] = field(default_factory=dict)
    kind: Literal["condition", "pool", "mean"] = "condition"


@dataclass
class Cost:
    """What a run took; seconds of wall time, parameters, bytes."""

    prepare_seconds: float = 0.0
    train_seconds: float = 0.0
    predict_seconds: float = 0.0
    audit_seconds: float = 0.0
    total_seconds: float = 0.0
    trainable_parameters: int = 0
    total_parameters: int = 0
    epochs: int = 0
    best_epoch: int = -1
    peak_memory_bytes: int = 0
    bank_bytes: int = 0
    bank_items: int = 0


@dataclass
class RunRecord:
    """One run.

    Attributes:
        run_id: sha256 of identity (see `harness.identity`).
        status: `finished`, `failed`, …
        method: Registered name; `label` tells variants of it apart (e.g. `image` for `unimodal`).
        preset: Fidelity preset; `changed` lists options that differ from the preset as `option=value`.
        oracle: True when the method was shown every modality: reported, never ranked.
        reference: `floor`, `ceiling` or None.
        dataset: Name, version, fingerprint, task, modalities, classes, split sizes, licence.
        protocol: Name, definition, supervision, mask seed, mask fingerprint, names of test conditions, the score that
            heads reports, counts.
        seeds: `mask_seed`, `train_seed`, `eval_seed`.
        config: The whole resolved config.
        primary_metric: Heads the tables; `metric_versions` freezes what every metric means.
        results: The score that heads reports first: the only test condition, or with several the scores over all
            of them before one entry per condition.
        valid: Metric -> value on `valid` of the chosen epoch.
        history: One dict per epoch: losses, learning rate, validation metrics.
        audits: Leak checks.
        environment: Versions, hardware, git state.
        predictions_sha256: Digest of the predictions file.
    """

    run_id: str
    status: Status
    method: str
    label: str
    preset: str
    changed: list[str]
    oracle: bool
    reference: str | None
    dataset: dict[str, Any]
    protocol: dict[str, Any]
    seeds: dict[str, int]
    config: dict[str, Any]
    backbone: str = ""
    primary_metric: str = ""
    higher_is_better: bool = True
    metric_versions: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    results: list[ConditionResult] = field(default_factory=list)
    valid: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    audits: list[AuditResult] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    environment: dict[str, Any] = field(default_factory=dict)
    predictions_sha256: str = ""
    error: str = ""
    started: str = ""
    finished: str = ""
    schema_version: int = RECORD_SCHEMA

    @property
    def tuning(self) -> Mapping[str, Any]:
        """The search that chose options of the run (`harness.config.TuningConfig`); empty if there was none."""
        return self.config.get("tuning") or {}

    @property
    def set_by_hand(self) -> list[str]:
        """Entries of `changed` that no search chose."""
        searched = self.tuning.get("searched", ())
        return [entry for entry in self.changed if f"method.{entry.partition('=')[0]}" not in searched]

    @property
    def display_name(self) -> str:
        """Row name in tables: method, label, non-default preset, whether it was tuned, options changed by hand."""
        extra = [part for part in (self.label, self.preset if self.preset != "clean" else "") if part]
        extra += ["tuned"] * bool(self.tuning) + self.set_by_hand
        return f"{self.method} ({', '.join(extra)})" if extra else self.method

    def to_json(self) -> str:
        """Canonical JSON text, stable key order."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, allow_nan=True) + "\n"

    def save(self, path: Path) -> None:
        """Writes the record atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_json())

    @classmethod
    def from_json(cls, text: str, source: str = "record") -> RunRecord:
        """Reads a record of this or an older schema.

        Raises:
            DataError: If the text is no record or comes from a newer schema.
        """
        try:
            data = json.loads(text)
            if "\\ud" in text.lower():
                # JSON can write halves of letters, which no file can hold.
                data = json.loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
            version = int(data["schema_version"])
            if version > RECORD_SCHEMA:
                raise DataError(f"{source}: written by a newer harness (schema {version}); upgrade to read it.")
            data["results"] = [ConditionResult(**result) for result in data["results"]]
            data["audits"] = [AuditResult(**audit) for audit in data["audits"]]
            data["cost"] = Cost(**data["cost"])
            return cls(**data)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{source}: not a run record ({type(error).__name__}: {error}).") from error

    @classmethod
    def load(cls, path: Path) -> RunRecord:
        """Reads a record file."""
        try:
            return cls.from_json(path.read_text(), str(path))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}.") from error
