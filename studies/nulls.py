"""Does the evaluation find nothing where nothing can be forecast, and all of it where the best possible is known?

In: nothing; random walks are made.  Out: tables in Markdown, and JSON with what is needed to repeat them.

    python studies/nulls.py --out results/evaluate/nulls.json

Three data sets go through `tipl evaluate`, every baseline and a line through codes of the `full` basis: driftless walks
of the InvertedPendulum trials' shape, driftless walks of many more weights, where a basis that has seen the future
manufactures skill, and walks with a drift, whose best possible skill is `random_walk.best_skill`: from the last 100
steps, which the autoregression sees, and from all steps since φ_0, a mean over the origins.
"""

import argparse
import importlib.metadata
import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tipl.collection.random_walk import best_skill, random_walk
from tipl.config.presets import EvaluateConfig, SVDConfig
from tipl.evaluation.evaluate import METRICS_FILE, evaluate
from tipl.evaluation.origins import choose_origins
from tipl.representation import fit_svd
from tipl.store import Store

CONFIG = EvaluateConfig(origins=128, spectrum_trials=0)
SHOWN = 1, 5, 10, 50, 100  # horizons of the tables
SEEN = 100  # steps that the autoregression sees
KEPT = "label", "basis", "causal", "wpe", "skill", "skill_ci", "skill_in_basis"


@dataclass(frozen=True)
class Walks:
    """One data set and the basis that a line is drawn in."""

    title: str
    trials: int
    snapshots: int
    dim: int
    drift: float
    codes: int
    """d of the full basis."""


DATA_SETS = {
    "driftless": Walks("No drift, the shape of InvertedPendulum", 50, 1951, 122, 0.0, 32),
    "driftless-wide": Walks("No drift, many weights", 15, 1951, 4000, 0.0, 8),
    "drifting": Walks("Drift of 0.2 steps of the noise", 50, 1951, 122, 0.2, 32),
}


def measured(walks: Walks, folder: Path) -> dict[str, Any]:
    """What the evaluation says of one data set, and the best possible skill."""
    sizes = {"trials": walks.trials, "snapshots": walks.snapshots, "dim": walks.dim, "drift": walks.drift}
    store = random_walk(folder / "store", **sizes)
    codes = fit_svd(store, folder / "codes", SVDConfig(dim=walks.codes))
    metrics = json.loads(
        (evaluate(store, folder / "eval", CONFIG, codes=codes, returns=False) / METRICS_FILE).read_text()
    )
    data = Store.open(store)
    chosen = [choose_origins(data.trial(seed), CONFIG) for seed in metrics["test_trials"]]
    origins = np.concatenate([each.snapshot[each.by_time] for each in chosen])
    return {
        "walks": asdict(walks),
        "test_trials": len(metrics["test_trials"]),
        "origins": metrics["origins"],
        "forecasters": {
            name: {key: scores[key] for key in KEPT if key in scores} for name, scores in metrics["forecasters"].items()
        },
        "best_skill": {
            "from the last 100 steps": {str(h): best_skill(h, SEEN, walks.drift) for h in CONFIG.horizons},
            "from all steps": {
                str(h): float(np.mean([best_skill(h, int(t), walks.drift) for t in origins])) for h in CONFIG.horizons
            },
        },
    }


def table(found: dict[str, Any]) -> str:
    """Skill by horizon, with the interval at h = 10 and the skill within the basis there."""
    head = ["", *(f"h = {h}" if h == SHOWN[0] else str(h) for h in SHOWN), "interval at 10", "within the basis, at 10"]
    rows = [head, ["---"] * len(head)]
    for scores in found["forecasters"].values():
        bounds = scores["skill_ci"]["10"]
        within = scores.get("skill_in_basis")
        rows.append(
            [
                scores["label"],
                *(number(scores["skill"][str(h)]) for h in SHOWN),
                f"[{number(bounds[0])}, {number(bounds[1])}]" if bounds else "too few trials",
                number(within["10"]) if within else "",
            ]
        )
    if found["walks"]["drift"]:
        for what, skills in found["best_skill"].items():
            rows.append([f"*the best possible {what}*", *(number(skills[str(h)]) for h in SHOWN), "", ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float) -> str:
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}"
    return ("0.000" if text == "-0.000" else text).replace("-", "−")


def above_zero(found: dict[str, Any]) -> list[str]:
    """The causal forecasters, and horizons, whose whole interval lies above 0."""
    return [
        f"{name} at h = {h}"
        for name, scores in found["forecasters"].items()
        if scores["causal"]
        for h, pair in scores["skill_ci"].items()
        if pair and pair[0] > 0
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=DATA_SETS, nargs="+", default=list(DATA_SETS), help="of the data sets")
    parser.add_argument("--out", type=Path, help="write JSON there")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = found = measured(DATA_SETS[name], Path(folder))
        print(f"\n{found['walks']['title']}: {found['walks']}, {found['origins']} origins\n\n{table(found)}\n")
        if not found["walks"]["drift"]:
            print(f"Causal skill above 0 beyond its interval: {', '.join(above_zero(found)) or 'nowhere'}")
    if arguments.out:
        setting = {
            "evaluate": asdict(CONFIG),
            "commit": commit,
            "versions": {name: importlib.metadata.version(name) for name in ("numpy", "scipy")},
        }
        arguments.out.write_text(json.dumps({**setting, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
