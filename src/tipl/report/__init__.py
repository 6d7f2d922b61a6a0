"""The report: one self-contained HTML page, and beside it the figures for a paper.

In: the folders of one or more evaluations (their metrics.json).  Out: OUT, and OUT's stem + "-figures/*.{png,pdf}".
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tipl.errors import TiplError
from tipl.report.figures import figures
from tipl.report.page import Section, page
from tipl.report.paper import print_figure
from tipl.report.read import Evaluation, read_evaluation
from tipl.report.verdict import verdict

__all__ = ["report"]


def report(evals: Sequence[Path], out: Path) -> Path:
    """Write the page `out` about the evaluations in the folders `evals`, and its figures beside it.

    Raises:
        TiplError: there is no evaluation, a metrics.json cannot be used, or `out` cannot be written.
    """
    if not evals:
        raise TiplError("No evaluation given; give the folder of at least one, as written by `tipl evaluate`.")
    if out.is_dir():
        raise TiplError(f"{out} is a folder; give a file to write, such as {out / 'report.html'}.")
    evaluations = _with_own_titles([read_evaluation(folder) for folder in evals])
    sections = []
    for evaluation in evaluations:
        drawn, left_out = figures(evaluation)
        sections.append(Section(evaluation, verdict(evaluation), tuple(drawn), tuple(left_out)))
    folder = out.with_name(f"{out.stem}-figures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for figure in section.figures:
                print_figure(replace(figure, name=section.file_name(figure)), folder)
        unfinished = out.with_name(f"{out.name}.part")
        unfinished.write_text(page(sections, folder.name), encoding="utf-8")
        os.replace(unfinished, out)
    except OSError as error:
        raise TiplError(
            f"The report cannot be written to {out} ({error}); free the disk or choose another --out."
        ) from error
    return out


def _with_own_titles(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Number the evaluations whose environments are the same, so that no two share a heading or a file."""
    titles = [evaluation.title for evaluation in evaluations]
    return [
        replace(evaluation, title=f"{evaluation.title} ({titles[:place].count(evaluation.title) + 1})")
        if titles.count(evaluation.title) > 1
        else evaluation
        for place, evaluation in enumerate(evaluations)
    ]
