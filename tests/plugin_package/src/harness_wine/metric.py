"""A metric that looks at the class that fares worst."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.config import MetricConfig


@dataclass
class WorstClassRecall(MetricConfig):
    """Lowest recall over the classes that occur; NaN without samples."""

    target: ClassVar[str] = "harness_wine.metric:worst_class_recall"
    summary: ClassVar[str] = "lowest recall over the classes"
    citation: ClassVar[str] = "none: an example of a plugin"
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass")


def worst_class_recall(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """The metric for logits `[n, C]` and labels `[n]`."""
    right = logits.argmax(axis=1) == labels
    return float(min((right[labels == label].mean() for label in np.unique(labels)), default=np.nan))
