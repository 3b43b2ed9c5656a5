"""Wines of three growers: what a laboratory measured, in three modalities."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.dataset import DatasetConfig, check_table, grouped_split, table_fingerprint
from harness.errors import DependencyError
from harness.types import DatasetSpec, DataTable, ModalitySpec, TaskSpec

MODALITIES = {
    "chemistry": ("alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "proline"),
    "phenols": ("total_phenols", "flavanoids", "nonflavanoid_phenols", "proanthocyanins"),
    "colour": ("color_intensity", "hue", "od280/od315_of_diluted_wines"),
}


@dataclass
class WineConfig(DatasetConfig):
    """178 wines, 13 measurements in three modalities, the grower as class; carried by scikit-learn."""

    summary: ClassVar[str] = "178 Italian wines: chemistry, phenols, colour; which of three growers"
    citation: ClassVar[str] = "Aeberhard, Forina: Wine, UCI Machine Learning Repository, 1991, doi:10.24432/C5PC7J"
    license: ClassVar[str] = "CC-BY-4.0"
    obtain: ClassVar[str] = "pip install scikit-learn"
    card: ClassVar[str] = "wine.md"

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:
        """Reads the table that scikit-learn carries.

        Raises:
            DependencyError: If scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_wine
        except ImportError as error:
            raise DependencyError(f"data set wine needs scikit-learn; get it with: {self.obtain}") from error
        bunch: Any = load_wine()
        labels = np.asarray(bunch.target, dtype=np.int64)
        raw = np.asarray(bunch.data, dtype=np.float64)
        splits = grouped_split(np.arange(len(labels), dtype=np.int64), labels, f"wine-{self.version}")
        train = raw[splits["train"]]
        scaled = ((raw - train.mean(axis=0)) / train.std(axis=0)).astype(np.float32)
        column = list(bunch.feature_names).index
        ids = tuple(f"wine{row:03d}" for row in range(len(labels)))
        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name="wine",
                    version=self.version,
                    modalities=tuple(
                        ModalitySpec(name, "tabular", (len(fields),)) for name, fields in MODALITIES.items()
                    ),
                    task=TaskSpec("multiclass", 3, tuple(map(str, bunch.target_names)), "accuracy"),
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(ids, splits, labels, [row.tobytes() for row in raw]),
                ),
                ids=ids,
                splits=splits,
                labels=labels,
                available=np.ones((len(labels), len(MODALITIES)), dtype=np.bool_),
                values={
                    name: list(scaled[:, [column(field) for field in fields]]) for name, fields in MODALITIES.items()
                },
            )
        )
