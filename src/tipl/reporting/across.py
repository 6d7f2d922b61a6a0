"""Acceleration over several environments: every arm beside a plain one, environments and seeds together.

In: what `tipl.acceleration.compare.compare` found in each environment.  Out: ratios of IQMs with intervals.

Rows are paired: one seed in one environment, with an arm and with the reference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tipl.evaluation.statistics import PLAIN, POSITIVE, Statistic, bootstrap_interval, iqm, ratio_of_iqms

BEST = "{}, at its best rate"
"""What an arm is called whose learning rate was tuned, and so is another in every environment."""
SHARED = ("steps to 50%", "steps to 75%", "steps to 90%", "final return")
"""Measures that mean the same in every environment."""


def across(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arms that every environment has, beside the first one and, where it was tuned, beside it at its best rate.

    An arm counts where its forecaster is the same everywhere.

    Of every environment as many seeds count as the one with the fewest has, so that all weigh the same. Steps are
    divided by the reference's mean in the environment, a final return less the reference's by what plain training gains
    there; then environments and seeds are one sample, whose IQM counts. The interval draws seeds within each
    environment (Agarwal et al. 2021, arXiv 2108.13264), so it is one of these environments and of no others.

    Where plain training gains nothing in an environment, neither its share nor a return in units of it means anything:
    then that environment's value is None, and that of all together.

    Returns:
        `environments`, their names, and `beside`, empty where no plain arm is shared: by reference, arm and measure a
        `value` with its interval `ci` and the `runs` that it is of, and `by_environment` with each one's own.
    """
    roles = [_roles(each) for each in found]
    shared = [
        role for role in roles[0] if len({_forecaster(*each, role) for each in zip(found, roles, strict=True)}) == 1
    ]
    best = BEST.format("plain")
    count = min(len(each["seeds"]) for each in found)
    beside: dict[str, Any] = {}
    plain = [role for role in (*shared[:1], best) if role in shared and _forecaster(found[0], roles[0], role) == "None"]
    for reference in dict.fromkeys(plain):
        beside[reference] = {}
        for role in shared:
            if role != reference:
                pairs = [
                    (each["arms"][r[role]], each["arms"][r[reference]]) for each, r in zip(found, roles, strict=True)
                ]
                beside[reference][role] = {measure: paired(measure, pairs, found, count) for measure in SHARED}
    return {"environments": [environment(each) for each in found], "beside": beside}


def environment(found: Mapping[str, Any]) -> str:
    """What an environment is called: one may stand there with several policies."""
    sizes = next(iter(found["arms"].values()))["config"]["hidden_sizes"]
    return f"{found['env_id']} {'-'.join(map(str, sizes))}"


def _roles(found: Mapping[str, Any]) -> dict[str, str]:
    """By what an arm is called in every environment, its name in this one."""
    best = {BEST.format(kind): name for kind, name in found.get("best", {}).items()}
    return {name: name for name in found["arms"]} | best


def _forecaster(found: Mapping[str, Any], roles: Mapping[str, str], role: str) -> str:
    return str(found["arms"][roles[role]]["forecaster"]) if role in roles else "no such arm"


def paired(
    measure: str, pairs: Sequence[tuple[Any, Any]], found: Sequence[Mapping[str, Any]], count: int
) -> dict[str, Any]:
    """One measure of an arm beside a reference, (arm, reference) of every environment, over `count` seeds: `across`."""
    improves = [_gain(each) > 0 for each in found]
    values = [[np.array(arm[measure]["by_seed"][:count]) for arm in arms] for arms in pairs]
    is_cost = measure.startswith("steps")
    statistic: Statistic = ratio_of_iqms if is_cost else iqm
    nothing = {"value": None, "ci": None, "runs": 0}
    if is_cost:
        samples = [(mine / theirs.mean(), theirs / theirs.mean()) for mine, theirs in values]
    else:
        scales = [_gain(each) if better else 1.0 for each, better in zip(found, improves, strict=True)]
        samples = [((mine - theirs) / scale,) for (mine, theirs), scale in zip(values, scales, strict=True)]

    def interval(*sample: np.ndarray, labels: np.ndarray | None = None) -> dict[str, Any]:
        scale, rng = POSITIVE if is_cost else PLAIN, np.random.default_rng(0)
        made = bootstrap_interval(statistic, *sample, rng=rng, strata=labels, scale=scale)[0]
        return {"value": made.value, "ci": made.bounds, "runs": made.trials}

    together = [np.concatenate(parts) for parts in zip(*samples, strict=True)]
    whole = interval(*together, labels=np.repeat(np.arange(len(found)), count)) if all(improves) else nothing
    each = [interval(*sample) if better else nothing for sample, better in zip(samples, improves, strict=True)]
    return whole | {"by_environment": each}


def _gain(found: Mapping[str, Any]) -> float:
    """How much the return of plain training rises; of what was written before `gain` was, 0.4 of it lie between two
    thresholds."""
    levels = found["thresholds"]
    return found["gain"] if "gain" in found else (levels["90%"] - levels["50%"]) / 0.4
