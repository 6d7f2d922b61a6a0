"""The HTML page: sections, tables, and the drawn panels with what a reader may point at.

In: the `Section`s of a report.  Out: one HTML document that loads nothing, neither from the network nor from the disk.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from tipl.reporting.drawing import draw_entry, draw_panel, entries_of
from tipl.reporting.parts import DARK, LIGHT, Cell, Figure, Row, Section, Shown
from tipl.reporting.wording import GLOSSARY, ahead, listing, slug
from tipl.shapes import leaves

QUESTIONS = {
    "": "Better than doing nothing? Better than a line?",
    "accelerated": "Do forecasts inside a live run save environment steps?",
    "ceiling": "How much of what comes can be known?",
}
"""By the kind of a section; of several kinds, the first here."""
SIGNS = {"better": "▲", "worse": "▼", "no better": "≈"}
NOTHING = '<td class="none" data-label="{}"><span title="not measured or not defined">–</span></td>'
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src \
'unsafe-inline'; img-src data:; media-src data:">
<title>{title}: tipl report</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#answer">Skip to the answer</a>
<header>
<p class="brand">tipl <span>report</span></p>
<nav aria-label="Sections">{navigation}{look_link}<a href="#words">Words</a></nav>
</header>
<main>
<section id="answer" class="answer"><h1>{question}</h1>{answer}</section>
{look}
{sections}
<section id="words" class="words"><h2>Words</h2><dl>{glossary}</dl></section>
</main>
<script>{script}</script>
</body>
</html>
"""


def page(sections: Sequence[Section], folder: str, shown: Sequence[Shown] = ()) -> str:
    """The whole document.

    Args:
        folder: where the files of the figures lie, relative to the page.
        shown: videos and pictures that become part of it.
    """
    resources = files("tipl.reporting") / "assets"
    light, dark = ("".join(f"--c{i}:{color};" for i, color in enumerate(colors)) for colors in (LIGHT, DARK))
    palette = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return PAGE.format(
        title=escape(listing([section.heading for section in sections])),
        style=palette + resources.joinpath("page.css").read_text(encoding="utf-8"),
        script=resources.joinpath("page.js").read_text(encoding="utf-8"),
        navigation="".join(f'<a href="#{part.anchor}">{escape(part.heading)}</a>' for part in sections),
        question=next(question for kind, question in QUESTIONS.items() if any(part.kind == kind for part in sections)),
        answer="".join(_answer(section, len(sections) > 1) for section in sections),
        look=_look(shown),
        look_link='<a href="#look">Look</a>' if shown else "",
        sections="".join(_section(section, folder) for section in sections),
        glossary="".join(
            f'<div><dt id="word-{slug(word)}">{escape(word)}</dt><dd>{escape(meaning)}</dd></div>'
            for word, meaning in GLOSSARY.items()
        ),
    )


def _look(shown: Sequence[Shown]) -> str:
    figures = ""
    for each in shown:
        name, data = escape(each.name), f"data:{each.kind};base64,{b64encode(each.content).decode()}"
        if each.kind.startswith("video/"):
            seen = f'<video controls loop muted autoplay playsinline aria-label="{name}" src="{data}"></video>'
        else:
            seen = f'<img alt="{name}" src="{data}">'
        figures += f"<figure>{seen}<figcaption>{name}</figcaption></figure>"
    return f'<section class="part look" id="look"><h2>Look</h2>{figures}</section>' if shown else ""


def _answer(section: Section, has_title: bool) -> str:
    """What the first screen says of a section, and its table."""
    columns, rows, note = section.answer
    table = _table(columns, rows, "summary", f"{section.heading}: the answer in numbers") if rows else ""
    return (
        (f"<h2>{escape(section.heading)}</h2>" if has_title else "")
        + "".join(
            f'<div class="finding"><h3>{escape(heading)}</h3><p>{escape(text)}</p></div>'
            for heading, text in section.findings
        )
        + ("" if section.findings else f'<p class="sentence">{escape(section.sentence)}</p>')
        + (f'<div class="table-frame">{table}</div><p class="note">{escape(note)}</p>' if table else "")
    )


def _section(section: Section, folder: str) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in section.facts.items()
    )
    absent = f'<p class="absent">Not in this evaluation, so not shown: {escape(listing(section.left_out))}.</p>'
    return (
        f'<section class="part" id="{section.anchor}"><h2>{escape(section.heading)}</h2><dl class="facts">{facts}</dl>'
        + "".join(_figure(figure, section.file_name(figure), folder) for figure in section.figures)
        + (absent if section.left_out else "")
        + _numbers(section)
        + _provenance(section)
        + "</section>"
    )


def _figure(figure: Figure, name: str, folder: str) -> str:
    entries = entries_of(figure.panels)
    path = escape(f"{folder}/{name}")
    links = "".join(f'<a href="{path}.{end.lower()}" aria-label="{end} file">{end}</a>' for end in ("PNG", "PDF"))
    buttons = "".join(
        f'<li><button type="button" aria-pressed="true" data-key="{key}">{draw_entry(part)}<span>{escape(part.label)}'
        "</span></button></li>"
        for key, part in enumerate(entries.values())
    )
    panels = ""
    for panel in figure.panels:
        drawn, points = draw_panel(panel, list(entries))
        label = ". ".join(filter(None, (figure.title, panel.title, panel.y.label, panel.x.label)))
        panels += (
            f'<div class="panel" tabindex="0" role="group" aria-label="{escape(label)}. Arrow keys read the values.">'
            f'{drawn}<script type="application/json">{_json(points)}</script></div>'
        )
    legend = f'<ul class="legend" aria-label="Show and hide">{buttons}</ul>' if len(entries) > 1 else ""
    return (
        f'<figure id="{name}"><div class="heading"><h3>{escape(figure.title)}</h3><p class="files">{links}</p></div>'
        f'{legend}<div class="panels">{panels}</div><figcaption>{escape(figure.caption)}</figcaption></figure>'
    )


def _json(data: Any) -> str:
    """JSON in which "<" never stands as itself, so that no text in it can end the element that holds it."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _numbers(section: Section) -> str:
    """The sortable table, and a choice of the horizon where its rows have one."""
    horizons = dict.fromkeys(row.horizon for row in section.rows if row.horizon is not None)
    options = "".join(f'<option value="{h}">{ahead([h])}</option>' for h in horizons)
    choice = f'<label class="needs-script">Show <select><option value="">all steps</option>{options}</select></label>'
    return (
        f'<div class="numbers" id="{section.anchor}-numbers"><div class="heading"><h3>All numbers</h3>'
        f'{choice if horizons else ""}</div><div class="table-frame scroll" tabindex="0" role="region" aria-label="All '
        f'numbers">{_table(section.columns, section.rows, "sortable", f"{section.heading}: all numbers")}</div></div>'
    )


def _table(columns: Sequence[str], rows: Iterable[Row], kind: str, caption: str) -> str:
    sorter = '<button type="button" class="needs-script" aria-label="Sort by {}"></button>'
    head = "".join(
        f'<th scope="col"{" class=number" if place else ""}>{_word(column)}'
        f"{sorter.format(escape(column)) if kind == 'sortable' else ''}</th>"
        for place, column in enumerate(columns)
    )
    body = "".join(
        f'<tr{"" if row.horizon is None else f" data-horizon={row.horizon}"}><th scope="row" '
        f'data-value="{escape(row.name)}">{escape(row.name)}{_small(row.note, row.is_warned)}</th>'
        f"{''.join(map(_cell, row.cells, columns[1:]))}</tr>"
        for row in rows
    )
    caption = f'<caption class="hidden">{escape(caption)}</caption>'
    return f'<table class="{kind}">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(cell: Cell | None, column: str) -> str:
    if cell is None:
        return NOTHING.format(escape(_capital(column)))
    bounds = f"[{', '.join(map(cell.write, cell.interval))}]" if cell.interval else ""
    name = cell.sign.replace(" ", "-")
    sign = f'<span class="sign {name}" role="img" aria-label="{cell.sign}">{SIGNS[cell.sign]}</span>' if name else ""
    return (
        f'<td class="number" data-label="{escape(_capital(column))}" data-value="{cell.value!r}"><span>{sign}'
        f"{escape(cell.write(cell.value))}</span>{_small(bounds)}{_small(cell.note)}</td>"
    )


def _small(text: str, is_warned: bool = False) -> str:
    return f"<small{' class=warning' if is_warned else ''}>{escape(text)}</small>" if text else ""


def _word(column: str) -> str:
    """The head of a column, linked to its meaning if it begins with a word of the glossary."""
    whole = column if column in GLOSSARY else column.partition(", ")[0]
    text = escape(_capital(column))
    if whole not in GLOSSARY:
        return text
    return f'<a class="word" href="#word-{slug(whole)}" title="{escape(GLOSSARY[whole])}">{text}</a>'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _provenance(section: Section) -> str:
    parts = [f"<h4>Command</h4><pre>{escape(section.command)}</pre>" if section.command else ""]
    for title, settings in section.settings.items():
        items = _items((name, _setting(value)) for name, value in leaves(settings))
        parts.append(f'<h4>{escape(title)}</h4><dl class="settings">{items}</dl>' if items else "")
    return f'<details class="provenance"><summary>How these numbers were made</summary>{"".join(parts)}</details>'


def _items(items: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in items if text)


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
