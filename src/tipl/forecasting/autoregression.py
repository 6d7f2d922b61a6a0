"""The linear autoregression, the baseline to beat: fitted on trials, or the one that comes with the package.

In: the training trials of stores.  Out: an `Autoregression`, from inner products of snapshots alone.

Shapes: F features, H horizons, K snapshots of context, P weights.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tipl.errors import TiplError
from tipl.files import read_json
from tipl.forecasting.forecaster import WeightedSum
from tipl.forecasting.shipped import PRETRAINED
from tipl.store import Store, Trial

DIFFERENCES = 20  # the autoregression's last steps
LONGER = (30, 40, 60, 80, 100)  # and its longer differences φ_t − φ_{t−k}
CONTEXT = max(LONGER) + 1  # snapshots that they take
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
AUTOREGRESSION = PRETRAINED / "autoregression.json"
ANY = "any"
"""In that file, of epoch indices that it has no slopes for."""

Advance = Callable[[int, str], None]
"""Told how many trials are done, and of what."""


class Autoregression(WeightedSum):
    """The baseline to beat: displacements regressed on past differences, apart for each epoch index.

    φ̃_{t+h} − φ_t = Σ_f β_{i,h,f} x_f with x the last 20 differences φ_{t−k} − φ_{t−k−1} and φ_t − φ_{t−k} for
    k = 30, 40, 60, 80, 100. One number for all weights of a feature; least squares over all origins of the training
    trials with a ridge relative to the features' mean square.
    """

    name, label = "autoregression", "linear autoregression"
    context = CONTEXT

    def __init__(self, horizons: Sequence[int], slopes: Mapping[int | None, np.ndarray]) -> None:
        """`slopes`: β [H, F] by epoch index; None: of any other."""
        self.horizons, self.slopes = tuple(horizons), dict(slopes)
        self._coefficients = {epoch_index: beta_HF @ difference_features() for epoch_index, beta_HF in slopes.items()}

    @classmethod
    def fit(cls, horizons: Sequence[int], equations: "NormalEquations", ridge: float) -> "Autoregression":
        """For epoch indices that no training trial has: of all together.

        Raises:
            TiplError: no trial is long enough for one origin.
        """
        if not equations:
            raise TiplError(
                f"No training trial is long enough to fit an autoregression {max(horizons)} snapshots ahead; "
                "give a store with longer ones."
            )
        everywhere = tuple(sum(parts) for parts in zip(*equations.values(), strict=True))
        parts = {**equations, None: everywhere}.items()
        return cls(horizons, {epoch_index: solve_ridge(gram, target, ridge).T for epoch_index, (gram, target) in parts})

    def coefficients(self, epoch_index: int, horizons: Sequence[int]) -> np.ndarray:
        """
        Raises:
            TiplError: it was not fitted for one of the horizons.
        """
        other = next((h for h in horizons if h not in self.horizons), None)
        if other is not None:
            raise TiplError(f"The autoregression was fitted for {self.horizons} snapshots ahead, not for {other}.")
        rows = [self.horizons.index(h) for h in horizons]
        known: int | None = epoch_index if epoch_index in self._coefficients else None
        return self._coefficients[known][rows]


NormalEquations = dict[int, tuple[np.ndarray, np.ndarray]]
"""For each epoch index: Σ x xᵀ [F, F] and Σ x yᵀ [F, H] over the origins and all weights."""


def difference_features(stride: int = 1) -> np.ndarray:
    """[F, stride (CONTEXT − 1) + 1]: every feature of the autoregression as a weighted sum of the last snapshots, of
    which only each `stride`-th is looked at."""
    features = np.zeros((DIFFERENCES + len(LONGER), stride * (CONTEXT - 1) + 1))
    for k in range(DIFFERENCES):
        features[k, -1 - stride * k] += 1
        features[k, -1 - stride * (k + 1)] -= 1
    for row, k in enumerate(LONGER, DIFFERENCES):
        features[row, -1] += 1
        features[row, -1 - stride * k] -= 1
    return features


def normal_equations(
    trials: Sequence[Trial],
    features: np.ndarray,
    horizons: Sequence[int],
    advance: Advance = lambda steps, note: None,
) -> NormalEquations:
    """The normal equations of displacements at `horizons` on `features` [F, n], from Gram matrices of the snapshots.

    A feature and a displacement are weighted sums of snapshots, so their inner products are found in the snapshots'
    own, block after block of a trial: P enters only there.
    """
    context, furthest = features.shape[1], max(horizons)
    used = np.flatnonzero(features.any(axis=0))
    features, back = features[:, used], used - (context - 1)
    total: NormalEquations = {}
    for trial in trials:
        indices = trial.epoch_index
        for first, gram in banded_grams(trial, context, furthest):
            for row in range(context - 1, len(gram) - furthest):
                window, ahead = row + back, [row + h for h in horizons]
                x = features @ gram[np.ix_(window, window)] @ features.T
                y = features @ (gram[np.ix_(window, ahead)] - gram[window, row][:, None])
                epoch_index = int(indices[first + row])
                old_x, old_y = total.get(epoch_index, (0.0, 0.0))
                total[epoch_index] = (old_x + x, old_y + y)
        advance(1, "normal equations")
    return total


def banded_grams(trial: Trial, context: int, furthest: int, block: int = 256) -> Iterator[tuple[int, np.ndarray]]:
    """Inner products of the snapshots around each block of origins.

    Yields:
        The number of the first snapshot (negative: before φ_0, where the run stood still) and the float64 Gram matrix
        of `context` − 1 snapshots, the origins' own, and `furthest` after them, relative to the middle one.
    """
    for start in range(0, trial.committed - furthest, block):
        stop = min(start + block, trial.committed - furthest)
        first = start - context + 1
        rows = trial.weights(max(first, 0), stop + furthest)
        if first < 0:
            rows = np.concatenate([np.repeat(rows[:1], -first, axis=0), rows])
        if rows.shape[1] < 4096:  # small enough for float64
            rows = rows.astype(np.float64)
        rows = rows - rows[len(rows) // 2]
        gram = (rows @ rows.T).astype(np.float64)
        if not np.isfinite(gram).all():
            raise TiplError(
                f"Trial {trial.seed} holds weights that are not finite around snapshot {start}: the run diverged; "
                "leave it out of the store."
            )
        yield first, gram


def solve_ridge(gram: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    """β [F, H] minimizing |y − βᵀx|² + ridge · (mean square of a feature) · |β|²; zeros where all features are zero."""
    if not np.trace(gram) > 0:
        return np.zeros_like(target)
    penalty = ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram + penalty, target)


def joined_equations(parts: Sequence["NormalEquations"]) -> "NormalEquations":
    """The sum of several stores' equations, each scaled so that they count alike; those of one as they are."""
    if len(parts) == 1:
        return parts[0]
    total: NormalEquations = {}
    for part in parts:
        size = sum(float(np.trace(gram)) for gram, _ in part.values())
        for epoch_index, (gram, target) in part.items() if size > 0 else ():
            old_x, old_y = total.get(epoch_index, (0.0, 0.0))
            total[epoch_index] = (old_x + gram / size, old_y + target / size)
    return total or parts[0]


def store_digest(store: Store) -> str:
    """Of its training trials: how far each has come, and its last snapshot."""
    digest = hashlib.sha256()
    for trial in map(store.trial, store.split().train):
        digest.update(f"{trial.seed} {trial.committed} ".encode())
        digest.update(np.ascontiguousarray(trial.weights(trial.committed - 1)).data)
    return digest.hexdigest()[:16]


def fit_autoregression(fit: Path, snapshots_per_iteration: int, horizons: tuple[int, ...]) -> Autoregression:
    """The autoregression of a store's training trials; fitted once for what the store holds.

    Args:
        fit: holds as many snapshots an iteration as the run, or a multiple, of which every so many-th counts.
        snapshots_per_iteration: of the run.
        horizons: in those.

    Raises:
        TiplError: the store holds another number of snapshots an iteration.
    """
    return _fitted(store_digest(Store.open(fit)), fit, snapshots_per_iteration, horizons)


@functools.lru_cache(maxsize=8)
def _fitted(content: str, fit: Path, snapshots_per_iteration: int, horizons: tuple[int, ...]) -> Autoregression:
    data = Store.open(fit)
    train = [data.trial(seed) for seed in data.split().train]
    held = int(train[0].epoch_index.max()) + 1  # 0: the store knows of no iterations
    stride, left = divmod(held, snapshots_per_iteration) if held else (1, 0)
    if left or not stride:
        raise TiplError(
            f"{fit} holds {held} snapshots an iteration, the run {snapshots_per_iteration}; give a store that holds as "
            "many or a multiple."
        )
    equations = normal_equations(train, difference_features(stride), [stride * h for h in horizons])
    kept = {epoch_index // stride: each for epoch_index, each in equations.items() if (epoch_index + 1) % stride == 0}
    return Autoregression.fit(horizons, kept, RIDGES[1])


@functools.cache
def shipped_autoregression(snapshots_per_iteration: int, horizons: tuple[int, ...]) -> Autoregression:
    """The one that comes with the package, which `studies/ship_autoregression.py` has made."""
    found = read_json(AUTOREGRESSION)
    ahead = [h * snapshots_per_iteration for h in found["horizons"]]
    if str(snapshots_per_iteration) not in found["slopes"] or not set(horizons) <= set(ahead):
        raise TiplError(
            f"The autoregression that comes with the package is for {' or '.join(found['slopes'])} snapshots an "
            f"iteration and {', '.join(map(str, found['horizons']))} iterations ahead, this run takes "
            f"{snapshots_per_iteration} and looks {max(horizons) // snapshots_per_iteration} ahead; give a store to "
            "fit another one on, --fit STORE."
        )
    slopes = found["slopes"][str(snapshots_per_iteration)]
    return Autoregression(ahead, {None if at == ANY else int(at): np.array(each) for at, each in slopes.items()})
