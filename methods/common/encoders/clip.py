"""CLIP ViT-L/14@336 as a frozen encoder of texts and pictures: the retrieval keys of REDEEM and RAGPT."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from harness.config import EncoderConfig
from harness.encoder import Encoded, Encoder, pad_tokens
from harness.errors import DataError
from harness.files import file_sha256
from harness.methods.common.encoders.config import ClipConfig
from harness.methods.common.encoders.inference import map_one_by_one
from harness.methods.common.hub import Pretrained
from harness.types import FloatArray

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

#: Values in; of each its tokens `[L, D]` and pooled vector `[D]` out.
Encode = Callable[[Sequence[Any]], list[tuple[FloatArray, FloatArray]]]


class ClipEncoder(Encoder):
    """Pooled: CLIP's projected text or image feature; tokens: the last hidden states of the same tower, projected.

    On the CPU values go through the network one by one in float32, so that the output for a value is bit-identical
    whatever else is encoded with it.  On a GPU they go in batches, and products are in bf16 where the GPU has it: the
    output then depends on its companions by rounding.  Only the tower that is asked for is loaded.
    """

    batch_size = 32

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        assert isinstance(config, ClipConfig)
        self._options = config
        self._source = Pretrained("CLIP", config.weights, "encoder_options.clip_vit_l14_336", config.allow_download)
        self._towers: dict[type, Encode] = {}
        self._device = torch.device("cpu")

    def use(self, device: str) -> None:
        """Encodes on a device from now on; in bf16 if it is a GPU that has it."""
        self._device = torch.device(device)
        self._towers.clear()
        if self._device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            self.precision = "bfloat16"

    def fingerprint(self) -> str:
        """sha256 over the weight and tokenizer files, where they are already here; else the hub id."""
        own = Path(self._options.weights).expanduser()
        folder = own if own.is_dir() else self._source.cached_folder()
        if folder is None:
            return self._options.weights
        files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json", ".txt"))
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.name}:{file_sha256(path)};".encode())
        return digest.hexdigest()

    def encode(self, values: Sequence[Any]) -> Encoded:
        """Encodes texts (`str`) or pictures (uint8 `[H, W, 3]`).

        Raises:
            DataError: If the weights are not there, or a value is neither.
        """
        tower = self._tower(values[0])
        if self._device.type == "cpu":
            outputs = map_one_by_one(lambda value: tower([value])[0], values)
        else:
            outputs = self._batch(tower, values)
        tokens, mask = pad_tokens([sequence for sequence, _ in outputs])
        return Encoded(tokens, mask, np.stack([vector for _, vector in outputs]))

    @torch.inference_mode()
    def _batch(self, tower: Encode, values: Sequence[Any]) -> list[tuple[FloatArray, FloatArray]]:
        """All values at once; the residual stream stays in float32."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return tower(values)

    def _tower(self, value: Any) -> Encode:
        kind = str if isinstance(value, str) else np.ndarray
        if kind not in self._towers:
            self._towers[kind] = self._text() if kind is str else self._image()
        return self._towers[kind]

    def _text(self) -> Encode:
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        with torch.random.fork_rng(devices=[]):
            network = self._source.load_model(CLIPTextModelWithProjection, dtype=torch.float32)
        network.eval().requires_grad_(False).to(self._device)
        tokenizer = self._source.load(AutoTokenizer)
        words, length = network.config.vocab_size, network.config.max_position_embeddings
        if len(tokenizer) != words:
            raise DataError(
                f"the tokenizer of {self._options.weights!r} has {len(tokenizer)} entries, its model {words}; "
                "put the model's own tokenizer files beside the weights."
            )
        released = self._options.text_feature == "bag_of_words"

        def encode(values: Sequence[Any]) -> list[tuple[FloatArray, FloatArray]]:
            for value in values:
                if not isinstance(value, str):
                    raise DataError(
                        f"encoder clip_vit_l14_336 was given text and {type(value).__name__} in one modality."
                    )
            encoded = tokenizer(
                list(values), padding=len(values) > 1, truncation=True, max_length=length, return_tensors="pt"
            )
            ids, mask = encoded["input_ids"].to(self._device), encoded["attention_mask"]
            sizes = mask.sum(1).tolist()
            real = None if mask.all() else mask.to(self._device)
            if released:
                hidden = _bag_of_words(network, ids, real)
                pooled = torch.stack([row[size - 1] for row, size in zip(hidden, sizes, strict=True)])
            else:
                output = network(input_ids=ids, attention_mask=real)
                hidden, pooled = network.text_projection(output.last_hidden_state), output.text_embeds
            tokens = (row[:size] for row, size in zip(_floats(hidden), sizes, strict=True))
            return list(zip(tokens, _floats(pooled), strict=True))

        return encode

    def _image(self) -> Encode:
        from transformers import CLIPVisionModelWithProjection

        with torch.random.fork_rng(devices=[]):
            network = self._source.load_model(CLIPVisionModelWithProjection, dtype=torch.float32)
        network.eval().requires_grad_(False).to(self._device)
        size, grid = int(network.config.image_size), self._options.grid
        side = size // int(network.config.patch_size)

        def encode(values: Sequence[Any]) -> list[tuple[FloatArray, FloatArray]]:
            if len(values) == 1:
                pictures = [prepare_picture(values[0], size)]
            else:
                pictures = map_one_by_one(lambda value: prepare_picture(value, size), values)
            pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self._device)
            output = network(pixel_values=pixels)
            hidden = network.vision_model.post_layernorm(output.last_hidden_state[:, 1:])
            patches = network.visual_projection(hidden).transpose(1, 2).unflatten(2, (side, side))
            cells = adaptive_avg_pool2d(patches.float(), grid).flatten(2).transpose(1, 2)
            return list(zip(_floats(cells), _floats(output.image_embeds), strict=True))

        return encode


def _floats(values: Tensor) -> FloatArray:
    """As float32 in memory of its own."""
    result: FloatArray = values.float().contiguous().cpu().numpy()
    return result


def _bag_of_words(network: Any, ids: Tensor, real: Tensor | None) -> Tensor:
    """Projected states `[B, L, D]` as the released text features of REDEEM and RAGPT see them.

    Released code encodes one text at a time, so nothing is padded and the attention mask is all ones.  It is passed
    where position ids belong: every token gets position 1.  The blocks run without the causal mask, so every state is a
    function of the set of tokens alone.

    Args:
        network: CLIP's text tower.
        ids: Token ids `[B, L]`.
        real: 1 for tokens, 0 for padding, `[B, L]`; no token sees padding.  None where there is none.
    """
    text = network.text_model
    hidden = text.embeddings(input_ids=ids, position_ids=torch.ones_like(ids))
    bias = None
    if real is not None:
        bias = hidden.new_zeros(real.shape).masked_fill(real == 0, -torch.inf)[:, None, None]
    hidden = text.encoder(inputs_embeds=hidden, attention_mask=bias).last_hidden_state
    states: Tensor = network.text_projection(text.final_layer_norm(hidden))
    return states


def prepare_picture(value: Any, size: int) -> FloatArray:
    """CLIP's preprocessing: shorter side to `size` (bicubic), centre crop, CLIP's mean and deviation; `[S, S, 3]`."""
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"encoder clip_vit_l14_336 takes text or uint8 pictures [H, W, 3], not {array.dtype} {list(array.shape)}."
        )
    from PIL import Image

    height, width = array.shape[:2]
    short = min(height, width)
    scaled = (int(size * width / short), int(size * height / short))
    picture = np.asarray(Image.fromarray(array).resize(scaled, Image.Resampling.BICUBIC))
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    crop = picture[top : top + size, left : left + size]
    return ((crop.astype(np.float32) / 255 - _MEAN) / _STD).astype(np.float32)
