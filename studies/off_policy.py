"""What do jumps save TD3 and SAC: of gradient steps and seconds, at equal steps of the environment?

In: nothing.  Out: OUT/*.json, a file a run; `table`: every arm beside the plain one.

    python studies/off_policy.py run --out runs/off-policy [--shard I/N]
    python studies/off_policy.py table runs/off-policy --json FILE

The plain arm is Stable-Baselines3's own setting, a gradient step after each step of the environment. The others take
one after every second step (half) or every fourth (fewer): at the same learning rate, at twice and at four times that
rate, and with jumps of the actor, or of actor and critic. So jumps are held against a tuned rate that costs the same.
A run's returns are those of the deterministic policy in an environment of its own, at ten moments. Its seconds are of
the processor, on one thread, without these episodes. Runs that are there are not made again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tipl.config.execution import Execution
from tipl.config.jumps import JumpConfig
from tipl.evaluation.statistics import bootstrap_interval, iqm, ratio_of_iqms
from tipl.files import write_json

STEPS = {"Pendulum-v1": 8_000, "InvertedPendulum-v4": 8_000, "HalfCheetah-v4": 15_000}
ALGORITHMS = ("TD3", "SAC")
SEEDS = range(1, 6)
MOMENTS, EPISODES = 10, 5
HIDDEN, PERIOD = (64, 64), 20


@dataclass(frozen=True)
class Arm:
    """How often an algorithm learns, how fast, and what jumps."""

    every: int = 4
    rate: float = 1.0
    forecaster: str | None = None
    critic: bool = False
    horizon: int = 1
    """Periods of 20 gradient steps of the actor that a jump goes ahead."""


ARMS = {
    "plain": Arm(every=1),
    "half": Arm(every=2),
    "half, rate x2": Arm(every=2, rate=2),
    "half, zoo, critic too": Arm(every=2, forecaster="zoo", critic=True),
    "half, zoo, critic too, ten ahead": Arm(every=2, forecaster="zoo", critic=True, horizon=10),
    "fewer": Arm(),
    "fewer, rate x2": Arm(rate=2),
    "fewer, rate x4": Arm(rate=4),
    "fewer, line": Arm(forecaster="line"),
    "fewer, causal": Arm(forecaster="causal"),
    "fewer, zoo": Arm(forecaster="zoo"),
    "fewer, zoo, critic too": Arm(forecaster="zoo", critic=True),
    "fewer, zoo, critic too, three ahead": Arm(forecaster="zoo", critic=True, horizon=3),
}


def run(algorithm: str, env_id: str, name: str, seed: int, file: Path) -> None:
    """One run, to its file."""
    import gymnasium as gym
    import stable_baselines3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy

    from tipl.integrations.sb3 import SB3Accelerator

    torch.set_num_threads(1)
    arm, steps, judged = ARMS[name], STEPS[env_id], gym.make(env_id)
    returns: list[float] = []
    aside = 0.0

    class Judge(BaseCallback):
        def _on_step(self) -> bool:
            nonlocal aside
            if self.num_timesteps % (steps // MOMENTS) == 0:
                began = time.process_time()
                judged.reset(seed=1000 * seed + len(returns))
                mean, _ = evaluate_policy(self.model, judged, EPISODES, warn=False)
                returns.append(float(np.asarray(mean)))
                aside += time.process_time() - began
            return True

    usual = {"TD3": 1e-3, "SAC": 3e-4}[algorithm]
    model = getattr(stable_baselines3, algorithm)(
        "MlpPolicy", env_id, seed=seed, device="cpu", learning_rate=usual * arm.rate, train_freq=arm.every,
        gradient_steps=1, learning_starts=1000, policy_kwargs={"net_arch": list(HIDDEN)},
    )  # fmt: skip
    jump = JumpConfig(horizon=arm.horizon, surrogate=False, critic=arm.critic)
    accelerate = SB3Accelerator(arm.forecaster, jump=jump, period=PERIOD) if arm.forecaster else None
    began = time.process_time()
    model.learn(steps, callback=[Judge(), *([accelerate] if accelerate else [])])
    seconds = time.process_time() - began - aside
    counts = dict(accelerate.counts) if accelerate else {}
    said = {"algorithm": algorithm, "environment": env_id, "arm": name, "seed": seed, "returns": returns}
    write_json(file, said | {"gradient_steps": model._n_updates, "seconds": seconds, "jumps": counts})


def table(out: Path, file: Path | None) -> list[dict[str, Any]]:
    """Every arm beside plain, where both ran: final return and mean return over the run, in units of what plain gains;
    gradient steps and seconds as ratios. Paired by seed; intervals keep algorithms and environments apart."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    by = {(each["algorithm"], each["environment"], each["arm"], each["seed"]): each for each in found}
    rows = []
    for name in ARMS:
        pairs = [(each, by[key]) for (algorithm, env_id, arm, seed), each in by.items()
                 if arm == name and (key := (algorithm, env_id, "plain", seed)) in by]  # fmt: skip
        if not pairs:
            continue
        places = [(mine["algorithm"], mine["environment"]) for mine, _ in pairs]
        gains = {place: gain([b for (_, b), of in zip(pairs, places, strict=True) if of == place]) for place in places}
        scale = np.array([gains[place] for place in places])
        labels = np.array([" ".join(place) for place in places])

        def interval(*samples: Any, ratio: bool = False, labels: np.ndarray = labels) -> list[float | None]:
            statistic = ratio_of_iqms if ratio else iqm
            made = bootstrap_interval(statistic, *samples, rng=np.random.default_rng(0), strata=labels)[0]
            return [made.value, made.low, made.high]

        differences = {
            "final": [a["returns"][-1] - b["returns"][-1] for a, b in pairs],
            "mean": [np.mean(a["returns"]) - np.mean(b["returns"]) for a, b in pairs],
        }
        row = {"arm": name, "runs": len(pairs), "places": sorted(set(labels))}
        row |= {key: interval(np.array(values) / scale) for key, values in differences.items()}
        for key in ("gradient_steps", "seconds"):
            row[key] = interval(
                *(np.array([each[key] for each in side]) for side in zip(*pairs, strict=True)), ratio=True
            )
        by_place = {place: np.median([x for x, of in zip(np.array(differences["final"]) / scale, labels, strict=True)
                                      if of == place]) for place in sorted(set(labels))}  # fmt: skip
        rows.append(row | {"final_by_place": {place: float(value) for place, value in by_place.items()}})
        print(f"{name:28} {len(pairs):3} runs", *(f"{key} {row[key][0]:6.3f}" for key in
              ("final", "mean", "gradient_steps", "seconds")))  # fmt: skip
    if file:
        write_json(file, {"arms": rows, "steps": STEPS})
    return rows


def gain(plain: Sequence[dict[str, Any]]) -> float:
    """What plain runs gain between the first moment and the last."""
    ends = np.array([(each["returns"][0], each["returns"][-1]) for each in plain])
    return float(ends[:, 1].mean() - ends[:, 0].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run")
    verb.add_argument("--out", type=Path, default=Path("runs/off-policy"))
    verb.add_argument("--shard", default="1/1", metavar="I/N")
    verb.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    verb.add_argument("--environments", nargs="+", choices=STEPS, default=list(STEPS))
    verb.add_argument("--seeds", nargs="+", type=int, default=[*SEEDS])
    verb = verbs.add_parser("table")
    verb.add_argument("out", type=Path)
    verb.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.verb == "table":
        table(asked.out, asked.json)
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    tasks = [(algorithm, env_id, arm, seed) for seed in asked.seeds for env_id in asked.environments
             for algorithm in ALGORITHMS for arm in asked.arms]  # fmt: skip
    for index in Execution(shard=asked.shard).mine([STEPS[env_id] for _, env_id, *_ in tasks]):
        algorithm, env_id, arm, seed = tasks[index]
        name = arm.replace(", ", "-").replace(" ", "-")
        file = asked.out / f"{algorithm}-{env_id}-{name}-{seed}.json".lower()
        if not file.exists():
            run(algorithm, env_id, arm, seed, file)
            print(file.stem, json.loads(file.read_text())["returns"][-1], flush=True)


if __name__ == "__main__":
    main()
