"""IF-MMIN: published sizes, both recursions, discrepancy of observed rows, and the released computation restated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UsageError
from harness.method import MethodContext
from harness.methods.common.cmd import central_moment_discrepancy
from harness.methods.common.cra import CascadedResidualAutoencoder
from harness.methods.common.imagination import MAIN, PRETRAIN
from harness.methods.common.simulation import draw_patterns
from harness.methods.if_mmin.config import IfMminConfig
from harness.methods.if_mmin.model import IfMmin, imagine
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.testing.methods import contract_for, predict, train, training, whole
from harness.types import Batch

SMALL: Mapping[str, Any] = {"width": 8, "blocks": 2}


def build(data: TinyData, stage: str = MAIN, **options: Any) -> IfMmin:
    """A method in its main (or another) stage, teachers filled, in train mode."""
    config = IfMminConfig(**{**SMALL, **options})
    method = contract_for("if_mmin")().build(data, config=config)
    assert isinstance(method, IfMmin)
    if stage == MAIN:
        method.start_stage(method.stages()[1], data.train)
    method.stage = stage
    return method.train()


def reached(loss: Tensor, module: nn.Module) -> bool:
    """Whether a loss has a gradient with respect to some parameter of a module."""
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return any(value is not None and bool(value.any()) for value in found)


# -- sizes -------------------------------------------------------------------------------------------------------


def test_published_parameter_counts(iemocap: MethodContext) -> None:
    with torch.device("meta"):
        method = IfMmin(IfMminConfig.from_preset("official"), iemocap)
    assert sum(parameter.numel() for parameter in method.invariant.parameters()) == 33_024
    assert method.stage == MAIN
    assert sum(parameter.numel() for _, parameter in method.trained()) == 3_782_852
    method.stage = PRETRAIN
    head = (768 * 128 + 128) + (128 * 128 + 128) + (128 * 4 + 4)
    encoders = 133_120 + 241_664 + 1_622_528
    assert sum(parameter.numel() for _, parameter in method.trained()) == encoders + 33_024 + head
    for teacher in (method.teacher, method.invariant_teacher):
        assert not any(parameter.requires_grad for parameter in teacher.parameters())


# -- recursions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recursion", ["v2024", "v2022"])
def test_recursions(recursion: str) -> None:
    torch.manual_seed(0)
    cascade = CascadedResidualAutoencoder(6, hidden=(5, 4), blocks=3)
    h, s = torch.randn(2, 6), torch.randn(2, 6)
    parts = [(block.encoder, block.decoder) for block in cascade.blocks]
    codes: list[Tensor] = []
    if recursion == "v2024":
        o = h
        for encoder, decoder in parts:
            codes.append(encoder(o + s))
            o = decoder(codes[-1])
        expected = cascade.transition(o)
    else:
        codes = [encoder(h + k * s) for k, (encoder, _) in enumerate(parts, start=1)]
        expected = cascade.transition(h + 3 * s + parts[-1][1](codes[-1]))
    imagined, latent = imagine(cascade, h, s, recursion)
    torch.testing.assert_close(imagined, expected)
    torch.testing.assert_close(latent, torch.cat(codes, 1))


@pytest.mark.parametrize("recursion", ["v2024", "v2022"])
def test_decoders_that_learn(recursion: str) -> None:
    """As published, no decoder but the last has an influence; in the later version each has."""
    data = tiny_observed("multiclass", 3)
    method = build(data, blocks=4, recursion=recursion)
    output = method(whole(data.train))
    live = [reached(output.loss, block.decoder) for block in method.imagination.blocks]
    assert live == ([True] * 4 if recursion == "v2024" else [False, False, False, True])
    assert all(reached(output.loss, block.encoder) for block in method.imagination.blocks)


# -- pretraining -------------------------------------------------------------------------------------------------


def observed_invariants(method: IfMmin, batch: Batch) -> list[Tensor]:
    embedded = method.encoded(batch)
    return [method.invariant(embedded[part.rows, column]) for column, part in enumerate(batch.inputs.values())]


@pytest.mark.parametrize("bounded", [True, False])
def test_discrepancy_of_observed_rows(bounded: bool) -> None:
    data = tiny_observed("multiclass", 3)
    method = build(data, PRETRAIN, cmd_weight=2.0, cmd_moments=3, cmd_bounded=bounded).eval()
    batch = whole(data.train)
    output = method.training_step(batch)
    sets = observed_invariants(method, batch)
    if bounded:
        sets = [values.sigmoid() for values in sets]
    pairs = [central_moment_discrepancy(sets[a], sets[b], 3) for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(output.terms["cmd"], torch.stack(pairs).mean())
    torch.testing.assert_close(output.loss, output.terms["task"] + 2.0 * output.terms["cmd"])
    assert reached(output.terms["cmd"], method.invariant)
    assert reached(output.terms["cmd"], method.encoders)
    assert not reached(output.terms["cmd"], method.pretrain_classifier)


def test_discrepancy_needs_rows() -> None:
    data = tiny_observed()
    batch = whole(data.train)
    fewest = min(len(part) for part in batch.inputs.values())
    assert build(data, PRETRAIN, cmd_min_rows=fewest)(batch).terms["cmd"] > 0
    assert build(data, PRETRAIN, cmd_min_rows=fewest + 1)(batch).terms["cmd"] == 0
    output = build(data, PRETRAIN)(whole(one_pattern(data.train, data.features, (True, False))))
    assert output.terms["cmd"] == 0
    assert torch.equal(output.loss, output.terms["task"])


def test_terms_without_weight_are_not_declared() -> None:
    data = tiny_observed()
    for option, term in (("cmd_weight", "cmd"), ("invariance_weight", "invariance")):
        method = build(data, **{option: 0.0})
        assert term not in method.config.loss_terms()
        returned = {name for output in training(method, data.train, steps=1) for name in output.terms}
        assert returned == set(method.config.loss_terms())
    assert set(IfMminConfig().loss_terms()) == {"task", "cmd", "imagination", "invariance"}
    assert IfMminConfig().main_weights() == {"task": 1.0, "imagination": 1.0, "invariance": 100.0}


# -- main stage --------------------------------------------------------------------------------------------------


def test_invariance_of_dropped_slots() -> None:
    """S of a zero input is drawn to the frozen S* of the true value, where that was dropped and only there."""
    data = tiny_observed("multiclass", 3)
    method = build(data).eval()
    nn.init.normal_(method.invariant[2].bias)
    torch.manual_seed(0)
    simulation = method.simulate(whole(data.train))
    losses = method.main_losses(simulation)
    ours = method.invariant(method.encoded(simulation.shown))
    theirs = method.invariant_teacher(method.taught(simulation.known))
    dropped = simulation.known.present & ~simulation.shown.present
    torch.testing.assert_close(losses["invariance"], F.mse_loss(ours[dropped], theirs[dropped]))
    assert reached(losses["invariance"], method.invariant)
    assert not reached(losses["invariance"], method.imagination)
    assert not reached(losses["imagination"], method.classifier)
    for term in ("task", "imagination"):
        assert reached(losses[term], method.invariant)
        assert reached(losses[term], method.encoders)


def test_single_modality_samples_contribute_to_the_task_loss_only() -> None:
    data = tiny_observed()
    method = build(data)
    output = method(whole(one_pattern(data.train, data.features, (False, True))))
    assert output.terms["imagination"] == output.terms["invariance"] == 0
    torch.testing.assert_close(output.loss, output.terms["task"])


def test_teachers_are_the_pretrained_modules_and_stay() -> None:
    data = tiny_observed()
    method = build(data, stage=PRETRAIN)
    steps = training(method, data.train, steps=3)
    for _ in range(3):
        next(steps)
    students = {"teacher": method.encoders, "invariant_teacher": method.invariant}
    pretrained = {
        name: {key: value.clone() for key, value in student.state_dict().items()} for name, student in students.items()
    }
    for _ in steps:
        assert method.stage == MAIN
        for name, before in pretrained.items():
            now = getattr(method, name).state_dict()
            assert all(torch.equal(value, before[key]) for key, value in now.items())
    for name, student in students.items():
        assert any(not torch.equal(value, pretrained[name][key]) for key, value in student.state_dict().items())


def test_stages_train_and_predict_with_their_own_parts() -> None:
    data = tiny_observed()
    method = build(data)
    parts = {}
    for stage in (PRETRAIN, MAIN):
        method.stage = stage
        parts[stage] = {name.partition(".")[0] for name, _ in method.trained()}
    assert parts[PRETRAIN] == {"encoders", "invariant", "pretrain_classifier"}
    assert parts[MAIN] == {"encoders", "invariant", "imagination", "classifier"}
    main = predict(method, data.test)
    nn.init.zeros_(method.pretrain_classifier.output.weight)
    nn.init.ones_(method.pretrain_classifier.output.bias)
    assert torch.equal(predict(method, data.test), main)
    method.stage = PRETRAIN
    assert torch.equal(predict(method, data.test), torch.ones(24, 3))


@pytest.mark.parametrize(
    "options", [{"recursion": "v2023"}, {"cmd_moments": 0}, {"cmd_min_rows": 0}, {"invariance_weight": -1.0}]
)
def test_bad_options(options: Any) -> None:
    with pytest.raises(UsageError, match=f"method.{next(iter(options))}"):
        IfMminConfig(**options).validate()


# -- the released computation, restated --------------------------------------------------------------------------


def zero_filled(data: TinyData, present: Tensor) -> Batch:
    """Every sample has every modality; those that are not present are zero tokens at full length."""
    batch = whole(data.train)
    complete = whole(data.train.complete_view())
    for column, part in enumerate(complete.inputs.values()):
        part.tokens[~present[:, column]] = 0.0
        part.mask[~present[:, column]] = True
    return replace(complete, labels=batch.labels)


def plain_embeddings(encoders: nn.ModuleDict, data: TinyData, present: Tensor) -> list[Tensor]:
    """Embeddings per modality; the encoders themselves are restated in the tests of MMIN."""
    batch = zero_filled(data, present)
    return [encoder(batch.inputs[name]) for name, encoder in encoders.items()]


def plain_shared(state: Mapping[str, Tensor], features: Tensor) -> Tensor:
    for layer in (0, 2):
        features = features @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
        features = torch.where(features > 0, features, 0.01 * features)
    return features


def plain_cmd(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.double(), q.double()
    total = ((p.mean(0) - q.mean(0)) ** 2).sum().sqrt()
    for k in range(2, 6):
        total += ((((p - p.mean(0)) ** k).mean(0) - ((q - q.mean(0)) ** k).mean(0)) ** 2).sum().sqrt()
    return total.float()


def official(data: TinyData, preset: str) -> IfMmin:
    """A preset with embeddings of width 8, pretrained for three steps, in eval mode (no dropout)."""
    config = replace(IfMminConfig.from_preset(preset), width=8, blocks=2)
    method = contract_for("if_mmin")().build(data, config=config)
    assert isinstance(method, IfMmin)
    with torch.enable_grad():
        train(method, data.train, steps=3)
    return method.eval()


@pytest.mark.parametrize("preset", ["paper", "official"])
@torch.no_grad()
def test_official_computation(preset: str) -> None:
    data = tiny_observed("multiclass", 3, length=6, supervision="complete")
    method = official(data, preset)
    batch = whole(data.train)
    torch.manual_seed(3)
    found = method.training_step(batch)
    torch.manual_seed(3)
    everything = torch.ones_like(batch.present)
    kept = draw_patterns(everything, full=False)

    fed = plain_embeddings(method.encoders, data, kept)
    shared = method.invariant.state_dict()
    invariant = torch.cat([plain_shared(shared, h) for h in fed], 1)
    first, second = (
        (lambda u, block=block: (block.encoder(u), block.decoder(block.encoder(u))))
        for block in method.imagination.blocks
    )
    h = torch.cat(fed, 1)
    z1, o1 = first(h + invariant)
    z2, o2 = second((o1 if preset == "official" else h + invariant) + invariant)
    imagined = method.imagination.transition(o2 if preset == "official" else h + 2 * invariant + o2)
    logits, _ = method.classifier(torch.cat([z1, z2], 1))
    target = torch.cat(plain_embeddings(method.teacher, data, ~kept), 1)
    complete = plain_embeddings(method.teacher, data, everything)
    invariant_target = torch.cat([plain_shared(method.invariant_teacher.state_dict(), h) for h in complete], 1)
    expected = {
        "task": F.cross_entropy(logits, batch.labels),
        "imagination": ((target - imagined) ** 2).mean(),
        "invariance": ((invariant_target - invariant) ** 2).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value, atol=1e-5, rtol=1e-5)
    total = expected["task"] + expected["imagination"] + 100 * expected["invariance"]
    torch.testing.assert_close(found.loss, total, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_official_pretraining() -> None:
    data = tiny_observed("multiclass", 3, length=6, supervision="complete")
    method = official(data, "official")
    method.stage = PRETRAIN
    batch = whole(data.train)
    embedded = plain_embeddings(method.encoders, data, torch.ones_like(batch.present))
    invariant = [plain_shared(method.invariant.state_dict(), h) for h in embedded]
    logits, _ = method.pretrain_classifier(torch.cat([*embedded, *invariant], 1))
    task = F.cross_entropy(logits, batch.labels)
    pairs = [plain_cmd(invariant[a], invariant[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    discrepancy = (pairs[0] + pairs[1] + pairs[2]) / 3
    output = method.training_step(batch)
    torch.testing.assert_close(output.terms["task"], task, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.terms["cmd"], discrepancy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.loss, task + discrepancy, atol=1e-5, rtol=1e-5)
