"""Errors of forecast weights at origins, and what a basis does to them; what took long is kept in parts.

In: trials, origins, forecasters.  Out: a `Comparison` by forecaster; reconstruction floors and skills within a basis.

A part is the rows of one forecaster on one trial. Its name is a digest of all that makes them: the very weights, the
origins, the horizons, the forecaster's own numbers and the source of this package. So an interrupted evaluation goes
on, and nothing stale can be read. One trial's weights are in memory at a time.

Shapes: M origins, H horizons, P weights.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tipl.evaluation.origins import history, read_only_weights
from tipl.evaluation.scores import Comparison, Origins
from tipl.forecasting.forecaster import Forecaster, checked_forecast
from tipl.parts import ENDING, keep_part, kept_part
from tipl.progress import steps_progress
from tipl.representation import Codes
from tipl.store import Trial

KEPT_FROM_SECONDS = 1.0
"""What a forecaster takes for one trial from which on its errors are kept."""
_BATCH_BYTES = 64 << 20  # of the forecasts of one forecaster held at once
_LARGE = 1e15  # a number whose square float32 holds
_SOURCE = Path(__file__).parents[1]

Rows = tuple[np.ndarray, ...]
"""Squared error, inner product with the truth, squared length, squared length of the truth: each [M, H]."""
Advance = Callable[[int, str], None]


def compare_weights(
    trials: Sequence[Trial],
    origins: Origins,
    forecasters: Sequence[Forecaster],
    horizons: Sequence[int],
    parts: Path | None = None,
) -> dict[str, Comparison]:
    """Every forecaster at every origin against what came; a trial's weights are in memory one trial at a time.

    Args:
        parts: a folder that keeps what took long; the same is not computed again.

    Raises:
        TiplError: a forecaster returns another shape, or weights that are not finite.
    """
    rows: dict[str, list[Rows]] = {f.name: [] for f in forecasters}
    prints = {f.name: fingerprint(f) for f in forecasters} if parts is not None else {}
    with steps_progress("evaluate: weights", len(origins.trial) * len(forecasters)) as advance:
        for trial in trials:
            made = _compare_trial(trial, origins, forecasters, np.array(horizons), parts, prints, advance)
            for name, found in made.items():
                rows[name].append(found)
    return {name: Comparison(*map(np.concatenate, zip(*found, strict=True))) for name, found in rows.items()}


def _compare_trial(
    trial: Trial,
    origins: Origins,
    forecasters: Sequence[Forecaster],
    horizons: np.ndarray,
    parts: Path | None,
    prints: Mapping[str, bytes | None],
    advance: Advance,
) -> dict[str, Rows]:
    """One trial's rows by forecaster; its weights are gone when this returns."""
    weights = read_only_weights(trial)
    mine = np.flatnonzero(origins.trial == trial.seed)
    keys = {} if parts is None else _keys(weights, origins, mine, horizons, prints)
    # What a forecaster makes of context tokens hangs on these too.
    looking = [each for each in forecasters if each.takes_tokens and each.name in keys]
    seen = hashlib.sha256(b"".join(_bytes(trial.tokens_at(int(t))) for t in origins.snapshot[mine] if looking))
    keys |= {each.name: f"{keys[each.name]}-{seen.hexdigest()[:8]}" for each in looking}
    done: dict[str, Rows] = {}
    for name, key in keys.items():
        shape = {"rows": (4, len(mine), len(horizons))}
        kept = kept_part(parts / f"{key}{ENDING}", shape) if parts is not None else None
        done |= {} if kept is None else {name: tuple(kept["rows"])}
    advance(len(mine) * len(done), "")
    left = [f for f in forecasters if f.name not in done]
    rows: dict[str, list[Rows]] = {f.name: [] for f in left}
    seconds = dict.fromkeys(rows, 0.0)
    for chosen in np.array_split(mine, -(-len(mine) // _batch(weights, horizons))) if left else ():
        now = weights[origins.snapshot[chosen]][:, None]
        true = weights[origins.snapshot[chosen][:, None] + horizons] - now
        moved = _total(true, true)
        for forecaster in left:
            began = time.monotonic()
            histories = [history(trial, weights, origins, m, forecaster) for m in chosen]
            made = checked_forecast(forecaster, histories, horizons.tolist()) - now
            dot, length = _total(made, true), _total(made, made)
            error = np.subtract(true, made, out=made)
            rows[forecaster.name].append((_total(error, error), dot, length, moved))
            seconds[forecaster.name] += time.monotonic() - began
            advance(len(chosen), forecaster.name)
    done |= {name: tuple(map(np.concatenate, zip(*each, strict=True))) for name, each in rows.items()}
    for name, took in seconds.items():
        if name in keys and took >= KEPT_FROM_SECONDS and parts is not None:
            keep_part(parts / f"{keys[name]}{ENDING}", {"rows": np.stack(done[name]).astype(np.float64)})
    return done


def _keys(
    weights: np.ndarray, origins: Origins, mine: np.ndarray, horizons: np.ndarray, prints: Mapping[str, bytes | None]
) -> dict[str, str]:
    """By forecaster that can be told from all others, the digest of what makes its rows."""
    common = hashlib.sha256(_source_digest())
    for array in (weights, origins.trial[mine], origins.snapshot[mine], origins.epoch_index[mine], horizons):
        common.update(_bytes(np.ascontiguousarray(array)))
    return {
        name: hashlib.sha256(common.digest() + own).hexdigest()[:24] for name, own in prints.items() if own is not None
    }


def fingerprint(forecaster: Forecaster) -> bytes | None:
    """A digest of a forecaster of this package, of all that it holds; None of any other, whose code may change."""
    digest = hashlib.sha256()
    try:
        _digest_into(digest, forecaster, 0)
    except TypeError:
        return None
    return digest.digest()


def _digest_into(digest: Any, value: Any, depth: int) -> None:
    """
    Raises:
        TypeError: a part of it cannot be told from others of its kind.
    """
    if depth > 16:
        raise TypeError("too deep")
    match value:
        case None | bool() | int() | float() | str() | bytes():
            digest.update(repr((type(value).__name__, value)).encode())
        case np.ndarray() | np.generic():
            digest.update(_bytes(np.asarray(value)))
        case torch.Tensor():
            digest.update(_bytes(value.detach().cpu().contiguous().numpy()))
        case torch.nn.Module():
            digest.update(type(value).__qualname__.encode())
            _digest_into(digest, getattr(value, "config", None), depth + 1)
            _digest_into(digest, dict(value.state_dict()), depth + 1)
        case Codes():
            _digest_into(digest, {seed: value.codes(seed) for seed in value.seeds}, depth + 1)
        case Mapping():
            for key, item in value.items():
                _digest_into(digest, key, depth + 1)
                _digest_into(digest, item, depth + 1)
        case list() | tuple():
            digest.update(f"{type(value).__name__} {len(value)}".encode())
            for item in value:
                _digest_into(digest, item, depth + 1)
        case functools.partial():
            _digest_into(digest, (value.func, value.args, value.keywords), depth + 1)
        case _ if callable(value) and getattr(value, "__qualname__", "<").isidentifier() and _is_own(value):
            digest.update(f"{value.__module__}.{value.__qualname__}".encode())  # a function of this package by its name
        case _ if _is_own(type(value)) and hasattr(value, "__dict__"):
            digest.update(f"{type(value).__module__}.{type(value).__qualname__}".encode())
            _digest_into(digest, {name: vars(value)[name] for name in sorted(vars(value))}, depth + 1)
        case _:
            raise TypeError(type(value).__name__)


def _is_own(thing: Any) -> bool:
    return getattr(thing, "__module__", "").split(".")[0] == __name__.split(".")[0]


def _bytes(array: np.ndarray) -> bytes:
    return f"{array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()


@functools.cache
def _source_digest() -> bytes:
    """Of the source of this package, by which forecasts are made."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def errors_in_the_basis(
    forecasters: Sequence[Forecaster], trials: Sequence[Trial], origins: Origins, horizons: Sequence[int]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float | None]]]:
    """What a basis does to its forecasters, by name and horizon, over the origins drawn by time.

    Returns:
        The reconstruction floor: WPE of the true φ_{t+h} encoded and decoded, which no forecast in the basis can beat.
        The skill within the basis: as the skill, but everything is measured between encoded and decoded snapshots, so
        that what the basis drops counts for nobody. With a basis that has seen the future, look-ahead shows here.
    """
    floors: dict[str, dict[str, float]] = {}
    skills: dict[str, dict[str, float | None]] = {}
    for forecaster in forecasters:
        if forecaster.codes is None:
            continue
        sums = np.zeros((3, len(horizons)))
        for trial in trials:
            sums += _sums_in_the_basis(forecaster, forecaster.codes, trial, origins, np.array(horizons))
        dropped, error, moved = sums
        count = origins.by_time.sum()
        floors[forecaster.name] = {str(h): float(value) for h, value in zip(horizons, dropped / count, strict=True)}
        skills[forecaster.name] = {
            str(h): float(1 - e / m) if m > 0 else None for h, e, m in zip(horizons, error, moved, strict=True)
        }
    return floors, skills


def _sums_in_the_basis(
    forecaster: Forecaster, codes: Codes, trial: Trial, origins: Origins, horizons: np.ndarray
) -> np.ndarray:
    """[3, H] over one trial's origins: mean squares of what the basis drops of φ_{t+h}; squared errors, and squared
    displacements, between encoded and decoded snapshots."""
    weights, basis, coded = read_only_weights(trial), codes.basis(trial.seed), codes.codes(trial.seed)
    sums = np.zeros((3, len(horizons)))
    mine = np.flatnonzero((origins.trial == trial.seed) & origins.by_time)
    for chosen in np.array_split(mine, -(-len(mine) // _batch(weights, horizons))):
        histories = [history(trial, weights, origins, m, forecaster) for m in chosen]
        forecasts = checked_forecast(forecaster, histories, horizons.tolist())
        for m, made in zip(chosen, forecasts, strict=True):
            future = origins.snapshot[m] + horizons
            shown = basis.decode(coded[[origins.snapshot[m], *future]])
            sums[0] += ((weights[future] - shown[1:]) ** 2).mean(axis=1, dtype=np.float64)
            sums[1] += ((made - shown[1:]) ** 2).sum(axis=1, dtype=np.float64)
            sums[2] += ((shown[0] - shown[1:]) ** 2).sum(axis=1, dtype=np.float64)
    return sums


def _batch(weights: np.ndarray, horizons: np.ndarray) -> int:
    """Origins whose forecasts are held at once."""
    return max(1, _BATCH_BYTES // (weights.shape[1] * len(horizons) * weights.itemsize))


def _total(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products [B, H] of [B, H, P], summed pairwise by numpy in blocks, so float32 suffices up to 1e-6.

    A forecast may be finite and yet so far off that its square is not: then in float64.
    """
    if max(np.abs(a).max(), np.abs(b).max()) > _LARGE:
        a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=2, dtype=np.float64)
