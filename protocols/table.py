"""A saved mask table as a protocol: `table:FILE` shows what the file says, on the data set that it is for."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from harness.changes import parse_identity
from harness.errors import HarnessError, UsageError
from harness.protocol import Condition, Protocol, parse_protocol
from harness.types import SPLITS, Aggregate, BoolArray, DatasetSpec, DataTable, Split

if TYPE_CHECKING:
    from harness.masking import MaskTable

_PREFIX = "table:"


@dataclass
class SavedTable(Protocol):
    """`table:FILE`, a table that `harness mask build` or `harness mask import` wrote.

    The file is checked whenever it is read: content against its sha256, and ids, version and natural presence against
    the data set.  Masks, and so their fingerprint, are those of the table; only the name is another.

    Attributes:
        file: Path of the table without `.parquet` or `.json`.
    """

    target: ClassVar[str] = "harness.protocols.table:SavedTable"
    summary: ClassVar[str] = "a saved or imported mask table: table:FILE"
    citation: ClassVar[str] = "Nothing to cite: the table says where it comes from."
    examples: ClassVar[tuple[str, ...]] = ("table:masks/mine",)

    file: str = "masks/mine"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for `table:FILE`, else None; the file is read later.

        Raises:
            UsageError: If no file is named.
        """
        if not name.startswith(_PREFIX):
            return None
        file = name.removeprefix(_PREFIX)
        for suffix in (".parquet", ".json"):
            file = file.removesuffix(suffix)
        if not Path(file).name or "," in file:
            raise UsageError(f"protocol {name!r} names no table; write table:FILE, without commas in its path.")
        return cls(file)

    @property
    def name(self) -> str:
        """Canonical name."""
        return f"{_PREFIX}{self.file}"

    @property
    def aggregates(self) -> Mapping[str, Aggregate]:
        """Those of the protocol that the table was drawn from, where it is known; else pool and mean."""
        masks = self._read()
        if not masks.conditions:
            return {}
        source: Mapping[str, Aggregate] = {}
        # A table made from a table could name itself.
        with contextlib.suppress(HarnessError):
            source = {} if masks.protocol.startswith(_PREFIX) else parse_protocol(masks.protocol).aggregates
        return source or {"pooled": "pool", "mean_of_conditions": "mean"}

    @property
    def replays(self) -> bool:
        """True: what is shown is bound to the ids of one data set."""
        return True

    def describe(self) -> str:
        """One paragraph: where the table comes from, and its definition.

        Raises:
            DataError: If the file is missing or damaged.
        """
        masks = self._read()
        return (
            f"Presence of every sample as the saved table {self.file!r} states it (sha256 {masks.fingerprint[:16]}…); "
            f"nothing is drawn. The table was made as {masks.protocol!r} with mask_seed={masks.mask_seed} for "
            f"{masks.dataset!r}: {masks.definition}"
        )

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool for the samples of `split`, True where a value is hidden.

        Raises:
            DataError: If the file is missing or damaged, or the table is not for this data set.
            UsageError: If the table was drawn with another `mask_seed`, which a record would otherwise misstate.
        """
        return _hidden(self._checked(table, mask_seed).present[split], table, split)

    def conditions(self, spec: DatasetSpec) -> Sequence[Condition]:
        """Those of the table."""
        masks = self._read()
        several = [Condition(name, _Stored(self, name), self._change(f"test:{name}")) for name in masks.conditions]
        return several or [replace(super().conditions(spec)[0], change=self._change("test"))]

    @property
    def change(self) -> str:
        """That of the table's training split."""
        return self._change("train")

    def _change(self, part: str) -> str:
        """Name of what the table does to values of a part."""
        text = self._read().changes.get(part)
        return parse_identity(text).name if text else ""

    def remarks(self, table: DataTable, mask_seed: int, splits: Sequence[Split] = SPLITS) -> list[str]:  # noqa: ARG002
        """What was counted when the table was made, about these splits."""
        others = tuple(f"{split}:" for split in SPLITS if split not in splits)
        return [line for line in self._read().remarks if not line.startswith(others)]

    def _read(self) -> MaskTable:
        files = (Path(f"{self.file}.parquet"), Path(f"{self.file}.json"))
        return _load(self.file, *map(_digest, files))

    def _checked(self, table: DataTable, mask_seed: int) -> MaskTable:
        masks = self._read()
        masks.check_against(table)
        if masks.mask_seed != mask_seed:
            raise UsageError(
                f"protocol {self.name!r} holds the draw of mask_seed={masks.mask_seed}; run it with "
                f"mask_seed={masks.mask_seed}, not {mask_seed}."
            )
        return masks


@lru_cache(maxsize=8)
def _load(file: str, *contents: str) -> MaskTable:  # noqa: ARG001
    """The checked table; read again when the contents of its files, given as sha256, are others."""
    from harness.masking import MaskTable

    return MaskTable.load(Path(file))


@dataclass(frozen=True)
class _Stored:
    """What a test condition of the table hides."""

    source: SavedTable
    condition: str

    def __call__(self, table: DataTable, mask_seed: int) -> BoolArray:
        return _hidden(self.source._checked(table, mask_seed).conditions[self.condition], table, "test")


def _hidden(present: BoolArray, table: DataTable, split: Split) -> BoolArray:
    """What is there and not shown; a skipped sample is one of which the data set lacks the rest."""
    hidden: BoolArray = table.available[table.splits[split]] & ~present
    return hidden


def _digest(file: Path) -> str:
    """Hash of a file; empty if it cannot be read, which is said where the table is loaded."""
    try:
        return sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""
