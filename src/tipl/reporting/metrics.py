"""One metrics.json, read as what somebody else may have written.

In: the folder of an evaluation or an acceleration.  Out: what the file says, of the outer shape that the report needs.
"""

import math
from pathlib import Path
from typing import Any

from tipl.files import Damaged, changed_since_sealed, parse_json, read_file, require
from tipl.progress import console
from tipl.shapes import Maybe, OneOf, Whole

METRICS_BYTES = 256 << 20
LARGEST = 1e100
"""No number that is drawn is larger; axes are made by powers and products of such numbers."""
_TEXT = Maybe((str, None))
_TRIALS = Maybe(([Whole()], None))
_OUTER = {
    "env_id": _TEXT,
    "store": _TEXT,
    "command": _TEXT,
    "fit": _TEXT,
    "hidden_sizes": Maybe(([Whole(1)], None)),
    "num_weights": Maybe((Whole(1), None)),
    "episodes": Maybe((Whole(1), None)),
    "train_trials": _TRIALS,
    "validation_trials": _TRIALS,
    "test_trials": _TRIALS,
    "judged": Maybe(OneOf("test", "all", "training")),
    "learned_from": Maybe(dict),
    "incomplete_trials": _TRIALS,
    "config": Maybe((dict, None)),
    "versions": Maybe((dict, None)),
    "training": Maybe((dict, None)),
    "forecasters": Maybe(dict),
    "arms": Maybe(dict),
}


def read_metrics(folder: Path, again: str, finite: bool = True) -> dict[str, Any]:
    """Return what FOLDER/metrics.json says. Where it was changed since it was written, a line says so.

    Args:
        again: what to do where it cannot be used, as the end of a sentence.
        finite: whether NaN and infinities are refused; otherwise the caller leaves them out.

    Raises:
        Absent: there is no such file.
        TiplError: it is no regular file, too large, no JSON, or of another outer shape.
    """
    path = folder / "metrics.json"
    content = read_file(path, METRICS_BYTES, again)
    found = require(parse_json(content, str(path), again, finite), _OUTER, str(path), again)
    if _largest(found) > LARGEST:
        raise Damaged(f"{path} holds a number larger than {LARGEST:g}, which is no measurement; {again}.")
    if changed_since_sealed(content):
        console.print(f"report: {path} is not as it was written: it was changed or damaged since; {again} to be sure.")
    return found


def _largest(value: Any) -> float:
    """The largest finite number in what JSON says, without its sign."""
    if isinstance(value, dict | list):
        return max((_largest(each) for each in (value.values() if isinstance(value, dict) else value)), default=0.0)
    return abs(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
