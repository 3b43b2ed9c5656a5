"""Values that are shown, but not whole: corrupted in the test, or with a part of each sequence missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from harness.changes import SHAPES, Change, describe_corruption, parse_change
from harness.errors import UsageError
from harness.protocol import Condition, Protocol, parse_protocol
from harness.types import SPLITS, Aggregate, BoolArray, DatasetSpec, DataTable, Split

_PREFIX = "corrupt:"
_HIGHEST = 5


@dataclass
class _Changed(Protocol):
    """A change on top of another protocol, which says what is hidden: `<protocol>+<change>`.

    Attributes:
        base: Canonical name of the protocol that hides values; it changes none itself.  Under each of its test
            conditions what is shown is changed.
    """

    combines: ClassVar[bool] = True

    base: str = "complete"

    @property
    def reads(self) -> tuple[Literal["labels", "values"], ...]:
        """What the protocol that hides values looks at."""
        return self._base.reads

    @property
    def replays(self) -> bool:
        """Whether the protocol that hides values replays a released draw."""
        return self._base.replays

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool as the protocol below draws it."""
        return self._base.hidden(table, split, mask_seed)

    def _with_change(self, spec: DatasetSpec, change: str) -> list[Condition]:
        """The conditions of the protocol below, with a change of what they show.

        Raises:
            UsageError: If they change values already.
        """
        conditions = self._base.conditions(spec)
        if any(condition.change for condition in conditions):
            raise UsageError(f"protocol {self.name!r}: {self.base!r} changes values itself, so it cannot be combined.")
        if len(conditions) == 1:
            return [Condition(self.name, conditions[0].hidden, change)]
        return [Condition(condition.name, condition.hidden, change) for condition in conditions]

    @property
    def _base(self) -> Protocol:
        return parse_protocol(self.base)

    def _named(self, own: str) -> str:
        return own if self.base == "complete" else f"{self.base}+{own}"

    def _below(self) -> str:
        """A sentence about what is hidden."""
        if self.base == "complete":
            return ""
        each = ", under each of its test conditions" if self._base.aggregates else ""
        return f" What is hidden is that of {self.base!r}{each}: {self._base.describe()}"


def _split(name: str) -> tuple[str, str]:
    """Protocol that hides values, and the change, of `<protocol>+<change>`; sides of train and test are no protocol."""
    base, _, own = name.rpartition("+")
    return ("", "") if name.startswith(("train:", "test:")) else (base or "complete", own)


def _checked(base: str, name: str, grid: bool = False) -> str:
    """The canonical name of the protocol that hides values.

    Raises:
        UsageError: If it changes values itself, or has several test conditions where the change makes a `grid` too.
    """
    protocol = parse_protocol(base)
    if isinstance(protocol, _Changed) or protocol.change:
        raise UsageError(
            f"protocol {name!r}: {base!r} cannot be combined; what stands before '+' changes no values, e.g. both_0.7."
        )
    if grid and protocol.aggregates:
        raise UsageError(
            f"protocol {name!r}: {base!r} cannot be combined with a range of severities, as both have several test "
            "conditions and scores over all of them; write one severity, e.g. patterns+corrupt:noise_image_3."
        )
    return protocol.name


@dataclass
class Corruption(_Changed):
    """`corrupt:<what>_<modality>_<severity>` and `corrupt:<what>_<modality>_<first>..<last>`.

    The test is shown corrupted values; training and validation are clean.  A range of severities, 0 for clean, is one
    training with one test condition for each.  `both_0.7+corrupt:noise_image_3` also hides values, and
    `patterns+corrupt:noise_image_3` is tested under every pattern.

    Attributes:
        what: `<what>_<modality>`, e.g. `noise_image`.
        first: Lowest severity, 0 to 5.
        last: Highest severity; the same as the first for one test condition.
    """

    target: ClassVar[str] = "harness.protocols.changed:Corruption"
    summary: ClassVar[str] = (
        "corrupted test values at severities 1 to 5, clean training: corrupt:<what>_<modality>_<severity>, …_0..5"
    )
    citation: ClassVar[str] = (
        "Hendrycks, Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, "
        "ICLR 2019 (pictures); levels for other kinds are our own"
    )
    examples: ClassVar[tuple[str, ...]] = (
        "corrupt:noise_image_3",
        "corrupt:typo_text_0..5",
        "both_0.7+corrupt:blur_image_0..5",
        "patterns+corrupt:noise_image_3",
        "train:both_0.7,test:corrupt:mismatch_text_2",
    )
    test_only: ClassVar[bool] = True

    what: str = "noise_image"
    first: int = 3
    last: int = 3

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for `corrupt:…`, alone or behind `<protocol>+`, else None.

        Raises:
            UsageError: If the corruption is unknown, a severity is none, or the protocol before it does not suit.
        """
        base, own = _split(name)
        if not own.startswith(_PREFIX):
            return None
        what, _, severities = own.removeprefix(_PREFIX).rpartition("_")
        first, dots, last = severities.partition("..")
        allowed = [str(severity) for severity in range(_HIGHEST + 1)]
        if not what or first not in allowed or (dots and (last not in allowed or last <= first)):
            raise UsageError(
                f"protocol {name!r}: write corrupt:noise_image_3, or corrupt:noise_image_0..5 for a range of "
                "severities (0 is clean)."
            )
        result = cls(_checked(base, name, grid=bool(dots)), what, int(first), int(last or first))
        parse_change(f"{what}_1")
        return result

    @property
    def name(self) -> str:
        """Canonical name."""
        return self._named(f"{_PREFIX}{self.what}_{self.first}" + (f"..{self.last}" if self.last > self.first else ""))

    @property
    def aggregates(self) -> Mapping[str, Aggregate]:
        """The mean over a range of severities (the area under the curve over them, normalised); else those below."""
        return {"mean_over_grid": "mean"} if self.last > self.first else self._base.aggregates

    def describe(self) -> str:
        """One paragraph: what is done to test values, and how the draw is made."""
        levels = [severity for severity in self._severities() if severity]
        done = describe_corruption(self.what.partition("_")[0], levels) if levels else "nothing is done at severity 0"
        over = (
            f" The one trained method is tested at each severity from {self.first} to {self.last}"
            f"{' (0 is clean)' if not self.first else ''}; 'mean_over_grid' is the mean of the scores."
            if self.last > self.first
            else ""
        )
        return (
            f"Training and validation are clean; every test value that is shown of {self.what.partition('_')[2]!r} is "
            f"corrupted at severity {', '.join(map(str, levels)) or 0} before it is encoded: {done}.{over} Each value "
            "is damaged by a generator seeded with sha256(mask_seed|split|what|id), the same at every severity: a "
            f"higher one goes on with the damage of a lower one.{self._below()}"
        )

    def conditions(self, spec: DatasetSpec) -> Sequence[Condition]:
        """Those of the protocol below, corrupted, or one per severity on top of what it hides."""
        changes = [change.name if change else "" for change in self._changes()]
        if len(changes) == 1:
            return self._with_change(spec, changes[0])
        return [
            Condition(f"{self.what}_{severity}", condition.hidden, condition.change)
            for severity, change in zip(self._severities(), changes, strict=True)
            for condition in self._with_change(spec, change)
        ]

    def remarks(self, table: DataTable, mask_seed: int, splits: Sequence[Split] = SPLITS) -> list[str]:
        """Those of the protocol below, and how many test values are corrupted."""
        lines = list(self._base.remarks(table, mask_seed, splits))
        if "test" in splits:
            lines += [
                f"test: {line}"
                for change in self._changes()
                if change
                for line in change.counts(table, "test", mask_seed)
            ]
        return lines

    def _severities(self) -> range:
        return range(self.first, self.last + 1)

    def _changes(self) -> list[Change | None]:
        """One per severity; none at 0."""
        return [parse_change(f"{self.what}_{severity}") if severity else None for severity in self._severities()]


@dataclass
class Within(_Changed):
    """`frames_<rate>`, `block_<rate>`, `tail_<rate>`, and the same with a modality: `frames_text_<rate>`.

    A part of each sequence is missing, in all splits.  `both_0.7+tail_0.3` also hides whole values.

    Attributes:
        what: Canonical name of the change, e.g. `frames_0.5`.
    """

    target: ClassVar[str] = "harness.protocols.changed:Within"
    summary: ClassVar[str] = (
        "a part of each sequence is missing, at random, in one block or at its end: frames_<rate>, block_<rate>, "
        "tail_<rate>, frames_<modality>_<rate>"
    )
    citation: ClassVar[str] = (
        "Yuan, Li, Xu, Yu: Transformer-based Feature Reconstruction Network for Robust Multimodal Sentiment Analysis, "
        "ACM Multimedia 2021"
    )
    examples: ClassVar[tuple[str, ...]] = (
        "frames_0.5",
        "block_0.5",
        "tail_text_0.3",
        "both_0.7+frames_0.5",
        "patterns+block_0.5",
        "train:complete,test:frames_0..0.9:0.1",
    )

    what: str = "frames_0.5"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for `frames_…`, `block_…` and `tail_…`, alone or behind `<protocol>+`, else None.

        Raises:
            UsageError: If the rate is not a number between 0 and 1, or the protocol before it does not suit.
        """
        base, own = _split(name)
        if own.partition("_")[0] not in SHAPES or ".." in own:
            return None
        change = parse_change(own)
        return cls(_checked(base, name), change.name)

    @property
    def name(self) -> str:
        """Canonical name."""
        return self._named(self.what)

    @property
    def aggregates(self) -> Mapping[str, Aggregate]:
        """Those of the protocol below."""
        return self._base.aggregates

    @property
    def change(self) -> str:
        """The change, in all splits."""
        return self.what

    def describe(self) -> str:
        """One paragraph: what is missing of each sequence, and how the draw is made."""
        return (
            f"In every split, {parse_change(self.what).describe()}. Elements are drawn by a generator seeded with "
            f"sha256(mask_seed|split|what|id).{self._below()}"
        )

    def conditions(self, spec: DatasetSpec) -> Sequence[Condition]:
        """Those of the protocol below, with a part of each sequence missing."""
        return self._with_change(spec, self.change)

    def remarks(self, table: DataTable, mask_seed: int, splits: Sequence[Split] = SPLITS) -> list[str]:
        """Those of the protocol below, and how many elements are hidden."""
        change = parse_change(self.what)
        counts = [f"{split}: {line}" for split in splits for line in change.counts(table, split, mask_seed)]
        return [*self._base.remarks(table, mask_seed, splits), *counts]
