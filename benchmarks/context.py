"""What `tipl collect --context` costs: seconds and bytes, with and without context tokens.

In: environments, iterations.  Out: a table of ratios; JSON.

    python benchmarks/context.py --out context.json

The same trial is collected with tokens and without, in turn, in one process. A ratio is taken within a round, because a
machine drifts, and the median over rounds counts. Seconds are those of the processor from the first iteration to the
last commit. A token looks back 20 iterations: with fewer than some 60 the first, cheaper ones weigh too much.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tipl.collection.collect import run_stack
from tipl.collection.settings import default_config
from tipl.config.presets import CollectConfig
from tipl.rl.envs import chosen_backend, engine_versions
from tipl.store import Store, create_store, data_info

ENVIRONMENTS = "HalfCheetah-v4", "InvertedPendulum-v4", "CartPole-v1"


def measure(config: CollectConfig) -> dict[str, float]:
    """Collect one trial; its seconds of the processor, and the bytes of its store."""
    with tempfile.TemporaryDirectory() as folder:
        path = create_store(Path(folder) / "store").path
        began = time.process_time()
        run_stack(config, path, [config.seed], lambda *_: None)
        seconds = time.process_time() - began
        assert Store.open(path).trial(config.seed).num_tokens == (5 if config.context else 0)
        return {"seconds": seconds, "bytes": float(data_info(path)["disk_bytes"])}


def compare(config: CollectConfig, rounds: int) -> dict[str, Any]:
    """Measure with tokens and without, round after round."""
    kinds = {"plain": config, "context": dataclasses.replace(config, context=True)}
    short = 2 * config.ppo.batch_size
    for kind in kinds.values():
        measure(dataclasses.replace(kind, total_steps=short))  # compiles
    found = [{name: measure(kind) for name, kind in kinds.items()} for _ in range(rounds)]
    ratios = {
        key: statistics.median(each["context"][key] / each["plain"][key] for each in found)
        for key in ("seconds", "bytes")
    }
    return {"rounds": found, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", nargs="+", default=list(ENVIRONMENTS))
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    load, results = os.getloadavg()[0], {}
    print(f"{'environment':22s}{'seconds':>10s}{'bytes':>10s}   with tokens ÷ without, medians of {args.rounds} rounds")
    for env_id in args.env_id:
        config = default_config(env_id)
        steps = args.iterations * config.ppo.batch_size
        config = dataclasses.replace(config, trials=1, total_steps=steps, hidden_sizes=tuple(args.hidden_sizes))
        results[env_id] = compare(config, args.rounds)
        results[env_id]["versions"] = engine_versions(chosen_backend(env_id, config.backend))
        ratios = results[env_id]["ratios"]
        print(f"{env_id:22s}{ratios['seconds']:10.2f}{ratios['bytes']:10.2f}", flush=True)
    if args.out:
        settings = {name: value for name, value in vars(args).items() if name != "out"}
        found = {"command": ["python", *sys.argv], "settings": settings, "load": [load, os.getloadavg()[0]]}
        args.out.write_text(json.dumps({**found, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
