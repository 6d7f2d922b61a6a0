"""What a batch says of weights: how far they are from those that made it, and whether its advantages are for them.

In: a trial's last rollout, weights.  Out: a `Judgment`. Shapes: S samples, O observation, A action, P weights.
"""

import functools
from collections.abc import Callable

import numpy as np

from tipl.acceleration.evidence import Judgment
from tipl.rl.context import Rollout, advantages_now
from tipl.rl.kernels import FASTMATH, forward_batch, kernel
from tipl.rl.policies import network_size
from tipl.rl.ppo import log_probs_of, mean_kl
from tipl.rl.trial_batch import TrialBatch


def outcome_judge(batch: TrialBatch, trial: int) -> Callable[[np.ndarray], Judgment]:
    """`batch_judge` by what came alone: by advantages with λ = 1, of which the critic of now is the baseline."""

    def judge(weights_P: np.ndarray) -> Judgment:  # not before somebody asks
        found = advantages_now(batch, trial, Rollout.of(batch, trial), gae_lambda=1.0)
        return batch_judge(batch, trial, found.reshape(-1))(weights_P)

    return judge


def batch_judge(
    batch: TrialBatch, trial: int, advantages: np.ndarray | None = None
) -> Callable[[np.ndarray], Judgment]:
    """What a trial's last rollout says of weights [P]; of more, of the first P.

    Args:
        advantages: [S]; default: those that the update saw.
    """
    mine, samples = batch.copies(trial), batch.config.ppo.batch_size
    obs = batch.obs[mine].reshape(samples, -1)
    actions = batch.actions[mine].reshape(samples, -1)
    old_log_prob = batch.log_probs[mine].reshape(-1)
    advantages = batch.advantages[mine].reshape(-1) if advantages is None else advantages
    advantages = advantages - advantages.mean()
    now, sizes = np.array(batch.policies[trial]), batch.policy_sizes
    log_stds = slice(network_size(sizes), None)  # the network's weights lie before them
    head = functools.cache(lambda: heads_of(now, sizes, obs, batch.activation))  # not if nobody asks

    def judge(weights_P: np.ndarray) -> Judgment:
        weights_P = weights_P[: len(now)]
        other = head() if np.array_equal(weights_P, now) else heads_of(weights_P, sizes, obs, batch.activation)
        return Judgment(*judge_batch(head(), now[log_stds], other, weights_P[log_stds], actions, old_log_prob,
                                     advantages))  # fmt: skip

    return judge


@kernel(fastmath=FASTMATH)
def heads_of(weights, sizes, obs, activation):
    """[S, outputs] of a policy's network, whose weights are the first of `weights` [P], at observations [S, O]."""
    samples = len(obs)
    heads = np.empty((samples, sizes[-1]), np.float32)
    block = 256  # rows at once, to stay in the cache
    acts = np.empty(block * sizes[1:].sum(), np.float32)
    for start in range(0, samples, block):
        stop = min(start + block, samples)
        found = forward_batch(weights, 0, sizes, obs[start:stop], acts, activation)
        for row in range(stop - start):  # to assign rows takes seconds to compile
            for k in range(heads.shape[1]):
                heads[start + row, k] = found[row, k]
    return heads


@kernel(fastmath=FASTMATH)
def judge_batch(head, log_std, other_head, other_log_std, actions, old_log_prob, advantages):
    """Mean KL(π_now ‖ π_other), mean of (π_other / π_old) × advantage, KL(π_old ‖ π_other) over a batch, and the
    standard error of the second.

    Args:
        head, other_head: [S, outputs] of the networks; log_std, other_log_std: [outputs], or [0]: categorical.
        actions: [S, A]; old_log_prob, advantages: [S].
    """
    log_ratios = log_probs_of(other_head, other_log_std, actions) - old_log_prob
    surrogate, change, square = 0.0, 0.0, 0.0
    for i in range(len(log_ratios)):
        ratio = np.exp(log_ratios[i])
        surrogate += ratio * advantages[i]
        square += ((ratio - 1) * advantages[i]) ** 2  # of the policy that made the batch the mean is 0 without error
        change += ratio - 1 - log_ratios[i]  # its mean is KL(π_old ‖ π_other), and no term is negative
    samples = len(log_ratios)
    kl, error = mean_kl(head, log_std, other_head, other_log_std), np.sqrt(square) / samples
    return kl, surrogate / samples, change / samples, error
