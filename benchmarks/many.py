"""`tipl.collect_many` beside `tipl.collect` of each data set, and a Ray cluster beside the processes of this machine.

In: a part.  Out: a line of JSON on standard output.

zoo: several environments, each alone and all together. `beside` is the time of all together over the sum of the times
of each alone (below 1: together is faster). Rounds in turn; the median counts.
ray: the same trials by `--executor ray` on a cluster that runs already, and by processes. `beside` is Ray's seconds
over the processes', rounds in turn.

    python benchmarks/many.py zoo --trials 8 --steps 40000
    python benchmarks/many.py ray --steps 400000
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

from tipl import CollectConfig, Execution, collect_many
from tipl.collection.settings import default_config

ZOO = "CartPole-v1", "InvertedPendulum-v4", "Hopper-v4", "HalfCheetah-v4"


def seconds(runs: list[tuple[CollectConfig, Path]], execution: Execution) -> float:
    began = time.perf_counter()
    collect_many(runs, execution=execution)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("zoo", "ray"))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    folder, rows = Path(tempfile.mkdtemp(prefix="tipl-many-")), []
    names = ZOO if asked.part == "zoo" else ("CartPole-v1", "HalfCheetah-v4")
    configs = [
        dataclasses.replace(default_config(name), trials=asked.trials, total_steps=asked.steps, hidden_sizes=(64, 64))
        for name in names
    ]
    for number in range(-1, asked.rounds):  # the first one compiles
        here = [(config, folder / f"{number}-{config.env_id}") for config in configs]
        again = [(config, out.with_name(f"{out.name}-again")) for config, out in here]
        if asked.part == "zoo":
            alone = [seconds([run], Execution()) for run in here]
            rows.append({"alone": sum(alone), "together": seconds(again, Execution())})
        else:
            rows.append({"here": seconds(here, Execution()), "ray": seconds(again, Execution(executor="ray"))})
    first, second = rows[0]
    beside = statistics.median(row[second] / row[first] for row in rows[1:])
    print(json.dumps({"part": asked.part, "beside": beside, "rounds": rows[1:]}))


if __name__ == "__main__":
    main()
