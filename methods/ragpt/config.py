"""Options of RAGPT; every row of its decision table that concerns the method is one of them (see card.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.errors import UsageError
from harness.methods.common.options import MemoryOptions, check_choices
from harness.plugin import check_range

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "generator": ("filter", "mean", "padding"),
    "recovered_sign": ("plus", "bitwise"),
    "prompt": ("dynamic", "static", "none"),
    "cap": ("per_modality", "shared", "jan2025"),
    "head": ("label_product", "label_mlp"),
}


@dataclass
class RagptConfig(MemoryOptions):
    """RAGPT: filtered mean of retrieved neighbours, context-aware prompts, similarity to a label table.

    Attributes:
        preset: `clean` (paper's method, no leaks or bugs), `paper` (declared settings), `official` (released code).
        retrieval: `per_channel`: each modality of a complete query searches by itself; `joint` sums cosines over the
            observed modalities.
        generator: `filter`, or `mean`: the neighbours' mean as it is, or `padding`: missing tokens stay zero
            (ablations).
        dropout: Dropout of the filtered signal.
        recovered_sign: `plus`; or `bitwise`, which replays the released code of January 2025: what is missing becomes
            minus the recovered sequence, what is present has twice the recovered one subtracted.
        prompt: `dynamic` prompts, `static` learned ones, or `none` (ablations).
        cap: `per_modality`: attention over all K neighbours' tokens at once, own projections per modality; `shared`:
            one set of projections (released code); `jan2025`: shared projections, one attention per neighbour, mean
            over neighbours and prompt tokens (one token per modality).
        label_prompt: Adds a prompt made of the neighbours' labels.
        label_k: Neighbours that give labels; 0 means K.
        head: `label_product` of the pooled token, or `label_mlp`: of a network on pooled token and label prompt.
    """

    retrieval: str = "per_channel"
    generator: str = "filter"
    dropout: float = 0.2
    recovered_sign: str = "plus"
    prompt: str = "dynamic"
    cap: str = "per_modality"
    label_prompt: bool = True
    label_k: int = 0
    head: str = "label_product"

    target: ClassVar[str] = "harness.methods.ragpt.model:Ragpt"
    summary: ClassVar[str] = "mean of retrieved copies through a Fourier filter, context-aware prompts (AAAI 2025)"
    citation: ClassVar[str] = (
        "Lang, Cheng, Zhong and Zhou, Retrieval-Augmented Dynamic Prompt Tuning for Incomplete Multimodal Learning, "
        "AAAI 2025, arXiv:2501.01120"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clean": {},
        "paper": {
            "bank_splits": "train_valid",
            "bank_missing": "full",
            "retrieved_padding": "included",
            "decay_all": True,
        },
        "official": {
            "prompt_length": 6,
            "bank_splits": "train_valid",
            "bank_missing": "full",
            "exclude_self": "row_number",
            "retrieved_padding": "included",
            "pool_token": "first",
            "cap": "shared",
            "label_k": 19,
            "head": "label_mlp",
            "decay_all": True,
        },
    }

    official_names: ClassVar[Mapping[str, str]] = {
        "backbone.vilt.embeddings": "embedding_layer",
        "backbone.vilt.encoder.layer": "encoder_layer",
        "backbone.vilt.layernorm": "layernorm",
        "backbone.vilt.pooler": "pooler",
        "generators.text.filter": "MMG_t.W",
        "generators.text.norm": "MMG_t.layer_norm",
        "generators.text.linear": "MMG_t.linear",
        "generators.image.filter": "MMG_i.W",
        "generators.image.norm": "MMG_i.layer_norm",
        "generators.image.linear": "MMG_i.linear",
        "prompters.shared.query": "dynamic_prompt.q_proj",
        "prompters.shared.key": "dynamic_prompt.k_proj",
        "prompters.shared.value": "dynamic_prompt.v_proj",
        "label_table": "label_enhanced",
        "head.layers": "classifier",
    }

    def validate(self) -> None:
        """Checks choices, ranges and combinations; raises `UsageError`."""
        super().validate()
        check_choices(self, _CHOICES)
        check_range("method", "dropout", self.dropout, 0.0, 0.99)
        check_range("method", "label_k", self.label_k, 0)
        if self.head == "label_mlp" and not self.label_prompt:
            raise UsageError("method.head=label_mlp needs method.label_prompt=true.")
        if self.recovered_sign == "bitwise" and self.generator == "padding":
            raise UsageError("method.recovered_sign=bitwise needs a generator; set method.generator=filter.")
