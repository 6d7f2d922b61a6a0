"""What does TIPL as the paper has it hang on? One setting at a time from the base that the paper leaves to guess.

In: a store.  Out: OUT/sweep.json, the skill (and with --returns the REPW) of every variant on the test trials, by seed,
and what the seeds say together. The same command goes on where it was stopped; what is done is not done again.

The base: Equation 1 as the loss, codes of the `full` basis (which sees the future), d = 32, K = 20, not centered, with
absolute time, the next code itself. Variants change d, K, the centering, the time, what the network gives (the step
instead of the code) and what the loss weighs. All have the same number of steps, a small part of the paper's 500,000,
and the same learning rate, warm-up and cosine.

    python studies/sweep.py STORE --steps 3000 --seeds 3 --out OUT
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tipl.config.presets import EvaluateConfig, SVDConfig, TrainConfig
from tipl.evaluation.evaluate import METRICS_FILE, evaluate
from tipl.representation import fit_svd
from tipl.training import CHECKPOINT_FILE, CURVE_FILE, train

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "d-8": {"dim": 8},
    "d-16": {"dim": 16},
    "d-64": {"dim": 64},
    "K-10": {"context": 10},
    "K-50": {"context": 50},
    "centered": {"centered": True},
    "no-time": {"absolute_time": False},
    "standardized-loss": {"loss": "standardized"},
    "codes-loss": {"loss": "codes"},
    "step": {"residual": True},
    "step-d-8": {"residual": True, "dim": 8},
    "step-d-64": {"residual": True, "dim": 64},
    "step-K-50": {"residual": True, "context": 50},
    "step-centered": {"residual": True, "centered": True},
    "step-no-time": {"residual": True, "absolute_time": False},
    "step-standardized-loss": {"residual": True, "loss": "standardized"},
    "step-codes-loss": {"residual": True, "loss": "codes"},
}
HORIZONS = (1, 2, 5, 10)
BASELINES = ("persistence", "autoregression")
KEPT = ("skill", "skill_ci", "wpe", "skill_in_basis", "repw")


def trained(store: Path, out: Path, name: str, base: TrainConfig) -> Path:
    """Train a variant at the base's seed, or read it where it is done.

    Returns:
        Its folder, out/NAME-SEED.
    """
    settings = {**VARIANTS[name]}
    svd = SVDConfig(dim=settings.pop("dim", 32), centered=settings.pop("centered", False))
    codes = out / f"codes-{svd.dim}{'-centered' * svd.centered}"
    fit_svd(store, codes, svd)
    model = out / f"{name}-{base.seed}"
    config = dataclasses.replace(base, **settings)
    return train(store, model, config, codes=codes, resume=(model / CHECKPOINT_FILE).exists())


def judged(store: Path, out: Path, models: Sequence[Path], settings: EvaluateConfig, *, returns: bool) -> Any:
    """What evaluating these models says, from OUT/evaluation where that has been done as asked."""
    path = out / "evaluation" / METRICS_FILE
    if path.exists():
        metrics = json.loads(path.read_text())
        asked = json.loads(json.dumps(dataclasses.asdict(settings)))
        complete = {model.name for model in models} <= metrics["forecasters"].keys()
        if complete and metrics["config"]["evaluate"] == asked and (not returns or metrics["return_horizons"]):
            return metrics
        path.unlink()  # measured returns beside it stay and are used
    evaluate(store, path.parent, settings, models=models, returns=returns)
    return json.loads(path.read_text())


def together(runs: Sequence[Mapping[str, Any]], measure: str) -> dict[str, dict[str, float]]:
    """By horizon the mean over seeds, the lowest and the highest."""
    values = {h: [run[measure][h] for run in runs] for h in runs[0][measure]}
    return {h: {"mean": fmean(of), "lowest": min(of), "highest": max(of)} for h, of in values.items()}


def row(name: str, spread: Mapping[str, Mapping[str, float]]) -> str:
    cells = (f"{h}: {at['mean']:8.3f} [{at['lowest']:.3f}, {at['highest']:.3f}]" for h, at in spread.items())
    return f"{name:24} {'  '.join(cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--steps", type=int, default=3000, help="of every training [3000]")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="[5e-4]")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=1, help="of every variant: 0, 1, … [1]")
    parser.add_argument("--origins", type=int, default=64, help="of each test trial [64]")
    parser.add_argument("--returns", action="store_true", help="also run the policies: REPW, at h = 1, 5 and 10")
    parser.add_argument("--return-origins", type=int, default=8, help="of each test trial [8]")
    parser.add_argument("--episodes", type=int, default=10, help="of every policy [10]")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    base = TrainConfig(
        steps=asked.steps, learning_rate=asked.learning_rate, warmup_steps=asked.steps // 10, cosine=True,
        validate_every=max(1, asked.steps // 10),
    )  # fmt: skip
    runs = {
        name: [
            trained(asked.store, asked.out, name, dataclasses.replace(base, seed=seed)) for seed in range(asked.seeds)
        ]
        for name in asked.variants
    }
    settings = EvaluateConfig(
        horizons=HORIZONS, return_horizons=(1, 5, 10), origins=asked.origins, return_origins=asked.return_origins,
        episodes=asked.episodes, oracle_normalizer=False, sampled_actions=False, spectrum_trials=0,
    )  # fmt: skip
    models = [model for variant in runs.values() for model in variant]
    metrics = judged(asked.store, asked.out, models, settings, returns=asked.returns)
    found: dict[str, Any] = {
        "steps": asked.steps, "learning_rate": asked.learning_rate, "seeds": asked.seeds,
        "origins": metrics["origins"], "test_trials": metrics["test_trials"], "versions": metrics["versions"],
        "baselines": {name: _scores(metrics, name) for name in BASELINES}, "variants": {},
    }  # fmt: skip
    measures = ("skill", "repw") if asked.returns else ("skill",)
    for name, variant in runs.items():
        seeds = [_scores(metrics, model.name) | _told(model, metrics) for model in variant]
        spread = {measure: together(seeds, measure) for measure in measures}
        found["variants"][name] = {"changes": VARIANTS[name], **spread, "by_seed": seeds}
    for measure in measures:
        print(f"{measure}: mean over {asked.seeds} seed(s) [lowest, highest], by horizon")
        for name, scores in found["baselines"].items():
            print(row(name, together([scores], measure)))
        for name, variant in found["variants"].items():
            print(row(name, variant[measure]))
    (asked.out / "sweep.json").write_text(json.dumps(found, indent=1) + "\n")


def _scores(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in metrics["forecasters"][name].items() if key in KEPT}


def _told(model: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """How the training went, and what the basis leaves out."""
    told = json.loads((model / CURVE_FILE).read_text())
    floor = metrics["reconstruction_floor"].get(model.name)
    seconds = told["curve"][-1]["seconds"]
    return {"kept": told["kept"], "seconds": seconds, "validation": told["curve"], "reconstruction_floor": floor}


if __name__ == "__main__":
    main()
