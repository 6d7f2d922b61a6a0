"""Facts on the terminal: line by line, with a table for every list of rows, or as JSON.

In: a mapping of facts.  Out: text on standard output.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tipl.errors import printable
from tipl.files import to_json
from tipl.shapes import leaves

_WIDE = 1000  # characters


def show(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print facts as JSON, or line by line, with a table for every list of rows."""
    if as_json:
        print(to_json(facts, "standard output"))
        return
    from tipl.progress import PlainConsole

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE  # a row is a line where a program reads it
    console = PlainConsole(width=wide)
    for name, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            _show_table(console, name, value)
        else:
            console.print(f"{_words(name)}: {_cell(name, value)}", soft_wrap=True)


def _show_table(console: Any, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """What is the same in every row is said once, above the table."""
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    same = [name for name in rows[0] if len(rows) > 1 and all(row[name] == rows[0][name] for row in rows)]
    for name in same:
        console.print(f"all {_words(title)}: {_words(name)} {_cell(name, rows[0][name])}", soft_wrap=True)
    names = [name for name in rows[0] if name not in same]
    table = Table(title=_words(title))
    for name in names:
        table.add_column(_words(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(_cell(name, row[name]))) for name in names))
    if Measurement.get(console, console.options.update(max_width=_WIDE), table).minimum <= console.width:
        console.print(table)
        return
    for row in rows:  # a number that is cut in two is read as another one
        console.print(
            ", ".join(f"{_words(name)} {printable(_cell(name, row[name]))}" for name in names), soft_wrap=True
        )


def evaluation_facts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation's metrics.json says in a few lines and a table, for `show`."""
    horizons, ran = _few(metrics["horizons"]), _few(metrics.get("return_horizons") or [])
    rows = []
    for name, scores in sorted(metrics["forecasters"].items(), key=lambda item: not item[1]["model"]):
        row: dict[str, Any] = {"forecaster": f"{name}{'' if scores['causal'] else ' (sees the future)'}"}
        row |= {f"skill h={h}": _rounded(scores["skill"].get(str(h))) for h in horizons}
        repw = scores.get("repw") or {}
        row |= {f"REPW h={h}": _rounded(repw[str(h)]) if str(h) in repw else "" for h in ran}
        rows.append(row)
    models = {name: each for name, each in metrics["forecasters"].items() if each["model"]}
    best = {
        f"best_baseline_beside_{name}": ", ".join(f"{each['best_baseline'][str(h)]} at h={h}" for h in horizons)
        for name, each in models.items()
        if each.get("best_baseline")
    }
    kind = {"test": "test trials", "all": "all trials", "training": "training trials"}[metrics["judged"]]
    apart = "seen in training" if metrics["seen"] else "of which nothing judged here has learned"
    count = len(metrics["test_trials"])
    return {
        "judged_on": f"{count} {kind} of {metrics['store']}, {apart}",
        **({"noise_floor_of_REPW": metrics["noise_floor"]} if "noise_floor" in metrics else {}),
        **best,
        "forecasters": rows,
    }  # fmt: skip


def ceiling_facts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a ceiling's metrics.json says in a few lines and a table, for `show`."""
    horizons = [str(h) for h in metrics["horizons"]]
    rows = [
        {"forecaster": name}
        | {f"share h={h}": _rounded(scores["share"][h]) for h in horizons}
        | {f"cosine h={h}": _rounded(scores["cosine"][h]) for h in horizons}
        for name, scores in sorted(metrics["forecasters"].items(), key=lambda item: not item[1]["model"])
    ]
    trials = len(metrics["test_trials"])
    return {
        "branched": f"{len(metrics['origins'])} origins of {trials} trials of {metrics['store']}, {metrics['futures']} "
        "futures each",
        "ceiling": ", ".join(f"{_rounded(metrics['ceiling'][h])} at h={h}" for h in horizons),
        "of_the_ceiling": rows,
    }


def table_facts(table: Mapping[str, Any]) -> dict[str, Any]:
    """What a table of many evaluations says, a row an environment and forecaster, for `show`."""
    rows = [
        {
            "environment": row["environment"],
            "forecaster": row["forecaster"],
            "mean of": row["of"],
            **{f"skill at {h}": _rounded(row["skill"][str(h)]) for h in _few(sorted(map(int, row.get("skill", ()))))},
        }
        for row in [*table["environments"], *({"environment": "all", **row} for row in table["all"] if row["of"] > 1)]
    ]
    return {"judged": rows}


def acceleration_facts(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison's metrics.json says in a few lines and a table, for `show`."""
    from tipl.evaluation.statistics import LEAST_TRIALS

    arms = metrics["arms"]
    plain, *others = arms
    count = len(metrics["seeds"])
    few = f"too few seeds (N = {count})" if count < LEAST_TRIALS else ""
    rows = []
    for name in others:
        for measure, beside in arms[name]["beside"].items():
            bounds = beside.get("ratio_ci")
            rows.append(
                {
                    "arm": name,
                    "measure": measure,
                    plain: _rounded(arms[plain][measure]["mean"]),
                    "with jumps": _rounded(arms[name][measure]["mean"]),
                    "ratio": _rounded(beside["ratio"]),
                    "95% interval": f"{_rounded(bounds[0])} to {_rounded(bounds[1])}" if bounds else few,
                }
            )
    return {"env_id": metrics["env_id"], "seeds": count, "beside_plain": rows}


def _few(horizons: Sequence[int]) -> list[int]:
    """The first, the middle one and the last: what has room in a terminal."""
    return sorted({horizons[i] for i in (0, len(horizons) // 2, -1)}) if horizons else []


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _words(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _cell(name: str, value: Any) -> str:
    match value:
        case int() if name.endswith("bytes"):
            return f"{value / 1e6:,.1f} MB" if value >= 1e6 else f"{value / 1e3:,.1f} kB"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{key} {item}" for key, item in leaves(value))
        case list() | tuple():
            return ", ".join(_cell(name, each) for each in value) or "none"
    return str(value)
