"""One trial of PPO, as plainly as it can be written: torch, autograd, one environment, one step after another.

In: settings and a seed.  Out: the numbers that the tests of policy, ppo and batch hold the package's kernels against.

The order of things is CleanRL's `ppo_continuous_action` on Gymnasium 0.29; random numbers are drawn as `TrialBatch`
says.
Nothing here is fast, incremental or in place: moments are taken anew over all that was seen, advantages are sums.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical, Normal

from tipl.config.presets import CollectConfig, PPOConfig
from tipl.rl.envs import make_env
from tipl.rl.policies import initial_weights

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


class Agent(nn.Module):
    """CleanRL's agents, their modules under the same names, with hidden layers of any number, width and activation.

    `ppo_continuous_action`'s, whose network gives means; or, if `discrete`, `ppo`'s, whose network gives logits.
    """

    def __init__(
        self,
        obs_dim: int,
        hidden_sizes: tuple[int, ...],
        outputs: int,
        theta: np.ndarray,
        *,
        discrete: bool = False,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.discrete = discrete
        self.critic = network(obs_dim, hidden_sizes, 1, activation)
        if discrete:
            self.actor = network(obs_dim, hidden_sizes, outputs, activation)
        else:
            self.actor_mean = network(obs_dim, hidden_sizes, outputs, activation)
            self.actor_logstd = nn.Parameter(torch.zeros(1, outputs))
        nn.utils.vector_to_parameters(torch.tensor(theta), self.ordered())

    def ordered(self) -> list[nn.Parameter]:
        return [*self.policy(), *self.critic.parameters()]

    def policy(self) -> list[nn.Parameter]:
        return [*self.actor.parameters()] if self.discrete else [*self.actor_mean.parameters(), self.actor_logstd]

    def theta(self) -> np.ndarray:
        """Mean network, log-std, critic, as the rows of `TrialBatch.theta`."""
        return nn.utils.parameters_to_vector(self.ordered()).detach().numpy().copy()

    def snapshot(self) -> np.ndarray:
        return nn.utils.parameters_to_vector(self.policy()).detach().numpy().copy()

    def action_law(self, obs: torch.Tensor) -> Normal:
        mean = self.actor_mean(obs)
        return Normal(mean, torch.exp(self.actor_logstd.expand_as(mean)), validate_args=False)

    def log_prob_and_entropy(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of actions [B, A] in obs [B, O]; both [B]."""
        if self.discrete:
            law = Categorical(logits=self.actor(obs), validate_args=False)
            return law.log_prob(actions[:, 0]), law.entropy()
        law = self.action_law(obs)
        return law.log_prob(actions).sum(1), law.entropy().sum(1)


def network(obs_dim: int, hidden_sizes: tuple[int, ...], out_dim: int, activation: str = "tanh") -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden_sizes:
        layers += [nn.Linear(obs_dim, width), ACTIVATIONS[activation]()]
        obs_dim = width
    return nn.Sequential(*layers, nn.Linear(obs_dim, out_dim))


@dataclass
class Update:
    """What an update went through."""

    snapshots: list[np.ndarray] = field(default_factory=list)
    """[P] after every epoch."""
    gradient_norms: list[float] = field(default_factory=list)
    ratio_clipped: list[float] = field(default_factory=list)
    """Share of each minibatch whose ratio lay outside the clip."""
    value_clipped: list[float] = field(default_factory=list)


def make_optimizer(agent: Agent, ppo: PPOConfig) -> torch.optim.Adam:
    return torch.optim.Adam(agent.parameters(), lr=ppo.learning_rate, eps=ppo.adam_eps, foreach=False)


def update(
    agent: Agent,
    optimizer: torch.optim.Adam,
    learning_rate: float,
    rollout: dict[str, np.ndarray],
    order: np.ndarray,
    ppo: PPOConfig,
) -> Update:
    """All epochs of one update.

    Args:
        rollout: obs [S, O], actions [S, A], log_probs, advantages, returns, values [S].
        order: [epochs, S].
    """
    optimizer.param_groups[0]["lr"] = learning_rate
    data = {name: torch.tensor(array) for name, array in rollout.items()}
    log = Update()
    for samples in order:
        for picked in np.split(samples, ppo.num_minibatches):
            batch = {name: tensor[picked] for name, tensor in data.items()}
            log_prob, entropy = agent.log_prob_and_entropy(batch["obs"], batch["actions"])
            ratio = torch.exp(log_prob - batch["log_probs"])
            advantages = batch["advantages"]
            if ppo.norm_adv:
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            clipped_ratio = torch.clamp(ratio, 1 - ppo.clip_coef, 1 + ppo.clip_coef)
            policy_loss = torch.max(-advantages * ratio, -advantages * clipped_ratio).mean()

            value = agent.critic(batch["obs"])[:, 0]
            moved = value - batch["values"]
            errors = (value - batch["returns"]) ** 2
            if ppo.clip_vloss:
                clipped_value = batch["values"] + torch.clamp(moved, -ppo.clip_coef, ppo.clip_coef)
                errors = torch.max(errors, (clipped_value - batch["returns"]) ** 2)
            value_loss = 0.5 * errors.mean()

            optimizer.zero_grad()
            (policy_loss - ppo.ent_coef * entropy.mean() + ppo.vf_coef * value_loss).backward()
            norm = nn.utils.clip_grad_norm_(agent.parameters(), ppo.max_grad_norm)
            optimizer.step()
            log.gradient_norms.append(float(norm))
            log.ratio_clipped.append(float((ratio != clipped_ratio).float().mean()))
            log.value_clipped.append(float((moved.abs() > ppo.clip_coef).float().mean()))
        log.snapshots.append(agent.snapshot())
    return log


def advantages_by_definition(
    rewards: np.ndarray, values: np.ndarray, dones: np.ndarray, gamma: float, gae_lambda: float
) -> np.ndarray:
    """A_t = Σ_l (γλ)^l δ_{t+l} over the rest of the rollout or of the episode, in float64, [S].

    Args:
        rewards: [S]; values, dones: [S + 1], where dones[t] says that step t begins a new episode.
    """
    rewards, values = rewards.astype(np.float64), values.astype(np.float64)
    delta = rewards + gamma * values[1:] * (1 - dones[1:]) - values[:-1]
    advantages = np.empty(len(rewards))
    for t in range(len(rewards)):
        ends = np.flatnonzero(dones[t + 1 :])
        length = ends[0] + 1 if len(ends) else len(rewards) - t
        advantages[t] = sum((gamma * gae_lambda) ** l * delta[t + l] for l in range(length))  # noqa: E741
    return advantages


class Moments:
    """Mean and variance of all numbers seen so far and of one before them, of mean 0, variance 1 and weight 1e-4."""

    def __init__(self, shape: tuple[int, ...], capacity: int) -> None:
        self._seen = np.empty((capacity, *shape))
        self.count = 0

    def add(self, x: np.ndarray | float) -> None:
        self._seen[self.count] = x
        self.count += 1

    @property
    def mean(self) -> np.ndarray:
        return self._seen[: self.count].sum(0) / (self.count + 1e-4)

    @property
    def var(self) -> np.ndarray:
        squares = ((self._seen[: self.count] - self.mean) ** 2).sum(0) + 1e-4 * (1 + self.mean**2)
        return squares / (self.count + 1e-4)


@dataclass
class Trial:
    """A trial after some iterations: what the last one left, and all episodes and snapshots."""

    theta: np.ndarray
    obs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    obs_moments: Moments
    snapshots: list[np.ndarray]
    episodes: list[tuple[int, float, int]]


def run_trial(config: CollectConfig, seed: int, iterations: int) -> Trial:
    """A whole run on Gymnasium's environment, wrappers and all, with at least 1 iteration."""
    ppo = config.ppo
    env = make_env(config.env_id, [seed], "gymnasium")
    only = np.array([0])
    theta = np.concatenate(
        initial_weights(env.obs_dim, config.hidden_sizes, env.action_dim, np.random.default_rng([seed, 0]))
    )
    agent = Agent(env.obs_dim, config.hidden_sizes, env.action_dim, theta, activation=config.activation)
    optimizer = make_optimizer(agent, ppo)
    capacity = 2 * iterations * ppo.num_steps + 1
    obs_moments, return_moments = Moments((env.obs_dim,), capacity), Moments((), capacity)
    discounted = 0.0

    def normalized(raw: np.ndarray) -> np.ndarray:
        obs_moments.add(raw)
        return np.clip((raw - obs_moments.mean) / np.sqrt(obs_moments.var + 1e-8), -10, 10).astype(np.float32)

    next_obs, next_done = normalized(env.reset(only)[0]), 0.0
    env_step, episode_return, episode_length = 0, 0.0, 0
    episodes: list[tuple[int, float, int]] = []
    snapshots: list[np.ndarray] = []
    for iteration in range(1, iterations + 1):
        rng = np.random.default_rng([seed, 1, iteration])
        noise = rng.standard_normal((ppo.num_steps, env.action_dim), np.float32)
        obs, actions, log_probs, rewards, dones, values = [], [], [], [], [], []
        for epsilon in noise:
            obs.append(next_obs)
            dones.append(next_done)
            with torch.no_grad():
                law = agent.action_law(torch.tensor(next_obs)[None])
                action = law.mean + law.stddev * torch.tensor(epsilon)
                log_probs.append(float(law.log_prob(action).sum()))
                values.append(float(agent.critic(torch.tensor(next_obs))))
            actions.append(action[0].numpy())
            bounded = np.clip(action.numpy(), env.action_low, env.action_high)
            raw_obs, raw_reward, terminated, truncated = (row[0] for row in env.step(bounded))
            env_step, episode_return, episode_length = env_step + 1, episode_return + raw_reward, episode_length + 1
            next_obs = normalized(raw_obs)
            discounted = raw_reward + (0.0 if terminated else ppo.gamma * discounted)
            return_moments.add(discounted)
            rewards.append(np.clip(raw_reward / np.sqrt(return_moments.var + 1e-8), -10, 10))
            next_done = float(terminated or truncated)
            if next_done:
                episodes.append((env_step, episode_return, episode_length))
                episode_return, episode_length = 0.0, 0
                next_obs = normalized(env.reset(only)[0])
        with torch.no_grad():
            values.append(float(agent.critic(torch.tensor(next_obs))))
        values = np.array(values)
        advantages = advantages_by_definition(
            np.array(rewards), values, np.array([*dones, next_done]), ppo.gamma, ppo.gae_lambda
        )
        rollout = {
            "obs": np.array(obs),
            "actions": np.array(actions),
            "log_probs": np.array(log_probs, np.float32),
            "advantages": advantages.astype(np.float32),
            "returns": (advantages + values[:-1]).astype(np.float32),
            "values": values[:-1].astype(np.float32),
        }
        order = rng.permuted(np.tile(np.arange(ppo.num_steps), (ppo.update_epochs, 1)), axis=1)
        fraction = 1 - (iteration - 1) / config.num_iterations if ppo.anneal_lr else 1.0
        log = update(agent, optimizer, ppo.learning_rate * fraction, rollout, order, ppo)
        snapshots += log.snapshots[config.snapshot_every_epochs - 1 :: config.snapshot_every_epochs]
    return Trial(
        theta=agent.theta(),
        obs=rollout["obs"],
        actions=rollout["actions"],
        rewards=np.array(rewards),
        dones=np.array(dones),
        obs_moments=obs_moments,
        snapshots=snapshots,
        episodes=episodes,
    )
