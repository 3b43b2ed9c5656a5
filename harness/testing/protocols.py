"""Contract of protocols: exact, fair to every split, and the same on every machine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from harness.changes import parse_change
from harness.masking import MaskTable
from harness.protocol import Protocol, parse_protocol, share_of
from harness.testing.tables import make_table
from harness.types import SPLITS, BoolArray, DataTable, IntArray, Split


class ProtocolContract:
    """What every protocol keeps; derive a test class and set `protocol`.

    Attributes:
        protocol: A name that the family parses.
        modalities: Modalities of the data sets that it is tried on.
        incomplete: Share of samples of a complete data set that miss at least one modality, where the name fixes it.
        golden: `MaskTable.fingerprint` on `make_table(modalities=modalities)` with seed 0; pins the draw for ever.
    """

    protocol: ClassVar[str]
    modalities: ClassVar[tuple[str, ...]] = ("text", "image")
    incomplete: ClassVar[float | None] = None
    golden: ClassVar[str] = ""

    def parsed(self) -> Protocol:
        """The protocol under test."""
        return parse_protocol(self.protocol)

    def table(
        self,
        sizes: Sequence[int] = (40, 20, 30),
        available: BoolArray | None = None,
        ids: Sequence[str] | None = None,
        order: IntArray | None = None,
    ) -> DataTable:
        """A small data set; raw values that the protocol has no business with fail when they are read."""
        return make_table(sizes, self.modalities, available, ids, order, readable=self.reads_values())

    def reads_values(self) -> bool:
        """Whether raw values are the protocol's business."""
        return "values" in self.parsed().reads or bool(self.changes())

    def changes(self) -> dict[str, str]:
        """Name of what is done to values that are shown, per split or test condition where there is something."""
        protocol = self.parsed()
        tests = protocol.conditions(make_table(modalities=self.modalities).spec)
        named = {"train": protocol.change, "valid": protocol.change}
        named |= {f"test:{condition.name}" if len(tests) > 1 else "test": condition.change for condition in tests}
        return {part: name for part, name in named.items() if name}

    def build(self, table: DataTable | None = None, mask_seed: int = 0) -> MaskTable:
        """Its mask table of `table`, or of a small complete data set."""
        return MaskTable.build(self.parsed(), table or self.table(), mask_seed)

    def test_name_is_canonical(self) -> None:
        """Parsing the canonical name gives the same protocol and name."""
        name = self.parsed().name
        assert parse_protocol(name).name == name
        assert parse_protocol(name) == self.parsed()

    def test_documented(self) -> None:
        """Summary, citation, examples and a one-paragraph description are there."""
        family = type(self.parsed())
        assert family.summary, "set `summary`"
        assert family.citation, "set `citation`"
        assert family.examples, "set `examples`"
        description = self.parsed().describe()
        assert len(description) > 20
        assert "\n" not in description, "describe() is one paragraph"

    def test_shape_and_type(self) -> None:
        """`hidden` and every test condition are `[n, M]` bool."""
        table, protocol = self.table(), self.parsed()
        drawn: list[tuple[Split, BoolArray]] = [
            ("train", protocol.hidden(table, "train", 0)),
            ("valid", protocol.hidden(table, "valid", 0)),
        ]
        drawn += [("test", condition.hidden(table, 0)) for condition in protocol.conditions(table.spec)]
        for split, hidden in drawn:
            assert hidden.dtype == np.bool_
            assert hidden.shape == (len(table.splits[split]), len(self.modalities))

    def test_conditions_have_names_and_one_score(self) -> None:
        """Test conditions are called differently; several have scores over all of them, called differently too."""
        protocol, spec = self.parsed(), self.table().spec
        names = [condition.name for condition in protocol.conditions(spec)]
        assert names
        assert len({*names, *protocol.aggregates}) == len(names) + len(protocol.aggregates)
        assert bool(protocol.aggregates) == (len(names) > 1)
        assert [condition.name for condition in protocol.conditions(spec)] == names
        assert list(self.build().condition_names) == (names if len(names) > 1 else [protocol.name])

    def test_keeps_a_modality_of_every_sample(self) -> None:
        """No sample loses everything."""
        for seed in range(5):
            assert all(rows.any(axis=1).all() for _, rows in self.build(mask_seed=seed).parts().values())

    def test_keeps_a_modality_where_values_lack_naturally(self) -> None:
        """Nor where values lack naturally, and nothing lacking becomes present.

        One of several test conditions may skip a sample of which the data set lacks what it shows.
        """
        table = self.table(available=some_available(len(self.modalities)))
        masks = self.build(table)
        for split, rows in masks.parts().values():
            available = table.available[table.splits[split]]
            skips = ~available.all(axis=1) if split == "test" and masks.conditions else np.zeros(len(rows), np.bool_)
            assert (rows.any(axis=1) | skips).all()
            assert not (rows & ~available).any(), "a value that the data set lacks became present"

    def test_survives_a_file(self, tmp_path: Path) -> None:
        """Its table is the same after it was saved and read."""
        table = self.table()
        masks = self.build(table)
        read = MaskTable.load(masks.save(tmp_path / "masks"))
        assert read.header() == masks.header()
        read.check_against(table)

    def test_exact_rate_in_every_split(self) -> None:
        """floor(rate x N) samples of each split are incomplete, exactly."""
        if self.incomplete is None:
            pytest.skip("the name fixes no share of incomplete samples (`incomplete`)")
        for sizes in ((40, 20, 30), (1, 1, 1), (101, 7, 33)):
            masks = self.build(self.table(sizes))
            of = dict(zip(SPLITS, sizes, strict=True))
            for split, rows in masks.parts().values():
                assert (~rows.all(axis=1)).sum() == share_of(self.incomplete, of[split])

    def test_same_seed_same_masks(self) -> None:
        """The mask seed decides everything."""
        assert self.build().fingerprint == self.build().fingerprint

    def test_other_seed_other_masks(self) -> None:
        """The mask seed decides something."""
        masks = self.build(self.table((400, 200, 300)))
        if all(_constant(rows) for _, rows in masks.parts().values()):
            pytest.skip("every sample keeps the same modalities")
        other = self.build(self.table((400, 200, 300)), mask_seed=1)
        assert masks.fingerprint != other.fingerprint

    def test_row_order_does_not_matter(self) -> None:
        """The order of the rows does not change which values a sample keeps (unless a released draw is replayed)."""
        if self.parsed().replays:
            pytest.skip("replays a draw that depends on the order")
        order = np.random.default_rng(0).permutation(90)
        shuffled = self.build(self.table(order=order))
        assert shuffled.fingerprint == self.build().fingerprint

    def test_splits_are_drawn_on_their_own(self) -> None:
        """New samples in `valid` leave the masks of `train` as they were (unless a released draw is replayed)."""
        if self.parsed().replays:
            pytest.skip("replays a draw over all splits")
        before = self.build(self.table((40, 20, 30)))
        ids = [*(f"s{row:04d}" for row in range(40)), *(f"new{row}" for row in range(55))]
        after = self.build(self.table((40, 25, 30), ids=ids))
        assert np.array_equal(before.present["train"], after.present["train"])

    def test_splits_have_independent_streams(self) -> None:
        """The same ids are drawn differently in different splits."""
        names = [f"s{row}" for row in range(400)]
        drawn: list[tuple[Split, BoolArray]] = []
        for first, split in enumerate(SPLITS):
            sizes = [400 if part == split else 1 for part in SPLITS]
            ids = [f"x{row}" for row in range(first)] + names + [f"y{row}" for row in range(2 - first)]
            masks = self.build(self.table(sizes, ids=ids))
            drawn += [(own, rows) for own, rows in masks.parts().values() if own == split and not _constant(rows)]
        pairs = [(one, two) for (a, one), (b, two) in itertools.combinations(drawn, 2) if a != b]
        if not pairs:
            pytest.skip("every sample keeps the same modalities, in all splits but one")
        for one, two in pairs:
            assert not np.array_equal(one, two), "the same ids are drawn alike in two splits"

    def test_labels_matter_only_where_it_says_so(self) -> None:
        """Masks depend on labels if `reads` says so, else not (nor on raw values, which fail when they are read)."""
        table = self.table()
        other = replace(table, labels=1 - table.labels)
        same = self.build(table).fingerprint == self.build(other).fingerprint
        assert same == ("labels" not in self.parsed().reads)

    def test_values_matter_where_it_says_so(self) -> None:
        """Masks depend on raw values if `reads` says so."""
        if "values" not in self.parsed().reads:
            pytest.skip("raw values are not read")
        table = self.table()
        turned = {name: [values[row] for row in range(len(values))][::-1] for name, values in table.values.items()}
        assert self.build(table).fingerprint != self.build(replace(table, values=turned)).fingerprint

    def test_changes_are_named_and_in_the_table(self) -> None:
        """What is done to values has a name that reads back, and is part of the table and its fingerprint."""
        masks = self.build()
        named = {part: parse_change(name) for part, name in self.changes().items()}
        assert all(change.name == self.changes()[part] for part, change in named.items())
        assert masks.changes == {part: change.identity for part, change in named.items() if not change.idle}
        if masks.changes:
            assert replace(masks, changes={}).fingerprint != masks.fingerprint
            assert replace(masks, mask_seed=1).fingerprint != masks.fingerprint
        else:
            assert replace(masks, mask_seed=1).fingerprint == masks.fingerprint

    def test_changes_depend_on_the_sample_alone(self) -> None:
        """A changed value is the same whatever the order of the rows, and no sample gains or loses a modality."""
        order = np.random.default_rng(0).permutation(90)
        for part, name in self.changes().items():
            split: Split = "test" if part.startswith("test") else "valid" if part == "valid" else "train"
            one, two = (parse_change(name).apply(table, split, 0) for table in (self.table(), self.table(order=order)))
            assert set(one.ids) == set(self.table().split_ids(split))
            assert one.available.shape == (len(one.ids), len(one.spec.modalities))
            assert one.spec.fingerprint == two.spec.fingerprint
            for modality in one.spec.modality_names:
                other = dict(zip(two.ids, two.values[modality], strict=True))
                for sample, value in zip(one.ids, one.values[modality], strict=True):
                    assert np.array_equal(value, other[sample]), f"{part}: {modality} of {sample} differs"

    def test_golden_fingerprint(self) -> None:
        """The draw is the one that was released."""
        if not self.golden:
            pytest.skip(f"not pinned; set golden = {self.build().fingerprint!r}")
        assert self.build().fingerprint == self.golden, "the draw of a released protocol changed"


def _constant(rows: BoolArray) -> bool:
    """Whether every sample keeps the same modalities."""
    return bool((rows == rows[0]).all())


def some_available(modalities: int, samples: int = 90) -> BoolArray:
    """`[samples, modalities]` natural presence in which every non-empty pattern occurs, most samples complete."""
    rows = np.arange(samples)
    codes = np.where(rows % 3 == 0, rows // 3 % (2**modalities - 1) + 1, 2**modalities - 1)
    present: BoolArray = (codes[:, None] >> np.arange(modalities) & 1).astype(np.bool_)
    return present
