"""A model's folder: its settings as JSON, its weights as safetensors, and what it learned from, each sealed.

In: a folder; settings and tensors.  Out: the same, or one clear line about what is wrong with the files.

All three files carry the model's identity, so that a file of another model is noticed. What a file claims is held
against the size of the files before memory or time is spent on it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from tipl.bundle import read_bundle, write_bundle
from tipl.checks import AnyPath, checked_arguments
from tipl.errors import TiplError
from tipl.files import Absent, Damaged, check_seal, parse_json, read_file, read_json, require, write_file, write_json
from tipl.shapes import Each, Maybe, Number, OneOf, Whole

__all__ = ["write_file"]  # to which callers are used here

FORMAT = "tipl-model"
VERSION = 2
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TRAINING_FILE = "training.json"

_AGAIN = "copy or train the model again"
_LARGEST = 1 << 20
"""A setting that no tensor's size shows is at most this."""
_RECORD = {"model": str, "identity": str, "config": dict}
_TRAINING = {
    "identity": str,
    "config": dict,
    "codes": {
        "sha256": str,
        "basis": Maybe(dict),
        "trials": {
            "codes": Maybe(str),
            "stores": Maybe(
                [
                    {
                        "id": (str, None),
                        "name": str,
                        "train": [Whole()],
                        "validation": [Whole()],
                        "beginnings": Maybe([str]),
                    }
                ]
            ),
        },
    },
    "precision": str,
    "kept": {"step": Whole(), "by": str},
    "curve": [
        {
            "step": Whole(),
            "train_loss": Number(),
            "validation_loss": Number(),
            "skill": Each(Number()),
            "seconds": Number(0),
        }
    ],
}


class Record(NamedTuple):
    """What config.json says."""

    kind: str
    identity: str
    """What the model's other files have to say, too."""
    settings: dict[str, Any]


class SavedModel(nn.Module):
    """A network that is made from its settings alone, and that a folder holds.

    `settings` is their dataclass, which raises a TiplError of numbers that describe no model.
    """

    kind: ClassVar[str]
    """Its name in files and on the command line."""
    settings: ClassVar[type]
    config: Any
    identity: str = ""
    """Tells this model's files from another's; where it is empty, its weights' checksum does."""

    @checked_arguments
    def save(self, folder: AnyPath) -> None:
        """Write the weights and the settings into `folder`.

        Raises:
            TiplError: the folder cannot be written.
        """
        write_model(Path(folder), self.kind, dataclasses.asdict(self.config), self.state_dict(), self.identity)

    @classmethod
    @checked_arguments
    def load(cls, folder: AnyPath) -> Self:
        """The model of this kind in `folder`, in eval mode.

        Raises:
            TiplError: there is no model, it is damaged, of another version or kind, or its weights do not fit its
                settings.
        """
        folder = Path(folder)
        record = read_record(folder)
        if record.kind != cls.kind:
            raise TiplError(
                f"{folder} holds a model of the kind {record.kind!r}, not {cls.kind!r}; give another folder."
            )
        tensors = _read_weights(folder, record)
        model = _shell(cls, folder, record.settings, tensors)
        _check_fit(folder, model.state_dict(), tensors)
        # Copies lie in memory as torch lays it out, so that the same model computes the same bits as before.
        model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
        return model.eval()


def _shell(kind: type[SavedModel], folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """A model without weights, whose settings ask for no more than these tensors could hold.

    Raises:
        TiplError: they ask for more, are unknown, of another type, or describe no model.
    """
    path = folder / CONFIG_FILE
    most = max(_LARGEST, sum(tensor.numel() for tensor in tensors.values()))
    bounds = {name: Whole(-most, most) for name, value in settings.items() if type(value) is int}
    require(settings, bounds | {"num_layers": Maybe(Whole(0, len(tensors)))}, str(path), "train the model again")
    try:
        with torch.device("meta"):  # shapes alone: drawing weights to throw away would disturb torch's generator
            return kind(kind.settings(**settings))
    except (TypeError, OverflowError, RuntimeError) as error:
        raise TiplError(f"{path} lacks settings of a model or has unknown ones ({error}); train it again.") from error


def write_model(
    folder: Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], identity: str = ""
) -> None:
    """Write the weights and then the settings.

    Raises:
        TiplError: the folder cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    identity = identity or digest(hashlib.sha256(safetensors.torch.save(tensors)).hexdigest())
    write_bundle(folder / WEIGHTS_FILE, tensors, {"identity": identity}, safetensors.torch)
    record = {"format": FORMAT, "version": VERSION, "model": kind, "identity": identity, "config": dict(config)}
    write_json(folder / CONFIG_FILE, record, seal=True)


def digest(facts: Any) -> str:
    """Return a short name for facts, the same for the same facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def read_record(folder: Path) -> Record:
    """The model's kind, identity and settings.

    Raises:
        TiplError: there is no model, its file is damaged, or it is of another version.
    """
    path = folder / CONFIG_FILE
    try:
        content = read_file(path, _LARGEST, _AGAIN)
    except Absent as error:
        raise TiplError(f"There is no model in {folder}: it has no {path.name}; make one with `tipl train`.") from error
    found = parse_json(content, str(path), _AGAIN)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise TiplError(f"{path} does not describe a TIPL model; give a folder that `tipl train` wrote.")
    if found.get("version") != VERSION:
        raise TiplError(
            f"{path} is of version {found.get('version')}, this program reads {VERSION}; train the model again or use "
            "the program that wrote it."
        )
    check_seal(path, content, _AGAIN)
    require(found, _RECORD, str(path), _AGAIN)
    return Record(found["model"], found["identity"], found["config"])


def write_training(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what a model learned from and how it went, unless the file says so already.

    Raises:
        TiplError: the folder cannot be written.
    """
    path, told = folder / TRAINING_FILE, {"version": VERSION, **facts}
    try:
        found = read_json(path, dict, sealed=True)
    except TiplError:
        found = {}
    if {**found, "seal": None} != {**told, "seal": None}:
        write_json(path, told, seal=True)


def read_training(folder: Path) -> dict[str, Any]:
    """What the model in `folder` learned from, and how it went: `config`, `codes`, `precision`, `curve`.

    Raises:
        TiplError: it is missing, damaged, of another version, or of another model than the one in the folder.
    """
    path = folder / TRAINING_FILE
    found = read_json(path, {"version": OneOf(VERSION)} | _TRAINING, advice=_AGAIN, sealed=True)
    if found["identity"] != read_record(folder).identity:
        raise Damaged(f"{path} is of another model than {CONFIG_FILE} beside it; copy both files from one model.")
    return {name: value for name, value in found.items() if name != "seal"}


def _read_weights(folder: Path, record: Record) -> dict[str, Tensor]:
    """The tensors, all of them finite.

    Raises:
        TiplError: they cannot be read, are damaged, of another model, or not finite.
    """
    path = folder / WEIGHTS_FILE
    tensors, facts = read_bundle(path, {"identity": str}, safetensors.torch, _AGAIN)
    if facts["identity"] != record.identity:
        raise Damaged(f"{path} is of another model than {CONFIG_FILE} beside it; copy both files from one model.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Damaged(f"{path}: the weights {name} are not finite; {_AGAIN}.")
    return tensors


def _check_fit(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises TiplError unless the tensors have the names, shapes and types that the settings ask for."""
    for name in sorted(expected.keys() | found.keys()):
        wanted, have = _describe(expected.get(name)), _describe(found.get(name))
        if wanted != have:
            raise TiplError(
                f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {name} is {have}, expected {wanted}; "
                "copy both files from one model."
            )


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
