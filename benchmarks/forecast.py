"""What a causal forecast costs in a live run.

In: nothing; a random path of P weights in MuJoCo-sized tensors, or of a small policy.  Out: OUT, JSON: milliseconds of
five snapshots taken in and of a forecast, of the model that comes with the package.

    OMP_NUM_THREADS=1 python benchmarks/forecast.py --out results/train/forecast.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tipl.forecasting.trained import CausalForecaster
from tipl.representation.windows import WINDOW
from tipl.rl.policies import policy_spec
from tipl.store.spec import ParamSpec

POLICIES = {"71,948 weights": policy_spec(17, (256, 256), 6), "122 weights": policy_spec(4, (8, 8), 1)}
assert [spec.size for spec in POLICIES.values()] == [71_948, 122]


def milliseconds(run: Callable[[], object], times: int) -> dict[str, float]:
    run()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        took.append(1e3 * (time.perf_counter() - began))
    return {"median": round(statistics.median(took), 3), "least": round(min(took), 3)}


def measure(forecaster: CausalForecaster, spec: ParamSpec, times: int) -> dict[str, dict[str, float]]:
    rng, total = np.random.default_rng(0), spec.size
    path = rng.standard_normal((WINDOW + 4, total), dtype=np.float32).cumsum(axis=0)
    run = forecaster.follow(0, path[0])
    run.extend(path[1:])
    more = path[-5:]
    return {
        "five snapshots taken in": milliseconds(lambda: run.extend(more), times),
        "forecast of one horizon": milliseconds(lambda: run.forecast(4, (30,)), times),
        "forecast of two horizons": milliseconds(lambda: run.forecast(4, (5, 100)), times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    took = {}
    for name, spec in POLICIES.items():
        took[name] = measure(CausalForecaster.from_pretrained(shapes=spec.shapes), spec, asked.times)
    found = {
        "milliseconds": took,
        "threads": 1,
        "load": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
