"""What a compact store costs and saves, beside other small forms of the same bytes: the choices behind compact.py.

In: a store, a trial (its committed snapshots, or the first of them).  Out: tables, and JSON.

    python benchmarks/compact.py STORE --trial 1 --out results/compact/half-cheetah

- packings: the same rounded weights (of every eighth chunk) packed in other ways, in bits a weight, beside the entropy
  of their steps in time
- forms: at the bytes of each compact form, the error of codes of a truncated SVD (exact SVD of φ_t − φ_0; codes and
  directions in float32, and in 2 bytes with that rounding given to them for nothing) and of anchors (every n-th
  snapshot lossless, lines between); for its error, the rank that codes need and the bytes that they would take with
  every direction rounded as rate and distortion have it (see `ideal_bytes`)
- costs: inner products of all pairs, distances, skill of simple forecasters from the true and from the compact weights

Errors are root mean squares in units of the trial's mean step. The trial is held in memory twice, as float32.
"""

import argparse
import importlib.metadata
import json
import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from numcodecs import Blosc

from tipl.catalog.compact import Grids, chunk_rows, rounded
from tipl.forecasting.baselines import FixedSum, damped_line, last_difference
from tipl.representation import Gram
from tipl.store import CODEC, Store, Trial
from tipl.store.arrays import on_grid

ERRORS = (0.05, 0.02, 0.01)
LAGS = (1, 10, 100)
FORECASTERS = (damped_line(2, 0.5), damped_line(5, 0.8), last_difference())
EVERY = 8  # chunks; of one of them packings are compared
MIB = 1 << 20


def lossless_bytes(trial: Trial, count: int) -> int:
    """As tipl collect packs them."""
    rows = max(8, min(512, 5 * MIB // (4 * trial.spec.size) // 8 * 8))
    starts = range(0, count, rows)
    return sum(
        len(CODEC.encode(np.ascontiguousarray(trial.weights(start, min(start + rows, count)).T))) for start in starts
    )


def packed_bytes(rounded_nP: np.ndarray, grid: float) -> dict[str, float]:
    """One chunk in every packing; `entropy` is that of single steps, first snapshots not counted."""
    floats = np.ascontiguousarray(rounded_nP.T)
    whole = np.rint(floats / np.float32(grid)).astype(np.int32)
    steps = np.diff(whole, prepend=np.int32(0))
    across = np.diff(whole.ravel(), prepend=np.int32(0))  # from the last snapshot of a weight to the first of the next
    _, counts = np.unique(np.diff(whole, axis=1), return_counts=True)
    return {
        "floats, bit planes (needs no filter)": len(CODEC.encode(floats)),
        "steps, bytes": len(Blosc("zstd", 1, Blosc.SHUFFLE, MIB).encode(steps)),
        "steps, bit planes": len(Blosc("zstd", 1, Blosc.BITSHUFFLE, MIB).encode(steps)),
        "steps from the middle, bit planes": len(Blosc("zstd", 1, Blosc.BITSHUFFLE, MIB).encode(steps + 0x808080)),
        "steps from the middle, bytes (the store's)": len(on_grid(rounded_nP, grid)),
        "the same across weights (format version 2)": len(
            Blosc("zstd", 1, Blosc.SHUFFLE, MIB).encode(across + 0x808080)
        ),
        "steps from the middle, bytes, zstd 5": len(Blosc("zstd", 5, Blosc.SHUFFLE, MIB).encode(steps + 0x808080)),
        "steps of steps from the middle, bytes": len(
            Blosc("zstd", 1, Blosc.SHUFFLE, MIB).encode(np.diff(steps, prepend=np.int32(0)) + 0x808080)
        ),
        "entropy of single steps": float(-(counts * np.log2(counts / max(1, counts.sum()))).sum() / 8),
    }


def rank_error(eigenvalues: np.ndarray, rank: int) -> float:
    """What the first directions leave of a snapshot; eigenvalues descending."""
    return math.sqrt(max(0.0, eigenvalues[rank:].sum()) / len(eigenvalues))


def ideal_bytes(eigenvalues: np.ndarray, size: int, error: float) -> tuple[float, float]:
    """For this error of a snapshot: bytes of directions [rank, P] rounded as coarsely as each may be, and of codes.

    Reverse water-filling: an error θ, Σ min(λ, θ) = T error², in every direction whose λ is larger, which then takes
    ½ log2(λ/θ) bits a weight, and ½ log2(2πe/12) more for rounding with a perfect coder. Codes [T, rank], which have to
    be more precise than that, at 2 bytes.
    """
    count, low, high = len(eigenvalues), 0.0, float(eigenvalues[0])
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(eigenvalues, level).sum() < count * error**2 else (low, level)
    kept = eigenvalues[eigenvalues > high]
    bits = 0.5 * np.log2(kept / high) + 0.5 * math.log2(2 * math.pi * math.e / 12)
    return size * float(bits.sum()) / 8, 2.0 * count * len(kept)


def anchor_error(weights_TP: np.ndarray, every: int) -> float:
    """Of lines between every n-th snapshot."""
    squares = 0.0
    last = (len(weights_TP) - 1) // every * every
    for start in range(0, last, every):
        first, second = weights_TP[start].astype(np.float64), weights_TP[start + every].astype(np.float64)
        for step in range(1, every):
            squares += np.square(weights_TP[start + step] - first - step / every * (second - first)).sum()
    return math.sqrt(squares / max(1, last))


def distances(gram_TT: np.ndarray, lag: int) -> np.ndarray:
    """‖φ_{t+lag} − φ_t‖ for every t."""
    square_T = gram_TT.diagonal()
    return np.sqrt(np.maximum(0, square_T[lag:] + square_T[:-lag] - 2 * gram_TT.diagonal(lag)))


def skill(forecaster: FixedSum, gram_TT: np.ndarray, horizon: int) -> float:
    """1 − error / persistence's, summed over all origins, from inner products alone."""
    assert forecaster.context is not None
    context = forecaster.context
    a = forecaster.coefficients(-1, [horizon])[0]
    # φ_{t+h} − φ̃_{t+h} as a sum over φ_{t−context+1} … φ_t, φ_{t+h}.
    places = np.r_[np.arange(context), context - 1 + horizon]
    error = np.r_[-a, 1.0]
    error[context - 1] -= 1 - a.sum()
    nothing = np.zeros(context + 1)
    nothing[-2:] = -1, 1
    origins = np.arange(len(gram_TT) - places[-1])
    sums = [
        sum(
            weight_i * weight_j * gram_TT[origins + i, origins + j].sum()
            for i, weight_i in zip(places, weights, strict=True)
            for j, weight_j in zip(places, weights, strict=True)
            if weight_i and weight_j
        )
        for weights in (error, nothing)
    ]
    return float(1 - sums[0] / sums[1])


def measure(trial: Trial, count: int) -> dict[str, Any]:
    weights_TP = trial.weights(0, count)
    size = weights_TP.shape[1]
    true_TT = Gram.of(weights_TP).displacement_TT
    step = float(distances(true_TT, 1).mean())
    eigenvalues = scipy.linalg.eigvalsh(true_TT, check_finite=False)[::-1]
    lossless = lossless_bytes(trial, count)
    compact_TP = np.empty_like(weights_TP)
    forms = []
    for error in ERRORS:
        grids = Grids.of(trial, error)
        packed, sampled, packings = 0, 0, dict[str, float]()
        for number, (rows, _, rounded_nP) in enumerate(rounded(trial, grids)):
            if rows.start >= count:
                break
            kept_nP = compact_TP[rows.start : min(rows.stop, count)]
            kept_nP[:] = rounded_nP[: len(kept_nP)]
            packed += len(on_grid(kept_nP, grids.base))
            if number % EVERY == 0:
                sampled += kept_nP.size
                for name, size_there in packed_bytes(kept_nP, grids.base).items():
                    packings[name] = packings.get(name, 0) + size_there
        compact_TT = Gram.of(compact_TP).displacement_TT
        off_TT = np.abs(compact_TT - true_TT) / step**2
        error_T = np.concatenate([
            np.linalg.norm((compact_TP[t : t + 64] - weights_TP[t : t + 64]).astype(np.float64), axis=1)
            for t in range(0, count, 64)
        ])  # fmt: skip
        of_rank = {name: int(packed / (number * (count + size))) for name, number in
                   (("float32", 4), ("2 bytes", 2))}  # fmt: skip
        reached = math.sqrt(np.square(error_T).mean())
        every = math.ceil(lossless / packed)
        forms.append({
            "asked": error,
            "bytes": packed,
            "ratio": weights_TP.nbytes / packed,
            "bits_a_weight": {name: 8 * value / sampled for name, value in packings.items()},
            "rms_error": reached / step,
            "max_error": float(error_T.max()) / step,
            "inner_product_rms_error": math.sqrt(np.square(off_TT).mean()),
            "inner_product_max_error": float(off_TT.max()),
            "distance_error": {
                str(lag): float(
                    math.sqrt(np.square(distances(compact_TT, lag) - distances(true_TT, lag)).mean())
                    / distances(true_TT, lag).mean()
                )
                for lag in LAGS
            },
            "skill": {
                f"{forecaster.label}, h = {h}": [skill(forecaster, gram, h) for gram in (true_TT, compact_TT)]
                for forecaster in FORECASTERS
                for h in (1, 10)
            },
            "codes": {
                name: {"rank": rank, "rms_error": rank_error(eigenvalues, rank) / step}
                for name, rank in of_rank.items()
            },
            "rank_for_the_same_error": int(
                next(r for r in range(count + 1) if rank_error(eigenvalues, r) <= reached)
            ),
            "ideal_bytes_of_codes": dict(
                zip(("directions", "codes"), ideal_bytes(eigenvalues, size, reached), strict=True)
            ),
            "anchors": {"every": every, "rms_error": anchor_error(weights_TP, every) / step},
        })  # fmt: skip
    largest = float(np.abs(true_TT).max())
    return {
        "trial": trial.seed,
        "env_id": trial.env_id,
        "complete": trial.complete and count == trial.committed,
        "snapshots": count,
        "weights": size,
        "chunk_snapshots": chunk_rows(trial),
        "raw_bytes": weights_TP.nbytes,
        "lossless_bytes": lossless,
        "mean_step": step,
        "furthest_in_steps": math.sqrt(largest) / step,
        "gram_float32_error": math.sqrt(np.square(true_TT - true_TT.astype(np.float32)).mean()) / step**2,
        "gram_float64_bytes": 8 * count * (count + 1) // 2,
        "forms": forms,
    }


def show(found: dict[str, Any]) -> None:
    print(
        f"trial {found['trial']} of {found['env_id']}: {found['snapshots']} × {found['weights']}"
        f"{'' if found['complete'] else ' (not the whole trial)'}, {found['raw_bytes'] / 1e6:.1f} MB raw, lossless "
        f"{found['raw_bytes'] / found['lossless_bytes']:.2f} times smaller, furthest displacement "
        f"{found['furthest_in_steps']:.0f} mean steps; a Gram in float32 is off by {found['gram_float32_error']:.1e}"
    )
    for form in found["forms"]:
        print(f"\nerror {form['asked']}: {form['bytes'] / 1e6:.1f} MB, ratio {form['ratio']:.2f}; "
              f"snapshot {form['rms_error']:.4f} rms, {form['max_error']:.4f} max; inner products "
              f"{form['inner_product_rms_error']:.4f} rms, {form['inner_product_max_error']:.4f} max; distances "
              + ", ".join(f"{value:.1e} at {lag}" for lag, value in form["distance_error"].items()))  # fmt: skip
        for name, codes in form["codes"].items():
            print(f"  codes in {name:8} rank {codes['rank']:5}: error {codes['rms_error']:.3f}")
        print(
            f"  codes of this error: rank {form['rank_for_the_same_error']} of {found['snapshots']}; rounded ideally "
            + " + ".join(f"{value / 1e6:.1f} MB of {name}" for name, value in form["ideal_bytes_of_codes"].items())
        )
        print(f"  every {form['anchors']['every']}th snapshot, lines between: {form['anchors']['rms_error']:.3f}")
        for name, bits in form["bits_a_weight"].items():
            print(f"  {name:44}{bits:7.3f} bits a weight")
        for name, (true, compact) in form["skill"].items():
            print(f"  skill of {name:40}{true:9.4f} {compact:9.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare compact forms of a trial.")
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--trial", type=int, metavar="SEED", default=1)
    parser.add_argument("--snapshots", type=int, metavar="T", help="the first so many [all that are committed]")
    parser.add_argument("--out", type=Path, metavar="OUT", help="also write OUT.json")
    arguments = parser.parse_args()

    trial = Store.open(arguments.store).trial(arguments.trial)
    found = measure(trial, min(arguments.snapshots or trial.committed, trial.committed))
    show(found)
    found["versions"] = {name: importlib.metadata.version(name) for name in ("numpy", "numcodecs", "zarr", "tipl")}
    found["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"\npeak memory {found['peak_bytes'] / 1e9:.2f} GB")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
