"""One network over all modalities; missing ones are averages over similar training samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from harness.masking import ObservedDataset
from harness.method import MethodContext
from harness.methods.common.filled import FilledFusion
from harness.methods.knn_impute.config import KnnImputeConfig
from harness.retrieval import MemoryBank, Neighbours
from harness.types import Batch


class KnnImpute(FilledFusion):
    """Missing modalities are the mean of the neighbours' features, token by token (KNNimpute, on frozen features).

    Args:
        config: Neighbours and their weights.
        context: Data set, features, backbone factory, search backend.
    """

    config: KnnImputeConfig

    def __init__(self, config: KnnImputeConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self._banks: dict[str, MemoryBank] = {}

    def prepare(self, train: ObservedDataset) -> None:
        """Builds a bank per modality: the training samples that have it and something to be found by."""
        for column, name in enumerate(self.modalities):
            donors = np.flatnonzero(train.present[:, column] & (train.present.sum(axis=1) > 1))
            if len(donors):
                self._banks[name] = MemoryBank.build(
                    train.subset(donors), complete_only=False, backend=self.context.retrieval.backend
                )

    def banks(self) -> Mapping[str, MemoryBank]:
        """A bank per modality that can be imputed, for the audit."""
        return self._banks

    def filling(self, batch: Batch) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Imputed tokens `[B, L, ...]` and masks `[B, L]` of samples that lack a modality; zeros for the rest."""
        return {name: self._imputed(name, batch) for name in self.modalities}

    def _imputed(self, name: str, batch: Batch) -> tuple[Tensor, Tensor]:
        filler = self.fillers.get_submodule(name)
        tokens, mask = filler.get_buffer("tokens"), filler.get_buffer("mask")
        rows = (~batch.present[:, self.modalities.index(name)]).nonzero().squeeze(1)
        bank = self._banks.get(name)
        if bank is None or not len(rows):
            return tokens, mask
        near = self._neighbours(bank, batch.select(rows))
        mean, read = self._average(name, bank, near)
        # Without a neighbour a sample keeps the filler's zeros, which are attended to.
        lonely = ~near.found.any(1)
        read = torch.where(lonely.unsqueeze(1), mask, read)
        filled = tokens.to(mean.dtype).expand(len(batch), *tokens.shape).index_copy(0, rows, mean)
        return filled, mask.expand(len(batch), *mask.shape).index_copy(0, rows, read)

    def _neighbours(self, bank: MemoryBank, queries: Batch) -> Neighbours:
        """Nearest donors by the sum of cosines over the modalities that a query and a donor share, at least one."""
        near = bank.neighbours(queries, self.config.k)
        carried = torch.from_numpy(bank.present).to(near.index.device)[near.index.clamp(min=0)]
        shared = (carried & queries.present.unsqueeze(1)).any(2)
        return Neighbours(near.index, near.score, near.found & shared)

    def _average(self, name: str, bank: MemoryBank, near: Neighbours) -> tuple[Tensor, Tensor]:
        """Weighted means `[b, L, ...]` over the neighbours whose token is not padding, and where there is one."""
        tokens, mask = bank.payload(near.index.clamp(min=0), [name])[name]
        flat, flat_mask = self.fillable(name, tokens.flatten(0, 1), mask.flatten(0, 1))
        tokens = flat.reshape(*near.index.shape, *flat.shape[1:])
        mask = flat_mask.reshape(*near.index.shape, *flat_mask.shape[1:])
        mask = mask & near.found.unsqueeze(2)
        scores = near.score / self.config.temperature if self.config.weights == "similarity" else near.score * 0.0
        weights = scores.masked_fill(~near.found, -torch.inf).softmax(1).nan_to_num(0.0).unsqueeze(2) * mask
        weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        weights = weights.reshape(*weights.shape, *(1,) * (tokens.ndim - 3)).to(tokens.dtype)
        return (tokens * weights).sum(1), mask.any(1)
