"""Which device a run computes on: what it asks for must be there."""

from __future__ import annotations

from harness.errors import UsageError

#: `auto` is the GPU, or the CPU where there is none; which of several GPUs is for CUDA_VISIBLE_DEVICES to say.
DEVICES = ("auto", "cpu", "cuda", "mps")


def available_device(name: str) -> str:
    """The device for tensors that a run's `device` stands for on this machine.

    Raises:
        UsageError: If the machine does not have it, or torch was built without it.
    """
    import torch

    cuda = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if cuda else "cpu"
    if (name == "cuda" and not cuda) or (name == "mps" and not torch.backends.mps.is_available()):
        raise UsageError(f"device={name}: torch {torch.__version__} finds none here; use device=auto or device=cpu.")
    return name
