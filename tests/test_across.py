"""Environments taken together against IQMs written out.

In: what `compare` finds, made up of known steps.  Out: failures.
"""

from typing import Any

import numpy as np
import pytest

from tipl.reporting.across import BEST, SHARED, across

FORECASTERS = {"line": "line", "causal": "causal"}
RNG = np.random.default_rng(0)


def found(env_id: str, seeds: int, scale: float, **arms: float) -> dict[str, Any]:
    """Arms whose steps are a share of the plain ones' on average, with noise, where plain training gains `scale`."""
    plain = 1000 * scale * RNG.uniform(0.5, 1.5, seeds)
    made = {}
    for name, share in {"plain, 0.0003": 1.0, **arms}.items():
        steps = plain * share * RNG.uniform(0.9, 1.1, seeds)
        made[name] = {"config": {"hidden_sizes": [8, 8]}, "forecaster": FORECASTERS.get(name.split(",")[0])} | {
            measure: {"by_seed": (steps if "steps" in measure else scale * RNG.uniform(0, 1, seeds)).tolist()}
            for measure in SHARED
        }
    thresholds = {f"{share:.0%}": 5 + share * scale for share in (0.5, 0.75, 0.9)}
    return {"env_id": env_id, "seeds": list(range(seeds)), "arms": made, "thresholds": thresholds}


def test_environments_of_all_scales_weigh_the_same() -> None:
    both = [found("A-v1", 12, 1.0, line=0.5), found("B-v1", 8, 1000.0, line=0.9)]
    made = across(both)
    assert made["environments"] == ["A-v1 8-8", "B-v1 8-8"]
    row = made["beside"]["plain, 0.0003"]["line"]

    def middle(values: np.ndarray) -> float:
        return float(np.sort(values)[4:12].mean())  # 16 of them, a quarter dropped at either end

    shares, plains, differences = [], [], []
    for each in both:
        line, plain = (
            {m: np.array(each["arms"][name][m]["by_seed"][:8]) for m in SHARED} for name in ("line", "plain, 0.0003")
        )
        shares.append(line["steps to 90%"] / plain["steps to 90%"].mean())
        plains.append(plain["steps to 90%"] / plain["steps to 90%"].mean())
        differences.append((line["final return"] - plain["final return"]) / (1.0 if each is both[0] else 1000.0))
    expected = middle(np.concatenate(shares)) / middle(np.concatenate(plains))
    assert row["steps to 90%"]["value"] == pytest.approx(expected)
    low, high = row["steps to 90%"]["ci"]
    assert low < expected < high and 0.4 < low and high < 1
    assert row["final return"]["value"] == pytest.approx(middle(np.concatenate(differences)))
    own = [each["value"] for each in row["steps to 90%"]["by_environment"]]
    np.testing.assert_allclose(own, [0.5, 0.9], rtol=0.1)


def test_only_what_every_environment_has_is_compared() -> None:
    both = [found("A-v1", 4, 1.0, line=0.5, causal=0.4), found("B-v1", 4, 1.0, line=0.5)]
    assert set(across(both)["beside"]["plain, 0.0003"]) == {"line"}
    both[1]["arms"]["line"]["forecaster"] = "another"  # of one name, but no longer the same
    assert not across(both)["beside"]["plain, 0.0003"]
    both[1]["arms"]["plain"] = both[1]["arms"].pop("plain, 0.0003")
    assert not across(both)["beside"]


def test_an_arm_at_its_best_rate_is_another_in_every_environment() -> None:
    both = [
        found("A-v1", 6, 1.0, **{"plain, 0.001": 0.5}) | {"best": {"plain": "plain, 0.001"}},
        found("B-v1", 6, 1.0, **{"plain, 0.003": 0.8}) | {"best": {"plain": "plain, 0.003"}},
    ]
    made, name = across(both), BEST.format("plain")
    assert list(made["beside"]) == ["plain, 0.0003", name]
    best = made["beside"]["plain, 0.0003"][name]["steps to 90%"]
    np.testing.assert_allclose([each["value"] for each in best["by_environment"]], [0.5, 0.8], rtol=0.1)
    assert made["beside"][name]["plain, 0.0003"]["steps to 90%"]["value"] > 1


@pytest.mark.parametrize("gain", [0.0, -3.0])
def test_an_environment_in_which_plain_training_gains_nothing_has_no_share_of_it(gain: float) -> None:
    """Neither divided by zero nor turned round: nothing is said of it, nor of all together."""
    both = [found("A-v1", 6, 1.0, line=0.5), found("B-v1", 6, 1.0, line=0.5) | {"gain": gain}]
    row = across(both)["beside"]["plain, 0.0003"]["line"]
    for measure in SHARED:
        assert row[measure]["value"] is None and row[measure]["ci"] is None
        one, other = row[measure]["by_environment"]
        assert one["value"] is not None and other["value"] is None
    assert one["value"] == across([both[0]])["beside"]["plain, 0.0003"]["line"]["final return"]["value"]


def test_what_compare_says_of_the_gain_is_its_scale() -> None:
    """Thresholds that were asked for are no share of it."""
    both = [found("A-v1", 6, 4.0, line=0.5) | {"gain": 4.0} for _ in range(2)]
    without = [{name: value for name, value in each.items() if name != "gain"} for each in both]
    expected = across(without)["beside"]["plain, 0.0003"]["line"]["final return"]["value"]
    assert across(both)["beside"]["plain, 0.0003"]["line"]["final return"]["value"] == pytest.approx(expected)
    both[0]["gain"] = both[1]["gain"] = 8.0
    assert across(both)["beside"]["plain, 0.0003"]["line"]["final return"]["value"] == pytest.approx(expected / 2)
