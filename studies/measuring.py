"""What studies share that measure along runs in some environments: a command line, numbers, a picture of panels.

In: what a study measures, and how it reports it.  Out: OUT/ENVIRONMENT.json; a table and a picture of all of them.

    python studies/STUDY.py measure OUT                                  what is there is not made again
    python studies/STUDY.py report OUT --json FILE --picture FILE
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from tipl.files import write_json

Rows = Sequence[dict[str, Any]]


def command_line(
    about: str | None, measured: Callable[..., Any], report: Callable[[Mapping[str, Any]], Rows],
    show: Callable[[Rows], None], draw: Callable[[Rows, Path], None] | None = None, *,
    environments: Sequence[str], iterations: int, every: int, **more: int,
) -> None:  # fmt: skip
    """Do what a study's command line asks.

    Args:
        measured: takes an environment's id, seeds, `iterations`, `every` and what `more` names; returns what a file
            keeps.
        report: makes rows of what `measured` returned, by environment.
        show: prints rows.
        draw: draws them to a file.
        environments, iterations, every, more: defaults of flags; `every` counts iterations between two measurements.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "report"))
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--environments", nargs="+", default=environments, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1101, 1102], metavar="N")
    counts = {"iterations": iterations, "every": every} | more
    for name, count in counts.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"[{count}]")
    parser.add_argument("--json", type=Path, metavar="FILE")
    if draw:
        parser.add_argument("--picture", type=Path, metavar="FILE")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.what == "measure":
        for env_id in asked.environments:
            settings = {name: getattr(asked, name) for name in ("seeds", *counts)}
            if not (file := asked.out / f"{env_id}.json").exists():
                print(env_id, flush=True)
                write_json(file, settings | {"measured": measured(env_id, **settings)})
        return
    found = {file.stem: json.loads(file.read_text()) for file in sorted(asked.out.glob("*.json"))}
    for name in (name for name, of in found.items() if "measured" not in of):
        print(f"left out: {name}.json, which holds no measurements of this version")
    rows = report({name: of["measured"] for name, of in found.items() if "measured" in of})
    show(rows)
    if asked.json:
        write_json(asked.json, {"rows": rows})
    if draw and asked.picture:
        draw(rows, asked.picture)


def mean_and_error(values: np.ndarray) -> list[float]:
    """Return the mean and its standard error, as of independent values."""
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]


def geometric_mean(ratios: Sequence[float]) -> dict[str, Any]:
    """Return the geometric mean and, of two or more, its 95% interval by Student's t."""
    assert len(ratios) and min(ratios) > 0
    logs = np.log(ratios)
    if len(logs) < 2:
        return {"value": float(np.exp(logs.mean())), "ci": None}
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    value, low, high = np.exp(logs.mean() + half * np.array([0, -1, 1]))
    return {"value": float(value), "ci": [float(low), float(high)]}


def panels(
    rows: Rows, fill: Callable[[Any, dict[str, Any]], None], x: str, y: str, file: Path, same_y: bool = False
) -> None:
    """A panel for each environment of the rows, and one legend. `fill` draws a row to an axis."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["env_id"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(2.3 * len(names), 2.6), squeeze=False, sharey=same_y)
    for axis, name in zip(axes[0], names, strict=True):
        for row in (row for row in rows if row["env_id"] == name):
            fill(axis, row)
        axis.axhline(0, color="#555", linewidth=0.8)
        axis.set_title(name, fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].set_ylabel(y, fontsize=8)
    figure.supxlabel(x, fontsize=8, y=0.16)
    figure.legend(handles, labels, ncols=len(labels), frameon=False, fontsize=8, loc="lower center")
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)
