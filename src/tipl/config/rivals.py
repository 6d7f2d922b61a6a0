"""Rivals of jumps: other ways to get more out of the same environment steps, by name and settings.

In: what an arm is called: a forecaster, a rival, or `RIVAL+FORECASTER` for jumps on top of a rival.
Out: the rival's settings, and the forecaster. `acceleration/rivals.py` has what they do.

A rival is `NAME` or `NAME:SETTING=VALUE,…`, as in `outer:sigma=1.5,momentum=0.3`.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tipl.checks import Count, NotNegative, Part, Positive, check_settings, require
from tipl.errors import TiplError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Outer:
    """Outer-PPO (Tan et al. 2024, arXiv 2411.00666): a step of an outer optimizer along each iteration's displacement
    of actor, log standard deviations and critic."""

    sigma: Positive = 1.5
    """The outer learning rate; 1 without momentum is plain PPO."""
    momentum: Part = 0.0
    """Nesterov's, of the outer steps."""
    actor: bool = False
    """Move the policy's network alone; the rest moves as in plain PPO."""

    def __post_init__(self) -> None:
        check_settings(self, "outer:")

    def beyond(self, pull_W: "np.ndarray", velocity_W: "np.ndarray") -> "np.ndarray":
        """Return what is added to an iteration's displacement g: with v ← μ v + g, in place, (σ − 1) g + σ μ v.

        So an iteration goes σ (g + μ v), Nesterov's momentum as torch and optax have it.
        """
        velocity_W *= self.momentum
        velocity_W += pull_W
        return (self.sigma - 1) * pull_W + self.sigma * self.momentum * velocity_W


@dataclass(frozen=True)
class Adaptive:
    """A learning rate that follows the KL divergence, as rsl_rl has it (Rudin et al. 2022, arXiv 2109.11978)."""

    target: Positive = 0.01
    """Mean KL(π_batch ‖ π) of a minibatch, in nats: beyond twice as much the rate is divided by 1.5, below half as much
    multiplied."""

    def __post_init__(self) -> None:
        check_settings(self, "adaptive:")


@dataclass(frozen=True)
class Reuse:
    """Generalized PPO, which learns from the last batches (Queeney et al. 2021, arXiv 2111.00072)."""

    batches: Count = 3
    """That an update sees, the newest among them; 1 is plain PPO."""

    def __post_init__(self) -> None:
        check_settings(self, "reuse:")


@dataclass(frozen=True)
class TrimAndBoost:
    """After the description of Policy Path Trimming and Boosting (Tang et al. 2023, arXiv 2303.01391)."""

    every: Count = 5
    """Iterations, of which the displacement is trimmed and boosted together."""
    window: Count = 20
    """Iterations of the path whose temporal SVD has the directions."""
    major: Count = 8
    """Directions that are kept."""
    boost: NotNegative = 0.1
    """How much further the policy goes along them, as a share."""

    def __post_init__(self) -> None:
        check_settings(self, "pptb-like:")
        require(self.every <= self.window, f"pptb-like:every is {self.every}; give at most window, {self.window}.")


Rival = Outer | Adaptive | Reuse | TrimAndBoost
RIVALS: dict[str, type[Rival]] = {"outer": Outer, "adaptive": Adaptive, "reuse": Reuse, "pptb-like": TrimAndBoost}


def parts_of_arm(text: str) -> tuple[Rival | None, str | None]:
    """Return the rival that a text names, or None, and the forecaster, or None.

    Raises:
        TiplError: it begins with a rival's name, and what follows makes no settings of it.
    """
    first, plus, forecaster = text.partition("+")
    name, colon, given = first.partition(":")
    if name not in RIVALS:
        return None, text
    if plus and not forecaster:
        raise TiplError(f"{text} names no forecaster behind the +; give one, or leave the + out.")
    known = {field.name for field in dataclasses.fields(RIVALS[name])}
    settings = {}
    for item in given.split(",") if colon else ():
        key, _, value = item.partition("=")
        if key not in known or key in settings:
            raise TiplError(f"{name} takes {', '.join(sorted(known))}, each once, as NAME=VALUE; not {item[:60]!r}.")
        try:
            settings[key] = json.loads(value)
        except ValueError as error:
            raise TiplError(f"{name}:{key} is {value[:60]!r}; give a number, true or false.") from error
    return RIVALS[name](**settings), forecaster or None
