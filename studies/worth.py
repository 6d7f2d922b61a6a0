"""What is one jump worth, by its direction, if all are equally long?

In: nothing; Outer-PPO is run, and does not jump.  Out: OUT/ENVIRONMENT.json and, of all of them, a table and a picture.

    python studies/worth.py measure OUT
    python studies/worth.py report OUT --json FILE --picture FILE

Every few iterations a run stands still, and goes from there in several directions. Each goes as far, in mean KL, as the
last update and its outer step went, all by the network: log standard deviations are left as they are. Of each: the gain
in return over whole episodes with the same seeds, and the cosine with the mean displacement of the run's futures two
iterations ahead. Those futures are others than the ones that two of the directions are made of.

    update        on along the last update
    context       the forecast two iterations ahead
    context 20    twenty ahead, as jumps take it
    one future    the next update on a batch of its own
    futures       the mean of four futures two iterations ahead, the direction of `oracle.py`

Shapes: D directions, R futures, T snapshots, P weights.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evidence import returns_of
from measuring import Rows, command_line, mean_and_error, panels
from oracle import futures_of

from tipl.acceleration.arms import Arm
from tipl.acceleration.evidence import Judge
from tipl.acceleration.judging import batch_judge
from tipl.collection.branches import branch_seeds
from tipl.collection.settings import default_config
from tipl.forecasting.named import load_forecaster
from tipl.rl.context import Memory
from tipl.rl.policies import network_size

COLORS = {
    "update": "#777777",
    "context": "#e0a030",
    "context 20": "#b3323c",
    "one future": "#7fb0c0",
    "futures": "#1f6f8b",
}
DIRECTIONS = tuple(COLORS)
MEANT, KNOWN = 4, 12  # futures of the last direction, and the others, which say where the run goes on average
AHEAD = 2  # iterations
ENVIRONMENTS = ["HalfCheetah-v4", "InvertedPendulum-v4", "CartPole-v1", "Acrobot-v1", "Pusher-v4"]


def measured(env_id: str, seeds: Sequence[int], iterations: int, every: int, episodes: int) -> list[dict[str, Any]]:
    """Of every `every`-th iteration of each run, by direction: gain in return (mean over episodes) and cosine."""
    found = []
    config = dataclasses.replace(default_config(env_id), hidden_sizes=(64, 64), total_steps=200_000)
    count = config.snapshots_per_iteration
    for seed in seeds:
        batch = Arm(config, "outer:sigma=1.5").batch([seed])
        network = network_size(batch.policy_sizes)  # its weights come first
        memory = Memory()
        followed = load_forecaster("context", batch.spec.shapes, AHEAD, count).follow(seed, batch.policies[0].copy())
        for iteration in range(1, iterations + 1):
            before = batch.policies[0].copy()
            followed.extend(batch.iterate().snapshots[0])
            memory.add(batch, 0)
            if iteration % every:
                continue
            made = followed.forecast(count - 1, (AHEAD * count, 20 * count), memory.tokens(batch, 0))[0]
            now = batch.policies[0].copy()
            some = branch_seeds(1, seed, iteration, MEANT + KNOWN + 1)
            futures_RTP = futures_of(batch, 0, some, AHEAD) - now
            mean_P = futures_RTP[MEANT + 1 :, -1].mean(axis=0)
            four_P = futures_RTP[1 : MEANT + 1, -1].mean(axis=0)
            ways_DP = np.stack([now - before, *(made - now), futures_RTP[0, count - 1], four_P])
            ways_DP[:, network:] = mean_P[network:] = 0
            judge = batch_judge(batch, 0)
            kl = judge(now).change
            ways_DP *= np.array([scale_to(judge, now, way, kl) for way in ways_DP])[:, None]
            returns = returns_of(batch, 0, np.stack([now, *(now + ways_DP)]), episodes, iteration)
            gains = (returns[1:] - returns[0]).mean(axis=1)
            cosines = ways_DP @ mean_P / (np.linalg.norm(ways_DP, axis=1) * np.linalg.norm(mean_P))
            row = {"seed": seed, "iteration": iteration, "kl": kl}
            found.append(row | {"gain": gains.tolist(), "cosine": cosines.tolist()})
    return found


def scale_to(judge: Judge, now_P: np.ndarray, way_P: np.ndarray, kl: float) -> float:
    """By how much to multiply a direction so that the policy is `kl` nats away, to 1% or as near as 30 tries come: KL
    grows with the square of a step."""
    scale = 1.0
    for _ in range(30):
        there = judge(now_P + np.float32(scale) * way_P).kl
        if abs(there / kl - 1) < 0.01:
            break
        scale *= float(np.clip((kl / max(there, 1e-12)) ** 0.5, 0.2, 5.0))
    return scale


def report(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By environment and direction the mean gain, what it is above that of `update` in the same states, and the mean
    cosine, each with the standard error of the mean."""
    rows = []
    for env_id, every in found.items():
        gain_SD, cosine_SD = (np.array([row[what] for row in every]) for what in ("gain", "cosine"))
        of = {"gain": gain_SD, "above_update": gain_SD - gain_SD[:, :1], "cosine": cosine_SD}
        for d, direction in enumerate(DIRECTIONS):
            said = {what: mean_and_error(values_SD[:, d]) for what, values_SD in of.items()}
            rows.append({"env_id": env_id, "states": len(every), "direction": direction, **said})
    return rows


def show(rows: Rows) -> None:
    print("| environment | direction | gain in return | above `update` | cosine | states |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        said = " | ".join("{:.3g} ± {:.2g}".format(*row[name]) for name in ("gain", "above_update", "cosine"))
        print(f"| {row['env_id']} | {row['direction']} | {said} | {row['states']} |")


def draw(rows: Rows, file: Path) -> None:
    """A panel for each environment: gain by cosine."""

    def fill(axis: Any, row: dict[str, Any]) -> None:
        (x, dx), (y, dy), name = row["cosine"], row["gain"], row["direction"]
        axis.errorbar(x, y, dy, dx, fmt="o", markersize=4, linewidth=1, color=COLORS[name], label=name)
        axis.locator_params(nbins=4)

    panels(rows, fill, "cosine with the mean of the run's futures", "gain in return of one jump", file)


def main() -> None:
    command_line(__doc__, measured, report, show, draw, environments=ENVIRONMENTS, iterations=48, every=6, episodes=64)


if __name__ == "__main__":
    main()
