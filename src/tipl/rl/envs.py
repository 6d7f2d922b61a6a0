"""Environments by their ids: EnvPool's (fast) and Gymnasium's (any other, and the reference), as `VectorEnv`s.

In: an environment id and one seed a copy.  Out: a `VectorEnv`; which backend, and the versions of its libraries.
"""

import ctypes
import importlib.metadata
import json
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tipl.config.env_spec import EnvId, from_json, made, quiet_making
from tipl.config.presets import Backend
from tipl.errors import TiplError
from tipl.rl.vector_env import VectorEnv, by_name, flattened, is_box, leaves

_MAX_ENVPOOL_SEED = 2**31 - 1  # EnvPool's seeds are C ints
TRIED_EPISODES, TRIED_STEPS = 4, 300  # to find out whether an environment draws in its steps
_TRIED_SECONDS = 2.0  # after which it is taken to: that is always safe, and costs memory


def envpool_module() -> Any:
    """EnvPool. Of what its import takes, two thirds are pyplot, with which it draws its Jumanji environments; and it
    sets matplotlib's backend and its cache for the whole process. Here all that waits until one of them is made."""
    drawing = ModuleType("envpool.jumanji.jumanji_render")
    drawing.with_jumanji_python_render = _drawn_later  # type: ignore[attr-defined]
    if "envpool" not in sys.modules:
        sys.modules[drawing.__name__] = drawing
        try:
            import envpool
        except ImportError:  # a version that wants more of that module
            pass
        finally:
            del sys.modules[drawing.__name__]
    import envpool

    return envpool


def _drawn_later(kind: Any, task_id: str) -> Any:
    """A class of environments that is given its drawing before the first one is made."""
    make = kind.__init__

    def first(env: Any, *args: Any, **kwargs: Any) -> None:
        from envpool.jumanji.jumanji_render import with_jumanji_python_render

        kind.__init__ = make
        with_jumanji_python_render(kind, task_id)
        env.__init__(*args, **kwargs)

    kind.__init__ = first
    return kind


class EnvPoolEnv(VectorEnv):
    """EnvPool's C++ environments."""

    def __init__(self, env_id: EnvId, seeds: Sequence[int], threads: int = 1) -> None:
        envpool = envpool_module()
        self.num_envs, self._env_id = len(seeds), env_id
        kwargs = {name: from_json(value) for name, value in env_id.spec.get("kwargs", {}).items()}
        with quiet_making():
            try:
                spec = envpool.make_spec(str(env_id), **kwargs)
                if (players := spec.config._asdict().get("max_num_players", 1)) > 1:
                    raise TiplError(f"{env_id} is played by up to {players} players; only one can be collected.")
                # Before it is made: of some whose observations are images the engine crashes.
                self._take_spaces(by_name(spec.gymnasium_observation_space), spec.gymnasium_action_space, env_id)
                self._env: Any = envpool.make_gymnasium(
                    str(env_id),
                    num_envs=self.num_envs,
                    num_threads=min(threads, self.num_envs),
                    seed=[int(seed) for seed in seeds],
                    **kwargs,
                )
            except TiplError:
                raise
            except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
                reason = (str(error).splitlines() or [""])[0]
                raise TiplError(
                    f"EnvPool cannot make {env_id} with {kwargs} ({reason}); check --env-kwargs."
                ) from error
        self._all = np.arange(self.num_envs, dtype=np.int32)
        # EnvPool's own `step` and `reset` build a dict of the whole configuration and a tree of all arrays at every
        # call: a tenth of the time of 25 copies of InvertedPendulum. Under them lie lists of arrays in a fixed order.
        if list(self._env._action_keys) != ["env_id", "players.env_id", "action"]:
            raise TiplError(f"{env_id} takes several actions at once; only one can be collected.")
        keys = list(self._env._state_keys)
        self._reward_at, self._done_at, self._truncated_at = (keys.index(key) for key in ("reward", "done", "trunc"))
        at = {key.removeprefix("obs:").replace(":", "."): i for i, key in enumerate(keys) if key.startswith("obs")}
        parts = leaves(self.obs_space)
        self._parts_at = [(at[name] if len(at) > 1 else next(iter(at.values())), part) for name, part in parts]
        is_flat = len(at) == 1 and is_box(self.obs_space) and len(self.obs_space.shape) == 1
        self._flat_at = self._parts_at[0][0] if is_flat else None  # the usual case takes no detour
        self._sent_type = self._env.spec.action_array_spec["action"].dtype

    @property
    def draws_in_steps(self) -> bool:
        return _draws_in_steps(str(self._env_id), json.dumps(self._env_id.spec, sort_keys=True), EnvPoolEnv)

    def _observed(self, state: list[Any]) -> np.ndarray:
        if self._flat_at is not None:
            return np.asarray(state[self._flat_at], np.float64)
        return np.concatenate([flattened(part, state[at]) for at, part in self._parts_at], axis=1)

    def reset(self, ids: np.ndarray) -> np.ndarray:
        self._env._reset(np.asarray(ids, np.int32))
        return self._observed(self._env._recv())

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        which = self._all if ids is None else np.asarray(ids, np.int32)
        self._env._send([which, which, self._env_actions(actions).astype(self._sent_type, order="C", copy=False)])
        state = self._env._recv()
        done, truncated = state[self._done_at], state[self._truncated_at]
        return self._observed(state), np.asarray(state[self._reward_at], np.float64), done & ~truncated, truncated


@cache
def _draws_in_steps(env_id: str, spec: str, kind: "type[EnvPoolEnv] | type[GymnasiumEnv]", typed: bool = True) -> bool:
    """Whether two copies of one seed depart from each other in their second episode, if one has acted in its first;
    both begin it with the same generator's state, where the environment says that.

    Found out by a few episodes of drawn actions, of which the second are the same for both.
    """
    rng, both, acting = np.random.default_rng(0), np.arange(2), np.arange(1)
    until = time.monotonic() + _TRIED_SECONDS
    for seed in range(TRIED_EPISODES):
        env = kind(EnvId(env_id, json.loads(spec), typed=typed), [seed, seed])
        env.reset(both)
        for _ in range(TRIED_STEPS):
            _, _, terminated, truncated = env.step(_drawn_action(env, rng), acting)
            if terminated[0] or truncated[0]:
                break
            if time.monotonic() > until:
                return True
        env.bring_back_random(both, env.random_state(acting) * 2)
        seen, reward, done = env.reset(both), np.zeros(2), np.zeros(2, np.bool_)
        for _ in range(TRIED_STEPS):
            told = np.c_[seen, reward, done]
            if not np.array_equal(told[0], told[1], equal_nan=True):
                return True
            if done.any():
                break
            seen, reward, terminated, truncated = env.step(np.repeat(_drawn_action(env, rng), 2, axis=0))
            done = terminated | truncated
    return False


def _drawn_action(env: VectorEnv, rng: np.random.Generator) -> np.ndarray:
    """[1, action_dim]"""
    if env.discrete:
        return rng.integers(env.policy_outputs, size=(1, 1)).astype(np.float64)
    return rng.uniform(np.maximum(env.action_low, -1), np.minimum(env.action_high, 1))[None]


class GymnasiumEnv(VectorEnv):
    """Gymnasium's own environments, stepped one after another: any registered id, and the reference in tests."""

    def __init__(self, env_id: EnvId, seeds: Sequence[int], render_mode: str | None = None) -> None:
        self.num_envs, self._env_id = len(seeds), env_id
        self._envs = [made(env_id, render_mode) for _ in seeds]
        self._seeds: list[int | None] = [int(seed) for seed in seeds]
        self._take_spaces(self._envs[0].observation_space, self._envs[0].action_space, env_id)
        self._is_flat = len(getattr(self.obs_space, "shape", None) or ()) == 1 and is_box(self.obs_space)
        self._seen = np.zeros((self.num_envs, self.obs_dim))  # the stacked frames, the newest last

    def _flat(self, obs: Any) -> Any:
        if self._is_flat:
            return obs
        from gymnasium.spaces import flatten

        return flatten(self.obs_space, obs)

    def reset(self, ids: np.ndarray) -> np.ndarray:
        for i in ids:
            try:
                obs, _ = self._envs[i].reset(seed=self._seeds[i])
                self._seen[i, : -self._obs_size] = 0
                self._seen[i, -self._obs_size :] = self._flat(obs)
            except Exception as error:  # whatever an environment of the user's does
                raise self._failed("reset", error) from error
            self._seeds[i] = None  # later resets go on with the same random stream
        return self._seen[ids]

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        taken: Any = self._env_actions(actions)
        if self.discrete:
            taken = taken.astype(self._action_type)
        which = np.arange(self.num_envs) if ids is None else ids
        reward, terminated = np.empty(len(which)), np.empty(len(which), np.bool_)
        truncated = np.empty(len(which), np.bool_)
        for row, i in enumerate(which):
            try:
                obs, reward[row], terminated[row], truncated[row], _ = self._envs[i].step(taken[row])
                if self.obs_dim != self._obs_size:
                    self._seen[i, : -self._obs_size] = self._seen[i, self._obs_size :]
                self._seen[i, -self._obs_size :] = self._flat(obs)
            except Exception as error:
                raise self._failed("step", error) from error
        return self._seen[which], reward, terminated, truncated

    def _failed(self, method: str, error: Exception) -> TiplError:
        reason = (str(error).splitlines() or [""])[0]
        return TiplError(
            f"{self._env_id} failed in its {method} ({type(error).__name__}: {reason}); mend the environment."
        )

    @property
    def copies(self) -> list[Any]:
        """Gymnasium's own environments."""
        return self._envs

    def random_state(self, ids: np.ndarray) -> list[Any]:
        """The state of each copy's `np_random`, from which an environment draws in its steps and resets."""
        states = [getattr(self._envs[i].unwrapped, "np_random", None) for i in ids]
        generators = [getattr(each, "bit_generator", None) for each in states]
        return [each.state if isinstance(each, np.random.PCG64) else None for each in generators]

    @property
    def draws_in_steps(self) -> bool:
        spec = json.dumps(self._env_id.spec, sort_keys=True)
        return _draws_in_steps(str(self._env_id), spec, GymnasiumEnv, self._env_id.typed)

    def bring_back_random(self, ids: np.ndarray, random: Sequence[Any]) -> None:
        for i in ids:
            if random[i] is not None:
                self._envs[i].unwrapped.np_random.bit_generator.state = random[i]


def make_env(env_id: str, seeds: Sequence[int], backend: Backend = "auto", threads: int = 1) -> VectorEnv:
    """Copies of an environment, one a seed, stepped by so many threads (Gymnasium's by one).

    Observations of other kinds than flat boxes are flattened as `gymnasium.spaces.flatten` does it: a Dict's parts in
    the order of their names, arrays row by row, discrete ones one-hot. EnvPool's Dicts are brought into that order.

    Args:
        env_id: an id, or an `EnvId` with all that makes the environment.

    Raises:
        TiplError: the backend does not have the environment or takes no such seed, or its spaces are of other kinds.
    """
    env_id = EnvId.of(env_id)
    if not len(seeds) or min(seeds) < 0:
        raise TiplError(f"Seeds of environments are whole numbers from 0 on, at least one, not {list(seeds)[:5]}.")
    if chosen_backend(env_id, backend) == "gymnasium":
        return GymnasiumEnv(env_id, seeds)
    if "entry_point" in env_id.spec:
        raise TiplError(f"The trial in {env_id} was recorded in Gymnasium, not EnvPool; give gymnasium as the backend.")
    if not _in_envpool(env_id):
        raise TiplError(f"EnvPool has no environment {str(env_id)!r}; check the id, or use --backend gymnasium.")
    if max(seeds) > _MAX_ENVPOOL_SEED:
        raise TiplError(
            f"EnvPool takes no seed above {_MAX_ENVPOOL_SEED}, and {max(seeds)} is asked; give a lower --seed."
        )
    return EnvPoolEnv(env_id, seeds, threads)


def chosen_backend(env_id: str, backend: Backend) -> Backend:
    """What "auto" means for this environment, a stored trial's own where it says one; every other choice as it is."""
    if backend != "auto":
        return backend
    spec = EnvId.of(env_id).spec
    if "entry_point" in spec:
        return "gymnasium"
    import gymnasium

    # Keyword arguments are those of Gymnasium's environment, where there is one.
    given = bool(spec.get("kwargs")) and str(env_id) in gymnasium.registry
    return spec.get("backend") or ("envpool" if _in_envpool(env_id) and not given else "gymnasium")


def _in_envpool(env_id: str) -> bool:
    return str(env_id) in envpool_module().list_all_envs()


@cache
def engine_versions(backend: Backend) -> dict[str, str]:
    """The libraries that decide how the physics goes, of a backend that was chosen; `mujoco` is the MuJoCo that steps.

    EnvPool carries its own MuJoCo, of another version than the `mujoco` package that Gymnasium steps.
    """
    assert backend != "auto"
    if backend == "gymnasium":
        return {name: importlib.metadata.version(name) for name in ("gymnasium", "mujoco")}
    return {"envpool": importlib.metadata.version("envpool"), "mujoco": _envpool_mujoco_version()}


def _envpool_mujoco_version() -> str:
    library = Path(envpool_module().__file__).parent / "mujoco" / "mujoco_gym_envpool.so"
    try:
        version = ctypes.CDLL(str(library)).mj_versionString
    except (OSError, AttributeError):  # nothing that EnvPool promises; collecting goes without
        return "unknown"
    version.restype = ctypes.c_char_p
    return version().decode()
