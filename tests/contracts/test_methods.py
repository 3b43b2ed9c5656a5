"""Every registered method keeps the contract, plugins of other packages included."""

from __future__ import annotations

from typing import Any

from harness import registry
from harness.testing.methods import contract_for

#: Where a method needs other settings than `MethodContract`'s.
SETTINGS: dict[str, dict[str, Any]] = {
    # Samples without the modality get the prior, by design.
    "unimodal": {"fits_incomplete": False},
    # The contract's learning rate is too high for cascades of five blocks and width 256.
    "mmin": {"options": {"width": 32, "blocks": 2}},
    "if_mmin": {"options": {"width": 32, "blocks": 2}},
    "redcore": {"options": {"width": 32, "decoder_blocks": 2}},
    # Several stages of transformers: half the time.
    "raml_style": {"options": {"width": 32}},
}

for _name in registry.methods.names():
    globals()[f"Test_{_name}"] = contract_for(_name, **SETTINGS.get(_name, {}))
