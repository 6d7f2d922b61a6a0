"""Flags from settings, and settings from flags: a field is a flag, its type the flag's, the string under it the help.

In: dataclasses of presets.py.  Out: an argparse parser's flags; the settings with what the command line gave.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import json
from argparse import SUPPRESS
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from tipl.checks import AnyPath, Place, checked, is_address, require
from tipl.errors import TiplError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def add_settings(parser: Any, settings: Any, prefix: str = "", *, other: tuple[str, Any] | None = None) -> None:
    """A flag for every field of a settings class; `--ppo.learning-rate` for a field of the field `ppo`.

    Args:
        other: a case in which other settings are the defaults, and these.
    """
    kinds = get_type_hints(settings, include_extras=True)
    notes = _field_notes(settings)
    for field in dataclasses.fields(settings):
        kind = kinds[field.name]
        name = prefix + field.name
        if dataclasses.is_dataclass(kind):
            within = other and (other[0], getattr(other[1], name))
            add_settings(parser.add_argument_group(name), kind, prefix=f"{name}.", other=within)
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        defaults = f"[{_as_flag(default)}]"
        if other and field.name not in ("env_id", "model") and getattr(other[1], field.name) != default:
            defaults += f", with {other[0]} [{_as_flag(getattr(other[1], field.name))}]"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=SUPPRESS,
            help=f"{notes.get(field.name, '')} {defaults}".lstrip().replace("%", "%%"),
            **_parsing(kind),
        )


def _as_flag(value: Any) -> str:
    """As it is given on the command line."""
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items()) or "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parsing(kind: Any) -> dict[str, Any]:
    """How argparse reads a field of this type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is tuple:
        return {**_parsing(get_args(kind)[0]), "nargs": "+"}
    if get_origin(kind) is dict:
        return {"type": _arguments, "nargs": "+", "metavar": "K=V"}
    return {"type": reader(kind), "metavar": {int: "N", float: "X", str: "NAME"}[_bare(kind)]}


def _arguments(text: str) -> dict[str, Any]:
    """K=V, where V is JSON or else text, or a JSON object."""
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        name, found, value = text.partition("=")
        if not found or not name.isidentifier():
            raise argparse.ArgumentTypeError(f"{text[:60]!r} is neither K=V nor a JSON object")
        return {name: _json_or_text(value)}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is no JSON ({error})") from error
    except RecursionError as error:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is nested too deep") from error


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def reader(kind: Any) -> Callable[[str], Any]:
    """Return what reads a flag of this type: int, float or str, with bounds or without, AnyPath or Place."""
    read = Path if kind == AnyPath else _place if kind == Place else _bare(kind)
    words = {int: "a whole number", float: "a number"}

    def parse(text: str) -> Any:
        try:
            if read in words:
                return checked("it", read(text), kind)
            return read(checked("it", text, kind))
        except TiplError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("it is ").removesuffix(".")) from error
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text[:60]!r} is not {words[read]}") from error

    return parse


def _place(found: Any) -> str | Path:
    """An address stays text: a path would drop one of its slashes."""
    return found if is_address(found) else Path(found)


def _bare(kind: Any) -> Any:
    """The type without its bounds."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


@functools.cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    """The classes that a file defines; it is parsed once, since most of the time of `tipl --help` went there."""
    body = ast.parse(Path(file).read_text(encoding="utf-8")).body
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _field_notes(settings: type) -> dict[str, str]:
    """The string that stands under a field of a dataclass, for every field that has one."""
    notes = {}
    for statement, note in pairwise(_classes(inspect.getfile(settings))[settings.__name__].body):
        match statement, note:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                notes[name] = " ".join(text.split())
    return notes


def with_flags(settings: Settings, given: Mapping[str, Any], prefix: str = "") -> Settings:
    """`settings` with every field replaced that `given`, a parsed command line, has a value for.

    Raises:
        TiplError: the values do not make settings.
    """
    changes = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[field.name] = with_flags(value, given, prefix=f"{name}.")
        elif name in given:
            changes[field.name] = _joined(name, given[name], value)
    return dataclasses.replace(settings, **changes)


def _joined(name: str, given: Any, value: Any) -> Any:
    """What the command line gave for a setting, as the type of its `value`."""
    if isinstance(value, dict):
        keys = [key for some in given for key in some]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        require(twice is None, f"--{name.replace('_', '-')} has {twice} twice; give it once.")
        return {key: each for some in given for key, each in some.items()}
    return tuple(given) if isinstance(value, tuple) else given
