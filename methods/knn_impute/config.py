"""Options of nearest-neighbour imputation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.config import MethodConfig
from harness.errors import UsageError
from harness.plugin import check_choice, check_range


@dataclass
class KnnImputeConfig(MethodConfig):
    """The network of `zero_fill`; a missing modality is the mean of the most similar training samples' features.

    Attributes:
        k: Neighbours that are averaged.
        weights: `uniform`, or `similarity`: a softmax of the neighbours' similarity over `temperature`.
        temperature: Of `similarity`; small values listen to the nearest only.
    """

    k: int = 5
    weights: str = "uniform"
    temperature: float = 0.1

    target: ClassVar[str] = "harness.methods.knn_impute.model:KnnImpute"
    summary: ClassVar[str] = (
        "one network over all modalities, mean of the k nearest training samples where one is missing"
    )
    citation: ClassVar[str] = (
        "Troyanskaya et al., Missing value estimation methods for DNA microarrays, Bioinformatics 17(6), 2001 "
        "(KNNimpute)"
    )

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("method", "weights", self.weights, ("uniform", "similarity"))
        check_range("method", "k", self.k, 1)
        if self.temperature <= 0:
            raise UsageError(f"method.temperature={self.temperature} must be above 0.")
