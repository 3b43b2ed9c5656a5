"""REDEEM for M modalities on any backbone.

Steps of a forward pass (numbers as in card.md): 1 embed what is observed, 2 retrieve, 3-4 reconstruct what is missing,
5 reconstruction loss, 6 prompts, 7 transformer and head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.masking import ObservedDataset
from harness.method import Method, MethodContext
from harness.methods.common.heads import ClassificationHead
from harness.methods.redeem.config import RedeemConfig
from harness.methods.redeem.modules import (
    CrossModalAttention,
    ExpertGenerator,
    adaptive_pool,
    masked_mean,
)
from harness.retrieval import MemoryBank, Neighbours
from harness.types import Batch, StepOutput

#: Embedded modalities: name -> (tokens `[B, L, d]`, mask `[B, L]`).
Embedded = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Retrieved:
    """Neighbours of B samples, embedded.

    Attributes:
        items: Modality -> embedded tokens `[U, L, d]` and masks `[U, L]` of the U distinct items of the batch.
        index: Modality -> `[B, K]` positions in `items` (the same for all modalities when neighbours are pairs).
        found: Modality -> `[B, K]` bool.
        labels: `[B, K]` int64 or `[B, K, C]` float, of the label-giving neighbours; `label_found` `[B, K]`.
    """

    items: Embedded
    index: dict[str, Tensor]
    found: dict[str, Tensor]
    labels: Tensor
    label_found: Tensor

    def copies(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens `[b, K, L, d]`, masks and validity of one modality's copies for some samples."""
        tokens, mask = self.items[name]
        index = self.index[name][rows]
        return tokens[index], mask[index], self.found[name][rows]


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


class Redeem(Method):
    """REDEEM (KDD 2025); see `RedeemConfig` for the options and card.md for what is faithful.

    Args:
        config: Options.
        context: Data set, features, backbone factory.
    """

    config: RedeemConfig

    def __init__(self, config: RedeemConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.backbone = context.build_backbone()
        if config.prompt_layer >= self.backbone.num_blocks:
            raise UsageError(
                f"method.prompt_layer={config.prompt_layer} needs more than {self.backbone.num_blocks} backbone blocks."
            )
        width, outputs = self.backbone.hidden_size, self.task.num_outputs
        self.targets = tuple(name for name in self.modalities if not config.targets or name in config.targets)
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
        self._bank: MemoryBank | None = None
        self._valid: ObservedDataset | None = None

    def _prompters(self, width: int) -> dict[str, CrossModalAttention]:
        if self.config.prompt not in ("dynamic", "intra_modal"):
            return {}
        if self.config.prompt_attention == "mean_query":
            return {"shared": CrossModalAttention(width, output=True)}
        return {name: CrossModalAttention(width) for name in self.modalities}

    # -- preparation -------------------------------------------------------------------------------------------------

    def open_valid(self, valid: ObservedDataset) -> None:
        """Takes the validation split into the bank (`bank_splits=train_valid`)."""
        self._valid = valid

    def prepare(self, train: ObservedDataset) -> None:
        """Builds the memory bank of retrievable samples."""
        source = train.complete_view() if self.config.bank_missing == "full" else train
        extra = [self._valid] if self._valid is not None else []
        self._bank = MemoryBank.build(
            source, *extra, backend=self.context.retrieval.backend, exclude=self.config.exclude_self
        )

    def banks(self) -> Mapping[str, MemoryBank]:
        """The memory bank, for the audit."""
        return {} if self._bank is None else {"memory": self._bank}

    @property
    def bank(self) -> MemoryBank:
        """The bank that `prepare` built."""
        assert self._bank is not None, "prepare() has not run"
        return self._bank

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """One group with decay on everything as released, or the default groups."""
        if self.config.decay_all:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return [{"params": trained, "weight_decay": weight_decay}]
        return super().parameter_groups(weight_decay)

    def no_decay(self) -> Sequence[str]:
        """Prompts, label table and position tables are not decayed."""
        return ("static_prompt", "label_table", "position", "cls")

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
        retrieved, for_drop = self._retrieve(batch, drop)
        observed = self._pooled(embedded, batch.present)
        loss = observed.new_zeros(())
        if drop is not None and for_drop is not None:
            loss = self._simulated_loss(drop, embedded, for_drop)
        flagged = self._fill_missing(batch, embedded, observed, retrieved)
        if self.config.rec_loss == "flagged":
            loss = flagged
        hidden, mask = self.backbone.assemble(embedded)
        prompts, label_prompt = self._prompts(retrieved, len(batch))
        shift = sum(prompt.shape[1] for prompt in prompts)
        hidden = self.backbone.encode(
            hidden,
            None if self.config.attention_mask == "none" else mask,
            {self.config.prompt_layer: torch.cat(prompts, 1)} if prompts else None,
        )
        pooled = self.backbone.pool(hidden, shift if self.config.pool_token == "cls" else 0)
        if self.config.head == "label_table":
            assert label_prompt is not None
            features = self.head(torch.cat([pooled, label_prompt], -1))
            return features @ self.label_table.T, loss
        return self.head(pooled), loss

    def _embed(self, batch: Batch) -> Embedded:
        """Step 1: observed modalities embedded, absent ones zero and masked."""
        embedded: Embedded = {}
        for name in self.modalities:
            part = batch.inputs[name]
            shape = (len(batch), self.backbone.length(name))
            tokens = torch.zeros(*shape, self.backbone.hidden_size, device=batch.device)
            mask = torch.zeros(shape, dtype=torch.bool, device=batch.device)
            if len(part):
                values, real = self.backbone.embed(name, part.tokens, part.mask)
                tokens = tokens.to(values.dtype).index_copy(0, part.rows, values)
                mask = mask.index_copy(0, part.rows, real)
            embedded[name] = (tokens, mask)
        return embedded

    def _pooled(self, embedded: Embedded, present: Tensor) -> Tensor:
        """Mean over the observed modalities of their mean tokens, `[B, d]` (M = 2: the one that is left)."""
        means = []
        for name in self.modalities:
            tokens, mask = embedded[name]
            if self.config.retrieved_padding == "included":
                mask = mask.any(1, keepdim=True).expand_as(mask)
            means.append(masked_mean(tokens, mask))
        return masked_mean(torch.stack(means, 1), present)

    def _retrieve(self, batch: Batch, drop: Drop | None) -> tuple[Retrieved, Retrieved | None]:
        """Step 2: neighbours of every sample and of the simulated drops; each distinct item is embedded once."""
        queries = [batch] if drop is None else [batch, drop.batch]
        searched = [self._search(query) for query in queries]
        every = torch.cat([index[name].reshape(-1) for index, _ in searched for name in self.modalities])
        distinct, inverse = torch.unique(every.clamp(min=0), return_inverse=True)
        items = {
            name: self.backbone.embed(name, tokens, mask)
            for name, (tokens, mask) in self.bank.payload(distinct).items()
        }
        giver = self._label_giver()
        results, start = [], 0
        for query, (index, found) in zip(queries, searched, strict=True):
            local = {}
            for name in self.modalities:
                local[name] = inverse[start : start + index[name].numel()].view(len(query), -1)
                start += index[name].numel()
            results.append(Retrieved(items, local, found, self.bank.labels(index[giver]), found[giver]))
        return results[0], results[1] if drop is not None else None

    def _search(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Bank positions and validity `[B, K]` per modality."""
        seed = self.context.train_seed if self.config.neighbours == "random" else None
        joint = self.bank.neighbours(batch, self.config.k, random_seed=seed)
        index = dict.fromkeys(self.modalities, joint.index)
        found = dict.fromkeys(self.modalities, joint.found)
        if self.config.retrieval == "per_channel" and seed is None:
            # Complete queries search each modality by itself, so the copies are not pairs (released code).
            rows = batch.present.all(1).nonzero(as_tuple=True)[0]
            if len(rows):
                complete = batch.select(rows)
                for name in self.modalities:
                    own: Neighbours = self.bank.neighbours(complete, self.config.k, channel=name)
                    index[name] = index[name].index_copy(0, rows, own.index)
                    found[name] = found[name].index_copy(0, rows, own.found)
        return index, found

    def _label_giver(self) -> str:
        """The modality whose neighbours give labels: the image channel in released code, else the last one."""
        kinds = {modality.name: modality.kind for modality in self.context.dataset.modalities}
        return next((name for name in self.modalities if kinds[name] == "image"), self.modalities[-1])

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
        """Step 5: reconstructs the hidden modality of complete samples from what is left of them."""
        whole = {name: (tokens[drop.rows], mask[drop.rows]) for name, (tokens, mask) in embedded.items()}
        observed = self._pooled(whole, drop.batch.present)
        losses = []
        for column, name in enumerate(self.modalities):
            rows = drop.hidden[:, column].nonzero(as_tuple=True)[0]
            if not len(rows):
                continue
            rebuilt, known = self.generators[name](observed[rows], *retrieved.copies(name, rows))
            tokens, real = whole[name]
            losses.append(_token_error(rebuilt, tokens[rows].detach(), real[rows] & known))
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
            return _mean_over_found(per_item[index], found)
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
                mean = _mean_over_found(tokens, retrieved.found[other])
                copies[other] = (mean.unsqueeze(1).expand_as(tokens), mask.any(1, keepdim=True).expand_as(mask))
        else:
            prompter = self.prompters[name]
        flat = {other: (tokens.flatten(0, 1), mask.flatten(0, 1)) for other, (tokens, mask) in copies.items()}
        query, query_mask = self._query(flat, name)
        own_tokens, own_mask = items[name]
        flat_index = index.reshape(-1)
        attended = prompter(query, own_tokens[flat_index], own_mask[flat_index])
        pooled = adaptive_pool(attended, query_mask, self.config.prompt_length)
        return _mean_over_found(pooled.view(batch, k, self.config.prompt_length, -1), found)

    def _label_prompt(self, retrieved: Retrieved) -> Tensor:
        """Mean over the neighbours of their label rows; a multilabel neighbour gives the sum of its rows."""
        if retrieved.labels.dtype == torch.int64:
            rows = self.label_table[retrieved.labels]
        else:
            rows = retrieved.labels @ self.label_table
        return _mean_over_found(rows, retrieved.label_found)


def _mean_over_found(values: Tensor, found: Tensor) -> Tensor:
    """Mean over dimension 1 of `[B, K, ...]` where `found` `[B, K]`; zero where no neighbour was found."""
    weights = found.view(*found.shape, *(1,) * (values.ndim - 2)).to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def _token_error(rebuilt: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error per token and channel over the True tokens of `mask` `[n, L]`."""
    weights = mask.unsqueeze(-1).to(rebuilt.dtype)
    squared = ((rebuilt - target) ** 2 * weights).sum()
    return squared / (weights.sum() * rebuilt.shape[-1]).clamp(min=1.0)
