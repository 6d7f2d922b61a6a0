"""Is this better than doing nothing, and better than a line? The answer, made from the numbers.

In: an `Evaluation`.  Out: one sentence and the few judgments behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tipl.evaluation.statistics import Interval, holm, p_value
from tipl.reporting.read import Evaluation, Forecaster
from tipl.reporting.wording import ahead, listing

Word = Literal["better", "worse", "no better"]


@dataclass(frozen=True)
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
    """The first screen of one evaluation."""

    sentence: str
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
    standings = _corrected([_standing(forecaster, horizons, best) for forecaster in [*models, *baselines]])
    return Verdict(_sentence(standings, best, bool(models)), horizons, tuple(standings))


def best_baseline(evaluation: Evaluation, horizon: int) -> Forecaster | None:
    """The baseline that sees only the past and has the highest skill; doing nothing counts as one."""
    rivals = [f for f in evaluation.forecasters if f.causal and not f.is_model and horizon in f.skill]
    return max(rivals, key=lambda forecaster: forecaster.skill[horizon], default=None)


def _two_horizons(evaluation: Evaluation) -> tuple[int, ...]:
    known = sorted({h for f in evaluation.forecasters for h in f.skill} & set(evaluation.horizons))
    if not known:
        return ()
    return tuple(dict.fromkeys((known[0], 10 if 10 in known else known[-1])))


def _standing(forecaster: Forecaster, horizons: tuple[int, ...], best: Mapping[int, Forecaster]) -> Standing:
    known, trials, returns = [h for h in horizons if h in forecaster.skill], forecaster.trials, forecaster.returns
    return Standing(
        forecaster,
        nothing={h: Judgment(forecaster.skill[h], forecaster.skill_ci.get(h), trials) for h in known},
        line={
            h: Judgment(forecaster.skill[h] - best[h].skill[h], forecaster.lead_ci.get(h), trials)
            for h in known
            if h in best and best[h].name != forecaster.name
        },
        returns={
            h: Judgment(-value, (-pair[1], -pair[0]) if (pair := returns.repw_lead_ci.get(h)) else None, returns.trials)
            for h, value in returns.repw_lead.items()
            if h in horizons
        },
    )


def _corrected(standings: Sequence[Standing]) -> list[Standing]:
    """With p-values that hold for all judgments together: as many signs as there are, some would be wrong."""
    of = ("nothing", "line", "returns")
    places = [(turn, kind, h) for turn, each in enumerate(standings) for kind in of for h in getattr(each, kind)]
    judgments = [getattr(standings[turn], kind)[h] for turn, kind, h in places]
    single = [p_value(Interval(j.value, *(j.interval or (None, None)), j.trials), 0.0) for j in judgments]  # pyright: ignore[reportCallIssue]
    known = [turn for turn, p in enumerate(single) if p is not None]
    made: list[dict[str, dict[int, Judgment]]] = [
        {kind: dict(getattr(each, kind)) for kind in of} for each in standings
    ]
    for place, p in zip(known, holm([p for p in single if p is not None]), strict=True):
        turn, kind, h = places[place]
        made[turn][kind][h] = replace(judgments[place], p=p)
    return [replace(each, **kinds) for each, kinds in zip(standings, made, strict=True)]


def _sentence(standings: list[Standing], best: Mapping[int, Forecaster], has_model: bool) -> str:
    if not has_model:
        found = {standing.forecaster.name: standing.nothing for standing in standings}
        judged = {h: found[b.name][h] if b.name in found else Judgment(0.0, None, b.trials) for h, b in best.items()}
        return f"There is no model here. The best baseline that sees only the past ({_names(best)}) is " + (
            f"{_clause(judged, 'doing nothing')}." if judged else "not known: no forecaster has a skill."
        )
    judged = next((s for s in standings if s.forecaster.is_model and s.nothing), None)
    if judged is None:
        return "The model’s skill is not known: this evaluation does not give it."
    subject = judged.forecaster.full_label
    sentence = f"{subject[0].upper()}{subject[1:]} is {_clause(judged.nothing, 'doing nothing')}"
    if judged.line:
        rival = f"the best baseline that sees only the past ({_names(best)})"
        sentence += f", and {_clause(judged.line, rival, said=tuple(judged.nothing))}"
    judgments = [*judged.nothing.values(), *judged.line.values()]
    if any(judgment.word == "better" for judgment in judgments) and not judged.forecaster.causal:
        sentence += "; it sees the future, so even where it is better it is no forecast"
    sentence += f".{_of_returns(judged)}"
    if any(judgment.interval is None for judgment in judgments):
        count = judged.forecaster.trials
        return f"{sentence} There are too few test trials for an interval (N = {count}), so this may be chance."
    return sentence


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
