"""Fixed missing rates: an exact share of every split misses exactly one modality."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from harness.errors import UsageError
from harness.protocol import Protocol, format_rate, hash_order, parse_rate, share_of
from harness.types import BoolArray, DatasetSpec, DataTable, Split

_DEALT = ("both", "any")


@dataclass
class FixedRate(Protocol):
    """`<modality>_<rate>`, `both_<rate>` and `any_<rate>`.

    Canonical names write the rate as its shortest decimal: `both_0.70` is `both_0.7`, `both_1.0` is `both_1`.

    Attributes:
        what: A modality of the data set; `both` (data sets of exactly two modalities) or `any`, which deal the
            incomplete samples evenly over the modalities.
        rate: Share of samples that lose one modality, 0 to 1.
    """

    target: ClassVar[str] = "harness.protocols.fixed_rate:FixedRate"
    summary: ClassVar[str] = (
        "an exact share of every split misses one modality: <modality>_<rate>, both_<rate>, any_<rate>"
    )
    citation: ClassVar[str] = (
        "Lee, Tsai, Chiu, Lee: Multimodal Prompting with Missing Modalities for Visual Recognition, CVPR 2023"
    )
    examples: ClassVar[tuple[str, ...]] = ("both_0.7", "any_0.5", "text_0.7", "image_0.3")
    fallback: ClassVar[bool] = True

    what: str = "both"
    rate: float = 0.7

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for `<what>_<rate>`; None when the last part is no attempt at a number.

        Raises:
            UsageError: If the rate is not a number between 0 and 1.
        """
        what, _, rate = name.rpartition("_")
        if not what or not (rate[:1] in set("+-.0123456789") or what in _DEALT):
            return None
        return cls(what, parse_rate(rate, name))

    @property
    def name(self) -> str:
        """Canonical name."""
        return f"{self.what}_{format_rate(self.rate)}"

    def describe(self) -> str:
        """One paragraph: which samples lose what, and how the draw is made."""
        share = format_rate(self.rate)
        if self.what in _DEALT:
            loss = (
                f"n = floor({share} N) of its N samples lose exactly one modality, dealt evenly over the modalities in "
                "the order of the data set with pictures last (of text and image, floor(n/2) miss the image and the "
                "rest the text)"
            )
            able = "at least two modalities"
        else:
            loss = f"n = floor({share} N) of its N samples lose {self.what!r}"
            able = f"{self.what!r} and another modality"
        return (
            f"In each split on its own, {loss}. N counts the samples that have {able}; all others keep what the data "
            "set gives them. Samples are taken in the order of sha256(mask_seed|split|salt|id), so the rate is exact, "
            "a sample that misses a modality at one rate misses the same one at every higher rate, and splits and "
            "modalities are drawn independently."
        )

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool for the samples of `split`, True where a value is hidden.

        Raises:
            UsageError: If the data set does not have the modality, has not exactly two for `both`, or no sample of
                the split can lose a value.
        """
        columns = self._columns(table.spec)
        available = table.available[table.splits[split]]
        able = np.flatnonzero((available.sum(axis=1) >= 2) & available[:, columns].any(axis=1))
        if self.rate > 0 and not able.size:
            raise UsageError(
                f"protocol {self.name!r}: no sample of split {split!r} of data set {table.spec.name!r} could lose a "
                "value and keep another one; use protocol 'complete'."
            )
        ids = table.split_ids(split)
        salt = "fixed_rate|any" if self.what in _DEALT else f"fixed_rate|only|{self.what}"
        order = able[hash_order([ids[row] for row in able], mask_seed, split, salt)]
        hidden = np.zeros_like(available)
        dealt = dict.fromkeys(columns, 0)
        for row in order[: share_of(self.rate, able.size)]:
            # The modality that was dealt least so far, the first of equals: any prefix of the order is balanced.
            column = min((column for column in columns if available[row, column]), key=dealt.__getitem__)
            dealt[column] += 1
            hidden[row, column] = True
        return hidden

    def _columns(self, spec: DatasetSpec) -> list[int]:
        """Columns that lose values, in dealing order."""
        names = spec.modality_names
        if self.what == "both" and len(names) != 2:
            raise UsageError(
                f"protocol {self.name!r} is for two modalities, but data set {spec.name!r} has {len(names)} "
                f"({', '.join(names)}); use 'any_{format_rate(self.rate)}'."
            )
        if self.what in _DEALT:
            return sorted(range(len(names)), key=lambda column: spec.modalities[column].kind == "image")
        if self.what in names:
            return [names.index(self.what)]
        close = difflib.get_close_matches(self.what, [*names, *_DEALT], n=1, cutoff=0.5)
        hint = f" Did you mean '{close[0]}_{format_rate(self.rate)}'?" if close else ""
        raise UsageError(
            f"protocol {self.name!r}: data set {spec.name!r} has no modality {self.what!r}.{hint} "
            f"Modalities: {', '.join(names)}."
        )
