"""Do our learning curves agree with CleanRL's published ones?

In: stores of runs with CleanRL's settings (1M steps, 64-64 networks), one an environment.  Out: OUT.json and OUT.png.

CleanRL publishes mean ± deviation over three seeds of `ppo_continuous_action`
(docs.cleanrl.dev/rl-algorithms/ppo): of a run, the mean of its last 100 training episodes. A training episode's
actions are sampled while the policy and its normalizer still move; the final policy, its normalizer frozen, is run as
well, by its mean action and by sampled ones.

    tipl collect --env-id Hopper-v4 --trials 10 --total-steps 1000000 --hidden-sizes 64 64 \\
        --snapshot-every-epochs 10 --out hopper
    python studies/agreement.py hopper … --out results/collect/cleanrl
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from curves import curve
from scipy import stats as scipy_stats

from tipl.evaluation.statistics import bootstrap_interval, iqm
from tipl.rl.returns import Policies, policy_returns
from tipl.store import Store, Trial

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLEANRL = {  # mean, standard deviation, seeds
    "HalfCheetah-v4": (1442.64, 46.03, 3),
    "InvertedPendulum-v4": (963.09, 22.20, 3),
    "Hopper-v4": (2382.86, 271.74, 3),
    "Walker2d-v4": (2287.95, 571.78, 3),
}
LAST_EPISODES = 100
EPISODES = 20  # of a final policy
POINTS = 100


def final_returns(trials: list[Trial], sampled: bool) -> np.ndarray:
    """Mean return of each trial's last snapshot under its frozen normalizer, [trials]."""
    first = trials[0]
    policies = Policies(
        np.stack([trial.weights(trial.committed - 1, trial.committed)[0] for trial in trials]),
        np.stack([trial.obs_mean[-1] for trial in trials]),
        np.stack([trial.obs_var[-1] for trial in trials]),
    )
    returns = policy_returns(policies, first.env_id, first.config["hidden_sizes"], EPISODES, sampled=sampled)
    return returns.mean(axis=1)


def summary(by_trial: np.ndarray) -> dict:
    rng = np.random.default_rng(0)
    mean = bootstrap_interval(lambda x, axis: x.mean(axis), by_trial, rng=rng)[0]
    middle = bootstrap_interval(lambda x, axis: iqm(x, axis), by_trial, rng=rng)[0]
    return {
        "mean": mean.value, "mean_ci": mean.bounds, "iqm": middle.value, "iqm_ci": middle.bounds,
        "deviation": float(by_trial.std(ddof=1)), "by_trial": by_trial.round(2).tolist(),
    }  # fmt: skip


def agreement(path: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    store = Store.open(path)
    trials = [store.trial(seed) for seed in store.seeds if store.trial(seed).complete]
    training = np.array([trial.episodes.episode_return[-LAST_EPISODES:].mean() for trial in trials])
    published = CLEANRL[trials[0].env_id]
    # Welch's t-test from the published moments: is there evidence that the two means differ?
    test = scipy_stats.ttest_ind_from_stats(
        training.mean(), training.std(ddof=1), len(training), *published, equal_var=False
    )
    edges = np.linspace(0, int(trials[0].env_step[-1]), POINTS + 1)
    curves = np.stack([curve(trial, edges) for trial in trials])
    result = {
        "trials": len(trials),
        "config": trials[0].config,
        "versions": trials[0].versions,
        "cleanrl": dict(zip(("mean", "deviation", "seeds"), published, strict=True)),
        "training_last_100_episodes": summary(training),
        "welch_p": float(test.pvalue),
        "final_policy_mean_action": summary(final_returns(trials, sampled=False)),
        "final_policy_sampled_actions": summary(final_returns(trials, sampled=True)),
        "episodes": EPISODES,
    }
    return result, edges[1:], curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    arguments = parser.parse_args()
    results = {}
    figure, axes = plt.subplots(1, len(arguments.stores), figsize=(4 * len(arguments.stores), 3.4), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis, path in zip(axes[0], arguments.stores, strict=True):
        result, steps, curves = agreement(path)
        env_id = Store.open(path).trial(Store.open(path).seeds[0]).env_id
        results[env_id] = result
        ours, theirs = result["training_last_100_episodes"], result["cleanrl"]
        print(
            f"{env_id}: ours {ours['mean']:.0f} {ours['mean_ci']} ± {ours['deviation']:.0f}, CleanRL "
            f"{theirs['mean']:.0f} ± {theirs['deviation']:.0f}, p = {result['welch_p']:.2f}; final policy by mean "
            f"action {result['final_policy_mean_action']['mean']:.0f}, sampled "
            f"{result['final_policy_sampled_actions']['mean']:.0f}"
        )
        axis.plot(steps / 1e6, curves.T, color="0.8", linewidth=0.6)
        axis.plot(steps / 1e6, curves.mean(axis=0), color="#0072B2", label=f"tipl, {len(curves)} seeds")
        axis.errorbar(1.02, theirs["mean"], theirs["deviation"], fmt="o", color="#D55E00", capsize=3,
                      label="CleanRL, 3 seeds")  # fmt: skip
        axis.set(title=env_id, xlabel="environment steps, millions")
        axis.set_ylim(bottom=min(0, float(np.nanmin(curves.mean(axis=0)))))
    axes[0, 0].set_ylabel("training return")
    axes[0, 0].legend(frameon=False, fontsize=8)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(
        json.dumps({"command": ["python", *sys.argv], "environments": results}, indent=1)
    )
    figure.savefig(arguments.out.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
