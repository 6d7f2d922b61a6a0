"""Compact stores: the weights of a store rounded finely beside the steps between snapshots, in a fifth of the bytes.

In: a store of complete trials, the error that is allowed.  Out: a store that every verb reads like any other, and with
each trial what the rounding costs.

    φ̂_t = q_c rint(φ_t / q_c),    q_c = 2^k, the largest with  q_c √(P/12) ≤ error · min(s̄, s_c)

in units of the trial's mean step s̄ = mean ‖φ_{t+1} − φ_t‖, where s_c is that of chunk c (64 snapshots of a 256-256
network): steps shrink with the learning rate, and the grid with them, 256-fold at most. Rounding moves a weight by up
to q/2 and a snapshot by q √(P/12), whatever came before, so that errors do not add up. On a grid the steps of a weight
are small integers, which is what a compact store has (store/arrays.py); docs/format.md says how zarr alone reads them.

An inner product of displacements d_t = φ_t − φ_0 is off by the rounding of φ_i, φ_j and φ_0 times the others: about
q √((|d_i|² + |d_j|² + |d_i + d_j|²)/12). That is measured for all pairs of some snapshots. No Gram matrix and no
exact snapshots are kept beside the weights: the same bytes make every error half as large.

Shapes: T snapshots, P weights, n snapshots of a chunk, S snapshots of a sample.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tipl.checks import AnyPath, Place, checked_arguments
from tipl.config.presets import CompactConfig
from tipl.errors import TiplError
from tipl.progress import console, steps_progress
from tipl.store import EPISODE_ARRAYS, SNAPSHOT_ARRAYS, Store, Trial, TrialWriter, create_store
from tipl.store.arrays import GRID_RANGE
from tipl.store.layout import COMPACT_VERSION, TOKENS

_CHUNK = 24 << 20, 512  # most bytes, unpacked, and most snapshots of a chunk: one snapshot read unpacks a chunk
_FINER = 256  # the finest grid's share of the coarsest: a whole byte, so that coarse steps too are told by one byte
_COLUMNS = 1 << 16  # of float64 rows at once
_LAGS = 1, 10, 100  # snapshots apart whose distances are measured
_AT_ONCE = 64  # snapshots that are read at once where most of them are left out
_SAMPLE = 128  # snapshots whose inner products are measured


@checked_arguments
def compact(store_path: Place, out: AnyPath, config: CompactConfig = CompactConfig()) -> Path:
    """Write the complete trials of a store into a compact one; trials that it already holds are kept.

    A compact store of format version 2 is written anew in version 3, the same values to the bit.

    Args:
        store_path: the store that was collected or recorded, or a compact one of version 2.
        out: the compact one; made if missing.
        config: how much it may lose.

    Returns:
        `out`.

    Raises:
        TiplError: there is nothing to compact, `out` is another kind of store or holds other trials, or, after every
            complete trial is written, there are others that are not complete.
    """
    source = Store.open(store_path)
    error = config.error if source.compact_error is None else source.compact_error
    if source.root.format_version == COMPACT_VERSION:
        raise TiplError(f"{store_path} is compact already; give the store that it was made from.")
    if config.error not in (error, CompactConfig.error):
        raise TiplError(f"{store_path} was compacted with --error {error} and stays as it is; leave --error out.")
    trials = [source.trial(seed) for seed in source.seeds]
    unfinished = source.incomplete
    if len(unfinished) == len(trials):
        raise TiplError(f"{store_path} has no complete trial; collect its trials to the end first.")
    target = create_store(out, error, made_of=source)
    waiting = [trial for trial in trials if trial.seed not in unfinished and not _holds(target, trial)]
    kept = len(trials) - len(unfinished) - len(waiting)
    if kept:
        console.print(f"compact: {kept} trials are already there.")
    say_left_out(waiting, error)
    if waiting:
        with steps_progress("compact", sum(trial.committed for trial in waiting)) as advance:
            for trial in waiting:
                for count in copy_trial(trial, target.path, error):
                    advance(count, f"trial {trial.seed}")
    if unfinished:
        raise TiplError(
            f"{store_path} has trials that are not complete and were left out: {', '.join(map(str, unfinished))}; "
            "collect them to the end and run the same command again."
        )
    return Path(out)


def _holds(target: Store, trial: Trial) -> bool:
    """Whether a compact store has this trial.

    Raises:
        TiplError: it has another one of that seed.
    """
    if trial.seed not in target.seeds:
        return False
    there = target.trial(trial.seed)
    facts = ("env_id", "config", "spec", "versions", "committed", "committed_episodes")
    if any(getattr(there, fact) != getattr(trial, fact) for fact in facts):
        raise TiplError(f"{target.path} holds another trial {trial.seed}; give another --out.")
    return True


def say_left_out(trials: Sequence[Trial], error: float | None) -> None:
    """Tell that copies of trials that are rounded (`error` is not None) have no context tokens."""
    if error is not None and any(trial.num_tokens for trial in trials):
        console.print("compact: context tokens are left out; the store that they are in keeps them.")


def copy_trial(trial: Trial, out: Path, error: float | None = None) -> Iterator[int]:
    """Write a trial into another store; yields how many snapshots have been written since.

    Args:
        error: round the weights, unless they are rounded already, and leave tokens out; None: keep all as it is.
    """
    num_tokens = trial.num_tokens if error is None else 0
    if error is not None and trial.grid is None:
        grids = Grids.of(trial, error)
        grid, costs, chunks = grids.base, Costs(grids.step_T, trial.spec.size), rounded(trial, grids)
    else:
        grid, costs, chunks = trial.grid, None, ((rows, each_nP, each_nP) for rows, each_nP in _chunks(trial))
    writer = TrialWriter.create(
        out, trial.seed, env_id=trial.env_id, config=trial.config, spec=trial.spec, versions=trial.versions,
        obs_dim=trial.obs_dim, num_snapshots=trial.committed, chunk_snapshots=chunk_rows(trial) if grid else None,
        grid=grid, num_tokens=num_tokens,
    )  # fmt: skip
    with writer:
        for rows, weights_nP, rounded_nP in chunks:
            writer.append(rounded_nP, *(getattr(trial, name)[rows] for name in SNAPSHOT_ARRAYS[1:]))
            if costs:
                costs.add(weights_nP, rounded_nP)
            yield len(weights_nP)
        writer.append_episodes(*trial.episodes)
        if num_tokens:
            block = max(1, chunk_rows(trial) // num_tokens)
            for start in range(0, trial.committed_tokens, block):
                writer.append_tokens(trial.tokens(start, min(start + block, trial.committed_tokens)))
        found = {"asked": error, "grid": grid, **costs.summary()} if costs else trial.compact
        writer.commit({}, complete=True, compact=found)


class EveryNth(Trial):
    """Every n-th snapshot of a trial, from the first on, all of its episodes and tokens; its settings say so."""

    def __init__(self, trial: Trial, n: int) -> None:
        super().__init__(trial._path, trial._record)
        self._n, self.committed = n, -(-trial.committed // n)
        self.config = {**self.config, "every_nth_snapshot": n * self.config.get("every_nth_snapshot", 1)}
        self.compact = None  # what was measured is of all snapshots

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name in (*EPISODE_ARRAYS, TOKENS):
            return super()._read(name, start, stop)
        stop, block = self.committed if stop is None else stop, -(-_AT_ONCE // self._n)
        firsts = range(start, stop, block)
        rows = [
            super(EveryNth, self)._read(name, i * self._n, (min(i + block, stop) - 1) * self._n + 1) for i in firsts
        ]
        return np.concatenate([each[:: self._n] for each in rows]) if rows else super()._read(name, 0, 0)


def chunk_rows(trial: Trial) -> int:
    """A power of two, so that the chunks of the store that is read end where those that are written do."""
    most_bytes, most_rows = _CHUNK
    return min(most_rows, 1 << max(0, int(math.log2(most_bytes / (4 * trial.spec.size)))))


@dataclass(frozen=True)
class Grids:
    """How coarsely each chunk of a trial is rounded."""

    base: float
    """The grid of the array, which all chunks share: theirs is 1, 2, 4, … or 256 times as coarse."""
    coarsest: float
    finest: float
    """Of the grids of chunks."""
    step_T: np.ndarray
    """[T − 1] ‖φ_{t+1} − φ_t‖."""
    limit_C: np.ndarray
    """The root-mean-square error that each chunk may have."""

    @classmethod
    def of(cls, trial: Trial, error: float) -> "Grids":
        """
        Raises:
            TiplError: a weight is not finite, or the error asked for is finer than float32 weights are.
        """
        step_T, largest = _steps(trial)
        power = 2.0 ** math.ceil(math.log2(largest or 1))  # at least as large as every weight
        mean_step = float(step_T.mean()) if step_T.any() else 0.0
        finest = power / 2**23  # multiples of it up to the largest weight are float32 numbers
        coarsest = _grid(error * mean_step, trial.spec.size) if mean_step else finest
        if coarsest < finest:
            raise TiplError(
                f"Trial {trial.seed} takes steps too small beside its weights for --error {error}; "
                f"give at least {_upwards(error * finest / coarsest)}, or keep the store as it is."
            )
        base = max(coarsest / _FINER, power / GRID_RANGE)
        rows = chunk_rows(trial)
        local_C = [
            step_T[max(0, start - 1) : start + rows].mean() if len(step_T) else 0.0
            for start in range(0, trial.committed, rows)
        ]
        limit_C = error * np.minimum(local_C, mean_step)
        return cls(base, coarsest, max(base, finest), step_T, limit_C)


def _grid(error: float, size: int) -> float:
    """The coarsest power of two whose rounding moves a snapshot by `error` at most, root mean square."""
    return 2.0 ** math.floor(math.log2(error * math.sqrt(12 / size)))


def _upwards(value: float) -> float:
    """To two digits."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / digit) * digit:.2g}")


def _steps(trial: Trial) -> tuple[np.ndarray, float]:
    """‖φ_{t+1} − φ_t‖ for every t, and the largest size of a weight."""
    steps, largest, last_P = [], 0.0, None
    for _, weights_nP in _chunks(trial):
        largest = max(largest, float(np.abs(weights_nP).max(initial=0)))
        if not np.isfinite(weights_nP).all():
            raise TiplError(
                f"Trial {trial.seed} holds weights that are not finite: the run diverged; leave it out of the store."
            )
        if last_P is not None:
            steps.append(_norms(weights_nP[:1] - last_P))
        steps.append(_norms(np.diff(weights_nP, axis=0)))
        last_P = weights_nP[-1].copy()
    return np.concatenate(steps), largest


def _chunks(trial: Trial) -> Iterator[tuple[slice, np.ndarray]]:
    rows = chunk_rows(trial)
    for start in range(0, trial.committed, rows):
        stop = min(start + rows, trial.committed)
        yield slice(start, stop), trial.weights(start, stop)


def rounded(trial: Trial, grids: Grids) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Chunk by chunk: which snapshots, their weights [n, P], these rounded."""
    for number, (rows, weights_nP) in enumerate(_chunks(trial)):
        limit = grids.limit_C[number]
        grid = max(_grid(limit, trial.spec.size), grids.finest) if limit else grids.finest
        while True:
            rounded_nP = np.rint(weights_nP * np.float32(1 / grid)) * np.float32(grid)
            if grid == grids.finest or _rms(_norms(rounded_nP - weights_nP)) <= limit:
                break
            grid /= 2  # few weights may be moved by more than the average
        yield rows, weights_nP, rounded_nP


class Costs:
    """What rounding does to a trial, chunk after chunk."""

    def __init__(self, step_T: np.ndarray, size: int) -> None:
        """`step_T`: as Grids has it; `size`: P."""
        count = len(step_T) + 1
        self._step_T = step_T
        self._error_T = np.zeros(count)
        self._done = 0
        # The last snapshots, as they were and rounded.
        self._recent = np.zeros((0, size), np.float32), np.zeros((0, size), np.float32)
        self._sampled = set(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int).tolist())
        self._sample: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        self._distances: dict[int, list[np.ndarray]] = {lag: [] for lag in _LAGS}
        self._products = np.zeros((2, 3))  # of successive steps, of these before, of these after: both versions

    def add(self, weights_nP: np.ndarray, rounded_nP: np.ndarray) -> None:
        self._error_T[self._done : self._done + len(weights_nP)] = _norms(rounded_nP - weights_nP)
        for row in range(len(weights_nP)):
            if self._done + row in self._sampled:
                self._sample[0].append(weights_nP[row].copy())
                self._sample[1].append(rounded_nP[row].copy())
        before = len(self._recent[0])
        both = [np.concatenate(parts) for parts in zip(self._recent, (weights_nP, rounded_nP), strict=True)]
        for lag in _LAGS:
            start = max(before, lag)
            if start < len(both[0]):
                true, compact = (_norms(all_nP[start:] - all_nP[start - lag : -lag]) for all_nP in both)
                self._distances[lag].append(np.array([true, compact]))
        for products, all_nP in zip(self._products, both, strict=True):
            steps_nP = np.diff(all_nP[max(0, before - 2) :], axis=0)
            first, second = steps_nP[:-1], steps_nP[1:]
            products += [np.einsum("np,np->", a, b, dtype=np.float64)
                         for a, b in ((first, second), (first, first), (second, second))]  # fmt: skip
        self._recent = both[0][-max(_LAGS) :].copy(), both[1][-max(_LAGS) :].copy()
        self._done += len(weights_nP)

    def summary(self) -> dict[str, Any]:
        """In units of the mean step; None where there is no step to measure by."""
        unit = float(self._step_T.mean()) if self._step_T.any() else 0.0
        true_SS, compact_SS = (_products(np.stack(rows)) for rows in self._sample)
        products_SS = np.abs(compact_SS - true_SS)
        distances = {lag: np.concatenate(parts, axis=1) for lag, parts in self._distances.items() if parts}
        thirds = np.array_split(np.arange(len(self._step_T)), 3)
        return {
            "mean_step": unit,
            "rms_error": _ratio(_rms(self._error_T), unit),
            "max_error": _ratio(self._error_T.max(), unit),
            # Beginning, middle and end, each in units of its own mean step.
            "rms_error_of_thirds": [
                _ratio(_rms(self._error_T[third + 1]), self._step_T[third].mean()) if len(third) else None
                for third in thirds
            ],
            # ⟨φ_i − φ_0, φ_j − φ_0⟩, in units of the mean step squared.
            "inner_product_rms_error": _ratio(_rms(products_SS), unit**2),
            "inner_product_max_error": _ratio(products_SS.max(), unit**2),
            "inner_product_snapshots": len(products_SS),
            # ‖φ_{t+h} − φ_t‖, root mean square, in units of its mean.
            "distance_error": {
                str(lag): _ratio(_rms(compact - true), true.mean()) for lag, (true, compact) in distances.items()
            },
            # Of half the last step added once more, over doing nothing: 2a⟨now, next⟩ − a²⟨now, now⟩ of ⟨next, next⟩.
            "half_step_skill": [
                _ratio(crossed - before / 4, after) for crossed, before, after in self._products.tolist()
            ],
        }


def _norms(rows_nP: np.ndarray) -> np.ndarray:
    """[n] the rows' lengths, summed in float64."""
    return np.sqrt(np.einsum("np,np->n", rows_nP, rows_nP, dtype=np.float64))


def _products(rows_NP: np.ndarray) -> np.ndarray:
    """⟨φ_i − φ_0, φ_j − φ_0⟩ [N, N] in float64, a block of columns at a time."""
    products_NN = np.zeros((len(rows_NP), len(rows_NP)))
    for start in range(0, rows_NP.shape[1], _COLUMNS):
        block = rows_NP[:, start : start + _COLUMNS].astype(np.float64)
        block -= block[0]
        products_NN += block @ block.T
    return products_NN


def _rms(values: np.ndarray) -> float:
    return math.sqrt(np.square(values, dtype=np.float64).mean())


def _ratio(value: float, unit: float) -> float | None:
    return float(value / unit) if unit else None
