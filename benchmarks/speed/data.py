"""Data and weights for the comparison: generated, shaped like Hateful Memes and `dandelin/vilt-b32-mlm`.

Pictures are 500x400 PNG files, texts 5 to 40 words, weights random.  Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from harness.types import DatasetSpec, DataTable, ModalitySpec, TaskSpec

PICTURE = (400, 500)
WORDS = (5, 40)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class Shape:
    """Sizes of the ViLT; the defaults are those of ViLT-B/32."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    image: int = 384
    vocabulary: int = 30522


@dataclass(frozen=True)
class Release:
    """A folder as a data set's release would be: captions, labels, PNG files.

    Attributes:
        folder: Where `img/<id>.png` lies.
        texts: Caption of every sample.
        labels: 0 or 1.
    """

    folder: Path
    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def picture(self, row: int) -> Path:
        return self.folder / "img" / f"{row:05d}.png"


class Pictures(Sequence[npt.NDArray[np.uint8]]):
    """Decodes a release's pictures on access, as the harness's data sets do."""

    def __init__(self, release: Release) -> None:
        self._release = release

    def __len__(self) -> int:
        return len(self._release)

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[npt.NDArray[np.uint8]]: ...
    def __getitem__(self, index: Any) -> Any:
        from PIL import Image

        with Image.open(self._release.picture(index)) as picture:
            return np.asarray(picture.convert("RGB"))


def vocabulary(size: int) -> list[str]:
    """Special tokens, letters and their continuations (so that every word can be spelt), then made-up words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    start = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    return [*start, *(word for word, _ in zip(_made_up(), range(max(0, size - len(start))), strict=False))][:size]


def _made_up() -> Iterator[str]:
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    syllables = [a + b for a in consonants for b in vowels]
    for length in (2, 3):
        for number in range(len(syllables) ** length):
            word = ""
            for _ in range(length):
                number, digit = divmod(number, len(syllables))
                word += syllables[digit]
            yield word


def make_release(folder: Path, count: int, seed: int = 0) -> Release:
    """Writes `count` samples; a folder that already holds as many is used again.

    Word lengths are uniform, and every fourth word is outside the vocabulary, so that a text has about as many word
    pieces per word as English captions have.
    """
    from PIL import Image

    (folder / "img").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    words = vocabulary(4000)[len(SPECIAL) + 52 :]
    texts = []
    for _ in range(count):
        drawn = generator.choice(words, size=int(generator.integers(WORDS[0], WORDS[1] + 1)))
        texts.append(" ".join(word + "q" if row % 4 == 3 else word for row, word in enumerate(drawn)))
    release = Release(folder, tuple(texts), tuple(generator.integers(0, 2, size=count).tolist()))
    for row in range(count):
        coarse = generator.integers(0, 256, size=(20, 25, 3), dtype=np.uint8)
        if not release.picture(row).is_file():
            smooth = Image.fromarray(coarse).resize(PICTURE[::-1], Image.Resampling.BICUBIC)
            noise = np.random.default_rng(row).integers(-6, 7, size=(*PICTURE, 3))
            Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)).save(release.picture(row))
    (folder / "train.jsonl").write_text(
        "".join(
            json.dumps({"id": row, "img": f"img/{row:05d}.png", "label": label, "text": text}) + "\n"
            for row, (label, text) in enumerate(zip(release.labels, release.texts, strict=True))
        )
    )
    return release


def make_table(release: Release) -> DataTable:
    """The release as the harness sees a data set: 80 % train, 10 % valid, 10 % test."""
    count = len(release)
    first, second = int(count * 0.8), int(count * 0.9)
    spec = DatasetSpec(
        name="memes_shaped",
        version=str(count),
        modalities=(ModalitySpec("text", "text"), ModalitySpec("image", "image")),
        task=TaskSpec("binary", 2, ("no", "yes"), "auroc"),
        license="CC0-1.0",
        citation="generated",
        fingerprint=f"memes-shaped-{count}",
    )
    rows = np.arange(count)
    return DataTable(
        spec=spec,
        ids=tuple(f"m{row}" for row in range(count)),
        splits={"train": rows[:first], "valid": rows[first:second], "test": rows[second:]},
        labels=np.asarray(release.labels, dtype=np.int64),
        available=np.ones((count, 2), dtype=np.bool_),
        values={"text": release.texts, "image": Pictures(release)},
    )


def save_vilt(folder: Path, shape: Shape | None = None, seed: int = 0) -> Path:
    """A random-weight ViLT with its tokenizer, saved as the hub keeps it; an existing one is used again."""
    shape = shape or Shape()
    if (folder / "tokenizer.json").is_file():
        return folder
    import torch
    from transformers import BertTokenizerFast, ViltConfig, ViltModel

    torch.manual_seed(seed)
    config = ViltConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        image_size=shape.image,
    )
    model = ViltModel(config)
    for name, parameter in model.named_parameters():
        if "position_embeddings" in name or "cls_token" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    words = vocabulary(shape.vocabulary)
    BertTokenizerFast(vocab={word: row for row, word in enumerate(words)}).save_pretrained(folder)
    return folder
