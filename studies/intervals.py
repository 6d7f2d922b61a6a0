"""How often do 95% intervals cover, with few trials, skewed and heavy-tailed ones? A simulation.

In: nothing.  Out: OUT.json: for every statistic and number of trials the share of data sets whose interval holds the
truth, of our intervals and of percentiles of the same resamples, and how wide the former are beside the latter.

    python studies/intervals.py --out results/intervals/coverage.json
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tipl.evaluation.statistics import (
    BELOW_ONE,
    LEAST_TRIALS,
    PLAIN,
    POSITIVE,
    Scale,
    Statistic,
    bootstrap_interval,
    iqm,
    paired_improvement,
    ratio_of_iqms,
    skill,
)

TRIALS = (2, 3, 5, 7, 10, 20, 50)
RNG = np.random.default_rng


def mean(x: np.ndarray, axis: int = 0) -> np.ndarray:
    return x.mean(axis)


def ratio_of_means(x: np.ndarray, y: np.ndarray, axis: int = 0) -> np.ndarray:
    return x.mean(axis) / y.mean(axis)


def lead(mine: np.ndarray, theirs: np.ndarray, moved: np.ndarray, axis: int = 0) -> np.ndarray:
    return skill(mine, moved, axis) - skill(theirs, moved, axis)


@dataclass(frozen=True)
class Case:
    """A statistic, and how the trials are drawn that it is of: [N, data sets] for each sample."""

    name: str
    statistic: Statistic
    draw: Callable[[np.random.Generator, tuple[int, int]], tuple[np.ndarray, ...]]
    scale: Scale = PLAIN
    beyond: bool = False
    """Far more skewed than anything in our results; other methods that were tried cover less there."""


def lognormal(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    return np.exp(sigma * rng.standard_normal(shape))


def skills(rng: np.random.Generator, shape: tuple[int, int], moved: float, error: float) -> tuple[np.ndarray, ...]:
    """Trials that move very differently far, and a forecaster that is right about a part of it."""
    moved_N = lognormal(rng, shape, moved)
    return 0.6 * moved_N * lognormal(rng, shape, error), moved_N


def leads(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Two forecasters that find the same trials hard."""
    moved_N, hard_N = lognormal(rng, shape, 1.0), lognormal(rng, shape, 0.4)
    mine, theirs = (share * moved_N * hard_N * lognormal(rng, shape, 0.2) for share in (0.55, 0.6))
    return mine, theirs, moved_N


def costs(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Environment steps with and without jumps on the same seeds."""
    hard_N = lognormal(rng, shape, 0.3)
    return 0.8 * hard_N * lognormal(rng, shape, 0.4), hard_N * lognormal(rng, shape, 0.4)


CASES = (
    Case("mean, normal", mean, lambda rng, shape: (rng.standard_normal(shape),)),
    Case("mean, Student's t of 3", mean, lambda rng, shape: (rng.standard_t(3, shape),)),
    Case("mean, exponential", mean, lambda rng, shape: (rng.exponential(size=shape),), POSITIVE),
    Case("mean of 24 lognormal, σ = 1.5", mean,
         lambda rng, shape: (lognormal(rng, (*shape, 24), 1.5).mean(-1),), POSITIVE),
    Case("mean, lognormal, σ = 1", mean, lambda rng, shape: (lognormal(rng, shape, 1.0),), POSITIVE, beyond=True),
    Case("skill, lengths σ = 0.7, errors σ = 0.5", skill, lambda rng, shape: skills(rng, shape, 0.7, 0.5), BELOW_ONE),
    Case("skill, lengths σ = 1, errors σ = 0.3", skill, lambda rng, shape: skills(rng, shape, 1.0, 0.3), BELOW_ONE),
    Case("skill, lengths σ = 1.5, errors σ = 0.5", skill, lambda rng, shape: skills(rng, shape, 1.5, 0.5), BELOW_ONE,
         beyond=True),
    Case("skill less another's, paired", lead, leads),
    Case("IQM, lognormal, σ = 0.5", iqm, lambda rng, shape: (lognormal(rng, shape, 0.5),)),
    Case("IQM, lognormal, σ = 1", iqm, lambda rng, shape: (lognormal(rng, shape, 1.0),)),
    Case("ratio of IQMs, paired", ratio_of_iqms, costs, POSITIVE),
    Case("ratio of means, paired", ratio_of_means, costs, POSITIVE),
    Case("difference of means, paired", lambda x, y, axis=0: (x - y).mean(axis), costs),
    Case("probability of improvement 0.7, paired", paired_improvement,
         lambda rng, shape: (rng.standard_normal(shape) + 0.5244, np.zeros(shape))),
)  # fmt: skip


def covered(case: Case, trials: int, sets: int, resamples: int, seed: int) -> dict[str, float | None]:
    """Shares of data sets whose interval holds the truth, and the median of the ratio of widths."""
    rng = RNG(seed)
    samples = case.draw(rng, (trials, sets))
    truth = truth_of(case)
    percentiles = np.quantile(_resampled(case, samples, resamples, rng), (0.025, 0.975), axis=0)
    old = (percentiles[0] <= truth) & (truth <= percentiles[1])
    if trials < LEAST_TRIALS:
        return {"percentile": float(old.mean()), "ours": None, "width": None}
    ours = bootstrap_interval(case.statistic, *samples, rng=rng, resamples=resamples, scale=case.scale)
    bounds = np.array([(each.low, each.high) for each in ours], np.float64).T
    width = np.diff(bounds, axis=0) / np.maximum(np.diff(percentiles, axis=0), 1e-12)
    new = (bounds[0] <= truth) & (truth <= bounds[1])
    return {"percentile": float(old.mean()), "ours": float(new.mean()), "width": float(np.median(width))}


def truth_of(case: Case) -> float:
    """The statistic of very many trials."""
    drawn = case.draw(RNG(1), (20_000, 20))
    return float(np.mean(case.statistic(*drawn, axis=0)))


def _resampled(case: Case, samples: tuple[np.ndarray, ...], resamples: int, rng: np.random.Generator) -> np.ndarray:
    index = rng.integers(0, len(samples[0]), (resamples, len(samples[0])))
    return np.stack([case.statistic(*(x[rows] for x in samples), axis=0) for rows in index])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=2000, help="data sets of every kind")
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for case in CASES:
        found[case.name] = {
            str(trials): covered(case, trials, arguments.sets, arguments.resamples, seed)
            for seed, trials in enumerate(TRIALS)
        }
        said = (f"{trials}: {each['percentile']:.3f} → {each['ours']}" for trials, each in found[case.name].items())
        print(f"{case.name}  {'  '.join(said)}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"command": ["python", *sys.argv], "sets": arguments.sets, "resamples": arguments.resamples}
    arguments.out.write_text(json.dumps(facts | {"coverage": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
