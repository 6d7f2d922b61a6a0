"""On walks in which what can be forecast is known, the protocol finds just that.

In: random walks.  Out: failures.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tipl.collection.random_walk import best_skill, random_walk
from tipl.config.presets import EvaluateConfig, SVDConfig
from tipl.errors import TiplError
from tipl.evaluation.evaluate import evaluate
from tipl.representation import fit_svd
from tipl.store import Store, data_verify

CONFIG = EvaluateConfig(horizons=(1, 5, 10, 20), return_horizons=(1,), origins=60)


def test_a_walk_is_what_it_says(tmp_path: Path):
    path = random_walk(tmp_path / "walk", trials=2, snapshots=2000, dim=40, drift=0.3, seed=5)
    store = Store.open(path)
    assert store.seeds == [5, 6] and data_verify(path)["ok"]
    steps = np.diff(store.trial(5).weights().astype(np.float64), axis=0)
    assert steps.shape == (1999, 40)
    # Mean step: the drift, of length 0.3, with noise of length 1/√1999; the rest has length 1.
    assert np.linalg.norm(steps.mean(0)) == pytest.approx(0.3, abs=0.05)
    assert ((steps - steps.mean(0)) ** 2).sum(1).mean() == pytest.approx(1, abs=0.03)
    again = random_walk(tmp_path / "again", trials=1, snapshots=2000, dim=40, drift=0.3, seed=6)
    np.testing.assert_array_equal(Store.open(again).trial(6).weights(), store.trial(6).weights())
    other = Store.open(random_walk(tmp_path / "anneal", trials=1, snapshots=2000, dim=40, anneal=True))
    lengths = np.linalg.norm(np.diff(other.trial(1).weights(), axis=0), axis=1)
    assert lengths[:200].mean() / lengths[900:1100].mean() == pytest.approx(1.9, abs=0.1)


def test_without_drift_nothing_is_forecast(tmp_path: Path):
    store = random_walk(tmp_path / "walk", trials=25, snapshots=400, dim=122)
    out = evaluate(store, tmp_path / "eval", CONFIG, returns=False)
    forecasters = json.loads((out / "metrics.json").read_text())["forecasters"]
    assert len(forecasters) >= 13
    for name, scores in forecasters.items():
        if name != "persistence":
            for h in ("1", "5", "10", "20"):
                # Of some fifty intervals at 95% one or two lie above the truth; by how little is what counts.
                assert scores["skill_ci"][h][0] <= 0.005, (name, h)


def test_look_ahead_manufactures_skill_where_nothing_can_be_forecast(tmp_path: Path):
    # Seen whole and in many dimensions, a walk is a few slow cosines: a line through its codes runs along them.
    store = random_walk(tmp_path / "walk", trials=5, snapshots=300, dim=20_000)
    codes = fit_svd(store, tmp_path / "codes", SVDConfig(dim=8))
    out = evaluate(store, tmp_path / "eval", CONFIG, codes=codes, returns=False)
    metrics = json.loads((out / "metrics.json").read_text())
    looking_ahead, causal = (metrics["forecasters"][name] for name in ("line-20-full", "line-20"))
    assert not looking_ahead["causal"] and looking_ahead["basis"] == "full"
    assert looking_ahead["skill"]["10"] > 0.3 and looking_ahead["skill_in_basis"]["10"] > 0.3
    assert causal["causal"] and causal["skill"]["10"] < -0.5
    assert metrics["reconstruction_floor"]["line-20-full"]["10"] > 0


def test_with_drift_the_autoregression_reaches_the_best_possible_skill(tmp_path: Path):
    drift = 0.25
    store = random_walk(tmp_path / "walk", trials=25, snapshots=500, dim=60, drift=drift)
    out = evaluate(store, tmp_path / "eval", CONFIG, returns=False)
    skills = json.loads((out / "metrics.json").read_text())["forecasters"]["autoregression"]
    # Before snapshot 100 fewer than 100 steps are seen; origins are spread evenly over the rest.
    for h in (1, 5, 10, 20):
        last = 500 - 1 - 20
        best = np.mean([best_skill(h, min(t, 100), drift) for t in range(1, last + 1)])
        low, high = skills["skill_ci"][str(h)]
        assert low - 0.02 < best < high + 0.03, h
        assert skills["skill"][str(h)] == pytest.approx(best, abs=0.05)


def test_closed_form_of_the_best_skill_by_simulation():
    rng = np.random.default_rng(0)
    k, h, drift, dim = 30, 10, 0.3, 8
    u = rng.normal(size=(20_000, dim))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    x = k * drift * u + rng.normal(size=u.shape) * np.sqrt(k / dim)
    y = h * drift * u + rng.normal(size=u.shape) * np.sqrt(h / dim)
    b = (x * y).sum() / (x * x).sum()
    assert 1 - ((y - b * x) ** 2).sum() / (y**2).sum() == pytest.approx(best_skill(h, k, drift), abs=0.01)


def test_what_makes_no_walk_is_said(tmp_path: Path):
    with pytest.raises(TiplError, match="give at least 1"):
        random_walk(tmp_path / "a", trials=0)
    path = random_walk(tmp_path / "b", trials=1, snapshots=10, dim=2)
    with pytest.raises(TiplError, match=r"holds trials with drift = 0\.0, not 0\.1"):
        random_walk(path, trials=1, snapshots=10, dim=2, drift=0.1)
    for seed, line in (
        (-1, "`seed` is -1; give at least 0."),
        (1.5, "`seed` is 1.5; give a whole number."),
        (True, "`seed` is True; give a whole number."),
        ("1", "`seed` is '1'; give a whole number."),
    ):
        with pytest.raises(TiplError, match=f"^{line}$"):
            random_walk(path, trials=1, snapshots=10, dim=2, seed=seed)  # pyright: ignore[reportArgumentType]


def test_walks_that_are_there_are_kept_and_others_added(tmp_path: Path):
    path = random_walk(tmp_path / "walk", trials=2, snapshots=10, dim=2)
    before = {file: file.stat().st_mtime_ns for file in path.glob("trials/*/*")}
    random_walk(path, trials=4, snapshots=10, dim=2)
    assert Store.open(path).seeds == [1, 2, 3, 4]
    assert {file: file.stat().st_mtime_ns for file in path.glob("trials/[12]/*")}.items() <= before.items()
