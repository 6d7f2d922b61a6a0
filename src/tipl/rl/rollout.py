"""The kernels of a rollout: draw actions, normalize observations and rewards, ask the critic.

In: all trials' weights, observations, rewards and moments.  Out: what the update reads, written in place.

Shapes: N trials, C copies of the environment in all (those of a trial side by side), S steps of an iteration, O
observation, A action (1 if discrete), F outputs of the policy's network, P weights.
"""

import math

import numpy as np

from tipl.rl.kernels import FASTMATH, TANH, forward_batch, forward_one, kernel, sampled_action
from tipl.rl.ppo import categorical_log_probs, gaussian_log_prob
from tipl.store.policy import OBS_CLIP, VAR_EPSILON

_REWARD_CLIP = 10.0  # in CleanRL's TransformReward


@kernel(fastmath=FASTMATH)
def act(theta, num_weights, sizes, next_obs, next_done, noise, step, obs, dones, actions, log_probs, env_actions,
        activation):  # fmt: skip
    """Draw every copy's action and store the step: a = μ(s) + σ ε, or a = argmax(z(s) + g) of logits z.

    Args:
        theta: [N, ≥ P]; num_weights: P; sizes: [layers + 1] of the policy's network.
        next_obs: [C, O]; next_done: [C]; noise: [C, S, F] from `action_noise`.
        obs [C, S, O], dones [C, S], actions [C, S, A], log_probs [C, S]: written at `step`.
        env_actions: [C, A] float64, overwritten.
        activation: as `activation_code` has it.
    """
    copies, action_dim = env_actions.shape
    num_envs = copies // len(theta)
    scratch = np.empty((2, sizes.max()), np.float32)
    head = np.empty(sizes[-1], np.float32)
    all_log_probs = np.empty(sizes[-1], np.float32)
    head_end = 0
    for layer in range(len(sizes) - 1):
        head_end += sizes[layer + 1] * (sizes[layer] + 1)
    for c in range(copies):
        n = c // num_envs
        forward_one(theta[n], 0, sizes, next_obs[c], scratch, head, activation)
        for k in range(next_obs.shape[1]):  # to assign rows takes longer to compile than the rest of the kernel
            obs[c, step, k] = next_obs[c, k]
        dones[c, step] = next_done[c]
        if head_end == num_weights:  # categorical
            chosen = sampled_action(head, noise[c, step])
            actions[c, step, 0] = chosen
            env_actions[c, 0] = chosen
            categorical_log_probs(head, all_log_probs)
            log_probs[c, step] = all_log_probs[chosen]
        else:
            log_std = theta[n, head_end:num_weights]
            for k in range(action_dim):
                action = head[k] + np.exp(log_std[k]) * noise[c, step, k]
                actions[c, step, k] = action
                env_actions[c, k] = action
            log_probs[c, step] = gaussian_log_prob(actions[c, step], head, log_std)


@kernel()
def normalize_obs(raw, ids, mean, var, count, out):
    """Take raw observations [n, O] of copies `ids` into their trials' running moments, then normalize and clip them.

    The moments mean, var [N, O] and count [N] are the trial's: its copies add to them one after another, as to
    Gymnasium's RunningMeanStd with batches of one; out is [C, O].
        δ = x − μ,  μ += δ/(c+1),  v = (v c + δ² c/(c+1))/(c+1),  c += 1,  out = clip((x − μ)/√(v + 1e-8), ±10)
    """
    num_envs = len(out) // len(count)
    for row in range(len(ids)):
        n = ids[row] // num_envs
        total = count[n] + 1
        for k in range(raw.shape[1]):
            delta = raw[row, k] - mean[n, k]
            mean[n, k] += delta / total
            var[n, k] = (var[n, k] * count[n] + delta * delta * count[n] / total) / total
            z = (raw[row, k] - mean[n, k]) / math.sqrt(var[n, k] + VAR_EPSILON)
            out[ids[row], k] = min(max(z, -OBS_CLIP), OBS_CLIP)
        count[n] = total


@kernel()
def normalize_reward(reward, terminated, gamma, discounted, moments, out):
    """Divide rewards [C] by their trials' running deviation of the discounted return [C], and clip. As Gymnasium 0.29:

    R = R γ (1 − terminated) + r, which forgets at the terminal step itself and does not at a truncation.
    """
    num_envs = len(reward) // len(moments)
    for c in range(len(reward)):
        n = c // num_envs
        discounted[c] = discounted[c] * gamma * (1 - terminated[c]) + reward[c]
        mean, var, count = moments[n]
        total = count + 1
        delta = discounted[c] - mean
        var = (var * count + delta * delta * count / total) / total
        moments[n, 0] = mean + delta / total
        moments[n, 1] = var
        moments[n, 2] = total
        out[c] = min(max(reward[c] / math.sqrt(var + VAR_EPSILON), -_REWARD_CLIP), _REWARD_CLIP)


@kernel()
def critic_values(theta, offset, sizes, obs, last_obs, activation=TANH):
    """The critic's value of obs [S, O] and of last_obs [O], [S + 1].

    CleanRL asks the critic at every step; its weights rest during a rollout, so one pass at the end is the same.
    """
    steps = len(obs)
    block = 256  # rows at once, to stay in the cache
    acts = np.empty(block * sizes[1:].sum(), np.float32)
    values = np.empty(steps + 1, np.float32)
    for start in range(0, steps, block):
        stop = min(start + block, steps)
        found = forward_batch(theta, offset, sizes, obs[start:stop], acts, activation)
        for row in range(stop - start):
            values[start + row] = found[row, 0]
    values[steps] = forward_batch(theta, offset, sizes, last_obs.reshape(1, -1), acts, activation)[0, 0]
    return values
