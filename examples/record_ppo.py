"""PPO on one page, in CleanRL's manner; the lines marked `tipl` record the weights that its policy passes through.

In: a seed and a number of steps.  Out: a trial in a store, as `tipl collect` writes them.

    for seed in 1 2 3 4; do python examples/record_ppo.py --seed $seed; done
    tipl data info runs/recorded-ppo
    tipl evaluate runs/recorded-ppo --horizons 1 2 5 10 20 --return-horizons 1 10

A command that was killed is run again: it repeats what is recorded, which is checked, and goes on recording.
`--forecaster line` also lets forecasts into the run, between an update and the next rollout: the lines marked `jumps`.
So does `--forecaster outer:sigma=1.5+context`, which goes further with each update and looks at gradients too.
"""

import argparse
import functools
from dataclasses import dataclass, fields

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Normal

from tipl.acceleration.accelerator import Accelerator, Batch
from tipl.collection.record import WeightRecorder


@dataclass
class Args:
    env_id: str = "InvertedPendulum-v4"
    seed: int = 1
    store: str = "runs/recorded-ppo"
    total_steps: int = 40_960
    num_steps: int = 2048
    num_minibatches: int = 32
    update_epochs: int = 10
    learning_rate: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_coef: float = 0.2
    max_grad_norm: float = 0.5
    forecaster: str = ""


class Normalizer:
    """The running mean and variance of all observations so far, and observations normalized by them."""

    def __init__(self, size: int) -> None:
        self.mean, self.var, self.count = np.zeros(size), np.ones(size), 1e-4

    def __call__(self, obs: np.ndarray) -> torch.Tensor:
        new = self.count + 1
        delta = obs - self.mean
        self.mean = self.mean + delta / new
        self.var = (self.var + delta**2 / new) * self.count / new
        self.count = new
        return torch.tensor(np.clip((obs - self.mean) / np.sqrt(self.var + 1e-8), -10, 10), dtype=torch.float32)


class Agent(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.critic = network(obs_dim, 1, 1.0)
        self.actor_mean = network(obs_dim, action_dim, 0.01)
        self.actor_logstd = nn.Parameter(torch.zeros(action_dim))

    def policy(self, obs: torch.Tensor) -> Normal:
        return Normal(self.actor_mean(obs), self.actor_logstd.exp())


def network(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    layers = [nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)]
    for layer, size in zip(layers[::2], (np.sqrt(2), np.sqrt(2), gain), strict=True):
        nn.init.orthogonal_(layer.weight, size)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


@torch.no_grad()
def advantages_of(
    critic: nn.Module, args: Args, obs: torch.Tensor, rewards: list, dones: list, gae_lambda: float | None = None
) -> torch.Tensor:
    """Of a rollout; `obs` and `dones` go on by one step beyond it."""
    gae_lambda = args.gae_lambda if gae_lambda is None else gae_lambda
    values, advantages, last = critic(obs)[:, 0].tolist(), [], 0.0
    for t in reversed(range(len(rewards))):
        goes_on = 1 - dones[t + 1]
        delta = rewards[t] + args.gamma * values[t + 1] * goes_on - values[t]
        last = delta + args.gamma * gae_lambda * goes_on * last
        advantages.append(last)
    return torch.tensor(advantages[::-1])


def train(args: Args) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    env = gym.make(args.env_id)
    low, high = env.action_space.low, env.action_space.high
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    normalize = Normalizer(obs_dim)
    agent = Agent(obs_dim, action_dim)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    recorder = WeightRecorder(  # tipl: a snapshot every two epochs
        args.store, args.seed, agent, optimizer, every=2 * args.num_minibatches, env_id=args.env_id, config=vars(args),
        names=["actor_mean", "actor_logstd"], normalizer=lambda: (normalize.mean, normalize.var, normalize.count),
    )  # fmt: skip
    beside = {"critic": agent.critic, "optimizer": optimizer}  # jumps
    accelerator = Accelerator(agent, args.forecaster, **beside) if args.forecaster else None  # jumps
    episode_returns: list[float] = []

    obs_batch = torch.zeros(args.num_steps, obs_dim)
    action_batch = torch.zeros(args.num_steps, action_dim)
    logprob_batch, reward_batch, done_batch, value_batch = torch.zeros(4, args.num_steps)
    raw, _ = env.reset(seed=args.seed)
    obs, done = normalize(raw), False
    env_step, episode_return, length = 0, 0.0, 0
    iterations = args.total_steps // args.num_steps
    for iteration in range(1, iterations + 1):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - (iteration - 1) / iterations)
        for step in range(args.num_steps):
            obs_batch[step], done_batch[step] = obs, float(done)
            with torch.no_grad():
                policy = agent.policy(obs)
                action = policy.sample()
                logprob_batch[step], value_batch[step] = policy.log_prob(action).sum(), agent.critic(obs)
            action_batch[step] = action
            raw, reward, terminated, truncated, _ = env.step(np.clip(action.numpy(), low, high).reshape(-1))
            done, reward_batch[step] = terminated or truncated, float(reward)
            env_step, episode_return, length = env_step + 1, episode_return + float(reward), length + 1
            obs = normalize(raw)
            if done:
                recorder.episode(env_step, episode_return, length)  # tipl
                episode_returns.append(episode_return)
                episode_return, length = 0.0, 0
                obs = normalize(env.reset()[0])
        recorder.env_step, recorder.iteration = env_step, iteration  # tipl

        # copies: iterations later a forecaster may ask what the critic of then makes of this rollout
        rollout = torch.cat([obs_batch, obs[None]]), reward_batch.tolist(), [*done_batch.tolist(), float(done)]
        advantages = advantages_of(agent.critic, args, *rollout)
        returns = advantages + value_batch

        for _ in range(args.update_epochs):
            for picked in torch.randperm(args.num_steps).chunk(args.num_minibatches):
                policy = agent.policy(obs_batch[picked])
                ratio = (policy.log_prob(action_batch[picked]).sum(1) - logprob_batch[picked]).exp()
                advantage = advantages[picked]
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
                value_loss = 0.5 * ((agent.critic(obs_batch[picked])[:, 0] - returns[picked]) ** 2).mean()
                optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        if accelerator:  # jumps
            renewed = functools.partial(advantages_of, agent.critic, args, *rollout)
            outcomes = renewed(gae_lambda=1.0) if accelerator.weighs_outcomes else None
            batch = Batch(obs_batch, action_batch, logprob_batch, advantages, episode_returns, renewed, outcomes)
            accelerator.step(batch)
        episode_returns = []
    if accelerator:
        print(dict(accelerator.counts))
    recorder.close()  # tipl
    env.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Args):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    train(Args(**vars(parser.parse_args())))
