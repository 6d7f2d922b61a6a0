"""An oracle that knows where a run goes on average: what jumps along the mean of branched futures would save.

In: a live run.  Out: a forecaster that branches it, for `Arm(own=…)`. The branches' environment steps are not charged.

At every proposal the run is branched from its very state: R futures with other noise, as far as the horizon. Their mean
displacement is the forecast, off from the mean of all futures by the R-th part of their variance. Futures of an
Outer-PPO run make its outer steps too. `savings.py` has arms of it; to find one through other processes it is a module
of its own.
"""

import functools
from collections.abc import Sequence

import numpy as np

from tipl.acceleration.rivals import OuterBatch
from tipl.collection.branches import branch_seeds, branched
from tipl.config.env_spec import env_id_in
from tipl.forecasting.forecaster import Forecaster, LiveRun
from tipl.rl.trial_batch import TrialBatch


def oracle(batch: TrialBatch, futures: int = 8) -> "Oracle":
    """Return the oracle of the runs in a batch, which it looks at and does not move."""
    return Oracle(batch, futures)


class Oracle(Forecaster):
    name, label, context, causal = "oracle", "the mean of branched futures", 1, False

    def __init__(self, batch: TrialBatch, futures: int) -> None:
        self.batch, self.futures = batch, futures

    def follow(self, trial: int, weights_P: np.ndarray) -> LiveRun:
        return _Followed(self, trial, weights_P)

    def forecast(self, histories, horizons):
        raise NotImplementedError("an oracle follows a live run")

    def ahead(self, seed: int, horizons: list[int]) -> np.ndarray:
        """[H, P], the mean displacements of the run's futures; beyond its end, those up to its end."""
        run, n = self.batch, self.batch.seeds.index(seed)
        now, count = run.theta[n, : run.snapshot_size], run.config.snapshots_per_iteration
        further = min(-(-max(horizons) // count), run.config.num_iterations - run.iteration)
        if not further:
            return np.zeros((len(horizons), len(now)), np.float32)
        seeds = branch_seeds(0, seed, run.iteration, self.futures)
        path = futures_of(run, n, seeds, further).mean(axis=0) - now
        return np.stack([path[min(h, len(path)) - 1] for h in horizons])


def futures_of(run: TrialBatch, n: int, seeds: Sequence[int], iterations: int) -> np.ndarray:
    """The next snapshots [R, n, P] of futures that learn as the n-th run of a batch does."""
    kind = TrialBatch
    assert type(run) in (TrialBatch, OuterBatch), "other rivals would branch as plain PPO"
    if isinstance(run, OuterBatch):
        assert not run.rival.momentum, "a velocity would be missing from a run's state"
        kind = functools.partial(OuterBatch, run.rival)
    ahead = branched(run.config, env_id_in(run.config), run.seeds[n], run.state(n), seeds, kind)
    ahead.snapshot_size = run.snapshot_size
    return np.concatenate([ahead.iterate().snapshots for _ in range(iterations)], axis=1)


class _Followed(LiveRun):
    def __init__(self, oracle: Oracle, trial: int, weights_P: np.ndarray) -> None:
        super().__init__(oracle, trial, weights_P)
        self._oracle = oracle

    def forecast(self, epoch_index, horizons, tokens=None):
        return (self.now + self._oracle.ahead(self._trial, list(horizons)))[None]
