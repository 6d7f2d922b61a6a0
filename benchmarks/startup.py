"""How long a user waits before anything happens: `import tipl`, `tipl --help`, reading a store.

In: nothing, or a store.  Out: milliseconds by the wall and by the CPU, and multiples of `python -c pass`; JSON.

    python benchmarks/startup.py --out results/startup.json

Every command is run in a process of its own, all in turn, round after round: a machine drifts. Medians over rounds.
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

import tipl


def commands(store: Path) -> dict[str, list[str]]:
    python = sys.executable
    return {
        "python -c pass": [python, "-c", "pass"],
        "import tipl": [python, "-c", "import tipl"],
        "tipl --help": [python, "-m", "tipl", "--help"],
        "import numpy": [python, "-c", "import numpy"],
        "read a store": [python, "-c", f"import tipl; tipl.Store.open({str(store)!r}).trial(1).weights()"],
    }


def took(command: list[str]) -> tuple[float, float]:
    """Milliseconds by the wall and of CPU, of the child and what it starts."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1e3 * wall, 1e3 * cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="with a trial 1 [a small one, made here]")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="a JSON file")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        tried = commands(asked.store or tipl.random_walk(Path(folder) / "store", trials=1, snapshots=100))
        rounds = [{name: took(command) for name, command in tried.items()} for _ in range(asked.rounds)]
    median = {name: [statistics.median(r[name][clock] for r in rounds) for clock in range(2)] for name in tried}
    base = median["python -c pass"]
    print(f"medians of {asked.rounds} rounds, load {load:.1f} before; ms and multiples of `python -c pass`")
    for name, (wall, cpu) in median.items():
        print(f"{name:16s} wall {wall:6.0f} {wall / base[0]:6.1f} ×   CPU {cpu:6.0f} {cpu / base[1]:6.1f} ×")
    if asked.out:
        found = {name: {"wall_ms": wall, "cpu_ms": cpu} for name, (wall, cpu) in median.items()}
        asked.out.write_text(json.dumps({"load": load, "rounds": asked.rounds, "median": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
