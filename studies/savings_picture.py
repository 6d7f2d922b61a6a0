"""Three questions about jumps, a picture each: do they save steps, beyond a tuned rate, beyond rivals?

In: what `savings.py table --json` wrote.  Out: OUT/steps.png, OUT/tuned.png, OUT/rivals.png. Each shows the steps to
90% of plain PPO's gain of every arm ÷ those of one reference: a dot an environment, and the geometric mean over
environments with its 95% interval by Student's t, which is printed too.

    python studies/savings_picture.py results/rivals/tuned.json --out results/rivals
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import geometric_mean
from savings import table

LABELS = {
    "plain": "plain PPO",
    "adaptive": "plain PPO, rate adapted to KL",
    "reuse": "last batches used again",
    "outer": "Outer-PPO",
    "outer, Nesterov": "Outer-PPO with Nesterov momentum",
    "pptb-like": "trimming and boosting",
    "lookahead": "Lookahead",
    "average": "jumps to the average",
    "line": "jumps along a line",
    "outer and context": "Outer-PPO and jumps to forecasts",
}
"""What is tuned, as a stranger would call it; from top to bottom."""
OURS = "outer and context"
LEAST, MOST = 0.15, 4.0  # where a picture ends at the earliest
TICKS = (0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3)


@dataclass(frozen=True)
class Question:
    file: str
    asked: str
    reference: str
    """The arm that all are divided by, as the table calls it."""


QUESTIONS = (
    Question("steps", "Does it save steps? All tuned, beside plain PPO at its default rate", "plain, default rate"),
    Question("tuned", "Beyond tuning? All tuned, beside tuned plain PPO", "plain"),
    Question("rivals", "Beyond rivals? All tuned, beside tuned Outer-PPO", "outer"),
)


def ratios_of(rows: Sequence[Mapping[str, Any]], reference: str) -> dict[str, dict[str, float]]:
    """By arm, by environment: its steps ÷ those of a reference."""
    rows_of = {row["arm"]: row for row in rows if row["beside"] == reference}
    return {
        arm: {name: one["value"] for name, one in zip(row["environments"], row["steps"]["by_environment"], strict=True)}
        for arm in LABELS
        if (row := rows_of.get(arm))
    }


def draw(question: Question, found: Mapping[str, Mapping[str, float]], file: Path) -> None:
    import matplotlib.pyplot as plt

    environments = list(dict.fromkeys(name for by in found.values() for name in by))
    figure, axis = plt.subplots(figsize=(8.5, 1.1 + 0.32 * len(found)))
    for number, name in enumerate(environments):
        rows = [row for row, by in enumerate(found.values()) if name in by]
        axis.scatter([found[arm][name] for arm in np.array(list(found))[rows]], np.array(rows) - 0.16, s=16,
                     marker="os^"[number // 10], color=plt.get_cmap("tab10")(number % 10),
                     label=name.removesuffix(" 64-64"), zorder=3)  # fmt: skip
    for row, (arm, by) in enumerate(found.items()):
        mean = geometric_mean(list(by.values()))
        low, high = mean["ci"] or [mean["value"]] * 2
        print(f"{question.file}: {arm} ÷ {question.reference}: {mean['value']:.2f} [{low:.2f}, {high:.2f}], "
              f"{len(by)} environments")  # fmt: skip
        axis.plot([low, high], [row + 0.16] * 2, color="#333", linewidth=1.2)
        axis.plot(mean["value"], row + 0.16, "D", color="#333", markersize=5, label="over environments" * (row == 0))
    axis.axvline(1, color="#555", linewidth=0.8)
    axis.set_xscale("log")
    every = [ratio for by in found.values() for ratio in by.values()]
    axis.set_xlim(min(LEAST, 0.9 * min(every)), max(MOST, 1.1 * max(every)))
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.minorticks_off()
    few = {arm: f", {len(by)} environments" for arm, by in found.items() if len(by) < len(environments)}
    axis.set_yticks(range(len(found)), [LABELS[arm] + few.get(arm, "") for arm in found], fontsize=8)
    for label, arm in zip(axis.get_yticklabels(), found, strict=True):
        label.set_fontweight("bold" if arm == OURS else "normal")
    axis.invert_yaxis()
    axis.grid(axis="y", color="#eee")
    axis.set_axisbelow(True)
    axis.set_xlabel("steps to 90% of plain PPO's gain, ratio (less is better)", fontsize=8)
    axis.set_title(question.asked, fontsize=9, loc="left")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    asked = parser.parse_args()
    rows = table(json.loads(asked.table.read_text())["environments"])
    for question in QUESTIONS:
        if found := ratios_of(rows, question.reference):
            draw(question, found, asked.out / f"{question.file}.png")


if __name__ == "__main__":
    main()
