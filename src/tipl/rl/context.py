"""Context tokens: what a run's last rollouts say of where its weights go, as vectors in weight space.

In: a `TrialBatch` after an iteration, some of its last rollouts.  Out: a vector [P] for each span of them, and Adam's.

A rollout is looked at again with the weights of now: advantages are those of the critic of now, ratios those of the
policy of now, at most 3. Its token is the step that Adam would make in a whole iteration if the gradient of the
surrogate objective on this rollout were the gradient all the while: learning rate times optimizer's steps times
gradient over √v̂. Adam's own token has its moment m̂ in the gradient's place. No environment steps are taken, and nothing
knows of P or of the environment.

Shapes: E copies of the environment, S steps, O observation, A action, P weights, F outputs of the policy's network.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tipl.rl.kernels import FASTMATH, forward_batch, kernel
from tipl.rl.ppo import (
    BETA1,
    BETA2,
    UpdateSettings,
    advantages_and_returns,
    backward_batch,
    log_probs_of,
    loss_gradients,
)
from tipl.rl.rollout import critic_values
from tipl.rl.trial_batch import Abandoned, TrialBatch

SPANS = (0, 1), (1, 5), (5, 10), (10, 20)
"""Which of the last rollouts, the newest first, make one token together."""
TOKENS = len(SPANS) + 1
REMEMBERED = 512
"""Most steps of a rollout that are remembered, of all copies together."""
LARGEST = np.float32(np.log(3))  # logarithm of the largest ratio
_NEVER = 1e9  # a clip that does not bind
_SAVED = "remembered."  # what the names of a memory's arrays in a checkpoint begin with


class Rollout(NamedTuple):
    """Steps of one trial that follow each other, float32."""

    obs: np.ndarray
    """[E, S, O] normalized, as the policy saw them."""
    actions: np.ndarray
    """[E, S, A]"""
    log_probs: np.ndarray
    """[E, S], as the next two."""
    rewards: np.ndarray
    dones: np.ndarray
    last_obs: np.ndarray
    """[E, O] what came after the last step."""
    last_done: np.ndarray
    """[E]"""

    @classmethod
    def of(cls, batch: TrialBatch, trial: int, start: int = 0, stop: int | None = None) -> "Rollout":
        """The steps from `start` until `stop` of a trial's last rollout, copied."""
        mine, stop = batch.copies(trial), batch.config.ppo.num_steps if stop is None else stop
        arrays = batch.obs, batch.actions, batch.log_probs, batch.rewards, batch.dones
        ended = stop == batch.config.ppo.num_steps
        after = (
            (batch.next_obs[mine], batch.next_done[mine]) if ended else (batch.obs[mine, stop], batch.dones[mine, stop])
        )
        return cls._make(each.copy() for each in (*(array[mine, start:stop] for array in arrays), *after))


class Memory:
    """A part of each of a trial's last rollouts."""

    def __init__(self) -> None:
        self._rollouts: deque[Rollout] = deque(maxlen=SPANS[-1][1])  # the newest first

    def add(self, batch: TrialBatch, trial: int) -> None:
        """An iteration is done. Of long rollouts one part is kept, another one each time."""
        ppo = batch.config.ppo
        count = min(ppo.num_steps, max(1, REMEMBERED // ppo.num_envs))
        start = batch.iteration % (ppo.num_steps // count) * count
        self._rollouts.appendleft(Rollout.of(batch, trial, start, start + count))

    def copy(self) -> "Memory":
        """Return a memory of the same rollouts that goes its own way."""
        other = Memory()
        other._rollouts.extend(self._rollouts)
        return other

    def state(self) -> dict[str, np.ndarray]:
        """Return what is remembered as arrays for `restore`: of R rollouts, the newest first, each array [R, …]."""
        rollouts = list(self._rollouts)
        if not rollouts:
            return {}
        return {f"{_SAVED}{name}": np.stack([getattr(each, name) for each in rollouts]) for name in Rollout._fields}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Remember what `state` gave, among whatever else stands in a checkpoint; nothing where it gave nothing."""
        arrays = [state[_SAVED + name] for name in Rollout._fields if _SAVED + name in state]
        self._rollouts.clear()
        self._rollouts.extend(Rollout._make(each.copy() for each in rows) for rows in zip(*arrays, strict=True))

    def tokens(self, batch: TrialBatch, trial: int) -> np.ndarray:
        """Return a token a span, zeros where nothing is remembered, and Adam's: [TOKENS, P] float32."""
        ppo, size = batch.config.ppo, batch.spec.size
        steps_each = ppo.update_epochs * ppo.num_minibatches
        left = 1 - batch.iteration / batch.config.num_iterations if ppo.anneal_lr else 1.0
        done = batch.iteration * steps_each
        variance = batch.adam_v[trial, :size] / (1 - BETA2**done)
        step = -ppo.learning_rate * left * steps_each / (np.sqrt(variance) + ppo.adam_eps)
        gradients = [surrogate_gradient(batch, trial, rollout) for rollout in self._rollouts]
        found = np.zeros((TOKENS, size), np.float32)
        for token, (newest, oldest) in zip(found, SPANS, strict=False):
            if mine := gradients[newest:oldest]:
                token[:] = step * np.mean(mine, axis=0)
        found[-1] = step * batch.adam_m[trial, :size] / (1 - BETA1**done)
        return found


def looked_back(batch: TrialBatch, memories: Sequence[Memory]) -> tuple[list[Memory], list[np.ndarray]]:
    """Return memories that know of the iteration just done too, and their tokens [TOKENS, P]; one a trial, or none.

    Raises:
        Abandoned: the batch's `abandon` became true meanwhile; `memories` are as they were.
    """
    later, found = [memory.copy() for memory in memories], []
    for trial, memory in enumerate(later):
        if batch.abandon():
            raise Abandoned
        memory.add(batch, trial)
        found.append(memory.tokens(batch, trial))
    return later, found


def surrogate_gradient(
    batch: TrialBatch, trial: int, rollout: Rollout, advantages: np.ndarray | None = None
) -> np.ndarray:
    """Return the gradient [P] of −mean(A r) − c_e H on a rollout, at a trial's weights of now.

    Args:
        advantages: [E, S]; default: those of the critic of now.
    """
    ppo, theta, size = batch.config.ppo, batch.theta[trial], batch.spec.size
    found = advantages_now(batch, trial, rollout) if advantages is None else advantages
    if ppo.norm_adv:
        found = (found - found.mean()) / (found.std() + np.float32(1e-8))
    samples = found.size
    settings = UpdateSettings.of(ppo, activation=batch.activation)._replace(norm_adv=False, clip_coef=_NEVER)
    grad = np.zeros(size, np.float32)
    add_gradient(theta, batch.policy_sizes, rollout.obs.reshape(samples, -1), rollout.actions.reshape(samples, -1),
                 rollout.log_probs.reshape(-1), found.reshape(-1), settings, grad)  # fmt: skip
    return grad


def advantages_now(batch: TrialBatch, trial: int, rollout: Rollout, gae_lambda: float | None = None) -> np.ndarray:
    """Return a rollout's advantages [E, S] by a trial's critic of now; `gae_lambda` is PPO's unless given."""
    ppo, theta, size = batch.config.ppo, batch.theta[trial], batch.spec.size
    advantages, returns = np.empty_like(rollout.rewards), np.empty(rollout.rewards.shape[1], np.float32)
    for e in range(len(advantages)):
        values = critic_values(theta, size, batch.critic_sizes, rollout.obs[e], rollout.last_obs[e], batch.activation)
        advantages_and_returns(rollout.rewards[e], values[:-1], rollout.dones[e], values[-1], rollout.last_done[e],
                               ppo.gamma, ppo.gae_lambda if gae_lambda is None else gae_lambda, advantages[e],
                               returns)  # fmt: skip
    return advantages


@kernel(fastmath=FASTMATH)
def add_gradient(theta, sizes, obs, actions, old_log_prob, advantages, settings, grad):
    """Add to `grad` [P] the gradient of PPO's loss on samples [S, …] whose ratios are held below 3.

    Args:
        theta: its first P weights are the policy's; sizes: of its network.
        settings: `UpdateSettings`, with a clip that does not bind and advantages as they are.
    """
    count, outputs = len(obs), sizes[-1]
    block = min(count, 256)  # rows at once, to stay in the cache
    head_end = 0
    for layer in range(len(sizes) - 1):
        head_end += sizes[layer + 1] * (sizes[layer] + 1)
    log_std = theta[head_end : len(grad)]
    acts = np.empty(block * sizes[1:].sum(), np.float32)
    delta, part = np.empty_like(acts), np.empty_like(grad)
    old, unused = np.empty(block, np.float32), np.zeros(block, np.float32)  # the critic's part is for nothing
    d_head, d_value = np.empty((block, outputs), np.float32), np.empty(block, np.float32)
    for start in range(0, count, block):
        rows = min(block, count - start)
        x, taken = obs[start : start + rows], actions[start : start + rows]
        head = forward_batch(theta, 0, sizes, x, acts, settings.activation)
        old[:rows] = np.maximum(old_log_prob[start : start + rows], log_probs_of(head, log_std, taken) - LARGEST)
        loss_gradients(head, log_std, unused[:rows], taken, old[:rows], advantages[start : start + rows],
                       unused[:rows], unused[:rows], settings, d_head[:rows], d_value[:rows],
                       part[head_end:])  # fmt: skip
        backward_batch(theta, 0, sizes, x, acts, d_head[:rows], delta, part, settings.activation)
        share = np.float32(rows / count)
        for i in range(len(grad)):
            grad[i] += share * part[i]
