"""How fast `tipl collect` is: against its environment alone, and against a plain PPO loop.

In: an experiment, seconds a part.  Out: a table; JSON.

    python benchmarks/collect.py --experiment inverted-pendulum --out collect.json

As many processes as `collect` would start, all at the same part at the same time, part after part, several rounds. A
ratio is taken within a round, because a machine drifts, and the median over rounds counts. All parts are at the stage
of learning at which a run spends most of its time: first every process warms its stack up (`--iterations`), until the
episodes of InvertedPendulum are long. The parts:

collect      the loop of a process of `collect` with its share of the preset's 50 trials, snapshots written to a store
             in a temporary folder. Commits count as often as `collect` makes them, however short the part is.
unsynced     the same without `fsync`, which waits until the disk has what is written, for fear of a power cut.
environment  EnvPool alone: the very steps and resets of the part before, replayed from the actions that the stack
             took, in environments of the same seeds; through `tipl.rl.envs`, which is faster than EnvPool's own `step`.
reference    one trial in the plain loop of `plain_loop.py`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from plain_loop import Reference

import tipl.collection.collect
from tipl.config.experiments import experiment
from tipl.config.presets import CollectConfig
from tipl.rl.envs import chosen_backend, engine_versions, make_env
from tipl.rl.trial_batch import Iteration, TrialBatch
from tipl.store import TrialWriter, create_store

ITERATIONS = {"inverted-pendulum": 30, "half-cheetah": 3}  # before anything is timed
SECONDS = {"inverted-pendulum": 10.0, "half-cheetah": 35.0}  # three rounds of HalfCheetah fill a chunk of the store
LEAST = {  # the bars: a share of the environment-only rate, a multiple of the reference
    "inverted-pendulum": {"of environment": 0.60, "times reference": 26.0},
    "half-cheetah": {"times reference": 3.0},
}
MOST_WRITES = 0.05  # of collection's time
PARTS = "collect", "unsynced", "environment", "reference"
Taken = list[tuple[np.ndarray, np.ndarray]]  # of each iteration, actions [S, N, A] and which copies were done [S, N]


class Timers(dict[str, float]):
    """Sums of seconds by name, and how often each was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = function(*args, **kwargs)
            self[name] = self.get(name, 0.0) + time.perf_counter() - began
            self.calls[name] += 1
            return result

        return call


class Collecting:
    """A process's share of the trials, which goes on and stops as asked."""

    def __init__(self, config: CollectConfig, seeds: Sequence[int], folder: Path) -> None:
        self.stack = TrialBatch(config, seeds)
        self.timers = Timers()
        self._writers: list[TrialWriter] = []
        for trial in range(len(seeds)):
            writer, _ = tipl.collection.collect._begin_trial(folder, self.stack, trial)
            for name in ("append", "append_episodes", "commit"):
                setattr(writer, name, self.timers.timed(name, getattr(writer, name)))
            self._writers.append(writer)

    def run(self, seconds: float) -> tuple[dict[str, Any], Taken]:
        """Whole iterations until `seconds` have gone; then the writers commit, as they do when `collect` is stopped."""
        taken: Taken = []
        lengths: list[float] = []
        asked_at, stop = -1, False

        def stopped() -> bool:  # asked twice an iteration, and both times the answer is the same
            nonlocal asked_at, stop
            if asked_at != self.stack.iteration:
                asked_at, stop = self.stack.iteration, time.perf_counter() - began > seconds
            return stop

        def on_iteration(_: object, iteration: Iteration) -> None:
            done = np.concatenate([self.stack.dones[:, 1:], self.stack.next_done[:, None]], axis=1)
            taken.append((self.stack.actions.swapaxes(0, 1).copy(), done.T.astype(np.bool_)))
            lengths.extend(length for rows in iteration.episodes for length in rows[:, 2])

        self.timers.clear()
        self.timers.calls.clear()
        began = time.perf_counter()
        group = [(seed, writer, {}) for seed, writer in zip(self.stack.seeds, self._writers, strict=True)]
        tipl.collection.collect._run_group(self.stack, group, on_iteration, stopped)
        between = time.perf_counter() - began - self.timers["commit"]
        commit = self.timers["commit"] / (self.timers.calls["commit"] / len(self._writers))  # of all trials, once
        pause = tipl.collection.collect.COMMIT_SECONDS
        return {
            "steps": sum(done.size for _, done in taken),
            "seconds": between * (pause + commit) / pause,  # with commits as far apart as in a long run
            "append seconds": self.timers["append"] + self.timers.get("append_episodes", 0.0),
            "commit share": commit / (pause + commit),
            "episode length": float(np.mean(lengths)) if lengths else None,
        }, taken


class Environment:
    """The environment of a stack without the stack."""

    def __init__(self, stack: TrialBatch) -> None:
        self._env = make_env(stack.config.env_id, stack.seeds, stack.config.backend)
        self._env.replay(stack.resets.tolist(), [[actions] for actions in stack.actions_since_reset])

    def run(self, taken: Taken) -> dict[str, Any]:
        expected = np.concatenate([done for _, done in taken])
        found = np.empty_like(expected)
        began = time.perf_counter()
        for step, actions in enumerate(chain.from_iterable(actions for actions, _ in taken)):
            _, _, terminated, truncated = self._env.step(actions)
            done = np.logical_or(terminated, truncated, out=found[step])
            if done.any():
                self._env.reset(np.flatnonzero(done))
        seconds = time.perf_counter() - began
        assert (found == expected).all(), "the environments went another way than the stack's"
        return {"steps": found.size, "seconds": seconds}


_barrier: Any = None


def _take_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def measure(
    config: CollectConfig, seeds: Sequence[int], folder: Path, iterations: int, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """All that one process measures, by round and part. It waits for the others before every part."""
    try:
        collecting = Collecting(config, seeds, folder)
        for _ in range(iterations):
            collecting.stack.iterate()
        environment, reference = Environment(collecting.stack), Reference(collecting.stack)
        found: list[dict[str, Any]] = []
        for _ in range(rounds):
            _barrier.wait()
            result, taken = collecting.run(seconds)
            _barrier.wait()
            alone = environment.run(taken)
            _barrier.wait()
            with mock.patch("os.fsync", lambda descriptor: None):
                unsynced, taken = collecting.run(seconds)
            environment.run(taken)  # which is to be where the stack is
            _barrier.wait()
            found.append({
                "collect": result, "unsynced": unsynced, "environment": alone,
                "reference": reference.run(min(seconds, 10)),
            })  # fmt: skip
        return found
    except BaseException:
        _barrier.abort()  # the others need not wait
        raise


def rates_of_round(parts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Steps a second of every part, of all processes together, and what collection's are of the others'."""
    rates = {name: sum(part[name]["steps"] / part[name]["seconds"] for part in parts) for name in PARTS}
    collect = rates["collect"]
    others = {"of environment": "environment", "times reference": "reference", "of unsynced": "unsynced"}
    return rates | {name: collect / rates[part] for name, part in others.items()}


def write_share(parts: Sequence[dict[str, Any]]) -> float:
    """Of collection's time, over all rounds, because a chunk of a large policy fills in a dozen iterations."""
    appends = sum(part["append seconds"] for part in parts) / sum(part["seconds"] for part in parts)
    return appends + statistics.mean(part["commit share"] for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=list(LEAST), default="inverted-pendulum")
    parser.add_argument("--seconds", type=float, help="at least, for a part; whole iterations are run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, help="before anything is timed")
    parser.add_argument("--trials", type=int, help="of all processes; default: as the preset has it")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    config = experiment(args.experiment, "paper").collect
    iterations = ITERATIONS[args.experiment] if args.iterations is None else args.iterations
    args.seconds = args.seconds or SECONDS[args.experiment]
    seeds = list(range(config.seed, config.seed + (args.trials or config.trials)))
    shares = [seeds[i :: args.workers] for i in range(args.workers)]
    load = os.getloadavg()[0]

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"  # for the processes to come, as `collect` has it
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.workers, context, _take_barrier, (context.Barrier(args.workers),)) as pool,
    ):
        create_store(Path(folder))
        futures = [
            pool.submit(measure, config, share, Path(folder), iterations, args.seconds, args.rounds) for share in shares
        ]
        processes = [future.result() for future in futures]

    by_round = [[process[i] for process in processes] for i in range(args.rounds)]
    rounds = [rates_of_round(parts) for parts in by_round]
    collected = [part["collect"] for parts in by_round for part in parts]
    median = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    median["writes"] = write_share(collected)
    median["unsynced writes"] = write_share([part["unsynced"] for parts in by_round for part in parts])
    length = statistics.mean(part["episode length"] for part in collected if part["episode length"])
    print(f"{args.experiment}: {len(seeds)} trials in {args.workers} processes, from iteration {iterations + 1} on")
    print(f"(episodes of {length:.0f} steps); medians of {args.rounds} rounds; load before and after: "
          f"{load:.1f}, {os.getloadavg()[0]:.1f}")  # fmt: skip
    print_table(median, args.experiment)
    if args.out:
        versions = engine_versions(chosen_backend(config.env_id, config.backend))
        result = {
            "command": ["python", *sys.argv],
            "versions": {**versions, "torch": torch.__version__, "numpy": np.__version__},
            "settings": {name: value for name, value in vars(args).items() if name != "out"},
            "load": [load, os.getloadavg()[0]],
            "episode_length": length,
            "bars": {"least": LEAST[args.experiment], "most": {"writes": MOST_WRITES}},
            "median": median,
            "rounds": rounds,
            "processes": processes,
        }
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def print_table(median: dict[str, float], name: str) -> None:
    for part in PARTS:
        print(f"{part:20s}{median[part]:12,.0f} steps/s")
    for ratio in ("of environment", "times reference"):
        bar = LEAST[name].get(ratio)
        print(f"{ratio:20s}{median[ratio]:12.3f}  {_verdict('≥', bar, bar is None or median[ratio] >= bar)}")
    print(f"{'of unsynced':20s}{median['of unsynced']:12.3f}")
    print(f"{'unsynced writes':20s}{median['unsynced writes']:12.3f}")
    print(f"{'writes':20s}{median['writes']:12.3f}  {_verdict('≤', MOST_WRITES, median['writes'] <= MOST_WRITES)}")


def _verdict(sign: str, bar: float | None, met: bool) -> str:
    return "" if bar is None else f"{sign} {bar:.3g} {'met' if met else 'MISSED'}"


if __name__ == "__main__":
    main()
