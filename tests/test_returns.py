"""Returns of many policies at once equal those of one policy in a plain Gymnasium loop.

In: policies and normalizers from a store.  Out: failures.
"""

import time
from pathlib import Path

import gymnasium
import numpy as np
import plain_ppo
import pytest
import torch
import toy_envs  # noqa: F401 - registers
from gymnasium.envs.registration import EnvSpec

from tipl.config.env_spec import EnvId
from tipl.config.presets import Activation
from tipl.errors import TiplError
from tipl.rl import returns
from tipl.rl.envs import make_env
from tipl.rl.policies import initial_weights, policy_spec
from tipl.rl.returns import Policies, episode_seeds, policy_returns
from tipl.store import Store
from tipl.store.policy import VAR_EPSILON
from tipl.store.spec import ParamSpec


def plain_return(
    env: gymnasium.Env, obs: np.ndarray, spec: ParamSpec, weights: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> float:
    """One episode from `obs` on: one policy, one environment, torch layers, the mean action."""
    tensors = {name: torch.from_numpy(value.copy()) for name, value in spec.unflatten(weights).items()}
    network = torch.nn.Sequential()
    for i in range(0, 6, 2):
        weight, bias = tensors[f"actor_mean.{i}.weight"], tensors[f"actor_mean.{i}.bias"]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        network.extend([layer, torch.nn.Tanh()] if i < 4 else [layer])
    total, done = 0.0, False
    while not done:
        x = np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10).astype(np.float32)
        action = network(torch.from_numpy(x)).detach().numpy()
        box = env.action_space
        assert isinstance(box, gymnasium.spaces.Box)
        obs, reward, terminated, truncated, _ = env.step(np.clip(action, box.low, box.high))
        total += float(reward)
        done = terminated or truncated
    return total


@pytest.mark.filterwarnings("ignore:.*out of date.*:DeprecationWarning")
def test_equal_to_a_plain_loop_for_policies_of_a_store(small_store: Path):
    trial = Store.open(small_store).trial(2)
    chosen = [0, 20, 40, 60, 80]
    policies = Policies(trial.weights()[chosen], trial.obs_mean[chosen], trial.obs_var[chosen])
    env = gymnasium.make("InvertedPendulum-v4")
    for backend in ("gymnasium", "envpool"):
        found = policy_returns(policies, "InvertedPendulum-v4", (8, 8), 4, seed=3, backend=backend, threads=2)
        for e, seed in enumerate(episode_seeds(3, 4)):
            for row in range(len(chosen)):
                obs, _ = env.reset(seed=int(seed))
                if backend == "envpool":  # another random stream, so its first state is given to Gymnasium's engine
                    obs = make_env("InvertedPendulum-v4", [int(seed)], "envpool").reset(np.arange(1))[0]
                    env.unwrapped.set_state(obs[:2], obs[2:])  # pyright: ignore[reportAttributeAccessIssue]
                mean, var = policies.obs_mean[row], policies.obs_var[row]
                expected = plain_return(env, obs, trial.spec, policies.weights[row], mean, var)
                assert found[row, e] == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*out of date.*:DeprecationWarning")
def test_rewards_that_are_not_counts_agree_too():
    spec = policy_spec(11, (16, 16), 1)
    rng = np.random.default_rng(0)
    weights = np.stack([initial_weights(11, (16, 16), 1, rng)[0] for _ in range(3)])
    mean, var = rng.normal(size=(3, 11)), rng.uniform(0.5, 2, (3, 11))
    found = policy_returns(
        Policies(weights, mean, var), "InvertedDoublePendulum-v4", (16, 16), 2, seed=1, backend="gymnasium"
    )
    env = gymnasium.make("InvertedDoublePendulum-v4")
    for e, seed in enumerate(episode_seeds(1, 2)):
        for m in range(3):
            obs, _ = env.reset(seed=int(seed))
            assert found[m, e] == pytest.approx(plain_return(env, obs, spec, weights[m], mean[m], var[m]), rel=1e-5)


def test_a_result_depends_on_nothing_beside_it(small_store: Path):
    trial = Store.open(small_store).trial(1)
    policies = Policies(trial.weights()[10:70:10], trial.obs_mean[10:70:10], trial.obs_var[10:70:10])
    for sampled in (False, True):
        together = policy_returns(policies, "InvertedPendulum-v4", (8, 8), 5, seed=7, sampled=sampled, threads=2)
        one = Policies(policies.weights[3:4], policies.obs_mean[3:4], policies.obs_var[3:4])
        alone = policy_returns(one, "InvertedPendulum-v4", (8, 8), 3, seed=7, sampled=sampled, threads=1)
        np.testing.assert_array_equal(together[3:4, :3], alone)
        other = policy_returns(policies, "InvertedPendulum-v4", (8, 8), 5, seed=8, sampled=sampled)
        assert (other != together).any()


def test_sampled_actions_scatter_as_their_log_std_says(small_store: Path):
    trial = Store.open(small_store).trial(1)
    quiet = trial.weights()[-1:].copy()
    quiet[:, -1] = -20  # a policy that hardly samples
    policies = Policies(quiet, trial.obs_mean[-1:], trial.obs_var[-1:])
    mean = policy_returns(policies, "InvertedPendulum-v4", (8, 8), 6, seed=2)
    sampled = policy_returns(policies, "InvertedPendulum-v4", (8, 8), 6, seed=2, sampled=True)
    np.testing.assert_allclose(sampled, mean, rtol=0.02)
    loud = quiet.copy()
    loud[:, -1] = 2
    noisy = policy_returns(
        Policies(loud, trial.obs_mean[-1:], trial.obs_var[-1:]), "InvertedPendulum-v4", (8, 8), 6, seed=2, sampled=True
    )
    assert noisy.mean() < 0.5 * mean.mean()


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0"])
def test_discrete_policies_equal_a_plain_loop(env_id: str, sampled: bool) -> None:
    """The likeliest action, and one drawn by Gumbel noise, on observations as they are."""
    rng, activation = np.random.default_rng(0), "relu" if sampled else "tanh"
    env = gymnasium.make(env_id)
    space, box = env.action_space, env.observation_space
    assert isinstance(space, gymnasium.spaces.Discrete) and box.shape is not None
    sizes = box.shape[0], (6, 5), int(space.n)
    weights = np.stack([initial_weights(*sizes, rng, discrete=True)[0] for _ in range(4)])
    weights[:, -sizes[2] * 6 :] *= 100  # heads that are not all but indifferent
    policies = Policies(weights, np.zeros((4, sizes[0])), np.full((4, sizes[0]), 1 - VAR_EPSILON))
    found = policy_returns(
        policies, env_id, (6, 5), 3, seed=1, sampled=sampled, activation=activation, backend="gymnasium", obs_clip=None
    )
    for m in range(4):
        network = plain_ppo.network(*sizes, activation)
        torch.nn.utils.vector_to_parameters(torch.tensor(weights[m]), network.parameters())
        for e, seed in enumerate(episode_seeds(1, 3)):
            noise = np.random.default_rng([int(seed), 1]).gumbel(size=(1024, sizes[2])).astype(np.float32)
            obs, _ = env.reset(seed=int(seed))
            total, step, done = 0.0, 0, False
            while not done:
                logits = network(torch.tensor(obs)).detach().numpy()
                action = np.argmax(logits + noise[step] * sampled)
                obs, reward, terminated, truncated, _ = env.step(action)
                total, step, done = total + float(reward), step + 1, terminated or truncated
            assert found[m, e] == total
    if env_id == "CartPole-v1":
        assert len(np.unique(found)) > 4


@pytest.mark.filterwarnings("ignore:.*out of date.*:DeprecationWarning")
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_activations_of_continuous_policies(activation: Activation) -> None:
    """The first step of Pendulum, whose reward says what the action was, in a plain network."""
    rng = np.random.default_rng(0)
    weights = initial_weights(3, (7, 5), 1, rng)[0]
    weights[-7:-1] *= 300
    policies = Policies(weights[None], np.zeros((1, 3)), np.ones((1, 3)))
    found = policy_returns(policies, "Pendulum-v1", (7, 5), 1, activation=activation, backend="gymnasium")[0, 0]
    network = plain_ppo.network(3, (7, 5), 1, activation)
    torch.nn.utils.vector_to_parameters(torch.tensor(weights[:-1]), network.parameters())
    env = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=int(episode_seeds(0, 1)[0]))
    total, done = 0.0, False
    while not done:
        action = network(torch.tensor(obs)).detach().numpy()
        obs, reward, terminated, truncated, _ = env.step(np.clip(action, -2, 2))
        total, done = total + float(reward), terminated or truncated
    assert found == pytest.approx(total, rel=1e-4)
    assert found != policy_returns(policies, "Pendulum-v1", (7, 5), 1, backend="gymnasium")[0, 0]


TOY = {"env_id": "toy/Toy-v0", "hidden_sizes": [3], "episodes": 2}
TOY_WEIGHTS = policy_spec(2, (3,), 1).size


def toy_policies(**arrays: object) -> Policies:
    normal = {
        "weights": np.zeros((1, TOY_WEIGHTS), np.float32),
        "obs_mean": np.zeros((1, 2)),
        "obs_var": np.ones((1, 2)),
    }
    return Policies(**(normal | arrays))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weights": np.zeros(TOY_WEIGHTS)}, r"weights of policies have the shape \(14,\); give one row a policy"),
        ({"weights": [["a"]]}, "weights of policies are no array of numbers"),
        ({"weights": np.full((1, TOY_WEIGHTS), np.nan)}, "weights of policy 0 are not finite"),
        ({"weights": np.full((1, TOY_WEIGHTS), 1e300)}, "weights of policy 0 are not finite"),  # in float32
        ({"obs_mean": np.zeros((2, 2))}, "There are 1 weights of policies, 2 means and 1 variances"),
        ({"obs_var": np.ones((1, 1))}, "Normalizers have 2 means and 1 variances"),
        ({"obs_var": -np.ones((1, 2))}, "a variance below 0"),
        ({"obs_mean": np.full((1, 2), np.inf)}, "obs_mean of policy 0 are not finite"),
    ],
)
def test_policies_that_are_none_are_refused(arrays: dict[str, object], message: str) -> None:
    with pytest.raises(TiplError, match=message):
        toy_policies(**arrays)


@pytest.mark.parametrize(
    ("arrays", "how", "message"),
    [
        ({"weights": np.zeros((1, TOY_WEIGHTS + 1))}, {}, r"have 15 weights, and toy/Toy-v0 takes 14 with .* \[3\]"),
        ({}, {"hidden_sizes": [4]}, "have 14 weights, and toy/Toy-v0 takes 18"),
        ({}, {"hidden_sizes": [0]}, "`hidden_sizes`.* is 0; give at least 1"),
        (
            {"obs_mean": np.zeros((1, 1)), "obs_var": np.ones((1, 1))},
            {},
            "normalizers have 1 means, and toy/Toy-v0 gives 2",
        ),
        ({}, {"episodes": 0}, "`episodes` is 0"),
        ({}, {"seed": -1}, "`seed` is -1"),
        ({}, {"threads": 0}, "`threads` is 0"),
        ({}, {"obs_clip": np.nan}, "`obs_clip` is nan"),
        ({}, {"activation": "gelu"}, "`activation` is '?gelu'?; give one of tanh, relu, elu"),
        ({}, {"env_id": "toy/Nothing-v0"}, "toy/Nothing-v0 gave an observation that is not finite"),
        ({}, {"env_id": "toy/Worthless-v0"}, "toy/Worthless-v0 gave rewards whose sum is not finite"),
    ],
)
def test_what_cannot_be_run_is_said_before_a_kernel_reads_it(arrays: dict, how: dict, message: str) -> None:
    with pytest.raises(TiplError, match=message):
        policy_returns(toy_policies(**arrays), **(TOY | how))


def test_an_episode_that_does_not_end_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returns, "MAX_EPISODE_STEPS", 500)
    with pytest.raises(TiplError, match=r"toy/Endless-v0 has not ended after 500 steps; give the environment a time"):
        policy_returns(toy_policies(), **(TOY | {"env_id": "toy/Endless-v0"}))  # pyright: ignore[reportArgumentType]
    limited = EnvId("toy/Endless-v0", {"kwargs": {"max_episode_steps": 500}})
    assert policy_returns(toy_policies(), **(TOY | {"env_id": limited})).shape == (1, 2)  # pyright: ignore[reportArgumentType]


def test_arrays_of_other_types_and_orders_are_the_same_policies() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((2, TOY_WEIGHTS)).astype(np.float32)
    plain = policy_returns(Policies(weights, np.zeros((2, 2)), np.ones((2, 2))), **TOY)
    other = Policies(
        np.asfortranarray(weights.astype(np.float64)), np.zeros((2, 2), np.int64), np.ones((2, 2), np.float32)
    )
    np.testing.assert_array_equal(policy_returns(other, **TOY), plain)
    assert len(np.unique(plain)) > 1


class EndsBadlyOrNever(gymnasium.Env):
    """The first of its kind raises in its fifth step; the others are slow and go on for ever."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    bad = episode_seeds(0, 2)[0]

    def reset(self, *, seed=None, options=None):
        self.is_bad, self.steps = seed == self.bad, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        time.sleep(0.001)
        if self.is_bad and self.steps == 5:
            raise ArithmeticError("in one thread")
        return np.zeros(2, np.float32), 1.0, False, False, {}


def test_an_error_in_one_thread_does_not_wait_for_the_episodes_of_the_others(monkeypatch: pytest.MonkeyPatch):
    """Nor does Ctrl-C: an episode of a hundred thousand such steps takes minutes."""
    monkeypatch.setitem(
        gymnasium.registry,
        "EndsBadly-v0",
        EnvSpec("EndsBadly-v0", EndsBadlyOrNever, disable_env_checker=True),  # pyright: ignore[reportArgumentType]
    )
    policies = Policies(np.zeros((1, (2 + 1) * 4 + (4 + 1) * 2), np.float32), np.zeros((1, 2)), np.ones((1, 2)))
    began = time.monotonic()
    with pytest.raises(TiplError, match=r"EndsBadly-v0 failed in its step \(ArithmeticError: in one thread\)"):
        policy_returns(policies, "EndsBadly-v0", (4,), 2, threads=2)
    assert time.monotonic() - began < 30
