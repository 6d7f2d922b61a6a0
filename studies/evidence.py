"""Does going where a run is forecast to go raise its return, and would the run's own batches say so?

In: nothing; Outer-PPO is run, and does not jump.  Out: OUT/ENVIRONMENT.json and, of all of them, a table.

    python studies/evidence.py measure OUT --environments Pusher-v4 HalfCheetah-v4
    python studies/evidence.py report OUT --json FILE

After every iteration `context` proposes a jump, which is not taken. The next batch, which had no part in it, judges it
by the advantages that PPO learns from (λ of 0.95) and by those with λ = 1. Every few iterations both policies are run
for whole episodes with the same seeds: what the proposal does to the return.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from measuring import Rows, command_line, mean_and_error

from tipl.acceleration.arms import Arm, jumpers_of
from tipl.acceleration.judging import batch_judge, outcome_judge
from tipl.collection.settings import default_config
from tipl.config.env_spec import env_id_in
from tipl.config.jumps import jumps_of
from tipl.rl.context import Memory
from tipl.rl.returns import Policies, policy_returns
from tipl.rl.trial_batch import TrialBatch

KIND = "outer:sigma=1.5+context"
BY = "gae", "outcomes"
ENVIRONMENTS = "Pusher-v4", "HalfCheetah-v4"


def measured(env_id: str, seeds: Sequence[int], iterations: int, every: int, episodes: int) -> list[dict[str, Any]]:
    """Of every proposal and kind of advantages the gain that the next batch expects, in standard errors; of every
    `every`-th what it does to the true return: mean and standard error over episodes."""
    config = default_config(env_id)
    jump = dataclasses.replace(jumps_of(KIND), every=1, max_of_update=0.25, evidence=False)
    arm = Arm(dataclasses.replace(config, hidden_sizes=(64, 64), total_steps=200_000), KIND, jump)
    batch = arm.batch(seeds)
    jumpers, memories = jumpers_of(arm, batch), [Memory() for _ in seeds]
    told = np.zeros_like(batch.policies)  # how far each jumper believes to have jumped
    proposals: list[np.ndarray | None] = [None] * len(seeds)
    found = []
    for iteration in range(1, iterations + 1):
        before = np.array(batch.policies)  # which make the batch
        result = batch.iterate()
        for n, jumper in enumerate(jumpers):
            judge = batch_judge(batch, n)
            if (proposal := proposals[n]) is not None:
                there = before[n] + proposal
                said = dict(zip(BY, (judge(there), outcome_judge(batch, n)(there)), strict=True))
                row = {"seed": int(seeds[n]), "iteration": iteration}
                row |= {by: each.surrogate / each.error for by, each in said.items()}
                if iteration % every == 0:
                    now, then = returns_of(batch, n, np.stack([before[n], there]), episodes, iteration)
                    gained = then - now
                    row |= {"return": float(gained.mean()), "error": float(gained.std(ddof=1) / np.sqrt(episodes))}
                found.append(row)
            memories[n].add(batch, n)
            tokens = functools.partial(memories[n].tokens, batch, n)
            seen = result.snapshots[n] + told[n]
            proposal = jumper.step(seen, lambda w, j=judge, t=told[n]: j(w - t), tokens=tokens).displacement
            told[n] += 0 if proposal is None else proposal
            proposals[n] = proposal
    return found


def returns_of(batch: TrialBatch, n: int, weights_DP: np.ndarray, episodes: int, seed: int) -> np.ndarray:
    """Returns [D, episodes] of policies that see as the n-th trial does, with the same seeds."""
    mean, var = (np.repeat(each[n : n + 1], len(weights_DP), axis=0) for each in (batch.obs_mean, batch.obs_var))
    config = batch.config
    return policy_returns(
        Policies(weights_DP, mean, var), env_id_in(config), config.hidden_sizes, episodes, seed=seed, sampled=True,
        activation=config.activation, threads=1,
    )  # fmt: skip


def report(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By environment: the mean gain of a proposal by each kind of advantages, in standard errors of one batch, and the
    mean of the true one in units of the return; each with the standard error of the mean."""
    rows = []
    for env_id, every in found.items():
        true = np.array([row["return"] for row in every if "return" in row])
        said = {by: mean_and_error(np.array([row[by] for row in every])) for by in BY}
        rows.append({"env_id": env_id, "proposals": len(every), **said, "return": mean_and_error(true)})
    return rows


def show(rows: Rows) -> None:
    print("| environment | proposals | by PPO's advantages | by λ = 1 | true gain in return |")
    print("|---|---|---|---|---|")
    for row in rows:
        said = " | ".join("{:.2f} ± {:.2f}".format(*row[name]) for name in (*BY, "return"))
        print(f"| {row['env_id']} | {row['proposals']} | {said} |")


def main() -> None:
    command_line(__doc__, measured, report, show, environments=ENVIRONMENTS, iterations=45, every=4, episodes=64)


if __name__ == "__main__":
    main()
