"""Acceleration: do forecasts inside a live run save environment steps? Paired runs that can say no.

In: what makes the trials, a forecaster, how to jump.  Out: a folder with metrics.json: learning curves, steps to
thresholds, final returns, every jump; plain PPO and accelerated PPO on the same seeds.

An accelerated trial is a plain one until its first jump, to the bit: same seeds, same draws. Its jumps cost no
environment steps, and their time is measured apart. Shapes: N seeds, I iterations, P weights.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, get_args

import numpy as np

import tipl
from tipl.baselines import (
    RIDGES,
    Autoregression,
    FixedSum,
    RandomDisplacement,
    difference_features,
    line,
    normal_equations,
)
from tipl.collect import deaf_to_interrupts, one_thread_a_process, trial_config
from tipl.errors import TiplError
from tipl.forecast import CausalForecaster, Forecaster, model_folder
from tipl.jump import KINDS, Judgment, Jumper
from tipl.model import write_file
from tipl.policy import FASTMATH, forward_batch, kernel
from tipl.ppo import categorical_log_probs, gaussian_log_prob
from tipl.presets import CollectConfig, ForecasterName, JumpConfig
from tipl.progress import console, steps_progress
from tipl.stack import Stack
from tipl.stats import Interval, bootstrap_interval, iqm, paired_improvement
from tipl.store import Store

SHARES = (0.5, 0.75, 0.9)
"""Thresholds: so much of the way from plain PPO's first return to its final one."""
_FINAL = 0.1  # share of the iterations, the last ones, that a final return is the mean of
_TOGETHER = 5  # seeds that are run, and written when they are done, together
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Arm:
    """One way to train: PPO's settings, and a forecaster to jump with, or none."""

    config: CollectConfig
    forecaster: str | None = None
    """A `ForecasterName`, or the folder of a causal model; None: plain PPO."""
    jump: JumpConfig = JumpConfig()
    fit: Path | None = None
    """The store that the autoregression is fitted on."""

    def facts(self) -> dict[str, Any]:
        """What makes its results, as JSON."""
        jumps = {} if self.forecaster is None else {"jump": dataclasses.asdict(self.jump)}
        fit = {} if self.fit is None else {"fit": self.fit.name}
        return {"config": trial_config(self.config), "forecaster": self.forecaster, **jumps, **fit}


def accelerate(
    config: CollectConfig,
    out: Path,
    forecaster: str = "line",
    jump: JumpConfig = JumpConfig(),
    *,
    plain_learning_rate: float | None = None,
    fit: Path | None = None,
    targets: Sequence[float] = (),
    workers: int | None = None,
) -> Path:
    """Train every seed plainly and with jumps, and compare.

    Args:
        config: the trials; its learning rate is that of the accelerated ones.
        out: a folder, new or of an earlier call, which goes on: seeds that are done are not run again.
        forecaster: a `ForecasterName`, or the folder of a causal model.
        plain_learning_rate: of the plain trials; default: the same.
        fit: the store whose training trials the autoregression is fitted on.
        targets: returns to which the steps are counted too.
        workers: processes; default: one a core.

    Raises:
        TiplError: the environment, the forecaster or the folder cannot be used.
    """
    arms = {"plain": Arm(_at_rate(config, plain_learning_rate)), "accelerated": Arm(config, forecaster, jump, fit)}
    runs = run_arms(arms, out, workers)
    write_file(Path(out) / METRICS_FILE, json.dumps(compare(arms, runs, targets), indent=1).encode())
    return Path(out)


def run_arms(arms: Mapping[str, Arm], out: Path, workers: int | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Run every seed of every arm, in processes; what lies in `out` already is read.

    Returns:
        For each arm `returns` [N, I] (the mean of the episodes that ended in an iteration; NaN before the first),
        `kinds` [N, I] (numbers of `KINDS`), `shares`, `kl`, `trust` [N, I], `seconds` and `jump_seconds` [N].
    """
    for arm in arms.values():
        stack = Stack(arm.config, arm.config.seeds[:1])  # what cannot be run is told before there is a folder
        if arm.forecaster is not None:
            _arm_forecaster(arm, stack)
    out = Path(out)
    parts: dict[str, list[tuple[Path, list[int]]]] = {}
    for name, arm in arms.items():
        seeds = list(arm.config.seeds)
        # The number of trials is no part of what makes one: with more of them the first parts stay.
        digest = hashlib.sha256(json.dumps(arm.facts(), sort_keys=True).encode()).hexdigest()[:12]
        groups = [seeds[start : start + _TOGETHER] for start in range(0, len(seeds), _TOGETHER)]
        parts[name] = [(out / "parts" / f"{digest}-{group[0]}-{group[-1]}.npz", group) for group in groups]
    waiting = [(arms[name], path, group) for name in arms for path, group in parts[name] if not path.exists()]
    if waiting:
        _run_parts(waiting, min(workers or len(os.sched_getaffinity(0)), len(waiting)))
    runs = {}
    for name in arms:
        loaded = [dict(np.load(path)) for path, _ in parts[name]]
        runs[name] = {key: np.concatenate([part[key] for part in loaded]) for key in loaded[0]}
    return runs


def _run_parts(waiting: Sequence[tuple[Arm, Path, list[int]]], count: int) -> None:
    context = multiprocessing.get_context("spawn")
    steps = sum(arm.config.num_iterations * arm.config.ppo.batch_size * len(group) for arm, _, group in waiting)
    console.print(f"accelerate: {sum(len(group) for _, _, group in waiting)} runs in {count} processes")
    stop = context.Event()
    with one_thread_a_process(), deaf_to_interrupts():
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_heed, initargs=(stop,))
        futures = {pool.submit(run_part, *part): part for part in waiting}
    try:
        with steps_progress("accelerate", steps) as advance:
            for future in as_completed(futures):
                future.result()
                arm, _, group = futures[future]
                advance(arm.config.num_iterations * arm.config.ppo.batch_size * len(group), arm.forecaster or "plain")
    finally:
        stop.set()  # a process leaves its seeds at the end of their iteration; those that are done are written
        pool.shutdown(cancel_futures=True)


_stop: Event | None = None


def _heed(stop: Event) -> None:
    global _stop
    _stop = stop


def run_part(arm: Arm, path: Path, seeds: Sequence[int]) -> None:
    """Run these seeds of an arm and write what they did to `path`."""
    stack = Stack(arm.config, seeds)
    shape = len(seeds), arm.config.num_iterations
    found: dict[str, np.ndarray] = {name: np.zeros(shape) for name in ("shares", "kl", "trust")}
    found |= {"returns": np.full(shape, np.nan), "kinds": np.zeros(shape, np.int8)}
    jumping = 0.0
    began = time.perf_counter()
    jumpers = _jumpers(arm, stack)
    for at in range(arm.config.num_iterations):
        if _stop is not None and _stop.is_set():
            return
        result = stack.iterate()
        for n, episodes in enumerate(result.episodes):
            found["returns"][n, at] = episodes[:, 1].mean() if len(episodes) else found["returns"][n, max(at - 1, 0)]
        jump_began = time.perf_counter()
        for n, jumper in enumerate(jumpers):
            jump = jumper.step(result.snapshots[n], batch_judge(stack, n), result.episodes[n][:, 1].tolist())
            if jump.displacement is not None:
                stack.policies[n] += jump.displacement
                if arm.jump.reset_momentum:
                    stack.adam_m[n, : stack.spec.size] = 0
            found["kinds"][n, at] = KINDS.index(jump.kind)
            found["shares"][n, at], found["kl"][n, at], found["trust"][n, at] = jump.share, jump.kl, jump.trust
        jumping += time.perf_counter() - jump_began
    each = np.full(len(seeds), 1 / len(seeds))
    found |= {"seconds": (time.perf_counter() - began) * each, "jump_seconds": jumping * each}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **found)
    write_file(path, content.getvalue())


def _jumpers(arm: Arm, stack: Stack) -> list[Jumper]:
    if arm.forecaster is None:
        return []
    moves = np.ones(stack.spec.size, bool)
    if not arm.jump.log_std and not stack.env.discrete:
        moves[-stack.env.policy_outputs :] = False
    forecaster = _arm_forecaster(arm, stack)  # knows of no trial but what it is handed
    jumpers = [Jumper(forecaster, arm.jump, moves, seed) for seed in stack.seeds]
    for jumper, weights in zip(jumpers, stack.policies, strict=True):
        jumper.begin(weights)
    return jumpers


def _arm_forecaster(arm: Arm, stack: Stack) -> Forecaster:
    assert arm.forecaster is not None
    count = arm.config.snapshots_per_iteration
    return named_forecaster(arm.forecaster, stack.spec.shapes, arm.jump.horizon, count, arm.fit, arm.config.seed)


def batch_judge(stack: Stack, trial: int) -> Callable[[np.ndarray], Judgment]:
    """What a trial's last rollout says of weights [P]: KL from the current policy, and the surrogate objective."""
    mine, batch = stack.copies(trial), stack.config.ppo.batch_size
    obs = stack.obs[mine].reshape(batch, -1)
    actions = stack.actions[mine].reshape(batch, -1)
    old_log_prob, advantages = stack.log_probs[mine].reshape(-1), stack.advantages[mine].reshape(-1)
    advantages = advantages - advantages.mean()
    now = np.array(stack.policies[trial])

    def judge(weights_P: np.ndarray) -> Judgment:
        return Judgment(*judge_batch(now, weights_P, stack.policy_sizes, obs, actions, old_log_prob, advantages,
                                     stack.activation))  # fmt: skip

    return judge


@kernel(fastmath=FASTMATH)
def judge_batch(now, other, sizes, obs, actions, old_log_prob, advantages, activation):
    """Mean KL(π_now ‖ π_other) and mean of (π_other / π_old) × advantage over a batch.

    Args:
        now, other: [P] float32; sizes: [layers + 1] of the policy's network.
        obs: [S, O] normalized; actions: [S, A]; old_log_prob, advantages: [S].
        activation: as `activation_code` has it.
    """
    samples, outputs = len(obs), sizes[-1]
    head_end = 0
    for layer in range(len(sizes) - 1):
        head_end += sizes[layer + 1] * (sizes[layer] + 1)
    log_std, other_log_std = now[head_end:], other[head_end:]
    log_probs, other_log_probs = np.empty(outputs, np.float32), np.empty(outputs, np.float32)
    block = 256  # rows at once, to stay in the cache
    acts = np.empty(block * sizes[1:].sum(), np.float32)
    other_acts = np.empty_like(acts)
    kl, surrogate = 0.0, 0.0
    for start in range(0, samples, block):
        stop = min(start + block, samples)
        head = forward_batch(now, 0, sizes, obs[start:stop], acts, activation)
        other_head = forward_batch(other, 0, sizes, obs[start:stop], other_acts, activation)
        for b in range(stop - start):
            i = start + b
            if len(log_std) == 0:  # categorical
                categorical_log_probs(head[b], log_probs)
                categorical_log_probs(other_head[b], other_log_probs)
                for k in range(outputs):
                    kl += np.exp(log_probs[k]) * (log_probs[k] - other_log_probs[k])
                log_prob = other_log_probs[int(actions[i, 0])]
            else:
                for k in range(outputs):
                    ratio = np.exp(np.float32(2) * (log_std[k] - other_log_std[k]))
                    moved = (other_head[b, k] - head[b, k]) * np.exp(-other_log_std[k])
                    kl += 0.5 * (ratio + moved * moved - 1) + other_log_std[k] - log_std[k]
                log_prob = gaussian_log_prob(actions[i], other_head[b], other_log_std)
            surrogate += np.exp(log_prob - old_log_prob[i]) * advantages[i]
    return kl / samples, surrogate / samples


def named_forecaster(
    name: str,
    shapes: Sequence[Sequence[int]],
    horizon: int,
    per_iteration: int = 1,
    fit: Path | None = None,
    seed: int = 0,
) -> Forecaster:
    """A forecaster for live runs.

    Args:
        name: a `ForecasterName`, or the folder of a causal model.
        shapes: of the tensors that lie end to end in the weights.
        horizon: iterations ahead that it will be asked for, beside one.
        per_iteration: snapshots of an iteration.
        fit: the store whose training trials the autoregression is fitted on.
        seed: of the noise.

    Raises:
        TiplError: there is no such forecaster, or the autoregression has nothing to be fitted on.
    """
    horizons = sorted({per_iteration, per_iteration * horizon})
    match name:
        case "line":
            return line(per_iteration + 1)
        case "lookahead":
            return lookahead(5 * per_iteration)
        case "average":
            return average(2 * per_iteration)
        case "noise":
            return RandomDisplacement(max(horizons), seed)
        case "autoregression":
            if fit is None:
                raise TiplError("The autoregression is fitted on a store; give one, --fit STORE.")
            return _fitted(fit, tuple(horizons))
    if not (model_folder(name) / "config.json").exists():
        names = ", ".join(get_args(ForecasterName))
        raise TiplError(f"There is no forecaster {name!r}; give {names} or the folder of a causal model.")
    return CausalForecaster.from_pretrained(name, shapes)


@functools.cache
def _fitted(fit: Path, horizons: tuple[int, ...]) -> Autoregression:
    data = Store.open(fit)
    train = [data.trial(seed) for seed in data.split().train]
    return Autoregression(horizons, normal_equations(train, difference_features(), horizons), RIDGES[1])


def lookahead(count: int) -> FixedSum:
    """Halfway back to where the weights were `count` snapshots ago, whatever the horizon (Zhang et al. 2019, Lookahead
    with α = 0.5, arXiv 1907.08610)."""
    return FixedSum("lookahead", "Lookahead, α = 0.5", count + 1, lambda back, h: np.where(back == count, 0.5, 0.0))


def average(count: int) -> FixedSum:
    """The mean of the last `count` snapshots (Polyak & Juditsky 1992), into which training goes on."""
    return FixedSum("average", f"mean of the last {count}", count, lambda back, h: np.full(len(back), 1 / len(back)))


def _at_rate(config: CollectConfig, learning_rate: float | None) -> CollectConfig:
    if learning_rate is None:
        return config
    return dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, learning_rate=learning_rate))


# What the runs say.


def compare(
    arms: Mapping[str, Arm], runs: Mapping[str, Mapping[str, np.ndarray]], targets: Sequence[float] = ()
) -> dict[str, Any]:
    """metrics.json: every arm by itself and beside the first, paired by seed; see ARCHITECTURE.md for its keys."""
    names = list(arms)
    for name in names:
        nothing = np.isnan(runs[name]["returns"]).all(axis=1)
        if nothing.any():
            seed = arms[name].config.seeds[int(nothing.argmax())]
            raise TiplError(f"No episode of seed {seed} ended; give more --total-steps.")
    reference = runs[names[0]]["returns"]
    levels = thresholds(reference, targets)
    measured = {name: measures(arms[name].config, runs[name]["returns"], levels) for name in names}
    first = arms[names[0]].config
    found: dict[str, Any] = {}
    for name in names:
        run = runs[name]
        counts = [{kind: int((row == k).sum()) for k, kind in enumerate(KINDS)} for row in run["kinds"]]
        total = float(run["seconds"].sum())
        entry: dict[str, Any] = arms[name].facts() | {
            "curve": _curve(run["returns"]),
            "reached": {level: int((measured[name][f"steps to {level}"][1]).sum()) for level in levels},
            "seconds": total,
            "overhead": float(run["jump_seconds"].sum()) / max(total - float(run["jump_seconds"].sum()), 1e-9),
        }
        for measure, (values, _) in measured[name].items():
            entry[measure] = {**_summary(values), "by_seed": values.tolist()}
        if name != names[0]:
            entry["beside"] = {
                measure: _beside(values, measured[names[0]][measure][0], measure.startswith("steps"))
                for measure, (values, _) in measured[name].items()
            }
        if arms[name].forecaster is not None:
            entry["jumps"] = {
                "counts": {kind: sum(row[kind] for row in counts) for kind in KINDS},
                "by_iteration": {kind: (run["kinds"] == k).mean(axis=0).tolist() for k, kind in enumerate(KINDS)},
                "trust": run["trust"].mean(axis=0).tolist(),
                "kl": run["kl"].mean(axis=0).tolist(),
            }
        found[name] = entry
    packages = ("numpy", "numba", "mujoco", "envpool")
    versions = {"tipl": tipl.__version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in packages}
    return {
        "schema": 1, "env_id": first.env_id, "seeds": list(first.seeds), "steps_per_iteration": first.ppo.batch_size,
        "thresholds": levels, "arms": found, "versions": versions,
    }  # fmt: skip


def thresholds(reference_NI: np.ndarray, targets: Sequence[float]) -> dict[str, float]:
    """Returns to reach, by name: shares of the plain runs' gain, and the asked ones."""
    start, final = float(_from_the_start(reference_NI)[:, 0].mean()), float(iqm(_final(reference_NI)))
    levels = {f"{share:.0%}": start + share * (final - start) for share in SHARES}
    return levels | {f"{target:g}": float(target) for target in targets}


def measures(
    config: CollectConfig, returns_NI: np.ndarray, levels: Mapping[str, float]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By measure the values [N] and whether they are known in full [N]; steps to a threshold that was not reached are
    the whole run's."""
    count = returns_NI.shape[1]
    found = {}
    for name, level in levels.items():
        above = returns_NI >= level
        reached = above.any(axis=1)
        iterations = np.where(reached, above.argmax(axis=1) + 1, count)
        found[f"steps to {name}"] = (iterations * config.ppo.batch_size).astype(float), reached
    everywhere = np.ones(len(returns_NI), bool)
    found["final return"] = _final(returns_NI), everywhere
    found["mean return"] = _from_the_start(returns_NI).mean(axis=1), everywhere
    return found


def _from_the_start(returns_NI: np.ndarray) -> np.ndarray:
    """With the first known return of a seed in the iterations before it."""
    first = (~np.isnan(returns_NI)).argmax(axis=1)
    return np.where(np.isnan(returns_NI), np.take_along_axis(returns_NI, first[:, None], axis=1), returns_NI)


def _final(returns_NI: np.ndarray) -> np.ndarray:
    last = max(1, round(_FINAL * returns_NI.shape[1]))
    return _from_the_start(returns_NI)[:, -last:].mean(axis=1)


def _curve(returns_NI: np.ndarray) -> dict[str, list[float]]:
    """IQM over seeds by iteration, and the quartiles."""
    filled = _from_the_start(returns_NI)
    low, high = np.quantile(filled, (0.25, 0.75), axis=0)
    return {"iqm": iqm(filled, axis=0).round(3).tolist(), "low": low.round(3).tolist(), "high": high.round(3).tolist()}


def _summary(values_N: np.ndarray) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    mean = bootstrap_interval(lambda x, axis: x.mean(axis=axis), values_N, rng=rng)[0]
    middle = bootstrap_interval(iqm, values_N, rng=rng)[0]
    return {"mean": mean.value, "mean_ci": _ci(mean), "iqm": middle.value, "iqm_ci": _ci(middle)}


def _beside(values_N: np.ndarray, plain_N: np.ndarray, is_cost: bool) -> dict[str, Any]:
    """Values beside the plain runs' of the same seeds."""
    rng = np.random.default_rng(0)

    def ratio(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis=axis) / y.mean(axis=axis)

    def ratio_of_iqm(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return iqm(x, axis) / iqm(y, axis)

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return (x - y).mean(axis=axis)

    better = (plain_N, values_N) if is_cost else (values_N, plain_N)
    found = {
        "ratio": bootstrap_interval(ratio, values_N, plain_N, rng=rng)[0],
        "ratio_of_iqm": bootstrap_interval(ratio_of_iqm, values_N, plain_N, rng=rng)[0],
        "difference": bootstrap_interval(difference, values_N, plain_N, rng=rng)[0],
        "seeds_improved": bootstrap_interval(paired_improvement, *better, rng=rng)[0],
    }
    return {name: each.value for name, each in found.items()} | {f"{name}_ci": _ci(e) for name, e in found.items()}


def _ci(interval: Interval) -> list[float] | None:
    return None if interval.low is None or interval.high is None else [interval.low, interval.high]
