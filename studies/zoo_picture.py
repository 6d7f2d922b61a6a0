"""The zoo in two pictures: what every environment's runs earn, and what their paths are like.

In: the zoo's stores, and what `held_out.py judge` wrote of them.  Out: OUT/curves.png, a small learning curve for each
environment; OUT/paths.png, directions beside random walks and how well each environment's own autoregression
forecasts; OUT/paths.json, the numbers.

    python studies/zoo_picture.py runs/zoo-small --judged EVAL --out results/zoo
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from held_out import CHOSEN, HORIZONS, OWN, skills
from zoo import Run, runs_of

from tipl.evaluation.origins import smoothed
from tipl.evaluation.spectra import spectra
from tipl.progress import console
from tipl.store import Store

COLORS = {"train": "#1f6f8b", "validation": "#c98a1b", "held out": "#b3323c"}
SHARE = "0.99"
AHEAD = "10"


def measured(zoo: Path, runs: dict[str, Run], judged: Path, seconds: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each store of PPO: directions of its first trial and of a walk like it, skill of its own baseline."""
    rows = []
    for name, run in runs.items():
        if not (zoo / name).exists() or run.algorithm != "PPO":
            continue
        row: dict[str, Any] = seconds.get(name) or {
            "store": name,
            "environment": run.env_id,
            "family": run.family,
            "part": run.part,
        }
        if "directions" not in row:
            trial = Store.open(zoo / name).trial(run.seeds[0])
            found = spectra([trial], 0)
            row["directions"] = last(found["displacements"])
            row["walk"] = last(found["displacements-annealed-walk"])
            console.print(f"{name}: {row['directions']} directions, a walk {row['walk']}")
        file = judged / f"{name}.json"
        if file.exists():
            of = skills(json.loads(file.read_text()), OWN)
            row["own_autoregression"] = dict(
                zip(map(str, HORIZONS), np.nanmean(of, axis=0).round(4).tolist(), strict=True)
            )
        rows.append(row)
    return rows


def last(found: dict[str, Any]) -> int:
    """Directions of the first run that hold 99% of the energy, at the end of learning."""
    return int(found["needed"][SHARE][0])


def draw_curves(zoo: Path, runs: dict[str, Run], out: Path) -> None:
    import matplotlib.pyplot as plt

    environments = [*dict.fromkeys(run.env_id for run in runs.values() if run.algorithm == "PPO")]
    across = 8
    down = -(-len(environments) // across)
    figure, axes = plt.subplots(down, across, figsize=(across * 1.45, down * 1.15))
    for axis in axes.ravel()[len(environments) :]:
        axis.axis("off")
    for axis, env_id in zip(axes.ravel(), environments, strict=False):
        mine = [run for run in runs.values() if run.env_id == env_id and run.algorithm == "PPO"]
        for run, style in zip(mine, ("-", ":"), strict=False):
            if not (zoo / run.name).exists():
                continue
            store = Store.open(zoo / run.name)
            for seed in store.seeds:
                step, earned, _ = store.trial(seed).episodes
                if len(step):
                    at = np.unique(np.linspace(0, len(step) - 1, 120).astype(int))
                    axis.plot(step[at], smoothed(earned)[at], style, color=COLORS[run.part], linewidth=0.7, alpha=0.8)
        axis.set_title(
            env_id.removeprefix("MetaWorld/").rsplit("-v", 1)[0], fontsize=6, pad=2, color=COLORS[mine[0].part]
        )
        axis.tick_params(labelsize=4, length=1, pad=1)
        axis.set_xticks([])
    figure.tight_layout(pad=0.3, w_pad=0.2, h_pad=0.4)
    figure.savefig(out / "curves.png", dpi=110)


def draw_paths(rows: list[dict[str, Any]], out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[1, 2])
    below = np.zeros(max(row["walk"] for row in rows) + 1)
    for part, color in COLORS.items():
        count = np.bincount([row["directions"] for row in rows if row["part"] == part], minlength=len(below))
        left.bar(np.arange(len(count)), count, bottom=below[: len(count)], color=color, label=part)
        below[: len(count)] += count
    walk = float(np.median([row["walk"] for row in rows]))
    left.axvline(walk, color="#555", linestyle="--", linewidth=1)
    left.text(walk - 0.2, below.max(), "random walks", ha="right", va="top", rotation=90, fontsize=8)
    left.set_xlabel("directions that hold 99% of a path's energy")
    left.set_ylabel("stores")
    left.legend(frameon=False, fontsize=8)
    known: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "own_autoregression" in row:
            known.setdefault(row["environment"], []).append(row)
    value = {env: np.nanmean([each["own_autoregression"][AHEAD] for each in of]) for env, of in known.items()}
    order = sorted(value, key=lambda env: -value[env])
    colors = [COLORS[known[env][0]["part"]] for env in order]
    right.bar(range(len(order)), [value[env] for env in order], color=colors)
    names = [env.removeprefix("MetaWorld/").rsplit("-v", 1)[0] for env in order]
    right.set_xticks(range(len(order)), names, rotation=90, fontsize=6)
    right.set_ylabel(f"skill {AHEAD} snapshots ahead of\nan autoregression of its own runs")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out / "paths.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--judged", type=Path, required=True, help=f"folder with {CHOSEN} and a file a store")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    runs = {run.name: run for run in runs_of(asked.preset)}
    file = asked.out / "paths.json"
    before = {row["store"]: row for row in json.loads(file.read_text())} if file.exists() else {}
    rows = measured(asked.zoo, runs, asked.judged, before)
    file.write_text(json.dumps(rows))
    draw_curves(asked.zoo, runs, asked.out)
    draw_paths(rows, asked.out)


if __name__ == "__main__":
    main()
