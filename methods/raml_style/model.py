"""RAML-style: unimodal tasks, a norm constraint, and fusion of clean and damaged features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.masking import ObservedDataset
from harness.method import Method, MethodContext, Stage, class_prior_logits
from harness.methods.common.consistency import prediction_divergence
from harness.methods.common.damage import Damage, Damaged
from harness.methods.common.pooling import masked_mean
from harness.methods.common.token_network import observed_loss
from harness.methods.common.tokens import scatter_rows
from harness.methods.raml_style.config import RamlStyleConfig
from harness.methods.raml_style.modules import Encoded, FusionTransformer, UnimodalEncoder, norm_penalty
from harness.types import Batch, StepOutput

FUSION = "fusion"
JOINT = "joint"


class RamlStyle(Method):
    """Our design after the three claims of RAML's abstract; not a reproduction.

    Args:
        config: Options.
        context: Data set and features.

    Attributes:
        encoders: Per modality.
        heads: Unimodal classifiers, per modality.
        fusion: None with `fusion=late`.
        repair: From fused tokens to clean features; None without a repair loss.
        damage: What happens to training samples of the damaged branch.
    """

    config: RamlStyleConfig
    prior: Tensor

    def __init__(self, config: RamlStyleConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        width, outputs = config.width, self.task.num_outputs
        encoders = {name: UnimodalEncoder(context.features[name], config) for name in self.modalities}
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict({name: nn.Linear(width, outputs) for name in self.modalities})
        self.fusion: FusionTransformer | None = None
        self.repair: nn.Linear | None = None
        if config.fusion == "transformer":
            lengths = {name: encoder.length for name, encoder in encoders.items()}
            self.fusion = FusionTransformer(lengths, outputs, config)
            if "repair" in config.damage_weights():
                self.repair = nn.Linear(width, width)
        self.damage = Damage(
            context.features, rate=config.damage_rate, drop_rate=config.drop_rate, max_severity=config.max_severity
        )
        self.register_buffer("prior", torch.zeros(outputs))

    # -- stages ------------------------------------------------------------------------------------------------------

    def stages(self) -> Sequence[Stage]:
        """One stage per modality (or a joint one), then fusion."""
        names = [JOINT] if self.config.unimodal == "joint" else [_unimodal(name) for name in self.modalities]
        first = [Stage(name, epochs=self.config.pretrain_epochs, lr=self.config.pretrain_lr) for name in names]
        return (*first, Stage(FUSION))

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """One modality's encoder and head, all of them (`joint`), or the fusion's parts."""
        prefixes = tuple(self._trained_parts())
        return ((name, value) for name, value in super().trained() if name.startswith(prefixes))

    def no_decay(self) -> Sequence[str]:
        """Learned tokens and embeddings are not decayed."""
        return ("cls", "absent", "modality", "position")

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; frozen encoders stay in eval mode."""
        super().train(mode)
        if self._frozen():
            self.encoders.eval()
        return self

    def prepare(self, train: ObservedDataset) -> None:
        """Measures the observed training values and the labels' base rates."""
        for name, encoder in self._encoders():
            encoder.scaler.fit(train, name)
        self.damage.fit(train)
        self.prior.copy_(class_prior_logits(self.task, torch.from_numpy(train.labels)))

    def _trained_parts(self) -> Iterable[str]:
        if self.stage == FUSION:
            yield from ("fusion.", "repair.") if self.config.fusion == "transformer" else ("heads.",)
            if self.config.encoders == "trained":
                yield "encoders."
            return
        for part in ("encoders.", "heads."):
            yield from (f"{part}{name}." for name in self.modalities if self.stage in (JOINT, _unimodal(name)))

    def _frozen(self) -> bool:
        return self.stage == FUSION and self.config.encoders == "frozen"

    def _encoders(self) -> list[tuple[str, UnimodalEncoder]]:
        return [(name, encoder) for name, encoder in self.encoders.items() if isinstance(encoder, UnimodalEncoder)]

    # -- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch) -> StepOutput:
        """Losses of the current stage; under `supervision=complete` training data are complete."""
        known = batch if batch.full is None else batch.full
        for name, encoder in self._encoders():
            if self.stage == _unimodal(name):
                part = known.inputs[name]
                encoded = encoder(part)
                loss = observed_loss(self.task, self._unimodal_logits(name, encoded), known.labels[part.rows])
                return self._output({"task": loss}, {name: encoded})
        encoded = self.encode(known)
        if self.stage == JOINT:
            return self._output({"task": self.task_loss(self._mean_logits(encoded, known), known.labels)}, encoded)
        return self._output(self._fusion_losses(known, encoded), {} if self._frozen() else encoded)

    def _output(self, terms: dict[str, Tensor], encoded: Mapping[str, Encoded]) -> StepOutput:
        """Weighted sum, with the norm's penalty on features that are being trained."""
        weights = {"task": 1.0, **self.config.damage_weights(), "norm": self.config.norm_weight}
        if self.config.norm == "soft" and encoded:
            terms["norm"] = torch.stack([norm_penalty(part) for part in encoded.values()]).mean()
        loss = torch.stack([weights[term] * value.float() for term, value in terms.items()]).sum()
        return StepOutput(loss, terms)

    def _fusion_losses(self, known: Batch, encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
        """Task loss of the clean branch; task, repair and consistency of the damaged one."""
        clean, _ = self._fuse(encoded, known)
        terms = {"task": self.task_loss(clean, known.labels)}
        used = self.config.damage_weights()
        if not used:
            return terms
        damaged: Damaged = self.damage(known)
        logits, outputs = self._fuse(self.encode(damaged.batch), damaged.batch)
        terms["damaged"] = self.task_loss(logits, known.labels)
        if "repair" in used:
            terms["repair"] = self.repair_loss(outputs, encoded, known, damaged)
        if "consistency" in used:
            terms["consistency"] = prediction_divergence(self.task, clean, logits)
        return terms

    def repair_loss(
        self, outputs: Mapping[str, Tensor], clean: Mapping[str, Encoded], known: Batch, damaged: Damaged
    ) -> Tensor:
        """One minus the cosine between repaired and clean features, averaged over damaged modalities.

        A corrupted modality is compared token by token, a dropped one by its mean.

        Args:
            outputs: Per modality, fusion outputs `[B, T, d]` of the damaged batch.
            clean: Clean features, which get no gradient.
            known: The batch before damage.
            damaged: What was done to it.
        """
        assert self.repair is not None, "method.repair_weight=0 builds no repair head"
        total = self.repair.weight.new_zeros((), dtype=torch.float32)
        for column, (name, part) in enumerate(clean.items()):
            rows = known.inputs[name].rows
            dropped, corrupted = damaged.dropped[rows, column], damaged.corrupted[rows, column]
            repaired = self.repair(outputs[name][rows]).float()
            target = part.tokens.detach().float()
            tokens = _distance(repaired, target) * part.mask
            per_token = tokens.sum(1) / part.mask.sum(1).clamp(min=1)
            whole = _distance(repaired[:, 0], masked_mean(target, part.mask))
            total = total + (per_token * corrupted).sum() + (whole * dropped).sum()
        return total / (damaged.dropped | damaged.corrupted).sum().clamp(min=1)

    # -- prediction --------------------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]` of the current stage; a unimodal one answers the prior where its modality is missing."""
        for name, encoder in self._encoders():
            if self.stage == _unimodal(name):
                part = batch.inputs[name]
                return scatter_rows(self._unimodal_logits(name, encoder(part)), part.rows, len(batch), self.prior)
        encoded = self.encode(batch)
        return self._mean_logits(encoded, batch) if self.stage == JOINT else self._fuse(encoded, batch)[0]

    def encode(self, batch: Batch) -> dict[str, Encoded]:
        """Features of every modality, without gradient where encoders are frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen()):
            return {name: encoder(batch.inputs[name]) for name, encoder in self._encoders()}

    def _fuse(self, encoded: Mapping[str, Encoded], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, C]`, and fusion outputs at the tokens where there is a transformer."""
        if self.fusion is None:
            return self._mean_logits(encoded, batch), {}
        logits, outputs = self.fusion(encoded, batch)
        return logits, outputs

    def _unimodal_logits(self, name: str, encoded: Encoded) -> Tensor:
        logits: Tensor = self.heads[name](masked_mean(encoded.tokens, encoded.mask))
        return logits

    def _mean_logits(self, encoded: Mapping[str, Encoded], batch: Batch) -> Tensor:
        """Mean over the present modalities of their logits."""
        total = torch.zeros(len(batch), self.task.num_outputs, device=batch.device)
        for name, part in encoded.items():
            logits = self._unimodal_logits(name, part).float()
            total = total + scatter_rows(logits, batch.inputs[name].rows, len(batch))
        return total / batch.present.sum(1, keepdim=True).clamp(min=1)


def _unimodal(name: str) -> str:
    """Name of a modality's own stage."""
    return f"unimodal:{name}"


def _distance(repaired: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine over the last dimension."""
    return 1.0 - F.cosine_similarity(repaired, target, dim=-1)
