"""Options of the RAML-style method; all of it below the three claims of the abstract is our design (see card.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.config import MethodConfig
from harness.errors import UsageError
from harness.plugin import check_choice, check_range


@dataclass
class RamlStyleConfig(MethodConfig):
    """Separate unimodal tasks, features of a constrained norm, and fusion that learns to repair damaged ones.

    Attributes:
        width: Feature width d.
        heads: Attention heads; must divide `width`.
        unimodal_layers: Layers of every unimodal encoder.
        fusion_layers: Layers of the fusion transformer.
        dropout: Dropout of all layers.
        inputs: `tokens` of the frozen encoders, or `pooled` vectors, each split into `pooled_tokens` learned ones.
        pooled_tokens: Tokens g per modality of `pooled`.
        max_tokens: Longer token sequences are averaged down to this length.
        norm: Features have norm √d (`hard`), are drawn to it by a penalty (`soft`), or are left alone (`none`).
        norm_weight: Weight of the penalty of `soft`.
        unimodal: First stage: `separate` tasks, or `joint` training of the mean of unimodal logits (ablation).
        fusion: `transformer`, or `late`: the mean of unimodal logits, whose heads the last stage trains (ablation).
        encoders: In the last stage `frozen`, or `trained` further.
        pretrain_epochs: Upper bound of passes of every stage before the last.
        pretrain_lr: Peak learning rate of those stages; 0 means `trainer.lr`.
        damage_rate: Share of training samples that are damaged; 0 leaves the damaged branch out (ablation).
        drop_rate: Share of dropped modalities among damaged ones; the others get noise.
        max_severity: Largest noise, in standard deviations of each feature.
        repair_weight: Weight of the repair loss; 0 builds no repair head (ablation).
        consistency_weight: Weight of the divergence of damaged from clean predictions.
    """

    width: int = 128
    heads: int = 4
    unimodal_layers: int = 2
    fusion_layers: int = 2
    dropout: float = 0.1
    inputs: str = "tokens"
    pooled_tokens: int = 8
    max_tokens: int = 32
    norm: str = "hard"
    norm_weight: float = 0.01
    unimodal: str = "separate"
    fusion: str = "transformer"
    encoders: str = "frozen"
    pretrain_epochs: int = 30
    pretrain_lr: float = 0.0
    damage_rate: float = 0.5
    drop_rate: float = 0.5
    max_severity: float = 2.0
    repair_weight: float = 1.0
    consistency_weight: float = 0.5

    target: ClassVar[str] = "harness.methods.raml_style.model:RamlStyle"
    summary: ClassVar[str] = "separate unimodal training, features of one norm, fusion that repairs (after RAML, 2025)"
    citation: ClassVar[str] = (
        "after RAML, arXiv:2310.14496, Neural Networks 191:107821, 2025, of which only the abstract was at hand; "
        "not a reproduction"
    )
    uses_backbone: ClassVar[bool] = False

    def damage_weights(self) -> dict[str, float]:
        """Weight of every loss on damaged samples that is used."""
        weights = {
            "damaged": 1.0,
            "repair": self.repair_weight if self.fusion == "transformer" else 0.0,
            "consistency": self.consistency_weight,
        }
        return {term: weight for term, weight in weights.items() if weight > 0 and self.damage_rate > 0}

    def loss_terms(self) -> tuple[str, ...]:
        """The task loss of every stage, those on damaged samples, and the norm's penalty."""
        return ("task", *self.damage_weights(), *(("norm",) if self.norm == "soft" else ()))

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("method", "inputs", self.inputs, ("tokens", "pooled"))
        check_choice("method", "norm", self.norm, ("hard", "soft", "none"))
        check_choice("method", "unimodal", self.unimodal, ("separate", "joint"))
        check_choice("method", "fusion", self.fusion, ("transformer", "late"))
        check_choice("method", "encoders", self.encoders, ("frozen", "trained"))
        for option in ("width", "heads", "unimodal_layers", "fusion_layers", "pooled_tokens", "max_tokens"):
            check_range("method", option, getattr(self, option), 1)
        check_range("method", "pretrain_epochs", self.pretrain_epochs, 1)
        for option in ("dropout", "damage_rate", "drop_rate"):
            check_range("method", option, getattr(self, option), 0.0, 1.0)
        for option in ("norm_weight", "pretrain_lr", "max_severity", "repair_weight", "consistency_weight"):
            check_range("method", option, getattr(self, option), 0.0)
        if self.width % self.heads:
            raise UsageError(
                f"method.heads={self.heads} does not divide method.width={self.width}; choose one that does."
            )
        if self.norm == "soft" and self.norm_weight == 0:
            raise UsageError("method.norm_weight=0 makes method.norm=soft do nothing; use method.norm=none.")
