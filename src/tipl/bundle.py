"""Named arrays and what they are of, in one sealed safetensors file.

In: arrays of numpy or tensors of torch, and facts as JSON.  Out: the same, or one line about what is wrong.

The facts, with the seal, stand in the file's header. The format knows no code, and its sizes are held against the
file's before anything is read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tipl.files import SEAL, Damaged, check_seal, parse_json, read_file, require, sealed, write_file

MOST_BYTES = 1 << 38
_HEADER_BYTES = 100_000_000  # as the format's own reader has it


def write_bundle(path: Path, arrays: Mapping[str, Any], facts: Mapping[str, Any], library: Any) -> None:
    """Write arrays and facts in one step.

    Args:
        library: safetensors.numpy or safetensors.torch.

    Raises:
        TiplError: the place cannot be written, or the disk is full.
    """
    write_file(path, bundled(arrays, facts, library))


def bundled(arrays: Mapping[str, Any], facts: Mapping[str, Any], library: Any) -> bytes:
    """Return the content of such a file."""
    told = json.dumps({"seal": SEAL, **facts}, allow_nan=False)
    return sealed(library.save(dict(arrays), {"tipl": told}))


def read_bundle(path: Path, shape: Any, library: Any, advice: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays and the facts of a file.

    Args:
        shape: of the facts, see shapes.py.
        advice: what to do where the file cannot be used, as the end of a sentence.

    Raises:
        Absent: there is no such file.
        Damaged: it is no such file, was cut short, has other bits or facts of another shape.
        TiplError: it is no regular file, or cannot be read.
    """
    content = read_file(path, MOST_BYTES, advice)
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(len(content) - 8, _HEADER_BYTES):
        raise Damaged(f"{path} is cut short or no safetensors file; {advice}.")
    check_seal(path, content, advice)
    header = parse_json(content[8 : 8 + size], str(path), advice)
    told = require(header, {"__metadata__": {"tipl": str}}, str(path), advice)["__metadata__"]["tipl"]
    facts = require(parse_json(told.encode(), str(path), advice), shape, str(path), advice)
    try:
        return library.load(content), facts
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{path} is no safetensors file ({error}); {advice}.") from error
