"""Which files of a folder are the checkpoints of one run, and in which order.

In: a folder, as a training loop, a download of Hub revisions or of W&B artifacts leaves it.  Out: steps and places.

A step is the one number in which names differ: rl_model_1000_steps.zip, step_50/, run-model:v3/. A subfolder is a
checkpoint if it holds one file that is one, or safetensors files that belong together (model-00001-of-00004).
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tipl.catalog.checkpoints import PICKLES, SUFFIXES
from tipl.errors import TiplError

_NUMBER = re.compile(r"\d+")
_NORMALIZER = re.compile("normali[sz]e", re.IGNORECASE)
_NAMED = 3


class Checkpoints(NamedTuple):
    """The checkpoints of a run."""

    steps: list[int]
    places: list[Path]
    """Files, or folders of safetensors, in the order of steps."""
    normalizers: dict[int, Path]
    """By step, files with the statistics of its observation normalizer."""
    pickles: list[Path]
    """Normalizers that are pickles, which are not opened."""


def sequence_of(folder: Path, pattern: str | None) -> Checkpoints:
    """Find the checkpoints in a folder.

    Args:
        pattern: of the names to take, such as `policy_*.pt`.

    Raises:
        TiplError: there are none, or their names do not say one order.
    """
    if not folder.is_dir() or folder.is_symlink():
        raise TiplError(f"{folder} is no folder; give the folder that the checkpoints of one run lie in.")
    entries = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    checkpoints: list[tuple[str, Path]] = []
    normalizers: list[Path] = []
    for each in entries:
        place = _checkpoint(each)
        if place is None:
            continue
        if _NORMALIZER.search(each.name):
            normalizers.append(each)
        elif pattern is None or fnmatch.fnmatchcase(each.name, pattern):
            checkpoints.append((each.name, place))
    if not checkpoints:
        some = f" called {pattern}" if pattern else ""
        raise TiplError(f"{folder} has no checkpoints{some}: files of {' '.join(SUFFIXES)}, or folders with one each.")
    steps = _steps([name for name, _ in checkpoints], folder)
    ordered = sorted(zip(steps, (place for _, place in checkpoints), strict=True))
    for (one, first), (other, second) in pairwise(ordered):
        if one == other:
            raise TiplError(f"{first} and {second} are both of step {one}; move one of them away.")
    known = (
        dict(zip(_steps([each.name for each in normalizers], folder), normalizers, strict=True)) if normalizers else {}
    )
    beside = [each for each in entries if each.suffix.lower() in PICKLES and _NORMALIZER.search(each.name)]
    return Checkpoints([step for step, _ in ordered], [place for _, place in ordered], known, beside)


def _checkpoint(entry: Path) -> Path | None:
    """What an entry of the folder is a checkpoint as; None if it is none."""
    if entry.is_symlink():
        if entry.suffix.lower() in SUFFIXES or entry.is_dir():
            raise TiplError(f"{entry} is a link, which is not followed; give a folder of the files themselves.")
        return None
    if not entry.is_dir():
        return entry if entry.suffix.lower() in SUFFIXES else None
    inner = [each for each in sorted(entry.iterdir()) if each.suffix.lower() in SUFFIXES and not each.is_dir()]
    if not inner:
        return None
    if len(inner) == 1:
        return inner[0]
    if all(each.suffix == ".safetensors" for each in inner):
        if any(each.is_symlink() for each in inner):
            raise TiplError(f"{entry} holds links, which are not followed; give a folder of the files themselves.")
        return entry
    names = ", ".join(each.name for each in inner[:_NAMED])
    raise TiplError(f"{entry} holds several checkpoints ({names}, …); leave one in it.")


def _steps(names: Sequence[str], folder: Path) -> list[int]:
    """The number in which names differ."""
    words = [_NUMBER.split(name) for name in names]
    numbers = [[int(digits) for digits in _NUMBER.findall(name)] for name in names]
    odd = next((i for i, each in enumerate(words) if each != words[0]), None)
    if odd is not None:
        (usual, _), *_ = Counter(_NUMBER.sub("*", name) for name in names).most_common(1)
        raise TiplError(
            f"{folder} holds {names[0]} and {names[odd]}, whose names differ in more than a number; choose those of "
            f"one kind by --files, such as --files '{usual}'."
        )
    differing = [place for place in range(len(numbers[0])) if len({each[place] for each in numbers}) > 1]
    if not numbers[0]:
        raise TiplError(f"{folder / names[0]} has no step in its name; call checkpoints as step_100, step_200, …")
    if len(differing) > 1:
        raise TiplError(
            f"Names in {folder} differ in several numbers ({names[0]}, {names[-1]}); leave those of one run, each with "
            "one number, its step."
        )
    return [each[differing[0] if differing else -1] for each in numbers]
