"""What forecasts are worth as policies: true and predicted ones run on common episodes, at some of the origins.

In: trials, origins, forecasters.  Out: the scores of returns, their noise floors, and OUT/parts, from which an
interrupted measurement goes on.

Policies are run with their mean actions; a forecast has the observation normalizer of its origin, the true policy its
own. The true weights under the origin's normalizer say what a perfect forecast of weights would have. Two variants say,
at the last return horizon, what hangs on that: the true policy's normalizer for the forecast as well (an oracle), and
sampled actions. Shapes: M origins, H horizons, P weights.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tipl.config.env_spec import import_named
from tipl.config.execution import LOCAL, Execution
from tipl.config.presets import EvaluateConfig
from tipl.errors import TiplError
from tipl.evaluation.origins import history, read_only_weights, some_origins
from tipl.evaluation.scores import Origins, Returns, floor_scores, gap_scores, return_scores
from tipl.executors.run import PATIENCE_SECONDS, executor
from tipl.forecasting.forecaster import Forecaster, checked_forecast
from tipl.parts import ENDING, claimed, keep_part, kept_part
from tipl.processes import Numbers, Parent
from tipl.progress import console, steps_progress
from tipl.rl.envs import engine_versions
from tipl.rl.returns import Policies, policy_returns
from tipl.store import Trial
from tipl.store.policy import OBS_CLIP

_TRUE_WEIGHTS = ""  # φ_{t+h} itself, among the names of forecasters


class Share:
    """Which measurements are this shard's: each goes, as they come, to the shard that has the fewest policies."""

    def __init__(self, execution: Execution = LOCAL) -> None:
        self._loads, self._mine = [0] * execution.parts, execution.part
        self.left = 0
        """Measurements of other shards that are not there yet."""
        self.asked: dict[Path, _Asked] | None = {} if execution.executor == "ray" else None
        """By part, those that are for nodes to make; None: they are made at once."""

    def takes(self, policies: int) -> bool:
        least = self._loads.index(min(self._loads))
        self._loads[least] += policies
        return least == self._mine


def run_share(
    trials: Sequence[Trial],
    origins: Origins,
    forecasters: Sequence[Forecaster],
    config: EvaluateConfig,
    parts: Path,
    execution: Execution,
    trust: bool = False,
) -> bool:
    """Run the policies that are this shard's, where there are several, or those of all on a cluster.

    Args:
        trust: let the nodes import the modules that the trials name for their environments.

    Returns:
        Whether those of all shards have been run.

    Raises:
        TiplError: as `evaluate`; or nodes do not see `parts`.
    """
    chosen, share = some_origins(origins, config.return_origins), Share(execution)
    total = len(chosen.trial) * _policies_an_origin(config, [f.name for f in forecasters]) * config.episodes
    if share.asked is not None:
        try:
            for trial in trials:
                _trial_returns(trial, chosen, forecasters, config, parts, lambda *_: None, share)
            if share.asked:
                _run_on_cluster(share.asked, execution, trust)
        finally:
            for each in share.asked.values():
                each.policies.unlink(missing_ok=True)
        return True
    if execution.parts == 1:
        return True
    with steps_progress(f"evaluate: episodes of shard {execution.shard}", total // execution.parts) as advance:
        for trial in trials:
            _trial_returns(trial, chosen, forecasters, config, parts, advance, share)
    if share.left:
        console.print(f"evaluate: shard {execution.shard} is done; other shards have {share.left} measurements left.")
    return not share.left


def _run_on_cluster(asked: Mapping[Path, "_Asked"], execution: Execution, trust: bool) -> None:
    """Run these policies as tasks, the most of them first; what they earn is in the parts then."""
    tasks = sorted(asked.values(), key=lambda each: -each.shapes["weights"][0])
    total = sum(each.shapes["weights"][0] * each.episodes for each in tasks)
    done = [0] * len(tasks)
    with executor(execution) as where, steps_progress("evaluate: episodes", total) as advance:
        console.print(f"evaluate: policies {where.where.format(min(where.slots, len(tasks)))}")

        def heard(index: int, numbers: Numbers) -> None:
            new, done[index] = int(numbers[0]) - done[index], int(numbers[0])
            advance(new, "")

        names = [f"policies of trial {each.trial}" for each in tasks]
        where.run(_run_task, [(each, trust) for each in tasks], names, heard)


def _run_task(parent: Parent, asked: "_Asked", trust: bool) -> None:
    """Run policies on a node.

    Raises:
        TiplError: it was told to stop, they are not there, or as `_run`.
    """
    if trust:
        import_named([asked.how["env_id"]])
    policies = kept_part(asked.policies, asked.shapes)
    if policies is None:
        raise TiplError(f"A node does not find {asked.policies}; give an --out that all nodes see.")
    done = 0

    def advance(episodes: int, note: str) -> None:
        nonlocal done
        done += episodes
        parent.tell([done])
        if parent.wants_stop():
            raise TiplError("stopped")

    _run(asked, Policies(**policies), advance, PATIENCE_SECONDS)


def measure_returns(
    trials: Sequence[Trial],
    origins: Origins,
    forecasters: Sequence[Forecaster],
    config: EvaluateConfig,
    scores: Mapping[str, dict[str, Any]],
    parts: Path,
) -> dict[str, Any]:
    """Run the policies of some of the origins; adds to every measured forecaster's scores.

    Args:
        forecasters: all of them are measured.
        parts: a folder that keeps the returns of what was run; the same policies are not run again.

    Returns:
        The noise floors, and what they were measured on.
    """
    chosen = some_origins(origins, config.return_origins)
    total = len(chosen.trial) * _policies_an_origin(config, [f.name for f in forecasters]) * config.episodes
    with steps_progress("evaluate: episodes", total) as advance:
        runs = [_trial_returns(trial, chosen, forecasters, config, parts, advance, Share()) for trial in trials]
    for forecaster in forecasters:
        own = _joined([run["mean_actions"] for run in runs], forecaster.name)
        scores[forecaster.name].update(return_scores(own, chosen, config.return_horizons, config.seed))
        scores[forecaster.name]["variants"] = {
            variant: gap_scores(
                _joined([run[variant] for run in runs], forecaster.name), chosen, np.ones(len(chosen.trial), np.bool_),
                config.return_horizons[-1:], config.seed,
            )
            for variant in runs[0] if variant != "mean_actions"
        }  # fmt: skip
    floors = {variant: _floor([run[variant] for run in runs], chosen, config) for variant in runs[0]}
    perfect = return_scores(
        _joined([run["mean_actions"] for run in runs], _TRUE_WEIGHTS), chosen, config.return_horizons, config.seed
    )
    del perfect["scatter"]
    return {
        "return_horizons": list(config.return_horizons),
        "return_origins": len(chosen.trial),
        "episodes": config.episodes,
        "true_weights": perfect,
        **floors.pop("mean_actions"),
        "variants": floors,
    }


class _Runs(NamedTuple):
    """Mean returns of one trial's policies on common episodes."""

    origin: np.ndarray
    """[M]"""
    true: np.ndarray
    """[M, H]"""
    predicted: dict[str, np.ndarray]
    """By forecaster, and with mean actions of the true weights under the origin's normalizer, [M, H]."""
    again: np.ndarray
    """[M, H], of the true policies on other episodes."""


def _joined(runs: Sequence[_Runs], name: str) -> Returns:
    return Returns(
        np.concatenate([run.origin for run in runs]),
        np.concatenate([run.true for run in runs]),
        np.concatenate([run.predicted[name] for run in runs]),
    )


def _floor(runs: Sequence[_Runs], chosen: Origins, config: EvaluateConfig) -> dict[str, Any]:
    true, again = np.concatenate([run.true for run in runs]), np.concatenate([run.again for run in runs])
    return floor_scores(true, again, chosen, config.return_horizons[-true.shape[1] :], config.seed)


def _trial_returns(
    trial: Trial,
    origins: Origins,
    forecasters: Sequence[Forecaster],
    config: EvaluateConfig,
    parts: Path,
    advance: Callable[[int, str], None],
    share: Share,
) -> dict[str, _Runs]:
    """By variant; `mean_actions`, under the origin's normalizer, is the protocol itself and has every horizon."""
    weights = read_only_weights(trial)
    mine = np.flatnonzero(origins.trial == trial.seed)
    at = origins.snapshot[mine]
    here = np.repeat(at[:, None], len(config.return_horizons), axis=1)
    future = at[:, None] + np.array(config.return_horizons)
    last = future[:, -1:]

    def run(phi: np.ndarray, snapshot: np.ndarray, *, seed: int = config.seed, sampled: bool = False) -> np.ndarray:
        """phi [..., P] under the normalizers of `snapshot`, of the same leading shape."""
        which = snapshot.reshape(-1)
        policies = Policies(phi.reshape(len(which), -1), trial.obs_mean[which], trial.obs_var[which])
        means = _mean_returns(policies, trial, config.episodes, seed, sampled, parts, advance, share)
        return means.reshape(snapshot.shape)

    origin, true = run(weights[at], at), run(weights[future], future)
    again = run(weights[future], future, seed=config.seed + 1)
    mean = _Runs(origin, true, {_TRUE_WEIGHTS: run(weights[future], here)}, again)
    oracle = _Runs(origin, true[:, -1:], {}, mean.again[:, -1:])
    if config.sampled_actions:
        origin, true = run(weights[at], at, sampled=True), run(weights[last], last, sampled=True)
        sampled = _Runs(origin, true, {}, run(weights[last], last, seed=config.seed + 1, sampled=True))
    else:
        sampled = None
    for forecaster in forecasters:
        name, stands = forecaster.name, forecaster.name == "persistence"  # whose policies have been run
        made = checked_forecast(
            forecaster, [history(trial, weights, origins, int(m), forecaster) for m in mine], config.return_horizons
        )
        mean.predicted[name] = np.broadcast_to(mean.origin[:, None], here.shape) if stands else run(made, here)
        if config.oracle_normalizer:
            oracle.predicted[name] = run(made[:, -1:], last)
        if sampled:
            sampled.predicted[name] = (
                sampled.origin[:, None] if stands else run(made[:, -1:], at[:, None], sampled=True)
            )
    return (
        {"mean_actions": mean}
        | ({"oracle_normalizer": oracle} if config.oracle_normalizer else {})
        | ({"sampled_actions": sampled} if sampled else {})
    )


def _mean_returns(
    policies: Policies,
    trial: Trial,
    episodes: int,
    seed: int,
    sampled: bool,
    parts: Path,
    advance: Callable[[int, str], None],
    share: Share,
) -> np.ndarray:
    """[M] mean returns, read from `parts` where these very policies were run so before, else run and written there;
    zeros where that is for another shard to do, or for a node.

    Raises:
        TiplError: a return is not finite, or another process runs these policies.
    """
    config = trial.config
    how = {
        "env_id": trial.env_id.facts, "hidden_sizes": list(config["hidden_sizes"]), "seed": seed, "sampled": sampled,
        "activation": config.get("activation", "tanh"), "backend": config["backend"],
        "obs_clip": config.get("obs_clip", OBS_CLIP),
    }  # fmt: skip
    made_by = {**how, "episodes": episodes, "engine": engine_versions(config["backend"])}
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    for array in (policies.weights, policies.obs_mean, policies.obs_var):
        digest.update(np.ascontiguousarray(array).data)
    part = parts / f"{digest.hexdigest()[:24]}{ENDING}"
    mine, kept = share.takes(len(policies)), kept_part(part, {"returns": (len(policies),)})
    if kept is not None:
        advance(len(policies) * episodes if mine else 0, "")
        return kept["returns"]
    if not mine:
        share.left += 1
        return np.zeros(len(policies))
    arrays = vars(policies)
    shapes = {name: array.shape for name, array in arrays.items()}
    asked = _Asked(part, trial.seed, shapes, {**how, "env_id": trial.env_id}, episodes)
    if share.asked is None:
        return _run(asked, policies, advance)
    keep_part(asked.policies, arrays)
    share.asked[part] = asked
    return np.zeros(len(policies))


class _Asked(NamedTuple):
    """Policies that are to be run, and the part that keeps what they earn."""

    part: Path
    trial: int
    shapes: dict[str, tuple[int, ...]]
    """Of the arrays of `Policies`."""
    how: dict[str, Any]
    """Arguments of `policy_returns`."""
    episodes: int

    @property
    def policies(self) -> Path:
        """Where they lie for a node."""
        return self.part.with_suffix(f".policies{ENDING}")


def _run(asked: _Asked, policies: Policies, advance: Callable[[int, str], None], patience: float = 0.0) -> np.ndarray:
    """[M] mean returns of policies that nobody else runs, which are kept.

    Args:
        patience: seconds to wait for another process that runs them: on a lost node, one that is dying.

    Raises:
        TiplError: as `_mean_returns`.
    """
    with claimed(asked.part, patience) as ours:
        if not ours:
            raise TiplError(f"{asked.part} is being made by another process; wait for it, or stop it.")
        if patience and (kept := kept_part(asked.part, {"returns": (len(policies),)})):
            return kept["returns"]
        returns = policy_returns(policies, episodes=asked.episodes, advance=advance, **asked.how)
        if not np.isfinite(returns).all():
            raise TiplError(
                f"A policy of trial {asked.trial}, true or predicted, has a return that is not finite in "
                f"{asked.how['env_id']}; leave the trial or the forecaster out."
            )
        means = returns.mean(axis=1)
        keep_part(asked.part, {"returns": means})
    return means


def _policies_an_origin(config: EvaluateConfig, names: Sequence[str]) -> int:
    """How many policies are run for one origin and these forecasters."""
    others = sum(name != "persistence" for name in names)
    # The origin; true, on other episodes and under the origin's normalizer too, and predicted.
    count = 1 + len(config.return_horizons) * (3 + others)
    return count + config.oracle_normalizer * len(names) + config.sampled_actions * (3 + others)
