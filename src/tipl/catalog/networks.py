"""Which tensors of a checkpoint act, and whether they are a policy that can be run.

In: names and shapes of tensors, what an SB3 zip says.  Out: a `Subject`, with the reason where it cannot be run.

Known are Stable-Baselines3's PPO and A2C with MlpPolicy and CleanRL's PPO agents; they are stored under CleanRL's
names, as recorded ones are. Of SB3's other algorithms the actor is stored, or DQN's Q-network, under its own names; of
all else every tensor.
"""

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tipl.config.presets import Activation
from tipl.errors import TiplError
from tipl.rl.policies import policy_spec
from tipl.store.spec import ParamSpec

_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.)+")  # of torch.compile and DataParallel
_CRITICS = ("critic", "value_net.", "mlp_extractor.value_net.", "vf_features_extractor.")
_SB3_ACTORS = ("actor.", "q_net.")  # of SAC, TD3 and DDPG; of DQN
_SB3_ACTIVATIONS: dict[str, Activation] = {
    f"<class 'torch.nn.modules.activation.{name}'>": name.lower()  # pyright: ignore[reportAssignmentType]
    for name in ("Tanh", "ReLU", "ELU")
}
_SB3_POLICIES = "stable_baselines3.common.policies"


@dataclass(frozen=True)
class Subject:
    """What of a checkpoint is stored."""

    names: tuple[str, ...]
    """Of the checkpoint's tensors, in the order of a snapshot."""
    spec: ParamSpec
    hidden_sizes: list[int] | None = None
    """Of a policy that can be run; None of all else."""
    activation: Activation | None = None
    obs_dim: int = 0
    why_not: str | None = None
    """Why it cannot be run."""


def subject_of(
    shapes: Mapping[str, tuple[int, ...]],
    facts: Mapping[str, Any],
    wanted: Sequence[str],
    activation: Activation | None,
) -> Subject:
    """Choose what is stored.

    Args:
        shapes: by name, of the checkpoint's tensors.
        facts: what an SB3 zip says.
        wanted: patterns of names to take; none: what acts.
        activation: of the hidden layers, where the user says it.

    Raises:
        TiplError: there is no tensor of such a name.
    """
    if wanted:
        for pattern in wanted:
            if not fnmatch.filter(shapes, pattern):
                some = ", ".join(list(shapes)[:8])
                raise TiplError(
                    f"There is no tensor {pattern!r} to take; there are: {some}{', …' * (len(shapes) > 8)}."
                )
        names = [name for name in shapes if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)]
        return _as_it_is(names, shapes, "some tensors were chosen")
    bare = {_WRAPPERS.sub("", name): name for name in shapes}
    if "action_net.weight" in bare:
        return _sb3(bare, shapes, facts, activation)
    if any(name.startswith(("actor_mean.", "actor.0.")) for name in bare):
        return _cleanrl(bare, shapes, activation)
    acting = [name for name in bare if name.startswith(_SB3_ACTORS)] if facts else []
    why_not = "its network is none that is known here"
    if not acting:
        return _as_it_is(list(shapes), shapes, why_not)
    spec = ParamSpec(tuple(name.partition(".")[2] for name in acting), tuple(shapes[bare[name]] for name in acting))
    return Subject(tuple(bare[name] for name in acting), spec, why_not=why_not)  # named as SB3Recorder names them


def _as_it_is(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], why_not: str) -> Subject:
    spec = ParamSpec(tuple(_WRAPPERS.sub("", name) for name in names), tuple(shapes[name] for name in names))
    return Subject(tuple(names), spec, why_not=why_not)


def _sb3(
    bare: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], facts: Mapping[str, Any],
    activation: Activation | None,
) -> Subject:  # fmt: skip
    acting = [name for name in bare if not name.startswith(_CRITICS)]
    layers = sorted(
        {int(found[1]) for name in acting if (found := re.match(r"mlp_extractor\.policy_net\.(\d+)\.weight$", name))}
    )
    stems = [f"mlp_extractor.policy_net.{number}" for number in layers] + ["action_net"]
    discrete = "log_std" not in bare
    said = activation or _said_activation(facts)
    why = _sb3_why_not(facts, discrete) if facts or not discrete else "it does not say that its actions are discrete"
    why = why or ("its activation is not known" if said is None else None)
    return _mlp(bare, shapes, acting, stems, None if discrete else "log_std", said, why)


def _said_activation(facts: Mapping[str, Any]) -> Activation | None:
    arguments = facts.get("policy_kwargs")
    said = arguments.get("activation_fn") if isinstance(arguments, dict) else None
    return "tanh" if said is None else _SB3_ACTIVATIONS.get(said if isinstance(said, str) else "")


def _sb3_why_not(facts: Mapping[str, Any], discrete: bool) -> str | None:
    """What an SB3 zip says of its spaces and its policy that keeps it from being run here."""
    if not facts:
        return None
    space, actions, policy = (_said(facts, name) for name in ("observation_space", "action_space", "policy_class"))
    if policy.get("__module__") != _SB3_POLICIES:
        return "its policy is a class of its own"
    if facts.get("use_sde"):
        return "it explores by gSDE"
    kind = str(actions.get(":type:")).rpartition(".")[2].rstrip("'>")
    if kind != ("Discrete" if discrete else "Box") or str(actions.get("start", "0")) != "0":
        return f"its actions are a {kind} space"
    if str(space.get(":type:")).rpartition(".")[2].rstrip("'>") not in ("Box", "Discrete", "MultiBinary"):
        return "its observations are of several parts"
    return None


def _said(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = facts.get(name)
    return found if isinstance(found, dict) else {}


def _cleanrl(bare: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], activation: Activation | None) -> Subject:
    network = "actor_mean" if any(name.startswith("actor_mean.") for name in bare) else "actor"
    acting = [name for name in bare if not name.startswith(_CRITICS)]
    layers = sorted({int(found[1]) for name in acting if (found := re.match(rf"{network}\.(\d+)\.weight$", name))})
    log_std = "actor_logstd" if network == "actor_mean" else None
    return _mlp(bare, shapes, acting, [f"{network}.{number}" for number in layers], log_std, activation or "tanh", None)


def _mlp(
    bare: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], acting: Sequence[str], stems: Sequence[str],
    log_std: str | None, activation: Activation | None, why_not: str | None,
) -> Subject:  # fmt: skip
    """A policy of linear layers, if they are one and are all that acts."""
    order = [f"{stem}.{part}" for stem in stems for part in ("weight", "bias")] + [log_std] * (log_std is not None)
    plain = _as_it_is([bare[name] for name in acting], shapes, why_not or "its network is none that is known here")
    if why_not or set(order) != set(acting):
        return plain
    found = [shapes[bare[name]] for name in order if name is not None]
    weights = found[0 : 2 * len(stems) : 2]
    if any(len(shape) != 2 for shape in weights):
        return plain
    obs_dim, *hidden = (shape[1] for shape in weights)
    spec = policy_spec(obs_dim, hidden, weights[-1][0], discrete=log_std is None)
    if [math.prod(shape) for shape in found] != list(spec.sizes) or found[: 2 * len(stems)] != [
        *spec.shapes[: 2 * len(stems)]
    ]:
        return plain
    return Subject(tuple(bare[name] for name in order if name is not None), spec, hidden, activation, obs_dim)
