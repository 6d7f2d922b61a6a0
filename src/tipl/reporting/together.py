"""Accelerations in several environments taken together: what is concluded, drawn and tabled.

In: the folders of `tipl accelerate`.  Out: an `Acceleration` like those of single environments.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tipl.acceleration.across import SHARED, across
from tipl.errors import TiplError
from tipl.files import read_json
from tipl.reporting.acceleration import Acceleration, Cell, dot_rows, dot_series, signs
from tipl.reporting.figure import Figure, Rule
from tipl.reporting.metrics import METRICS_BYTES
from tipl.reporting.wording import interval_note, listing, number, number_interval, too_few

TITLE = "All environments"
_JUDGED = "steps to 90%"


def read_together(folders: Sequence[Path]) -> Acceleration | None:
    """What the accelerations that `read_acceleration` took say together; None if they have no two arms in
    common or two of them are of one environment."""
    metrics = [read_json(folder / "metrics.json", dict, METRICS_BYTES, finite=False) for folder in folders]
    try:
        found = across(metrics)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TiplError(
            f"{', '.join(map(str, folders))} are no accelerations to take together ({error!r}); accelerate again with "
            "this version."
        ) from error
    beside = {reference: arms for reference, arms in found["beside"].items() if arms}
    if not beside or len(set(found["environments"])) < len(folders):
        return None
    arms = list(dict.fromkeys(arm for rows in beside.values() for arm in rows))
    columns = [
        *((f"× {reference}, {measure.removeprefix('steps to ')}", reference, measure)
          for reference in beside for measure in SHARED if measure.startswith("steps")),
        *((f"final − {reference}, in gains", reference, "final return") for reference in beside),
    ]  # fmt: skip
    return Acceleration(
        title=TITLE,
        sentence=" ".join(_sentence(reference, rows) for reference, rows in beside.items()),
        facts={"Environments": ", ".join(found["environments"]), "Compared with": " and ".join(beside)},
        figures=tuple(
            _figure(turn, *each, found["environments"])
            for turn, each in enumerate(beside.items())
            if all(row[_JUDGED]["value"] is not None for row in each[1].values())
        ),
        columns=("Arm", *(name for name, _, _ in columns)),
        rows={arm: [_cell(beside[reference].get(arm), measure) for _, reference, measure in columns] for arm in arms},
        settings={},
    )


def _cell(row: Mapping[str, Any] | None, measure: str) -> Cell | None:
    if row is None or row[measure]["value"] is None:
        return None
    return Cell(row[measure]["value"], row[measure]["ci"] and tuple(row[measure]["ci"]))


def _sentence(reference: str, rows: Mapping[str, Any]) -> str:
    """Which arms need fewer environment steps than a reference, and which end lower; corrected for all arms."""
    steps, finals = ([row[measure] for row in rows.values()] for measure in (_JUDGED, "final return"))
    if any(each["value"] is None for each in (*steps, *finals)):
        return f"Beside {reference} nothing is concluded: plain training gains nothing in one of the environments."
    runs = steps[0]["runs"]
    if not any(each["ci"] for each in steps):
        return f"Beside {reference}: {too_few(runs, 'runs')}"
    fewer, lower = [], []
    beside_one, beside_none = (
        signs([(each["value"], each["ci"]) for each in found], null, runs)
        for found, null in ((steps, 1.0), (finals, 0.0))
    )
    for arm, is_fewer, step, is_lower, final in zip(rows, beside_one, steps, beside_none, finals, strict=True):
        if is_fewer < 0 and step["ci"]:
            fewer.append(f"{arm} ({number(step['value'])} × {number_interval(step['ci'])})")
        if is_lower < 0 and final["ci"]:
            lower.append(f"{arm} ({number(final['value'])} {number_interval(final['ci'])} of the gain)")
    said = f"Fewer environment steps than {reference} to 90% of the gain: {listing(fewer) if fewer else 'no arm'}."
    return (
        f"{said} A lower final return: {listing(lower)}." if lower else f"{said} None ends lower beyond the interval."
    )


def _figure(turn: int, reference: str, rows: Mapping[str, Any], environments: Sequence[str]) -> Figure:
    groups = []
    for place, label in enumerate((TITLE, *environments)):
        each = [row[_JUDGED] if place == 0 else row[_JUDGED]["by_environment"][place - 1] for row in rows.values()]
        shift = 0.7 * ((place + 0.5) / (len(environments) + 1) - 0.5)
        groups.append(dot_series(label, place, [e["value"] for e in each], [e["ci"] for e in each], shift))
    panel = dot_rows(f"IQM of environment steps ÷ that of {reference}", list(rows), groups, Rule("As many", 1.0))
    caption = "Until the return of an iteration first reaches 90% of the way from plain training’s first return to its "
    caption += (
        "final one. All environments: steps divided by the reference’s mean in each, seeds of all of them as one "
    )
    runs = next(iter(rows.values()))[_JUDGED]["runs"]
    caption += f"sample, drawn within each environment, paired.{interval_note(runs, 'Bars', 'runs')}"
    name = "steps" if turn == 0 else f"steps-{turn + 1}"
    return Figure(name, f"Environment steps beside {reference}", caption, (panel,))
