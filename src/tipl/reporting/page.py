"""The HTML page: text and tables are written here, figures are drawn from embedded data by page.js.

In: the evaluations and the accelerations of a report.
Out: one HTML document that loads nothing, neither from the network nor from the disk.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from tipl.reporting.acceleration import Acceleration
from tipl.reporting.figure import DARK, LIGHT, Figure
from tipl.reporting.read import Evaluation
from tipl.reporting.tables import all_numbers, run_numbers, summary, word_anchor
from tipl.reporting.verdict import Verdict
from tipl.reporting.wording import GLOSSARY, duration, listing, slug

QUESTION = "Better than doing nothing? Better than a line?"
QUESTION_OF_RUNS = "Do forecasts inside a live run save environment steps?"


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
    resources = files("tipl.reporting")
    parts = {
        "title": escape(f"{listing(titles)}: tipl report"),
        "style": resources.joinpath("page.css").read_text(encoding="utf-8").replace("/* colors */", _colors()),
        "script": resources.joinpath("page.js").read_text(encoding="utf-8"),
        "navigation": "".join(
            f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in zip(anchors, titles, strict=True)
        ),
        "question": QUESTION if sections else QUESTION_OF_RUNS,
        "answer": "".join(_finding(s.evaluation.title, s.verdict.sentence, len(titles) > 1) for s in sections)
        + summary([(section.evaluation, section.verdict) for section in sections])
        + "".join(_finding(run.heading, run.sentence, len(titles) > 1) for run in runs),
        "sections": "".join(_section(section, figures_folder) for section in sections)
        + "".join(_run_section(run, figures_folder) for run in runs),
        "glossary": "".join(
            f'<div><dt id="{word_anchor(word)}">{escape(word)}</dt><dd>{escape(meaning)}</dd></div>'
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


# One evaluation


def _section(section: Section, figures_folder: str) -> str:
    evaluation = section.evaluation
    drawn = "".join(_figure(section, figure, figures_folder) for figure in section.figures)
    absent = f'<p class="absent">Not in this evaluation, so not shown: {escape(listing(section.left_out))}.</p>'
    return (
        f'<section class="evaluation" id="{section.anchor}"><h2>{escape(evaluation.title)}</h2>{_facts(evaluation)}'
        f"{drawn}{absent if section.left_out else ''}{all_numbers(evaluation, section.anchor)}{_provenance(section)}"
        "</section>"
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


def _provenance(section: Section) -> str:
    evaluation = section.evaluation
    lists = {
        "Data": {
            "store": evaluation.store,
            "test trials": _seeds(evaluation.test_trials),
            "validation trials": _seeds(evaluation.validation_trials),
            "training trials": _seeds(evaluation.train_trials),
            "judged on": evaluation.apart,
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
    lists = {name: dict(_flat(settings)) for name, settings in run.settings.items()}
    return (
        f'<section class="evaluation" id="{run.anchor}"><h2>{escape(run.heading)}</h2><dl class="facts">{facts}</dl>'
        f"{drawn}{run_numbers(run)}{_details('', lists)}</section>"
    )


# Parts


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
