"""One evaluation's metrics.json as typed values.

In: an evaluation's folder.  Out: an `Evaluation`, in which a value that is null or not finite is simply absent.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tipl.errors import TiplError
from tipl.files import Absent
from tipl.reporting.metrics import read_metrics
from tipl.reporting.values import Curve, Intervals, curve_of, finite, interval_of, intervals_of, pairs_of

SCHEMA = 1


@dataclass(frozen=True)
class Scatter:
    """Returns of single forecasts: of the true policy, of the predicted one and of the origin's; all [N·E]."""

    horizon: tuple[int, ...]
    true: tuple[float, ...]
    predicted: tuple[float, ...]
    origin: tuple[float, ...]


@dataclass(frozen=True)
class ReturnScores:
    """Returns of one forecaster's policies: over all origins, of one phase of learning, or of a variant."""

    trials: int
    """Behind the intervals."""
    repw: Curve
    repw_ci: Intervals
    repw_median: Curve
    """Of single origins; so is the IQM."""
    repw_iqm: Curve
    repw_largest_share: Curve
    """What the worst origin makes of the sum."""
    repw_lead: Curve
    """REPW minus persistence's; below zero is better."""
    repw_lead_ci: Intervals
    true_gain: Curve
    true_gain_ci: Intervals
    gain: Curve
    """Mean return that the forecast adds to the origin's."""
    gain_ci: Intervals
    gain_recovered: Curve
    gain_recovered_ci: Intervals
    change_r2: Curve
    change_r2_ci: Intervals
    better_than_origin: Curve
    better_than_origin_ci: Intervals


@dataclass(frozen=True)
class Forecaster:
    """One forecaster's scores. Words as in the project's design: WPE, skill, REPW, gain recovered."""

    name: str
    label: str
    basis: str | None
    causal: bool
    is_model: bool
    """Trained by `tipl train`: TIPL, or a rival of its size; every other forecaster is a baseline."""
    trials: int
    """Behind the intervals."""
    wpe: Curve
    skill: Curve
    skill_ci: Intervals
    lead_ci: Intervals
    """Of skill minus the best baseline's, paired by trial."""
    skill_iqm: Curve
    """IQM over trials of each trial's own skill."""
    skill_iqm_ci: Intervals
    improved: Curve
    """Share of test trials in which its error is smaller than persistence's."""
    improved_ci: Intervals
    ahead: Curve
    """Share of test trials in which its error is smaller than the best baseline's."""
    ahead_ci: Intervals
    skill_in_basis: Curve
    """Between encoded and decoded snapshots; empty for a forecaster in no basis."""
    cosine: Curve
    length_ratio: Curve
    skill_by_place: dict[int, Curve]
    """Place of the origin in its PPO iteration → skill."""
    skill_by_place_ci: dict[int, Intervals]
    skill_by_phase: dict[str, Curve]
    skill_by_phase_ci: dict[str, Intervals]
    trials_by_phase: dict[str, int]
    """Behind those intervals."""
    returns: ReturnScores
    """With mean actions, each forecast under its origin's observation normalizer."""
    returns_by_phase: dict[str, ReturnScores]
    variants: dict[str, ReturnScores]
    """At the last return horizon, how else the policies were run → scores."""
    scatter: Scatter | None

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


@dataclass(frozen=True)
class Validation:
    """One point of a training curve."""

    step: float
    train_loss: float | None
    validation_loss: float | None
    skill: Curve


@dataclass(frozen=True)
class Spectrum:
    """The energy of some runs by direction; counts are means over the runs, with the least and the most."""

    of: str
    """The matrix that was decomposed, or the name of the whole where the file says no more."""
    source: str
    """trials, walk or annealed-walk."""
    energy: tuple[list[float], list[float]]
    """Numbers of directions, and the share of the energy that they hold."""
    over_learning: dict[str, dict[float, tuple[float, float, float]]]
    """Share of the energy → snapshots of the run → directions that hold it: mean, least, most."""
    by_tensor: dict[str, dict[str, tuple[float, float, float]]]
    """Share of the energy → tensor → directions."""


@dataclass(frozen=True)
class Evaluation:
    """What one metrics.json says."""

    title: str
    store: str
    hidden_sizes: tuple[int, ...]
    num_weights: int | None
    test_trials: tuple[int, ...]
    validation_trials: tuple[int, ...]
    train_trials: tuple[int, ...]
    apart: str
    """What says that nothing judged was learned from, and which trials were taken as they are."""
    horizons: tuple[int, ...]
    return_horizons: tuple[int, ...]
    episodes: int | None
    forecasters: tuple[Forecaster, ...]
    """Models first, then the baselines in the file's order."""
    reconstruction_floor: dict[str, Curve]
    """Model → WPE of the true snapshots in its basis."""
    noise_floor: Curve
    noise_floor_ci: Intervals
    """By return horizon."""
    true_weights: dict[str, ReturnScores]
    """Phase, or all → returns of the true policies under the origin's normalizer."""
    variant_floors: dict[str, tuple[float | None, tuple[float, float] | None]]
    """How else policies were run → the noise floor there and its interval."""
    learning_curves: dict[str, tuple[list[float], list[float]]]
    """Trial's seed → environment steps, returns."""
    spectra: dict[str, Spectrum]
    training: dict[str, list[Validation]]
    """Model → its validations in order."""
    config: dict[str, Any]
    versions: dict[str, Any]
    command: str
    seconds: dict[str, float]

    @property
    def models(self) -> list[Forecaster]:
        return [forecaster for forecaster in self.forecasters if forecaster.is_model]

    def get(self, name: str) -> Forecaster | None:
        return next((forecaster for forecaster in self.forecasters if forecaster.name == name), None)


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
        return _evaluation(metrics)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fault = f"lacks the key {error}" if isinstance(error, KeyError) else f"is not an evaluation ({error})"
        raise TiplError(f"{path} {fault}; evaluate again with this version.") from error


def _evaluation(metrics: dict[str, Any]) -> Evaluation:
    tested = len(metrics.get("test_trials") or ())  # what files say that do not count the trials of a score
    forecasters = _told_apart([_forecaster(name, entry, tested) for name, entry in metrics["forecasters"].items()])
    if not forecasters:
        raise ValueError("it has no forecaster")
    training = metrics.get("training") or {}
    return Evaluation(
        title=str(metrics.get("env_id") or Path(str(metrics.get("store") or "data set")).stem)
        + (", trials seen in training" if metrics.get("seen") else ""),
        store=str(metrics.get("store") or ""),
        hidden_sizes=tuple(metrics.get("hidden_sizes") or ()),
        num_weights=metrics.get("num_weights"),
        test_trials=tuple(metrics.get("test_trials") or ()),
        validation_trials=tuple(metrics.get("validation_trials") or ()),
        train_trials=tuple(metrics.get("train_trials") or ()),
        apart=_apart(metrics),
        horizons=tuple(int(horizon) for horizon in metrics["horizons"]),
        return_horizons=tuple(int(horizon) for horizon in metrics.get("return_horizons") or ()),
        episodes=metrics.get("episodes"),
        forecasters=tuple(sorted(forecasters, key=lambda forecaster: not forecaster.is_model)),
        reconstruction_floor={
            model: curve_of(curve) for model, curve in (metrics.get("reconstruction_floor") or {}).items()
        },
        noise_floor=curve_of(metrics.get("noise_floor_by_horizon")),
        noise_floor_ci=intervals_of(metrics.get("noise_floor_by_horizon_ci")),
        true_weights={
            "all": _return_scores(metrics["true_weights"], tested),
            **{phase: _return_scores(scores, tested) for phase, scores in metrics["true_weights"]["by_phase"].items()},
        }
        if "true_weights" in metrics
        else {},
        variant_floors={
            variant: (finite(entry.get("noise_floor")), interval_of(entry.get("noise_floor_ci")))
            for variant, entry in (metrics.get("variants") or {}).items()
        },
        learning_curves={
            seed: pairs_of(curve["env_step"], curve["return"])
            for seed, curve in (metrics.get("learning_curves") or {}).items()
        },
        spectra={name: _spectrum(name, spectrum) for name, spectrum in (metrics.get("spectrum") or {}).items()},
        training={model: _validations(entry) for model, entry in training.items()},
        config=(metrics.get("config") or {})
        | {model: entry["config"] for model, entry in training.items() if isinstance(entry, dict)},
        versions=metrics.get("versions") or {},
        command=str(metrics.get("command") or ""),
        seconds={stage: value for stage, entry in (metrics.get("seconds") or {}).items() if (value := finite(entry))},
    )


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


def _told_apart(forecasters: list[Forecaster]) -> list[Forecaster]:
    """Those that share a label with another, as two models of one kind do, with their names at its end."""
    labels = Counter(each.full_label for each in forecasters)
    return [
        replace(each, label=f"{each.label}, {each.name}")
        if labels[each.full_label] > 1 and not each.label.endswith(f" {each.name}")
        else each
        for each in forecasters
    ]


def _forecaster(name: str, entry: Mapping[str, Any], tested: int) -> Forecaster:
    basis, causal, label = entry.get("basis"), bool(entry["causal"]), str(entry.get("label") or name)
    if basis:  # said once, by `sees`
        label = re.sub(rf" *\([^()]*\b{re.escape(basis)}\b[^()]*\)", "", label)
    return Forecaster(
        name=name,
        label=label,
        basis=basis,
        causal=causal,
        is_model=bool(entry.get("model", name.startswith("tipl"))),
        trials=int(entry.get("trials") or tested),
        wpe=curve_of(entry.get("wpe")),
        skill=curve_of(entry.get("skill")),
        skill_ci=intervals_of(entry.get("skill_ci")),
        lead_ci=intervals_of(entry.get("skill_minus_best_baseline_ci")),
        skill_iqm=curve_of(entry.get("skill_iqm")),
        skill_iqm_ci=intervals_of(entry.get("skill_iqm_ci")),
        improved=curve_of(entry.get("trials_improved")),
        improved_ci=intervals_of(entry.get("trials_improved_ci")),
        ahead=curve_of(entry.get("trials_ahead_of_best")),
        ahead_ci=intervals_of(entry.get("trials_ahead_of_best_ci")),
        skill_in_basis=curve_of(entry.get("skill_in_basis")),
        cosine=curve_of(entry.get("cosine")),
        length_ratio=curve_of(entry.get("length_ratio")),
        skill_by_place={int(place): curve_of(curve) for place, curve in (entry.get("skill_by_place") or {}).items()},
        skill_by_place_ci={int(p): intervals_of(pairs) for p, pairs in (entry.get("skill_by_place_ci") or {}).items()},
        skill_by_phase={phase: curve_of(curve) for phase, curve in (entry.get("skill_by_phase") or {}).items()},
        skill_by_phase_ci={phase: intervals_of(p) for phase, p in (entry.get("skill_by_phase_ci") or {}).items()},
        trials_by_phase={phase: int(n) for phase, n in (entry.get("skill_by_phase_trials") or {}).items()},
        returns=_return_scores(entry, tested),
        returns_by_phase={
            name: _return_scores(scores, tested) for name, scores in (entry.get("by_phase") or {}).items()
        },
        variants={variant: _return_scores(scores, tested) for variant, scores in (entry.get("variants") or {}).items()},
        scatter=_scatter(entry.get("scatter")),
    )


def _return_scores(entry: Mapping[str, Any], tested: int) -> ReturnScores:
    return ReturnScores(
        trials=int(entry.get("trials") or tested),
        repw=curve_of(entry.get("repw")),
        repw_ci=intervals_of(entry.get("repw_ci")),
        repw_median=curve_of(entry.get("repw_median")),
        repw_iqm=curve_of(entry.get("repw_iqm")),
        repw_largest_share=curve_of(entry.get("repw_largest_share")),
        repw_lead=curve_of(entry.get("repw_minus_persistence")),
        repw_lead_ci=intervals_of(entry.get("repw_minus_persistence_ci")),
        true_gain=curve_of(entry.get("true_gain")),
        true_gain_ci=intervals_of(entry.get("true_gain_ci")),
        gain=curve_of(entry.get("gain")),
        gain_ci=intervals_of(entry.get("gain_ci")),
        gain_recovered=curve_of(entry.get("gain_recovered")),
        gain_recovered_ci=intervals_of(entry.get("gain_recovered_ci")),
        change_r2=curve_of(entry.get("change_r2")),
        change_r2_ci=intervals_of(entry.get("change_r2_ci")),
        better_than_origin=curve_of(entry.get("better_than_origin")),
        better_than_origin_ci=intervals_of(entry.get("better_than_origin_ci")),
    )


def _spectrum(name: str, entry: Mapping[str, Any]) -> Spectrum:
    over_learning: dict[str, dict[float, tuple[float, float, float]]] = {}
    for point in entry.get("over_learning") or []:
        for share, counts in point["needed"].items():
            snapshots = sum(point["snapshots"]) / len(point["snapshots"])
            over_learning.setdefault(share, {})[snapshots] = _mean_and_range(counts)
    by_tensor: dict[str, dict[str, tuple[float, float, float]]] = {}
    for tensor, counted in (entry.get("by_tensor") or {}).items():
        for share, counts in counted["needed"].items():
            size = counted["size"]
            row = f"{tensor}\n({size:,} weight{'' if size == 1 else 's'})"
            by_tensor.setdefault(share, {})[row] = _mean_and_range(counts)
    return Spectrum(
        of=str(entry.get("of") or name),
        source=str(entry.get("source") or "trials"),
        energy=pairs_of(entry["directions"], entry["energy"]),
        over_learning=over_learning,
        by_tensor=by_tensor,
    )


def _mean_and_range(counts: list[int]) -> tuple[float, float, float]:
    return sum(counts) / len(counts), float(min(counts)), float(max(counts))


def _validations(entry: Any) -> list[Validation]:
    """The rows of a training curve, alone or in the record that training keeps (`curve`)."""
    rows = entry["curve"] if isinstance(entry, dict) else entry
    return [
        Validation(
            step=float(row["step"]),
            train_loss=finite(row.get("train_loss")),
            validation_loss=finite(row.get("validation_loss")),
            skill=curve_of(row.get("skill") or {h: row.get(f"skill_{h}") for h in ("1", "10")}),
        )
        for row in rows
    ]


def _scatter(scatter: Mapping[str, Any] | None) -> Scatter | None:
    if not scatter:
        return None
    rows = zip(scatter["horizon"], scatter["true"], scatter["predicted"], scatter["origin"], strict=True)
    kept = [row for row in rows if all(finite(value) is not None for value in row)]
    if not kept:
        return None
    horizon, true, predicted, origin = zip(*kept, strict=True)
    return Scatter(tuple(int(value) for value in horizon), true, predicted, origin)
