"""Contract of backbones: a token-level multimodal transformer that prompt and token methods work on.

Position 0 of an assembled sequence is always the token that the pooler reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.config import BackboneConfig
from harness.errors import UsageError
from harness.types import FeatureSpec

#: Keys and values `[B, p, d]` that one block's tokens attend to besides themselves.
Prefix = tuple[Tensor, Tensor]


class Backbone(nn.Module, ABC):
    """Embeds each modality to tokens, joins them, and runs transformer blocks over the sequence.

    Args:
        config: Options of the backbone.
        features: Per modality, in spec order, the shape of the tokens it will embed.

    Attributes:
        hidden_size: Token width d.
        num_blocks: Number of transformer blocks.
        prefix_length: Tokens that `assemble` puts before the first modality (0 when `[CLS]` is a modality's own).
    """

    hidden_size: int
    num_blocks: int
    prefix_length: int = 0

    def __init__(self, config: BackboneConfig, features: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.config = config
        self.features = dict(features)
        self.modalities = tuple(features)

    @abstractmethod
    def length(self, modality: str) -> int:
        """Number of embedded tokens of one modality."""

    @abstractmethod
    def embed(self, modality: str, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds one modality, position and modality-type embeddings included.

        Args:
            modality: Name of the modality.
            tokens: `[n, L, *token_shape]` as in `ModalityBatch.tokens`.
            mask: `[n, L]` bool.

        Returns:
            `[n, length(modality), d]` and its `[n, length(modality)]` bool mask.
        """

    def dummy(self, modality: str) -> tuple[Tensor, Tensor]:
        """Tokens `[L, *token_shape]` and mask `[L]` of a value without content, as `embed` takes them.

        Zeros that are attended to, unless the backbone's own inputs have something that says "nothing".
        """
        spec = self.features[modality]
        return torch.zeros(spec.length, *spec.token_shape), torch.ones(spec.length, dtype=torch.bool)

    def prefix(self, batch_size: int) -> Tensor | None:  # noqa: ARG002
        """Learned tokens `[batch_size, prefix_length, d]` before all modalities, or None."""
        return None

    def assemble(self, embedded: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Joins all modalities in spec order, prefix first.

        Args:
            embedded: Per modality tokens `[B, l_m, d]` and mask `[B, l_m]`; absent ones masked False throughout.

        Returns:
            `[B, N, d]` and `[B, N]` bool.
        """
        parts = [embedded[name] for name in self.modalities if name in embedded]
        batch = parts[0][0].shape[0]
        tokens, masks = [part[0] for part in parts], [part[1] for part in parts]
        prefix = self.prefix(batch)
        if prefix is not None:
            tokens.insert(0, prefix)
            masks.insert(0, masks[0].new_ones(prefix.shape[:2]))
        return torch.cat(tokens, 1), torch.cat(masks, 1)

    @abstractmethod
    def block(self, index: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Runs block `index` on `[B, N, d]`; keys whose mask `[B, N]` is False are not attended to.

        A mask of None attends to everything.
        """

    def prefixed_block(self, index: int, hidden: Tensor, mask: Tensor | None, prefix: Prefix) -> Tensor:  # noqa: ARG002
        """As `block`, with further keys and values `[B, p, d]` in front of the projected ones.

        They are always visible, are not projected, and ask nothing themselves, so the sequence keeps its length.

        Raises:
            UsageError: If the backbone cannot do it.
        """
        raise UsageError(
            f"backbone {type(self).__name__} has no attention-level prompts; use input-level ones or another backbone."
        )

    def encode(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        prompts: Mapping[int, Tensor] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
    ) -> Tensor:
        """Runs all blocks and the final norm.

        Args:
            hidden: `[B, N, d]`.
            mask: `[B, N]` bool, or None to attend to everything.
            prompts: Block index -> tokens `[B, p, d]` put in front before that block; they stay to the end.
            prefixes: Block index -> keys and values of that block alone, see `prefixed_block`.

        Returns:
            `[B, N + sum of p, d]`; the pooled token of the input sits behind all prompts.  What stands at masked
            positions means nothing.
        """
        for index in range(self.num_blocks):
            if prompts and index in prompts:
                hidden, mask = self.with_prompt(hidden, mask, prompts[index])
            if prefixes and index in prefixes:
                hidden = self.prefixed_block(index, hidden, mask, prefixes[index])
            else:
                hidden = self.block(index, hidden, mask)
        return self.norm(hidden)

    def encode_pooled(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        index: int = 0,
        prompts: Mapping[int, Tensor] | None = None,
        prefixes: Mapping[int, Prefix] | None = None,
    ) -> Tensor:
        """`pool` of the token at `index` of what `encode` returns, `[B, d]`; a backbone may leave the others out."""
        return self.pool(self.encode(hidden, mask, prompts, prefixes), index)

    @staticmethod
    def with_prompt(hidden: Tensor, mask: Tensor | None, prompt: Tensor) -> tuple[Tensor, Tensor | None]:
        """Puts visible tokens `[B, p, d]` in front of a sequence."""
        if mask is not None:
            mask = torch.cat([mask.new_ones(prompt.shape[:2]), mask], 1)
        return torch.cat([prompt, hidden], 1), mask

    @abstractmethod
    def norm(self, hidden: Tensor) -> Tensor:
        """Final layer norm."""

    @abstractmethod
    def pool(self, hidden: Tensor, index: int = 0) -> Tensor:
        """Pooler (dense + tanh) on the token at `index`: `[B, d]`."""

    @property
    def frozen(self) -> bool:
        """Whether embeddings and blocks are kept fixed."""
        return False
