"""What an environment is beside its id: keyword arguments, time limit, wrappers; made again from a trial's record.

In: an id that the user types, or what a trial's file says of its environment.  Out: an `EnvId`, an environment.

A file is no reason to import anything: what it names is looked up in Gymnasium's registry, among Gymnasium's own
wrappers and among modules that are imported already. Importing is for what the user types, or trusts.
"""

import contextlib
import functools
import importlib
import json
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tipl.errors import TiplError

# Those of Gymnasium that are made again from their arguments. The others keep something from earlier episodes, render,
# or take functions.
MADE_AGAIN = {
    "TimeAwareObservation", "FrameStackObservation", "DelayObservation", "MaxAndSkipObservation", "StickyAction",
    "RepeatAction", "ClipAction", "RescaleAction", "DiscretizeAction", "FilterObservation", "FlattenObservation",
    "ReshapeObservation", "RescaleObservation", "DtypeObservation", "DiscretizeObservation", "ClipReward",
}  # fmt: skip
TYPED = "TIPL_IMPORT"
"""The variable of the process that names the modules which the user has had imported; those that it starts heed it."""
_INHERITED = os.environ.get(TYPED, "")
_MAKING = threading.RLock()  # Python's filters of warnings and MuJoCo's listener belong to all threads
# What a file may say under each key of a spec.
_KINDS: dict[str, Any] = {
    "id": str | None, "module": str | None, "entry_point": str, "kwargs": dict, "max_episode_steps": int | None,
    "wrappers": list, "frames": int, "first_action": int, "not_run": str | None, "probe": dict, "backend": str,
}  # fmt: skip


class EnvId(str):
    """An environment's id that knows what else makes the environment; a plain string to everyone else.

    Attributes:
        spec: as `described` gives it, with any of its keys; empty: the id alone.
        typed: whether it comes from the user, so that modules may be imported for it.
    """

    spec: dict[str, Any]
    typed: bool

    def __new__(cls, text: str, spec: Mapping[str, Any] | None = None, *, typed: bool = True) -> "EnvId":
        made = super().__new__(cls, text)
        made.spec, made.typed = dict(spec or {}), typed
        return made

    @classmethod
    def of(cls, text: str) -> "EnvId":
        return text if isinstance(text, EnvId) else cls(text)

    @property
    def module(self) -> str | None:
        """What has to be imported for the id to be registered, as far as it is known."""
        return self.rpartition(":")[0] or self.spec.get("module")

    @property
    def label(self) -> str:
        """The id, and in braces what else makes the environment; two are the same where their labels are."""
        said = {
            key: self.spec.get(key) for key in ("kwargs", "max_episode_steps", "wrappers", "frames", "first_action")
        }
        said = {key: value for key, value in said.items() if value not in (None, {}, [])}
        return f"{self} {json.dumps(said, sort_keys=True)}" if said else str(self)

    @property
    def facts(self) -> dict[str, Any]:
        """All that makes it, as JSON."""
        return {"name": str(self), **self.spec}


def env_id_in(config: Any) -> EnvId:
    """The environment that the settings of `collect` ask for."""
    return EnvId(config.env_id, {"kwargs": dict(config.env_kwargs)} if config.env_kwargs else None)


def env_id_of(env_id: str, config: Mapping[str, Any]) -> EnvId:
    """The environment of a stored trial, from its record."""
    spec: dict[str, Any] = (
        dict(config.get("environment") or {}) if isinstance(config.get("environment"), dict | None) else {"id": 0}
    )
    if config.get("env_kwargs"):
        spec.setdefault("kwargs", config["env_kwargs"])
    if config.get("backend"):
        spec["backend"] = config["backend"]
    for key, kind in _KINDS.items():
        if key in spec and not isinstance(spec[key], kind):
            raise TiplError(
                f"The record of a trial in {env_id!r} is damaged: its environment's {key} is {str(spec[key])[:40]!r}."
            )
    for wrapper in spec.get("wrappers", []):
        if not (isinstance(wrapper, dict) and isinstance(wrapper.get("entry_point"), str)
                and isinstance(wrapper.get("kwargs"), dict)):  # fmt: skip
            raise TiplError(f"The record of a trial in {env_id!r} is damaged: its wrapper is {str(wrapper)[:40]!r}.")
    return EnvId(env_id, spec, typed=False)


def import_named(env_ids: Iterable[EnvId]) -> None:
    """Import the modules that stored trials name, which runs their code: for a user who trusts them.

    Raises:
        TiplError: a module cannot be imported.
    """
    import gymnasium

    allow_own_folder()
    for env_id in env_ids:
        name = env_id.spec.get("id") or env_id.rpartition(":")[2]
        if env_id.module and name not in gymnasium.registry:
            _import(env_id.module)
        for wrapper in env_id.spec.get("wrappers", []):
            _import(wrapper["entry_point"].partition(":")[0])


def import_typed(modules: Iterable[str]) -> None:
    """Import what the user names, from the current folder too, here and in the processes that this one starts.

    Raises:
        TiplError: a module cannot be imported.
    """
    allow_own_folder()
    for module in modules:
        _import(module)
        os.environ[TYPED] = ",".join(dict.fromkeys([*_names(os.environ.get(TYPED, "")), module]))


@functools.cache
def _import_inherited() -> None:
    """Import, once, what the user of a process that started this one has had imported there."""
    if names := _names(_INHERITED):
        import_typed(names)


def _names(text: str) -> list[str]:
    return list(filter(None, text.split(",")))


def allow_own_folder() -> None:
    """Let modules be imported from the current folder, after all others."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever the module does
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TiplError(f"The module {module!r} of an environment fails to import ({reason}).") from error


def made(env_id: EnvId, render_mode: str | None = None) -> Any:
    """The Gymnasium environment: of a plain id as `gymnasium.make` has it, of a spec as it was described.

    Args:
        render_mode: as Gymnasium has it, "rgb_array" for one that draws; default: the user's, of a file's none.

    Raises:
        TiplError: there is no such environment here, or its module would have to be imported for a file.
    """
    import gymnasium

    spec = env_id.spec
    if spec.get("not_run"):
        raise TiplError(f"Policies in {env_id} cannot be run: {spec['not_run']}.")
    _import_inherited()
    name = str(env_id)
    if not env_id.typed or "entry_point" in spec:
        name = _registered(env_id)
    kwargs = {key: from_json(value) for key, value in spec.get("kwargs", {}).items()}
    if not env_id.typed:
        kwargs.pop("render_mode", None)  # no window for a file
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    if "max_episode_steps" in spec:
        kwargs["max_episode_steps"] = spec["max_episode_steps"] or -1
    try:
        with quiet_making(), quiet_mujoco():
            return wrapped(gymnasium.make(name, **kwargs), spec)
    except TiplError:
        raise
    except (gymnasium.error.Error, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise TiplError(f"Gymnasium cannot make {env_id!r}: {reason}") from error
    except Exception as error:  # an environment of the user's, or keyword arguments that it does not take
        reason = (str(error).splitlines() or [""])[0]
        advice = "--env-kwargs" if kwargs else "its id, which is NAME or MODULE:NAME"
        raise TiplError(f"{env_id} cannot be made ({type(error).__name__}: {reason}); check {advice}.") from error


def wrapped(env: Any, spec: Mapping[str, Any]) -> Any:
    """`env` behind the wrappers of a spec.

    Raises:
        TiplError: a wrapper is none that is made from a file.
    """
    for wrapper in spec.get("wrappers", []):
        arguments = {key: from_json(value) for key, value in wrapper["kwargs"].items()}
        env = _wrapper_class(wrapper["entry_point"])(env=env, **arguments)
    return env


@contextlib.contextmanager
def quiet_making() -> Iterator[None]:
    """Keeps back what the libraries say about the paper's environments while they are made, and nothing else."""
    import gymnasium  # noqa: F401 - first, since its import puts a filter of its own before all others

    with _MAKING, warnings.catch_warnings():
        # Gymnasium calls every v4 environment out of date; the paper's are v4.
        warnings.filterwarnings("ignore", message=".*is out of date.*", category=DeprecationWarning)
        # EnvPool gives float64 bounds to float32 spaces.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*", category=UserWarning)
        yield


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """MuJoCo, unless someone listens, puts what it has against HalfCheetah's XML into ./MUJOCO_LOG.TXT.

    Raises:
        TiplError: MuJoCo is needed within, and cannot be loaded, as on a machine without the OpenGL of MUJOCO_GL.
    """
    try:
        mujoco: Any = importlib.import_module("mujoco")  # its type stubs lack these two functions
    except Exception as missing:  # whatever the search for OpenGL ran into; most environments can do without
        try:
            yield
        except Exception as error:
            if repr(error) != repr(missing):
                raise
            raise TiplError(f"MuJoCo cannot be loaded here: {missing}; unset MUJOCO_GL, or set it to egl.") from error
        return
    listener = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(listener)


def entry_point_of(spec: Any) -> str:
    """What the registry makes the id from, in words; to be compared, never to be imported."""
    point = spec.entry_point
    return point if isinstance(point, str) else f"{point.__module__}:{getattr(point, '__qualname__', type(point))}"


def _registered(env_id: EnvId) -> str:
    """The id as the registry has it.

    Raises:
        TiplError: it has none, or another environment under that id.
    """
    import gymnasium

    name = env_id.spec.get("id") or env_id.rpartition(":")[2]
    if name not in gymnasium.registry:
        if env_id.module:
            raise TiplError(
                f"{name} is not registered here; its store names the module {env_id.module!r}: pass --trust to import "
                "it, which runs its code, or import it yourself."
            )
        raise TiplError(f"{name} is not registered here; import the module that registers it, with --import MODULE.")
    expected = env_id.spec.get("entry_point")
    found = entry_point_of(gymnasium.registry[name])
    if expected is not None and found != expected:
        raise TiplError(f"{name} is {found} here, and the trial was made in {expected}; register that one.")
    return name


def _wrapper_class(entry_point: str) -> Any:
    import gymnasium

    module, _, name = entry_point.partition(":")
    if module.startswith("gymnasium."):
        if name in MADE_AGAIN:
            return getattr(gymnasium.wrappers, name)
        raise TiplError(f"The wrapper {name} is none that is made from a file.")
    if module not in sys.modules:
        raise TiplError(
            f"The store names the wrapper {name} of the module {module!r}: pass --trust to import it, which runs its "
            "code, or import it yourself."
        )
    found = getattr(sys.modules[module], name, None)
    if not (isinstance(found, type) and issubclass(found, gymnasium.Wrapper)):
        raise TiplError(f"{entry_point} is no wrapper of Gymnasium.")
    return found


def to_json(value: Any) -> Any:
    """A keyword argument as JSON, to be read by `from_json`.

    Raises:
        ValueError: it is a function, say, as the end of a sentence about the environment.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": to_json(value.tolist()), "dtype": str(value.dtype)}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return {"dtype": np.dtype(value).name}
    if isinstance(value, tuple):
        return {"tuple": [to_json(each) for each in value]}
    if isinstance(value, Sequence):
        return [to_json(each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {"dict": {name: to_json(each) for name, each in value.items()}}
    raise ValueError(f"has an argument that does not go into a file ({type(value).__name__})")


def from_json(value: Any) -> Any:
    """What `to_json` was given, or plain JSON of the user's.

    Raises:
        TiplError: it says that it is a number or an array, and is none.
    """
    try:
        return _from_json(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TiplError(f"An argument of an environment is {str(value)[:60]}, which is none ({error}).") from error


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"float": str(text)}:
            return float(text)
        case {"array": content, "dtype": str(dtype)} if np.dtype(dtype).kind in "biuf":
            return np.array(_from_json(content), dtype)
        case {"dtype": str(dtype)}:
            return np.dtype(dtype).type
        case {"tuple": list(content)}:
            return tuple(_from_json(each) for each in content)
        case {"dict": dict(content)}:
            return {name: _from_json(each) for name, each in content.items()}
    return {name: _from_json(each) for name, each in value.items()}
