"""Predictions per sample as a Parquet artefact, with the pattern each sample was shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.errors import DataError
from harness.files import atomic_write
from harness.types import Predictions


def save_predictions(predictions: Predictions, path: Path) -> None:
    """Writes one row per sample: id, pattern, present flags, label(s), logits; atomic."""
    import pandas as pd

    columns: dict[str, object] = {"id": list(predictions.ids), "pattern": predictions.patterns()}
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
    """Reads what `save_predictions` wrote.

    Raises:
        DataError: If the file is missing or not a predictions file.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
        names = [column for column in frame.columns if column.startswith("present:")]
        label_columns = [column for column in frame.columns if column.startswith("label:")]
        logit_columns = [column for column in frame.columns if column.startswith("logit:")]
        labels = frame[label_columns].to_numpy()
        return Predictions(
            tuple(frame["id"]),
            frame[logit_columns].to_numpy(dtype=np.float32),
            labels[:, 0] if labels.dtype.kind == "i" and labels.shape[1] == 1 else labels,
            frame[names].to_numpy(dtype=np.bool_),
            tuple(name.removeprefix("present:") for name in names),
        )
    except Exception as error:
        raise DataError(f"{path}: not a predictions file ({type(error).__name__}: {error}).") from error
