"""Where a training runs: on which device, and as which of how many processes.

In: a device's name, and the environment that `torchrun` sets.  Out: a `Worker`.

Every process draws the same batches and takes its share of each, so that the sum of what they find is what one process
would have found. Only the first one writes.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor, distributed

from tipl.config.device import require_device
from tipl.config.presets import Device
from tipl.errors import TiplError

_LONGEST_WAIT = timedelta(days=2)  # for the first process, which may have an SVD to fit


@dataclass(frozen=True)
class Worker:
    """One process of a training."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    ranks: int = 1

    @classmethod
    def of(cls, device: Device, batch_size: int) -> "Worker":
        """Return this process, one of torch's process group if there is one; `batch_size` is that of all together.

        Raises:
            TiplError: there is no such device, or a batch does not split over the processes.
        """
        _check_device(device)
        grouped = distributed.is_available() and distributed.is_initialized()
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if grouped else (0, 1)
        if batch_size % ranks:
            raise TiplError(f"--batch-size {batch_size} does not split over {ranks} processes; give a multiple.")
        return cls(
            torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device), rank, ranks
        )

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether it is the first one on its machine, which fills the machine's cache."""
        return self.ranks == 1 or os.environ.get("LOCAL_RANK", "0") == "0"

    def seed(self, seed: int) -> None:
        """Seed torch's own generators here."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def share(self, batch: Tensor) -> Tensor:
        """Return every `ranks`-th entry of a batch [B, …], on the device."""
        return batch[self.rank :: self.ranks].to(self.device)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.ranks > 1:
            distributed.barrier()

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite `tensors` in every process with those of the first."""
        if self.ranks > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def sum_up(self, gradients: Sequence[Tensor], *numbers: Tensor) -> tuple[Tensor, ...]:
        """Put the sums over all processes into the gradients; return those of the numbers, of the same shapes [...]."""
        parts = [*gradients, *numbers]
        flat = torch.cat([part.reshape(-1) for part in parts])
        distributed.all_reduce(flat)
        wholes = flat.split([part.numel() for part in parts])
        summed = [whole.view_as(part) for whole, part in zip(wholes, parts, strict=True)]
        for gradient, whole in zip(gradients, summed, strict=False):
            gradient.copy_(whole)
        return tuple(summed[len(gradients) :])


ALONE = Worker()


def started_first() -> bool:
    """Whether this process is the one that speaks: the only one, or the first that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def process_group(device: Device) -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did, and leave them at the end.

    Raises:
        TiplError: there is no such device.
    """
    _check_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _check_device(device: Device) -> None:
    require_device(device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cuda" and here > torch.cuda.device_count():
        raise TiplError(
            f"{here} processes need as many CUDA devices, here are {torch.cuda.device_count()}; start fewer."
        )
