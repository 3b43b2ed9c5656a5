"""Our side of the comparison, built from the harness's public classes as a run builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import registry
from harness.features import FeatureArray, FeatureStore
from harness.masking import ObservedDataset
from harness.method import Method, MethodContext
from harness.methods.common.backbones.config import ViltB32Config
from harness.methods.common.backbones.patches_config import ViltB32PatchesConfig
from harness.types import BoolArray, DataTable, Split


def config(weights: Path, text_len: int, pixels: bool) -> ViltB32Config:
    """ViLT on stored patch embeddings, or on stored pixels."""
    form = ViltB32Config if pixels else ViltB32PatchesConfig
    return form(weights=str(weights), max_text_len=text_len)


def features(table: DataTable, backbone: ViltB32Config, cache: Path, key_width: int) -> dict[str, FeatureArray]:
    """Stored inputs of the backbone; retrieval keys are random vectors, since no encoder of keys is measured."""
    store = FeatureStore(cache)
    result = {}
    options = backbone.encoder_options()
    encoders = backbone.token_encoders
    assert encoders is not None
    for column, modality in enumerate(table.spec.modalities):
        name = encoders[modality.kind]
        encoder: Any = registry.encoders.get(name)
        stored = store.get(table, modality, name, encoder(**options[name]))
        keys = np.random.default_rng(column).standard_normal((len(table.ids), key_width)).astype(np.float32)
        result[modality.name] = FeatureArray(stored.tokens, stored.mask, keys, stored.digest)
    return result


def payload_bytes(cache: Path) -> int:
    """Bytes on disk of what a bank gathers from: tokens and masks."""
    return sum(file.stat().st_size for part in ("tokens", "mask") for file in cache.rglob(f"{part}*.npy"))


def both_missing(count: int, rate: float = 0.7, seed: int = 0) -> BoolArray:
    """Presence `[count, 2]`: half of the incomplete samples lack the text, half the image."""
    present = np.ones((count, 2), dtype=np.bool_)
    order = np.random.default_rng(seed).permutation(count)[: int(count * rate)]
    present[order[: len(order) // 2], 1] = False
    present[order[len(order) // 2 :], 0] = False
    return present


def observe(table: DataTable, features: dict[str, FeatureArray], split: Split, present: BoolArray) -> ObservedDataset:
    """One split under a presence matrix."""
    rows = table.splits[split]
    return ObservedDataset(
        table.spec,
        split,
        [table.ids[row] for row in rows],
        features,
        rows,
        present,
        np.ones_like(present),
        table.labels[rows],
        "complete" if split == "train" else "observed",
    )


def build(name: str, view: ObservedDataset, backbone: ViltB32Config, **options: Any) -> Method:
    """A prepared method; the bank holds every training sample, as the released one does."""
    torch.manual_seed(0)
    plugin: Any = registry.methods.get(name)
    values = {"bank_missing": "full", **options}
    preset = dict(plugin.presets[values.get("preset", "clean")])
    method_config = plugin(**{**preset, **values})
    method_config.validate()
    context = MethodContext(
        dataset=view.spec,
        features=view.feature_specs,
        build_backbone=lambda: backbone.implementation()(backbone, view.feature_specs),
        supervision=view.supervision,
    )
    method: Method = plugin.implementation()(method_config, context)
    method.prepare(view)
    return method
