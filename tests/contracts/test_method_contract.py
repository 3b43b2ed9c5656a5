"""The method contract itself: a sound method passes, and each kind of broken one is caught by the test made for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.config import MethodConfig
from harness.masking import ObservedDataset
from harness.method import Method, MethodContext
from harness.testing.methods import MethodContract
from harness.types import Batch, StepOutput


@dataclass
class SoundConfig(MethodConfig):
    """A linear map of every present modality's pooled vector, summed.

    Attributes:
        width: Inner width.
    """

    width: int = 64

    summary: ClassVar[str] = "for tests"
    citation: ClassVar[str] = "none: for tests"
    uses_backbone: ClassVar[bool] = False


class Sound(Method):
    def __init__(self, config: SoundConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.inner = nn.ModuleDict(
            {name: nn.Linear(spec.pooled_dim, config.width) for name, spec in context.features.items()}
        )
        self.outer = nn.Linear(config.width, self.task.num_outputs)

    def features(self, batch: Batch) -> Tensor:
        total = torch.zeros(len(batch), self.config.width, device=batch.device)
        for name, part in batch.inputs.items():
            total = total.index_add(0, part.rows, self.inner[name](part.pooled).relu().float())
        return total

    def training_step(self, batch: Batch) -> StepOutput:
        loss = self.task_loss(self.predict_step(batch), batch.labels)
        return StepOutput(loss, {"task": loss})

    def predict_step(self, batch: Batch) -> Tensor:
        logits: Tensor = self.outer(self.features(batch))
        return logits


class Normalises(Sound):
    """Statistics of the batch, in evaluation too."""

    def features(self, batch: Batch) -> Tensor:
        values = super().features(batch)
        return (values - values.mean(0)) / (values.std(0, correction=0) + 1e-3)


class Peeks(Sound):
    """Reads hidden values of the training split behind the view."""

    def prepare(self, train: ObservedDataset) -> None:
        array = train._features[self.modalities[0]]
        hidden = ~train.present[:, 0]
        self.register_buffer("seen", torch.tensor(array.pooled[train.rows[hidden]].mean()))

    def features(self, batch: Batch) -> Tensor:
        return super().features(batch) + self.seen


class HasADeadLayer(Sound):
    def __init__(self, config: SoundConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.unused = nn.Linear(3, 3)


class ForgetsAGroup(Sound):
    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return super().parameter_groups(weight_decay)[:1]


class HasADeadTerm(Sound):
    def training_step(self, batch: Batch) -> StepOutput:
        output = super().training_step(batch)
        return StepOutput(output.loss, {"task": output.loss, "reconstruction": output.loss * 0})


@dataclass
class TwoTermsConfig(SoundConfig):
    """Declares two loss terms."""

    def loss_terms(self) -> tuple[str, ...]:
        return ("task", "reconstruction")


class Chats(Sound):
    def predict_step(self, batch: Batch) -> Tensor:
        print(len(batch))
        return super().predict_step(batch)


class DrawsUnseeded(Sound):
    def predict_step(self, batch: Batch) -> Tensor:
        return super().predict_step(batch) + np.random.default_rng().random()


class KeepsStateAside(Sound):
    """A statistic of training that is no buffer."""

    offset = 0.0

    def training_step(self, batch: Batch) -> StepOutput:
        self.offset += 1.0
        return super().training_step(batch)

    def predict_step(self, batch: Batch) -> Tensor:
        return super().predict_step(batch) + self.offset


class NeedsEveryModality(Sound):
    """Averages the batch's tokens of each modality: NaN when there are none."""

    def features(self, batch: Batch) -> Tensor:
        return super().features(batch) + sum(part.pooled.mean() for part in batch.inputs.values())


class ReadsLabels(Sound):
    """Adds the label that it is asked for."""

    def predict_step(self, batch: Batch) -> Tensor:
        return super().predict_step(batch) + 9.0 * nn.functional.one_hot(batch.labels, self.task.num_outputs)


class CannotLearn(Sound):
    """A network that sees a constant."""

    def features(self, batch: Batch) -> Tensor:
        return super().features(batch) * 1e-6


class BreaksInHalfPrecision(Sound):
    """numpy has no bfloat16."""

    def predict_step(self, batch: Batch) -> Tensor:
        logits = super().predict_step(batch)
        return logits + 0.0 * torch.from_numpy(logits.detach().numpy())


class StaysOnTheCpu(Sound):
    """A tensor that is no buffer is not moved."""

    def __init__(self, config: SoundConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.scale = torch.ones(config.width)

    def features(self, batch: Batch) -> Tensor:
        return super().features(batch) * self.scale


class NeedsTwoTokens(Sound):
    def features(self, batch: Batch) -> Tensor:
        assert all(part.tokens.shape[1] > 1 for part in batch.inputs.values()), "needs two tokens"
        return super().features(batch)


def contract(implementation: type[Method], config: type[MethodConfig] = SoundConfig) -> MethodContract:
    """The contract on a method that is in no registry, so that the broken ones stay out of every list."""

    class Plugin(config):  # type: ignore[misc, valid-type]
        __doc__ = config.__doc__

        @classmethod
        def implementation(cls) -> Any:
            return implementation

    class Contract(MethodContract):
        plugin = Plugin  # type: ignore[assignment]

    return Contract()


CHECKS = [name for name in dir(MethodContract) if name.startswith("test_") and name != "test_documented"]
WITH_MODALITIES = {
    name
    for name in CHECKS
    if any(mark.args[0] == ("task", "modalities") for mark in getattr(getattr(MethodContract, name), "pytestmark", []))
}


def run(check: str, on: MethodContract) -> None:
    function = getattr(on, check)
    if check in WITH_MODALITIES:
        function("multiclass", 2)
    elif getattr(getattr(MethodContract, check), "pytestmark", []):
        function("multiclass")
    else:
        function()


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_method_passes(check: str) -> None:
    run(check, contract(Sound))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Normalises, "test_companions_do_not_matter"),
        (Peeks, "test_hidden_values_cannot_be_seen"),
        (HasADeadLayer, "test_every_parameter_learns"),
        (ForgetsAGroup, "test_every_parameter_learns"),
        (HasADeadTerm, "test_declared_loss_terms_are_alive"),
        (Chats, "test_nothing_on_stdout"),
        (DrawsUnseeded, "test_seeds_decide"),
        (KeepsStateAside, "test_state_round_trip"),
        (NeedsEveryModality, "test_every_pattern"),
        (ReadsLabels, "test_labels_are_not_read_when_predicting"),
        (ReadsLabels, "test_shuffled_labels_fall_to_chance"),
        (CannotLearn, "test_overfits"),
        (NeedsTwoTokens, "test_single_tokens"),
    ],
)
def test_a_broken_method_is_caught(broken: type[Method], check: str) -> None:
    with pytest.raises(AssertionError):
        run(check, contract(broken))


def test_a_dead_declared_term_is_named() -> None:
    with pytest.raises(AssertionError, match="always zero: \\['reconstruction'\\]"):
        run("test_declared_loss_terms_are_alive", contract(HasADeadTerm, TwoTermsConfig))


def test_half_precision_is_tried() -> None:
    with pytest.raises(TypeError, match="BFloat16"):
        run("test_mixed_precision", contract(BreaksInHalfPrecision))


def test_what_is_left_on_the_cpu_is_found() -> None:
    with pytest.raises(RuntimeError, match=r"a tensor \[64\] is on cpu, others are on stand_in"):
        run("test_another_device", contract(StaysOnTheCpu))


def test_documentation_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Bare(SoundConfig):
        """Says nothing of its option."""

        extra: int = 0

    on = contract(Sound, Bare)
    card = tmp_path / "card.md"
    monkeypatch.setattr(on.plugin, "card_path", lambda: card)
    with pytest.raises(AssertionError, match="write the card"):
        on.test_documented()
    card.write_text("# Bare\n\nCite nobody. Parameters: few.\n")
    with pytest.raises(AssertionError, match="document option 'extra'"):
        on.test_documented()
    monkeypatch.setattr(on.plugin, "summary", "")
    with pytest.raises(AssertionError, match="summary"):
        on.test_documented()
