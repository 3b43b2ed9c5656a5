"""Options that MMIN and IF-MMIN share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.config import MethodConfig
from harness.plugin import check_choice, check_range


@dataclass
class ImaginationConfig(MethodConfig):
    """Imagination of missing modalities by a cascaded residual autoencoder, after pretrained encoders.

    Attributes:
        width: Embedding width d of every modality.
        encoder: `pooled` (one layer on the pooled vector), or `tokens`: TextCNN for text, LSTM for the rest (paper).
        standardize: Whether features are brought to mean 0 and deviation 1 over the observed training values, so that a
            missing modality's zero input is its mean and no modality rules the squared errors by its scale.
        padding: Of `tokens`: `masked` leaves padding out, `included` reads it as zero tokens (released code).
        encoder_dropout: Dropout of the `pooled` encoder.
        pretrain_dropout: Dropout of the pretraining classifier.
        dropout: Dropout of the classifier.
        blocks: Residual blocks K of the imagination module.
        initialization: `torch` (the library's), or `kaiming` (released code): the cascade then multiplies the scale of
            its input by 40 to 100, and the first steps do nothing but bring it down.
        targets: `missing`: losses on embeddings that the simulation dropped; `all`: also the constant of a zero input
            in the place of kept ones, on complete training data (released code, needs `supervision=complete`).
        full_pattern: Whether the simulation may keep all observed modalities.
        pretrain_epochs: Upper bound of passes of the stage that pretrains the encoders.
        task_weight: Weight of the task loss in the main stage.
        imagination_weight: Weight of the imagined embeddings' squared error.
    """

    width: int = 256
    encoder: str = "pooled"
    standardize: bool = True
    padding: str = "masked"
    encoder_dropout: float = 0.3
    pretrain_dropout: float = 0.3
    dropout: float = 0.5
    blocks: int = 5
    initialization: str = "torch"
    targets: str = "missing"
    full_pattern: bool = True
    pretrain_epochs: int = 20
    task_weight: float = 1.0
    imagination_weight: float = 1.0

    uses_backbone: ClassVar[bool] = False

    def main_weights(self) -> dict[str, float]:
        """Weight of every loss term of the main stage."""
        return {"task": self.task_weight, "imagination": self.imagination_weight}

    def loss_terms(self) -> tuple[str, ...]:
        """Terms with a weight above zero; the task loss is also that of pretraining."""
        return ("task", *(term for term, weight in self.main_weights().items() if weight > 0 and term != "task"))

    def needs_complete_supervision(self) -> bool:
        """Whether targets are those of complete training data."""
        return self.targets == "all"

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("method", "encoder", self.encoder, ("pooled", "tokens"))
        check_choice("method", "padding", self.padding, ("masked", "included"))
        check_choice("method", "initialization", self.initialization, ("torch", "kaiming"))
        check_choice("method", "targets", self.targets, ("missing", "all"))
        for option in ("width", "blocks", "pretrain_epochs"):
            check_range("method", option, getattr(self, option), 1)
        for option in ("encoder_dropout", "pretrain_dropout", "dropout"):
            check_range("method", option, getattr(self, option), 0.0, 1.0)
        for option in ("task_weight", "imagination_weight"):
            check_range("method", option, getattr(self, option), 0.0)
