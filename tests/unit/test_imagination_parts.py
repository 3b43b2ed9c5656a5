"""Parts that feature methods share: pattern draws, residual cascade, CMD, modality encoders, classifier."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.methods.common.cmd import central_moment_discrepancy, mean_pairwise_cmd
from harness.methods.common.cra import CascadedResidualAutoencoder
from harness.methods.common.fc_classifier import FcClassifier
from harness.methods.common.initialization import kaiming_
from harness.methods.common.modality_encoders import (
    LstmEncoder,
    PooledEncoder,
    TextCnnEncoder,
    encode_present,
    encoder_kind,
    modality_encoder,
)
from harness.methods.common.simulation import draw_patterns
from harness.testing.data import tiny_observed
from harness.testing.methods import whole
from harness.types import FeatureSpec, ModalityBatch, ModalitySpec


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- draws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [True, False])
def test_patterns_are_uniform_over_the_subsets(full: bool) -> None:
    torch.manual_seed(0)
    present = torch.tensor([True, False, True, True]).expand(14000, 4)
    kept = draw_patterns(present, full=full)
    counts = Counter(map(tuple, kept.tolist()))
    assert len(counts) == (7 if full else 6)
    assert ((True, False, True, True) in counts) == full
    assert not kept[:, 1].any()
    expected = 14000 / len(counts)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@pytest.mark.parametrize("full", [True, False])
def test_a_single_modality_stays(full: bool) -> None:
    present = torch.tensor([[True, False], [False, True], [False, False]])
    assert torch.equal(draw_patterns(present, full=full), present)


def test_each_sample_draws_from_its_own_modalities() -> None:
    torch.manual_seed(1)
    present = torch.rand(500, 5) < 0.6
    present[:, 2] |= ~present.any(1)
    kept = draw_patterns(present, full=False)
    assert not (kept & ~present).any()
    assert kept.any(1).all()
    several = present.sum(1) > 1
    assert (kept != present).any(1)[several].all()
    torch.manual_seed(7)
    first = draw_patterns(present, full=True)
    torch.manual_seed(7)
    assert torch.equal(first, draw_patterns(present, full=True))


# -- cascaded residual autoencoder ---------------------------------------------------------------------------


def test_cascade_has_the_published_size() -> None:
    cascade = CascadedResidualAutoencoder(384)
    assert size(cascade) == 1_694_400
    assert size(CascadedResidualAutoencoder(256, out_width=128)) == 1_169_088
    output, latent = cascade(torch.randn(7, 384))
    assert output.shape == (7, 384)
    assert latent.shape == (7, 64 * 5) == (7, cascade.latent_width)


def test_zero_cascade_returns_zero() -> None:
    cascade = CascadedResidualAutoencoder(12, hidden=(8, 4), blocks=3, out_width=5)
    for parameter in cascade.parameters():
        nn.init.zeros_(parameter)
    output, latent = cascade(torch.randn(2, 12))
    assert torch.equal(output, torch.zeros(2, 5))
    assert torch.equal(latent, torch.zeros(2, 12))


def test_cascade_is_the_recursion() -> None:
    """u_1 = h, o_k = D_k(E_k(u_k)), u_{k+1} = u_k + o_k, output of u_K + o_K; written with plain matrix products."""
    torch.manual_seed(0)
    cascade = CascadedResidualAutoencoder(6, hidden=(5, 4, 3), blocks=2)
    state = cascade.state_dict()

    def linear(name: str, values: Tensor) -> Tensor:
        return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    features = torch.randn(3, 6)
    u, codes = features, []
    for k in range(2):
        z = u
        for layer in (0, 2, 4):
            z = linear(f"blocks.{k}.encoder.{layer}", z)
            z = torch.where(z > 0, z, 0.01 * z) if layer < 4 else z
        o = z
        for layer in (0, 2, 4):
            o = linear(f"blocks.{k}.decoder.{layer}", o)
            o = o.clamp(min=0) if layer < 4 else o
        u = u + o
        codes.append(z)
    expected = linear("transition.2", linear("transition.0", u).clamp(min=0))
    output, latent = cascade(features)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(latent, torch.cat(codes, 1))


# -- central moment discrepancy ------------------------------------------------------------------------------


def test_cmd_is_a_symmetric_distance() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(20, 4), 2 * torch.randn(30, 4) + 1
    assert central_moment_discrepancy(p, p) == 0
    assert central_moment_discrepancy(p, p.flip(0)) < 1e-5
    assert central_moment_discrepancy(p, q) > 0
    torch.testing.assert_close(central_moment_discrepancy(p, q), central_moment_discrepancy(q, p))


def test_cmd_by_hand() -> None:
    p, q = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    # Means 1 and 2; even central moments 1 and 2^k, odd ones 0.
    assert central_moment_discrepancy(p, q).item() == pytest.approx(1 + 3 + 15)
    assert central_moment_discrepancy(p, q, moments=1).item() == pytest.approx(1)


def test_cmd_of_equal_sets_has_a_finite_gradient() -> None:
    p = torch.randn(9, 3, requires_grad=True)
    central_moment_discrepancy(p, p.detach()).backward()
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()


def test_magnitude_for_standard_normal_batches() -> None:
    """The fifth moment dominates on unbounded features: single draws of 64 x 128 lie between 60 and 110."""
    torch.manual_seed(0)
    values = [central_moment_discrepancy(torch.randn(64, 128), torch.randn(64, 128)).item() for _ in range(20)]
    assert all(60 < value < 110 for value in values)
    assert 75 < sum(values) / 20 < 85


def test_pairs_with_few_rows_are_left_out() -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(8, 3), torch.randn(9, 3), torch.randn(7, 3)
    torch.testing.assert_close(mean_pairwise_cmd([a, b, c]), central_moment_discrepancy(a, b))
    pairs = torch.stack([central_moment_discrepancy(*pair) for pair in ((a, b), (a, c), (b, c))])
    torch.testing.assert_close(mean_pairwise_cmd([a, b, c], min_rows=1), pairs.mean())
    empty = torch.zeros(0, 3, requires_grad=True)
    nothing = mean_pairwise_cmd([empty, a])
    assert nothing == 0
    nothing.backward()


# -- modality encoders ---------------------------------------------------------------------------------------


def part_of(tokens: Tensor, mask: Tensor | None = None, rows: Tensor | None = None) -> ModalityBatch:
    count = len(tokens)
    rows = torch.arange(count) if rows is None else rows
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
    return ModalityBatch(rows, tokens, mask, tokens.sum(1), torch.arange(count))


def test_published_sizes() -> None:
    audio, video, text = (FeatureSpec(50, (width,), width) for width in (130, 342, 1024))
    assert size(modality_encoder("lstm", audio, 128, 0.0)) == 133_120
    assert size(modality_encoder("lstm", video, 128, 0.0)) == 241_664
    assert size(modality_encoder("text_cnn", text, 128, 0.0)) == 1_622_528


def test_kinds() -> None:
    text, caption = ModalitySpec("text", "text"), ModalitySpec("caption", "text")
    audio, image = ModalitySpec("audio", "audio"), ModalitySpec("image", "features")
    assert {encoder_kind("pooled", modality) for modality in (text, caption, audio, image)} == {"pooled"}
    assert encoder_kind("tokens", text) == encoder_kind("tokens", caption) == "text_cnn"
    assert encoder_kind("tokens", audio) == encoder_kind("tokens", image) == "lstm"
    # Published features of emotion data sets are of no kind but `features`.
    assert encoder_kind("tokens", ModalitySpec("text", "features")) == "text_cnn"
    with pytest.raises(UsageError, match="pooled, lstm, text_cnn"):
        modality_encoder("gru", FeatureSpec(1, (2,), 2), 4, 0.0)
    with pytest.raises(UsageError, match="tokens of shape"):
        modality_encoder("lstm", FeatureSpec(9, (), 2), 4, 0.0)


@pytest.mark.parametrize("kind", ["lstm", "text_cnn"])
def test_padding_is_masked(kind: str) -> None:
    """A padded sequence is encoded as the same sequence without padding, whatever stands there, wherever it is."""
    torch.manual_seed(0)
    encoder = modality_encoder(kind, FeatureSpec(9, (3,), 3), 4, 0.0).eval()
    plain = modality_encoder(kind, FeatureSpec(9, (3,), 3), 4, 0.0, masked=False).eval()
    plain.load_state_dict(encoder.state_dict())
    tokens = torch.randn(2, 6, 3)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 1, 1, 1, 0]]).bool()
    padded = torch.full((2, 9, 3), torch.nan)
    padded[mask] = tokens.reshape(-1, 3)
    torch.testing.assert_close(encoder(part_of(padded, mask)), encoder(part_of(tokens)))
    torch.testing.assert_close(encoder(part_of(padded, mask)), plain(part_of(tokens)))
    zeroed = padded.nan_to_num(0.0)
    torch.testing.assert_close(plain(part_of(padded, mask)), plain(part_of(zeroed)))
    assert not torch.allclose(plain(part_of(zeroed, mask)), encoder(part_of(zeroed, mask)))


@pytest.mark.parametrize("kind", ["pooled", "lstm", "text_cnn"])
@pytest.mark.parametrize("length", [1, 4, 7])
def test_absent_samples_get_the_encoding_of_zeros(kind: str, length: int) -> None:
    torch.manual_seed(0)
    encoder = modality_encoder(kind, FeatureSpec(length, (3,), 3), 4, 0.3).eval()
    tokens = torch.randn(2, length, 3)
    rows = torch.tensor([0, 3])
    encoded = encoder(part_of(tokens, rows=rows), 5)
    assert encoded.shape == (5, 4)
    torch.testing.assert_close(encoded[rows], encoder(part_of(tokens)))
    torch.testing.assert_close(encoded[[1, 2, 4]], encoder(part_of(torch.zeros(3, length, 3))))
    nothing = part_of(tokens[:0], rows=rows[:0])
    torch.testing.assert_close(encoder(nothing, 2), encoder(part_of(torch.zeros(2, length, 3))))
    assert encoder(nothing).shape == (0, 4)


@pytest.mark.parametrize("kind", ["lstm", "text_cnn"])
def test_a_sequence_of_padding_is_one_zero_token(kind: str) -> None:
    torch.manual_seed(0)
    encoder = modality_encoder(kind, FeatureSpec(6, (3,), 3), 4, 0.0).eval()
    found = encoder(part_of(torch.randn(1, 6, 3), torch.zeros(1, 6, dtype=torch.bool)))
    torch.testing.assert_close(found, encoder(part_of(torch.zeros(1, 1, 3))))


def test_encodings_of_a_batch() -> None:
    data = tiny_observed("multiclass", 3)
    specs = data.feature_specs
    encoders = nn.ModuleDict(
        {
            "text": TextCnnEncoder(specs["text"], 8),
            "image": LstmEncoder(specs["image"], 8),
            "audio": PooledEncoder(specs["audio"], 8, 0.0),
        }
    ).eval()
    batch = whole(data.train)
    encoded = encode_present(encoders, batch)
    assert encoded.shape == (len(batch), 3, 8)
    for column, (name, encoder) in enumerate(encoders.items()):
        part = batch.inputs[name]
        torch.testing.assert_close(encoded[part.rows, column], encoder(part))


# -- classifier ----------------------------------------------------------------------------------------------


def test_classifier() -> None:
    classifier = FcClassifier(320, 4)
    assert size(classifier) == 58_116
    logits, feature = classifier(torch.randn(3, 320))
    assert logits.shape == (3, 4)
    assert feature.shape == (3, 128)
    torch.testing.assert_close(logits, classifier.output(feature))


def test_batch_norm_takes_one_sample() -> None:
    classifier = FcClassifier(5, 2, hidden=(6, 4, 3), dropout=0.0, batch_norm=True)
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in classifier.modules()) == 3
    classifier(torch.randn(8, 5))
    single = torch.randn(1, 5)
    torch.testing.assert_close(classifier.train()(single)[0], classifier.eval()(single)[0])


def test_kaiming() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(400, 300), nn.Conv2d(1, 64, (3, 50)), nn.LSTM(3, 4))
    before = module[2].weight_ih_l0.clone()
    kaiming_(module)
    assert module[0].weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert module[1].weight.std().item() == pytest.approx((2 / 150) ** 0.5, rel=0.05)
    assert not module[0].bias.any()
    assert torch.equal(before, module[2].weight_ih_l0)
