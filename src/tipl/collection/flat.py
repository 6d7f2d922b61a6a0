"""The weights of somebody else's torch network as one vector: read, tried without a trace, moved.

In: named parameters.  Out: [P] float32 arrays; the parameters with other values, for a while or for good.

Trying weights leaves the network as it was, to the bit: its weights in their own precision, its buffers (BatchNorm's
statistics, say), torch's random generators, gradients, and autograd's count of changes, so that a backward pass whose
forward pass came before still runs. Moving them counts as a change, as an optimizer's step does.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import UninitializedTensorMixin  # pyright: ignore

from tipl.errors import TiplError

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_parameters(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse parameters that are no real numbers in memory.

    Raises:
        TiplError: one is lazy and has no shape yet, or is complex, whole, sparse, sharded or without storage.
    """
    for name, each in named:
        if isinstance(each, UninitializedTensorMixin):
            raise TiplError(
                f"Parameter {name} has no shape yet: it belongs to a lazy layer; run the network once before."
            )
        if not isinstance(each, Tensor):
            raise TiplError(f"Parameter {name} is a {type(each).__name__}; give torch parameters.")
        if each.dtype not in FLOATS:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            raise TiplError(f"Parameter {name} is of {each.dtype}; only {known} can be recorded or moved.")
        if type(each.data) is not Tensor or each.layout is not torch.strided or each.is_meta:
            raise TiplError(
                f"Parameter {name} is sharded, sparse, quantized or without storage; give the parameters of a network "
                "that lies in memory as it is."
            )


def check_apart(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse parameters that lie in the same memory, where what is added to both is added twice.

    Raises:
        TiplError: two do.
    """
    at: dict[int, str] = {}
    for name, each in named:
        if each.numel() and (first := at.setdefault(each.data_ptr(), name)) != name:
            raise TiplError(f"Parameters {first} and {name} lie in the same memory; tie them by one parameter.")


def flat(parameters: Iterable[Tensor]) -> np.ndarray:
    """[P] float32 on the CPU."""
    return torch.cat([p.detach().reshape(-1).to("cpu", torch.float32) for p in parameters]).numpy()


def parts(weights_P: np.ndarray, parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter and its part of the vector, float32, in its shape and on its device."""
    vector, start = torch.from_numpy(np.ascontiguousarray(weights_P, np.float32)), 0
    for parameter in parameters:
        part = vector[start : start + parameter.numel()].view(parameter.shape)
        yield parameter, part.to(parameter.device)
        start += parameter.numel()


@torch.no_grad()
def move(parameters: Sequence[Tensor], displacement_P: np.ndarray) -> None:
    """Add a displacement; what it leaves alone keeps its very bits."""
    for parameter, part in parts(displacement_P, parameters):
        parameter.copy_(torch.where(part == 0, parameter, parameter + part.to(parameter.dtype)))


@contextlib.contextmanager
def tried(parameters: Sequence[Tensor], weights_P: np.ndarray) -> Iterator[None]:
    """Let the parameters have these weights within, and their own bits again afterwards.

    Of parameters that are not float32 what is tried is their own value and the difference of `weights_P` to it, so that
    the weights as they are mean no change.
    """
    own = [parameter.detach().clone() for parameter in parameters]
    try:
        for (parameter, part), mine in zip(parts(weights_P, parameters), own, strict=True):
            exact = parameter.dtype == torch.float32
            parameter.data.copy_(part if exact else mine + (part - mine.to(torch.float32)).to(parameter.dtype))
        yield
    finally:
        for parameter, mine in zip(parameters, own, strict=True):
            parameter.data.copy_(mine)  # through .data: for autograd nothing has changed


@contextlib.contextmanager
def undisturbed(parameters: Sequence[Tensor], module: nn.Module | None = None) -> Iterator[None]:
    """Bring back afterwards torch's random generators and the buffers of `module` and of every module that is called
    within: networks are evaluated as they are, in training mode too, and every evaluation draws the same numbers."""
    kept: dict[int, tuple[nn.Module, str, Tensor, Tensor]] = {}

    def keep(called: nn.Module, *_: object) -> None:
        for each in called.modules():
            for name, buffer in each._buffers.items():
                if buffer is not None and id(buffer) not in kept:
                    kept[id(buffer)] = each, name, buffer, buffer.detach().clone()

    if module is not None:
        keep(module)
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    hook = register_module_forward_pre_hook(keep)
    try:
        with torch.random.fork_rng([device.index for device in devices]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # of a hook that is called twice
            yield
    finally:
        hook.remove()
        for owner, name, buffer, value in kept.values():
            buffer.data.copy_(value)
            owner._buffers[name] = buffer


def check_finite(named: Iterable[tuple[str, Tensor]], now_P: np.ndarray) -> None:
    """
    Raises:
        TiplError: the weights, which are `now_P` end to end, hold NaN or infinity.
    """
    if not np.isfinite(now_P).all():
        name = next(name for name, parameter in named if not torch.isfinite(parameter).all())
        raise TiplError(f"Parameter {name} holds NaN or infinity: the run diverged; begin again, with smaller steps.")


def trainable(parameters: Sequence[Tensor]) -> np.ndarray:
    """[P] bool: frozen parameters do not jump."""
    return np.repeat([p.requires_grad for p in parameters], [p.numel() for p in parameters])
