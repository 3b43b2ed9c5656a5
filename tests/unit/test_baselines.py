"""What the baselines compute, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from harness import registry
from harness.config import MethodConfig, RetrievalConfig
from harness.errors import UsageError
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.method import MethodContext, class_prior_logits
from harness.methods.baselines.config import (
    CompleteConfig,
    KnnVoteConfig,
    LateFusionConfig,
    MajorityConfig,
    MeanFillConfig,
    ModalityDropoutConfig,
    UnimodalConfig,
    ZeroFillConfig,
)
from harness.methods.baselines.fill import DropoutFusion
from harness.methods.common.backbones.config import FusionConfig
from harness.methods.common.backbones.fusion import FusionBackbone
from harness.methods.common.tokens import scatter_rows
from harness.testing.data import TinyData, one_pattern, tiny_observed, tiny_spec, with_presence
from harness.trainer import count_parameters
from harness.types import Batch, TaskKind

WIDTH = 16


def build(config: MethodConfig, data: TinyData, prepare: bool = True) -> Any:
    specs = data.feature_specs
    context = MethodContext(
        data.spec,
        specs,
        lambda: FusionBackbone(FusionConfig(hidden_size=WIDTH, num_blocks=2, num_heads=2, dropout=0.0), specs),
        retrieval=RetrievalConfig("torch"),
    )
    torch.manual_seed(0)
    method = config.implementation()(config, context)
    if prepare:
        method.prepare(data.train)
    return method.eval()


def whole(view: ObservedDataset) -> Batch:
    return view.batch(np.arange(len(view)))


def test_scatter_rows() -> None:
    part = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rows = torch.tensor([2, 0])
    assert scatter_rows(part, rows, 3).tolist() == [[3, 4], [0, 0], [1, 2]]
    assert scatter_rows(part, rows, 3, torch.tensor([7.0, 8.0])).tolist() == [[3, 4], [7, 8], [1, 2]]
    assert scatter_rows(part[:0], rows[:0], 2, 5.0).tolist() == [[5, 5], [5, 5]]
    mask = scatter_rows(torch.tensor([[True, False]]), torch.tensor([1]), 2, True)
    assert mask.tolist() == [[True, True], [True, False]]
    part.requires_grad_()
    scatter_rows(part, rows, 3).sum().backward()
    assert part.grad is not None
    assert (part.grad == 1).all()


# -- majority and unimodal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_majority_is_the_training_prior(task: TaskKind) -> None:
    data = tiny_observed(task)
    expected = class_prior_logits(data.spec.task, torch.from_numpy(data.train.labels))
    logits = build(MajorityConfig(), data)(whole(data.test))
    assert torch.equal(logits, expected.expand(len(data.test), -1))


def test_unimodal_answers_the_prior_where_its_modality_is_missing() -> None:
    data = tiny_observed()
    method = build(UnimodalConfig(modality="image"), data)
    logits = method(whole(data.test))
    there = torch.from_numpy(data.test.present[:, 1])
    assert (logits[~there] == method.prior).all()
    assert not (logits[there] == method.prior).any()
    assert method.prior.exp().sum() == pytest.approx(1.0)
    alone = method(whole(one_pattern(data.test, data.features, (False, True))))
    torch.testing.assert_close(alone[there], logits[there])


def test_unimodal_has_no_parameter_of_another_modality() -> None:
    data = tiny_observed(modalities=3)
    names = [name for name, _ in build(UnimodalConfig(modality="audio"), data).named_parameters()]
    assert any("audio" in name for name in names)
    assert not any("text" in name or "image" in name for name in names)


def test_unimodal_wants_a_modality_of_the_data_set() -> None:
    assert UnimodalConfig(modality="image").label == "image"
    UnimodalConfig(modality="image").validate_for(("text", "image"))
    with pytest.raises(UsageError, match=r"method\.modality is not set; choose one of text, image"):
        UnimodalConfig().validate_for(("text", "image"))
    with pytest.raises(UsageError, match=r"'sound' is not a modality of this data set; choose one of text, image"):
        UnimodalConfig(modality="sound").validate_for(("text", "image"))


# -- fills -----------------------------------------------------------------------------------------------------------


def test_zero_fill_equals_explicit_zeros_and_attends_to_them() -> None:
    data = tiny_observed()
    method = build(ZeroFillConfig(), data)
    missing = one_pattern(data.test, data.features, (True, False))
    array = data.features["image"]
    zeros = FeatureArray(np.zeros_like(array.tokens), np.ones_like(array.mask), array.pooled, array.digest)
    explicit = one_pattern(data.test, data.features | {"image": zeros}, (True, True))
    torch.testing.assert_close(method(whole(missing)), method(whole(explicit)))
    unseen = FeatureArray(zeros.tokens, np.zeros_like(array.mask), array.pooled, array.digest)
    ignored = one_pattern(data.test, data.features | {"image": unseen}, (True, True))
    assert (method(whole(missing)) - method(whole(ignored))).abs().max() > 1e-5


def test_mean_fill_averages_the_observed_training_tokens_per_position() -> None:
    data = tiny_observed(train=30, modalities=3)
    method = build(MeanFillConfig(), data)
    for column, name in enumerate(data.spec.modality_names):
        rows = data.train.rows[data.train.present[:, column]]
        tokens, mask = data.features[name].tokens[rows], data.features[name].mask[rows]
        for position in range(tokens.shape[1]):
            expected = tokens[mask[:, position], position].mean(0)
            np.testing.assert_allclose(method.fillers[name].tokens[position].numpy(), expected, atol=1e-6)
        assert method.fillers[name].mask.all()


def test_mean_fill_of_positions_and_modalities_that_training_never_shows() -> None:
    data = tiny_observed()
    data.features["text"].mask[:, 1] = False
    data.views["train"] = one_pattern(data.train, data.features, (True, False))
    method = build(MeanFillConfig(), data)
    assert method.fillers["text"].mask.tolist() == [True, False, True]
    assert method.fillers["image"].mask.all()
    assert (method.fillers["image"].tokens == 0).all()


def test_the_fills_are_one_network() -> None:
    data = tiny_observed()
    states = [build(config, data).network.state_dict() for config in (ZeroFillConfig(), CompleteConfig())]
    states += [build(config, data).network.state_dict() for config in (MeanFillConfig(), ModalityDropoutConfig())]
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())
    assert (ZeroFillConfig.reference, CompleteConfig.reference) == ("floor", "ceiling")
    assert [entry.name for entry in registry.methods if registry.methods.get(entry.name).oracle] == ["complete"]  # type: ignore[attr-defined]


# -- modality dropout ------------------------------------------------------------------------------------------------


def draws(rate: float, present: torch.Tensor, modalities: int = 3) -> torch.Tensor:
    method = build(ModalityDropoutConfig(rate=rate), tiny_observed(modalities=modalities), prepare=False)
    assert isinstance(method, DropoutFusion)
    torch.manual_seed(0)
    return method._draw(present)


def test_dropout_always_keeps_a_present_modality() -> None:
    present = torch.from_numpy(tiny_observed(modalities=3, train=210, missing=0.9).train.present).repeat(20, 1)
    for rate in (0.3, 0.9, 1.0):
        kept = present & ~draws(rate, present)
        assert kept.any(1).all()
        if rate == 1.0:
            assert (kept.sum(1) == 1).all()
    assert not draws(0.0, present).any()


def test_dropout_has_its_rate_and_prefers_nobody() -> None:
    present = torch.ones(20000, 3, dtype=torch.bool)
    dropped = draws(0.3, present).float()
    # One of three is kept where all would go: 0.3 - 0.3^3 / 3.
    assert dropped.mean(0).tolist() == pytest.approx([0.291] * 3, abs=0.012)
    pairs = (dropped[:, 0] * dropped[:, 1]).mean()
    assert float(pairs) == pytest.approx(0.3 * 0.3 - 0.3**3 * 2 / 3, abs=0.01)
    kept = ~draws(1.0, present)
    assert kept.float().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.015)


def test_dropout_hides_values_in_training_only() -> None:
    data = tiny_observed(missing=0.0)
    method = build(ModalityDropoutConfig(rate=1.0), data)
    plain = build(ZeroFillConfig(), data)
    batch = whole(data.train)
    assert torch.equal(method(batch), plain(batch))
    torch.manual_seed(0)
    loss = method.train()(batch).loss
    assert loss != plain.train()(batch).loss
    torch.manual_seed(0)
    assert method(batch).loss == loss


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_dropout_rate_is_a_share(rate: float) -> None:
    with pytest.raises(UsageError, match="rate"):
        ModalityDropoutConfig(rate=rate).validate()


# -- late fusion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_late_fusion_averages_log_probabilities_of_what_is_present(task: TaskKind) -> None:
    data = tiny_observed(task, 3)
    method = build(LateFusionConfig(), data)
    single = {}
    for column, name in enumerate(data.spec.modality_names):
        only = [position == column for position in range(3)]
        single[name] = method(whole(one_pattern(data.test, data.features, only)))
        if task in ("binary", "multiclass"):
            assert torch.allclose(single[name].exp().sum(1), torch.ones(len(data.test)))
    both = method(whole(one_pattern(data.test, data.features, (True, False, True))))
    torch.testing.assert_close(both, (single["text"] + single["audio"]) / 2)


def test_late_fusion_trains_each_network_on_its_own_samples() -> None:
    data = tiny_observed()
    method = build(LateFusionConfig(), data).train()

    def gradients(view: ObservedDataset) -> dict[str, torch.Tensor]:
        method.zero_grad()
        method(whole(view)).loss.backward()
        return {name: p.grad.clone() for name, p in method.networks["text"].named_parameters()}

    present = data.train.present.copy()
    mixed = gradients(data.train)
    present[:, 1] = True
    other = gradients(with_presence(data.train, data.features, present))
    assert all(torch.equal(other[name], value) for name, value in mixed.items())
    assert not any(value.any() for value in gradients(one_pattern(data.train, data.features, (False, True))).values())


# -- votes -----------------------------------------------------------------------------------------------------------

ANGLES = (0.0, 0.4, 1.2, 2.0)


def votes(task: TaskKind, labels: Any, query: int = 0, config: KnnVoteConfig | None = None) -> torch.Tensor:
    """Vote for a test copy of training sample `query` (whose own vote is excluded as a twin); keys lie on a circle."""
    rows = [*range(len(ANGLES)), query]
    keys = np.array([[math.cos(ANGLES[row]), math.sin(ANGLES[row])] for row in rows], dtype=np.float32)
    array = FeatureArray(keys[:, None], np.ones((len(rows), 1), dtype=np.bool_), keys, np.array(rows) + 100)
    features = {"text": array, "image": array}
    spec = tiny_spec(task)
    present = np.ones((len(rows), 2), dtype=np.bool_)
    every = ObservedDataset(
        spec,
        "train",
        [f"s{n}" for n in range(len(rows))],
        features,
        np.arange(len(rows)),
        present,
        present,
        np.asarray([*labels, labels[0]]),
    )
    context = MethodContext(spec, {}, FusionBackbone, retrieval=RetrievalConfig("torch"))  # type: ignore[arg-type]
    config = config or KnnVoteConfig(k=2, temperature=0.5, smoothing=0.2)
    method = config.implementation()(config, context).eval()
    method.prepare(every.subset(range(len(ANGLES))))
    result: torch.Tensor = method(every.batch([len(ANGLES)]))[0]
    return result


def expected_weights() -> tuple[float, float]:
    """Softmax over temperature of twice (two modalities) the cosines to the neighbours at 0.4 and 1.2."""
    near, far = (math.exp(2 * math.cos(angle) / 0.5) for angle in (0.4, 1.2))
    return near / (near + far), far / (near + far)


def test_knn_vote_of_classes() -> None:
    near, far = expected_weights()
    # Labels of training: 0, 1, 2, 1 -> Laplace-smoothed prior 2/7, 3/7, 2/7.
    expected = [0.2 * 2 / 7, 0.8 * near + 0.2 * 3 / 7, 0.8 * far + 0.2 * 2 / 7]
    assert votes("multiclass", [0, 1, 2, 1]).exp().tolist() == pytest.approx(expected, abs=1e-5)


def test_knn_vote_of_labels() -> None:
    near, far = expected_weights()
    labels = [np.array(row, dtype=np.float32) for row in ([1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0])]
    rates = [3 / 6, 3 / 6, 2 / 6]
    expected = [0.8 * vote + 0.2 * rate for vote, rate in zip((near, far, 0.0), rates, strict=True)]
    assert votes("multilabel", labels).sigmoid().tolist() == pytest.approx(expected, abs=1e-5)


def test_knn_vote_of_values() -> None:
    near, far = expected_weights()
    labels = [np.array(row, dtype=np.float32) for row in ([100, 0], [1, 5], [2, 5], [1, 2])]
    expected = [0.8 * (near + 2 * far) + 0.2 * 26, 0.8 * 5 + 0.2 * 3]
    assert votes("regression", labels).tolist() == pytest.approx(expected, abs=1e-4)


def test_knn_vote_uses_what_is_complete_unless_told() -> None:
    data = tiny_observed(missing=0.5)
    complete = int(data.train.present.all(1).sum())
    assert len(build(KnnVoteConfig(), data).banks()["memory"]) == complete < len(data.train)
    assert len(build(KnnVoteConfig(complete_only=False), data).banks()["memory"]) == len(data.train)


def test_knn_vote_without_a_neighbour_is_the_prior() -> None:
    data = tiny_observed(train=1, missing=0.0)
    method = build(KnnVoteConfig(), data)
    torch.testing.assert_close(method(whole(data.train))[0], method.prior)


@pytest.mark.parametrize(("option", "value"), [("k", 0), ("temperature", 0.0), ("smoothing", 0.0), ("smoothing", 1.1)])
def test_knn_vote_options(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=option):
        KnnVoteConfig(**{option: value}).validate()  # type: ignore[arg-type]


# -- cards -----------------------------------------------------------------------------------------------------------


def test_parameter_count_of_the_fusion_card() -> None:
    specs = tiny_observed(modalities=3).feature_specs
    config = FusionConfig(hidden_size=12, num_blocks=3, num_heads=3, mlp_ratio=4.0)
    count = sum(parameter.numel() for parameter in FusionBackbone(config, specs).parameters())
    per_modality = sum((spec.dim + 1) * 12 + spec.length * 12 + 2 * 12 for spec in specs.values())
    assert count == per_modality + 3 * ((4 + 2 * 4) * 12**2 + (9 + 4) * 12) + 12**2 + 4 * 12


def test_parameter_counts_of_the_cards() -> None:
    data = tiny_observed("multiclass", 2)
    head = 2 * WIDTH**2 + 6 * WIDTH + (2 * WIDTH + 1) * 3

    def backbone(*names: str) -> int:
        specs = {name: data.feature_specs[name] for name in names}
        config = FusionConfig(hidden_size=WIDTH, num_blocks=2, num_heads=2)
        return sum(parameter.numel() for parameter in FusionBackbone(config, specs).parameters())

    def counted(config: MethodConfig) -> int:
        return count_parameters(build(config, data))[0]

    for config in (ZeroFillConfig(), MeanFillConfig(), ModalityDropoutConfig(), CompleteConfig()):
        assert counted(config) == backbone("text", "image") + head
    assert counted(UnimodalConfig(modality="text")) == backbone("text") + head
    assert counted(LateFusionConfig()) == backbone("text") + backbone("image") + 2 * head
    assert counted(MajorityConfig()) == counted(KnnVoteConfig()) == 0
