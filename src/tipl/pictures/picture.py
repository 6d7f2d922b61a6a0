"""The verb `picture`: where a policy goes in weight space, where it was forecast to go, and what both are worth.

In: a store, a trial, origins, a model.  Out: FILE.svg, FILE.png or FILE.pdf.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from tipl.checks import AnyPath, Count, Place, Positive, Whole, Within, checked_arguments
from tipl.config.env_spec import import_named
from tipl.errors import TiplError, printable
from tipl.files import write_file
from tipl.forecasting.forecast import foretold
from tipl.forecasting.shipped import SHIPPED
from tipl.parts import ENDING
from tipl.pictures.landscape import Landscape, Plane, below, episodes_of, landscape
from tipl.pictures.shown import chosen_trial, require_file, require_runs
from tipl.progress import steps_progress
from tipl.store import Store
from tipl.store.locks import remove_made

Grid = Annotated[int, Within(3, 101)]
_ENDINGS = (".svg", ".png", ".pdf")
_MOST_HORIZONS = 10  # of a forecast that are drawn


@dataclass(frozen=True)
class Picture:
    out: str
    trial: int
    origins: tuple[int, ...]
    horizon: int
    share_of_the_path: tuple[float, float]
    """Of the squared distances from φ_t of the snapshots drawn, along each axis of the plane."""
    grid_points: int
    episodes: int
    standard_error: float
    """The median one of a height."""


@checked_arguments
def picture(
    store: Place,
    out: AnyPath,
    *,
    trial: Whole | None = None,
    origins: Sequence[Whole] = (),
    horizon: Count = 20,
    past: Count = 40,
    plane: Plane = "path",
    model: Place = SHIPPED,
    stretch: Positive = 1.0,
    adapt: bool = False,
    seen: bool = False,
    grid: Grid = 21,
    episodes: Count = 10,
    seed: Whole = 0,
    trust: bool = False,
) -> Picture:
    """Draw a plane of weight space with returns as height, and on it the true path and forecasts.

    Returns are kept in OUT.parts until the picture is there, so the same call goes on where one was stopped.

    Args:
        store, trial: the data set, and the trial's seed; default: the first test trial, or the first that there is.
        out: an .svg, .png or .pdf.
        origins: from which is forecast, in rising order; the plane goes through the first. Default: half of the way.
        horizon: how many snapshots ahead each forecast goes.
        past: snapshots before the first origin that are drawn.
        plane: `path`: spanned by the two leading directions of the snapshots drawn, seen from the origin; `forecast`:
            by the true and the forecast displacement, which so lie in it.
        model, stretch, adapt, seen: as `forecast` has them.
        grid: points a side at which returns are measured.
        episodes: that a return is the mean of, the same ones for all policies.
        seed: of the episodes.
        trust: import the modules that a store names for its environments, which runs their code.

    Raises:
        TiplError: there is no such trial or snapshot, its policies cannot be run, or the file cannot be written.
    """
    out = Path(out)
    require_file(out, _ENDINGS)
    data = Store.open(store)
    run = chosen_trial(data, trial)
    if trust:
        import_named([run.env_id])
    require_runs(run)
    starts = [*origins] or [max(0, run.committed - 1 - horizon) // 2]
    if starts != sorted(set(starts)):
        raise TiplError(f"--origins are {', '.join(map(str, starts))}; give them once each, in rising order.")
    horizons = sorted({round(h) for h in np.linspace(1, horizon, min(horizon, _MOST_HORIZONS))})
    asked = {"model": model, "stretch": stretch, "adapt": adapt, "seen": seen}
    forecasts_OHP = np.stack([foretold(data, run, t, horizons, **asked).weights_HP for t in starts])
    parts = out.with_name(f"{out.name}.parts")
    total = episodes_of(run, starts, horizons, past, grid, episodes)
    with steps_progress("picture: episodes", total) as advance:
        found = landscape(
            run, starts, horizons, forecasts_OHP.astype(np.float64), past, plane, grid, episodes, seed, parts,
            advance,
        )  # fmt: skip
    titles = _title(str(run.env_id), run.seed, starts, horizon), _axes(plane, starts[0], horizon)
    write_file(out, _drawn(found, starts, horizons, titles, _note(found, plane, starts[0], episodes, grid), out.suffix))
    remove_made(parts, rf"[0-9a-f]{{24}}{re.escape(ENDING)}")
    return Picture(
        str(out), run.seed, tuple(starts), horizon, (float(found.share_2[0]), float(found.share_2[1])), grid**2,
        episodes, found.height_error,
    )  # fmt: skip


def _drawn(
    found: Landscape, origins: list[int], horizons: list[int], titles: tuple[str, str], note: str, ending: str
) -> bytes:
    import matplotlib

    from tipl.pictures.draw_landscape import draw_landscape
    from tipl.reporting.drawing import STYLE, written

    with matplotlib.rc_context({**STYLE, "axes.grid": False, "svg.fonttype": "path", "savefig.dpi": 200}):
        figure = draw_landscape(found, origins, horizons, titles, note)
        return written(figure, ending[1:])


def _title(env_id: str, trial: int, origins: list[int], horizon: int) -> str:
    where = ", ".join(map(str, origins))
    return printable(f"{env_id}, trial {trial}: {horizon} snapshots ahead of snapshot {where}")


def _axes(plane: Plane, t: int, horizon: int) -> str:
    if plane == "path":
        return f"distance from φ{below(t)} along direction 1|along direction 2"
    return f"along the way to φ{below(t + horizon)}|across it, towards the forecast"


def _note(found: Landscape, plane: Plane, t: int, episodes: int, grid: int) -> str:
    kind = (
        f"the two leading directions, from φ{below(t)}, of the {len(found.snapshots_S)} snapshots drawn"
        if plane == "path"
        else "the true and the forecast displacement"
    )
    return (
        f"Plane: {kind}; both axes are Euclidean distances between weights. Height: mean return of the policies in the "
        f"plane, {episodes} episodes each (median standard error {found.height_error:.3g}), normalizer of "
        f"φ{below(t)}, mean actions; measured at the {grid} × {grid} dots, linear between. The path and the forecasts "
        f"are projected: the last true snapshot lies {found.off_S[-1]:.2g} off the plane, the last forecast "
        f"{found.forecasts_off_OH[-1, -1]:.2g}. Right: the snapshots and forecasts themselves, on the same episodes "
        "and with the same normalizer; bands are ± one standard error."
    )
