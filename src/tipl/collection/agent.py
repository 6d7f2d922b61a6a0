"""Which parameters of somebody else's agent act, and its distribution over actions, held against what it computes.

In: a module or named parameters; the batch in hand.  Out: what may jump, what the guard looks at, or one line about why
the two are not the agent's own.

A network is found by names (CleanRL's), and names say nothing of what is computed: an agent may squash its mean, or
have a trunk below its actor. So before the first jump two things are checked on the batch. The distribution has to
depend on every parameter that may jump, and on no other of the agent. And the log-probabilities that it gives the
batch's actions have to be those that the batch comes with, under the weights that made it, and those that the agent's
own `get_action_and_value` gives.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal, kl_divergence

from tipl.collection.flat import check_parameters
from tipl.errors import TiplError

ACTS = ("actor_mean", "actor_logstd", "actor")
"""How the parts of CleanRL's agents that act are named."""
_JUDGES = ("critic", "value", "vf")  # how names of parts that do not act begin
_WRAPPERS = ("_orig_mod", "module")  # of torch.compile and DataParallel
_TOLERANCE = 2e-3  # nats between a policy and itself, which rounding, in half precision too, stays below
_RELATIVE = 1e-3  # of log-probabilities, which may be large
_LOOKED_AT = 64  # samples from which is told what a distribution depends on

PolicyDistribution = Callable[[Tensor], Distribution]


def unwrapped(policy: object) -> object:
    """The module itself of one that torch.compile or DataParallel has wrapped.

    Raises:
        TiplError: it is trained in several processes.
    """
    if isinstance(policy, nn.parallel.DistributedDataParallel):
        raise TiplError(
            "Processes that train one network together would each jump by their own batch and part; jumps take one "
            "process."
        )
    while isinstance(policy, nn.Module):
        inner = policy.module if isinstance(policy, nn.DataParallel) else getattr(policy, "_orig_mod", None)
        if inner is None:
            break
        policy = inner
    return policy


def acting_parameters(policy: Any) -> list[tuple[str, nn.Parameter]]:
    """The named parameters that act: of a module, or of pairs, those that CleanRL's names say, if there are any.

    Raises:
        TiplError: there are none, or some that cannot be moved.
    """
    try:
        named = list(policy.named_parameters() if isinstance(policy, nn.Module) else policy)
        named = [(_without_wrappers(name), parameter) for name, parameter in named]
    except (TypeError, ValueError, AttributeError) as error:
        raise TiplError("Give a torch module, or (name, parameter) pairs as `named_parameters()` has them.") from error
    if not named:
        raise TiplError("There are no parameters to accelerate; give a module that has some.")
    acts = [pair for pair in named if pair[0].split(".")[0] in ACTS] or named
    acts = list({id(parameter): (name, parameter) for name, parameter in acts}.values())  # tied ones once
    check_parameters(acts)
    return acts


def _without_wrappers(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        del parts[0]
    return ".".join(parts)


def cleanrl_distribution(policy: object) -> PolicyDistribution:
    """The distribution of CleanRL's agents: `ppo_continuous_action`'s or `ppo`'s.

    Raises:
        TiplError: the policy is none of them, or has parts whose place in it is not known.
    """
    mean, log_std, logits = (getattr(policy, name, None) for name in ACTS)
    is_normal = isinstance(mean, nn.Module) and isinstance(log_std, Tensor)
    if not is_normal and not isinstance(logits, nn.Module):
        raise TiplError(
            "The policy is none of CleanRL's agents; give `distribution`, observations to torch's Distribution."
        )
    assert isinstance(policy, nn.Module)
    parts = dict.fromkeys(name.split(".")[0] for name, _ in policy.named_parameters())
    others = [part for part in parts if part not in ACTS and not part.startswith(_JUDGES)]
    if others:
        raise TiplError(
            f"The agent has `{others[0]}` beside its actor and critic, and what it does to the policy is not known; "
            "give `distribution`, and as policy the (name, parameter) pairs of all that acts."
        )
    if is_normal:
        assert mean is not None and log_std is not None
        return lambda observations: Normal(mean(observations), log_std.exp().expand(len(observations), -1))
    assert logits is not None
    return lambda observations: Categorical(logits=logits(observations))


def by_sample(values: Tensor) -> Tensor:
    """[S] or [S, A], independent dimensions of an action, to [S]."""
    return values.reshape(len(values), -1).sum(dim=1)


def check_dependence(
    distribution: PolicyDistribution,
    observations: Tensor,
    moves: Sequence[tuple[str, nn.Parameter]],
    policy: nn.Module | None,
) -> None:
    """Refuse where what may jump is not what the distribution depends on.

    Nothing is told of a distribution that is made without gradients.
    """
    with torch.enable_grad():
        made = distribution(observations[:_LOOKED_AT])
        if not isinstance(made, Distribution):
            raise TiplError(f"`distribution` gives a {type(made).__name__}; give a torch.distributions.Distribution.")
        try:
            divergence = kl_divergence(made, made).sum()
        except NotImplementedError as error:
            raise TiplError(
                f"torch knows no KL divergence of a {type(made).__name__} from another; let `distribution` give that "
                "of the actions before they are transformed, and the Batch no log_probs."
            ) from error
    if not divergence.requires_grad:
        return
    own = {id(parameter): name for name, parameter in moves if parameter.requires_grad}
    named: Mapping[str, Tensor] = dict(policy.named_parameters()) if policy is not None else {}
    others = {id(p): name for name, p in named.items() if p.requires_grad and id(p) not in own}
    asked = [p for p in (*(p for _, p in moves), *named.values()) if p.requires_grad]
    asked = list({id(p): p for p in asked}.values())
    gradients = torch.autograd.grad(divergence, asked, allow_unused=True)
    used = {id(p) for p, gradient in zip(asked, gradients, strict=True) if gradient is not None}
    pairs = "give as policy the (name, parameter) pairs of what acts, all of it and nothing else"
    for at, name in own.items():
        if at not in used:
            raise TiplError(f"The distribution over actions does not depend on {name}, which would jump; {pairs}.")
    for at, name in others.items():
        if at in used:
            raise TiplError(f"The distribution over actions depends on {name} too, which would be left out; {pairs}.")


def check_log_probs(found_S: Tensor, expected_S: Tensor, whose: str) -> None:
    """Refuse where a distribution's log-probabilities are not those of the policy.

    Their mean of ratio − 1 − log ratio estimates the divergence of the two in nats.
    """
    log_ratio = (found_S - expected_S.reshape(-1)).double().clamp(-50, 50)
    apart = float((log_ratio.expm1() - log_ratio).mean())
    rounding = 1e-10 * float(expected_S.double().square().mean())  # of float32 log-probabilities that are large
    if not apart <= _TOLERANCE + rounding:
        raise TiplError(
            f"Log-probabilities of the batch's actions are not those of {whose}: {apart:.2g} nats lie between the "
            "policy and itself. Give the `distribution` that the actions are drawn from, observations as the policy "
            "sees them, and make the Accelerator when the weights are those that training begins with."
        )


def check_own_log_probs(
    policy: object, distribution: PolicyDistribution, observations: Tensor, actions: Tensor | None
) -> None:
    """Refuse where a distribution is not that of a CleanRL agent's `get_action_and_value`.

    Nothing is told of agents that have none, or one of another signature, nor by numbers that are not finite.
    """
    try:
        made = distribution(observations)
    except ValueError:  # torch's word for parameters that make no distribution
        return
    actions = made.sample() if actions is None else actions
    own_S, found_S = _own_log_probs(policy, observations, actions), by_sample(made.log_prob(actions))
    if own_S is None or not (torch.isfinite(own_S) & torch.isfinite(found_S)).all():
        return
    off = (found_S - own_S).abs().double().mean()
    if off > _RELATIVE * (1 + own_S.abs().double().mean()):
        raise TiplError(
            f"The policy's own get_action_and_value gives the same actions other log-probabilities, by {off:.2g} on "
            "average, than a network of its names: it does more than they say. Give the `distribution` that its "
            "actions are drawn from."
        )


def _own_log_probs(policy: object, observations: Tensor, actions: Tensor) -> Tensor | None:
    """[S]"""
    method = getattr(policy, "get_action_and_value", None)
    if not callable(method):
        return None
    try:
        found = method(observations, actions)
    except (TypeError, ValueError, RuntimeError):  # another signature
        return None
    if not isinstance(found, Iterable) or isinstance(found, Tensor):
        return None
    log_probs = list(found)[1:2]
    if not log_probs or not isinstance(log_probs[0], Tensor) or log_probs[0].numel() != len(observations):
        return None
    return log_probs[0].reshape(-1)
