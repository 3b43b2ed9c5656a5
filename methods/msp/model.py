"""MSP for M modalities on any backbone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.method import MethodContext
from harness.methods.common.prompting import PromptedMethod
from harness.methods.msp.config import MspConfig
from harness.types import Batch, StepOutput

#: Names in the released baseline.
_PROMPTS = {"text": "text_prompt", "image": "img_prompt"}


class Msp(PromptedMethod):
    """MSP (ICASSP 2024); see `MspConfig` for the options and card.md for what is faithful.

    Args:
        config: Options.
        context: Data set, features, backbone factory.

    Attributes:
        prompts: `[M, blocks, T, d]`.
    """

    config: MspConfig

    def __init__(self, config: MspConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        count = len(self.modalities)
        # The token of ones is the one that MAP has where only this modality is missing (M = 2).
        self.prompts = nn.Parameter(self.initial_prompts(range(count, 0, -1)))

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss plus weighted orthogonality."""
        loss = task = self.task_loss(self._logits(batch), batch.labels)
        terms = {"task": task}
        if "orthogonality" in self.config.loss_terms():
            terms["orthogonality"] = orthogonality(self.prompts)
            loss = task + self.config.orthogonal_weight * terms["orthogonality"]
        return StepOutput(loss, terms)

    def official_state(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Stacks the two released prompts.

        With `compose=present` they change places: there the sum is over what is present, in the released baseline over
        what is missing, which for two modalities is the same under exchanged names.
        """
        if not all(name in theirs for name in _PROMPTS.values()):
            return theirs
        if sorted(self.modalities) != sorted(_PROMPTS):
            raise UsageError(
                f"the file's prompts are for text and image; this data set has {', '.join(self.modalities)}.  "
                "Use a data set whose modalities have these names."
            )
        names = self.modalities if self.config.compose == "missing" else self.modalities[::-1]
        state = {name: value for name, value in theirs.items() if name not in _PROMPTS.values()}
        return {**state, "prompts": torch.stack([theirs[_PROMPTS[name]] for name in names])}

    def _prompts(self, present: Tensor) -> Tensor:
        chosen = present
        if self.config.compose == "missing":
            chosen = ~present | present.all(1, keepdim=True)
        return torch.einsum("bm,mltd->bltd", chosen.to(self.prompts.dtype), self.prompts)


def orthogonality(prompts: Tensor) -> Tensor:
    """Mean over the pairs of modalities of the absolute cosine between their prompts `[M, ...]`, flattened."""
    flat = prompts.flatten(1)
    first, second = torch.triu_indices(len(flat), len(flat), offset=1, device=flat.device)
    norms = torch.linalg.vector_norm(flat, dim=1)
    products = (flat[first] * flat[second]).sum(1).abs()
    mean: Tensor = (products / (norms[first] * norms[second]).clamp(min=1e-8)).mean()
    return mean
