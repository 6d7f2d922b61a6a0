"""Reach: which of EnvPool's environments can be collected, and why the rest is refused.

    python studies/reach.py --out runs/reach.json [--family dmc highway] [--every 8]

Each environment is collected for two short iterations, the second of them twice: as the run goes on, and in a fresh
batch that the run's saved state was put into. Both have to end with the same bits. A child process tries them, so
that an engine that crashes is told like any other refusal. What is done is kept in the file; the same command goes on.
"""

import argparse
import json
import multiprocessing
import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tipl.processes import end_with

STEPS = 32  # of an iteration
MOST_SECONDS = 120


def tried(env_id: str) -> dict[str, Any]:
    """Collect a little of one environment; what came of it."""
    import numpy as np

    from tipl import DiscretePPOConfig, PPOConfig, TiplError
    from tipl.collection.settings import default_config
    from tipl.rl import envs
    from tipl.rl.trial_batch import TrialBatch

    envs.TRIED_EPISODES, envs.TRIED_STEPS = 1, 64  # whether steps draw is asked of 1,600 environments here
    try:
        found = default_config(env_id, "envpool")
        kind = DiscretePPOConfig if isinstance(found.ppo, DiscretePPOConfig) else PPOConfig
        ppo = kind(num_envs=1, num_steps=STEPS, num_minibatches=1, update_epochs=2, anneal_lr=False)
        config = type(found)(
            env_id=env_id, backend="envpool", trials=1, total_steps=2 * STEPS, hidden_sizes=(8,), ppo=ppo
        )
        batch, again = TrialBatch(config, [1]), TrialBatch(config, [1])
        batch.iterate()
        state = batch.state(0)
        on = batch.iterate().snapshots
        again.restore([state])
        same = np.array_equal(on, again.iterate().snapshots)
    except TiplError as error:
        return {"refused": str(error)}
    except Exception as error:  # an engine's own
        return {"refused": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    return {
        "resumes": bool(same),
        "obs": batch.env.obs_dim,
        "actions": batch.env.policy_outputs,
        "discrete": batch.env.discrete,
        "draws_in_steps": batch.env.draws_in_steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--family", nargs="+", default=[])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="try every Nth environment of a family alone")
    arguments = parser.parse_args()
    from envpool.registration import registry

    done: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text())["of"] if arguments.out.exists() else {}
    families = {env_id: registry.specs[env_id][0].rpartition(".")[2] for env_id in registry.list_all_envs()}
    pool, seen = None, Counter[str]()
    for number, (env_id, family) in enumerate(families.items()):
        seen[family] += 1
        left_out = arguments.family and family not in arguments.family
        if env_id in done or left_out or (seen[family] - 1) % arguments.every:
            continue
        pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with, (os.getpid(),))
        try:
            found = pool.submit(tried, env_id).result(MOST_SECONDS)
        except (BrokenProcessPool, TimeoutError) as error:
            found = {"refused": f"the engine {'crashes' if isinstance(error, BrokenProcessPool) else 'hangs'}"}
            for process in pool._processes.values():
                process.kill()
            pool = None
        done[env_id] = {"family": family, **found}
        print(number, env_id, found, flush=True)
        if number % 20 == 0:
            write(arguments.out, done)
    write(arguments.out, done)


def write(out: Path, done: dict[str, dict[str, Any]]) -> None:
    """The table by family, and what was found of each environment."""
    families: dict[str, dict[str, Any]] = {}
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for env_id, found in sorted(done.items()):
        row = families.setdefault(found["family"], {"environments": 0, "collected": 0, "to the bit": 0})
        row["environments"] += 1
        row["collected"] += "refused" not in found
        row["to the bit"] += found.get("resumes", False)
        if "refused" in found:
            reasons[found["family"]][re.sub(r"\d+", "n", found["refused"].replace(env_id, "…"))[:120]] += 1
    for family, row in families.items():
        row["refused"] = dict(reasons[family].most_common(3))
    out.write_text(json.dumps({"families": families, "of": done}, indent=1))


if __name__ == "__main__":
    main()
