"""The tensors of a checkpoint, in whatever format it is: opened as data, read one by one.

In: a file, or a folder of safetensors that belong together.  Out: names, shapes, float32 arrays; what an SB3 zip says.

    .safetensors             one tensor at a time, from the disk
    .npz                     one array at a time; pickled ones are refused
    .pt .pth .bin .ckpt      torch.load(weights_only=True), mapped where the file allows it: a state dict, a checkpoint
    .cleanrl_model           that holds one, or several of them, of which the first acts
    .zip                     of Stable-Baselines3: its policy.pth likewise, and those settings that are plain JSON

Nothing in a file is run, no link is followed, and sizes are looked at before memory is taken.
"""

import contextlib
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tipl.errors import TiplError
from tipl.files import file_size, parse_json, read_file

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt", ".cleanrl_model", ".zip")
PICKLES = (".pkl", ".pickle", ".joblib")
_MOST_IN_MEMORY = 1 << 34  # of files that are read whole
_MOST_SETTINGS = 1 << 26
_HOLDS = ("state_dict", "model_state_dict", "model_weights", "agent_state_dict", "policy", "agent", "model", "actor")
_ADVICE = "give checkpoints that can be read as data"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is open."""

    shapes: Mapping[str, tuple[int, ...]]
    """By name, of its tensors of real numbers."""
    read: Callable[[str], np.ndarray]
    """One of them, float32."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What an SB3 zip says of its algorithm."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Checkpoint]:
    """Yield a checkpoint while it is open.

    Raises:
        TiplError: it holds no tensors by name that can be read without running anything.
    """
    with contextlib.ExitStack() as stack:
        with _told(path):
            found = _open(path, stack)
        if not found.shapes:
            raise TiplError(f"{path} holds no tensors of real numbers; {_ADVICE}.")
        for name in found.shapes:
            if not name.isprintable() or len(name) > 300 or ".." in name.split("/"):
                raise TiplError(f"{path} has a tensor called {name[:60]!r}, which is no name; {_ADVICE}.")

        def read(name: str) -> np.ndarray:
            with _told(path):
                return found.read(name)

        yield replace(found, read=read)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Make one line of whatever a library says of a file."""
    try:
        yield
    except TiplError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise TiplError(f"{path} cannot be read as a checkpoint ({text[:120]}); {_ADVICE}.") from error


def _open(path: Path, stack: contextlib.ExitStack) -> Checkpoint:
    if path.is_dir():
        return _joined([stack.enter_context(opened(part)) for part in sorted(path.glob("*.safetensors"))], path)
    size = file_size(path, _ADVICE)  # a regular file, no link
    match path.suffix.lower():
        case ".safetensors":
            return _safetensors(path, stack)
        case ".npz":
            return _npz(path, size, stack)
        case ".zip":
            return _sb3(path)
    return _torch(path, path)


def _joined(parts: list[Checkpoint], path: Path) -> Checkpoint:
    of = {name: part for part in parts for name in part.shapes}
    if len(of) < sum(len(part.shapes) for part in parts):
        raise TiplError(f"The files of {path} have a tensor twice; give one checkpoint a folder.")
    return Checkpoint({name: part.shapes[name] for name, part in of.items()}, lambda name: of[name].read(name))


def _safetensors(path: Path, stack: contextlib.ExitStack) -> Checkpoint:
    import safetensors

    file = stack.enter_context(safetensors.safe_open(path, framework="pt"))
    names = list(file.keys())
    slices = {name: file.get_slice(name) for name in names}
    real = [name for name in names if slices[name].get_dtype() in ("F64", "F32", "F16", "BF16")]
    return Checkpoint(
        {name: tuple(slices[name].get_shape()) for name in real}, lambda name: _float32(file.get_tensor(name))
    )


def _npz(path: Path, size: int, stack: contextlib.ExitStack) -> Checkpoint:
    with zipfile.ZipFile(path) as archive:
        _check_members(path, archive, size)
        shapes: dict[str, tuple[int, ...]] = {}
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            if dtype.hasobject:
                raise TiplError(
                    f"{path} holds pickled objects, which can run code and are not opened; save plain arrays."
                )
            if dtype.kind == "f":
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise TiplError(f"{path} promises more numbers than it holds; {_ADVICE}.")
                shapes[member.filename.removesuffix(".npy")] = tuple(shape)
    arrays = stack.enter_context(np.load(path, allow_pickle=False))
    return Checkpoint(shapes, lambda name: np.asarray(arrays[name], np.float32))


def _sb3(path: Path) -> Checkpoint:
    content = read_file(path, _MOST_IN_MEMORY, _ADVICE)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if "policy.pth" not in names or "data" not in names:
            raise TiplError(f"{path} is no model that Stable-Baselines3 saved: it has no policy.pth; {_ADVICE}.")
        _check_members(path, archive, len(content))
        if archive.getinfo("data").file_size > _MOST_SETTINGS:
            raise TiplError(f"{path} has settings of more than {_MOST_SETTINGS:,} bytes; {_ADVICE}.")
        facts = parse_json(archive.read("data"), f"{path}: data", _ADVICE, finite=False)
        weights = archive.read("policy.pth")
    found = _torch(path, io.BytesIO(weights))
    return Checkpoint(found.shapes, found.read, facts if isinstance(facts, dict) else {})


def _check_members(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive that would unpack to far more than it is."""
    if sum(member.file_size for member in archive.infolist()) > 64 * size + (1 << 20):
        raise TiplError(f"{path} would unpack to more than 64 times its {size:,} bytes; {_ADVICE}.")


def _torch(path: Path, source: Any) -> Checkpoint:
    import torch

    mapped = isinstance(source, Path) and zipfile.is_zipfile(source)
    found = _state_dict(torch.load(source, map_location="cpu", weights_only=True, mmap=mapped))
    if found is None:
        raise TiplError(f"{path} holds no state dict, tensors by name; save `module.state_dict()`.")
    real = {name: each for name, each in found.items() if each.is_floating_point()}
    return Checkpoint(
        {name: tuple(each.shape) for name, each in real.items()}, lambda name: _float32(real[name].detach())
    )


def _state_dict(found: Any) -> Mapping[str, Any] | None:
    """The tensors by name of what torch.save was given: a state dict, several, or a checkpoint that has one."""
    import torch

    if isinstance(found, (tuple, list)) and found:
        found = found[0]  # CleanRL's TD3, DDPG and SAC save the actor first, then the critics
    if not isinstance(found, dict):
        return None
    if found and all(isinstance(name, str) and isinstance(each, torch.Tensor) for name, each in found.items()):
        return found
    inner = next((found[name] for name in _HOLDS if isinstance(found.get(name), dict)), None)
    return None if inner is None else _state_dict(inner)


def _float32(tensor: Any) -> np.ndarray:
    import torch

    return tensor.to(torch.float32).numpy()
