"""When and how far a live run jumps, and how it usually does with each forecaster.

In: a forecaster's name.  Out: `JumpConfig`. `acceleration/jump.py` has what the settings do.
"""

import os
from dataclasses import dataclass, replace

from tipl.checks import Count, NotNegative, Place, Positive, Share, check_settings, checked_arguments
from tipl.config.rivals import parts_of_arm


@dataclass(frozen=True)
class JumpConfig:
    """When and how far a live run jumps to forecast weights. `results/accelerate` has what they are worth."""

    every: Count = 1
    """Iterations between two proposals; doubled, up to 16 times, by a jump that is taken back, halved by another."""
    horizon: Count = 4
    """Iterations ahead of the proposal."""
    max_kl: Positive = 0.01
    """Most that a jump may change the policy: mean KL(π_t ‖ π̃) over the batch, in nats."""
    max_change: Positive = 1e9
    """Most that update and jump may change the policy that made the batch: mean KL in nats; the default never binds."""
    max_of_update: Positive = 1e9
    """Most that a jump may change the policy, as a multiple of what the iteration's update changed it by, both in mean
    KL; the default never binds."""
    surrogate: bool = True
    """Also refuse a jump that lowers the surrogate objective, the mean of ratio × advantage, on the batch."""
    full_trust: Share = 0.2
    """Trust from which a forecast is believed in full, and below which in proportion; 0: always in full. Below half of
    the default, 0.1, nothing is proposed unless it is 0."""
    evidence: bool = False
    """Judge each proposal by the next batch's outcomes, advantages with λ = 1, and take none while the last twenty
    lowered the return, as far as is known."""
    hindsight: bool = False
    """Take a jump back if the batch that comes of it has a higher surrogate objective for the policy from before."""
    fall: NotNegative = 2.0
    """Standard errors by which the return has to fall after a jump for it to be taken back; 0: never."""
    log_std: bool = False
    """Let the log standard deviations jump too."""
    critic: bool = False
    """Let the critic jump too, by the same forecaster on its own path. Adam's moments stay as they are."""

    def __post_init__(self) -> None:
        check_settings(self)


_UNGUARDED = JumpConfig(full_trust=0.0, max_kl=1e9, surrogate=False, fall=0.0)
JUMPS = {
    "line": JumpConfig(),
    "noise": JumpConfig(),
    "lookahead": replace(_UNGUARDED, every=5),  # as it is known, and so is the average
    "average": _UNGUARDED,
    "autoregression": JumpConfig(horizon=20, max_kl=0.02, max_change=0.02),
    "causal": JumpConfig(horizon=20, max_change=0.02, hindsight=True),
    # its forecasts err alike for many iterations, and asking for one takes time
    "context": JumpConfig(every=4, horizon=20, max_kl=0.02, max_of_update=1.0, full_trust=0.0, evidence=True),
}
"""How to jump with each `ForecasterName`, as `results/accelerate` and `LOG.md` have chosen; any other jumps as
`causal` does."""


@checked_arguments
def jumps_of(forecaster: Place) -> JumpConfig:
    """Return how one usually jumps with a forecaster.

    Args:
        forecaster: its name, or the folder of a causal model; of a rival of jumps, what follows its `+`.

    Raises:
        TiplError: it is neither text nor a path, or no settings of a rival.
    """
    name = os.fspath(forecaster)
    return JUMPS.get(parts_of_arm(name)[1] or name, JUMPS["causal"])
