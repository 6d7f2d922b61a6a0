"""Damage: a flipped bit in any file, and two units exchanged.

In: sound outputs.  Out: by kind of output, what came of it: found, harmless (the same is read), silent (another),
traceback, hang.
"""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.faults import small
from tests.faults.forked import Ended, Tally, forked, late

KINDS = (small.STORE, small.COMPACT, small.CODES, small.MODEL, small.EVAL, small.COMPARISON)
_TOLD = ("not as it was written", "is made again")


def flips(folder: Path, count: int, rng: random.Random, tally: Tally) -> None:
    """Flip `count` bits, one at a time, in every kind of file alike."""
    expected = {kind: small.digest_of(kind, folder / kind) for kind in KINDS}
    groups = _files_alike(folder)
    for number in range(count):
        if late():
            break
        kind, path = rng.choice(groups[number % len(groups)])
        content = path.read_bytes()
        at, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        harmed = bytearray(content)
        harmed[at] ^= bit
        if not tally.had(fault := f"{number}: {path.relative_to(folder)}"):
            came = _read_with(folder, kind, path, bytes(harmed), expected[kind])
            tally.add(fault, came, f"byte {at} of {len(content)} bit {bit}")


def swaps(folder: Path, other: Path | None, count: int, rng: random.Random, tally: Tally) -> None:
    """Put files and folders in each other's place: those of two outputs, of two trials, of two arrays."""
    expected = {kind: small.digest_of(kind, folder / kind) for kind in KINDS}
    pairs = [*_exchanges(folder, other)]
    rng.shuffle(pairs)
    for kind, path, unit in pairs[:count]:
        if late():
            break
        fault = f"{path.relative_to(folder)} <- {unit.relative_to(folder.parent)}"
        if not tally.had(fault):
            tally.add(fault, _read_with(folder, kind, path, unit, expected[kind]))


def _files_alike(folder: Path) -> list[list[tuple[str, Path]]]:
    """All files by kind of output and kind of file, so that a thousand chunks do not hide one record."""
    groups: dict[tuple[str, str], list[tuple[str, Path]]] = {}
    for kind in KINDS:
        for path in sorted((folder / kind).rglob("*")):
            if path.is_file() and path.stat().st_size:
                chunk = "c" in path.parts[-3:-1]
                groups.setdefault((kind, "chunk" if chunk else path.name), []).append((kind, path))
    return [group for _, group in sorted(groups.items())]


def _exchanges(folder: Path, other: Path | None) -> Iterator[tuple[str, Path, Path]]:
    """What is put where: the same file of another run, of another trial, or of another array of the same run."""
    for kind in KINDS:
        files = [path for path in sorted((folder / kind).rglob("*")) if path.is_file() and path.stat().st_size]
        for path in files:
            twin = other and other / path.relative_to(folder)
            if twin and twin.exists() and twin.read_bytes() != path.read_bytes():
                yield kind, path, twin
            for neighbor in files:
                alike = neighbor.suffix == path.suffix and neighbor != path
                if alike and _chosen(path, neighbor) and neighbor.read_bytes() != path.read_bytes():
                    yield kind, path, neighbor
    for kind in (small.STORE, small.COMPACT):
        for seed in (1, 2, 3):
            yield kind, folder / kind / "trials" / str(seed), folder / kind / "trials" / str(seed % 3 + 1)
            if other:
                yield kind, folder / kind / "trials" / str(seed), other / kind / "trials" / str(seed)
            for array in ("weights", "env_step", "obs_mean"):
                mine = folder / kind / "trials" / str(seed) / array
                yield kind, mine, folder / kind / "trials" / str(seed % 3 + 1) / array


def _chosen(path: Path, neighbor: Path) -> bool:
    """Files of the same place in two trials or arrays, and a few others, the same ones every time."""
    return path.name == neighbor.name or sum(map(ord, path.name + neighbor.name)) % 7 == 0


def _read_with(folder: Path, kind: str, path: Path, content: bytes | Path, expected: str) -> str:
    """What comes of reading an output in which one file, or one folder, is other for the time being."""
    aside = path.with_name(path.name + ".aside")
    parent = path.parent
    before = {entry.name for entry in parent.iterdir()}
    os.rename(path, folder / "aside")
    try:
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content.is_dir():
            shutil.copytree(content, path)
        else:
            shutil.copyfile(content if content != path else folder / "aside", path)
        return outcome(forked(lambda: small.digest_of(kind, folder / kind), folder), expected)
    finally:
        for entry in parent.iterdir():
            if entry.name not in before or entry == path:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        os.rename(folder / "aside", path)
        assert not aside.exists()


def outcome(ended: Ended, expected: str) -> str:
    if ended.hung:
        return "hang"
    if ended.failed:
        return f"traceback ({ended.said.strip().splitlines()[-1][:100] if ended.said.strip() else ended.code})"
    if ended.code == 2 or any(told in ended.said for told in _TOLD):
        return "found"
    return "harmless" if ended.value == expected else "silent"
