"""A store made of checkpoints that somebody saved: `tipl data import`.

In: for each trial a folder of checkpoints, and the environment's id.  Out: a new store, which appears whole.

Every checkpoint is looked at before anything is written, and read tensor by tensor: memory holds a few snapshots,
however many there are. What can be run goes through all of `evaluate`; the rest is judged by its weights.

Shapes: P weights.
"""

import contextlib
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tipl
from tipl.catalog.card import put_card, say_missing
from tipl.catalog.checkpoints import Checkpoint, opened
from tipl.catalog.copies import new_stores
from tipl.catalog.networks import Subject, subject_of
from tipl.catalog.sequence import Checkpoints, sequence_of
from tipl.checks import AnyPath, Whole, checked_arguments
from tipl.config.env_spec import EnvId
from tipl.config.presets import Activation
from tipl.errors import TiplError
from tipl.progress import console, steps_progress
from tipl.rl.envs import engine_versions
from tipl.rl.returns import why_not_run
from tipl.store import Store, TrialWriter, create_store, plan_trials
from tipl.store.policy import OBS_CLIP, VAR_EPSILON

_STATISTICS = ("obs_mean", "obs_var", "obs_count", "clip_obs", "epsilon")
_MOST_BYTES = (1 << 31) - 64  # of a snapshot: what blosc packs at once
_NO_SETTINGS = ("num_timesteps", "seed", "start_time", "tensorboard_log", "verbose")
_SAVE = (
    "np.savez('vecnormalize_STEP.npz', obs_mean=env.obs_rms.mean, obs_var=env.obs_rms.var, "
    "obs_count=env.obs_rms.count, clip_obs=env.clip_obs, epsilon=env.epsilon)"
)


class _Normalizer(NamedTuple):
    mean: np.ndarray
    var: np.ndarray
    count: float
    clip: float


@checked_arguments
def data_import(
    sources: Sequence[AnyPath],
    out: AnyPath,
    *,
    env_id: str,
    seed: Whole = 1,
    files: str | None = None,
    tensors: Sequence[str] = (),
    algorithm: str | None = None,
    activation: Activation | None = None,
    weights_only: bool = False,
) -> Path:
    """Make a store of checkpoints: safetensors, npz, torch state dicts, models of Stable-Baselines3 and CleanRL.

    A checkpoint's step is the number in which its name differs from the others'; of Stable-Baselines3's models it is
    the environment steps that they say. A normalizer is `obs_mean`, `obs_var` and, as far as they are known,
    `obs_count`, `clip_obs` and `epsilon`: in the checkpoint, or in an .npz or .safetensors file of the same step with
    "normalize" in its name.

    Args:
        sources: for each trial a folder of files, or of folders with one checkpoint each.
        out: the new store.
        env_id: what the policies act in, as Gymnasium calls it; a name of your own where that is no environment.
        seed: of the first trial; the others count up from it.
        files: take only names like this one, such as `policy_*.pt`.
        tensors: take only tensors like these, such as `model.layers.0.*`; they are judged by weights.
        algorithm: that trained them [what Stable-Baselines3's models say].
        activation: of the hidden layers [what Stable-Baselines3's models say; tanh].
        weights_only: store policies to be judged by their weights alone.

    Returns:
        `out`.

    Raises:
        TiplError: names do not say an order, a checkpoint holds other tensors than the one before, cannot be read as
            data or comes no later, or `out` exists. Nothing is left of what was begun.
    """
    if not sources:
        raise TiplError("There is nothing to import; give a folder of checkpoints.")
    found = [sequence_of(Path(source), files) for source in sources]
    how = {"tensors": tensors, "activation": activation, "weights_only": weights_only}
    runs = [_Run.of(each, **how) for each in found]
    config = [run.config(algorithm) for run in runs]
    with new_stores(Path(out)) as partial:
        create_store(partial)
        env = EnvId.of(env_id)
        for number, run in enumerate(runs):
            seeds = range(seed, seed + len(runs))
            plan_trials(partial, seeds, env_id=env, config=config[number], spec=run.subject.spec)
        with steps_progress("import", sum(len(each.steps) for each in found)) as advance:
            for number, run in enumerate(runs):
                for step in run.written(partial, seed + number, env, config[number]):
                    advance(1, f"step {step:,}")
        _say(runs[0], Store.open(partial), seed)
        where = " ".join(Path(source).resolve().name for source in sources)
        missing = put_card(partial, name=Path(out).resolve().name, made_by=f"tipl data import {where}")
    say_missing(Path(out), missing)
    return Path(out)


class _Run:
    """The checkpoints of one run, looked at and found alike."""

    def __init__(
        self, found: Checkpoints, subject: Subject, facts: Mapping[str, Any], env_steps: Sequence[int],
        normalizer: _Normalizer | None,
    ) -> None:  # fmt: skip
        self.found, self.subject, self.facts, self.env_steps = found, subject, facts, env_steps
        self.normalizer = normalizer
        """Of the first checkpoint: whether there is one is the same for all."""

    @classmethod
    def of(
        cls, found: Checkpoints, *, tensors: Sequence[str], activation: Activation | None, weights_only: bool
    ) -> "_Run":
        subject, shapes, facts, first = None, {}, {}, found.places[0]
        env_steps: list[int] = []
        normalizers: list[_Normalizer | None] = []
        for step, place in zip(found.steps, found.places, strict=True):
            with opened(place) as checkpoint, _beside(found, step) as beside:
                own = {name: shape for name, shape in checkpoint.shapes.items() if name not in _STATISTICS}
                if subject is None:
                    subject = subject_of(own, checkpoint.facts, tensors, activation)
                    shapes, facts = own, checkpoint.facts
                _require_alike(subject.names, shapes, own, first, place)
                env_steps.append(_env_step(checkpoint.facts, step, env_steps, place))
                normalizers.append(_normalizer(checkpoint, beside, place))
        assert subject is not None
        kinds = [each and (len(each.mean), each.clip) for each in normalizers]
        if len(set(kinds)) > 1:
            odd = None if None in kinds else next(kind for kind in kinds if kind != kinds[0])
            step = found.steps[kinds.index(odd)]
            raise TiplError(
                f"Step {step} has no normalizer like the others' of {first.parent}; give each step its own."
            )
        if found.pickles and normalizers[0] is None and not weights_only and not tensors:
            raise TiplError(
                f"{found.pickles[0]} is a pickle, which can run code and is not opened. Save the normalizer as numbers "
                f"where you made it, a file a step, `{_SAVE}`, or leave it out by --weights-only."
            )
        if subject.spec.size * 4 > _MOST_BYTES:
            raise TiplError(
                f"A snapshot of {first} has {subject.spec.size:,} weights, and a store takes at most "
                f"{_MOST_BYTES // 4:,}; choose some tensors by --tensors."
            )
        normalizer = normalizers[0]
        if weights_only:
            subject = replace(subject, hidden_sizes=None, activation=None, why_not="--weights-only was given")
        if subject.hidden_sizes is not None and normalizer and len(normalizer.mean) != subject.obs_dim:
            raise TiplError(
                f"The normalizer of {first} has {len(normalizer.mean)} means and the network {subject.obs_dim} inputs; "
                "give the normalizer of its inputs."
            )
        return cls(found, subject, facts, env_steps, normalizer)

    @property
    def obs_dim(self) -> int:
        return self.subject.obs_dim if self.normalizer is None else len(self.normalizer.mean)

    def config(self, algorithm: str | None) -> dict[str, Any]:
        """What made the trial, as its record has it."""
        said = {
            name: value for name, value in self.facts.items()
            if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name not in _NO_SETTINGS
            and not (isinstance(value, float) and not math.isfinite(value))
        }  # fmt: skip
        known = algorithm or _algorithm(self.facts)
        return {
            "every": None,
            "hidden_sizes": self.subject.hidden_sizes,
            "activation": self.subject.activation,
            "backend": "gymnasium",
            "obs_clip": self.normalizer.clip if self.normalizer and math.isfinite(self.normalizer.clip) else None,
            "run": ({"algorithm": known} if known else {}) | said,
        }

    def written(self, store: Path, seed: int, env_id: EnvId, config: dict[str, Any]) -> Iterator[int]:
        """Write the trial; yields the step of each snapshot."""
        subject, rate = self.subject, self.facts.get("learning_rate")
        versions = {"tipl": tipl.__version__, "python": platform.python_version(), "numpy": np.__version__}
        writer = TrialWriter.create(
            store, seed, env_id=env_id, config=config, spec=subject.spec, obs_dim=self.obs_dim,
            versions=versions | engine_versions("gymnasium"), num_snapshots=len(self.found.steps),
        )  # fmt: skip
        weights_1P = np.empty((1, subject.spec.size), np.float32)
        with writer:
            for step, place, env_step in zip(self.found.steps, self.found.places, self.env_steps, strict=True):
                with opened(place) as checkpoint, _beside(self.found, step) as beside:
                    parts = zip(subject.names, subject.spec.offsets, subject.spec.sizes, strict=True)
                    for name, start, size in parts:
                        weights_1P[0, start : start + size] = checkpoint.read(name).reshape(-1)
                    now = _normalizer(checkpoint, beside, place)
                mean, var, count = (np.zeros(self.obs_dim), np.ones(self.obs_dim), 0.0) if now is None else now[:3]
                if not np.isfinite(weights_1P).all():
                    console.print(f"import: {place} holds weights that are not finite.")
                writer.append(
                    weights_1P, np.array([env_step]), np.array([0]), np.array([-1]),
                    np.array([float(rate) if isinstance(rate, int | float) else math.nan]),
                    mean[None], var[None], np.array([count]),
                )  # fmt: skip
                yield step
            writer.commit({}, complete=True)


def _beside(found: Checkpoints, step: int) -> contextlib.AbstractContextManager[Checkpoint | None]:
    """The file with the normalizer of a step, open; None where there is none."""
    return opened(found.normalizers[step]) if step in found.normalizers else contextlib.nullcontext()


def _normalizer(checkpoint: Checkpoint, beside: Checkpoint | None, place: Path) -> _Normalizer | None:
    """
    Raises:
        TiplError: its parts do not fit together.
    """
    source = next((each for each in (beside, checkpoint) if each and {"obs_mean", "obs_var"} <= {*each.shapes}), None)
    if source is None:
        if beside is not None:
            raise TiplError(f"The normalizer beside {place} has no obs_mean and obs_var; save it with `{_SAVE}`.")
        return None
    mean, var = (source.read(name).astype(np.float64).reshape(-1) for name in ("obs_mean", "obs_var"))
    count, clip, epsilon = (
        float(source.read(name).reshape(-1)[0]) if source.shapes.get(name) in ((), (1,)) else default
        for name, default in (("obs_count", 0.0), ("clip_obs", OBS_CLIP), ("epsilon", VAR_EPSILON))
    )
    fits = mean.shape == var.shape and np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()
    if not fits or not clip > 0:
        raise TiplError(
            f"The normalizer of {place} has other means than variances, or such that cannot be; save it anew."
        )
    return _Normalizer(mean, var + (epsilon - VAR_EPSILON), count, clip)


def _require_alike(
    names: Sequence[str], shapes: Mapping[str, Any], own: Mapping[str, Any], first: Path, place: Path
) -> None:
    """
    Raises:
        TiplError: a checkpoint holds other tensors than the first.
    """
    for name in names:
        if own.get(name) != shapes[name]:
            has = f"has {name} of the shape {list(own[name])}" if name in own else f"has no {name}"
            raise TiplError(
                f"{place} {has}, and {first} has it of {list(shapes[name])}; a trial holds one network: move the "
                "checkpoints of others away, or choose by --files."
            )


def _env_step(facts: Mapping[str, Any], step: int, before: Sequence[int], place: Path) -> int:
    """
    Raises:
        TiplError: it is no later than the one before.
    """
    said = facts.get("num_timesteps")
    now = said if isinstance(said, int) and not isinstance(said, bool) else step
    if before and now <= before[-1]:
        raise TiplError(
            f"{place} was saved at {now:,} environment steps, and the checkpoint before it by name at {before[-1]:,}; "
            "leave those of one run, named by their steps."
        )
    return now


def _algorithm(facts: Mapping[str, Any]) -> str | None:
    """What a model of Stable-Baselines3 says that trained it."""
    policy = facts.get("policy_class")
    module = str(policy.get("__module__")) if isinstance(policy, dict) else ""
    match module.split("."):
        case ["stable_baselines3", "common", "policies"]:
            return "PPO" if "clip_range" in facts else "A2C"
        case ["stable_baselines3" | "sb3_contrib", name, "policies"]:
            return name.upper()
    return None


def _say(run: _Run, store: Store, seed: int) -> None:
    """What the user should know about the policies."""
    trial = store.trial(seed)
    if run.subject.hidden_sizes is None:
        console.print(f"import: stored to be judged by weights (`tipl evaluate --no-returns`): {run.subject.why_not}.")
    elif why := why_not_run(trial):
        console.print(f"import: stored to be judged by weights (`tipl evaluate --no-returns`): its policies {why}.")
    elif run.normalizer is None:
        console.print("import: there is no normalizer, so the policies act on observations as they are.")
