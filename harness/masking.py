"""Mask tables as artefacts, and the only view of a data set that a method gets.

A `MaskTable` says for every sample of every split which modalities are present.  It is built once from a
protocol and a mask seed, has a sha256 fingerprint, and can be saved, verified and shared.
An `ObservedDataset` applies a table: what is hidden is not in the batches it hands out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.changes import parse_change
from harness.config import digest_of
from harness.errors import DataError, SupervisionError, UsageError
from harness.features import FeatureArray
from harness.files import atomic_write, check_parquet, is_file
from harness.protocol import Condition, Protocol
from harness.types import (
    SPLITS,
    Batch,
    BoolArray,
    DatasetSpec,
    DataTable,
    FeatureSpec,
    FloatArray,
    IntArray,
    ModalityBatch,
    Split,
    pattern_name,
)

if TYPE_CHECKING:
    from torch import Tensor

MASK_SCHEMA = 1
#: Column of saved tables with several test conditions; no modality may be called so.
_CONDITION = "condition:"
#: Texts of the side file.
_TEXTS = ("protocol", "definition", "dataset", "dataset_fingerprint")


@dataclass(frozen=True)
class MaskTable:
    """Presence of every modality for every sample, frozen.

    Attributes:
        protocol: Canonical protocol name.
        definition: The protocol's one-paragraph description.
        mask_seed: Seed of the draw.
        dataset: Name of the data set.
        dataset_fingerprint: Its fingerprint; a table never applies to another version.
        modalities: Column names, spec order.
        ids: Sample ids per split, canonical order.
        present: `[n, M]` bool per split; without `test` where the protocol has several test conditions.
        conditions: `[n, M]` bool of the test split per condition, where there are several.  A row without any
            True is a sample that the condition skips, because the data set lacks what it would show.
        remarks: Counts of exceptions that the protocol makes; not part of the fingerprint.
        changes: What is done to values that are shown, by part (see `parts`), as `harness.changes.Change.identity`;
            without the parts whose values are shown as they came.
    """

    protocol: str
    definition: str
    mask_seed: int
    dataset: str
    dataset_fingerprint: str
    modalities: tuple[str, ...]
    ids: Mapping[Split, tuple[str, ...]]
    present: Mapping[Split, BoolArray]
    conditions: Mapping[str, BoolArray] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    changes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def build(cls, protocol: Protocol, table: DataTable, mask_seed: int) -> MaskTable:
        """Draws the table of `protocol` for a data set.

        Raises:
            UsageError: If the protocol does not suit the data set, or would leave a sample without any modality.
        """
        tests = protocol.conditions(table.spec)
        names = [condition.name for condition in tests]
        clash = len({*names, *protocol.aggregates}) < len(names) + len(protocol.aggregates)
        if not names or clash or (len(names) > 1 and not protocol.aggregates):
            raise UsageError(
                f"protocol {protocol.name!r} has test conditions {names} and scores {list(protocol.aggregates)} over "
                "them; names must be unique, and several conditions need a score over all; mend the protocol."
            )
        present: dict[Split, BoolArray] = {
            split: _shown(protocol, table, split, protocol.hidden(table, split, mask_seed))
            for split in ("train", "valid")
        }
        conditions: dict[str, BoolArray] = {}
        if len(tests) == 1:
            present["test"] = _shown(protocol, table, "test", tests[0].hidden(table, mask_seed))
        else:
            conditions = {
                condition.name: _shown(protocol, table, "test", condition.hidden(table, mask_seed), condition.name)
                for condition in tests
            }
        return cls(
            protocol.name,
            protocol.describe(),
            mask_seed,
            table.spec.name,
            table.spec.fingerprint,
            table.spec.modality_names,
            {split: tuple(table.split_ids(split)) for split in SPLITS},
            present,
            conditions,
            tuple(protocol.remarks(table, mask_seed)),
            _changes(protocol, table, tests),
        )

    def revealed(self, table: DataTable) -> MaskTable:
        """The same samples under the same conditions with nothing hidden or changed, as an oracle is shown them."""
        test = table.available[table.splits["test"]]
        return replace(
            self,
            present={split: table.available[table.splits[split]] for split in self.present},
            conditions={name: test & rows.any(axis=1, keepdims=True) for name, rows in self.conditions.items()},
            changes={},
        )

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Names of the test conditions; a single one is called by the protocol's name."""
        return tuple(self.conditions) or (self.protocol,)

    def parts(self) -> dict[str, tuple[Split, BoolArray]]:
        """Every presence matrix by a name for people: `train`, `valid`, and `test` or one `test:<condition>` each."""
        parts: dict[str, tuple[Split, BoolArray]] = {split: (split, self.present[split]) for split in self.present}
        return parts | {f"test:{name}": ("test", rows) for name, rows in self.conditions.items()}

    @property
    def fingerprint(self) -> str:
        """sha256 over definition-independent content: data set, modalities, and each split's (id, presence).

        Samples are sorted by id, so row order does not matter.  Several test conditions enter by name, in order.
        Changes of values enter by what they are and by the seed that decides what they draw.
        """
        extra = {name: self._bound("test", rows) for name, rows in self.conditions.items()}
        return digest_of(
            {
                "schema": MASK_SCHEMA,
                "dataset": self.dataset,
                "dataset_fingerprint": self.dataset_fingerprint,
                "modalities": list(self.modalities),
                "present": {split: self._bound(split, rows) for split, rows in self.present.items()},
            }
            | ({"conditions": list(extra.items())} if extra else {})
            | ({"changes": dict(self.changes), "mask_seed": self.mask_seed} if self.changes else {})
        )

    def _bound(self, split: Split, rows: BoolArray) -> list[tuple[str, list[int]]]:
        return sorted(zip(self.ids[split], rows.astype(int).tolist(), strict=True))

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of samples per part (see `parts`) and pattern name; `skipped` where a condition shows nothing."""
        return {
            part: dict(
                sorted(
                    Counter(pattern_name(row, self.modalities) if row.any() else "skipped" for row in rows).items(),
                    key=lambda item: (item[0] == "skipped", item[0]),
                )
            )
            for part, (_, rows) in self.parts().items()
        }

    def missing_rates(self) -> dict[str, dict[str, float]]:
        """Realised share of missing values per part (see `parts`) and modality, skipped samples left out."""
        shares = {}
        for part, (_, rows) in self.parts().items():
            kept = rows[rows.any(axis=1)]
            shares[part] = {name: float(1.0 - kept[:, column].mean()) for column, name in enumerate(self.modalities)}
        return shares

    def header(self) -> dict[str, Any]:
        """The JSON side file: definition, counts, fingerprint."""
        return {
            "schema": MASK_SCHEMA,
            "protocol": self.protocol,
            "definition": self.definition,
            "mask_seed": self.mask_seed,
            "dataset": self.dataset,
            "dataset_fingerprint": self.dataset_fingerprint,
            "modalities": list(self.modalities),
            **({"conditions": list(self.conditions)} if self.conditions else {}),
            **({"changes": dict(self.changes)} if self.changes else {}),
            "counts": self.counts(),
            "remarks": list(self.remarks),
            "sha256": self.fingerprint,
        }

    def save(self, path: Path) -> Path:
        """Writes `<path>.parquet` and its side file `<path>.json`, atomically; returns the Parquet path.

        One row per sample: id, split, a column per modality.  With several test conditions the test samples have one
        row for each, named in a column `condition:`.
        """
        import pandas as pd

        frames = []
        for part, (split, rows) in self.parts().items():
            frame = pd.DataFrame(rows, columns=list(self.modalities))
            frame.insert(0, "split", split)
            frame.insert(0, "id", list(self.ids[split]))
            if self.conditions:
                frame.insert(2, _CONDITION, part.removeprefix("test:") if part not in self.present else "")
            frames.append(frame)
        parquet = path.with_name(path.name + ".parquet")
        with atomic_write(parquet) as temporary:
            pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)
        with atomic_write(path.with_name(path.name + ".json")) as temporary:
            temporary.write_text(json.dumps(self.header(), indent=2) + "\n")
        return parquet

    @classmethod
    def load(cls, path: Path) -> MaskTable:
        """Reads a saved table and checks it against its side file.

        Args:
            path: The Parquet file, the side file, or their common stem.

        Raises:
            DataError: If a file is missing or unreadable, or content and sha256 disagree.
        """
        import pandas as pd

        stem = path.with_suffix("") if path.suffix in (".parquet", ".json") else path
        parquet, side = stem.with_name(stem.name + ".parquet"), stem.with_name(stem.name + ".json")
        for file in (parquet, side):
            if not is_file(file):
                raise DataError(f"mask table {file}: no such file; a table is a .parquet and a .json side by side.")
        try:
            header = json.loads(side.read_text())
            check_parquet(parquet)
            frame = pd.read_parquet(parquet)
            strays = set(frame["split"]) - set(SPLITS)
            if strays:
                raise ValueError(f"unknown splits {sorted(map(str, strays))}")
            modalities = tuple(header["modalities"])
            named = [*modalities, *frame["id"], *(header[name] for name in _TEXTS)]
            if not all(isinstance(text, str) for text in named):
                raise ValueError("ids, modalities or names that are no text")
            names = list(header.get("conditions", []))
            if names:
                found = list(dict.fromkeys(frame.loc[frame["split"] == "test", _CONDITION]))
                if found != names or (frame.loc[frame["split"] != "test", _CONDITION] != "").any():
                    raise ValueError(f"test conditions {found} are not the {names} of the side file")
            blocks = {name: frame[(frame["split"] == "test") & (frame[_CONDITION] == name)] for name in names}
            ids = {split: tuple(frame.loc[frame["split"] == split, "id"]) for split in SPLITS}
            if names:
                ids["test"] = tuple(blocks[names[0]]["id"])
                strange = [name for name, block in blocks.items() if tuple(block["id"]) != ids["test"]]
                if strange:
                    raise ValueError(f"test condition {strange[0]!r} has other samples than {names[0]!r}")
            table = cls(
                header["protocol"],
                header["definition"],
                int(header["mask_seed"]),
                header["dataset"],
                header["dataset_fingerprint"],
                modalities,
                ids,
                {
                    split: frame.loc[frame["split"] == split, list(modalities)].to_numpy(dtype=np.bool_)
                    for split in SPLITS
                    if not (names and split == "test")
                },
                {name: block[list(modalities)].to_numpy(dtype=np.bool_) for name, block in blocks.items()},
                tuple(header.get("remarks", [])),
                {str(part): str(text) for part, text in header.get("changes", {}).items()},
            )
            strays = set(table.changes) - set(table.parts())
            if strays:
                raise ValueError(f"changes of unknown parts {sorted(strays)}")
            expected, digest = str(header["sha256"]), table.fingerprint
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DataError(f"mask table {stem}: not readable ({type(error).__name__}: {reason}).") from error
        if digest != expected:
            raise DataError(
                f"mask table {stem}: content has sha256 {digest[:16]}…, side file says {expected[:16]}…; "
                "the table was changed after it was saved."
            )
        return table

    def check_against(self, table: DataTable) -> None:
        """Refuses a data set that this mask table was not drawn for.

        Raises:
            DataError: On another data set, version, id list, or a modality marked present that is not available.
        """
        if self.dataset_fingerprint != table.spec.fingerprint or self.modalities != table.spec.modality_names:
            raise DataError(
                f"mask table is for {self.dataset} {self.dataset_fingerprint[:12]}…, the data set is "
                f"{table.spec.name} {table.spec.fingerprint[:12]}…; build a new one with `harness mask build`."
            )
        for split in SPLITS:
            if tuple(table.split_ids(split)) != tuple(self.ids[split]):
                missing = sorted(set(table.split_ids(split)) - set(self.ids[split]))
                raise DataError(f"mask table has other ids than split {split!r} (e.g. {missing[:3] or 'reordered'}).")
        for split, rows in self.parts().values():
            if (rows & ~table.available[table.splits[split]]).any():
                raise DataError(f"mask table marks values of split {split!r} present that the data set lacks.")


def _shown(protocol: Protocol, table: DataTable, split: Split, hidden: BoolArray, condition: str = "") -> BoolArray:
    """`[n, M]` presence of one split out of what a protocol hides, checked."""
    where = f"split {split!r}" + (f" under condition {condition!r}" if condition else "")
    available = table.available[table.splits[split]]
    if hidden.shape != available.shape or hidden.dtype != np.bool_:
        raise UsageError(
            f"protocol {protocol.name!r} returned {hidden.dtype} {list(hidden.shape)} for {where}, "
            f"expected bool {list(available.shape)}; mend its `hidden`."
        )
    present: BoolArray = available & ~hidden
    empty = ~present.any(axis=1)
    # One of several test conditions may skip a sample of which the data set lacks what the condition would show.
    excused = ~available.all(axis=1) & ~hidden.all(axis=1) if condition else np.zeros_like(empty)
    forbidden = np.flatnonzero(empty & ~excused)
    if forbidden.size:
        raise UsageError(
            f"protocol {protocol.name!r} leaves {forbidden.size} samples of {where} without any "
            f"modality, e.g. {table.split_ids(split)[forbidden[0]]!r}; use a protocol that keeps at least one."
        )
    if condition and empty.all():
        raise UsageError(
            f"protocol {protocol.name!r}: no sample of {where} of {table.spec.name!r} has anything to show."
        )
    return present


def _changes(protocol: Protocol, table: DataTable, tests: Sequence[Condition]) -> dict[str, str]:
    """What is done to values per part, checked against the data set."""
    several = len(tests) > 1
    named = {"train": protocol.change, "valid": protocol.change}
    named |= {f"test:{condition.name}" if several else "test": condition.change for condition in tests}
    changes = {part: parse_change(name) for part, name in named.items() if name}
    for change in changes.values():
        change.modalities(table.spec)
    return {part: change.identity for part, change in changes.items() if not change.idle}


class ObservedDataset:
    """One split as a method may see it.

    Hidden values are never gathered: a batch holds, per modality, only the rows that are present.

    Args:
        spec: Identity of the data set.
        split: Which split.
        ids: n sample ids.
        features: Per modality the whole data set's feature arrays.
        rows: `[n]` rows of this split in `features`.
        present: `[n, M]` presence after the protocol.
        available: `[n, M]` natural presence.
        labels: `[n]` or `[n, C]`.
        supervision: `complete` lets training batches carry `full`; `observed` never does.
        full: Where the protocol changes values, the feature arrays of the values as they came.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        split: Split,
        ids: Sequence[str],
        features: Mapping[str, FeatureArray],
        rows: IntArray,
        present: BoolArray,
        available: BoolArray,
        labels: npt.NDArray[Any],
        supervision: str = "observed",
        full: Mapping[str, FeatureArray] | None = None,
    ) -> None:
        self.spec = spec
        self.split: Split = split
        self.ids = tuple(ids)
        self.modalities = spec.modality_names
        self.present = present
        self.labels = labels
        self.supervision = supervision
        self._features = features
        self._full = features if full is None else full
        self._rows = rows
        self._available = available

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]:
        """Shapes of every modality's features."""
        return {name: self._features[name].spec for name in self.modalities}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Batch:
        return self.batch([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Lets a torch `DataLoader` fetch a whole batch in one vectorised call."""
        return self.batch(indices)

    def batch(self, indices: Sequence[int] | IntArray) -> Batch:
        """Gathers a batch; under `supervision=complete` a training batch also carries `full`."""
        chosen = np.asarray(indices, dtype=np.int64)
        batch = self._gather(chosen, self.present, self._features)
        if self.split == "train" and self.supervision == "complete":
            batch.full = self._gather(chosen, self._available, self._full)
        return batch

    def complete_view(self) -> ObservedDataset:
        """The training split with nothing hidden, for banks and teachers under `supervision=complete`.

        Raises:
            SupervisionError: Under `supervision=observed`, or for another split than train.
        """
        if self.split != "train" or self.supervision != "complete":
            raise SupervisionError(
                f"a method asked for hidden values of split {self.split!r} under supervision={self.supervision}; "
                "run with supervision=complete if its protocol declares complete training data."
            )
        return ObservedDataset(
            self.spec,
            self.split,
            self.ids,
            self._full,
            self._rows,
            self._available,
            self._available,
            self.labels,
            "observed",
        )

    @property
    def features(self) -> Mapping[str, FeatureArray]:
        """Arrays that this view's values come from, hidden ones included: for audits, never for methods."""
        return self._features

    @property
    def rows(self) -> IntArray:
        """`[n]` rows of this view's samples in the data set."""
        return self._rows

    def with_features(self, features: Mapping[str, FeatureArray]) -> ObservedDataset:
        """The same samples over other feature arrays, one row per sample of this view (for probes)."""
        return ObservedDataset(
            self.spec,
            self.split,
            self.ids,
            features,
            np.arange(len(self), dtype=np.int64),
            self.present,
            self._available,
            self.labels,
            self.supervision,
        )

    def subset(self, indices: Sequence[int] | IntArray) -> ObservedDataset:
        """The same view restricted to some samples."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ObservedDataset(
            self.spec,
            self.split,
            [self.ids[index] for index in chosen],
            self._features,
            self._rows[chosen],
            self.present[chosen],
            self._available[chosen],
            self.labels[chosen],
            self.supervision,
            self._full,
        )

    def digests(self) -> IntArray:
        """`[n, M]` hashes of the raw values, 0 where a value is hidden."""
        every = [np.asarray(self._features[name].digest[self._rows]) for name in self.modalities]
        return np.where(self.present, np.stack(every, axis=1), 0)

    def pooled(self, name: str, indices: IntArray) -> FloatArray:
        """Pooled vectors `[b, P]` of one modality of samples that show it."""
        return np.asarray(self._features[name].pooled[self._shown_rows(name, indices)], dtype=np.float32)

    def tokens(self, name: str, indices: IntArray) -> tuple[Tensor, Tensor]:
        """Tokens `[b, L, *token_shape]` as they are stored and masks `[b, L]` of one modality of samples that show it.

        One gathering out of the memory map, whatever order the samples have.
        """
        import torch

        array, rows = self._features[name], self._shown_rows(name, indices)
        return (
            torch.from_numpy(np.ascontiguousarray(array.tokens[rows])),
            torch.from_numpy(np.ascontiguousarray(array.mask[rows])),
        )

    def stored_bytes(self, name: str) -> int:
        """Bytes of one sample's tokens and mask of a modality in the feature store."""
        return self._features[name].stored_bytes

    def _shown_rows(self, name: str, indices: IntArray) -> IntArray:
        """Rows of the data set, after making sure that nothing hidden is among them."""
        if not self.present[indices, self.modalities.index(name)].all():
            raise SupervisionError(f"values of modality {name!r} that split {self.split!r} hides were asked for.")
        return self._rows[indices]

    def _gather(self, chosen: IntArray, present: BoolArray, features: Mapping[str, FeatureArray]) -> Batch:
        import torch

        inputs: dict[str, ModalityBatch] = {}
        for column, name in enumerate(self.modalities):
            there = np.flatnonzero(present[chosen, column])
            array = features[name]
            rows = self._rows[chosen[there]]
            inputs[name] = ModalityBatch(
                rows=torch.from_numpy(there),
                tokens=_tensor(array.tokens[rows]),
                mask=torch.from_numpy(np.ascontiguousarray(array.mask[rows])),
                pooled=torch.from_numpy(np.ascontiguousarray(array.pooled[rows], dtype=np.float32)),
                digest=torch.from_numpy(np.ascontiguousarray(array.digest[rows])),
            )
        return Batch(
            ids=[self.ids[index] for index in chosen],
            present=torch.from_numpy(np.ascontiguousarray(present[chosen])),
            inputs=inputs,
            labels=torch.from_numpy(np.ascontiguousarray(self.labels[chosen])),
        )


def _tensor(values: npt.NDArray[Any]) -> Any:
    """Features as float32 (torch widens half precision faster than numpy), token ids and pixels as they are."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.float() if tensor.is_floating_point() else tensor


def observe(
    table: DataTable,
    masks: MaskTable,
    features: Mapping[str, FeatureArray],
    split: Split,
    supervision: str = "observed",
    condition: str = "",
    changed: Mapping[str, Mapping[str, FeatureArray]] | None = None,
) -> ObservedDataset:
    """Applies a mask table to one split of a data set.

    Args:
        table: The data set.
        masks: Its masks.
        features: Per modality the feature arrays of the whole data set.
        split: Which split.
        supervision: What training batches may carry, see `ObservedDataset`.
        condition: Which of several test conditions; samples that it skips are left out.
        changed: Per part of the table whose values are changed (see `MaskTable.changes`) the arrays of the changed
            modalities.

    Raises:
        DataError: If the table was drawn for another data set, has no such condition, or changes values of which
            `changed` holds nothing.
    """
    masks.check_against(table)
    several = split == "test" and bool(masks.conditions)
    if condition not in (masks.conditions if several else ("", masks.protocol)):
        raise DataError(
            f"mask table of {masks.protocol!r} has no condition {condition!r} of split {split!r}; "
            f"its test conditions: {', '.join(masks.condition_names)}."
        )
    part = f"test:{condition}" if several else split
    shown = dict(features)
    if part in masks.changes:
        if part not in (changed or {}):
            raise DataError(f"mask table of {masks.protocol!r} changes values of {part!r}; they are not encoded.")
        shown |= (changed or {})[part]
    rows = table.splits[split]
    view = ObservedDataset(
        table.spec,
        split,
        masks.ids[split],
        shown,
        rows,
        masks.conditions[condition] if several else masks.present[split],
        table.available[rows],
        table.labels[rows],
        supervision,
        features,
    )
    return view.subset(np.flatnonzero(view.present.any(axis=1))) if several else view
