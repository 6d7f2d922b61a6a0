"""Small environments of every kind that a policy may meet, under the ids `toy/NAME-v0`.

In: nothing.  Out: a registry with them; import this module.
"""

import random
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ONE = spaces.Box(-1, 1, (1,), np.float32)


class Toy(gymnasium.Env):
    """Counts its steps; an episode has ten."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: Any = ONE
    length: float = 10
    metadata: Any = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.t, self.moved = 0, 0.0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.t += 1
        self.moved += self.push(action)
        return self.seen(), self.scale * self.moved, False, self.t >= self.length, {}

    def push(self, action: Any) -> float:
        return float(np.asarray(action, np.float64).sum())

    def seen(self) -> Any:
        return np.array([self.t, self.moved], np.float32)


class Draws(Toy):
    """Every step draws from the environment's own generator."""

    def push(self, action: Any) -> float:
        return super().push(action) + float(self.np_random.normal())


class DrawsElsewhere(Toy):
    """Every step draws from a generator that no seed reaches."""

    def push(self, action: Any) -> float:
        return super().push(action) + random.random()


class Endless(Toy):
    length = float("inf")


class Parts(Toy):
    """Keys that are not in the order of their names, one of them discrete, one of two dimensions."""

    observation_space = spaces.Dict(
        {"z": ONE, "a": spaces.Discrete(3), "m": spaces.Box(-9, 9, (2, 2), np.float64)},
    )

    def seen(self) -> Any:
        return {"m": np.array([[1.0, 2.0], [3.0, self.t]]), "z": np.array([0.5], np.float32), "a": self.t % 3}


class Squares(Toy):
    """Observations and actions of two dimensions; actions without bounds on one side."""

    observation_space = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
    action_space = spaces.Box(np.array([[-np.inf, -1.0]]), np.array([[0.5, np.inf]]), dtype=np.float64)

    def push(self, action: Any) -> float:
        assert action.shape == (1, 2), action.shape
        return float(action[0, 0] + 10 * action[0, 1])

    def seen(self) -> Any:
        return np.array([[self.t, self.moved, 0.0], [1.0, 2.0, 3.0]])


class Switches(Toy):
    action_space = spaces.MultiBinary(2)


class Bags(Toy):
    observation_space = spaces.Sequence(ONE)


class Labels(Toy):
    observation_space = spaces.Dict({"place": ONE, "name": spaces.Text(5)})


class Sacks(Toy):
    action_space = spaces.Sequence(ONE)


class Five(Toy):
    """Three actions, which its loop may number from 5 or from 0."""

    action_space = spaces.Discrete(3, start=5)


class Nothing(Toy):
    """Gives NaN in its seventh step."""

    def seen(self) -> Any:
        return np.full(2, np.nan if self.t == 7 else 0.1, np.float32)


class Worthless(Toy):
    """Its seventh reward is infinite."""

    def push(self, action: Any) -> float:
        return float("inf") if self.t == 7 else 0.0

    def seen(self) -> Any:
        return np.array([self.t, 0], np.float32)


for made in (
    Toy,
    Draws,
    DrawsElsewhere,
    Endless,
    Parts,
    Squares,
    Switches,
    Bags,
    Labels,
    Sacks,
    Five,
    Nothing,
    Worthless,
):
    gymnasium.register(f"toy/{made.__name__}-v0", made, disable_env_checker=True)  # pyright: ignore[reportArgumentType]
