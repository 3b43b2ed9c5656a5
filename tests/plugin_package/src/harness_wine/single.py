"""A protocol in which incomplete samples keep a single modality."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from harness.protocol import Protocol, format_rate, hash_order, parse_rate, share_of
from harness.types import BoolArray, DataTable, Split


@dataclass
class Single(Protocol):
    """`single_<rate>`: an exact share of every split keeps one modality and loses all others.

    Attributes:
        rate: Share of incomplete samples, 0 to 1.
    """

    summary: ClassVar[str] = "an exact share of every split keeps a single modality: single_<rate>"
    citation: ClassVar[str] = "none: an example of a plugin"
    examples: ClassVar[tuple[str, ...]] = ("single_0.5",)

    rate: float = 0.5

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for `single_<rate>`, None for the names of other families."""
        prefix, _, rate = name.rpartition("_")
        return cls(parse_rate(rate, name)) if prefix == "single" else None

    @property
    def name(self) -> str:
        """Canonical name."""
        return f"single_{format_rate(self.rate)}"

    def describe(self) -> str:
        """One paragraph: which samples lose what, and how the draw is made."""
        return (
            f"In each split floor({format_rate(self.rate)} N) of the N samples with at least two modalities keep one; "
            "which one goes in turn over the modalities that the sample has. Samples are taken in the order of "
            "sha256(mask_seed|split|single|id), so that a lower rate hides a part of what a higher rate hides."
        )

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool for the samples of `split`, True where a value is hidden."""
        available = table.available[table.splits[split]]
        able = np.flatnonzero(available.sum(axis=1) >= 2)
        ids = table.split_ids(split)
        order = able[hash_order([ids[row] for row in able], mask_seed, split, "single")]
        hidden = np.zeros_like(available)
        for turn, row in enumerate(order[: share_of(self.rate, able.size)]):
            choices = np.flatnonzero(available[row])
            hidden[row] = available[row]
            hidden[row, choices[turn % len(choices)]] = False
        return hidden
