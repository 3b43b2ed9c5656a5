"""Every missing pattern: random patterns in training, each of them a test condition of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from harness.errors import UsageError
from harness.protocol import Condition, Protocol, hash_order
from harness.types import Aggregate, BoolArray, DatasetSpec, DataTable, Split, iterate_patterns, pattern_name


@dataclass
class Patterns(Protocol):
    """`patterns` and `patterns_proper`.

    With M modalities there are 2^M - 1 non-empty patterns, and one less without the full one: MMIN's six conditions
    for M = 3.  Methods that train on complete data are tested with `train:complete,test:patterns`.

    Attributes:
        proper: Leave the full pattern out, in training and test.
    """

    target: ClassVar[str] = "harness.protocols.patterns:Patterns"
    summary: ClassVar[str] = (
        "random patterns in training, the test split under every non-empty pattern (patterns_proper: but the full one)"
    )
    citation: ClassVar[str] = (
        "Zhao, Li, Jin: Missing Modality Imagination Network for Emotion Recognition with Uncertain Missing "
        "Modalities, ACL 2021"
    )
    examples: ClassVar[tuple[str, ...]] = ("patterns", "patterns_proper")

    proper: bool = False

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for the names `patterns` and `patterns_proper`, else None."""
        return cls(name == "patterns_proper") if name in ("patterns", "patterns_proper") else None

    @property
    def name(self) -> str:
        """`patterns` or `patterns_proper`."""
        return "patterns_proper" if self.proper else "patterns"

    @property
    def aggregates(self) -> Mapping[str, Aggregate]:
        """One score over the pool of all conditions, and the mean of their scores; the two are never mixed."""
        return {"pooled": "pool", "mean_of_patterns": "mean"}

    def describe(self) -> str:
        """One paragraph: what training sees, and the conditions of the test."""
        which = "non-empty patterns of modalities" + (" but the full one" if self.proper else "")
        return (
            f"Training and validation samples are each shown in one fixed pattern: the {which} are dealt evenly over "
            "the samples of a split in the order of sha256(mask_seed|split|salt|id) (a sample that lacks a modality "
            "takes part in the dealing of those that it can show). The whole test split is scored under each of "
            f"the {which}, one condition each; a sample that has nothing of a condition's pattern is skipped there, "
            "and counted. 'pooled' is the score over the pool of all conditions' predictions, 'mean_of_patterns' the "
            "mean of the conditions' scores."
        )

    def conditions(self, spec: DatasetSpec) -> list[Condition]:
        """One per pattern, fewest modalities first, called by what is shown, e.g. `text+image`.

        Raises:
            UsageError: If the data set has a single modality.
        """
        return [
            Condition(pattern_name(pattern, spec.modality_names), _Shown(pattern)) for pattern in self._patterns(spec)
        ]

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool for the samples of `split`, True where a value is hidden.

        Raises:
            UsageError: If the data set has a single modality.
        """
        patterns = np.array(self._patterns(table.spec), dtype=np.bool_)
        available = table.available[table.splits[split]]
        hidden = np.zeros_like(available)
        dealt = np.zeros(len(patterns), dtype=np.int64)
        for row in hash_order(table.split_ids(split), mask_seed, split, "patterns"):
            # What a sample can show are the patterns within what it has; of these the one dealt least, first of equals.
            able = np.flatnonzero(~(patterns & ~available[row]).any(axis=1))
            chosen = able[dealt[able].argmin()]
            dealt[chosen] += 1
            hidden[row] = ~patterns[chosen]
        return hidden

    def _patterns(self, spec: DatasetSpec) -> list[tuple[bool, ...]]:
        count = len(spec.modalities)
        if count < 2:
            raise UsageError(
                f"protocol {self.name!r} needs two modalities, but data set {spec.name!r} has only "
                f"{spec.modality_names[0]!r}; use protocol 'complete'."
            )
        return [pattern for pattern in iterate_patterns(spec.modality_names) if not (self.proper and all(pattern))]


@dataclass(frozen=True)
class _Shown:
    """Hides all but one pattern of the test split."""

    pattern: tuple[bool, ...]

    def __call__(self, table: DataTable, mask_seed: int) -> BoolArray:  # noqa: ARG002
        return np.tile(~np.array(self.pattern, dtype=np.bool_), (len(table.splits["test"]), 1))
