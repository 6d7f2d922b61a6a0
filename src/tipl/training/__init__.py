"""Training: one loop for every model, seeded, stopped at any moment and resumed to the bit.

In: codes of training and validation trials, TrainConfig.  Out: a folder with the best model, the last checkpoint
(`checkpoint.safetensors`), the curve (`training.json`), and in `last` the model as the last step left it.

The loop (loop.py) knows a model only as a `Task`: the paper's is `NextCode` (next_code.py), the causal model's is
`Displacements` (displacement.py). A `Worker` (devices.py) is one process of a training on its device. On a GPU a step
whose batches have one shape is recorded and replayed (cuda_graph.py).
"""

from tipl.training.devices import Worker, started_first
from tipl.training.displacement import Displacements
from tipl.training.fitting import check_out, fit, fit_causal
from tipl.training.loop import (
    CHECKPOINT_FILE,
    CURVE_FILE,
    LAST,
    SKILL_HORIZONS,
    VERSION,
    Task,
    Validation,
    fast_precision,
    kept,
)
from tipl.training.next_code import VALIDATION_SEGMENTS, NextCode, Segments
from tipl.training.train import CODES_FOLDER, train

__all__ = [
    "CHECKPOINT_FILE",
    "CODES_FOLDER",
    "CURVE_FILE",
    "LAST",
    "SKILL_HORIZONS",
    "VALIDATION_SEGMENTS",
    "VERSION",
    "Displacements",
    "NextCode",
    "Segments",
    "Task",
    "Validation",
    "Worker",
    "check_out",
    "fast_precision",
    "fit",
    "fit_causal",
    "kept",
    "started_first",
    "train",
]
