"""What does CleanRL's own way of writing PPO earn on this machine's engine?

In: an environment, seeds.  Out: a JSON a seed in a folder, written when the seed is done. What is there stays.

`Reference` of `plain_loop.py` is `ppo_continuous_action` in plain torch: Gymnasium's wrappers and engine,
autograd, torch's Adam, torch's draws. It shares nothing with `trial_batch` but a seed's initial weights, so what
it earns tells a difference of the loop from one of the engine or of the seeds. The measure is that of CleanRL's tables
(openrlbenchmark's `rlops.py`): the mean of a run's last 100 training episodes.

    python benchmarks/cleanrl_loop.py --env-id InvertedPendulum-v4 --seeds 1 2 3 4 5 6 --out loop-InvertedPendulum \\
        --ours results/collect/cleanrl.json --summary results/collect/cleanrl-loop.json
"""

import argparse
import importlib.metadata
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from plain_loop import Reference
from scipy import stats as scipy_stats

from tipl.config.presets import CollectConfig
from tipl.rl.trial_batch import TrialBatch

PACKAGES = "gymnasium", "mujoco", "numpy", "torch"


def run(config: CollectConfig, seed: int) -> dict:
    """Train one seed from its beginning to its end."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the order of minibatches is drawn as CleanRL draws it
    reference = Reference(TrialBatch(config, [seed]))
    last_episodes = reference.envs.envs[0].get_wrapper_attr("return_queue")  # of the last 100
    curve = []
    for _ in range(config.num_iterations):
        reference.iterate()
        curve.append(round(float(np.mean(last_episodes)), 2) if last_episodes else None)
    return {"seed": seed, "last_episodes": len(last_episodes), "mean_return": curve[-1], "curve": curve}


def compare(loops: list[dict], ours: dict) -> dict:
    """The loop's seeds beside those of `agreement.py` and CleanRL's published ones: Welch's tests of equal means."""
    loop = np.array([result["mean_return"] for result in loops])
    mine, published = np.array(ours["training_last_100_episodes"]["by_trial"]), ours["cleanrl"]
    to_ours = scipy_stats.ttest_ind(loop, mine, equal_var=False)
    to_published = scipy_stats.ttest_ind_from_stats(
        loop.mean(), loop.std(ddof=1), len(loop), *published.values(), equal_var=False
    )
    return {
        "seeds": [result["seed"] for result in loops],
        "versions": loops[0]["versions"],
        "by_seed": loop.tolist(),
        "mean": float(loop.mean()),
        "deviation": float(loop.std(ddof=1)),
        "ours": {"mean": float(mine.mean()), "deviation": float(mine.std(ddof=1)), "seeds": len(mine)},
        "cleanrl": published,
        "welch_p_to_ours": float(to_ours.pvalue),  # pyright: ignore[reportAttributeAccessIssue]
        "welch_p_to_cleanrl": float(to_published.pvalue),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="InvertedPendulum-v4")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--total-steps", type=int, default=1_000_000)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--ours", type=Path, help="what agreement.py wrote, to compare with")
    parser.add_argument("--summary", type=Path, help="JSON of the comparison")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = CollectConfig(
        env_id=arguments.env_id, total_steps=arguments.total_steps, hidden_sizes=tuple(arguments.hidden_sizes)
    )
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    for seed in arguments.seeds:
        path = arguments.out / f"{seed}.json"
        if path.exists():
            continue
        began = time.perf_counter()
        result = {"env_id": config.env_id, "total_steps": config.total_steps, "hidden_sizes": config.hidden_sizes,
                  "versions": versions, **run(config, seed)}  # fmt: skip
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"seed {seed}: {result['mean_return']} over {result['last_episodes']} episodes, "
              f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    if arguments.ours and arguments.summary:
        loops = [json.loads((arguments.out / f"{seed}.json").read_text()) for seed in arguments.seeds]
        found = compare(loops, json.loads(arguments.ours.read_text())["environments"][config.env_id])
        arguments.summary.write_text(json.dumps({"env_id": config.env_id, **found}, indent=1) + "\n")
        print(json.dumps(found))


if __name__ == "__main__":
    main()
