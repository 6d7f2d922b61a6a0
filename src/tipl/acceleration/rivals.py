"""Rivals of jumps: PPO that updates in another way, trial by trial, on the same draws.

In: a `TrialBatch`'s settings, a rival's.  Out: a `TrialBatch` whose updates are the rival's.

Each changes the update and nothing else. What the papers have beyond that is named where it is left out.
Shapes: as in `trial_batch`; W weights of policy and critic together, M batches of S samples, T points of the path.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tipl.acceleration.judging import heads_of
from tipl.config.presets import CollectConfig
from tipl.config.rivals import Adaptive, Outer, Reuse, Rival, TrimAndBoost
from tipl.rl.kernels import FASTMATH, forward_batch, kernel
from tipl.rl.policies import network_size
from tipl.rl.ppo import Samples, UpdateSettings, log_probs_of, mean_kl, update
from tipl.rl.rollout import critic_values
from tipl.rl.trial_batch import TrialBatch

_ORDERS = 3  # random stream of a trial, beside those of `trial_batch`
LEAST_RATE, MOST_RATE = 1e-5, 1e-2  # rsl_rl's


def batch_of(config: CollectConfig, seeds: Sequence[int], rival: Rival | None) -> TrialBatch:
    """Return the trials of these seeds, which learn as the rival does."""
    match rival:
        case None:
            return TrialBatch(config, seeds)
        case Outer():
            return OuterBatch(rival, config, seeds)
        case Adaptive():
            return AdaptiveBatch(rival, config, seeds)
        case Reuse():
            return ReuseBatch(rival, config, seeds)
        case TrimAndBoost():
            return TrimmedBatch(rival, config, seeds)


class OuterBatch(TrialBatch):
    """Outer-PPO: after each update a step of `Outer.beyond`. Adam's moments stay those of the inner updates."""

    def __init__(self, rival: Outer, *args: Any) -> None:
        super().__init__(*args)
        self.rival, self._velocity = rival, np.zeros_like(self.theta)
        self._moves = slice(network_size(self.policy_sizes) if rival.actor else None)

    def _update_trial(self, trial: int, order: np.ndarray, learning_rate: float, snapshots: np.ndarray) -> None:
        before_W = self.theta[trial].copy()
        super()._update_trial(trial, order, learning_rate, snapshots)
        beyond_W = self.rival.beyond(self.theta[trial] - before_W, self._velocity[trial])
        self.theta[trial, self._moves] += beyond_W[self._moves]
        snapshots[-1] = self.theta[trial, : snapshots.shape[1]]


class AdaptiveBatch(TrialBatch):
    """PPO whose learning rate is adapted before every minibatch, from `PPOConfig.learning_rate` on; it is not annealed.

    rsl_rl leaves the rate alone where the KL divergence is 0, as in the first minibatch of an update; but its own
    formula never gives 0 there, so the rate rises. Here too.
    """

    def __init__(self, rival: Adaptive, *args: Any) -> None:
        super().__init__(*args)
        self._target, self.rates = rival.target, np.full(len(self.seeds), self.config.ppo.learning_rate)

    def _learn(
        self, trial: int, samples: Samples, order: np.ndarray, learning_rate: float, snapshots: np.ndarray,
        *bounds: np.ndarray,
    ) -> None:  # fmt: skip
        settings = UpdateSettings.of(self.config.ppo, self.config.snapshot_every_epochs, self.activation)
        one = settings._replace(num_minibatches=1, snapshot_every_epochs=1)
        self.rates[trial] = adaptive_update(
            self._learner(trial), self._steps_before, samples, order, self.rates[trial], self._target, settings, one,
            snapshots,
        )  # fmt: skip


@kernel(fastmath=FASTMATH)
def adaptive_update(learner, adam_steps, samples, order, learning_rate, target, settings, one, snapshots):
    """`update`, but with a learning rate that follows the mean KL(π_batch ‖ π) of each minibatch; the rate at the end.

    Args:
        one: `settings` of one minibatch and one epoch.
    """
    theta, sizes, activation = learner.theta, learner.policy_sizes, settings.activation
    epochs, count = order.shape
    batch = count // settings.num_minibatches
    end = 0
    for layer in range(len(sizes) - 1):
        end += sizes[layer + 1] * (sizes[layer] + 1)
    num_weights = len(theta)
    for layer in range(len(sizes) - 1):
        num_weights -= learner.critic_sizes[layer + 1] * (learner.critic_sizes[layer] + 1)
    log_std = theta[end:num_weights]
    old_log_std, scratch = log_std.copy(), np.empty((1, snapshots.shape[1]), np.float32)
    x, acts = np.empty((batch, samples.obs.shape[1]), np.float32), np.empty(batch * sizes[1:].sum(), np.float32)
    old_head = heads_of(theta, sizes, samples.obs, activation)
    before = np.empty((batch, old_head.shape[1]), np.float32)
    for epoch in range(epochs):
        for start in range(0, count, batch):
            for b in range(batch):
                i = order[epoch, start + b]
                for k in range(x.shape[1]):
                    x[b, k] = samples.obs[i, k]
                for k in range(before.shape[1]):
                    before[b, k] = old_head[i, k]
            kl = mean_kl(before, old_log_std, forward_batch(theta, 0, sizes, x, acts, activation), log_std)
            if kl > 2 * target:
                learning_rate = max(learning_rate / 1.5, LEAST_RATE)
            elif kl < target / 2:
                learning_rate = min(learning_rate * 1.5, MOST_RATE)
            update(learner, adam_steps, samples, order[epoch : epoch + 1, start : start + batch], learning_rate, one,
                   scratch)  # fmt: skip
            adam_steps += 1
        if (epoch + 1) % settings.snapshot_every_epochs == 0:
            for k in range(snapshots.shape[1]):
                snapshots[(epoch + 1) // settings.snapshot_every_epochs - 1, k] = theta[k]
    return learning_rate


class _Past(NamedTuple):
    """An earlier rollout of a trial, [E, S, …] and, of what its copies saw next, [E, …]."""

    obs: np.ndarray
    actions: np.ndarray
    log_probs: np.ndarray
    """Under the policy that acted."""
    rewards: np.ndarray
    dones: np.ndarray
    next_obs: np.ndarray
    next_done: np.ndarray


class ReuseBatch(TrialBatch):
    """Generalized PPO: M batches, the newest and those before it, in as many minibatches as plain PPO makes of one, so
    that there are as many optimizer steps.

    The ratio is to the policy b that acted, and is clipped around where it stands when the update begins,
    π_k/π_b ± 2ε/(M + 1): with M batches alike in weight this bounds the change of policy as ε does in PPO (their
    section 5). Advantages and targets are by V-trace with the critic of now (`vtrace`).

    Left out: weights between the batches, smaller batches, a learning rate that follows the total variation, and
    advantages that are normalized with the ratios as weights.
    """

    def __init__(self, rival: Reuse, *args: Any) -> None:
        super().__init__(*args)
        self._kept = [deque[_Past](maxlen=rival.batches - 1) for _ in self.seeds]

    def _update_trial(self, trial: int, order: np.ndarray, learning_rate: float, snapshots: np.ndarray) -> None:
        mine, kept = self.copies(trial), self._kept[trial]
        names = "obs", "actions", "log_probs", "rewards", "dones", "next_obs", "next_done"
        now = _Past(*(getattr(self, name)[mine].copy() for name in names))
        if not kept:
            super()._update_trial(trial, order, learning_rate, snapshots)
        else:
            fresh, again = self._seen(trial), [self._seen_again(trial, past) for past in kept]
            samples = Samples(*map(np.concatenate, zip(fresh, *(each for each, _ in again), strict=True)))
            center = np.concatenate([np.ones_like(fresh.returns), *(ratios for _, ratios in again)])
            radius = np.float32(2 * self.config.ppo.clip_coef / (len(kept) + 2))
            rng = np.random.default_rng([self.seeds[trial], _ORDERS, self.iteration])
            every = rng.permuted(np.tile(np.arange(len(center)), (len(order), 1)), axis=1)
            bounds = np.stack([center - radius, center + radius])
            self._learn(trial, samples, every, learning_rate, snapshots, bounds)
        kept.append(now)

    def _seen_again(self, trial: int, past: _Past) -> tuple[Samples, np.ndarray]:
        """An earlier rollout judged by the critic and policy of now, and its ratios π_k/π_b [E·S]."""
        ppo, theta = self.config.ppo, self.theta[trial]
        samples = len(past.obs) * ppo.num_steps
        actions, obs = past.actions.reshape(samples, -1), past.obs.reshape(samples, -1)
        head = heads_of(theta, self.policy_sizes, obs, self.activation)
        log_std = theta[network_size(self.policy_sizes) : self.spec.size]
        now = log_probs_of(head, log_std, actions)
        ratios = np.exp(now.reshape(past.log_probs.shape) - past.log_probs)
        advantages, returns, values = (np.empty_like(ratios) for _ in range(3))
        for e in range(len(ratios)):
            seen = critic_values(theta, self.spec.size, self.critic_sizes, past.obs[e], past.next_obs[e],
                                 self.activation)  # fmt: skip
            values[e] = seen[:-1]
            vtrace(past.rewards[e], seen, past.dones[e], past.next_done[e], ratios[e], ppo.gamma, ppo.gae_lambda,
                   advantages[e], returns[e])  # fmt: skip
        flat = (each.reshape(-1) for each in (past.log_probs, advantages, returns, values))
        return Samples(obs, actions, *flat), ratios.reshape(-1)


@kernel()
def vtrace(rewards, values, dones, next_done, ratios, gamma, gae_lambda, advantages, returns):
    """Advantages and targets [S] under a policy whose ratios to the one that acted are given, with r̄ = min(1, r):

        A_t = δ_t + γ λ (1 − done_{t+1}) r̄_{t+1} A_{t+1},    R_t = V(s_t) + r̄_t A_t

    as generalized PPO has it, after V-trace (Espeholt et al. 2018, arXiv 1802.01561). With ratios of 1 it is
    `advantages_and_returns`. `values` is [S + 1].
    """
    last, one = np.float32(0), np.float32(1)
    for t in range(len(rewards) - 1, -1, -1):
        done, trace = (next_done, one) if t == len(rewards) - 1 else (dones[t + 1], min(one, ratios[t + 1]))
        delta = rewards[t] + np.float32(gamma) * values[t + 1] * (one - done) - values[t]
        last = delta + np.float32(gamma * gae_lambda) * (one - done) * trace * last
        advantages[t] = last
        returns[t] = values[t] + min(one, ratios[t]) * last


class TrimmedBatch(TrialBatch):
    """After PPTB's description; its formulas and code are not public.

    Every so many iterations the policy's displacement over them, d, is replaced by (1 + boost) V Vᵀ d, where V has the
    major right singular vectors of the path so far [T, P], not centered: what lies in minor directions is canceled. The
    critic is left alone.
    """

    def __init__(self, rival: TrimAndBoost, *args: Any) -> None:
        super().__init__(*args)
        self._rival = rival
        self._path = [deque([weights.copy()], rival.window + 1) for weights in self.policies]

    def _update_trial(self, trial: int, order: np.ndarray, learning_rate: float, snapshots: np.ndarray) -> None:
        super()._update_trial(trial, order, learning_rate, snapshots)
        rival, path, policy_P = self._rival, self._path[trial], self.policies[trial]
        path.append(policy_P.copy())
        if self.iteration % rival.every == 0:
            major_DP = np.linalg.svd(np.stack(path), full_matrices=False)[2][: rival.major]
            then_P = path[-1 - rival.every]
            moved_P = major_DP.T @ (major_DP @ (policy_P - then_P))
            policy_P[:] = path[-1][:] = then_P + np.float32(1 + rival.boost) * moved_P
        snapshots[-1] = self.theta[trial, : snapshots.shape[1]]
