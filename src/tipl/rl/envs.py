"""Many copies of one environment, stepped together: EnvPool (fast) and Gymnasium (reference) behind one interface.

In: an environment id and one seed a copy.  Out: observations, rewards, ends of episodes; nothing is reset unasked.

EnvPool and Gymnasium >= 1.0 reset on the step after a done; CleanRL (Gymnasium 0.29) resets within the same step.
Here `step` never resets: the caller sees the last observation of an episode and resets those copies at once, which is
CleanRL's meaning. The state of a copy is a function of its seed, the number of its resets, the actions since the last
one and, where steps draw random numbers, the generator's state at that reset or all earlier actions: `replay` brings it
back without any access to the simulator's insides.
"""

import ctypes
import importlib.metadata
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tipl.config.env_spec import EnvId, from_json, made, quiet_making
from tipl.config.presets import Backend
from tipl.errors import TiplError

_MAX_ENVPOOL_SEED = 2**31 - 1  # EnvPool's seeds are C ints
_MOST_FRAMES = 1000
_TRIED_EPISODES, _TRIED_STEPS = 4, 300  # to find out whether an environment draws in its steps


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

    def _take_spaces(self, env: Any, env_id: EnvId) -> None:
        """Learn sizes and bounds from one environment.

        Raises:
            TiplError: its spaces are of other kinds.
        """
        from gymnasium import spaces

        obs, action = env.observation_space, env.action_space
        of_fixed_size = obs.is_np_flattenable and not any(_is_image(part) for _, part in _leaves(obs) or [("", obs)])
        if not of_fixed_size or not isinstance(action, spaces.Box | spaces.Discrete):
            what, space = ("action", action) if of_fixed_size else ("observation", obs)
            raise TiplError(
                f"{env_id} has the {what} space {space}; only observations of fixed size that are no images, with "
                "Box or Discrete actions, can be collected."
            )
        self.obs_space, self._obs_size = obs, spaces.flatdim(obs)
        frames = env_id.spec.get("frames", 1)
        if not 1 <= frames <= _MOST_FRAMES or (
            frames > 1 and not (isinstance(obs, spaces.Box) and len(obs.shape) == 1)
        ):
            raise TiplError(
                f"{env_id} is recorded with {frames} frames of {obs}; up to {_MOST_FRAMES} flat ones can be stacked."
            )
        self.obs_dim = frames * self._obs_size
        if isinstance(action, spaces.Discrete):
            self.num_actions = int(action.n)
            self._first_action = int(env_id.spec.get("first_action", action.start))
            self.action_low, self.action_high = np.zeros(1), np.array([self.num_actions - 1.0])
        else:
            self.action_low = np.asarray(action.low, np.float64).reshape(-1)
            self.action_high = np.asarray(action.high, np.float64).reshape(-1)
        self._action_shape, self._action_type = action.shape, action.dtype
        self._whole_actions = bool(np.issubdtype(action.dtype, np.integer))

    def _env_actions(self, actions: np.ndarray) -> np.ndarray:
        """`actions` [n, action_dim] within the bounds, as the environment takes them, [n, ...]."""
        bounded = np.minimum(np.maximum(actions, self.action_low), self.action_high)
        if self.discrete:
            return bounded[:, 0] + self._first_action
        if self._whole_actions:
            bounded = np.rint(bounded).astype(self._action_type)
        return bounded if len(self._action_shape) == 1 else bounded.reshape(-1, *self._action_shape)  # pyright: ignore[reportArgumentType, reportOptionalIterable]

    def replay(self, resets: Sequence[int], episodes: Sequence[Sequence[np.ndarray]], random: Any = None) -> np.ndarray:
        """Bring fresh copies to a recorded state.

        Args:
            resets: how often each copy had been reset since it was made.
            episodes: for each copy the actions [steps, action_dim] of its last episodes, the current one last.
            random: what `random_state` said when the current episodes began; None: nothing.

        Returns:
            The last observation of each copy [copies, obs_dim].
        """
        forgotten = [count - len(kept) for count, kept in zip(resets, episodes, strict=True)]
        # Of each copy how long its episodes are, after one of no steps that stands for the time before the first reset.
        lengths = [[0] * (1 + before) + [*map(len, kept)] for before, kept in zip(forgotten, episodes, strict=True)]
        steps = [np.concatenate(kept) if len(kept) else np.empty((0, self.action_dim)) for kept in episodes]
        final = np.array([len(each) - 1 for each in lengths])
        episode, within, taken, length = np.zeros((4, len(lengths)), np.int64)
        last = np.zeros((len(lengths), self.obs_dim))
        while True:
            due = np.flatnonzero((within == length) & (episode < final))
            if len(due):
                episode[due], within[due] = episode[due] + 1, 0
                length[due] = [lengths[i][episode[i]] for i in due]
                if random is not None:
                    self._bring_back_random(due[episode[due] == final[due]], random)
                last[due] = self.reset(due)
                continue
            going = np.flatnonzero(within < length)
            if not len(going):
                return last
            last[going] = self.step(np.stack([steps[i][taken[i]] for i in going]), going)[0]
            within[going] += 1
            taken[going] += 1

    def random_state(self, ids: np.ndarray) -> list[Any]:
        """What these copies draw from, as JSON, to be given to `replay`; None for a copy that does not say."""
        return [None] * len(ids)

    def _bring_back_random(self, ids: np.ndarray, random: Sequence[Any]) -> None:
        """Let these copies draw from `random[i]` on, where `random_state` said something."""
        return

    @property
    def draws_in_steps(self) -> bool:
        """Whether an episode depends on how the episodes before it went, because steps draw random numbers of which
        nobody can say the state; then all actions of a copy have to be replayed."""
        return False


class EnvPoolEnv(VectorEnv):
    """EnvPool's C++ environments."""

    def __init__(self, env_id: EnvId, seeds: Sequence[int], threads: int = 1) -> None:
        import envpool

        self.num_envs, self._env_id = len(seeds), env_id
        kwargs = {name: from_json(value) for name, value in env_id.spec.get("kwargs", {}).items()}
        with quiet_making():
            try:
                self._env: Any = envpool.make_gymnasium(
                    str(env_id),
                    num_envs=self.num_envs,
                    num_threads=min(threads, self.num_envs),
                    seed=[int(seed) for seed in seeds],
                    **kwargs,
                )
            except (TypeError, ValueError, AssertionError, RuntimeError) as error:
                reason = (str(error).splitlines() or [""])[0]
                raise TiplError(
                    f"EnvPool cannot make {env_id} with {kwargs} ({reason}); check --env-kwargs."
                ) from error
            self._take_spaces(self._env, env_id)
        self._all = np.arange(self.num_envs, dtype=np.int32)
        # EnvPool's own `step` and `reset` build a dict of the whole configuration and a tree of all arrays at every
        # call: a tenth of the time of 25 copies of InvertedPendulum. Under them lie lists of arrays in a fixed order.
        if list(self._env._action_keys) != ["env_id", "players.env_id", "action"]:
            raise TiplError(f"{env_id} takes several actions at once; only one can be collected.")
        keys = list(self._env._state_keys)
        self._reward_at, self._done_at, self._truncated_at = (keys.index(key) for key in ("reward", "done", "trunc"))
        parts = [(f"obs:{name}", part) for name, part in _leaves(self.obs_space)] or [("obs", self.obs_space)]
        self._parts_at = [(keys.index(key), part) for key, part in parts]
        is_flat = keys.count("obs") == 1 and _is_box(self.obs_space) and len(self.obs_space.shape) == 1
        self._flat_at = keys.index("obs") if is_flat else None  # the usual case takes no detour
        self._sent_type = self._env.spec.action_array_spec["action"].dtype

    @property
    def draws_in_steps(self) -> bool:
        return _draws_in_steps(str(self._env_id), json.dumps(self._env_id.spec.get("kwargs", {}), sort_keys=True))

    def _observed(self, state: list[Any]) -> np.ndarray:
        if self._flat_at is not None:
            return np.asarray(state[self._flat_at], np.float64)
        return np.concatenate([_flattened(part, state[at]) for at, part in self._parts_at], axis=1)

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
def _draws_in_steps(env_id: str, kwargs: str) -> bool:
    """Whether two copies of one seed depart from each other in their second episode, if one has acted in its first.

    Found out by a few episodes of drawn actions, of which the second are the same for both.
    """
    rng, both, acting = np.random.default_rng(0), np.arange(2), np.arange(1)
    for seed in range(_TRIED_EPISODES):
        env = EnvPoolEnv(EnvId(env_id, {"kwargs": json.loads(kwargs)}), [seed, seed])
        env.reset(both)
        for _ in range(_TRIED_STEPS):
            _, _, terminated, truncated = env.step(_drawn_action(env, rng), acting)
            if terminated[0] or truncated[0]:
                break
        seen, done = env.reset(both), np.zeros(2, np.bool_)
        for _ in range(_TRIED_STEPS):
            if not np.array_equal(seen[0], seen[1], equal_nan=True) or done[0] != done[1]:
                return True
            if done.any():
                break
            seen, _, terminated, truncated = env.step(np.repeat(_drawn_action(env, rng), 2, axis=0))
            done = terminated | truncated
    return False


def _drawn_action(env: VectorEnv, rng: np.random.Generator) -> np.ndarray:
    """[1, action_dim]"""
    if env.discrete:
        return rng.integers(env.policy_outputs, size=(1, 1)).astype(np.float64)
    return rng.uniform(np.maximum(env.action_low, -1), np.minimum(env.action_high, 1))[None]


def _leaves(space: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The names and spaces of a Dict's parts, in the order of `gymnasium.spaces.flatten`; none of another space."""
    from gymnasium.spaces import Dict

    if not isinstance(space, Dict):
        return [(prefix.removesuffix("."), space)] if prefix else []
    return [leaf for name, part in space.spaces.items() for leaf in _leaves(part, f"{prefix}{name}.")]


def _is_image(space: Any) -> bool:
    return _is_box(space) and len(space.shape) > 1 and space.dtype == np.uint8


def _is_box(space: Any) -> bool:
    from gymnasium.spaces import Box

    return isinstance(space, Box)


def _flattened(space: Any, batch: np.ndarray) -> np.ndarray:
    """A batch of one space's observations as `gymnasium.spaces.flatten` has each, [n, size] float64."""
    from gymnasium.spaces import flatdim, flatten

    values = np.asarray(batch)
    if _is_box(space):
        return np.asarray(values, np.float64).reshape(len(values), flatdim(space))
    return np.array([flatten(space, value) for value in values], np.float64).reshape(len(values), flatdim(space))


class GymnasiumEnv(VectorEnv):
    """Gymnasium's own environments, stepped one after another: any registered id, and the reference in tests."""

    def __init__(self, env_id: EnvId, seeds: Sequence[int]) -> None:
        self.num_envs = len(seeds)
        self._envs = [made(env_id) for _ in seeds]
        self._seeds: list[int | None] = [int(seed) for seed in seeds]
        self._take_spaces(self._envs[0], env_id)
        self._is_flat = len(getattr(self.obs_space, "shape", None) or ()) == 1 and _is_box(self.obs_space)
        self._seen = np.zeros((self.num_envs, self.obs_dim))  # the stacked frames, the newest last

    def _flat(self, obs: Any) -> Any:
        if self._is_flat:
            return obs
        from gymnasium.spaces import flatten

        return flatten(self.obs_space, obs)

    def reset(self, ids: np.ndarray) -> np.ndarray:
        for i in ids:
            obs, _ = self._envs[i].reset(seed=self._seeds[i])
            self._seeds[i] = None  # later resets go on with the same random stream
            self._seen[i, : -self._obs_size] = 0
            self._seen[i, -self._obs_size :] = self._flat(obs)
        return self._seen[ids]

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        taken: Any = self._env_actions(actions)
        if self.discrete:
            taken = taken.astype(np.int64)
        which = np.arange(self.num_envs) if ids is None else ids
        reward, terminated = np.empty(len(which)), np.empty(len(which), np.bool_)
        truncated = np.empty(len(which), np.bool_)
        for row, i in enumerate(which):
            obs, reward[row], terminated[row], truncated[row], _ = self._envs[i].step(taken[row])
            if self.obs_dim != self._obs_size:
                self._seen[i, : -self._obs_size] = self._seen[i, self._obs_size :]
            self._seen[i, -self._obs_size :] = self._flat(obs)
        return self._seen[which], reward, terminated, truncated

    def random_state(self, ids: np.ndarray) -> list[Any]:
        """The state of each copy's `np_random`, from which an environment draws in its steps and resets."""
        states = [getattr(self._envs[i].unwrapped, "np_random", None) for i in ids]
        generators = [getattr(each, "bit_generator", None) for each in states]
        return [each.state if isinstance(each, np.random.PCG64) else None for each in generators]

    def _bring_back_random(self, ids: np.ndarray, random: Sequence[Any]) -> None:
        for i in ids:
            if random[i] is not None:
                self._envs[i].unwrapped.np_random.bit_generator.state = random[i]


def make_env(env_id: str, seeds: Sequence[int], backend: Backend = "auto", threads: int = 1) -> VectorEnv:
    """Copies of an environment, one a seed, stepped by so many threads (Gymnasium's by one).

    Observations of other kinds than flat boxes are flattened as `gymnasium.spaces.flatten` does it: a Dict's parts in
    the order of its keys, discrete ones one-hot.

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
    import envpool

    return str(env_id) in envpool.list_all_envs()


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
