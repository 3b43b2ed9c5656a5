"""Nearest-neighbour imputation against a restatement in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from harness.config import RetrievalConfig
from harness.errors import UsageError
from harness.masking import ObservedDataset
from harness.method import MethodContext
from harness.methods.baselines.config import ZeroFillConfig
from harness.methods.common.backbones.config import FusionConfig
from harness.methods.common.backbones.fusion import FusionBackbone
from harness.methods.knn_impute.config import KnnImputeConfig
from harness.methods.knn_impute.model import KnnImpute
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.testing.methods import contract_for, predict, whole
from harness.trainer import count_parameters
from harness.types import FeatureSpec

Array = npt.NDArray[Any]


def build(data: TinyData, **options: Any) -> KnnImpute:
    method = contract_for("knn_impute")().build(data, config=KnnImputeConfig(**options))
    assert isinstance(method, KnnImpute)
    return method.eval()


def unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def neighbours(data: TinyData, view: ObservedDataset, row: int, target: str, k: int) -> list[tuple[float, int]]:
    """Scores and training rows of the k nearest donors of one sample, best first."""
    names = data.spec.modality_names
    scored = []
    for donor in range(len(data.train)):
        shared = [
            name for column, name in enumerate(names) if view.present[row, column] and data.train.present[donor, column]
        ]
        if not data.train.present[donor, names.index(target)] or not shared:
            continue
        if data.train.ids[donor] == view.ids[row]:
            continue
        score = sum(
            float(
                unit(data.features[name].pooled[view.rows[row]])
                @ unit(data.features[name].pooled[data.train.rows[donor]])
            )
            for name in shared
        )
        scored.append((score, donor))
    return sorted(scored, reverse=True)[:k]


def average(data: TinyData, target: str, donors: list[int], weights: Array) -> tuple[Array, Array]:
    array = data.features[target]
    rows = data.train.rows[donors]
    mean = np.zeros(array.tokens.shape[1:])
    for position in range(mean.shape[0]):
        there = array.mask[rows, position]
        if there.any():
            mean[position] = np.average(array.tokens[rows, position][there], axis=0, weights=weights[there])
    return mean, array.mask[rows].any(0)


@pytest.mark.parametrize("weights", ["uniform", "similarity"])
@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_filling_is_the_mean_of_the_nearest(weights: str, modalities: int, split: str) -> None:
    data = tiny_observed(modalities=modalities, train=60)
    method = build(data, k=4, weights=weights, temperature=0.2)
    view = data.train if split == "train" else data.test
    filling = method.filling(whole(view))
    checked = 0
    for column, target in enumerate(data.spec.modality_names):
        tokens, mask = filling[target]
        for row in np.flatnonzero(~view.present[:, column]):
            near = neighbours(data, view, int(row), target, 4)
            scores = np.array([score for score, _ in near])
            if len(near) < 4 or scores.min() <= 0:
                # Donors that share nothing score zero and stand before negative ones.
                continue
            share = np.exp(scores / 0.2) if weights == "similarity" else np.ones(4)
            mean, read = average(data, target, [donor for _, donor in near], share)
            np.testing.assert_allclose(tokens[row].numpy(), mean, atol=1e-5)
            assert mask[row].tolist() == read.tolist()
            checked += 1
    assert checked > 10


class FrozenFusion(FusionBackbone):
    """The default backbone as a frozen one, so that embeddings are what is filled."""

    def __init__(self, config: FusionConfig, features: Mapping[str, FeatureSpec]) -> None:
        super().__init__(config, features)
        self.requires_grad_(False)

    @property
    def frozen(self) -> bool:
        return True


def test_a_frozen_backbone_is_given_mean_embeddings() -> None:
    data = tiny_observed(train=60)
    specs = data.feature_specs
    config = FusionConfig(hidden_size=16, num_blocks=1, num_heads=2, dropout=0.0)
    context = MethodContext(data.spec, specs, lambda: FrozenFusion(config, specs), retrieval=RetrievalConfig("torch"))
    torch.manual_seed(0)
    method = KnnImpute(KnnImputeConfig(k=3), context).eval()
    method.prepare(data.train)
    tokens, mask = method.filling(whole(data.test))["image"]
    assert torch.isfinite(predict(method, data.test)).all()
    rows = np.flatnonzero(~data.test.present[:, 1])
    for row in rows:
        near = neighbours(data, data.test, int(row), "image", 3)
        array = data.features["image"]
        donors = data.train.rows[[donor for _, donor in near]]
        embedded, real = method.network.backbone.embed(
            "image", torch.from_numpy(array.tokens[donors]), torch.from_numpy(array.mask[donors])
        )
        expected = (embedded * real.unsqueeze(2)).sum(0) / real.sum(0).clamp(min=1).unsqueeze(1)
        torch.testing.assert_close(tokens[row], expected, atol=1e-5, rtol=1e-4)
        assert mask[row].tolist() == real.any(0).tolist()
    assert len(rows)


def test_donors_have_the_modality_and_something_to_be_found_by() -> None:
    data = tiny_observed(modalities=3)
    banks = build(data).banks()
    present = data.train.present
    for column, name in enumerate(data.spec.modality_names):
        expected = {
            sample for sample, there in zip(data.train.ids, present, strict=True) if there[column] and there.sum() > 1
        }
        assert set(banks[name].ids) == expected
        incomplete = ~banks[name].present.all(1)
        assert incomplete.any(), "incomplete samples are donors too"


def test_donors_that_share_nothing_are_not_used() -> None:
    """The query has `text` alone; some donors of `audio` have `image` and `audio`."""
    data = tiny_observed(modalities=3, train=30)
    method = build(data, k=30)
    query = whole(one_pattern(data.test, data.features, (True, False, False)))
    bank = method.banks()["audio"]
    assert isinstance(bank.present, np.ndarray)
    strangers = ~bank.present[:, 0]
    assert strangers.any()
    near = method._neighbours(bank, query)
    assert near.found.sum(1).tolist() == [int((~strangers).sum())] * len(query)
    assert not strangers[near.index[near.found].numpy()].any()


def test_without_donors_it_is_zero_fill() -> None:
    data = tiny_observed()
    data.views["train"] = one_pattern(data.train, data.features, (True, False))
    method = build(data)
    assert not method.banks()
    plain = contract_for("zero_fill")().build(data, config=ZeroFillConfig())
    assert torch.equal(predict(method, data.test), predict(plain, data.test))
    assert count_parameters(method) == count_parameters(plain)


def test_a_query_without_neighbours_is_zero_filled() -> None:
    data = tiny_observed(train=1, missing=0.0)
    method = build(data)
    assert len(method.banks()["image"]) == 1
    query = whole(one_pattern(data.train, data.features, (True, False)))
    tokens, mask = method.filling(query)["image"]
    assert not tokens.any()
    assert mask.all()


def test_present_modalities_are_left_alone() -> None:
    data = tiny_observed(missing=0.0)
    plain = contract_for("zero_fill")().build(data, config=ZeroFillConfig())
    assert torch.equal(predict(build(data), data.test), predict(plain, data.test))


def test_options() -> None:
    with pytest.raises(UsageError, match=r"method\.weights='distance' is not one of uniform, similarity"):
        KnnImputeConfig(weights="distance").validate()
    with pytest.raises(UsageError, match=r"method\.k=0 must be >= 1"):
        KnnImputeConfig(k=0).validate()
    with pytest.raises(UsageError, match=r"method\.temperature=0\.0 must be above 0"):
        KnnImputeConfig(temperature=0.0).validate()
