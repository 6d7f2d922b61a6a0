"""What do jumps save beside plain PPO, each arm at a rate that other seeds chose, and beside the hardest baseline?

In: what `studies/accelerate.py … --stages judge` found in several environments.  Out: of all of them together
(`across`) the steps to 90% of what plain PPO gains at 3e-4 and the final return of every arm at its own rate,
beside plain PPO at 3e-4, at its own rate, and at the rate that is the best on the judged seeds themselves.

    python studies/verdict.py results/accelerate/fresh-*.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tipl.acceleration.across import environment, paired

BASE, MEASURE = "plain, 0.0003", "steps to 90%"


def hardest(found: dict[str, Any]) -> str:
    """The plain arm that nobody could have known to be the best."""
    plain = [name for name in found["arms"] if name.startswith("plain, ")]
    return min(plain, key=lambda name: np.mean(found["arms"][name][MEASURE]["by_seed"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="JUDGMENT.json")
    found = [json.loads(path.read_text()) for path in parser.parse_args().files]
    seeds = min(len(each["seeds"]) for each in found)
    references = {
        "plain at 3e-4": [BASE] * len(found),
        "plain at its own rate": [each["best"]["plain"] for each in found],
        "plain at the best in hindsight": [hardest(each) for each in found],
    }
    kinds = [kind for kind in found[0]["best"] if all(kind in each["best"] for each in found)]
    arms = {f"{kind} at its own rate": [each["best"][kind] for each in found] for kind in kinds}
    for reference, theirs in references.items():
        print(f"\nbeside {reference}; {', '.join(map(environment, found))}")
        for arm, mine in arms.items():
            pairs = [(e["arms"][m], e["arms"][t]) for e, m, t in zip(found, mine, theirs, strict=True)]
            steps, final = (paired(measure, pairs, found, seeds) for measure in (MEASURE, "final return"))
            each = ", ".join(map(_text, steps["by_environment"]))
            print(f"{arm:34} {_text(steps)}  final {_text(final)}  {each}")


def _text(one: dict[str, Any]) -> str:
    return f"{one['value']:.3f} [{one['ci'][0]:.3f}, {one['ci'][1]:.3f}]" if one["ci"] else f"{one['value']:.3f}"


if __name__ == "__main__":
    main()
