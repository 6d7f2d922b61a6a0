"""What a loop has in hand after an iteration.

In: tensors of somebody else's loop.  Out: the same, whole and finite, or an error that says what is not.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tipl.errors import TiplError


@dataclass(frozen=True)
class Batch:
    """What a loop has in hand after an iteration, S samples of it; tensors as the policy takes them.

    observations: [S, …], normalized as the policy sees them.
    actions, log_probs, advantages: [S, …], [S], [S]; without them neither the surrogate objective, in advance or
        afterwards, nor the change by the update is looked at.
    returns: of the episodes that ended in the iteration; without them no fall is seen.
    renewed: makes the advantages anew, [S], by the critic of the moment that it is called at, from data that the loop
        does not overwrite. The forecaster `context` asks it, of the last 20 batches, at every proposal; without it
        they keep the advantages that they came with, which say less (`results/direction`).
    outcomes: [S], advantages with λ = 1, by which `JumpConfig.evidence` judges the last proposal; the critic's values
        in them are best those from before the update. Where evidence was not asked for by name, `advantages` stand in,
        which share the errors that the update followed.
    """

    observations: Tensor
    actions: Tensor | None = None
    log_probs: Tensor | None = None
    advantages: Tensor | None = None
    returns: Sequence[float] = ()
    renewed: Callable[[], Tensor] | None = None
    outcomes: Tensor | None = None

    def check(self, asked: Iterable[str], needs_outcomes: bool = False) -> None:
        """Check that it is whole.

        Args:
            asked: what was asked for that looks at actions, log_probs and advantages.
            needs_outcomes: whether outcomes were asked for.

        Raises:
            TiplError: it lacks what they look at, its parts do not fit together, or a number is not finite.
        """
        given = [getattr(self, name) for name in ("observations", "actions", "log_probs", "advantages", "outcomes")]
        other = next((part for part in given if not isinstance(part, Tensor | None)), None)
        if other is not None:
            raise TiplError(f"A Batch holds tensors, not {type(other).__name__}.")
        parts = {"actions": self.actions, "log_probs": self.log_probs, "advantages": self.advantages}
        missing = [name for name, part in parts.items() if part is None]
        needed = next(iter(asked), None)
        if missing and (len(missing) < len(parts) or needed):
            why = f"{needed} looks at" if needed else "the guard takes all or none of"
            raise TiplError(f"The Batch has no {missing[0]}; {why} actions, log_probs and advantages.")
        if self.outcomes is None and needs_outcomes:
            raise TiplError("The Batch has no outcomes, and evidence looks at them; give its advantages with λ = 1.")
        if self.outcomes is not None and self.log_probs is None:
            raise TiplError("The Batch has outcomes and no log_probs; give actions, log_probs and advantages too.")
        samples = len(self.observations)
        for name, part in (parts | {"outcomes": self.outcomes}).items():
            if part is None:
                continue
            if (len(part) if name == "actions" else part.numel()) != samples:
                raise TiplError(f"The Batch has {samples} observations and {name} of the shape {list(part.shape)}.")
            if part.is_floating_point() and not torch.isfinite(part).all():
                raise TiplError(f"The Batch's {name} are not finite; the run diverged, or the batch is not whole.")
        if self.renewed is not None and not callable(self.renewed):
            raise TiplError(f"renewed is a {type(self.renewed).__name__}; give a function without arguments.")
        if not np.isfinite(np.asarray(self.returns, np.float64)).all():
            raise TiplError("An episode's return is not finite; the run diverged, or the environment is at fault.")
