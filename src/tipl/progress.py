"""Progress of long work: a live bar on a terminal, a plain line now and then elsewhere.

In: a total and steps done.  Out: what the user sees on standard error.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)
_PLAIN_SECONDS = 15.0


@contextlib.contextmanager
def steps_progress(
    label: str, total: int, above: Callable[[], RenderableType] | None = None
) -> Iterator[Callable[[int, str], None]]:
    """Yields `advance(steps, note)`: so many more of `total` steps are done; `note` is shown beside the bar.

    Args:
        above: asked again and again for what a terminal shows above the bar.
    """
    began = shown = time.monotonic()
    done = 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=console)
    task = bar.add_task(label, total=total, rate="", note="")

    def advance(steps: int, note: str = "") -> None:
        nonlocal done, shown
        done += steps
        now = time.monotonic()
        rate = done / max(now - began, 1e-9)
        bar.update(task, completed=done, rate=f"{rate:,.0f}/s", note=note)
        if not console.is_terminal and (now - shown > _PLAIN_SECONDS or done == total):
            shown = now
            left = (total - done) / rate
            console.print(f"{label}: {done:,} of {total:,} at {rate:,.0f}/s, {left:.0f} s left {note}".rstrip())

    def picture() -> RenderableType:
        return Group(above(), bar) if above else bar

    shown_live = Live(get_renderable=picture, console=console) if console.is_terminal else contextlib.nullcontext()
    with shown_live:
        yield advance
