"""Does the causal model need the size of a tensor, and what do weights that never move do to it?

In: stores to learn from, others to judge by.  Out: OUT.json: skills of models with and without the logarithm of the
tensor's size among their facts, of the former also where every tensor ends in constants, and how much those change.

    python studies/tensor_size.py --train ip hopper --other hc --out FILE.json
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tipl.models.causal
import tipl.training.displacement
from tipl.config.presets import CausalTrainConfig
from tipl.forecasting.trained import CausalForecaster
from tipl.models import CausalTIPL
from tipl.representation.windows import HORIZONS, Windows
from tipl.store import History, Store, Trial
from tipl.training import train

SHOWN = (1, 2, 5, 10, 20, 50, 100)
APPENDED = 968
facts = tipl.models.causal.facts


def without_size(windows: Windows) -> Any:
    """The facts of windows all of whose tensors have one weight, the logarithm of which is 0."""
    return facts(dataclasses.replace(windows, size=np.ones_like(windows.size)))


def told(make: Callable[[Windows], Any]) -> None:
    """Let the model learn from and forecast by these facts."""
    tipl.models.causal.facts = tipl.training.displacement.facts = make


def judged(model: CausalTIPL, trials: list[Trial], origins: int) -> dict[str, list[float]]:
    """Skills over the trials' origins; `appended` of the same weights where every tensor ends in constants."""
    error, appended, moved, change = (np.zeros(len(SHOWN)) for _ in range(4))
    for trial in trials:
        weights, epoch_indices, sizes = trial.weights(), trial.epoch_index, trial.spec.sizes
        forecaster = CausalForecaster(model, trial.spec.shapes)
        longer = CausalForecaster(model, [(int(size) + APPENDED,) for size in sizes])
        kept = np.arange(trial.spec.size) + np.repeat(np.arange(len(sizes)), sizes) * APPENDED
        for t in np.unique(np.linspace(1, len(weights) - 1 - HORIZONS[-1], origins).astype(int)).tolist():
            window = weights[max(0, t - 200) : t + 1]
            padded = np.ones((len(window), trial.spec.size + APPENDED * len(sizes)), np.float32)
            padded[:, kept] = window
            mine = forecaster.forecast([History(trial.seed, t, window, int(epoch_indices[t]))], SHOWN)[0]
            other = longer.forecast([History(trial.seed, t, padded, int(epoch_indices[t]))], SHOWN)[0][:, kept]
            true = weights[t + np.array(SHOWN)]
            for sums, difference in ((error, mine - true), (appended, other - true), (moved, true - weights[t])):
                sums += np.square(difference.astype(np.float64)).sum(axis=1)
            change += np.linalg.norm(other - mine, axis=1) / np.maximum(
                np.linalg.norm(mine - weights[t], axis=1), 1e-12
            )
    made = {"skill": 1 - error / moved, "appended": 1 - appended / moved, "change": change / (origins * len(trials))}
    return {name: values.round(4).tolist() for name, values in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, nargs="+", required=True, metavar="STORE")
    parser.add_argument("--other", type=Path, nargs="*", default=[], metavar="STORE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--origins", type=int, default=24, help="of a trial")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"command": ["python", *sys.argv], "horizons": SHOWN}
    for name, make in (("with the size", facts), ("without", without_size)):
        told(make)
        for seed in range(arguments.seeds):
            config = CausalTrainConfig(steps=arguments.steps, windows=1500, validate_every=100, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                train(arguments.train, Path(folder) / "model", config)
                model = CausalTIPL.load(Path(folder) / "model")
            for path in (*arguments.train, *arguments.other):
                store = Store.open(path)
                seeds = store.split().test if path in arguments.train else store.seeds
                row = judged(model, [store.trial(each) for each in seeds], arguments.origins)
                found[f"{name}, seed {seed}, {path.name} ({len(seeds)} trials)"] = row
                print(name, seed, path.name, row["skill"], flush=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
