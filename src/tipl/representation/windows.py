"""A window of snapshots by its inner products: what the causal model sees and learns from.

In: weights, or a store's trials.  Out: for each origin and tensor the Gram matrix of the window's differences, and
their products with what came.

The window ends at the origin t. Its tokens are differences of snapshots, the newest first: 20 single steps, then spans
of 5 up to 100 snapshots back, then spans of 25 up to 200. A forecast is a weighted sum of them, so that no more than
their inner products is needed to find the weights, whatever the policy; and these do not change when weight space is
rotated, nor, when units of a hidden layer change places, does anything but the forecast's own units. Any other vector
in weight space can be a token: context tokens (`tipl.rl.context`), where a run has them, follow those of the path.

Shapes: B windows, J tokens, H horizons, G groups (the tensors of a policy, then the policy as a whole), P weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import pairwise

import numpy as np
import torch

from tipl.errors import TiplError
from tipl.store import Trial

EDGES = (*range(21), *range(25, 101, 5), *range(125, 201, 25))
"""Snapshots before the origin between which the tokens lie."""
TOKENS = len(EDGES) - 1
"""Of the path."""
SINGLE = 20
"""The first tokens are single steps."""
WINDOW = EDGES[-1] + 1
"""Snapshots that a window takes; before φ_0 the run stood still."""
HORIZONS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50, 100)
"""Snapshots ahead that a causal model forecasts; those between are interpolated."""
WHITE = 0.1, 1000.0
"""Between which the variance of white noise in `noisy` lies, in that of a window's own steps. On HalfCheetah 256-256
steps of different iterations have cosines of 0.001 to 0.004, as those of a straight path have under noise of some
hundred times their own."""
COLORED = 0.1, 10.0
"""Between which that of colored noise lies. On InvertedPendulum 8-8 neighbouring steps have cosines of 0.83, as
HalfCheetah's would beside others that are ten times as long and agree with one another."""
TIMES = (0.0, *np.geomspace(1.0, 1000.0, 16).tolist())
"""After how many steps the noise has forgotten its direction (to 1/e); 0: at once, which is white noise."""
_WHITE = 0.5  # of the windows with noise have white noise
_MANY = 4096  # weights from which products are of float32
_BLOCK = 256  # origins whose snapshots are multiplied at once
_WEIGHED = (1, 10, 100)  # horizons whose displacements say where windows are drawn
_EVENLY = 0.5  # of the windows are drawn evenly over time, the rest where the run moves most


@dataclass(frozen=True)
class Windows:
    """Windows of groups of weights, each in its own unit: the mean square of its last single steps that moved.

    Arrays begin with [B]. The products are float32, the units float64.
    """

    own: np.ndarray
    """[B, J, J] inner products of the group's tokens, in `unit`."""
    whole: np.ndarray
    """[B, J, J] of the whole policy's tokens, in the whole policy's unit."""
    unit: np.ndarray
    """[B] squared length of a mean step of the group; 0 where it has not moved."""
    share: np.ndarray
    """[B] `unit` as a share of the whole policy's."""
    size: np.ndarray
    """[B] weights of the group."""
    epoch_index: np.ndarray
    """[B] of the origin in its PPO iteration; -1 unknown."""
    origin: np.ndarray
    """[B] t."""

    def __len__(self) -> int:
        return len(self.own)

    @property
    def tokens(self) -> int:
        """J"""
        return self.own.shape[-1]


@dataclass(frozen=True)
class TrainingWindows(Windows):
    """Windows and what came after them."""

    toward: np.ndarray
    """[B, J, H] inner products of the tokens with φ_{t+h} − φ_t, in `unit`."""
    moved: np.ndarray
    """[B, H] |φ_{t+h} − φ_t|² of the group, in `unit`."""
    is_whole: np.ndarray
    """[B] bool: the group is the policy as a whole."""
    weight: np.ndarray
    """[B, H] float32: `unit` over the mean of |φ_{t+h} − φ_t|² of the whole policy over the trial's origins. Times a
    squared error in `unit` and summed over the groups: the trial's 1 − skill, on average over its origins."""
    often: np.ndarray
    """[B] float32: how often such an origin was drawn, beside one drawn evenly over time; the mean of 1/`often` is 1.
    The mean over windows of something over `often` stands for its mean over all origins."""


def windows_of(
    weights: np.ndarray, sizes: Sequence[int], epoch_index: int, origin: int, context: np.ndarray | None = None
) -> tuple[np.ndarray, Windows]:
    """The window that a history ends with.

    Args:
        weights: [n, P], the last is φ_t; where n is less than WINDOW the first one is φ_0.
        sizes: of the groups, which lie end to end in P.
        context: further tokens [C, P] known at the origin; of weights after theirs, a critic's, they are 0.

    Returns:
        The tokens [J, P] as float32 differences, and the groups' windows [G − 1] (the whole policy's if it has one
        group).
    """
    tokens = _tokens(weights, 0 if context is None else len(context))
    if context is not None:
        tokens[TOKENS:, : context.shape[1]] = context
        tokens[TOKENS:, context.shape[1] :] = 0
    ends = np.cumsum([0, *sizes])
    products = np.stack([_product(tokens[:, start:end]) for start, end in pairwise(ends)])
    parts = np.concatenate([products, products.sum(0, keepdims=True)])[:, None]
    where = np.array([epoch_index]), np.array([origin])
    return tokens, _windows(parts, (*sizes, int(ends[-1])), *where, groups=slice(0, len(sizes)))


def _tokens(weights: np.ndarray, more: int) -> np.ndarray:
    """[J, P] of the last snapshots of a run [n, P], oldest first; the first one stands for those before it. Room for
    so many more follows."""
    rows = np.maximum(len(weights) - 1 - np.array(EDGES), 0).tolist()
    tokens = np.empty((TOKENS + more, weights.shape[1]), weights.dtype)
    for token, (newer, older) in zip(
        tokens[:TOKENS], pairwise(rows), strict=True
    ):  # a gather would copy the weights once more
        np.subtract(weights[newer], weights[older], out=token)
    return tokens


def training_windows(trial: Trial, origins: int, rng: np.random.Generator, context: bool = False) -> TrainingWindows:
    """Windows of a trial at about `origins` origins, for every tensor and the whole.

    Half of the origins are drawn evenly over time, half in proportion to what the weights are about to move: on
    InvertedPendulum half of the squared displacement comes in the first tenth of a run, so that origins drawn evenly
    would teach by a twentieth of their number.

    Args:
        context: with the trial's context tokens behind those of the path, at each origin the last that were made.

    Raises:
        TiplError: the trial is too short, holds weights that are not finite, or has no context tokens.
    """
    last = trial.committed - 1 - HORIZONS[-1]
    if last < 1:
        raise TiplError(
            f"Trial {trial.seed} has {trial.committed} snapshots; a causal model learns from at least "
            f"{HORIZONS[-1] + 2}: collect longer trials."
        )
    chance = _chances(_movement(trial, last), origins)
    chosen = 1 + np.flatnonzero(rng.random(last) < chance)
    if not len(chosen):
        chosen = 1 + np.flatnonzero(chance == chance.max())[:1]
    ends = np.cumsum([0, *trial.spec.sizes])
    before, after = np.array(EDGES), np.array((0, *HORIZONS))
    past, toward, moved = [], [], []
    for start in range(0, last + 1, _BLOCK):
        mine = chosen[(chosen >= start) & (chosen < start + _BLOCK)]
        if not len(mine):
            continue
        first = max(0, start - EDGES[-1])
        rows = trial.weights(first, min(start + _BLOCK, last + 1) + HORIZONS[-1])
        rows = rows - rows[len(rows) // 2]
        more = _Context(trial, mine) if context else None
        back = np.maximum(mine[:, None] - before, 0) - first  # [M, J + 1]
        ahead = mine[:, None] + after - first  # [M, H + 1]
        parts = []
        for begin, end in pairwise(ends):
            gram = _product(rows[:, begin:end])
            seen = -np.diff(-np.diff(gram[back[:, :, None], back[:, None, :]], axis=1), axis=2)
            cross = -np.diff(gram[back[:, :, None], ahead[:, None, :]], axis=1)
            square = gram[ahead, ahead] - 2 * gram[ahead, ahead[:, :1]] + gram[ahead[:, :1], ahead[:, :1]]
            came = (cross - cross[:, :, :1])[:, :, 1:]
            if more:
                seen, came = more.beside(seen, came, rows, begin, end, back, ahead)
            parts.append((seen, came, square[:, 1:]))
        for into, of_groups in zip((past, toward, moved), zip(*parts, strict=True), strict=True):
            grouped = np.stack(of_groups)
            into.append(np.concatenate([grouped, grouped.sum(0, keepdims=True)]))
    seen, cross, square = (np.concatenate(each, axis=1) for each in (past, toward, moved))
    windows = _windows(
        seen, (*trial.spec.sizes, trial.spec.size), trial.epoch_index[chosen], chosen, groups=slice(None)
    )
    unit = np.where(windows.unit > 0, windows.unit, 1.0)
    often = chance[chosen - 1] * (1 / chance[chosen - 1]).mean()
    mean = (square[-1] / often[:, None]).mean(axis=0)
    weight = windows.unit[:, None] / np.where(mean > 0, mean, np.inf)
    flat = (len(unit), windows.tokens, len(HORIZONS))
    return TrainingWindows(
        **{field.name: getattr(windows, field.name) for field in fields(Windows)},
        toward=(cross.reshape(flat) / unit[:, None, None]).astype(np.float32),
        is_whole=np.repeat(np.arange(len(square)) == len(square) - 1, len(chosen)),
        moved=(square.reshape(flat[0], flat[2]) / unit[:, None]).astype(np.float32),
        weight=weight.astype(np.float32),
        often=np.tile(often, len(square)).astype(np.float32),
    )


class _Context:
    """The context tokens at M origins of a trial, and their products with what its snapshots say."""

    def __init__(self, trial: Trial, origins: np.ndarray) -> None:
        rows, self._of_M = np.unique(trial.iterations_ended[origins], return_inverse=True)
        tokens = trial.tokens(max(0, int(rows[0]) - 1), int(rows[-1]))
        none, first = np.zeros(tokens.shape[1:], np.float32), max(1, int(rows[0]))
        self._tokens = np.stack([tokens[row - first] if row else none for row in rows])  # [I, C, P]

    def beside(
        self, seen: np.ndarray, came: np.ndarray, rows: np.ndarray, begin: int, end: int, back: np.ndarray,
        ahead: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Products of the path's tokens [M, J, J], and with what came [M, J, H], with the context's behind.

        Args:
            rows: snapshots [n, P], of which the group is `begin` … `end` - 1.
            back, ahead: which of them the path's tokens lie between [M, J + 1], and what came [M, 1 + H].
        """
        tokens = self._tokens[:, :, begin:end].astype(np.float64)
        with_rows = (tokens @ rows[:, begin:end].T.astype(np.float64))[self._of_M]  # [M, C, n]
        among = (tokens @ tokens.mT)[self._of_M]
        path = -np.diff(np.take_along_axis(with_rows, back[:, None], axis=2), axis=2)  # [M, C, J]
        future = np.take_along_axis(with_rows, ahead[:, None], axis=2)
        seen = np.block([[seen, path.mT], [path, among]])
        return seen, np.concatenate([came, future[:, :, 1:] - future[:, :, :1]], axis=1)


def _movement(trial: Trial, last: int) -> np.ndarray:
    """[last] of the origins 1 … last: how far the weights go from there, as squares, in the trial's means."""
    squares = np.empty((last, len(_WEIGHED)))
    for start in range(0, last, _BLOCK):
        rows = trial.weights(start + 1, min(start + _BLOCK, last) + 1 + HORIZONS[-1])
        if not np.isfinite(rows).all():
            raise TiplError(f"Trial {trial.seed} holds weights that are not finite: the run diverged; leave it out.")
        count = len(rows) - HORIZONS[-1]
        for k, h in enumerate(_WEIGHED):
            moved = rows[h : h + count] - rows[:count]
            squares[start : start + count, k] = np.einsum("tp,tp->t", moved, moved)
    mean = squares.mean(axis=0)
    return (squares / np.where(mean > 0, mean, 1.0)).mean(axis=1)


def _chances(movement: np.ndarray, count: int) -> np.ndarray:
    """With which chance to draw each of n origins, so that about `count` are drawn, none twice."""
    if count >= len(movement):
        return np.ones(len(movement))
    share = np.full(len(movement), 1 / len(movement))
    if movement.any():
        share = _EVENLY * share + (1 - _EVENLY) * movement / movement.sum()
    factor = float(count)
    for _ in range(50):  # those that are certain leave the others more
        chance = np.minimum(1.0, factor * share)
        factor *= count / chance.sum()
    return np.minimum(1.0, factor * share)


def noisy(windows: TrainingWindows, rng: np.random.Generator) -> TrainingWindows:
    """The windows of runs that step as these and, besides, at random in directions of their own.

    Every window is given steps of noise, of a variance c² between `WHITE` or `COLORED` of its own steps' (log-uniform).
    Half of them have white noise, the others noise whose steps agree for a while, those of an Ornstein-Uhlenbeck
    velocity: steps k apart have the inner product c² exp(−k / τ), τ among `TIMES` and no more than the run's age, so
    that what has gone straight for all of a young run is not expected to go on for long. In many dimensions noise has
    no product with anything but itself: these products, summed over the spans of two tokens, or over a token's and what
    comes, are added to those that were there. Context tokens have noise of their own, as large beside them as the
    path's beside its steps. Every window keeps its share of the trial's displacement. So a small
    policy, whose steps agree, teaches by what a large one, whose steps hardly do, can be forecast, and the other way
    round.
    """
    count = len(windows)
    young_B = np.searchsorted(TIMES, np.maximum(windows.origin, 1), side="right")  # times that the run has lasted
    time_B = np.where(rng.random(count) < _WHITE, 0, rng.integers(1, np.maximum(young_B, 2)))
    least_B, most_B = np.log(np.where(time_B[:, None] == 0, WHITE, COLORED)).T
    variance_B = np.exp(rng.uniform(least_B, most_B)).astype(np.float32)
    unit_B = 1 + variance_B  # the new one, in the old
    share_B = np.maximum(windows.share, np.finfo(np.float32).tiny).astype(np.float32)
    made = {name: getattr(windows, name).copy() for name in ("own", "whole", "toward", "moved", "weight")}
    for start in range(0, count, _BLOCK):  # all at once would be as much memory as the windows take
        of = slice(start, start + _BLOCK)
        seen, toward, moved = _noise_products(time_B[of], windows.origin[of])
        variance_11, context = variance_B[of, None, None], np.arange(TOKENS, windows.tokens)
        for name in ("own", "whole"):
            made[name][of, :TOKENS, :TOKENS] += variance_11 * seen
            made[name][of, context, context] *= unit_B[of, None]
        made["toward"][of, :TOKENS] += variance_11 * toward
        made["moved"][of] += variance_B[of, None] * moved
        for name in ("own", "whole", "toward", "moved"):
            made[name][of] /= unit_B[of].reshape(-1, *[1] * (made[name].ndim - 1))
        # The quotient first: of a tensor that stood still both are 0, and 0 times what is infinite would be NaN.
        added = variance_B[of, None] * moved * (windows.weight[of] / share_B[of, None])
        made["weight"][of] *= unit_B[of, None] / (1 + added)
    return replace(windows, **made)


def _noise_products(time_B: np.ndarray, origin_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expected inner products of noise of variance 1: of tokens [B, J, J], of tokens and what comes [B, J, H], of what
    comes with itself [B, H]; float32.

    Args:
        time_B: the number of its time among `TIMES`.
        origin_B: steps before φ_0 are zero.
    """
    until, now = _noise_until(TIMES), HORIZONS[-1]
    time_B1, time_B11 = time_B[:, None], time_B[:, None, None]
    edge_BE = now + np.minimum(EDGES, origin_B[:, None])
    ahead_H = now - np.array(HORIZONS)
    seen = np.diff(np.diff(until[time_B11, edge_BE[:, :, None], edge_BE[:, None, :]], axis=1), axis=2)
    toward = until[time_B11, edge_BE[:, :, None], now] - until[time_B11, edge_BE[:, :, None], ahead_H]
    moved = until[time_B1, now, now] - 2 * until[time_B1, ahead_H, now] + until[time_B1, ahead_H, ahead_H]
    return seen.astype(np.float32), np.diff(toward, axis=1).astype(np.float32), moved.astype(np.float32)


@cache
def _noise_until(times: tuple[float, ...]) -> np.ndarray:
    """[times, N + 1, N + 1] for the N steps about an origin, the latest to come first: the sum of exp(−|i − j| / τ)
    over the steps i before the one index and j before the other."""
    step = np.arange(HORIZONS[-1] + EDGES[-1])
    apart = np.abs(step[:, None] - step)
    products = [np.exp(-apart / time) if time else np.eye(len(step)) for time in times]
    return np.pad(np.stack(products).cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))


def _windows(
    products: np.ndarray, sizes: Sequence[int], epoch_indices: np.ndarray, origins: np.ndarray, groups: slice
) -> Windows:
    """Windows from inner products [G, M, J, J], the whole policy's last: those of `groups`, one after another."""
    single = np.diagonal(products, axis1=2, axis2=3)[..., :SINGLE]
    moving = (single > 0).sum(axis=2)
    units = single.sum(axis=2) / np.maximum(moving, 1)  # [G, M]
    scaled = (products / np.where(units > 0, units, 1.0)[..., None, None]).astype(np.float32)
    own, unit = scaled[groups], units[groups]
    count, origins_each = unit.shape
    share = unit / np.where(units[-1] > 0, units[-1], 1.0)
    return Windows(
        own=own.reshape(-1, *own.shape[-2:]),
        whole=np.broadcast_to(scaled[-1], own.shape).reshape(-1, *own.shape[-2:]),
        unit=unit.reshape(-1),
        share=share.reshape(-1),
        size=np.repeat(np.array(sizes)[groups], origins_each),
        epoch_index=np.tile(epoch_indices, count),
        origin=np.tile(origins, count),
    )


def _product(rows: np.ndarray) -> np.ndarray:
    """All inner products of rows, float64; the products themselves in float32 where there are many."""
    if rows.shape[1] < _MANY:
        rows = rows.astype(np.float64)
        return rows @ rows.T
    if len(rows) > TOKENS:  # numpy sees the symmetry and does half the work
        return (rows @ rows.T).astype(np.float64)
    few = torch.from_numpy(rows)
    return (few @ few.T).double().numpy()  # which for few rows still takes a third less time
