"""MAP for M modalities on any backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.masking import ObservedDataset
from harness.method import MethodContext
from harness.methods.common.prompting import PromptedMethod
from harness.methods.common.simulation import draw_patterns
from harness.methods.map.config import MapConfig
from harness.types import Batch, StepOutput


class Map(PromptedMethod):
    """MAP (CVPR 2023); see `MapConfig` for the options and card.md for what is faithful.

    Patterns are numbered by what is missing: bit M-1-m stands for modality m, 0 is complete.

    Args:
        config: Options.
        context: Data set, features, backbone factory.

    Attributes:
        prompts: `[patterns, blocks, T, d]`.
        prompt_of: `[2^M]` int64, pattern number -> row of `prompts`.
    """

    config: MapConfig
    prompt_of: Tensor
    places: Tensor

    def __init__(self, config: MapConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        count = len(self.modalities)
        self.register_buffer("places", 2 ** torch.arange(count - 1, -1, -1), persistent=False)
        numbers = range(2**count - 1)  # the last one, everything missing, does not occur
        self.prompts = nn.Parameter(self.initial_prompts(numbers))
        self.register_buffer("prompt_of", torch.arange(2**count), persistent=False)

    def prepare(self, train: ObservedDataset) -> None:
        """Keeps the prompts of the patterns that training shows (`patterns=observed`)."""
        if self.config.patterns == "all":
            return
        seen = torch.unique(self._numbers(torch.from_numpy(train.present)))
        differing = (torch.arange(len(self.prompt_of))[:, None] ^ seen)[..., None] & self.places
        # Of equally near ones the smaller number wins; argmin alone leaves ties open.
        distance = (differing != 0).sum(-1) * len(self.prompt_of) + seen
        self.prompt_of = distance.argmin(1)
        self.prompts = nn.Parameter(self.prompts.detach()[seen])

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss, on simulated patterns if asked for."""
        if self.config.simulate_missing:
            batch = batch.without(~draw_patterns(batch.present, full=True))
        loss = self.task_loss(self._logits(batch), batch.labels)
        return StepOutput(loss, {"task": loss})

    def _prompts(self, present: Tensor) -> Tensor:
        return self.prompts[self.prompt_of[self._numbers(present)]]

    def _numbers(self, present: Tensor) -> Tensor:
        """Pattern numbers `[n]` of presence `[n, M]`."""
        return (~present * self.places).sum(1)
