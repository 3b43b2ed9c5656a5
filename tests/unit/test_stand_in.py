"""The stand-in for a GPU refuses what a GPU refuses, and computes what the CPU computes."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness.testing.stand_in import stand_in


def here() -> Tensor:
    return torch.arange(12.0).view(3, 4)


def there() -> Tensor:
    return here().to(stand_in())


@pytest.mark.parametrize(
    "mixed",
    [
        lambda: there() + here(),
        lambda: here() * there(),
        lambda: there() @ here().T,
        lambda: torch.cat([there(), here()]),
        lambda: there().index_copy(0, torch.tensor([1]), there()[:1]),
        lambda: there().masked_fill(here() > 1, 0.0),
        lambda: nn.functional.embedding(torch.tensor([1]), there()),
        lambda: here()[torch.tensor([1]).to(stand_in())],
        lambda: there().index_put((torch.tensor([0, 1]),), here()[:2]),
        lambda: nn.Linear(4, 2)(there()),
        lambda: torch.stack([there(), torch.zeros(3, 4)]),
    ],
)
def test_tensors_of_two_devices_do_not_meet(mixed: Callable[[], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="is on cpu, others are on stand_in"):
        mixed()


def test_values_reach_python_only_from_the_cpu() -> None:
    with pytest.raises((TypeError, RuntimeError)):
        there().numpy()
    assert there().cpu().numpy().sum() == 66
    assert float(there().sum()) == 66
    assert there()[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "allowed",
    [
        lambda x: x * torch.tensor(2.0),  # a single number
        lambda x: x[torch.tensor([2, 0])],  # indices, which a GPU fetches
        lambda x: x.index_put((torch.tensor([0]),), x[:1] + 1),
        lambda x: torch.where(x > 3, x, torch.tensor(0.0)),
        lambda x: torch.zeros(3, 4, device=x.device).copy_(torch.ones(3, 4)) + x,
        lambda x: x.new_tensor([1.0, 2.0, 3.0, 4.0]) + x,
        lambda x: torch.tensor([1.0, 2.0, 3.0, 4.0], device=x.device) + x,
        lambda x: torch.arange(4, device=x.device) + torch.full((3, 4), 2, device=x.device) + x,
        lambda x: torch.triu_indices(3, 3, device=x.device),
        lambda x: torch.fft.ifft(torch.fft.fft(x, dim=0) * torch.fft.fft(x + 1, dim=0).conj(), dim=0).real,
        lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda x: (x + 1).t_().unsqueeze_(0).squeeze_(0),
        lambda x: x.unfold(1, 2, 1).transpose(0, 1).contiguous().add_(x[0, 1]),
    ],
)
def test_it_computes_what_the_cpu_computes(allowed: Callable[[Tensor], Tensor]) -> None:
    found = allowed(there())
    assert found.device == stand_in()
    assert torch.equal(found.cpu(), allowed(here()))


def test_views_share_their_values() -> None:
    values = there()
    values.view(-1)[:2].mul_(0).add_(5)
    values[1, 2:] = 7
    assert values.tolist() == [[5, 5, 2, 3], [4, 5, 7, 7], [8, 9, 10, 11]]


def test_a_network_learns_the_same() -> None:
    def trained(device: torch.device | str) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 3))
        network.to(device)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(here().to(device)), torch.tensor([0, 2, 1]).to(device)).backward()
            optimizer.step()
        return network

    on_cpu, elsewhere = trained("cpu").state_dict(), trained(stand_in()).state_dict()
    assert all(value.device == stand_in() for value in elsewhere.values())
    assert all(torch.equal(elsewhere[name].cpu(), value) for name, value in on_cpu.items())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_which_gpus_fuse(kind: type[nn.RNNBase], bias: bool) -> None:
    torch.manual_seed(0)
    layer, values = kind(4, 5, 2, bias=bias, batch_first=True, bidirectional=True), torch.randn(3, 6, 4)
    expected = layer(values)[0]
    expected.square().sum().backward()
    gradients = [part.grad.clone() for part in layer.parameters() if part.grad is not None]
    layer.zero_grad()
    layer.to(stand_in())
    found = layer(values.to(stand_in()))[0]
    found.square().sum().backward()
    torch.testing.assert_close(found.cpu(), expected)
    assert len(gradients) == len(list(layer.parameters()))
    for part, gradient in zip(layer.parameters(), gradients, strict=True):
        assert part.grad is not None
        torch.testing.assert_close(part.grad.cpu(), gradient)
    with torch.inference_mode():
        torch.testing.assert_close(layer(values.to(stand_in()))[0].cpu(), expected)


def test_too_late_an_import_is_said() -> None:
    """In a process of its own, where torch has counted its devices."""
    program = """
import torch
torch.ones(1, requires_grad=True).sum().backward()
from harness.testing.stand_in import stand_in
try:
    stand_in()
except NotImplementedError as error:
    print(error)
torch.ones(1, requires_grad=True).sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "before harness.testing.stand_in was imported" in done.stdout


def test_it_is_saved_as_a_tensor_of_the_cpu() -> None:
    file = io.BytesIO()
    torch.save({"values": there()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["values"]
    assert loaded.device.type == "cpu"
    assert torch.equal(loaded, here())
