"""Options of IF-MMIN; every row of its decision table that concerns the method is one of them (see card.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.methods.common.imagination_config import ImaginationConfig
from harness.methods.common.official_names import cascade_names, classifier_names, encoder_names
from harness.plugin import check_choice, check_range


@dataclass
class IfMminConfig(ImaginationConfig):
    """IF-MMIN: MMIN's imagination, conditioned on modality-invariant features.

    Attributes:
        preset: `clean` (no constant targets, padding masked), `paper` (as published), `official` (latest code).
        imagination_weight: Weight of the imagination loss.
        invariance_weight: Weight of the invariant features' squared error to the teacher's.
        cmd_weight: Weight of the central moment discrepancy in pretraining.
        cmd_moments: Highest moment compared.
        cmd_bounded: Whether invariant features go through a sigmoid before their moments are compared.
        cmd_min_rows: Samples that both modalities of a compared pair need in the batch.
        recursion: `v2024`: block k reads block k-1's output plus the invariant feature; `v2022` (as published): it
            reads the input plus k times the invariant feature, so that only the last decoder has an influence.
    """

    invariance_weight: float = 100.0
    cmd_weight: float = 1.0
    cmd_moments: int = 5
    cmd_bounded: bool = False
    cmd_min_rows: int = 8
    recursion: str = "v2024"

    version: ClassVar[str] = "2"  # 1: features as they come
    target: ClassVar[str] = "harness.methods.if_mmin.model:IfMmin"
    summary: ClassVar[str] = (
        "imagination of missing embeddings conditioned on modality-invariant features (ICASSP 2023)"
    )
    citation: ClassVar[str] = (
        "Zuo, Liu, Zhao, Gao and Li, Exploiting Modality-Invariant Feature for Robust Multimodal Emotion Recognition "
        "with Missing Modalities, ICASSP 2023, arXiv:2210.15359"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clean": {},
        "paper": {
            "width": 128,
            "encoder": "tokens",
            "standardize": False,
            "initialization": "kaiming",
            "targets": "all",
            "full_pattern": False,
            "cmd_min_rows": 1,
            "recursion": "v2022",
        },
        "official": {
            "width": 128,
            "encoder": "tokens",
            "standardize": False,
            "initialization": "kaiming",
            "padding": "included",
            "targets": "all",
            "full_pattern": False,
            "cmd_min_rows": 1,
        },
    }

    official_names: ClassVar[Mapping[str, str]] = {
        **encoder_names("encoders"),
        **encoder_names("teacher", "pretrained."),
        "invariant.0": "netinvariant.netshared.shared_1",
        "invariant.2": "netinvariant.netshared.shared_2",
        "invariant_teacher.0": "pretrained.netShared.netshared.shared_1",
        "invariant_teacher.2": "pretrained.netShared.netshared.shared_2",
        **cascade_names("imagination", "netAE"),
        **classifier_names("classifier", "netC"),
        **classifier_names("pretrain_classifier", "pretrained.netC"),
    }

    def main_weights(self) -> dict[str, float]:
        """Weight of every loss term of the main stage."""
        return {**super().main_weights(), "invariance": self.invariance_weight}

    def loss_terms(self) -> tuple[str, ...]:
        """Terms of both stages with a weight above zero."""
        return (*super().loss_terms(), *(("cmd",) if self.cmd_weight > 0 else ()))

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        super().validate()
        check_choice("method", "recursion", self.recursion, ("v2024", "v2022"))
        for option in ("cmd_moments", "cmd_min_rows"):
            check_range("method", option, getattr(self, option), 1)
        for option in ("invariance_weight", "cmd_weight"):
            check_range("method", option, getattr(self, option), 0.0)
