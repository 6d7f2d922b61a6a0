"""The forecaster's interface: what it is shown, what it gives, how a live run asks it.

In: histories that end at their origin.  Out: forecast weights at the asked horizons.

A forecaster of your own is a subclass of `Forecaster`; its docstring is the contract, which `usable` checks before
anything runs. Causal by construction: a forecaster is handed nothing later than the origin. One that knows the trial's
own future through its basis (`full`, the paper's) says so by `causal = False`. Before φ_0 a run is taken to have stood
still.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from tipl.checks import Count, checked
from tipl.errors import TiplError
from tipl.representation import Codes
from tipl.store import History


class Forecaster(ABC):
    """History in, weights at the asked horizons out.

    A subclass has to set `name`, `label` and `context`, on the class or on the object, and to define `forecast`:

        class Still(Forecaster):
            name, label, context = "still", "the last weights again", 1

            def forecast(self, histories, horizons):
                now = np.stack([history.weights[-1] for history in histories])
                return np.repeat(now[:, None], len(horizons), axis=1)
    """

    name: str
    """In metrics.json and on the command line; no other forecaster beside it may have it."""
    label: str
    """In reports."""
    context: int | None
    """How many snapshots up to the origin it is given (fewer at a run's beginning); None: all of them. It has no
    default: who needs two and is given one forecasts no movement."""
    basis: str | None = None
    """Of forecasters in codes, the basis's name."""
    causal: bool = True
    """False where it knows, through its basis, what came after the origin."""
    is_model: bool = False
    """Trained by train/; all others are baselines."""
    codes: Codes | None = None
    """What it forecasts in, where it forecasts codes."""
    takes_tokens: bool = False
    """Whether its histories have to have `tokens`, which cost a live run time."""

    @abstractmethod
    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        """Return float32 weights [B, H, P] of B histories of P weights each at H horizons, in snapshots from the
        origin. All of them have to be finite. What a forecaster keeps between calls may change no forecast."""

    def follow(self, trial: int, weights_P: np.ndarray) -> "LiveRun":
        """Return a live run of the trial `trial` (any number) that begins at φ_0, weights_P [P]."""
        return LiveRun(self, trial, weights_P)


def asked(histories: Sequence[History], horizons: Sequence[int]) -> list[int]:
    """Return the horizons of what a forecaster is asked for.

    Raises:
        TiplError: there is no history, one is none, or a horizon is no number of snapshots ahead.
    """
    if not checked("`histories`", histories, Sequence[History]):
        raise TiplError("`histories` is empty; give a list of History, one at least.")
    found = checked("`horizons`", horizons, Sequence[Count])
    if not found:
        raise TiplError("`horizons` is empty; give snapshots ahead, one at least.")
    return found


def context_tokens(forecaster: Forecaster, history: History, count: int) -> np.ndarray:
    """Return a history's `count` context tokens, of as many weights or fewer.

    Raises:
        TiplError: it has none, or others.
    """
    found = history.tokens
    if found is None or len(found) != count:
        what = "none" if found is None else f"{len(found)}"
        raise TiplError(
            f"The forecaster {forecaster.name} takes {count} context tokens, and there are {what}: live runs have "
            "them (`tipl accelerate`, an Accelerator), and stores of `tipl collect --context`. causal needs none."
        )
    return found


class LiveRun:
    """A run as a forecaster follows it: snapshots go in as they come, forecasts from the last one come out.

    origin: the last snapshot's number.
    """

    def __init__(self, forecaster: Forecaster, trial: int, weights_P: np.ndarray) -> None:
        usable(forecaster)
        self._forecaster, self._trial, self.origin = forecaster, trial, 0
        self._rows, self._end = np.empty((2 * (forecaster.context or 32), len(weights_P)), np.float32), 1
        self._rows[0] = weights_P  # then snapshot after snapshot

    @property
    def now(self) -> np.ndarray:
        """φ_t"""
        return self._rows[self._end - 1]

    @property
    def window(self) -> np.ndarray:
        """[n, P], the snapshots that the forecaster sees, oldest first."""
        count = self._forecaster.context or self._end
        return self._rows[max(0, self._end - count) : self._end]

    def extend(self, snapshots: np.ndarray) -> None:
        """[n, P] float32, oldest first."""
        if self._end + len(snapshots) > len(self._rows):
            seen = self.window  # rows are never written twice, so that who has one keeps it
            self._rows, self._end = np.empty((2 * len(seen) + len(snapshots), seen.shape[1]), np.float32), len(seen)
            self._rows[: len(seen)] = seen
        self._rows[self._end : self._end + len(snapshots)] = snapshots
        self._end += len(snapshots)
        self.origin += len(snapshots)

    def forecast(self, epoch_index: int, horizons: Sequence[int], tokens: np.ndarray | None = None) -> np.ndarray:
        """[1, H, P]"""
        history = History(self._trial, self.origin, self.window, epoch_index, epoch_index + 1 or None, tokens)
        return np.asarray(self._forecaster.forecast([history], horizons))

    def state(self) -> dict[str, np.ndarray]:
        """All that the next forecast depends on, to be given to `restore`."""
        return {"path": self.window.copy(), "origin": np.array(self.origin)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where `state` was taken."""
        self._rows = np.array(state["path"], np.float32)
        self._end, self.origin = len(self._rows), int(state["origin"])


def usable(forecaster: object) -> Forecaster:
    """Return the forecaster if it keeps the contract that `Forecaster` states.

    Raises:
        TiplError: it lacks something, or something is of the wrong kind.
    """
    who = f"Forecaster {getattr(forecaster, 'name', None) or type(forecaster).__name__}"
    if not isinstance(forecaster, Forecaster):
        raise TiplError(f"{type(forecaster).__name__} is no Forecaster; make it a subclass of tipl.Forecaster.")
    for what, kinds, wanted in (
        ("name", str, "a word"),
        ("label", str, "what reports call it"),
        ("context", int | None, "how many snapshots it is given, or None for all of them"),
        ("basis", str | None, "the name of its basis, or None"),
        ("causal", bool, "False where it has seen the future"),
        ("is_model", bool, "True or False"),
        ("codes", Codes | None, "Codes, or None"),
    ):
        if not hasattr(forecaster, what):
            raise TiplError(f"{who} has no `{what}`; set it: {wanted}.")
        value = getattr(forecaster, what)
        if not isinstance(value, kinds) or value == "" or (what == "context" and value is not None and value < 1):
            raise TiplError(f"{who} has {value!r} as `{what}`; give {wanted}.")
    return forecaster


def checked_forecast(forecaster: Forecaster, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
    """The forecast [B, H, P].

    Raises:
        TiplError: it has another shape, or is not finite.
    """
    made = checked(f"What {forecaster.name} returned", forecaster.forecast(histories, horizons), np.ndarray)
    wanted = (len(histories), len(horizons), histories[0].weights.shape[1])
    if made.shape != wanted:
        raise TiplError(f"Forecaster {forecaster.name} returned the shape {made.shape}, not {wanted}; mend it.")
    if not np.isfinite(made).all():
        raise TiplError(f"Forecaster {forecaster.name} returned weights that are NaN or infinite; mend or drop it.")
    return made


class WeightedSum(Forecaster):
    """A forecast in the span of the snapshots seen: φ̃_{t+h} = φ_t + Σ_k a_{h,k} (φ_{t−k} − φ_t)."""

    @abstractmethod
    def coefficients(self, epoch_index: int, horizons: Sequence[int]) -> np.ndarray:
        """a [H, context], the oldest snapshot first; the last column, φ_t's own, has no effect."""

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        assert self.context is not None
        out = np.empty((len(histories), len(horizons), histories[0].weights.shape[1]), np.float32)
        for b, history in enumerate(histories):
            a_HK = self.coefficients(history.epoch_index, horizons).astype(np.float32)
            window = history.weights[-self.context :]
            before = self.context - len(window)  # φ_0, the first one, stands for what was before it
            a_HK = np.concatenate([a_HK[:, : before + 1].sum(axis=1, keepdims=True), a_HK[:, before + 1 :]], axis=1)
            used = a_HK.any(axis=0)
            out[b] = window[-1] + a_HK[:, used] @ (window[used] - window[-1])
        return out
