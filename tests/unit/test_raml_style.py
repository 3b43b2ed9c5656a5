"""RAML-style: damage, norm constraint, stages and their gradients, losses restated, ablations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.method import class_prior_logits
from harness.methods.common.consistency import prediction_divergence
from harness.methods.common.damage import Damage, Damaged
from harness.methods.raml_style.config import RamlStyleConfig
from harness.methods.raml_style.model import FUSION, JOINT, RamlStyle
from harness.methods.raml_style.modules import Encoded, UnimodalEncoder, cap_tokens, norm_penalty, to_norm
from harness.testing.data import TASK_KINDS, TinyData, one_pattern, tiny_observed, tiny_spec
from harness.testing.methods import contract_for, predict, training, whole
from harness.trainer import count_parameters
from harness.types import Batch, FeatureSpec, TaskKind

WIDTH = 8


def build(data: TinyData, stage: str = FUSION, **options: Any) -> RamlStyle:
    config = RamlStyleConfig(**{"width": WIDTH, "heads": 2, **options})
    method = contract_for("raml_style")().build(data, config=config)
    assert isinstance(method, RamlStyle)
    method.stage = stage
    return method.eval()


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    """Non-zero gradients of a loss in a module's parameters."""
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [part for part in found if part is not None and bool(part.any())]


# -- damage --------------------------------------------------------------------------------------------------------


def damage(data: TinyData, **options: Any) -> Damage:
    module = Damage(data.feature_specs, **{"rate": 0.5, "drop_rate": 0.5, "max_severity": 2.0, **options})
    module.fit(data.train)
    return module


def test_damage_hits_proper_subsets_at_its_rates() -> None:
    data = tiny_observed(modalities=3)
    torch.manual_seed(0)
    present = torch.ones(20000, 3, dtype=torch.bool)
    dropped, corrupted, severity = damage(data).draw(present)
    hit = dropped | corrupted
    assert not (dropped & corrupted).any()
    assert not hit.all(1).any()
    assert float(hit.any(1).float().mean()) == pytest.approx(0.5, abs=0.015)
    # The six non-empty proper subsets are equally likely.
    codes = (hit[hit.any(1)].long() * torch.tensor([1, 2, 4])).sum(1).bincount(minlength=8).float()
    assert (codes / codes.sum())[1:7].tolist() == pytest.approx([1 / 6] * 6, abs=0.015)
    assert float(dropped[hit].float().mean()) == pytest.approx(0.5, abs=0.015)
    assert float(severity.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(severity.max()) <= 2.0


def test_damage_leaves_single_modalities_and_absent_ones_alone() -> None:
    data = tiny_observed(modalities=3)
    torch.manual_seed(0)
    present = torch.from_numpy(data.train.present).repeat(50, 1)
    dropped, corrupted, _ = damage(data, rate=1.0).draw(present)
    hit = dropped | corrupted
    assert not (hit & ~present).any()
    single = present.sum(1) == 1
    assert not hit[single].any()
    assert hit[~single].any(1).all()
    assert (present & ~dropped).any(1).all()


def test_noise_has_its_scale_and_touches_nothing_else() -> None:
    data = tiny_observed(modalities=2, train=3000, missing=0.2)
    data.features["text"].tokens[..., 3] = 0.25
    module = damage(data, rate=1.0, drop_rate=0.0)
    batch = whole(data.train)
    before = {name: part.tokens.clone() for name, part in batch.inputs.items()}
    torch.manual_seed(0)
    result = module(batch)
    torch.manual_seed(0)
    _, corrupted, severity = module.draw(batch.present)
    assert torch.equal(result.corrupted, corrupted)
    assert torch.equal(result.batch.present, batch.present)
    for column, (name, part) in enumerate(batch.inputs.items()):
        assert torch.equal(part.tokens, before[name]), "the batch that was given stays as it is"
        rows = corrupted[part.rows, column]
        for kind in ("tokens", "pooled"):
            noise = getattr(result.batch.inputs[name], kind) - getattr(part, kind)
            assert not noise[~rows].any()
            array = data.features[name]
            seen = data.train.rows[data.train.present[:, column]]
            values = array.tokens[seen][array.mask[seen]] if kind == "tokens" else array.pooled[seen]
            spread = torch.from_numpy(values.std(0))
            scale = severity[part.rows, column][rows].reshape(-1, *(1,) * (noise.ndim - 1))
            drawn = noise[rows] / scale
            torch.testing.assert_close(drawn.flatten(0, -2).std(0), spread, rtol=0.12, atol=1e-4)
    text = result.batch.inputs["text"].tokens - before["text"]
    assert not text[..., 3].any(), "a constant dimension has no noise"


def test_damage_that_drops() -> None:
    data = tiny_observed()
    torch.manual_seed(0)
    batch = whole(data.train)
    result = damage(data, rate=1.0, drop_rate=1.0)(batch)
    assert result.dropped.any()
    assert not result.corrupted.any()
    assert torch.equal(result.batch.present, batch.present & ~result.dropped)
    for column, part in enumerate(result.batch.inputs.values()):
        assert torch.equal(part.rows, result.batch.present[:, column].nonzero().squeeze(1))


def test_damage_wants_vectors() -> None:
    with pytest.raises(UsageError, match="noise on features needs vectors, 'text' has tokens of shape"):
        Damage({"text": FeatureSpec(4, (), 8)}, rate=0.5, drop_rate=0.5, max_severity=1.0)


# -- norm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["tokens", "pooled"])
def test_every_token_has_the_norm(inputs: str) -> None:
    data = tiny_observed(modalities=3)
    method = build(data, inputs=inputs)
    loose = build(data, inputs=inputs, norm="none")
    batch = whole(data.test)
    for name, part in method.encode(batch).items():
        norms = part.tokens.norm(dim=-1)
        torch.testing.assert_close(norms[part.mask], torch.full_like(norms[part.mask], math.sqrt(WIDTH)))
        assert not norms[~part.mask].any()
        free = loose.encode(batch)[name].tokens.norm(dim=-1)[part.mask]
        assert (free - math.sqrt(WIDTH)).abs().max() > 0.1
        direction = loose.encode(batch)[name].tokens
        torch.testing.assert_close(part.tokens, to_norm(direction, math.sqrt(WIDTH)))
        if method.fusion is not None:
            assert float(method.fusion.absent_token(name).detach().norm()) == pytest.approx(math.sqrt(WIDTH), rel=1e-5)


def test_zero_features_stay_finite() -> None:
    features = torch.zeros(2, 4, requires_grad=True)
    scaled = to_norm(features, 2.0)
    assert not scaled.any()
    scaled.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_soft_penalty() -> None:
    tokens = torch.tensor([[[3.0, 4.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]], [[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    assert float(norm_penalty(Encoded(tokens, mask))) == pytest.approx((3.0**2 + 0.0 + 1.0) / 3)
    data = tiny_observed()
    method = build(data, "unimodal:text", norm="soft", norm_weight=0.5)
    output = method.training_step(whole(data.train))
    expected = output.terms["task"] + 0.5 * output.terms["norm"]
    torch.testing.assert_close(output.loss, expected)
    method.stage = FUSION
    assert "norm" not in method.training_step(whole(data.train)).terms, "frozen features need no penalty"


# -- first stages --------------------------------------------------------------------------------------------------


def test_a_modality_learns_alone() -> None:
    data = tiny_observed(modalities=3)
    method = build(data)
    for name in data.spec.modality_names:
        method.stage = f"unimodal:{name}"
        loss = method.training_step(whole(data.train)).loss
        for other in data.spec.modality_names:
            own = other == name
            assert bool(gradients(loss, method.encoders[other])) == own
            assert bool(gradients(loss, method.heads[other])) == own
        assert {".".join(parameter.split(".")[:2]) for parameter, _ in method.trained()} == {
            f"encoders.{name}",
            f"heads.{name}",
        }


def test_a_modality_does_not_see_the_others() -> None:
    data = tiny_observed(modalities=3)
    method = build(data, "unimodal:image")
    batch = whole(data.train)
    alone = batch.without(torch.tensor([[True, False, True]]).expand(len(batch), -1))
    assert torch.equal(method.training_step(batch).loss, method.training_step(alone).loss)


def test_a_modality_alone_answers_the_prior_where_it_is_missing() -> None:
    data = tiny_observed()
    logits = predict(build(data, "unimodal:image"), data.test)
    there = torch.from_numpy(data.test.present[:, 1])
    prior = class_prior_logits(data.spec.task, torch.from_numpy(data.train.labels))
    assert torch.equal(logits[~there], prior.expand(int((~there).sum()), -1))
    assert not (logits[there] == prior).any()


def test_joint_training_shares_one_loss() -> None:
    data = tiny_observed()
    method = build(data, JOINT, unimodal="joint")
    assert [stage.name for stage in method.stages()] == [JOINT, FUSION]
    batch = whole(data.train)
    loss = method.training_step(batch).loss
    assert all(gradients(loss, method.encoders[name]) for name in data.spec.modality_names)
    assert {name.partition(".")[0] for name, _ in method.trained()} == {"encoders", "heads"}
    torch.testing.assert_close(loss, method.task_loss(mean_logits(method, batch), batch.labels))


def mean_logits(method: RamlStyle, batch: Batch) -> Tensor:
    """Mean of the unimodal logits, sample by sample."""
    rows = []
    encoded = method.encode(batch)
    for sample in range(len(batch)):
        answers = []
        for name, part in batch.inputs.items():
            found = (part.rows == sample).nonzero()
            if len(found):
                tokens = encoded[name].tokens[found[0, 0]]
                answers.append(method.heads[name](tokens[encoded[name].mask[found[0, 0]]].mean(0)))
        rows.append(torch.stack(answers).mean(0))
    return torch.stack(rows)


def test_stages() -> None:
    method = build(tiny_observed(), pretrain_epochs=7, pretrain_lr=1e-3)
    assert [(stage.name, stage.epochs, stage.lr) for stage in method.stages()] == [
        ("unimodal:text", 7, 1e-3),
        ("unimodal:image", 7, 1e-3),
        (FUSION, 0, 0.0),
    ]


# -- fusion --------------------------------------------------------------------------------------------------------


def no_damage(batch: Batch) -> Damaged:
    nothing = torch.zeros_like(batch.present)
    return Damaged(batch, nothing, nothing)


def test_without_damage_both_branches_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_observed()
    method = build(data)
    monkeypatch.setattr(method.damage, "forward", no_damage)
    terms = method.training_step(whole(data.train)).terms
    assert torch.equal(terms["task"], terms["damaged"])
    assert terms["repair"] == 0
    assert float(terms["consistency"].detach()) == pytest.approx(0.0, abs=1e-7)
    monkeypatch.undo()
    torch.manual_seed(0)
    terms = method.training_step(whole(data.train)).terms
    assert not torch.equal(terms["task"], terms["damaged"])
    assert min(terms["repair"], terms["consistency"]) > 1e-4


def test_missing_modalities_are_the_absent_token() -> None:
    data = tiny_observed()
    method = build(data)
    assert method.fusion is not None
    text = one_pattern(data.test, data.features, (True, False))
    before = predict(method, text)
    with torch.no_grad():
        method.fusion.absent["text"].neg_()
    assert torch.equal(predict(method, text), before)
    with torch.no_grad():
        method.fusion.absent["image"].mul_(3.0)
    torch.testing.assert_close(predict(method, text), before)
    with torch.no_grad():
        method.fusion.absent["image"].neg_()
    assert (predict(method, text) - before).abs().max() > 1e-4


def test_repair_loss_restated() -> None:
    data = tiny_observed("multiclass", 3)
    method = build(data)
    assert method.fusion is not None
    assert method.repair is not None
    batch = whole(data.train)
    torch.manual_seed(1)
    damaged = method.damage(batch)
    assert damaged.dropped.any()
    assert damaged.corrupted.any()
    clean = method.encode(batch)
    with torch.no_grad():
        _, outputs = method.fusion(method.encode(damaged.batch), damaged.batch)
        found = []
        for column, (name, part) in enumerate(clean.items()):
            for place, row in enumerate(batch.inputs[name].rows.tolist()):
                repaired = method.repair(outputs[name][row])
                real = part.mask[place]
                target = part.tokens[place]
                if damaged.dropped[row, column]:
                    found.append(1 - torch.cosine_similarity(repaired[0], target[real].mean(0), dim=0))
                elif damaged.corrupted[row, column]:
                    found.append((1 - torch.cosine_similarity(repaired[real], target[real], dim=1)).mean())
        assert len(found) == int((damaged.dropped | damaged.corrupted).sum())
        loss = method.repair_loss(outputs, clean, batch, damaged)
    torch.testing.assert_close(loss, torch.stack(found).mean())


def test_fusion_gradients() -> None:
    data = tiny_observed()
    for encoders in ("frozen", "trained"):
        method = build(data, encoders=encoders)
        torch.manual_seed(0)
        terms = method.training_step(whole(data.train)).terms
        assert method.fusion is not None
        assert method.repair is not None
        for term, loss in terms.items():
            assert gradients(loss, method.fusion), term
            assert bool(gradients(loss, method.repair)) == (term == "repair")
            assert bool(gradients_or_none(loss, method.encoders)) == (encoders == "trained"), term


def gradients_or_none(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return gradients(loss, module) if any(parameter.requires_grad for parameter in module.parameters()) else []


@pytest.mark.parametrize("encoders", ["frozen", "trained"])
def test_encoders_in_the_last_stage(encoders: str) -> None:
    data = tiny_observed()
    method = build(data, encoders=encoders)
    state: dict[str, Tensor] = {}
    changed = False
    for _ in training(method, data.train, steps=3):
        if method.stage != FUSION:
            state = {name: value.clone() for name, value in method.encoders.state_dict().items()}
            continue
        assert any(module.training for module in method.encoders.modules()) == (encoders == "trained")
        changed |= any(not torch.equal(value, state[name]) for name, value in method.encoders.state_dict().items())
    assert changed == (encoders == "trained")


def test_late_fusion_is_the_mean_of_unimodal_logits() -> None:
    data = tiny_observed("multiclass", 3)
    method = build(data, fusion="late")
    assert method.fusion is None
    assert method.repair is None
    with torch.no_grad():
        torch.testing.assert_close(predict(method, data.test), mean_logits(method, whole(data.test)))
    assert {name.partition(".")[0] for name, _ in method.trained()} == {"heads"}


def test_complete_supervision_damages_complete_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_observed(supervision="complete")
    method = build(data)
    seen: list[Batch] = []
    monkeypatch.setattr(method.damage, "forward", lambda batch: [seen.append(batch), no_damage(batch)][1])
    method.training_step(whole(data.train))
    assert seen[0].present.all()


# -- consistency ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASK_KINDS)
def test_divergence(task: TaskKind) -> None:
    spec = tiny_spec(task).task
    torch.manual_seed(0)
    target = torch.randn(6, spec.num_outputs, requires_grad=True)
    logits = torch.randn(6, spec.num_outputs, requires_grad=True)
    found = prediction_divergence(spec, target, logits)
    kinds: dict[str, Any] = {
        "multilabel": lambda values: torch.distributions.Bernoulli(logits=values),
        "regression": lambda values: torch.distributions.Normal(values, 1.0),
    }
    make = kinds.get(task, lambda values: torch.distributions.Categorical(logits=values))
    torch.testing.assert_close(found, torch.distributions.kl_divergence(make(target), make(logits)).mean())
    found.backward()
    assert target.grad is None
    assert logits.grad is not None
    assert float(prediction_divergence(spec, target, target).detach()) == pytest.approx(0.0, abs=1e-6)


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_cap_tokens() -> None:
    tokens = torch.arange(14.0).view(2, 7, 1)
    mask = torch.tensor([[True] * 7, [True, False, True, True, False, False, False]])
    short, kept = cap_tokens(tokens, mask, 3)
    assert short.squeeze(2)[0].tolist() == [1.0, 3.5, 5.5]
    assert short.squeeze(2)[1].tolist() == [7.0, 9.0, 10.0]
    assert kept.all()
    longer, kept = cap_tokens(tokens, mask, 5)
    assert longer.squeeze(2)[1].tolist() == [7.0, 9.0, 10.0, 0.0, 0.0]
    assert kept.tolist() == [[True] * 5, [True, True, True, False, False]]
    same, kept = cap_tokens(tokens, mask, 7)
    assert same is tokens
    assert kept is mask


def test_a_cap_is_used_and_a_sequence_of_padding_is_finite() -> None:
    data = tiny_observed(modalities=3)
    data.features["audio"].mask[:5] = False
    method = build(data, max_tokens=2)
    encoder = method.encoders["audio"]
    assert isinstance(encoder, UnimodalEncoder)
    assert encoder.length == 2
    encoded = method.encode(whole(data.train))["audio"]
    assert encoded.tokens.shape[1:] == (2, WIDTH)
    assert encoded.mask.any(1).all()
    assert torch.isfinite(encoded.tokens).all()


def layer_size(width: int) -> int:
    return 4 * width**2 + 4 * width + 4 * width + (4 * width**2 + 3 * width)


def test_parameter_count_of_the_card() -> None:
    data = tiny_observed("multiclass", 3)
    outputs = 3
    method = build(data)
    expected = 0
    for spec in data.feature_specs.values():
        expected += (spec.dim + 1) * WIDTH + 2 * layer_size(WIDTH) + (WIDTH + 1) * outputs
        expected += 2 * WIDTH + spec.length * WIDTH
    expected += WIDTH + 2 * layer_size(WIDTH) + 2 * WIDTH + (WIDTH + 1) * outputs + (WIDTH + 1) * WIDTH
    assert count_parameters(method)[0] == expected
    pooled = build(data, inputs="pooled", pooled_tokens=4)
    encoder = pooled.encoders["image"]
    size = sum(parameter.numel() for parameter in encoder.parameters())
    assert size == (6 + 1) * 4 * WIDTH + 2 * (WIDTH + 1) * WIDTH


# -- options -------------------------------------------------------------------------------------------------------

ABLATIONS: list[dict[str, Any]] = [
    {"norm": "soft"},
    {"norm": "none"},
    {"norm": "soft", "encoders": "trained"},
    {"unimodal": "joint"},
    {"fusion": "late"},
    {"fusion": "late", "encoders": "trained"},
    {"repair_weight": 0.0},
    {"consistency_weight": 0.0},
    {"damage_rate": 0.0},
    {"inputs": "pooled"},
    {"max_tokens": 1},
]


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_ablations_train(options: dict[str, Any]) -> None:
    data = tiny_observed("multilabel", 3)
    method = build(data, **options)
    returned: set[str] = set()
    trained: set[str] = set()
    learned: set[str] = set()
    for output in training(method, data.train, steps=2):
        assert torch.isfinite(output.loss)
        returned |= set(output.terms)
        trained |= {name for name, _ in method.trained()}
        learned |= {
            name for name, value in method.named_parameters() if value.grad is not None and bool(value.grad.any())
        }
    assert returned == set(method.config.loss_terms())
    assert trained == learned == {name for name, _ in method.named_parameters()}
    assert torch.isfinite(predict(method, data.test)).all()


def test_single_modality_batches_have_no_repair() -> None:
    data = tiny_observed()
    method = build(data, damage_rate=1.0)
    output = method.training_step(whole(one_pattern(data.train, data.features, (False, True))))
    assert output.terms["repair"] == 0
    output.loss.backward()


def test_damage_is_drawn_from_the_options() -> None:
    data = tiny_observed(missing=0.0)
    method = build(data, damage_rate=1.0, drop_rate=0.0, max_severity=0.0)
    result = method.damage(whole(data.train))
    assert result.corrupted.any(1).all()
    assert not result.dropped.any()
    assert all(
        torch.equal(part.tokens, whole(data.train).inputs[name].tokens) for name, part in result.batch.inputs.items()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, r"method\.norm='l1'"),
        ({"width": 30}, r"method\.heads=4 does not divide method\.width=30"),
        ({"norm": "soft", "norm_weight": 0.0}, r"method\.norm_weight=0 makes"),
        ({"damage_rate": 1.5}, r"method\.damage_rate=1\.5"),
        ({"pretrain_epochs": 0}, r"method\.pretrain_epochs=0"),
        ({"repair_weight": -1.0}, r"method\.repair_weight=-1"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    RamlStyleConfig().validate()
    with pytest.raises(UsageError, match=message):
        replace(RamlStyleConfig(), **options).validate()


def test_noise_is_smaller_where_severity_is() -> None:
    """A damaged branch of hardly any noise is hardly any different."""
    data = tiny_observed(missing=0.0)
    distances = []
    for severity in (0.01, 2.0):
        method = build(data, damage_rate=1.0, drop_rate=0.0, max_severity=severity)
        torch.manual_seed(0)
        distances.append(float(method.training_step(whole(data.train)).terms["consistency"].detach()))
    assert distances[0] < 0.01 * distances[1]
    assert np.isfinite(distances).all()
