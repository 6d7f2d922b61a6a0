"""Does a causal model know policies that it never saw? Its skill on other stores, beside an autoregression that was
fitted where it was trained.

In: the store that the autoregression is fitted on, the model, other stores.  Out: skills with intervals, as JSON.

    python studies/transfer.py SOURCE --model MODEL --target STORE [STORE …] --out FILE.json

Of a target that the model was trained on (its training.json says so) only the test trials are judged, of others all
or, with --held-out, the test trials as well.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tipl.config.presets import EvaluateConfig
from tipl.evaluation.apart import learned_by
from tipl.evaluation.evaluate import compare_weights
from tipl.evaluation.origins import choose_origins, join_origins
from tipl.evaluation.scores import weight_scores
from tipl.forecasting.autoregression import RIDGES, Autoregression, difference_features, normal_equations
from tipl.forecasting.baselines import persistence
from tipl.forecasting.named import load_forecaster
from tipl.forecasting.online import OnlineCorrected, online_corrected
from tipl.store import Store

HORIZONS = (1, 2, 5, 10, 20, 50, 100)
KEPT = ("skill", "skill_ci", "skill_minus_best_baseline", "skill_minus_best_baseline_ci")


def judge(
    source: Path, target: Path, model: Path, autoregression: Autoregression, origins: int, held_out: bool, adapt: bool
) -> dict[str, Any]:
    """The model and the autoregression of `source` on the trials of `target`."""
    data = Store.open(target)
    learned = learned_by(model)
    of_these = target.resolve() == source.resolve()
    seen = of_these or learned is None or any(part.of(data, data.seeds) for part in learned)
    seeds = data.split().test if seen or held_out else data.seeds
    trials = [data.trial(seed) for seed in seeds]
    config = EvaluateConfig(horizons=HORIZONS, return_horizons=(1,), origins=origins)
    at = join_origins([choose_origins(trial, config) for trial in trials])
    forecasters = [persistence(), autoregression, load_forecaster(model, trials[0].spec.shapes)]
    rivals = ["persistence", "autoregression"]
    if adapt:
        still, linear, model_itself = forecasters
        forecasters += [online_corrected(each, trials[0]) for each in ([still], [linear], [model_itself, linear])]
    compared = compare_weights(trials, at, forecasters, HORIZONS)
    scores = {}
    for forecaster in forecasters[1:]:
        found = weight_scores(forecaster.name, compared, rivals, at, HORIZONS, trials[0].spec.size, config.seed)
        scores[forecaster.name] = {name: found[name] for name in KEPT if name in found}
        if isinstance(forecaster, OnlineCorrected):  # beside what the run alone teaches too
            also = ["persistence-adapted", "autoregression-adapted"]
            found = weight_scores(forecaster.name, compared, also, at, HORIZONS, trials[0].spec.size, config.seed)
            scores[forecaster.name] |= {f"{name}_adapted": found[name] for name in KEPT[2:] if name in found}
    return {"env_id": trials[0].env_id, "trained_on": seen, "trials": list(map(int, seeds)), "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--target", type=Path, nargs="+", required=True)
    parser.add_argument("--origins", type=int, default=64, help="of each trial [64]")
    parser.add_argument("--held-out", action="store_true", help="only the test trials, also of targets not trained on")
    parser.add_argument(
        "--adapt",
        action="store_true",
        help="also the model with the autoregression, adapted in the run, and that and persistence alone",
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = Store.open(arguments.source)
    train = [data.trial(seed) for seed in data.split().train]
    equations = normal_equations(train, difference_features(), HORIZONS)
    autoregression = Autoregression.fit(HORIZONS, equations, RIDGES[1])
    found = {}
    for target in arguments.target:
        found[target.name] = judge(
            arguments.source,
            target,
            arguments.model,
            autoregression,
            arguments.origins,
            arguments.held_out,
            arguments.adapt,
        )
        for name, scores in found[target.name]["scores"].items():
            row = ", ".join(f"{h}: {value:.3f}" for h, value in scores["skill"].items())
            print(f"{target.name:20} {name:15} {row}", flush=True)
    said = {"source": arguments.source.name, "model": arguments.model.name, "origins": arguments.origins}
    arguments.out.write_text(json.dumps({**said, "targets": found}, indent=1) + "\n")
    assert np.isfinite([v for t in found.values() for s in t["scores"].values() for v in s["skill"].values()]).all()


if __name__ == "__main__":
    main()
