"""Options of REDEEM; every row of its decision table that concerns the method is one of them (see card.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from harness.config import MethodConfig
from harness.errors import UsageError
from harness.plugin import check_choice, check_range

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "bank_splits": ("train", "train_valid"),
    "bank_missing": ("observed_only", "full"),
    "exclude_self": ("id", "row_number"),
    "retrieval": ("joint", "per_channel"),
    "neighbours": ("retrieved", "random"),
    "generator": ("experts", "padding"),
    "router": ("scaled", "unscaled_bias", "mean"),
    "prompt": ("dynamic", "static", "intra_modal", "none"),
    "prompt_attention": ("per_neighbour", "mean_query"),
    "retrieved_padding": ("masked", "included"),
    "attention_mask": ("key_padding", "none"),
    "pool_token": ("cls", "first"),
    "head": ("mlp", "linear", "label_table"),
    "rec_loss": ("simulated", "flagged", "degenerate"),
}


@dataclass
class RedeemConfig(MethodConfig):
    """REDEEM: retrieval-guided reconstruction and dynamic prompts for missing modalities.

    Attributes:
        preset: `clean` (paper's method, no leaks or bugs), `paper` (declared settings), `official` (released code).
        k: Retrieved neighbours K, one expert each.
        prompt_length: Prompt tokens b per modality.
        prompt_layer: Zero-based block index l before which prompts are inserted.
        rec_weight: Weight of the reconstruction loss.
        targets: Modalities that get a generator; empty means all (released code has one in single-type runs).
        bank_splits: `train`, or `train_valid` as the paper and its code have it (reported by the audit).
        bank_missing: `observed_only`: complete training samples are retrievable; `full`: all training samples with
            their true modalities, which needs `supervision=complete`.
        exclude_self: `id` (and identical content) in every split, or `row_number` as the released code.
        retrieval: `joint` sums cosines over the observed modalities and returns pairs; `per_channel` lets every
            modality of a complete query search by itself and returns unpaired copies.
        neighbours: `retrieved`, or `random` (ablation).
        generator: `experts`, or `padding`: missing tokens stay zero (ablation).
        router: `scaled` (1/sqrt(d), no bias), `unscaled_bias` (released code), `mean` (ablation).
        prompt: `dynamic` cross-modal prompts, `static` learned ones, `intra_modal` queries, `none` (ablations).
        prompt_attention: `per_neighbour` attends each neighbour, pools, then averages, with projections per
            direction; `mean_query` averages the queries first, shares projections and adds an output layer.
        retrieved_padding: `masked` leaves padding of retrieved sequences out, `included` does not.
        attention_mask: `key_padding`, or `none`: padding is attended to, as the released mask has no effect.
        pool_token: `cls` (its shifted position), or `first` token of the sequence.
        label_prompt: Adds a prompt made of the neighbours' labels (released code, not in the paper).
        head: `mlp`, one `linear` layer, or the product with the `label_table`.
        rec_loss: `simulated`: on complete training samples with a simulated drop; `flagged`: on samples flagged as
            missing, against their true values (needs `supervision=complete`); `degenerate`: exactly zero.
        decay_all: Weight decay on every parameter, biases and norms included.
    """

    k: int = 5
    prompt_length: int = 2
    prompt_layer: int = 1
    rec_weight: float = 1.0
    targets: list[str] = field(default_factory=list)
    bank_splits: str = "train"
    bank_missing: str = "observed_only"
    exclude_self: str = "id"
    retrieval: str = "joint"
    neighbours: str = "retrieved"
    generator: str = "experts"
    router: str = "scaled"
    prompt: str = "dynamic"
    prompt_attention: str = "per_neighbour"
    retrieved_padding: str = "masked"
    attention_mask: str = "key_padding"
    pool_token: str = "cls"
    label_prompt: bool = False
    head: str = "mlp"
    rec_loss: str = "simulated"
    decay_all: bool = False

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

    def loss_terms(self) -> tuple[str, ...]:
        """The reconstruction term is declared unless it is switched off or degenerate by choice."""
        alive = self.generator == "experts" and self.rec_weight > 0 and self.rec_loss != "degenerate"
        return ("task", "reconstruction") if alive else ("task",)

    def uses_valid(self) -> bool:
        """Whether the bank holds validation samples."""
        return self.bank_splits == "train_valid"

    def needs_complete_supervision(self) -> bool:
        """Whether an option needs the true values of missing training modalities."""
        return self.bank_missing == "full" or self.rec_loss == "flagged"

    def validate(self) -> None:
        """Checks choices, ranges and combinations; raises `UsageError`."""
        for option, choices in _CHOICES.items():
            check_choice("method", option, getattr(self, option), choices)
        check_range("method", "k", self.k, 1)
        check_range("method", "prompt_length", self.prompt_length, 1)
        check_range("method", "prompt_layer", self.prompt_layer, 0)
        check_range("method", "rec_weight", self.rec_weight, 0.0)
        if self.head == "label_table" and not self.label_prompt:
            raise UsageError("method.head=label_table needs method.label_prompt=true.")

    def validate_for(self, modalities: tuple[str, ...]) -> None:
        """Checks that `targets` name modalities of the data set."""
        unknown = sorted(set(self.targets) - set(modalities))
        if unknown:
            raise UsageError(f"method.targets={unknown} are not modalities; this data set has {', '.join(modalities)}.")
