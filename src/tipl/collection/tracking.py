"""Curves of long work, in what people watch them with: TensorBoard, Weights & Biases, Trackio.

In: NAME or NAME=WHERE, as `--track` has it; named numbers.  Out: event files, or runs of a project.
"""

import contextlib
import contextvars
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tipl.errors import TiplError

Write = Callable[[str, float, int], None]
"""`write(name, value, step)`: one more point of a curve."""
KINDS = ("tensorboard", "wandb", "trackio")
_PLACES = {"tensorboard": "runs/tensorboard", "wandb": "tipl", "trackio": "tipl"}
"""Where curves go if nothing is said: a folder, or a project."""


@contextlib.contextmanager
def tracked(track: str | None, run: str = "", facts: Mapping[str, Any] | None = None) -> Iterator[Write]:
    """Yield what writes a run's curves. The run begins when the first point comes.

    Args:
        track: tensorboard, wandb or trackio, by itself or as NAME=WHERE: WHERE is TensorBoard's folder, and the project
            of the others. None: nothing is written, and nothing imported.
        run: its name; in TensorBoard the folder below, in which a run that was stopped goes on.
        facts: what made the run, for those that keep it.

    Raises:
        TiplError: there is no such kind, it is not installed, or it cannot begin a run.
    """
    if track is None:
        yield lambda name, value, step: None
        return
    kind, found, where = track.partition("=")
    if kind not in KINDS or (found and not where):
        raise TiplError(f"--track is {track!r}; give {', '.join(KINDS)}, or one of them with =WHERE.")
    where = where or _PLACES[kind]
    begin = _tensorboard(Path(where, run)) if kind == "tensorboard" else _project(kind, where, run, dict(facts or {}))
    log: Write | None = None
    with contextlib.ExitStack() as ending:

        def write(name: str, value: float, step: int) -> None:
            nonlocal log
            log = log or begin(ending)
            log(name, value, step)

        yield write


def _tensorboard(folder: Path) -> Callable[[contextlib.ExitStack], Write]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TiplError("TensorBoard is not installed; pip install 'tipl[tensorboard]' or drop --track.") from error
    if folder.exists() and not folder.is_dir():
        raise TiplError(f"{folder} is a file; give --track tensorboard=FOLDER.")

    def begin(ending: contextlib.ExitStack) -> Write:
        writer: Any = SummaryWriter(str(folder))
        ending.callback(writer.close)
        return writer.add_scalar

    return begin


def _project(kind: str, project: str, run: str, facts: dict[str, Any]) -> Callable[[contextlib.ExitStack], Write]:
    """Weights & Biases, and Trackio, which has its functions."""
    try:
        module: Any = importlib.import_module(kind)
    except ImportError as error:
        package = (
            "trackio" if kind == "trackio" else f"'tipl[{kind}]'"
        )  # no extra: it and this package disagree on Pillow
        raise TiplError(f"{kind} is not installed; pip install {package} or drop --track.") from error
    # A process has several runs at once: Weights & Biases has to be told.
    more = {"reinit": "create_new"} if kind == "wandb" else {}

    def begin(ending: contextlib.ExitStack) -> Write:
        try:
            # In a context of its own: Trackio ends the run that it finds in its caller's.
            own = contextvars.Context()
            begun = own.run(module.init, project=project, name=run or None, config=facts, **more)
        except Exception as error:  # no account, no network: whatever the library has to say
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TiplError(f"{kind} begins no run: {reason}. WANDB_MODE=offline does without an account.") from error
        ending.callback(begun.finish)
        return lambda name, value, step: begun.log({name: value}, step=step)

    return begin
