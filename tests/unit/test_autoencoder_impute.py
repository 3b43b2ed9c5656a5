"""Imputation by an autoencoder: what it learns from, what it fills, what each stage trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import UsageError
from harness.methods.autoencoder_impute.config import AutoencoderImputeConfig
from harness.methods.autoencoder_impute.model import CLASSIFY, IMPUTE, AutoencoderImpute
from harness.methods.common.moments import Standardizer, observed_moments
from harness.methods.common.simulation import draw_patterns
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.testing.methods import contract_for, training, whole
from harness.trainer import count_parameters
from harness.types import Batch


def build(data: TinyData, stage: str = IMPUTE, **options: Any) -> AutoencoderImpute:
    config = AutoencoderImputeConfig(**{"blocks": 2, "width": 16, **options})
    method = contract_for("autoencoder_impute")().build(data, config=config)
    assert isinstance(method, AutoencoderImpute)
    method.stage = stage
    return method.train()


# -- moments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["pooled", "tokens"])
def test_moments_are_those_of_observed_values(of: Any) -> None:
    data = tiny_observed(modalities=3, train=600)
    for column, name in enumerate(data.spec.modality_names):
        array = data.features[name]
        rows = data.train.rows[data.train.present[:, column]]
        values = array.pooled[rows] if of == "pooled" else array.tokens[rows][array.mask[rows]]
        mean, std = observed_moments(data.train, name, of)
        np.testing.assert_allclose(mean.numpy(), values.mean(0), atol=1e-5)
        np.testing.assert_allclose(std.numpy(), values.std(0), atol=1e-5)


def test_moments_of_constants_and_of_nothing() -> None:
    data = tiny_observed()
    data.features["text"].pooled[:, 2] = 0.3
    _, std = observed_moments(data.train, "text", "pooled")
    assert std[2] == 0
    assert (std[[0, 1, 3]] > 0).all()
    empty = one_pattern(data.train, data.features, (True, False))
    assert all(not part.any() for part in observed_moments(empty, "image", "tokens"))
    # A constant is left where it is instead of being blown up.
    scaler = build(data).scalers["text"]
    assert isinstance(scaler, Standardizer)
    assert scaler.std[2] == 1


# -- parts -------------------------------------------------------------------------------------------------------


def test_parameter_count_of_the_card() -> None:
    data = tiny_observed("multiclass", 3)
    total, width = 8 + 6 + 5, 16
    blocks = 2 * (2 * (256 * total + 128 * 256 + 64 * 128) + total + 832)
    classifier = (total + 1) * width + (width + 1) * width + (width + 1) * 3
    assert count_parameters(build(data))[0] == blocks + 2 * total**2 + 2 * total + classifier


def test_known_features_stay_and_missing_ones_are_the_autoencoders() -> None:
    data = tiny_observed(modalities=3)
    method = build(data)
    batch = whole(data.test)
    filled = method.impute(batch)
    features = method._features(batch)
    restored = method.autoencoder(features)[0]
    start = 0
    for column, name in enumerate(data.spec.modality_names):
        width = data.features[name].spec.pooled_dim
        piece = slice(start, start + width)
        there = batch.present[:, column]
        scaler = method.scalers[name]
        assert isinstance(scaler, Standardizer)
        raw = torch.from_numpy(data.features[name].pooled[data.test.rows])[there]
        assert not features[~there, piece].any()
        torch.testing.assert_close(filled[there, piece] * scaler.std + scaler.mean, raw)
        torch.testing.assert_close(filled[~there, piece], restored[~there, piece])
        start += width


def test_reconstruction_weighs_modalities_and_known_values_alike() -> None:
    data = tiny_observed(modalities=3)
    method = build(data)
    batch = whole(data.train)
    torch.manual_seed(3)
    loss = method._reconstruction(batch)
    torch.manual_seed(3)
    kept = draw_patterns(batch.present, full=False)
    assert (kept.sum(1) < batch.present.sum(1))[batch.present.sum(1) > 1].all()
    output = method.autoencoder(method._features(batch.without(~kept)))[0]
    target = method._features(batch)
    errors = []
    for row in range(len(batch)):
        start = 0
        for column, name in enumerate(data.spec.modality_names):
            width = data.features[name].spec.pooled_dim
            if batch.present[row, column]:
                errors.append((output[row, start : start + width] - target[row, start : start + width]).square().mean())
            start += width
    torch.testing.assert_close(loss, torch.stack(errors).mean())


# -- stages ------------------------------------------------------------------------------------------------------


def test_the_task_does_not_reach_the_autoencoder() -> None:
    data = tiny_observed()
    method = build(data)
    output = method.training_step(whole(data.train))
    parameters = list(method.autoencoder.parameters())
    assert all(g is None for g in torch.autograd.grad(output.terms["task"], parameters, None, True, allow_unused=True))
    found = torch.autograd.grad(output.terms["reconstruction"], parameters, retain_graph=True)
    assert all(g.any() for g in found)
    watching = torch.autograd.grad(
        output.terms["reconstruction"], list(method.classifier.parameters()), allow_unused=True
    )
    assert all(g is None for g in watching)


def test_stages() -> None:
    data = tiny_observed()
    method = build(data, impute_epochs=7)
    assert [(stage.name, stage.epochs) for stage in method.stages()] == [(IMPUTE, 7), (CLASSIFY, 0)]
    frozen: dict[str, torch.Tensor] = {}
    steps = 0
    for output in training(method, data.train, steps=2):
        if method.stage == CLASSIFY:
            assert set(output.terms) == {"task"}
            state = {name: value.clone() for name, value in method.autoencoder.state_dict().items()}
            if frozen:
                assert all(torch.equal(state[name], value) for name, value in frozen.items())
            frozen = state
            steps += 1
    assert steps == 2
    method.stage = CLASSIFY
    assert {name.partition(".")[0] for name, _ in method.trained()} == {"classifier"}


def test_targets_are_complete_only_under_complete_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    for supervision in ("observed", "complete"):
        data = tiny_observed(supervision=supervision)
        method = build(data)
        seen: list[Batch] = []
        monkeypatch.setattr(method, "_reconstruction", lambda known, seen=seen: [seen.append(known), torch.ones(())][1])
        method.training_step(whole(data.train))
        assert bool(seen[0].present.all()) == (supervision == "complete")


def test_it_learns_to_impute() -> None:
    """Both modalities carry the label, so a held-out one can be told better than by its mean, from incomplete data."""
    data = tiny_observed("regression", train=200, test=100, noise=0.2)
    method = build(data)
    for _ in training(method, data.train, steps=60):
        if method.stage == CLASSIFY:
            break
    method.eval()
    truth = method._features(whole(one_pattern(data.test, data.features, (True, True))))[:, 8:]
    filled = method.impute(whole(one_pattern(data.test, data.features, (True, False))))[:, 8:]
    assert (filled - truth).square().mean() < 0.5 * truth.square().mean()


@pytest.mark.parametrize(("option", "value"), [("blocks", 0), ("width", 0), ("impute_epochs", 0), ("dropout", 1.5)])
def test_options(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"method\.{option}={value}"):
        AutoencoderImputeConfig(**{option: value}).validate()
