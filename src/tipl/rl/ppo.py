"""PPO in CleanRL's order, one trial's update as one compiled kernel.

In: a rollout of one trial.  Out: its weights and Adam moments moved in place, and its snapshots.

A batch of trials is a loop over this kernel: one trial's weights, gradients and moments stay in the cache for its
whole update, and no trial can feel another. The gradients are written out by hand; `tests/test_ppo.py` holds them
against autograd. Source: Schulman et al. 2017 (arXiv 1707.06347) as in CleanRL's `ppo_continuous_action` and `ppo`.

A policy without log standard deviations is categorical: its network gives logits, and an action is a number from 0 on.
Shapes: S samples, O observation, A action (1 if discrete), F outputs of the policy's network (A, or a logit an action).
"""

import math
from typing import NamedTuple

import numpy as np

from tipl.config.presets import PPOConfig
from tipl.rl.kernels import FASTMATH, RELU, TANH, forward_batch, kernel

BETA1, BETA2 = 0.9, 0.999  # Adam's decay rates, torch's defaults, which CleanRL keeps
_HALF_LOG_2PI = np.float32(0.5 * math.log(2 * math.pi))


class Learner(NamedTuple):
    """What an update moves: the weights of policy and critic, and Adam's moments of them."""

    theta: np.ndarray
    """[P + critic] float32: the policy's network, its log standard deviations if it has any, the critic's network."""
    adam_m: np.ndarray
    adam_v: np.ndarray
    policy_sizes: np.ndarray
    """[layers + 1]"""
    critic_sizes: np.ndarray


class Samples(NamedTuple):
    """What one iteration has seen, all float32."""

    obs: np.ndarray
    """[S, O] normalized"""
    actions: np.ndarray
    """[S, A]"""
    old_log_prob: np.ndarray
    """[S], as the rest."""
    advantages: np.ndarray
    returns: np.ndarray
    old_value: np.ndarray


class UpdateSettings(NamedTuple):
    """The settings of `update`, named as in `PPOConfig` and `CollectConfig`."""

    clip_coef: float
    max_grad_norm: float
    clip_vloss: bool
    norm_adv: bool
    ent_coef: float
    vf_coef: float
    adam_eps: float
    num_minibatches: int
    snapshot_every_epochs: int
    activation: int

    @classmethod
    def of(cls, ppo: PPOConfig, snapshot_every_epochs: int = 1, activation: int = TANH) -> "UpdateSettings":
        return cls._make([*(getattr(ppo, name) for name in cls._fields[:-2]), snapshot_every_epochs, activation])


@kernel()
def advantages_and_returns(rewards, values, dones, next_value, next_done, gamma, gae_lambda, advantages, returns):
    """Generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16), backwards in time.

        δ_t = r_t + γ V(s_{t+1}) (1 − done_{t+1}) − V(s_t)
        A_t = δ_t + γ λ (1 − done_{t+1}) A_{t+1},    R_t = A_t + V(s_t)

    All arrays [S]. `dones[t]` says whether step t began a new episode, as CleanRL stores it.
    """
    gamma, decay = np.float32(gamma), np.float32(gamma * gae_lambda)
    last = np.float32(0)
    for t in range(len(rewards) - 1, -1, -1):
        if t == len(rewards) - 1:
            nonterminal, following = np.float32(1) - next_done, next_value
        else:
            nonterminal, following = np.float32(1) - dones[t + 1], values[t + 1]
        delta = rewards[t] + gamma * following * nonterminal - values[t]
        last = delta + decay * nonterminal * last
        advantages[t] = last
        returns[t] = last + values[t]


@kernel(fastmath=FASTMATH)
def gaussian_log_prob(action, mean, log_std):
    """log N(action; mean, exp(log_std)²) summed over action dimensions; all [A]."""
    total = np.float32(0)
    for k in range(len(action)):
        z = (action[k] - mean[k]) * np.exp(-log_std[k])
        total -= np.float32(0.5) * z * z + log_std[k] + _HALF_LOG_2PI
    return total


@kernel(fastmath=FASTMATH)
def categorical_log_probs(logits, out):
    """log softmax(logits) [F], the log-probability of every discrete action, to `out`; the action's entropy."""
    highest = logits[0]
    for k in range(1, len(logits)):
        highest = max(highest, logits[k])
    total = np.float32(0)
    for k in range(len(logits)):
        total += np.exp(logits[k] - highest)
    log_total = highest + np.log(total)
    entropy = np.float32(0)
    for k in range(len(logits)):
        out[k] = logits[k] - log_total
        entropy -= np.exp(out[k]) * out[k]
    return entropy


@kernel(fastmath=FASTMATH)
def log_probs_of(head, log_std, actions):
    """[S] log-probabilities of actions [S, A] under networks' outputs [S, F]; log_std [F], or [0]: categorical."""
    found = np.empty(len(head), np.float32)
    log_probs = np.empty(head.shape[1], np.float32)
    for i in range(len(head)):
        if len(log_std) == 0:
            categorical_log_probs(head[i], log_probs)
            found[i] = log_probs[int(actions[i, 0])]
        else:
            found[i] = gaussian_log_prob(actions[i], head[i], log_std)
    return found


@kernel(fastmath=FASTMATH)
def mean_kl(head, log_std, other_head, other_log_std):
    """Mean KL(π ‖ π_other) in nats over networks' outputs [S, F]; log_std, other_log_std [F], or [0]: categorical."""
    samples, outputs = head.shape
    log_probs, other_log_probs = np.empty(outputs, np.float32), np.empty(outputs, np.float32)
    spread, narrow = np.exp(np.float32(2) * (log_std - other_log_std)), np.exp(-other_log_std)
    kl = 0.0
    for i in range(samples):
        if len(log_std) == 0:
            categorical_log_probs(head[i], log_probs)
            categorical_log_probs(other_head[i], other_log_probs)
            for k in range(outputs):
                kl += np.exp(log_probs[k]) * (log_probs[k] - other_log_probs[k])
        else:
            for k in range(outputs):
                moved = (other_head[i, k] - head[i, k]) * narrow[k]
                kl += 0.5 * (spread[k] + moved * moved - 1) + other_log_std[k] - log_std[k]
    return kl / samples


@kernel(fastmath=FASTMATH)
def backward_batch(theta, offset, sizes, x, acts, delta_out, delta, grad, activation=TANH):
    """Gradient of a network's weights, given the loss's gradient by its output.

    Args:
        theta, offset, sizes, x, acts, activation: as `forward_batch` had and left them.
        delta_out: [B, sizes[-1]].
        delta: scratch as long as `acts`.
        grad: the flat gradient, written at the network's place; nothing is accumulated.
    """
    batch = x.shape[0]
    layers = len(sizes) - 1
    end = offset
    start = 0
    for layer in range(layers):
        end += sizes[layer + 1] * (sizes[layer] + 1)
        start += batch * sizes[layer + 1]
    current = delta_out
    for layer in range(layers - 1, -1, -1):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        begin = end - fan_out * (fan_in + 1)
        start -= batch * fan_out
        below = start - batch * fan_in  # where this layer's input stands in acts
        source = x if layer == 0 else acts[below:start].reshape(batch, fan_in)
        np.dot(current.T, source, grad[begin : begin + fan_out * fan_in].reshape(fan_out, fan_in))
        bias = grad[begin + fan_out * fan_in : end]
        bias[:] = 0
        for b in range(batch):
            for j in range(fan_out):
                bias[j] += current[b, j]
        if layer > 0:
            weight = theta[begin : begin + fan_out * fan_in].reshape(fan_out, fan_in)
            lower = delta[below:start].reshape(batch, fan_in)
            np.dot(current, weight, lower)
            # The derivative of each activation, from its value y: 1 − y², 1 above 0, min(1, y + 1).
            if activation == TANH:
                for b in range(batch):
                    for i in range(fan_in):
                        lower[b, i] *= np.float32(1) - source[b, i] * source[b, i]
            elif activation == RELU:
                for b in range(batch):
                    for i in range(fan_in):
                        lower[b, i] = lower[b, i] if source[b, i] > 0 else np.float32(0)
            else:
                for b in range(batch):
                    for i in range(fan_in):
                        lower[b, i] *= np.float32(1) + min(source[b, i], np.float32(0))
            current = lower
        end = begin


@kernel(fastmath=FASTMATH)
def adam_step(theta, grad, m, v, step, learning_rate, eps, max_grad_norm):
    """Clip the gradient's norm (`torch.nn.utils.clip_grad_norm_`), then one step of Adam (arXiv 1412.6980).

    `step` counts from 1. All vectors [weights] float32; theta, m and v move in place.
    """
    square = np.float32(0)
    for i in range(len(grad)):
        square += grad[i] * grad[i]
    scale = np.float32(min(1.0, max_grad_norm / (math.sqrt(square) + 1e-6)))
    b1, b2 = np.float32(BETA1), np.float32(BETA2)
    c1, c2 = np.float32(1 - BETA1), np.float32(1 - BETA2)
    size = np.float32(learning_rate / (1 - BETA1**step))
    correction = np.float32(1 / math.sqrt(1 - BETA2**step))
    eps = np.float32(eps)
    for i in range(len(theta)):
        g = grad[i] * scale
        m[i] = b1 * m[i] + c1 * g
        v[i] = b2 * v[i] + c2 * g * g
        theta[i] -= size * m[i] / (np.sqrt(v[i]) * correction + eps)


@kernel(fastmath=FASTMATH)
def loss_gradients(head, log_std, value, actions, old_log_prob, advantages, returns, old_value, settings, d_head,
                   d_value, d_log_std, bounds=None):  # fmt: skip
    """Gradient of PPO's loss on one minibatch by the outputs of the two networks and the log-std.

        L = mean(max(−A r, −A clip(r, 1±ε))) − c_e H + c_v ½ mean(max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²))

    Args:
        head: [B, F] means or logits; actions: [B, A]; value, old_log_prob, advantages, returns, old_value: [B].
        log_std: [A] of a Gaussian policy, [0] of a categorical one.
        d_head [B, F], d_value [B], d_log_std as log_std: overwritten.
        bounds: [2, B], between which a sample's ratio is not clipped; None: 1 ± ε.
    """
    batch, outputs = head.shape
    discrete = len(log_std) == 0
    log_probs = np.empty(outputs, np.float32)
    entropy = np.float32(0)
    one = np.float32(1)
    clip, share, vf_coef = np.float32(settings.clip_coef), np.float32(1 / batch), np.float32(settings.vf_coef)
    center, scale = np.float32(0), one
    if settings.norm_adv:
        center = advantages.sum() * share
        square = np.float32(0)
        for b in range(batch):
            square += (advantages[b] - center) ** 2
        scale = one / (np.sqrt(square / np.float32(batch - 1)) + np.float32(1e-8))
    d_log_std[:] = -np.float32(settings.ent_coef)  # dH/dlog_std = 1 in every dimension
    entropy_share = np.float32(settings.ent_coef) * share
    precision = np.exp(np.float32(-2) * log_std)
    for b in range(batch):
        advantage = (advantages[b] - center) * scale
        if discrete:
            entropy = categorical_log_probs(head[b], log_probs)
            log_prob = log_probs[int(actions[b, 0])]
        else:
            log_prob = gaussian_log_prob(actions[b], head[b], log_std)
        ratio = np.exp(log_prob - old_log_prob[b])
        if bounds is None:  # decided when the kernel is compiled
            clipped = min(max(ratio, one - clip), one + clip)
        else:
            clipped = min(max(ratio, bounds[0, b]), bounds[1, b])
        # Inside the clip both branches of the max are one; outside, only the unclipped branch has a gradient.
        flows = clipped == ratio or -advantage * ratio > -advantage * clipped
        d_log_prob = -advantage * ratio * share if flows else np.float32(0)
        if discrete:  # dlog p_a/dz_k = 1[a = k] − p_k,  dH/dz_k = −p_k (log p_k + H)
            for k in range(outputs):
                probability = np.exp(log_probs[k])
                d_head[b, k] = probability * (entropy_share * (log_probs[k] + entropy) - d_log_prob)
            d_head[b, int(actions[b, 0])] += d_log_prob
        else:
            for k in range(outputs):
                error = actions[b, k] - head[b, k]
                d_head[b, k] = d_log_prob * error * precision[k]
                d_log_std[k] += d_log_prob * (error * error * precision[k] - one)
        error = value[b] - returns[b]
        moved = value[b] - old_value[b]
        flows = True
        if settings.clip_vloss and abs(moved) > clip:
            at_clip = old_value[b] + (clip if moved > 0 else -clip) - returns[b]
            flows = error * error > at_clip * at_clip
        d_value[b] = vf_coef * error * share if flows else np.float32(0)


@kernel(fastmath=FASTMATH)
def update(learner, adam_steps, samples, order, learning_rate, settings, snapshots, bounds=None):
    """All epochs of one trial's PPO update.

    Args:
        learner: moved in place.
        adam_steps: optimizer steps taken before.
        samples: of the rollout.
        order: [epochs, S] the sample order of every epoch.
        settings: `UpdateSettings`.
        snapshots: [n, P], overwritten with the policy's weights after every `snapshot_every_epochs`th epoch; of
            [n, P + critic], also with the critic's.
        bounds: [2, S], as in `loss_gradients`.
    """
    theta, adam_m, adam_v, policy_sizes, critic_sizes = learner
    activation = settings.activation
    epochs, count = order.shape
    batch = count // settings.num_minibatches
    head_end, num_weights = 0, len(theta)  # where the policy's network ends, and its log standard deviations
    for layer in range(len(policy_sizes) - 1):
        head_end += policy_sizes[layer + 1] * (policy_sizes[layer] + 1)
        num_weights -= critic_sizes[layer + 1] * (critic_sizes[layer] + 1)
    log_std = theta[head_end:num_weights]

    x = np.empty((batch, samples.obs.shape[1]), np.float32)
    a = np.empty((batch, samples.actions.shape[1]), np.float32)
    picked = np.empty((4, batch), np.float32)  # old log-prob, advantage, return, old value
    policy_acts = np.empty(batch * policy_sizes[1:].sum(), np.float32)
    critic_acts = np.empty(batch * critic_sizes[1:].sum(), np.float32)
    delta = np.empty(max(len(policy_acts), len(critic_acts)), np.float32)
    d_head = np.empty((batch, policy_sizes[-1]), np.float32)
    d_value = np.empty((batch, 1), np.float32)
    grad = np.empty_like(theta)
    d_log_std = grad[head_end:num_weights]

    for epoch in range(epochs):
        for start in range(0, count, batch):
            for b in range(batch):
                i = order[epoch, start + b]
                for k in range(x.shape[1]):
                    x[b, k] = samples.obs[i, k]
                for k in range(a.shape[1]):
                    a[b, k] = samples.actions[i, k]
                picked[0, b] = samples.old_log_prob[i]
                picked[1, b] = samples.advantages[i]
                picked[2, b] = samples.returns[i]
                picked[3, b] = samples.old_value[i]
            if bounds is None:
                picked_bounds = None
            else:
                picked_bounds = np.empty((2, batch), np.float32)
                for b in range(batch):
                    picked_bounds[0, b] = bounds[0, order[epoch, start + b]]
                    picked_bounds[1, b] = bounds[1, order[epoch, start + b]]
            head = forward_batch(theta, 0, policy_sizes, x, policy_acts, activation)
            value = forward_batch(theta, num_weights, critic_sizes, x, critic_acts, activation)
            loss_gradients(head, log_std, value[:, 0], a, picked[0], picked[1], picked[2], picked[3], settings,
                           d_head, d_value[:, 0], d_log_std, picked_bounds)  # fmt: skip
            backward_batch(theta, 0, policy_sizes, x, policy_acts, d_head, delta, grad, activation)
            backward_batch(theta, num_weights, critic_sizes, x, critic_acts, d_value, delta, grad, activation)
            adam_steps += 1
            adam_step(theta, grad, adam_m, adam_v, adam_steps, learning_rate, settings.adam_eps, settings.max_grad_norm)
        if (epoch + 1) % settings.snapshot_every_epochs == 0:
            for k in range(snapshots.shape[1]):
                snapshots[(epoch + 1) // settings.snapshot_every_epochs - 1, k] = theta[k]
