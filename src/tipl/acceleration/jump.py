"""Jumps: whether a live run goes to forecast weights, how far, and whether it goes back.

In: the weights that an optimizer passes through, a judge of weights on the batch in hand, the returns of episodes.
Out: once an iteration a displacement to add to the weights, or none, and why.

A jump is no step of the optimizer. The history that forecasters see is the run's path less all jumps, so that a jump is
not taken for evidence that the next should go the same way. Shapes: n snapshots of an iteration, P weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tipl.acceleration.evidence import Evidence, Judge
from tipl.checks import Place
from tipl.config.jumps import JumpConfig, jumps_of
from tipl.config.rivals import parts_of_arm
from tipl.errors import TiplError
from tipl.forecasting.autoregression import Autoregression
from tipl.forecasting.context import ContextSum
from tipl.forecasting.forecaster import Forecaster, LiveRun, usable
from tipl.forecasting.named import as_name
from tipl.forecasting.trained import CausalForecaster

_TRIES = 8  # lengths that are judged
_SHORTEST = 0.01  # share of a proposal below which it is rejected
_MOST_PATIENT = 16  # times `every`
_MEMORY = 0.7  # of the evidence about the forecaster, from one iteration to the next
_SILENT_BELOW = 0.1  # trust below which nothing is proposed
_NO_HORIZON = ("lookahead", "average")  # go to the same place whatever the horizon
_LOG_STDS = ("logstd", "log_std")  # how names of log standard deviations end, in CleanRL and Stable-Baselines3

Kind = Literal["waited", "silent", "invalid", "rejected", "shrunk", "accepted", "taken back"]
KINDS: tuple[Kind, ...] = ("waited", "silent", "invalid", "rejected", "shrunk", "accepted", "taken back")


@dataclass(frozen=True)
class Jump:
    """What came of one iteration.

    kind: `waited` (no proposal was due), `silent` (the forecaster has not earned trust, foresees no movement, or its
        proposals did harm), `invalid` (the forecast is not finite or of another shape), `rejected` (no length of it
        passed), `shrunk`, `accepted` (in full), `taken back` (the last jump, by what came of it).
    displacement: [P] to add to the weights; None where nothing changes.
    share: of the trusted proposal that was taken.
    kl: of the jump.
    trust: in the forecaster, 0 to 1, before this iteration's proposal.
    """

    kind: Kind
    displacement: np.ndarray | None = None
    share: float = 0.0
    kl: float = 0.0
    trust: float = 1.0


def jumps_for(forecaster: Forecaster | Place, jump: JumpConfig | None = None) -> JumpConfig:
    """Return how to jump with a forecaster, given by its name, its folder or itself: `jump`, or what is usual with it.

    Raises:
        TiplError: something in `jump` that is not as usual has no effect on this forecaster.
    """
    match forecaster:
        case ContextSum():
            usual = jumps_of("context")
        case CausalForecaster():
            usual = jumps_of("causal")
        case Autoregression():
            usual = jumps_of("autoregression")
        case Forecaster():
            usual = JumpConfig()
        case _:
            usual = jumps_of(as_name(forecaster))
    if jump is None:
        return usual
    if not isinstance(forecaster, Forecaster) and parts_of_arm(as_name(forecaster))[1] is None and jump != usual:
        raise TiplError(f"Settings of jumps have no effect on {forecaster}, which makes none; leave them out.")
    if jump.horizon != usual.horizon and not isinstance(forecaster, Forecaster) and as_name(forecaster) in _NO_HORIZON:
        raise TiplError(
            f"horizon has no effect on {forecaster}, which goes to the same place whatever the horizon; leave it out."
        )
    return jump


def require_no_tokens(forecaster: Forecaster) -> None:
    """
    Raises:
        TiplError: it is no forecaster, or takes context tokens, which are made of a policy's batches.
    """
    if usable(forecaster).takes_tokens:
        raise TiplError(
            f"The forecaster {forecaster.name} looks at a policy's last batches, and an optimizer knows none; take "
            "causal, or an Accelerator."
        )


def may_jump(names: Sequence[str], sizes: Sequence[int], log_std: bool = False) -> np.ndarray:
    """Return which weights may jump, all but log standard deviations unless `log_std`: [P] bool, for tensors of these
    names and sizes that lie end to end.

    Raises:
        TiplError: none may, or there is no log standard deviation that could.
    """
    if log_std and not any(map(is_log_std, names)):
        raise TiplError("--log-std has no effect: this policy has no log standard deviations; leave it out.")
    jump = [log_std or not is_log_std(name) for name in names]
    if not any(jump):
        raise TiplError("This policy has nothing but log standard deviations, which do not jump; give its network too.")
    return np.repeat(jump, sizes)


def is_log_std(name: str) -> bool:
    """A log standard deviation may be parametrized: parametrizations.actor_logstd.original."""
    return any(part.endswith(_LOG_STDS) for part in name.split(".")[-2:])


class Jumper:
    """The jumps of one run.

    Trust is the least-squares factor b of what came on what was forecast, d ≈ b d̂, over the last iterations, held
    within 0 and 1: noise earns next to none. It begins at 0: where trust counts, the first jump is at the earliest in
    the second iteration.
    """

    def __init__(self, forecaster: Forecaster, config: JumpConfig, moves_P: np.ndarray, trial: int = 0) -> None:
        """
        Args:
            moves_P: [P] bool, the weights that may jump.
            trial: what a forecaster is told of the run.
        """
        self.forecaster, self.moves_P = usable(forecaster), moves_P
        self._config, self._trial = config, trial
        self._run: LiveRun | None = None  # the snapshots less the jumps before them
        self._jumped = np.zeros(len(moves_P), np.float32)  # Σ of all jumps
        self._expected: np.ndarray | None = None  # where the path was forecast to be at the next iteration's end
        self._from: np.ndarray | None = None  # and where it was then
        self._toward = self._square = 0.0  # Σ d̂ · d and Σ d̂ · d̂, the older the lighter
        self._last: np.ndarray | None = None  # the last jump, while it may be taken back
        self._departed: np.ndarray | None = None  # the weights that it went from
        self._before: list[float] = []  # returns before it
        self._patience, self._waited = 1, 0
        self._evidence = Evidence()

    @property
    def trust(self) -> float:
        """Between 0 and 1."""
        return float(np.clip(self._toward / self._square, 0, 1)) if self._square > 0 else 0.0

    def begin(self, weights_P: np.ndarray) -> None:
        """The weights before the first iteration, φ_0."""
        self._run = self.forecaster.follow(self._trial, weights_P)

    def step(
        self,
        snapshots: np.ndarray,
        judge: Judge,
        returns: Sequence[float] = (),
        tokens: Callable[[], np.ndarray] | None = None,
        outcome: Judge | None = None,
    ) -> Jump:
        """One iteration has passed: what to add to the weights.

        Args:
            snapshots: [n, P] of the iteration, the last are the weights now.
            judge: of weights [P] on the iteration's batch.
            returns: of the episodes that ended in the iteration.
            tokens: makes context tokens [J, P], asked where the forecaster takes them and a proposal is due.
            outcome: `judge` by advantages with λ = 1, asked where `JumpConfig.evidence` is; without it `judge` is.
        """
        now = self._record(snapshots)
        self._learn(now)
        if self._config.evidence:
            self._evidence.weigh(outcome or judge)
        trust = self.trust
        taken, self._last = self._last, None
        if taken is not None and (self._is_regretted(judge) or self._has_fallen(returns)):
            self._patience, self._waited = min(2 * self._patience, _MOST_PATIENT), 0
            self._jumped -= taken
            return Jump("taken back", -taken, trust=trust)
        if taken is not None:
            self._patience = max(1, self._patience // 2)
        self._waited += 1
        if self._waited < self._config.every * self._patience:
            return Jump("waited", trust=trust)
        self._waited = 0
        made = tokens() if tokens is not None and self.forecaster.takes_tokens else None
        proposal = self._propose(now, len(snapshots), made)
        if proposal is None:
            return Jump("invalid", trust=trust)
        full = self._config.full_trust
        believed = min(1.0, trust / full) if full else 1.0
        wanted = np.where(self.moves_P, np.float32(believed) * proposal, np.float32(0))
        if (full and trust < _SILENT_BELOW) or not wanted.any():
            return Jump("silent", trust=trust)
        weights = snapshots[-1].astype(np.float32)
        share, kl = self._longest(weights, wanted, judge)
        if share == 0:
            return Jump("rejected", trust=trust)
        taken = np.float32(share) * wanted
        if self._config.evidence:
            does_harm = self._evidence.is_against
            self._evidence.propose(weights, taken, taken=not does_harm)
            if does_harm:
                return Jump("silent", trust=trust)
        self._jumped += taken
        self._last, self._departed, self._before = taken, weights, list(returns)
        return Jump("accepted" if share == 1 else "shrunk", taken, share, kl, trust)

    def _record(self, snapshots: np.ndarray) -> np.ndarray:
        assert self._run is not None, "begin comes first"
        self._run.extend(snapshots.astype(np.float32) - self._jumped)
        return self._run.now

    def _learn(self, now: np.ndarray) -> None:
        """Hold the last forecast against what came."""
        if self._expected is None or self._from is None:
            return
        foreseen = (self._expected - self._from).astype(np.float64)
        came = (now - self._from).astype(np.float64)
        self._toward = _MEMORY * self._toward + float(foreseen @ came)
        self._square = _MEMORY * self._square + float(foreseen @ foreseen)
        self._expected = self._from = None

    def _is_regretted(self, judge: Judge) -> bool:
        """Whether the batch that the last jump's policy has made is rather for the weights from before the jump.

        Their surrogate objective on it is, to first order in the policy's change, how much higher their return is than
        that of the policy that made the batch (Kakade & Langford 2002; Schulman et al. 2015, arXiv 1502.05477, eq. 3).
        """
        if not self._config.hindsight or self._departed is None:  # None: a state of an earlier version
            return False
        return judge(self._departed).surrogate > 0

    def _has_fallen(self, after: Sequence[float]) -> bool:
        """Whether the return is lower than before the last jump, beyond `fall` standard errors (Welch)."""
        before = self._before
        if not self._config.fall or min(len(before), len(after)) < 2:
            return False
        error = np.sqrt(np.var(before, ddof=1) / len(before) + np.var(after, ddof=1) / len(after))
        return bool(np.mean(before) - np.mean(after) > self._config.fall * error)

    def _propose(self, now: np.ndarray, count: int, tokens: np.ndarray | None) -> np.ndarray | None:
        """The forecast displacement [P]; None if it cannot be used. What it says of the next iteration is kept."""
        assert self._run is not None
        made = self._run.forecast(count - 1, (count, count * self._config.horizon), tokens)
        if made.shape != (1, 2, len(now)) or not np.isfinite(made).all():
            return None
        with np.errstate(over="ignore"):
            usable = np.isfinite(np.square(made[0] - now).sum(axis=1)).all()
        if not usable:  # so far that its square overflows
            return None
        self._from, self._expected = now, made[0, 0].astype(np.float32)
        return (made[0, 1] - now).astype(np.float32)

    def _longest(self, weights: np.ndarray, wanted: np.ndarray, judge: Judge) -> tuple[float, float]:
        """The largest share of the proposal found to pass, and its KL; 0 if none does.

        KL grows with the square of a short step, what a step adds to the change by the update at most in proportion to
        it: this says by how much to shrink.
        """
        now, bound = judge(weights), self._config.max_kl
        if self._config.max_of_update < JumpConfig.max_of_update:  # else an unknown change would forbid every jump
            bound = min(bound, self._config.max_of_update * now.change)
        left = self._config.max_change - now.change  # by the iteration's update
        floor = now.surrogate if self._config.surrogate else -np.inf
        share = 1.0 if left > 0 else 0.0
        for _ in range(_TRIES):
            if share < _SHORTEST:
                break
            there = judge(weights + np.float32(share) * wanted)
            added = there.change - now.change
            if there.kl <= bound and added <= left and there.surrogate >= floor:
                return share, there.kl
            by = 0.5
            if np.isfinite(there.kl) and (there.kl > bound or added > left):
                by = 0.95 * min(np.sqrt(bound / max(there.kl, 1e-300)), left / added if added > left else 1.0)
            share *= float(np.clip(by, 0.05, 0.9))
        return 0.0, 0.0

    def is_of(self, state: object, size: int) -> bool:
        """Whether this is the state of a run of so many weights."""
        numbers = ("jumped", "evidence", "counts", "before", "path", "origin", "within")
        if not isinstance(state, Mapping) or any(name not in state for name in numbers):
            return False
        return tuple(state["jumped"].shape) == (size,) and tuple(state["path"].shape[1:]) == (size,)

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on, as arrays, to be given to `restore`."""
        arrays = {"jumped": self._jumped.copy()} | ({} if self._run is None else self._run.state())
        optional = {"expected": self._expected, "from": self._from, "last": self._last,
                    "departed": self._departed}  # fmt: skip
        arrays |= {name: np.array(value) for name, value in optional.items() if value is not None}
        numbers = np.array([self._toward, self._square])  # of trust
        counts = np.array([self._patience, self._waited])
        arrays |= self._evidence.state() if self._config.evidence else {}
        return arrays | {"evidence": numbers, "counts": counts, "before": np.array(self._before, np.float64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where `state` was taken."""
        self._jumped, self._run = np.array(state["jumped"]), None
        if "path" in state:
            self.begin(state["path"][0])
            assert self._run is not None
            self._run.restore(state)
        self._expected, self._from, self._last, self._departed = (
            np.array(state[name]) if name in state else None for name in ("expected", "from", "last", "departed")
        )
        self._toward, self._square = map(float, state["evidence"])
        self._patience, self._waited = map(int, state["counts"])
        self._before = np.array(state["before"]).tolist()
        if self._config.evidence:
            self._evidence.restore(state)
