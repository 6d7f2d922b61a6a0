"""The HTML page: text and tables are written here, figures are drawn from embedded data by page.js.

In: the evaluations and the accelerations of a report.
Out: one HTML document that loads nothing, neither from the network nor from the disk.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from tipl.report.acceleration import Acceleration, Cell
from tipl.report.figure import DARK, LIGHT, Figure
from tipl.report.read import Curve, Evaluation, Forecaster, Intervals
from tipl.report.verdict import Judgment, Standing, Verdict
from tipl.report.wording import GLOSSARY, ahead, duration, interval, listing, number, number_interval, score, slug

QUESTION = "Better than doing nothing? Better than a line?"
QUESTION_OF_RUNS = "Do forecasts inside a live run save environment steps?"
SIGNS = {"better": "▲", "worse": "▼", "no better": "≈"}
LEAD = "minus best baseline"
NOTHING = '<td class="none" data-label="{label}"><span title="not measured or not defined">–</span></td>'


@dataclass(frozen=True)
class Section:
    """One evaluation, what is concluded from it, and what is drawn and left out."""

    evaluation: Evaluation
    verdict: Verdict
    figures: tuple[Figure, ...]
    left_out: tuple[str, ...]

    @property
    def anchor(self) -> str:
        return slug(self.evaluation.title)

    def file_name(self, figure: Figure) -> str:
        """Of the figure's files, without an ending."""
        return f"{self.anchor}-{figure.name}"


def page(sections: Sequence[Section], runs: Sequence[Acceleration], figures_folder: str) -> str:
    """The whole document. `figures_folder` is where the files of the figures lie, relative to the page."""
    titles = [*(section.evaluation.title for section in sections), *(run.heading for run in runs)]
    anchors = [part.anchor for part in (*sections, *runs)]
    data = {part.file_name(figure): _compact(figure) for part in (*sections, *runs) for figure in part.figures}
    resources = files("tipl.report")
    parts = {
        "title": escape(f"{listing(titles)}: tipl report"),
        "style": resources.joinpath("page.css").read_text(encoding="utf-8").replace("/* colors */", _colors()),
        "script": resources.joinpath("page.js").read_text(encoding="utf-8"),
        "navigation": "".join(
            f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in zip(anchors, titles, strict=True)
        ),
        "question": QUESTION if sections else QUESTION_OF_RUNS,
        "answer": "".join(_finding(s.evaluation.title, s.verdict.sentence, len(titles) > 1) for s in sections)
        + _summary(sections)
        + "".join(_finding(run.heading, run.sentence, len(titles) > 1) for run in runs),
        "sections": "".join(_section(section, figures_folder) for section in sections)
        + "".join(_run_section(run, figures_folder) for run in runs),
        "glossary": "".join(
            f'<div><dt id="{_word_anchor(word)}">{escape(word)}</dt><dd>{escape(meaning)}</dd></div>'
            for word, meaning in GLOSSARY.items()
        ),
        # "<" never stands in the data as itself, so that no text in it can end the script element.
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = resources.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


# The first screen


def _finding(title: str, sentence: str, has_title: bool) -> str:
    heading = f"<h2>{escape(title)}</h2>" if has_title else ""
    return f'<div class="finding">{heading}<p class="sentence">{escape(sentence)}</p></div>'


def _summary(sections: Sequence[Section]) -> str:
    horizons = list(dict.fromkeys(h for section in sections for h in section.verdict.horizons))
    if not horizons:
        return ""
    each = "".join(f'<th scope="col" class="number">{ahead([h])}</th>' for h in horizons)
    first = "".join(f'<th colspan="{len(horizons)}" scope="colgroup">{_word(w)}</th>' for w in ("skill", LEAD))
    head = (
        f'<tr><td></td>{first}<th scope="colgroup">{_word("REPW")}</th></tr>'
        f'<tr><th scope="col">Forecaster</th>{each}{each}'
        f'<th scope="col" class="number">{ahead(horizons[-1:])}</th></tr>'
    )
    bodies = "".join(_summary_body(section, horizons, len(sections) > 1) for section in sections)
    note = f"In brackets: {_word('95% interval')}s. ▲ better, ▼ worse, ≈ no better: what the interval says,"
    note += " of REPW that of its difference to doing nothing, paired by trial."
    return (
        f'<div class="table-frame"><table class="summary"><caption class="hidden">The answer in numbers</caption>'
        f'<thead>{head}</thead>{bodies}</table></div><p class="note">{note}</p>'
    )


def _summary_body(section: Section, horizons: Sequence[int], has_title: bool) -> str:
    evaluation, last = section.evaluation, horizons[-1]
    rows = [_standing_row(standing, horizons) for standing in section.verdict.standings]
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
    bounds = interval(judgment.interval) if judgment.interval else "no interval"
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


# One evaluation


def _section(section: Section, figures_folder: str) -> str:
    evaluation = section.evaluation
    drawn = "".join(_figure(section, figure, figures_folder) for figure in section.figures)
    absent = f'<p class="absent">Not in this evaluation, so not shown: {escape(listing(section.left_out))}.</p>'
    return (
        f'<section class="evaluation" id="{section.anchor}"><h2>{escape(evaluation.title)}</h2>{_facts(evaluation)}'
        f"{drawn}{absent if section.left_out else ''}{_all_numbers(section)}{_provenance(section)}</section>"
    )


def _facts(evaluation: Evaluation) -> str:
    widths = "-".join(map(str, evaluation.hidden_sizes))
    facts = [
        ("Policy", f"{widths} hidden, {evaluation.num_weights:,} weights" if widths and evaluation.num_weights else ""),
        ("Test trials", f"{len(evaluation.test_trials)}" if evaluation.test_trials else ""),
        ("Training trials", f"{len(evaluation.train_trials)}" if evaluation.train_trials else ""),
        ("Episodes a policy", str(evaluation.episodes) if evaluation.episodes else ""),
        ("Bases", listing(list(dict.fromkeys(f.sees for f in evaluation.models if f.sees)))),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts if value)
    return f'<dl class="facts">{items}</dl>' if items else ""


def _figure(section: Section | Acceleration, figure: Figure, figures_folder: str) -> str:
    name = section.file_name(figure)
    path = escape(f"{figures_folder}/{name}")
    files_of = f'<a href="{path}.png" aria-label="PNG file">PNG</a><a href="{path}.pdf" aria-label="PDF file">PDF</a>'
    return (
        f'<figure id="{name}" data-figure="{name}"><div class="heading"><h3>{escape(figure.title)}</h3>'
        f'<p class="files">{files_of}</p></div><div class="drawing"></div>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


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


def _all_numbers(section: Section) -> str:
    """The sortable table: every forecaster at every horizon, and the columns that hold anything."""
    evaluation = section.evaluation
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
    identity = f"{section.anchor}-numbers"
    head = _sort_head("Forecaster", "Forecaster", False) + _sort_head(_word("steps ahead"), "steps ahead", True)
    head += "".join(_sort_head(_word(column.word), column.word, True) for column in columns)
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


def _provenance(section: Section) -> str:
    evaluation = section.evaluation
    lists = {
        "Data": {
            "store": evaluation.store,
            "test trials": _seeds(evaluation.test_trials),
            "validation trials": _seeds(evaluation.validation_trials),
            "training trials": _seeds(evaluation.train_trials),
        },
        "Settings": dict(_flat(evaluation.config)),
        "Versions": dict(_flat(evaluation.versions)),
        "Time": {stage: duration(seconds) for stage, seconds in evaluation.seconds.items()},
    }
    command = f"<h4>Command</h4><pre>{escape(evaluation.command)}</pre>" if evaluation.command else ""
    return _details(command, lists)


def _details(first: str, lists: Mapping[str, Mapping[str, str]]) -> str:
    parts = [first]
    for title, items in lists.items():
        rows = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in items.items() if text
        )
        parts.append(f'<h4>{escape(title)}</h4><dl class="settings">{rows}</dl>' if rows else "")
    return f'<details class="provenance"><summary>How these numbers were made</summary>{"".join(parts)}</details>'


def _seeds(trials: Sequence[int]) -> str:
    """``1–12, 15``: runs of consecutive seeds are drawn together."""
    runs: list[list[int]] = []
    for seed in sorted(trials):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _setting(value)


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# One acceleration


def _run_section(run: Acceleration, figures_folder: str) -> str:
    drawn = "".join(_figure(run, figure, figures_folder) for figure in run.figures)
    facts = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in run.facts.items())
    head = "".join(_sort_head(escape(column), column, place > 0) for place, column in enumerate(run.columns))
    rows = "".join(
        f'<tr><th scope="row" data-value="{escape(name)}">{escape(name)}</th>'
        f"{''.join(map(_run_cell, run.columns[1:], cells))}</tr>"
        for name, cells in run.rows.items()
    )
    table = (
        f'<div class="numbers" id="{run.anchor}-numbers"><div class="heading"><h3>All numbers</h3></div>'
        f'<div class="table-frame scroll" tabindex="0" role="region" aria-label="All numbers">'
        f'<table class="sortable"><caption class="hidden">{escape(run.heading)}: every arm</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )
    lists = {name: dict(_flat(settings)) for name, settings in run.settings.items()}
    return (
        f'<section class="evaluation" id="{run.anchor}"><h2>{escape(run.heading)}</h2><dl class="facts">{facts}</dl>'
        f"{drawn}{table}{_details('', lists)}</section>"
    )


def _run_cell(column: str, cell: Cell | None) -> str:
    if cell is None:
        return NOTHING.format(label=escape(column))
    bounds = f"<small>{number_interval(cell.interval)}</small>" if cell.interval else ""
    note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    return f'<td class="number" data-value="{cell.value!r}">{number(cell.value)}{bounds}{note}</td>'


# Parts


def _word(word: str) -> str:
    """A word of the glossary, linked to its meaning."""
    text = escape(word[0].upper() + word[1:])
    return f'<a class="word" href="#{_word_anchor(word)}" title="{escape(GLOSSARY[word])}">{text}</a>'


def _word_anchor(word: str) -> str:
    return f"word-{slug(word)}"


def _colors() -> str:
    """The palette as CSS variables, for both color schemes."""
    light, dark = ("".join(f"--c{i}:{color};" for i, color in enumerate(colors)) for colors in (LIGHT, DARK))
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _compact(figure: Figure) -> dict[str, Any]:
    """A figure as JSON, its numbers to the seven digits that float32 has."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            rounded = float(f"{value:.7g}")
            return int(rounded) if rounded.is_integer() else rounded
        if isinstance(value, dict):
            return {key: short(entry) for key, entry in value.items()}
        return [short(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    return short(dataclasses.asdict(figure))
