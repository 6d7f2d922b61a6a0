"""How long a collection of a thousand stores takes to list: the bar is one second, with no store opened.

In: nothing; a manifest of stores that cannot be opened is made.  Out: the seconds of `tipl data list`, start included.

    python benchmarks/catalog.py [--stores 1000] [--trials 10]
"""

import argparse
import dataclasses
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tipl.catalog.manifest import MANIFEST, manifest
from tipl.config.presets import CollectConfig
from tipl.store.root import as_json


def many(folder: Path, stores: int, trials: int) -> None:
    """A collection whose stores are empty folders that look like stores, with settings as `tipl collect` has them."""
    shared = dataclasses.asdict(CollectConfig())
    rows = []
    for number in range(stores):
        name = f"store-{number:04}"
        config = as_json(shared | {"total_steps": 1000 * number})
        (folder / name / "trials").mkdir(parents=True)
        (folder / name / "zarr.json").touch()
        rows += [
            {
                "store": name, "name": name, "id": f"{number:032x}", "environment": "HalfCheetah-v5",
                "algorithm": "PPO", "config": config, "seed": seed, "part": "train", "weights": 71948,
                "snapshots": 1951, "episodes": 1000, "complete": True, "bytes": 400_000_000,
                "returns": {"first": -300.5, "last": 4000.25}, "address": f"{name}/trials/{seed}",
                "checksum": f"sha256:{secrets.token_hex(32)}",
            }
            for seed in range(1, trials + 1)
        ]  # fmt: skip
    (folder / MANIFEST).write_bytes(manifest("0" * 32, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time `tipl data list` on a large collection.")
    parser.add_argument("--stores", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=10, help="of each store")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "many"
        many(folder, arguments.stores, arguments.trials)
        size = (folder / MANIFEST).stat().st_size
        for _ in range(3):
            start = time.perf_counter()
            line = [sys.executable, "-m", "tipl", "data", "list", str(folder), "--json"]
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
            print(f"{arguments.stores} stores, {size / 1e6:.1f} MB: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
