"""Whether the device that was asked for is here.

In: its name.  Out: nothing, or one clear line. Apart from `presets`, which loads no torch.
"""

import torch

from tipl.config.presets import Device
from tipl.errors import TiplError


def require_device(device: Device) -> None:
    """
    Raises:
        TiplError: torch finds no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TiplError("--device cuda: torch finds no CUDA device here; leave it out to run on the CPU.")
