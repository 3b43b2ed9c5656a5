"""CMU-MOSEI in the feature file that MMSA publishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.datasets._mmsa import MmsaConfig


@dataclass
class CmuMoseiConfig(MmsaConfig):
    """Monologues on YouTube, English: what is heard, the face and the words of a segment."""

    summary: ClassVar[str] = "sentiment in monologues on YouTube: audio, face, words; MMSA's features (research only)"
    citation: ClassVar[str] = (
        "Zadeh et al., Multimodal language analysis in the wild: CMU-MOSEI dataset and interpretable "
        "dynamic fusion graph, ACL 2018; "
        "features: Mao et al., M-SENA: an integrated platform for multimodal sentiment analysis, ACL 2022 (demo)"
    )
    license: ClassVar[str] = "see the CMU Multimodal SDK; videos belong to their uploaders: research only"
    obtain: ClassVar[str] = (
        "take MOSEI's aligned_50.pkl from the links in github.com/thuiar/MMSA, "
        "then dataset.folder=DIR with aligned_50.pkl in it"
    )
    card: ClassVar[str] = "cards/cmu_mosei.md"

    name: ClassVar[str] = "cmu_mosei"
    strongest: ClassVar[float] = 3.0
