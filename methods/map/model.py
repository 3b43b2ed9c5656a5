"""MAP for M modalities on any backbone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.masking import ObservedDataset
from harness.method import MethodContext
from harness.methods.common.prompting import PromptedMethod
from harness.methods.common.simulation import draw_patterns
from harness.methods.map.config import MapConfig
from harness.types import Batch, StepOutput

#: Names of the prompts in RAGPT's baseline and in the original code.
_PROMPTS = "missing_aware_prompt"
_ORIGINAL_PROMPTS = ("missing_text_prompt", "missing_img_prompt", "complete_prompt")


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

    def official_state(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Puts prompts in the order of the pattern numbers.

        RAGPT's baseline has one tensor of two or three patterns, text missing before image missing, complete last.
        The original has a tensor per pattern; they are stacked under the baseline's name.
        """
        state = dict(theirs)
        if all(name in state for name in _ORIGINAL_PROMPTS):
            state[_PROMPTS] = torch.stack([state.pop(name) for name in _ORIGINAL_PROMPTS])
        rows = state.get(_PROMPTS)
        if rows is not None and len(rows) == len(self.prompts):
            state[_PROMPTS] = rows.flip(0) if len(rows) == 2 else rows[self._released_rows()]
        return state

    def _released_rows(self) -> Tensor:
        """Rows of the released prompts by pattern number: complete, and the two modalities missing."""
        released = ("text", "image")
        if sorted(self.modalities) != sorted(released):
            raise UsageError(
                f"the file's prompts are for text and image; this data set has {', '.join(self.modalities)}.  "
                "Use a data set whose modalities have these names."
            )
        return torch.tensor([2, *(released.index(name) for name in reversed(self.modalities))])

    def _prompts(self, present: Tensor) -> Tensor:
        return self.prompts[self.prompt_of[self._numbers(present)]]

    def _numbers(self, present: Tensor) -> Tensor:
        """Pattern numbers `[n]` of presence `[n, M]`."""
        return (~present * self.places).sum(1)
