"""The protocol of data that come incomplete: natural absence is the whole of what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from harness.protocol import Protocol
from harness.types import SPLITS, BoolArray, DataTable, Split


@dataclass
class Natural(Protocol):
    """Nothing is hidden beyond what the data set itself lacks, and what it lacks is counted.

    On any data set it shows what `complete` shows; the name says that missing values are meant to be there.
    """

    target: ClassVar[str] = "harness.protocols.natural:Natural"
    summary: ClassVar[str] = "as the data came: nothing is hidden beyond natural absence"
    citation: ClassVar[str] = "Nothing to cite: the data set as it is."
    examples: ClassVar[tuple[str, ...]] = ("natural",)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for the name `natural`, else None."""
        return cls() if name == "natural" else None

    @property
    def name(self) -> str:
        """`natural`."""
        return "natural"

    def describe(self) -> str:
        """One paragraph on what is missing: what the data set lacks."""
        return (
            "The data as they came: a value is missing where the data set itself lacks it, and nothing else is hidden. "
            "How many samples of a split lack something is counted; mask_seed draws nothing."
        )

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:  # noqa: ARG002
        """`[n, M]` bool, all False."""
        return np.zeros((len(table.splits[split]), len(table.spec.modalities)), dtype=np.bool_)

    def remarks(self, table: DataTable, mask_seed: int, splits: Sequence[Split] = SPLITS) -> list[str]:  # noqa: ARG002
        """How many samples of each split the data set gives incomplete; also where none is."""
        lines = []
        for split in splits:
            available = table.available[table.splits[split]]
            lacking = int((~available.all(axis=1)).sum())
            lines.append(f"{split}: {lacking} of {len(available)} samples lack a modality by nature")
        return lines
