"""The picture of a path, drawn: returns as height over a plane of weight space, the path and forecasts on it.

In: a `Landscape`.  Out: a figure. The same bytes for the same numbers.
"""

import textwrap
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tipl.pictures.landscape import Earned, Landscape, below
from tipl.pictures.shown import FORECAST, TRUE

_INK, _SOFT, _HALO = "#111827", "#4b5563", "#ffffff"
_HEIGHTS = LinearSegmentedColormap.from_list("heights", ["#fbf7ec", "#d8e8d3", "#9ccabb", "#5f9ea0", "#3c7580"])
"""Its lightness falls steadily, so it is read without color too; lines upon it have white edges."""
_LEVELS = 12
_CASED = [patheffects.Stroke(linewidth=3.2, foreground=_HALO), patheffects.Normal()]
_TEXT_HALO = [patheffects.Stroke(linewidth=2.2, foreground=_HALO), patheffects.Normal()]


def draw_landscape(
    found: Landscape, origins: list[int], horizons: list[int], titles: tuple[str, str], note: str
) -> Any:
    """Return the figure.

    Args:
        titles: of the picture, and of its axes' directions.
        note: under it: what is measured, what is interpolated.
    """
    figure = Figure(figsize=(7.6, 4.9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.04, rect=(0, 0.13, 1, 0.87))  # type: ignore[union-attr]
    plane, way = figure.subplots(1, 2, width_ratios=[1.55, 1])
    figure.suptitle(titles[0], x=0.01, ha="left", fontsize=10, fontweight="bold", color=_INK)
    _heights(figure, plane, found)
    _paths(plane, found, origins)
    x, y = titles[1].split("|")
    plane.set(
        xlabel=f"{x}, {found.share_2[0]:.0%} of the path",
        ylabel=f"{y}, {found.share_2[1]:.0%} of the path",
        aspect="equal",
    )
    _way(way, found, origins, horizons)
    figure.text(0.01, 0.012, "\n".join(textwrap.wrap(note, 142)), fontsize=6.6, color=_SOFT, va="bottom", ha="left")
    return figure


def _heights(figure: Figure, axes: Axes, found: Landscape) -> None:
    x, y = found.grid_G2.T
    low, high = float(found.height_GG.min()), float(found.height_GG.max())
    if high <= low:
        high = low + (abs(low) or 1.0)
    levels = MaxNLocator(_LEVELS).tick_values(low, high)
    filled = axes.contourf(x, y, found.height_GG, levels=levels, cmap=_HEIGHTS)
    axes.contour(x, y, found.height_GG, levels=levels, colors=_HALO, linewidths=0.5, linestyles="solid", alpha=0.8)
    columns, rows = np.meshgrid(x, y)
    axes.plot(columns.ravel(), rows.ravel(), ".", color=_INK, markersize=1.1, alpha=0.35, zorder=1.5)
    bar = figure.colorbar(filled, ax=axes, pad=0.02, aspect=28, shrink=0.92)
    bar.ax.set_title("mean\nreturn", fontsize=7, fontweight="normal", color=_SOFT)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _paths(axes: Axes, found: Landscape, origins: list[int]) -> None:
    t = origins[0]
    before = found.path_S2[found.snapshots_S <= t]
    after = found.path_S2[found.snapshots_S >= t]
    axes.plot(*before.T, color=_INK, lw=1.3, path_effects=_CASED, marker="o", ms=1.8, label="path so far")
    if len(after) > 1:
        axes.plot(*after.T, color=TRUE, lw=1.5, path_effects=_CASED, marker="o", ms=2, label="what came")
        axes.plot(*after[-1], "o", color=TRUE, ms=6.5, mec=_HALO, mew=1, zorder=5)
    for number, (origin, points_H2) in enumerate(zip(origins, found.forecasts_OH2, strict=True)):
        start = found.path_S2[found.snapshots_S == origin]
        line = np.concatenate([start, points_H2])
        label = "forecast" if not number else None
        axes.plot(*line.T, color=FORECAST, lw=1.6, ls=(0, (3, 1)), path_effects=_CASED, marker="D", ms=2, label=label)
        axes.plot(*line[-1], "D", color=FORECAST, ms=6, mec=_HALO, mew=1, zorder=6)
        axes.plot(*start[0], "o", color=_INK, ms=6, mec=_HALO, mew=1, zorder=7)
        axes.annotate(
            f"φ{below(origin)}", start[0], (-5, 7), textcoords="offset points", ha="right", fontsize=8.5, color=_INK,
            path_effects=_TEXT_HALO, zorder=8,
        )  # fmt: skip
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, handlelength=2.6)


def _way(axes: Axes, found: Landscape, origins: list[int], horizons: list[int]) -> None:
    """Returns of the snapshots and forecasts themselves, which lie off the plane."""
    t, at = origins[0], found.snapshots_S
    for color, chosen in ((_INK, at <= t), (TRUE, at >= t)):
        _band(axes, at[chosen], Earned(found.path_S.mean[chosen], found.path_S.error[chosen]), color, "o", "-")
    for origin, mean, error in zip(origins, found.forecasts_OH.mean, found.forecasts_OH.error, strict=True):
        here = at == origin
        x = np.concatenate([[origin], origin + np.array(horizons)])
        whole = Earned(np.r_[found.path_S.mean[here], mean], np.r_[found.path_S.error[here], error])
        _band(axes, x, whole, FORECAST, "D", (0, (3, 1)))
    axes.axvline(t, color=_SOFT, lw=0.7, ls=":")
    axes.set(xlabel="snapshot", ylabel="mean return of the policies themselves")
    axes.set_title("Along the way", fontsize=8, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _band(axes: Axes, x: np.ndarray, earned: Earned, color: str, marker: str, dash: Any) -> None:
    axes.fill_between(x, earned.mean - earned.error, earned.mean + earned.error, color=color, alpha=0.15, lw=0)
    axes.plot(x, earned.mean, color=color, marker=marker, ms=2.2, lw=1.3, ls=dash)
