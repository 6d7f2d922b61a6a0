"""What do jumps save beside plain PPO, by who chose the learning rates: five to fifteen seeds, ten, or hindsight?

In: what `benchmarks/accelerate.py` found in six environments, and the arms that were run at rates of their own.
Out: steps to 90% of what plain PPO gains at 3e-4, and the final return, of all environments together (`tipl.across`).

    python benchmarks/own_rates.py results/accelerate
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tipl.across import paired

ENVIRONMENTS = {  # its file, and plain PPO's rate that the sections of the README chose, and that ten tuning seeds did
    "inverted-pendulum-2": (2e-3, 1e-3),
    "hopper": (1e-3, 3e-4),
    "half-cheetah-64": (2e-3, 2e-3),
    "half-cheetah-256": (6e-4, 6e-4),
    "walker2d": (6e-4, 2e-3),
    "inverted-double-pendulum": (1e-3, 2e-3),
}
SEEDS, MEASURE = 10, "steps to 90%"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder

    def read(name: str) -> dict[str, Any]:
        return json.loads((folder / f"{name}.json").read_text())

    found = {name: read(name) for name in ENVIRONMENTS}

    def plain(name: str, rate: float) -> dict[str, Any]:
        return found[name]["arms"][f"plain, {rate:g}"]

    def best(name: str) -> dict[str, Any]:
        tried = [arm for arm_name, arm in found[name]["arms"].items() if arm_name.startswith("plain, ")]
        return min(tried, key=lambda arm: np.mean(arm[MEASURE]["by_seed"][:SEEDS]))

    def own(forecaster: str, name: str, otherwise: str) -> dict[str, Any]:
        """The arm at its own rate, or where it was not run there, 3e-4 of the file `otherwise`."""
        rated = read(f"{forecaster}-own-rate")["environments"]
        first = next(iter(found[name]["arms"].values()))["config"]
        mine = rated.get(first["env_id"])
        if mine is not None and mine["hidden_sizes"] == first["hidden_sizes"]:
            return mine
        return read(otherwise)["arms"][f"{forecaster}, 0.0003"]

    arms = {
        "plain at the rates chosen before": {name: plain(name, before) for name, (before, _) in ENVIRONMENTS.items()},
        "plain at those of ten seeds": {name: plain(name, ten) for name, (_, ten) in ENVIRONMENTS.items()},
        "plain at the best in hindsight": {name: best(name) for name in ENVIRONMENTS},
    }
    references = {"plain at 3e-4": {name: plain(name, 3e-4) for name in ENVIRONMENTS}} | arms
    for kind in ("line", "autoregression", "autoregression elsewhere"):
        arms[f"{kind} at 3e-4"] = {name: found[name]["arms"][f"{kind}, 0.0003"] for name in ENVIRONMENTS}
    arms["autoregression at its own"] = {name: own("autoregression", name, name) for name in ENVIRONMENTS}
    arms["causal at its own"] = {
        name: own("causal", name, f"causal-{name.removesuffix('-2')}") for name in ENVIRONMENTS
    }
    for reference, theirs in references.items():
        print(f"\nbeside {reference}; {', '.join(ENVIRONMENTS)}")
        for arm, mine in arms.items():
            pairs = [(mine[name], theirs[name]) for name in ENVIRONMENTS]
            steps, final = (paired(m, pairs, list(found.values()), SEEDS) for m in (MEASURE, "final return"))
            each = ", ".join(f"{one['value']:.3f}" for one in steps["by_environment"])
            print(f"{arm:34} {_text(steps)}  final {_text(final)}  {each}")


def _text(one: dict[str, Any]) -> str:
    return f"{one['value']:.3f} [{one['ci'][0]:.3f}, {one['ci'][1]:.3f}]" if one["ci"] else f"{one['value']:.3f}"


if __name__ == "__main__":
    main()
