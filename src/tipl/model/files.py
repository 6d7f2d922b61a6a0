"""A model's folder: its settings as JSON and its weights as safetensors, each file whole or not at all.

In: a folder; settings and tensors.  Out: the same, or one clear line about what is wrong with the files.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tipl.errors import TiplError

FORMAT = "tipl-model"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FIRST_KIND = "paper"
"""What a folder holds whose settings do not say."""


class SavedModel(nn.Module):
    """A network that is made from its settings alone, and that a folder holds.

    `settings` is their dataclass, which raises a TiplError of numbers that describe no model.
    """

    kind: ClassVar[str]
    """Its name in files and on the command line."""
    settings: ClassVar[type]
    config: Any

    def save(self, folder: Path) -> None:
        """Write the weights and the settings into `folder`.

        Raises:
            TiplError: the folder cannot be written.
        """
        write_model(folder, self.kind, dataclasses.asdict(self.config), self.state_dict())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model of this kind in `folder`, in eval mode.

        Raises:
            TiplError: there is no model, it is cut short, of another version or kind, or its weights do not fit its
                settings.
        """
        folder = Path(folder)
        kind, settings = read_record(folder)
        if kind != cls.kind:
            raise TiplError(f"{folder} holds a model of the kind {kind!r}, not {cls.kind!r}; give another folder.")
        try:
            config = cls.settings(**settings)
        except TypeError as error:
            raise TiplError(
                f"{folder / CONFIG_FILE} lacks settings of a model or has unknown ones ({error}); train it again."
            ) from error
        with torch.device("meta"):  # shapes alone: drawing weights to throw away would disturb torch's generator
            model = cls(config)
        model.load_state_dict(read_tensors(folder, model.state_dict()), assign=True)
        return model.eval()


def write_model(folder: Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the weights and then the settings.

    Raises:
        TiplError: the folder cannot be written.
    """
    record = {"format": FORMAT, "version": VERSION, "model": kind, "config": dict(config)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(folder / WEIGHTS_FILE, safetensors.torch.save(tensors))
    write_file(folder / CONFIG_FILE, (json.dumps(record, indent=2) + "\n").encode())


def read_record(folder: Path) -> tuple[str, Any]:
    """The model's kind and its settings, as they stand in the file.

    Raises:
        TiplError: there is no model, its file is cut short, or it is of another version.
    """
    path = folder / CONFIG_FILE
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise TiplError(f"There is no model in {folder}: it has no {path.name}; make one with `tipl train`.") from error
    except OSError as error:
        raise TiplError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise TiplError(f"{path} is cut short or no JSON; copy or train the model again.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise TiplError(f"{path} does not describe a TIPL model; give a folder that `tipl train` wrote.")
    if record.get("version") != VERSION:
        raise TiplError(
            f"{path} is of version {record.get('version')}, this program reads {VERSION}; train the model again or use "
            "the program that wrote it."
        )
    return record.get("model", FIRST_KIND), record.get("config")


def read_tensors(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, with the names, shapes and types of those in `like`.

    Raises:
        TiplError: they cannot be read, or are others.
    """
    path = folder / WEIGHTS_FILE
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise TiplError(f"Cannot read {path} ({error.strerror}); train the model again.") from error
    except SafetensorError as error:
        raise TiplError(f"{path} is cut short or no safetensors file; copy or train the model again.") from error
    for name in sorted(like.keys() | tensors.keys()):
        expected, found = _describe(like.get(name)), _describe(tensors.get(name))
        if expected != found:
            raise TiplError(
                f"{path} does not fit {CONFIG_FILE} beside it: {name} is {found}, expected {expected}; copy both files "
                "from one model."
            )
    # Copies lie in memory as torch lays it out, so that the same model computes the same bits as before.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader, or a crash at any moment, finds the old content or the new one.

    Raises:
        TiplError: the place cannot be written, or the disk is full.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise TiplError(f"Cannot write {path}: {error.strerror}; free some space or choose another place.") from error


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
