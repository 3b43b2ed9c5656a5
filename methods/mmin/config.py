"""Options of MMIN; every row of its decision table that concerns the method is one of them (see card.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.methods.common.imagination_config import ImaginationConfig
from harness.methods.common.official_names import cascade_names, classifier_names, encoder_names
from harness.plugin import check_range


@dataclass
class MminConfig(ImaginationConfig):
    """MMIN: missing modality imagination network with cycle consistency.

    Attributes:
        preset: `clean` (no constant targets, padding masked), `paper` (declared settings), `official` (released code).
        imagination_weight: Weight of the forward imagination loss.
        cycle_weight: Weight of the backward imagination loss; 0 builds no backward module.
        share_weight: Whether one module imagines forward and backward (released setting for MSP-IMPROV).
    """

    imagination_weight: float = 4.0
    cycle_weight: float = 2.0
    share_weight: bool = False

    version: ClassVar[str] = "2"  # 1: features as they come
    target: ClassVar[str] = "harness.methods.mmin.model:Mmin"
    summary: ClassVar[str] = "imagines missing embeddings by a residual autoencoder cascade, with a cycle (ACL 2021)"
    citation: ClassVar[str] = (
        "Zhao, Li and Jin, Missing Modality Imagination Network for Emotion Recognition with Uncertain Missing "
        "Modalities, ACL-IJCNLP 2021, pages 2608-2618, doi:10.18653/v1/2021.acl-long.203"
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
        },
        "official": {
            "width": 128,
            "encoder": "tokens",
            "standardize": False,
            "initialization": "kaiming",
            "padding": "included",
            "targets": "all",
            "full_pattern": False,
        },
    }

    official_names: ClassVar[Mapping[str, str]] = {
        **encoder_names("encoders"),
        **encoder_names("teacher", "pretrained."),
        **cascade_names("imagination", "netAE"),
        **cascade_names("backward_imagination", "netAE_cycle"),
        **classifier_names("classifier", "netC"),
        **classifier_names("pretrain_classifier", "pretrained.netC"),
    }

    def main_weights(self) -> dict[str, float]:
        """Weight of every loss term of the main stage."""
        return {**super().main_weights(), "cycle": self.cycle_weight}

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        super().validate()
        check_range("method", "cycle_weight", self.cycle_weight, 0.0)
