"""An optimizer that jumps to forecast weights every so many steps of another one.

In: a torch optimizer, a forecaster.  Out: the same optimizer's steps, and now and then its weights moved.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tipl.acceleration.evidence import Judgment
from tipl.acceleration.jump import Jumper, jumps_for, require_no_tokens
from tipl.checks import Count, Place, checked
from tipl.collection.flat import check_apart, check_finite, check_parameters, flat, move, trainable, tried, undisturbed
from tipl.config.jumps import JumpConfig
from tipl.errors import TiplError
from tipl.forecasting.forecaster import Forecaster
from tipl.forecasting.named import load_forecaster

_OF_POLICIES = ("max_kl", "max_change", "max_of_update", "evidence", "hindsight", "fall", "log_std",
                "critic")  # fmt: skip
"""Options of jumps that take a policy or its episodes."""
_USUAL = JumpConfig(horizon=1)


class JumpingOptimizer(torch.optim.Optimizer):
    """An optimizer that jumps to forecast weights every `period` steps of another one, in the manner of NiNo
    (Knyazev et al. 2024, arXiv 2409.04434).

        optimizer = JumpingOptimizer(torch.optim.Adam(model.parameters()), "line", period=200)

    Its groups are the other's, so schedulers and gradient scalers work on it. There is no policy, hence no KL: a jump
    is as long as the forecaster's trust and `horizon` (in periods) make it, and, where `step` is handed a closure, no
    longer than does not raise the loss.

    Attributes:
        counts: how many periods ended in each of `tipl.acceleration.jump.KINDS`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        forecaster: Forecaster | Place = "line",
        *,
        jump: JumpConfig | None = None,
        period: int = 100,
        snapshots_per_iteration: int = 5,
    ) -> None:
        """
        Args:
            optimizer: what takes the steps.
            forecaster: a Forecaster, or what `tipl accelerate --forecaster` takes.
            jump: when and how far; default: `JumpConfig(horizon=1)`, whose `surrogate` counts where `step` is handed a
                closure.
            period: steps between two proposals.
            snapshots_per_iteration: a period counts as an iteration; it gives so many, evenly.

        Raises:
            TiplError: the settings or the forecaster cannot be used.
        """
        checked("`optimizer`", optimizer, torch.optim.Optimizer)
        period = checked("`period`", period, Count)
        count = checked("`snapshots_per_iteration`", snapshots_per_iteration, Count)
        asked = checked("`jump`", jump, JumpConfig | None)
        config = asked or _USUAL
        if config.horizon != _USUAL.horizon:
            config = jumps_for(forecaster, config)
        idle = next((name for name in _OF_POLICIES if getattr(config, name) != getattr(_USUAL, name)), None)
        if idle is not None:
            raise TiplError(f"{idle} has no effect on a JumpingOptimizer, which knows no policy; leave it as it is.")
        if period % count:
            raise TiplError(
                f"period is {period} and snapshots_per_iteration {count}; give a period that is a multiple of it."
            )
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        named = [(str(number), parameter) for number, parameter in enumerate(weights)]
        check_parameters(named)
        check_apart(named)
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share_with(optimizer)
        self._weights = weights
        if isinstance(forecaster, str | os.PathLike):
            shapes = [parameter.shape for parameter in self._weights]
            forecaster = load_forecaster(forecaster, shapes, config.horizon, count)
        require_no_tokens(forecaster)
        size = sum(parameter.numel() for parameter in self._weights)
        self._jumper = Jumper(forecaster, config, np.ones(size, bool))
        self._jumper.begin(flat(self._weights))
        self._every, self._snapshots, self._steps = period // count, count, 0
        self._within: list[np.ndarray] = []
        self._takes_closure = jump is not None and jump.surrogate
        self.counts: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """All that a copy needs; torch's own has the groups and moments alone."""
        own = ("optimizer", "counts", "_weights", "_jumper", "_every", "_snapshots", "_steps", "_within",
               "_takes_closure")  # fmt: skip
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def _share_with(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the other optimizer, after every `period` of them a jump; return its loss.

        Raises:
            TiplError: the jump looks at the loss and there is no closure, or weights are not finite.
        """
        if self._takes_closure and closure is None:
            raise TiplError("surrogate looks at the loss; hand step a closure, or give JumpConfig(surrogate=False).")
        loss = self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        self._steps += 1
        if self._steps % self._every == 0:
            self._check_weights()
            self._within.append(flat(self._weights))
        if len(self._within) == self._snapshots:
            snapshots, self._within = np.stack(self._within), []
            self._jumper.moves_P = trainable(self._weights)
            jump = self._jumper.step(snapshots, self._judge(closure))
            if jump.displacement is not None:
                move(self._weights, jump.displacement)
            self.counts[jump.kind] += 1
        return loss

    def _check_weights(self) -> None:
        now = [p for group in self.param_groups for p in group["params"]]
        if list(map(id, now)) != list(map(id, self._weights)):
            raise TiplError("The optimizer below a JumpingOptimizer was given other parameters; make a new one of it.")
        check_finite([(str(number), p) for number, p in enumerate(now)], flat(now))

    def _judge(self, closure: Callable[[], Any] | None) -> Callable[[np.ndarray], Judgment]:
        def judge(weights_P: np.ndarray) -> Judgment:
            if closure is None:
                return Judgment(0.0, 0.0)
            gradients = [parameter.grad for parameter in self._weights]
            for parameter in self._weights:
                parameter.grad = None
            try:
                with undisturbed(self._weights), tried(self._weights, weights_P), torch.enable_grad():
                    loss = float(torch.as_tensor(closure()).detach())
            finally:
                for parameter, gradient in zip(self._weights, gradients, strict=True):
                    parameter.grad = gradient
            return Judgment(0.0, -loss if np.isfinite(loss) else -np.inf)

        return judge

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients as the other optimizer does; `set_to_none` is torch's."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a further `param_group`: which weights jump is known from the start.

        Raises:
            TiplError: always, after `__init__`.
        """
        if hasattr(self, "_jumper"):
            raise TiplError("A JumpingOptimizer takes no further parameters; give them to the optimizer before.")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the other optimizer's state, and what the next jump depends on under `jumps`."""
        size = sum(parameter.numel() for parameter in self._weights)
        arrays = self._jumper.state() | {"within": np.array(self._within, np.float32).reshape(-1, size)}
        jumps = {name: torch.as_tensor(np.array(value)) for name, value in arrays.items()}
        about = {"steps": self._steps, "counts": dict(self.counts), "forecaster": self._jumper.forecaster.name}
        return self.optimizer.state_dict() | about | {"jumps": jumps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            TiplError: it is no state of a JumpingOptimizer of as many weights, or is one of another forecaster.
        """
        state = dict(state_dict)
        jumps, steps, counts, of = (state.pop(name, None) for name in ("jumps", "steps", "counts", "forecaster"))
        size = sum(parameter.numel() for parameter in self._weights)
        if not self._jumper.is_of(jumps, size):
            raise TiplError("This is not the state of a JumpingOptimizer of these weights; give one that is.")
        if of != self._jumper.forecaster.name:
            raise TiplError(
                f"This state is of the forecaster {of}, not of {self._jumper.forecaster.name}; use that one."
            )
        self.optimizer.load_state_dict(state)
        self._share_with(self.optimizer)
        arrays = {name: value.cpu().numpy() for name, value in jumps.items()}
        self._within, self._steps, self.counts = list(arrays.pop("within").copy()), int(steps or 0), Counter(counts)
        self._jumper.restore(arrays)
