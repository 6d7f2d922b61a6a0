"""Learning curves of a store's trials: `tipl data info --plot`.

In: a store.  Out: FILE.svg, FILE.png or FILE.pdf, a panel an environment.
"""

from pathlib import Path

from tipl.checks import AnyPath, Place, checked_arguments
from tipl.errors import TiplError
from tipl.files import write_file
from tipl.pictures.shown import require_file
from tipl.store import Store

_ENDINGS = (".svg", ".png", ".pdf")
_MOST_PANELS = 24


@checked_arguments
def plot_returns(store: Place, out: AnyPath) -> Path:
    """Draw what the episodes of every trial earned while it learned, and the mean over the trials of each environment.

    Args:
        store: the data set.
        out: an .svg, .png or .pdf.

    Returns:
        `out`.

    Raises:
        TiplError: there is no such store, no episode has ended, or the file cannot be written.
    """
    out = Path(out)
    require_file(out, _ENDINGS)
    data = Store.open(store)
    by_env: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for seed in data.seeds:
        trial = data.trial(seed)
        curve = trial.episodes.step.tolist(), trial.episodes.episode_return.tolist()
        by_env.setdefault(trial.env_id.label, {})[str(seed)] = curve
    from tipl.reporting.curves import returns_panel
    from tipl.reporting.drawing import figure_files
    from tipl.reporting.parts import Figure

    tests = [str(seed) for seed in data.seeds if data.root.parts.get(seed) == "test"]
    panels = [returns_panel(label, curves, tests) for label, curves in sorted(by_env.items())]
    shown = [panel for panel in panels if panel is not None][:_MOST_PANELS]
    if not shown:
        raise TiplError(f"No episode has ended in {data.path}, so there is no return to draw; record some.")
    figure = Figure(out.stem, "", "", tuple(shown))
    write_file(out, figure_files(figure, [out.suffix[1:]])[out.suffix[1:]])
    return out
