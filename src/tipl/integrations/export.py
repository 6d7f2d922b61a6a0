"""The verb `export`: a policy in the form in which others take it.

In: a snapshot of a store, a file that `tipl forecast` wrote, or a policy in hand.  Out: one file; its ending says what.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tipl.bundle import write_bundle
from tipl.checks import AnyPath, Place, Whole, checked_arguments
from tipl.config.env_spec import EnvId, env_id_of, import_named
from tipl.errors import TiplError
from tipl.files import require_no_store_above, write_file
from tipl.store import Store, Trial
from tipl.store.policy import Policy, read_policy

POLICY_FILE = ".safetensors"
ENDINGS = (".onnx", ".pt", POLICY_FILE, ".zip")


@checked_arguments
def export(
    source: Place | Policy,
    out: AnyPath,
    *,
    trial: Whole | None = None,
    snapshot: Whole | None = None,
    env_id: str | None = None,
    trust: bool = False,
) -> Path:
    """Write a policy as ONNX, for Stable-Baselines3, for torch or as tipl's own file.

    Args:
        source: a store, a file that `forecast` or this wrote, or a `Policy`.
        out: its ending says what is written. `.onnx` (extra `onnx`): a graph from raw observations [N, O], float32, to
            mean actions [N, F] or the most likely ones [N], with the normalizer in it. `.zip` (extra `sb3`): a PPO that
            `PPO.load` takes, and beside it OUT.vecnormalize.pkl for `VecNormalize.load`, where observations are
            normalized; its critic has not learned. `.pt`: the `state_dict` of `policy.to_torch()`. `.safetensors`: what
            `load_policy` takes. Of a network that is not known here the last two hold its tensors, as they are called.
        trial, snapshot: of a store, where it has several trials; its last snapshot by default.
        env_id: of a `Policy`, which does not know it.
        trust: import the modules that a store names for its environments, which runs their code.

    Returns:
        `out`.

    Raises:
        TiplError: there is no such policy, it is none that is known here, or that form cannot hold it.
    """
    out = Path(out)
    if out.suffix not in ENDINGS:
        raise TiplError(f"--out is {out}; give it one of the endings {', '.join(ENDINGS)}.")
    if out.is_dir():
        raise TiplError(f"{out} is a folder; give --out the name of a file.")
    require_no_store_above(out)
    if out.suffix in _TENSORS and env_id is None and not isinstance(source, Policy) and not _is_file(source):
        run, t = _snapshot(source, trial, snapshot)
        if run.config.get("hidden_sizes") is None:
            write_file(out, _TENSORS[out.suffix](run.spec.unflatten(run.weights(t, t + 1)[0])))
            return out
    policy, of, config = _policy(source, trial, snapshot, env_id)
    if trust and of is not None:
        import_named([of])
    if out.suffix == ".onnx":
        from tipl.integrations.onnx_graph import onnx_bytes

        write_file(out, onnx_bytes(policy, of))
    elif out.suffix == ".zip":
        from tipl.integrations.sb3_policy import write_ppo

        if of is None:
            raise TiplError("A policy for Stable-Baselines3 has spaces; give env_id, whose spaces they are.")
        write_ppo(policy, of, out)
    elif out.suffix == ".pt":
        write_file(out, _state_dict(policy.to_torch().state_dict()))
    else:
        _write_own(policy, of, config, out)
    return out


def _policy(
    source: Any, trial: int | None, snapshot: int | None, env_id: str | None
) -> tuple[Policy, EnvId | None, Mapping[str, Any]]:
    """The policy, its environment if it is known, and the settings of its trial."""
    if isinstance(source, Policy):
        sizes = [len(bias) for _, bias in source.layers[:-1]]
        config = {"hidden_sizes": sizes, "activation": source.activation, "obs_clip": source.obs_clip}
        return source, None if env_id is None else EnvId(env_id), config | {"backend": "auto"}
    if env_id is not None:
        raise TiplError("env_id is for a policy in hand, and this one knows its environment; leave it out.")
    if Path(source).suffix == POLICY_FILE:
        if trial is not None or snapshot is not None:
            raise TiplError(f"{source} holds one policy; leave --trial and --snapshot out.")
        policy, facts = read_policy(Path(source))
        return policy, env_id_of(facts["env_id"], facts["config"]), facts["config"]
    run, t = _snapshot(source, trial, snapshot)
    return run.policy(t), run.env_id, run.config


def _is_file(source: Place) -> bool:
    """Whether a source is a file of one policy, and not a store of many."""
    return Path(source).suffix == POLICY_FILE


def _snapshot(source: Place, trial: int | None, snapshot: int | None) -> tuple[Trial, int]:
    """The trial of a store that is meant, and the number of its snapshot.

    Raises:
        TiplError: there is none, or it is not said which.
    """
    data = Store.open(source)
    if trial is None and len(data.seeds) != 1:
        have = ", ".join(map(str, data.seeds[:20])) or "none yet"
        raise TiplError(f"{data.path} has several trials, or none; give --trial one of: {have}.")
    run = data.trial(data.seeds[0] if trial is None else trial)
    t = run.committed - 1 if snapshot is None else snapshot
    if t >= run.committed:
        raise TiplError(f"Trial {run.seed} has snapshots 0 to {run.committed - 1}; --snapshot {t} is none of them.")
    return run, t


def _state_dict(tensors: Mapping[str, Any]) -> bytes:
    import torch

    made = io.BytesIO()
    torch.save({name: torch.as_tensor(each) for name, each in tensors.items()}, made)
    return made.getvalue()


_TENSORS: dict[str, Any] = {".pt": _state_dict, POLICY_FILE: safetensors.numpy.save}
"""What holds any tensors, also those of a network that is not known here."""


def _write_own(policy: Policy, env_id: EnvId | None, config: Mapping[str, Any], out: Path) -> None:
    """Write what `load_policy` takes."""
    tensors = {name: np.ascontiguousarray(each) for name, each in policy.tensors.items()}
    spec = [{"name": name, "shape": list(each.shape)} for name, each in tensors.items()]
    facts = {"env_id": "unknown" if env_id is None else str(env_id), "config": dict(config), "param_spec": spec}
    write_bundle(out, tensors | {"obs_mean": policy.obs_mean, "obs_var": policy.obs_var}, facts, safetensors.numpy)
