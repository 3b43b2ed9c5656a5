"""What ViLT reads: word-piece ids, and square pixels or the embeddings of their patches, all kept compact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from harness.encoder import Encoded, Encoder
from harness.errors import DataError
from harness.methods.common.backbones.config import ViltImageConfig, ViltTextConfig
from harness.methods.common.backbones.patches_config import ViltPatchesConfig
from harness.methods.common.encoders.inference import map_one_by_one
from harness.methods.common.hub import Pretrained
from harness.types import FloatArray


class ViltTextEncoder(Encoder):
    """Ids of the checkpoint's own tokenizer, `[n, max_text_len]`, cut or padded to that length.

    They are int16 where the vocabulary allows it, else int32.

    Args:
        config: Weights folder or hub id, text length.

    Raises:
        DataError: If the tokenizer's files are not there, or are not those of the model.
    """

    batch_size = 256

    def __init__(self, config: ViltTextConfig) -> None:
        super().__init__(config)
        from transformers import AutoTokenizer, ViltConfig

        self.max_text_len = config.max_text_len
        source = Pretrained("ViLT", config.weights, "backbone", config.allow_download)
        self.tokenizer: Any = source.load(AutoTokenizer)
        words = source.load(ViltConfig).vocab_size
        # Without its files transformers hands out a tokenizer that knows no word, and says nothing.
        if len(self.tokenizer) != words:
            raise DataError(
                f"the tokenizer of {config.weights!r} has {len(self.tokenizer)} entries, its model {words}; "
                "put the model's own tokenizer.json or vocab.txt beside the weights."
            )
        self.storage = "int16" if words - 1 <= np.iinfo(np.int16).max else "int32"

    def encode(self, values: Sequence[Any]) -> Encoded:
        """Tokenises texts; `[CLS]` first, `[SEP]` last."""
        encoded = self.tokenizer(
            list(values), padding="max_length", truncation=True, max_length=self.max_text_len, return_tensors="np"
        )
        return Encoded(
            encoded["input_ids"].astype(self.storage), encoded["attention_mask"].astype(np.bool_), _empty(len(values))
        )

    def fingerprint(self) -> str:
        """Digest of the vocabulary and of how a probe text is split."""
        probe = self.tokenizer("The café's N°1, 日本!")["input_ids"]
        content = json.dumps([self.tokenizer.get_vocab(), probe], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class ViltImageEncoder(Encoder):
    """Pictures squashed to the model's square size, `[n, 1, S, S, 3]` uint8: one token that is the whole picture.

    Args:
        config: Weights folder or hub id, read for the image size only.

    Raises:
        DataError: If the model's configuration is not there.
    """

    storage = "uint8"

    def __init__(self, config: ViltImageConfig | ViltPatchesConfig) -> None:
        super().__init__(config)
        from transformers import ViltConfig

        source = Pretrained("ViLT", config.weights, "backbone", config.allow_download)
        self.size = int(source.load(ViltConfig).image_size)

    def encode(self, values: Sequence[Any]) -> Encoded:
        """Resizes uint8 pictures `[H, W, 3]` bilinearly; the aspect ratio is lost, as in the released code."""
        pixels = np.stack(map_one_by_one(self._square, values))
        return Encoded(pixels[:, None], np.ones((len(values), 1), dtype=np.bool_), _empty(len(values)))

    def _square(self, value: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        from PIL import Image

        return np.array(Image.fromarray(value).resize((self.size, self.size), Image.Resampling.BILINEAR))

    def fingerprint(self) -> str:
        """The image size."""
        return str(self.size)


class ViltPatchEncoder(ViltImageEncoder):
    """Patch embeddings `[n, P, d]` in raster order, without positions: bf16, kept as the int16 of the same bits.

    Pixels are exact, weights are rounded to bf16, sums are taken in float32 and rounded once.  Pictures are embedded
    one by one, so that what is stored for a picture does not depend on its companions.

    Args:
        config: Weights folder or hub id.

    Raises:
        DataError: If the weights are not there, or are not finite.
    """

    storage = "int16"

    def __init__(self, config: ViltPatchesConfig) -> None:
        super().__init__(config)
        from harness.methods.common.backbones.vilt import PatchProjection, load_vilt

        self._projection = load_vilt(config.weights, config.allow_download).embeddings.patch_embeddings.projection
        if not all(bool(part.isfinite().all()) for part in self._projection.parameters()):
            raise DataError(f"the patch embedding of {config.weights!r} has weights that are NaN or infinite.")
        with torch.no_grad():
            self._embed = PatchProjection(self._projection, torch.bfloat16, _bf16_or_wider())

    def encode(self, values: Sequence[Any]) -> Encoded:
        """Embeds uint8 pictures `[H, W, 3]`, squashed as by `vilt_image`."""
        from harness.methods.common.backbones.vilt import store_patches

        def one(value: Any) -> Any:
            return store_patches(self._embed(torch.from_numpy(self._square(value))[None])[0].flatten(0, 1)).numpy()

        tokens = np.stack(map_one_by_one(one, values))
        return Encoded(tokens, np.ones(tokens.shape[:2], dtype=np.bool_), _empty(len(values)))

    def fingerprint(self) -> str:
        """The image size and the projection's weights."""
        digest = hashlib.sha256(str(self.size).encode())
        for part in self._projection.parameters():
            digest.update(part.detach().numpy().tobytes())
        return digest.hexdigest()


def _bf16_or_wider() -> torch.dtype:
    """bf16 where the processor multiplies it, else float32: there bf16 would be emulated, and slower by far."""
    native = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)  # not in every build of torch
    return torch.bfloat16 if native() else torch.float32


def _empty(count: int) -> FloatArray:
    """No pooled vector: retrieval keys come from the run's own encoders."""
    return np.zeros((count, 0), dtype=np.float32)
