"""What one evaluation says: of doing nothing, of a line, and of the paper's claims.

In: an `Evaluation`.  Out: its verdict, and the `Section` of the page with all of its figures and numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from tipl.evaluation.statistics import LEAST_TRIALS, Interval, holm, p_value
from tipl.reporting import curves
from tipl.reporting import figures as forecasts
from tipl.reporting.parts import Cell, Figure, Row, Section
from tipl.reporting.read import Evaluation, Forecaster
from tipl.reporting.wording import ahead, duration, listing, number, score

Word = Literal["better", "worse", "no better"]


@dataclass
class Judgment:
    """A difference whose sign is in question: a skill, or a skill minus another's; over `trials` trials."""

    value: float
    interval: tuple[float, float] | None
    trials: int
    p: float | None = None
    """Of no difference, corrected for all the judgments of the verdict; None without an interval."""

    @property
    def word(self) -> Word:
        """What the corrected p-value says; without one, what the value alone says."""
        if self.value == 0 or (self.p is not None and self.p > 0.05):
            return "no better"
        return "better" if self.value > 0 else "worse"


@dataclass(frozen=True)
class Standing:
    """One forecaster against doing nothing and against the best baseline, by horizon."""

    forecaster: Forecaster
    nothing: dict[int, Judgment]
    line: dict[int, Judgment]
    returns: dict[int, Judgment]
    """REPW of doing nothing minus this one's: above 0, its policies' returns are the closer ones."""


@dataclass(frozen=True)
class Verdict:
    """The answer of one evaluation."""

    sentence: str
    findings: tuple[tuple[str, str], ...]
    """Where the paper's model is there: headings, and what is said of its claims and of the other models."""
    horizons: tuple[int, ...]
    """One step and ten steps ahead where the evaluation has them."""
    standings: tuple[Standing, ...]
    """The models, the one in question first; then the best baselines at these horizons."""


def verdict(evaluation: Evaluation) -> Verdict:
    """Judge an evaluation's models, a causal one before one that sees the future."""
    horizons = _two_horizons(evaluation)
    best = {h: baseline for h in horizons if (baseline := best_baseline(evaluation, h))}
    models = sorted(evaluation.models, key=lambda model: not model.causal)
    rivals = list(dict.fromkeys(baseline.name for baseline in best.values() if baseline.name != "persistence"))
    baselines = [forecaster for name in rivals if (forecaster := evaluation.get(name))]
    standings = [_standing(forecaster, horizons, best) for forecaster in [*models, *baselines]]
    _correct(standings)
    findings = _findings(evaluation, standings, best)
    return Verdict(_sentence(standings, best, bool(models)), findings, horizons, tuple(standings))


def best_baseline(evaluation: Evaluation, horizon: int) -> Forecaster | None:
    """The baseline that sees only the past and has the highest skill; doing nothing counts as one."""
    rivals = [f for f in evaluation.forecasters if f.causal and not f.is_model and horizon in f["skill"]]
    return max(rivals, key=lambda forecaster: forecaster["skill"][horizon], default=None)


def _two_horizons(evaluation: Evaluation) -> tuple[int, ...]:
    known = {h for f in evaluation.forecasters for h in f["skill"]} & set(evaluation.horizons)
    return tuple(forecasts.panel_horizons([dict.fromkeys(known, 0.0)]))


def _standing(forecaster: Forecaster, horizons: tuple[int, ...], best: Mapping[int, Forecaster]) -> Standing:
    skill, trials = {h: forecaster["skill"][h] for h in horizons if h in forecaster["skill"]}, forecaster.trials
    lead_ci, repw_ci = forecaster.ci("skill_minus_best_baseline"), forecaster.ci("repw_minus_persistence")
    return Standing(
        forecaster,
        nothing={h: Judgment(value, forecaster.ci("skill").get(h), trials) for h, value in skill.items()},
        line={
            h: Judgment(value - best[h]["skill"][h], lead_ci.get(h), trials)
            for h, value in skill.items()
            if h in best and best[h].name != forecaster.name
        },
        returns={
            h: Judgment(-value, (-pair[1], -pair[0]) if (pair := repw_ci.get(h)) else None, trials)
            for h, value in forecaster["repw_minus_persistence"].items()
            if h in horizons
        },
    )


def _correct(standings: Sequence[Standing]) -> None:
    """Give p-values that hold for all judgments together: as many signs as there are, some would be wrong."""
    judgments = [j for s in standings for kind in (s.nothing, s.line, s.returns) for j in kind.values()]
    single = [p_value(Interval(j.value, *(j.interval or (None, None)), j.trials), 0.0) for j in judgments]  # pyright: ignore[reportCallIssue]
    adjusted = iter(holm([p for p in single if p is not None]))
    for judgment, p in zip(judgments, single, strict=True):
        judgment.p = None if p is None else next(adjusted)


# Sentences


def _sentence(standings: Sequence[Standing], best: Mapping[int, Forecaster], has_model: bool) -> str:
    if not has_model:
        found = {standing.forecaster.name: standing.nothing for standing in standings}
        judged = {h: found[b.name][h] if b.name in found else Judgment(0.0, None, b.trials) for h, b in best.items()}
        return f"There is no model here. The best baseline that sees only the past ({_names(best)}) is " + (
            f"{_clause(judged, 'doing nothing')}." if judged else "not known: no forecaster has a skill."
        )
    judged = next((s for s in standings if s.forecaster.is_model and s.nothing), None)
    if judged is None:
        return "The model’s skill is not known: this evaluation does not give it."
    return _of_model(judged, best) + _chance([judged])


def _of_model(standing: Standing, best: Mapping[int, Forecaster]) -> str:
    subject = standing.forecaster.full_label
    sentence = f"{subject[0].upper()}{subject[1:]} is {_clause(standing.nothing, 'doing nothing')}"
    if standing.line:
        rival = f"the best baseline that sees only the past ({_names(best)})"
        sentence += f". It is {_clause(standing.line, rival, said=tuple(standing.nothing))}"
    judgments = [*standing.nothing.values(), *standing.line.values()]
    if any(judgment.word == "better" for judgment in judgments) and not standing.forecaster.causal:
        sentence += ". It sees the future, so even where it is better it is no forecast"
    return f"{sentence}.{_of_returns(standing)}"


def _chance(standings: Sequence[Standing]) -> str:
    judgments = [j for standing in standings for j in (*standing.nothing.values(), *standing.line.values())]
    if all(judgment.interval for judgment in judgments):
        return ""
    count = standings[0].forecaster.trials
    return f" There are too few test trials for an interval (N = {count}), so this may be chance."


def _findings(
    evaluation: Evaluation, standings: Sequence[Standing], best: Mapping[int, Forecaster]
) -> tuple[tuple[str, str], ...]:
    """What the paper claims, what of it holds, what other models add; nothing where the paper's model is not there."""
    judged = {s.forecaster.name: s for s in standings if s.forecaster.is_model and s.nothing}
    paper = judged.pop("tipl", None)
    if paper is None or paper.forecaster.causal:
        return ()
    claim = "A Transformer can forecast the weights of a policy ten steps ahead. The error of the weights (WPE) grows "
    claim += "with every step, that of the return (REPW) stays level, and the returns of the forecast policies lie on "
    claim += "the diagonal against the true ones."
    found = [("What the paper claims", claim), ("What holds", _of_model(paper, best) + _of_claims(evaluation, paper))]
    causal = [standing for standing in judged.values() if standing.forecaster.causal]
    for standing in (*(s for s in judged.values() if s not in causal), *causal):
        label, text = standing.forecaster.full_label, _of_model(standing, best)
        if standing.forecaster.causal:
            text += _beside(standing, paper)
        is_only = causal == [standing]
        found.append(("What the causal model adds" if is_only else f"What {label} adds", text))
    last, text = found[-1]
    return (*found[:-1], (last, text + _chance([paper, *judged.values()])))


def _of_claims(evaluation: Evaluation, paper: Standing) -> str:
    """How REPW grows beside WPE, and how near the returns are to the diagonal; beside doing nothing."""
    model, still, said = paper.forecaster, evaluation.get("persistence"), ""
    wpe, repw = model["wpe"], model["repw"]
    steps = [h for h in evaluation.return_horizons if wpe.get(h) and repw.get(h)]
    if len(steps) > 1:
        of_wpe, of_repw = (curve[steps[-1]] / curve[steps[0]] for curve in (wpe, repw))
        word = "grows less, as the paper says" if of_repw < of_wpe else "grows as much, which the paper denies"
        said += f" From {steps[0]} to {steps[-1]} steps ahead its WPE becomes {number(of_wpe)} times as large, its "
        said += f"REPW {number(of_repw)} times. So REPW {word}."
    if still and (both := [h for h in repw if h in still["repw"]]):
        smaller = sum(still["repw"][h] < repw[h] for h in both)
        said += f" Doing nothing has the smaller REPW at {smaller} of {len(both)} steps."
    if (ours := _diagonal(model)) is not None and still and (theirs := _diagonal(still)) is not None:
        said += f" About the diagonal its returns have R² {score(ours)}, those of doing nothing {score(theirs)}."
    return said


def _diagonal(forecaster: Forecaster) -> float | None:
    """R² of the true returns, forecast by the predicted ones, all horizons together; None where they never differ."""
    true, made = (np.array([row[i] for row in forecaster.scatter], float) for i in (1, 2))
    spread = float(((true - true.mean()) ** 2).sum()) if len(true) > 1 else 0.0
    return 1 - float(((true - made) ** 2).sum()) / spread if spread else None


def _beside(standing: Standing, paper: Standing) -> str:
    """A causal model's skills beside those of the paper's model, which sees the future."""
    both = [h for h in standing.nothing if h in paper.nothing]
    said = [f"{score(standing.nothing[h].value)} against {score(paper.nothing[h].value)} {ahead([h])}" for h in both]
    return f" Its skill beside that of the paper’s model, which sees the future: {listing(said)}." if said else ""


def _of_returns(standing: Standing) -> str:
    """Whether its policies do what the true ones do, at the last of the two horizons that returns were measured at."""
    known = [h for h in standing.nothing if h in standing.returns]
    if not known:
        return ""
    words = {"better": "closer to", "worse": "farther from", "no better": "no closer to"}
    word = words[standing.returns[known[-1]].word]
    return f" Run as policies, its forecasts have returns {word} the true ones than doing nothing {ahead(known[-1:])}."


def _clause(judgments: Mapping[int, Judgment], against: str, said: tuple[int, ...] = ()) -> str:
    """``worse than AGAINST 1 step ahead and no better 10 steps ahead``; horizons `said` before are not repeated."""
    groups: dict[Word, list[int]] = {}
    for horizon, judgment in judgments.items():
        groups.setdefault(judgment.word, []).append(horizon)
    parts = []
    for place, (word, horizons) in enumerate(groups.items()):
        rival = f"than {against} " if place == 0 else ""
        when = "at both" if tuple(horizons) == said and len(said) == 2 else ahead(horizons)
        parts.append(f"{word} {rival}{when}")
    return listing(parts)


def _names(best: Mapping[int, Forecaster]) -> str:
    horizons_of: dict[str, list[int]] = {}
    for horizon, baseline in best.items():
        horizons_of.setdefault(baseline.label, []).append(horizon)
    if len(horizons_of) == 1:
        return next(iter(horizons_of))
    return listing([f"{label} {ahead(horizons)}" for label, horizons in horizons_of.items()])


# The section


def section_of(evaluation: Evaluation) -> Section:
    """All that the page says of an evaluation."""
    judged = verdict(evaluation)
    drawn, left_out = all_figures(evaluation)
    widths = "-".join(map(str, evaluation.hidden_sizes))
    facts = {
        "Policy": f"{widths} hidden, {evaluation.num_weights:,} weights" if widths and evaluation.num_weights else "",
        "Test trials": f"{len(evaluation.test_trials) or ''}",
        "Training trials": f"{len(evaluation.train_trials) or ''}",
        "Episodes a policy": f"{evaluation.episodes or ''}",
        "Bases": listing(list(dict.fromkeys(f.sees for f in evaluation.models if f.sees))),
    }
    data = {
        "store": evaluation.store,
        "test trials": _seeds(evaluation.test_trials),
        "validation trials": _seeds(evaluation.validation_trials),
        "training trials": _seeds(evaluation.train_trials),
        "judged on": evaluation.apart,
    }
    columns = [column for column in COLUMNS if any(f[column[1]] for f in evaluation.forecasters)]
    return Section(
        title=evaluation.title,
        sentence=judged.sentence,
        findings=judged.findings,
        answer=_answer(evaluation, judged),
        facts={name: text for name, text in facts.items() if text},
        figures=drawn,
        left_out=left_out,
        columns=("Forecaster", "steps ahead", *(word for word, _, _ in columns)),
        rows=[
            Row(f.label, [Cell(h, write=str), *cells], f.sees, not f.causal, h)
            for f in evaluation.forecasters
            for h in evaluation.horizons
            if any(cells := [_cell(f, key, h, write) for _, key, write in columns])
        ],
        settings={
            "Data": {name: text for name, text in data.items() if text},
            "Settings": evaluation.config,
            "Versions": evaluation.versions,
            "Time": {stage: duration(seconds) for stage, seconds in evaluation.seconds.items()},
        },
        command=evaluation.command,
    )


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("WPE", "wpe", number),
    ("skill", "skill", score),
    ("skill, IQM", "skill_iqm", score),
    ("trials improved", "trials_improved", "{:.0%}".format),
    ("trials ahead of best", "trials_ahead_of_best", "{:.0%}".format),
    ("skill in basis", "skill_in_basis", score),
    ("cosine", "cosine", score),
    ("length ratio", "length_ratio", score),
    ("REPW", "repw", number),
    ("REPW, median", "repw_median", number),
    ("REPW, IQM", "repw_iqm", number),
    ("worst origin", "repw_largest_share", "{:.0%}".format),
    ("REPW − persistence", "repw_minus_persistence", number),
    ("return gained", "gain", number),
    ("gain recovered", "gain_recovered", score),
    ("change R²", "change_r2", score),
    ("better than origin", "better_than_origin", "{:.0%}".format),
)
"""Of the table of all numbers: word, key, how it is written."""


def _cell(f: Forecaster, key: str, horizon: int, write: Callable[[float], str], **more: Any) -> Cell | None:
    value, pair = f[key].get(horizon), f.ci(key).get(horizon)
    return None if value is None else Cell(value, pair if pair and pair[0] < pair[1] else None, "", write, **more)


def _answer(evaluation: Evaluation, judged: Verdict) -> tuple[Sequence[str], Sequence[Row], str]:
    """The table of the first screen: how the models and the best baseline stand."""
    horizons, rows = judged.horizons, []
    if not horizons:
        return (), (), ""
    last = horizons[-1]

    def cell(judgment: Judgment | None) -> Cell | None:
        if judgment is None:
            return None
        note = "" if judgment.interval else "too few trials"
        return Cell(judgment.value, judgment.interval, note, score, judgment.word)

    for standing in judged.standings:
        f, of_returns = standing.forecaster, standing.returns.get(last)
        repw = _cell(f, "repw", last, number, sign=of_returns.word if of_returns else "")
        cells = [*(cell(each.get(h)) for each in (standing.nothing, standing.line) for h in horizons), repw]
        rows.append(Row(f.label, cells, f.sees or ("" if f.is_model else "best baseline"), not f.causal))
    still, floor = evaluation.get("persistence"), evaluation.noise_floor.get(last)
    for name, note, skill, repw in (
        ("Doing nothing", "persistence", 0.0, _cell(still, "repw", last, number) if still else None),
        ("A perfect forecast", "noise floor", 1.0,
         Cell(floor, evaluation.noise_floor_ci.get(last)) if floor is not None else None),
    ):  # fmt: skip
        if (still and not skill) or repw:
            known = [Cell(skill, None, "by definition", "{:.0f}".format) for _ in horizons]
            rows.append(Row(name, [*known, *(None for _ in horizons), repw], note))
    counts = list(dict.fromkeys(standing.forecaster.trials for standing in judged.standings))
    said, signs = ", ".join(map(str, counts)), "▲ better, ▼ worse, ≈ no better"
    if all(count < LEAST_TRIALS for count in counts):
        note = f"Too few test trials for 95% intervals (N = {said}). {signs}: by the value alone, which may be chance."
    else:
        note = f"In brackets: 95% intervals (N = {said} test trials). {signs}: corrected for all signs of the "
        note += "evaluation; of REPW that of its difference to doing nothing, paired by trial."
    heads = [f"{word}, {ahead([h])}" for word in ("skill", "minus best baseline") for h in horizons]
    return ("Forecaster", *heads, f"REPW, {ahead([last])}"), rows, note


def all_figures(evaluation: Evaluation) -> tuple[list[Figure], list[str]]:
    """All figures that the evaluation has the numbers for, and the titles of those left out."""
    makers: list[tuple[str, Callable[[Evaluation], Figure | None]]] = [
        ("skill by horizon", forecasts.skill),
        ("skill by snapshot of the PPO iteration", forecasts.by_place),
        ("skill by phase of learning", forecasts.by_phase),
        ("look-ahead", forecasts.look_ahead),
        ("share of trials improved", forecasts.improved),
        ("return errors of single origins", forecasts.return_errors),
        ("return gained", forecasts.return_gained),
        ("gain recovered", forecasts.gain_recovered),
        ("other ways to run the policies", forecasts.variants),
        ("energy spectra", curves.spectra),
        ("directions over learning: displacements", partial(curves.directions_over_learning, of="displacements")),
        ("directions over learning: weights", partial(curves.directions_over_learning, of="weights")),
        ("directions by tensor", curves.directions_by_tensor),
        ("training curve", curves.training_curve),
        ("learning curves", curves.learning_curves),
    ]
    drawn = [figure for model in evaluation.models if (figure := forecasts.figure_2(evaluation, model))]
    left_out = [] if drawn else ["the paper’s Figure 2"]
    if not any(forecaster["repw"] for forecaster in evaluation.forecasters):
        left_out.append("returns of predicted policies")
    made = {title: make(evaluation) for title, make in makers}
    drawn += [figure for figure in made.values() if figure]
    return drawn, left_out + [title for title, figure in made.items() if not figure]


def _seeds(trials: Sequence[int]) -> str:
    """``1–12, 15``: runs of consecutive seeds are drawn together."""
    runs: list[list[int]] = []
    for seed in sorted(trials):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
