"""What are more environments worth to the causal model, and more trials, windows, width, layers, noise?

In: the zoo (`studies/zoo.py collect`).  Out: OUT/NAME, a model for each variant and seed; `table`: the skill of its
last step on environments that it did not learn from (those whose part is `validation`, where runs learn something), by
horizon; `curve`: skill by the number of environments, on those that are held out.

    python studies/scaling.py train runs/zoo-small --out runs/scaling --steps 1500 --seeds 0 [--only envs-2 envs-32]
    python studies/scaling.py table runs/scaling --json FILE
    python studies/held_out.py judge STORE … --models-only --model runs/scaling/envs-*/last --out JUDGED
    python studies/held_out.py table JUDGED --against own-autoregression --json HELD_OUT.json
    python studies/scaling.py curve HELD_OUT.json --picture FILE

Every variant has the same number of steps and noise on half of its windows, but for what its name says. Of 32
environments the 2, 4, 8 and 16 are the first of one shuffled order, so that each set holds the smaller ones; the 13th
and the 22nd have discrete actions. What was trained is not trained again; what was begun goes on.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from zoo import Run, runs_of

import tipl
from tipl.config.presets import CausalTrainConfig
from tipl.training import CHECKPOINT_FILE, CURVE_FILE, kept

MATTERS = 0.05  # more skill from the most environments than from the fewest: an environment is named
COUNTS = (2, 4, 8, 16, 32)
OTHERS = "others"  # learns from the other algorithms' runs too, as far as they were collected
NOTHING_LEARNED = ("MountainCar-v0",)  # every episode has the return −200: it would decide alone which step is kept
BASE = {"noise": 0.5, "precision": "fast"}  # bfloat16 takes seven times as long where no processor multiplies it
KINDS = (
    "Hopper-v4",
    "CartpoleBalance-v1",
    "LunarLander-v3",
    "CartPole-v1",
)  # two of continuous actions, two of discrete
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"envs-{count}": {} for count in COUNTS},
    "kinds-4": {"environments": KINDS},
    "no-noise": {"noise": 0.0},
    "windows-100": {"windows": 100},
    "windows-300": {"windows": 300},
    "trials-1": {"trials": 1},
    "wide-128": {"width": 128},
    "layers-4": {"num_layers": 4},
    "layers-6": {"num_layers": 6},
    OTHERS: {},
}


def stores_of(zoo: Path, part: str, others: bool = False) -> list[Run]:
    """Those of PPO, and of the other algorithms if asked."""
    asked = [run for run in runs_of("small") if run.part == part and (others or run.algorithm == "PPO")]
    return [run for run in asked if (zoo / run.name).exists()]


def chosen(zoo: Path, count: int, others: bool = False, asked: Sequence[str] = ()) -> list[Path]:
    """The stores of the environments asked for, or of the first `count` of those to learn from, in one shuffled
    order."""
    runs = stores_of(zoo, "train", others)
    environments = [*dict.fromkeys(run.env_id for run in runs)]
    random.Random(0).shuffle(environments)
    return [zoo / run.name for run in runs if run.env_id in (asked or environments[:count])]


def fewer(store: Path, trials: int, out: Path) -> Path:
    """A store with so many of the training trials, none to validate, and one test trial, which a split takes."""
    made, split = out / store.name, tipl.Store.open(store).split()
    if not made.exists():
        tipl.data_export(store, made, trials=[*split.train[:trials], split.test[0]])
    return made


def train(zoo: Path, out: Path, name: str, seed: int, steps: int, windows: int) -> None:
    folder = out / f"{name}-seed-{seed}"
    if (folder / CURVE_FILE).exists() and json.loads((folder / CURVE_FILE).read_text())["curve"][-1]["step"] >= steps:
        return
    count = int(name.removeprefix("envs-")) if name.startswith("envs-") else max(COUNTS)
    settings: dict[str, Any] = {"windows": windows, **BASE, **VARIANTS[name]}
    stores = chosen(zoo, count, name == OTHERS, settings.pop("environments", ()))
    if trials := settings.pop("trials", None):
        stores = [fewer(store, trials, out / name) for store in stores]
    config = dataclasses.replace(
        CausalTrainConfig(), steps=steps, seed=seed, validate_every=max(1, steps // 4), **settings
    )
    validation = [zoo / run.name for run in stores_of(zoo, "validation") if run.env_id not in NOTHING_LEARNED]
    resume = (folder / CHECKPOINT_FILE).exists()
    tipl.train(stores, folder, config, validation=validation, resume=resume)
    print(folder.name, kept(folder), flush=True)


def table(out: Path, file: Path | None) -> None:
    rows = []
    for folder in sorted(path.parent for path in out.glob(f"*/{CURVE_FILE}")):
        last = json.loads((folder / CURVE_FILE).read_text())["curve"][-1]
        name, _, seed = folder.name.rpartition("-seed-")
        rows.append({"variant": name, "seed": int(seed), "steps": last["step"], "loss": last["validation_loss"],
                     "skill": last["skill"]})  # fmt: skip
        print(f"{folder.name:24}", "  ".join(f"{value:7.4f}" for value in last["skill"].values()))
    if file:
        file.write_text(json.dumps(rows, indent=1))


def curve(judged: dict[str, Any], file: Path) -> None:
    """Two panels: skill by the number of environments over all that are held out, and in each of them one step ahead,
    with the names of those where it matters. Means over training seeds."""
    import matplotlib.pyplot as plt

    environments, horizons = judged["environments"], judged["horizons"]
    skill = {}  # by number of environments [seeds, environments, H]
    for name, by in judged["by"].items():
        if name.startswith("envs-"):
            skill.setdefault(int(name.split("-")[1]), []).append([by[env] for env in environments])
    counts = sorted(skill)
    means = np.stack([np.mean(skill[count], axis=0) for count in counts])  # [counts, environments, H]
    figure, (whole, apart) = plt.subplots(1, 2, figsize=(9.5, 3.6))
    for h, color in ((1, "#1f6f8b"), (10, "#c98a1b"), (100, "#777777")):
        at = horizons.index(h)
        whole.plot(counts, means[:, :, at].mean(1), "o-", color=color, markersize=3.5, linewidth=1.2, label=f"h = {h}")
        for count in counts:
            dots = np.array(skill[count])[:, :, at].mean(1)
            whole.plot([count] * len(dots), dots, ".", color=color, markersize=3)
    for row, env in enumerate(environments):
        line = means[:, row, 0]
        matters = line[-1] - line[0] > MATTERS
        apart.plot(counts, line, "-", color="#b3323c" if matters else "#bbb", linewidth=1.1)
        if matters:
            apart.annotate(env, (counts[-1], line[-1]), fontsize=7, xytext=(4, -2), textcoords="offset points")
    whole.set_title(f"{len(environments)} environments that no model learned from", fontsize=9, loc="left")
    apart.set_title("each of them, one snapshot ahead", fontsize=9, loc="left")
    whole.set_ylabel("skill over doing nothing")
    whole.legend(frameon=False, fontsize=8)
    for axis in (whole, apart):
        axis.axhline(0, color="#555", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xlabel("environments that the model learned from")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("train", "table", "curve"))
    parser.add_argument("folder", type=Path, help="the zoo; of a table what was trained, of a curve the file")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--windows", type=int, default=800, help="origins of each store")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    if asked.verb == "table":
        table(asked.folder, asked.json)
        return
    if asked.verb == "curve":
        curve(json.loads(asked.folder.read_text()), asked.picture)
        return
    for seed in asked.seeds:
        for name in asked.only:
            train(asked.folder, asked.out, name, seed, asked.steps, asked.windows)


if __name__ == "__main__":
    main()
