"""The accelerator in a loop, the optimizer that jumps: against the same loop written out, torch's own, closed forms.

In: small actors on random batches, a linear model, the example's PPO.  Out: failures.
"""

import ast
import dataclasses
import math
import runpy
import sys
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from tipl.acceleration.accelerator import Accelerator, Batch, JumpingOptimizer
from tipl.acceleration.jump import jumps_for
from tipl.config.jumps import JumpConfig
from tipl.errors import TiplError
from tipl.forecasting.baselines import FixedSum

EVERYTHING: dict[str, Any] = {"full_trust": 0.0, "max_kl": 1e9, "surrogate": False}  # no guard
NAN = FixedSum("nan", "NaN", 2, lambda back, h: np.full(len(back), np.nan))


class Agent(nn.Module):
    """CleanRL's agent for continuous actions."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(3, 1)
        self.actor_mean = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        self.actor_logstd = nn.Parameter(torch.zeros(1, 2))

    def distribution(self, observations: Tensor) -> Normal:
        return Normal(self.actor_mean(observations), self.actor_logstd.exp().expand(len(observations), -1))


def test_the_standard_error_of_the_surrogate_is_that_of_a_plain_loop() -> None:
    agent, rng = Agent(), torch.Generator().manual_seed(3)
    observations, actions = torch.randn(64, 3, generator=rng), torch.randn(64, 2, generator=rng)
    advantages, old = torch.randn(64, generator=rng), agent.distribution(observations).log_prob(actions).sum(1).detach()
    accelerator = Accelerator(agent, "line")
    weights = np.concatenate([parameter.detach().numpy().ravel() for parameter in accelerator._parameters])
    other = weights + np.float32(0.1)
    judged = accelerator._judge(Batch(observations, actions, old, advantages))(other)
    with torch.no_grad():
        for parameter in accelerator._parameters:
            parameter += 0.1
        new = agent.distribution(observations).log_prob(actions).sum(1)
    samples = zip(new.tolist(), old.tolist(), (advantages - advantages.mean()).tolist(), strict=True)
    gains = [(math.exp(now - then) - 1) * advantage for now, then, advantage in samples]
    assert judged.error == pytest.approx(math.sqrt(sum(gain**2 for gain in gains)) / 64, rel=1e-3)


class Loop:
    """Policy gradients on random batches, with an accelerator or without."""

    def __init__(self, accelerator: Any = None, **jump: Any) -> None:
        torch.manual_seed(0)
        self.agent = Agent()
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=1e-2)
        config = dataclasses.replace(jumps_for(accelerator), **jump) if jump else None
        self.accelerator = None
        if accelerator is not None:
            beside = {"critic": self.agent.critic, "optimizer": self.optimizer}
            self.accelerator = Accelerator(self.agent, accelerator, jump=config, **beside)
        self.rng = torch.Generator().manual_seed(1)

    def iterate(self, returns: list[float] | None = None, sign: float = 0.0) -> None:
        """`sign`: of the batch's outcomes, advantages otherwise; 0: it has none."""
        observations = torch.randn(64, 3, generator=self.rng)
        actions, advantages = torch.randn(64, 2, generator=self.rng), torch.randn(64, generator=self.rng)
        log_probs = self.agent.distribution(observations).log_prob(actions).sum(1).detach()
        for _ in range(5):
            ratio = (self.agent.distribution(observations).log_prob(actions).sum(1) - log_probs).exp()
            loss = -(ratio * advantages).mean() + self.agent.critic(observations).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        outcomes = sign * advantages if sign else None
        self.batch = Batch(observations, actions, log_probs, advantages, returns or [], outcomes=outcomes)
        self.before, self.whole_before = self.actor(), self.whole()
        if self.accelerator is not None:
            self.accelerator.step(self.batch)

    def whole(self) -> np.ndarray:
        return nn.utils.parameters_to_vector(self.agent.parameters()).detach().numpy().copy()

    def actor(self) -> np.ndarray:
        parameters = [p for name, p in self.agent.named_parameters() if name.startswith("actor")]
        return nn.utils.parameters_to_vector(parameters).detach().numpy().copy()


def test_an_unguarded_line_goes_on_by_four_iterations() -> None:
    loop = Loop("line", **EVERYTHING)
    path = [loop.actor()]
    loop.iterate()
    path.append(loop.before)
    log_stds = loop.agent.actor_logstd.numel()  # which are first, and do not jump
    expected = path[1] + 4 * (path[1] - path[0])
    np.testing.assert_allclose(loop.actor()[log_stds:], expected[log_stds:], rtol=1e-4, atol=1e-6)


def test_evidence_is_by_outcomes_and_without_them_by_advantages() -> None:
    """Where a batch's outcomes are its advantages, that is as if there were none; where they are the opposite, so is
    what they say of the last proposal. `context` looks at evidence without being asked to."""
    found = []
    for sign in (0.0, 1.0, -1.0):
        loop = Loop("outer:sigma=1.5+context")
        for _ in range(24):
            loop.iterate(sign=sign)
        assert loop.accelerator is not None
        found.append((loop.actor(), loop.accelerator.counts, loop.accelerator._jumper._evidence.errors))
    (without, counts, errors), (same, *equal), (other, others, _) = found
    np.testing.assert_array_equal(without, same)
    assert equal == [counts, errors] and errors != 0
    assert others != counts and not np.array_equal(without, other)


def test_outcomes_may_be_whole_numbers() -> None:
    agent, rng = Agent(), torch.Generator().manual_seed(4)
    observations, actions = torch.randn(16, 3, generator=rng), torch.randn(16, 2, generator=rng)
    log_probs = agent.distribution(observations).log_prob(actions).sum(1).detach()
    whole = torch.arange(16) % 5
    judge = Accelerator(agent, "line")._judge(Batch(observations, actions, log_probs, torch.ones(16)))
    other = np.concatenate([0.5 * p.detach().numpy().ravel() for _, p in agent.named_parameters() if _[:5] == "actor"])
    assert judge(other, whole) == judge(other, whole.double()) and judge(other, whole).surrogate != 0


def test_outcomes_have_to_fit_the_batch() -> None:
    agent, observations = Agent(), torch.zeros(4, 3)
    log_probs = agent.distribution(observations).log_prob(torch.zeros(4, 2)).sum(1).detach()
    whole = Batch(observations, torch.zeros(4, 2), log_probs, torch.ones(4), outcomes=torch.ones(4))
    Accelerator(agent, "line").step(whole)
    for change, said in [
        ({"outcomes": torch.ones(5)}, r"4 observations and outcomes of the shape \[5\]"),
        ({"outcomes": torch.full((4,), torch.nan)}, "outcomes are not finite"),
        ({"outcomes": [1.0] * 4}, "holds tensors, not list"),
        ({"outcomes": None}, "no outcomes, and evidence looks at them"),
    ]:
        with pytest.raises(TiplError, match=said):
            Accelerator(agent, "line", jump=JumpConfig(evidence=True)).step(dataclasses.replace(whole, **change))
    with pytest.raises(TiplError, match="outcomes and no log_probs"):
        Accelerator(agent, "line").step(Batch(observations, outcomes=torch.ones(4)))


def test_only_the_actors_network_jumps() -> None:
    loop = Loop("line", **EVERYTHING)
    start = loop.actor()
    critic = deepcopy(loop.agent.critic.state_dict())
    loop.iterate()
    moments = deepcopy(loop.optimizer.state_dict())
    named = [name for name, _ in loop.agent.named_parameters() if name.startswith("actor")]
    first = loop.agent.actor_logstd.numel()
    assert named[0] == "actor_logstd"
    moved = loop.actor() - loop.before
    assert not moved[:first].any() and (moved[first:] != 0).mean() > 0.9
    np.testing.assert_allclose(moved[first:], 4 * (loop.before - start)[first:], rtol=1e-3, atol=1e-6)
    plain = Loop()
    plain.iterate()
    assert all(
        torch.equal(plain.agent.critic.state_dict()[name], loop.agent.critic.state_dict()[name]) for name in critic
    )
    for index, state in plain.optimizer.state_dict()["state"].items():
        assert torch.equal(state["exp_avg"], moments["state"][index]["exp_avg"])


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_an_outer_step_goes_on_along_each_update_of_actor_and_critic(momentum: float) -> None:
    """By torch's SGD with Nesterov's momentum, whose gradient is what the update did; no jump passes."""
    loop = Loop(f"outer:sigma=1.5,momentum={momentum}+line", full_trust=0.0, max_kl=1e-30)
    position = torch.from_numpy(loop.whole())
    outer = torch.optim.SGD([position], lr=1.5, momentum=momentum, nesterov=momentum > 0)
    for _ in range(3):
        loop.iterate()
        position.grad = position - torch.from_numpy(loop.whole_before)
        outer.step()
        np.testing.assert_allclose(loop.whole(), position.numpy(), rtol=1e-4, atol=1e-6)
    assert loop.accelerator is not None and loop.accelerator.counts == {"rejected": 3}


def test_an_outer_step_of_the_actor_leaves_log_stds_and_critic() -> None:
    loop = Loop("outer:sigma=2,actor=true+line", full_trust=0.0, max_kl=1e-30)
    start = loop.actor()
    loop.iterate()
    expected = 2 * loop.before - start
    expected[:2] = loop.before[:2]
    np.testing.assert_allclose(loop.actor(), expected, rtol=1e-4, atol=1e-6)
    critic = nn.utils.parameters_to_vector(loop.agent.critic.parameters()).detach().numpy()
    np.testing.assert_array_equal(critic, loop.whole_before[2:6])


def test_a_critic_jumps_along_with_the_actor() -> None:
    loop = Loop("line", **EVERYTHING, critic=True)
    start = loop.whole()
    loop.iterate()
    expected = loop.whole_before + 4 * (loop.whole_before - start)
    expected[:2] = loop.whole_before[:2]  # log standard deviations
    np.testing.assert_allclose(loop.whole(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bound", [1e-2, 1e-3])
def test_the_guard_holds_in_torchs_own_terms(bound: float) -> None:
    loop = Loop("line", full_trust=0.0, max_kl=bound, surrogate=False, horizon=4)
    for _ in range(3):
        loop.iterate()
        after = loop.actor()
        now = loop.agent.distribution(loop.batch.observations)
        nn.utils.vector_to_parameters(
            torch.from_numpy(loop.before), [p for n, p in loop.agent.named_parameters() if n.startswith("actor")]
        )
        kl = kl_divergence(loop.agent.distribution(loop.batch.observations), now).sum(1).mean().item()
        nn.utils.vector_to_parameters(
            torch.from_numpy(after), [p for n, p in loop.agent.named_parameters() if n.startswith("actor")]
        )
        jump = loop.accelerator.last  # pyright: ignore[reportOptionalMemberAccess]
        assert jump is not None and jump.kind == "shrunk"
        assert 0.5 * bound < kl <= bound * 1.001 and kl == pytest.approx(jump.kl, rel=1e-3)


def test_update_and_jump_together_stay_within_the_change() -> None:
    def after_one(**settings: Any) -> tuple[float, str]:
        loop = Loop("line", **EVERYTHING, **settings)
        loop.iterate()
        jump, batch = loop.accelerator.last, loop.batch  # pyright: ignore[reportOptionalMemberAccess]
        assert jump is not None and batch.actions is not None and batch.log_probs is not None
        log_prob = loop.agent.distribution(batch.observations).log_prob(batch.actions).sum(1)
        log_ratio = log_prob.detach() - batch.log_probs
        return (log_ratio.exp() - 1 - log_ratio).mean().item(), jump.kind

    free, kind = after_one()
    assert kind == "accepted"
    update, kind = after_one(max_change=1e-9)  # by the update alone
    assert kind == "rejected" and update < free / 2
    change, kind = after_one(max_change=1.5 * update)
    assert kind == "shrunk" and update < change <= 1.5 * update * 1.001


@pytest.mark.parametrize(("forecaster", "kind"), [(NAN, "invalid"), ("noise", "silent")], ids=["nan", "noise"])
def test_bad_forecasts_leave_the_run_as_it_is(forecaster: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tipl.acceleration.jump._SILENT_BELOW", 1.0)  # of noise in 52 weights some is right by chance
    accelerated, plain = Loop(forecaster), Loop()
    for _ in range(5):
        accelerated.iterate()
        plain.iterate()
        np.testing.assert_array_equal(accelerated.actor(), plain.actor())
    assert accelerated.accelerator is not None and accelerated.accelerator.counts == {kind: 5}


def test_a_fall_of_the_return_takes_the_jump_back() -> None:
    loop = Loop("line", **EVERYTHING)
    loop.iterate([10.0, 11.0, 12.0])
    jumped = loop.actor() - loop.before
    loop.iterate([1.0, 2.0, 3.0])
    assert loop.accelerator is not None and loop.accelerator.counts == {"accepted": 1, "taken back": 1}
    np.testing.assert_allclose(loop.actor(), loop.before - jumped, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("forecaster", ["line", "outer:momentum=0.3+context"])
def test_a_checkpoint_goes_on_to_the_bit(forecaster: str, tmp_path: Path) -> None:
    whole = Loop(forecaster, full_trust=0.0)
    for _ in range(10):
        whole.iterate(sign=-1.0)
    stopped = Loop(forecaster, full_trust=0.0)
    for _ in range(4):  # after a proposal of `context`, which the next batch will judge
        stopped.iterate(sign=-1.0)
    assert stopped.accelerator is not None and whole.accelerator is not None
    states = {"agent": stopped.agent, "optimizer": stopped.optimizer, "accelerator": stopped.accelerator}
    torch.save({name: each.state_dict() for name, each in states.items()}, tmp_path / "checkpoint")
    resumed = Loop(forecaster, full_trust=0.0)
    assert resumed.accelerator is not None
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    resumed.agent.load_state_dict(saved["agent"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.accelerator.load_state_dict(saved["accelerator"])
    resumed.rng.set_state(stopped.rng.get_state())
    for _ in range(6):
        resumed.iterate(sign=-1.0)
    np.testing.assert_array_equal(resumed.whole(), whole.whole())
    assert resumed.accelerator.counts == whole.accelerator.counts
    if forecaster != "line":
        with pytest.raises(TiplError, match="with Outer-PPO"):
            Loop("context", full_trust=0.0).accelerator.load_state_dict(  # pyright: ignore[reportOptionalMemberAccess]
                saved["accelerator"]
            )
    with pytest.raises(TiplError, match="not of an accelerator of 2 weights"):
        Accelerator(nn.Linear(1, 1), distribution=Categorical).load_state_dict(saved["accelerator"])


def test_settings_are_refused_by_name() -> None:
    with pytest.raises(TiplError, match="`jump` is of the type dict; give a JumpConfig"):
        Accelerator(Agent(), jump={"every": 2})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TiplError, match="--every"):
        JumpConfig(every=0)
    with pytest.raises(TiplError, match="distribution"):
        Accelerator(nn.Linear(3, 2))
    with pytest.raises(TiplError, match="no parameters"):
        Accelerator([])
    with pytest.raises(TiplError, match="no forecaster"):
        Accelerator(Agent(), "nothing")
    agent = Agent()
    adam = torch.optim.Adam(agent.parameters())
    for message, forecaster, given in [
        ("reuse:batches=2 changes the update itself", "reuse:batches=2", {}),
        ("outer forecasts nothing; give outer[+]context", "outer", {}),
        ("Outer-PPO moves the critic too; give critic=", "outer+line", {}),
        ("give critic=…, or leave the setting out", "line", {"jump": JumpConfig(critic=True)}),
        ("The critic has no parameters", "outer+line", {"critic": nn.Identity()}),
        ("lie in the same memory", "outer+line", {"critic": agent.actor_mean}),
        ("looks at Adam's moments, and there is no optimizer", "context", {}),
        ("and there is SGD", "context", {"optimizer": torch.optim.SGD(agent.parameters(), lr=0.1)}),
        ("does not train actor_logstd", "context", {"optimizer": torch.optim.Adam(agent.critic.parameters())}),
    ]:
        with pytest.raises(TiplError, match=message):
            Accelerator(agent, forecaster, **given)
    accelerator = Accelerator(agent, "context", optimizer=adam)
    with pytest.raises(TiplError, match="no actions; the forecaster context looks at actions"):
        accelerator.step(Batch(torch.zeros(4, 3)))


def test_a_causal_model_forecasts_in_a_loop() -> None:
    loop = Loop("causal", full_trust=0.0, hindsight=False, max_change=1e9)  # advantages are random here
    for _ in range(3):
        loop.iterate()
    assert loop.accelerator is not None and set(loop.accelerator.counts) <= {"accepted", "shrunk", "rejected"}
    assert not np.array_equal(loop.actor(), loop.before)


# The optimizer that jumps.

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(2))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, scheduler: Any = None) -> float:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return (model(X) - Y).square().mean().item()


def linear() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(4, 1)


def test_an_optimizer_that_never_jumps_is_the_other_one() -> None:
    ours, torchs = linear(), linear()
    jumping = JumpingOptimizer(torch.optim.Adam(ours.parameters(), lr=1e-2), NAN, period=10)
    assert isinstance(jumping, torch.optim.Optimizer)
    assert fit(ours, jumping, 50) == fit(torchs, torch.optim.Adam(torchs.parameters(), lr=1e-2), 50)
    assert jumping.counts == {"invalid": 5}


def test_jumps_save_steps_of_gradient_descent() -> None:
    """Gradient descent with a small rate moves along nearly straight lines: what a line foresees, it would reach."""
    ours, torchs = linear(), linear()
    jumping = JumpingOptimizer(torch.optim.SGD(ours.parameters(), lr=1e-3), period=10, jump=JumpConfig(surrogate=False))
    plain = fit(torchs, torch.optim.SGD(torchs.parameters(), lr=1e-3), 200)
    assert fit(ours, jumping, 200) < 0.5 * plain
    assert jumping.counts["accepted"] >= 15


def test_schedulers_work_on_it() -> None:
    ours, torchs = linear(), linear()
    jumping = JumpingOptimizer(torch.optim.SGD(ours.parameters(), lr=0.1), NAN, period=10)
    other = torch.optim.SGD(torchs.parameters(), lr=0.1)
    found = fit(ours, jumping, 20, torch.optim.lr_scheduler.CosineAnnealingLR(jumping, 20))
    assert found == fit(torchs, other, 20, torch.optim.lr_scheduler.CosineAnnealingLR(other, 20))
    assert jumping.param_groups[0]["lr"] == other.param_groups[0]["lr"] == pytest.approx(0)


def test_its_state_goes_on_to_the_bit(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, JumpingOptimizer]:
        model = linear()
        inner, jump = torch.optim.Adam(model.parameters(), lr=1e-3), JumpConfig(horizon=3, surrogate=False)
        return model, JumpingOptimizer(inner, period=10, jump=jump)

    whole, optimizer = make()
    fit(whole, optimizer, 77)
    model, stopped = make()
    fit(model, stopped, 33)
    torch.save({"model": model.state_dict(), "optimizer": stopped.state_dict()}, tmp_path / "checkpoint")
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)
    resumed, going_on = make()
    resumed.load_state_dict(saved["model"])
    going_on.load_state_dict(saved["optimizer"])
    fit(resumed, going_on, 44)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert going_on.counts == optimizer.counts
    with pytest.raises(TiplError, match="not the state of a JumpingOptimizer"):
        going_on.load_state_dict(torch.optim.Adam(linear().parameters()).state_dict())


def test_a_gradient_scaler_works_on_it() -> None:
    """An infinite gradient skips the step of the other optimizer, and with it ours."""
    model = linear()
    jumping = JumpingOptimizer(torch.optim.SGD(model.parameters(), lr=1e-2), period=2, snapshots_per_iteration=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = [p.detach().clone() for p in model.parameters()]
    for factor in (1.0, float("inf"), 1.0):
        jumping.zero_grad()
        scaler.scale((model(X) - Y).square().mean() * factor).backward()
        scaler.step(jumping)
        scaler.update()
    assert sum(jumping.counts.values()) == 1  # two steps were taken: one period
    assert scaler.get_scale() == 4.0
    assert all(
        torch.isfinite(p).all() and not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)
    )


def test_a_closure_keeps_it_from_raising_the_loss() -> None:
    model = linear()
    away = FixedSum("away", "twice the weights", 2, lambda back, h: np.where(back == 0, 1e3, 0.0))
    inner, jump = torch.optim.SGD(model.parameters(), lr=1e-3), JumpConfig(full_trust=0.0, horizon=1)
    jumping = JumpingOptimizer(inner, away, period=5, jump=jump)

    def closure() -> Tensor:
        jumping.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        return loss

    losses = [jumping.step(closure).item() for _ in range(40)]
    assert all(later <= earlier * 1.0001 for earlier, later in pairwise(losses))
    assert jumping.counts["accepted"] == 0


def test_what_an_optimizer_cannot_do_is_said() -> None:
    inner = torch.optim.SGD(linear().parameters(), lr=0.1)
    with pytest.raises(TiplError, match="multiple"):
        JumpingOptimizer(inner, period=7, snapshots_per_iteration=2)
    with pytest.raises(TiplError, match="no further parameters"):
        JumpingOptimizer(inner).add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize("forecaster", ["line", "outer:sigma=1.5+context"])
def test_the_example_runs_with_jumps(
    forecaster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"record_ppo.py --total-steps 12288 --forecaster {forecaster} --store {tmp_path / 'store'}"
    monkeypatch.setattr(sys, "argv", words.split())
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "record_ppo.py"), run_name="__main__")
    counts = ast.literal_eval(capsys.readouterr().out.strip().splitlines()[-1])
    assert sum(counts.values()) == 6  # once an iteration
    if forecaster == "line":
        assert counts["silent"] >= 1  # the first has earned no trust
    else:
        assert counts.keys() & {"accepted", "shrunk"}
