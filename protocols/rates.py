"""Independent missing rates: every modality is lost by its own share of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from harness.errors import UsageError
from harness.protocol import Protocol, format_rate, hash_order, parse_rate, share_of
from harness.types import SPLITS, BoolArray, DataTable, Split


@dataclass
class Rates(Protocol):
    """`shared_<rate>` and `imbalanced_<rate>-<rate>-…`: an independent rate per modality, in spec order.

    RedCore's published sets, for three modalities in the order of the data set: `shared_0`, `shared_0.1`, …
    `shared_0.9`; on IEMOCAP `imbalanced_0.5-0.5-0.5`, `imbalanced_0.2-0.5-0.8` (its default) and
    `imbalanced_0.5-0.8-0.2`; on MOSEI `imbalanced_0.8-0.5-0.5`, `imbalanced_0.5-0.8-0.5`, `imbalanced_0.5-0.5-0.8`,
    `imbalanced_0.2-0.5-0.8`, `imbalanced_0.5-0.2-0.8` and `imbalanced_0.8-0.5-0.2`.  It draws them for training and
    tests on every pattern: `train:imbalanced_0.2-0.5-0.8,test:patterns`.

    Attributes:
        rates: One rate for all modalities (`shared`), or one for each.
    """

    target: ClassVar[str] = "harness.protocols.rates:Rates"
    summary: ClassVar[str] = (
        "each modality is missing at its own rate, independently: shared_<rate>, imbalanced_<rate>-<rate>-…"
    )
    citation: ClassVar[str] = (
        "Sun, Zhang, Han, Ruan, Li: RedCore: Relative Advantage Aware Cross-modal Representation Learning for Missing "
        "Modalities with Imbalanced Missing Rates, AAAI 2024"
    )
    examples: ClassVar[tuple[str, ...]] = (
        "shared_0.5",
        "imbalanced_0.2-0.5-0.8",
        "imbalanced_0.5-0.8-0.2",
        "imbalanced_0.8-0.5-0.5",
    )

    rates: list[float] = field(default_factory=lambda: [0.5])

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for `shared_…` and `imbalanced_…`, else None.

        Raises:
            UsageError: If a rate is not a number between 0 and 1, or there are too few of them.
        """
        family, sign, text = name.partition("_")
        if not sign or family not in ("shared", "imbalanced"):
            return None
        if family == "shared":
            return cls([parse_rate(text, name)])
        parts = text.split("-")
        if len(parts) < 2:
            raise UsageError(
                f"protocol {name!r}: write one rate per modality, e.g. imbalanced_0.2-0.8, or shared_{text or 0.5}."
            )
        return cls([parse_rate(part, name) for part in parts])

    @property
    def name(self) -> str:
        """Canonical name."""
        family = "shared" if len(self.rates) == 1 else "imbalanced"
        return f"{family}_{'-'.join(map(format_rate, self.rates))}"

    def describe(self) -> str:
        """One paragraph: which samples lose what, and how the draw is made."""
        if len(self.rates) == 1:
            share = f"floor({format_rate(self.rates[0])} N) of the N samples that have it"
        else:
            listed = ", ".join(format_rate(rate) for rate in self.rates)
            share = (
                f"floor(r N) of the N samples that have it, where r is {listed} for the modalities in the order of "
                "the data set"
            )
        return (
            f"In each split on its own and for each modality independently of the others, {share} are drawn to lose "
            "it. A sample that would lose everything it has keeps one modality, which of them the hash decides (the "
            "one that was drawn last, measured by its place among the samples drawn to lose that modality); such "
            "samples are counted, and the realised shares lie below the rates by them. Samples are drawn in the order "
            "of sha256(mask_seed|split|salt|id), with another salt for every modality."
        )

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool for the samples of `split`, True where a value is hidden.

        Raises:
            UsageError: If there is not one rate per modality.
        """
        return self._draw(table, split, mask_seed)[0]

    def remarks(self, table: DataTable, mask_seed: int, splits: Sequence[Split] = SPLITS) -> list[str]:
        """How many samples of each split keep a modality by exception."""
        kept = {split: self._draw(table, split, mask_seed)[1] for split in splits}
        return [
            f"{split}: {count} of {len(table.splits[split])} samples were to lose everything and keep one modality"
            for split, count in kept.items()
            if count
        ]

    def _draw(self, table: DataTable, split: Split, mask_seed: int) -> tuple[BoolArray, int]:
        """What is hidden, and the number of samples that keep a modality by exception."""
        names = table.spec.modality_names
        rates = self.rates * len(names) if len(self.rates) == 1 else self.rates
        if len(rates) != len(names):
            raise UsageError(
                f"protocol {self.name!r} has {len(rates)} rates, but data set {table.spec.name!r} has {len(names)} "
                f"modalities ({', '.join(names)}); write one rate for each, in this order."
            )
        available = table.available[table.splits[split]]
        ids = table.split_ids(split)
        # Place of a sample among those drawn to lose the modality, 0 to 1; 2 where it is not drawn.
        place = np.full(available.shape, 2.0)
        for column, (name, rate) in enumerate(zip(names, rates, strict=True)):
            able = np.flatnonzero(available[:, column])
            order = able[hash_order([ids[row] for row in able], mask_seed, split, f"rates|{name}")]
            drawn = order[: share_of(rate, able.size)]
            place[drawn, column] = np.arange(drawn.size) / max(drawn.size, 1)
        hidden = available & (place < 2.0)
        emptied = np.flatnonzero((available & ~hidden).sum(axis=1) == 0)
        # Drawn last is lost last: what a sample keeps at a shared rate it also had at every lower one.
        hidden[emptied, np.where(available[emptied], place[emptied], -1.0).argmax(axis=1)] = False
        return hidden, int(emptied.size)
