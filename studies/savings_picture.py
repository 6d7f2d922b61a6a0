"""Three questions about jumps, a picture each: do they save steps, beyond a tuned rate, beyond rivals?

In: what `savings.py table --json` wrote, once or several times for different environments.  Out: OUT/steps.png,
OUT/tuned.png, OUT/rivals.png. Each shows, by environment, the steps to 90% of plain PPO's gain of some arms ÷ those of
a reference, with 95% intervals; and geometric means over environments, over those that `zoo` never saw too, with
intervals by Student's t over environments, which are printed.

    python studies/savings_picture.py results/rivals/table.json results/rivals/held-out.json --out results/rivals
    python studies/savings_picture.py results/rivals/{untuned,tuned}.json --out results/rivals --only sigma

The last is of `savings_tuned.toml`, and of what it was at commit 81837c8: OUT/sigma.png.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from zoo import runs_of

PLAIN, BEST = "plain, default rate", ", best in hindsight"
COLORS = {"outer": "#777777", "outer and zoo": "#1f6f8b", "outer and context": "#b3323c"}
COLORS |= {"outer and context, untuned": "#1f6f8b", "outer and context, sigma 3": "#777777"}
LABELS = {"outer and context, untuned": "σ = 1.5, critic jumps too", "outer and context, sigma 3": "σ = 3"}
LEAST, MOST = 0.3, 3.0  # where a picture ends


@dataclass(frozen=True)
class Question:
    file: str
    asked: str
    arms: Mapping[str, str]
    """By arm, the reference beside which it is shown."""


QUESTIONS = (
    Question("steps", "Do forecasts save steps? Beside plain PPO, all at its default rate", {
        "outer": PLAIN, "outer and zoo": PLAIN, "outer and context": PLAIN}),
    Question("tuned", "Beyond a tuned rate? Beside plain PPO, all at the better of two rates", {
        f"outer{BEST}": f"plain{BEST}", f"outer and zoo{BEST}": f"plain{BEST}",
        f"outer and context{BEST}": f"plain{BEST}"}),
    Question("rivals", "Beyond rivals? Beside Outer-PPO at the better of two rates, and beside reuse", {
        f"outer and zoo{BEST}": f"outer{BEST}", f"outer and context{BEST}": f"outer{BEST}",
        "outer and context": "reuse"}),
)  # fmt: skip
SIGMA = Question("sigma", "Beyond Outer-PPO with a longer step? σ = 1.5, σ = 3, and both as tuned on other seeds", {
    "outer and context, untuned": "outer, untuned", "outer and context, sigma 3": "outer, sigma 3",
    "outer and context": "outer"})  # fmt: skip


def merged(tables: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """By arm and reference, by environment: the ratio and its interval."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in (row for table in tables for row in table["rows"]):
        each = dict(zip(row["environments"], row["steps"]["by_environment"], strict=True))
        found.setdefault((row["arm"], row["beside"]), {}).update(each)
    return found


def over(ratios: Sequence[float]) -> dict[str, Any]:
    """The geometric mean, and its interval if there are three environments or more."""
    logs = np.log(ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)) if len(logs) > 2 else np.nan
    value, low, high = np.exp(logs.mean() + half * np.array([0, -1, 1])) if len(logs) > 2 else [np.exp(logs.mean())] * 3
    return {"value": float(value), "ci": [float(low), float(high)]}


def draw(question: Question, found: Mapping[tuple[str, str], dict[str, dict[str, Any]]], file: Path) -> None:
    import matplotlib.pyplot as plt

    unseen = {run.env_id for run in runs_of("first") if run.part == "held out"}
    shown = [(arm, beside, found[arm, beside]) for arm, beside in question.arms.items() if (arm, beside) in found]
    every = dict.fromkeys(name for *_, by in shown for name in by)
    names = sorted(every, key=lambda name: name.split()[0] in unseen)
    groups = {"all": names, "never seen by zoo": [name for name in names if name.split()[0] in unseen]}
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.3 * (len(names) + 2)))
    for place, (arm, beside, by) in enumerate(shown):
        means = {group: over([by[name]["value"] for name in of if name in by]) for group, of in groups.items()}
        print(f"{file.stem}: {arm} ÷ {beside}:", "; ".join(
            f"{group} ({sum(name in by for name in groups[group])}) {one['value']:.2f} [{one['ci'][0]:.2f}, "
            f"{one['ci'][1]:.2f}]" for group, one in means.items()))  # fmt: skip
        each = [(names.index(name), by[name]) for name in names if name in by]
        each += [(len(names) + number, one) for number, one in enumerate(means.values())]
        high = np.array([y for y, _ in each]) + (place - (len(shown) - 1) / 2) * 0.22
        value = np.array([one["value"] for _, one in each])
        low, up = np.array([one["ci"] for _, one in each]).T
        label = LABELS.get(arm, arm.removesuffix(BEST))
        if len(set(question.arms.values())) > 1 and arm not in LABELS:
            label += f" ÷ {beside.removesuffix(BEST)}"
        axis.errorbar(
            value, high, xerr=np.maximum([value - low, up - value], 0), fmt="o" if place < 2 else "D", markersize=3.5,
            linewidth=1, color=COLORS[arm.removesuffix(BEST)], label=label,
        )  # fmt: skip
    axis.axvline(1, color="#555", linewidth=0.8)
    axis.axhline(len(names) - 0.5, color="#bbb", linewidth=0.6)
    axis.set_xscale("log")
    axis.set_xlim(LEAST, MOST)
    ticks = (0.3, 0.5, 0.75, 1, 1.5, 2, 3)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    labels = [*(name.removesuffix(" 64-64") for name in names), *groups]
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("steps to 90% of plain PPO's gain, ratio (less is better)", fontsize=8)
    axis.set_title(question.asked, fontsize=9, loc="left")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", choices=(SIGMA.file,), help="this picture, of a table that has its arms")
    asked = parser.parse_args()
    found = merged([json.loads(file.read_text()) for file in asked.tables])
    for question in [SIGMA] if asked.only else QUESTIONS:
        draw(question, found, asked.out / f"{question.file}.png")


if __name__ == "__main__":
    main()
