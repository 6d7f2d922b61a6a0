"""Names under which stores, models and policies are published: USER/NAME, with more where that is not enough.

In: what the user typed.  Out: its parts, each of which can stand in a path.

    [hf://] [datasets/ | models/] USER/NAME [@REVISION] [/FOLDER]
"""

import re
from dataclasses import dataclass
from typing import Literal

from tipl.errors import TiplError

Kind = Literal["datasets", "models"]
"""The Hub's two sorts of repositories: stores are data sets; models and policies are models."""
_PART = r"(?=.{1,96}(?:[/@]|$))[A-Za-z0-9](?:\w|[.-](?=\w))*"
_REVISION = r"[A-Za-z0-9](?:\w|[.-](?=\w)){0,127}"
_NAME = re.compile(
    rf"(?:hf://)?(?:(?P<kind>datasets|models)/)?(?P<name>{_PART}/{_PART})(?:@(?P<revision>{_REVISION}))?"
    rf"(?P<folder>(?:/{_PART})*)/?",
    re.ASCII,
)


@dataclass(frozen=True)
class Name:
    """What is published."""

    name: str
    """USER/NAME."""
    kind: Kind | None
    revision: str | None
    folder: str
    """Below it, "" for all."""

    @classmethod
    def read(cls, text: str) -> "Name":
        """
        Raises:
            TiplError: it is no such name.
        """
        found = _NAME.fullmatch(text)
        if found is None:
            raise TiplError(
                f"{text[:80]!r} is no name of something published; give USER/NAME, of letters, digits, and single -, _ "
                "or . inside, if need be as datasets/USER/NAME or with @REVISION."
            )
        kind, name, revision, folder = found["kind"], found["name"], found["revision"], found["folder"]
        return cls(name, kind, revision, folder.strip("/"))  # pyright: ignore[reportArgumentType]


def looks_like_a_name(text: str) -> bool:
    """Return whether a text is USER/NAME and no more."""
    return re.fullmatch(f"{_PART}/{_PART}", text, re.ASCII) is not None
