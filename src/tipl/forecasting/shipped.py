"""Trained models by name or folder, and what their folders say of them.

In: the name of a model that comes with the package, or a path.  Out: its folder, a digest of it.
"""

import contextlib
import hashlib
from pathlib import Path

from tipl.bundle import MOST_BYTES
from tipl.checks import Place, is_address
from tipl.errors import TiplError
from tipl.files import Absent, read_file
from tipl.models import CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE
from tipl.remote.mirror import located, mirror_of, refresh
from tipl.remote.names import looks_like_a_name
from tipl.remote.pull import pulled
from tipl.training import LAST

SHIPPED = "causal"
"""The model that is taken where none is named."""
SHIPPED_NAMES = (SHIPPED, "zoo")
"""The models that come with the package: `causal` learned from five stores of four environments, `zoo` from 32
environments (`studies/zoo.py`)."""
PRETRAINED = Path(__file__).parent / "pretrained"


def model_folder(name_or_path: Place) -> Path:
    """Return a model's folder, by its path, its address, or the name of one that comes with the package.

    Of hf://USER/NAME what is published under that name is fetched, of another address the files of a model.

    A name is a name: `causal` is the package's own, also where a folder of that name is here, which `./causal` is. A
    `Path` is a path wherever it leads to a folder.
    """
    if is_address(name_or_path):
        return _fetched(str(name_or_path))
    path = Path(name_or_path)
    is_name = not path.exists() if isinstance(name_or_path, Path) else True
    return PRETRAINED / str(name_or_path) if str(name_or_path) in SHIPPED_NAMES and is_name else path


def published_folder(name_or_path: Place, revision: str | None = None) -> Path:
    """Return a model's folder as `model_folder` does, where USER/NAME is no folder here what was published so.

    Raises:
        TiplError: there is none of that name, or a revision is asked for of what is no published name.
    """
    name = str(name_or_path)
    published = name.startswith("hf://") or looks_like_a_name(name)
    if revision is not None and not published:
        raise TiplError(f"revision has no effect on {name}, which was not published under a name; leave it out.")
    if revision is not None or (looks_like_a_name(name) and not Path(name).exists()):
        return pulled(name, revision)
    return model_folder(name_or_path)


def _fetched(address: str) -> Path:
    if address.startswith("hf://"):
        return pulled(address)
    folder = located(address)
    for name in (CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE) if mirror_of(folder) else ():
        with contextlib.suppress(Absent):
            refresh(folder / name)
    return folder


def model_digest(folder: Path) -> str:
    """Return a digest of what a model's folder holds: a model that was trained again is another."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        digest.update(hashlib.sha256(read_file(folder / name, MOST_BYTES)).digest())
    return digest.hexdigest()[:16]


def model_name(folder: Path) -> str:
    """What a trained model is called: its folder's name, and MODEL-last for the last one of a training, MODEL/last."""
    folder = Path(folder).resolve()
    return f"{folder.parent.name}-{LAST}" if folder.name == LAST else folder.name
