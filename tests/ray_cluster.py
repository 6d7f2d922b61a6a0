"""A Ray cluster of two nodes on this machine, one of which is killed while it works.

In: a folder.  Out: data sets in it; on the last line, as JSON, what happened.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import ray
from ray.cluster_utils import Cluster

from tipl import Execution, TiplError, collect, collect_many
from tipl.executors import on_ray

sys.path.insert(0, str(Path(__file__).parent))
from test_scale import CARTPOLE, CHEETAH

_MEMORY = 80_000_000


def main(folder: Path) -> None:
    node_of: Any = {"num_cpus": 1, "object_store_memory": _MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=node_of)
    node = cluster.add_node(**node_of)
    cluster.wait_for_nodes()
    there = Execution(executor="ray", ray_address=str(cluster.address))
    collect_many([(CARTPOLE, folder / "cartpole"), (CHEETAH, folder / "cheetah")], execution=there)
    mine = on_ray.versions()
    on_ray.versions = lambda: {**mine, "numpy": "0.1"}  # type: ignore[assignment]
    said = ""
    try:
        collect(CARTPOLE, folder / "refused", execution=there)
    except TiplError as error:
        said = str(error)
    on_ray.versions = lambda: mine  # type: ignore[assignment]
    ended = threading.Event()
    long = folder / "long"
    killed = []

    def kill() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and not all((long / "trials" / seed / "zarr.json").exists() for seed in "12"):
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)
        killed.append(not ended.is_set())

    thread = threading.Thread(target=kill)
    thread.start()
    collect(dataclasses.replace(CARTPOLE, trials=2, total_steps=80_000), long, execution=there)
    ended.set()
    thread.join()
    assert not ray.is_initialized()
    cluster.shutdown()
    words = "has numpy"
    found = said[said.find(words) :].split(" ")
    told = {"killed while it ran": killed == [True], "other versions": " ".join([*found[:2], "0.1,", *found[3:5]])}
    print(json.dumps(told))
    print(said, file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
