"""What methods share that tell a transformer by learned prompts which inputs are there (MAP, MSP)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.method import Method, MethodContext
from harness.methods.common.heads import ClassificationHead
from harness.methods.common.options import PromptOptions
from harness.methods.common.tokens import scatter_rows
from harness.types import Batch


class Dummy(nn.Module):
    """What stands for one missing modality, before it is embedded.

    Args:
        backbone: Says what a value without content is.
        modality: Which modality.
        attended: Whether its tokens may be attended to at all.

    Attributes:
        tokens: `[1, L, ...]`.
        mask: `[1, L]` bool, its real tokens.
    """

    tokens: Tensor
    mask: Tensor

    def __init__(self, backbone: Backbone, modality: str, attended: bool) -> None:
        super().__init__()
        tokens, mask = backbone.dummy(modality)
        self.attended = attended
        self.register_buffer("tokens", tokens.unsqueeze(0), persistent=False)
        self.register_buffer("mask", mask.unsqueeze(0), persistent=False)


class PromptedMethod(Method):
    """Prompts for the first blocks of a backbone, dummies for missing inputs, a head on the pooled token.

    Args:
        config: Options.
        context: Data set, features, backbone factory.

    Attributes:
        blocks: Blocks that get prompts.
    """

    config: PromptOptions
    prompts: nn.Parameter

    def __init__(self, config: PromptOptions, context: MethodContext) -> None:
        super().__init__(config, context)
        self.backbone = context.build_backbone()
        self.blocks = min(config.prompt_blocks, self.backbone.num_blocks)
        self.dummies = nn.ModuleDict(
            {
                modality.name: Dummy(
                    self.backbone, modality.name, config.dummies == "attended" or modality.kind == "text"
                )
                for modality in context.dataset.modalities
            }
        )
        self.head = ClassificationHead(self.backbone.hidden_size, self.task.num_outputs)

    @abstractmethod
    def _prompts(self, present: Tensor) -> Tensor:
        """Prompts `[B, blocks, T, d]` for samples whose presence is `[B, M]`."""

    def initial_prompts(self, ones: Sequence[int]) -> Tensor:
        """Prompts `[n, blocks, T, d]` as MAP starts them: zeros, and ones at one token that tells them apart.

        Attention-level prompts have that token among the keys and among the values.

        Args:
            ones: Per prompt the number of that token, taken modulo what there is.
        """
        length, width = self.config.prompt_length, self.backbone.hidden_size
        spans = [0] if self.config.prompt_type == "input" else [0, length // 2]
        prompts = torch.zeros(len(ones), self.blocks, length, width)
        for number, token in enumerate(ones):
            for start in spans:
                prompts[number, :, start + token % (length // len(spans))] = 1.0
        return prompts

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`."""
        return self._logits(batch)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """One group with decay on everything (`decay=all`), or the default groups."""
        if self.config.decay == "all":
            return [{"params": [parameter for _, parameter in self.trained()], "weight_decay": weight_decay}]
        return super().parameter_groups(weight_decay)

    def no_decay(self) -> Sequence[str]:
        """Position tables, `[CLS]` and, unless `decay` says otherwise, prompts."""
        return ("position", "cls", *(("prompts",) if self.config.decay == "weights" else ()))

    def _logits(self, batch: Batch) -> Tensor:
        hidden, mask = self.backbone.assemble(self._embed(batch))
        prompts = self._prompts(batch.present).unbind(1)
        if self.config.prompt_type == "attention":
            prefixes = {}
            for index, prompt in enumerate(prompts):
                keys, values = prompt.chunk(2, 1)
                prefixes[index] = (keys, values)
            pooled = self.backbone.encode_pooled(hidden, mask, prefixes=prefixes)
        else:
            front = self.blocks * self.config.prompt_length
            pooled = self.backbone.encode_pooled(hidden, mask, front, dict(enumerate(prompts)))
        logits: Tensor = self.head(pooled)
        return logits

    def _embed(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Every modality embedded; the dummy is embedded once and stands in every sample that lacks the modality."""
        embedded = {}
        for name, dummy in self.dummies.items():
            assert isinstance(dummy, Dummy)
            part = batch.inputs[name]
            tokens, mask = self.backbone.embed(
                name,
                torch.cat([dummy.tokens.to(part.tokens.dtype), part.tokens]),
                torch.cat([dummy.mask, part.mask]),
            )
            shown = mask[0] & dummy.attended
            embedded[name] = (
                scatter_rows(tokens[1:], part.rows, len(batch), tokens[0]),
                scatter_rows(mask[1:], part.rows, len(batch), shown),
            )
        return embedded
