"""Options of imputation by a denoising autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.config import MethodConfig
from harness.plugin import check_range


@dataclass
class AutoencoderImputeConfig(MethodConfig):
    """A cascaded residual autoencoder imputes missing pooled features, then a classifier is trained on them.

    Attributes:
        blocks: Residual blocks K of the autoencoder; 1 is a plain one with a two-layer map behind it.
        width: Hidden width of the classifier's two layers.
        dropout: Dropout of the classifier.
        impute_epochs: Upper bound of passes of the stage that trains the autoencoder.
    """

    blocks: int = 5
    width: int = 128
    dropout: float = 0.5
    impute_epochs: int = 20

    target: ClassVar[str] = "harness.methods.autoencoder_impute.model:AutoencoderImpute"
    summary: ClassVar[str] = "a denoising autoencoder imputes pooled features, a classifier reads them (two stages)"
    citation: ClassVar[str] = (
        "Tran, Liu, Zhou and Jin, Missing Modalities Imputation via Cascaded Residual Autoencoder, CVPR 2017"
    )
    uses_backbone: ClassVar[bool] = False

    def loss_terms(self) -> tuple[str, ...]:
        """Task loss in both stages, reconstruction in the first."""
        return ("task", "reconstruction")

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        for option in ("blocks", "width", "impute_epochs"):
            check_range("method", option, getattr(self, option), 1)
        check_range("method", "dropout", self.dropout, 0.0, 1.0)
