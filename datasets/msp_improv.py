"""MSP-IMPROV, four emotions, in the feature files of MMIN; audio is standardised with the training part alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.datasets._mmin_layout import MminLayoutConfig


@dataclass
class MspImprovConfig(MminLayoutConfig):
    """Improvised dialogues: what is heard, the face and the words of an utterance; twelve folds by speaker."""

    summary: ClassVar[str] = "emotion of an utterance: audio, face, words; MMIN's features, 12 folds (EULA)"
    citation: ClassVar[str] = (
        "Busso et al., MSP-IMPROV: an acted corpus of dyadic interactions to study emotion perception, IEEE "
        "Transactions on Affective Computing 8(1), 2017; features: Zhao, Li and Jin, Missing Modality Imagination "
        "Network, ACL 2021"
    )
    license: ClassVar[str] = "EULA of UT Dallas MSP lab: research only, no redistribution"
    obtain: ClassVar[str] = (
        "sign the MSP-IMPROV licence of UT Dallas, take the features linked in github.com/sunjunaimer/RedCore, "
        "then dataset.folder=DIR with A, V, L and target in it"
    )
    card: ClassVar[str] = "cards/msp_improv.md"

    name: ClassVar[str] = "msp_improv"
    folds: ClassVar[int] = 12
    audio: ClassVar[str] = "comparE_raw"
    one_hot: ClassVar[bool] = False
    classes: ClassVar[tuple[str, ...]] = ("class 0", "class 1", "class 2", "class 3")
