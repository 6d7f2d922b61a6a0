"""Check settings, and the arguments of public functions, against what their annotations say.

In: names, values and the types that stand in the source.  Out: the values, or a TiplError that names the wrong one.

The annotation is the check, so nothing is said twice. A whole number may be numpy's, a path a str, a sequence a list, a
tuple or an array; a float is finite. `Annotated[int, Within(1)]` says besides which numbers will do.
"""

import dataclasses
import errno
import functools
import inspect
import math
import numbers
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from tipl.errors import TiplError

AnyPath = str | os.PathLike[str]


class Anywhere:
    """Beside a path: an address will do as well."""


Place = Annotated[AnyPath, Anywhere()]
"""Where something lies that is read: a path, or an address such as s3://bucket/store (remote/)."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)
_SCHEMES = ("file", "gs", "hf", "http", "https", "memory", "s3")
LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""

_LARGEST = 2**53  # up to which a float, and so JSON, holds every whole number; no advice worth giving
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Within:
    """Numbers from `least` to `most`; `open` leaves out those bounds of which it has the name."""

    least: float = -math.inf
    most: float = math.inf
    open: tuple[Literal["least", "most"], ...] = ()

    def __contains__(self, value: float) -> bool:
        above = self.least < value if "least" in self.open else self.least <= value
        below = value < self.most if "most" in self.open else value <= self.most
        return above and below

    def __str__(self) -> str:
        least = f"more than {self.least:g}" if "least" in self.open else f"at least {self.least:g}"
        most = f"less than {self.most:g}" if "most" in self.open else f"at most {self.most:g}"
        bounds = (self.least, least), (self.most, most)
        return " and ".join(words for bound, words in bounds if abs(bound) < _LARGEST)


Count = Annotated[int, Within(1, _LARGEST)]
Whole = Annotated[int, Within(0, _LARGEST)]
Positive = Annotated[float, Within(0, open=("least",))]
NotNegative = Annotated[float, Within(0)]
Share = Annotated[float, Within(0, 1)]
"""From 0 to 1, both of which will do."""
Part = Annotated[float, Within(0, 1, open=("most",))]
"""A share that is not the whole."""


def checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind` has it: numpy's numbers as Python's, the items of a sequence checked one by one.

    Raises:
        TiplError: it is of another type, not finite, out of bounds, or no path that a file can have.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if kind == Place and is_address(value):
            return checked(name, value, str)
        made = checked(name, value, parts[0])
        for limit in parts[1:]:
            if isinstance(limit, Within) and made not in limit:
                raise _refused(name, value, "less" if made >= _LARGEST else str(limit))
        return made
    if origin in (Union, types.UnionType):
        return _one_of(name, value, parts)
    if origin is Literal:
        if not any(type(value) is type(each) and value == each for each in parts):
            raise _refused(name, value, f"one of {', '.join(map(str, parts))}")
        return value
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _items(name, value, origin, parts)
    if isinstance(origin, type):  # Mapping[…], Callable[…] and the like
        kind = origin
    return _plain(name, value, kind)


def is_address(value: Any) -> bool:
    """Return whether a text is an address, scheme://…, and no path."""
    return isinstance(value, str) and _ADDRESS.fullmatch(value) is not None


def check_settings(settings: Any, prefix: str = "--") -> None:
    """Every field of a dataclass by its annotation, named as the flag that it is; called when one is made."""
    kinds = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        flag = prefix + field.name.replace("_", "-")
        object.__setattr__(settings, field.name, checked(flag, getattr(settings, field.name), kinds[field.name]))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise TiplError(message)


def checked_arguments(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """`function`, with every argument checked by its annotation before it runs."""
    signature = inspect.signature(function)

    @functools.cache
    def kinds() -> Mapping[str, Any]:
        return get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            if name in kinds() and value is not signature.parameters[name].default:
                given.arguments[name] = checked(f"`{name}`", value, kinds()[name])
        return function(*given.args, **given.kwargs)

    return call


def checked_path(name: str, value: Any) -> Any:
    """A path that some file could have; ~ is the user's home, as it is where a shell has seen it.

    Raises:
        TiplError: it is empty, holds a NUL, is too long, or a link in it leads back to itself.
    """
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise _refused(name, value, "a path, as text or os.PathLike")
    if not text:
        raise TiplError(f"{name} is empty; give a path.")
    if is_address(text):
        raise TiplError(
            f"{name} is {text[:60]}, an address; only what is read may lie elsewhere: give a path on this machine."
        )
    if not isinstance(value, str) and text.split(":/")[0] in _SCHEMES and not os.path.lexists(text):
        raise TiplError(f"{name} is a path object made of an address, {text[:60]}; give an address as text.")
    if "\0" in text:
        raise TiplError(f"{name} holds a NUL, which no path has; give another.")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise TiplError(f"{name} holds half of a character, which no path has; give another.") from error
    long = next((part for part in text.split(os.sep) if len(os.fsencode(part)) > LONGEST_NAME), None)
    if long is not None:
        raise TiplError(
            f"{name} has a name of {len(os.fsencode(long))} bytes, {long[:20]}…; give one of at most {LONGEST_NAME}."
        )
    try:
        os.stat(text)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise TiplError(f"{name} is {text[:60]}: {error.strerror}; give another path.") from error
    if text == "~" or text.startswith("~/"):
        return os.path.expanduser(text)
    return value if isinstance(value, str) else Path(text)


def _one_of(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    """As the first kind that takes it; the fault is told of the only kind that there is beside None, or of all."""
    others = [kind for kind in kinds if kind is not types.NoneType]
    if value is None and len(others) < len(kinds):
        return None
    if Place in others and isinstance(value, str | os.PathLike):
        return checked(name, value, Place)
    if os.PathLike in map(get_origin, others):  # pyright: ignore[reportOperatorIssue]
        others = [kind for kind in others if kind is not str]
        if len(others) == 1 or isinstance(value, str | os.PathLike):
            return checked_path(name, value)
    if len(others) == 1:
        return checked(name, value, others[0])
    for kind in others:
        try:
            return checked(name, value, kind)
        except TiplError:
            continue
    raise _refused(name, value, " or ".join(dict.fromkeys(_words(kind) for kind in others)))


def _items(name: str, value: Any, origin: type, parts: tuple[Any, ...]) -> Any:
    """A sequence, checked item by item."""
    if isinstance(value, str | bytes | Mapping | set) or not (isinstance(value, Iterable) and isinstance(value, Sized)):
        raise _refused(name, value, "several, as a list or a tuple")
    try:
        value = [*value]
    except TypeError as error:  # an array or a tensor of no dimension
        raise _refused(name, value, "several, as a list or a tuple") from error
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        if len(value) != len(parts):
            raise _refused(name, value, f"{len(parts)} of them")
        return tuple(checked(name, item, part) for item, part in zip(value, parts, strict=True))
    made = [checked(name, item, parts[0]) for item in value] if parts else value
    return tuple(made) if origin is tuple else made


def _plain(name: str, value: Any, kind: Any) -> Any:
    """Of a type that is neither made of others nor bounded."""
    truth = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # Python's or numpy's
    if kind is bool:
        if not truth:
            raise _refused(name, value, "True or False")
        return bool(value)
    if kind is int:
        if truth or not isinstance(value, numbers.Integral):
            raise _refused(name, value, "a whole number")
        return int(value)
    if kind is float:
        if truth or not isinstance(value, numbers.Real):
            raise _refused(name, value, "a number")
        try:
            made = float(value)
        except OverflowError:
            made = math.inf
        if not math.isfinite(made):
            raise _refused(name, value, "a finite number")
        return made
    if kind is str:
        if not isinstance(value, str) or not value or "\0" in value or not _is_whole(value):
            raise _refused(name, value, "text")
        return value
    if isinstance(kind, type) and kind is not object:
        try:
            alike = isinstance(value, kind)
        except TypeError:  # a protocol that says nothing at run time
            return value
        if not alike:
            raise _refused(name, value, _words(kind))
    return value


def _is_whole(text: str) -> bool:
    """Whether it has no half characters, which UTF-8 and so JSON cannot hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _refused(name: str, value: Any, wanted: str) -> TiplError:
    return TiplError(f"{name} is {_shown(value)}; give {wanted}.")


def _shown(value: Any) -> str:
    """In a few letters, on one line."""
    if value is None or isinstance(value, bool | numbers.Number):
        text = str(value)
    elif isinstance(value, str):
        text = repr(value)
    else:
        text = f"of the type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"


def _words(kind: Any) -> str:
    """What a value of this type is called."""
    known = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    origin = get_origin(kind) or kind
    if kind in known:
        return known[kind]
    if kind == Place:
        return "a path or an address"
    if origin is os.PathLike:
        return "a path"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "several, as a list or a tuple"
    word = str(getattr(origin, "__name__", origin))
    return f"an {word}" if word[0] in "AEIOU" else f"a {word}"
