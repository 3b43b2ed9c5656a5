"""Inspectors that several methods share: networks over filled tokens, methods with a memory bank, imagination."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from harness.inspector import Consulted, Inspector
from harness.methods.common.filled import FilledFusion
from harness.methods.common.imagination import ImaginationMethod
from harness.methods.common.memory import Embedded, MemoryMethod, Retrieved
from harness.methods.common.pooling import masked_mean
from harness.methods.common.tokens import scatter_rows
from harness.types import Batch


class FilledInspector(Inspector):
    """Mean tokens of a network whose missing modalities are filled, in the space in which they are.

    Args:
        method: Whose filling is something else than zeros.
    """

    def __init__(self, method: FilledFusion) -> None:
        self._filled = method

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:
        """Mean over the tokens of the filling that are attended to."""
        found = {}
        for name, (tokens, mask) in self._filled.filling(batch).items():
            alike = mask.ndim == 1
            mean = _mean_token(tokens.unsqueeze(0), mask.unsqueeze(0)) if alike else _mean_token(tokens, mask)
            found[name] = mean.expand(len(batch), -1)
        return found

    def embedded(self, batch: Batch) -> Mapping[str, Tensor]:
        """Mean over the real tokens."""
        found = {}
        for name, part in batch.inputs.items():
            mean = _mean_token(*self._filled.fillable(name, part.tokens, part.mask))
            found[name] = scatter_rows(mean, part.rows, len(batch))
        return found


class MemoryInspector(Inspector):
    """Mean embedded tokens of a method that generates missing modalities from retrieved copies.

    Args:
        method: With a memory bank.
    """

    def __init__(self, method: MemoryMethod) -> None:
        self._memory = method

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:
        """Mean over the generated tokens."""
        embedded = self._memory._embed(batch)
        (retrieved,) = self._memory._retrieve(batch)
        self.fill(batch, embedded, retrieved)
        return self._means(embedded)

    def embedded(self, batch: Batch) -> Mapping[str, Tensor]:
        """Mean over the real tokens of the backbone's embedding."""
        return self._means(self._memory._embed(batch))

    def consulted(self, batch: Batch) -> Mapping[str, Consulted]:
        """The joint neighbours, with the generator's weights."""
        method = self._memory
        seed = method.context.train_seed if method.config.neighbours == "random" else None
        near = method.bank.neighbours(batch, max(method.config.k, method.label_k), random_seed=seed)
        (retrieved,) = method._retrieve(batch)
        k = method.config.k
        return {
            name: Consulted(method.bank.ids, near.index[:, :k], near.score[:, :k], weight)
            for name, weight in self.weights(batch, retrieved).items()
        }

    @abstractmethod
    def fill(self, batch: Batch, embedded: Embedded, retrieved: Retrieved) -> None:
        """Puts what is generated into `embedded`."""

    @abstractmethod
    def weights(self, batch: Batch, retrieved: Retrieved) -> Mapping[str, Tensor]:
        """Per generated modality the share `[B, K]` of each neighbour."""

    def _means(self, embedded: Embedded) -> dict[str, Tensor]:
        return {name: masked_mean(*embedded[name]) for name in self._memory.targets}


class ImaginationInspector(Inspector):
    """Imagined embeddings beside those of the frozen teacher, which imagination learned to meet.

    Args:
        method: In its main stage.
    """

    def __init__(self, method: ImaginationMethod) -> None:
        self._imagining = method

    def embedded(self, batch: Batch) -> Mapping[str, Tensor]:
        """The teacher's embeddings."""
        return self._named(self._imagining.taught(batch))

    def _named(self, joint: Tensor) -> dict[str, Tensor]:
        """Embeddings `[B, M, d]`, or `[B, M·d]`, by modality."""
        names = self._imagining.modalities
        return dict(zip(names, joint.reshape(len(joint), len(names), -1).unbind(1), strict=True))


def _mean_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True tokens `[b, L, ...]`, flat: `[b, D]`."""
    return masked_mean(tokens.flatten(2), mask)
