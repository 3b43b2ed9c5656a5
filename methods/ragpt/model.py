"""RAGPT for M modalities on any backbone.

Steps of a forward pass (numbers as in card.md): 1 embed what is observed, 2 retrieve, 3 recover what is missing,
4 prompts, 5 transformer and head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.method import MethodContext
from harness.methods.common.heads import ClassificationHead
from harness.methods.common.memory import Embedded, MemoryMethod, Retrieved
from harness.methods.ragpt.config import RagptConfig
from harness.methods.ragpt.modules import ContextPrompter, FilterGenerator, MeanGenerator
from harness.types import Batch, StepOutput


class Ragpt(MemoryMethod):
    """RAGPT (AAAI 2025); see `RagptConfig` for the options and card.md for what is faithful.

    Args:
        config: Options.
        context: Data set, features, backbone factory.
    """

    config: RagptConfig

    def __init__(self, config: RagptConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.label_k = config.label_k or config.k
        width = self.backbone.hidden_size
        self.generators = nn.ModuleDict(self._generators(width))
        self.prompters = nn.ModuleDict(self._prompters(width))
        if config.prompt == "static":
            self.static_prompt = nn.Parameter(0.02 * torch.randn(len(self.modalities) * config.prompt_length, width))
        self.label_table = nn.Parameter(torch.randn(self.task.num_outputs, width))
        if config.head == "label_mlp":
            self.head = ClassificationHead(2 * width, width, hidden_features=2 * width)

    def _generators(self, width: int) -> dict[str, nn.Module]:
        masked = self.config.retrieved_padding == "masked"
        if self.config.generator == "filter":
            return {
                name: FilterGenerator(self.backbone.length(name), width, self.config.dropout, masked)
                for name in self.targets
            }
        return {name: MeanGenerator(masked) for name in self.targets} if self.config.generator == "mean" else {}

    def _prompters(self, width: int) -> dict[str, ContextPrompter]:
        if self.config.prompt != "dynamic":
            return {}
        names = self.modalities if self.config.cap == "per_modality" else ("shared",)
        alone = self.config.cap == "jan2025"
        return {name: ContextPrompter(width, self.config.prompt_length, alone) for name in names}

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss."""
        loss = self.task_loss(self._logits(batch), batch.labels)
        return StepOutput(loss, {"task": loss})

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`."""
        return self._logits(batch)

    def official_state(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Released filters are complex; here they are pairs of real numbers."""
        return {name: torch.view_as_real(value) if value.is_complex() else value for name, value in theirs.items()}

    def _logits(self, batch: Batch) -> Tensor:
        embedded = self._embed(batch)
        (retrieved,) = self._retrieve(batch)
        for name in self.targets:
            embedded[name] = self._recover(name, batch, embedded[name], retrieved)
        label_prompt = self._label_prompt(retrieved) if self.config.label_prompt else None
        prompts = [] if label_prompt is None else [label_prompt.unsqueeze(1)]
        prompts += self._prompts(embedded, retrieved, len(batch))
        hidden, mask = self.backbone.assemble(embedded)
        shift = sum(prompt.shape[1] for prompt in prompts)
        features = self.backbone.encode_pooled(
            hidden,
            None if self.config.attention_mask == "none" else mask,
            shift if self.config.pool_token == "cls" else 0,
            {self.config.prompt_layer: torch.cat(prompts, 1)} if prompts else None,
        )
        if self.config.head == "label_mlp":
            assert label_prompt is not None
            features = self.head(torch.cat([features, label_prompt], -1))
        return features @ self.label_table.T

    def _recover(
        self, name: str, batch: Batch, embedded: tuple[Tensor, Tensor], retrieved: Retrieved
    ) -> tuple[Tensor, Tensor]:
        """Step 3: tokens and mask of one modality after what is missing was put in."""
        tokens, mask = embedded
        missing = ~batch.present[:, self.modalities.index(name)]
        rows = missing.nonzero(as_tuple=True)[0]
        if self.config.recovered_sign == "bitwise":
            everyone = torch.arange(len(batch), device=rows.device)
            recovered, known = self.generators[name](*retrieved.copies(name, everyone))
            # The complement of an integer flag: ~0 = -1 for what is missing, ~1 = -2 for what is present.
            factor = torch.where(missing, -1.0, -2.0).to(recovered.dtype)
            return tokens + factor[:, None, None] * recovered, torch.where(missing[:, None], known, mask)
        if not len(rows):
            return tokens, mask
        if self.config.generator == "padding":
            return tokens, mask.index_fill(0, rows, True)
        recovered, known = self.generators[name](*retrieved.copies(name, rows))
        return tokens.index_copy(0, rows, recovered.to(tokens.dtype)), mask.index_copy(0, rows, known)

    def _prompts(self, embedded: Embedded, retrieved: Retrieved, batch_size: int) -> list[Tensor]:
        """Step 4: prompts `[B, l, d]` of every modality."""
        if self.config.prompt == "static":
            return [self.static_prompt.expand(batch_size, -1, -1)]
        return [self._dynamic_prompt(name, embedded[name], retrieved) for name in self.modalities if self.prompters]

    def _dynamic_prompt(self, name: str, embedded: tuple[Tensor, Tensor], retrieved: Retrieved) -> Tensor:
        prompter = self.prompters[name if self.config.cap == "per_modality" else "shared"]
        assert isinstance(prompter, ContextPrompter)
        tokens, mask = embedded
        copies, real, found = retrieved.copies(name, torch.arange(len(tokens), device=tokens.device))
        if self.config.retrieved_padding == "included":
            mask, real = torch.ones_like(mask), torch.ones_like(real)
        return prompter.prompt(tokens, mask, copies, real, found)
