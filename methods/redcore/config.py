"""Options of RedCore; every row of its decision table that concerns the method is one of them (see card.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from harness.config import MethodConfig
from harness.errors import UsageError
from harness.methods.common.official_names import attention_encoder_names, cascade_names, classifier_names
from harness.methods.common.options import check_choices
from harness.plugin import check_range

#: Attention heads of the token encoder.
HEADS = 8

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "encoder": ("pooled", "tokens"),
    "padding": ("masked", "included"),
    "initialization": ("torch", "kaiming"),
    "reconstruction": ("sum", "mean"),
    "growth_unit": ("epochs", "iterations"),
    "mask_binding": ("sample", "position"),
}


@dataclass
class RedCoreConfig(MethodConfig):
    """RedCore: variational codes, each predicted from the others, with weights that help the modality that lags.

    Attributes:
        preset: `clean`, `paper` (declared settings), or `official` (released code).
        width: Code width d of every modality.
        encoder: `pooled` (two layers on the pooled vector), or `tokens`: three attention blocks (paper).
        padding: Of `tokens`: `masked` leaves padding out, `included` reads it as zero tokens (released code).
        standardize: Whether features are brought to mean 0 and deviation 1 over the observed training values, so that
            the zero input of a missing modality is the mean.
        initialization: `torch` (the library's), or `kaiming` (released code), with which reconstruction starts at
            enormous values.
        decoder_blocks: Residual blocks of a cross-modal decoder.
        decoder_hidden: Encoder widths of each of its blocks.
        dropout: Dropout of the classifiers.
        unimodal_weight: Weight of the unimodal classifiers' losses.
        kl_weight: Weight λ of the codes' divergence from the standard normal.
        reconstruction_weight: Weight of the balanced reconstruction losses.
        reconstruction: A code's squared error is the `mean` over d, or the `sum` (paper), which outweighs the task
            for the first thousands of steps.
        average_rate: ρ of the running averages of the reconstruction losses.
        step_size: η of the weights' update, before its growth; 0 keeps the weights equal.
        step_growth: Factor by which η grows at the start and then every `growth_every`.
        growth_every: How many epochs or iterations; the released 500 iterations are 15 epochs on IEMOCAP.
        growth_unit: Of `growth_every`: `epochs`, so that the pace does not depend on the number of samples, or
            `iterations` (released code).
        update_every: Iterations between updates of the weights.
        mask_binding: A training sample misses the same modalities in every epoch (`sample`); `position` deals the
            masks of a batch anew to its samples, so that nothing is ever missing for good (released code, needs
            `supervision=complete`).
        eval_sample: Whether codes are sampled in evaluation too (released code); else they are their means.
    """

    width: int = 128
    encoder: str = "pooled"
    padding: str = "masked"
    standardize: bool = True
    initialization: str = "torch"
    decoder_blocks: int = 5
    decoder_hidden: list[int] = field(default_factory=lambda: [256, 128, 64])
    dropout: float = 0.5
    unimodal_weight: float = 1.0
    kl_weight: float = 8e-4
    reconstruction_weight: float = 0.15
    reconstruction: str = "mean"
    average_rate: float = 0.7
    step_size: float = 0.1
    step_growth: float = 1.5
    growth_every: int = 15
    growth_unit: str = "epochs"
    update_every: int = 3
    mask_binding: str = "sample"
    eval_sample: bool = False

    target: ClassVar[str] = "harness.methods.redcore.model:RedCore"
    summary: ClassVar[str] = "variational codes predicted from each other, with self-balancing weights (AAAI 2024)"
    citation: ClassVar[str] = (
        "Sun, Zhang, Han, Ruan and Li, RedCore: Relative Advantage Aware Cross-Modal Representation Learning for "
        "Missing Modalities with Imbalanced Missing Rates, AAAI 2024, 38(13), pages 15173-15182, "
        "doi:10.1609/aaai.v38i13.29440, arXiv:2312.10386"
    )
    uses_backbone: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clean": {},
        "paper": {
            "encoder": "tokens",
            "standardize": False,
            "initialization": "kaiming",
            "reconstruction": "sum",
            "growth_every": 500,
            "growth_unit": "iterations",
        },
        "official": {
            "encoder": "tokens",
            "padding": "included",
            "standardize": False,
            "initialization": "kaiming",
            "reconstruction": "sum",
            "growth_every": 500,
            "growth_unit": "iterations",
            "mask_binding": "position",
            "eval_sample": True,
        },
    }

    official_names: ClassVar[Mapping[str, str]] = {
        **attention_encoder_names("encoders.audio", "netA"),
        **attention_encoder_names("encoders.video", "netV"),
        **attention_encoder_names("encoders.text", "netL"),
        **cascade_names("decoders.audio", "netxenc_vl2a"),
        **cascade_names("decoders.video", "netxenc_al2v"),
        **cascade_names("decoders.text", "netxenc_av2l"),
        **classifier_names("classifier", "netCls"),
        **classifier_names("unimodal_classifiers.audio", "netCls_a"),
        **classifier_names("unimodal_classifiers.video", "netCls_v"),
        **classifier_names("unimodal_classifiers.text", "netCls_l"),
    }

    def loss_weights(self) -> dict[str, float]:
        """Weight of every loss term that is used."""
        weights = {
            "task": 1.0,
            "unimodal": self.unimodal_weight,
            "kl": self.kl_weight,
            "reconstruction": self.reconstruction_weight,
        }
        return {term: weight for term, weight in weights.items() if weight > 0}

    def loss_terms(self) -> tuple[str, ...]:
        """Terms with a weight above zero."""
        return tuple(self.loss_weights())

    def needs_complete_supervision(self) -> bool:
        """Whether values that the protocol hides from a training sample come back in other epochs."""
        return self.mask_binding == "position"

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choices(self, _CHOICES)
        for option in ("width", "decoder_blocks", "growth_every", "update_every"):
            check_range("method", option, getattr(self, option), 1)
        for option in ("unimodal_weight", "kl_weight", "reconstruction_weight", "step_size"):
            check_range("method", option, getattr(self, option), 0.0)
        check_range("method", "dropout", self.dropout, 0.0, 1.0)
        check_range("method", "average_rate", self.average_rate, 0.0, 1.0)
        check_range("method", "step_growth", self.step_growth, 1.0)
        if self.encoder == "tokens" and self.width % HEADS:
            raise UsageError(f"method.width={self.width} must be a multiple of {HEADS} with encoder=tokens.")
        if not self.decoder_hidden or min(self.decoder_hidden) < 1:
            raise UsageError(f"method.decoder_hidden={self.decoder_hidden} must be one or more positive widths.")
