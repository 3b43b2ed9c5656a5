"""RedCore: variational codes, cross-modal decoders that predict each from the others, self-balancing weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from harness.masking import ObservedDataset
from harness.method import Method, MethodContext
from harness.methods.common.cra import CascadedResidualAutoencoder
from harness.methods.common.fc_classifier import FcClassifier
from harness.methods.common.initialization import kaiming_
from harness.methods.common.moments import fit_standardizers, standardized, standardizers
from harness.methods.common.official_layout import AUDIO_TEXT_VIDEO, block_order, reorder_blocks, reorder_cascade
from harness.methods.common.vib import GaussianCode, VariationalPooledEncoder, VariationalTokenEncoder
from harness.methods.redcore.balance import SelfBalance
from harness.methods.redcore.config import HEADS, RedCoreConfig
from harness.seeding import derive_seed
from harness.types import Batch, FeatureSpec, ModalityBatch, StepOutput

#: What the released decoders read, in their order.
_RELEASED_DECODERS = {
    "netxenc_vl2a": ("video", "text"),
    "netxenc_av2l": ("audio", "video"),
    "netxenc_al2v": ("audio", "text"),
}


@dataclass(frozen=True)
class Representation:
    """What a batch is classified from.

    Attributes:
        code: Gaussians `[B, M, d]`; of a missing modality, those of an all-zero input.
        sampled: `[B, M, d]`, one draw of each, or their means.
        predicted: `[B, M, d]`, every code as the other modalities' codes predict it.
        filled: `[B, M, d]`, `sampled` where the modality is present, else `predicted`.
    """

    code: GaussianCode
    sampled: Tensor
    predicted: Tensor
    filled: Tensor


class RedCore(Method):
    """Relative-advantage aware cross-modal representation learning (Sun et al., AAAI 2024).

    Args:
        config: Options.
        context: Data set and features.

    Attributes:
        scalers: Per modality, standardise features; the identity before `prepare` and without `standardize`.
        encoders: Per modality.
        decoders: Per modality, from the other modalities' codes.
        classifier: On the filled codes of all modalities.
        unimodal_classifiers: Per modality, on its filled code; empty with weight 0.
        balance: Weights of the reconstruction losses.
    """

    config: RedCoreConfig

    def __init__(self, config: RedCoreConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        width, count, outputs = config.width, len(self.modalities), self.task.num_outputs
        self.scalers = standardizers(context.features, "pooled" if config.encoder == "pooled" else "tokens")
        self.encoders = nn.ModuleDict({name: _encoder(config, context.features[name]) for name in self.modalities})
        self.decoders = nn.ModuleDict(
            {
                name: CascadedResidualAutoencoder(
                    (count - 1) * width, hidden=config.decoder_hidden, blocks=config.decoder_blocks, out_width=width
                )
                for name in self.modalities
            }
        )
        self.classifier = FcClassifier(count * width, outputs, hidden=(width, width), dropout=config.dropout)
        self.unimodal_classifiers = nn.ModuleDict(
            {
                name: FcClassifier(width, outputs, hidden=(width, width), dropout=config.dropout)
                for name in self.modalities
                if config.unimodal_weight > 0
            }
        )
        self.balance = SelfBalance(count, config)
        if config.initialization == "kaiming":
            kaiming_(self)

    def prepare(self, train: ObservedDataset) -> None:
        """Measures the observed training values."""
        if self.config.standardize:
            fit_standardizers(self.scalers, train)
        self.balance.epoch_size = len(train)

    def official_state(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Reorders what reads or writes joined codes: audio, text, video, or the two that a decoder's name has."""
        first, decoders = "netCls.module.0.weight", tuple(f"{name}." for name in _RELEASED_DECODERS)
        if first not in theirs and not any(name.startswith(decoders) for name in theirs):
            return theirs
        order, width = block_order(AUDIO_TEXT_VIDEO, self.modalities), self.config.width
        state = dict(theirs)
        if first in state:
            state[first] = reorder_blocks(state[first], 1, order, width)
        for decoder, sources in _RELEASED_DECODERS.items():
            here = [name for name in self.modalities if name in sources]
            state |= reorder_cascade(theirs, f"{decoder}.", block_order(sources, here), width)
        return state

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss, unimodal task losses, divergence of the codes, balanced reconstruction of present codes."""
        if self.config.mask_binding == "position":
            batch = self._dealt(batch)
        found = self.represent(batch, torch.randn(*batch.present.shape, self.config.width).to(batch.device))
        losses = self.reconstruction_losses(found, batch.present)
        beta = self.balance.update(losses, len(batch))
        terms = {
            "task": self.task_loss(self._logits(found), batch.labels),
            "kl": (found.code.divergence() * batch.present).sum() / len(batch),
            "reconstruction": (beta * losses).sum(),
        }
        if self.config.unimodal_weight > 0:
            unimodal = [
                self.task_loss(self.unimodal_classifiers[name](found.filled[:, column])[0], batch.labels)
                for column, name in enumerate(self.modalities)
            ]
            terms["unimodal"] = torch.stack(unimodal).sum()
        weights = self.config.loss_weights()
        loss = torch.stack([weight * terms[term] for term, weight in weights.items()]).sum()
        logged = {f"beta/{name}": value for name, value in zip(self.modalities, beta, strict=True)}
        return StepOutput(loss, {term: terms[term] for term in weights}, logged)

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]` of the joint classifier."""
        return self._logits(self.represent(batch, self._fixed_noise(batch) if self.config.eval_sample else None))

    def represent(self, batch: Batch, noise: Tensor | None) -> Representation:
        """Encodes a batch and fills in what is missing.

        Args:
            batch: Of B samples.
            noise: `[B, M, d]` standard normal, or None for the codes' means.
        """
        codes = [self.encoders[name](self._scaled(name, batch.inputs[name]), len(batch)) for name in self.modalities]
        code = GaussianCode(
            torch.stack([found.mean for found in codes], dim=1),
            torch.stack([found.log_variance for found in codes], dim=1),
        )
        sampled = code.mean if noise is None else code.sample(noise)
        columns = range(len(self.modalities))
        predicted = torch.stack(
            [
                self.decoders[name](sampled[:, [other for other in columns if other != column]].flatten(1))[0]
                for column, name in enumerate(self.modalities)
            ],
            dim=1,
        ).float()
        return Representation(code, sampled, predicted, torch.where(batch.present.unsqueeze(2), sampled, predicted))

    def reconstruction_losses(self, found: Representation, present: Tensor) -> Tensor:
        """Squared error of every modality's predicted code over the samples that have it: `[M]`, 0 without any.

        The gradient reaches the prediction and the code.
        """
        error = (found.predicted - found.sampled).square()
        error = error.sum(2) if self.config.reconstruction == "sum" else error.mean(2)
        return (error * present).sum(0) / present.sum(0).clamp(min=1)

    def _logits(self, found: Representation) -> Tensor:
        logits: Tensor = self.classifier(found.filled.flatten(1))[0]
        return logits

    def _scaled(self, name: str, part: ModalityBatch) -> ModalityBatch:
        return standardized(self.scalers, name, part)

    def _fixed_noise(self, batch: Batch) -> Tensor:
        """Noise that belongs to a sample's id, so that evaluation is repeatable and companions do not matter."""
        shape = (len(self.modalities), self.config.width)
        drawn = [
            np.random.default_rng(derive_seed(self.context.train_seed, "code", name)).standard_normal(shape)
            for name in batch.ids
        ]
        return torch.from_numpy(np.stack(drawn)).float().to(batch.device)

    def _dealt(self, batch: Batch) -> Batch:
        """The complete samples of a batch with the batch's masks in another order.

        A sample that would be left without a modality, where data are incomplete by nature, keeps its own mask.
        """
        assert batch.full is not None, "the runner asks for supervision=complete"
        kept = batch.present[torch.randperm(len(batch)).to(batch.device)]
        empty = ~(kept & batch.full.present).any(1, keepdim=True)
        return batch.full.without(~torch.where(empty, batch.present, kept))


def _encoder(config: RedCoreConfig, features: FeatureSpec) -> nn.Module:
    if config.encoder == "tokens":
        return VariationalTokenEncoder(features, config.width, heads=HEADS, masked=config.padding == "masked")
    return VariationalPooledEncoder(features, config.width)
