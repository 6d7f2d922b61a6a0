"""Do the directions of a run add up, or does each repeat the error of the one before?

In: nothing; Outer-PPO is run, and does not jump.  Out: OUT/ENVIRONMENT.json and, of all of them, a table and a picture.

    python studies/coherence.py measure OUT
    python studies/coherence.py report OUT --json FILE --picture FILE

A direction may be good once and no better than others in a run, if every iteration errs in the same way. After every
iteration these directions are kept, the policy's network alone, scaled to length 1:

    update        the one just done
    context       the forecast two iterations ahead
    context 20    twenty ahead, as jumps take it
    both          update and context 20 added up, as if each iteration jumped as far as its update
    futures       the mean of four futures two iterations ahead, the direction of `oracle.py`

Two things are reported. `alike`: the mean cosine of two of a kind that are k iterations apart. `sums`: every few
iterations, the cosine of the sum of k of a kind, those of this iteration and of the k − 1 after it, with the mean
displacement of twelve other futures over k iterations. All kinds know the same batches at each iteration; only
`futures` are made of eight more. Errors that are made anew each time cancel in the sum, those that are kept do not.

Shapes: D directions, I iterations, K of `APART`, P weights.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Rows, command_line, mean_and_error, panels
from oracle import futures_of
from worth import AHEAD, ENVIRONMENTS, MEANT

from tipl.acceleration.arms import Arm
from tipl.collection.branches import branch_seeds
from tipl.collection.settings import default_config
from tipl.forecasting.named import load_forecaster
from tipl.rl.context import Memory
from tipl.rl.policies import network_size

COLORS = {
    "update": "#777777",
    "context": "#e0a030",
    "context 20": "#b3323c",
    "both": "#7a4fa0",
    "futures": "#1f6f8b",
}
DIRECTIONS = tuple(COLORS)
APART = 1, 2, 5, 10, 20
KNOWN = 12  # futures that say where the run goes on average


def measured(env_id: str, seeds: Sequence[int], iterations: int, every: int) -> list[dict[str, Any]]:
    """Return of each run `alike` [D][K] and, of every `every`-th iteration that has enough after it, `sums` [D][K]."""
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
            update_P, *made_DP, four_P = _unit(np.stack([now - before, *(made - now), four_P - now])[:, :network])
            ways.append(_unit(np.stack([update_P, *made_DP, update_P + made_DP[-1], four_P])))
            if iteration % every == 0 and iteration + max(APART) - 1 <= iterations:
                others = futures_of(batch, 0, branch_seeds(3, seed, iteration, KNOWN), max(APART))
                ends = [k * count - 1 for k in APART]
                means[iteration] = (others[:, ends].mean(axis=0) - now)[:, :network]
        ways_IDP = np.stack(ways).astype(np.float64)
        row = {"seed": seed, "alike": alike(ways_IDP).tolist()}
        sums = {t: sums_of(ways_IDP[t - 1 :], mean_KP).tolist() for t, mean_KP in means.items()}
        found.append(row | {"sums": sums})
    return found


def alike(ways_IDP: np.ndarray) -> np.ndarray:
    """Return the mean cosine [D, K] of two directions of a run that are k iterations apart."""
    return np.stack([(ways_IDP[k:] * ways_IDP[:-k]).sum(axis=2).mean(axis=0) for k in APART], axis=1)


def sums_of(ways_IDP: np.ndarray, mean_KP: np.ndarray) -> np.ndarray:
    """Return the cosine [D, K] of the sum of the first k directions with the mean displacement over k iterations."""
    sums_DKP = np.stack([ways_IDP[:k].sum(axis=0) for k in APART], axis=1)
    return (_unit(sums_DKP) * _unit(mean_KP.astype(np.float64))).sum(axis=2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


def report(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return by environment and direction, for each k: `alike`, the mean over runs; `sums`, and `lead`, what they are
    above those of `update` in the same states, each as mean and standard error, as if states were independent."""
    rows = []
    for env_id, runs in found.items():
        alike_DK = np.mean([run["alike"] for run in runs], axis=0)
        sums_SDK = np.array([state for run in runs for state in run["sums"].values()])
        lead_SDK = sums_SDK - sums_SDK[:, :1]
        for d, direction in enumerate(DIRECTIONS):
            row = {"env_id": env_id, "direction": direction, "states": len(sums_SDK), "apart": APART}
            row |= {"alike": alike_DK[d].tolist(), "sums": [mean_and_error(each) for each in sums_SDK[:, d].T]}
            rows.append(row | {"lead": [mean_and_error(each) for each in lead_SDK[:, d].T]})
    return rows


def show(rows: Rows) -> None:
    columns = [f"{what} {k}" for what in ("alike", "sum", "above update") for k in APART]
    print(f"| environment | direction | {' | '.join(columns)} |")
    print("|---|---|" + "---|" * len(columns))
    for row in rows:
        said = [f"{mean:.2f}" for mean in row["alike"]]
        said += [f"{mean:.2f} ± {error:.2f}" for mean, error in (*row["sums"], *row["lead"])]
        print(f"| {row['env_id']} | {row['direction']} | {' | '.join(said)} |")


def draw(rows: Rows, file: Path) -> None:
    """A panel for each environment: the cosine of a sum by how many directions it has."""

    def fill(axis: Any, row: dict[str, Any]) -> None:
        (mean, error), name = np.array(row["sums"]).T, row["direction"]
        axis.errorbar(row["apart"], mean, error, fmt="o-", markersize=3, linewidth=1, color=COLORS[name], label=name)
        axis.set_xscale("log")
        axis.set_xticks(row["apart"], [str(k) for k in row["apart"]])
        axis.minorticks_off()

    across, up = "iterations whose directions are added up", "cosine with where\ncopies go on average"
    panels(rows, fill, across, up, file, same_y=True)


def main() -> None:
    command_line(__doc__, measured, report, show, draw, environments=ENVIRONMENTS, iterations=72, every=12)


if __name__ == "__main__":
    main()
