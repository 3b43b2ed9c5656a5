"""One network over all modalities, with a filler in the place of missing ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from harness.config import MethodConfig
from harness.method import Method, MethodContext
from harness.methods.common.token_network import NO_DECAY, TokenNetwork
from harness.methods.common.tokens import scatter_rows
from harness.types import Batch, StepOutput


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
    """Missing modalities are fixed features, zeros by default, that the network attends to.

    A trained backbone is given filled features; a frozen one, whose inputs may be token ids or pixels, is given
    filled embeddings.

    Args:
        config: No options of its own.
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

    def filling(self, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:  # noqa: ARG002
        """What stands where a modality is missing.

        Returns:
            Per modality tokens and mask in the space of `fillable`, `[L, ...]` and `[L]` for everybody or
            `[B, L, ...]` and `[B, L]`; rows that have the modality are not looked at.
        """
        return {name: (filler.tokens, filler.mask) for name, filler in self.filler_modules()}

    def fillable(self, name: str, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Observed tokens and masks of one modality in the space in which missing ones are filled."""
        if self.network.backbone.frozen:
            return self.network.backbone.embed(name, tokens, mask)
        return tokens, mask

    def filler_modules(self) -> list[tuple[str, Filler]]:
        """The fillers by modality, in spec order."""
        return [(name, filler) for name, filler in self.fillers.items() if isinstance(filler, Filler)]

    def _logits(self, batch: Batch) -> Tensor:
        backbone = self.network.backbone
        embedded = {}
        for name, (filler_tokens, filler_mask) in self.filling(batch).items():
            part = batch.inputs[name]
            tokens, mask = self.fillable(name, part.tokens, part.mask)
            tokens = scatter_rows(tokens, part.rows, len(batch), filler_tokens)
            mask = scatter_rows(mask, part.rows, len(batch), filler_mask)
            embedded[name] = (tokens, mask) if backbone.frozen else backbone.embed(name, tokens, mask)
        logits: Tensor = self.network(embedded)
        return logits
