"""What would a million trials take? Sizes and times of small things, measured; schedules, simulated.

In: nothing.  Out: OUT, JSON.

Measured: files, bytes and requests of one trial of HalfCheetah-v4 with two layers of 256 (72k weights); what it costs
to note a trial in the root of a store that has many. Simulated: how long cores wait at the end,
by the functions that deal shards and order tasks in `tipl collect` (`dealt`, `tasks_of`), with durations drawn from
those that were recorded, and what a lost node costs.

    python studies/plan.py --out results/scale/plan.json
    python studies/plan.py --bucket s3://BUCKET --out requests.json    # of commits there alone; "files": requests
"""

import argparse
import heapq
import io
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tipl.collection.collect
import tipl.store.root
from tipl import CollectConfig, Store, create_store
from tipl.collection.collect import COMMIT_SECONDS, run_stack
from tipl.collection.runs import tasks_of
from tipl.config.execution import dealt
from tipl.remote.objects import client
from tipl.rl.trial_batch import Iteration
from tipl.store.root import Root
from tipl.store.write import TrialWriter

MILLION = 1_000_000
FULL_STEPS = 2_000_000
# Steps a second of one core, eight trials in a process (this study's machine, 2026-11-29).
RATES = {"CartPole-v1 64-64": 117e3, "InvertedPendulum-v4 8-8": 28e3, "HalfCheetah-v4 64-64": 15e3,
         "HalfCheetah-v4 256-256": 4.6e3}  # fmt: skip
COMMITS = 1, 2, 3, 4, 12  # after which iterations the one trial commits, beside the first and the last state
SPREAD = 0.15  # standard deviation of the logarithm of a trial's duration


def one_trial(place: Path | str) -> dict[str, Any]:
    """Files and bytes of a trial of 72k weights at a path or an address, and of its commits; of a full run and of a
    commit once a minute by the layout."""
    config = CollectConfig(env_id="HalfCheetah-v4", hidden_sizes=(256, 256), total_steps=13 * 2048, trials=1)
    create_store(place)
    written: list[int] = []
    commits: list[dict[str, int]] = []
    replaced, commit = os.replace, TrialWriter.commit

    def counted(source: Any, target: Any) -> None:
        written.append(os.stat(source).st_size)
        replaced(source, target)

    def asked(params: Any, **_: Any) -> None:
        body = params["body"]
        written.append(body.getbuffer().nbytes if isinstance(body, io.BytesIO) else len(body))

    def committed(self: TrialWriter, *args: Any, **how: Any) -> None:
        commit(self, *args, **how)
        commits.append({"files": len(written), "bytes": sum(written)})
        written.clear()

    def after(_: Any, done: Iteration) -> None:
        tipl.collection.collect.COMMIT_SECONDS = 0.0 if done.number + 1 in COMMITS else math.inf

    there = isinstance(place, str)
    if there:
        client().meta.events.register("before-call.s3", asked)
    else:
        os.replace = counted  # type: ignore[assignment]
    TrialWriter.commit = committed  # type: ignore[method-assign]
    tipl.collection.collect.COMMIT_SECONDS = 0.0
    try:
        run_stack(config, place, [1], after)
    finally:
        os.replace, TrialWriter.commit = replaced, commit  # type: ignore[method-assign]
        tipl.collection.collect.COMMIT_SECONDS = COMMIT_SECONDS
    store = Store.open(place)
    rows, each = store.records[1].chunk_rows["weights"], config.num_snapshots // 13

    def chunked(first: int, last: int) -> int:
        """Snapshots in the chunks that a commit of these iterations writes, an unfinished one from its beginning."""
        return 1 + last * each - (1 + (first - 1) * each) // rows * rows

    one, eight = commits[2], commits[5]
    kept = (eight["bytes"] - one["bytes"]) / (chunked(5, 12) - chunked(2, 2))
    minute = COMMIT_SECONDS * RATES["HalfCheetah-v4 256-256"] / config.ppo.batch_size * each
    found: dict[str, Any] = {
        "weights": store.trial(1).spec.size,
        "snapshots of an iteration": each,
        "commit of an iteration": one,
        "commit of eight iterations": eight,
        "commit of a minute": {
            "snapshots": round(minute),
            "files": round(eight["files"] - math.ceil(chunked(5, 12) / rows) + minute / rows + 1),
            "bytes": round(one["bytes"] + (minute + rows / 2 - chunked(2, 2)) * kept),
        },
    }
    if not there:
        found |= of_a_full_run(config, store)
    return found


def of_a_full_run(config: CollectConfig, store: Store) -> dict[str, int]:
    """Snapshots, bytes and files of a trial of FULL_STEPS, by those of a short one."""
    files = [path for path in (store.path / "trials" / "1").rglob("*") if path.is_file()]
    weights = [path.stat().st_size for path in (store.path / "trials" / "1" / "weights").rglob("*") if path.is_file()]
    full = replace(config, total_steps=FULL_STEPS).num_snapshots
    bytes_a_snapshot = sum(weights) / config.num_snapshots
    chunks = -(-full // store.records[1].chunk_rows["weights"])
    return {
        "snapshots of a full run": full,
        "bytes a snapshot": round(bytes_a_snapshot),
        "bytes of a full run": round(bytes_a_snapshot * full),
        "files of a full run": chunks + len(files) - len(weights) + 1,
    }


def root_costs(folder: Path, counts: Sequence[int]) -> list[dict[str, float]]:
    """What one more complete trial costs in the root of a store that has so many."""
    rows = []
    for count in counts:
        path = folder / str(count)
        create_store(path)
        seeds = range(1, count + 1)
        filled = replace(
            Root.read(path), parts=dict.fromkeys(seeds, "train"), trials=dict.fromkeys(seeds, f"sha256:{'0' * 64}")
        )
        filled.write(path)
        size, seconds = (path / "zarr.json").stat().st_size, []
        try:
            for seal in range(3):
                began = time.perf_counter()
                with tipl.store.root.locked(path):
                    root = Root.read(path)
                    replace(root, trials={**root.trials, 1: f"sha256:{seal:064}"}).write(path)
                seconds.append(time.perf_counter() - began)
        except tipl.TiplError as error:
            rows.append({"trials": count, "bytes": size, "refused": str(error)[-90:]})
            continue
        rows.append({"trials": count, "bytes": size, "seconds": round(statistics.median(seconds), 4)})
    return rows


def makespan(durations: Sequence[float], order: Sequence[int], cores: int) -> float:
    """When the last of these tasks ends, taken in this order by cores that are free."""
    free = [0.0] * cores
    for task in order:
        heapq.heapreplace(free, free[0] + durations[task])
    return max(free)


def schedules(rng: np.random.Generator) -> dict[str, Any]:
    """Busy shares of cores: a zoo of 40 data sets on two cores, and a million trials on ten thousand."""
    rates = np.array([*RATES.values()])
    each = FULL_STEPS / 10 / rates[rng.integers(0, len(rates), 40)]  # seconds of a trial of each data set
    noise = rng.lognormal(0, SPREAD, (40, 8))
    found: dict[str, Any] = {}
    guess = each * rng.lognormal(0, 0.7, 40)  # the cost that orders tasks is off by a factor of two
    for name, costs in {"costs known": each, "costs off by two": guess}.items():
        tasks = tasks_of(costs.tolist(), [range(8)] * 40, 2)
        durations = [float(sum(each[number] * noise[number, trial] for trial in trials)) for number, trials in tasks]
        end = makespan(durations, range(len(tasks)), 2)
        found[f"zoo of 40 × 8 on 2 cores, {name}"] = round(sum(durations) / (2 * end), 4)
    one_by_one = 0.0
    for number in range(40):
        halves = [float(sum(each[number] * noise[number, i::2])) for i in range(2)]
        one_by_one += max(halves)
    found["the same, one data set after another"] = round(float((each[:, None] * noise).sum()) / (2 * one_by_one), 4)
    durations = FULL_STEPS / RATES["HalfCheetah-v4 256-256"] * rng.lognormal(0, SPREAD, MILLION)
    shares = dealt([1.0] * MILLION, 10_000)
    static = max(float(durations[share].sum()) for share in shares)
    queued = makespan(durations.tolist(), range(MILLION), 10_000)
    ideal = float(durations.sum()) / 10_000
    found["a million on 10,000 cores as shards"] = round(ideal / static, 4)
    found["a million on 10,000 cores from one queue"] = round(ideal / queued, 4)
    found["days of a million on 10,000 cores"] = round(ideal / 86_400, 1)
    found["core seconds lost with a node of 64 cores, on average"] = 64 * COMMIT_SECONDS / 2
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bucket", metavar="s3://BUCKET", help="count the requests of commits there, and nothing else")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tipl-plan-"))
    found = (
        {"trial": one_trial(f"{asked.bucket}/one")}
        if asked.bucket
        else {
            "trial": one_trial(folder / "one"),
            "root": root_costs(folder / "root", (10, 100, 1000, 10_000, 40_000, 100_000)),
            "schedules": schedules(np.random.default_rng(0)),
        }
    )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
