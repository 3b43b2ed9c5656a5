"""Options of REDEEM; every row of its decision table that concerns the method is one of them (see card.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.errors import UsageError
from harness.methods.common.options import MemoryOptions, check_choices
from harness.plugin import check_range

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "generator": ("experts", "padding"),
    "router": ("scaled", "unscaled_bias", "mean"),
    "prompt": ("dynamic", "static", "intra_modal", "none"),
    "prompt_attention": ("per_neighbour", "mean_query"),
    "head": ("mlp", "linear", "label_table"),
    "rec_loss": ("simulated", "flagged", "degenerate"),
}


@dataclass
class RedeemConfig(MemoryOptions):
    """REDEEM: retrieval-guided reconstruction and dynamic prompts for missing modalities.

    Attributes:
        preset: `clean` (paper's method, no leaks or bugs), `paper` (declared settings), `official` (released code).
        rec_weight: Weight of the reconstruction loss.
        generator: `experts`, one per neighbour, or `padding`: missing tokens stay zero (ablation).
        router: `scaled` (1/sqrt(d), no bias), `unscaled_bias` (released code), `mean` (ablation).
        prompt: `dynamic` cross-modal prompts, `static` learned ones, `intra_modal` queries, `none` (ablations).
        prompt_attention: `per_neighbour` attends each neighbour, pools, then averages, with projections per
            direction; `mean_query` averages the queries first, shares projections and adds an output layer.
        label_prompt: Adds a prompt made of the neighbours' labels (released code, not in the paper).
        head: `mlp`, one `linear` layer, or the product with the `label_table`.
        rec_loss: `simulated`: on complete training samples with a simulated drop; `flagged`: on samples flagged as
            missing, against their true values (needs `supervision=complete`); `degenerate`: exactly zero.
    """

    rec_weight: float = 1.0
    generator: str = "experts"
    router: str = "scaled"
    prompt: str = "dynamic"
    prompt_attention: str = "per_neighbour"
    label_prompt: bool = False
    head: str = "mlp"
    rec_loss: str = "simulated"

    target: ClassVar[str] = "harness.methods.redeem.model:Redeem"
    summary: ClassVar[str] = "retrieval-guided experts reconstruct the missing modality, dynamic prompts (KDD 2025)"
    citation: ClassVar[str] = (
        "Lang, Hong, Cheng, Zhong, Wang and Zhou, REDEEMing Modality Information Loss: Retrieval-Guided Conditional "
        "Generation for Severely Modality Missing Learning, KDD 2025, doi:10.1145/3711896.3737101"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clean": {},
        "paper": {
            "bank_splits": "train_valid",
            "bank_missing": "full",
            "retrieved_padding": "included",
            "head": "linear",
            "rec_loss": "flagged",
            "decay_all": True,
        },
        "official": {
            "prompt_length": 1,
            "prompt_layer": 0,
            "bank_splits": "train_valid",
            "bank_missing": "full",
            "exclude_self": "row_number",
            "retrieval": "per_channel",
            "router": "unscaled_bias",
            "prompt_attention": "mean_query",
            "retrieved_padding": "included",
            "attention_mask": "none",
            "pool_token": "first",
            "label_prompt": True,
            "head": "label_table",
            "rec_loss": "degenerate",
            "decay_all": True,
        },
    }

    official_names: ClassVar[Mapping[str, str]] = {
        "backbone.vilt.embeddings": "embedding_layer",
        "backbone.vilt.encoder.layer": "encoder_layer",
        "backbone.vilt.layernorm": "layernorm",
        "backbone.vilt.pooler": "pooler",
        "generators.text.router.query": "generator_t.router.linear_rem",
        "generators.text.router.key": "generator_t.router.linear_ret",
        "generators.text.experts": "generator_t.experts",
        "generators.image.router.query": "generator_i.router.linear_rem",
        "generators.image.router.key": "generator_i.router.linear_ret",
        "generators.image.experts": "generator_i.experts",
        "prompters.shared.query": "prompter.q_proj",
        "prompters.shared.key": "prompter.k_proj",
        "prompters.shared.value": "prompter.v_proj",
        "prompters.shared.output": "prompter.linear_out",
        "label_table": "label_enhanced",
        "head.layers": "classifier",
    }

    def loss_terms(self) -> tuple[str, ...]:
        """The reconstruction term is declared unless it is switched off or degenerate by choice."""
        alive = self.generator == "experts" and self.rec_weight > 0 and self.rec_loss != "degenerate"
        return ("task", "reconstruction") if alive else ("task",)

    def needs_complete_supervision(self) -> bool:
        """Whether an option needs the true values of missing training modalities."""
        return super().needs_complete_supervision() or self.rec_loss == "flagged"

    def validate(self) -> None:
        """Checks choices, ranges and combinations; raises `UsageError`."""
        super().validate()
        check_choices(self, _CHOICES)
        check_range("method", "rec_weight", self.rec_weight, 0.0)
        if self.head == "label_table" and not self.label_prompt:
            raise UsageError("method.head=label_table needs method.label_prompt=true.")
