"""A live environment described, so that policies can be run in it again; and whether what is made of that is the same.

In: a Gymnasium environment that a policy trains in.  Out: its spec as JSON, with a probe: a few steps in few numbers.

No spec is believed: what is made from it and a copy of the environment itself take the same few steps. What differs, or
cannot be compared, is marked as not to be run.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tipl.config.env_spec import MADE_AGAIN, EnvId, entry_point_of, made, quiet_making, to_json, wrapped
from tipl.errors import TiplError
from tipl.rl.vector_env import by_name, leaves

# Wrappers that change neither what a policy sees and does nor the raw reward, or that look on only.
_WITHOUT_EFFECT = {
    "PassiveEnvChecker", "OrderEnforcing", "RecordEpisodeStatistics", "RecordVideo", "HumanRendering",
    "RenderCollection", "NormalizeReward", "Monitor",
}  # fmt: skip
# Settings of EnvPool that change no environment.
_ENVPOOLS_OWN = {"num_envs", "batch_size", "num_threads", "thread_affinity_offset", "seed", "env_seed", "base_path"}
_PROBED_STEPS, _PROBE_SEED = 16, 5


def environment_of(env: Any, env_id: str | None = None, *, first_action: int | None = None) -> EnvId:
    """The environment that a policy trains in, as a trial keeps it: its id with all that makes it.

    Args:
        env: a Gymnasium environment, or a vector of them: Gymnasium's or EnvPool's.
        env_id: what the user calls it; default: its own id.
        first_action: the number that the environment is handed for the first of discrete actions; None: it is not
            known, which is no matter where they count from 0.

    Raises:
        TiplError: it does not say its id, and none is given.
    """
    if type(env).__name__.endswith("EnvPool") and hasattr(env, "config"):
        spec = _envpool(env, env_id)
    elif hasattr(env, "num_envs"):
        spec = _vector(env, env_id)
    else:
        spec = described(env, env_id)
    space = getattr(env, "single_action_space", None) or env.action_space
    if not spec.get("not_run") and (reason := _nobody_says_how(env, space)) is not None:
        spec["not_run"] = reason
    if first_action is not None:
        spec["first_action"] = first_action
    elif np.any(getattr(space, "start", 0)) and not spec.get("not_run"):
        spec["not_run"] = f"its actions count from {space.start}, and nobody says where its loop counts from"
    name = env_id or spec.get("id")
    if name is None:
        raise TiplError("The environment does not say its id; give env_id.")
    return EnvId(name, spec)


def _nobody_says_how(env: Any, action_space: Any) -> str | None:
    """Why a loop's policies cannot be run although its environment can be made: the loop may read actions, or flatten
    observations, in another way than is done here."""
    from gymnasium import spaces

    if isinstance(action_space, spaces.MultiDiscrete | spaces.MultiBinary):
        return "it takes several discrete actions at once, and nobody says how its policy gives them"
    names = [name for name, _ in leaves(env.observation_space)]
    if type(env).__name__.endswith("EnvPool") and names != [name for name, _ in leaves(by_name(env.observation_space))]:
        return (
            "its observations are a Dict whose parts are not in the order of their names, and nobody says how they lie"
        )
    return None


def _envpool(env: Any, env_id: str | None) -> dict[str, Any]:
    """EnvPool's settings that are not the defaults; how many copies there are, and their seeds, are none."""
    import envpool

    if env_id is None or env_id not in envpool.list_all_envs():
        raise TiplError("An environment of EnvPool does not say its id; give env_id, as envpool.make had it.")
    defaults = envpool.make_spec(env_id).config._asdict()
    given = {name: value for name, value in env.config.items() if name in defaults and value != defaults[name]}
    kwargs = {name: to_json(value) for name, value in given.items() if name not in _ENVPOOLS_OWN}
    return {"id": env_id, "backend": "envpool", "kwargs": kwargs}


def _vector(env: Any, env_id: str | None) -> dict[str, Any]:
    """A vector of Gymnasium environments that are made alike."""
    while hasattr(env, "env"):
        if type(env).__name__ not in _WITHOUT_EFFECT:
            return {"not_run": f"its environments are behind the vector wrapper {type(env).__name__}"}
        env = env.env
    if not hasattr(env, "envs") and not hasattr(env, "get_attr"):
        return {"id": env.spec.id if env.spec else None, "not_run": "its environments are stepped by code of their own"}
    return copies_described(getattr(env, "envs", None), lambda name: env.get_attr(name), env_id)


def copies_described(
    envs: Sequence[Any] | None, get_attr: Callable[[str], Sequence[Any]], env_id: str | None = None
) -> dict[str, Any]:
    """The one environment whose copies these are.

    Args:
        envs: the copies, where they are in this process.
        get_attr: asks all of them, also those in other processes.
        env_id: what the user calls it.
    """
    if envs is not None:
        specs, first = [env.spec for env in envs], envs[0]
    else:
        specs = [*get_attr("spec")]
        try:
            first = _brought_here(get_attr("unwrapped")[0], specs[0])
        except Exception as error:  # whatever does not go through a pipe
            why = f"its environments are in other processes and cannot be compared ({type(error).__name__})"
            return {"id": specs[0].id if specs[0] else None, "not_run": why}
    if any(str(spec) != str(specs[0]) for spec in specs):
        return {"id": specs[0].id if specs[0] else None, "not_run": "its environments are not all made alike"}
    return described(first, env_id, specs[0])


def _brought_here(base: Any, spec: Any) -> Any:
    """A copy from another process behind the wrappers that its spec has."""
    from gymnasium.wrappers import TimeLimit

    env = base if spec.max_episode_steps is None else TimeLimit(base, spec.max_episode_steps)
    with quiet_making():
        return wrapped(env, {"wrappers": _wrappers(spec)})


def described(env: Any, env_id: str | None = None, spec: Any = None) -> dict[str, Any]:
    """All that makes one Gymnasium environment, as JSON, `not_run` with a reason where it cannot be made again from it.

    What is made from it is held against the environment itself, a copy of which takes a few steps; the environment
    and its random numbers are left as they are.

    Args:
        env_id: what the user calls it; what that makes counts where the environment does not say what it is.
        spec: Gymnasium's, of the environment with all its wrappers; default: the environment's own.
    """
    spec = spec or env.spec
    if spec is None and env_id is not None:
        with contextlib.suppress(TiplError):
            spec = made(EnvId(env_id)).spec
    if spec is None:
        return {"id": None, "not_run": "its environment does not say what it was made from (no spec)"}
    facts: dict[str, Any] = {"id": spec.id, "not_run": None, "module": _module(env, spec)}
    facts |= {"entry_point": entry_point_of(spec), "max_episode_steps": spec.max_episode_steps}
    try:
        given = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
        facts["kwargs"] = {name: to_json(value) for name, value in given.items()}
        facts["wrappers"] = _wrappers(spec)
    except ValueError as error:
        return facts | {"not_run": f"its environment {error}"}
    return facts | _compared(env, spec, facts)


def registered(env_id: EnvId) -> dict[str, Any]:
    """What an id that the user types stands for here, as JSON, so that another environment under it is noticed later.

    Raises:
        TiplError: Gymnasium cannot make it.
    """
    return deepcopy(_registered(str(env_id), json.dumps(env_id.spec, sort_keys=True)))


@cache
def _registered(text: str, spec: str) -> dict[str, Any]:
    env_id = EnvId(text, json.loads(spec))
    env = made(env_id)
    facts = {"id": env.spec.id, "module": env_id.module or _module(env, env.spec)}
    facts |= {"entry_point": entry_point_of(env.spec), "max_episode_steps": env.spec.max_episode_steps}
    env.close()
    with contextlib.suppress(Exception):  # what its steps run into is said where it is collected
        probe, again = (_probed_anew(env_id) for _ in range(2))
        return facts | ({"probe": probe} if _alike(probe, again) else {})
    return facts


def _module(env: Any, spec: Any) -> str | None:
    """The module that registers the id, where it is not Gymnasium: the environment's own, or one that seems to."""
    own = type(env.unwrapped).__module__
    if not own.startswith(("gymnasium.", "__")):
        return own
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith("__") or not file or not file.endswith(".py") or _is_library(file):
            continue
        try:
            text = Path(file).read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if "register" in text and (f"'{spec.id}'" in text or f'"{spec.id}"' in text):
            return name
    return None


def _is_library(file: str) -> bool:
    library = Path(json.__file__).parents[1]  # Python's own
    return "site-packages" in file or "dist-packages" in file or file.startswith(f"{library}/")


def _wrappers(spec: Any) -> list[dict[str, Any]]:
    return [found for wrapper in spec.additional_wrappers if (found := _wrapper(wrapper))]


def _wrapper(wrapper: Any) -> dict[str, Any] | None:
    """A wrapper as JSON; None for one without effect.

    Raises:
        ValueError: it cannot be made again, as the end of a sentence about the environment.
    """
    module = wrapper.entry_point.partition(":")[0]
    ours = module.startswith(("gymnasium.wrappers", "stable_baselines3."))
    if ours and wrapper.name in _WITHOUT_EFFECT:
        return None
    if wrapper.kwargs is None or (ours and wrapper.name not in MADE_AGAIN):
        raise ValueError(f"is behind the wrapper {wrapper.name}, which cannot be made again")
    kwargs = {name: to_json(value) for name, value in wrapper.kwargs.items()}
    return {"name": wrapper.name, "entry_point": wrapper.entry_point, "kwargs": kwargs}


def _compared(env: Any, spec: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What came of the comparison of `env` with what is made from `facts`: the probe, or why not to run it."""
    try:
        original = _copied(env)
    except Exception as error:  # whatever an environment's own copying does
        return {"not_run": f"its environment cannot be copied, hence not compared ({type(error).__name__})"}
    try:
        probe, again = (_probed_anew(EnvId(facts["id"], facts)) for _ in range(2))
        true = probed(original)
    except TiplError as error:
        return {"not_run": f"its environment cannot be made again ({error})"}
    except Exception as error:
        return {"not_run": f"its environment cannot be tried ({type(error).__name__}: {error})"}
    if not _alike(probe, again):
        return {"not_run": "its environment gives other observations for the same seed and actions"}
    if "NormalizeReward" in [wrapper.name for wrapper in spec.additional_wrappers]:
        true["rewards"] = probe["rewards"]  # raw rewards are measured
    if not _alike(probe, true):
        return {"not_run": "its environment is another than what its spec makes: a few steps differ"}
    return {"probe": probe}


def _copied(env: Any) -> Any:
    """A copy that shares nothing, of the state as it is: `EzPickle` alone would make the environment anew."""
    from gymnasium.utils import EzPickle

    while env is not env.unwrapped and type(env).__name__ in _WITHOUT_EFFECT:  # they may hold open files
        env = env.env
    base = env.unwrapped
    memo: dict[int, Any] = {}
    if isinstance(base, EzPickle):
        try:
            copy = base.__class__.__new__(base.__class__)
            memo[id(base)] = copy
            copy.__dict__.update(deepcopy(base.__dict__, memo))
        except Exception:  # Box2D's worlds
            memo = {}
    return deepcopy(env, memo)


def _probed_anew(env_id: EnvId) -> dict[str, Any]:
    env = made(env_id)
    try:
        return probed(env)
    finally:
        env.close()


def probed(env: Any) -> dict[str, Any]:
    """What an environment gives in its first steps from a seed by drawn actions, in few numbers, as JSON."""
    from gymnasium import spaces

    rng = np.random.default_rng(_PROBE_SEED)
    space, action_space = env.observation_space, deepcopy(env.action_space)  # a class may share one among copies
    action_space.seed(_PROBE_SEED)
    obs, _ = env.reset(seed=_PROBE_SEED)
    observations, rewards, ends = [_weighed(space, obs)], [0.0], [0]
    for _ in range(_PROBED_STEPS):
        if isinstance(action_space, spaces.Box):
            low, high = (np.clip(bound, -1.0, 1.0) for bound in (action_space.low, action_space.high))
            action: Any = rng.uniform(np.minimum(low, high), high).astype(action_space.dtype)
        else:
            action = action_space.sample()
        obs, reward, terminated, truncated, _ = env.step(action)
        observations.append(_weighed(space, obs))
        rewards.append(float(np.nan_to_num(float(reward), posinf=1e9, neginf=-1e9)))
        ends.append(2 * int(terminated) + int(truncated))
        if terminated or truncated:
            obs, _ = env.reset()
            observations.append(_weighed(space, obs))
    return {"observations": observations, "rewards": rewards, "ends": ends}


def _weighed(space: Any, obs: Any) -> float:
    """An observation as one number in which each of its numbers counts."""
    from gymnasium import spaces

    flat = np.asarray(spaces.flatten(space, obs), np.float64).reshape(-1)
    return float(np.cos(np.arange(len(flat))) @ np.nan_to_num(flat, posinf=1e9, neginf=-1e9))


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(
        len(one[key]) == len(other[key]) and bool(np.allclose(one[key], other[key], rtol=1e-3, atol=1e-4))
        for key in ("observations", "rewards", "ends")
    )


def why_other(env_id: EnvId) -> str | None:
    """Why what is made from a trial's spec here is not what the trial was made in; None: it is, or nobody knows.

    Raises:
        TiplError: it cannot be made here.
    """
    if "probe" not in env_id.spec:
        return None
    return _why_other(json.dumps(env_id.facts, sort_keys=True), str(env_id), env_id.typed)


@cache
def _why_other(facts: str, text: str, typed: bool) -> str | None:
    spec = json.loads(facts)
    try:
        alike = _alike(spec["probe"], _probed_anew(EnvId(text, spec, typed=typed)))
    except TiplError:
        raise
    except (KeyError, TypeError, ValueError):
        alike = False
    return None if alike else f"were made in another {text} than there is here: its first steps differ"
