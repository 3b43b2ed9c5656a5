"""The released draw of RAGPT and REDEEM: one draw over all splits, from NumPy's legacy generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from harness.errors import UsageError
from harness.protocol import Protocol, format_rate, parse_rate
from harness.types import SPLITS, BoolArray, DataTable, IntArray, Split


@dataclass
class Concat(Protocol):
    """`concat_both_<rate>` and `concat_<modality>_<rate>`: masks as the released code draws them, for replays.

    Splits do not get their exact rate, and the draw depends on the order of the samples; `both_0.7` mends both.

    Attributes:
        what: A modality of the data set, or `both` (data sets of exactly two modalities).
        rate: Share of all samples that lose one modality, 0 to 1.
    """

    target: ClassVar[str] = "harness.protocols.concat:Concat"
    summary: ClassVar[str] = (
        "the released draw of RAGPT and REDEEM, once over all splits: concat_both_<rate>, concat_<modality>_<rate>"
    )
    citation: ClassVar[str] = (
        "Lang, Cheng, Zhong, Zhou: Retrieval-Augmented Dynamic Prompt Tuning for Incomplete Multimodal Learning, "
        "AAAI 2025; the draw is that of its released code and of REDEEM's, KDD 2025"
    )
    examples: ClassVar[tuple[str, ...]] = ("concat_both_0.7", "concat_text_0.7")

    what: str = "both"
    rate: float = 0.7

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for `concat_<what>_<rate>`, else None.

        Raises:
            UsageError: If the rate is not a number between 0 and 1.
        """
        family, _, rest = name.partition("_")
        what, _, rate = rest.rpartition("_")
        if family != "concat":
            return None
        if not what:
            raise UsageError(f"protocol {name!r}: write concat_both_0.7 or concat_<modality>_0.7.")
        return cls(what, parse_rate(rate, name))

    @property
    def name(self) -> str:
        """Canonical name."""
        return f"concat_{self.what}_{format_rate(self.rate)}"

    @property
    def replays(self) -> bool:
        """True: the order of samples matters, and all splits are drawn at once."""
        return True

    def describe(self) -> str:
        """One paragraph: which samples lose what, and how the draw is made."""
        share = f"int({format_rate(self.rate)} N)"
        if self.what == "both":
            loss = (
                f"n = {share}; floor(n/2) of them lose the first modality that is no picture (the text), then "
                "floor(n/2) of the others, in ascending order, lose the other modality (the picture)"
            )
        else:
            loss = f"{share} of them lose {self.what!r}"
        return (
            f"As the released code of RAGPT and REDEEM draws it: once over the N samples of train, valid and test one "
            f"after the other, in the order of the data set, {loss}. Indices come from NumPy's legacy generator, "
            "seed(mask_seed) and choice without replacement (released: 2024), so the rate of a single split is not "
            "exact and the draw depends on the order of the samples. A drawn sample that has nothing else keeps its "
            "value; such samples are counted."
        )

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool for the samples of `split`, True where a value is hidden.

        Raises:
            UsageError: If the data set does not have the modality, or has not exactly two for `both`.
        """
        able: BoolArray = table.available[table.splits[split]].sum(axis=1, keepdims=True) >= 2
        return self._draw(table, split, mask_seed) & able

    def remarks(self, table: DataTable, mask_seed: int, splits: Sequence[Split] = SPLITS) -> list[str]:
        """How many samples of each split keep a value by exception."""
        lines = []
        for split in splits:
            available = table.available[table.splits[split]]
            drawn = self._draw(table, split, mask_seed) & available
            kept = int((drawn.any(axis=1) & (available.sum(axis=1) < 2)).sum())
            if kept:
                lines.append(
                    f"{split}: {kept} samples were drawn to lose the only modality that they have; they keep it"
                )
        return lines

    def _draw(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool: what the draw over all splits takes from the samples of `split`, whatever they have."""
        columns = self._columns(table)
        bounds = np.cumsum([0, *(len(table.splits[part]) for part in SPLITS)])
        total = int(bounds[-1])
        # The product in floating point and the order of the calls are those of the released code.
        count = int(total * self.rate)
        try:
            generator = np.random.RandomState(mask_seed)
        except ValueError as error:
            raise UsageError(f"protocol {self.name!r}: mask_seed={mask_seed}: {error}.") from error
        drawn = np.zeros((total, len(table.spec.modalities)), dtype=np.bool_)
        rest: IntArray = np.arange(total)
        for column in columns:
            chosen = generator.choice(rest, count // len(columns), replace=False)
            drawn[chosen, column] = True
            rest = np.setdiff1d(rest, chosen)
        position = SPLITS.index(split)
        own: BoolArray = drawn[bounds[position] : bounds[position + 1]]
        return own

    def _columns(self, table: DataTable) -> list[int]:
        """Columns that lose values, in the order in which they are drawn."""
        names = table.spec.modality_names
        if self.what == "both":
            if len(names) != 2:
                raise UsageError(
                    f"protocol {self.name!r} replays a draw for two modalities, but data set {table.spec.name!r} has "
                    f"{len(names)} ({', '.join(names)}); use 'any_{format_rate(self.rate)}' or concat_<modality>."
                )
            return sorted(range(2), key=lambda column: table.spec.modalities[column].kind == "image")
        if self.what not in names:
            raise UsageError(
                f"protocol {self.name!r}: data set {table.spec.name!r} has no modality {self.what!r}. "
                f"Modalities: {', '.join(names)}."
            )
        return [names.index(self.what)]
