"""One trial of PPO as it is commonly written: a Gymnasium environment, torch modules, autograd, torch's Adam.

In: a stack of trials, whose first one lends its weights and normalizers.  Out: iterations of a plain loop beside it.

It is CleanRL's `ppo_continuous_action` without its logs. `collect.py` times it; `cleanrl_loop.py` looks at its returns.
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torch.distributions import Normal

from tipl.config.env_spec import quiet_making, quiet_mujoco
from tipl.rl.trial_batch import TrialBatch


class Agent(nn.Module):
    """The actor and the critic of CleanRL's `ppo_continuous_action`, with hidden layers of any width."""

    def __init__(self, obs_dim: int, hidden_sizes: Sequence[int], action_dim: int) -> None:
        super().__init__()
        self.critic = tanh_network([obs_dim, *hidden_sizes, 1])
        self.actor_mean = tanh_network([obs_dim, *hidden_sizes, action_dim])
        self.actor_logstd = nn.Parameter(torch.zeros(1, action_dim))

    def load(self, theta: np.ndarray) -> None:
        """Weights in a stack's order: mean network, log-std, critic."""
        ordered = [*self.actor_mean.parameters(), self.actor_logstd, *self.critic.parameters()]
        nn.utils.vector_to_parameters(torch.tensor(theta), ordered)

    def forward(
        self, obs: torch.Tensor, action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Action (drawn if not given), its log-probability, the entropy, the value."""
        mean = self.actor_mean(obs)
        law = Normal(mean, torch.exp(self.actor_logstd.expand_as(mean)))
        if action is None:
            action = law.sample()
        return action, law.log_prob(action).sum(1), law.entropy().sum(1), self.critic(obs)


def tanh_network(sizes: Sequence[int]) -> nn.Sequential:
    layers = [layer for fan_in, fan_out in pairwise(sizes) for layer in (nn.Linear(fan_in, fan_out), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def wrapped_env(env_id: str, gamma: float) -> gymnasium.Env:
    """One environment in CleanRL's wrappers, in its order."""
    with quiet_making(), quiet_mujoco():
        env = wrappers.FlattenObservation(gymnasium.make(env_id))
    env = wrappers.RecordEpisodeStatistics(env)
    env = wrappers.ClipAction(env)
    env = wrappers.NormalizeObservation(env)
    env = wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10), env.observation_space)
    env = wrappers.NormalizeReward(env, gamma=gamma)
    return wrappers.TransformReward(env, lambda reward: np.clip(float(reward), -10, 10))


class Reference:
    """One trial of PPO as it is commonly written: a Gymnasium environment, torch modules, autograd, torch's Adam."""

    def __init__(self, stack: TrialBatch) -> None:
        """Begins with the weights and the normalizers of the stack's first trial."""
        torch.set_num_threads(1)
        config, self.ppo = stack.config, stack.config.ppo
        self.iterations, self.iteration = config.num_iterations, stack.iteration
        env = wrapped_env(config.env_id, self.ppo.gamma)
        self._warm(env, stack)
        self.envs = SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.SAME_STEP)
        self.agent = Agent(stack.env.obs_dim, config.hidden_sizes, stack.env.action_dim)
        self.agent.load(stack.theta[0])
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=self.ppo.learning_rate, eps=self.ppo.adam_eps)
        steps = self.ppo.num_steps
        self.obs = torch.zeros((steps, 1, stack.env.obs_dim))
        self.actions = torch.zeros((steps, 1, stack.env.action_dim))
        self.log_probs, self.rewards, self.dones, self.values = (torch.zeros((steps, 1)) for _ in range(4))
        self.next_obs = torch.Tensor(self.envs.reset(seed=stack.seeds[0])[0])
        self.next_done = torch.zeros(1)

    def run(self, seconds: float) -> dict[str, Any]:
        """Whole iterations until `seconds` have gone."""
        began, iterations = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            self.iterate()
            iterations += 1
        return {"steps": iterations * self.ppo.num_steps, "seconds": time.perf_counter() - began}

    @staticmethod
    def _warm(env: gymnasium.Env, stack: TrialBatch) -> None:
        mean, var, count = stack.return_moments[0]
        while env is not env.unwrapped:
            if isinstance(env, wrappers.NormalizeObservation):
                moments = stack.obs_mean[0].copy(), stack.obs_var[0].copy(), float(stack.obs_count[0])
                env.obs_rms.mean, env.obs_rms.var, env.obs_rms.count = moments
            elif isinstance(env, wrappers.NormalizeReward):
                env.return_rms.mean, env.return_rms.var, env.return_rms.count = mean, var, count
            assert isinstance(env, gymnasium.Wrapper)
            env = env.env

    def iterate(self) -> None:
        ppo = self.ppo
        self.iteration += 1
        if ppo.anneal_lr:
            self.optimizer.param_groups[0]["lr"] = ppo.learning_rate * (1 - (self.iteration - 1) / self.iterations)
        for step in range(ppo.num_steps):
            self.obs[step], self.dones[step] = self.next_obs, self.next_done
            with torch.no_grad():
                action, log_prob, _, value = self.agent(self.next_obs)
            self.actions[step], self.log_probs[step], self.values[step] = action, log_prob, value.flatten()
            next_obs, reward, terminated, truncated, _ = self.envs.step(action.numpy())
            self.rewards[step] = torch.tensor(reward)
            self.next_obs, self.next_done = torch.Tensor(next_obs), torch.Tensor(terminated | truncated)
        advantages, returns = self._advantages()
        batch = (self.obs[:, 0], self.actions[:, 0], self.log_probs[:, 0], advantages[:, 0], returns[:, 0],
                 self.values[:, 0])  # fmt: skip
        order = np.arange(ppo.num_steps)
        size = ppo.num_steps // ppo.num_minibatches
        for _ in range(ppo.update_epochs):
            np.random.shuffle(order)  # noqa: NPY002 - as CleanRL does it
            for start in range(0, ppo.num_steps, size):
                picked = order[start : start + size]
                loss = self._loss(*(tensor[picked] for tensor in batch))
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), ppo.max_grad_norm)
                self.optimizer.step()

    @torch.no_grad()
    def _advantages(self) -> tuple[torch.Tensor, torch.Tensor]:
        ppo = self.ppo
        advantages = torch.zeros_like(self.rewards)
        last = torch.zeros(1)
        goes_on, value = 1 - self.next_done, self.agent.critic(self.next_obs).reshape(1)
        for step in reversed(range(ppo.num_steps)):
            delta = self.rewards[step] + ppo.gamma * value * goes_on - self.values[step]
            advantages[step] = last = delta + ppo.gamma * ppo.gae_lambda * goes_on * last
            goes_on, value = 1 - self.dones[step], self.values[step]
        return advantages, advantages + self.values

    def _loss(
        self,
        obs: torch.Tensor,
        actions: torch.Tensor,
        old_log_prob: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
        old_value: torch.Tensor,
    ) -> torch.Tensor:
        ppo = self.ppo
        _, log_prob, entropy, value = self.agent(obs, actions)
        ratio = (log_prob - old_log_prob).exp()
        if ppo.norm_adv:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped_ratio = torch.clamp(ratio, 1 - ppo.clip_coef, 1 + ppo.clip_coef)
        policy_loss = torch.max(-advantages * ratio, -advantages * clipped_ratio).mean()
        value = value.flatten()
        errors = (value - returns) ** 2
        if ppo.clip_vloss:
            clipped_value = old_value + torch.clamp(value - old_value, -ppo.clip_coef, ppo.clip_coef)
            errors = torch.max(errors, (clipped_value - returns) ** 2)
        return policy_loss - ppo.ent_coef * entropy.mean() + ppo.vf_coef * 0.5 * errors.mean()
