"""Contract of protocol families: which values are hidden, for every sample, from a name and a seed.

A family is registered under its own name and parses the run names that belong to it, e.g. the family
`fixed_rate` parses `both_0.7`, `image_0.3` and `any_0.5`.  numpy only.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from harness.errors import UsageError
from harness.plugin import PluginConfig
from harness.types import BoolArray, DataTable, IntArray, Split


@dataclass
class Protocol(PluginConfig, ABC):
    """One parsed protocol; subclasses are families.

    Attributes:
        examples: Names that the family parses, for `harness list protocols` and the contract tests.
    """

    card: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = ()

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
        library version, nested over rates, and independent over splits.
        """


def hash_order(ids: Sequence[str], mask_seed: int, split: str, salt: str) -> IntArray:
    """Positions of `ids` sorted by `sha256(mask_seed | split | salt | id)`: a frozen random permutation.

    Returns:
        `[n]` int64; the first entry is the position of the id with the smallest digest.
    """
    keys = [hashlib.sha256(f"{mask_seed}|{split}|{salt}|{name}".encode()).digest() for name in ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def parse_protocol(name: str) -> Protocol:
    """Asks every registered family for `name`.

    Raises:
        UsageError: If no family knows the name (with examples and suggestions), or a family rejects a value.
    """
    from harness import registry
    from harness.errors import UnknownNameError

    examples: list[str] = []
    for entry in registry.protocols:
        family = registry.protocols.get(entry.name)
        assert issubclass(family, Protocol)
        parsed = family.parse(name)
        if parsed is not None:
            return parsed
        examples.extend(family.examples)
    raise UnknownNameError("protocol", name, examples)


def parse_rate(text: str, name: str) -> float:
    """Reads a rate in [0, 1] out of a protocol name.

    Raises:
        UsageError: If it is not a number between 0 and 1.
    """
    try:
        rate = float(text)
    except ValueError:
        raise UsageError(f"protocol {name!r}: {text!r} is not a rate; write e.g. 0.7.") from None
    if not 0.0 <= rate <= 1.0:
        raise UsageError(f"protocol {name!r}: rate {text} lies outside 0 to 1; rates are shares, e.g. 0.7 for 70 %.")
    return rate
