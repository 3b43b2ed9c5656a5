"""Small folders in the formats of downloaded data sets, so that tests run the real loaders on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

_TEXT = """
a quiet lake under old mountains where nobody sails the red boat home before rain falls on the long wooden bridge
and seven friends cook dinner with fresh bread while music plays in another room of the white house
"""
#: Words of all texts.
WORDS = tuple(_TEXT.split())


def write_mmimdb(
    folder: Path, train: int = 24, dev: int = 8, test: int = 8, side: tuple[int, int] = (40, 30), seed: int = 0
) -> Path:
    """Writes an MM-IMDb folder as the archive unpacks it: `split.json` and `dataset/<id>.{json,jpeg}`.

    Args:
        folder: Where to; created.
        train: Films in train.
        dev: Films in dev.
        test: Films in test.
        side: Height and width of the posters.
        seed: Another seed, other films.

    Returns:
        The folder.
    """
    generator = np.random.default_rng(seed)
    genres = ("Drama", "Comedy", "Film-Noir", "Short", "News")
    split: dict[str, list[str]] = {}
    film = 5
    for name, count in (("train", train), ("dev", dev), ("test", test)):
        split[name] = []
        for row in range(count):
            film += int(generator.integers(1, 9))
            key = f"{film:07d}"
            split[name].append(key)
            content: dict[str, Any] = {
                "title": f"Film {film}",
                "year": 1900 + film % 100,
                "genres": [genres[row % 5], *(["Drama"] if row % 5 else [])],
                "plot": [_sentence(generator) for _ in range(1 + row % 3)],
            }
            if row % 2:
                content["plot outline"] = _sentence(generator)
            _write_json(folder / "dataset" / f"{key}.json", content)
            _write_picture(folder / "dataset" / f"{key}.jpeg", side, generator)
    _write_json(folder / "split.json", split)
    return folder


def write_hateful_memes(
    folder: Path, train: int = 24, dev: int = 8, test: int = 8, side: tuple[int, int] = (40, 50), seed: int = 0
) -> Path:
    """Writes a Hateful Memes folder: `train.jsonl`, `dev.jsonl`, `test_seen.jsonl` and `img/<id:05d>.png`.

    Args:
        folder: Where to; created.
        train: Memes in train.
        dev: Memes in dev.
        test: Memes in test_seen.
        side: Height and width of the pictures.
        seed: Another seed, other memes.

    Returns:
        The folder.
    """
    generator = np.random.default_rng(seed)
    meme = 1000
    for name, count in (("train", train), ("dev", dev), ("test_seen", test)):
        lines = []
        for row in range(count):
            meme += int(generator.integers(1, 9))
            picture = f"img/{meme:05d}.png"
            _write_picture(folder / picture, side, generator)
            lines.append(json.dumps({"id": meme, "img": picture, "label": row % 2, "text": _sentence(generator)}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_food101(
    folder: Path,
    train: int = 24,
    valid: int = 8,
    test: int = 8,
    side: tuple[int, int] = (40, 40),
    seed: int = 0,
    split_file: bool = True,
) -> Path:
    """Writes a UPMC Food-101 folder: two lists without a header, `images/{train,test}/<class>/`, MAP's `split.json`.

    Args:
        folder: Where to; created.
        train: Dishes in train beyond those of valid.
        valid: Dishes of `train_titles.csv` that `split.json` puts into valid.
        test: Dishes in test.
        side: Height and width of the pictures.
        seed: Another seed, other dishes.
        split_file: Whether `split.json` is written.

    Returns:
        The folder.
    """
    generator = np.random.default_rng(seed)
    dishes = ("apple_pie", "sushi", "baklava", "frozen_yogurt")
    split: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    number = 0
    for name, count in (("train", train + valid), ("test", test)):
        rows = []
        for row in range(count):
            number += int(generator.integers(1, 9))
            dish = dishes[row % len(dishes)]
            file = f"{dish}_{number}.jpg"
            title = f'{dish.replace("_", " ").title()}, "{_sentence(generator)}" | {number}'
            rows.append((file, title, dish))
            part = "val" if name == "train" and row >= train else name
            split[part].append(file)
            _write_picture(folder / "images" / name / dish / file, side, generator)
        with (folder / "texts" / f"{name}_titles.csv").open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows(rows)
    if split_file:
        _write_json(folder / "split.json", split)
    return folder


def _sentence(generator: np.random.Generator) -> str:
    """5 to 40 words."""
    return " ".join(generator.choice(WORDS, size=int(generator.integers(5, 41))).tolist())


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_picture(path: Path, side: tuple[int, int], generator: np.random.Generator) -> None:
    """A picture of four coloured quarters with noise."""
    from PIL import Image

    height, width = side
    quarters = generator.integers(0, 256, (2, 2, 3)).repeat((height + 1) // 2, axis=0).repeat((width + 1) // 2, axis=1)
    noise = generator.integers(-20, 21, (height, width, 3))
    pixels = np.clip(quarters[:height, :width] + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
