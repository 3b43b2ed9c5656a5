"""Mask tables in other people's files: CSV for anybody, and the formats of the released codes.

A table that is read here is bound to a data set at once: every id, length, code and presence is checked, and what
does not fit is refused.  No file is run: pickles are read by `harness.restricted_pickle`, `.pt` files as weights.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import DataError, UsageError
from harness.files import atomic_write
from harness.masking import MaskTable
from harness.protocol import format_rate, parse_protocol
from harness.types import SPLITS, BoolArray, DatasetSpec, DataTable, ModalitySpec, Split, TaskSpec, pattern_name

#: What an imported table is called in place of a protocol: nobody can draw it again.
IMPORTED = "imported"
_KEYS = ("id", "split", "condition:")
#: What is hidden per code, by what the table is about: MAP's files, and REDEEM's and RAGPT's two kinds.
_MAP = {0: None, 1: "text", 2: "image"}
_BOTH = {0: "text", 1: "image", 2: None}
#: More samples than any data set has, and few enough to be drawn in memory.
_MOST = 100_000_000


def export_csv(masks: MaskTable, path: Path) -> Path:
    """Writes a table as UTF-8 CSV: `id,split,condition:,<modality>,…`, presence as 0 and 1.

    `condition:` is empty but for test samples under one of several conditions.

    Raises:
        UsageError: If the table also changes values, which the file could not say.
    """
    if masks.changes:
        raise UsageError(
            f"the table of {masks.protocol!r} also changes values that it shows, which CSV cannot say; share its "
            ".parquet and .json files."
        )
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_KEYS, *masks.modalities])
        for part, (split, rows) in masks.parts().items():
            condition = "" if part in masks.present else part.removeprefix("test:")
            for name, row in zip(masks.ids[split], rows.astype(int).tolist(), strict=True):
                writer.writerow([name, split, condition, *row])
    return path


def import_csv(path: Path, table: DataTable) -> MaskTable:
    """Reads what `export_csv` writes, rows in any order, for one data set.

    Raises:
        DataError: If the file cannot be read, has other columns, ids or values, or shows what the data set lacks.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}).") from error
    expected = [*_KEYS, *table.spec.modality_names]
    if header != expected:
        raise DataError(f"{path} has the columns {', '.join(header)}, expected {', '.join(expected)}.")
    blocks: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for number, line in enumerate(lines, start=2):
        if len(line) != len(expected) or line[1] not in SPLITS or not set(line[3:]) <= {"0", "1"}:
            raise DataError(
                f"{path}: row {number} is {line}; expected an id, a split of {', '.join(SPLITS)}, a condition, and "
                "0 or 1 per modality."
            )
        block = blocks.setdefault((line[1], line[2]), {})
        if line[0] in block:
            raise DataError(f"{path}: row {number} has id {line[0]!r} of split {line[1]!r} a second time.")
        block[line[0]] = [cell == "1" for cell in line[3:]]
    conditions = [name for split, name in blocks if split == "test" and name]
    stray = [(split, name) for split, name in blocks if name and split != "test"]
    if stray or len(conditions) == 1 or (conditions and ("test", "") in blocks):
        raise DataError(f"{path}: only the test split has conditions, two or more, and then no rows without one.")
    present: dict[Split, BoolArray] = {
        split: _aligned(path, table, split, blocks.get((split, ""), {}))
        for split in SPLITS
        if not (conditions and split == "test")
    }
    return _imported(
        table,
        present,
        {name: _aligned(path, table, "test", blocks["test", name]) for name in conditions},
        "Presence of every sample as a CSV file states it.",
    )


def import_map(files: Mapping[Split, Path], table: DataTable) -> MaskTable:
    """Reads MAP's tables: one `.pt` file per split, a vector of codes 0 complete, 1 text missing, 2 image missing.

    The files hold no ids: samples are taken in the order of the split.  A split without a file is shown as it came.

    Raises:
        DataError: If a file cannot be read as weights, or has another length or other codes.
        UsageError: If the data set is not of one text and one image.
    """
    import torch

    from harness.tensor_files import load_tensors

    present: dict[Split, BoolArray] = {split: table.available[table.splits[split]].copy() for split in SPLITS}
    for split, path in files.items():
        try:
            codes: Any = load_tensors(path)
        except Exception as error:
            # torch fails in many ways on damaged files, and its own text advises to switch the check off.
            raise DataError(f"{path} cannot be read as a tensor ({type(error).__name__}); nothing was run.") from error
        size = len(table.splits[split])
        if not isinstance(codes, torch.Tensor) or tuple(codes.shape) != (size,) or codes.is_complex():
            found = list(codes.shape) if isinstance(codes, torch.Tensor) else type(codes).__name__
            raise DataError(
                f"{path} holds {found}, but split {split!r} of {table.spec.name!r} has {size} samples; expected one "
                "code each."
            )
        hidden = _decoded(path, codes.double().numpy(), _MAP, table, table.split_ids(split))
        present[split] &= ~hidden
    listed = ", ".join(split for split in SPLITS if split in files)
    return _imported(
        table,
        present,
        {},
        f"As a table of the released code of MAP states it, by position in the split, for {listed}; "
        "other splits as the data came.",
    )


def import_redeem(path: Path, table: DataTable, missing: str, column: str = "") -> MaskTable:
    """Reads a table of REDEEM or RAGPT: a pickled frame with `item_id` and a column of codes, over all splits.

    Args:
        path: The `missing_table.pkl`.
        table: The data set, of one text and one image.
        missing: `both` (codes 0 text missing, 1 image missing, 2 complete), `text` or `image` (0 missing, 1 complete).
        column: Which column of codes, e.g. `missing_mask_7`; may be left out where there is one.

    Raises:
        DataError: If the file asks for more than a frame, or an id is missing, doubled or unknown, or a code is.
        UsageError: If the data set is not of one text and one image, or the column is not told.
    """
    from harness.restricted_pickle import load_frame

    frame = load_frame(path)
    columns = [name for name in frame if name.startswith("missing_mask_")]
    if "item_id" not in frame or not columns:
        raise DataError(f"{path} has the columns {', '.join(frame)}, expected item_id and missing_mask_<rate>.")
    if column not in columns and (column or len(columns) > 1):
        asked = f"no column {column!r}" if column else "several columns of codes"
        raise UsageError(f"{path} has {asked}; choose one of {', '.join(columns)} with --column.")
    ids = [str(name) for name in frame["item_id"]]
    _match(path, ids, table.ids)
    meaning = _BOTH if missing == "both" else {0: missing, 1: None}
    rows = _decoded(path, frame[column or columns[0]], meaning, table, ids)
    hidden = dict(zip(ids, rows, strict=True))
    present: dict[Split, BoolArray] = {
        split: table.available[table.splits[split]]
        & ~np.array([hidden[name] for name in table.split_ids(split)], dtype=np.bool_).reshape(-1, 2)
        for split in SPLITS
    }
    return _imported(
        table,
        present,
        {},
        f"As {column or columns[0]} of a table of the released code of REDEEM and RAGPT states it by id, "
        f"read as the codes of {missing!r}.",
    )


def released_codes(counts: Mapping[Split, int], missing: str, rate: float, seed: int) -> npt.NDArray[np.int8]:
    """The codes that the released code of REDEEM and RAGPT draws for data sets of these sizes.

    The draw is that of the protocol family `concat_<missing>_<rate>`; no data are needed.

    Args:
        counts: Samples per split; a split that is not named has none (the released Food-101 has no `valid`).
        missing: `both` (codes 0 text missing, 1 image missing, 2 complete), `text` or `image` (0 missing, 1 complete).
        rate: Share of all samples that miss something, 0 to 1.
        seed: Seed of the released code, which uses 2024.

    Returns:
        `[N]` int8 over the samples of train, valid and test one after the other, as `missing_table.pkl` has them.

    Raises:
        UsageError: If a number is negative or far too large, all are 0, or rate or seed are out of range.
    """
    sizes = [counts.get(split, 0) for split in SPLITS]
    total = sum(sizes)
    if min(sizes) < 0 or not 0 < total <= _MOST:
        listed = ", ".join(f"{split} {size}" for split, size in zip(SPLITS, sizes, strict=True))
        raise UsageError(f"counts are {listed}: none may be negative, and together they must be 1 to {_MOST:,}.")
    protocol = parse_protocol(f"concat_{missing}_{format_rate(rate)}")
    table = _pair(sizes)
    hidden = np.concatenate([protocol.hidden(table, split, seed) for split in SPLITS])
    meaning = _BOTH if missing == "both" else {0: missing, 1: None}
    codes = np.full(total, max(meaning), dtype=np.int8)
    for code, kind in meaning.items():
        if kind is not None:
            codes[hidden[:, table.spec.modality_names.index(kind)]] = code
    return codes


def _pair(sizes: Sequence[int]) -> DataTable:
    """A data set of one text and one image in name only: splits of these sizes, everything present, no values."""
    total = sum(sizes)
    rows = np.split(np.arange(total), np.cumsum(sizes)[:-1])
    return DataTable(
        spec=DatasetSpec(
            name="counts",
            version="1",
            modalities=(ModalitySpec("text", "text"), ModalitySpec("image", "image")),
            task=TaskSpec("binary", 2, ("0", "1"), "accuracy"),
            license="",
            citation="",
            fingerprint="",
        ),
        ids=(),
        splits=dict(zip(SPLITS, rows, strict=True)),
        labels=np.zeros(total, dtype=np.int64),
        available=np.ones((total, 2), dtype=np.bool_),
        values={},
    )


def difference(one: MaskTable, other: MaskTable, examples: int = 3) -> dict[str, Any]:
    """What differs between two tables, as plain data.

    Returns:
        `same` (equal fingerprints), `same_dataset`, `changes` (per part what either table does to values, where they
        differ), and per part (see `MaskTable.parts`) of either table: `in`
        (`both`, `first`, `second`), samples `shared`, `only_first`, `only_second`, how many of the shared `differ`,
        `changes` ("pattern -> pattern" to count) and a few `ids` that differ.
    """
    names = tuple(dict.fromkeys((*one.modalities, *other.modalities)))
    first, second = _patterns(one, names), _patterns(other, names)
    parts = {}
    for part in dict.fromkeys((*first, *second)):
        left, right = first.get(part, {}), second.get(part, {})
        shared = [name for name in left if name in right]
        differ = [name for name in shared if left[name] != right[name]]
        parts[part] = {
            "in": "both" if part in first and part in second else "first" if part in first else "second",
            "shared": len(shared),
            "only_first": len(left) - len(shared),
            "only_second": len(right) - len(shared),
            "differ": len(differ),
            "changes": dict(sorted(Counter(f"{left[name]} -> {right[name]}" for name in differ).items())),
            "ids": differ[:examples],
        }
    return {
        "same": one.fingerprint == other.fingerprint,
        "same_dataset": (one.dataset, one.dataset_fingerprint, one.modalities)
        == (other.dataset, other.dataset_fingerprint, other.modalities),
        "sha256": [one.fingerprint, other.fingerprint],
        "changes": {
            part: [one.changes.get(part, ""), other.changes.get(part, "")]
            for part in dict.fromkeys((*one.changes, *other.changes))
            if one.changes.get(part) != other.changes.get(part)
        },
        "parts": parts,
    }


def _patterns(masks: MaskTable, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Per part the pattern name of every id, in one order of modalities."""
    order = [(name, masks.modalities.index(name)) for name in names if name in masks.modalities]
    columns = [column for _, column in order]
    return {
        part: {
            sample: pattern_name(row, [name for name, _ in order]) if row.any() else "skipped"
            for sample, row in zip(masks.ids[split], rows[:, columns], strict=True)
        }
        for part, (split, rows) in masks.parts().items()
    }


def _aligned(path: Path, table: DataTable, split: Split, rows: Mapping[str, list[bool]]) -> BoolArray:
    ids = table.split_ids(split)
    _match(path, list(rows), ids, f" of split {split!r}")
    return np.array([rows[name] for name in ids], dtype=np.bool_).reshape(len(ids), len(table.spec.modalities))


def _match(path: Path, found: Sequence[str], expected: Sequence[str], where: str = "") -> None:
    """Refuses ids that are not those of the data set, each once."""
    doubled = [name for name, count in Counter(found).items() if count > 1]
    missing, strange = set(expected) - set(found), set(found) - set(expected)
    for what, names in (("twice", doubled), ("not in the file", missing), ("not in the data set", strange)):
        if names:
            raise DataError(f"{path}: {len(names)} ids{where} are {what}, e.g. {sorted(names)[:3]}.")


def _decoded(
    path: Path,
    codes: npt.NDArray[Any],
    meaning: Mapping[int, str | None],
    table: DataTable,
    ids: Sequence[str],
) -> BoolArray:
    """`[n, M]` bool: what each code hides."""
    kinds: list[str] = [modality.kind for modality in table.spec.modalities]
    if sorted(kinds) != ["image", "text"]:
        raise UsageError(f"this format is for one text and one image; {table.spec.name!r} has {', '.join(kinds)}.")
    known = np.isin(codes, list(meaning)) if codes.dtype.kind in "iuf" else np.zeros(codes.shape, dtype=np.bool_)
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        raise DataError(
            f"{path}: sample {ids[row]!r} has the code {codes[row]}; known are {', '.join(map(str, meaning))}."
        )
    hidden = np.zeros((len(codes), 2), dtype=np.bool_)
    for code, kind in meaning.items():
        if kind is not None:
            hidden[codes == code, kinds.index(kind)] = True
    return hidden


def _imported(
    table: DataTable, present: Mapping[Split, BoolArray], conditions: Mapping[str, BoolArray], definition: str
) -> MaskTable:
    masks = MaskTable(
        IMPORTED,
        definition,
        0,
        table.spec.name,
        table.spec.fingerprint,
        table.spec.modality_names,
        {split: tuple(table.split_ids(split)) for split in SPLITS},
        present,
        conditions,
    )
    for split, rows in present.items():
        empty = np.flatnonzero(~rows.any(axis=1))
        if empty.size:
            raise DataError(
                f"the table leaves {empty.size} samples of split {split!r} without any modality, "
                f"e.g. {masks.ids[split][empty[0]]!r}; it does not fit {table.spec.name!r}."
            )
    whole = table.available[table.splits["test"]].all(axis=1)
    for name, rows in conditions.items():
        skipped = ~rows.any(axis=1)
        if skipped.all() or (skipped & whole).any():
            raise DataError(f"the table shows nothing of samples under condition {name!r} that lack nothing by nature.")
    masks.check_against(table)
    return masks
