"""MMIN: published sizes, gradient routing, incomplete training data, and the released computation restated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.audit.subject import take
from harness.errors import UsageError
from harness.method import MethodContext
from harness.methods.common.cra import CascadedResidualAutoencoder
from harness.methods.common.imagination import MAIN, PRETRAIN, Simulation, slot_mse
from harness.methods.common.simulation import draw_patterns
from harness.methods.mmin.config import MminConfig
from harness.methods.mmin.model import Mmin
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.testing.methods import contract_for, predict, train, training, whole

SMALL: Mapping[str, Any] = {"width": 8, "blocks": 2}


def build(data: TinyData, stage: str = MAIN, **options: Any) -> Mmin:
    """A method in its main (or another) stage, teacher filled, in train mode."""
    config = MminConfig(**{**SMALL, **options})
    method = contract_for("mmin")().build(data, config=config)
    assert isinstance(method, Mmin)
    if stage == MAIN:
        method.start_stage(method.stages()[1], data.train)
    method.stage = stage
    return method.train()


def size(method: Mmin) -> int:
    return sum(parameter.numel() for _, parameter in method.trained())


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """Gradient of a loss with respect to all parameters of a module, flat; zeros where there is none."""
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


# -- inputs ------------------------------------------------------------------------------------------------------


def rescaled(data: TinyData) -> TinyData:
    """The same data with the text features times 50, plus 3."""
    text = data.features["text"]
    tokens, pooled = (50 * values + 3 for values in (text.tokens, text.pooled))
    features = {**data.features, "text": replace(text, tokens=tokens, pooled=pooled)}
    views = {
        split: view.with_features({name: take(array, view.rows) for name, array in features.items()})
        for split, view in data.views.items()
    }
    return replace(data, features=features, views=views)


@pytest.mark.parametrize("encoder", ["pooled", "tokens"])
def test_the_scale_of_a_modality_does_not_matter(encoder: str) -> None:
    """Zero, which stands for a missing modality, is the training mean of a standardised one."""
    data = tiny_observed("multiclass", 2)
    plain, other = (predict(build(part, encoder=encoder), part.test) for part in (data, rescaled(data)))
    torch.testing.assert_close(plain, other, rtol=1e-3, atol=1e-4)
    raw = [predict(build(part, encoder=encoder, standardize=False), part.test) for part in (data, rescaled(data))]
    assert not torch.allclose(*raw, rtol=0.1)


# -- sizes -------------------------------------------------------------------------------------------------------


def test_published_parameter_counts(iemocap: MethodContext) -> None:
    with torch.device("meta"):
        method = Mmin(MminConfig.from_preset("official"), iemocap)
        shared = Mmin(replace(MminConfig.from_preset("official"), share_weight=True), iemocap)
    assert method.stage == MAIN
    assert size(method) == 5_444_228
    assert size(shared) == 5_444_228 - 1_694_400
    encoders = 133_120 + 241_664 + 1_622_528
    method.stage = PRETRAIN
    assert size(method) == encoders + (384 * 128 + 128) + (128 * 128 + 128) + (128 * 4 + 4)
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_stages() -> None:
    method = build(tiny_observed(), pretrain_epochs=7)
    assert [(stage.name, stage.epochs) for stage in method.stages()] == [(PRETRAIN, 7), (MAIN, 0)]


# -- gradients ---------------------------------------------------------------------------------------------------


def test_gradient_routing() -> None:
    """All three losses reach the encoders; the cycle's target is detached, so it does so through h_hat only."""
    data = tiny_observed("multiclass", 3)
    method = build(data).eval()
    torch.manual_seed(0)
    simulation = method.simulate(whole(data.train))
    losses = method.main_losses(simulation)
    assert all(gradient(loss, method.encoders).any() for loss in losses.values())

    embedded = method.encoded(simulation.shown)
    imagined, _ = method.imagination(embedded.flatten(1))
    assert method.backward_imagination is not None
    samples = simulation.slots.any(1, keepdim=True).expand_as(simulation.slots)
    constant = embedded.detach().clone()
    through = slot_mse(method.backward_imagination(imagined)[0], constant, samples)
    torch.testing.assert_close(losses["cycle"], through)
    torch.testing.assert_close(gradient(losses["cycle"], method.encoders), gradient(through, method.encoders))
    attached = slot_mse(method.backward_imagination(imagined.detach())[0], embedded, samples)
    assert gradient(attached, method.encoders).any(), "a target that is not detached would be seen by this test"

    assert not gradient(losses["imagination"], method.backward_imagination).any()
    assert not gradient(losses["imagination"], method.classifier).any()
    assert not gradient(losses["cycle"], method.classifier).any()
    assert gradient(losses["cycle"], method.imagination).any()


def test_the_teacher_is_the_pretrained_encoder_and_stays() -> None:
    data = tiny_observed()
    method = build(data, stage=PRETRAIN)
    steps = training(method, data.train, steps=3)
    for _ in range(3):
        next(steps)
    pretrained = {name: value.clone() for name, value in method.encoders.state_dict().items()}
    for _ in steps:
        assert method.stage == MAIN
        assert all(torch.equal(value, pretrained[name]) for name, value in method.teacher.state_dict().items())
    assert any(not torch.equal(value, pretrained[name]) for name, value in method.encoders.state_dict().items())
    assert not any(module.training for module in method.teacher.modules())
    assert all(module.training for module in method.encoders.modules())


def test_stages_train_and_predict_with_their_own_parts() -> None:
    data = tiny_observed()
    method = build(data)
    parts = {}
    for stage in (PRETRAIN, MAIN):
        method.stage = stage
        parts[stage] = {name.partition(".")[0] for name, _ in method.trained()}
    assert parts[PRETRAIN] == {"encoders", "pretrain_classifier"}
    assert parts[MAIN] == {"encoders", "imagination", "backward_imagination", "classifier"}
    method.stage = PRETRAIN
    nn.init.zeros_(method.pretrain_classifier.output.weight)
    nn.init.ones_(method.pretrain_classifier.output.bias)
    assert torch.equal(predict(method, data.test), torch.ones(24, 3))
    method.stage = MAIN
    assert not torch.equal(predict(method, data.test), torch.ones(24, 3))


# -- incomplete training data ------------------------------------------------------------------------------------


def test_simulation_splits_what_is_known() -> None:
    data = tiny_observed("multilabel", 4)
    method = build(data)
    batch = whole(data.train)
    torch.manual_seed(0)
    simulation = method.simulate(batch)
    assert torch.equal(simulation.shown.present | simulation.dropped.present, batch.present)
    assert not (simulation.shown.present & simulation.dropped.present).any()
    assert simulation.shown.present.any(1).all()
    assert torch.equal(simulation.slots, simulation.dropped.present)
    single = batch.present.sum(1) == 1
    assert single.any()
    assert not simulation.slots[single].any()
    assert simulation.slots[~single].any()


def test_single_modality_samples_contribute_to_the_task_loss_only() -> None:
    data = tiny_observed()
    method = build(data)
    output = method(whole(one_pattern(data.train, data.features, (False, True))))
    assert output.terms["imagination"] == output.terms["cycle"] == 0
    torch.testing.assert_close(output.loss, output.terms["task"])
    # In a mixed batch the other samples' losses do not depend on them.
    method.eval()
    batch = whole(data.train)
    torch.manual_seed(0)
    kept = method.simulate(batch).shown.present
    several = batch.present.all(1).nonzero().squeeze(1)
    losses = method.main_losses(simulation_of(batch, kept))
    without = method.main_losses(simulation_of(batch.select(several), kept[several]))
    for term in ("imagination", "cycle"):
        torch.testing.assert_close(losses[term], without[term])
    assert not torch.equal(losses["task"], without["task"])


def simulation_of(batch: Any, kept: Tensor) -> Simulation:
    dropped = batch.present & ~kept
    return Simulation(batch, batch.without(dropped), batch.without(kept), dropped)


def test_complete_supervision_simulates_on_complete_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_observed(supervision="complete")
    method = build(data, full_pattern=False)
    seen: list[Simulation] = []
    losses = method.main_losses
    monkeypatch.setattr(method, "main_losses", lambda simulation: [seen.append(simulation), losses(simulation)][1])
    method(whole(data.train))
    assert seen[0].known.present.all()
    assert (seen[0].shown.present.sum(1) == 1).all()


@pytest.mark.parametrize("full", [True, False])
def test_full_pattern(full: bool) -> None:
    data = tiny_observed(missing=0.0)
    method = build(data, full_pattern=full)
    torch.manual_seed(0)
    assert bool(method.simulate(whole(data.train)).shown.present.all(1).any()) == full


def test_slot_error_is_a_mean_over_slots() -> None:
    torch.manual_seed(0)
    predicted, target = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    everything = torch.ones(4, 3, dtype=torch.bool)
    torch.testing.assert_close(slot_mse(predicted.flatten(1), target, everything), F.mse_loss(predicted, target))
    slots = torch.rand(4, 3) < 0.5
    torch.testing.assert_close(slot_mse(predicted, target, slots), F.mse_loss(predicted[slots], target[slots]))
    assert slot_mse(predicted, target, ~everything) == 0


# -- options -----------------------------------------------------------------------------------------------------


def test_options_of_losses() -> None:
    data = tiny_observed()
    batch = whole(data.train)
    without = build(data, cycle_weight=0.0)
    assert without.backward_imagination is None
    assert set(without(batch).terms) == set(without.config.loss_terms()) == {"task", "imagination"}
    shared = build(data, share_weight=True)
    assert shared.backward_imagination is None
    assert shared(batch).terms["cycle"] > 0
    output = build(data, task_weight=3.0, imagination_weight=5.0, cycle_weight=7.0)(batch)
    weights = {"task": 3.0, "imagination": 5.0, "cycle": 7.0}
    torch.testing.assert_close(output.loss, sum(weights[name] * term for name, term in output.terms.items()))
    assert MminConfig().main_weights() == {"task": 1.0, "imagination": 4.0, "cycle": 2.0}


def test_dropouts_and_width() -> None:
    method = build(tiny_observed(), encoder_dropout=0.1, pretrain_dropout=0.2, dropout=0.4)
    rates = {
        part: {layer.p for layer in getattr(method, part).modules() if isinstance(layer, nn.Dropout)}
        for part in ("encoders", "pretrain_classifier", "classifier")
    }
    assert rates == {"encoders": {0.1}, "pretrain_classifier": {0.2}, "classifier": {0.4}}
    assert MminConfig().width == 256
    assert isinstance(method.imagination, CascadedResidualAutoencoder)
    assert len(method.imagination.blocks) == 2


def test_kaiming_cascade_starts_large() -> None:
    """The reason why `clean` does not start that way."""
    data = tiny_observed()
    features = torch.randn(64, 512)
    scales = {}
    for initialization in ("torch", "kaiming"):
        method = build(data, width=256, blocks=5, initialization=initialization)
        scales[initialization] = method.imagination(features)[0].std().item()
    assert scales["torch"] < 1
    assert scales["kaiming"] > 30


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "cnn"},
        {"padding": "no"},
        {"targets": "none"},
        {"initialization": "x"},
        {"width": 0},
        {"dropout": 1.5},
        {"imagination_weight": -1.0},
        {"cycle_weight": -1.0},
    ],
)
def test_bad_options(options: Any) -> None:
    with pytest.raises(UsageError, match=f"method.{next(iter(options))}"):
        MminConfig(**options).validate()


def test_complete_training_data_are_asked_for() -> None:
    asked = {name: MminConfig.from_preset(name).needs_complete_supervision() for name in MminConfig.presets}
    assert asked == {"clean": False, "paper": True, "official": True}


def test_token_encoders_under_mixed_precision() -> None:
    data = tiny_observed("multilabel", 3)
    method = build(data, encoder="tokens")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for output in training(method, data.train, steps=2):
            assert torch.isfinite(output.loss)
        assert torch.isfinite(predict(method, data.test)).all()


# -- the released computation, restated --------------------------------------------------------------------------


def dense(data: TinyData, present: Tensor) -> dict[str, Tensor]:
    """Zero-filled tokens `[N, L, D]` of the training split."""
    found = {}
    for column, (name, array) in enumerate(data.features.items()):
        tokens = torch.from_numpy(array.tokens[data.train.rows]).clone()
        tokens[~present[:, column]] = 0.0
        found[name] = tokens
    return found


def plain_lstm(state: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    hidden = cell = tokens.new_zeros(len(tokens), state["lstm.weight_hh_l0"].shape[1])
    best = torch.full_like(hidden, -torch.inf)
    for step in tokens.unbind(1):
        gates = step @ state["lstm.weight_ih_l0"].T + hidden @ state["lstm.weight_hh_l0"].T
        i, f, g, o = (gates + state["lstm.bias_ih_l0"] + state["lstm.bias_hh_l0"]).chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        best = torch.maximum(best, hidden)
    return best


def plain_text_cnn(state: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    found = []
    for index, height in enumerate((3, 4, 5)):
        weight, bias = state[f"convolutions.{index}.weight"].flatten(1), state[f"convolutions.{index}.bias"]
        windows = [tokens[:, at : at + height].flatten(1) for at in range(tokens.shape[1] - height + 1)]
        found.append(torch.stack([(window @ weight.T + bias).clamp(min=0) for window in windows]).amax(0))
    return (torch.cat(found, 1) @ state["projection.0.weight"].T + state["projection.0.bias"]).clamp(min=0)


def plain_encoders(encoders: nn.ModuleDict, tokens: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(
        [
            (plain_text_cnn if name == "text" else plain_lstm)(encoders[name].state_dict(), values)
            for name, values in tokens.items()
        ],
        dim=1,
    )


def plain_cascade(state: Mapping[str, Tensor], features: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    def linear(name: str, values: Tensor) -> Tensor:
        return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    codes = []
    for k in range(blocks):
        code = features
        for layer in (0, 2, 4):
            code = linear(f"blocks.{k}.encoder.{layer}", code if layer == 0 else F.leaky_relu(code, 0.01))
        output = code
        for layer in (0, 2, 4):
            output = linear(f"blocks.{k}.decoder.{layer}", output if layer == 0 else output.relu())
        features = features + output
        codes.append(code)
    return linear("transition.2", linear("transition.0", features).relu()), torch.cat(codes, 1)


def plain_classifier(state: Mapping[str, Tensor], features: Tensor) -> Tensor:
    for name in ("layers.0", "layers.3"):
        features = (features @ state[f"{name}.weight"].T + state[f"{name}.bias"]).clamp(min=0)
    return features @ state["output.weight"].T + state["output.bias"]


def official(data: TinyData) -> Mmin:
    """The official preset with embeddings of width 8, pretrained for three steps, in eval mode (no dropout)."""
    config = replace(MminConfig.from_preset("official"), width=8, blocks=2)
    method = contract_for("mmin")().build(data, config=config)
    assert isinstance(method, Mmin)
    with torch.enable_grad():
        train(method, data.train, steps=3)
    return method.eval()


@torch.no_grad()
def test_official_computation() -> None:
    data = tiny_observed("multiclass", 3, length=6, supervision="complete")
    method = official(data)
    batch = whole(data.train)
    torch.manual_seed(3)
    found = method.training_step(batch)
    torch.manual_seed(3)
    kept = draw_patterns(torch.ones_like(batch.present), full=False)

    fed = plain_encoders(method.encoders, dense(data, kept))
    imagined, latent = plain_cascade(method.imagination.state_dict(), fed, 2)
    assert method.backward_imagination is not None
    returned, _ = plain_cascade(method.backward_imagination.state_dict(), imagined, 2)
    target = plain_encoders(method.teacher, dense(data, ~kept))
    logits = plain_classifier(method.classifier.state_dict(), latent)
    expected = {
        "task": F.cross_entropy(logits, batch.labels),
        "imagination": ((target - imagined) ** 2).mean(),
        "cycle": ((fed - returned) ** 2).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        found.loss, expected["task"] + 4 * expected["imagination"] + 2 * expected["cycle"], atol=1e-5, rtol=1e-5
    )
    shown = plain_encoders(method.encoders, dense(data, batch.present))
    logits = plain_classifier(
        method.classifier.state_dict(), plain_cascade(method.imagination.state_dict(), shown, 2)[1]
    )
    torch.testing.assert_close(method.predict_step(batch), logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_official_pretraining() -> None:
    data = tiny_observed("multiclass", 3, length=6, supervision="complete")
    method = official(data)
    method.stage = PRETRAIN
    batch = whole(data.train)
    embedded = plain_encoders(method.encoders, dense(data, torch.ones_like(batch.present)))
    logits = plain_classifier(method.pretrain_classifier.state_dict(), embedded)
    expected = F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(method.training_step(batch).loss, expected, atol=1e-5, rtol=1e-5)
