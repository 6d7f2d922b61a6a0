"""`tipl.collect_many` beside `tipl.collect` of each data set, and a Ray cluster beside the processes of this machine.

In: a part.  Out: a line of JSON on standard output.

zoo: several environments, each alone and all together. `beside` is the time of all together over the sum of the times
of each alone (below 1: together is faster). Rounds in turn; the median counts.
ray: the same trials on a Ray cluster of one node of two cores, and in two processes. `beside` is Ray's time over the
processes', joining the cluster included; rounds in turn.

    python benchmarks/many.py zoo --trials 8 --steps 40000
    python benchmarks/many.py ray --trials 4 --steps 60000
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
    collect_many(runs, workers=2, execution=execution)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("zoo", "ray"))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tipl-many-"))
    names = ZOO if asked.part == "zoo" else ("CartPole-v1", "HalfCheetah-v4")
    configs = [
        dataclasses.replace(default_config(name), trials=asked.trials, total_steps=asked.steps, hidden_sizes=(64, 64))
        for name in names
    ]
    there, cluster = Execution(), None
    if asked.part == "ray":
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80_000_000})
        cluster.wait_for_nodes()
        there = Execution(executor="ray", ray_address=str(cluster.address))
    rows: list[dict[str, float]] = []
    for number in range(asked.rounds):
        here = [(config, folder / f"{number}-{config.env_id}") for config in configs]
        again = [(config, out.with_name(f"{out.name}-again")) for config, out in here]
        first = sum(seconds([run], Execution()) for run in here) if asked.part == "zoo" else seconds(here, Execution())
        rows.append({"first": first, "second": seconds(again, there)})
    beside = statistics.median(row["second"] / row["first"] for row in rows)
    print(json.dumps({"part": asked.part, "beside": beside, "rounds": rows}))
    if cluster is not None:
        cluster.shutdown()


if __name__ == "__main__":
    main()
