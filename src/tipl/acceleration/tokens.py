"""Context tokens in somebody else's torch loop: what its last batches say of where the weights go.

In: batches with actions, log-probabilities and advantages, the policy's distribution, Adam.  Out: tokens [J, P].

They are those of our own runs (rl/context.py) but for three things: advantages are the critic's of now only where the
batch says how (`Batch.renewed`); the objective has no entropy; and what is remembered of a long batch is spread over
it. Advantages are normalized.
Shapes: S samples, P weights, J tokens.
"""

import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from tipl.acceleration.batch import Batch
from tipl.collection.agent import by_sample
from tipl.collection.flat import undisturbed
from tipl.errors import TiplError
from tipl.rl.context import LARGEST, REMEMBERED, SPANS, TOKENS

_ADAMS = torch.optim.Adam | torch.optim.AdamW


class _Seen(NamedTuple):
    """What is remembered of a batch."""

    observations: Tensor
    """[S, …]"""
    actions: Tensor
    """[S, …]"""
    log_probs: Tensor
    """[S], as the next: under the policy that acted."""
    advantages: Tensor
    """Normalized over the whole batch."""


class BatchMemory:
    """A part of each of a loop's last batches, and the Adam that learned from them."""

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        policy: nn.Module | None,
        distribution: Callable[[Tensor], Distribution],
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        """
        Args:
            named: what acts, P weights together.
            policy: the module whose buffers are left as they are.
            distribution: over actions at observations.

        Raises:
            TiplError: the optimizer is no Adam, or does not train what acts.
        """
        if not isinstance(optimizer, _ADAMS):
            what = "no optimizer" if optimizer is None else type(optimizer).__name__
            raise TiplError(
                f"The forecaster context looks at Adam's moments, and there is {what}; give "
                "optimizer=torch.optim.Adam(…), the one that trains the policy, or take causal."
            )
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        if other := next((name for name, p in named if id(p) not in group_of), None):
            raise TiplError(f"The optimizer does not train {other}, which acts; give the one that does.")
        self._parameters, self._policy = [parameter for _, parameter in named], policy
        self._distribution, self._optimizer = distribution, optimizer
        self._groups = [group_of[id(parameter)] for parameter in self._parameters]
        self._batches: deque[_Seen] = deque(maxlen=SPANS[-1][1])  # the newest first
        self._renew: deque[Callable[[], Tensor] | None] = deque(maxlen=SPANS[-1][1])  # theirs, of the same samples
        self._steps_before, self._added = self._steps(), 0
        self._steps_each = 0

    def add(self, batch: Batch) -> None:
        """An iteration is done. Of a long batch every so manieth sample is kept, others each time."""
        assert batch.actions is not None and batch.log_probs is not None and batch.advantages is not None
        samples = len(batch.observations)
        stride = max(1, -(-samples // REMEMBERED))
        mine = slice(self._added % stride, None, stride)
        kept = batch.observations, batch.actions, batch.log_probs.reshape(-1), _normalized(batch.advantages)
        self._batches.appendleft(_Seen(*(each[mine].detach().clone() for each in kept)))
        self._renew.appendleft(batch.renewed and functools.partial(_renewed, batch.renewed, samples, mine))
        self._added += 1
        now = self._steps()
        self._steps_each, self._steps_before = now - self._steps_before, now

    def _steps(self) -> int:
        """How many Adam has taken."""
        state = self._optimizer.state
        return max((int(state[p]["step"]) for p in self._parameters if "step" in state.get(p, {})), default=0)

    def tokens(self) -> np.ndarray:
        """Return a token a span, zeros where nothing is remembered, and Adam's: [TOKENS, P] float32.

        Each is the step that Adam would make in as many of its steps as the last iteration had.
        """
        self._renew_advantages()
        rows = [self._scaled(self._gradients(list(self._batches)[a:b])) for a, b in SPANS]
        rows.append(self._scaled([self._state(p).get("exp_avg") for p in self._parameters], of_moment=True))
        made = np.stack(rows)
        assert len(made) == TOKENS
        return made

    def _renew_advantages(self) -> None:
        with undisturbed(self._parameters, self._policy), torch.no_grad():
            for at, (seen, renew) in enumerate(zip(self._batches, self._renew, strict=True)):
                if renew is not None:
                    self._batches[at] = seen._replace(advantages=renew().to(seen.advantages.device))

    def _gradients(self, batches: Sequence[_Seen]) -> list[Tensor | None]:
        """Of −mean(A r) over batches that count alike, at the weights of now; r at most 3."""
        moving = [p for p in self._parameters if p.requires_grad]
        if not batches or not moving:
            return [None] * len(self._parameters)
        seen = _Seen(*map(torch.cat, zip(*batches, strict=True)))
        share = torch.cat([torch.full_like(each.advantages, 1 / len(each.advantages)) for each in batches])
        with undisturbed(self._parameters, self._policy), torch.enable_grad():
            now = by_sample(self._distribution(seen.observations).log_prob(seen.actions))
            old = torch.maximum(seen.log_probs, now.detach() - float(LARGEST))
            objective = ((now - old).exp() * seen.advantages * share).sum() / len(batches)
            found = dict(zip(map(id, moving), torch.autograd.grad(-objective, moving, allow_unused=True), strict=True))
        return [found.get(id(p)) for p in self._parameters]

    def _scaled(self, vectors: Sequence[Tensor | None], *, of_moment: bool = False) -> np.ndarray:
        """[P]: − rate × steps × vector / √v̂, of Adam's first moment m̂."""
        rows = []
        for parameter, vector, group in zip(self._parameters, vectors, self._groups, strict=True):
            state = self._state(parameter)
            if vector is None or "exp_avg_sq" not in state:
                rows.append(torch.zeros(parameter.numel()))
                continue
            steps, (beta1, beta2) = int(state["step"]), group["betas"]
            root = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt() + group["eps"]
            of = vector / (1 - beta1**steps) if of_moment else vector
            rows.append((-float(group["lr"]) * self._steps_each * of / root).detach().reshape(-1).cpu().float())
        return torch.cat(rows).numpy()

    def _state(self, parameter: nn.Parameter) -> Mapping[str, Any]:
        return self._optimizer.state.get(parameter, {})

    def state(self) -> dict[str, Any]:
        """All that the next tokens depend on, weights and optimizer apart, to be given to `restore`; how advantages are
        made anew is no data, so those of these batches stay."""
        self._renew_advantages()
        batches = [each._asdict() for each in self._batches]
        return {"batches": batches, "steps": [self._steps_before, self._steps_each, self._added]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._batches.clear()
        self._renew.clear()
        self._batches.extend(_Seen(**each) for each in state["batches"])
        self._renew.extend([None] * len(self._batches))
        self._steps_before, self._steps_each, self._added = state["steps"]


def _normalized(advantages: Tensor) -> Tensor:
    """[S]"""
    flat = advantages.detach().reshape(-1).float()
    return (flat - flat.mean()) / (flat.std(correction=0) + 1e-8)


def _renewed(renewed: Callable[[], Tensor], samples: int, mine: slice) -> Tensor:
    found = renewed()
    if not isinstance(found, Tensor) or found.numel() != samples or not torch.isfinite(found).all():
        raise TiplError(f"renewed of a Batch gave no {samples} finite advantages; give a function that does.")
    return _normalized(found)[mine]
