"""IEMOCAP, four emotions, in the feature files that MMIN published and IF-MMIN and RedCore use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.datasets._feature_files import shared_between_splits
from harness.datasets._mmin_layout import MminLayoutConfig
from harness.types import Split


@dataclass
class IemocapConfig(MminLayoutConfig):
    """Acted dialogues: what is heard, the face and the words of an utterance; ten folds by speaker."""

    summary: ClassVar[str] = "emotion of an utterance: audio, face, words; MMIN's features, 10 folds (EULA)"
    citation: ClassVar[str] = (
        "Busso et al., IEMOCAP: interactive emotional dyadic motion capture database, Language Resources and "
        "Evaluation 42, 2008; features: Zhao, Li and Jin, Missing Modality Imagination Network, ACL 2021"
    )
    license: ClassVar[str] = "EULA of USC SAIL: research only, no redistribution"
    obtain: ClassVar[str] = (
        "sign USC's IEMOCAP licence (sail.usc.edu/iemocap), take the features linked in github.com/AIM3-RUC/MMIN, "
        "then dataset.folder=DIR with A, V, L and target in it"
    )
    card: ClassVar[str] = "cards/iemocap.md"

    name: ClassVar[str] = "iemocap"
    folds: ClassVar[int] = 10
    audio: ClassVar[str] = "comparE"
    mean_std: ClassVar[str] = "A/comparE_mean_std.h5"
    one_hot: ClassVar[bool] = True
    classes: ClassVar[tuple[str, ...]] = ("happy", "angry", "sad", "neutral")
    primary_metric: ClassVar[str] = "uar"

    def _facts(self, ids: Mapping[Split, Sequence[str]]) -> dict[str, Any]:
        # `Ses01F_impro01_F000` is an utterance of the dialogue `Ses01F_impro01`.
        dialogues = {split: [sample.rpartition("_")[0] for sample in samples] for split, samples in ids.items()}
        return {"dialogues in two splits": shared_between_splits(dialogues)}
