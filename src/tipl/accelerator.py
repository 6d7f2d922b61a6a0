"""The accelerator: jumps to forecast weights in somebody else's torch loop.

In: an actor, a forecaster, once an iteration the batch in hand.  Out: the actor's weights moved in place, or left.

    accelerator = Accelerator(agent, "line")
    for iteration in …:
        …                                              # roll out, update
        accelerator.step(Batch(observations, actions, log_probs, advantages, returns))

For loops without a policy there is `JumpingOptimizer`, a `torch.optim.Optimizer` around another one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal, kl_divergence

from tipl.errors import TiplError
from tipl.forecast import Forecaster
from tipl.jump import Judgment, Jump, Jumper, may_jump
from tipl.live import named_forecaster
from tipl.presets import JumpConfig, jumps_of


@dataclass(frozen=True)
class Batch:
    """What a loop has in hand after an iteration, S samples of it; tensors as the policy takes them.

    observations: [S, …], normalized as the policy sees them.
    actions, log_probs, advantages: [S, …], [S], [S]; without them neither the surrogate objective, in advance or in
        hindsight, nor the change by update and jump together is looked at.
    returns: of the episodes that ended in the iteration; without them no fall is seen.
    """

    observations: Tensor
    actions: Tensor | None = None
    log_probs: Tensor | None = None
    advantages: Tensor | None = None
    returns: Sequence[float] = ()


class Accelerator:
    """Puts forecasts into a live run where a `Jumper` lets them.

    The optimizer's moments, the critic, normalizers and the learning rate are left alone.

    Attributes:
        counts: how many iterations ended in each of `tipl.jump.KINDS`.
        last: the last iteration's `Jump`.
    """

    def __init__(
        self,
        policy: nn.Module | Iterable[tuple[str, nn.Parameter]],
        forecaster: Forecaster | str | Path = "line",
        *,
        distribution: Callable[[Tensor], Distribution] | None = None,
        snapshots: int = 1,
        fit: Path | None = None,
        **settings: Any,
    ) -> None:
        """
        Args:
            policy: the actor, or (name, parameter) pairs. Of a module with CleanRL's `actor_mean` and `actor_logstd`,
                or `actor`, only these jump.
            forecaster: a Forecaster, or what `tipl accelerate --forecaster` takes.
            distribution: the policy's distribution over actions at observations; default: of CleanRL's agents.
            snapshots: of an iteration, all but the last of which the loop takes by `record`.
            fit: the store that the autoregression is fitted on; default: the package's own.
            settings: of `JumpConfig`: every, horizon, max_kl, …; default: `jumps_of` a forecaster given by its name.

        Raises:
            TiplError: the settings, the forecaster or the policy cannot be used.
        """
        config = _config(jumps_of(forecaster) if isinstance(forecaster, str) else JumpConfig(), settings)
        named = _actor(policy)
        self._parameters = [parameter for _, parameter in named]
        self._distribution = distribution or _cleanrl_distribution(policy)
        if isinstance(forecaster, str | Path):
            shapes = [parameter.shape for parameter in self._parameters]
            forecaster = named_forecaster(str(forecaster), shapes, config.horizon, snapshots, fit)
        names, sizes = [name for name, _ in named], [p.numel() for p in self._parameters]
        self._jumper = Jumper(forecaster, config, may_jump(names, sizes, config))
        self._jumper.begin(_flat(self._parameters))
        self._snapshots: list[np.ndarray] = []
        self.counts: Counter[str] = Counter()
        self.last: Jump | None = None

    def record(self) -> None:
        """Take the weights as they are within an iteration: forecasters that were fitted on collected trials expect
        several snapshots an iteration, the last of which `step` takes itself."""
        self._snapshots.append(_flat(self._parameters))

    @torch.no_grad()
    def step(self, batch: Batch) -> Jump:
        """Once an iteration, after its update: jump, or do not."""
        self.record()
        snapshots, self._snapshots = np.stack(self._snapshots), []
        jump = self._jumper.step(snapshots, self._judge(batch), batch.returns)
        if jump.displacement is not None:
            _assign(self._parameters, snapshots[-1] + jump.displacement)
        self.counts[jump.kind] += 1
        self.last = jump
        return jump

    def _judge(self, batch: Batch) -> Callable[[np.ndarray], Judgment]:
        now = _flat(self._parameters)
        current = self._distribution(batch.observations)
        has_surrogate = not any(each is None for each in (batch.actions, batch.log_probs, batch.advantages))

        def judge(weights_P: np.ndarray) -> Judgment:
            _assign(self._parameters, weights_P)
            try:
                other = self._distribution(batch.observations)
            except ValueError:  # torch's word for parameters that make no distribution
                return Judgment(np.inf, -np.inf)
            finally:
                _assign(self._parameters, now)
            kl = float(_by_sample(kl_divergence(current, other)).mean())
            if not has_surrogate:
                return Judgment(kl, 0.0)
            assert batch.actions is not None and batch.log_probs is not None and batch.advantages is not None
            log_ratio = _by_sample(other.log_prob(batch.actions)) - batch.log_probs.reshape(-1)
            advantages = batch.advantages.reshape(-1)
            surrogate = (log_ratio.exp() * (advantages - advantages.mean())).mean()
            return Judgment(kl, float(surrogate), float((log_ratio.expm1() - log_ratio).mean()))

        return judge

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, the weights apart; tensors, to go into a checkpoint."""
        state: dict[str, Any] = {name: torch.from_numpy(value.copy()) for name, value in self._jumper.state().items()}
        size = sum(parameter.numel() for parameter in self._parameters)
        within = np.array(self._snapshots, np.float32).reshape(-1, size)
        return state | {"within": torch.from_numpy(within), "counts_by_kind": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            TiplError: it is of another policy.
        """
        size = sum(parameter.numel() for parameter in self._parameters)
        if "jumped" not in state or state["jumped"].numel() != size:
            raise TiplError(f"This state is not of an accelerator of {size} weights; give one of the same policy.")
        arrays = {name: value.numpy() for name, value in state.items() if isinstance(value, Tensor)}
        self._snapshots = list(arrays.pop("within").copy())
        self._jumper.restore(arrays)
        self.counts = Counter(state["counts_by_kind"])


class JumpingOptimizer(torch.optim.Optimizer):
    """An optimizer that jumps to forecast weights every `period` steps of another one, in the manner of NiNo
    (Knyazev et al. 2024, arXiv 2409.04434).

        optimizer = JumpingOptimizer(torch.optim.Adam(model.parameters()), "line", period=200)

    Its groups are the other's, so schedulers and gradient scalers work on it. There is no policy, hence no KL: a jump
    is as long as the forecaster's trust and `horizon` (in periods) make it, and, where `step` is handed a closure, no
    longer than does not raise the loss.

    Attributes:
        counts: how many periods ended in each of `tipl.jump.KINDS`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        forecaster: Forecaster | str | Path = "line",
        *,
        period: int = 100,
        snapshots: int = 5,
        **settings: Any,
    ) -> None:
        """
        Args:
            optimizer: what takes the steps.
            forecaster: a Forecaster, or what `tipl accelerate --forecaster` takes.
            period: steps between two proposals.
            snapshots: of a period, evenly.
            settings: of `JumpConfig`.

        Raises:
            TiplError: the settings or the forecaster cannot be used.
        """
        config = _config(JumpConfig(horizon=1), settings)
        if not 1 <= snapshots <= period or period % snapshots:
            raise TiplError(
                f"period is {period} and snapshots {snapshots}; give a multiple of the snapshots as period."
            )
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._share_with(optimizer)
        self._weights = [p for group in optimizer.param_groups for p in group["params"]]
        if isinstance(forecaster, str | Path):
            shapes = [parameter.shape for parameter in self._weights]
            forecaster = named_forecaster(str(forecaster), shapes, config.horizon, snapshots)
        size = sum(parameter.numel() for parameter in self._weights)
        self._jumper = Jumper(forecaster, config, np.ones(size, bool))
        self._jumper.begin(_flat(self._weights))
        self._every, self._snapshots, self._steps, self._within = period // snapshots, snapshots, 0, []
        self.counts: Counter[str] = Counter()

    def _share_with(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the other optimizer, after every `period` of them a jump."""
        loss = self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        self._steps += 1
        if self._steps % self._every == 0:
            self._within.append(_flat(self._weights))
        if len(self._within) == self._snapshots:
            snapshots, self._within = np.stack(self._within), []
            jump = self._jumper.step(snapshots, self._judge(closure))
            if jump.displacement is not None:
                _assign(self._weights, snapshots[-1] + jump.displacement)
            self.counts[jump.kind] += 1
        return loss

    def _judge(self, closure: Callable[[], Any] | None) -> Callable[[np.ndarray], Judgment]:
        def judge(weights_P: np.ndarray) -> Judgment:
            if closure is None:
                return Judgment(0.0, 0.0)
            now = _flat(self._weights)
            _assign(self._weights, weights_P)
            with torch.enable_grad():  # a closure may compute gradients; the next step begins with its own
                loss = float(torch.as_tensor(closure()).detach())
            _assign(self._weights, now)
            return Judgment(0.0, -loss if np.isfinite(loss) else -np.inf)

        return judge

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the other optimizer has it."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once jumps have begun: their weights are known from the start.

        Raises:
            TiplError: always, after `__init__`.
        """
        if hasattr(self, "_jumper"):
            raise TiplError("A JumpingOptimizer takes no further parameters; give them to the optimizer before.")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The other optimizer's state, and what the next jump depends on under `jumps`."""
        size = sum(parameter.numel() for parameter in self._weights)
        arrays = self._jumper.state() | {"within": np.array(self._within, np.float32).reshape(-1, size)}
        jumps = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        return self.optimizer.state_dict() | {"jumps": jumps, "steps": self._steps, "counts": dict(self.counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            TiplError: it is no state of a JumpingOptimizer of as many weights.
        """
        state = dict(state_dict)
        jumps, steps, counts = (state.pop(name, None) for name in ("jumps", "steps", "counts"))
        if not jumps or jumps["jumped"].numel() != sum(parameter.numel() for parameter in self._weights):
            raise TiplError("This is not the state of a JumpingOptimizer of these weights; give one that is.")
        self.optimizer.load_state_dict(state)
        self._share_with(self.optimizer)
        arrays = {name: value.numpy() for name, value in jumps.items()}
        self._within, self._steps, self.counts = list(arrays.pop("within").copy()), int(steps or 0), Counter(counts)
        self._jumper.restore(arrays)


def _config(default: JumpConfig, settings: Mapping[str, Any]) -> JumpConfig:
    try:
        return replace(default, **settings)
    except TypeError as error:
        known = ", ".join(JumpConfig.__dataclass_fields__)
        raise TiplError(f"There is no such setting of jumps ({error}); there are: {known}.") from error


def _actor(policy: nn.Module | Iterable[tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
    named = list(policy.named_parameters() if isinstance(policy, nn.Module) else policy)
    acts = [pair for pair in named if pair[0].split(".")[0] in ("actor_mean", "actor_logstd", "actor")]
    if not named:
        raise TiplError("There are no parameters to accelerate; give a module that has some.")
    return acts or named


def _cleanrl_distribution(policy: object) -> Callable[[Tensor], Distribution]:
    """The distribution of CleanRL's agents: `ppo_continuous_action`'s or `ppo`'s."""
    mean, log_std, logits = (getattr(policy, name, None) for name in ("actor_mean", "actor_logstd", "actor"))
    if isinstance(mean, nn.Module) and isinstance(log_std, Tensor):
        return lambda observations: Normal(mean(observations), log_std.exp().expand(len(observations), -1))
    if isinstance(logits, nn.Module):
        return lambda observations: Categorical(logits=logits(observations))
    raise TiplError(
        "The policy is none of CleanRL's agents; give `distribution`, observations to torch's Distribution."
    )


def _by_sample(values: Tensor) -> Tensor:
    """[S] or [S, A], independent dimensions of an action, to [S]."""
    return values.reshape(len(values), -1).sum(dim=1)


def _flat(parameters: Sequence[Tensor]) -> np.ndarray:
    """[P] float32 on the CPU."""
    return torch.cat([p.detach().reshape(-1) for p in parameters]).to("cpu", torch.float32).numpy()


@torch.no_grad()
def _assign(parameters: Sequence[Tensor], weights_P: np.ndarray) -> None:
    flat = torch.from_numpy(np.ascontiguousarray(weights_P))
    start = 0
    for parameter in parameters:
        parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()
