"""A run computes where it was told to, or says why it cannot."""

from __future__ import annotations

import pytest
import torch

from harness.cli import main
from harness.devices import available_device
from harness.errors import UsageError


@pytest.fixture
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)


@pytest.mark.parametrize(("cuda", "name"), [(True, "cuda"), (False, "cpu")], indirect=["cuda"])
def test_auto_is_the_gpu_where_there_is_one(cuda: None, name: str) -> None:
    assert available_device("auto") == name


@pytest.mark.parametrize("cuda", [True, False], indirect=True)
def test_the_cpu_is_always_there(cuda: None) -> None:
    assert available_device("cpu") == "cpu"


@pytest.mark.parametrize("cuda", [False], indirect=True)
def test_a_gpu_that_is_missing_is_an_error_and_not_the_cpu(cuda: None) -> None:
    with pytest.raises(UsageError, match=r"device=cuda: torch .* finds none here; use device=auto or device=cpu"):
        available_device("cuda")


@pytest.mark.parametrize("cuda", [False], indirect=True)
@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cuda", "finds none here"),
        ("gpu", "device='gpu' is not one of auto, cpu, cuda, mps"),
        ("cuda:1", "is not one of"),
    ],
)
def test_a_run_says_so_before_it_begins(
    cuda: None, device: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    home = f"paths.home={tmp_path}"
    assert main(["run", "method=majority", "dataset=synthetic", "protocol=both_0.5", f"device={device}", home]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
