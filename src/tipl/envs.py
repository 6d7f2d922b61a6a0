"""Many copies of one environment, stepped together: EnvPool (fast) and Gymnasium (reference) behind one interface.

In: an environment id and one seed a copy.  Out: observations, rewards, ends of episodes; nothing is reset unasked.

EnvPool and Gymnasium >= 1.0 reset on the step after a done; CleanRL (Gymnasium 0.29) resets within the same step.
Here `step` never resets: the caller sees the last observation of an episode and resets those copies at once, which is
CleanRL's meaning. The state of a copy is a function of its seed, the number of its resets and the actions since the
last one: `replay` brings it back without any access to the simulator's insides.
"""

import contextlib
import ctypes
import importlib
import importlib.metadata
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tipl.errors import TiplError
from tipl.presets import Backend

_MAX_ENVPOOL_SEED = 2**31 - 1  # EnvPool's seeds are C ints
_MAKING = threading.Lock()  # Python's filters of warnings and MuJoCo's listener belong to all threads


class VectorEnv(ABC):
    """`num_envs` copies with flat observations [obs_dim] and actions [action_dim], both float64.

    Actions are continuous within bounds; or there are `num_actions` of them, and an action is a number from 0 on, [1].
    """

    num_envs: int
    obs_dim: int
    action_low: np.ndarray
    action_high: np.ndarray
    num_actions: int | None = None
    """Of discrete actions; None where they are continuous."""

    @property
    def discrete(self) -> bool:
        return self.num_actions is not None

    @property
    def action_dim(self) -> int:
        return len(self.action_low)

    @property
    def policy_outputs(self) -> int:
        """What a policy's network gives: the mean of a continuous action, or a logit for each discrete one."""
        return self.num_actions or self.action_dim

    @abstractmethod
    def reset(self, ids: np.ndarray) -> np.ndarray:
        """Begin a new episode in these copies; their first observations [len(ids), obs_dim]."""

    @abstractmethod
    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One step of these copies (default: all) by `actions` [n, action_dim], clipped to the action bounds.

        Returns:
            Observations [n, obs_dim], rewards [n], terminated [n], truncated [n]. A copy that is done has to be reset
            before its next step.
        """

    def _take_spaces(self, env: Any, env_id: str) -> None:
        """Learn sizes and bounds from one environment.

        Raises:
            TiplError: its spaces are of other kinds.
        """
        from gymnasium.spaces import Box, Discrete

        obs, action = env.observation_space, env.action_space
        for kind, space, kinds in (("observation", obs, Box), ("action", action, (Box, Discrete))):
            if not isinstance(space, kinds) or (isinstance(space, Box) and len(space.shape) != 1):
                raise TiplError(
                    f"{env_id} has the {kind} space {space}; only flat Box observations with flat Box or Discrete "
                    "actions can be collected."
                )
        self.obs_dim = obs.shape[0]
        if isinstance(action, Discrete):
            self.num_actions, self._first_action = int(action.n), int(action.start)
            self.action_low, self.action_high = np.zeros(1), np.array([self.num_actions - 1.0])
        else:
            self.action_low = np.asarray(action.low, np.float64)
            self.action_high = np.asarray(action.high, np.float64)

    def replay(self, resets: Sequence[int], actions: Sequence[np.ndarray]) -> None:
        """Bring fresh copies to a recorded state.

        Args:
            resets: how often each copy had been reset since it was made.
            actions: for each copy, its actions since the last reset, [steps, action_dim].
        """
        for count in range(max(resets)):
            self.reset(np.flatnonzero(np.asarray(resets) > count))
        lengths = np.array([len(steps) for steps in actions])
        for time in range(lengths.max()):
            ids = np.flatnonzero(lengths > time)
            self.step(np.stack([actions[i][time] for i in ids.tolist()]), ids)


class EnvPoolEnv(VectorEnv):
    """EnvPool's C++ environments."""

    def __init__(self, env_id: str, seeds: Sequence[int], threads: int = 1) -> None:
        import envpool

        self.num_envs = len(seeds)
        with _quiet_making():
            self._env: Any = envpool.make_gymnasium(
                env_id,
                num_envs=self.num_envs,
                num_threads=min(threads, self.num_envs),
                seed=[int(seed) for seed in seeds],
            )
            self._take_spaces(self._env, env_id)
        self._all = np.arange(self.num_envs, dtype=np.int32)
        # EnvPool's own `step` and `reset` build a dict of the whole configuration and a tree of all arrays at every
        # call: a tenth of the time of 25 copies of InvertedPendulum. Under them lie lists of arrays in a fixed order.
        assert list(self._env._action_keys) == ["env_id", "players.env_id", "action"], self._env._action_keys
        keys = list(self._env._state_keys)
        self._obs_at, self._reward_at, self._done_at, self._truncated_at = (
            keys.index(key) for key in ("obs", "reward", "done", "trunc")
        )
        self._action_type = self._env.spec.action_array_spec["action"].dtype

    def reset(self, ids: np.ndarray) -> np.ndarray:
        self._env._reset(np.asarray(ids, np.int32))
        return np.asarray(self._env._recv()[self._obs_at], np.float64)

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        bounded = np.minimum(np.maximum(actions, self.action_low), self.action_high)
        which = self._all if ids is None else np.asarray(ids, np.int32)
        if self.discrete:
            bounded = bounded[:, 0] + self._first_action
        self._env._send([which, which, bounded.astype(self._action_type, order="C", copy=False)])
        state = self._env._recv()
        obs, reward = np.asarray(state[self._obs_at], np.float64), np.asarray(state[self._reward_at], np.float64)
        done, truncated = state[self._done_at], state[self._truncated_at]
        return obs, reward, done & ~truncated, truncated


class GymnasiumEnv(VectorEnv):
    """Gymnasium's own environments, stepped one after another: any registered id, and the reference in tests."""

    def __init__(self, env_id: str, seeds: Sequence[int]) -> None:
        self.num_envs = len(seeds)
        with _quiet_making(), _quiet_mujoco():
            self._envs = [_make_gymnasium(env_id) for _ in seeds]
        self._seeds: list[int | None] = [int(seed) for seed in seeds]
        self._take_spaces(self._envs[0], env_id)

    def reset(self, ids: np.ndarray) -> np.ndarray:
        obs = np.empty((len(ids), self.obs_dim))
        for row, i in enumerate(ids):
            obs[row], _ = self._envs[i].reset(seed=self._seeds[i])
            self._seeds[i] = None  # later resets go on with the same random stream
        return obs

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        bounded: Any = np.clip(actions, self.action_low, self.action_high)
        if self.discrete:
            bounded = (bounded[:, 0] + self._first_action).astype(np.int64)
        which = range(self.num_envs) if ids is None else ids
        obs, reward = np.empty((len(which), self.obs_dim)), np.empty(len(which))
        terminated, truncated = np.empty(len(which), np.bool_), np.empty(len(which), np.bool_)
        for row, i in enumerate(which):
            obs[row], reward[row], terminated[row], truncated[row], _ = self._envs[i].step(bounded[row])
        return obs, reward, terminated, truncated


def make_env(env_id: str, seeds: Sequence[int], backend: Backend = "auto", threads: int = 1) -> VectorEnv:
    """Copies of an environment, one a seed, stepped by so many threads (Gymnasium's by one).

    Raises:
        TiplError: the backend does not have the environment or takes no such seed, or the spaces are of other kinds
            than flat boxes and discrete actions.
    """
    if chosen_backend(env_id, backend) == "gymnasium":
        return GymnasiumEnv(env_id, seeds)
    if not _in_envpool(env_id):
        raise TiplError(f"EnvPool has no environment {env_id!r}; check the id, or use --backend gymnasium.")
    if max(seeds) > _MAX_ENVPOOL_SEED:
        raise TiplError(
            f"EnvPool takes no seed above {_MAX_ENVPOOL_SEED}, and {max(seeds)} is asked; give a lower --seed."
        )
    return EnvPoolEnv(env_id, seeds, threads)


def chosen_backend(env_id: str, backend: Backend) -> Backend:
    """What "auto" means for this environment; every other choice as it is."""
    if backend != "auto":
        return backend
    return "envpool" if _in_envpool(env_id) else "gymnasium"


def _in_envpool(env_id: str) -> bool:
    import envpool

    return env_id in envpool.list_all_envs()


def engine_versions(backend: Backend) -> dict[str, str]:
    """The libraries that decide how the physics goes, of a backend that was chosen; `mujoco` is the MuJoCo that steps.

    EnvPool carries its own MuJoCo, of another version than the `mujoco` package that Gymnasium steps.
    """
    assert backend != "auto"
    if backend == "gymnasium":
        return {name: importlib.metadata.version(name) for name in ("gymnasium", "mujoco")}
    return {"envpool": importlib.metadata.version("envpool"), "mujoco": _envpool_mujoco_version()}


def _envpool_mujoco_version() -> str:
    import envpool

    library = Path(envpool.__file__).parent / "mujoco" / "mujoco_gym_envpool.so"
    try:
        version = ctypes.CDLL(str(library)).mj_versionString
    except (OSError, AttributeError):  # nothing that EnvPool promises; collecting goes without
        return "unknown"
    version.restype = ctypes.c_char_p
    return version().decode()


def _make_gymnasium(env_id: str) -> Any:
    import gymnasium

    try:
        return gymnasium.make(env_id)
    except (gymnasium.error.Error, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise TiplError(f"Gymnasium cannot make {env_id!r}: {reason}") from error


@contextlib.contextmanager
def _quiet_making() -> Iterator[None]:
    """Keeps back what the libraries say about the paper's environments while they are made, and nothing else."""
    import gymnasium  # noqa: F401 - first, since its import puts a filter of its own before all others

    with _MAKING, warnings.catch_warnings():
        # Gymnasium calls every v4 environment out of date; the paper's are v4.
        warnings.filterwarnings("ignore", message=".*is out of date.*", category=DeprecationWarning)
        # EnvPool gives float64 bounds to float32 spaces.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*", category=UserWarning)
        yield


@contextlib.contextmanager
def _quiet_mujoco() -> Iterator[None]:
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
