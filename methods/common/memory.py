"""What methods with a memory bank share: the bank, embedded neighbours, label prompts (REDEEM, RAGPT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.masking import ObservedDataset
from harness.method import Method, MethodContext
from harness.methods.common.options import MemoryOptions
from harness.methods.common.pooling import mean_over_found
from harness.retrieval import MemoryBank, Neighbours
from harness.types import Batch

#: Embedded modalities: name -> (tokens `[B, L, d]`, mask `[B, L]`).
Embedded = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Retrieved:
    """Neighbours of B samples, embedded.

    Attributes:
        items: Modality -> embedded tokens `[U, L, d]` and masks `[U, L]` of the U distinct items of the batch.
        index: Modality -> `[B, K]` positions in `items` (the same for all modalities when neighbours are pairs).
        found: Modality -> `[B, K]` bool.
        labels: `[B, K']` int64 or `[B, K', C]` float, of the K' label-giving neighbours; `label_found` `[B, K']`.
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


class MemoryMethod(Method):
    """A method on a backbone that looks at the nearest complete training samples.

    Args:
        config: Options.
        context: Data set, features, backbone factory.

    Attributes:
        targets: Modalities that are generated where they are missing.
        label_k: Neighbours that give labels.
    """

    config: MemoryOptions
    label_table: nn.Parameter

    def __init__(self, config: MemoryOptions, context: MethodContext) -> None:
        super().__init__(config, context)
        self.backbone = context.build_backbone()
        if config.prompt_layer >= self.backbone.num_blocks:
            raise UsageError(
                f"method.prompt_layer={config.prompt_layer} needs more than {self.backbone.num_blocks} backbone blocks."
            )
        self.targets = tuple(name for name in self.modalities if not config.targets or name in config.targets)
        self.label_k = config.k
        self._bank: MemoryBank | None = None
        self._valid: ObservedDataset | None = None

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
            return [{"params": [parameter for _, parameter in self.trained()], "weight_decay": weight_decay}]
        return super().parameter_groups(weight_decay)

    def no_decay(self) -> Sequence[str]:
        """Prompts, label table and position tables are not decayed."""
        return ("static_prompt", "label_table", "position", "cls")

    # -- parts of a step ---------------------------------------------------------------------------------------------

    def _embed(self, batch: Batch) -> Embedded:
        """Observed modalities embedded, absent ones zero and masked."""
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

    def _retrieve(self, *queries: Batch) -> list[Retrieved]:
        """Neighbours of the samples of every query batch; each distinct item is embedded once."""
        giver, k = self._label_giver(), self.config.k
        searched = [self._search(query) for query in queries]
        labels = [
            (self.bank.labels(index[giver][:, : self.label_k]), found[giver][:, : self.label_k])
            for index, found in searched
        ]
        # Copies are those of the first K; further neighbours, if any, give labels only.
        near = [{name: index[name][:, :k] for name in self.modalities} for index, _ in searched]
        every = torch.cat([index[name].reshape(-1) for index in near for name in self.modalities])
        distinct, inverse = torch.unique(every.clamp(min=0), return_inverse=True)
        # What is remembered is fixed, as under the papers' frozen ViLT: on a backbone that is trained, gradients
        # through K copies per sample would pull the embedding towards the generator and the prompts.
        with torch.no_grad():
            items = {
                name: self.backbone.embed(name, tokens, mask)
                for name, (tokens, mask) in self.bank.payload(distinct).items()
            }
        results, start = [], 0
        for index, (_, found), (given, label_found) in zip(near, searched, labels, strict=True):
            local = {}
            for name in self.modalities:
                local[name] = inverse[start : start + index[name].numel()].view(len(found[name]), -1)
                start += index[name].numel()
            validity = {name: found[name][:, :k] for name in self.modalities}
            results.append(Retrieved(items, local, validity, given, label_found))
        return results

    def _search(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Bank positions and validity `[B, max(K, K')]` per modality."""
        count = max(self.config.k, self.label_k)
        seed = self.context.train_seed if self.config.neighbours == "random" else None
        joint = self.bank.neighbours(batch, count, random_seed=seed)
        index = dict.fromkeys(self.modalities, joint.index)
        found = dict.fromkeys(self.modalities, joint.found)
        if self.config.retrieval == "per_channel" and seed is None:
            # Complete queries search each modality by itself, so the copies are not pairs (released code).
            rows = batch.present.all(1).nonzero(as_tuple=True)[0]
            if len(rows):
                complete = batch.select(rows)
                for name in self.modalities:
                    own: Neighbours = self.bank.neighbours(complete, count, channel=name)
                    index[name] = index[name].index_copy(0, rows, own.index)
                    found[name] = found[name].index_copy(0, rows, own.found)
        return index, found

    def _label_giver(self) -> str:
        """The modality whose neighbours give labels: the image channel in released code, else the last one."""
        kinds = {modality.name: modality.kind for modality in self.context.dataset.modalities}
        return next((name for name in self.modalities if kinds[name] == "image"), self.modalities[-1])

    def _label_prompt(self, retrieved: Retrieved) -> Tensor:
        """Mean over the neighbours of their label rows; a multilabel neighbour gives the sum of its rows."""
        if retrieved.labels.dtype == torch.int64:
            rows = self.label_table[retrieved.labels]
        else:
            rows = retrieved.labels @ self.label_table
        return mean_over_found(rows, retrieved.label_found)
