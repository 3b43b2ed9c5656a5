"""ViLT-B/32 as a backbone: the modules of transformers' `ViltModel`, driven block by block, frozen but for the pooler.

Deviations from `ViltModel.forward`, all on purpose: patches keep raster order (the library shuffles them with the
global random stream on every call), the text position table is stretched to the text length, prompts can be put in
front of any block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone import Backbone, Prefix
from harness.errors import UsageError
from harness.methods.common.backbones.config import ViltB32Config
from harness.methods.common.hub import Pretrained
from harness.types import FeatureSpec

_TEXT, _IMAGE = 0, 1


class ViltBackbone(Backbone):
    """Text first, then images, so that position 0 is the text's `[CLS]`.

    Args:
        config: Weights, text length, patch order.
        features: Token ids `(L, ())` for text, pixels `(1, (H, W, 3))` for images, in spec order.

    Raises:
        DataError: If the weights are not there, or not a ViLT.
        UsageError: If a modality is neither token ids nor pixels.
    """

    def __init__(self, config: ViltB32Config, features: Mapping[str, FeatureSpec]) -> None:
        super().__init__(config, features)
        self.vilt: Any = load_vilt(config.weights, config.allow_download)
        self.vilt.requires_grad_(False)
        self.vilt.pooler.requires_grad_(True)
        self.hidden_size = int(self.vilt.config.hidden_size)
        self.num_blocks = len(self.vilt.encoder.layer)
        self.shuffle = config.patch_order == "random"
        self._source = Pretrained("ViLT", config.weights, "backbone", config.allow_download)
        self._types = {name: _type_of(name, spec) for name, spec in self.features.items()}
        self._order = sorted(self.modalities, key=lambda name: self._types[name])

    def train(self, mode: bool = True) -> Self:
        """Train mode for the pooler alone: dropout of frozen modules stays off."""
        super().train(mode)
        for module in (self.vilt.embeddings, self.vilt.encoder, self.vilt.layernorm):
            module.eval()
        return self

    @property
    def frozen(self) -> bool:
        """Embeddings and blocks are kept fixed."""
        return True

    def length(self, modality: str) -> int:
        """Word pieces of a text; patches and image `[CLS]` of an image."""
        spec = self.features[modality]
        if self._types[modality] == _TEXT:
            return spec.length
        height, width = self._grid(spec)
        return 1 + height * width

    def embed(self, modality: str, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.embed`; images have no padding."""
        kind = self._types[modality]
        hidden = self._embed_text(tokens) if kind == _TEXT else self._embed_image(tokens[:, 0])
        if kind == _IMAGE:
            mask = mask.expand(-1, hidden.shape[1])
        return hidden + self.vilt.embeddings.token_type_embeddings.weight[kind], mask

    def dummy(self, modality: str) -> tuple[Tensor, Tensor]:
        """A white picture, or the empty text: `[CLS] [SEP]` and padding (MAP)."""
        spec = self.features[modality]
        if self._types[modality] == _IMAGE:
            return torch.full((1, *spec.token_shape), 255, dtype=torch.uint8), torch.ones(1, dtype=torch.bool)
        from transformers import AutoTokenizer

        tokenizer: Any = self._source.load(AutoTokenizer)
        empty = tokenizer("", padding="max_length", max_length=spec.length, return_tensors="pt")
        return empty["input_ids"][0].int(), empty["attention_mask"][0].bool()

    def assemble(self, embedded: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Joins all modalities, texts first whatever the data set's order."""
        parts = [embedded[name] for name in self._order if name in embedded]
        return torch.cat([tokens for tokens, _ in parts], 1), torch.cat([mask for _, mask in parts], 1)

    def block(self, index: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """See `Backbone.block`."""
        bias = None if mask is None else _bias(mask, hidden.dtype)
        # Two arguments only: what follows them differs between releases, and so does the kind of result.
        output = self.vilt.encoder.layer[index](hidden, bias)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def prefixed_block(self, index: int, hidden: Tensor, mask: Tensor | None, prefix: Prefix) -> Tensor:
        """See `Backbone.prefixed_block`; the library's layer takes no further keys, so its attention is written out."""
        layer = self.vilt.encoder.layer[index]
        attention, heads = layer.attention.attention, int(self.vilt.config.num_attention_heads)

        def split(tokens: Tensor) -> Tensor:
            return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)

        normed = layer.layernorm_before(hidden)
        own = attention.key(normed), attention.value(normed)
        key, value = (
            split(torch.cat([front.to(part.dtype), part], 1)) for front, part in zip(prefix, own, strict=True)
        )
        query = split(attention.query(normed))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores + _bias(torch.cat([mask.new_ones(prefix[0].shape[:2]), mask], 1), scores.dtype)
        context = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        hidden = hidden + layer.attention.output.dense(context)
        result: Tensor = hidden + layer.output.dense(layer.intermediate(layer.layernorm_after(hidden)))
        return result

    def norm(self, hidden: Tensor) -> Tensor:
        """Final layer norm."""
        result: Tensor = self.vilt.layernorm(hidden)
        return result

    def pool(self, hidden: Tensor, index: int = 0) -> Tensor:
        """ViLT's pooler (dense + tanh) on the token at `index`."""
        pooler = self.vilt.pooler
        result: Tensor = pooler.activation(pooler.dense(hidden[:, index]))
        return result

    def _embed_text(self, ids: Tensor) -> Tensor:
        text = self.vilt.embeddings.text_embeddings
        positions = stretch_positions(text.position_embeddings.weight, ids.shape[1])
        hidden = text.word_embeddings(ids.long()) + text.token_type_embeddings.weight[0] + positions
        result: Tensor = text.dropout(text.LayerNorm(hidden))
        return result

    def _embed_image(self, pixels: Tensor) -> Tensor:
        embeddings = self.vilt.embeddings
        values = (pixels.permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5
        patches = embeddings.patch_embeddings.projection(values)
        grid = patches.shape[2:]
        hidden = patches.flatten(2).transpose(1, 2) + self._grid_positions(grid)
        if self.shuffle:
            # A new permutation per image and call, drawn on the CPU so that it does not depend on the device.
            order = torch.rand(hidden.shape[:2]).argsort(1).to(hidden.device)
            hidden = hidden.gather(1, order.unsqueeze(-1).expand_as(hidden))
        first = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(hidden), -1, -1)
        result: Tensor = embeddings.dropout(torch.cat([first, hidden], 1))
        return result

    def _grid_positions(self, grid: torch.Size) -> Tensor:
        """Position table `[1, H·W, d]` of the patches, resampled where the image has another grid than the model."""
        table: Tensor = self.vilt.embeddings.position_embeddings[:, 1:]
        side = round(table.shape[1] ** 0.5)
        if tuple(grid) == (side, side):
            return table
        square = table.transpose(1, 2).reshape(1, -1, side, side)
        return F.interpolate(square, size=tuple(grid), mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)

    def _grid(self, spec: FeatureSpec) -> tuple[int, int]:
        patch = int(self.vilt.config.patch_size)
        return spec.token_shape[0] // patch, spec.token_shape[1] // patch


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive scores `[B, 1, 1, N]` that hide the keys whose mask `[B, N]` is False."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]


def stretch_positions(table: Tensor, length: int) -> Tensor:
    """Resamples a position table `[P, d]` to `[length, d]`, as a picture of P rows, corners not aligned."""
    if length == len(table):
        return table
    size = (length, table.shape[1])
    return F.interpolate(table[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def load_vilt(weights: str, allow_download: bool) -> Any:
    """transformers' `ViltModel` with all of its weights, float32.

    Raises:
        DataError: If they are not found, cannot be read, or are incomplete.
    """
    from transformers import ViltModel

    model = Pretrained("ViLT", weights, "backbone", allow_download).load_model(ViltModel, dtype=torch.float32)
    assert isinstance(model, nn.Module)
    return model


def _type_of(name: str, spec: FeatureSpec) -> int:
    if spec.token_shape == ():
        return _TEXT
    if len(spec.token_shape) == 3 and spec.token_shape[2] == 3 and spec.length == 1:
        return _IMAGE
    raise UsageError(
        f"backbone vilt_b32 takes token ids and pixels, but modality {name!r} comes as tokens of shape "
        f"{spec.token_shape}; use backbone=fusion."
    )
