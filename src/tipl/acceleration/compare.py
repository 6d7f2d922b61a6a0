"""Acceleration: do forecasts inside a live run save environment steps? Paired runs that can say no.

In: what makes the trials, a forecaster, how to jump.  Out: a folder with metrics.json: learning curves, steps to
thresholds, final returns, every jump; plain PPO and accelerated PPO on the same seeds.

Shapes: N seeds, I iterations.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tipl.acceleration.arms import Arm, run_arms, versions
from tipl.acceleration.jump import KINDS, jumps_for
from tipl.checks import AnyPath, Count, Place, Positive, checked_arguments
from tipl.collection.tracking import tracked
from tipl.config.execution import LOCAL, Execution
from tipl.config.jumps import JumpConfig
from tipl.config.presets import CollectConfig
from tipl.errors import TiplError
from tipl.evaluation.statistics import PLAIN, POSITIVE, bootstrap_interval, iqm, paired_improvement, ratio_of_iqms
from tipl.files import require_no_store_above, told, write_json
from tipl.forecasting.named import as_name
from tipl.remote.mirror import located

SHARES = (0.5, 0.75, 0.9)
"""Thresholds: so much of the way from plain PPO's first return to its final one."""
_FINAL = 0.1  # share of the iterations, the last ones, that a final return is the mean of
METRICS_FILE = "metrics.json"


@checked_arguments
def accelerate(
    config: CollectConfig,
    out: AnyPath,
    forecaster: Place = "line",
    jump: JumpConfig | None = None,
    *,
    plain_learning_rate: Positive | None = None,
    fit: Place | None = None,
    targets: Sequence[float] = (),
    workers: Count | None = None,
    track: str | None = None,
    execution: Execution = LOCAL,
    dry_run: bool = False,
) -> Path:
    """Train every seed plainly and with jumps, and compare.

    Args:
        config: the trials; its learning rate is that of the accelerated ones.
        out: a folder, new or of an earlier call, which goes on: seeds that are done are not run again.
        forecaster: a `ForecasterName`, the folder of a causal model, or a rival of jumps: `outer`, `adaptive`, `reuse`
            or `pptb-like`, with settings as in `outer:sigma=1.5`, alone or before a `+` and a forecaster.
        jump: when and how far; default: `jumps_of` the forecaster.
        plain_learning_rate: of the plain trials; default: the same.
        fit: the store whose training trials the autoregression is fitted on; default: the package's own.
        targets: returns to which the steps are counted too.
        workers: processes; default: one a core.
        track: where the learning curves of every arm and seed go at the end, as in `collect`.
        execution: where the runs are, and which part of them is this call's. What finds all parts done compares.
        dry_run: only print what each shard would do; nothing is written.

    Returns:
        `out`, without a metrics.json while other shards have parts to do.

    Raises:
        TiplError: the environment, the forecaster or the folder cannot be used.
    """
    out, fit = Path(out), None if fit is None else located(fit)
    if config.context:
        raise TiplError("--context is what `tipl collect` keeps and has no effect here; leave it out.")
    forecaster = as_name(forecaster)
    jump = jumps_for(forecaster, jump)
    arms = {"plain": Arm(_at_rate(config, plain_learning_rate)), "accelerated": Arm(config, forecaster, jump, fit)}
    require_no_store_above(out)
    with tracked(track):  # what cannot be plotted is told first
        pass
    if dry_run:
        run_arms(arms, out, workers, execution, dry_run=True)
        return out
    new = not out.exists()
    with told(out):  # before anything runs
        out.mkdir(parents=True, exist_ok=True)
    try:
        runs = run_arms(arms, out, workers, execution)
    except TiplError:
        with contextlib.suppress(OSError):
            if new:
                out.rmdir()  # where nothing was kept
        raise
    if runs is not None:
        write_json(out / METRICS_FILE, compare(arms, runs, targets), seal=True)
        _track(track, arms, runs)
    return out


def _track(track: str | None, arms: Mapping[str, Arm], runs: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write the learning curve of every arm and seed: the mean return of each iteration."""
    for name, arm in arms.items():
        for seed, returns_I in zip(arm.config.seeds, runs[name]["returns"], strict=True):
            with tracked(track, f"{name}/seed-{seed}", arm.facts()) as write:
                for at in np.flatnonzero(np.isfinite(returns_I)):
                    step = (int(at) + 1) * arm.config.ppo.batch_size
                    write("charts/episodic_return", float(returns_I[at]), step)


def _at_rate(config: CollectConfig, learning_rate: float | None) -> CollectConfig:
    if learning_rate is None:
        return config
    return dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, learning_rate=learning_rate))


def compare(
    arms: Mapping[str, Arm],
    runs: Mapping[str, Mapping[str, np.ndarray]],
    targets: Sequence[float] = (),
    levels: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """metrics.json: every arm by itself and beside the first, paired by seed; see ARCHITECTURE.md for its keys.

    Args:
        targets: returns to count steps to, besides shares of the first arm's gain.
        levels: by name the returns to count steps to, instead of both.
    """
    names = list(arms)
    for name in names:
        _check_returns(name, arms[name].config.seeds, runs[name]["returns"])
    reference = runs[names[0]]["returns"]
    gain = _gain(reference)
    levels = dict(levels or thresholds(reference, targets))
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
            entry[measure] = {**_summary(values, measure.startswith("steps")), "by_seed": values.tolist()}
        if name != names[0]:
            entry["beside"] = {
                measure: _beside(values, measured[names[0]][measure][0], measure.startswith("steps"))
                for measure, (values, _) in measured[name].items()
            }
        if arms[name].jumps_with is not None:
            entry["jumps"] = {
                "counts": {kind: sum(row[kind] for row in counts) for kind in KINDS},
                "by_iteration": {kind: (run["kinds"] == k).mean(axis=0).tolist() for k, kind in enumerate(KINDS)},
                "trust": run["trust"].mean(axis=0).tolist(),
                "kl": run["kl"].mean(axis=0).tolist(),
            }
        found[name] = entry
    return {
        "schema": 1, "env_id": first.env_id, "seeds": list(first.seeds), "steps_per_iteration": first.ppo.batch_size,
        "gain": gain, "thresholds": levels, "arms": found, "versions": versions(first),
    }  # fmt: skip


def _check_returns(name: str, seeds: Sequence[int], returns_NI: np.ndarray) -> None:
    """Every seed has a return from its first episode on; what is not finite after it is a run that diverged."""
    for seed, returns_I in zip(seeds, returns_NI, strict=False):
        known = np.isfinite(returns_I)
        if np.isnan(returns_I).all():
            raise TiplError(f"No episode of seed {seed} ended; give more --total-steps.")
        first = int((~np.isnan(returns_I)).argmax())
        if not known[first:].all():
            at = first + int((~known[first:]).argmax())
            raise TiplError(
                f"Seed {seed} of the arm {name} diverged: its return in iteration {at + 1} is {returns_I[at]}. A "
                "comparison without it would favor what diverges; give a lower learning rate, or other seeds to all "
                "arms."
            )


def _gain(reference_NI: np.ndarray) -> float:
    """How much the return of the first arm rises, from its mean first one to its final one (IQM over seeds)."""
    return float(iqm(_final(reference_NI))) - float(_from_the_start(reference_NI)[:, 0].mean())


def thresholds(reference_NI: np.ndarray, targets: Sequence[float]) -> dict[str, float]:
    """Returns to reach, by name: shares of the plain runs' gain, and the asked ones."""
    start, gain = float(_from_the_start(reference_NI)[:, 0].mean()), _gain(reference_NI)
    levels = {f"{share:.0%}": start + share * gain for share in SHARES}
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


def _summary(values_N: np.ndarray, is_cost: bool) -> dict[str, Any]:
    rng, scale = np.random.default_rng(0), POSITIVE if is_cost else PLAIN
    mean = bootstrap_interval(lambda x, axis: x.mean(axis=axis), values_N, rng=rng, scale=scale)[0]
    middle = bootstrap_interval(iqm, values_N, rng=rng, scale=scale)[0]
    return {
        "mean": mean.value, "mean_ci": mean.bounds, "iqm": middle.value, "iqm_ci": middle.bounds, "seeds": mean.trials,
    }  # fmt: skip


def _beside(values_N: np.ndarray, plain_N: np.ndarray, is_cost: bool) -> dict[str, Any]:
    """Values beside the plain runs' of the same seeds. A ratio has a meaning among numbers above 0 only."""
    rng, scale = np.random.default_rng(0), POSITIVE if is_cost else PLAIN

    def ratio(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis=axis) / y.mean(axis=axis)

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return (x - y).mean(axis=axis)

    better = (plain_N, values_N) if is_cost else (values_N, plain_N)
    found = {
        "ratio": bootstrap_interval(ratio, values_N, plain_N, rng=rng, scale=scale)[0],
        "ratio_of_iqm": bootstrap_interval(ratio_of_iqms, values_N, plain_N, rng=rng, scale=scale)[0],
        "difference": bootstrap_interval(difference, values_N, plain_N, rng=rng)[0],
        "seeds_improved": bootstrap_interval(paired_improvement, *better, rng=rng)[0],
    }
    values: dict[str, Any] = {name: each.value for name, each in found.items()}
    values |= {f"{name}_ci": each.bounds for name, each in found.items()} | {"seeds": len(values_N)}
    if min(values_N.min(), plain_N.min()) <= 0:
        values |= dict.fromkeys(("ratio", "ratio_ci", "ratio_of_iqm", "ratio_of_iqm_ci"))
    return values
