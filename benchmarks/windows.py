"""Training of the causal model: memory and seconds a step, with windows in memory and in files.

In: a number of stores.  Out: OUT, JSON.

The stores are random walks. `held` keeps all windows in memory, as small trainings do; `streamed` reads every batch
from files. Both train the same model to the bit. Seconds of a step are told for rounds of the two in turn, in one
process, on a few stores; memory is that of a process of its own which trains on all stores (its resident set, without
what the system caches of files).

    OMP_NUM_THREADS=1 python benchmarks/windows.py --stores 40 --out windows.json
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tipl import CausalTrainConfig, random_walk, train
from tipl.training import Displacements, Worker, displacement
from tipl.training.lessons import lessons
from tipl.training.loop import Training

CONFIG = CausalTrainConfig(steps=100, validate_every=100, warmup_steps=10)
ROUNDS, STEPS, HELD_STORES = 11, 15, 2


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB


def timed(task: Displacements, folder: Path) -> Any:
    training = Training(task, CONFIG, folder, {}, False, lambda *_: None)
    task.model.train()
    training._update()

    def run() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            training._update()
        return (time.perf_counter() - began) / STEPS

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=int, default=40)
    parser.add_argument("--dim", type=int, default=500)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only-train", type=Path, help="what the process does whose memory is told")
    asked = parser.parse_args()
    if asked.only_train:
        stores = sorted(asked.only_train.glob("store-*"))
        train(stores, asked.only_train / f"model-{len(stores)}", CONFIG)
        print(json.dumps({"peak_gb": peak()}))
        return
    folder = Path(tempfile.mkdtemp(prefix="tipl-windows-"))
    os.environ["TIPL_CACHE"] = str(folder / "cache")
    stores = [folder / f"store-{number:03}" for number in range(asked.stores)]
    for number, store in enumerate(stores):
        random_walk(store, trials=8, snapshots=1100, dim=asked.dim, seed=1 + 8 * number, drift=1.0)
    run = [sys.executable, __file__, "--only-train", str(folder), "--out", "none"]
    began = time.perf_counter()
    told = subprocess.run(run, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - began
    memory = json.loads(told.stdout.splitlines()[-1])["peak_gb"]
    splits = {store: [1 + 8 * number + k for k in range(5)] for number, store in enumerate(stores[:HELD_STORES])}
    files = lessons(splits, CONFIG.windows, CONFIG, Worker())
    runs = {}
    for name, most in (("held", 1 << 40), ("streamed", 0)):
        displacement._HELD["cpu"] = most
        torch.manual_seed(0)
        runs[name] = timed(Displacements(files, files, CONFIG), folder / name)
    rows = [{name: run() for name, run in runs.items()} for _ in range(ROUNDS)]
    found = {
        "stores": asked.stores,
        "windows": asked.stores * len(files[0]),
        "cache_gb": sum(path.stat().st_size for path in (folder / "cache" / "windows").iterdir()) / 1e9,
        "peak_gb": memory,
        "seconds": whole,
        "step_seconds": {name: statistics.median(row[name] for row in rows) for name in runs},
        "streamed_beside_held": statistics.median(row["streamed"] / row["held"] for row in rows),
    }
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
