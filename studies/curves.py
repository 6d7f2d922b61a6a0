"""The learning curves of a store: a figure and a JSON summary with intervals over trials.

In: STORE.  Out: OUT.json and OUT.png.

    python studies/curves.py STORE --out results/collect/inverted-pendulum
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

from tipl.evaluation.statistics import bootstrap_interval, iqm
from tipl.store import Store, Trial, data_info, data_verify

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter

POINTS = 200


def curve(trial: Trial, edges: np.ndarray) -> np.ndarray:
    """Mean training return of the episodes that end in each span of environment steps; the last one's in a span in
    which none ends."""
    step, episode_return, _ = trial.episodes
    span = np.searchsorted(edges, step, side="left") - 1
    out = np.full(len(edges) - 1, np.nan)
    for i in range(len(out)):
        ended = episode_return[span == i]
        out[i] = ended.mean() if len(ended) else out[i - 1]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="The learning curves of a store.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    trials = [store.trial(seed) for seed in store.seeds]
    total = min(int(trial.env_step[-1]) for trial in trials)
    edges = np.linspace(0, total, POINTS + 1)
    curves = np.stack([curve(trial, edges) for trial in trials])
    rng = np.random.default_rng(0)
    mean = bootstrap_interval(lambda x, axis: x.mean(axis), curves, rng=rng)
    middle = bootstrap_interval(lambda x, axis: iqm(x, axis), curves, rng=rng)
    last = np.array([trial.episodes.episode_return[-100:].mean() for trial in trials])
    final = {
        "mean": bootstrap_interval(lambda x, axis: x.mean(axis), last, rng=rng)[0],
        "iqm": bootstrap_interval(lambda x, axis: iqm(x, axis), last, rng=rng)[0],
    }
    info = data_info(arguments.store)
    summary = {
        "env_id": trials[0].env_id,
        "config": trials[0].config,
        "versions": trials[0].versions,
        "trials": len(trials),
        "complete": sum(trial.complete for trial in trials),
        "snapshots_per_trial": sorted({trial.committed for trial in trials}),
        "weights": trials[0].spec.size,
        "raw_bytes": info["raw_bytes"],
        "disk_bytes": info["disk_bytes"],
        "verified": data_verify(arguments.store)["ok"],
        "last_100_episodes": {name: value._asdict() for name, value in final.items()} | {"by_trial": last.tolist()},
        "curve": {
            "env_step": edges[1:].tolist(),
            "mean": [value.value for value in mean],
            "mean_ci": [value.bounds for value in mean],
            "iqm": [value.value for value in middle],
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(summary, indent=1))

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(edges[1:], curves.T, color="0.75", linewidth=0.5)
    low, high = (np.array([getattr(value, name) for value in mean], float) for name in ("low", "high"))
    axes.fill_between(edges[1:], low, high, color="#0072B2", alpha=0.3, linewidth=0)
    axes.plot(edges[1:], curves.mean(axis=0), color="#0072B2", label="mean, 95% interval over trials")
    axes.plot(edges[1:], iqm(curves, axis=0), color="#D55E00", label="IQM")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel="environment steps", ylabel="training return", title=f"{trials[0].env_id}, {len(trials)} trials")
    axes.legend(frameon=False)
    figure.savefig(arguments.out.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    main()
