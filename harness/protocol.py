"""Contract of protocol families: which values are hidden, for every sample, from a name and a seed.

A family is registered under its own name and parses the run names that belong to it, e.g. the family
`fixed_rate` parses `both_0.7`, `image_0.3` and `any_0.5`.  numpy only.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar, Literal, Self

import numpy as np

from harness.errors import UnknownNameError, UsageError
from harness.plugin import PluginConfig
from harness.types import SPLITS, Aggregate, BoolArray, DatasetSpec, DataTable, IntArray, Split

#: Characters of a name; longer ones could only be built from each other without end.
_LONGEST = 1000


@dataclass(frozen=True)
class Condition:
    """One way in which a trained method is shown the test split.

    Attributes:
        name: Tells it from the other conditions of its protocol.
        hidden: `(table, mask_seed) -> [n, M]` bool for the n test samples in canonical order, True where a value
            is hidden.  A sample that would be left with nothing because the data set lacks the rest is skipped.
        change: Name of what is done to values that are shown (see `harness.changes`); empty for nothing.
    """

    name: str
    hidden: Callable[[DataTable, int], BoolArray]
    change: str = ""


@dataclass
class Protocol(PluginConfig, ABC):
    """One parsed protocol; subclasses are families.

    Most protocols have one test condition, drawn like the other splits by `hidden`.  A family that tests one
    trained method several times overrides `conditions` and `aggregates`.

    Attributes:
        examples: Names that the family parses, for `harness list protocols` and the contract tests.
        fallback: True for a family whose names have an open part, like `<modality>_<rate>`; it is asked after
            all others, so that it does not take their names.
        combines: True for a family whose names hold those of others, like `<protocol>+<change>`; it is asked first.
        test_only: True for a family that leaves training as it is, so that it is no training side.
    """

    card: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = ()
    fallback: ClassVar[bool] = False
    combines: ClassVar[bool] = False
    test_only: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol that `name` stands for, or None when the name is not of this family.

        Raises:
            UsageError: If the name is of this family but a value in it is not allowed.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """Canonical name; `parse(name).name == name`."""

    @abstractmethod
    def describe(self) -> str:
        """One paragraph: which samples lose what, and how the draw is made."""

    @abstractmethod
    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool for the n samples of `split` in canonical order: True where a value is hidden.

        Implementations order samples with `hash_order`, so draws are independent of row order, platform and
        library version, nested over rates, and independent over splits.  (Those that replay a released draw
        cannot; they say so in `replays`.)  Families that override `conditions` are asked for train and valid only.
        """

    def conditions(self, spec: DatasetSpec) -> Sequence[Condition]:  # noqa: ARG002
        """What the test split is shown as, in the order of reports; by default once, as `hidden` draws it."""
        return (Condition(self.name, lambda table, mask_seed: self.hidden(table, "test", mask_seed), self.change),)

    @property
    def change(self) -> str:
        """Name of what is done to values that are shown in training and validation; empty for nothing."""
        return ""

    @property
    def aggregates(self) -> Mapping[str, Aggregate]:
        """Scores over all of several conditions, by name; the first is the one that reports rank by."""
        return {}

    @property
    def replays(self) -> bool:
        """True where a released draw is repeated, which depends on the order of samples and on all splits at once."""
        return False

    @property
    def reads(self) -> tuple[Literal["labels", "values"], ...]:
        """What the draw looks at besides ids and natural presence; nothing, unless missingness is not random."""
        return ()

    def remarks(self, table: DataTable, mask_seed: int, splits: Sequence[Split] = SPLITS) -> Sequence[str]:  # noqa: ARG002
        """Lines with counts that presence does not tell, e.g. of samples of `splits` that the rule excepts."""
        return ()


def hash_order(ids: Sequence[str], mask_seed: int, split: str, salt: str) -> IntArray:
    """Positions of `ids` sorted by `sha256(mask_seed | split | salt | id)`: a frozen random permutation.

    Returns:
        `[n]` int64; the first entry is the position of the id with the smallest digest.
    """
    keys = [hashlib.sha256(f"{mask_seed}|{split}|{salt}|{name}".encode()).digest() for name in ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def weighted_order(ids: Sequence[str], weights: Sequence[int], mask_seed: int, split: str, salt: str) -> IntArray:
    """Positions of `ids` sorted by u / weight, u as in `hash_order`: a frozen draw that prefers heavy samples.

    The first n of the order are a sequential Poisson sample (Ohlsson 1998): exactly n, nested over n, each with a
    probability about proportional to its weight.  Integers only, so the same on every platform.

    Args:
        ids: Unique ids.
        weights: A positive whole number for each.
        mask_seed: Decides the draw.
        split: Name of the split.
        salt: Tells one draw from another.

    Returns:
        `[n]` int64.
    """
    digests = (hashlib.sha256(f"{mask_seed}|{split}|{salt}|{name}".encode()).digest() for name in ids)
    keys = [
        ((int.from_bytes(digest, "big") << 64) // weight, digest)
        for digest, weight in zip(digests, weights, strict=True)
    ]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def parse_protocol(name: str) -> Protocol:
    """Asks every registered family for `name`: first those that combine protocols, last those with an open name.

    Raises:
        UsageError: If no family knows the name (with examples and suggestions), or a family rejects a value.
    """
    from harness import registry

    if len(name) > _LONGEST:
        raise UsageError(f"protocol {name[:40]!r}… has {len(name):,} characters; names have at most {_LONGEST:,}.")
    families: list[type[Protocol]] = []
    for entry in registry.protocols:
        family = registry.protocols.get(entry.name)
        assert issubclass(family, Protocol)
        families.append(family)
    for family in sorted(families, key=lambda family: (family.fallback, not family.combines)):
        parsed = family.parse(name)
        if parsed is not None:
            return parsed
    raise UnknownNameError("protocol", name, [example for family in families for example in family.examples])


def join_names(parts: Sequence[str]) -> list[str]:
    """Protocol names out of the parts of a comma list: `train:X` and the `test:Y` behind it are one name."""
    names: list[str] = []
    for part in parts:
        if part.startswith("test:") and names and names[-1].startswith("train:") and "," not in names[-1]:
            names[-1] += f",{part}"
        else:
            names.append(part)
    return names


def parse_rate(text: str, name: str) -> float:
    """Reads a rate in [0, 1] out of a protocol name.

    Raises:
        UsageError: If it is not a number between 0 and 1.
    """
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE):
        raise UsageError(f"protocol {name!r}: {text!r} is not a rate; write e.g. 0.7.")
    rate = float(text)
    if not 0.0 <= rate <= 1.0:
        raise UsageError(f"protocol {name!r}: rate {text} lies outside 0 to 1; rates are shares, e.g. 0.7 for 70 %.")
    return abs(rate)  # "-0" is 0


def format_rate(rate: float) -> str:
    """The shortest decimal that reads back as `rate`, as canonical names write it: `0.7`, `0`, `1`."""
    return f"{Decimal(repr(rate)):f}".removesuffix(".0")


def share_of(rate: float, total: int) -> int:
    """`floor(rate * total)` for the rate as it is written: 0.29 of 100 is 29, which floating point makes 28."""
    return math.floor(Fraction(repr(rate)) * total)
