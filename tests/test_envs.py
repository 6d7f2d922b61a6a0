"""The two backends against each other, and each against what `VectorEnv` promises."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import envpool
import gymnasium
import numpy as np
import pytest
import toy_envs  # noqa: F401 - registers

from tipl.config.env_spec import EnvId
from tipl.config.presets import Backend
from tipl.errors import TiplError
from tipl.rl.envs import EnvPoolEnv, GymnasiumEnv, chosen_backend, engine_versions, make_env
from tipl.rl.vector_env import VectorEnv

BACKENDS: tuple[Backend, ...] = ("envpool", "gymnasium")
PENDULUM, CHEETAH = "InvertedPendulum-v4", "HalfCheetah-v4"
ONLY = np.array([0])


def balance(obs: np.ndarray) -> np.ndarray:
    """Keeps an inverted pendulum upright: obs [n, 4] (place, angle, their speeds) to actions [n, 1]."""
    return obs @ np.array([[0.5], [10.0], [0.8], [2.0]])


def put(env: GymnasiumEnv, obs: np.ndarray) -> None:
    """Set the simulator of a single copy to the state that was observed; the observation leaves out the first places,
    on which neither physics nor rewards depend."""
    simulator = env._envs[0].unwrapped
    simulator.reset()  # the solver begins from rest
    places, speeds = simulator.model.nq, simulator.model.nv
    state = np.concatenate([np.zeros(places + speeds - len(obs)), obs])
    simulator.set_state(state[:places], state[places:])


def pair(env_id: str, seed: int) -> tuple[VectorEnv, GymnasiumEnv, np.ndarray]:
    """The fast and the reference environment in the same state, and the observation."""
    fast, reference = make_env(env_id, [seed]), make_env(env_id, [seed], "gymnasium")
    assert isinstance(reference, GymnasiumEnv)
    obs = fast.reset(ONLY)
    reference.reset(ONLY)
    put(reference, obs[0])
    return fast, reference, obs


@pytest.mark.parametrize("seed", range(4))
def test_inverted_pendulum_is_the_same_physics(seed: int) -> None:
    """Whole episodes, half of them to the time limit, half to a fall under large random actions. Measured: equal to
    the last bit, though the two MuJoCos are of different versions."""
    fast, reference, obs = pair(PENDULUM, seed)
    rng = np.random.default_rng(seed)
    for step in range(1, 1001):
        action = balance(obs) + 0.3 * rng.standard_normal((1, 1)) if seed % 2 else rng.uniform(-9, 9, (1, 1))
        obs, reward, terminated, truncated = fast.step(action)
        ref_obs, ref_reward, ref_terminated, ref_truncated = reference.step(action)
        np.testing.assert_allclose(obs, ref_obs, rtol=0, atol=1e-9)
        assert reward == ref_reward == 1
        assert terminated == ref_terminated and truncated == ref_truncated
        assert truncated[0] == (step == 1000)
        if terminated or truncated:
            break
    assert (step == 1000) == (seed % 2 == 1)


@pytest.mark.parametrize("seed", range(2))
def test_half_cheetah_is_the_same_physics_step_by_step(seed: int) -> None:
    """An episode in which the reference is put to the fast one's state before every step: contacts make the motion
    chaotic, and a difference of the last bit grows to the size of the motion within 100 steps.

    Measured: observations to 4e-15 in the median and 1e-7 at most (the solver starts elsewhere), rewards to 1e-7
    (EnvPool's are float32).
    """
    fast, reference, obs = pair(CHEETAH, seed)
    rng = np.random.default_rng(seed)
    differences = []
    for step in range(1, 1001):
        put(reference, obs[0])
        action = rng.uniform(-1.5, 1.5, (1, 6))  # beyond the bounds: both clip
        obs, reward, terminated, truncated = fast.step(action)
        ref_obs, ref_reward, ref_terminated, _ = reference.step(action)
        differences.append(np.abs(obs - ref_obs).max())
        np.testing.assert_allclose(obs, ref_obs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(reward, ref_reward, rtol=0, atol=1e-5)
        assert not terminated and not ref_terminated
        assert truncated[0] == (step == 1000)
    assert np.median(differences) < 1e-12


def test_half_cheetah_is_the_same_physics_left_alone() -> None:
    """Measured over 30 steps: 2e-11."""
    fast, reference, _ = pair(CHEETAH, 0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        action = rng.uniform(-1, 1, (1, 6))
        np.testing.assert_allclose(fast.step(action)[0], reference.step(action)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", [PENDULUM, CHEETAH])
def test_episodes_begin_with_the_laws_of_the_paper_s_environments(env_id: str, backend: Backend) -> None:
    """InvertedPendulum: all uniform in ±0.01. HalfCheetah: places uniform in ±0.1, speeds normal with deviation 0.1."""
    env = make_env(env_id, range(30), backend)
    starts = np.concatenate([env.reset(np.arange(30)) for _ in range(20)])  # first and later episodes
    places, bound = (4, 0.01) if env_id == PENDULUM else (8, 0.1)
    error = 5 / len(starts) ** 0.5  # 5 standard errors of a mean of deviation 1
    uniform = starts[:, :places] / bound
    assert np.abs(uniform).max() <= 1
    np.testing.assert_allclose(uniform.mean(0), 0, atol=error)
    np.testing.assert_allclose((uniform**2).mean(0), 1 / 3, atol=error)
    normal = starts[:, places:] / 0.1
    np.testing.assert_allclose(normal.mean(0), 0, atol=error)
    np.testing.assert_allclose((normal**2).mean(0), 1, atol=2**0.5 * error)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_done_step_shows_the_last_state_and_the_reset_begins_the_next_episode(backend: Backend) -> None:
    """What CleanRL's same-step reset needs: the step does not reset, and the reset costs no step."""
    env = make_env(PENDULUM, [1, 2], backend)
    ids = np.arange(2)
    obs = env.reset(ids)
    episodes = 0
    while episodes < 20:
        obs, _, terminated, truncated = env.step(np.array([[3.0], [-2.0]]))
        # The environment's own rule for the end of an episode, on the observation of that very step.
        np.testing.assert_array_equal(terminated, np.abs(obs[:, 1]) > 0.2)
        assert not truncated.any()
        ended = np.flatnonzero(terminated)
        if len(ended):
            first = env.reset(ended)
            assert (np.abs(first) <= 0.01).all()
            episodes += len(ended)
    first = env.reset(ids)  # in the middle of episodes as well
    assert (np.abs(first) <= 0.01).all()
    obs, _, _, _ = env.step(np.zeros((2, 1)))
    assert (np.abs(obs - first) < 0.05).all() and (obs != first).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", [PENDULUM, CHEETAH])
def test_time_limit_truncates_and_a_reset_starts_the_clock_again(env_id: str, backend: Backend) -> None:
    env = make_env(env_id, [3], backend)
    for ended_at in (1000, 150, 1000):
        obs = env.reset(ONLY)
        for step in range(1, ended_at + 1):
            action = balance(obs) if env_id == PENDULUM else np.zeros((1, 6))
            obs, _, terminated, truncated = env.step(action)
            assert not terminated
            assert truncated[0] == (step == 1000)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", [PENDULUM, CHEETAH])
def test_a_copy_is_the_same_alone_and_in_any_vector(env_id: str, backend: Backend) -> None:
    """To the bit, over several episodes. Copies are stepped and reset in parts, named in any order."""
    seeds = [9, 4, 7]
    vector, alone = make_env(env_id, seeds, backend), [make_env(env_id, [seed], backend) for seed in seeds]
    rng = np.random.default_rng(0)
    resets = 0

    def same(ids: np.ndarray, together: np.ndarray, apart: list[np.ndarray]) -> None:
        for row, i in enumerate(ids):
            np.testing.assert_array_equal(together[row], apart[i][0])

    def reset(ids: np.ndarray) -> None:
        same(ids, vector.reset(ids), [env.reset(ONLY) if i in ids else np.empty(0) for i, env in enumerate(alone)])

    reset(np.array([2, 0]))
    reset(np.array([1]))
    for _ in range(120):
        ids = rng.permutation(3)[: rng.integers(1, 4)]
        actions = rng.uniform(-1, 1, (len(ids), vector.action_dim))
        whole = vector.step(actions, ids)
        part = {i: alone[i].step(actions[row : row + 1]) for row, i in enumerate(ids)}
        for k, array in enumerate(whole):
            assert len(array) == len(ids)
            for row, i in enumerate(ids):
                np.testing.assert_array_equal(array[row], part[i][k][0])
        done = whole[2] | whole[3] | (rng.random(len(ids)) < 0.05)
        if done.any():
            resets += 1
            reset(ids[done])
    assert resets > 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_decides_the_first_state_and_no_ids_means_all(backend: Backend) -> None:
    first = make_env(CHEETAH, [5, 6, 5], backend).reset(np.arange(3))
    np.testing.assert_array_equal(first[0], first[2])
    assert (first[0] != first[1]).any()
    env = make_env(CHEETAH, [5, 6], backend)
    env.reset(np.arange(2))
    twin = make_env(CHEETAH, [5, 6], backend)
    twin.reset(np.arange(2))
    actions = np.random.default_rng(1).uniform(-1, 1, (2, 6))
    for ours, theirs in zip(env.step(actions), twin.step(actions, np.arange(2)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", [PENDULUM, CHEETAH])
def test_replay_restores_to_the_bit(env_id: str, backend: Backend) -> None:
    """Copies with different numbers of resets and of steps since; one was just reset, one never."""
    seeds, rng = [1, 2, 3, 4], np.random.default_rng(2)
    env = make_env(env_id, seeds, backend)
    since: list[list[np.ndarray]] = [[] for _ in seeds]
    resets = [0] * len(seeds)

    def advance(copy: int, steps: int) -> None:
        for _ in range(steps):
            action = rng.uniform(-0.5, 0.5, env.action_dim).astype(np.float32)  # as a rollout stores it
            _, _, terminated, truncated = env.step(action[None], np.array([copy]))
            since[copy].append(action)
            if terminated or truncated:
                begin(copy)

    def begin(copy: int) -> None:
        env.reset(np.array([copy]))
        resets[copy] += 1
        since[copy].clear()

    for copy, steps in ((0, [40, 33]), (1, [25]), (2, [11, 0])):
        for n in steps:
            begin(copy)
            advance(copy, n)
    assert resets[3] == 0 and not since[2] and since[0] and since[1]

    fresh = make_env(env_id, seeds, backend)
    current = [np.array(actions).reshape(-1, env.action_dim) for actions in since]
    last = fresh.replay(resets, [[actions] if count else [] for actions, count in zip(current, resets, strict=True)])
    assert (last[3] == 0).all() and (last[:3] != 0).any(axis=1).all()
    begun = np.arange(3)
    for step in range(60):
        if step in (20, 40):
            begun = np.arange(4)
            np.testing.assert_array_equal(env.reset(begun), fresh.reset(begun))
        actions = rng.uniform(-0.1, 0.1, (len(begun), env.action_dim))
        for ours, theirs in zip(env.step(actions, begun), fresh.step(actions, begun), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", [PENDULUM, CHEETAH, "Pendulum-v1"])
def test_shapes_bounds_and_types(env_id: str, backend: Backend) -> None:
    obs_dim, action_dim, bound = {PENDULUM: (4, 1, 3), CHEETAH: (17, 6, 1), "Pendulum-v1": (3, 1, 2)}[env_id]
    env = make_env(env_id, [1, 2, 3], backend)
    assert (env.num_envs, env.obs_dim, env.action_dim) == (3, obs_dim, action_dim)
    np.testing.assert_array_equal(env.action_high, np.full(action_dim, float(bound)))
    np.testing.assert_array_equal(env.action_low, np.full(action_dim, -float(bound)))
    first = env.reset(np.arange(3))
    obs, reward, terminated, truncated = env.step(np.zeros((3, action_dim)))
    assert first.shape == obs.shape == (3, obs_dim)
    assert reward.shape == terminated.shape == truncated.shape == (3,)
    assert first.dtype == obs.dtype == reward.dtype == np.float64  # Pendulum's own are float32
    assert terminated.dtype == truncated.dtype == np.bool_


# Falls at different times; float32, with time limit; the same of discrete actions.
@pytest.mark.parametrize("env_id", ["Hopper-v4", "Pendulum-v1", "CartPole-v1", "MountainCar-v0"])
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")
def test_envpool_does_what_its_own_step_and_reset_do(env_id: str) -> None:
    ours = make_env(env_id, [1, 2, 3])
    theirs = envpool.make_gymnasium(env_id, num_envs=3, num_threads=1, seed=[1, 2, 3])
    np.testing.assert_array_equal(ours.reset(np.arange(3)), theirs.reset()[0])
    rng = np.random.default_rng(0)
    resets = 0
    for step in range(350):
        ids = rng.permutation(3)[: 1 + step % 3] if step % 7 else np.arange(3)
        if ours.num_actions:
            actions = rng.integers(0, ours.num_actions, (len(ids), 1))
            expected = theirs.step(actions[:, 0], ids)
        else:
            actions = rng.uniform(ours.action_low, ours.action_high, (len(ids), ours.action_dim))
            expected = theirs.step(actions.astype(theirs.action_space.dtype), ids)
        found = ours.step(actions, ids)
        for mine, their in zip(found, expected[:4], strict=True):
            np.testing.assert_array_equal(mine, their)
        done = ids[found[2] | found[3]]
        if len(done):
            resets += len(done)
            np.testing.assert_array_equal(ours.reset(done), theirs.reset(done.astype(np.int32))[0])
    assert resets


SIZES = {  # observation, actions, and how many there are where they are discrete
    "HalfCheetah-v5": (17, 6, None),
    "InvertedPendulum-v5": (4, 1, None),
    "Hopper-v5": (11, 3, None),
    "Ant-v5": (105, 8, None),
    "CartPole-v1": (4, 1, 2),
    "Acrobot-v1": (6, 1, 3),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", SIZES)
def test_both_backends_have_these_environments(env_id: str, backend: Backend) -> None:
    env = make_env(env_id, [1, 2], backend)
    assert (env.obs_dim, env.action_dim, env.num_actions) == SIZES[env_id]
    assert env.policy_outputs == (env.num_actions or env.action_dim)
    env.reset(np.arange(2))
    obs, reward, terminated, truncated = env.step(np.zeros((2, env.action_dim)))
    assert obs.shape == (2, env.obs_dim) and obs.dtype == reward.dtype == np.float64
    assert not terminated.any() and not truncated.any()


def test_auto_is_envpool_where_it_has_the_environment_and_gymnasium_otherwise() -> None:
    assert chosen_backend(PENDULUM, "auto") == "envpool" and isinstance(make_env(PENDULUM, [1]), EnvPoolEnv)
    only_gymnasium = "gymnasium.envs.mujoco:InvertedPendulum-v5"  # an id with the module that registers it
    assert chosen_backend(only_gymnasium, "auto") == "gymnasium"
    assert isinstance(make_env(only_gymnasium, [1]), GymnasiumEnv)
    for backend in BACKENDS:
        assert chosen_backend(PENDULUM, backend) == backend
        assert type(make_env(PENDULUM, [1], backend)).__name__.lower() == f"{backend}env"
    with pytest.raises(TiplError, match="EnvPool has no environment"):
        make_env(only_gymnasium, [1], "envpool")


def cartpole_action(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keeps the pole up with some noise: obs [1, 4] to an action [1, 1]."""
    return (obs @ np.array([[0.1], [0.5], [2.0], [1.0]]) + rng.normal(0, 0.1) > 0).astype(np.float64)


@pytest.mark.parametrize("balanced", [True, False])
def test_cartpole_is_the_same_in_both_backends(balanced: bool) -> None:
    """An episode to the time limit, and one to a fall, the reference put to the fast one's state before every step: the
    unstable pole lets the rounding of a state grow. Measured: 2e-7."""
    fast, reference = make_env("CartPole-v1", [3]), make_env("CartPole-v1", [3], "gymnasium")
    assert isinstance(reference, GymnasiumEnv)
    obs, rng = fast.reset(ONLY), np.random.default_rng(0)
    reference.reset(ONLY)
    inner: Any = reference._envs[0].unwrapped
    step = 0
    while True:
        step += 1
        inner.state = tuple(obs[0])
        action = cartpole_action(obs, rng) if balanced else np.ones((1, 1))
        obs, reward, terminated, truncated = fast.step(action)
        ref_obs, ref_reward, ref_terminated, ref_truncated = reference.step(action)
        np.testing.assert_allclose(obs, ref_obs, rtol=0, atol=1e-6)
        assert reward == ref_reward == 1 and terminated == ref_terminated and truncated == ref_truncated
        if terminated or truncated:
            break
    assert (step == 500 and truncated[0]) if balanced else (step < 20 and terminated[0])


def test_acrobot_is_the_same_in_both_backends() -> None:
    """Ten seconds of random actions, the reference put to the fast one's state before every step. Measured: 2e-7."""
    fast, reference = make_env("Acrobot-v1", [3]), make_env("Acrobot-v1", [3], "gymnasium")
    assert isinstance(reference, GymnasiumEnv)
    obs, rng = fast.reset(ONLY), np.random.default_rng(0)
    reference.reset(ONLY)
    inner: Any = reference._envs[0].unwrapped
    for _ in range(50):
        cos1, sin1, cos2, sin2, speed1, speed2 = obs[0]
        inner.state = np.array([np.arctan2(sin1, cos1), np.arctan2(sin2, cos2), speed1, speed2])
        action = rng.integers(0, 3, (1, 1)).astype(np.float64)
        obs, reward, terminated, _ = fast.step(action)
        ref_obs, ref_reward, ref_terminated, _ = reference.step(action)
        np.testing.assert_allclose(obs, ref_obs, rtol=0, atol=1e-4)
        assert reward == ref_reward == -1 and not terminated and not ref_terminated


class StartsAtFive(gymnasium.Env):
    """Shows which action was taken last."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,))
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        return np.array([action], np.float32), 0.0, False, False, {}


def test_discrete_actions_count_from_0_wherever_the_environment_begins() -> None:
    gymnasium.register("StartsAtFive-v0", lambda **_: StartsAtFive(), disable_env_checker=True)
    env = make_env("StartsAtFive-v0", [1, 2, 3])
    env.reset(np.arange(3))
    np.testing.assert_array_equal(env.step(np.array([[0.0], [1.0], [2.0]]))[0], [[5], [6], [7]])


def test_observations_of_other_kinds_are_flattened_as_gymnasium_does_it() -> None:
    """A Dict's parts in the order of its names, what is discrete one-hot, arrays row by row."""
    env = make_env("toy/Parts-v0", [1, 2])
    np.testing.assert_array_equal(env.reset(np.arange(2))[0], [1, 0, 0, 1, 2, 3, 0, 0.5])
    np.testing.assert_array_equal(env.step(np.zeros((2, 1)))[0][1], [0, 1, 0, 1, 2, 3, 1, 0.5])
    lake = make_env("FrozenLake-v1", [1], "gymnasium")
    np.testing.assert_array_equal(lake.reset(ONLY)[0], np.eye(16)[0])
    assert make_env("FrozenLake-v1", [1], "envpool").reset(ONLY).tolist() == lake.reset(ONLY).tolist()


def test_parts_of_envpool_observations_stand_in_the_order_of_their_names() -> None:
    env = make_env("CheetahRun-v1", [1, 2], "envpool")
    raw = envpool.make_gymnasium("CheetahRun-v1", num_envs=2, seed=[1, 2])
    parts, _ = raw.reset()
    np.testing.assert_array_equal(env.reset(np.arange(2)), np.hstack([parts["position"], parts["velocity"]]))


def test_arrays_of_two_dimensions_and_half_bounds() -> None:
    env = make_env("toy/Squares-v0", [1])
    assert env.obs_dim == 6 and env.action_low.tolist() == [-np.inf, -1] and env.action_high.tolist() == [0.5, np.inf]
    env.reset(ONLY)
    obs, reward, _, _ = env.step(np.array([[7.0, -7.0]]))  # clipped to 0.5 and -1
    np.testing.assert_array_equal(obs[0], [1, -9.5, 0, 1, 2, 3])
    assert reward[0] == -9.5


def test_frames_are_stacked_as_stable_baselines3_does_it() -> None:
    env = make_env(EnvId("toy/Toy-v0", {"frames": 3}), [1])
    np.testing.assert_array_equal(env.reset(ONLY)[0], [0, 0, 0, 0, 0, 0])
    env.step(np.array([[0.5]]))
    np.testing.assert_array_equal(env.step(np.array([[0.25]]))[0][0], [0, 0, 1, 0.5, 2, 0.75])
    np.testing.assert_array_equal(env.reset(ONLY)[0], [0, 0, 0, 0, 0, 0])


def test_keyword_arguments_reach_either_backend() -> None:
    assert make_env(EnvId("toy/Toy-v0", {"kwargs": {"scale": 3.0}}), [1]).reset(ONLY).shape == (1, 2)
    for backend in BACKENDS:
        env = make_env(EnvId(PENDULUM, {"kwargs": {"max_episode_steps": 4}}), [1], backend)
        env.reset(ONLY)
        ends = [bool(np.any(env.step(np.zeros((1, 1)))[2:])) for _ in range(4)]
        assert ends == [False, False, False, True]
    with pytest.raises(TiplError, match=r"toy/Toy-v0 cannot be made \(TypeError: .*nonsense"):
        make_env(EnvId("toy/Toy-v0", {"kwargs": {"nonsense": 1}}), [1])
    with pytest.raises(TiplError, match=r"EnvPool cannot make .*nonsense"):
        make_env(EnvId(PENDULUM, {"kwargs": {"nonsense": 1}}), [1], "envpool")


@pytest.mark.parametrize(
    ("env_id", "backend"),
    [("LunarLander-v3", "envpool"), ("FrozenLake-v1", "envpool"), ("FrozenLake-v1", "gymnasium"),
     ("toy/Draws-v0", "gymnasium")],
)  # fmt: skip
def test_replay_brings_back_what_draws_in_its_steps(env_id: str, backend: Backend) -> None:
    env, fresh = make_env(env_id, [3, 4], backend), make_env(env_id, [3, 4], backend)
    assert env.draws_in_steps == (backend == "envpool")
    rng, kept = np.random.default_rng(0), [[] for _ in range(2)]
    random: list[Any] = [None, None]

    def begin(ids: np.ndarray) -> None:
        for i, state in zip(ids, env.random_state(ids), strict=True):
            random[i] = state
            kept[i].append([])
        env.reset(ids)

    begin(np.arange(2))
    for _ in range(150):
        actions = rng.integers(env.policy_outputs, size=(2, 1)) * 1.0
        _, _, terminated, truncated = env.step(actions)
        for i in range(2):
            kept[i][-1].append(actions[i])
        if len(done := np.flatnonzero(terminated | truncated)):
            begin(done)
    resets = [len(each) for each in kept]
    assert min(resets) > 1
    episodes = [[np.array(e).reshape(-1, 1) for e in each] for each in kept]
    if not env.draws_in_steps:
        episodes = [each[-1:] for each in episodes]
    fresh.replay(resets, episodes, random)
    for _ in range(40):
        actions = rng.integers(env.policy_outputs, size=(2, 1)) * 1.0
        for ours, theirs in zip(env.step(actions), fresh.step(actions), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        done = np.flatnonzero(ours | theirs)  # pyright: ignore[reportOperatorIssue]
        if len(done):
            np.testing.assert_array_equal(env.reset(done), fresh.reset(done))


def test_environments_that_draw_nothing_in_their_steps_are_known_to() -> None:
    for env_id in ("CartPole-v1", PENDULUM, "Acrobot-v1"):
        assert not make_env(env_id, [1], "envpool").draws_in_steps


@pytest.mark.parametrize("backend", BACKENDS)
def test_actions_are_clipped_to_the_bounds(backend: Backend) -> None:
    env, twin = make_env(PENDULUM, [1], backend), make_env(PENDULUM, [1], backend)
    for vector in (env, twin):
        vector.reset(ONLY)
    np.testing.assert_array_equal(env.step(np.array([[1e6]]))[0], twin.step(np.array([[3.0]]))[0])


@pytest.mark.parametrize(
    ("env_id", "backend", "message"),
    [
        ("Nonsense-v4", "envpool", r"EnvPool has no environment 'Nonsense-v4'; .*--backend gymnasium"),
        ("Nonsense-v4", "gymnasium", r"Gymnasium cannot make 'Nonsense-v4': .*doesn't exist"),
        ("InvertedPendulum-v99", "gymnasium", r"Gymnasium cannot make 'InvertedPendulum-v99'"),
        ("no such id", "gymnasium", r"Gymnasium cannot make 'no such id'"),
        ("absent_package:Some-v0", "gymnasium", r"No module named 'absent_package'"),
        ("HalfCheetah-v3", "gymnasium", r"Gymnasium cannot make 'HalfCheetah-v3'"),  # an ImportError
        ("Nonsense-v4", "auto", r"Gymnasium cannot make 'Nonsense-v4': .*doesn't exist"),
        ("Pong-v5", "auto", r"Pong-v5 has the observation space Box\(0, 255, \(4, 84, 84\), uint8\): images cannot be"),
        ("toy/Bags-v0", "gymnasium", r"has the observation space Sequence\(.*: observations without a fixed size"),
        ("toy/Labels-v0", "gymnasium", r"has the observation 'name', Text\(.*: text cannot be collected"),
        ("toy/Sacks-v0", "gymnasium", r"has the action space Sequence\(.*; only Box and discrete actions can be"),
    ],
)
def test_what_cannot_be_collected_is_told_in_one_line(env_id: str, backend: Backend, message: str) -> None:
    with pytest.raises(TiplError, match=message) as raised:
        make_env(env_id, [1], backend)
    assert "\n" not in str(raised.value)


def test_a_seed_that_envpool_does_not_take_is_told() -> None:
    make_env(PENDULUM, [2**31 - 1])
    with pytest.raises(TiplError, match="no seed above 2147483647, and 2147483648"):
        make_env(PENDULUM, [2**31 - 1, 2**31])


@pytest.mark.parametrize("backend", BACKENDS)
def test_making_says_nothing_and_leaves_no_log(backend: Backend, tmp_path: Path) -> None:
    """In a process of its own, where Gymnasium is first imported by the making and sets its own filter of warnings.

    MuJoCo writes its remarks into the working directory unless someone listens.
    """
    code = f"from tipl.rl.envs import make_env\nfor id in {CHEETAH, PENDULUM}: make_env(id, [1], {backend!r})"
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_making_keeps_back_no_other_warning() -> None:
    with pytest.warns(UserWarning, match="latest versioned environment"):
        make_env("InvertedPendulum", [1], "gymnasium")


def test_engine_versions_name_the_mujoco_that_steps() -> None:
    assert engine_versions("gymnasium") == {
        "gymnasium": importlib.metadata.version("gymnasium"),
        "mujoco": importlib.metadata.version("mujoco"),
    }
    versions = engine_versions("envpool")
    assert set(versions) == {"envpool", "mujoco"}
    assert versions["envpool"] == envpool.__version__
    assert re.fullmatch(r"3\.\d+\.\d+", versions["mujoco"])
    library = Path(envpool.__file__).parent / "mujoco" / "mujoco_gym_envpool.so"
    assert b"\0" + versions["mujoco"].encode() + b"\0" in library.read_bytes()


class Failing(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(1, np.float32), 1.0 / (3 - self.steps), False, False, {}


def test_an_environment_that_fails_is_said_in_one_line() -> None:
    gymnasium.register("Failing-v0", lambda **_: Failing())
    env = make_env("Failing-v0", [0], "gymnasium")
    env.reset(np.arange(1))
    for _ in range(2):
        env.step(np.zeros((1, 1)))
    with pytest.raises(TiplError, match=r"Failing-v0 failed in its step \(ZeroDivisionError: .*mend the environment"):
        env.step(np.zeros((1, 1)))


@pytest.mark.parametrize("env_id", ["a:b:c", "../x:Y-v0"])
def test_an_id_that_is_none_is_said_to_be(env_id: str) -> None:
    with pytest.raises(TiplError, match=r"cannot be made.*check its id, which is NAME or MODULE:NAME"):
        make_env(env_id, [0], "gymnasium")
