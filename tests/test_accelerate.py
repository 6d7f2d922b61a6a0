"""Paired runs: the judge against torch's distributions, the measures against plain loops, the promises on real runs.

In: small runs of InvertedPendulum and CartPole.  Out: failures.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch.distributions import Categorical, Normal, kl_divergence

import tipl.acceleration.arms as module
from tipl.acceleration.arms import Arm, run_arms, run_part
from tipl.acceleration.compare import accelerate, compare, measures, thresholds
from tipl.acceleration.judging import batch_judge, outcome_judge
from tipl.acceleration.jump import KINDS
from tipl.cli.main import main
from tipl.cli.show import acceleration_facts
from tipl.collection.collect import run_stack
from tipl.config.jumps import JumpConfig
from tipl.config.presets import CollectConfig, DiscreteCollectConfig, PPOConfig
from tipl.errors import TiplError
from tipl.forecasting.baselines import FixedSum
from tipl.forecasting.named import load_forecaster
from tipl.forecasting.shipped import model_folder
from tipl.rl.trial_batch import TrialBatch
from tipl.store import History, Store, create_store

SHORT = CollectConfig(trials=3, total_steps=6 * 512, ppo=PPOConfig(num_steps=512, num_minibatches=8))


def torch_policy(stack: TrialBatch, weights: np.ndarray, obs: np.ndarray):
    """The distribution over actions, by torch."""
    x, tensors = torch.from_numpy(obs), list(stack.spec.unflatten(weights).values())
    tensors = [torch.from_numpy(np.array(each)) for each in tensors]
    log_std = None if stack.env.discrete else tensors.pop()
    for layer in range(0, len(tensors), 2):
        x = x @ tensors[layer].T + tensors[layer + 1]
        x = torch.tanh(x) if layer < len(tensors) - 2 else x
    return Categorical(logits=x) if log_std is None else Normal(x, log_std.exp())


@pytest.mark.parametrize(
    "config", [SHORT, DiscreteCollectConfig(trials=2, total_steps=2048)], ids=["normal", "categorical"]
)
def test_the_judge_is_what_torch_says(config: CollectConfig) -> None:
    stack = TrialBatch(config, config.seeds)
    stack.iterate()
    now = np.array(stack.policies[1])
    other = now + 0.1 * np.random.default_rng(0).standard_normal(len(now)).astype(np.float32)
    kl, surrogate, change, error = batch_judge(stack, 1)(other)
    mine, batch = stack.copies(1), config.ppo.batch_size
    obs = stack.obs[mine].reshape(batch, -1)
    current, candidate = torch_policy(stack, now, obs), torch_policy(stack, other, obs)
    actions = torch.from_numpy(stack.actions[mine].reshape(batch, -1))
    actions = actions[:, 0] if stack.env.discrete else actions
    expected = kl_divergence(current, candidate).reshape(batch, -1).sum(1).mean()
    log_prob = candidate.log_prob(actions).reshape(batch, -1).sum(1)
    ratio = (log_prob - torch.from_numpy(stack.log_probs[mine].reshape(-1))).exp()
    advantages = torch.from_numpy(stack.advantages[mine].reshape(-1))
    assert kl == pytest.approx(float(expected), rel=1e-4)
    assert surrogate == pytest.approx(float((ratio * (advantages - advantages.mean())).mean()), rel=1e-3, abs=1e-5)
    assert change == pytest.approx(float((ratio - 1 - ratio.log()).mean()), rel=1e-3)
    gained = (ratio - 1) * (advantages - advantages.mean())
    assert error == pytest.approx(float((gained.square().sum() / batch**2).sqrt()), rel=1e-3)


def test_outcomes_are_discounted_rewards_less_the_critics_values() -> None:
    """Against a loop over all later rewards, and torch's critic of now."""
    stack = TrialBatch(SHORT, SHORT.seeds)
    for _ in range(2):
        stack.iterate()
    other = np.array(stack.policies[1]) + np.float32(0.02)
    mine, gamma = stack.copies(1), SHORT.ppo.gamma
    layers = [stack.theta[1, stack.spec.size :]]
    for fan_in, fan_out in itertools.pairwise(stack.critic_sizes.tolist()):
        left = layers.pop()
        layers += [left[: fan_in * fan_out].reshape(fan_out, fan_in), *np.split(left[fan_in * fan_out :], [fan_out])]

    def value(obs: np.ndarray) -> np.ndarray:
        for at in range(0, len(layers) - 1, 2):
            obs = obs @ layers[at].T + layers[at + 1]
            obs = np.tanh(obs) if at < len(layers) - 3 else obs
        return obs[..., 0]

    rewards, begins = stack.rewards[mine], np.concatenate([stack.dones[mine], stack.next_done[mine, None]], axis=1)
    values, last = value(stack.obs[mine]), value(stack.next_obs[mine])
    found = np.zeros_like(rewards, np.float64)
    for e, t in np.ndindex(rewards.shape):
        for later in range(t, rewards.shape[1]):
            found[e, t] += gamma ** (later - t) * rewards[e, later]
            if begins[e, later + 1]:
                break
        else:
            found[e, t] += gamma ** (rewards.shape[1] - t) * last[e]
    assert begins[:, 1:].any()  # episodes end
    expected = batch_judge(stack, 1, (found - values).reshape(-1))(other)
    np.testing.assert_allclose(outcome_judge(stack, 1)(other), expected, rtol=1e-3)
    assert abs(expected.surrogate - batch_judge(stack, 1)(other).surrogate) > 0.1 * abs(expected.surrogate)


def test_runs_are_plain_until_their_first_jump_and_are_not_run_twice(here: None, tmp_path: Path) -> None:
    arms = {"plain": Arm(SHORT), "line": Arm(SHORT, "line")}
    runs = run_arms(arms, tmp_path, workers=1)
    assert runs is not None
    plain, jumped = runs["plain"]["returns"], runs["line"]["returns"]
    kinds = runs["line"]["kinds"]
    assert plain.shape == (3, 6) and not np.array_equal(plain, jumped)
    for n in range(3):
        first = int(np.isin(kinds[n], [KINDS.index("accepted"), KINDS.index("shrunk")]).argmax())
        assert first >= 1  # in the second iteration at the earliest
        np.testing.assert_array_equal(plain[n, : first + 1], jumped[n, : first + 1])
    stack = TrialBatch(SHORT, [2])
    alone = [stack.iterate().episodes[0][:, 1].mean() for _ in range(6)]
    np.testing.assert_allclose(plain[1], alone)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    again = run_arms(arms, tmp_path, workers=1)
    assert again is not None
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    np.testing.assert_array_equal(again["line"]["returns"], jumped)


def test_noise_costs_nothing(here: None, tmp_path: Path) -> None:
    """256-256 networks: what is random is at right angles to what comes, so that training ends as plain PPO's, to the
    bit."""
    config = dataclasses.replace(SHORT, trials=1, hidden_sizes=(256, 256))
    runs = run_arms({"plain": Arm(config), "noise": Arm(config, "noise")}, tmp_path, workers=1)
    assert runs is not None
    assert set(runs["noise"]["kinds"].ravel()) == {KINDS.index("silent")}
    np.testing.assert_array_equal(runs["noise"]["returns"], runs["plain"]["returns"])


def test_a_forecaster_of_nan_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = FixedSum("nan", "NaN", 2, lambda back, h: np.full(len(back), np.nan))
    monkeypatch.setattr(module, "load_forecaster", lambda *_, **__: nan)
    for name, arm in (("plain", Arm(SHORT)), ("nan", Arm(SHORT, "line"))):
        module.run_part(arm, tmp_path / f"{name}.safetensors", [1])
    plain, broken = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("plain", "nan"))
    assert set(broken["kinds"].ravel()) == {KINDS.index("invalid")}
    np.testing.assert_array_equal(broken["returns"], plain["returns"])


def test_measures_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    returns = np.cumsum(rng.random((5, 6)), axis=1)
    levels = {"low": 1.0, "never": 100.0}
    found = measures(SHORT, returns, levels)
    for n, row in enumerate(returns):
        steps = next((i + 1 for i, value in enumerate(row) if value >= 1.0), 6) * 512
        assert found["steps to low"][0][n] == steps
    assert (found["steps to never"][0] == 6 * 512).all() and not found["steps to never"][1].any()
    np.testing.assert_allclose(found["final return"][0], returns[:, -1])
    np.testing.assert_allclose(found["mean return"][0], returns.mean(axis=1))


def test_thresholds_are_shares_of_the_gain() -> None:
    returns = np.array([[-10.0, 0, 10]] * 4)
    assert thresholds(returns, [7]) == {"50%": 0.0, "75%": 5.0, "90%": 8.0, "7": 7.0}


def test_compare_is_paired_by_seed() -> None:
    """Twice as fast on every seed: the ratio is ½ with no width, however much seeds differ."""
    arms = {"plain": Arm(SHORT), "line": Arm(SHORT, "line")}
    slow, fast = np.zeros((5, 6)), np.zeros((5, 6))
    for n, at in enumerate((1, 3, 5, 3, 1)):
        slow[n, at:], fast[n, (at + 1) // 2 - 1 :] = 1, 1
    zeros = {name: np.zeros((5, 6)) for name in ("shares", "kl", "trust")}
    rest = {**zeros, "kinds": np.zeros((5, 6), np.int8), "seconds": np.ones(5), "jump_seconds": np.full(5, 0.5)}
    runs = {"plain": {"returns": slow, **rest}, "line": {"returns": fast, **rest}}
    found = compare(arms, runs, [1.0])["arms"]["line"]
    beside = found["beside"]["steps to 1"]
    assert beside["ratio"] == 0.5 and beside["ratio_ci"] == pytest.approx([0.5, 0.5]) and beside["seeds"] == 5
    assert beside["seeds_improved"] == 1 and beside["seeds_improved_ci"][0] == pytest.approx(0.025**0.2)
    assert found["reached"]["1"] == 5 and found["overhead"] == 1.0
    turned = compare(dict(reversed(arms.items())), runs, levels={"one": 1.0})
    assert turned["thresholds"] == {"one": 1.0} and turned["arms"]["plain"]["beside"]["steps to one"]["ratio"] == 2.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_seed_that_diverges_is_named_and_never_counts_as_good(value: float) -> None:
    """From its seventh iteration on; before its first episode a seed has no return, which is no fault."""
    returns = np.tile(np.linspace(10, 100, 10), (3, 1))
    returns[:, 0] = np.nan
    diverged = returns.copy()
    diverged[1, 6:] = value
    zeros = {name: np.zeros((3, 10)) for name in ("shares", "kl", "trust")}
    rest = {**zeros, "kinds": np.zeros((3, 10), np.int8), "seconds": np.ones(3), "jump_seconds": np.zeros(3)}
    arms = {"plain": Arm(SHORT), "line": Arm(SHORT, "line")}
    compare(arms, {"plain": {"returns": returns, **rest}, "line": {"returns": returns, **rest}})
    with pytest.raises(TiplError, match=r"Seed 2 of the arm line diverged: its return in iteration 7 is (nan|inf)"):
        compare(arms, {"plain": {"returns": returns, **rest}, "line": {"returns": diverged, **rest}})


def test_a_run_whose_weights_are_not_finite_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iterate = TrialBatch.iterate

    def diverging(stack: TrialBatch):
        found = iterate(stack)
        stack.policies[-1, 3] = np.nan
        return found

    monkeypatch.setattr(TrialBatch, "iterate", diverging)
    with pytest.raises(TiplError, match="Seed 2 of InvertedPendulum-v4, trained plainly, diverged in iteration 1"):
        module.run_part(Arm(SHORT), tmp_path / "part.safetensors", [1, 2])
    assert not (tmp_path / "part.safetensors").exists()


def test_ratios_of_returns_that_are_not_above_0_mean_nothing() -> None:
    """−100 is better than −200 and half of it."""
    rest = {"shares": np.zeros((3, 4)), "kl": np.zeros((3, 4)), "trust": np.zeros((3, 4)), "seconds": np.ones(3),
            "kinds": np.zeros((3, 4), np.int8), "jump_seconds": np.zeros(3)}  # fmt: skip
    low, high = np.tile([-300.0, -250, -220, -200], (3, 1)), np.tile([-300.0, -200, -120, -100], (3, 1))
    runs = {"plain": {"returns": low, **rest}, "line": {"returns": high, **rest}}
    found = compare({"plain": Arm(SHORT), "line": Arm(SHORT, "line")}, runs)
    assert found["gain"] == 100 and json.dumps(found, allow_nan=False)
    beside = found["arms"]["line"]["beside"]
    assert beside["final return"]["difference"] == 100 and beside["steps to 90%"]["ratio"] == 0.5
    for kind in ("ratio", "ratio_ci", "ratio_of_iqm", "ratio_of_iqm_ci"):
        assert beside["final return"][kind] is None


def test_parts_are_called_by_all_that_makes_them(small_store: Path, tmp_path: Path) -> None:
    """Stores and models by what they hold, not by what their folders are called."""
    here, there = tmp_path / "here" / "store", tmp_path / "there" / "store"
    for place in (here, there):
        shutil.copytree(small_store, place)
    fitted = Arm(SHORT, "autoregression", JumpConfig(horizon=4), here)
    same = dataclasses.replace(fitted, fit=there)
    assert same.digest() == fitted.digest() == dataclasses.replace(fitted, fit=here).digest()
    shutil.rmtree(there / "trials" / str(Store.open(there).split().train[0]))
    assert same.digest() != fitted.digest() == Arm(SHORT, "autoregression", JumpConfig(horizon=4), here).digest()
    assert Arm(SHORT, "autoregression", JumpConfig(horizon=4)).digest() not in (same.digest(), fitted.digest())

    model = tmp_path / "model"
    shutil.copytree(model_folder("causal"), model)
    arm = Arm(SHORT, str(model))
    before = arm.digest()
    assert before == Arm(SHORT, "causal").digest()  # it is that model
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert arm.digest() != before

    later = dataclasses.replace(SHORT, seed=2)
    assert Arm(later).digest() == Arm(SHORT).digest()  # parts are told apart by their seeds
    assert Arm(later, "noise").digest() != Arm(SHORT, "noise").digest()  # which is drawn from the first one
    assert Arm(SHORT, "line").digest() != Arm(SHORT, "line", JumpConfig(every=2)).digest()


def test_a_store_to_fit_on_is_for_the_autoregression_alone(small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(TiplError, match="no effect on line"):
        accelerate(SHORT, tmp_path / "out", "line", fit=small_store)
    with pytest.raises(TiplError, match="`targets` is nan"):
        accelerate(SHORT, tmp_path / "out", targets=[float("nan")])
    assert not (tmp_path / "out").exists()


def test_the_terminal_says_why_there_is_no_interval() -> None:
    beside = {"steps to 90%": {"ratio": 0.5, "ratio_ci": None}}
    arms = {"plain": {"steps to 90%": {"mean": 10.0}}, "line": {"steps to 90%": {"mean": 5.0}, "beside": beside}}
    few = acceleration_facts({"env_id": "A-v1", "seeds": [1, 2, 3], "arms": arms})
    assert few["beside_plain"][0]["95% interval"] == "too few seeds (N = 3)"
    beside["steps to 90%"]["ratio_ci"] = [0.4, 0.6]
    enough = acceleration_facts({"env_id": "A-v1", "seeds": [1, 2, 3, 4, 5], "arms": arms})
    assert enough["beside_plain"][0]["95% interval"] == "0.400 to 0.600"


def test_returns_that_never_change(here: None, tmp_path: Path) -> None:
    """MountainCar's run without success earns −200 in every episode."""
    config = DiscreteCollectConfig(env_id="MountainCar-v0", trials=2, total_steps=4096)
    out = accelerate(config, tmp_path / "out", workers=1)
    found = json.loads((out / "metrics.json").read_text())["arms"]
    assert found["plain"]["final return"]["mean"] == found["accelerated"]["final return"]["mean"] == -200
    assert json.loads((out / "metrics.json").read_text())["gain"] == 0


def test_the_verb_writes_metrics(here: None, tmp_path: Path) -> None:
    words = "accelerate --trials 2 --total-steps 2048 --ppo.num-steps 512 --targets 50 --forecaster line --horizon 2"
    assert main([*words.split(), "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["seeds"] == [1, 2] and set(metrics["arms"]) == {"plain", "accelerated"}
    assert metrics["arms"]["accelerated"]["jump"]["horizon"] == 2
    assert sum(metrics["arms"]["accelerated"]["jumps"]["counts"].values()) == 2 * 4
    assert "50" in metrics["thresholds"]


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    words = "-m tipl accelerate --trials 12 --total-steps 2048000 --forecaster line --workers 2 --out"
    process = subprocess.Popen([sys.executable, *words.split(), str(tmp_path)], start_new_session=True)
    try:
        while len(children := _children(process.pid)) < 3:  # two that train, and multiprocessing's own
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 60
        while any(map(_runs, children)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(_runs, children))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"  # dead, not yet buried
    except OSError:
        return False


@pytest.mark.parametrize(
    "flags",
    [
        "--forecaster nothing",
        "--forecaster autoregression --horizon 7",
        "--every 0",
        "--max-kl 0",
        "--env-id Nothing-v4",
    ],
)
def test_bad_input_is_one_line(flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accelerate", *flags.split(), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("tipl: error: ")
    assert not (tmp_path / "out").exists()


def test_lookahead_goes_halfway_back() -> None:
    path = np.arange(26, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    forecaster = load_forecaster("lookahead", [(4,)], 1, snapshots_per_iteration=5)
    made = forecaster.forecast([History(1, 25, path, 4)], [5])
    np.testing.assert_allclose(made[0, 0], 12.5)
    with pytest.raises(TiplError, match="no forecaster"):
        load_forecaster("nothing", [(4,)], 1)


def test_an_autoregression_for_one_snapshot_an_iteration_learns_from_every_fifth(tmp_path: Path) -> None:
    """As if the same runs had been recorded once an iteration."""
    often = CollectConfig(trials=6, total_steps=16 * 256, ppo=PPOConfig(num_steps=256, num_minibatches=8))
    for name, config in (("often", often), ("once", dataclasses.replace(often, snapshot_every_epochs=10))):
        create_store(tmp_path / name)
        run_stack(config, tmp_path / name, config.seeds, lambda seeds, result: None)
    path = np.random.default_rng(0).standard_normal((101, 122), np.float32).cumsum(axis=0)
    history, shapes = History(1, 100, path, 0), [(122,)]
    made, expected = (
        load_forecaster("autoregression", shapes, 4, 1, fit).forecast([history], (1, 4)) - path[-1]
        for fit in (tmp_path / "often", tmp_path / "once")
    )
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(TiplError, match="holds 5 snapshots an iteration, the run 2"):
        load_forecaster("autoregression", shapes, 4, 2, tmp_path / "often")


@pytest.mark.parametrize("snapshots_per_iteration", [1, 5])
def test_the_autoregression_of_the_package_follows_a_steady_path_and_falls_short_of_it(
    snapshots_per_iteration: int,
) -> None:
    """What one fitted on noisy paths does: φ_t = t v in φ_t + b h v, 0 < b < 1, whatever the length of v."""
    step = np.array([1.0, -2.0, 1e-3], np.float32)
    path = np.arange(101, dtype=np.float32)[:, None] * step
    forecaster = load_forecaster("autoregression", [(3,)], 20, snapshots_per_iteration)
    ahead = snapshots_per_iteration, 20 * snapshots_per_iteration
    made = forecaster.forecast([History(1, 100, path, snapshots_per_iteration - 1)], ahead)[0] - path[-1]
    for h, displacement in zip(ahead, made, strict=True):
        share = displacement / (h * step)
        np.testing.assert_allclose(share, share[0], rtol=1e-3)
        assert 0.05 < share[0] < 1
    with pytest.raises(TiplError, match=r"1 or 5 snapshots an iteration .* takes 2 and looks 20 ahead"):
        load_forecaster("autoregression", [(3,)], 20, 2)


def test_jump_settings_are_refused_by_name() -> None:
    with pytest.raises(TiplError, match="--full-trust"):
        JumpConfig(full_trust=1.5)


def test_no_run_is_accelerated_by_what_has_learned_from_it(small_store: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, total_steps=2 * 512, trials=1)  # a run of the store begins so
    with pytest.raises(TiplError, match=r"seed 1 is one that the forecaster autoregression has learned from.*--seed"):
        run_part(Arm(config, "autoregression", JumpConfig(horizon=2), small_store), tmp_path / "part", [1])
    run_part(Arm(config, "autoregression", JumpConfig(horizon=2), small_store), tmp_path / "part", [71])
    run_part(Arm(config, "autoregression", JumpConfig(horizon=2)), tmp_path / "another part", [1])
