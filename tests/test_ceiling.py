"""How much can be known: estimates against processes where it is known, branches against the run that they leave."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from here import in_this_process

import tipl
from tipl import CeilingConfig, CollectConfig, DiscreteCollectConfig, DiscretePPOConfig, PPOConfig, Store, TiplError
from tipl.collection.branches import branch_seeds, branches, made_again
from tipl.evaluation.ceiling import ceiling_scores, forecast_scores
from tipl.evaluation.futures import Futures, dots, summary
from tipl.files import read_json

HORIZONS, DRIFT, DIM = (1, 4), 0.5, 40
PPO = PPOConfig(num_steps=64, num_minibatches=4, update_epochs=4)
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CollectConfig(env_id="InvertedPendulum-v4", trials=5, total_steps=640, hidden_sizes=(4,), ppo=PPO)
    with in_this_process():
        return tipl.collect(config, tmp_path_factory.mktemp("ceiling") / "store", workers=1)


def walks(rng: np.random.Generator, origins: int, count: int) -> tuple[Futures, np.ndarray]:
    """Futures of random walks with drift, and the drift [M, P]: D_h = h D u + Σ ε, of E|ε|² = 1."""
    drift = rng.normal(size=(origins, DIM))
    drift *= DRIFT / np.linalg.norm(drift, axis=1, keepdims=True)
    parts = []
    for m in range(origins):
        steps = drift[m] + rng.normal(scale=DIM**-0.5, size=(count, max(HORIZONS), DIM))
        parts.append(summary(np.cumsum(steps, axis=1)[:, np.array(HORIZONS) - 1]))
    trial, here = np.arange(origins) % 10, np.ones(origins, np.bool_)
    mean, moved, spread = ([part[name] for part in parts] for name in ("mean", "moved", "spread"))
    return Futures(trial, trial, here, here, here, mean, np.array(moved), np.array(spread)), drift


@pytest.mark.parametrize("count", [2, 16])
def test_the_ceiling_of_a_walk_with_drift_is_the_one_that_is_known(count: int) -> None:
    """c = h D² / (1 + h D²): 0.2 and 0.5. Without the correction for R, two futures alone would give 0.6 and 0.75."""
    futures, _ = walks(np.random.default_rng(1), 600, count)
    config = CeilingConfig(horizons=HORIZONS)
    found = ceiling_scores(futures, futures.by_time, config)
    for h in HORIZONS:
        known = h * DRIFT**2 / (1 + h * DRIFT**2)
        low, high = found["ceiling_ci"][str(h)]
        assert found["ceiling"][str(h)] == pytest.approx(known, abs=0.03)
        assert low < known < high and high - low < 0.15


def test_without_drift_nothing_can_be_known() -> None:
    rng = np.random.default_rng(2)
    squares = [part["moved"] - part["spread"] for part in (summary(rng.normal(size=(4, 1, DIM))) for _ in range(2000))]
    assert abs(np.mean(squares)) < 4 * np.std(squares) / 2000**0.5 and np.std(squares) > 1


def test_what_forecasts_know_of_it() -> None:
    """The drift itself has share and cosine 1; half of it share 0.75; the drift and as much at right angles to it share
    0 and cosine √½; a drift turned round −3 and −1."""
    futures, drift = walks(np.random.default_rng(3), 1000, 4)
    config, h = CeilingConfig(horizons=HORIZONS), np.array(HORIZONS)[:, None]
    across = np.random.default_rng(4).normal(size=drift.shape)
    across -= drift * (across * drift).sum(1, keepdims=True) / DRIFT**2
    across *= DRIFT / np.linalg.norm(across, axis=1, keepdims=True)
    for made, share, cosine in (
        (drift, 1, 1), (drift / 2, 0.75, 1), (drift + across, 0, 0.5**0.5), (-drift, -3, -1),
    ):  # fmt: skip
        forecasts = [h * each for each in made]
        dot = np.array([dots(f, mean) for f, mean in zip(forecasts, futures.mean, strict=True)])
        length = np.array([dots(f, f) for f in forecasts])
        found = forecast_scores(dot, length, futures, futures.by_time, config)
        for horizon in HORIZONS:
            known = horizon * DRIFT**2 / (1 + horizon * DRIFT**2)
            assert found["share"][str(horizon)] == pytest.approx(share, abs=0.12)
            assert found["cosine"][str(horizon)] == pytest.approx(cosine, abs=0.06)
            assert found["skill"][str(horizon)] == pytest.approx(share * known, abs=0.06)


@pytest.mark.parametrize("kind", ["envpool", "gymnasium", "discrete"])
def test_the_same_noise_gives_the_recorded_run(kind: str, store: Path, tmp_path: Path) -> None:
    if kind == "discrete":
        ppo = DiscretePPOConfig(num_envs=2, num_steps=40)
        config: CollectConfig = DiscreteCollectConfig(trials=1, total_steps=480, hidden_sizes=(4,), ppo=ppo)
        store = tipl.collect(config, tmp_path / "store", workers=1)
    if kind == "gymnasium":
        config = CollectConfig(backend="gymnasium", trials=1, total_steps=640, hidden_sizes=(4,), ppo=PPO)
        store = tipl.collect(config, tmp_path / "store", workers=1)
    trial = Store.open(store).trial(1)
    each = int(trial.epoch_index.max()) + 1
    states = [*made_again(trial, [2, 3])]
    for iteration, state in zip((2, 3), states, strict=True):
        future = np.concatenate([*branches(trial, state, None)], axis=1)[0]
        np.testing.assert_array_equal(future, trial.weights()[iteration * each + 1 :])


def test_other_noise_gives_other_futures_and_equal_noise_equal_ones(store: Path) -> None:
    trial = Store.open(store).trial(2)
    (state,) = made_again(trial, [5])
    seeds = branch_seeds(0, 2, 5, 3)
    assert branch_seeds(0, 2, 5, 5)[:3] == seeds and branch_seeds(1, 2, 5, 3) != seeds
    futures = [np.concatenate([*branches(trial, state, chosen)], axis=1) for chosen in (seeds, [seeds[1], seeds[1]])]
    assert futures[0].shape == (3, 10, trial.spec.size)
    np.testing.assert_array_equal(futures[0][1], futures[1][0])
    np.testing.assert_array_equal(futures[1][0], futures[1][1])
    recorded = trial.weights()[11:]
    apart = [np.linalg.norm(one - other) for one, other in itertools.combinations([*futures[0], recorded], 2)]
    assert min(apart) > 0.01


def test_the_verb_goes_on_and_says_what_is_known(
    undrawn: None, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CeilingConfig(horizons=(3, 1), futures=4, trials=5, origins=1, all=True)
    out = tipl.ceiling(store, tmp_path / "ceiling", config, models=["causal"], workers=1)
    found = read_json(out / "metrics.json", dict)
    parts = sorted((out / "parts").iterdir())
    assert len(parts) == len(found["origins"]) >= 5 and found["futures"] == 4 and len(found["test_trials"]) == 5
    assert set(found["ceiling"]) == {"3", "1"} and found["ceiling_ci"]["1"] is not None
    assert set(found["forecasters"]["causal"]) >= {"share", "share_ci", "cosine", "skill", "by_phase"}
    # By hand, of one origin: the branches again, and the causal model's own forecast.
    trial, iteration = Store.open(store).trial(1), found["origins"][0]["iteration"]
    (state,) = made_again(trial, [iteration])
    moved = np.concatenate([*branches(trial, state, branch_seeds(0, 1, iteration, 4))], axis=1)[:, [2, 0]]
    moved = moved - trial.weights()[2 * iteration]
    spread = moved.var(axis=0, ddof=1).sum(axis=1)
    expected = 1 - spread / (moved**2).sum(axis=2).mean(axis=0)
    assert list(found["origins"][0]["ceiling"].values()) == pytest.approx(expected.tolist(), rel=1e-4)

    page = tipl.report(out, tmp_path / "page.html").read_text()
    assert "<h1>How much of what comes can be known?</h1>" in page
    assert "The best forecast that anybody could make has a skill of" in page and "Cosine with the mean future" in page
    (tmp_path / "metrics.json").write_text(json.dumps({**found, "horizons": [1, 7]}))
    with pytest.raises(TiplError, match="is not of a ceiling"):
        tipl.report(tmp_path, tmp_path / "other.html")

    (out / "metrics.json").unlink()
    parts[0].unlink()
    monkeypatch.setattr("tipl.evaluation.futures.console.print", lambda line: lines.append(line))
    lines: list[Any] = []
    tipl.ceiling(store, out, config, models=["causal"], workers=1)
    again = read_json(out / "metrics.json", dict)
    assert "1 origins × 4 futures in 1 trials" in lines[0]
    assert {**again, "seconds": 0, "seal": 0} == {**found, "seconds": 0, "seal": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"iterations": (9,)}, "too few for an origin after iteration 9 and a horizon of 3; give --iterations up to 8"),
     ({"horizons": (30,)}, "too few for an origin and a horizon of 30; give shorter --horizons")],
)  # fmt: skip
def test_origins_that_there_are_none_of(changes: Any, message: str, store: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CeilingConfig(horizons=(3, 1), all=True), **changes)
    with pytest.raises(TiplError, match=message):
        tipl.ceiling(store, tmp_path / "ceiling", config)
    assert not (tmp_path / "ceiling").exists()


def test_what_was_not_collected_is_refused(tmp_path: Path) -> None:
    walk = tipl.random_walk(tmp_path / "walk", trials=3, snapshots=60, dim=5)
    with pytest.raises(TiplError, match="not made by `tipl collect`"):
        tipl.ceiling(walk, tmp_path / "ceiling", CeilingConfig(horizons=(1,), all=True))


def test_a_run_that_does_not_come_again_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Store.open(store).trial(1)
    monkeypatch.setattr("tipl.rl.trial_batch._ITERATION", 7)
    with pytest.raises(TiplError, match=r"does not come to its own snapshot 4 again .* judge it there, or collect it"):
        next(made_again(trial, [2]))


def test_a_compact_store_is_branched_too(store: Path, tmp_path: Path) -> None:
    trial = Store.open(tipl.compact(store, tmp_path / "compact")).trial(1)
    assert trial.compact and len([*made_again(trial, [3])]) == 1
