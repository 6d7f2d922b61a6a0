"""A function of one tensor whose kernels are recorded as a CUDA graph and replayed.

In: a function that launches the same kernels at every call.  Out: the same function, without Python between kernels.

A step of a small Transformer is some three hundred kernels of a few microseconds each; what takes the time is to launch
them one by one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_AS_IT_IS = 3  # calls before the recording, in which libraries and optimizers set up what they keep


class Recorded:
    """Called as the function is. What it returns is overwritten by the next call."""

    def __init__(self, function: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """
        Args:
            function: of a tensor of always one shape; it waits for nothing that the device computes.
        """
        self.function, self.device = function, device
        self.calls = 0
        self.stream = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    def __call__(self, values: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= _AS_IT_IS:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                result = self.function(values.to(self.device))
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
            return result
        if self.calls == _AS_IT_IS + 1:
            self.values = values.to(self.device, copy=True)
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.result = self.function(self.values)
        self.values.copy_(values, non_blocking=True)
        self.graph.replay()
        return self.result
