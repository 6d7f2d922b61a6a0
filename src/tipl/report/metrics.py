"""One metrics.json, read as what somebody else may have written.

In: the folder of an evaluation or an acceleration.  Out: what the file says, of the outer shape that the report needs.
"""

from pathlib import Path
from typing import Any

from tipl.files import changed_since_sealed, parse_json, read_file, require
from tipl.progress import console
from tipl.shapes import Maybe, OneOf, Whole

METRICS_BYTES = 256 << 20
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


def read_metrics(folder: Path, again: str) -> dict[str, Any]:
    """Return what FOLDER/metrics.json says. Where it was changed since it was written, a line says so.

    Args:
        again: what to do where it cannot be used, as the end of a sentence.

    Raises:
        Absent: there is no such file.
        TiplError: it is no regular file, too large, no JSON, or of another outer shape.
    """
    path = folder / "metrics.json"
    content = read_file(path, METRICS_BYTES, again)
    found = require(parse_json(content, str(path), again, finite=False), _OUTER, str(path), again)
    if changed_since_sealed(content):
        console.print(f"report: {path} is not as it was written: it was changed or damaged since; {again} to be sure.")
    return found
