"""Outer-PPO in somebody else's torch loop, and the critic that moves along.

In: what acts, a critic, after each update.  Out: both moved further along the iteration's displacement.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tipl.acceleration.jump import is_log_std
from tipl.checks import Place
from tipl.collection.agent import unwrapped
from tipl.collection.flat import check_parameters, flat, move
from tipl.config.jumps import JumpConfig
from tipl.config.rivals import Outer, parts_of_arm
from tipl.errors import TiplError
from tipl.forecasting.forecaster import Forecaster

Named = Sequence[tuple[str, nn.Parameter]]


class OuterStep:
    """The outer optimizer of one run."""

    def __init__(self, rival: Outer, acting: Named, critic: Named) -> None:
        moving = [pair for pair in acting if not is_log_std(pair[0])] if rival.actor else [*acting, *critic]
        self._rival, self._parameters = rival, [parameter for _, parameter in moving]
        self._before = flat(self._parameters)  # where the iteration that goes on began
        self._velocity = np.zeros_like(self._before)

    def step(self) -> None:
        """Go further, after an update; where that left no numbers, stay."""
        pull = flat(self._parameters) - self._before
        if np.isfinite(pull).all():
            move(self._parameters, self._rival.beyond(pull, self._velocity))

    def begin(self) -> None:
        """The next iteration begins where the weights are now."""
        self._before = flat(self._parameters)

    def state(self) -> list[Tensor]:
        """Return all that the next step depends on, weights apart, to be given to `restore`."""
        return [torch.as_tensor(each.copy()) for each in (self._before, self._velocity)]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Go on where `state` was taken."""
        self._before, self._velocity = (each.cpu().numpy().copy() for each in state)


def outer_and(forecaster: Forecaster | Place) -> tuple[Outer | None, Forecaster | Place]:
    """Return Outer-PPO's settings, if a forecaster's name begins with them, and the forecaster on top.

    Raises:
        TiplError: it stands on another rival of jumps, or is none.
    """
    rival, name = parts_of_arm(forecaster) if isinstance(forecaster, str) else (None, None)
    if rival is None:
        return None, forecaster
    if not isinstance(rival, Outer):
        raise TiplError(f"{forecaster} changes the update itself, which is your loop's; of rivals give outer alone.")
    if name is None:
        raise TiplError(f"{forecaster} forecasts nothing; give {forecaster}+context or another forecaster behind a +.")
    return rival, name


def critic_parameters(
    critic: nn.Module | Iterable[tuple[str, nn.Parameter]] | None, outer: Outer | None, jump: JumpConfig
) -> list[tuple[str, nn.Parameter]]:
    """Return the critic's parameters by name; none where nothing moves them.

    Raises:
        TiplError: something moves it, and it is not given or has no parameters.
    """
    if not jump.critic and (outer is None or outer.actor):
        return []
    if critic is None:
        if jump.critic:
            raise TiplError("JumpConfig(critic=True) moves the critic; give critic=…, or leave the setting out.")
        raise TiplError("Outer-PPO moves the critic too; give critic=…, or outer:actor=true.")
    inner = unwrapped(critic)
    named = inner.named_parameters() if isinstance(inner, nn.Module) else critic
    assert not isinstance(named, nn.Module)
    found = [(f"critic.{name}", parameter) for name, parameter in named]
    check_parameters(found)
    if not found:
        raise TiplError("The critic has no parameters; give the module that is trained.")
    return found
