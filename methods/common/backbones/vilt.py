"""ViLT-B/32 as a backbone: the modules of transformers' `ViltModel`, driven block by block, frozen but for the pooler.

Deviations from `ViltModel.forward`, all on purpose: patches keep raster order (the library shuffles them with the
global random stream on every call), the text position table is stretched to the text length, prompts can be put in
front of any block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.errors import DataError, UsageError
from harness.methods.common.backbones.config import ViltB32Config
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

    def assemble(self, embedded: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Joins all modalities, texts first whatever the data set's order."""
        parts = [embedded[name] for name in self._order if name in embedded]
        return torch.cat([tokens for tokens, _ in parts], 1), torch.cat([mask for _, mask in parts], 1)

    def block(self, index: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """See `Backbone.block`."""
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
            bias = bias.masked_fill(~mask, torch.finfo(hidden.dtype).min)[:, None, None, :]
        # Two arguments only: what follows them differs between releases, and so does the kind of result.
        output = self.vilt.encoder.layer[index](hidden, bias)
        result: Tensor = output[0] if isinstance(output, tuple) else output
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

    with _quiet():
        model, report = load_pretrained(
            ViltModel, weights, allow_download, output_loading_info=True, dtype=torch.float32
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(map(str, report["missing_keys"] or report["mismatched_keys"]))
        raise DataError(f"{weights!r} is not a whole ViLT: {len(missing)} weights are missing, e.g. {missing[0]}.")
    assert isinstance(model, nn.Module)
    return model


def load_pretrained(kind: Any, weights: str, allow_download: bool, **options: Any) -> Any:
    """`kind.from_pretrained` of a local folder, the hub's cache, or, only if allowed, the hub.

    Args:
        kind: A class of transformers with `from_pretrained`.
        weights: Folder or hub id.
        allow_download: Whether the hub may be contacted.
        options: Passed on.

    Raises:
        DataError: Naming the three ways to provide the files, or what is wrong with a folder.
    """
    own = Path(weights).expanduser()
    folder = own if own.is_dir() else _cached_folder(weights)
    if folder is not None:
        try:
            return kind.from_pretrained(str(folder), local_files_only=True, **options)
        except Exception as error:
            # transformers raises OSError, ValueError and safetensors' own error alike.
            if folder is own or not allow_download:
                raise DataError(f"{folder} is not a whole ViLT in the hub's format: {_line(error)}") from error
    if not allow_download:
        raise DataError(
            f"ViLT weights {weights!r} are neither a local folder nor in the hub's cache; give a folder with "
            f"backbone.weights=DIR, fill the cache with `hf download {weights}`, or let this run download them "
            "with backbone.allow_download=true."
        )
    try:
        return kind.from_pretrained(weights, **options)
    except Exception as error:
        raise DataError(f"ViLT weights {weights!r} cannot be downloaded: {_line(error)}") from error


def _cached_folder(name: str) -> Path | None:
    """Snapshot of a hub id in the local cache; found without the hub's client, which may open connections."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of unused heads while weights are read."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _type_of(name: str, spec: FeatureSpec) -> int:
    if spec.token_shape == ():
        return _TEXT
    if len(spec.token_shape) == 3 and spec.token_shape[2] == 3 and spec.length == 1:
        return _IMAGE
    raise UsageError(
        f"backbone vilt_b32 takes token ids and pixels, but modality {name!r} comes as tokens of shape "
        f"{spec.token_shape}; use backbone=fusion."
    )
