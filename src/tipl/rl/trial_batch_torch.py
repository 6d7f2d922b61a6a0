"""A batch whose networks and updates are torch's, all trials in one product, on a GPU.

In: what `TrialBatch` takes, and a device.  Out: what `TrialBatch` gives, its bits apart.

`TrialBatch` keeps one trial in a core's cache; a GPU wants all of them at once. Only the networks, the draws'
arithmetic and the update are written anew here; all else is inherited. Between iterations weights and moments lie in
`TrialBatch`'s arrays, so a trial saved by one goes on in the other. Gradients are autograd's; norms, clipping and Adam
are taken trial by trial over flat vectors, as in the kernel.

Shapes: N trials, E copies of the environment in each, S steps, B samples of a minibatch, O observation, F outputs.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tipl.config.device import require_device
from tipl.config.presets import CollectConfig, Device
from tipl.rl.ppo import BETA1, BETA2
from tipl.rl.trial_batch import TrialBatch
from tipl.rl.vector_env import VectorEnv

_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "elu": functional.elu}
Network = list[tuple[Tensor, Tensor]]


class TorchTrialBatch(TrialBatch):
    """N trials on a torch device."""

    def __init__(
        self,
        config: CollectConfig,
        seeds: Sequence[int],
        env: VectorEnv | None = None,
        threads: int = 1,
        *,
        device: Device = "cuda",
    ) -> None:
        """
        Args:
            device: "cuda", or "cpu", which is slower than `TrialBatch` and there for tests.

        Raises:
            TiplError: as `TrialBatch`, or there is no such device.
        """
        require_device(device)
        super().__init__(config, seeds, env, threads)
        self.device = torch.device(device)
        self._trials = torch.arange(len(self.seeds), device=self.device)[:, None]

    @property
    def versions(self) -> dict[str, str]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return {**super().versions, "torch": torch.__version__, "device": f"{self.device.type} {name}".strip()}

    def _rollout(self, noise: np.ndarray) -> list[np.ndarray]:
        self._weights = self._to_device(self.theta)
        self._noise = self._by_trial(noise)
        policy, self._log_std, _ = self._networks(self._weights)
        self._policy = policy
        return super()._rollout(noise)

    @torch.no_grad()
    def _act(self, noise: np.ndarray, step: int, env_actions: np.ndarray) -> None:
        self.obs[:, step], self.dones[:, step] = self.next_obs, self.next_done
        head = self._forward(self._policy, self._by_trial(self.next_obs))
        drawn = self._noise[:, :, step]
        if self.env.discrete:
            action = (head + drawn).argmax(-1, keepdim=True).float()
        else:
            action = head + self._log_std.exp()[:, None] * drawn
        self.actions[:, step] = action.reshape(self.actions[:, step].shape).cpu().numpy()
        env_actions[:] = self.actions[:, step]

    def _update(self, orders: Sequence[np.ndarray], learning_rate: float, snapshots: np.ndarray) -> None:
        ppo, trials = self.config.ppo, len(self.seeds)
        theta, adam_m, adam_v = self._weights, self._to_device(self.adam_m), self._to_device(self.adam_v)
        policy, log_std, critic = self._networks(theta)
        tensors = [tensor for layer in policy + critic for tensor in layer]
        tensors[2 * len(policy) : 2 * len(policy)] = [] if self.env.discrete else [log_std]  # in the order of theta

        obs, actions = self._samples(self.obs), self._samples(self.actions)
        with torch.no_grad():
            old_log_probs, _ = self._log_probs(self._forward(policy, obs), log_std, actions)
            seen = np.concatenate([self.obs, self.next_obs[:, None]], axis=1)
            values_CS = self._forward(critic, self._by_trial(seen).flatten(1, 2)).reshape(seen.shape[:2]).cpu().numpy()
        self.log_probs[:] = old_log_probs.reshape(self.log_probs.shape).cpu().numpy()
        returns_CS = np.empty_like(self.advantages)
        for copy in range(len(seen)):
            self._estimate(copy, values_CS[copy], returns_CS[copy])
        advantages, returns, values = map(self._samples, (self.advantages, returns_CS, values_CS[:, :-1]))

        order = self._to_device(np.stack(orders))
        steps = (self.iteration - 1) * ppo.update_epochs * ppo.num_minibatches
        batch = ppo.batch_size // ppo.num_minibatches
        for epoch in range(ppo.update_epochs):
            self._check_abandoned()
            for start in range(0, ppo.batch_size, batch):
                picked = self._trials, order[:, epoch, start : start + batch]
                for tensor in tensors:
                    tensor.requires_grad_()
                loss = self._loss(
                    policy, log_std, critic, obs[picked], actions[picked], old_log_probs[picked], advantages[picked],
                    returns[picked], values[picked],
                )  # fmt: skip
                grads = torch.autograd.grad(loss, tensors)
                steps += 1
                with torch.no_grad():
                    grad = torch.cat([tensor.reshape(trials, -1) for tensor in grads], dim=1)
                    self._adam_step(theta, grad, adam_m, adam_v, steps, learning_rate)
            if (epoch + 1) % self.config.snapshot_every_epochs == 0:
                row = (epoch + 1) // self.config.snapshot_every_epochs - 1
                snapshots[:, row] = theta[:, : self.spec.size].cpu().numpy()
        for array, tensor in ((self.theta, theta), (self.adam_m, adam_m), (self.adam_v, adam_v)):
            array[:] = tensor.cpu().numpy()

    def _loss(
        self,
        policy: Network,
        log_std: Tensor,
        critic: Network,
        obs: Tensor,
        actions: Tensor,
        old_log_prob: Tensor,
        advantages: Tensor,
        returns: Tensor,
        old_value: Tensor,
    ) -> Tensor:
        """PPO's loss as `loss_gradients` has it, summed over trials: no trial's weights are in another's.

        Args:
            obs: [N, B, O]; actions: [N, B, A]; the others [N, B].
        """
        ppo = self.config.ppo
        log_prob, entropy = self._log_probs(self._forward(policy, obs), log_std, actions)
        value = self._forward(critic, obs)[:, :, 0]
        if ppo.norm_adv:
            advantages = (advantages - advantages.mean(1, True)) / (advantages.std(1, keepdim=True) + 1e-8)
        ratio = (log_prob - old_log_prob).exp()
        clipped = ratio.clamp(1 - ppo.clip_coef, 1 + ppo.clip_coef)
        policy_loss = torch.maximum(-advantages * ratio, -advantages * clipped)
        value_loss = (value - returns) ** 2
        if ppo.clip_vloss:
            held = old_value + (value - old_value).clamp(-ppo.clip_coef, ppo.clip_coef)
            value_loss = torch.maximum(value_loss, (held - returns) ** 2)
        return (policy_loss - ppo.ent_coef * entropy + ppo.vf_coef * 0.5 * value_loss).mean(1).sum()

    def _log_probs(self, head: Tensor, log_std: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of actions [N, B, A] under the network's outputs [N, B, F], and the entropy; both [N, B]."""
        if self.env.discrete:
            log_probs = head.log_softmax(-1)
            return log_probs.gather(-1, actions.long())[:, :, 0], -(log_probs.exp() * log_probs).sum(-1)
        log_std = log_std[:, None]
        half_log_2pi = 0.5 * math.log(2 * math.pi)
        z = (actions - head) * (-log_std).exp()
        entropy = (0.5 + half_log_2pi + log_std).sum(-1).expand(head.shape[:2])
        return -(0.5 * z * z + log_std + half_log_2pi).sum(-1), entropy

    def _adam_step(self, theta: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, learning_rate: float) -> None:
        """Clip each trial's gradient to its norm, then Adam; all [N, weights], moved in place."""
        ppo = self.config.ppo
        grad *= (ppo.max_grad_norm / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        m.lerp_(grad, 1 - BETA1)
        v.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        bound = v.sqrt().mul_(1 / math.sqrt(1 - BETA2**step)).add_(ppo.adam_eps)
        theta.addcdiv_(m, bound, value=-learning_rate / (1 - BETA1**step))

    def _networks(self, theta: Tensor) -> tuple[Network, Tensor, Network]:
        """Policy, log-std and critic as views of theta [N, weights]; the log-std [N, 0] of discrete actions."""
        policy, end = self._network(theta, 0, self.policy_sizes)
        critic, _ = self._network(theta, self.spec.size, self.critic_sizes)
        return policy, theta[:, end : self.spec.size].detach(), critic

    @staticmethod
    def _network(theta: Tensor, offset: int, sizes: np.ndarray) -> tuple[Network, int]:
        layers = []
        for fan_in, fan_out in zip(sizes[:-1].tolist(), sizes[1:].tolist(), strict=True):
            bias = offset + fan_out * fan_in
            weight = theta[:, offset:bias].unflatten(1, (fan_out, fan_in))
            offset = bias + fan_out
            layers.append((weight.detach(), theta[:, bias:offset].detach()))
        return layers, offset

    def _forward(self, network: Network, x: Tensor) -> Tensor:
        """Every trial's inputs [N, B, in] through its own network, [N, B, out]."""
        activation = _ACTIVATIONS[self.config.activation]
        for weight, bias in network[:-1]:
            x = activation(torch.baddbmm(bias[:, None], x, weight.mT))
        weight, bias = network[-1]
        return torch.baddbmm(bias[:, None], x, weight.mT)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array, device=self.device)  # a copy on the CPU too

    def _by_trial(self, array: np.ndarray) -> Tensor:
        """[C, ...] to [N, E, ...] on the device."""
        return self._to_device(array).unflatten(0, (len(self.seeds), -1))

    def _samples(self, array: np.ndarray) -> Tensor:
        """[C, S, ...] to [N, E·S, ...] on the device, the steps of one copy after another."""
        return self._by_trial(array).flatten(1, 2)
