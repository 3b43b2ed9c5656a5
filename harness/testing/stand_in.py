"""A stand-in for a GPU: a torch device on every machine, whose tensors refuse to meet those of the CPU.

Its tensors lie in the CPU's memory and it computes on the CPU, so results are the CPU's (up to rounding in recurrent
layers, which GPUs fuse), and what a GPU refuses it refuses: tensors of two devices in one operation.  It shows where
code forgets to move something; it shows nothing about a GPU's own kernels, precision, random numbers or speed.

    device = stand_in()
    method.to(device)(batch.to(device))

Importing this module adds the device to the process.  That must come before the first backward pass, at which torch
counts its devices for good.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map

_NAME = "stand_in"
_aten = torch.ops.aten

#: Operations that read tensors of the CPU on a GPU too.
_MIXED = {_aten.copy_.default, _aten._to_copy.default, _aten._pack_padded_sequence.default}
#: Operations whose indices may lie on the CPU, and nothing else.
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
#: Operations that put off their work with a mark on the tensor, which is not looked at here: done at once.
_AT_ONCE: Mapping[Any, Any] = {
    _aten._conj.default: _aten.conj_physical.default,
    _aten._neg_view.default: _aten.neg.default,
}
#: Operations that make a tensor out of none; torch builds the others from these.
_MADE = (
    _aten.empty.memory_format,
    _aten.empty_strided.default,
    _aten.triu_indices.default,
    _aten.tril_indices.default,
)


def _lstm_cell(
    own: Tensor, carried: Tensor, state: Tensor, bias: Tensor | None = None, carried_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a GPU fuses: gates `[B, 4d]` of input and hidden state, and the cell's state, to the next of both."""
    gates = own + carried + (0 if bias is None else bias) + (0 if carried_bias is None else carried_bias)
    enters, stays, new, leaves = gates.chunk(4, 1)
    state = stays.sigmoid() * state + enters.sigmoid() * new.tanh()
    return leaves.sigmoid() * state.tanh(), state, gates


def _gru_cell(
    own: Tensor, carried: Tensor, hidden: Tensor, bias: Tensor | None = None, carried_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same of a gated recurrent unit: gates `[B, 3d]`."""
    own, carried = own + (0 if bias is None else bias), carried + (0 if carried_bias is None else carried_bias)
    (own_reset, own_update, new), (reset, update, old) = own.chunk(3, 1), carried.chunk(3, 1)
    new = (new + (own_reset + reset).sigmoid() * old).tanh()
    return (hidden - new) * (own_update + update).sigmoid() + new, own


#: Operations that GPUs have and the CPU has not.
_FUSED: Mapping[Any, Callable[..., Any]] = {
    _aten._thnn_fused_lstm_cell.default: _lstm_cell,
    _aten._thnn_fused_gru_cell.default: _gru_cell,
}


class StandInTensor(Tensor):
    """A tensor of the stand-in.

    Attributes:
        held: Where its values are, on the CPU.
    """

    held: Tensor

    # Plain torch functions; only what reaches the device is looked at.
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: Tensor) -> StandInTensor:
        """Wraps a tensor of the CPU, without a copy."""
        with torch.inference_mode(False):  # torch has no views in Python of what was made without versions
            made: StandInTensor = Tensor._make_wrapper_subclass(
                cls,
                real.size(),
                strides=real.stride(),
                storage_offset=real.storage_offset(),
                dtype=real.dtype,
                device=torch.device(_NAME, 0),
            )
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Computes on the CPU what all of whose tensors are here.

        Raises:
            RuntimeError: If one of them is on the CPU.
        """
        del types
        kwargs = kwargs or {}
        _check(func, args, kwargs)
        leaves = tree_leaves((args, kwargs))
        compute = _AT_ONCE.get(func) or _FUSED.get(func, func)
        found = compute(*tree_map(_real, args), **tree_map(_real, kwargs))
        if torch.Tag.inplace_view in func.tags:  # also the shape that torch sees from outside
            with no_dispatch():
                func(*args, **kwargs)
        if func is _aten.copy_.default:
            return args[0]
        if any(isinstance(leaf, torch.device) and leaf.type == "cpu" for leaf in leaves):
            return found
        here = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, StandInTensor)}

        def keep(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            # What was changed in place comes back as the tensor that it was.
            return here[id(leaf)] if id(leaf) in here else StandInTensor(leaf)

        return tree_map(keep, found)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{_NAME}({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor of the CPU, which is where a checkpoint is loaded to."""
        return self.held.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def tolist(self) -> Any:
        """Python numbers; torch has it for its own tensors alone."""
        return self.held.tolist()

    def data_ptr(self) -> int:
        """Address of the values."""
        return self.held.data_ptr()


@functools.cache
def stand_in() -> torch.device:
    """The stand-in.

    Raises:
        NotImplementedError: If this torch cannot have a device written in Python (before 2.9), or this module was
            imported after a backward pass.
    """
    if _LIBRARY is None:
        raise NotImplementedError(f"torch {torch.__version__} has no devices written in Python; 2.9 has.")
    device = torch.device(_NAME, 0)
    try:
        torch.ones(1, device=device, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise NotImplementedError(
            "torch counted its devices at a backward pass before harness.testing.stand_in was imported; start anew."
        ) from error
    return device


def _real(leaf: Any) -> Any:
    """What stands for an argument on the CPU."""
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf.held if isinstance(leaf, StandInTensor) else leaf


def _check(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if func in _MIXED:
        return
    looked_at = (args[0], *args[2:], kwargs) if func in _INDEXED else (args, kwargs)
    for leaf in tree_leaves(looked_at):
        # A GPU takes a single number from the CPU.
        if isinstance(leaf, Tensor) and not isinstance(leaf, StandInTensor) and leaf.ndim:
            raise RuntimeError(f"{func}: a tensor {list(leaf.shape)} is on {leaf.device}, others are on {_NAME}.")


class _Module:
    """What torch asks of `torch.stand_in`."""

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """It draws from the CPU's generator."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _registered() -> Any:
    """Adds the device; the library that is returned keeps its operations alive.  None where torch cannot."""
    setup: Callable[..., None] | None = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        return None
    setup(_NAME, backend_module=_Module())
    make_library: Any = torch.library.Library
    library = make_library("aten", "IMPL")

    def made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def on_stand_in(*sizes: Any, device: Any = None, pin_memory: Any = None, **options: Any) -> Tensor:  # noqa: ARG001
            return StandInTensor(make(*sizes, device="cpu", **options))

        return on_stand_in

    def copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: ARG001
        _real(target).copy_(_real(source))
        return target

    for make in _MADE:
        library.impl(make, made(make), "PrivateUse1")
    library.impl("_copy_from", copied, "PrivateUse1")
    for fused, cell in _FUSED.items():
        library.impl(fused, cell, "AutogradPrivateUse1")  # of differentiable parts
    return library


_LIBRARY = _registered()
