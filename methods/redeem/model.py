"""REDEEM for M modalities on any backbone.

Steps of a forward pass (numbers as in card.md): 1 embed what is observed, 2 retrieve, 3-4 reconstruct what is missing,
5 reconstruction loss, 6 prompts, 7 transformer and head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.method import MethodContext
from harness.methods.common.attention import CrossModalAttention
from harness.methods.common.heads import ClassificationHead
from harness.methods.common.memory import Embedded, MemoryMethod, Retrieved
from harness.methods.common.pooling import adaptive_pool, masked_mean, mean_over_found
from harness.methods.redeem.config import RedeemConfig
from harness.methods.redeem.modules import ExpertGenerator
from harness.types import Batch, StepOutput


@dataclass
class Drop:
    """Complete training samples with one modality hidden, for the reconstruction loss.

    Attributes:
        batch: The n samples as they look after the drop.
        rows: `[n]` their rows in the original batch.
        hidden: `[n, M]` bool, one True per row.
    """

    batch: Batch
    rows: Tensor
    hidden: Tensor


class Redeem(MemoryMethod):
    """REDEEM (KDD 2025); see `RedeemConfig` for the options and card.md for what is faithful.

    Args:
        config: Options.
        context: Data set, features, backbone factory.
    """

    config: RedeemConfig

    def __init__(self, config: RedeemConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        width, outputs = self.backbone.hidden_size, self.task.num_outputs
        masked = config.retrieved_padding == "masked"
        self.generators = nn.ModuleDict(
            {
                name: ExpertGenerator(width, config.k, config.router, masked)
                for name in (self.targets if config.generator == "experts" else ())
            }
        )
        self.prompters = nn.ModuleDict(self._prompters(width))
        if config.prompt == "static":
            self.static_prompt = nn.Parameter(0.02 * torch.randn(len(self.modalities) * config.prompt_length, width))
        if config.label_prompt:
            self.label_table = nn.Parameter(torch.randn(outputs, width))
        self.head: nn.Module
        if config.head == "label_table":
            self.head = ClassificationHead(2 * width, width, hidden_features=2 * width)
        elif config.head == "linear":
            self.head = nn.Linear(width, outputs)
        else:
            self.head = ClassificationHead(width, outputs)

    def _prompters(self, width: int) -> dict[str, CrossModalAttention]:
        if self.config.prompt not in ("dynamic", "intra_modal"):
            return {}
        if self.config.prompt_attention == "mean_query":
            return {"shared": CrossModalAttention(width, output=True)}
        return {name: CrossModalAttention(width) for name in self.modalities}

    # -- steps -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss plus weighted reconstruction loss (step 8)."""
        declared = "reconstruction" in self.config.loss_terms()
        drop = self._draw_drop(batch) if declared and self.config.rec_loss == "simulated" else None
        logits, rebuilt_loss = self._forward(batch, drop)
        terms = {"task": self.task_loss(logits, batch.labels)}
        loss = terms["task"]
        if declared:
            terms["reconstruction"] = rebuilt_loss
            loss = loss + self.config.rec_weight * rebuilt_loss
        return StepOutput(loss, terms)

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`."""
        return self._forward(batch, None)[0]

    def _forward(self, batch: Batch, drop: Drop | None) -> tuple[Tensor, Tensor]:
        """Logits `[B, C]` and, in training, the reconstruction loss."""
        embedded = self._embed(batch)
        retrieved, *rest = self._retrieve(batch, *([] if drop is None else [drop.batch]))
        observed = self._pooled(embedded, batch.present)
        loss = observed.new_zeros(())
        if drop is not None:
            loss = self._simulated_loss(drop, embedded, rest[0])
        flagged = self._fill_missing(batch, embedded, observed, retrieved)
        if self.config.rec_loss == "flagged":
            loss = flagged
        hidden, mask = self.backbone.assemble(embedded)
        prompts, label_prompt = self._prompts(retrieved, len(batch))
        shift = sum(prompt.shape[1] for prompt in prompts)
        pooled = self.backbone.encode_pooled(
            hidden,
            None if self.config.attention_mask == "none" else mask,
            shift if self.config.pool_token == "cls" else 0,
            {self.config.prompt_layer: torch.cat(prompts, 1)} if prompts else None,
        )
        if self.config.head == "label_table":
            assert label_prompt is not None
            features = self.head(torch.cat([pooled, label_prompt], -1))
            return features @ self.label_table.T, loss
        return self.head(pooled), loss

    def _pooled(self, embedded: Embedded, present: Tensor) -> Tensor:
        """Mean over the observed modalities of their mean tokens, `[B, d]` (M = 2: the one that is left)."""
        means = []
        for name in self.modalities:
            tokens, mask = embedded[name]
            if self.config.retrieved_padding == "included":
                mask = mask.any(1, keepdim=True).expand_as(mask)
            means.append(masked_mean(tokens, mask))
        return masked_mean(torch.stack(means, 1), present)

    def _fill_missing(self, batch: Batch, embedded: Embedded, observed: Tensor, retrieved: Retrieved) -> Tensor:
        """Steps 3-4: reconstructs absent modalities in place; returns the loss of `rec_loss=flagged`."""
        losses = []
        for column, name in enumerate(self.modalities):
            rows = (~batch.present[:, column]).nonzero(as_tuple=True)[0]
            if not len(rows) or name not in self.targets:
                continue
            tokens, mask = embedded[name]
            if self.config.generator == "padding":
                embedded[name] = (tokens, mask.index_fill(0, rows, True))
                continue
            rebuilt, known = self.generators[name](observed[rows], *retrieved.copies(name, rows))
            embedded[name] = (
                tokens.index_copy(0, rows, rebuilt.to(tokens.dtype)),
                mask.index_copy(0, rows, known),
            )
            if self.config.rec_loss == "flagged" and batch.full is not None:
                losses.append(self._flagged_loss(batch.full, name, rows, rebuilt, known))
        return torch.stack(losses).mean() if losses else observed.new_zeros(())

    def _flagged_loss(self, full: Batch, name: str, rows: Tensor, rebuilt: Tensor, known: Tensor) -> Tensor:
        """Squared error to the embedding of the true values that the protocol lets training see."""
        part = full.inputs[name]
        position = torch.full((len(full),), -1, device=rows.device)
        position[part.rows] = torch.arange(len(part), device=rows.device)
        available = position[rows] >= 0
        truth = position[rows[available]]
        with torch.no_grad():
            target, real = self.backbone.embed(name, part.tokens[truth], part.mask[truth])
        return _token_error(rebuilt[available], target, real & known[available])

    def _draw_drop(self, batch: Batch) -> Drop | None:
        """Chooses one modality to hide from each complete sample of the batch; None when there is no such sample."""
        rows = batch.present.all(1).nonzero(as_tuple=True)[0]
        if not len(rows):
            return None
        columns = torch.tensor([self.modalities.index(name) for name in self.targets], device=batch.device)
        draw = columns[torch.randint(len(columns), (len(rows),)).to(batch.device)]
        hidden = torch.nn.functional.one_hot(draw, len(self.modalities)).bool()
        return Drop(batch.select(rows).without(hidden), rows, hidden)

    def _simulated_loss(self, drop: Drop, embedded: Embedded, retrieved: Retrieved) -> Tensor:
        """Step 5: reconstructs the hidden modality of complete samples from what is left of them.

        The embedding is given, as in the paper: router and experts learn from this loss, nothing else.
        """
        whole = {name: (tokens[drop.rows].detach(), mask[drop.rows]) for name, (tokens, mask) in embedded.items()}
        observed = self._pooled(whole, drop.batch.present)
        losses = []
        for column, name in enumerate(self.modalities):
            rows = drop.hidden[:, column].nonzero(as_tuple=True)[0]
            if not len(rows):
                continue
            rebuilt, known = self.generators[name](observed[rows], *retrieved.copies(name, rows))
            tokens, real = whole[name]
            losses.append(_token_error(rebuilt, tokens[rows], real[rows] & known))
        return torch.stack(losses).mean()

    def _prompts(self, retrieved: Retrieved, batch_size: int) -> tuple[list[Tensor], Tensor | None]:
        """Step 6: prompt tokens `[B, p, d]` in sequence order, label prompt first, and the label prompt `[B, d]`."""
        prompts: list[Tensor] = []
        label_prompt = None
        if self.config.label_prompt:
            label_prompt = self._label_prompt(retrieved)
            prompts.append(label_prompt.unsqueeze(1))
        if self.config.prompt == "static":
            prompts.append(self.static_prompt.expand(batch_size, -1, -1))
        elif self.config.prompt != "none":
            prompts.extend(self._dynamic_prompt(name, retrieved) for name in self.modalities)
        return prompts, label_prompt

    def _query(self, items: Embedded, name: str) -> tuple[Tensor, Tensor]:
        """Query tokens for one modality's prompt: all other modalities, or its own (`intra_modal`)."""
        if self.config.prompt == "intra_modal":
            return items[name]
        others = [items[other] for other in self.modalities if other != name]
        return torch.cat([tokens for tokens, _ in others], 1), torch.cat([mask for _, mask in others], 1)

    def _dynamic_prompt(self, name: str, retrieved: Retrieved) -> Tensor:
        """Prompt `[B, b, d]` that tells how one modality looks from the others in the retrieved samples."""
        items = retrieved.items
        if self.config.retrieved_padding == "included":
            items = {key: (tokens, torch.ones_like(mask)) for key, (tokens, mask) in items.items()}
        index, found = retrieved.index[name], retrieved.found[name]
        if self.config.prompt_attention == "per_neighbour" and self.config.retrieval == "joint":
            # The attention of a pair depends on the pair alone: once per distinct item, then gathered.
            tokens, mask = items[name]
            query, query_mask = self._query(items, name)
            attended = self.prompters[name](query, tokens, mask)
            per_item = adaptive_pool(attended, query_mask, self.config.prompt_length)
            return mean_over_found(per_item[index], found)
        return self._per_sample_prompt(name, items, retrieved)

    def _per_sample_prompt(self, name: str, items: Embedded, retrieved: Retrieved) -> Tensor:
        """The general case: queries differ between samples (averaged over neighbours, or unpaired copies)."""
        index, found = retrieved.index[name], retrieved.found[name]
        batch, k = index.shape
        copies = {
            other: (tokens[retrieved.index[other]], mask[retrieved.index[other]])
            for other, (tokens, mask) in items.items()
        }
        if self.config.prompt_attention == "mean_query":
            prompter = self.prompters["shared"]
            for other, (tokens, mask) in copies.items():
                mean = mean_over_found(tokens, retrieved.found[other])
                copies[other] = (mean.unsqueeze(1).expand_as(tokens), mask.any(1, keepdim=True).expand_as(mask))
        else:
            prompter = self.prompters[name]
        flat = {other: (tokens.flatten(0, 1), mask.flatten(0, 1)) for other, (tokens, mask) in copies.items()}
        query, query_mask = self._query(flat, name)
        own_tokens, own_mask = items[name]
        flat_index = index.reshape(-1)
        attended = prompter(query, own_tokens[flat_index], own_mask[flat_index])
        pooled = adaptive_pool(attended, query_mask, self.config.prompt_length)
        return mean_over_found(pooled.view(batch, k, self.config.prompt_length, -1), found)


def _token_error(rebuilt: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error per token and channel over the True tokens of `mask` `[n, L]`."""
    weights = mask.unsqueeze(-1).to(rebuilt.dtype)
    squared = ((rebuilt - target) ** 2 * weights).sum()
    return squared / (weights.sum() * rebuilt.shape[-1]).clamp(min=1.0)
