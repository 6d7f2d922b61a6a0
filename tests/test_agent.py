"""Networks held against what they compute, and weights that are tried without a trace.

In: agents in CleanRL's manner and ones that differ, in loops of random batches.  Out: failures.
"""

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from tipl.acceleration.accelerator import Accelerator, Batch, JumpingOptimizer
from tipl.collection.flat import flat, tried
from tipl.collection.record import WeightRecorder
from tipl.config.jumps import JumpConfig
from tipl.errors import TiplError
from tipl.forecasting.baselines import FixedSum

STRAIGHT = JumpConfig(full_trust=0.0, horizon=1, surrogate=False)  # as far as is forecast
FREE = JumpConfig(full_trust=0.0, max_kl=1e9, surrogate=False, fall=0.0)


class Agent(nn.Module):
    """CleanRL's `ppo_continuous_action`, whose first outputs are near 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.critic = nn.Linear(3, 1)
        self.actor_mean = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        self.actor_logstd = nn.Parameter(torch.zeros(1, 2))
        with torch.no_grad():
            self.actor_mean[2].weight.mul_(0.01)  # pyright: ignore

    def distribution(self, x: Tensor) -> Normal:
        return Normal(self.actor_mean(x), self.actor_logstd.exp().expand(len(x), -1))

    def get_action_and_value(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, ...]:
        policy = self.distribution(x)
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action).sum(1), policy.entropy().sum(1), self.critic(x)


class Squashed(Agent):
    def distribution(self, x: Tensor) -> Normal:
        return Normal(torch.tanh(self.actor_mean(x)), self.actor_logstd.exp().expand(len(x), -1))


class Clamped(Agent):
    def distribution(self, x: Tensor) -> Normal:
        return Normal(self.actor_mean(x), self.actor_logstd.clamp(-5, -1).exp().expand(len(x), -1))


class Deep(Agent):
    """With 30 times its weights it overflows, which tells nothing."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(60) for layer in (nn.Linear(8, 8), nn.ReLU())]
        self.actor_mean = nn.Sequential(nn.Linear(3, 8), *layers, nn.Linear(8, 2))


class Mute(Clamped):
    """Has no output of its own to be held against."""

    get_action_and_value = None  # pyright: ignore


def train(agent: Agent, accelerator: Accelerator, iterations: int = 3, log_probs: bool = True) -> Accelerator:
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-2)
    for _ in range(iterations):
        observations, advantages = torch.randn(64, 3), torch.randn(64)
        with torch.no_grad():
            policy = agent.distribution(observations)
            actions = policy.sample()
            old = policy.log_prob(actions).sum(1)
        for _ in range(5):
            ratio = (agent.distribution(observations).log_prob(actions).sum(1) - old).exp()
            optimizer.zero_grad()
            (agent.critic(observations).square().mean() - (ratio * advantages).mean()).backward()
            optimizer.step()
        accelerator.step(Batch(observations, actions, old, advantages) if log_probs else Batch(observations))
    return accelerator


# What acts.


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda agent: torch.compile(agent, backend="eager")], ids=["data-parallel", "compiled"]
)
@pytest.mark.filterwarnings("ignore")  # of torch.compile's own
def test_a_wrapped_agent_is_the_agent(wrap: Callable[[nn.Module], Any]) -> None:
    plain, wrapped = Agent(), Agent()
    for agent, given in ((plain, plain), (wrapped, wrap(wrapped))):
        torch.manual_seed(1)
        assert train(agent, Accelerator(given, "line", jump=FREE)).counts == {"accepted": 3}
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_network_that_several_processes_train_is_refused(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "group"), 1)  # pyright: ignore
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(TiplError, match="would each jump by their own batch"):
            Accelerator(nn.parallel.DistributedDataParallel(Agent()), "line")
    finally:
        torch.distributed.destroy_process_group()


def test_wrappers_in_the_names_of_pairs_are_looked_through() -> None:
    agent = Agent()
    named = [(f"module._orig_mod.{name}", p) for name, p in agent.named_parameters()]
    accelerator = Accelerator(named, "line", distribution=agent.distribution, jump=FREE)
    critic = copy.deepcopy(agent.critic)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.01)
    accelerator.step(Batch(torch.randn(8, 3)))
    torch.testing.assert_close(agent.critic.weight, critic.weight + 0.01)


@pytest.mark.parametrize("kind", [Squashed, Clamped])
def test_an_agent_that_does_something_else_to_its_actor_is_refused_before_a_jump(kind: type[Agent]) -> None:
    accelerator = Accelerator(kind(), "line", jump=FREE)
    agent = accelerator._policy
    assert isinstance(agent, Agent)
    before = flat(agent.parameters())
    with pytest.raises(TiplError, match="get_action_and_value"):
        accelerator.step(Batch(torch.randn(64, 3)))
    np.testing.assert_array_equal(flat(agent.parameters()), before)
    own = Accelerator(kind(), "line", distribution=agent.distribution, jump=FREE)  # another agent's
    with pytest.raises(TiplError, match="does not depend on actor_"):
        own.step(Batch(torch.randn(64, 3)))


def test_a_network_that_overflows_where_it_is_looked_at_is_no_other() -> None:
    agent = Deep()
    far = copy.deepcopy(agent.actor_mean)
    with torch.no_grad():
        for parameter in far.parameters():
            parameter.mul_(30)
    assert not torch.isfinite(far(torch.ones(1, 3))).all()
    assert train(agent, Accelerator(agent, "line", jump=FREE)).counts == {"accepted": 3}


def test_a_batch_that_the_policy_did_not_make_is_refused() -> None:
    with pytest.raises(TiplError, match="the policy that made it"):
        train(agent := Mute(), Accelerator(agent, "line", jump=FREE))
    agent = Mute()
    accelerator = Accelerator(agent, "line", distribution=agent.distribution, jump=FREE)
    assert train(agent, accelerator).counts == {"accepted": 3}


def test_weights_that_were_loaded_after_the_accelerator_was_made_are_told() -> None:
    agent, other = Agent(), Agent()
    accelerator = Accelerator(agent, "line", jump=FREE)
    with torch.no_grad():
        other.actor_mean[0].weight.add_(torch.randn(8, 3))  # pyright: ignore
        other.actor_mean[2].weight.add_(torch.randn(2, 8))  # pyright: ignore
    agent.load_state_dict(other.state_dict())
    with pytest.raises(TiplError, match="make the Accelerator when the weights are"):
        train(agent, accelerator)


class Trunk(nn.Module):
    """CleanRL's `ppo_atari`: a network below actor and critic."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.actor, self.critic = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 1)

    def distribution(self, x: Tensor) -> Categorical:
        return Categorical(logits=self.actor(torch.tanh(self.network(x))))


def test_all_that_acts_jumps_and_nothing_else() -> None:
    trunk = Trunk()

    def stepped(policy: Any) -> Accelerator:
        accelerator = Accelerator(policy, "line", distribution=trunk.distribution, jump=FREE)
        with torch.no_grad():
            for parameter in trunk.parameters():
                parameter.add_(0.01)
        accelerator.step(Batch(torch.randn(16, 3)))
        return accelerator

    with pytest.raises(TiplError, match="`network` beside its actor"):
        Accelerator(trunk)
    with pytest.raises(TiplError, match=r"depends on network.weight too"):
        stepped(trunk)
    whole = [(f"policy.{name}", p) for name, p in trunk.named_parameters()]
    with pytest.raises(TiplError, match=r"does not depend on policy.critic.weight"):
        stepped(whole)
    acts = [pair for pair in whole if "critic" not in pair[0]]
    assert stepped(acts).counts == {"accepted": 1}


def test_a_layer_that_actor_and_critic_share_by_tying_is_told() -> None:
    agent = Agent()
    agent.critic = nn.Sequential(agent.actor_mean[0], nn.Linear(8, 1))  # pyright: ignore
    with pytest.raises(TiplError, match=r"depends on critic.0.weight too"):
        Accelerator(agent, "line", jump=FREE).step(Batch(torch.randn(16, 3)))


def test_frozen_parameters_do_not_jump() -> None:
    agent = Agent()
    agent.actor_mean[0].requires_grad_(False)  # pyright: ignore
    before = copy.deepcopy(agent.actor_mean[0])  # pyright: ignore
    accelerator = Accelerator(agent, "noise", jump=FREE)
    assert train(agent, accelerator).counts == {"accepted": 3}
    assert torch.equal(agent.actor_mean[0].weight, before.weight)  # pyright: ignore


@pytest.mark.parametrize(
    ("policy", "settings", "says"),
    [
        (nn.LazyLinear(2), {}, "no shape yet"),
        (nn.Linear(2, 1, dtype=torch.complex64), {}, "complex64"),
        (nn.Linear(2, 1, device="meta"), {}, "without storage"),
        (list(nn.Linear(2, 1).parameters()), {}, r"\(name, parameter\) pairs"),
        (nn.Linear(2, 1), {"fit": "somewhere"}, "no effect on line"),
        ([("logstd", nn.Parameter(torch.zeros(2)))], {}, "nothing but log standard deviations"),
        (nn.Linear(2, 1), {"jump": {"every": 2}}, "`jump` is of the type dict; give a JumpConfig"),
        (nn.Linear(2, 1), {"snapshots_per_iteration": 0}, "`snapshots_per_iteration` is 0; give at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_or_has_no_effect_is_refused(policy: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(TiplError, match=says):
        Accelerator(policy, "line", distribution=Categorical, **settings)


@pytest.mark.parametrize(
    ("parts", "settings", "says"),
    [
        ({"actions": torch.zeros(8, 2)}, {}, "no log_probs; the guard takes all or none"),
        ({}, {"jump": JumpConfig()}, "surrogate looks at"),
        ({}, {"jump": JumpConfig(surrogate=False, max_change=0.02)}, "max_change looks at"),
        ({}, {"jump": JumpConfig(surrogate=False, hindsight=True)}, "hindsight looks at"),
        ({"actions": np.zeros((8, 2))}, {}, "holds tensors, not ndarray"),
        ({"returns": [float("nan")]}, {}, "episode's return is not finite"),
        (
            {"actions": torch.zeros(8, 2), "log_probs": torch.zeros(8), "advantages": torch.full((8,), np.nan)},
            {},
            "advantages are not finite",
        ),
        (
            {"actions": torch.zeros(8, 2), "log_probs": torch.zeros(8, 2), "advantages": torch.zeros(8)},
            {},
            "log_probs of the shape",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_that_lacks_what_is_asked_of_it_is_refused(parts: Any, settings: Any, says: str) -> None:
    with pytest.raises(TiplError, match=says):
        Accelerator(Agent(), "line", **settings).step(Batch(torch.zeros(8, 3), **parts))


def test_what_is_no_distribution_to_compare_is_refused() -> None:
    agent = Agent()

    def stepped(distribution: Any) -> None:
        Accelerator(agent, "line", distribution=distribution, jump=FREE).step(Batch(torch.randn(8, 3)))

    with pytest.raises(TiplError, match="gives a Tensor"):
        stepped(agent.actor_mean)
    squashed = lambda x: TransformedDistribution(Independent(agent.distribution(x), 1), [TanhTransform()])  # noqa: E731
    stepped(squashed)  # torch knows the divergence of two that are transformed alike
    with pytest.raises(TiplError, match="no KL divergence of a Mixture"):
        stepped(lambda x: MixtureSameFamily(Categorical(torch.ones(len(x), 2)), agent.distribution(x)))


def test_other_snapshots_than_the_forecaster_was_made_for_are_told() -> None:
    agent = Agent()
    accelerator = Accelerator(agent, "line")
    accelerator.record()
    with pytest.raises(TiplError, match="2 snapshots, the forecaster was made for 1; give snapshots_per_iteration=2"):
        accelerator.step(Batch(torch.randn(8, 3)))


def test_weights_that_are_not_finite_stop_the_run() -> None:
    agent = Agent()
    accelerator = Accelerator(agent, "line")
    optimizer = JumpingOptimizer(torch.optim.SGD(agent.parameters(), 0.1), "line", period=1, snapshots_per_iteration=1)
    with torch.no_grad():
        agent.actor_mean[2].bias[0] = torch.nan  # pyright: ignore
    with pytest.raises(TiplError, match=r"actor_mean.2.bias holds NaN"):
        accelerator.step(Batch(torch.randn(8, 3)))
    with pytest.raises(TiplError, match="holds NaN"):
        optimizer.step()


# Without a trace.


class Noisy(nn.Module):
    """Has what evaluating may move: statistics, random masks, a parametrization with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))
        nn.utils.parametrizations.spectral_norm(self.net[4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_rejected_jumps_leave_no_trace(dtype: torch.dtype, compiled: bool) -> None:
    module = Noisy().to(dtype)
    net: Any = torch.compile(module.net, backend="eager") if compiled else module.net
    accelerator = Accelerator(
        module.net.named_parameters(), "noise", jump=JumpConfig(full_trust=0.0, max_kl=1e-12, surrogate=False),
        distribution=lambda x: Normal(net(x).float(), 1.0),
    )  # fmt: skip
    for _ in range(4):
        loss = net(torch.randn(16, 3, dtype=dtype)).square().mean()
        for parameter in module.parameters():
            parameter.data.add_(1e-2 * torch.randn_like(parameter))
            parameter.grad = torch.ones_like(parameter)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        states = torch.get_rng_state(), random.getstate(), [p._version for p in module.parameters()]
        assert accelerator.step(Batch(torch.randn(16, 3, dtype=dtype, generator=torch.Generator()))).kind == "rejected"
        assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
        assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
        assert states[2] == [p._version for p in module.parameters()]
        assert all(p.grad is not None and (p.grad == 1).all() for p in module.parameters()) and net.training
        loss.backward()  # of a forward pass before the weights were tried


def test_the_same_weights_are_no_change_where_evaluating_draws_numbers() -> None:
    module, said = Noisy(), []
    accelerator = Accelerator(module.net.named_parameters(), "noise", distribution=lambda x: Normal(module.net(x), 1.0))
    judge = accelerator._judge(Batch(torch.randn(16, 3)))
    said = [judge(flat(accelerator._parameters)).kl for _ in range(3)]
    assert said == [0.0] * 3


def test_weights_of_another_precision_are_their_own_and_the_difference() -> None:
    net = nn.Linear(3, 2).double()
    parameters, exact = list(net.parameters()), [p.detach().clone() for p in net.parameters()]
    now = flat(parameters)
    with tried(parameters, now):
        assert all(torch.equal(p, mine) for p, mine in zip(parameters, exact, strict=True))
    with tried(parameters, now + np.float32(0.5)):
        for p, mine in zip(parameters, exact, strict=True):
            torch.testing.assert_close(p.detach(), mine + 0.5, rtol=0, atol=1e-6)
    with pytest.raises(ZeroDivisionError), tried(parameters, now + np.float32(0.5)):
        raise ZeroDivisionError
    assert all(torch.equal(p, mine) for p, mine in zip(parameters, exact, strict=True))


def test_a_jump_counts_as_a_change_of_the_weights() -> None:
    """A backward pass through a jump would be of other weights than its forward pass: torch says so."""
    agent = Agent()
    accelerator = Accelerator(agent, "line", jump=FREE)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.01)
    loss = agent.actor_mean(torch.randn(4, 3)).square().mean()
    assert accelerator.step(Batch(torch.randn(8, 3))).kind == "accepted"
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_closure_leaves_the_gradients_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(forecaster: Any) -> list[list[Tensor]]:
        torch.manual_seed(0)
        model, seen = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1)), []
        optimizer = JumpingOptimizer(torch.optim.SGD(model.parameters(), 1e-2), forecaster, period=2,
                                     snapshots_per_iteration=1, jump=JumpConfig(full_trust=0.0, horizon=1))  # fmt: skip

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=False)
            loss = model(torch.ones(8, 4)).square().mean()
            loss.backward()
            return loss

        for _ in range(6):
            optimizer.step(closure)
            seen.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert sum(optimizer.counts.values()) == optimizer.counts[kinds[forecaster.name]] == 3
        return seen

    still = FixedSum("still", "no movement", 1, lambda back, h: np.zeros(len(back)))
    away = FixedSum("away", "far away", 2, lambda back, h: np.where(back == 0, 1e3, -1e6))
    kinds = {"still": "silent", "away": "rejected"}
    for one, other in zip(run(still), run(away), strict=True):
        assert len(one) == 4 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Copies.


@pytest.mark.parametrize("forecaster", ["line", "lookahead", "average", "noise", "autoregression", "causal"])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["deep", "pickle"]
)
def test_a_copy_of_a_jumping_optimizer_goes_on_to_the_same_bits(forecaster: str, copied: Callable[[Any], Any]) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (model(torch.ones(4, 3)) - 1).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = JumpingOptimizer(torch.optim.Adam(model.parameters(), 1e-3), forecaster, period=5, jump=STRAIGHT)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)  # it replaces `step` on the object
    assert scheduler.get_last_lr()
    steps(model, optimizer, 13)
    twin, other = copied((model, optimizer))
    assert other.param_groups is other.optimizer.param_groups
    steps(model, optimizer, 13)
    steps(twin, other, 13)
    assert torch.equal(model.weight, twin.weight) and optimizer.counts == other.counts


def test_an_accelerator_is_not_copied() -> None:
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TiplError, match="give it state_dict"):
            copied(Accelerator(Agent()))


def test_a_state_of_another_forecaster_or_of_nothing_is_refused() -> None:
    agent = Agent()
    state = Accelerator(agent, "line").state_dict()
    with pytest.raises(TiplError, match="of the forecaster line-2, not of average"):
        Accelerator(agent, "average").load_state_dict(state)
    for lacking in ("jumped", "path", "within", "counts_by_kind"):
        with pytest.raises(TiplError, match="not of an accelerator"):
            Accelerator(agent, "line").load_state_dict({k: v for k, v in state.items() if k != lacking})


# The optimizer that jumps.


def test_a_horizon_has_no_effect_on_averages() -> None:
    for forecaster in ("lookahead", "average"):
        with pytest.raises(TiplError, match=f"horizon has no effect on {forecaster}"):
            Accelerator(Agent(), forecaster, jump=JumpConfig(horizon=3))
        with pytest.raises(TiplError, match=f"horizon has no effect on {forecaster}"):
            JumpingOptimizer(torch.optim.SGD(Agent().parameters(), 0.1), forecaster, jump=JumpConfig(horizon=3))
    with pytest.raises(TiplError, match="hand step a closure"):
        JumpingOptimizer(torch.optim.SGD(Agent().parameters(), 0.1), jump=JumpConfig()).step()


def test_parameters_in_the_same_memory_would_be_moved_twice() -> None:
    one = nn.Parameter(torch.zeros(3))
    named = [("one", one), ("other", nn.Parameter(one.data))]
    with pytest.raises(TiplError, match="one and other lie in the same memory"):
        Accelerator(named, distribution=Categorical)
    with pytest.raises(TiplError, match="0 and 1 lie in the same memory"):
        JumpingOptimizer(torch.optim.SGD([parameter for _, parameter in named], 0.1))
    tied = nn.Linear(1, 1)
    tied.bias = tied.weight  # pyright: ignore  (by one parameter)
    assert Accelerator(tied, distribution=Categorical)._moves_P.sum() == 1


def test_a_state_of_another_optimizers_forecaster_is_refused() -> None:
    one, other = (JumpingOptimizer(torch.optim.SGD(Agent().parameters(), 0.1), name) for name in ("line", "average"))
    with pytest.raises(TiplError, match="of the forecaster line-6, not of average"):
        other.load_state_dict(one.state_dict())


@pytest.mark.parametrize("setting", [{"max_kl": 0.02}, {"max_change": 0.02}, {"hindsight": True}, {"fall": 0.0}])
def test_settings_of_policies_have_no_effect_on_an_optimizer(setting: dict[str, Any]) -> None:
    with pytest.raises(TiplError, match=f"{next(iter(setting))} has no effect on a JumpingOptimizer"):
        JumpingOptimizer(torch.optim.SGD(Agent().parameters(), 0.1), jump=JumpConfig(**setting))


def test_parameters_that_the_optimizer_below_was_given_later_are_told() -> None:
    inner = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    optimizer = JumpingOptimizer(inner, period=1, snapshots_per_iteration=1)
    inner.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(TiplError, match="was given other parameters"):
        optimizer.step()
    with pytest.raises(TiplError, match="`optimizer` is 'Adam'; give an Optimizer"):
        JumpingOptimizer("Adam")  # pyright: ignore


def test_what_has_no_weights_yet_is_not_recorded_either(tmp_path: Path) -> None:
    for net, says in ((nn.LazyLinear(2), "no shape yet"), (nn.Linear(1, 1, dtype=torch.complex64), "complex64")):
        with pytest.raises(TiplError, match=says):
            WeightRecorder(tmp_path / "store", 1, net, torch.optim.SGD(net.parameters(), 0.1), every=1, env_id="X-v0")
