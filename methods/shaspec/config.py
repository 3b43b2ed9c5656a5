"""Options of ShaSpec (see card.md for which of them the paper decides)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.config import MethodConfig
from harness.plugin import check_choice, check_range


@dataclass
class ShaSpecConfig(MethodConfig):
    """ShaSpec: one encoder shared by all modalities, one of each modality's own, fused by a residual.

    Attributes:
        preset: `clean` (the paper's method on pooled features), or `official` (the released code's choices).
        width: Width d of shared, specific and fused features.
        dropout: Dropout in the encoders and the classifier.
        filler: Fused feature of a missing modality: `mean` of the present shared features (paper), or that of the
            `first` present modality in spec order (released code).
        pairs: Modalities whose shared features are aligned: `all` pairs, or the `ring` of neighbours in spec order
            (released code).
        auxiliary: `present`: both auxiliary losses read observed modalities only; `all`: also the features of an
            all-zero input in the place of missing ones (released code).
        alignment_weight: Weight α of the distribution alignment loss.
        domain_weight: Weight β of the domain classification loss.
    """

    width: int = 256
    dropout: float = 0.3
    filler: str = "mean"
    pairs: str = "all"
    auxiliary: str = "present"
    alignment_weight: float = 0.1
    domain_weight: float = 0.02

    target: ClassVar[str] = "harness.methods.shaspec.model:ShaSpec"
    summary: ClassVar[str] = "shared and specific features fused by a residual, shared ones stand in (CVPR 2023)"
    citation: ClassVar[str] = (
        "Wang, Chen, Ma, Avery, Hull and Carneiro, Multi-modal Learning with Missing Modality via Shared-Specific "
        "Feature Modelling, CVPR 2023, arXiv:2307.14126"
    )
    uses_backbone: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clean": {},
        "official": {"filler": "first", "pairs": "ring", "auxiliary": "all"},
    }

    def weights(self) -> dict[str, float]:
        """Weight of every loss term that is used."""
        weights = {"task": 1.0, "alignment": self.alignment_weight, "domain": self.domain_weight}
        return {term: weight for term, weight in weights.items() if weight > 0}

    def loss_terms(self) -> tuple[str, ...]:
        """Terms with a weight above zero."""
        return tuple(self.weights())

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("method", "filler", self.filler, ("mean", "first"))
        check_choice("method", "pairs", self.pairs, ("all", "ring"))
        check_choice("method", "auxiliary", self.auxiliary, ("present", "all"))
        check_range("method", "width", self.width, 1)
        check_range("method", "dropout", self.dropout, 0.0, 1.0)
        check_range("method", "alignment_weight", self.alignment_weight, 0.0)
        check_range("method", "domain_weight", self.domain_weight, 0.0)
