"""Jumps against closed forms: how far, how much believed, when taken back.

In: paths that are known, judges that are formulas.  Out: failures.
"""

from collections.abc import Sequence

import numpy as np
import pytest

from tipl.acceleration.evidence import Evidence, Judgment
from tipl.acceleration.jump import Jump, Jumper, may_jump
from tipl.config.jumps import JumpConfig
from tipl.forecasting.baselines import RandomDisplacement, line, persistence
from tipl.forecasting.forecaster import Forecaster
from tipl.store import History

P = 50


def free(weights: np.ndarray) -> Judgment:
    return Judgment(0.0, 0.0)


def straight(steps: int, n: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """φ_0 and the drift of a path that moves by it every snapshot."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(P).astype(np.float32), (0.01 * rng.standard_normal(P)).astype(np.float32)


class Run:
    """An optimizer that moves by `drift` a snapshot wherever it is, and the jumps that it is told to make."""

    def __init__(self, jumper: Jumper, n: int = 5) -> None:
        self.weights, self.drift = straight(0)
        self.jumper, self.n = jumper, n
        jumper.begin(self.weights)

    def iterate(self, judge=free, returns: Sequence[float] = ()) -> Jump:
        snapshots = self.weights + np.arange(1, self.n + 1)[:, None] * self.drift
        jump = self.jumper.step(snapshots.astype(np.float32), judge, returns)
        self.weights = snapshots[-1] if jump.displacement is None else snapshots[-1] + jump.displacement
        return jump


def everything(size: int = P) -> np.ndarray:
    return np.ones(size, bool)


def test_a_straight_path_is_believed_and_gone_ahead_on() -> None:
    run = Run(Jumper(line(6), JumpConfig(horizon=3), everything()))
    first, *later = [run.iterate() for _ in range(4)]
    assert first.kind == "silent"  # no forecast has come true yet
    for jump in later:
        assert jump.kind == "accepted" and jump.share == 1
        np.testing.assert_allclose(jump.trust, 1, rtol=1e-4)
        assert jump.displacement is not None
        np.testing.assert_allclose(jump.displacement, 15 * run.drift, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("factor", (0.5, 0.25))
def test_trust_is_the_least_squares_factor(factor: float) -> None:
    """A path whose iterations shorten by a factor: what comes is `factor` times what the line foresees."""
    jumper = Jumper(line(2), JumpConfig(horizon=1), everything())
    weights, drift = (each.astype(np.float64) for each in straight(0))
    jumper.begin(weights)
    for _ in range(6):
        weights = weights + drift
        jump = jumper.step(weights[None], free)
        weights = weights + (0 if jump.displacement is None else jump.displacement)
        drift = factor * drift
    assert jumper.trust == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize(("factor", "believed"), [(0.5, 1.0), (0.15, 0.75)])
def test_below_full_trust_belief_is_in_proportion(factor: float, believed: float) -> None:
    jumper = Jumper(line(2), JumpConfig(full_trust=0.2, horizon=2), everything())
    weights, drift = (each.astype(np.float64) for each in straight(0))
    jumper.begin(weights)
    jumper.step((weights + drift)[None], free)
    jump = jumper.step((weights + drift + factor * drift)[None], free)
    assert jump.trust == pytest.approx(factor, rel=1e-3) and jump.displacement is not None
    np.testing.assert_allclose(jump.displacement, believed * 2 * factor * drift, rtol=1e-2, atol=1e-6)


def test_trust_against_weighted_least_squares() -> None:
    rng = np.random.default_rng(1)
    jumper = Jumper(line(2), JumpConfig(horizon=1), everything())
    path = np.cumsum(np.cumsum(rng.standard_normal((8, P)), axis=0), axis=0).astype(np.float32)
    jumper.begin(path[0])
    for snapshot in path[1:]:  # whatever would jump is rejected
        jumper.step(snapshot[None], lambda w: Judgment(1.0, 0.0))
    steps = np.diff(path.astype(np.float64), axis=0)  # the line foresees the step before
    root = np.sqrt(0.7 ** np.arange(len(steps) - 1)[::-1])[:, None]
    expected = np.linalg.lstsq((root * steps[:-1]).reshape(-1, 1), (root * steps[1:]).reshape(-1), rcond=None)[0][0]
    assert jumper.trust == pytest.approx(np.clip(expected, 0, 1), rel=1e-4)


def test_the_guard_shrinks_to_the_bound() -> None:
    """KL = |displacement|² / 2: the largest share that passes is √(2 bound) / |proposal|."""
    run = Run(Jumper(line(6), JumpConfig(horizon=20, max_kl=0.01, surrogate=False), everything()))
    run.iterate()
    base = run.weights + 5 * run.drift
    judge = lambda w: Judgment(float(np.square(w - base).sum() / 2), 0.0)  # noqa: E731
    jump = run.iterate(judge)
    best = np.sqrt(0.02) / (100 * np.linalg.norm(run.drift) * jump.trust)
    assert jump.kind == "shrunk" and jump.kl <= 0.01 and jump.displacement is not None
    assert 0.85 * best <= jump.share <= best * 1.001
    np.testing.assert_allclose(np.linalg.norm(jump.displacement), np.sqrt(2 * jump.kl), rtol=1e-3)


def test_a_worse_surrogate_is_refused() -> None:
    run = Run(Jumper(line(6), JumpConfig(), everything()))
    run.iterate()
    base = run.weights + 5 * run.drift
    worse = lambda w: Judgment(0.0, -float(np.abs(w - base).sum()))  # noqa: E731
    before = run.weights.copy()
    assert run.iterate(worse).kind == "rejected"
    np.testing.assert_allclose(run.weights, before + 5 * run.drift, rtol=1e-5)
    better = lambda w: Judgment(0.0, float(np.abs(w).sum() * 0))  # noqa: E731
    assert run.iterate(better).kind == "accepted"


def test_weights_that_may_not_jump_stay() -> None:
    moves = everything()
    moves[-3:] = False
    run = Run(Jumper(line(6), JumpConfig(), moves))
    run.iterate()
    jump = run.iterate()
    assert jump.displacement is not None
    assert not jump.displacement[-3:].any() and jump.displacement[:-3].all()


def test_log_stds_do_not_jump() -> None:
    names = ("actor_mean.0.weight", "actor_mean.0.bias", "actor_logstd", "parametrizations.log_std.original")
    assert np.flatnonzero(may_jump(names, (6, 2, 2, 1))).tolist() == list(range(8))


class Spy(Forecaster):
    """Keeps what it is shown."""

    name, label, context = "spy", "spy", None

    def __init__(self) -> None:
        self.seen: list[History] = []
        self._line = line(6)

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        self.seen += histories
        return self._line.forecast(histories, horizons)


def test_forecasters_see_the_path_less_the_jumps() -> None:
    spy = Spy()
    run = Run(Jumper(spy, JumpConfig(), everything()))
    start = run.weights.copy()
    kinds = [run.iterate().kind for _ in range(5)]
    assert kinds.count("accepted") == 4
    last = spy.seen[-1]
    assert last.origin == 25 and last.epoch_index == 4 and len(last.weights) == 26
    np.testing.assert_allclose(last.weights, start + np.arange(26)[:, None] * run.drift, rtol=1e-4, atol=1e-4)


def test_tokens_are_made_for_a_forecaster_that_takes_them_when_a_proposal_is_due() -> None:
    for takes in (False, True):
        spy, made = Spy(), []
        spy.takes_tokens = takes
        jumper, path = Jumper(spy, JumpConfig(every=2), everything()), np.zeros((1, P), np.float32)
        jumper.begin(path[0])
        for _ in range(4):
            jumper.step(path, free, tokens=lambda made=made: made.append(len(made)) or np.full((3, P), made[-1]))
        assert len(made) == 2 * takes
        tokens = [each.tokens for each in spy.seen]
        assert [None if each is None else each[0, 0] for each in tokens] == ([0, 1] if takes else [None, None])


class Broken(Forecaster):
    """Foresees what it is told to, of any kind."""

    name, label, context = "broken", "broken", 1

    def __init__(self, make) -> None:
        self._make = make

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        return self._make(histories[0].weights[-1], len(horizons))


@pytest.mark.parametrize(
    "make",
    [
        lambda w, h: np.full((1, h, P), np.nan),
        lambda w, h: np.full((1, h, P), np.inf),
        lambda w, h: np.zeros((1, h, P - 1)),
        lambda w, h: np.zeros((1, 1, P)),
        lambda w, h: np.full((1, h, P), 1e30, np.float32),
    ],
    ids=["NaN", "infinite", "a weight too few", "a horizon too few", "huge"],
)
def test_broken_forecasts_change_nothing(make) -> None:
    run, plain = (
        Run(Jumper(Broken(each), JumpConfig(), everything())) for each in (make, lambda w, h: w + np.zeros((1, h, P)))
    )
    kinds = {run.iterate().kind for _ in range(6)}
    assert kinds <= {"invalid", "silent"}
    assert {plain.iterate().kind for _ in range(6)} == {"silent"}
    np.testing.assert_array_equal(run.weights, plain.weights)


def test_huge_forecasts_are_rejected_by_the_guard_where_trust_is_off() -> None:
    run = Run(
        Jumper(Broken(lambda w, h: w + np.full((1, h, P), 1e6, np.float32)), JumpConfig(full_trust=0.0), everything())
    )
    for _ in range(3):
        base = run.weights + 5 * run.drift
        assert run.iterate(lambda w, b=base: Judgment(float(np.square(w - b).sum()), 0.0)).kind == "rejected"


def test_noise_falls_silent() -> None:
    rng = np.random.default_rng(2)
    size, weights = 20_000, np.zeros(20_000, np.float32)
    jumper = Jumper(RandomDisplacement(20), JumpConfig(), everything(size))
    jumper.begin(weights)
    kinds = []
    for _ in range(30):
        snapshots = weights + np.cumsum(rng.standard_normal((5, size)), axis=0)
        jump = jumper.step(snapshots.astype(np.float32), free)
        kinds.append(jump.kind)
        weights = snapshots[-1]
    assert set(kinds) == {"silent"}


def test_a_forecaster_of_no_movement_is_silent() -> None:
    run = Run(Jumper(persistence(), JumpConfig(full_trust=0.0), everything()))
    assert {run.iterate().kind for _ in range(4)} == {"silent"}


def test_a_fall_in_return_takes_the_jump_back_and_makes_patient() -> None:
    run = Run(Jumper(line(6), JumpConfig(fall=2.0), everything()))
    run.iterate(returns=[10, 11, 9])
    jump = run.iterate(returns=[10, 11, 9])
    assert jump.displacement is not None
    back = run.iterate(returns=[1, 2, 3])
    assert back.kind == "taken back"
    np.testing.assert_array_equal(back.displacement, -jump.displacement)
    assert [run.iterate(returns=[10, 11, 9]).kind for _ in range(3)] == ["waited", "accepted", "accepted"]


def test_a_jump_that_its_own_batch_is_against_is_taken_back() -> None:
    """The objective falls by the distance from where the jump began, and is 0 where it arrived: the next batch is for
    going back."""
    run = Run(Jumper(line(6), JumpConfig(hindsight=True, fall=0.0), everything()))
    run.iterate()
    jump = run.iterate()
    assert jump.displacement is not None
    departed, far = run.weights - jump.displacement, float(np.square(jump.displacement).sum())
    back = run.iterate(lambda w: Judgment(0.0, far - float(np.square(w - departed).sum())))
    assert back.kind == "taken back"
    np.testing.assert_array_equal(back.displacement, -jump.displacement)
    assert [run.iterate().kind for _ in range(3)] == ["waited", "accepted", "accepted"]


@pytest.mark.parametrize("taken", (True, False), ids=["taken", "not taken"])
def test_evidence_is_a_sum_that_forgets(taken: bool) -> None:
    """Against a plain sum: the gain of each proposal, the older the lighter, in standard errors of their sum."""
    rng = np.random.default_rng(2)
    gains, errors, evidence = rng.standard_normal(12), rng.uniform(0.5, 2, 12), Evidence()
    assert evidence.errors == 0
    for gain, error in zip(gains, errors, strict=True):
        here, step = rng.standard_normal((2, P))
        evidence.propose(here, step, taken)
        asked: list[np.ndarray] = []
        evidence.weigh(lambda w, g=gain, e=error, a=asked: a.append(w) or Judgment(0.0, -g if taken else g, error=e))
        np.testing.assert_array_equal(asked, [here if taken else here + step])
        evidence.weigh(lambda w: Judgment(0.0, 1e9, error=1e-9))  # nothing was proposed since
    light = 0.9 ** np.arange(12)[::-1]
    assert evidence.errors == pytest.approx((light * gains).sum() / np.sqrt((light**2 * errors**2).sum()))


@pytest.mark.parametrize("found", (Judgment(0.0, np.nan, error=1.0), Judgment(0.0, 1.0, error=np.inf)))
def test_what_is_not_finite_is_no_evidence(found: Judgment) -> None:
    evidence = Evidence()
    evidence.propose(np.zeros(P), np.ones(P), taken=False)
    evidence.weigh(lambda w: found)
    assert evidence.errors == 0


def test_proposals_that_did_harm_are_held_back_until_they_do_good() -> None:
    """Outcomes are at first against what is proposed: the first jump alone is taken. Held back, proposals go on being
    weighed, until outcomes are for them."""
    run = Run(Jumper(line(6), JumpConfig(evidence=True), everything()))
    good = [False]

    def outcome(weights: np.ndarray) -> Judgment:
        """Of weights beside those that made the batch, the ones from the end of the last iteration."""
        ahead = float((weights - behaving[-1]) @ run.drift) > 0
        return Judgment(0.0, 1.0 if ahead == good[0] else -1.0, error=1.0)

    behaving, kinds = [run.weights], []
    for iteration in range(8):
        good[0] = iteration >= 4
        snapshots = run.weights + np.arange(1, 6)[:, None] * run.drift
        jump = run.jumper.step(snapshots.astype(np.float32), free, outcome=outcome)
        run.weights = (snapshots[-1] if jump.displacement is None else snapshots[-1] + jump.displacement).astype("f4")
        behaving.append(run.weights)
        kinds.append(jump.kind)
    # sums of the gains: −1 after the jump, −1.9, then −0.71, 0.361 and more
    assert kinds == ["silent", "accepted", "silent", "silent", "silent", "accepted", "accepted", "accepted"]


def test_evidence_that_nobody_asked_for_is_neither_gathered_nor_kept() -> None:
    run = Run(Jumper(line(6), JumpConfig(), everything()))
    for _ in range(3):
        run.iterate()
    assert not {"gains", "elsewhere"} & run.jumper.state().keys()
    later = Jumper(line(6), JumpConfig(evidence=True), everything())
    later.restore(run.jumper.state())
    later._evidence.weigh(lambda w: pytest.fail("nothing was proposed"))
    assert later._evidence.errors == 0


def test_a_jump_changes_the_policy_by_no_more_than_a_share_of_the_update() -> None:
    """KL = |displacement|² / 2, and the update's is 0.04: a quarter of it is 0.01."""
    run = Run(Jumper(line(6), JumpConfig(horizon=20, max_kl=1.0, max_of_update=0.25, surrogate=False), everything()))
    run.iterate()
    base = run.weights + 5 * run.drift
    jump = run.iterate(lambda w: Judgment(float(np.square(w - base).sum() / 2), 0.0, 0.04))
    assert jump.kind == "shrunk" and 0.7 * 0.01 < jump.kl <= 0.01


@pytest.mark.parametrize(("hindsight", "sign"), [(True, 1), (False, -1)], ids=["for it", "not asked"])
def test_a_jump_that_its_batch_is_for_stays(hindsight: bool, sign: int) -> None:
    run = Run(Jumper(line(6), JumpConfig(surrogate=False, hindsight=hindsight), everything()))
    run.iterate()
    jump = run.iterate()
    assert jump.displacement is not None
    departed, far = run.weights - jump.displacement, float(np.square(jump.displacement).sum())
    judge = lambda w: Judgment(0.0, sign * (float(np.square(w - departed).sum()) - far))  # noqa: E731
    assert run.iterate(judge).kind == "accepted"


def test_an_update_that_uses_up_the_change_leaves_none_for_a_jump() -> None:
    """The update itself has moved the policy by 0.015 nats; each share of the proposal adds as many again."""
    for most, kind in ((0.05, "accepted"), (0.02, "shrunk"), (0.01, "rejected")):
        run = Run(Jumper(line(6), JumpConfig(max_change=most), everything()))
        run.iterate()
        base, ahead = run.weights + 5 * run.drift, float(np.linalg.norm(20 * run.drift))
        share = lambda w, b=base, a=ahead: float(np.linalg.norm(w - b)) / a  # noqa: E731
        jump = run.iterate(lambda w, s=share: Judgment(0.0, 0.0, 0.015 * (1 + s(w))))
        assert jump.kind == kind
        if kind == "shrunk":
            assert jump.share <= 1 / 3 + 1e-3


@pytest.mark.parametrize("after", ([9, 10, 8], [0], []), ids=["within noise", "one episode", "no episode"])
def test_no_evidence_takes_nothing_back(after: list[float]) -> None:
    run = Run(Jumper(line(6), JumpConfig(fall=2.0), everything()))
    run.iterate(returns=[10, 11, 9])
    run.iterate(returns=[10, 11, 9])
    assert run.iterate(returns=after).kind == "accepted"


def test_every_is_the_cadence() -> None:
    run = Run(Jumper(line(6), JumpConfig(every=3), everything()))
    kinds = [run.iterate().kind for _ in range(9)]
    assert kinds == ["waited", "waited", "silent", "waited", "waited", "accepted", "waited", "waited", "accepted"]


@pytest.mark.parametrize("evidence", (False, True))
def test_state_goes_on_to_the_bit(evidence: bool) -> None:
    config = JumpConfig(every=2, evidence=evidence)
    whole, first, second = (Run(Jumper(line(6), config, everything())) for _ in range(3))
    judge = lambda w: Judgment(0.0, float(np.sin(1e3 * w).sum()), error=1.0)  # noqa: E731
    returns = [[10.0, 11, 9], [10, 12, 9], [1, 2, 3], [5, 6, 7], [8, 9, 10], [1, 1, 2], [3, 3, 4], [4, 4, 5]]
    for each in returns:
        whole.iterate(judge, each)
    for each in returns[:4]:
        first.iterate(judge, each)
    second.jumper.restore({name: value.copy() for name, value in first.jumper.state().items()})
    second.weights = first.weights
    for each in returns[4:]:
        second.iterate(judge, each)
    np.testing.assert_array_equal(second.weights, whole.weights)
    assert second.jumper.trust == whole.jumper.trust
