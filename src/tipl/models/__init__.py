"""Models: over codes TIPL as the paper has it and rivals of its size; over the inner products of a window causal TIPL.

In: the codes of the last K snapshots and their numbers, or windows; a model's folder.  Out: the next codes, or how
much of each of a window's differences a forecast takes.

Shared by all: base.py, files.py.
"""

from pathlib import Path

from tipl.errors import TiplError
from tipl.models.base import CodeModel, Dropout, TIPLConfig, num_parameters
from tipl.models.causal import CausalTIPL
from tipl.models.files import (
    CONFIG_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    digest,
    read_record,
    read_training,
    write_file,
    write_training,
)
from tipl.models.rivals import GRU, MLP
from tipl.models.transformer import TIPL, Attention

KINDS: dict[str, type[CodeModel]] = {model.kind: model for model in (TIPL, GRU, MLP)}
"""Models over codes."""


def load(folder: Path) -> CodeModel:
    """The model over codes in `folder`, of whatever kind, in eval mode.

    Raises:
        TiplError: there is no model, it is cut short, of another version or of no known kind, or its weights do not
            fit its settings.
    """
    folder = Path(folder)
    kind = read_record(folder).kind
    if kind not in KINDS:
        raise TiplError(
            f"{folder} holds a model of the kind {kind!r}; over codes this program knows {', '.join(KINDS)}: give "
            "another folder, or use the program that wrote it."
        )
    return KINDS[kind].load(folder)


__all__ = [
    "CONFIG_FILE",
    "GRU",
    "KINDS",
    "MLP",
    "TIPL",
    "TRAINING_FILE",
    "WEIGHTS_FILE",
    "Attention",
    "CausalTIPL",
    "CodeModel",
    "Dropout",
    "TIPLConfig",
    "digest",
    "load",
    "num_parameters",
    "read_record",
    "read_training",
    "write_file",
    "write_training",
]
