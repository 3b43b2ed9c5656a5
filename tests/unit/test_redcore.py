"""RedCore: published sizes, the weights' dynamics, masks, codes, and the released computation restated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UsageError
from harness.method import MethodContext
from harness.methods.common.vib import GaussianCode, VariationalTokenEncoder
from harness.methods.redcore.balance import SelfBalance
from harness.methods.redcore.config import RedCoreConfig
from harness.methods.redcore.model import RedCore
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.testing.methods import contract_for, logits_of, predict, train, training, whole
from harness.types import Batch, FeatureSpec

SMALL: Mapping[str, Any] = {"width": 8, "decoder_blocks": 2, "decoder_hidden": [8, 4]}


def build(data: TinyData, **options: Any) -> RedCore:
    method = contract_for("redcore")().build(data, config=RedCoreConfig(**{**SMALL, **options}))
    assert isinstance(method, RedCore)
    return method.train()


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_published_parameter_counts(iemocap: MethodContext) -> None:
    with torch.device("meta"):
        method = RedCore(RedCoreConfig.from_preset("official"), iemocap)
    pooling = 16_640  # an attention pooling in every released encoder that is never called
    assert {name: size(encoder) + pooling for name, encoder in method.encoders.items()} == {
        "audio": 662_784,
        "video": 689_920,
        "text": 777_216,
    }
    assert {size(decoder) for decoder in method.decoders.values()} == {1_169_088}
    assert size(method) == 5_804_112 - 3 * pooling
    assert all(parameter.requires_grad for parameter in method.parameters())


def test_every_parameter_of_the_token_encoder_learns() -> None:
    data = tiny_observed("multiclass", 3)
    method = build(data, encoder="tokens")
    learned: set[str] = set()
    for _ in training(method, data.train, steps=3):
        learned |= {name for name, value in method.named_parameters() if value.grad is not None and value.grad.any()}
    assert learned == {name for name, _ in method.named_parameters()}


# -- the weights ---------------------------------------------------------------------------------------------------


def balance(count: int = 3, **options: Any) -> SelfBalance:
    defaults = {"growth_unit": "iterations", "growth_every": 500}
    return SelfBalance(count, RedCoreConfig(**{**defaults, **options}))


def run(one: SelfBalance, losses: Sequence[float], steps: int) -> Tensor:
    for _ in range(steps):
        one.update(torch.tensor(losses), 1)
    return one.beta


def test_reference_trajectory() -> None:
    one = balance(average_rate=1.0)
    assert one.beta.tolist() == [1.0, 1.0, 1.0]
    assert one.step_size == pytest.approx(0.15)
    beta = one.update(torch.tensor([1.0, 1.2, 2.0]), 1)
    torch.testing.assert_close(beta, torch.tensor([0.552, 0.564, 0.614]), atol=5e-4, rtol=0)


def test_the_rule_is_an_integrator() -> None:
    """Constant losses: the largest takes all, however close they are."""
    one = balance()
    # Updates happen at iterations 0, 3, 6, ...: eleven of them.
    torch.testing.assert_close(run(one, (1.0, 1.2, 2.0), 31), torch.tensor([0.10, 0.24, 0.97]), atol=0.02, rtol=0)
    torch.testing.assert_close(run(one, (1.0, 1.2, 2.0), 30), torch.tensor([0.09, 0.09, 0.99]), atol=0.02, rtol=0)
    close = run(balance(), (1.0, 1.02, 1.05), 1000)
    torch.testing.assert_close(close, torch.tensor([0.1, 0.1, 0.99]), atol=0.02, rtol=0)
    # Only a falling loss of the favoured modality brings it back.
    assert run(one, (2.0, 1.2, 1.0), 60)[0] > 0.9


def test_weights_lie_on_the_sphere_and_follow_the_losses() -> None:
    one = balance(4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        beta = one.update(torch.rand(4, generator=generator) + 0.1, 1)
        assert float(beta.norm()) == pytest.approx(1.0, abs=1e-6)
        assert (beta > 0.05).all()
    torch.testing.assert_close(run(balance(), (3.0, 3.0, 3.0), 20), torch.full((3,), 3**-0.5))
    beta = run(balance(), (1.0, 3.0, 2.0), 1)
    assert beta[1] > beta[2] > beta[0]
    pair = run(balance(2), (1.0, 2.0), 1)
    assert pair.tolist() == pytest.approx([0.95 / math.hypot(0.95, 1.05), 1.05 / math.hypot(0.95, 1.05)])


def test_running_averages() -> None:
    one = balance(2, average_rate=0.7)
    one.update(torch.tensor([1.0, 2.0]), 1)
    torch.testing.assert_close(one.average, torch.tensor([0.7, 1.4]))
    one.update(torch.tensor([0.0, 1.0]), 1)
    torch.testing.assert_close(one.average, torch.tensor([0.7, 0.3 * 1.4 + 0.7]))
    assert not one.average.requires_grad
    nothing = balance(2)
    assert nothing.update(torch.zeros(2), 1).tolist() == [1.0, 1.0]


def test_update_period_and_growth() -> None:
    one = balance(2, update_every=3)
    values = [one.update(torch.tensor([1.0, 2.0]), 1).tolist() for _ in range(7)]
    assert values[0] == values[1] == values[2] != values[3]
    assert values[3] == values[4] == values[5] != values[6]
    fixed = balance(2, step_size=0.0)
    assert run(fixed, (1.0, 5.0), 9).tolist() == pytest.approx([0.5**0.5] * 2)

    one = balance(growth_every=4, step_growth=2.0)
    sizes = []
    for _ in range(9):
        sizes.append(one.step_size)
        one.update(torch.ones(3), 16)
    assert sizes == pytest.approx([0.2] * 4 + [0.4] * 4 + [0.8])
    one = balance(growth_unit="epochs", growth_every=2, step_growth=2.0)
    one.epoch_size = 48
    sizes = []
    for _ in range(13):
        sizes.append(one.step_size)
        one.update(torch.ones(3), 16)
    assert sizes == pytest.approx([0.2] * 6 + [0.4] * 6 + [0.8])


def test_weights_are_logged_and_part_of_the_state() -> None:
    data = tiny_observed("multiclass", 3)
    method = build(data)
    assert method.balance.epoch_size == len(data.train)
    output = method(whole(data.train))
    assert list(output.logged) == ["beta/text", "beta/image", "beta/audio"]
    assert not set(output.terms) & set(output.logged)
    torch.testing.assert_close(torch.stack([*output.logged.values()]), method.balance.beta)
    state = method.state_dict()
    assert {name for name in state if name.startswith("balance.")} == {
        "balance.average",
        "balance.beta",
        "balance.iteration",
        "balance.samples",
    }
    assert int(state["balance.iteration"]) == 1
    assert int(state["balance.samples"]) == len(data.train)
    before = method.balance.beta.clone()
    predict(method, data.test)
    assert torch.equal(method.balance.beta, before)


# -- codes ---------------------------------------------------------------------------------------------------------


def test_present_codes_stay_and_missing_ones_are_predicted() -> None:
    data = tiny_observed("multiclass", 3)
    method = build(data)
    batch = whole(data.train)
    noise = torch.randn(*batch.present.shape, 8)
    found = method.represent(batch, noise)
    assert torch.equal(found.filled[batch.present], found.sampled[batch.present])
    assert torch.equal(found.filled[~batch.present], found.predicted[~batch.present])
    torch.testing.assert_close(found.sampled, found.code.mean + (0.5 * found.code.log_variance).exp() * noise)
    torch.testing.assert_close(found.predicted[:, 1], method.decoders["image"](found.sampled[:, [0, 2]].flatten(1))[0])
    assert torch.equal(method.represent(batch, None).sampled, method.represent(batch, None).code.mean)


def test_reconstruction_is_a_mean_over_present_samples() -> None:
    data = tiny_observed("multiclass", 3)
    batch = whole(data.train)
    for scale, factor in (("sum", 1.0), ("mean", 1 / 8)):
        method = build(data, reconstruction=scale)
        found = method.represent(batch, None)
        losses = method.reconstruction_losses(found, batch.present)
        for column in range(3):
            there = batch.present[:, column]
            error = ((found.predicted - found.sampled) ** 2)[there, column].sum() / there.sum()
            torch.testing.assert_close(losses[column], factor * error)
    # The gradient reaches the prediction and the code itself.
    gradients = torch.autograd.grad(losses[0], [*method.decoders["text"].parameters()], retain_graph=True)
    assert any(gradient.any() for gradient in gradients)
    assert any(gradient.any() for gradient in torch.autograd.grad(losses[0], [*method.encoders["text"].parameters()]))


def test_a_batch_without_a_modality() -> None:
    """The released loss is 0/0 there."""
    data = tiny_observed("multiclass", 3)
    method = build(data)
    method(whole(data.train))
    average, beta = method.balance.average.clone(), method.balance.beta.clone()
    output = method(whole(one_pattern(data.train, data.features, (True, False, True))))
    assert torch.isfinite(output.loss)
    assert method.balance.average[1] == average[1]
    assert method.balance.average[0] != average[0]
    assert torch.equal(method.balance.beta, beta)
    output.loss.backward()
    assert all(torch.isfinite(value.grad).all() for value in method.parameters() if value.grad is not None)


def test_divergence_is_twice_the_kl() -> None:
    mean, log_variance = torch.randn(5, 4), torch.randn(5, 4)
    code = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    kl = torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(GaussianCode(mean, log_variance).divergence(), 2 * kl)


def test_evaluation_is_repeatable() -> None:
    data = tiny_observed("multiclass", 3)
    clean = build(data)
    sampled = build(data, eval_sample=True)
    sampled.load_state_dict(clean.state_dict())
    batch = whole(data.test)
    assert torch.equal(clean.eval().predict_step(batch), clean.predict_step(batch))
    first = sampled.eval().predict_step(batch)
    assert torch.equal(first, sampled.predict_step(batch)), "the draw belongs to the id"
    assert not torch.allclose(first, clean.predict_step(batch))
    alone = torch.cat([sampled.predict_step(data.test.batch([row])) for row in range(4)])
    torch.testing.assert_close(alone, first[:4])
    noise = sampled._fixed_noise(batch)
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)


# -- masks ---------------------------------------------------------------------------------------------------------


def test_masks_belong_to_samples() -> None:
    """By default what a training sample misses stays missing, also where the truth could be had."""
    data = tiny_observed("multiclass", 3, supervision="complete")
    method = build(data)
    batch = whole(data.train)
    torch.manual_seed(0)
    loss = method(batch).loss
    hidden = replace(batch, full=None)
    method = build(data)
    torch.manual_seed(0)
    assert torch.equal(method(hidden).loss, loss)


def test_masks_by_position() -> None:
    """Every epoch another mask, at the protocol's rates; values come from the complete sample."""
    data = tiny_observed("multiclass", 3, supervision="complete")
    method = build(data, mask_binding="position")
    batch = whole(data.train)
    torch.manual_seed(0)
    dealt, again = method._dealt(batch), method._dealt(batch)
    assert not torch.equal(dealt.present, again.present)
    assert sorted(dealt.present.tolist()) == sorted(batch.present.tolist())
    assert (dealt.present & ~batch.present).any(), "a value comes back that the protocol hides"
    shown: list[Batch] = []
    for _ in range(20):
        shown.append(method._dealt(batch))
    assert torch.stack([one.present for one in shown]).any(0).float().mean() > 0.95
    part, full = dealt.inputs["audio"], whole(data.train.complete_view()).inputs["audio"]
    assert torch.equal(part.tokens, full.tokens[part.rows])


def test_masks_by_position_leave_nobody_empty() -> None:
    data = tiny_observed("multiclass", 2, supervision="complete")
    method = build(data, mask_binding="position")
    batch = whole(data.train)
    # Half of the samples have text only by nature, and the protocol shows the image of the others.
    natural = torch.ones_like(batch.present)
    natural[::2, 1] = False
    shown = torch.zeros_like(natural)
    shown[::2, 0] = shown[1::2, 1] = True
    assert batch.full is not None
    batch.full = batch.full.without(~natural)
    batch = replace(batch, present=shown)
    torch.manual_seed(0)
    for _ in range(10):
        assert method._dealt(batch).present.any(1).all()


def test_presets_ask_for_what_they_need() -> None:
    asked = {name: RedCoreConfig.from_preset(name).needs_complete_supervision() for name in RedCoreConfig.presets}
    assert asked == {"clean": False, "paper": False, "official": True}


# -- options -------------------------------------------------------------------------------------------------------


def test_weights_of_the_losses() -> None:
    data = tiny_observed()
    batch = whole(data.train)
    weights = {"unimodal_weight": 2.0, "kl_weight": 3.0, "reconstruction_weight": 5.0}
    output = build(data, **weights)(batch)
    expected = (
        output.terms["task"]
        + 2.0 * output.terms["unimodal"]
        + 3.0 * output.terms["kl"]
        + 5.0 * output.terms["reconstruction"]
    )
    torch.testing.assert_close(output.loss, expected)
    alone = build(data, unimodal_weight=0.0, kl_weight=0.0, reconstruction_weight=0.0)
    output = alone(batch)
    assert set(output.terms) == set(alone.config.loss_terms()) == {"task"}
    assert len(alone.unimodal_classifiers) == 0
    assert RedCoreConfig().loss_weights() == {"task": 1.0, "unimodal": 1.0, "kl": 8e-4, "reconstruction": 0.15}


@pytest.mark.parametrize("padding", ["masked", "included"])
def test_padding(padding: str) -> None:
    data = tiny_observed("multiclass", 2, missing=0.0)
    method = build(data, encoder="tokens", padding=padding, standardize=False).eval()
    batch = whole(data.test)
    part = batch.inputs["text"]
    longer = replace(
        part, tokens=F.pad(part.tokens, (0, 0, 0, 2), value=7.0), mask=F.pad(part.mask, (0, 2), value=False)
    )
    padded = replace(batch, inputs={**batch.inputs, "text": longer})
    same = torch.allclose(logits_of(method, batch), logits_of(method, padded), atol=1e-6)
    assert same == (padding == "masked")


def test_a_sequence_of_padding_only() -> None:
    encoder = VariationalTokenEncoder(FeatureSpec(3, (4,), 4), 8).eval()
    data = tiny_observed()
    part = whole(data.test).inputs["text"]
    rows = torch.arange(2)
    empty = replace(part, rows=rows, tokens=torch.ones(2, 3, 4), mask=torch.zeros(2, 3, dtype=torch.bool))
    code = encoder(empty, 2)
    nothing = replace(part, rows=rows[:0], tokens=torch.ones(0, 1, 4), mask=torch.zeros(0, 1, dtype=torch.bool))
    torch.testing.assert_close(code.mean, encoder(nothing, 2).mean)


@pytest.mark.parametrize("encoder", ["pooled", "tokens"])
def test_zero_is_the_mean_of_standardised_features(encoder: str) -> None:
    data = tiny_observed()
    part = whole(data.train).inputs["text"]
    scaled = build(data, encoder=encoder)._scaled("text", part)
    values = scaled.pooled if encoder == "pooled" else scaled.tokens[part.mask]
    torch.testing.assert_close(values.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    raw = build(data, encoder=encoder, standardize=False)._scaled("text", part)
    assert torch.equal(raw.pooled, part.pooled)
    assert torch.equal(raw.tokens, part.tokens)


def test_initialization_and_sizes() -> None:
    data = tiny_observed()
    torch_like, kaiming = (build(data, initialization=name) for name in ("torch", "kaiming"))
    assert torch_like.classifier.output.bias.any()
    assert not kaiming.classifier.output.bias.any()
    assert len(kaiming.decoders["text"].blocks) == 2
    assert kaiming.decoders["text"].latent_width == 8
    assert {layer.p for layer in build(data, dropout=0.3).classifier.modules() if isinstance(layer, nn.Dropout)} == {
        0.3
    }


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "x"},
        {"padding": "x"},
        {"initialization": "x"},
        {"reconstruction": "x"},
        {"growth_unit": "x"},
        {"mask_binding": "x"},
        {"width": 0},
        {"width": 12, "encoder": "tokens"},
        {"decoder_blocks": 0},
        {"decoder_hidden": []},
        {"decoder_hidden": [8, 0]},
        {"dropout": 1.5},
        {"unimodal_weight": -1.0},
        {"kl_weight": -1.0},
        {"reconstruction_weight": -1.0},
        {"average_rate": 1.5},
        {"step_size": -0.1},
        {"step_growth": 0.5},
        {"growth_every": 0},
        {"update_every": 0},
    ],
)
def test_bad_options(options: Any) -> None:
    with pytest.raises(UsageError, match=f"method.{next(iter(options))}"):
        RedCoreConfig(**options).validate()


# -- the released computation, restated ------------------------------------------------------------------------------


def affine(state: Mapping[str, Tensor], name: str, values: Tensor) -> Tensor:
    return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def normed(state: Mapping[str, Tensor], name: str, values: Tensor) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def plain_encoder(state: Mapping[str, Tensor], tokens: Tensor, heads: int = 8) -> tuple[Tensor, Tensor]:
    x = affine(state, "projection", tokens)
    for number in range(3):
        at = f"blocks.{number}"
        h = normed(state, f"{at}.attention_norm", x)
        h = h @ state[f"{at}.attention.in_proj_weight"].T + state[f"{at}.attention.in_proj_bias"]
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in h.chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        h = affine(state, f"{at}.attention.out_proj", (weights @ v).transpose(1, 2).flatten(2))
        x = x + normed(state, f"{at}.attention_branch_norm", h)
        h = affine(state, f"{at}.feedforward.0", normed(state, f"{at}.feedforward_norm", x)).relu()
        x = x + normed(state, f"{at}.feedforward_branch_norm", affine(state, f"{at}.feedforward.3", h))
    code = affine(state, "code", torch.sigmoid(x.mean(1)))
    return code[:, : code.shape[1] // 2], code[:, code.shape[1] // 2 :]


def plain_decoder(state: Mapping[str, Tensor], features: Tensor, blocks: int) -> Tensor:
    for k in range(blocks):
        code = F.leaky_relu(affine(state, f"blocks.{k}.encoder.0", features), 0.01)
        code = affine(state, f"blocks.{k}.encoder.2", code)
        features = features + affine(
            state, f"blocks.{k}.decoder.2", affine(state, f"blocks.{k}.decoder.0", code).relu()
        )
    return affine(state, "transition.2", affine(state, "transition.0", features).relu())


def plain_classifier(state: Mapping[str, Tensor], features: Tensor) -> Tensor:
    for name in ("layers.0", "layers.3"):
        features = affine(state, name, features).relu()
    return affine(state, "output", features)


def trained_official(data: TinyData) -> RedCore:
    """The `official` preset after three steps, in eval mode."""
    config = replace(RedCoreConfig.from_preset("official"), **SMALL)
    method = contract_for("redcore")().build(data, config=config)
    assert isinstance(method, RedCore)
    with torch.enable_grad():
        train(method, data.train, steps=3)
    method.eval()
    return method


@torch.no_grad()
def test_official_computation() -> None:
    data = tiny_observed("multiclass", 3, length=6, supervision="complete")
    method = trained_official(data)
    batch = whole(data.train)
    average, beta = method.balance.average.numpy().astype(float), method.balance.beta.numpy().astype(float)
    assert int(method.balance.iteration) == 3, "the next step updates the weights"
    torch.manual_seed(3)
    found = method.training_step(batch)

    torch.manual_seed(3)
    kept = batch.present[torch.randperm(len(batch))].float()
    noise = torch.randn(len(batch), 3, 8)
    means, log_variances = [], []
    for column, (name, array) in enumerate(data.features.items()):
        tokens = torch.from_numpy(array.tokens[data.train.rows]) * kept[:, column].view(-1, 1, 1)
        mean, log_variance = plain_encoder(method.encoders[name].state_dict(), tokens)
        means.append(mean)
        log_variances.append(log_variance)
    z = [mean + noise[:, c] * torch.exp(0.5 * log_variances[c]) for c, mean in enumerate(means)]
    names = method.modalities
    predicted = [
        plain_decoder(method.decoders[name].state_dict(), torch.cat([z[o] for o in range(3) if o != c], 1), 2)
        for c, name in enumerate(names)
    ]
    filled = [kept[:, c : c + 1] * z[c] + (1 - kept[:, c : c + 1]) * predicted[c] for c in range(3)]
    losses = [
        ((predicted[c] * kept[:, c : c + 1] - z[c] * kept[:, c : c + 1]) ** 2).sum() / kept[:, c].sum()
        for c in range(3)
    ]
    kl = sum(
        -((1 + log_variances[c] - means[c] ** 2 - log_variances[c].exp()) * kept[:, c : c + 1]).sum() / len(batch)
        for c in range(3)
    )
    average = 0.3 * average + 0.7 * np.array([float(loss) for loss in losses])
    advantage = (average.mean() - average) / average.mean()
    beta = np.maximum(0.1, beta - 0.15 * advantage)
    beta = beta / np.sqrt((beta**2).sum())
    expected = {
        "task": F.cross_entropy(plain_classifier(method.classifier.state_dict(), torch.cat(filled, 1)), batch.labels),
        "unimodal": sum(
            F.cross_entropy(plain_classifier(method.unimodal_classifiers[n].state_dict(), filled[c]), batch.labels)
            for c, n in enumerate(names)
        ),
        "kl": kl,
        "reconstruction": sum(float(beta[c]) * losses[c] for c in range(3)),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], torch.as_tensor(value), atol=1e-5, rtol=1e-4)
    total = expected["task"] + expected["unimodal"] + 8e-4 * expected["kl"] + 0.15 * expected["reconstruction"]
    torch.testing.assert_close(found.loss, torch.as_tensor(total), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.balance.beta, torch.from_numpy(beta).float(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_official_prediction() -> None:
    data = tiny_observed("multiclass", 3, length=6, supervision="complete")
    method = trained_official(data)
    batch = whole(data.test)
    noise, kept = method._fixed_noise(batch), batch.present.float()
    z = []
    for column, (name, array) in enumerate(data.features.items()):
        tokens = torch.from_numpy(array.tokens[data.test.rows]) * kept[:, column].view(-1, 1, 1)
        mean, log_variance = plain_encoder(method.encoders[name].state_dict(), tokens)
        z.append(mean + noise[:, column] * torch.exp(0.5 * log_variance))
    filled = [
        kept[:, c : c + 1] * z[c]
        + (1 - kept[:, c : c + 1])
        * plain_decoder(method.decoders[name].state_dict(), torch.cat([z[o] for o in range(3) if o != c], 1), 2)
        for c, name in enumerate(method.modalities)
    ]
    logits = plain_classifier(method.classifier.state_dict(), torch.cat(filled, 1))
    torch.testing.assert_close(method.predict_step(batch), logits, atol=1e-5, rtol=1e-5)
