"""A stand-in for somebody else's plugins, loaded with `--plugin`; importing it must stay light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from harness import registry
from harness.config import BackboneConfig, EncoderConfig, MethodConfig
from harness.dataset import DatasetConfig, table_fingerprint
from harness.plugin import check_range
from harness.protocol import Protocol, hash_order, parse_rate
from harness.types import BoolArray, DatasetSpec, DataTable, ModalitySpec, Split, TaskSpec


@dataclass
class ToyMethod(MethodConfig):
    """Guesses with style.

    Attributes:
        k: Neighbours asked, at least 1.
        gain: How loudly.
        kind: What is asked.
    """

    summary: ClassVar[str] = "a toy method"
    citation: ClassVar[str] = "nobody, nowhere"
    card: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"clean": {}, "official": {"k": 9, "gain": 2.0}}

    k: int = 5
    gain: float = 1.0
    kind: str = "image"
    limit: int | None = None
    widths: list[int] = field(default_factory=lambda: [8, 8])

    def validate(self) -> None:
        check_range("method", "k", self.k, 1)


@dataclass
class PlainMethod(MethodConfig):
    """No options of its own."""

    summary: ClassVar[str] = "a plain method"
    card: ClassVar[str] = ""


@dataclass
class ToyData(DatasetConfig):
    """Twenty samples of nothing much.

    Attributes:
        samples: How many.
    """

    summary: ClassVar[str] = "a toy data set"
    license: ClassVar[str] = "CC0"
    card: ClassVar[str] = ""
    real: ClassVar[bool] = False

    samples: int = 20

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:
        ids = tuple(f"s{row:02d}" for row in range(self.samples))
        cut = [self.samples // 2, self.samples * 3 // 4]
        train, valid, test = np.split(np.arange(self.samples, dtype=np.int64), cut)
        splits: dict[Split, Any] = {"train": train, "valid": valid, "test": test}
        labels = np.arange(self.samples, dtype=np.int64) % 2
        spec = DatasetSpec(
            name="toy_data",
            version="1",
            modalities=(ModalitySpec("image", "image"), ModalitySpec("text", "text")),
            task=TaskSpec("binary", 2, ("no", "yes"), "accuracy"),
            license=self.license,
            citation="",
            fingerprint=table_fingerprint(ids, splits, labels, ids),
        )
        available = np.ones((self.samples, 2), dtype=np.bool_)
        return DataTable(spec, ids, splits, labels, available, {"image": ids, "text": ids})


@dataclass
class ToyBackbone(BackboneConfig):
    """Stands still."""

    summary: ClassVar[str] = "a toy backbone"
    card: ClassVar[str] = ""


@dataclass
class ToyEncoder(EncoderConfig):
    """Encodes nothing."""

    summary: ClassVar[str] = "a toy encoder"
    card: ClassVar[str] = ""


@dataclass
class ToyProtocol(Protocol):
    """Hides the first modality of a share of the samples.

    Attributes:
        rate: Share of samples, 0 to 1.
    """

    summary: ClassVar[str] = "a toy protocol"
    examples: ClassVar[tuple[str, ...]] = ("toy_0.5",)

    rate: float = 0.5

    @classmethod
    def parse(cls, name: str) -> Self | None:
        if not name.startswith("toy_"):
            return None
        return cls(parse_rate(name.removeprefix("toy_"), name))

    @property
    def name(self) -> str:
        return f"toy_{self.rate:g}"

    def describe(self) -> str:
        return f"a share of {self.rate:g} of the samples loses the first modality"

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        ids = table.split_ids(split)
        hidden = np.zeros((len(ids), len(table.spec.modalities)), dtype=np.bool_)
        hidden[hash_order(ids, mask_seed, split, "toy")[: int(len(ids) * self.rate)], 0] = True
        return hidden


registry.methods.register("toy", ToyMethod, "the tests")
registry.methods.register("plain", PlainMethod, "the tests")
registry.datasets.register("toy_data", ToyData, "the tests")
registry.backbones.register("toy_backbone", ToyBackbone, "the tests")
registry.encoders.register("toy_encoder", ToyEncoder, "the tests")
registry.protocols.register("toy_protocol", ToyProtocol, "the tests")
