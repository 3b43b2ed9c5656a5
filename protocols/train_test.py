"""One protocol in training, another in the test, or a whole grid of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Literal, Self

from harness.errors import UsageError
from harness.protocol import Condition, Protocol, format_rate, parse_protocol, parse_rate
from harness.types import SPLITS, Aggregate, BoolArray, DatasetSpec, DataTable, Split

#: Step of a grid that names none, and the most conditions a grid may have.
_STEP, _MOST = "0.1", 101


@dataclass
class TrainTest(Protocol):
    """`train:X,test:Y`, where X and Y are names of other protocols; validation follows the training side.

    Y may also be a grid of rates `<what>_<first>..<last>:<step>` (step 0.1 when left out): one training, one test
    condition per rate.  `test:Y` is short for `train:complete,test:Y`; canonical names write both sides.

    Attributes:
        train: Canonical name of the protocol of training and validation.
        test: Canonical name, or grid, of the test.
    """

    target: ClassVar[str] = "harness.protocols.train_test:TrainTest"
    summary: ClassVar[str] = (
        "train under one protocol, test under another or a grid: train:X,test:Y, test:<what>_<first>..<last>:<step>"
    )
    citation: ClassVar[str] = (
        "Lee, Tsai, Chiu, Lee: Multimodal Prompting with Missing Modalities for Visual Recognition, CVPR 2023"
    )
    examples: ClassVar[tuple[str, ...]] = (
        "train:complete,test:both_0.7",
        "train:complete,test:both_0..1:0.1",
        "train:both_0.7,test:text_0..0.9:0.1",
        "train:complete,test:patterns",
        "train:imbalanced_0.2-0.5-0.8,test:patterns",
    )

    train: str = "complete"
    test: str = "both_0.7"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The protocol for `train:X,test:Y` and `test:Y`, else None.

        Raises:
            UsageError: If a side is missing, unknown or of this family itself, or a grid has no even steps.
        """
        train, test = "complete", name.removeprefix("test:")
        if name.startswith("train:"):
            train, _, test = name.removeprefix("train:").partition(",test:")
        elif not name.startswith("test:"):
            return None
        for which, text in (("train", train), ("test", test)):
            if not text:
                raise UsageError(f"protocol {name!r} lacks its {which} side; write train:complete,test:both_0.7.")
            if text.startswith(("train:", "test:")):
                raise UsageError(f"protocol {name!r}: {text!r} cannot be a side; sides are other protocols' names.")
        grid = _Grid.parse(test, name)
        side = parse_protocol(train)
        if side.test_only:
            raise UsageError(f"protocol {name!r}: {train!r} changes the test only and cannot be a training side.")
        return cls(side.name, parse_protocol(test).name if grid is None else grid.name)

    @property
    def name(self) -> str:
        """Canonical name."""
        return f"train:{self.train},test:{self.test}"

    @property
    def aggregates(self) -> Mapping[str, Aggregate]:
        """The mean over a grid (the area under the curve over rates, normalised), else those of the test side."""
        return {"mean_over_grid": "mean"} if self._grid else parse_protocol(self.test).aggregates

    @property
    def change(self) -> str:
        """That of the training side; test conditions have their own."""
        return self._train.change

    @property
    def replays(self) -> bool:
        """Whether one of the sides replays a released draw."""
        return any(protocol.replays for protocol in (self._train, *self._tests))

    @property
    def reads(self) -> tuple[Literal["labels", "values"], ...]:
        """What either side looks at."""
        return tuple(dict.fromkeys(what for protocol in (self._train, *self._tests) for what in protocol.reads))

    def describe(self) -> str:
        """One paragraph: the two sides, and the conditions of a grid."""
        tests = self._tests
        shown = f"the test split is masked as under {self.test!r}."
        if self._grid:
            shown = (
                f"the test split is shown to the one trained method under {len(tests)} conditions, "
                f"{', '.join(protocol.name for protocol in tests)}; 'mean_over_grid' is the mean of their scores, "
                "the normalised area under the curve over rates."
            )
        sides = {protocol.name: protocol.describe() for protocol in (self._train, tests[-1])}
        quoted = " ".join(f"{name!r} says: {text}" for name, text in sides.items())
        return (
            f"Training and validation are masked as under {self.train!r} (validation follows the training side), "
            f"{shown} {quoted}"
        )

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        """`[n, M]` bool as the training side draws it; the test side is drawn by `conditions`."""
        return self._train.hidden(table, split, mask_seed)

    def conditions(self, spec: DatasetSpec) -> Sequence[Condition]:
        """Those of the test side, or one per rate of a grid."""
        return [condition for protocol in self._tests for condition in protocol.conditions(spec)]

    def remarks(self, table: DataTable, mask_seed: int, splits: Sequence[Split] = SPLITS) -> list[str]:
        """Those of both sides about their own splits, each with its protocol's name."""
        train: list[Split] = [split for split in splits if split != "test"]
        test: list[Split] = [split for split in splits if split == "test"]
        sides = [(self._train, train)] + [(protocol, test) for protocol in self._tests]
        return [f"{side.name}: {line}" for side, own in sides for line in side.remarks(table, mask_seed, own)]

    @property
    def _grid(self) -> _Grid | None:
        return _Grid.parse(self.test, self.name)

    @property
    def _train(self) -> Protocol:
        return parse_protocol(self.train)

    @property
    def _tests(self) -> list[Protocol]:
        return [parse_protocol(name) for name in (self._grid.names if self._grid else [self.test])]


@dataclass(frozen=True)
class _Grid:
    """`<what>_<first>..<last>:<step>`."""

    what: str
    rates: tuple[float, ...]
    step: float

    @classmethod
    def parse(cls, text: str, name: str) -> _Grid | None:
        """The grid that `text` writes, None when it is a single protocol.

        Raises:
            UsageError: If a rate is bad, the last one is not reached, or the rates suit no protocol of one condition.
        """
        match = re.fullmatch(r"(?P<what>[^:]+)_(?P<first>[^_]*?)\.\.(?P<last>[^_:]*)(:(?P<step>[^_:]+))?", text)
        if match is None:
            return None
        first, last, step = (parse_rate(text, name) for text in (match["first"], match["last"], match["step"] or _STEP))
        exact_first, exact_last, exact_step = (Decimal(repr(rate)) for rate in (first, last, step))
        count = (exact_last - exact_first) / exact_step if step else Decimal(0)
        if count < 1 or count != int(count) or count >= _MOST:
            raise UsageError(
                f"protocol {name!r}: a grid goes up in at most {_MOST - 1} even steps from its first rate to its last, "
                "e.g. both_0..0.9:0.1."
            )
        rates = tuple(float(exact_first + index * exact_step) for index in range(int(count) + 1))
        grid = cls(match["what"], rates, step)
        protocol = parse_protocol(grid.names[0])
        if protocol.aggregates:
            raise UsageError(f"protocol {name!r}: a grid is made of protocols with one test condition each.")
        return cls(protocol.name.rpartition("_")[0], rates, step)

    @property
    def name(self) -> str:
        """Canonical text."""
        first, last, step = (format_rate(rate) for rate in (self.rates[0], self.rates[-1], self.step))
        return f"{self.what}_{first}..{last}:{step}"

    @property
    def names(self) -> list[str]:
        """Protocol name of every condition, rates ascending."""
        return [f"{self.what}_{format_rate(rate)}" for rate in self.rates]
