"""CMU-MOSI in the feature file that MMSA publishes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.datasets._mmsa import MmsaConfig


@dataclass
class CmuMosiConfig(MmsaConfig):
    """Opinions on films, English: what is heard, the face and the words of a segment."""

    summary: ClassVar[str] = "sentiment in film reviews on YouTube: audio, face, words; MMSA's features (research only)"
    citation: ClassVar[str] = (
        "Zadeh, Zellers, Pincus and Morency, MOSI: multimodal corpus of sentiment intensity, arXiv 1606.06259, 2016; "
        "features: Mao et al., M-SENA: an integrated platform for multimodal sentiment analysis, ACL 2022 (demo)"
    )
    license: ClassVar[str] = "see the CMU Multimodal SDK; videos belong to their uploaders: research only"
    obtain: ClassVar[str] = (
        "take MOSI's aligned_50.pkl from the links in github.com/thuiar/MMSA, "
        "then dataset.folder=DIR with aligned_50.pkl in it"
    )
    card: ClassVar[str] = "cards/cmu_mosi.md"

    name: ClassVar[str] = "cmu_mosi"
    strongest: ClassVar[float] = 3.0
