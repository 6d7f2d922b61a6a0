"""What is published under names: the Hugging Face Hub, or a folder (TIPL_HUB=file:///…, s3://…).

In: names.  Out: revisions and where their files are.
"""

import os

from tipl.errors import TiplError
from tipl.remote.hugging_face import HuggingFace, endpoint
from tipl.remote.names import Kind, Name
from tipl.remote.shelf import Shelf

Hub = HuggingFace | Shelf
_WHAT: dict[Kind | None, str] = {"datasets": "store", "models": "model or policy"}


def hub() -> Hub:
    """Return the hub that TIPL_HUB names: the Hugging Face Hub where it names none.

    Raises:
        TiplError: it names no place for one.
    """
    place = os.environ.get("TIPL_HUB", "")
    scheme, _, rest = place.partition("://")
    if not place or (scheme in ("http", "https") and rest):
        return HuggingFace()
    if scheme in ("s3", "gs", "memory") and rest.strip("/"):
        return Shelf(place)
    if (scheme == "file" and rest.startswith("/")) or place.startswith("/"):
        return Shelf(place if scheme == "file" else f"file://{place}")
    raise TiplError(f"TIPL_HUB is {place[:60]}; give file:///A/FOLDER, s3://BUCKET/FOLDER, or leave it out.")


def resolve(name: Name) -> tuple[Kind, str]:
    """Return the kind and the revision of what is published under a name.

    Raises:
        TiplError: nothing is, or something of another kind; or both a data set and a model are and the name does not
            say which.
    """
    kinds: tuple[Kind, ...] = ("datasets", "models")
    wanted = kinds if name.kind is None else (name.kind,)
    found: list[tuple[Kind, str]] = []
    for kind in wanted:
        revision = hub().resolve(kind, name.name, name.revision)
        if revision is not None:
            found.append((kind, revision))
    if not found:
        what = _WHAT.get(name.kind, "store, model or policy")
        for kind in kinds:
            if kind not in wanted and hub().resolve(kind, name.name, None) is not None:
                raise TiplError(
                    f"{name.name} in {shown()} is a {_WHAT[kind]}, not a {what}; give the name of a {what}."
                )
        raise TiplError(f"No {what} {name.name} is published in {shown()}; `tipl hub list` has what is.")
    if len(found) > 1:
        raise TiplError(f"{name.name} is both a store and a model; say datasets/{name.name} or models/{name.name}.")
    return found[0]


def shown() -> str:
    """Return where the hub is, for messages."""
    chosen = hub()
    return endpoint() if isinstance(chosen, HuggingFace) else chosen.address


def found_at(address: str) -> tuple[str, str]:
    """Return the full address, with its revision, of a store hf://USER/NAME, and where its files are.

    Raises:
        TiplError: there is none.
    """
    name = Name.read(address)
    if name.kind == "models":
        raise TiplError(f"{address} is a model, and stores are data sets; give hf://{name.name}.")
    kind, revision = resolve(Name(name.name, "datasets", name.revision, name.folder))
    below = f"/{name.folder}" if name.folder else ""
    return f"hf://{name.name}@{revision}{below}", hub().source(kind, name.name, revision) + below
