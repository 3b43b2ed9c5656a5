"""Predictions per sample as a Parquet artefact, with the test condition and the pattern each sample was shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.files import atomic_write
from harness.types import Predictions


def pool_conditions(parts: Mapping[str, Predictions]) -> Predictions:
    """One after the other the predictions under every test condition, each row with its condition's name."""
    first = next(iter(parts.values()))
    return Predictions(
        tuple(name for part in parts.values() for name in part.ids),
        np.concatenate([part.logits for part in parts.values()]),
        np.concatenate([part.labels for part in parts.values()]),
        np.concatenate([part.present for part in parts.values()]),
        first.modalities,
        tuple(condition for condition, part in parts.items() for _ in part.ids),
    )


def split_conditions(predictions: Predictions) -> dict[str, Predictions]:
    """Predictions by test condition, in the order in which they were pooled; under `""` where no name was noted."""
    if not predictions.condition:
        return {"": predictions}
    names = np.array(predictions.condition)
    parts = {}
    for name in dict.fromkeys(predictions.condition):
        rows = np.flatnonzero(names == name)
        parts[name] = replace(
            predictions,
            ids=tuple(predictions.ids[row] for row in rows),
            logits=predictions.logits[rows],
            labels=predictions.labels[rows],
            present=predictions.present[rows],
            condition=(name,) * len(rows),
        )
    return parts


def save_predictions(predictions: Predictions, path: Path) -> None:
    """Writes one row per sample and test condition: id, condition, pattern, present flags, label(s), logits; atomic."""
    import pandas as pd

    columns: dict[str, object] = {"id": list(predictions.ids)}
    if predictions.condition:
        columns["condition"] = list(predictions.condition)
    columns["pattern"] = predictions.patterns()
    for column, name in enumerate(predictions.modalities):
        columns[f"present:{name}"] = predictions.present[:, column]
    labels = predictions.labels if predictions.labels.ndim == 2 else predictions.labels[:, None]
    for column in range(labels.shape[1]):
        columns[f"label:{column}"] = labels[:, column]
    for column in range(predictions.logits.shape[1]):
        columns[f"logit:{column}"] = predictions.logits[:, column]
    with atomic_write(path) as temporary:
        pd.DataFrame(columns).to_parquet(temporary, index=False)


def load_predictions(path: Path) -> Predictions:
    """Reads what `save_predictions` wrote, now or before conditions were noted.

    Raises:
        DataError: If the file is missing or not a predictions file.
    """
    # Without pandas or threads on the way, and read at once: a report reads thousands of these small files.
    from pyarrow import BufferReader
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(BufferReader(path.read_bytes())) as file:
            table = file.read(use_threads=False)
        names = table.column_names
        modalities = tuple(name.removeprefix("present:") for name in names if name.startswith("present:"))

        def columns(prefix: str) -> npt.NDArray[Any]:
            found = [table.column(name).to_numpy() for name in names if name.startswith(prefix)]
            return np.stack(found, axis=1) if found else np.empty((table.num_rows, 0))

        labels = columns("label:")
        return Predictions(
            tuple(table.column("id").to_pylist()),
            columns("logit:").astype(np.float32),
            labels[:, 0] if labels.dtype.kind == "i" and labels.shape[1] == 1 else labels,
            columns("present:").astype(np.bool_),
            modalities,
            tuple(table.column("condition").to_pylist()) if "condition" in names else (),
        )
    except Exception as error:
        raise DataError(f"{path}: not a predictions file ({type(error).__name__}: {error}).") from error
