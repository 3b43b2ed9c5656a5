"""One network over all modalities, with a filler in the place of missing ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from harness.config import MethodConfig
from harness.masking import ObservedDataset
from harness.method import Method, MethodContext
from harness.methods.baselines.config import ModalityDropoutConfig
from harness.methods.baselines.network import NO_DECAY, TokenNetwork
from harness.methods.common.tokens import scatter_rows
from harness.types import Batch, ModalityBatch, StepOutput

_CHUNK = 256


class Filler(nn.Module):
    """What stands for one missing modality; zeros until something else is computed.

    Args:
        shape: `[L, ...]` of the tokens it replaces.

    Attributes:
        tokens: `[L, ...]`.
        mask: `[L]` bool, the positions that are attended to.
    """

    tokens: Tensor
    mask: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros(*shape))
        self.register_buffer("mask", torch.ones(shape[0], dtype=torch.bool))


class FilledFusion(Method):
    """Missing modalities are zero features that the network attends to (`zero_fill`, `complete`).

    A trained backbone is given filled features; a frozen one, whose inputs may be token ids or pixels, is given
    filled embeddings.

    Args:
        config: No options.
        context: Data set, features, backbone factory.
    """

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        backbone = context.build_backbone()
        self.network = TokenNetwork(backbone, self.task.num_outputs)
        self.fillers = nn.ModuleDict(
            {
                name: Filler(
                    (backbone.length(name), backbone.hidden_size)
                    if backbone.frozen
                    else (context.features[name].length, *context.features[name].token_shape)
                )
                for name in self.modalities
            }
        )

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss of the filled batch."""
        loss = self.task_loss(self._logits(batch), batch.labels)
        return StepOutput(loss, {"task": loss})

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`."""
        return self._logits(batch)

    def no_decay(self) -> Sequence[str]:
        """Position tables and `[CLS]` are not decayed."""
        return NO_DECAY

    def _logits(self, batch: Batch) -> Tensor:
        backbone = self.network.backbone
        embedded = {}
        for name, filler in self._fillers():
            part = batch.inputs[name]
            tokens, mask = self._fillable(name, part)
            tokens = scatter_rows(tokens, part.rows, len(batch), filler.tokens)
            mask = scatter_rows(mask, part.rows, len(batch), filler.mask)
            embedded[name] = (tokens, mask) if backbone.frozen else backbone.embed(name, tokens, mask)
        logits: Tensor = self.network(embedded)
        return logits

    def _fillers(self) -> list[tuple[str, Filler]]:
        return [(name, filler) for name, filler in self.fillers.items() if isinstance(filler, Filler)]

    def _fillable(self, name: str, part: ModalityBatch) -> tuple[Tensor, Tensor]:
        """Observed tokens and masks in the space in which missing ones are filled."""
        if self.network.backbone.frozen:
            return self.network.backbone.embed(name, part.tokens, part.mask)
        return part.tokens, part.mask


class MeanFilledFusion(FilledFusion):
    """Missing modalities are the mean of the observed training tokens, position by position (`mean_fill`)."""

    @torch.no_grad()
    def prepare(self, train: ObservedDataset) -> None:
        """Averages; a position that is padding in every training sample stays padding."""
        totals = {name: torch.zeros(filler.tokens.shape, dtype=torch.float64) for name, filler in self._fillers()}
        counts = {name: torch.zeros(filler.mask.shape, dtype=torch.float64) for name, filler in self._fillers()}
        for start in range(0, len(train), _CHUNK):
            batch = train.batch(np.arange(start, min(start + _CHUNK, len(train))))
            for name, filler in self._fillers():
                tokens, mask = self._fillable(name, batch.to(filler.tokens.device).inputs[name])
                weights = mask.reshape(*mask.shape, *(1,) * (tokens.ndim - 2)).double()
                totals[name] += (tokens.double() * weights).sum(0).cpu()
                counts[name] += mask.sum(0).cpu()
        for name, filler in self._fillers():
            count = counts[name].reshape(-1, *(1,) * (totals[name].ndim - 1))
            filler.tokens.copy_(totals[name] / count.clamp(min=1))
            # A modality that no training sample has is zeros that are attended to.
            filler.mask.copy_(counts[name] > 0 if counts[name].any() else torch.ones_like(filler.mask))


class DropoutFusion(FilledFusion):
    """Zero fill whose training also hides present modalities (`modality_dropout`)."""

    config: ModalityDropoutConfig

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss after a draw per sample and modality."""
        return super().training_step(batch.without(self._draw(batch.present)))

    def _draw(self, present: Tensor) -> Tensor:
        """`[B, M]` bool, what is dropped; one present modality of every sample is safe, each equally likely."""
        # Drawn on the CPU, so that the draw does not depend on the device.
        dropped = torch.rand(present.shape).to(present.device) < self.config.rate
        order = torch.rand(present.shape).to(present.device)
        safe = order.masked_fill(~present, -1.0).argmax(1, keepdim=True)
        emptied = (dropped | ~present).all(1, keepdim=True)
        return dropped & ~(emptied & torch.zeros_like(dropped).scatter(1, safe, True))
