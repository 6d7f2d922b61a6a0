"""Do the directions of a run add up, or does each repeat the error of the one before?

In: nothing; Outer-PPO is run, and does not jump.  Out: OUT/ENVIRONMENT.json and, of all of them, a table and a picture.

    python studies/coherence.py measure OUT
    python studies/coherence.py report OUT --json FILE --picture FILE

A direction may be good once and no good in a run, if every iteration errs in the same way. So all directions of a run
are kept, each as long as one: its updates, what `context` forecasts two and twenty iterations ahead, and the mean of
four futures two ahead. Of each two things are told: the cosine of two of them that are k iterations apart; and, from
some iterations on, the cosine of the sum of the next k with the mean displacement of the run's other futures over k
iterations. Errors that are made anew each time cancel in the sum, those that are kept do not. Weights of the network
alone. What is done already is not run again.

Shapes: D directions, I iterations, K of `APART`, P weights.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evidence import mean_and_error
from oracle import futures_of
from worth import AHEAD, COLORS, ENVIRONMENTS, MEANT

from tipl.acceleration.arms import Arm
from tipl.collection.branches import branch_seeds
from tipl.collection.settings import default_config
from tipl.files import write_json
from tipl.forecasting.named import load_forecaster
from tipl.rl.context import Memory
from tipl.rl.policies import network_size

DIRECTIONS = "update", "context", "context 20", "futures"
APART = 1, 2, 5, 10, 20
KNOWN = 12  # futures that say where the run goes on average


def measured(env_id: str, seeds: Sequence[int], iterations: int, every: int) -> list[dict[str, Any]]:
    """Of each run: `alike` [D][K], and of every `every`-th iteration that has enough after it `sums` [D][K]."""
    found = []
    config = dataclasses.replace(default_config(env_id), hidden_sizes=(64, 64), total_steps=200_000)
    count = config.snapshots_per_iteration
    for seed in seeds:
        batch = Arm(config, "outer:sigma=1.5").batch([seed])
        network = network_size(batch.policy_sizes)  # its weights come first
        memory = Memory()
        followed = load_forecaster("context", batch.spec.shapes, AHEAD, count).follow(seed, batch.policies[0].copy())
        ways, means = [], {}
        for iteration in range(1, iterations + 1):
            before = batch.policies[0].copy()
            followed.extend(batch.iterate().snapshots[0])
            memory.add(batch, 0)
            now = batch.policies[0].copy()
            made = followed.forecast(count - 1, (AHEAD * count, 20 * count), memory.tokens(batch, 0))[0]
            four = branch_seeds(2, seed, iteration, MEANT)
            four_P = futures_of(batch, 0, four, AHEAD)[:, -1].mean(axis=0)
            ways.append(np.stack([now - before, *(made - now), four_P - now])[:, :network])
            if iteration % every == 0 and iteration + max(APART) - 1 <= iterations:
                others = futures_of(batch, 0, branch_seeds(3, seed, iteration, KNOWN), max(APART))
                ends = [k * count - 1 for k in APART]
                means[iteration] = (others[:, ends].mean(axis=0) - now)[:, :network]
        ways_IDP = _unit(np.stack(ways).astype(np.float64))
        row = {"seed": seed, "alike": alike(ways_IDP).tolist()}
        sums = {t: sums_of(ways_IDP[t - 1 :], mean_KP).tolist() for t, mean_KP in means.items()}
        found.append(row | {"sums": sums})
    return found


def alike(ways_IDP: np.ndarray) -> np.ndarray:
    """Mean cosine [D, K] of two directions of a run that are k iterations apart."""
    return np.stack([(ways_IDP[k:] * ways_IDP[:-k]).sum(axis=2).mean(axis=0) for k in APART], axis=1)


def sums_of(ways_IDP: np.ndarray, mean_KP: np.ndarray) -> np.ndarray:
    """Cosines [D, K] of the sum of the first k directions with the mean displacement over k iterations."""
    sums_DKP = np.stack([ways_IDP[:k].sum(axis=0) for k in APART], axis=1)
    return (_unit(sums_DKP) * _unit(mean_KP.astype(np.float64))).sum(axis=2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


def report(files: Sequence[Path]) -> list[dict[str, Any]]:
    """By environment and direction both cosines by k: mean and standard error, of `alike` over runs, of `sums` over all
    states."""
    rows = []
    for file in files:
        runs = json.loads(file.read_text())["runs"]
        alike_NDK = np.array([run["alike"] for run in runs])
        sums_SDK = np.array([state for run in runs for state in run["sums"].values()])
        for d, direction in enumerate(DIRECTIONS):
            row = {"env_id": file.stem, "direction": direction, "states": len(sums_SDK), "apart": APART}
            row |= {"alike": [mean_and_error(each) for each in alike_NDK[:, d].T]}
            rows.append(row | {"sums": [mean_and_error(each) for each in sums_SDK[:, d].T]})
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    print("| environment | direction | " + " | ".join(f"{what} {k}" for what in ("alike", "sum") for k in APART) + " |")
    print("|---|---|" + "---|" * (2 * len(APART)))
    for row in rows:
        said = " | ".join(f"{mean:.2f} ± {error:.2f}" for mean, error in (*row["alike"], *row["sums"]))
        print(f"| {row['env_id']} | {row['direction']} | {said} |")


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """A panel for each environment: the cosine of a sum by how many directions it has."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["env_id"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(2.3 * len(names), 2.6), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        for row in (row for row in rows if row["env_id"] == name):
            mean, error = np.array(row["sums"]).T
            axis.errorbar(APART, mean, error, fmt="o-", markersize=3, linewidth=1, color=COLORS[row["direction"]],
                          label=row["direction"])  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(APART, [str(k) for k in APART])
        axis.minorticks_off()
        axis.axhline(0, color="#555", linewidth=0.8)
        axis.set_title(name, fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("cosine with the mean future", fontsize=8)
    figure.supxlabel("directions in the sum, and iterations ahead", fontsize=8, y=0.16)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=len(DIRECTIONS), frameon=False, fontsize=8,
                  loc="lower center")  # fmt: skip
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "report"))
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1101, 1102], metavar="N")
    parser.add_argument("--iterations", type=int, default=64, metavar="N")
    parser.add_argument("--every", type=int, default=12, metavar="N", help="iterations between two states")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.what == "measure":
        for env_id in asked.environments:
            settings = {name: getattr(asked, name) for name in ("seeds", "iterations", "every")}
            if not (asked.out / f"{env_id}.json").exists():
                print(env_id, flush=True)
                write_json(asked.out / f"{env_id}.json", settings | {"runs": measured(env_id, **settings)})
        return
    rows = report(sorted(asked.out.glob("*.json")))
    show(rows)
    if asked.json:
        write_json(asked.json, {"rows": rows})
    if asked.picture:
        draw(rows, asked.picture)


if __name__ == "__main__":
    main()
