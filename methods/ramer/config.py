"""Options of RAMER; every row of its decision table that concerns the method is one of them (see card.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.config import MethodConfig
from harness.errors import UsageError
from harness.methods.common.official_names import classifier_names
from harness.methods.common.options import check_choices
from harness.plugin import check_range

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "encoder": ("mlp", "transformer"),
    "start_token": ("learned", "zero"),
    "simulation": ("any", "proper", "none"),
    "fill": ("retrieved", "train_mean"),
    "exclude": ("id", "first_hit"),
    "query": ("unit", "raw"),
    "aggregation": ("max_of_kth", "mean"),
    "weights": ("uniform", "softmax"),
    "fill_scale": ("unit", "unit_filled", "mean_norm", "none"),
}


@dataclass
class RamerConfig(MethodConfig):
    """RAMER: missing modalities are the hidden states of similar training samples.

    Attributes:
        preset: `clean`, `paper` (declared settings), or `official` (what the released code means to compute).
        width: Width d of a modality's hidden state.
        encoder: `mlp` (two layers on the pooled vector, linear head), or `transformer`: two layers over a start token
            and the pooled vector, projected to d, with a classifier of two normalised hidden layers (paper).
        start_token: Of `transformer`: start token and positions are `learned`, or stay `zero` (released code, whose
            optimiser never gets them).
        heads: Of `transformer`; where the input width is not a multiple of it, their greatest common divisor.
        standardize: Whether pooled features are brought to mean 0 and deviation 1 over the observed training values.
        encoder_dropout: Dropout of the encoders and of their heads.
        dropout: Dropout of the classifier.
        simulation: What the classifier is trained on: `any` non-empty part of a sample's known modalities, drawn
            anew each time, `proper` parts only (paper), or `none`: what the protocol shows.
        fill: `retrieved`, or `train_mean`: the mean of all stored hidden states (a control).
        k: Neighbours that are averaged.
        exclude: A query never finds its own `id` nor identical content; `first_hit` drops the best candidate
            instead, in every split (released code).
        query: `unit` norm, so that scores of two modalities compare, or `raw` (released code).
        aggregation: Several known modalities: `max_of_kth` takes the list whose last score is highest (paper), `mean`
            makes one list by their mean score.
        weights: Of the neighbours: `uniform`, or `softmax` of their scores over `temperature`.
        temperature: Of `softmax`.
        fill_scale: `unit`: known and filled hidden states get norm 1; `unit_filled`: filled ones only (released code);
            `mean_norm`: filled ones get the mean norm of the stored ones; `none`: all stay as they are.
        pretrain_epochs: Upper bound of passes of each stage that pretrains an encoder.
    """

    width: int = 256
    encoder: str = "mlp"
    start_token: str = "learned"
    heads: int = 8
    standardize: bool = True
    encoder_dropout: float = 0.5
    dropout: float = 0.5
    simulation: str = "any"
    fill: str = "retrieved"
    k: int = 5
    exclude: str = "id"
    query: str = "unit"
    aggregation: str = "max_of_kth"
    weights: str = "uniform"
    temperature: float = 0.1
    fill_scale: str = "unit"
    pretrain_epochs: int = 20

    target: ClassVar[str] = "harness.methods.ramer.model:Ramer"
    summary: ClassVar[str] = "missing modalities are hidden states retrieved from similar training samples (2024)"
    citation: ClassVar[str] = (
        "Fan, Yuan, Zuo, Liu and Gao, Leveraging Retrieval Augment Approach for Multimodal Emotion "
        "Recognition Under Missing Modalities, 2024, arXiv:2410.02804"
    )
    uses_backbone: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clean": {},
        "paper": {"encoder": "transformer", "standardize": False, "simulation": "proper"},
        "official": {
            "encoder": "transformer",
            "start_token": "zero",
            "standardize": False,
            "simulation": "proper",
            "exclude": "first_hit",
            "query": "raw",
            "fill_scale": "unit_filled",
        },
    }

    official_names: ClassVar[Mapping[str, str]] = {
        "encoders.audio.transformer": "netA",
        "encoders.video.transformer": "netV",
        "encoders.text.transformer": "netL",
        "encoders.audio.projection": "netlinearA",
        "encoders.video.projection": "netlinearV",
        "encoders.text.projection": "netlinearT",
        **classifier_names("unimodal_heads.audio", "netC1"),
        **classifier_names("unimodal_heads.video", "netC2"),
        **classifier_names("unimodal_heads.text", "netC3"),
        **classifier_names("classifier", "netC"),
    }

    def loss_terms(self) -> tuple[str, ...]:
        """Task loss of an encoder's own head in the first stages, of the classifier in the last."""
        return ("unimodal", "task")

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choices(self, _CHOICES)
        for option in ("heads", "k", "pretrain_epochs"):
            check_range("method", option, getattr(self, option), 1)
        check_range("method", "width", self.width, 2)
        for option in ("encoder_dropout", "dropout"):
            check_range("method", option, getattr(self, option), 0.0, 1.0)
        if self.temperature <= 0:
            raise UsageError(f"method.temperature={self.temperature} must be above 0.")
