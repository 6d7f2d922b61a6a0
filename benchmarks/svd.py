"""Time and memory of the exact temporal SVD, beside its Gram product alone and beside other ways to an SVD.

In: T, P and d of one random-walk trial.  Out: a table, and JSON with what is needed to repeat it.

Each method runs in a process of its own, one after the other in one run: its time is that of the call, its memory the
peak of resident memory of the whole process, trial and libraries included, and how far that lies above what it held
with the trial in memory. `gram` is the least that the method of snapshots can cost: the float64 products of the blocks
of columns, without making the blocks. The bar for a HalfCheetah trial (4,881 × 71,948): `ours` in at most 2 × the time
of `gram` and in 4 GB.

    python benchmarks/svd.py
    python benchmarks/svd.py --half-cheetah --methods gram ours randomized --out svd.json
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tipl.representation import trial_basis
from tipl.representation.linear_algebra import _BLOCK

HALF_CHEETAH = 4_881, 71_948


def random_walk(count: int, size: int, seed: int = 0) -> np.ndarray:
    """A driftless walk with steps that shrink to zero, as an annealed learning rate makes them, float32 [T, P]."""
    rng = np.random.default_rng(seed)
    weights_TP = np.empty((count, size), np.float32)
    weights_TP[0] = 0.1 * rng.standard_normal(size, np.float32)
    for t in range(1, count):
        weights_TP[t] = weights_TP[t - 1] + 1e-3 * (1 - t / count) * rng.standard_normal(size, np.float32)
    return weights_TP


def gram_product(weights_TP: np.ndarray, dim: int) -> tuple[float, np.ndarray | None]:
    """Seconds of the symmetric products alone, and no singular values."""
    count, size = weights_TP.shape
    width = max(1, _BLOCK // count)
    gram_TT = np.zeros((count, count))
    seconds = 0.0
    for start in range(0, size, width):
        block = weights_TP[:, start : start + width].astype(np.float64)
        began = time.perf_counter()
        gram_TT += block @ block.T
        seconds += time.perf_counter() - began
    return seconds, None


def ours(weights_TP: np.ndarray, dim: int) -> tuple[float, np.ndarray | None]:
    began = time.perf_counter()
    _, basis = trial_basis(weights_TP, dim)
    return time.perf_counter() - began, basis.scale_D


def numpy_svd(weights_TP: np.ndarray, dim: int) -> tuple[float, np.ndarray | None]:
    began = time.perf_counter()
    _, values, _ = np.linalg.svd(weights_TP.astype(np.float64), full_matrices=False)
    return time.perf_counter() - began, values[:dim]


def randomized(weights_TP: np.ndarray, dim: int) -> tuple[float, np.ndarray | None]:
    from sklearn.utils.extmath import randomized_svd

    began = time.perf_counter()
    _, values, _ = randomized_svd(weights_TP, dim, random_state=0)
    return time.perf_counter() - began, values


METHODS: dict[str, Callable[[np.ndarray, int], tuple[float, np.ndarray | None]]] = {
    "gram": gram_product,
    "ours": ours,
    "numpy": numpy_svd,
    "randomized": randomized,
}


def measure(method: str, trial: Path, dim: int) -> dict[str, object]:
    """Run one method on the trial in this process."""
    weights_TP = np.load(trial)
    METHODS[method](weights_TP[:64, :64].copy(), 4)  # imports and starts the threads
    before = _peak_gigabytes()
    seconds, values = METHODS[method](weights_TP, dim)
    peak = _peak_gigabytes()
    return {
        "seconds": seconds,
        "gigabytes": peak,
        "gigabytes_above_trial": peak - before,
        "singular_values": None if values is None else values.tolist(),
    }


def compare(count: int, size: int, dim: int, methods: list[str]) -> dict[str, dict]:
    """Every method in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.npy"
        np.save(trial, random_walk(count, size))
        results = {}
        for method in methods:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results[method] = pool.apply(measure, (method, trial, dim))
            print(f"{method}: {results[method]['seconds']:.2f} s", flush=True)
    return results


def table(results: dict[str, dict]) -> str:
    """Seconds, times the Gram product, memory, and the largest relative difference of a singular value from ours."""
    lines = [f"{'method':<12}{'seconds':>9}{'x gram':>8}{'peak GB':>9}{'above':>8}{'error':>10}"]
    for method, result in results.items():
        ratio = f"{result['seconds'] / results['gram']['seconds']:.2f}" if "gram" in results else "-"
        error = "-"
        if result["singular_values"] and "ours" in results and method != "ours":
            mine, theirs = np.array(results["ours"]["singular_values"]), np.array(result["singular_values"])
            error = f"{np.abs(theirs / mine - 1).max():.1e}"
        lines.append(
            f"{method:<12}{result['seconds']:>9.2f}{ratio:>8}{result['gigabytes']:>9.2f}"
            f"{result['gigabytes_above_trial']:>8.2f}{error:>10}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=1_000, metavar="T")
    parser.add_argument("--weights", type=int, default=10_000, metavar="P")
    parser.add_argument("--dim", type=int, default=32, metavar="D")
    parser.add_argument("--half-cheetah", action="store_true", help="T and P of a HalfCheetah trial of the paper")
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--out", type=Path, help="write JSON there")
    arguments = parser.parse_args()
    count, size = HALF_CHEETAH if arguments.half_cheetah else (arguments.snapshots, arguments.weights)

    load = os.getloadavg()[0]
    print(f"T = {count}, P = {size}, d = {arguments.dim}, {os.cpu_count()} cores")
    results = compare(count, size, arguments.dim, arguments.methods)
    print(table(results))
    if arguments.half_cheetah and {"gram", "ours"} <= results.keys():
        ratio, peak = results["ours"]["seconds"] / results["gram"]["seconds"], results["ours"]["gigabytes"]
        print(f"{ratio:.2f} × the Gram product: bar 2 {'met' if ratio <= 2 else 'MISSED'}; "
              f"{peak:.2f} GB: bar 4 {'met' if peak <= 4 else 'MISSED'}")  # fmt: skip
    if arguments.out:
        setting = {
            "command": ["python", *sys.argv],
            "load": [load, os.getloadavg()[0]],
            "snapshots": count,
            "weights": size,
            "dim": arguments.dim,
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "versions": {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "scikit-learn")},
        }
        arguments.out.write_text(json.dumps({**setting, "results": results}, indent=2) + "\n")


def _peak_gigabytes() -> float:
    """Of this process since it began: unlike ru_maxrss, VmHWM holds nothing of the process that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
