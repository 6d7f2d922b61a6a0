"""The accelerator: jumps to forecast weights in somebody else's torch loop.

In: an actor, a forecaster, once an iteration the batch in hand.  Out: the actor's weights moved in place, or left; on
request the critic's too, and an outer step of both before the jump.

    accelerator = Accelerator(agent, "line")
    for iteration in …:
        …                                              # roll out, update
        accelerator.step(Batch(observations, actions, log_probs, advantages, returns))

For loops without a policy there is `JumpingOptimizer` (jumping.py), a `torch.optim.Optimizer` around another one.
"""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from tipl.acceleration.batch import Batch
from tipl.acceleration.evidence import Judgment
from tipl.acceleration.jump import Jump, Jumper, is_log_std, jumps_for, may_jump
from tipl.acceleration.jumping import JumpingOptimizer
from tipl.acceleration.outer import OuterStep, critic_parameters, outer_and
from tipl.checks import Count, Place, checked
from tipl.collection.agent import (
    acting_parameters,
    by_sample,
    check_dependence,
    check_log_probs,
    check_own_log_probs,
    cleanrl_distribution,
    unwrapped,
)
from tipl.collection.flat import check_apart, check_finite, move, trainable, tried, undisturbed
from tipl.collection.flat import flat as _flat
from tipl.config.jumps import JumpConfig
from tipl.errors import TiplError
from tipl.forecasting.forecaster import Forecaster, usable
from tipl.forecasting.named import load_forecaster

__all__ = ["Accelerator", "Batch", "JumpingOptimizer"]

_OF_BATCHES = ("surrogate", "max_change", "max_of_update", "evidence", "hindsight")
"""Settings that look at actions, log_probs and advantages."""
_FAR = 30  # times its weights a network is one that shows what it does to large outputs
_FREE = JumpConfig().max_change  # which never binds
_KEPT = {"outer": "Outer-PPO", "memory": "context tokens"}


class Accelerator:
    """Puts forecasts into a live run where a `Jumper` lets them.

    The optimizer's moments, normalizers and the learning rate are left alone; so is the critic, unless Outer-PPO or
    `JumpConfig(critic=True)` moves it.

    Attributes:
        counts: how many iterations ended in each of `tipl.acceleration.jump.KINDS`.
        last: the last iteration's `Jump`.
        looks_back: whether it keeps parts of the last batches, and has their advantages renewed.
        weighs_outcomes: whether it looks at a Batch's outcomes.
    """

    def __init__(
        self,
        policy: nn.Module | Iterable[tuple[str, nn.Parameter]],
        forecaster: Forecaster | Place = "line",
        *,
        distribution: Callable[[Tensor], Distribution] | None = None,
        jump: JumpConfig | None = None,
        snapshots_per_iteration: int = 1,
        fit: Place | None = None,
        critic: nn.Module | Iterable[tuple[str, nn.Parameter]] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """
        Args:
            policy: the actor, or (name, parameter) pairs. Of a module with CleanRL's `actor_mean` and `actor_logstd`,
                or `actor`, only these jump.
            forecaster: a Forecaster, or what `tipl accelerate --forecaster` takes; of rivals Outer-PPO below one, as in
                `outer:sigma=1.5+causal`.
            distribution: the policy's distribution over actions at observations; default: of CleanRL's agents.
            jump: when and how far. Default: what is usual with the forecaster, `tipl.jumps_of(name)`, of which parts of
                a Batch that are missing are not looked at; an option that is given here refuses a Batch without them.
            snapshots_per_iteration: all but the last of which the loop takes by `record`.
            fit: the store that the autoregression is fitted on; default: the package's own.
            critic: or its (name, parameter) pairs; moved by Outer-PPO and by `JumpConfig(critic=True)` alone.
            optimizer: the Adam that trains the policy; looked at by the forecaster `context` alone.

        Raises:
            TiplError: the settings, the forecaster, the policy, the critic or the optimizer cannot be used.
        """
        config = jumps_for(forecaster, checked("`jump`", jump, JumpConfig | None))
        outer, forecaster = outer_and(forecaster)
        count = checked("`snapshots_per_iteration`", snapshots_per_iteration, Count)
        inner = unwrapped(policy)
        named = acting_parameters(inner)
        beside = critic_parameters(critic, outer, config)
        check_apart([*named, *beside])
        self._outer = OuterStep(outer, named, beside) if outer else None
        self._acting, self._named = named, [*named, *(beside if config.critic else ())]
        self._parameters = [parameter for _, parameter in self._named]
        self._policy = inner if isinstance(inner, nn.Module) else None
        self._is_own, self._is_checked = distribution is not None, False
        self._distribution = distribution or cleanrl_distribution(inner)
        self._snapshots_per_iteration = None
        if isinstance(forecaster, str | os.PathLike):
            # log standard deviations as CleanRL has them, a row: so a forecaster knows them
            shapes = [(1, *p.shape) if is_log_std(name) and p.dim() == 1 else p.shape for name, p in self._named]
            forecaster = load_forecaster(forecaster, shapes, config.horizon, count, fit)
            self._snapshots_per_iteration = count
        elif fit is not None:
            raise TiplError("fit has no effect on a forecaster that is made already; leave it out.")
        names, sizes = [name for name, _ in self._named], [p.numel() for p in self._parameters]
        self._moves_P = may_jump(names, sizes, config.log_std)
        acting = {name for name, _ in named}
        self._is_network = np.repeat([name in acting and not is_log_std(name) for name in names], sizes)
        self._jumper = Jumper(forecaster, config, self._moves_P)
        self._acted: np.ndarray | None = _flat(self._parameters)  # with the weights that the next batch is made with
        self._jumper.begin(self._acted)
        self._asked = [each for each in _OF_BATCHES if jump is not None and getattr(jump, each) not in (False, _FREE)]
        self._memory, self.looks_back = None, usable(forecaster).takes_tokens
        if self.looks_back:
            from tipl.acceleration.tokens import BatchMemory  # brings numba

            self._memory = BatchMemory(named, self._policy, self._distribution, optimizer)
            self._asked.append(f"the forecaster {forecaster.name}")
        self.weighs_outcomes, self._needs_outcomes = config.evidence, jump is not None and config.evidence
        self._snapshots: list[np.ndarray] = []
        self.counts: Counter[str] = Counter()
        self.last: Jump | None = None

    def record(self) -> None:
        """Take the weights as they are within an iteration: forecasters that were fitted on collected trials expect
        several snapshots an iteration, the last of which `step` takes itself."""
        self._snapshots.append(_flat(self._parameters))

    @torch.no_grad()
    def step(self, batch: Batch) -> Jump:
        """Jump, or do not; to be called once an iteration, after its update.

        Raises:
            TiplError: weights or the batch are not finite, the batch lacks something, `record` was called another
                number of times than the forecaster was made for, or the distribution is not the agent's own.
        """
        batch.check(self._asked, self._needs_outcomes)
        expected, found = self._snapshots_per_iteration, len(self._snapshots) + 1
        if expected not in (None, found):
            self._snapshots = []
            raise TiplError(
                f"This iteration has {found} snapshots, the forecaster was made for {expected}; "
                f"give snapshots_per_iteration={found}, or call record() {expected - 1} times an iteration."
            )
        check_finite(self._named, _flat(self._parameters))
        if not self._is_checked:
            self._check_network(batch)
            self._check_batch(batch)
        if self._outer is not None:
            self._outer.step()
        self.record()
        snapshots, self._snapshots = np.stack(self._snapshots), []
        self._jumper.moves_P = self._moves_P & trainable(self._parameters)
        tokens = None
        if self._memory is not None:
            self._memory.add(batch)
            tokens = self._memory.tokens
        judge = self._judge(batch)
        outcome = None if batch.outcomes is None else functools.partial(judge, by=batch.outcomes)
        jump = self._jumper.step(snapshots, judge, batch.returns, tokens, outcome)
        if jump.displacement is not None:
            move(self._parameters, jump.displacement)
        self._acted = _flat(self._parameters)
        if self._outer is not None:
            self._outer.begin()
        self.counts[jump.kind] += 1
        self.last = jump
        return jump

    def _judge(self, batch: Batch) -> Callable[..., Judgment]:
        """What the batch says of weights, by its advantages or what is given in their place; the first time it is
        asked, the batch is held against the policy."""
        has_surrogate = batch.log_probs is not None
        current: list[Distribution] = []

        @torch.no_grad()
        def judge(weights_P: np.ndarray, by: Tensor | None = batch.advantages) -> Judgment:
            if not current:
                self._check_batch(batch)
                with undisturbed(self._parameters, self._policy):
                    current.append(self._distribution(batch.observations))
            try:
                with self._with(weights_P):
                    other = self._distribution(batch.observations)
            except ValueError:  # torch's word for parameters that make no distribution
                return Judgment(np.inf, -np.inf)
            kl = float(by_sample(kl_divergence(current[0], other)).mean())
            if not has_surrogate:
                return Judgment(kl, 0.0)
            assert batch.actions is not None and batch.log_probs is not None and by is not None
            log_ratio = by_sample(other.log_prob(batch.actions)) - batch.log_probs.reshape(-1)
            advantages = by.reshape(-1).to(log_ratio)
            advantages = advantages - advantages.mean()
            surrogate = (log_ratio.exp() * advantages).mean()
            error = float((log_ratio.expm1() * advantages).square().sum().sqrt()) / len(advantages)
            return Judgment(kl, float(surrogate), float((log_ratio.expm1() - log_ratio).mean()), error)

        return judge

    @contextlib.contextmanager
    def _with(self, weights_P: np.ndarray) -> Generator[None]:
        with undisturbed(self._parameters, self._policy), tried(self._parameters, weights_P):
            yield

    def _check_network(self, batch: Batch) -> None:
        """Hold the distribution against the network and the agent's own output (agent.py)."""
        observations, actions = batch.observations, batch.actions
        with undisturbed(self._parameters, self._policy):
            check_dependence(self._distribution, observations, self._acting, self._policy)
        if not self._is_own:
            now = _flat(self._parameters)
            for weights in (now, np.where(self._is_network, _FAR * now, now)):
                with self._with(weights):
                    check_own_log_probs(self._policy, self._distribution, observations, actions)
        self._is_checked = True

    def _check_batch(self, batch: Batch) -> None:
        """Hold the batch's log-probabilities against the distribution under the weights that made it."""
        if batch.log_probs is not None and batch.actions is not None and self._acted is not None:
            with self._with(self._acted):
                found = by_sample(self._distribution(batch.observations).log_prob(batch.actions))
            check_log_probs(found, batch.log_probs, "the policy that made it, as the Accelerator knows it")

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, the weights apart; tensors, to go into a checkpoint."""
        state: dict[str, Any] = {name: torch.as_tensor(value.copy()) for name, value in self._jumper.state().items()}
        size = sum(parameter.numel() for parameter in self._parameters)
        within = np.array(self._snapshots, np.float32).reshape(-1, size)
        about = {"counts_by_kind": dict(self.counts), "forecaster": self._jumper.forecaster.name}
        state |= about | {"within": torch.as_tensor(within)}
        state |= {} if self._outer is None else {"outer": self._outer.state()}
        return state | ({} if self._memory is None else {"memory": self._memory.state()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, which `state_dict` returned.

        Raises:
            TiplError: it is of another policy or forecaster.
        """
        size = sum(parameter.numel() for parameter in self._parameters)
        own = "counts_by_kind" in state and self._jumper.is_of(state, size)
        if not own:
            raise TiplError(f"This state is not of an accelerator of {size} weights; give one of the same policy.")
        if state.get("forecaster") != self._jumper.forecaster.name:
            raise TiplError(
                f"This state is of the forecaster {state.get('forecaster')}, not of {self._jumper.forecaster.name}; "
                "make the Accelerator with that one."
            )
        for part, mine in (("outer", self._outer), ("memory", self._memory)):
            if (part in state) != (mine is not None):
                how = f"with{'' if part in state else 'out'} {_KEPT[part]}"
                raise TiplError(f"This state is of an Accelerator {how}; make this one so too.")
        if self._outer is not None:
            self._outer.restore(state["outer"])
        if self._memory is not None:
            self._memory.restore(state["memory"])
        arrays = {name: value.cpu().numpy() for name, value in state.items() if isinstance(value, Tensor)}
        self._snapshots = list(arrays.pop("within").copy())
        self._jumper.restore(arrays)
        self.counts = Counter(state["counts_by_kind"])
        self._acted = None  # which weights will make the next batch is known only after it

    def __getstate__(self) -> NoReturn:
        """Refused: a copy would move copies of the parameters, and look at the first policy.

        Raises:
            TiplError: always.
        """
        raise TiplError(
            "An Accelerator belongs to its network and is not copied or pickled; make one for the other network and "
            "give it state_dict()."
        )
