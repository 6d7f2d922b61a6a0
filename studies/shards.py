"""Are shards that are started twice, at random times, and killed at random times one piece of work?

In: a seed.  Out: OUT, JSON: how many processes were started and killed, and what of the store is lost, other or twice.

Each of 64 shards has trials of CartPole-v1 and is started twice, a moment apart. Half of the processes are killed after
a random time. Then all shards are started again, until one round has no trial left. A commit is made after every
iteration, so a trial that was done once has as many commits as iterations and one; a store of the same trials that
nobody disturbed says what they have to hold.

    python studies/shards.py --out results/scale/shards.json
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import tipl
import tipl.collection.collect
import tipl.executors.run
from tipl import DiscreteCollectConfig, Execution, Store, TiplError, collect
from tipl.config.presets import DiscretePPOConfig

CONFIG = DiscreteCollectConfig(
    trials=96, total_steps=40 * 512, hidden_sizes=(8, 8), ppo=DiscretePPOConfig(num_minibatches=4)
)  # fmt: skip
AT_ONCE = 12
SPREAD_SECONDS, LONGEST_SECONDS = 0.2, 3.0


def run_here(work: Any, tasks: Any, count: int, names: Any, heard: Any = None, ended: Any = lambda task: None) -> None:
    """Run tasks in this process: a kill is then of all that there is."""

    class Parent:
        def tell(self, *numbers: Any) -> None:
            pass

        def wants_stop(self) -> bool:
            return False

    for index, task in enumerate(tasks):
        work(Parent(), *task)
        ended(index)


def start(path: Path, shard: str) -> int:
    """Fork a process that does a shard; returns its id. It ends with 2 where a trial was another's."""
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        collect(CONFIG, path, workers=1, execution=Execution(shard=shard))
    except TiplError as error:
        os._exit(2 if "is being written by another" in str(error) else 3)
    except BaseException:
        os._exit(4)
    os._exit(0)


def digest(path: Path) -> dict[int, str]:
    store, found = Store.open(path), {}
    for seed in store.seeds:
        trial = store.trial(seed)
        arrays = [trial.weights(), trial.env_step, trial.obs_mean, trial.obs_var, *trial.episodes]
        whole = b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)
        found[seed] = hashlib.sha256(whole).hexdigest() if trial.complete else "incomplete"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rng, folder = random.Random(asked.seed), Path(tempfile.mkdtemp(prefix="tipl-shards-"))
    tipl.executors.run.run_in_processes = run_here  # type: ignore[assignment]
    tipl.collection.collect.COMMIT_SECONDS = 0.0
    collect(CONFIG, folder / "whole", workers=1)  # compiles what the forked processes use, too
    path, told = folder / "store", {"started": 0, "killed": 0, "left to another": 0, "other ends": 0}
    rounds, began = 0, time.monotonic()
    while rounds == 0 or len(digest(path)) < CONFIG.trials or "incomplete" in digest(path).values():
        rounds += 1
        waiting = [f"{shard}/{asked.shards}" for shard in range(1, asked.shards + 1) for _ in range(2)]
        rng.shuffle(waiting)
        ends: dict[int, float] = {}  # when a process is to be killed
        while waiting or ends:
            if waiting and len(ends) < AT_ONCE:
                time.sleep(rng.uniform(0, SPREAD_SECONDS))
                pid = start(path, waiting.pop())
                told["started"] += 1
                ends[pid] = time.monotonic() + (rng.uniform(0, LONGEST_SECONDS) if rng.random() < 0.5 else 1e9)
            for pid, until in [*ends.items()]:
                if time.monotonic() > until:
                    os.kill(pid, signal.SIGKILL)
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    del ends[pid]
                    code = os.waitstatus_to_exitcode(status)
                    told["killed"] += code == -signal.SIGKILL
                    told["left to another"] += code == 2
                    told["other ends"] += code not in (0, 2, -signal.SIGKILL)
            time.sleep(0.01)
        print(f"round {rounds}: {len(digest(path))} trials, {told}", file=sys.stderr, flush=True)
    right, made = digest(folder / "whole"), digest(path)
    records = Store.open(path).records
    facts = {
        **told,
        "rounds": rounds,
        "shards": asked.shards,
        "trials": CONFIG.trials,
        "lost": sum(seed not in made for seed in right),
        "other bits": sum(made.get(seed) != right[seed] for seed in right),
        "commits": sum(record.commits for record in records.values()),
        "commits of trials that are done once": CONFIG.trials * (CONFIG.num_iterations + 1),
        "verified": tipl.data_verify(path)["ok"],
        "split as undisturbed": Store.open(path).root.parts == Store.open(folder / "whole").root.parts,
        "seconds": round(time.monotonic() - began),
        "config": dataclasses.asdict(CONFIG),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({name: value for name, value in facts.items() if name != "config"}, indent=1))


if __name__ == "__main__":
    main()
