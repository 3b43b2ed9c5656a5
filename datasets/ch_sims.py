"""CH-SIMS in the feature file that MMSA publishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.datasets._mmsa import MmsaConfig


@dataclass
class ChSimsConfig(MmsaConfig):
    """Films and series, Chinese: what is heard, the face and the words of a segment.

    Attributes:
        file: Name of the feature file.
    """

    file: str = "unaligned_39.pkl"

    summary: ClassVar[str] = (
        "sentiment in Chinese films and series: audio, face, words; MMSA's features (research only)"
    )
    citation: ClassVar[str] = (
        "Yu et al., CH-SIMS: a Chinese multimodal sentiment analysis dataset with fine-grained annotation of "
        "modality, ACL 2020; "
        "features: Mao et al., M-SENA: an integrated platform for multimodal sentiment analysis, ACL 2022 (demo)"
    )
    license: ClassVar[str] = "not stated with the files; clips belong to their producers: research only"
    obtain: ClassVar[str] = (
        "take CH-SIMS's unaligned_39.pkl from the links in github.com/thuiar/MMSA, "
        "then dataset.folder=DIR with unaligned_39.pkl in it"
    )
    card: ClassVar[str] = "cards/ch_sims.md"

    name: ClassVar[str] = "ch_sims"
    strongest: ClassVar[float] = 1.0
