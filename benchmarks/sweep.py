"""What does TIPL as the paper has it hang on? One setting at a time from the base that the paper leaves to guess.

In: a store.  Out: OUT/sweep.json, skill on the test trials of every variant; a training that is done is not run again.

The base: codes of the `full` basis (which sees the future), d = 32, K = 20, standardized, with absolute time, the next
code itself. Variants change d, K, standardization, time, and what the network gives (the step instead of the code). All
have the same number of steps, a small part of the paper's 500,000, and the same learning rate, warm-up and cosine.

    python benchmarks/sweep.py STORE --steps 3000 --out OUT
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from tipl.evaluate import METRICS_FILE, evaluate
from tipl.presets import EvaluateConfig, SVDConfig, TrainConfig
from tipl.representation import fit_svd
from tipl.train import CHECKPOINT_FILE, CURVE_FILE, train

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "d-8": {"dim": 8},
    "d-16": {"dim": 16},
    "d-64": {"dim": 64},
    "K-10": {"context": 10},
    "K-50": {"context": 50},
    "raw": {"standardize": False},
    "no-time": {"absolute_time": False},
    "residual": {"residual": True},
    "residual-d-8": {"residual": True, "dim": 8},
    "residual-d-64": {"residual": True, "dim": 64},
    "residual-K-50": {"residual": True, "context": 50},
    "residual-raw": {"residual": True, "standardize": False},
    "residual-no-time": {"residual": True, "absolute_time": False},
}
HORIZONS = (1, 2, 5, 10)
KEPT = ("skill", "skill_ci", "wpe", "skill_in_basis")


def _holds(evaluation: Path, variants: list[str]) -> bool:
    path = evaluation / METRICS_FILE
    return path.exists() and set(variants) <= json.loads(path.read_text())["forecasters"].keys()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--steps", type=int, default=3000, help="of every training [3000]")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="[5e-4]")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--origins", type=int, default=64, help="of each test trial [64]")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    base = TrainConfig(
        steps=asked.steps, learning_rate=asked.learning_rate, warmup_steps=asked.steps // 10, cosine=True,
        validate_every=max(1, asked.steps // 10),
    )  # fmt: skip
    models = []
    for name in asked.variants:
        changes = dict(VARIANTS[name])
        dim = changes.pop("dim", 32)
        codes, out = asked.out / f"codes-{dim}.zarr", asked.out / name
        if not codes.exists():
            fit_svd(asked.store, codes, SVDConfig(dim=dim))
        config = dataclasses.replace(base, **changes)
        train(asked.store, out, config, codes=codes, resume=(out / CHECKPOINT_FILE).exists())
        models.append(out)
    judged = asked.out / "evaluation"
    if not _holds(judged, asked.variants):
        shutil.rmtree(judged, ignore_errors=True)
        settings = EvaluateConfig(horizons=HORIZONS, return_horizons=(1,), origins=asked.origins, spectrum_trials=0)
        evaluate(asked.store, judged, settings, models=models, returns=False)
    metrics = json.loads((judged / METRICS_FILE).read_text())
    found: dict[str, Any] = {
        "steps": asked.steps, "learning_rate": asked.learning_rate, "origins": metrics["origins"],
        "test_trials": metrics["test_trials"], "versions": metrics["versions"], "variants": {},
    }  # fmt: skip
    for name in ("persistence", "autoregression", *asked.variants):
        scores = metrics["forecasters"][name]
        entry = {key: scores[key] for key in KEPT if key in scores}
        if name in VARIANTS:
            curve = json.loads((asked.out / name / CURVE_FILE).read_text())["curve"]
            entry |= {"changes": VARIANTS[name], "seconds": curve[-1]["seconds"], "validation": curve}
            entry["reconstruction_floor"] = metrics["reconstruction_floor"].get(name)
        found["variants"][name] = entry
        row = "  ".join(f"{h}: {value:8.3f}" for h, value in entry["skill"].items())
        print(f"{name:20} {row}", flush=True)
    (asked.out / "sweep.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
