"""The report: one self-contained HTML page, and beside it the figures for a paper.

In: the folders of one or more evaluations or accelerations (their metrics.json).
Out: OUT, and OUT's stem + "-figures/*.{png,pdf}".
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tipl.checks import AnyPath, checked_arguments
from tipl.errors import TiplError
from tipl.files import replace_file, require_no_store_above
from tipl.reporting.acceleration import Acceleration, is_acceleration, read_acceleration
from tipl.reporting.figures import figures
from tipl.reporting.page import Section, page
from tipl.reporting.paper import print_figure
from tipl.reporting.read import Evaluation, read_evaluation
from tipl.reporting.together import read_together
from tipl.reporting.verdict import verdict

__all__ = ["report"]

_Part = TypeVar("_Part", Evaluation, Acceleration)


@checked_arguments
def report(evals: AnyPath | Sequence[AnyPath], out: AnyPath) -> Path:
    """Write the page `out` about what `tipl evaluate` or `tipl accelerate` left in the folders `evals`, and its figures
    beside it.

    Raises:
        TiplError: there is none, a metrics.json cannot be used, or `out` cannot be written.
    """
    evals, out = [Path(evals)] if isinstance(evals, str | os.PathLike) else [Path(each) for each in evals], Path(out)
    if not evals:
        raise TiplError(
            "Nothing to report; give at least one folder, as written by `tipl evaluate` or `tipl accelerate`."
        )
    require_no_store_above(out)
    if out.is_dir():
        raise TiplError(f"{out} is a folder; give a file to write, such as {out / 'report.html'}.")
    accelerated = [folder for folder in evals if is_acceleration(folder)]
    runs = _with_own_titles([read_acceleration(folder) for folder in accelerated], accelerated)
    if len(runs) > 1 and (together := read_together(accelerated)):
        runs.insert(0, together)
    sections = []
    evaluated = [folder for folder in evals if folder not in accelerated]
    for evaluation in _with_own_titles([read_evaluation(folder) for folder in evaluated], evaluated):
        drawn, left_out = figures(evaluation)
        sections.append(Section(evaluation, verdict(evaluation), tuple(drawn), tuple(left_out)))
    folder = out.with_name(f"{out.stem}-figures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for section in (*sections, *runs):
            for figure in section.figures:
                print_figure(replace(figure, name=section.file_name(figure)), folder)
        replace_file(out, page(sections, runs, folder.name).encode())
    except OSError as error:
        raise TiplError(
            f"The report cannot be written to {out} ({error}); free the disk or choose another --out."
        ) from error
    return out


def _with_own_titles(parts: Sequence[_Part], folders: Sequence[Path]) -> list[_Part]:
    """Name the folder of those whose environments are the same, or number them where folders share a name, so that no
    two share a heading or a file."""
    titles = [part.title for part in parts]
    names = [folder.resolve().name for folder in folders]
    own = names if len(set(names)) == len(names) else [str(place) for place in range(1, len(names) + 1)]
    return [
        replace(part, title=f"{part.title} ({name})") if titles.count(part.title) > 1 else part
        for part, name in zip(parts, own, strict=True)
    ]
