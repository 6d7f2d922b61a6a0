"""One metrics.json as typed values, read as what somebody else may have written.

In: the folder of an evaluation or an acceleration.
Out: an `Evaluation`, in which what is null or not finite is absent; or what the file of an acceleration says.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tipl.errors import TiplError
from tipl.files import Absent, Damaged, changed_since_sealed, parse_json, read_file, read_json, require
from tipl.progress import console
from tipl.reporting.parts import Section
from tipl.reporting.wording import ahead
from tipl.shapes import Maybe, OneOf, Whole

SCHEMA = 1
METRICS_BYTES = 256 << 20
LARGEST = 1e100
"""No number that is drawn is larger; axes are made by powers and products of such numbers."""
_TEXT = Maybe((str, None))
_TRIALS = Maybe(([Whole()], None))
_OUTER = {
    **dict.fromkeys(("env_id", "store", "command", "fit"), _TEXT),
    **dict.fromkeys(("train_trials", "validation_trials", "test_trials", "incomplete_trials"), _TRIALS),
    **dict.fromkeys(("config", "versions", "training"), Maybe((dict, None))),
    **dict.fromkeys(("learned_from", "forecasters", "arms"), Maybe(dict)),
    **dict.fromkeys(("num_weights", "episodes"), Maybe((Whole(1), None))),
    "hidden_sizes": Maybe(([Whole(1)], None)),
    "judged": Maybe(OneOf("test", "all", "training")),
}

Curve = dict[int, float]
"""Horizon → value."""
Intervals = dict[int, tuple[float, float]]
"""Horizon → 95% interval."""
Counts = tuple[float, float, float]
"""Of directions, over runs: mean, least, most."""

_LOSSES = {"validation": "validation_loss", "training": "train_loss"}
KEYS = (
    *("wpe", "skill", "skill_minus_best_baseline", "skill_iqm", "trials_improved", "trials_ahead_of_best"),
    *("skill_in_basis", "cosine", "length_ratio"),
    *("repw", "repw_median", "repw_iqm", "repw_largest_share", "repw_minus_persistence"),
    *("true_gain", "gain", "gain_recovered", "change_r2", "better_than_origin"),
)
"""The curves of a forecaster, as ARCHITECTURE.md explains them under metrics.json."""


class Scores:
    """Curves by horizon, and their 95% intervals, under their keys of metrics.json; `trials` stand behind these."""

    def __init__(self, entry: Mapping[str, Any], tested: int) -> None:
        self.trials = int(entry.get("trials") or tested)
        self._curves = {key: _curve(entry.get(key)) for key in KEYS}
        self._intervals = {key: _intervals(entry.get(f"{key}_ci")) for key in KEYS}

    def __getitem__(self, key: str) -> Curve:
        return self._curves[key]

    def ci(self, key: str) -> Intervals:
        return self._intervals[key]


class Forecaster(Scores):
    """One forecaster and its scores over all origins."""

    def __init__(self, name: str, entry: Mapping[str, Any], tested: int) -> None:
        super().__init__(entry, tested)
        self.name, self.label, self.basis = name, str(entry.get("label") or name), entry.get("basis")
        if self.basis:  # said once, by `sees`
            self.label = re.sub(rf" *\([^()]*\b{re.escape(self.basis)}\b[^()]*\)", "", self.label)
        self.causal = bool(entry["causal"])
        self.is_model = bool(entry.get("model", name.startswith("tipl")))
        """Trained by `tipl train`: TIPL, or a rival of its size; every other forecaster is a baseline."""
        counts, bounds = entry.get("skill_by_phase_trials") or {}, entry.get("skill_by_phase_ci") or {}
        self.by_phase = {
            phase: Scores({"trials": counts.get(phase), "skill": curve, "skill_ci": bounds.get(phase)}, self.trials)
            for phase, curve in (entry.get("skill_by_phase") or {}).items()
        }
        """Phase of learning → skill over all origins of that phase."""
        places = entry.get("skill_by_place") or {}
        self.skill_by_place: dict[int, Curve] = {int(place): _curve(curve) for place, curve in places.items()}
        """How many snapshots of its PPO iteration come before the origin → skill."""
        self.returns_by_phase = _all_scores(entry.get("by_phase"), tested)
        self.variants = _all_scores(entry.get("variants"), tested)
        """How else the policies were run → scores at the last return horizon."""
        self.scatter = _scatter(entry["scatter"]) if entry.get("scatter") else []
        """Of single forecasts: horizon, returns of the true policy, of the predicted one and of the origin's."""

    @property
    def sees(self) -> str:
        """The basis by name, with look-ahead marked; empty for a forecaster that needs no basis."""
        if not self.causal:
            return f"{self.basis}: sees the future" if self.basis else "sees the future"
        return f"{self.basis}: past only" if self.basis else ""

    @property
    def full_label(self) -> str:
        """The label, with look-ahead marked."""
        return self.label if self.causal else f"{self.label} ({self.sees})"


class Spectrum:
    """The energy of some runs by direction."""

    def __init__(self, name: str, entry: Mapping[str, Any]) -> None:
        self.of = str(entry.get("of") or name)
        """The matrix that was decomposed, or the name of the whole where the file says no more."""
        self.source = str(entry.get("source") or "trials")
        self.energy = _pairs(entry["directions"], entry["energy"])
        """Numbers of directions, and the share of the energy that they hold."""
        self.over_learning: dict[str, dict[float, Counts]] = {}
        """Share of the energy → snapshots of the run → directions that hold it."""
        for point in entry.get("over_learning") or []:
            snapshots = sum(point["snapshots"]) / len(point["snapshots"])
            for share, counts in point["needed"].items():
                self.over_learning.setdefault(share, {})[snapshots] = _mean_and_range(counts)
        self.by_tensor: dict[str, dict[str, Counts]] = {}
        """Share of the energy → tensor → directions."""
        for tensor, counted in (entry.get("by_tensor") or {}).items():
            row = f"{tensor}\n({counted['size']:,} weight{'' if counted['size'] == 1 else 's'})"
            for share, counts in counted["needed"].items():
                self.by_tensor.setdefault(share, {})[row] = _mean_and_range(counts)


class Evaluation:
    """What one metrics.json says."""

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        def given(key: str) -> Mapping[str, Any]:
            return metrics.get(key) or {}

        def listed(key: str) -> tuple[int, ...]:
            return tuple(metrics.get(key) or ())

        self.store, self.command = str(metrics.get("store") or ""), str(metrics.get("command") or "")
        self.title = str(metrics.get("env_id") or Path(self.store or "data set").stem)
        self.title += ", trials seen in training" if metrics.get("seen") else ""
        self.hidden_sizes, self.num_weights = listed("hidden_sizes"), metrics.get("num_weights")
        self.test_trials, self.train_trials = listed("test_trials"), listed("train_trials")
        self.validation_trials = listed("validation_trials")
        self.apart, self.episodes = _apart(metrics), metrics.get("episodes")
        self.horizons = tuple(int(horizon) for horizon in metrics["horizons"])
        self.return_horizons = tuple(int(horizon) for horizon in listed("return_horizons"))
        tested = len(self.test_trials)  # what files say that do not count the trials of a score
        found = [Forecaster(name, entry, tested) for name, entry in metrics["forecasters"].items()]
        if not found:
            raise ValueError("it has no forecaster")
        _tell_apart(found)
        self.forecasters = tuple(sorted(found, key=lambda forecaster: not forecaster.is_model))
        """Models first, then the baselines in the file's order."""
        self.reconstruction_floor = {model: _curve(curve) for model, curve in given("reconstruction_floor").items()}
        """Model → WPE of the true snapshots in its basis."""
        self.noise_floor = _curve(metrics.get("noise_floor_by_horizon"))
        self.noise_floor_ci = _intervals(metrics.get("noise_floor_by_horizon_ci"))
        true = metrics.get("true_weights")
        self.true_weights = _all_scores({"all": true, **true["by_phase"]}, tested) if true is not None else {}
        """Phase, or all → returns of the true policies under the origin's normalizer."""
        self.variant_floors = {variant: _finite(e.get("noise_floor")) for variant, e in given("variants").items()}
        """How else policies were run → the noise floor there."""
        curves = given("learning_curves").items()
        self.learning_curves = {seed: _pairs(curve["env_step"], curve["return"]) for seed, curve in curves}
        """Trial's seed → environment steps, returns."""
        self.spectra = [Spectrum(name, spectrum) for name, spectrum in given("spectrum").items()]
        self.training = {model: _training(entry) for model, entry in given("training").items()}
        self.config = {**given("config")}
        self.config |= {model: e["config"] for model, e in given("training").items() if isinstance(e, dict)}
        self.versions, seconds = given("versions"), {stage: _finite(e) for stage, e in given("seconds").items()}
        self.seconds = {stage: value for stage, value in seconds.items() if value is not None}

    @property
    def models(self) -> list[Forecaster]:
        return [forecaster for forecaster in self.forecasters if forecaster.is_model]

    def get(self, name: str) -> Forecaster | None:
        return next((forecaster for forecaster in self.forecasters if forecaster.name == name), None)

    def having(self, key: str) -> list[Forecaster]:
        """The forecasters that have a score, but for persistence, of which it is known."""
        return [f for f in self.forecasters if f[key] and f.name != "persistence"]


def read_metrics(folder: Path, again: str, finite: bool = True) -> dict[str, Any]:
    """Return what FOLDER/metrics.json says. Where it was changed since it was written, a line says so.

    Args:
        again: what to do where it cannot be used, as the end of a sentence.
        finite: whether NaN and infinities are refused; otherwise the caller leaves them out.

    Raises:
        Absent: there is no such file.
        TiplError: it is no regular file, too large, no JSON, or of another outer shape.
    """
    path = folder / "metrics.json"
    content = read_file(path, METRICS_BYTES, again)
    found = require(parse_json(content, str(path), again, finite), _OUTER, str(path), again)
    if _largest(found) > LARGEST:
        raise Damaged(f"{path} holds a number larger than {LARGEST:g}, which is no measurement; {again}.")
    if changed_since_sealed(content):
        console.print(f"report: {path} is not as it was written: it was changed or damaged since; {again} to be sure.")
    return found


def peeked(folder: Path) -> dict[str, Any]:
    """Return what FOLDER/metrics.json says, to tell what it is of; of one that cannot be read nothing."""
    try:
        return read_json(folder / "metrics.json", dict, METRICS_BYTES, finite=False)
    except TiplError:
        return {}


def section_from(
    folder: Path, schema: int, again: str, what: str, section: Callable[[dict[str, Any]], Section]
) -> Section:
    """Make a section of FOLDER/metrics.json.

    Args:
        again: what to do where it cannot be used, as the end of a sentence.
        what: it is, or is of: `an acceleration`, `of a ceiling`.

    Raises:
        TiplError: it has another schema, or holds something else.
    """
    path, metrics = folder / "metrics.json", read_metrics(folder, again)
    if metrics.get("schema") != schema:
        raise TiplError(f"{path} has schema {metrics.get('schema')!r}, this version reads {schema}; {again} with it.")
    try:
        return section(metrics)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, StopIteration) as error:
        raise TiplError(f"{path} is not {what} ({error!r}); {again} with this version.") from error


def _largest(value: Any) -> float:
    """The largest finite number in what JSON says, without its sign."""
    if isinstance(value, dict | list):
        return max((_largest(each) for each in (value.values() if isinstance(value, dict) else value)), default=0.0)
    return abs(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def read_evaluation(folder: Path) -> Evaluation:
    """Read FOLDER/metrics.json.

    Raises:
        TiplError: the file is missing, is not JSON, has another schema, or holds something that is no evaluation.
    """
    path = folder / "metrics.json"
    try:
        metrics = read_metrics(folder, "evaluate again", finite=False)
    except Absent as error:
        if (folder / "zarr.json").exists():
            raise TiplError(f"{folder} is a store; run `tipl evaluate {folder}` and report what it writes.") from error
        raise TiplError(f"{path} does not exist; run `tipl evaluate STORE --out {folder}` first.") from error
    schema = metrics.get("schema")
    if schema != SCHEMA:
        raise TiplError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; evaluate again with this version.")
    try:
        return Evaluation(metrics)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fault = f"lacks the key {error}" if isinstance(error, KeyError) else f"is not an evaluation ({error})"
        raise TiplError(f"{path} {fault}; evaluate again with this version.") from error


def _apart(metrics: Mapping[str, Any]) -> str:
    """How the judged trials stand to what was learned from, by store ids and seeds; empty of an earlier file."""
    if "judged" not in metrics:
        return ""
    kind = {"test": "test trials", "all": "all trials of the store", "training": "training trials"}[metrics["judged"]]
    unknown = [name for name, learned in (metrics.get("learned_from") or {}).items() if learned is None]
    incomplete = metrics.get("incomplete_trials") or []
    parts = [
        f"{kind}, seen in training"
        if metrics.get("seen")
        else f"{kind}; neither a model nor a baseline learned from them",
        f"what {', '.join(unknown)} learned from is not known" if unknown else "",
        f"not complete: {', '.join(map(str, incomplete))}" if incomplete else "",
    ]
    return "; ".join(part for part in parts if part)


def _tell_apart(forecasters: Sequence[Forecaster]) -> None:
    """Put the names of those that share a label with another, as two models of one kind do, at its end."""
    labels = Counter(each.full_label for each in forecasters)
    for each in [each for each in forecasters if labels[each.full_label] > 1]:
        if not each.label.endswith(f" {each.name}"):
            each.label += f", {each.name}"


def _all_scores(entries: Mapping[str, Any] | None, tested: int) -> dict[str, Scores]:
    return {name: Scores(entry, tested) for name, entry in (entries or {}).items()}


def _mean_and_range(counts: list[int]) -> Counts:
    return sum(counts) / len(counts), float(min(counts)), float(max(counts))


def _training(entry: Any) -> dict[str, dict[float, float]]:
    """What is measured in training → optimizer step → value; the rows are alone or in training's record (`curve`)."""
    found: dict[str, dict[float, float]] = {}
    for row in entry["curve"] if isinstance(entry, dict) else entry:
        skills = _curve(row.get("skill") or {h: row.get(f"skill_{h}") for h in ("1", "10")})
        losses = {f"{kind} loss": _finite(row.get(key)) for kind, key in _LOSSES.items()}
        for what, value in (*losses.items(), *((ahead([h]), value) for h, value in skills.items())):
            if value is not None:
                found.setdefault(what, {})[float(row["step"])] = value
    return found


def _scatter(scatter: Mapping[str, Any]) -> list[tuple[int, float, float, float]]:
    columns = (scatter[key] for key in ("horizon", "true", "predicted", "origin"))
    return [(int(h), *rest) for h, *rest in zip(*columns, strict=True) if None not in map(_finite, (h, *rest))]


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _curve(curve: Mapping[str, Any] | None) -> Curve:
    items = ((int(horizon), _finite(value)) for horizon, value in (curve or {}).items())
    return {horizon: value for horizon, value in sorted(items, key=lambda item: item[0]) if value is not None}


def _intervals(intervals: Mapping[str, Any] | None) -> Intervals:
    items = ((int(horizon), _interval(pair)) for horizon, pair in (intervals or {}).items())
    return {horizon: pair for horizon, pair in sorted(items, key=lambda item: item[0]) if pair is not None}


def _interval(pair: Any) -> tuple[float, float] | None:
    low, high = map(_finite, pair if pair is not None else (None, None))
    return None if low is None or high is None else (low, high)


def _pairs(x: list[Any], y: list[Any]) -> tuple[list[float], list[float]]:
    """The points of which both numbers are there."""
    found = [(_finite(a), _finite(b)) for a, b in zip(x, y, strict=True)]
    kept = [(a, b) for a, b in found if a is not None and b is not None]
    return [a for a, _ in kept], [b for _, b in kept]
