"""Light configs of the baselines; one card each below `cards/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.config import MethodConfig
from harness.errors import UsageError
from harness.plugin import check_range


@dataclass
class MajorityConfig(MethodConfig):
    """Base rates of the observed training labels for every sample, whatever is present."""

    target: ClassVar[str] = "harness.methods.baselines.majority:Majority"
    summary: ClassVar[str] = "base rates of the training labels, reads no input"
    citation: ClassVar[str] = "none: the class prior is nobody's method"
    card: ClassVar[str] = "cards/majority.md"
    uses_backbone: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    def loss_terms(self) -> tuple[str, ...]:
        """None: nothing is trained."""
        return ()


@dataclass
class UnimodalConfig(MethodConfig):
    """A network on one modality; a sample without it gets the training prior.

    Attributes:
        modality: Name of the modality that is read; must be given.
    """

    modality: str = ""

    target: ClassVar[str] = "harness.methods.baselines.unimodal:Unimodal"
    summary: ClassVar[str] = "network on one modality (method.modality=NAME), the prior where it is missing"
    citation: ClassVar[str] = "none: the same backbone and head as the other methods, on one modality"
    card: ClassVar[str] = "cards/unimodal.md"

    @property
    def label(self) -> str:
        """The modality, so that each gets its own row."""
        return self.modality

    def validate_for(self, modalities: tuple[str, ...]) -> None:
        """Checks that `modality` names one of the data set's; raises `UsageError`."""
        if self.modality not in modalities:
            given = f"{self.modality!r} is not a modality of this data set" if self.modality else "is not set"
            raise UsageError(f"method.modality {given}; choose one of {', '.join(modalities)}.")


@dataclass
class ZeroFillConfig(MethodConfig):
    """One network over all modalities; missing ones are zero features, attended to like real ones."""

    target: ClassVar[str] = "harness.methods.baselines.fill:ZeroFilledFusion"
    summary: ClassVar[str] = "one network over all modalities, zeros where one is missing (the floor)"
    citation: ClassVar[str] = "none: padding with zeros is common practice; ablation 'padding' of REDEEM, KDD 2025"
    card: ClassVar[str] = "cards/zero_fill.md"
    reference: ClassVar[str | None] = "floor"


@dataclass
class MeanFillConfig(MethodConfig):
    """As `zero_fill`, with the mean of the observed training tokens, position by position, as filler."""

    target: ClassVar[str] = "harness.methods.baselines.fill:MeanFilledFusion"
    summary: ClassVar[str] = "one network over all modalities, the training mean where one is missing"
    citation: ClassVar[str] = "Little and Rubin, Statistical Analysis with Missing Data, Wiley 1987 (mean imputation)"
    card: ClassVar[str] = "cards/mean_fill.md"


@dataclass
class ModalityDropoutConfig(MethodConfig):
    """As `zero_fill`, but training also drops present modalities, always keeping one.

    Attributes:
        rate: Probability with which each present modality of a training sample is dropped.
    """

    rate: float = 0.3

    target: ClassVar[str] = "harness.methods.baselines.fill:DropoutFusion"
    summary: ClassVar[str] = "zero fill, and present modalities are dropped at random in training"
    citation: ClassVar[str] = (
        "Neverova, Wolf, Taylor and Nebout, ModDrop: adaptive multi-modal gesture recognition, TPAMI 2016"
    )
    card: ClassVar[str] = "cards/modality_dropout.md"

    def validate(self) -> None:
        """Checks the rate; raises `UsageError`."""
        check_range("method", "rate", self.rate, 0.0, 1.0)


@dataclass
class LateFusionConfig(MethodConfig):
    """One network per modality, each trained where its modality is present; their log-probabilities are averaged."""

    target: ClassVar[str] = "harness.methods.baselines.late_fusion:LateFusion"
    summary: ClassVar[str] = "one network per modality, log-probabilities averaged over the present ones"
    citation: ClassVar[str] = "Kittler, Hatef, Duin and Matas, On Combining Classifiers, TPAMI 1998 (product rule)"
    card: ClassVar[str] = "cards/late_fusion.md"


@dataclass
class KnnVoteConfig(MethodConfig):
    """Label vote of the most similar training samples, found as REDEEM finds them; nothing is trained.

    Attributes:
        k: Neighbours that vote.
        temperature: Weights are a softmax of similarity over this; small values listen to the nearest only.
        smoothing: Share of the training prior mixed into the vote, so that no class has probability zero.
        complete_only: Only complete training samples vote, as in REDEEM's bank; false lets incomplete ones vote too.
    """

    k: int = 5
    temperature: float = 0.1
    smoothing: float = 0.1
    complete_only: bool = True

    target: ClassVar[str] = "harness.methods.baselines.knn_vote:KnnVote"
    summary: ClassVar[str] = "label vote of the k most similar training samples, same retrieval as REDEEM"
    citation: ClassVar[str] = "Cover and Hart, Nearest Neighbor Pattern Classification, IEEE Trans. Inf. Theory 1967"
    card: ClassVar[str] = "cards/knn_vote.md"
    uses_backbone: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    def loss_terms(self) -> tuple[str, ...]:
        """None: nothing is trained."""
        return ()

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("method", "k", self.k, 1)
        check_range("method", "smoothing", self.smoothing, 0.0, 1.0)
        for option in ("temperature", "smoothing"):
            if getattr(self, option) <= 0:
                raise UsageError(f"method.{option}={getattr(self, option)} must be above 0.")


@dataclass
class CompleteConfig(MethodConfig):
    """The network of `zero_fill` with nothing missing, in training and at test: what full data would give."""

    target: ClassVar[str] = "harness.methods.baselines.fill:ZeroFilledFusion"
    summary: ClassVar[str] = "the network of zero_fill shown every modality (oracle, the ceiling)"
    citation: ClassVar[str] = "none: the same network with complete data"
    card: ClassVar[str] = "cards/complete.md"
    oracle: ClassVar[bool] = True
    reference: ClassVar[str | None] = "ceiling"
