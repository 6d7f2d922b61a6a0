"""Policies to look at, from a store or from files, each with all that it takes to run it.

In: a store with a trial and an origin, or files that `tipl forecast` wrote.  Out: labelled policies.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tipl.checks import AnyPath
from tipl.config.env_spec import EnvId, env_id_of
from tipl.errors import TiplError
from tipl.files import require_no_store_above
from tipl.forecasting.forecast import foretold
from tipl.rl.returns import Policies, policy_returns, why_not_run
from tipl.store import Store, Trial
from tipl.store.policy import OBS_CLIP, read_policy

NOW, FORECAST, TRUE, OTHER = "#6b7280", "#d0450c", "#2450c8", "#1c864a"
"""Colors of the policy at the origin, its forecast, what it became, and any other; the color-blind tell them apart."""
FILE = ".safetensors"


@dataclass(frozen=True)
class Shown:
    """A policy under its label."""

    label: str
    color: str
    policies: Policies
    """One."""
    env_id: EnvId
    config: Mapping[str, Any]
    """Of its trial."""

    @property
    def how(self) -> dict[str, Any]:
        """How `policy_returns` and kernels run it, beside its weights; in Gymnasium, which draws."""
        return {
            "hidden_sizes": self.config["hidden_sizes"],
            "activation": self.config.get("activation", "tanh"),
            "obs_clip": self.config.get("obs_clip", OBS_CLIP),
        }

    def returns(self, episodes: int, seed: int) -> np.ndarray:
        """[episodes], of which the first is the one that is looked at."""
        return policy_returns(
            self.policies, self.env_id, episodes=episodes, seed=seed, backend="gymnasium", **self.how
        )[0]


def of_trial(
    data: Store, trial: Trial, origin: int | None, horizon: int, snapshots: Sequence[int], **asked: Any
) -> tuple[list[Shown], str]:
    """The policy at the origin, its forecast and what it became; or the snapshots that are asked for.

    Args:
        origin: default: half of the way.
        asked: of the model, see `foretold`.

    Returns:
        Them, and what is to be said of all.

    Raises:
        TiplError: there is no such snapshot, policies of the trial cannot be run, or the model cannot forecast it.
    """
    require_runs(trial)
    last = trial.committed - 1
    for snapshot in snapshots:
        if snapshot > last:
            raise TiplError(f"Trial {trial.seed} has snapshots 0 to {last}; --snapshots {snapshot} is none of them.")
    if snapshots:
        made = [_of(trial, f"snapshot {t}", TRUE, trial.weights(t, t + 1), t) for t in snapshots]
        return made, f"trial {trial.seed}"
    t = max(0, last - horizon) // 2 if origin is None else origin
    forecast = foretold(data, trial, t, [horizon], **asked).weights_HP
    made = [
        _of(trial, f"snapshot {t}", NOW, trial.weights(t, t + 1), t),
        _of(trial, f"forecast, {horizon} ahead", FORECAST, forecast, t),
    ]
    if t + horizon <= last:
        made.append(_of(trial, f"what came, {horizon} later", TRUE, trial.weights(t + horizon, t + horizon + 1), t))
    return made, f"trial {trial.seed}"


def _of(trial: Trial, label: str, color: str, weights_1P: np.ndarray, normalizer: int) -> Shown:
    """A policy under the normalizer of a snapshot of the trial."""
    frozen = slice(normalizer, normalizer + 1)
    policies = Policies(weights_1P, trial.obs_mean[frozen], trial.obs_var[frozen])
    return Shown(label, color, policies, trial.env_id, trial.config)


def require_file(out: Path, endings: Collection[str]) -> None:
    """
    Raises:
        TiplError: `out` has another ending, is a folder, or lies in a data set.
    """
    if out.suffix not in endings:
        raise TiplError(f"--out is {out}; give it one of the endings {', '.join(endings)}.")
    if out.is_dir():
        raise TiplError(f"{out} is a folder; give --out the name of a file.")
    require_no_store_above(out)


def chosen_trial(data: Store, trial: int | None) -> Trial:
    """The trial of this seed; by default the first test trial, or the first that there is.

    Raises:
        TiplError: there is none.
    """
    if trial is not None:
        return data.trial(trial)
    if not data.seeds:
        raise TiplError(f"{data.path} has no trial with a committed snapshot; collect some.")
    test = [seed for seed in data.seeds if data.root.parts.get(seed) == "test"]
    return data.trial((test or data.seeds)[0])


def require_runs(trial: Trial) -> None:
    """
    Raises:
        TiplError: the policies of a trial cannot be run.
    """
    if reason := why_not_run(trial):
        raise TiplError(f"The policies of trial {trial.seed} {reason}.")


def require_gymnasium(env_id: EnvId) -> None:
    """
    Raises:
        TiplError: the environment is EnvPool's alone, whose own drawing ends the process without a display.
    """
    import gymnasium

    name = env_id.spec.get("id") or env_id.rpartition(":")[2]
    if env_id.spec.get("backend") == "envpool" and name not in gymnasium.registry:
        raise TiplError(f"{env_id} is an environment of EnvPool alone; only Gymnasium's are drawn here.")


def of_file(path: AnyPath) -> Shown:
    """The policy in a file that `tipl forecast` wrote.

    Raises:
        TiplError: there is no such file, it is damaged, or its network is not known here.
    """
    policy, facts = read_policy(Path(path))
    weights_P = np.concatenate([each.reshape(-1) for each in policy.tensors.values()])
    policies = Policies(weights_P[None], policy.obs_mean[None], policy.obs_var[None])
    return Shown(Path(path).stem, OTHER, policies, env_id_of(facts["env_id"], facts["config"]), facts["config"])
