"""Trained encoders that turn one modality's frozen features into a vector of width d (MMIN, ACL 2021).

Every encoder is called as `encoder(part)` on the n samples that have the modality, or as `encoder(part, batch_size)`
on the whole batch, where samples without it are encoded as an all-zero input: the papers' E_m(0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UsageError
from harness.methods.common.tokens import scatter_rows
from harness.types import Batch, FeatureSpec, ModalityBatch, ModalitySpec

#: Values of a method's encoder option: the pooled vector, or the papers' token encoders.
ENCODER_OPTIONS = ("pooled", "tokens")
_KERNEL_HEIGHTS = (3, 4, 5)
_CHANNELS = 128
_TEXT_DROPOUT = 0.5


class PooledEncoder(nn.Module):
    """Linear, ReLU, Dropout on the pooled vector.

    Args:
        features: Shape of the modality.
        width: d.
        dropout: Rate on the output.
    """

    def __init__(self, features: FeatureSpec, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features.pooled_dim, width), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, part: ModalityBatch, batch_size: int | None = None) -> Tensor:
        """`[n, d]`, or `[B, d]` with E_m(0) for the other samples."""
        pooled = part.pooled if batch_size is None else scatter_rows(part.pooled, part.rows, batch_size)
        encoded: Tensor = self.layers(pooled)
        return encoded


class LstmEncoder(nn.Module):
    """One unidirectional LSTM layer over the tokens, then the elementwise maximum over time.

    Args:
        features: Shape of the modality.
        width: d.
        masked: Whether padding is left out; else it is read as zero tokens, as the released code does.
    """

    def __init__(self, features: FeatureSpec, width: int, *, masked: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(token_width(features), width, batch_first=True)
        self.masked = masked

    def forward(self, part: ModalityBatch, batch_size: int | None = None) -> Tensor:
        """`[n, d]`, or `[B, d]` with E_m(0) for the other samples."""
        tokens, length = _sequences(part, batch_size, self.masked)
        if not len(tokens):
            return tokens.new_zeros(0, self.lstm.hidden_size)
        hidden, _ = self.lstm(tokens)
        step = torch.arange(tokens.shape[1], device=tokens.device)
        padded = (step >= length.unsqueeze(1)).unsqueeze(2)
        return cast(Tensor, hidden.masked_fill(padded, -torch.inf).amax(1))


class TextCnnEncoder(nn.Module):
    """Convolutions over 3, 4 and 5 tokens, maximum over time, Dropout, Linear, ReLU.

    A sequence shorter than a window is filled up with zero tokens.

    Args:
        features: Shape of the modality.
        width: d.
        masked: Whether windows that reach into padding are left out; else padding is read as zero tokens.
    """

    def __init__(self, features: FeatureSpec, width: int, *, masked: bool = True) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(1, _CHANNELS, (height, token_width(features))) for height in _KERNEL_HEIGHTS
        )
        self.dropout = nn.Dropout(_TEXT_DROPOUT)
        self.projection = nn.Sequential(nn.Linear(_CHANNELS * len(_KERNEL_HEIGHTS), width), nn.ReLU())
        self.masked = masked

    def forward(self, part: ModalityBatch, batch_size: int | None = None) -> Tensor:
        """`[n, d]`, or `[B, d]` with E_m(0) for the other samples."""
        tokens, length = _sequences(part, batch_size, self.masked)
        tokens = F.pad(tokens, (0, 0, 0, max(0, max(_KERNEL_HEIGHTS) - tokens.shape[1])))
        found = []
        for height, convolution in zip(_KERNEL_HEIGHTS, self.convolutions, strict=True):
            windows = F.relu(convolution(tokens.unsqueeze(1)).squeeze(3))
            start = torch.arange(windows.shape[2], device=tokens.device)
            beyond = (start > (length.unsqueeze(1) - height).clamp(min=0)).unsqueeze(1)
            # After ReLU zero is the smallest value, so it never wins against a real window.
            found.append(windows.masked_fill(beyond, 0.0).amax(2))
        encoded: Tensor = self.projection(self.dropout(torch.cat(found, dim=1)))
        return encoded


def modality_encoder(
    kind: str, features: FeatureSpec, width: int, dropout: float, *, masked: bool = True
) -> PooledEncoder | LstmEncoder | TextCnnEncoder:
    """Builds an encoder.

    Args:
        kind: `pooled`, `lstm` or `text_cnn`.
        features: Shape of the modality.
        width: d.
        dropout: Rate of `pooled`; the other two have none, or a fixed one, as published.
        masked: Whether the token encoders leave padding out.

    Raises:
        UsageError: If there is no such kind, or tokens are not vectors.
    """
    if kind == "pooled":
        return PooledEncoder(features, width, dropout)
    if kind == "lstm":
        return LstmEncoder(features, width, masked=masked)
    if kind == "text_cnn":
        return TextCnnEncoder(features, width, masked=masked)
    raise UsageError(f"modality encoder {kind!r} is not one of pooled, lstm, text_cnn.")


def encoder_kind(option: str, modality: ModalitySpec) -> str:
    """Kind of encoder that an option of `ENCODER_OPTIONS` means: the papers read text by TextCNN, the rest by LSTM.

    Text is also what comes as published features under the name `text` (IEMOCAP, CMU-MOSEI, …).
    """
    if option == "pooled":
        return "pooled"
    is_text = modality.kind == "text" or (modality.kind == "features" and modality.name == "text")
    return "text_cnn" if is_text else "lstm"


def encode_present(encoders: nn.ModuleDict, batch: Batch) -> Tensor:
    """Encodes every modality of a batch; an absent one is the encoding of an all-zero input.

    Args:
        encoders: Per modality, in spec order, one of this module's encoders.
        batch: Of B samples.

    Returns:
        `[B, M, d]`.
    """
    named: Mapping[str, nn.Module] = dict(encoders.items())
    return torch.stack([encoder(batch.inputs[name], len(batch)) for name, encoder in named.items()], dim=1)


def token_width(features: FeatureSpec) -> int:
    """Width of a modality's tokens; raises `UsageError` where they are no vectors."""
    if len(features.token_shape) != 1:
        raise UsageError(
            f"token encoders read vectors, this modality has tokens of shape {list(features.token_shape)}; "
            "use the pooled encoder, or a frozen encoder whose tokens are vectors."
        )
    return features.dim


def _sequences(part: ModalityBatch, batch_size: int | None, masked: bool) -> tuple[Tensor, Tensor]:
    """Tokens `[n or B, L, D]`, zero at padding, and how many of them `[n or B]` are read.

    With `masked` the real tokens come first; samples without the modality are L zero tokens that are all read.
    """
    tokens = part.tokens.masked_fill(~part.mask.unsqueeze(2), 0.0)
    full = tokens.shape[1]
    length = torch.full_like(part.rows, full)
    if masked:
        order = (~part.mask).long().argsort(dim=1, stable=True)
        tokens = tokens.gather(1, order.unsqueeze(2).expand_as(tokens))
        # A sequence of padding only is read as one zero token.
        length = part.mask.sum(1).clamp(min=1)
    if batch_size is not None:
        tokens = scatter_rows(tokens, part.rows, batch_size)
        length = scatter_rows(length, part.rows, batch_size, full)
    return tokens, length
