"""Progress of long work: a live bar on a terminal, a plain line now and then elsewhere.

In: a total and steps done.  Out: what the user sees on standard error.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tipl.errors import printable

_PLAIN_SECONDS = 15.0


class PlainConsole(Console):
    """A terminal that shows text as it is: brackets and colons mean nothing, and escape sequences are written out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *shown: Any, **options: Any) -> None:
        super().print(*(printable(each) if isinstance(each, str) else each for each in shown), **options)

    def on_broken_pipe(self) -> None:
        raise  # rich would end the program with 1


console = PlainConsole(stderr=True, soft_wrap=True)


@contextlib.contextmanager
def steps_progress(
    label: str, total: int, above: Callable[[], RenderableType] | None = None
) -> Iterator[Callable[[int, str], None]]:
    """Yields `advance(steps, note)`: so many more of `total` steps are done; `note` is shown beside the bar.

    Args:
        above: asked again and again for what a terminal shows above the bar.

    The rate leaves out what was done first, and the time until then: kernels are compiled in it.
    """
    shown = time.monotonic()
    done = first = 0
    began: float | None = None
    columns = (
        _plain("{task.description}"), BarColumn(), MofNCompleteColumn(), _plain("{task.fields[rate]}"),
        _plain("{task.fields[note]}"), TimeElapsedColumn(), _plain("left"), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=console)
    task = bar.add_task(printable(label), total=total, rate="", note="")

    def advance(steps: int, note: str = "") -> None:
        nonlocal done, shown, began, first
        done += steps
        now = time.monotonic()
        if began is None:
            began, first = now, done
        rate = (done - first) / max(now - began, 1e-9)
        bar.update(task, completed=done, rate=f"{rate:,.0f}/s" if rate else "", note=printable(note))
        if not console.is_terminal and (now - shown > _PLAIN_SECONDS or done == total):
            shown = now
            pace = f" at {rate:,.0f}/s, {(total - done) / rate:.0f} s left" if rate else ""
            console.print(f"{label}: {done:,} of {total:,}{pace} {note}".rstrip())

    def picture() -> RenderableType:
        return Group(above(), bar) if above else bar

    shown_live = Live(get_renderable=picture, console=console) if console.is_terminal else contextlib.nullcontext()
    with shown_live:
        yield advance


def _plain(text: str) -> TextColumn:
    return TextColumn(text, markup=False)
