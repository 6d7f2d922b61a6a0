"""Fit the autoregression that comes with the package.

In: a store.  Out: a JSON file, its slopes by snapshots an iteration and epoch index.

    tipl collect --env-id HalfCheetah-v4 --hidden-sizes 64 64 --total-steps 200000 --trials 6 --seed 2001 --out STORE
    python studies/ship_autoregression.py STORE --out src/tipl/forecasting/pretrained/autoregression.json
"""

import argparse
import json
from pathlib import Path

from tipl.forecasting.autoregression import ANY, RIDGES, fit_autoregression
from tipl.store import Store

HORIZONS = (1, 2, 5, 10, 20)  # iterations
PER_ITERATION = (1, 5)  # snapshots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    slopes = {}
    for count in PER_ITERATION:
        fitted = fit_autoregression(asked.store, count, tuple(count * h for h in HORIZONS))
        slopes[count] = {ANY if i is None else i: beta_HF.tolist() for i, beta_HF in fitted.slopes.items()}
    data = Store.open(asked.store)
    seeds = data.split().train
    trial = data.trial(seeds[0])
    facts = {"env_id": trial.env_id, "hidden_sizes": trial.config["hidden_sizes"], "seeds": list(seeds)}
    made = {"fitted_on": facts, "ridge": RIDGES[1], "horizons": HORIZONS, "slopes": slopes}
    asked.out.write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
