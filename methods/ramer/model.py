"""RAMER: separately pretrained encoders, a database of their hidden states, a classifier on known and filled ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.masking import ObservedDataset
from harness.method import Method, MethodContext, Stage, class_prior_logits
from harness.methods.common.fc_classifier import FcClassifier
from harness.methods.common.moments import fit_standardizers, standardizers
from harness.methods.common.official_layout import AUDIO_VIDEO_TEXT, block_order, reorder_blocks
from harness.methods.common.simulation import draw_patterns
from harness.methods.common.tokens import scatter_rows
from harness.methods.ramer.config import RamerConfig
from harness.methods.ramer.database import Database
from harness.retrieval import KeyBank, Keys, content_digests
from harness.types import Batch, ModalityBatch, StepOutput

PRETRAIN = "pretrain:"
MAIN = "main"
_LAYERS = 2
_FEEDFORWARD = 2048
_CHUNK = 512


class Ramer(Method):
    """Retrieval-augmented recognition under missing modalities (arXiv 2410.02804).

    Args:
        config: Options.
        context: Data set, features, search backend.

    Attributes:
        scalers: Per modality, standardise pooled features; the identity before `prepare` and without `standardize`.
        encoders: Per modality, to its hidden state; frozen in the main stage.
        unimodal_heads: Per modality, used in its own stage only.
        classifier: On the hidden states of all modalities, known or filled.
        prior: Logits of the training labels' base rates, for samples that lack the modality of a pretraining stage.
        hidden: `[N, M, d]` hidden states of the training samples, filled when the main stage starts.
        stored: `[N, M]` bool, which of them exist.
        digest: `[N, M]` int64, hashes of the values that they come from.
    """

    config: RamerConfig
    prior: Tensor
    hidden: Tensor
    stored: Tensor
    digest: Tensor

    def __init__(self, config: RamerConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        outputs = self.task.num_outputs
        widths = {name: context.features[name].pooled_dim for name in self.modalities}
        self.scalers = standardizers(context.features, "pooled")
        self.encoders = nn.ModuleDict({name: _encoder(config, width) for name, width in widths.items()})
        self.unimodal_heads = nn.ModuleDict({name: _head(config, outputs) for name in self.modalities})
        self.classifier = FcClassifier(
            len(self.modalities) * config.width, outputs, hidden=_hidden_widths(config), dropout=config.dropout
        )
        self.register_buffer("prior", torch.zeros(outputs))
        self._train_ids: tuple[str, ...] = ()
        self._filled: Database | None = None
        # What is derived from the buffers is stale once they are loaded.
        self.register_load_state_dict_post_hook(Ramer._forget)  # type: ignore[no-untyped-call]

    # -- stages ------------------------------------------------------------------------------------------------------

    def stages(self) -> Sequence[Stage]:
        """One stage per encoder, each with a best epoch of its own, then the classifier."""
        epochs = self.config.pretrain_epochs
        return (*(Stage(PRETRAIN + name, epochs=epochs) for name in self.modalities), Stage(MAIN))

    def prepare(self, train: ObservedDataset) -> None:
        """Measures the training split and makes room for its hidden states."""
        if self.config.standardize:
            fit_standardizers(self.scalers, train)
        self.prior.copy_(class_prior_logits(self.task, torch.from_numpy(train.labels)))
        self._train_ids = train.ids
        shape, device = (len(train), len(self.modalities)), self.prior.device
        self.register_buffer("hidden", torch.zeros(*shape, self.config.width, device=device))
        self.register_buffer("stored", torch.zeros(shape, dtype=torch.bool, device=device))
        self.register_buffer("digest", torch.zeros(shape, dtype=torch.int64, device=device))

    def start_stage(self, stage: Stage, train: ObservedDataset) -> None:
        """Stores the hidden states of everything that training may see, before the main stage."""
        if stage.name != MAIN:
            return
        assert train.ids == self._train_ids, "the split that prepare() was given"
        known = train.complete_view() if train.supervision == "complete" else train
        training = self.training
        self.eval()
        for start in range(0, len(known), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(known)))
            keys = self.encode(known.batch(rows))
            self.hidden[rows], self.stored[rows], self.digest[rows] = keys.keys, keys.present, keys.digest
        self.train(training)
        self._forget()

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The classifier in the main stage, one encoder and its head in a stage before."""
        name = self.stage.removeprefix(PRETRAIN)
        parts = (f"encoders.{name}.", f"unimodal_heads.{name}.") if self.stage != MAIN else ("classifier.",)
        return ((name, value) for name, value in super().trained() if name.startswith(parts))

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; in the main stage the encoders stay in eval mode."""
        super().train(mode)
        if self.stage == MAIN:
            self.encoders.eval()
        return self

    def no_decay(self) -> Sequence[str]:
        """Start tokens and positions are not decayed."""
        return ("start", "positions")

    def official_state(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Reorders what reads joined hidden states: audio, video, text in the released code."""
        first = "netC.module.0.weight"
        if first not in theirs:
            return theirs
        order = block_order(AUDIO_VIDEO_TEXT, self.modalities)
        return {**theirs, first: reorder_blocks(theirs[first], 1, order, self.config.width)}

    # -- steps -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss of one encoder's head, or of the classifier; under `supervision=complete` on complete samples."""
        known = batch if batch.full is None else batch.full
        if self.stage != MAIN:
            loss = self._unimodal_loss(self.stage.removeprefix(PRETRAIN), known)
            return StepOutput(loss, {"unimodal": loss})
        if self.config.simulation == "none":
            shown = batch
        else:
            kept = draw_patterns(known.present, full=self.config.simulation == "any")
            shown = known.without(~kept)
        loss = self.task_loss(self.classifier(self.represent(shown).flatten(1))[0], batch.labels)
        return StepOutput(loss, {"task": loss})

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]` of the current stage; samples without the modality of a pretraining stage get the prior."""
        if self.stage == MAIN:
            logits: Tensor = self.classifier(self.represent(batch).flatten(1))[0]
            return logits
        part = batch.inputs[self.stage.removeprefix(PRETRAIN)]
        if not len(part):
            return self.prior.expand(len(batch), -1)
        return scatter_rows(
            self._unimodal_logits(self.stage.removeprefix(PRETRAIN), part), part.rows, len(batch), self.prior
        )

    # -- hidden states -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def represent(self, batch: Batch) -> Tensor:
        """Hidden states `[B, M, d]`: the sample's own where it has the modality, else retrieved ones."""
        keys = self.encode(batch)
        hidden = keys.keys.clone()
        for column in range(len(self.modalities)):
            rows = (~keys.present[:, column]).nonzero().squeeze(1)
            if len(rows):
                hidden[rows, column] = self.database.fill(column, keys.select(rows))
        return F.normalize(hidden, dim=2) if self.config.fill_scale == "unit" else hidden

    @torch.no_grad()
    def encode(self, batch: Batch) -> Keys:
        """A batch's own hidden states, zero where a modality is absent; in full precision, as they are searched by."""
        batch = batch.to(self.prior.device)
        hidden = torch.zeros(*batch.present.shape, self.config.width, device=batch.device)
        with torch.autocast(batch.device.type, enabled=False):
            for column, name in enumerate(self.modalities):
                part = batch.inputs[name]
                if len(part):
                    hidden[part.rows, column] = self._hidden_states(name, part)
        return Keys(batch.ids, hidden, batch.present, content_digests(batch))

    @property
    def database(self) -> Database:
        """What is retrieved from, derived from the stored hidden states."""
        if self._filled is None:
            items = Keys(self._train_ids, self.hidden, self.stored, self.digest)
            backend = self.context.retrieval.backend
            self._filled = Database(items, self.modalities, self.config, self.encode, backend)
        return self._filled

    def banks(self) -> Mapping[str, KeyBank]:
        """A bank per modality that can be retrieved, for the audit."""
        return self.database.banks

    def _forget(self, *_: Any) -> None:
        self._filled = None

    def _hidden_states(self, name: str, part: ModalityBatch) -> Tensor:
        hidden: Tensor = self.encoders[name](self.scalers[name](part.pooled))
        return hidden

    def _unimodal_logits(self, name: str, part: ModalityBatch) -> Tensor:
        found = self.unimodal_heads[name](self._hidden_states(name, part))
        logits: Tensor = found[0] if isinstance(found, tuple) else found
        return logits

    def _unimodal_loss(self, name: str, batch: Batch) -> Tensor:
        """Task loss over the samples that have the modality; zero, with the graph kept, when there are none."""
        part = batch.inputs[name]
        if not len(part):
            return torch.stack([parameter.sum() for _, parameter in self.trained()]).sum() * 0.0
        return self.task_loss(self._unimodal_logits(name, part), batch.labels[part.rows])


class StartTokenEncoder(nn.Module):
    """A Transformer over a start token and one vector; the start token's output, projected, is the hidden state.

    Args:
        width: Input width D, also the Transformer's.
        out_width: d.
        heads: Attention heads; the greatest common divisor with D is used.
        dropout: In every layer.
        learned: Whether start token and positions are parameters (both begin at zero), or absent.
    """

    def __init__(self, width: int, out_width: int, *, heads: int, dropout: float, learned: bool) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(width)) if learned else None
        self.positions = nn.Parameter(torch.zeros(2, width)) if learned else None
        layer = nn.TransformerEncoderLayer(
            width, math.gcd(heads, width), dim_feedforward=_FEEDFORWARD, dropout=dropout, batch_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.projection = nn.Linear(width, out_width)

    def forward(self, values: Tensor) -> Tensor:
        """Maps `[n, D]` to `[n, d]`."""
        start = torch.zeros_like(values) if self.start is None else self.start.expand_as(values)
        sequence = torch.stack([start, values], dim=1)
        if self.positions is not None:
            sequence = sequence + self.positions
        hidden: Tensor = self.projection(self.transformer(sequence)[:, 0])
        return hidden


def _encoder(config: RamerConfig, width: int) -> nn.Module:
    if config.encoder == "transformer":
        return StartTokenEncoder(
            width,
            config.width,
            heads=config.heads,
            dropout=config.encoder_dropout,
            learned=config.start_token == "learned",
        )
    return nn.Sequential(
        nn.Linear(width, config.width),
        nn.ReLU(),
        nn.Dropout(config.encoder_dropout),
        nn.Linear(config.width, config.width),
    )


def _head(config: RamerConfig, outputs: int) -> nn.Module:
    if config.encoder == "mlp":
        return nn.Linear(config.width, outputs)
    return FcClassifier(
        config.width, outputs, hidden=_hidden_widths(config), dropout=config.encoder_dropout, batch_norm=True
    )


def _hidden_widths(config: RamerConfig) -> tuple[int, int]:
    """256 and 128 at the published width."""
    return config.width, config.width // 2
