"""The verb `forecast`: one predicted policy to a file, and what it earns.

In: a model, a store, a trial, an origin, a horizon.  Out: FILE.safetensors with the policy's tensors and the normalizer
of the origin; the returns of the policies at the origin, predicted and, where it is known, true.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from tipl.bundle import write_bundle
from tipl.checks import AnyPath, Count, Place, Positive, Whole, checked_arguments, is_address
from tipl.config.env_spec import import_named
from tipl.errors import TiplError
from tipl.files import require_no_store_above
from tipl.forecasting.forecaster import Forecaster, checked_forecast
from tipl.forecasting.learned import Learned, learned_by, require_unseen
from tipl.forecasting.named import load_forecaster
from tipl.forecasting.online import online_corrected
from tipl.forecasting.shipped import SHIPPED, model_folder
from tipl.forecasting.trained import CausalForecaster, Stretched, codes_for
from tipl.progress import console
from tipl.remote.mirror import located
from tipl.rl.returns import Policies, policy_returns, why_not_run
from tipl.store import Store, Trial
from tipl.store.policy import OBS_CLIP


@dataclass(frozen=True)
class Prediction:
    """What `forecast` found. Returns are means over episodes, under the origin's normalizer."""

    out: str
    trial: int
    origin: int
    horizon: int
    predicted_return: float | None
    """None where the trial's policy cannot be run: recorded from elsewhere."""
    origin_return: float | None
    true_return: float | None
    """Of φ_{t+h}; None also where the trial has not come so far."""
    skill: float | None
    """1 − |φ_{t+h} − φ̃|² / |φ_{t+h} − φ_t|², of this one forecast."""
    notes: tuple[str, ...]
    """What is to be known of the forecast besides its numbers."""
    expected_error: float | None
    """Root mean square length by which the model expects the forecast, stretched as it is, to be off. None where the
    model does not know: over codes, adapted, or before anything has moved."""


@checked_arguments
def forecast(
    store: Place,
    trial: Whole,
    origin: Whole,
    horizon: Count,
    out: AnyPath,
    *,
    model: Place = SHIPPED,
    stretch: Positive = 1.0,
    adapt: bool = False,
    seen: bool = False,
    episodes: Whole = 20,
    seed: Whole = 0,
    trust: bool = False,
) -> Prediction:
    """Write the policy that a model expects `horizon` snapshots after the origin, and run it.

    Args:
        store, trial: the data set, and the trial's seed.
        origin, horizon: the last snapshot that the model sees, and how many snapshots later the policy is.
        out: a .safetensors file: the tensors by the names in the store, `obs_mean` and `obs_var` of the origin, and in
            its metadata, as JSON, what it is.
        model: a folder that `train` wrote, or the name of a model that comes with the package. On a task that it has
            not learned, that one is often behind an autoregression fitted on a few of the task's runs
            (`results/causal`).
        stretch: that the displacement from the origin is multiplied by (`results/causal` has what that is worth).
        adapt: correct it by what came of the model's forecasts from every earlier snapshot.
        seen: forecast a trial that the model has learned from; otherwise that is refused.
        episodes: that a return is the mean of, the same ones for all policies; 0: none are run.
        seed: of the episodes.
        trust: import the modules that the store names for its environments, which runs their code.

    Raises:
        TiplError: there is no such trial, snapshot or model, the model has learned from the trial, or the file cannot
            be written.
    """
    store, out = located(store), Path(out)
    if out.suffix != ".safetensors":
        raise TiplError(f"--out is {out}; what is written is a .safetensors file, give it that ending.")
    require_no_store_above(out)
    if out.is_dir():
        raise TiplError(f"{out} is a folder; give --out the name of a file.")
    data = Store.open(store)
    run = data.trial(trial)
    if trust:
        import_named([run.env_id])
    told = foretold(data, run, origin, [horizon], model, stretch=stretch, adapt=adapt, seen=seen)
    now, made = run.weights(origin, origin + 1)[0], told.weights_HP[0]
    true = run.weights(origin + horizon, origin + horizon + 1)[0] if origin + horizon < run.committed else None
    returns = _returns(run, origin, [now, made, *([] if true is None else [true])], episodes, seed)
    expected = None if told.errors_H is None else float(told.errors_H[0])
    prediction = Prediction(
        str(out), run.seed, origin, horizon, returns[1], returns[0], returns[2] if true is not None else None,
        None if true is None else _skill(now, made, true), told.notes,
        expected if expected is not None and math.isfinite(expected) else None,
    )  # fmt: skip
    tensors = {name: np.ascontiguousarray(each) for name, each in run.spec.unflatten(made).items()}
    tensors |= {"obs_mean": run.obs_mean[origin], "obs_var": run.obs_var[origin]}
    facts = {
        "env_id": run.env_id,
        "config": run.config,
        "param_spec": run.spec.to_json(),
        "model": str(model),
        "stretch": stretch,
        "adapt": adapt,
        **asdict(prediction),
    }
    write_bundle(out, tensors, facts, safetensors.numpy)
    return prediction


@dataclass(frozen=True)
class Foretold:
    """What a model says of one origin."""

    weights_HP: np.ndarray
    errors_H: np.ndarray | None
    """As `Prediction.expected_error` has it, and None where that is."""
    notes: tuple[str, ...]


def foretold(
    data: Store, run: Trial, origin: int, horizons: Sequence[int], model: AnyPath = SHIPPED, *, stretch: float = 1.0,
    adapt: bool = False, seen: bool = False,
) -> Foretold:  # fmt: skip
    """Ask a model for the weights at each of these horizons, in rising order. The arguments are those of `forecast`.

    Raises:
        TiplError: there is no such snapshot or model, it does not see so far, or it has learned from the trial.
    """
    if not 0 <= origin < run.committed:
        raise TiplError(f"Trial {run.seed} has snapshots 0 to {run.committed - 1}; --origin {origin} is none of them.")
    model = model_folder(model) if is_address(model) else model
    learned = learned_by(model)  # pyright: ignore[reportArgumentType]
    if not seen:
        require_unseen(data, [run.seed], str(model), learned, "forecast another trial, or take this one by --seen")
    with tempfile.TemporaryDirectory(prefix="tipl-") as scratch:  # codes that a model over codes may need
        codes = codes_for(model_folder(model), data, Path(scratch))
        forecaster = load_forecaster(model, run.spec.shapes, codes=codes)
        if isinstance(forecaster, CausalForecaster) and horizons[-1] > forecaster.furthest:
            raise TiplError(
                f"--horizon is {horizons[-1]}; this model forecasts up to {forecaster.furthest} snapshots ahead."
            )
        chosen = online_corrected([forecaster], run) if adapt else forecaster
        history = run.history(origin, chosen.context)
        asked = chosen if stretch == 1 else Stretched(chosen, stretch)
        made_HP = checked_forecast(asked, [history], horizons)[0]
        errors_H = None
        if isinstance(chosen, CausalForecaster):
            assert isinstance(asked, CausalForecaster | Stretched)
            errors_H = asked.forecast_with_error([history], horizons)[1][0]
    return Foretold(made_HP, errors_H, _notes(run, forecaster, learned))


def _notes(run: Trial, forecaster: Forecaster, learned: Sequence[Learned] | None) -> tuple[str, ...]:
    """What a reader of the forecast has to know of the model."""
    notes = []
    if not forecaster.causal:
        notes.append(f"the model forecasts in the {forecaster.basis} basis, which has seen this trial's future")
    if learned is None:
        notes.append("the model does not say what it has learned from")
    known = sorted({each.env_id for each in learned or () if each.env_id})
    if known and str(run.env_id) not in known:
        notes.append(f"the model has learned from {', '.join(known)}, not from {run.env_id}")
    return tuple(notes)


def _returns(run: Trial, origin: int, weights: list[np.ndarray], episodes: int, seed: int) -> list[float | None]:
    """The mean return of each policy under the normalizer of the origin."""
    reason = why_not_run(run) if episodes else None
    if reason is not None:
        console.print(f"forecast: the policies of trial {run.seed} {reason}.", markup=False)
    if not episodes or reason is not None:
        return [None] * 3
    mean, var = (np.repeat(each[origin : origin + 1], len(weights), axis=0) for each in (run.obs_mean, run.obs_var))
    earned = policy_returns(
        Policies(np.stack(weights), mean, var), run.env_id, run.config["hidden_sizes"], episodes, seed=seed,
        activation=run.config.get("activation", "tanh"), backend=run.config["backend"],
        obs_clip=run.config.get("obs_clip", OBS_CLIP),
    )  # fmt: skip
    return [float(each) for each in earned.mean(axis=1)]


def _skill(now: np.ndarray, made: np.ndarray, true: np.ndarray) -> float | None:
    now, made, true = (each.astype(np.float64) for each in (now, made, true))
    moved = np.square(true - now).sum()
    return float(1 - np.square(true - made).sum() / moved) if moved > 0 else None
