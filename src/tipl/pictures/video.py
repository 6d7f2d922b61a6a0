"""The verb `video`: policies side by side, as they act.

In: a store, and in it a trial and an origin; or policies in files.  Out: FILE.mp4 or FILE.gif, and what they earned.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tipl.checks import AnyPath, Count, Place, Positive, Whole, Within, checked_arguments
from tipl.config.env_spec import import_named
from tipl.errors import TiplError
from tipl.files import write_file
from tipl.forecasting.shipped import SHIPPED
from tipl.pictures.episodes import filmed
from tipl.pictures.frames import amount, as_gif, as_mp4, composed, require_av
from tipl.pictures.shown import FILE, Shown, chosen_trial, of_file, of_trial, require_file, require_gymnasium
from tipl.progress import steps_progress
from tipl.store import Store

Pixels = Annotated[int, Within(64, 2000)]
_FPS = {".mp4": 30.0, ".gif": 15.0}
"""The most frames a second, by the file's ending."""
_MOST_PANELS = 8
_USUAL_STEPS = 1000  # of an episode whose environment has no time limit


@dataclass(frozen=True)
class Seen:
    """One policy of a video."""

    policy: str
    shown_return: float
    """Of the episode in the video, which is the first of the episodes below."""
    steps: int
    mean_return: float
    episodes: int


@dataclass(frozen=True)
class Video:
    out: str
    env_id: str
    seed: int
    frames: int
    fps: float
    speed: float
    """Times as fast as the environment's own time."""
    policies: tuple[Seen, ...]


@checked_arguments
def video(
    sources: Place | Sequence[Place],
    out: AnyPath,
    *,
    trial: Whole | None = None,
    origin: Whole | None = None,
    horizon: Count = 10,
    snapshots: Sequence[Whole] = (),
    model: Place = SHIPPED,
    stretch: Positive = 1.0,
    adapt: bool = False,
    seen: bool = False,
    episodes: Count = 20,
    seed: Whole = 0,
    seconds: Positive = 10.0,
    size: Pixels = 320,
    trust: bool = False,
) -> Video:
    """Film policies side by side: of a store the one at an origin, its forecast and what it became.

    Each runs one whole episode from the same initial state, by its mean or most likely actions, in Gymnasium's
    environment, also where the trial was collected in EnvPool. All policies of an origin have its normalizer, as in
    `forecast`.

    Args:
        sources: stores, and files that `forecast` wrote.
        out: an .mp4 (h264; takes the extra `video`) or a .gif.
        trial: its seed; default: the first test trial, or the first that there is.
        origin, horizon: the last snapshot that the model sees, by default half of the way; how many snapshots later
            the other policies are.
        snapshots: show these snapshots of the trial, each with its own normalizer, and no forecast.
        model, stretch, adapt, seen: as `forecast` has them.
        episodes: that the mean returns above the pictures are over.
        seed: of the episodes; that in the video is the first of them.
        seconds: about the longest that the video may be; longer episodes are shown faster.
        size: pixels of the longer side of each picture.
        trust: import the modules that a store names for its environments, which runs their code.

    Raises:
        TiplError: a policy cannot be run or drawn here, or the file cannot be written.
    """
    out = Path(out)
    require_file(out, _FPS)
    if out.suffix == ".mp4":
        require_av()
    asked = {"model": model, "stretch": stretch, "adapt": adapt, "seen": seen}
    idle = {**asked, "origin": origin, "horizon": horizon} if snapshots else {}
    usual = inspect.signature(video).parameters
    spare = next((name for name, value in idle.items() if value != usual[name].default), None)
    if spare:
        raise TiplError(f"--{spare} has no effect on --snapshots, which shows no forecast; leave one of them out.")
    shown, notes = [], []
    for source in [sources] if isinstance(sources, str) or not isinstance(sources, Sequence) else sources:
        if Path(source).suffix == FILE:
            shown.append(of_file(source))
            continue
        data = Store.open(source)
        run = chosen_trial(data, trial)
        if trust:
            import_named([run.env_id])
        more, note = of_trial(data, run, origin, horizon, snapshots, **asked)
        shown, notes = [*shown, *more], [*notes, note]
    return film_to(shown, out, notes=notes, episodes=episodes, seed=seed, seconds=seconds, size=size)


def film_to(
    shown: Sequence[Shown], out: Path, *, notes: Sequence[str] = (), episodes: int = 20, seed: int = 0,
    seconds: float = 10.0, size: int = 320,
) -> Video:  # fmt: skip
    """Film these policies into a file; the arguments are those of `video`."""
    if not 0 < len(shown) <= _MOST_PANELS:
        raise TiplError(f"There are {len(shown)} policies to show; give 1 to {_MOST_PANELS}.")
    kinds = dict.fromkeys(each.env_id.label for each in shown)
    if len(kinds) > 1:
        raise TiplError(f"The policies are for {' and '.join(kinds)}; show those of one environment together.")
    require_gymnasium(shown[0].env_id)
    means = [float(each.returns(episodes, seed).mean()) for each in shown]
    limit = shown[0].env_id.spec.get("max_episode_steps") or _USUAL_STEPS
    with steps_progress("video: steps", len(shown) * limit) as advance:
        film = filmed(shown, seed, size, seconds, _FPS[out.suffix], advance)
    count = "1 episode" if episodes == 1 else f"{episodes} episodes"
    second = [f"mean return {amount(mean)} ({count})" for mean in means]
    pace = f"{film.speed:.3g} × real time" if round(film.speed, 2) != 1 else "real time"
    note = " · ".join([str(shown[0].env_id), *notes, f"episodes of seed {seed}", pace])
    frames = [*composed(film, shown, second, note)]
    write_file(out, as_gif(frames, film.fps) if out.suffix == ".gif" else as_mp4(frames, film.fps))
    return Video(
        str(out), str(shown[0].env_id), seed, len(frames), film.fps, film.speed,
        tuple(
            Seen(each.label, view.earned, view.step, mean, episodes)
            for each, view, mean in zip(shown, film.frames[-1], means, strict=True)
        ),
    )  # fmt: skip
