"""Baselines that extrapolate in a low-rank view of a trial: its past alone, or, for comparison, its whole path.

In: histories; for the look-ahead one also codes.  Out: forecasts. See baselines.py for those that need no SVD.
"""

from collections.abc import Sequence

import numpy as np

from tipl.forecasting.forecaster import Forecaster
from tipl.forecasting.trained import known_codes
from tipl.representation import Codes, Gram, prefix_bases
from tipl.store import History
from tipl.store.history import Seen

_BLOCK = 2**24  # numbers of a block of columns that products are taken of


class PathProducts:
    """Inner products of one trial's displacements from φ_0, extended as the origin moves on.

    They hold no snapshot later than the last origin asked for. Several forecasters may share them.
    """

    def __init__(self) -> None:
        self._seen, self._gram = Seen(), np.zeros((0, 0))

    def upto(self, history: History) -> Gram:
        """Of all snapshots up to this origin; only the products of new ones are computed, a block of columns at a time.

        Centered on φ_0, whose own products are left zero.
        """
        if not self._seen.is_of(history.weights):
            self._seen, self._gram = Seen(), np.zeros((0, 0))
        self._seen.extend(history.weights)
        old, new = len(self._gram), len(history.weights)
        if new > old:
            size = history.weights.shape[1]
            kind = np.float64 if size < 4096 else np.float32  # many products are added up in float64
            fresh, width = np.zeros((new - old, new)), max(1, _BLOCK // new)
            for start in range(0, size, width):
                columns = history.weights[:, start : start + width].astype(kind)
                moved = columns - columns[0]
                fresh += moved[old:] @ moved.T
            gram = np.empty((new, new))
            gram[:old, :old] = self._gram
            gram[old:] = fresh
            gram[:old, old:] = fresh[:, :old].T
            self._gram = gram
        return Gram(self._gram[:new, :new], np.zeros(new))


class PrefixLine(Forecaster):
    """The line through the last `count` snapshots, seen in the leading `rank` directions of the path so far.

    With X the displacements from φ_0 and X = U Σ Vᵀ, the slope X ℓ is projected to U_r U_rᵀ X ℓ = X V_r V_rᵀ ℓ, and
    φ̃_{t+h} = φ_t + h X V_r V_rᵀ ℓ.
    """

    name = "prefix-line"
    context = None

    def __init__(self, rank: int, count: int, products: PathProducts | None = None) -> None:
        self.label = f"line through the last {count} in the {rank} leading directions so far"
        self._rank, self._count = rank, count
        self._products = products or PathProducts()

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        out = np.empty((len(histories), len(horizons), histories[0].weights.shape[1]), np.float32)
        for rows in _by_run(histories):
            steps = self._steps([histories[b] for b in rows])
            for b, step in zip(rows, steps, strict=True):
                out[b] = histories[b].weights[-1] + np.multiply.outer(np.array(horizons, np.float32), step)
        return out

    def _steps(self, histories: Sequence[History]) -> np.ndarray:
        """The projected slope [B, P] at ascending origins of one trial, in one product with its snapshots."""
        longest = histories[-1]
        gram = self._products.upto(longest)
        weights = np.zeros((len(histories), len(longest.weights)))
        bases = prefix_bases(gram, [history.origin for history in histories], self._rank)
        for row, history, basis in zip(weights, histories, bases, strict=True):
            count, v = len(history.weights), basis.codes_SD
            row[:count] = v @ (v.T @ slope(count, self._count))
        weights[:, 0] -= weights.sum(axis=1)  # of displacements from φ_0
        return weights.astype(np.float32) @ longest.weights


def _by_run(histories: Sequence[History]) -> list[list[int]]:
    """The places of the histories of each run, at ascending origins."""
    runs: list[tuple[Seen, list[int]]] = []
    for b in sorted(range(len(histories)), key=lambda b: -histories[b].origin):
        rows = next((rows for seen, rows in runs if seen.is_of(histories[b].weights)), None)
        if rows is None:
            runs.append((seen := Seen(), rows := []))
            seen.extend(histories[b].weights)
        rows.insert(0, b)
    return [rows for _, rows in runs]


class DMD(Forecaster):
    """Exact dynamic mode decomposition of the last `count` + 1 snapshots (Tu et al. 2014), of rank `rank`.

    With X = (x_0 … x_{n−2}), Y = (x_1 … x_{n−1}) and X ≈ U_r Σ_r V_rᵀ, the operator A = Y V_r Σ_r⁻¹ U_rᵀ gives
    x_{n−1+h} = A^h x_{n−1} = Y M^{h−1} c with c = V_r Σ_r⁻² V_rᵀ Xᵀ x_{n−1} and M = V_r Σ_r⁻² V_rᵀ Xᵀ Y: inner
    products of snapshots are all that it takes.

    A horizon at which the modes have grown beyond float32 is answered with φ_t.
    """

    name = "dmd"

    def __init__(self, rank: int, count: int) -> None:
        self.label = f"dynamic mode decomposition (rank {rank}, last {count})"
        self.context = count + 1
        self._rank = rank

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        return np.stack([self._one(history, horizons) for history in histories]).astype(np.float32)

    def _one(self, history: History, horizons: Sequence[int]) -> np.ndarray:
        seen = history.weights
        if len(seen) < 2:
            return np.repeat(seen[-1:], len(horizons), axis=0)
        path = seen.astype(np.float64)
        gram = path @ path.T
        values, vectors = np.linalg.eigh(gram[:-1, :-1])
        kept = values[-self._rank :] > 1e-12 * values[-1]
        v, squares = vectors[:, -self._rank :][:, kept], values[-self._rank :][kept]
        pseudo = v / squares @ v.T
        c, transition = pseudo @ gram[:-1, -1], pseudo @ gram[:-1, 1:]
        coefficients = []
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(max(horizons)):
                coefficients.append(c)
                c = transition @ c
            made = np.stack([coefficients[h - 1] for h in horizons]) @ path[1:]
            held = np.abs(made).max(axis=1, keepdims=True) < np.finfo(np.float32).max
        return np.where(held, made, path[-1])


class CodeLine(Forecaster):
    """The line through the last `count` codes, decoded: with the `full` basis, what look-ahead alone manufactures."""

    def __init__(self, codes: Codes, count: int = 20) -> None:
        self.name = f"line-{count}-{codes.name.replace(' ', '-')}"
        seen = ": sees the future" if codes.look_ahead else ""
        self.label = f"line through the last {count} codes ({codes.name} basis{seen})"
        self.basis, self.causal, self.context = codes.name, not codes.look_ahead, 1
        self.codes, self._count = codes, count

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        assert self.codes is not None
        known = known_codes(self.codes, histories)
        out = []
        for history in histories:
            codes, basis = known[history.trial]
            seen = codes[: history.origin + 1]
            step = slope(len(seen), self._count) @ seen
            mean = seen[-self._count :].mean(axis=0)
            middle = (min(self._count, len(seen)) - 1) / 2
            ahead = mean + np.multiply.outer(np.array(horizons) + middle, step)
            out.append(basis.decode(ahead.astype(np.float32)))
        return np.stack(out)


def slope(length: int, count: int) -> np.ndarray:
    """ℓ [length] such that ℓ @ x is the slope a step of the least-squares line through the last `count` rows of x."""
    count = min(count, length)
    weights = np.zeros(length)
    if count > 1:
        time = np.arange(count) - (count - 1) / 2
        weights[-count:] = time / (time**2).sum()
    return weights
