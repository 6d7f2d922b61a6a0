"""What an environment is to the rest of the package: many copies, stepped together, that never reset unasked.

In: actions.  Out: observations, rewards, ends of episodes; a recorded state, brought back by its actions.

EnvPool and Gymnasium >= 1.0 reset on the step after a done; CleanRL (Gymnasium 0.29) resets within the same step.
Here `step` never resets: the caller sees the last observation of an episode and resets those copies at once, which is
CleanRL's meaning. The state of a copy is a function of its seed, the number of its resets, the actions since the last
one and, where steps draw random numbers, the generator's state at that reset or all earlier actions: `replay` brings it
back without any access to the simulator's insides.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from tipl.config.env_spec import EnvId
from tipl.errors import TiplError

_MOST_FRAMES = 1000
_MOST_NUMBERS = 100_000  # of an observation
_MOST_JOINT_ACTIONS = 4096


class VectorEnv(ABC):
    """`num_envs` copies with flat observations [obs_dim] and actions [action_dim], both float64.

    Actions are continuous within bounds; or there are `num_actions` of them, and an action is a number from 0 on, [1].
    """

    num_envs: int
    obs_dim: int
    action_low: np.ndarray
    action_high: np.ndarray
    earned: np.ndarray
    """[copies], after `replay`."""
    num_actions: int | None = None
    """Of discrete actions; None where they are continuous."""
    first_action: int = 0
    """What the environment is handed for the first of discrete actions."""

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

    def _take_spaces(self, obs: Any, action: Any, env_id: EnvId) -> None:
        """Learn sizes and bounds from one environment's spaces.

        A MultiDiscrete or MultiBinary action is one number that counts all its values' combinations, the last place
        fastest: any distribution over them is a distribution over these numbers.

        Raises:
            TiplError: its spaces are of other kinds.
        """
        from gymnasium import spaces

        if (reason := _why_not_flat(obs)) is not None:
            raise TiplError(f"{env_id} has {reason}; give an environment with flat or flattened numbers.")
        self.obs_space, self._obs_size = obs, spaces.flatdim(obs)
        frames = env_id.spec.get("frames", 1)
        if not 1 <= frames <= _MOST_FRAMES or (
            frames > 1 and not (isinstance(obs, spaces.Box) and len(obs.shape) == 1)
        ):
            raise TiplError(
                f"{env_id} is recorded with {frames} frames of {obs}; up to {_MOST_FRAMES} flat ones can be stacked."
            )
        self.obs_dim = frames * self._obs_size
        self._places: tuple[np.ndarray, np.ndarray] | None = None  # of a joint action: numbers of values, first values
        match action:
            case spaces.Discrete():
                self.num_actions = int(action.n)
                self.first_action = int(env_id.spec.get("first_action", action.start))
            case spaces.MultiDiscrete():
                self._places = np.asarray(action.nvec).reshape(-1), np.asarray(action.start).reshape(-1)
            case spaces.MultiBinary():
                size = spaces.flatdim(action)
                self._places = np.full(size, 2), np.zeros(size, np.int64)
            case spaces.Box():
                self.action_low = np.asarray(action.low, np.float64).reshape(-1)
                self.action_high = np.asarray(action.high, np.float64).reshape(-1)
            case _:
                raise TiplError(
                    f"{env_id} has the action space {action}; only Box and discrete actions can be collected."
                )
        if self._places is not None:
            self.num_actions, self.first_action = math.prod(map(int, self._places[0])), 0
            if self.num_actions > _MOST_JOINT_ACTIONS:
                raise TiplError(
                    f"{env_id} has the action space {action}, which has {self.num_actions:,} combinations; up to "
                    f"{_MOST_JOINT_ACTIONS:,} can be collected."
                )
        if self.num_actions is not None:
            self.action_low, self.action_high = np.zeros(1), np.array([self.num_actions - 1.0])
        self._action_shape, self._action_type = tuple(action.shape or ()), action.dtype
        self._whole_actions = bool(np.issubdtype(action.dtype, np.integer))

    def _env_actions(self, actions: np.ndarray) -> np.ndarray:
        """`actions` [n, action_dim] within the bounds, as the environment takes them, [n, ...]."""
        bounded = np.minimum(np.maximum(actions, self.action_low), self.action_high)
        if self._places is not None:
            values, first = self._places
            places = np.unravel_index(bounded[:, 0].astype(np.int64), values)
            return (np.stack(places, axis=1) + first).astype(self._action_type).reshape(-1, *self._action_shape)
        if self.discrete:
            return bounded[:, 0] + self.first_action
        if self._whole_actions:
            bounded = np.rint(bounded).astype(self._action_type)
        return bounded if len(self._action_shape) == 1 else bounded.reshape(-1, *self._action_shape)

    def replay(self, resets: Sequence[int], episodes: Sequence[Sequence[np.ndarray]], random: Any = None) -> np.ndarray:
        """Bring fresh copies to a recorded state.

        Args:
            resets: how often each copy had been reset since it was made.
            episodes: for each copy the actions [steps, action_dim] of its last episodes, the current one last.
            random: what `random_state` said when the current episodes began; None: nothing.

        Returns:
            The last observation of each copy [copies, obs_dim]; `earned` then has what each earned since its reset.
        """
        forgotten = [count - len(kept) for count, kept in zip(resets, episodes, strict=True)]
        # Of each copy how long its episodes are, after one of no steps that stands for the time before the first reset.
        lengths = [[0] * (1 + before) + [*map(len, kept)] for before, kept in zip(forgotten, episodes, strict=True)]
        steps = [np.concatenate(kept) if len(kept) else np.empty((0, self.action_dim)) for kept in episodes]
        final = np.array([len(each) - 1 for each in lengths])
        episode, within, taken, length = np.zeros((4, len(lengths)), np.int64)
        last = np.zeros((len(lengths), self.obs_dim))
        self.earned = np.zeros(len(lengths))
        while True:
            due = np.flatnonzero((within == length) & (episode < final))
            if len(due):
                episode[due], within[due] = episode[due] + 1, 0
                length[due] = [lengths[i][episode[i]] for i in due]
                if random is not None:
                    self.bring_back_random(due[episode[due] == final[due]], random)
                last[due], self.earned[due] = self.reset(due), 0
                continue
            going = np.flatnonzero(within < length)
            if not len(going):
                return last
            last[going], reward, _, _ = self.step(np.stack([steps[i][taken[i]] for i in going]), going)
            self.earned[going] += reward
            within[going] += 1
            taken[going] += 1

    def random_state(self, ids: np.ndarray) -> list[Any]:
        """What these copies draw from, as JSON, to be given to `replay`; None for a copy that does not say."""
        return [None] * len(ids)

    def bring_back_random(self, ids: np.ndarray, random: Sequence[Any]) -> None:
        """Let these copies draw from `random[i]` on, where `random_state` said something."""
        return

    @property
    def draws_in_steps(self) -> bool:
        """Whether an episode depends on how the episodes before it went, because steps draw random numbers of which
        nobody can say the state; then all actions of a copy have to be replayed."""
        return False


def leaves(space: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The names and spaces of the parts of a Dict or Tuple, in the order of `gymnasium.spaces.flatten`; of another
    space itself, without a name."""
    from gymnasium.spaces import Dict, Tuple

    if not isinstance(space, Dict | Tuple):
        return [(prefix.removesuffix("."), space)]
    parts = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
    return [leaf for name, part in parts for leaf in leaves(part, f"{prefix}{name}.")]


def by_name(space: Any) -> Any:
    """A Dict with its parts in the order of their names, in which Gymnasium has those of a plain dict, at any depth."""
    from gymnasium.spaces import Dict

    if not isinstance(space, Dict):
        return space
    return Dict({name: by_name(part) for name, part in sorted(space.spaces.items())})


def _why_not_flat(space: Any) -> str | None:
    """Why observations of a space are not made one row of numbers, as what an environment has; None: they are."""
    from gymnasium.spaces import Text, flatdim

    for name, part in leaves(space):
        called = f"the observation {name!r}, {part}" if name else f"the observation space {part}"
        if is_image(part):
            return f"{called}: images cannot be collected"
        if isinstance(part, Text):
            return f"{called}: text cannot be collected"
        if not part.is_np_flattenable:
            return f"{called}: observations without a fixed size cannot be collected"
    if (size := flatdim(space)) > _MOST_NUMBERS:
        return f"observations of {size:,} numbers, and up to {_MOST_NUMBERS:,} can be collected"
    return None


def is_image(space: Any) -> bool:
    return is_box(space) and len(space.shape) > 1 and space.dtype == np.uint8


def is_box(space: Any) -> bool:
    from gymnasium.spaces import Box

    return isinstance(space, Box)


def flattened(space: Any, batch: np.ndarray) -> np.ndarray:
    """A batch of one space's observations as `gymnasium.spaces.flatten` has each, [n, size] float64."""
    from gymnasium.spaces import flatdim, flatten

    values = np.asarray(batch)
    if is_box(space):
        return np.asarray(values, np.float64).reshape(len(values), flatdim(space))
    return np.array([flatten(space, value) for value in values], np.float64).reshape(len(values), flatdim(space))
