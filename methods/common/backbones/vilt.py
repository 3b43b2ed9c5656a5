"""ViLT-B/32 as a backbone: the modules of transformers' `ViltModel`, driven block by block, frozen but for the pooler.

Deviations from `ViltModel.forward`, all on purpose: patches keep raster order (the library shuffles them with the
global random stream on every call), the text position table is stretched to the text length, prompts can be put in
front of any block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone import Backbone, Prefix
from harness.errors import UsageError
from harness.methods.common.backbones.config import ViltB32Config
from harness.methods.common.hub import Pretrained
from harness.types import FeatureSpec

_TEXT, _IMAGE = 0, 1
_Linear = tuple[Tensor, Tensor]


class _Weights(NamedTuple):
    """Weights and biases of one block's products; `attention` is query, key and value in one."""

    attention: _Linear
    output: _Linear
    inner: _Linear
    outer: _Linear

    def split(self) -> tuple[_Linear, _Linear]:
        """The query's part of `attention`, and the key's and value's."""
        weight, bias = self.attention
        width = weight.shape[1]
        return (weight[:width], bias[:width]), (weight[width:], bias[width:])


class ViltBackbone(Backbone):
    """Text first, then images, so that position 0 is the text's `[CLS]`.

    Args:
        config: Weights, text length, patch order.
        features: Token ids `(L, ())` for text, pixels `(1, (H, W, 3))` or stored patches `(P, (d,))` for images, in
            spec order.

    Raises:
        DataError: If the weights are not there, or not a ViLT.
        UsageError: If a modality is neither token ids nor pixels nor patches.
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
        self._types = {name: _type_of(name, spec, self.hidden_size) for name, spec in self.features.items()}
        self._order = sorted(self.modalities, key=lambda name: self._types[name])
        self._copies: dict[int, tuple[Any, _Weights]] = {}

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
        if kind == _TEXT:
            hidden = self._embed_text(tokens, self.features[modality].length)
        else:
            stored = tokens.ndim == 3
            hidden = self._embed_image(self._stored_patches(tokens) if stored else self._patches(tokens[:, 0]))
            mask = mask[:, :1].expand(-1, hidden.shape[1])
        return hidden + self.vilt.embeddings.token_type_embeddings.weight[kind], mask

    def dummy(self, modality: str) -> tuple[Tensor, Tensor]:
        """A white picture, or the empty text: `[CLS] [SEP]` and padding (MAP)."""
        spec = self.features[modality]
        if self._types[modality] == _IMAGE:
            seen = torch.ones(spec.length, dtype=torch.bool)
            if not _is_patches(spec):
                return torch.full((1, *spec.token_shape), 255, dtype=torch.uint8), seen
            side = round(spec.length**0.5) * int(self.vilt.config.patch_size)
            with torch.no_grad():
                white = self._patches(torch.full((1, side, side, 3), 255, dtype=torch.uint8))
            return store_patches(white[0].flatten(0, 1)), seen
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
        return self._block(index, hidden, mask)

    def prefixed_block(self, index: int, hidden: Tensor, mask: Tensor | None, prefix: Prefix) -> Tensor:
        """See `Backbone.prefixed_block`."""
        return self._block(index, hidden, mask, prefix)

    def encode(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        prompts: Mapping[int, Tensor] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
    ) -> Tensor:
        """See `Backbone.encode`; what nobody attends to is not computed and comes back as zeros."""
        if mask is None:
            return super().encode(hidden, None, prompts, prefixes)
        real = _real_first(mask)
        short = super().encode(_take(hidden, real), _shown(mask, real), prompts, prefixes)
        front = short.shape[1] - real.shape[1]
        whole = short.new_zeros(len(hidden), front + hidden.shape[1], hidden.shape[2])
        whole[:, :front] = short[:, :front]
        return whole.scatter(1, (real + front).unsqueeze(2).expand(-1, -1, hidden.shape[2]), short[:, front:])

    def encode_pooled(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        index: int = 0,
        prompts: Mapping[int, Tensor] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
    ) -> Tensor:
        """See `Backbone.encode_pooled`; the last block asks for the pooled token only."""
        front = sum(prompt.shape[1] for prompt in (prompts or {}).values())
        if mask is not None:
            # The pooled token goes first among the real ones, so that it is found at one place in every sample.
            real = _real_first(mask, max(0, index - front))
            hidden, mask, index = _take(hidden, real), _shown(mask, real), min(index, front)
        last = self.num_blocks - 1
        for number in range(self.num_blocks):
            if prompts and number in prompts:
                hidden, mask = self.with_prompt(hidden, mask, prompts[number])
            hidden = self._block(number, hidden, mask, (prefixes or {}).get(number), index if number == last else None)
        return self.pool(self.norm(hidden))

    def _block(
        self, index: int, hidden: Tensor, mask: Tensor | None, prefix: Prefix | None = None, only: int | None = None
    ) -> Tensor:
        """One pre-norm block; `only` one query token asks, and `[B, 1, d]` is returned.

        The residual stream keeps its precision; products are in that of autocast, on copies of the frozen weights, so
        that autocast does not convert them in every call.
        """
        layer, kind = self.vilt.encoder.layer[index], hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        with torch.autocast(kind, enabled=False):
            weights = self._weights(index, dtype)
            normed = layer.layernorm_before(hidden).to(dtype)
            if only is None:
                query, key, value = F.linear(normed, *weights.attention).chunk(3, 2)
            else:
                asking, rest = weights.split()
                query = F.linear(normed[:, only : only + 1], *asking)
                key, value = F.linear(normed, *rest).chunk(2, 2)
                hidden = hidden[:, only : only + 1]
            if prefix is not None:
                key, value = (
                    torch.cat([front.to(dtype), own], 1) for front, own in zip(prefix, (key, value), strict=True)
                )
                if mask is not None:
                    mask = torch.cat([mask.new_ones(prefix[0].shape[:2]), mask], 1)
            hidden = hidden + F.linear(self._attend(query, key, value, mask), *weights.output)
            inner = F.gelu(F.linear(layer.layernorm_after(hidden).to(dtype), *weights.inner))
            return hidden + F.linear(inner, *weights.outer)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Multi-head attention of `[B, n, d]` to `[B, N, d]`; queries come scaled."""
        heads = int(self.vilt.config.num_attention_heads)
        query, key, value = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value))
        bias = None if mask is None else _bias(mask, query.dtype)
        if query.device.type == "cpu":
            # Written out: at these lengths the fused kernel is slower on CPU, in bf16 by far.
            scores = query @ key.transpose(2, 3)
            attended = (scores if bias is None else scores.add_(bias)).softmax(3) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return attended.transpose(1, 2).flatten(2)

    def _weights(self, index: int, dtype: torch.dtype) -> _Weights:
        """Weights of one block for products in `dtype`, made once and again when the block's own have changed."""
        layer = self.vilt.encoder.layer[index]
        attention = layer.attention.attention
        parts = [attention.query, attention.key, attention.value]
        rest = [layer.attention.output.dense, layer.intermediate.dense, layer.output.dense]
        state = (dtype, [(own.data_ptr(), own._version) for part in (*parts, *rest) for own in part.parameters()])
        if index not in self._copies or self._copies[index][0] != state:
            with torch.no_grad():
                # The scale of the scores is folded into the queries: exact where heads are 4^n wide, as ViLT's are.
                scale = (attention.query.out_features // int(self.vilt.config.num_attention_heads)) ** -0.5
                scales = (scale, 1.0, 1.0)
                weight = torch.cat([part.weight * by for part, by in zip(parts, scales, strict=True)])
                bias = torch.cat([part.bias * by for part, by in zip(parts, scales, strict=True)])
                packed = (weight.to(dtype), bias.to(dtype))
                copies = _Weights(packed, *((part.weight.to(dtype), part.bias.to(dtype)) for part in rest))
            self._copies[index] = (state, copies)
        return self._copies[index][1]

    def norm(self, hidden: Tensor) -> Tensor:
        """Final layer norm."""
        result: Tensor = self.vilt.layernorm(hidden)
        return result

    def pool(self, hidden: Tensor, index: int = 0) -> Tensor:
        """ViLT's pooler (dense + tanh) on the token at `index`."""
        pooler = self.vilt.pooler
        result: Tensor = pooler.activation(pooler.dense(hidden[:, index]))
        return result

    def _embed_text(self, ids: Tensor, length: int) -> Tensor:
        """Texts of at most `length` tokens, for which the position table is stretched."""
        text = self.vilt.embeddings.text_embeddings
        positions = stretch_positions(text.position_embeddings.weight, length)[: ids.shape[1]]
        hidden = text.word_embeddings(ids.long()) + text.token_type_embeddings.weight[0] + positions
        result: Tensor = text.dropout(text.LayerNorm(hidden))
        return result

    def _stored_patches(self, tokens: Tensor) -> Tensor:
        """Patch embeddings `[n, h, w, d]` that were stored as bf16."""
        side = round(tokens.shape[1] ** 0.5)
        patches = tokens.view(torch.bfloat16).to(self.vilt.embeddings.cls_token.dtype)
        return patches.reshape(len(patches), side, side, -1)

    def _embed_image(self, patches: Tensor) -> Tensor:
        embeddings = self.vilt.embeddings
        grid = patches.shape[1:3]
        hidden = patches.flatten(1, 2) + self._grid_positions(grid)
        if self.shuffle:
            # A new permutation per image and call, drawn on the CPU so that it does not depend on the device.
            order = torch.rand(hidden.shape[:2]).argsort(1).to(hidden.device)
            hidden = hidden.gather(1, order.unsqueeze(-1).expand_as(hidden))
        first = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(hidden), -1, -1)
        result: Tensor = embeddings.dropout(torch.cat([first, hidden], 1))
        return result

    def _patches(self, pixels: Tensor) -> Tensor:
        """Patch embeddings `[n, h, w, d]` of uint8 pictures `[n, H, W, 3]`."""
        projection, kind = self.vilt.embeddings.patch_embeddings.projection, pixels.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else projection.weight.dtype
        with torch.autocast(kind, enabled=False):
            return PatchProjection(projection, dtype)(pixels).to(projection.weight.dtype)

    def _grid_positions(self, grid: torch.Size) -> Tensor:
        """Position table `[1, H·W, d]` of the patches, resampled where the image has another grid than the model."""
        table: Tensor = self.vilt.embeddings.position_embeddings[:, 1:]
        side = round(table.shape[1] ** 0.5)
        if tuple(grid) == (side, side):
            return table
        square = table.transpose(1, 2).reshape(1, -1, side, side)
        return F.interpolate(square, size=tuple(grid), mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)

    def _grid(self, spec: FeatureSpec) -> tuple[int, int]:
        if _is_patches(spec):
            side = round(spec.length**0.5)
            return side, side
        patch = int(self.vilt.config.patch_size)
        return spec.token_shape[0] // patch, spec.token_shape[1] // patch


class PatchProjection:
    """ViLT's patch embedding of uint8 pictures; patches do not overlap, so it is one product.

    Pixels enter as integers from -128 to 127, which every precision holds exactly; the scale to [-1, 1] is in the
    weights, and what is left of the offset, half a step, in the bias.

    Args:
        projection: ViLT's convolution, not copied where the precision is its own.
        dtype: Precision of the weights.
        compute: Precision in which the product is taken; wider than `dtype` where the device has no product in that.
    """

    def __init__(self, projection: Any, dtype: torch.dtype, compute: torch.dtype | None = None) -> None:
        self.side = int(projection.weight.shape[2])
        weight = (projection.weight.permute(0, 2, 3, 1).flatten(1) * (2 / 255)).to(dtype)
        bias = (projection.bias + 0.5 * weight.float().sum(1)).to(dtype)
        self.weight, self.bias = weight.to(compute or dtype), bias.to(compute or dtype)

    def __call__(self, pixels: Tensor) -> Tensor:
        """`[n, H, W, 3]` to `[n, h, w, d]`; what is left over at the right and below is cut off."""
        height, width, colours = pixels.shape[1:]
        down, across = height // self.side, width // self.side
        cells = pixels[:, : down * self.side, : across * self.side]
        cells = cells.reshape(len(pixels), down, self.side, across, self.side, colours).transpose(2, 3).flatten(3)
        return F.linear((cells ^ 128).view(torch.int8).to(self.weight.dtype), self.weight, self.bias)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive scores `[B, 1, 1, N]` that hide the keys whose mask `[B, N]` is False."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]


def _real_first(mask: Tensor, leader: int | None = None) -> Tensor:
    """Positions `[B, n]` of every sample's True tokens in their order, n being the most that a sample has.

    Samples with fewer are filled up with masked positions.  A `leader` position comes first, masked or not.
    """
    rank = (~mask).to(torch.int8)
    if leader is not None:
        rank[:, leader] = -1
    return rank.argsort(dim=1, stable=True)[:, : int((rank <= 0).sum(1).max())]


def _shown(mask: Tensor, positions: Tensor) -> Tensor | None:
    """Mask of the tokens at `positions`; None where all of them are real."""
    shown = mask.gather(1, positions)
    return None if bool(shown.all()) else shown


def _take(hidden: Tensor, positions: Tensor) -> Tensor:
    """Tokens `[B, n, d]` at positions `[B, n]`."""
    return hidden.gather(1, positions.unsqueeze(2).expand(-1, -1, hidden.shape[2]))


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

    model: Any = Pretrained("ViLT", weights, "backbone", allow_download).load_model(ViltModel, dtype=torch.float32)
    # Not among the saved weights, so a model that was built on the meta device comes with whatever memory held.
    text: Any = model.embeddings.text_embeddings
    text.position_ids.copy_(torch.arange(text.position_ids.shape[1]))
    text.token_type_ids.zero_()
    return model


def store_patches(patches: Tensor) -> Tensor:
    """Patch embeddings rounded to bf16, as the int16 of the same bits (numpy has no bf16)."""
    return patches.to(torch.bfloat16).contiguous().view(torch.int16)


def _is_patches(spec: FeatureSpec) -> bool:
    return len(spec.token_shape) == 1


def _type_of(name: str, spec: FeatureSpec, width: int) -> int:
    if spec.token_shape == ():
        return _TEXT
    pixels = len(spec.token_shape) == 3 and spec.token_shape[2] == 3 and spec.length == 1
    if pixels or (spec.token_shape == (width,) and round(spec.length**0.5) ** 2 == spec.length):
        return _IMAGE
    raise UsageError(
        f"backbone vilt_b32 takes token ids and pixels or stored patches, but modality {name!r} comes as tokens of "
        f"shape {spec.token_shape}; use backbone=fusion."
    )
