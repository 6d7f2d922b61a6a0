"""Environments of many kinds: what EnvPool and Gymnasium both have is the same in both, and goes on to the same bits.

dm_control comes by Shimmy. MetaWorld takes another MuJoCo than the rest and is in EnvPool alone.
"""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tipl import CollectConfig, DiscretePPOConfig, PPOConfig, TiplError
from tipl.config.presets import Backend
from tipl.rl.env_described import environment_of
from tipl.rl.envs import make_env
from tipl.rl.trial_batch import TrialBatch
from tipl.rl.vector_env import flattened

ONLY = np.array([0])


@pytest.fixture(scope="module")
def dm_control() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a machine without a display, and of SWIG, which an error would end
        import Box2D  # noqa: F401
        import shimmy

        gymnasium.register_envs(shimmy)
        gymnasium.make("dm_control/hopper-hop-v0")


@pytest.mark.usefixtures("dm_control")
def test_hopper_is_the_same_in_envpool_and_in_dm_control() -> None:
    """The Dict's parts are position (without x, on which nothing depends), touch, velocity in both: EnvPool has touch
    last. Each step begins with the reference in the state that the fast one shows."""
    fast, reference = make_env("HopperHop-v1", [3], "envpool"), make_env("dm_control/hopper-hop-v0", [3])
    obs = fast.reset(ONLY)
    reference.reset(ONLY)
    assert fast.obs_dim == reference.obs_dim == 15 and fast.action_low.tolist() == reference.action_low.tolist()
    physics = reference._envs[0].unwrapped._env.physics  # pyright: ignore[reportAttributeAccessIssue]
    rng, differences = np.random.default_rng(0), []
    for _ in range(60):
        with physics.reset_context():
            physics.data.qpos[:] = [0.0, *obs[0, :6]]
            physics.data.qvel[:] = obs[0, 8:]
        action = rng.uniform(-1.5, 1.5, (1, 4))  # beyond the bounds: both clip
        obs, reward, _, _ = fast.step(action)
        expected, expected_reward, _, _ = reference.step(action)
        differences.append(np.abs(obs - expected).max())
        np.testing.assert_allclose(reward, expected_reward, rtol=0, atol=1e-4)
    assert np.median(differences) < 1e-6 and max(differences) < 1e-2


@pytest.mark.usefixtures("dm_control")
@pytest.mark.parametrize(
    ("fast", "slow"),
    [("WalkerWalk-v1", "walker-walk"), ("FishSwim-v1", "fish-swim"),
     ("ManipulatorBringBall-v1", "manipulator-bring_ball"), ("SwimmerSwimmer6-v1", "swimmer-swimmer6")],
)  # fmt: skip
def test_parts_lie_in_the_order_of_gymnasiums_flatten(fast: str, slow: str) -> None:
    one, other = (make_env(name, [1]).obs_space.spaces for name in (fast, f"dm_control/{slow}-v0"))
    assert [(name, part.shape) for name, part in one.items()] == [(name, part.shape) for name, part in other.items()]


@pytest.mark.parametrize(
    "env_id", ["QuadrupedWalk-v1", "FrankaKitchen-v1", "Parking-v0", "BarkourJoystick-v1", "Snake-v1"]
)
def test_a_row_is_what_gymnasium_makes_of_the_parts(env_id: str) -> None:
    """Dicts in Dicts, one part alone, arrays of numbers and of truth values; the spaces are EnvPool's own."""
    import envpool

    raw = envpool.make_gymnasium(env_id, num_envs=2, seed=[1, 2])
    parts, _ = raw.reset()
    space = make_env(env_id, [1], "envpool").obs_space
    expected = [spaces.flatten(space, picked(space, parts, row)) for row in range(2)]
    np.testing.assert_array_equal(make_env(env_id, [1, 2], "envpool").reset(np.arange(2)), expected)


def picked(space: spaces.Space, batch: object, row: int) -> object:
    """One copy's observation of a batch."""
    if isinstance(space, spaces.Dict):
        return {name: picked(part, batch[name], row) for name, part in space.spaces.items()}  # pyright: ignore[reportIndexIssue]
    return batch[row]  # pyright: ignore[reportIndexIssue]


def test_bounds_that_are_not_symmetric_clip_as_gymnasiums_wrapper_does() -> None:
    env, twin = (make_env("QuadrupedWalk-v1", [1], "envpool") for _ in range(2))
    assert env.action_low[:3].tolist() == pytest.approx([-1, -1, -0.8])
    assert env.action_high[:3].tolist() == pytest.approx([1, 1.1, 0.8])
    far = np.random.default_rng(1).normal(scale=2, size=(1, 12))
    for each in (env, twin):
        each.reset(ONLY)
    np.testing.assert_array_equal(env.step(far)[0], twin.step(np.clip(far, env.action_low, env.action_high))[0])


class Switchboard(gymnasium.Env):
    """Shows the action that it was given."""

    observation_space = spaces.Box(-9, 9, (3,))

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        seen = np.zeros(3, np.float32)
        seen[: action.size] = action.reshape(-1)
        return seen, float(seen.sum()), False, False, {}


def board(space: spaces.Space) -> str:
    gymnasium.register("Switchboard-v0", lambda **_: Switchboard(space), disable_env_checker=True, max_episode_steps=50)
    return "Switchboard-v0"


@pytest.mark.filterwarnings("ignore:.*Overriding environment.*")
def test_several_discrete_actions_are_one_number() -> None:
    env = make_env(board(spaces.MultiDiscrete([2, 3], start=[5, 0])), [0])
    assert env.num_actions == 6 and env.discrete
    env.reset(ONLY)
    shown = [env.step(np.array([[float(k)]]))[0][0, :2].tolist() for k in range(6)]
    assert shown == [[5, 0], [5, 1], [5, 2], [6, 0], [6, 1], [6, 2]]
    env = make_env(board(spaces.MultiBinary(3)), [0])
    env.reset(ONLY)
    assert env.num_actions == 8 and env.step(np.array([[5.0]]))[0].tolist() == [[1, 0, 1]]
    with pytest.raises(TiplError, match=r"8,192 combinations; up to 4,096"):
        make_env(board(spaces.MultiBinary(13)), [0])


@pytest.mark.filterwarnings("ignore:.*Overriding environment.*")
def test_a_loop_of_somebody_else_with_several_discrete_actions_is_not_run() -> None:
    env = gymnasium.make(board(spaces.MultiDiscrete([2, 2])))
    assert "several discrete actions at once" in environment_of(env, "Switchboard-v0").spec["not_run"]


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("MiniGrid-Empty-5x5-v0", r"has the observation 'image', Box\(.*uint8\): images cannot be collected"),
        ("TicTacToe-v1", r"played by up to 2 players"),
    ],
)
def test_what_is_refused_is_told_in_one_line(env_id: str, message: str) -> None:
    with pytest.raises(TiplError, match=message) as raised:
        make_env(env_id, [1], "envpool")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("env_id", "backend"),
    [("WalkerWalk-v1", "envpool"), ("highway-v0", "envpool"), ("Blackjack-v1", "envpool"), ("Snake-v1", "envpool"),
     ("MetaWorld/DoorOpen-v3", "envpool"), ("LunarLander-v3", "gymnasium"),
     ("dm_control/reacher-easy-v0", "gymnasium")],
)  # fmt: skip
@pytest.mark.usefixtures("dm_control")
def test_a_run_goes_on_to_the_same_bits(env_id: str, backend: Backend) -> None:
    """A fresh batch, put where a run stands in its episode, ends its next iteration with the run's own weights."""
    ppo = (DiscretePPOConfig if make_env(env_id, [0], backend).discrete else PPOConfig)(
        num_envs=1, num_steps=70, num_minibatches=2, update_epochs=2, anneal_lr=False
    )
    config = CollectConfig(env_id=env_id, backend=backend, trials=2, total_steps=210, hidden_sizes=(8,), ppo=ppo)
    batch, fresh = TrialBatch(config, [1, 2]), TrialBatch(config, [1, 2])
    for _ in range(2):
        batch.iterate()
    fresh.restore([batch.state(trial) for trial in range(2)])
    np.testing.assert_array_equal(batch.iterate().snapshots, fresh.iterate().snapshots)


def test_numbers_of_no_dimension() -> None:
    assert flattened(spaces.Box(-1, 1, ()), np.array([0.5, 0.25])).tolist() == [[0.5], [0.25]]
    assert flattened(spaces.MultiBinary((2, 1)), np.array([[[1], [0]]])).tolist() == [[1, 0]]
