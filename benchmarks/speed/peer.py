"""What the released pipeline costs, re-stated in our own words: the peer that our stages are measured against.

It does the work that the released code does, in the way it does it: a float32 `.npy` file per sample and modality,
neighbours turned into nested Python lists and back, pictures squashed and put through transformers' own image processor
and embedding layer one by one, cosine similarity by broadcasting, 128 text tokens whatever the text's length, padding
attended to, eager attention in float32, both generators and both prompts for every sample, copies of a neighbour
computed once per sample that has it.
`tests/unit/test_speed_comparison.py` holds that its logits are those of `method=redeem method.preset=official`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speed.data import Release

BLOCK = 64  # queries that are compared with the whole memory at once

# -- memory ----------------------------------------------------------------------------------------------------------


class Embedder:
    """Text and image through the frozen embedding layer, one sample at a time.

    Args:
        vilt: transformers' `ViltModel`.
        tokenizer: Its tokenizer.
        length: Text tokens, padded.
    """

    def __init__(self, vilt: Any, tokenizer: Any, length: int = 128) -> None:
        from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

        self.vilt, self.tokenizer, self.length = vilt, tokenizer, length
        self.processor = ViltImageProcessorPil(size={"shortest_edge": int(vilt.config.image_size)})

    def ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def pixels(self, path: Path) -> npt.NDArray[np.float32]:
        """`[3, S, S]` between -1 and 1: squashed, then handed to the library's image processor, which finds no more to
        resize and rescales, normalises and pads it."""
        from PIL import Image

        size = int(self.vilt.config.image_size)
        with Image.open(path) as picture:
            square = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        values: npt.NDArray[np.float32] = self.processor(square, return_tensors="np")["pixel_values"][0]
        return values

    def text(self, ids: Tensor) -> Tensor:
        """`[B, T, d]`, the position table stretched in every call."""
        part = self.vilt.embeddings.text_embeddings
        table = part.position_embeddings.weight[None, None]
        positions = F.interpolate(table, size=(ids.shape[1], table.shape[3]), mode="bilinear", align_corners=False)
        hidden = part.word_embeddings(ids) + part.token_type_embeddings.weight[0] + positions[0]
        result: Tensor = part.LayerNorm(hidden) + self.vilt.embeddings.token_type_embeddings.weight[0]
        return result

    def image(self, pixels: Tensor) -> Tensor:
        """`[B, 1 + patches, d]` by the library's own embedding, which resamples positions and shuffles patches."""
        part = self.vilt.embeddings
        seen = torch.ones(len(pixels), *pixels.shape[2:], dtype=torch.long)
        hidden: Tensor = part.visual_embed(pixels, seen)[0] + part.token_type_embeddings.weight[1]
        return hidden


@torch.no_grad()
def build_memory(release: Release, rows: Sequence[int], embedder: Embedder, folder: Path) -> None:
    """Writes `text/<row>.npy` and `image/<row>.npy`, float32, sample by sample."""
    for part in ("text", "image"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for row in rows:
        ids, _ = embedder.ids([release.texts[row]])
        pixels = torch.from_numpy(embedder.pixels(release.picture(row)))[None]
        for part, values in (("text", embedder.text(ids)), ("image", embedder.image(pixels))):
            # Renamed when it is whole: a comparison that was stopped leaves no half file to the next.
            np.save(folder / "half.npy", values[0].numpy())
            (folder / "half.npy").rename(folder / part / f"{row}.npy")


def memory_bytes(folder: Path) -> int:
    """Bytes of all files of the memory."""
    return sum(file.stat().st_size for file in folder.rglob("*.npy"))


def load_batch(
    release: Release, rows: Sequence[int], neighbours: Sequence[Sequence[int]], embedder: Embedder, folder: Path
) -> dict[str, Tensor]:
    """A batch with its neighbours: each sample becomes nested Python lists, the collator makes tensors of them."""
    samples = []
    for row, near in zip(rows, neighbours, strict=True):
        samples.append(
            {
                "text": release.texts[row],
                "pixels": embedder.pixels(release.picture(row)),
                "label": release.labels[row],
                "near_text": [np.load(folder / "text" / f"{item}.npy").tolist() for item in near],
                "near_image": [np.load(folder / "image" / f"{item}.npy").tolist() for item in near],
                "near_label": [release.labels[item] for item in near],
            }
        )
    ids, mask = embedder.ids([sample["text"] for sample in samples])
    return {
        "ids": ids,
        "mask": mask,
        "pixels": torch.stack([torch.from_numpy(sample["pixels"]) for sample in samples]),
        **{
            key: torch.tensor([sample[key] for sample in samples])
            for key in ("near_text", "near_image", "near_label", "label")
        },
    }


# -- search ----------------------------------------------------------------------------------------------------------


def search_block(queries: Tensor, memory: Tensor, k: int = 20) -> tuple[Tensor, Tensor]:
    """Top-k of at most `BLOCK` queries by broadcasting: `[q, 1, d]` against `[1, N, d]`."""
    return F.cosine_similarity(queries.unsqueeze(1), memory.unsqueeze(0), dim=-1).topk(k, dim=1)


# -- network ---------------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """Router over K neighbours and one expert each, for every sample and every token, padding too."""

    def __init__(self, width: int, k: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(k)
        )

    def forward(self, observed: Tensor, retrieved: Tensor) -> Tensor:
        """`[B, L', d]` and `[B, K, L, d]` to `[B, L, d]`."""
        query = self.query(observed).mean(1)
        key = self.key(retrieved).mean(2)
        weights = (key @ query.unsqueeze(-1)).squeeze(-1).softmax(1)
        outputs = torch.stack([expert(retrieved[:, rank]) for rank, expert in enumerate(self.experts)], 1)
        return (weights[:, :, None, None] * outputs).sum(1)


class Prompter(nn.Module):
    """Attention from the mean neighbour of one modality to every neighbour of the other, pooled to one token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, asking: Tensor, answering: Tensor) -> Tensor:
        """`[B, K, L', d]` and `[B, K, L, d]` to `[B, 1, d]`."""
        query = self.query(asking.mean(1, keepdim=True).expand_as(asking))
        key, value = self.key(answering), self.value(answering)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        attended = (scores.softmax(-1) @ value).mean(2, keepdim=True)
        mixed: Tensor = self.output(attended).mean(1)
        return mixed


class Network(nn.Module):
    """The released forward pass for two modalities and a single-label task.

    Args:
        vilt: transformers' `ViltModel`, frozen here but for its pooler.
        embedder: Its embedding layer, as the released code calls it.
        k: Neighbours.
        classes: Classes.
    """

    def __init__(self, vilt: Any, embedder: Embedder, k: int = 5, classes: int = 2) -> None:
        super().__init__()
        width = int(vilt.config.hidden_size)
        self.vilt, self._embedder = vilt, embedder
        vilt.requires_grad_(False)
        vilt.pooler.requires_grad_(True)
        self.heads = int(vilt.config.num_attention_heads)
        self.text, self.image = Generator(width, k), Generator(width, k)
        self.prompter = Prompter(width)
        self.table = nn.Parameter(torch.randn(classes, width))
        self.head = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, batch: dict[str, Tensor], missing: Tensor) -> Tensor:
        """Logits `[B, C]`; `missing` `[B]` is 0 without text, 1 without image, 2 complete."""
        text, image = self._embedder.text(batch["ids"]), self._embedder.image(batch["pixels"])
        near_text, near_image = batch["near_text"], batch["near_image"]
        made_text, made_image = self.text(image, near_text), self.image(text, near_image)
        no_text, no_image = ((missing == code).float().view(-1, 1, 1) for code in (0, 1))
        text = text * (1 - no_text) + made_text * no_text
        image = image * (1 - no_image) + made_image * no_image
        label = self.table[batch["near_label"]].mean(1, keepdim=True)
        prompts = [label, self.prompter(near_image, near_text), self.prompter(near_text, near_image)]
        hidden = torch.cat([*prompts, text, image], 1)
        # The released mask is one number per query row, which the softmax cancels: work, but no effect.
        padding = batch["mask"]
        mask = torch.cat([padding.new_ones(len(hidden), hidden.shape[1] - padding.shape[1]), padding], 1)
        for layer in self.vilt.encoder.layer:
            hidden = self._block(layer, hidden, mask[:, None, :, None].float())
        hidden = self.vilt.layernorm(hidden)
        pooled = torch.tanh(self.vilt.pooler.dense(hidden[:, 0]))
        logits: Tensor = self.head(torch.cat([pooled, label[:, 0]], 1)) @ self.table.T
        return logits

    def _block(self, layer: Any, hidden: Tensor, row_bias: Tensor) -> Tensor:
        attention, normed = layer.attention.attention, layer.layernorm_before(hidden)

        def split(tokens: Tensor) -> Tensor:
            return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

        query, key, value = (split(part(normed)) for part in (attention.query, attention.key, attention.value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + row_bias
        context = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = hidden + layer.attention.output.dense(context)
        inner = F.gelu(layer.intermediate.dense(layer.layernorm_after(hidden)))
        result: Tensor = hidden + layer.output.dense(inner)
        return result
