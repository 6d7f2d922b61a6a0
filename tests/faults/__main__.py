"""Run the faults and print what came of them, by kind.

In: how many, a seed.  Out: a table; exit code 1 where something was silent, lost, refused, hung or failed.
"""

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_threads] = "1"

SMALL = {"flips": 24, "swaps": 12, "kills": 8, "hostile": 10, "full": 4}
LARGE = {"flips": 1200, "swaps": 120, "kills": 100_000, "hostile": 400, "full": 60}
GOOD = {"flips": ("found", "harmless"), "swaps": ("found", "harmless"), "kills": ("done",), "full": ("done",),
        "hostile": ("done", "refused")}  # fmt: skip


def main() -> int:
    """Make small outputs, harm them, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--large", action="store_true", help="by the thousand")
    parser.add_argument("--only", nargs="+", choices=SMALL, default=[*SMALL])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=None, help="of each kind, instead")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which each kind begins no more")
    parser.add_argument("--log", type=Path, help="where each fault is noted, and from which the same command goes on")
    asked = parser.parse_args()
    from tests.faults import forked

    counts, wrong = LARGE if asked.large else SMALL, 0
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        began = time.monotonic()
        folder, other = _sound(Path(place) / "one"), None
        print(f"sound outputs of every verb: {time.monotonic() - began:.0f} s", flush=True)
        for kind in asked.only:
            began, count = time.monotonic(), asked.count or counts[kind]
            if kind == "swaps" and asked.large:
                other = other or _sound(Path(place) / "other", variant=1)
            forked.until = time.monotonic() + asked.seconds
            tally = forked.Tally(f"{kind} of seed {asked.seed}", GOOD[kind], asked.log)
            _run(kind, folder, other, count, asked.seed, tally)
            wrong += tally.bad
            told = ", ".join(f"{number} {what}" for what, number in sorted(_summed(tally.counts).items()))
            print(f"{kind}: {tally.counts.total()} in {time.monotonic() - began:.0f} s: {told}", flush=True)
    return 1 if wrong else 0


def _sound(folder: Path, variant: int = 0) -> Path:
    from tests.faults import small

    folder.mkdir()
    small.run_here()
    small.VARIANT = variant
    small.make(folder)
    small.VARIANT = 0
    if variant == 0:
        small.note_shapes(folder)
    return folder


def _run(kind: str, folder: Path, other: Path | None, count: int, seed: int, tally: Any) -> None:
    from tests.faults import damage, hostile, kills

    rng = random.Random(seed)
    match kind:
        case "flips":
            damage.flips(folder, count, rng, tally)
        case "swaps":
            damage.swaps(folder, other, count, rng, tally)
        case "kills":
            kills.kills(folder, count, rng, tally)
        case "full":
            kills.full_disks(folder, count, rng, tally)
        case _:
            hostile.stores(folder, count, seed, tally)


def _summed(came: Counter[str]) -> Counter[str]:
    """Counts without what stands in brackets."""
    summed: Counter[str] = Counter()
    for what, number in came.items():
        summed[what.split(" (")[0]] += number
    return summed


if __name__ == "__main__":
    sys.exit(main())
