"""ShaSpec: fusion, stand-ins, auxiliary losses and their gradients, the released choices restated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.methods.shaspec.config import ShaSpecConfig
from harness.methods.shaspec.model import Features, ShaSpec, aligned_pairs, alignment_loss, domain_loss
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.testing.methods import contract_for, predict, whole
from harness.trainer import count_parameters

WIDTH = 8


def build(data: TinyData, preset: str = "clean", **options: Any) -> ShaSpec:
    config = ShaSpecConfig(**{**ShaSpecConfig.presets[preset], "width": WIDTH, **options})
    method = contract_for("shaspec")().build(data, config=config)
    assert isinstance(method, ShaSpec)
    return method.eval()


def test_parameter_count_of_the_card() -> None:
    count, total, outputs = 3, 8 + 6 + 5, 3
    square = WIDTH**2 + WIDTH
    expected = (total + count) * WIDTH + square
    expected += (total + count) * WIDTH + count * square
    expected += 2 * WIDTH**2 + WIDTH + (WIDTH + 1) * count
    expected += count * WIDTH**2 + WIDTH + (WIDTH + 1) * outputs
    assert count_parameters(build(tiny_observed("multiclass", count)))[0] == expected


@pytest.mark.parametrize("preset", ["clean", "official"])
def test_forward_pass_restated(preset: str) -> None:
    """Sample by sample, from the formulas of the card."""
    data = tiny_observed("multiclass", 3)
    method = build(data, preset)
    logits = predict(method, data.test)
    names = data.spec.modality_names
    for row in range(len(data.test)):
        shared, specific = {}, {}
        for column, name in enumerate(names):
            if not data.test.present[row, column]:
                continue
            observed = data.features[name].pooled[data.train.rows[data.train.present[:, column]]].astype(np.float64)
            raw = data.features[name].pooled[data.test.rows[row]]
            x = torch.tensor((raw - observed.mean(0)) / observed.std(0), dtype=torch.float32)
            shared[name] = method.shared_encoder(method.adapters[name](x))
            specific[name] = method.specific_encoders[name](x)
        stand_in = next(iter(shared.values())) if preset == "official" else torch.stack(list(shared.values())).mean(0)
        fused = [
            shared[name] + method.fusion(torch.cat([shared[name], specific[name]])) if name in shared else stand_in
            for name in names
        ]
        torch.testing.assert_close(logits[row], method.classifier(torch.cat(fused))[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", ["clean", "official"])
def test_losses_restated(preset: str) -> None:
    data = tiny_observed("multiclass", 4)
    method = build(data, preset)
    batch = whole(data.train)
    output = method.training_step(batch)
    with torch.no_grad():
        features = method.encode(batch)
    everywhere = preset == "official"
    pairs = [(0, 1), (1, 2), (2, 3), (3, 0)] if everywhere else [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    aligned = 0.0
    for left, right in pairs:
        found = [
            float((features.shared[row, left] - features.shared[row, right]).abs().mean())
            for row in range(len(batch))
            if everywhere or (batch.present[row, left] and batch.present[row, right])
        ]
        aligned += float(np.mean(found))
    assert method.domain_classifier is not None
    domain = [
        -float(method.domain_classifier(features.specific[row, column]).detach().log_softmax(0)[column])
        for row in range(len(batch))
        for column in range(4)
        if everywhere or batch.present[row, column]
    ]
    assert output.terms["alignment"].item() == pytest.approx(aligned, rel=1e-5)
    assert output.terms["domain"].item() == pytest.approx(float(np.mean(domain)), rel=1e-5)
    total = output.terms["task"] + 0.1 * output.terms["alignment"] + 0.02 * output.terms["domain"]
    torch.testing.assert_close(output.loss, total)


def test_a_missing_modality_is_the_mean_of_the_shared_features() -> None:
    method = build(tiny_observed(modalities=3))
    torch.manual_seed(0)
    features = Features(torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH))
    present = torch.tensor([[True, False, True], [False, True, False]])
    fused = method.fuse(features, present)
    torch.testing.assert_close(fused[0, 1], (features.shared[0, 0] + features.shared[0, 2]) / 2)
    torch.testing.assert_close(fused[1, 0], features.shared[1, 1])
    torch.testing.assert_close(fused[1, 2], features.shared[1, 1])
    first = build(tiny_observed(modalities=3), filler="first").fuse(features, present)
    torch.testing.assert_close(first[0, 1], features.shared[0, 0])


def test_the_fusion_is_a_residual() -> None:
    method = build(tiny_observed())
    nn.init.zeros_(method.fusion.weight)
    nn.init.zeros_(method.fusion.bias)
    features = Features(torch.randn(4, 2, WIDTH), torch.randn(4, 2, WIDTH))
    assert torch.equal(method.fuse(features, torch.ones(4, 2, dtype=torch.bool)), features.shared)


# -- auxiliary losses ----------------------------------------------------------------------------------------------


def test_pairs() -> None:
    assert list(aligned_pairs("all", 3)) == [(0, 1), (0, 2), (1, 2)]
    assert list(aligned_pairs("ring", 4)) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert list(aligned_pairs("ring", 2)) == [(0, 1), (1, 0)]


def test_alignment_of_equal_features_and_of_none() -> None:
    shared = torch.randn(3, 1, 4).repeat(1, 2, 1).requires_grad_()
    assert alignment_loss(shared, torch.ones(3, 2, dtype=torch.bool), [(0, 1)]) == 0
    alone = alignment_loss(torch.randn(3, 2, 4, requires_grad=True), torch.eye(2)[[0, 1, 0]].bool(), [(0, 1)])
    assert alone == 0
    alone.backward()


def test_domain_loss_of_a_perfect_and_a_blind_classifier() -> None:
    counted = torch.tensor([[True, True, False], [False, True, True]])
    sure = 50.0 * torch.eye(3).expand(2, 3, 3)
    assert domain_loss(sure, counted) < 1e-6
    assert float(domain_loss(torch.zeros(2, 3, 3), counted)) == pytest.approx(np.log(3))


def test_gradient_routing() -> None:
    data = tiny_observed()
    method = build(data)
    terms = method.training_step(whole(data.train)).terms

    def reached(loss: Tensor, module: nn.Module) -> bool:
        found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
        return any(part is not None and bool(part.any()) for part in found)

    assert method.domain_classifier is not None
    expected = {
        "task": (True, True, True, False),
        "alignment": (True, False, False, False),
        "domain": (False, True, False, True),
    }
    for term, parts in expected.items():
        modules = (method.shared_encoder, method.specific_encoders, method.fusion, method.domain_classifier)
        assert tuple(reached(terms[term], module) for module in modules) == parts, term


def test_single_modality_samples_add_nothing_to_the_alignment() -> None:
    data = tiny_observed(modalities=3)
    output = build(data).training_step(whole(one_pattern(data.train, data.features, (False, True, False))))
    assert output.terms["alignment"] == 0
    assert output.terms["domain"] > 0


def test_weights_of_zero_take_a_loss_and_its_parameters_away() -> None:
    method = build(tiny_observed(), alignment_weight=0.0, domain_weight=0.0)
    assert method.config.loss_terms() == ("task",)
    assert method.domain_classifier is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("filler", "zero"),
        ("pairs", "none"),
        ("auxiliary", "no"),
        ("width", 0),
        ("alignment_weight", -1.0),
        ("dropout", 2.0),
    ],
)
def test_options(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"method\.{option}="):
        ShaSpecConfig(**{option: value}).validate()
