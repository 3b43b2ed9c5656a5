"""The protocol in which nothing is hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from harness.protocol import Protocol
from harness.types import BoolArray, DataTable, Split


@dataclass
class Complete(Protocol):
    """Every value that the data set has is shown; the reference point of missing-rate curves."""

    target: ClassVar[str] = "harness.protocols.complete:Complete"
    summary: ClassVar[str] = "nothing is hidden"
    citation: ClassVar[str] = "Nothing to cite: the data set as it is."
    examples: ClassVar[tuple[str, ...]] = ("complete",)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for the name `complete`, else None."""
        return cls() if name == "complete" else None

    @property
    def name(self) -> str:
        """`complete`."""
        return "complete"

    def describe(self) -> str:
        """One paragraph on what is hidden: nothing."""
        return "Nothing is hidden in any split; a value that the data set itself lacks stays missing."

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:  # noqa: ARG002
        """`[n, M]` bool, all False."""
        return np.zeros((len(table.splits[split]), len(table.spec.modalities)), dtype=np.bool_)
