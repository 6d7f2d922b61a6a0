"""The tables of the page, in HTML: the answer in numbers, and all numbers.

In: evaluations with their verdicts, accelerations.  Out: strings of HTML.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from tipl.evaluation.statistics import LEAST_TRIALS
from tipl.reporting.acceleration import Acceleration, Cell
from tipl.reporting.read import Evaluation, Forecaster
from tipl.reporting.values import Curve, Intervals
from tipl.reporting.verdict import Judgment, Standing, Verdict
from tipl.reporting.wording import GLOSSARY, ahead, interval, number, number_interval, score, slug

SIGNS = {"better": "▲", "worse": "▼", "no better": "≈"}
LEAD = "minus best baseline"
NOTHING = '<td class="none" data-label="{label}"><span title="not measured or not defined">–</span></td>'


def summary(judged: Sequence[tuple[Evaluation, Verdict]]) -> str:
    """The answer in numbers: how the models and the best baseline stand in every evaluation."""
    horizons = list(dict.fromkeys(h for _, verdict in judged for h in verdict.horizons))
    if not horizons:
        return ""
    each = "".join(f'<th scope="col" class="number">{ahead([h])}</th>' for h in horizons)
    first = "".join(f'<th colspan="{len(horizons)}" scope="colgroup">{word(w)}</th>' for w in ("skill", LEAD))
    head = (
        f'<tr><td></td>{first}<th scope="colgroup">{word("REPW")}</th></tr>'
        f'<tr><th scope="col">Forecaster</th>{each}{each}'
        f'<th scope="col" class="number">{ahead(horizons[-1:])}</th></tr>'
    )
    bodies = "".join(_summary_body(*pair, horizons, len(judged) > 1) for pair in judged)
    signs = "▲ better, ▼ worse, ≈ no better"
    counts = {evaluation.title: standing.forecaster.trials for evaluation, v in judged for standing in v.standings}
    said = ", ".join(str(count) for count in dict.fromkeys(counts.values()))
    if all(count < LEAST_TRIALS for count in counts.values()):
        note = f"Too few test trials for {word('95% interval')}s (N = {said}). {signs}: by the value alone, which may "
        note += "be chance."
    else:
        note = f"In brackets: {word('95% interval')}s (N = {said} test trials). {signs}: {word('corrected')} for all "
        note += "signs of the evaluation; of REPW that of its difference to doing nothing, paired by trial."
    return (
        f'<div class="table-frame"><table class="summary"><caption class="hidden">The answer in numbers</caption>'
        f'<thead>{head}</thead>{bodies}</table></div><p class="note">{note}</p>'
    )


def _summary_body(evaluation: Evaluation, verdict: Verdict, horizons: Sequence[int], has_title: bool) -> str:
    last = horizons[-1]
    rows = [_standing_row(standing, horizons) for standing in verdict.standings]
    persistence = evaluation.get("persistence")
    if persistence:
        repw = _repw_cell(persistence.returns.repw.get(last), persistence.returns.repw_ci.get(last), last)
        rows.append(_reference_row("Doing nothing", "persistence", "0", repw, horizons))
    if evaluation.noise_floor:
        repw = _repw_cell(evaluation.noise_floor.get(last), evaluation.noise_floor_ci.get(last), last)
        rows.append(_reference_row("A perfect forecast", "noise floor", "1", repw, horizons))
    title = f'<th colspan="{2 * len(horizons) + 2}" scope="rowgroup">{escape(evaluation.title)}</th>'
    group = f'<tr class="group">{title}</tr>' if has_title else ""
    return f"<tbody>{group}{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody>"


def _reference_row(label: str, small: str, skill: str, repw: str, horizons: Sequence[int]) -> str:
    """A row whose skill is known beforehand."""
    skills = "".join(
        f'<td class="number" data-label="Skill, {ahead([h])}"><span>{skill}</span><small>by definition</small></td>'
        for h in horizons
    )
    leads = "".join(NOTHING.format(label=_lead_label(h)) for h in horizons)
    return _row_head(label, small) + skills + leads + repw


def _lead_label(horizon: int) -> str:
    return f"{LEAD.capitalize()}, {ahead([horizon])}"


def _standing_row(standing: Standing, horizons: Sequence[int]) -> str:
    forecaster, last = standing.forecaster, horizons[-1]
    sees = forecaster.sees or ("best baseline" if not forecaster.is_model else "")
    return (
        _row_head(forecaster.label, sees, is_warning=not forecaster.causal)
        + "".join(_judgment_cell(standing.nothing.get(h), f"Skill, {ahead([h])}") for h in horizons)
        + "".join(_judgment_cell(standing.line.get(h), _lead_label(h)) for h in horizons)
        + _repw_cell(
            forecaster.returns.repw.get(last), forecaster.returns.repw_ci.get(last), last, standing.returns.get(last)
        )
    )


def _row_head(label: str, sees: str, is_warning: bool = False) -> str:
    small = f"<small{' class=warning' if is_warning else ''}>{escape(sees)}</small>" if sees else ""
    return f'<th scope="row">{escape(label)}{small}</th>'


def _judgment_cell(judgment: Judgment | None, label: str) -> str:
    if judgment is None:
        return NOTHING.format(label=label)
    bounds = interval(judgment.interval) if judgment.interval else "too few trials"
    return (
        f'<td class="number" data-label="{label}" data-value="{judgment.value!r}"><span>{_sign(judgment)}'
        f"{score(judgment.value)}</span><small>{bounds}</small></td>"
    )


def _sign(judgment: Judgment) -> str:
    word = judgment.word
    return f'<span class="sign {word.replace(" ", "-")}" role="img" aria-label="{word}">{SIGNS[word]}</span>'


def _repw_cell(
    value: float | None, bounds: tuple[float, float] | None, horizon: int, judgment: Judgment | None = None
) -> str:
    """REPW with its interval, and the sign of its paired difference to doing nothing's."""
    label = f"REPW, {ahead([horizon])}"
    if value is None:
        return NOTHING.format(label=label)
    small = number_interval(bounds) if bounds else ""
    text = f"<span>{_sign(judgment) if judgment else ''}{number(value)}</span><small>{small}</small>"
    return f'<td class="number" data-label="{label}" data-value="{value!r}">{text}</td>'


@dataclass(frozen=True)
class _Column:
    """A column of the table of all numbers."""

    word: str
    curve: Callable[[Forecaster], Curve]
    bounds: Callable[[Forecaster], Intervals]
    text: Callable[[float], str]


def _no_bounds(_: Forecaster) -> Intervals:
    return {}


COLUMNS = (
    _Column("WPE", lambda f: f.wpe, _no_bounds, number),
    _Column("skill", lambda f: f.skill, lambda f: f.skill_ci, score),
    _Column("skill, IQM", lambda f: f.skill_iqm, lambda f: f.skill_iqm_ci, score),
    _Column("trials improved", lambda f: f.improved, lambda f: f.improved_ci, "{:.0%}".format),
    _Column("trials ahead of best", lambda f: f.ahead, lambda f: f.ahead_ci, "{:.0%}".format),
    _Column("skill in basis", lambda f: f.skill_in_basis, _no_bounds, score),
    _Column("cosine", lambda f: f.cosine, _no_bounds, score),
    _Column("length ratio", lambda f: f.length_ratio, _no_bounds, score),
    _Column("REPW", lambda f: f.returns.repw, lambda f: f.returns.repw_ci, number),
    _Column("REPW, median", lambda f: f.returns.repw_median, _no_bounds, number),
    _Column("REPW, IQM", lambda f: f.returns.repw_iqm, _no_bounds, number),
    _Column("worst origin", lambda f: f.returns.repw_largest_share, _no_bounds, "{:.0%}".format),
    _Column("REPW − persistence", lambda f: f.returns.repw_lead, lambda f: f.returns.repw_lead_ci, number),
    _Column("return gained", lambda f: f.returns.gain, lambda f: f.returns.gain_ci, number),
    _Column("gain recovered", lambda f: f.returns.gain_recovered, lambda f: f.returns.gain_recovered_ci, score),
    _Column("change R²", lambda f: f.returns.change_r2, lambda f: f.returns.change_r2_ci, score),
    _Column(
        "better than origin",
        lambda f: f.returns.better_than_origin,
        lambda f: f.returns.better_than_origin_ci,
        "{:.0%}".format,
    ),
)


def all_numbers(evaluation: Evaluation, anchor: str) -> str:
    """The sortable table: every forecaster at every horizon, and the columns that hold anything."""
    columns = [column for column in COLUMNS if any(column.curve(f) for f in evaluation.forecasters)]
    rows = "".join(
        f'<tr data-horizon="{h}"><th scope="row" data-value="{escape(f.label)}">{escape(f.label)}'
        f"<small{'' if f.causal else ' class=warning'}>{escape(f.sees)}</small></th>"
        f'<td class="number" data-value="{h}">{h}</td>{"".join(_cell(column, f, h) for column in columns)}</tr>'
        for f in evaluation.forecasters
        for h in evaluation.horizons
        if any(h in column.curve(f) for column in columns)
    )
    options = "".join(f'<option value="{h}">{ahead([h])}</option>' for h in evaluation.horizons)
    identity = f"{anchor}-numbers"
    head = _sort_head("Forecaster", "Forecaster", False) + _sort_head(word("steps ahead"), "steps ahead", True)
    head += "".join(_sort_head(word(column.word), column.word, True) for column in columns)
    return (
        f'<div class="numbers" id="{identity}"><div class="heading"><h3>All numbers</h3>'
        f'<label class="needs-script">Show <select aria-controls="{identity}-table"><option value="">all steps</option>'
        f'{options}</select></label></div><div class="table-frame scroll" tabindex="0" role="region" '
        f'aria-label="All numbers"><table class="sortable" id="{identity}-table"><caption class="hidden">'
        f"{escape(evaluation.title)}: every forecaster at every horizon</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def _sort_head(text: str, name: str, is_number: bool) -> str:
    button = f'<button type="button" class="needs-script" aria-label="Sort by {escape(name)}"></button>'
    return f'<th scope="col"{" class=number" if is_number else ""}>{text}{button}</th>'


def _cell(column: _Column, forecaster: Forecaster, horizon: int) -> str:
    value = column.curve(forecaster).get(horizon)
    if value is None:
        return NOTHING.format(label=column.word)
    pair = column.bounds(forecaster).get(horizon)
    bounds = f"<small>[{column.text(pair[0])}, {column.text(pair[1])}]</small>" if pair and pair[0] < pair[1] else ""
    return f'<td class="number" data-value="{value!r}">{column.text(value)}{bounds}</td>'


def run_numbers(run: Acceleration) -> str:
    """The sortable table of an acceleration: every arm."""
    head = "".join(_sort_head(escape(column), column, place > 0) for place, column in enumerate(run.columns))
    rows = "".join(
        f'<tr><th scope="row" data-value="{escape(name)}">{escape(name)}</th>'
        f"{''.join(map(_run_cell, run.columns[1:], cells))}</tr>"
        for name, cells in run.rows.items()
    )
    return (
        f'<div class="numbers" id="{run.anchor}-numbers"><div class="heading"><h3>All numbers</h3></div>'
        f'<div class="table-frame scroll" tabindex="0" role="region" aria-label="All numbers">'
        f'<table class="sortable"><caption class="hidden">{escape(run.heading)}: every arm</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _run_cell(column: str, cell: Cell | None) -> str:
    if cell is None:
        return NOTHING.format(label=escape(column))
    bounds = f"<small>{number_interval(cell.interval)}</small>" if cell.interval else ""
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f'<td class="number" data-value="{cell.value!r}">{number(cell.value)}{bounds}{note}</td>'


def word(word: str) -> str:
    """A word of the glossary, linked to its meaning."""
    text = escape(word[0].upper() + word[1:])
    return f'<a class="word" href="#{word_anchor(word)}" title="{escape(GLOSSARY[word])}">{text}</a>'


def word_anchor(word: str) -> str:
    return f"word-{slug(word)}"
