"""The shape of what JSON says: which keys, of which types, within which bounds.

In: a value as json gives it, and the shape that it should have.  Out: None, or what is wrong, in words.

A shape is one of:

    str, bool, int, float, dict, list, None   a value of that type; int is no bool, float takes whole numbers too
    Whole(least, most), Number(least, most)   a whole number, or any finite one, within bounds
    OneOf("a", "b")                           one of these values
    {"key": shape, "other": Maybe(shape)}     an object with these keys; more may be there, and a Maybe may be absent
    [shape]                                   a list of any length
    Each(shape)                               an object of any keys
    (shape, shape)                            either
    object                                    anything
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

WHOLE = 2**63 - 1
"""The largest whole number that an int64 holds."""


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int = 0
    most: int = WHOLE


@dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`."""

    least: float = -math.inf
    most: float = math.inf


class OneOf:
    """One of these values."""

    def __init__(self, *values: Any) -> None:
        self.values = values


@dataclass(frozen=True)
class Maybe:
    """Of a key that may be absent."""

    shape: Any


@dataclass(frozen=True)
class Each:
    """An object of any keys, whose values all have this shape."""

    shape: Any


_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
    None: "null",
}


def fault(value: Any, shape: Any, key: str = "") -> str | None:
    """Return what keeps a value from having a shape, such as "`curve[2].step` is a text, not a whole number"; or None.

    Args:
        key: where the value stands in its file.
    """
    match shape:
        case dict():
            return _wrong(value, dict, key) or _fault_in_keys(value, shape, key)
        case list():
            found = (fault(each, shape[0], f"{key}[{i}]") for i, each in enumerate(value)) if _is(value, list) else ()
            return _wrong(value, list, key) or next(filter(None, found), None)
        case Each():
            found = (fault(value[name], shape.shape, _below(key, name)) for name in value) if _is(value, dict) else ()
            return _wrong(value, dict, key) or next(filter(None, found), None)
        case tuple():
            faults = [fault(value, each, key) for each in shape]
            return None if None in faults else faults[0]
        case Whole() | Number():
            kind = int if isinstance(shape, Whole) else float
            if _is(value, kind) and not shape.least <= value <= shape.most:
                return f"{_name(key)} is {value}, not {_NAMES[kind]} from {shape.least} to {shape.most}"
            return _wrong(value, kind, key)
        case OneOf():
            known = any(type(value) is type(each) and value == each for each in shape.values)
            return None if known else f"{_name(key)} is {_short(value)}, not {' or '.join(map(repr, shape.values))}"
    return None if shape is object else _wrong(value, shape, key)


def _fault_in_keys(value: dict[str, Any], shape: dict[str, Any], key: str) -> str | None:
    for name, each in shape.items():
        if name in value:
            found = fault(value[name], each.shape if isinstance(each, Maybe) else each, _below(key, name))
        else:
            found = None if isinstance(each, Maybe) else f"{_name(_below(key, name))} is missing"
        if found:
            return found
    return None


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


def _wrong(value: Any, kind: Any, key: str) -> str | None:
    return None if _is(value, kind) else f"{_name(key)} is {_kind_of(value)}, not {_NAMES[kind]}"


def _kind_of(value: Any) -> str:
    return _NAMES.get(type(value) if value is not None else None, type(value).__name__)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else _kind_of(value)


def _name(key: str) -> str:
    return f"`{key}`" if key else "what it holds"


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def leaves(value: Mapping[str, Any], prefix: str = "", skip: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield what lies in objects within objects, by its keys joined with dots; nothing under the keys `skip`."""
    for key, part in value.items():
        if key in skip:
            continue
        if isinstance(part, Mapping):
            yield from leaves(part, f"{prefix}{key}.", skip)
        else:
            yield f"{prefix}{key}", part
