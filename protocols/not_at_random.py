"""Missingness that is not random: whether a value is missing depends on another value, on the label or on itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from harness.errors import UsageError
from harness.protocol import Protocol, format_rate, parse_rate, share_of, weighted_order
from harness.types import SPLITS, BoolArray, DataTable, IntArray, Split

#: How much likelier the last of the order is to be drawn next than the first.
_ODDS = 9
#: What MNAR draws by: the label, or the norm of the value that goes missing.
_LABEL, _NORM = "label", "norm"


@dataclass
class NotAtRandom(Protocol):
    """`mar_<modality>_by_<modality>_<rate>`, `mnar_<modality>_by_label_<rate>` and `mnar_<modality>_by_norm_<rate>`.

    MAR (missing at random, given what is seen): the first modality is lost by the norm of the second, which stays.
    MNAR (missing not at random): it is lost by the label, or by its own norm.  The pattern then tells something about
    what is hidden, as in real data; no best possible score per pattern is known for such masks.

    Attributes:
        what: The modality that is lost.
        by: Another modality (MAR), `label` or `norm` (MNAR).
        rate: Share of samples that lose it, 0 to 1.
        observed: True for MAR.
    """

    target: ClassVar[str] = "harness.protocols.not_at_random:NotAtRandom"
    summary: ClassVar[str] = (
        "missing by another modality's norm, the label or the value's own norm: "
        "mar_<modality>_by_<modality>_<rate>, mnar_<modality>_by_label_<rate>, mnar_<modality>_by_norm_<rate>"
    )
    citation: ClassVar[str] = (
        "Rubin: Inference and missing data, Biometrika 63(3), 1976; drawn as in Ohlsson: Sequential Poisson sampling, "
        "Journal of Official Statistics 14(2), 1998"
    )
    examples: ClassVar[tuple[str, ...]] = ("mar_text_by_image_0.5", "mnar_text_by_label_0.5", "mnar_image_by_norm_0.3")

    what: str = "text"
    by: str = _LABEL
    rate: float = 0.5
    observed: bool = False

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for `mar_…` and `mnar_…`, else None.

        Raises:
            UsageError: If a part is missing or does not fit, or the rate is not a number between 0 and 1.
        """
        family, sign, rest = name.partition("_")
        if not sign or family not in ("mar", "mnar"):
            return None
        match = re.fullmatch(r"(?P<what>.+?)_by_(?P<by>.+)_(?P<rate>[^_]*)", rest)
        if match is None:
            raise UsageError(
                f"protocol {name!r}: write mar_text_by_image_0.5, or mnar_text_by_label_0.5, or …_by_norm_0.5."
            )
        what, by, observed = match["what"], match["by"], family == "mar"
        if observed and by in (what, _LABEL, _NORM):
            raise UsageError(
                f"protocol {name!r}: 'mar' is missing by another modality that is seen; by the label or the value's "
                "own norm it is mnar_<modality>_by_label_<rate> or mnar_<modality>_by_norm_<rate>."
            )
        if not observed and by not in (_LABEL, _NORM):
            raise UsageError(
                f"protocol {name!r}: 'mnar' is missing by 'label' or 'norm'; by another modality it is "
                f"mar_{what}_by_{by}_{match['rate']}."
            )
        return cls(what, by, parse_rate(match["rate"], name), observed)

    @property
    def name(self) -> str:
        """Canonical name."""
        return f"{'mar' if self.observed else 'mnar'}_{self.what}_by_{self.by}_{format_rate(self.rate)}"

    @property
    def reads(self) -> tuple[Literal["labels", "values"], ...]:
        """Labels, or raw values."""
        return ("labels",) if not self.observed and self.by == _LABEL else ("values",)

    def describe(self) -> str:
        """One paragraph: which samples lose what, and how the draw is made."""
        norm = "(number of characters of a text, root mean square of an array, to 6 digits; equal ones share a place)"
        able = f"{self.what!r} and another modality"
        if self.observed:
            kind, able = "Missing at random given what is seen", f"{self.what!r} and {self.by!r}"
            order = f"the norm of their {self.by!r}, which is never hidden {norm}"
        elif self.by == _LABEL:
            kind = "Missing not at random"
            order = "the label (class index; number of positive labels; mean of regression targets)"
        else:
            kind, order = "Missing not at random", f"the norm of the value itself {norm}"
        return (
            f"{kind}: in each split on its own, floor({format_rate(self.rate)} N) of the N samples that have {able} "
            f"lose {self.what!r}. Samples are put in the order of {order}; weights rise evenly over that order from 1 "
            f"to {_ODDS}, and the samples with the smallest u/weight are drawn, where u is "
            "sha256(mask_seed|split|salt|id) as a number. So the rate is exact, a sample that misses the value at one "
            "rate misses it at every higher rate, and how often the lower and the upper half of the order miss it is "
            "counted. The pattern tells something about what is hidden."
        )

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool for the samples of `split`, True where a value is hidden.

        Raises:
            UsageError: If the data set does not have a modality, or no sample of the split can lose a value.
            DataError: If a raw value cannot be read.
        """
        able, places = self._ordered(table, split)
        if self.rate > 0 and not able.size:
            raise UsageError(
                f"protocol {self.name!r}: no sample of split {split!r} of data set {table.spec.name!r} could lose a "
                "value and keep another one; use protocol 'complete'."
            )
        # Weights from 1 to _ODDS, as whole numbers: 1 becomes the highest place.
        last = max(int(places.max(initial=0)), 1)
        weights = [last + (_ODDS - 1) * place for place in places.tolist()]
        ids = table.split_ids(split)
        salt = f"not_at_random|{self.what}|{self.by}"
        order = weighted_order([ids[row] for row in able], weights, mask_seed, split, salt)
        hidden = np.zeros((len(ids), len(table.spec.modalities)), dtype=np.bool_)
        drawn = able[order[: share_of(self.rate, able.size)]]
        hidden[drawn, table.spec.modality_names.index(self.what)] = True
        return hidden

    def remarks(self, table: DataTable, mask_seed: int, splits: Sequence[Split] = SPLITS) -> list[str]:
        """How often the lower and the upper half of the order miss the value, and who takes no part."""
        lines = []
        column = table.spec.modality_names.index(self.what)
        by = "the label" if self.by == _LABEL else f"the norm of {self.by if self.observed else self.what!r}"
        for split in splits:
            able, places = self._ordered(table, split)
            lost = self.hidden(table, split, mask_seed)[able, column]
            upper = 2 * places > places.max(initial=0)
            halves = ", ".join(
                f"{int(lost[half].sum())} of {int(half.sum())} in the {which} half"
                for which, half in (("lower", ~upper), ("upper", upper))
            )
            lines.append(f"{split}: {self.what!r} is hidden for {halves} of the order by {by}")
            apart = len(table.splits[split]) - able.size
            if apart:
                lines.append(f"{split}: {apart} samples lack a modality by nature and take no part in the draw")
        return lines

    def _ordered(self, table: DataTable, split: Split) -> tuple[IntArray, IntArray]:
        """Positions `[k]` in the split of samples that can lose the value, and their places `[k]` in the order."""
        names = table.spec.modality_names
        for name in (self.what, self.by) if self.observed else (self.what,):
            if name not in names:
                raise UsageError(
                    f"protocol {self.name!r}: data set {table.spec.name!r} has no modality {name!r}. "
                    f"Modalities: {', '.join(names)}."
                )
        rows = table.splits[split]
        available = table.available[rows]
        there = available[:, names.index(self.what)] & (available.sum(axis=1) >= 2)
        if self.observed:
            there &= available[:, names.index(self.by)]
        able = np.flatnonzero(there)
        if self.by == _LABEL and not self.observed:
            labels = table.labels[rows[able]]
            scores = labels if labels.ndim == 1 else labels.astype(np.float64).mean(axis=1)
        else:
            norms = _norms(table, self.by if self.observed else self.what)
            scores = np.array([norms(int(row)) for row in rows[able]])
        _, places = np.unique(scores, return_inverse=True)
        return able, places.astype(np.int64)


class _Norms:
    """Norms of the raw values of one modality, each read once."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values
        self._known: dict[int, float] = {}

    def __call__(self, row: int) -> float:
        if row not in self._known:
            self._known[row] = norm_of(self.values[row])
        return self._known[row]


#: The last modalities that were asked for: a table is drawn several times in a run.
_LAST: list[_Norms] = []


def _norms(table: DataTable, modality: str) -> _Norms:
    values = table.values[modality]
    for known in _LAST:
        if known.values is values:
            return known
    _LAST.append(_Norms(values))
    del _LAST[:-4]
    return _LAST[-1]


def norm_of(value: Any) -> float:
    """Number of characters of a text, root mean square of an array; 6 digits, which no platform rounds differently."""
    if isinstance(value, str):
        return float(len(value))
    array: npt.NDArray[np.float64] = np.asarray(value, dtype=np.float64).ravel()
    return float(f"{math.sqrt(float(array @ array) / max(array.size, 1)):.5e}")
