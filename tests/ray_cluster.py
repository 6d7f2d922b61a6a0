"""A Ray cluster of two nodes on this machine, each with a cache of its own, one of which is killed while it works.

In: a folder.  Out: data sets in it, and one in an object store; on the last line, as JSON, what happened.
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

import pytest
import ray
from ray.cluster_utils import Cluster

from tipl import Execution, TiplError, accelerate, collect, collect_many, evaluate, evaluate_many
from tipl.evaluation import forecast_returns
from tipl.executors import on_ray

sys.path.insert(0, str(Path(__file__).parent))
from servers import s3
from test_scale import CARTPOLE, CHEETAH, COMPARED, JUDGED, digests

_MEMORY = 80_000_000


def not_here(*_: Any, **__: Any) -> Any:
    raise AssertionError("policies are run on the nodes")


def main(folder: Path, bucket: str) -> None:
    first, second = (
        {"num_cpus": 1, "object_store_memory": _MEMORY, "env_vars": {"TIPL_CACHE": str(folder / f"cache-{name}")}}
        for name in ("first", "second")
    )
    cluster = Cluster(initialize_head=True, head_node_args=first)
    node = cluster.add_node(**second)
    cluster.wait_for_nodes(timeout=200)
    there = Execution(executor="ray", ray_address=str(cluster.address))
    outs = [(CARTPOLE, folder / "cartpole"), (CHEETAH, folder / "cheetah"), (CARTPOLE, f"{bucket}/cartpole")]
    *_, in_bucket = collect_many(outs, execution=there)
    own, forecast_returns.policy_returns = forecast_returns.policy_returns, not_here
    evaluate(folder / "cartpole", folder / "judged", JUDGED, execution=there)
    forecast_returns.policy_returns = own
    evaluate_many([folder / "cartpole", folder / "cheetah"], folder / "many", JUDGED, returns=False, execution=there)
    accelerate(COMPARED, folder / "compared", execution=there)
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
        until = time.monotonic() + 300
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
    told |= {"in the bucket": digests(in_bucket), "caches": [path.name for path in sorted(folder.glob("cache-*"))]}
    print(json.dumps(told))
    print(said, file=sys.stderr)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch, s3(patch) as bucket:
        main(Path(sys.argv[1]), bucket)
