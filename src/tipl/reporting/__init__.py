"""The report: one self-contained HTML page, and beside it the figures for a paper.

In: the folders of one or more evaluations, ceilings or accelerations (their metrics.json).
Out: OUT, and OUT's stem + "-figures/*.{png,pdf}".
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tipl.checks import AnyPath, checked_arguments
from tipl.errors import TiplError
from tipl.files import read_file, replace_file, require_no_store_above
from tipl.reporting.acceleration import is_acceleration, read_acceleration, read_together
from tipl.reporting.ceiling import is_ceiling, read_ceiling
from tipl.reporting.drawing import print_figure
from tipl.reporting.evaluation import section_of
from tipl.reporting.page import page
from tipl.reporting.parts import Section, Shown
from tipl.reporting.read import read_evaluation

__all__ = ["report"]

_SHOWN_BYTES = 64 << 20
_SHOWN = {
    ".mp4": ("video/mp4", re.compile(rb"....ftyp", re.DOTALL)),
    ".gif": ("image/gif", re.compile(rb"GIF8")),
    ".png": ("image/png", re.compile(rb"\x89PNG")),
    ".svg": ("image/svg+xml", re.compile(rb"\s*<(\?xml|svg)")),
}
"""By ending what a page shows: its media type, and how it begins. An image's scripts are not run."""


@checked_arguments
def report(evals: AnyPath | Sequence[AnyPath], out: AnyPath, *, show: Sequence[AnyPath] = ()) -> Path:
    """Write a page, and its figures beside it, about evaluations, ceilings and accelerated runs.

    Args:
        evals: folders, or one, that `tipl evaluate`, `tipl ceiling` or `tipl accelerate` left.
        out: the page, HTML.
        show: videos and pictures that become part of the page, as `video` and `picture` write them: .mp4, .gif, .png
            or .svg.

    Returns:
        `out`.

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
    if out.suffix not in (".html", ".htm"):
        raise TiplError(f"--out is {out}; what is written is a page, give it the ending .html.")
    shown = [_shown(Path(path)) for path in show]
    accelerated = [folder for folder in evals if is_acceleration(folder)]
    runs = _with_own_titles([read_acceleration(folder) for folder in accelerated], accelerated)
    if len(runs) > 1 and (together := read_together(accelerated)):
        runs.insert(0, together)
    branched = [folder for folder in evals if is_ceiling(folder)]
    known = _with_own_titles([read_ceiling(folder) for folder in branched], branched)
    evaluated = [folder for folder in evals if folder not in (*accelerated, *branched)]
    judged = _with_own_titles([section_of(read_evaluation(folder)) for folder in evaluated], evaluated)
    sections = [*judged, *known, *runs]
    folder = out.with_name(f"{out.stem}-figures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for figure in section.figures:
                print_figure(replace(figure, name=section.file_name(figure)), folder)
        replace_file(out, page(sections, folder.name, shown).encode())
    except OSError as error:
        raise TiplError(
            f"The report cannot be written to {out} ({error}); free the disk or choose another --out."
        ) from error
    return out


def _shown(path: Path) -> Shown:
    """
    Raises:
        TiplError: it is no file of a kind that a page shows.
    """
    if path.suffix not in _SHOWN:
        raise TiplError(f"--show is {path}; a page shows {', '.join(_SHOWN)}.")
    kind, begins = _SHOWN[path.suffix]
    content = read_file(path, _SHOWN_BYTES, "make it with `tipl video` or `tipl picture`")
    if not begins.match(content):
        raise TiplError(f"{path} is no {path.suffix[1:]} file; make it with `tipl video` or `tipl picture`.")
    return Shown(path.stem, kind, content)


def _with_own_titles(parts: Sequence[Section], folders: Sequence[Path]) -> list[Section]:
    """Name the folder of those whose environments are the same, or number them where folders share a name, so that no
    two share a heading or a file."""
    titles = [part.title for part in parts]
    names = [folder.resolve().name for folder in folders]
    own = names if len(set(names)) == len(names) else [str(place) for place in range(1, len(names) + 1)]
    return [
        replace(part, title=f"{part.title} ({name})") if titles.count(part.title) > 1 else part
        for part, name in zip(parts, own, strict=True)
    ]
