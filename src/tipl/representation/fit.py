"""The verb `fit-svd`: the codes of every trial of a store, gone on with where it was interrupted.

In: a store, SVDConfig.  Out: CODES.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tipl.checks import AnyPath, Place, checked_arguments
from tipl.config.presets import SVDConfig
from tipl.errors import TiplError
from tipl.files import Absent, Damaged, new_folder, require_no_store_above, set_aside
from tipl.progress import console, steps_progress
from tipl.remote.mirror import located
from tipl.representation.basis import joined_bases, trial_basis
from tipl.representation.codes import (
    CODES_FILE,
    FORMAT,
    POOLED,
    VERSION,
    arrays_path,
    read_arrays,
    read_identity,
    write_arrays,
    write_identity,
)
from tipl.representation.grams import Gram, read_weights
from tipl.representation.origins import prefix_bases, window_basis
from tipl.representation.pooled import basis_columns, fit_pooled, pooled_basis
from tipl.store import Store, Trial


@checked_arguments
def fit_svd(store: Place, out: AnyPath, config: SVDConfig = SVDConfig(), *, progress: bool = True) -> Path:
    """Fit a basis to the trials of a store and write the codes of all of them into the folder `out`.

    A finished `out` of the same data and settings is kept, an unfinished one is gone on with, trial by trial.

    Args:
        store: the data set.
        out: where CODES go.
        config: which basis, its size d, and whether φ_0 is subtracted.
        progress: show a bar.

    Returns:
        `out`.

    Raises:
        TiplError: the store cannot be read, its trials cannot be represented as asked, or `out` is something else.
    """
    store, out = located(store), Path(out)
    require_no_store_above(out)
    trials = _representable_trials(store, config)
    facts = _identity(store, out, trials, config)
    found = read_identity(out)
    if found is None:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise TiplError(f"{out} exists and is not a CODES folder; remove it or choose another --out.")
        with new_folder(out, {CODES_FILE}) as folder:
            write_identity(folder, facts, finished=False)
    elif any(found.get(key) != value for key, value in facts.items()):
        raise TiplError(
            f"{out} exists and is not CODES of this store and these settings; remove it or choose another --out."
        )
    if config.basis == "full":
        console.print("fit-svd: basis full (look-ahead: the codes of a trial have seen the trial's future)")
    with steps_progress("fit-svd", len(trials)) if progress else contextlib.nullcontext(lambda *_: None) as advance:
        pooled, made = None, 0
        if config.basis == POOLED:
            pooled, made = _kept_or_made(out, facts, POOLED, lambda: fit_pooled(Store.open(store), config))
        for seed, trial in trials.items():
            _, anew = _kept_or_made(out, facts, str(seed), lambda t=trial: _represented(t, config, pooled))
            made += anew
            advance(1, "")
    if found is not None and found["finished"] and not made:
        console.print(f"fit-svd: {out} is already complete.")
    else:
        write_identity(out, facts, finished=True)
    return out


def _identity(store: Path, out: Path, trials: Mapping[int, Trial], config: SVDConfig) -> dict[str, Any]:
    """What codes are of, which tells them from others; where their store lies does not count."""
    context = config.window if config.basis in ("window", "prefix") else None
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "config": dataclasses.asdict(config),
        "context": context,
        "tensors": list(next(iter(trials.values())).spec.names) if config.by_tensor else None,
        "trials": {
            str(seed): {"snapshots": trial.committed, "weights": trial.spec.size, "last": _fingerprint(trial)}
            for seed, trial in trials.items()
        },
    }
    place = os.path.relpath(store.resolve(), out.resolve().parent)
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return {**facts, "identity": identity, "store": place}


def _kept_or_made(
    out: Path, facts: Mapping[str, Any], name: str, make: Callable[[], dict[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays that `out` holds already, or new ones, which are written; and whether they are new."""
    try:
        return read_arrays(out, facts["identity"], name), False
    except Absent:
        pass
    except Damaged as error:
        console.print(f"fit-svd: {error} It is now {set_aside(arrays_path(out, name))}.")
    arrays = make()
    write_arrays(out, facts["identity"], name, arrays)
    return arrays, True


def _representable_trials(path: Path, config: SVDConfig) -> dict[int, Trial]:
    store = Store.open(path)
    trials = {seed: store.trial(seed) for seed in store.seeds}
    if not trials:
        raise TiplError(f"{path} holds no trial; collect some first.")
    if len({trial.spec.size for trial in trials.values()}) > 1:
        raise TiplError(f"The trials of {path} differ in their number of weights; give each network its own store.")
    if config.by_tensor and len({trial.spec for trial in trials.values()}) > 1:
        raise TiplError(f"The trials of {path} differ in their tensors; leave out --by-tensor.")
    if config.basis == "pooled" and len(train := store.split().train) < 2:
        raise TiplError(f"A pooled basis needs 2 training trials or more, {path} has {len(train)}; collect more.")
    for seed, trial in trials.items():
        limits = {"weights": trial.spec.size}
        if config.basis == "window":
            limits["displacements of a window"] = config.window
        else:
            limits[f"snapshots of trial {seed}"] = trial.committed
        for name, limit in limits.items():
            if config.dim > limit:
                raise TiplError(f"--dim is {config.dim}, more than the {limit} {name}; give at most {limit}.")
    return trials


def _fingerprint(trial: Trial) -> int:
    """Tells one trial of T snapshots from another: a checksum of its last snapshot."""
    return zlib.crc32(trial.weights(trial.committed - 1, trial.committed).tobytes())


def _represented(trial: Trial, config: SVDConfig, pooled: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The arrays that are written for a trial."""
    weights_TP = read_weights(trial)
    if config.basis in ("window", "prefix"):
        return _origin_codes(Gram.of(weights_TP), config)
    if pooled is None:
        columns = basis_columns(trial.spec, config)
        fits = [
            trial_basis(weights_TP[:, each], min(config.dim, each.stop - each.start), centered=config.centered)
            for each in columns
        ]
        codes_TD = np.concatenate([codes for codes, _ in fits], axis=1)
        basis = joined_bases([basis for _, basis in fits]) if config.by_tensor else fits[0][1]
        arrays = {"codes": codes_TD, "components": basis.components_DP, "singular_values": basis.singular_values}
    else:
        basis = pooled_basis(weights_TP, pooled["components"], pooled["singular_values"], config)
        arrays = {"codes": basis.encode(weights_TP)}
    return {**arrays, "mean": weights_TP[0]} if config.centered else arrays


def _origin_codes(gram: Gram, config: SVDConfig) -> dict[str, np.ndarray]:
    count, dim = len(gram.initial_T), config.dim
    codes_TKD = np.zeros((count, config.window, dim), np.float32)
    singular_values_TD = np.zeros((count, dim))
    if config.basis == "window":
        bases = (window_basis(gram, origin, config.window, dim) for origin in range(count))
    else:
        bases = prefix_bases(gram, range(count), dim, centered=config.centered)
    for origin, basis in enumerate(bases):
        # The last snapshot of a window is its origin, which is zero by construction.
        recent = (basis.codes_SD[:-1] if config.basis == "window" else basis.codes_SD)[-config.window :]
        codes_TKD[origin, config.window - len(recent) :] = recent
        singular_values_TD[origin] = basis.scale_D
    return {
        "codes": codes_TKD,
        "singular_values": singular_values_TD,
        "gram": gram.displacement_TT[np.tri(count, dtype=np.bool_)],  # symmetric: the lower half says all
        "initial": gram.initial_T,
    }
