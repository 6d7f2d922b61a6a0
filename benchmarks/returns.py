"""How fast the returns of many policies are measured, against the environment alone.

In: an experiment.  Out: a table of steps a second and of where the time goes; JSON.

    python benchmarks/returns.py --experiment inverted-pendulum --out returns.json

Environment alone: as many threads as `policy_returns` has, each with an EnvPool that is made beforehand and full all
the time; it replays actions that the same policies chose in closed loop from the same seeds, resets included, through
`envs`, which is faster than EnvPool's own `step`. Of two sizes of that pool the one with the higher median counts.
The two are taken in turn, because a machine drifts, and the ratio is the median over rounds.

Policies are the last snapshots of a short run of the paper's preset, by default long enough that an episode of
InvertedPendulum lasts its 1,000 steps, as it does for most origins of an evaluation; `--iterations 3` gives policies
that fall, whose episodes end at different times.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tipl.rl.returns
from tipl.config.experiments import experiment
from tipl.config.presets import CollectConfig
from tipl.rl.envs import chosen_backend, engine_versions, make_env
from tipl.rl.policies import layer_sizes
from tipl.rl.returns import Policies, act_frozen, policy_returns
from tipl.rl.trial_batch import TrialBatch
from tipl.rl.vector_env import VectorEnv

ITERATIONS = {"inverted-pendulum": 30, "half-cheetah": 3}  # of the run that makes the policies
BARS = {"inverted-pendulum": 0.70, "half-cheetah": 0.40}  # least share of the environment-only rate
POOL_SIZES = 32, 64
WAYS = {"mean action": False, "sampled action": True}
EPISODE_STEPS = 1000  # of the longest episode; a recording has as many


@dataclass(frozen=True)
class Recording:
    """What a full pool did in closed loop; with the same seeds it does it again."""

    seeds: list[int]
    actions: np.ndarray
    """[steps, slots, A] float64."""
    done: np.ndarray
    """[steps, slots]: which copies were reset after each step."""


def last_policies(config: CollectConfig, count: int, iterations: int) -> Policies:
    """The last snapshots of the first trials after some iterations, as many a trial as an iteration has."""
    each = config.snapshots_per_iteration
    batch = TrialBatch(config, range(1, 1 + -(-count // each)))
    snapshots = np.concatenate([batch.iterate().snapshots for _ in range(iterations)], axis=1)[:, -each:]
    mean, var = (np.repeat(moment, each, axis=0) for moment in (batch.obs_mean, batch.obs_var))
    return Policies(snapshots.reshape(-1, batch.spec.size)[:count], mean[:count], var[:count])


def record(policies: Policies, config: CollectConfig, seeds: list[int], steps: int, sampled: bool) -> Recording:
    """Run one policy a slot, in turn, by its mean or its sampled actions."""
    env = make_env(config.env_id, seeds)
    sizes = layer_sizes(env.obs_dim, config.hidden_sizes, env.action_dim)
    everyone = np.arange(len(seeds))
    actions, done = np.empty((steps, len(seeds), env.action_dim)), np.empty((steps, len(seeds)), np.bool_)
    noise = np.zeros((len(seeds), env.action_dim), np.float32)
    rng = np.random.default_rng(seeds)
    obs = env.reset(everyone)
    for step in range(steps):
        if sampled:
            rng.standard_normal(dtype=np.float32, out=noise)
        act_frozen(policies.weights, everyone % len(policies), obs, policies.obs_mean, policies.obs_var, sizes, noise,
                   actions[step])  # fmt: skip
        obs, _, terminated, truncated = env.step(actions[step])
        done[step] = terminated | truncated
        if done[step].any():
            ids = np.flatnonzero(done[step])
            obs[ids] = env.reset(ids)
    return Recording(seeds, actions, done)


def replay(env: VectorEnv, recording: Recording) -> None:
    """Environment steps and nothing else."""
    for actions, expected in zip(recording.actions, recording.done, strict=True):
        _, _, terminated, truncated = env.step(actions)
        done = terminated | truncated
        if done.any():
            env.reset(np.flatnonzero(done))
        assert (done == expected).all(), "the environments did something else than in the recording"


def environment_rate(config: CollectConfig, recordings: Sequence[Recording]) -> dict[str, float]:
    """One recording a thread, all at once, in pools that are made and reset beforehand."""
    envs = [make_env(config.env_id, recording.seeds) for recording in recordings]
    for env in envs:
        env.reset(np.arange(env.num_envs))
    with ThreadPoolExecutor(len(envs)) as pool:
        start = Clock()
        list(pool.map(replay, envs, recordings))
        return start.rate(sum(recording.done.size for recording in recordings))


def returns_rate(
    policies: Policies, config: CollectConfig, episodes: int, threads: int, sampled: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Of `policy_returns`: its rate, and the share of its threads' time in each part of it."""
    with watched() as parts:
        start = Clock()
        policy_returns(policies, config.env_id, config.hidden_sizes, episodes, sampled=sampled, threads=threads)
        rate = start.rate(int(parts.pop("steps")))
    available = rate["seconds"] * threads
    shares = {name: seconds / available for name, seconds in parts.items()}
    return rate, {**shares, "the rest, and threads without work": 1 - sum(shares.values())}


class Clock:
    """Time since it was made: by the wall, and of this process's threads on all cores."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rate(self, steps: int) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"steps": steps, "seconds": wall, "cores": cpu / wall, "rate": steps / wall, "rate_cpu": steps / cpu}


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Counts the steps of `policy_returns` and times its parts, summed over threads."""
    parts: defaultdict[str, float] = defaultdict(float)
    lock = threading.Lock()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            with lock:
                parts[name] += time.perf_counter() - start
                if name == "step":
                    parts["steps"] += len(args[0])
            return result

        return call

    def make_watched(*args: Any) -> Any:
        env = timed("make environments", make_env)(*args)
        env.step, env.reset = timed("step", env.step), timed("reset", env.reset)
        return env

    real = tipl.rl.returns.make_env, tipl.rl.returns.act_frozen
    tipl.rl.returns.make_env, tipl.rl.returns.act_frozen = make_watched, timed("act", act_frozen)
    try:
        yield parts
    finally:
        tipl.rl.returns.make_env, tipl.rl.returns.act_frozen = real


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=list(BARS), default="inverted-pendulum")
    parser.add_argument("--policies", type=int, default=24)
    parser.add_argument("--episodes", type=int, default=20, help="a policy")
    parser.add_argument("--iterations", type=int, help="of the run that the policies are taken from")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    config = experiment(args.experiment, "paper").collect
    load = os.getloadavg()[0]

    policies = last_policies(config, args.policies, args.iterations or ITERATIONS[args.experiment])
    recordings = {
        (way, size): [
            record(policies, config, [1 + slot + size * thread for slot in range(size)], EPISODE_STEPS, sampled)
            for thread in range(args.threads)
        ]
        for way, sampled in WAYS.items()
        for size in POOL_SIZES
    }
    for sampled in WAYS.values():  # compile
        policy_returns(policies, config.env_id, config.hidden_sizes, 1, sampled=sampled, threads=args.threads)

    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way, sampled in WAYS.items():
            alone = {size: environment_rate(config, recordings[way, size]) for size in POOL_SIZES}
            rate, shares = returns_rate(policies, config, args.episodes, args.threads, sampled)
            rounds[way].append({"environment": alone, "returns": rate, "shares": shares})

    bar = BARS[args.experiment]
    print(f"{args.experiment}: {args.policies} policies × {args.episodes} episodes, {args.threads} threads, "
          f"medians of {args.rounds} rounds; load before and after: {load:.1f}, {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"{'':28s}{'steps/s':>10s}{'a CPU s':>10s}{'cores':>7s}")
    ratios = {way: ratio_and_table(way, rounds[way], bar) for way in WAYS}
    if args.out:
        result = {
            "command": ["python", *sys.argv],
            "versions": engine_versions(chosen_backend(config.env_id, config.backend)),
            "settings": {name: value for name, value in vars(args).items() if name != "out"},
            "load": [load, os.getloadavg()[0]],
            "bar": bar,
            "ratio": ratios,
            "rounds": rounds,
        }
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def ratio_and_table(way: str, rounds: Sequence[dict[str, Any]], bar: float) -> dict[str, float]:
    """By the wall and by CPU time; and prints what they are made of."""
    fastest = max(POOL_SIZES, key=lambda size: statistics.median(r["environment"][size]["rate"] for r in rounds))
    ratio = {
        clock: statistics.median(r["returns"][clock] / r["environment"][fastest][clock] for r in rounds)
        for clock in ("rate", "rate_cpu")
    }
    print(way)
    for size in POOL_SIZES:
        print_rate(f"  environment, {size} copies", [r["environment"][size] for r in rounds])
    print_rate("  policy_returns", [r["returns"] for r in rounds])
    shares = {part: statistics.median(r["shares"][part] for r in rounds) for part in rounds[0]["shares"]}
    print("  " + ", ".join(f"{part} {share:.1%}" for part, share in shares.items()))
    print(f"  {ratio['rate']:.0%} of the faster environment ({ratio['rate_cpu']:.0%} by CPU time); "
          f"bar {bar:.0%}: {'met' if ratio['rate'] >= bar else 'MISSED'}")  # fmt: skip
    return ratio


def print_rate(name: str, parts: Sequence[dict[str, float]]) -> None:
    rate, cpu, cores = (statistics.median(part[key] for part in parts) for key in ("rate", "rate_cpu", "cores"))
    print(f"{name:28s}{rate:10,.0f}{cpu:10,.0f}{cores:7.2f}")


if __name__ == "__main__":
    main()
