"""Hostile command lines: every flag of every verb with values that nobody should give.

In: a folder with a tiny store in it.  Out: command lines, and what came of each. `python tests/hostile_lines.py` runs
all, or those of the verbs that are named.
"""

import argparse
import contextlib
import io
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tipl.cli.main import main
from tipl.cli.verbs import build_parser
from tipl.collection.random_walk import random_walk

SECONDS = 60
"""What one command line may take."""
NUMBERS = ("0", "-1", "nan", "inf", "-inf", "1e20", "1e400", "", "x", "99999999999999999999", "-0.5", "0.5", "1", "2")
NAMES = ("", " ", "n" * 300, "é\u202e", "-", "\x1b[31m", "a/b", "..", "[/x]")
PATHS = (
    "s3://", "hf://a/b", "http://[", "memory://a/b", "x://y", "file:///proc/1/mem", "hf://../x",
    "", ".", "..", "~nobody-of-that-name/x", "file/below", "p" * 300, "missing/deep/er", "é ü", "s", "s/", "file", "-",
    "[/x]", "s/trials", "loop", "/dev/null", "/proc/1/mem", "sealed/out", "model", "codes", "eval",
)  # fmt: skip
SMALL = "--total-steps 128 --ppo.num-steps 64 --ppo.num-minibatches 2 --ppo.update-epochs 2 --hidden-sizes 2"
BASES = {
    "collect": f"--out c --trials 1 --workers 1 {SMALL}",
    "fit-svd": "s --out new --dim 2 --basis window --window 3",
    "train": "s --out new --dim 2 --width 4 --context 3 --steps 2 --batch-size 2 --warmup-steps 1 --validate-every 1",
    "evaluate": "s --out new --no-returns --horizons 1 --return-horizons 1 --origins 2 --spectrum-trials 0",
    "ceiling": "s --out new --horizons 1 --futures 2 --origins 1 --trials 1 --workers 1",
    "forecast": "--store s --trial 1 --origin 5 --horizon 1 --out new.safetensors",
    "accelerate": f"--out new --trials 1 --workers 1 {SMALL}",
    "report": "eval --out new.html",
    "export": "s --trial 1 --snapshot 5 --out new.onnx",
    "picture": "s --trial 1 --origins 5 --horizon 1 --out new.svg --episodes 1 --grid 3",
    "video": "s --trial 1 --origin 5 --horizon 1 --out new.gif --episodes 1 --seconds 1 --size 64",
    "data info": "s", "data verify": "s", "data compact": "s --out new",
    "hub push": "s me/x", "hub pull": "me/x --out new", "hub list": "me",
    "data list": ".", "data card": "s", "data index": ".", "data merge": "s s --out new", "data export": "s --out new",
    "data import": "checkpoints --out new --env-id x",
    "data random-walk": "--out new --trials 1 --snapshots 4 --dim 2",
    "reproduce": "inverted-pendulum --preset none --out new",
}  # fmt: skip


def verbs(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every verb by its name, with its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from verbs(sub, f"{prefix}{name} ")
            return
    yield prefix.strip(), parser


def lines() -> list[list[str]]:
    """Every flag of every verb, with every hostile value of its kind, beside flags that make the verb quick."""
    made = []
    for verb, parser in verbs(build_parser()):
        base = BASES[verb].split()
        for action in parser._actions:
            for value in _values(action):
                if action.option_strings:
                    flag = action.option_strings[0]
                    made.append([*verb.split(), *_without(base, flag), f"{flag}={value}"])
                else:
                    made.append([*verb.split(), *base[1:], "--", value])
    return made


def _values(action: argparse.Action) -> tuple[str, ...]:
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction | argparse._HelpAction):
        return ()
    if action.metavar in ("N", "X", "D", "RETURN"):
        return NUMBERS
    if action.metavar is None or action.metavar == "NAME":
        return NAMES
    return PATHS


def _without(base: list[str], flag: str) -> list[str]:
    """The base without a flag and its values."""
    if flag not in base:
        return base
    start = base.index(flag)
    stop = next((i for i in range(start + 1, len(base)) if base[i].startswith("--")), len(base))
    return base[:start] + base[stop:]


def furnish(folder: Path) -> None:
    """A store, a file, a model, codes, an evaluation, a link in a circle and a folder that takes no files."""
    with _working_in(folder), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        random_walk(Path("s"), trials=3, snapshots=24, dim=3)
        Path("file").write_text("no folder")
        Path("loop").symlink_to("loop")
        Path("sealed").mkdir(mode=0o500)
        Path("checkpoints").mkdir()
        for step in (1, 2):
            np.savez(f"checkpoints/step_{step}.npz", w=np.full(3, float(step)))
        for verb, out in (("fit-svd", "codes"), ("train", "model"), ("evaluate", "eval")):
            base = [out if word == "new" else word for word in BASES[verb].split()]
            assert main([*verb.split(), *base]) == 0, verb


def run(line: list[str], folder: Path) -> str | None:
    """Run one line in a copy of the furnished folder; what is wrong with how it ended, or None."""
    with tempfile.TemporaryDirectory() as place:
        here = Path(place) / "here"
        shutil.copytree(folder, here, symlinks=True)
        out, err = io.StringIO(), io.StringIO()
        places = {"TIPL_HUB": f"file://{place}/hub", "TIPL_CACHE": f"{place}/cache"}
        with (
            mock.patch.dict(os.environ, places),
            _working_in(here),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _at_most(SECONDS),
        ):
            try:
                code: Any = main(line)
            except SystemExit as stop:
                code = stop.code
            except _TooLong:
                return f"took more than {SECONDS} s"
            except BaseException:
                return (
                    traceback.format_exc().strip().splitlines()[-1]
                    + " "
                    + "".join(traceback.format_exc().splitlines()[-4:-1])
                )
        told = [each for each in err.getvalue().splitlines() if each.startswith("tipl: ")]
        if code == 2 and (len(told) != 1 or not err.getvalue().endswith(told[-1] + "\n")):
            return f"exit 2 with {len(told)} lines: {err.getvalue()[-200:]!r}"
        return None if code in (0, 2) else f"exit {code}"


class _TooLong(BaseException):
    pass


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def sample(count: int, seed: int = 0) -> list[list[str]]:
    """So many of the lines, spread over all verbs alike."""
    rng, every = random.Random(seed), lines()
    by_verb = [
        [*group]
        for _, group in itertools.groupby(every, key=lambda line: line[:2] if line[0] in ("data", "hub") else line[:1])
    ]
    for group in by_verb:
        rng.shuffle(group)
    mixed = [line for row in itertools.zip_longest(*by_verb) for line in row if line is not None]
    return mixed[:count]


def report(argv: list[str]) -> int:
    """Run all lines, or those of the verbs named, and print those that end wrongly."""
    chosen = [line for line in lines() if not argv or line[0] in argv]
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        furnish(Path(place))
        for number, line in enumerate(chosen):
            fault = run(line, Path(place))
            if fault:
                wrong += 1
                print(f"{number} {' '.join(map(repr, line))[-120:]}\n    {fault}", flush=True)
    print(f"{wrong} wrong of {len(chosen)}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(report(sys.argv[1:]))
