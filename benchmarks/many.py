"""How busy `tipl.collect_many` keeps two cores, and what a Ray cluster costs beside the processes of this machine.

In: a part.  Out: a line of JSON on standard output. Both parts want two free cores, and take about five minutes.

zoo: the 40 environments of the zoo whose steps cost least, 8 trials each, in one call of two processes. `busy` is the
time that this would take at the rates of each environment alone, over the time that it takes. A rate is that of two
processes of four trials each, without the first iteration and the last one: what a call needs to start, to make
environments and to end is no part of it. `preparing` is the seconds of the call before any trial is begun, which do not
grow with the steps. Rates and calls in turn: rates, call, call, rates.
ray: the same trials on a Ray cluster of one node of two cores, its daemons and joining it included, and in two
processes without it; a short call and a long one, each in turn: here, there, there, here. `beside` is the time there
over that here, of the long call, which takes `minutes` here. `more` is the seconds that Ray adds to a call. Where it
adds as many to the long call as to the short one, a call of N minutes takes 1 + more / (60 N) times as long.

    python benchmarks/many.py zoo
    python benchmarks/many.py ray
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tipl.collection.collect
from tipl import CollectConfig, Execution, collect_many, create_store
from tipl.collection.collect import run_stack
from tipl.collection.settings import default_config
from tipl.processes import Numbers, Parent, run_in_processes

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
from zoo import config_of, rates, runs_of, takes  # pyright: ignore[reportMissingImports]

SHORT = 8192  # steps of a trial in the short call


def seconds(runs: Sequence[tuple[CollectConfig, Path]], execution: Execution) -> float:
    began = time.perf_counter()
    collect_many(runs, workers=2, execution=execution)
    return time.perf_counter() - began


def cheapest(count: int, trials: int, steps: int) -> list[CollectConfig]:
    """The environments whose steps cost least, each with its first settings."""
    first = {run.env_id: run for run in reversed(runs_of("small")) if run.algorithm == "PPO"}
    known = rates()
    runs = sorted(first.values(), key=lambda run: takes(run, known)[0] / run.steps / run.trials)[:count]
    return [dataclasses.replace(config_of(run), trials=trials, total_steps=steps) for run in runs]


def alone(parent: Parent, config: CollectConfig, out: Path) -> None:
    """Collect trials, and tell how long one iteration of all takes: not the first, and not the last, which commits."""
    create_store(out)
    ends: list[float] = []
    run_stack(config, out, config.seeds, lambda *_: ends.append(time.perf_counter()))
    parent.tell([(ends[-2] - ends[0]) / (len(ends) - 2)])


def ideal(configs: Sequence[CollectConfig], folder: Path) -> float:
    """Seconds that all trials take at the rates of each environment alone, half of its trials on each of two cores."""
    found: list[float] = []
    half = configs[0].trials // 2
    steps = max(config.ppo.batch_size for config in configs) * 3
    tasks = [
        (dataclasses.replace(config, trials=half, seed=seed, total_steps=steps), folder / f"{number}-{seed}")
        for number, config in enumerate(configs)
        for seed in (1, 1 + half)
    ]

    def heard(task: int, told: Numbers) -> None:
        found.append(told[0] * configs[task // 2].num_iterations / 2)

    run_in_processes(alone, tasks, 2, [config.env_id for config, _ in tasks], heard)
    assert len(found) == len(tasks)
    return sum(found)


def zoo(asked: Any, folder: Path) -> dict[str, Any]:
    configs = cheapest(asked.environments, asked.trials, asked.steps or 10_240)
    began, run_tasks = [0.0], tipl.collection.collect.run_tasks

    def noted(*task: Any) -> None:
        began[0] = time.perf_counter()
        run_tasks(*task)

    tipl.collection.collect.run_tasks = noted
    ideals, calls = [], []
    for number, what in enumerate(["rates", "call", "call", "rates"] * (asked.rounds // 2)):
        here = folder / str(number)
        if what == "rates":
            ideals.append(ideal(configs, here))
            print(f"at the rates alone: {ideals[-1]:.1f} s", file=sys.stderr, flush=True)
        else:
            start = time.perf_counter()
            took = seconds([(config, here / str(place)) for place, config in enumerate(configs)], Execution())
            calls.append({"seconds": took, "preparing": began[0] - start})
            print(f"call: {took:.1f} s", file=sys.stderr, flush=True)
    alone = statistics.mean(ideals)
    return {
        "environments": len(configs), "trials": asked.trials, "steps": configs[0].total_steps,
        "busy": statistics.median(alone / call["seconds"] for call in calls),
        "busy once prepared": statistics.median(alone / (call["seconds"] - call["preparing"]) for call in calls),
        "at the rates alone": ideals, "calls": calls,
    }  # fmt: skip


def ray(asked: Any, folder: Path) -> dict[str, Any]:
    took: dict[str, list[float]] = {}

    def measured(length: str, place: str, execution: Execution) -> None:
        each = took.setdefault(f"{length} {place}", [])
        steps = (asked.steps or 420_000) if length == "long" else SHORT
        runs = [
            (dataclasses.replace(default_config(name), trials=4, total_steps=steps, hidden_sizes=(64, 64)),
             folder / f"{length}-{place}-{len(each)}-{name}")
            for name in ("CartPole-v1", "HalfCheetah-v4")
        ]  # fmt: skip
        each.append(seconds(runs, execution))

    measured("first", "here", Execution())  # what is read from the disk once
    for _ in range(asked.rounds // 2):
        measured("short", "here", Execution())
        measured("long", "here", Execution())
        with cluster() as there:
            for length in ("first", "short", "long", "short", "long"):
                measured(length, "there", there)
        measured("short", "here", Execution())
        measured("long", "here", Execution())
    middle = {name: statistics.median(each) for name, each in took.items()}
    return {
        "beside": middle["long there"] / middle["long here"],
        "minutes": middle["long here"] / 60,
        "more": {length: middle[f"{length} there"] - middle[f"{length} here"] for length in ("short", "long")},
        "seconds": took,
    }


@contextlib.contextmanager
def cluster() -> Iterator[Execution]:
    """One node of two cores. Its daemons are gone afterwards."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80_000_000})
    found.wait_for_nodes(timeout=120)
    try:
        yield Execution(executor="ray", ray_address=str(found.address))
    finally:
        found.shutdown()


def main() -> None:
    parts: dict[str, Callable[[Any, Path], dict[str, Any]]] = {"zoo": zoo, "ray": ray}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--environments", type=int, default=40)
    parser.add_argument("--trials", type=int, default=8, help="of each environment, in `zoo`")
    parser.add_argument("--steps", type=int, help="of a trial [10,240 in `zoo`, 420,000 in the long call of `ray`]")
    parser.add_argument("--rounds", type=int, default=2, help="a multiple of 2")
    asked = parser.parse_args()
    found = parts[asked.part](asked, Path(tempfile.mkdtemp(prefix="tipl-many-")))
    print(json.dumps({"part": asked.part, **found}))


if __name__ == "__main__":
    main()
