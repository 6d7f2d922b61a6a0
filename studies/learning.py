"""Does PPO learn as it should: the mean training return of many seeds between two moments of their runs.

In: environment, widths, seeds.  Out: a table, and JSON with what is needed to repeat it.

The bar for the paper's InvertedPendulum experiment (8-8 networks, a run of 800k steps by its annealing): a mean return
of at least 900 over the episodes that end between 100k and 200k steps, averaged over at least 10 seeds. With CleanRL's
`ppo` settings on CartPole-v1: at least 400 between 200k and 500k steps.

    python studies/learning.py --seeds 10 --out learning.json
    python studies/learning.py --env-id CartPole-v1 --hidden-sizes 64 64 --total-steps 500000 \\
        --first-step 200000 --last-step 500000
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from tipl.collection.settings import default_config
from tipl.config.presets import Activation, Backend, CollectConfig
from tipl.rl.envs import chosen_backend, engine_versions
from tipl.rl.trial_batch import TrialBatch


def training_returns(config: CollectConfig, seeds: Sequence[int], first_step: int, last_step: int) -> np.ndarray:
    """Mean raw return of the episodes that end in (first_step, last_step] of each seed's run, [seeds].

    Args:
        config: the whole run, which is left after `last_step`; its own seed and number of trials are not used.
    """
    batch = TrialBatch(config, seeds)
    episodes: list[list[np.ndarray]] = [[] for _ in seeds]
    while batch.iteration < config.num_iterations and batch.iteration * config.ppo.batch_size < last_step:
        for rows, new in zip(episodes, batch.iterate().episodes, strict=True):
            rows.append(new)
    means = []
    for rows in episodes:
        end_step, episode_return, _ = np.concatenate(rows).T
        means.append(episode_return[(end_step > first_step) & (end_step <= last_step)].mean())
    return np.array(means)


def training_returns_parallel(
    config: CollectConfig, seeds: Sequence[int], first_step: int, last_step: int, workers: int
) -> np.ndarray:
    """`training_returns` with the seeds shared out over processes."""
    shares = [list(seeds[i::workers]) for i in range(min(workers, len(seeds)))]
    tasks = [(config, share, first_step, last_step) for share in shares]
    with multiprocessing.get_context("spawn").Pool(len(shares)) as pool:
        results = pool.starmap(training_returns, tasks)
    by_seed = {
        seed: value
        for share, values in zip(shares, results, strict=True)
        for seed, value in zip(share, values, strict=True)
    }
    return np.array([by_seed[seed] for seed in seeds])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="InvertedPendulum-v4")
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[8, 8])
    parser.add_argument("--activation", choices=get_args(Activation), default=CollectConfig.activation)
    parser.add_argument("--backend", choices=get_args(Backend), default=CollectConfig.backend)
    parser.add_argument("--seeds", type=int, default=10, help="how many; they count up from 1")
    parser.add_argument("--total-steps", type=int, default=800_000, help="length of the run, by which it anneals")
    parser.add_argument("--first-step", type=int, default=100_000)
    parser.add_argument("--last-step", type=int, default=200_000, help="where the run is left")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes to come: one compute thread each
    config = dataclasses.replace(
        default_config(args.env_id, args.backend),
        total_steps=args.total_steps,
        hidden_sizes=tuple(args.hidden_sizes),
        activation=args.activation,
    )
    seeds = list(range(1, args.seeds + 1))
    start = time.perf_counter()
    returns = training_returns_parallel(config, seeds, args.first_step, args.last_step, args.workers)
    seconds = time.perf_counter() - start

    print(f"{args.env_id}, mean return of the episodes from step {args.first_step} to {args.last_step}")
    for seed, value in zip(seeds, returns, strict=True):
        print(f"  seed {seed:3d}  {value:8.1f}")
    spread = returns.std(ddof=1) if len(returns) > 1 else float("nan")
    print(f"  mean      {returns.mean():8.1f}   (deviation between seeds {spread:.1f}; {seconds:.0f} s)")
    if args.out:
        result = {
            "command": ["python", *sys.argv],
            "versions": engine_versions(chosen_backend(args.env_id, args.backend)),
            "settings": {name: value for name, value in vars(args).items() if name != "out"},
            "seconds": round(seconds, 1),
            "return_by_seed": dict(zip(map(str, seeds), returns.round(2).tolist(), strict=True)),
            "mean": round(float(returns.mean()), 2),
        }
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
