"""The forecaster's contract and what forecasters are shown: histories, names, horizons, runs told apart.

In: made-up paths, a small store, the model that comes with the package.  Out: failures.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from torch import nn
from torch.distributions import Categorical

from tipl import Accelerator, JumpConfig, OnlineCorrected
from tipl.acceleration.jump import jumps_for
from tipl.config.presets import EvaluateConfig, ForecasterName, SVDConfig, TrainConfig
from tipl.errors import TiplError
from tipl.evaluation.evaluate import evaluate
from tipl.forecasting.autoregression import fit_autoregression
from tipl.forecasting.baselines import Source, fitted_baselines, line
from tipl.forecasting.forecast import forecast
from tipl.forecasting.forecaster import Forecaster, usable
from tipl.forecasting.named import forecaster_digest, load_forecaster
from tipl.forecasting.online import _BYTES
from tipl.forecasting.shipped import model_folder
from tipl.forecasting.subspace import CodeLine, PathProducts, PrefixLine
from tipl.forecasting.trained import CausalForecaster, Stretched, codes_for
from tipl.forecasting.trained import ModelForecaster as OfCodes
from tipl.representation import Codes, fit_svd
from tipl.store import History, Store
from tipl.training import train

HORIZONS = (1, 3, 8)


def two_runs_of_one_seed(snapshots: int = 60, weights: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """They begin at the same weights and part at once."""
    steps = np.random.default_rng(0).normal(size=(2, snapshots, weights))
    steps[:, 0] = steps[0, 0]
    one, other = np.cumsum(steps, axis=1).astype(np.float32)
    return one, other


def shown(weights: np.ndarray, origin: int, trial: int = 1) -> History:
    return History(trial, origin, weights[: origin + 1], -1)


# What a forecaster is shown.


def test_a_trial_makes_its_histories(small_store: Path):
    trial = Store.open(small_store).trial(2)
    iteration = np.asarray(trial.iteration)
    for origin in (1, 4, 5, 6, 40, 80):
        seen = trial.history(origin)
        before = int((iteration[:origin] == iteration[origin]).sum())
        assert (seen.trial, seen.origin, seen.epoch_index, seen.snapshots_per_iteration) == (2, origin, before, 5)
        np.testing.assert_array_equal(seen.weights, trial.weights(0, origin + 1))
        np.testing.assert_array_equal(trial.history(origin, 3).weights, trial.weights(max(0, origin - 2), origin + 1))
    assert trial.history(0).epoch_index == 4  # φ_0 stands where an iteration ends
    for origin in (-1, 81):
        with pytest.raises(TiplError, match="snapshots 0 to 80"):
            trial.history(origin)


def test_the_readmes_snippet_has_the_place_that_the_trial_knows(small_store: Path):
    trial = Store.open(small_store).trial(1)
    forecaster = CausalForecaster.from_pretrained("causal", shapes=trial.spec.shapes)
    history = trial.history(50)
    weights, error = forecaster.forecast_with_error([history], horizons=[1, 10])
    assert weights.shape == (1, 2, 122) and history.epoch_index == 4 and (error > 0).all()
    by_hand = History(1, 50, trial.weights(0, 51), 4)
    np.testing.assert_array_equal(forecaster.forecast([by_hand], [1, 10]), weights)
    for place in (3, 99):
        with pytest.raises(TiplError, match=r"epoch_index|cannot have"):
            forecaster.forecast([History(1, 50, trial.weights(0, 51), place)], [1, 10])
    unknown = dataclasses.replace(by_hand, epoch_index=-1)
    assert not np.array_equal(forecaster.forecast([unknown], [1, 10]), weights)
    tenth = dataclasses.replace(
        by_hand, epoch_index=9, snapshots_per_iteration=10
    )  # a run that is known to be otherwise
    assert forecaster.forecast([tenth], [1, 10]).shape == (1, 2, 122)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"weights": np.zeros(3, np.float32)}, "snapshots, weights"),
        ({"weights": np.zeros((0, 3), np.float32)}, "snapshots, weights"),
        ({"weights": np.zeros((2, 3), np.complex64)}, "complex64"),
        ({"weights": [["a", "b"]]}, "real weights"),
        ({"origin": -1}, "origin is -1"),
        ({"epoch_index": -2}, "cannot have -2"),
        ({"epoch_index": 2}, "cannot have 2"),
        ({"epoch_index": 1, "snapshots_per_iteration": 1}, "which has 1"),
    ],
    ids=str,
)
def test_a_history_that_cannot_be_is_refused(wrong: dict[str, Any], says: str):
    right: dict[str, Any] = {"trial": 1, "origin": 1, "weights": np.zeros((2, 3), np.float32), "epoch_index": 0}
    History(**right)
    with pytest.raises(TiplError, match=says):
        History(**(right | wrong))


def test_float64_histories_are_forecast_as_float32_ones():
    path, _ = two_runs_of_one_seed()
    for forecaster in (CausalForecaster.from_pretrained(shapes=[(4,), (5,)]), line(5), PrefixLine(2, 5)):
        made = forecaster.forecast([History(1, 50, path[:51].astype(np.float64), -1)], HORIZONS)
        expected = forecaster.forecast([History(1, 50, path[:51], -1)], HORIZONS)
        np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


# Runs are told apart by what they hold.


@pytest.mark.parametrize(
    "make", [lambda: OnlineCorrected([line(5)]), lambda: PrefixLine(2, 10)], ids=["adapted", "prefix"]
)
def test_two_runs_of_one_number_and_one_beginning_are_two(make):
    one, other = two_runs_of_one_seed()
    both = make()
    for weights, origin in ((one, 50), (other, 40), (one, 0), (other, 59), (one, 20), (other, 1), (one, 59)):
        made = both.forecast([shown(weights, origin)], HORIZONS)
        np.testing.assert_array_equal(made, make().forecast([shown(weights, origin)], HORIZONS))
    asked = [shown(one, 30), shown(other, 45), shown(one, 10), shown(other, 2)]
    together = make().forecast(asked, HORIZONS)
    for history, made in zip(asked, together, strict=True):
        np.testing.assert_allclose(made, make().forecast([history], HORIZONS)[0], rtol=1e-4, atol=1e-4)


def test_products_of_a_path_are_of_this_path():
    one, other = two_runs_of_one_seed()
    products = PathProducts()
    products.upto(shown(one, 59))
    moved = (other[:41] - other[0]).astype(np.float64)
    np.testing.assert_allclose(products.upto(shown(other, 40)).displacement_TT, moved @ moved.T, rtol=1e-6, atol=1e-6)


def test_an_adapted_forecaster_forgets_what_takes_too_much():
    """Of 2²⁰ weights a displacement is 4 MiB: with horizons 1 and 8 nine of them wait."""
    rng, forecaster = np.random.default_rng(0), OnlineCorrected([line(2)])
    for trial in range(5):
        path = np.cumsum(rng.standard_normal((10, 1 << 20), np.float32), axis=0)
        forecaster.forecast([shown(path, 9, trial)], (1, 8))
        assert sum(run.nbytes for run in forecaster._runs) <= _BYTES and forecaster._runs
    assert len(forecaster._runs) == _BYTES // (9 * (4 << 20)) == 1


def test_an_adapted_forecaster_says_what_it_cannot_use():
    path, _ = two_runs_of_one_seed()
    with pytest.raises(TiplError, match="at least one forecaster"):
        OnlineCorrected([])
    with pytest.raises(TiplError, match="give snapshots_per_iteration"):
        OnlineCorrected([line(5)]).forecast([History(1, 9, path[:10], 3)], HORIZONS)
    with pytest.raises(TiplError, match="from φ_0 on"):
        OnlineCorrected([line(5)]).forecast([History(1, 30, path[20:31], -1)], HORIZONS)


def test_an_autoregression_is_fitted_again_where_the_store_has_become_another(small_store: Path, tmp_path: Path):
    stores = Store.open(small_store)
    place = tmp_path / "store"
    shutil.copytree(small_store, place)
    first, digest = fit_autoregression(place, 5, (5, 20)), forecaster_digest("autoregression", place)
    assert fit_autoregression(place, 5, (5, 20)) is first
    shutil.rmtree(place / "trials" / str(stores.split().train[0]))
    second = fit_autoregression(place, 5, (5, 20))
    assert any(not np.array_equal(first.slopes[at], second.slopes[at]) for at in first.slopes)
    assert forecaster_digest("autoregression", place) != digest


def test_codes_of_another_store_are_not_taken_for_these(small_store: Path, tmp_path: Path):
    """A store whose trials have the same numbers and other weights."""
    codes = Codes.open(fit_svd(small_store, tmp_path / "codes", SVDConfig(dim=8)))
    trial = Store.open(small_store).trial(3)
    forecaster = CodeLine(codes)
    forecaster.forecast([trial.history(30, 1)], HORIZONS)
    foreign = dataclasses.replace(trial.history(30, 1), weights=trial.weights(30, 31) + np.float32(0.1))
    with pytest.raises(TiplError, match="other weights at snapshot 30"):
        forecaster.forecast([foreign], HORIZONS)


# The contract.


class Still(Forecaster):
    name, label, context = "still", "the last weights again", 1

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        now = np.stack([history.weights[-1] for history in histories])
        return np.repeat(now[:, None], len(horizons), axis=1)


def without(attribute: str, **instead: Any) -> Forecaster:
    """Still, less something that the contract asks for."""
    body = {name: getattr(Still, name) for name in ("name", "label", "context", "forecast") if name != attribute}
    return type("Other", (Forecaster,), body | instead)()


BROKEN = [
    (without("name"), "Other has no `name`"),
    (without("label"), "still has no `label`"),
    (without("context"), "still has no `context`.*or None for all"),
    (without("context", context=0), "has 0 as `context`"),
    (without("label", label=3), "has 3 as `label`"),
    (without("basis", basis=7), "has 7 as `basis`"),
    (without("causal", causal="yes"), "has 'yes' as `causal`"),
    (object(), "object is no Forecaster|type object; give a Forecaster"),
]


@pytest.mark.parametrize(("broken", "says"), BROKEN, ids=[says for _, says in BROKEN])
def test_what_breaks_the_contract_is_told_before_anything_runs(
    broken: Any, says: str, small_store: Path, tmp_path: Path
):
    with pytest.raises(TiplError, match=says):
        evaluate(small_store, tmp_path / "eval", EvaluateConfig(), forecasters=[broken])
    assert not (tmp_path / "eval").exists()
    for use in (lambda: OnlineCorrected([broken]), lambda: Stretched(broken, 2.0)):
        with pytest.raises(TiplError, match=says):
            use()
    with pytest.raises(TiplError, match=says):
        Accelerator(nn.Linear(2, 1), broken, distribution=lambda observations: Categorical(observations))


def test_every_forecaster_of_the_package_keeps_the_contract(small_store: Path):
    data = Store.open(small_store)
    split = data.split()
    source = Source(data, tuple(map(data.trial, split.train)), tuple(map(data.trial, split.validation)))
    assert isinstance(usable(Still()), Still)
    for forecaster in fitted_baselines([source], source.train[0].spec.shapes, (1, 5), 0):
        assert usable(forecaster) is forecaster
        usable(Stretched(forecaster, 2.0))
        usable(OnlineCorrected([forecaster]))
    for name in get_args(ForecasterName):
        usable(load_forecaster(name, [(9,)], 20, 5))


# The causal model: its tensors, its horizons, its error.


def test_a_causal_model_is_told_its_tensors(small_store: Path):
    for make in (lambda: CausalForecaster.from_pretrained("causal"), load_forecaster):
        with pytest.raises(TiplError, match="give `shapes`"):
            make()
    history = Store.open(small_store).trial(1).history(20)
    with pytest.raises(TiplError, match="8 weights, this policy has 122"):
        CausalForecaster.from_pretrained(shapes=[(2, 4)]).forecast([history], [1])
    forecaster = CausalForecaster.from_pretrained(shapes=[(122,)])
    assert forecaster.forecast([history], [1]).shape == (1, 1, 122)
    with pytest.raises(TiplError, match="give a list of History, one at least"):
        forecaster.forecast([], [1])
    for horizons, message in (([], "`horizons`"), ([0], "`horizons` is 0; give at least 1"), ([1, -5], "is -5; give")):
        with pytest.raises(TiplError, match=message):
            forecaster.forecast([history], horizons)


def test_beyond_the_last_horizon_and_before_any_movement_there_is_no_error_to_tell(small_store: Path, tmp_path: Path):
    trial = Store.open(small_store).trial(1)
    forecaster = CausalForecaster.from_pretrained(shapes=trial.spec.shapes)
    _, error = forecaster.forecast_with_error([trial.history(60), trial.history(0)], [1, 100, 101])
    assert np.isfinite(error[0, :2]).all() and np.isnan(error[0, 2]) and np.isnan(error[1]).all()
    out = tmp_path / "policy.safetensors"
    with pytest.raises(TiplError, match="--horizon is 5000; this model forecasts up to 100"):
        forecast(small_store, 1, 60, 5000, out, episodes=0)
    assert not out.exists()
    first = forecast(small_store, 1, 0, 10, out, episodes=0)
    assert first.expected_error is None and json.dumps(dataclasses.asdict(first), allow_nan=False)
    with pytest.raises(TiplError, match=r"100 snapshots ahead, and 50 iterations of 5 are 250; give --horizon 20"):
        load_forecaster("causal", trial.spec.shapes, 50, 5)


def test_the_error_of_a_stretched_forecast_is_that_of_the_stretch_too(small_store: Path, tmp_path: Path):
    """err² + (s − 1)² |d̂|², each found by itself."""
    trial, out = Store.open(small_store).trial(1), tmp_path / "policy.safetensors"
    forecaster = CausalForecaster.from_pretrained(shapes=trial.spec.shapes)
    made, error = forecaster.forecast_with_error([trial.history(60, 201)], [10])
    length = np.sqrt(np.square(made[0, 0].astype(np.float64) - trial.weights(60, 61)[0]).sum())
    for factor in (0.5, 1.0, 3.0):
        found = forecast(small_store, 1, 60, 10, out, stretch=factor, episodes=0).expected_error
        assert found == pytest.approx(np.sqrt(error[0, 0] ** 2 + (factor - 1) ** 2 * length**2), rel=1e-5)
    assert forecast(small_store, 1, 60, 10, out, adapt=True, episodes=0).expected_error is None


# Names.


def test_a_name_is_a_name_and_a_path_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shipped = model_folder("causal")
    assert model_folder(Path("causal")) == shipped  # there is no such folder here
    shutil.copytree(shipped, tmp_path / "causal")
    assert model_folder("causal") == shipped
    for path in ("./causal", str(tmp_path / "causal"), Path("causal"), tmp_path / "causal"):
        assert model_folder(path).resolve() == tmp_path / "causal"


def test_one_model_has_the_same_jumps_however_it_is_given(tmp_path: Path):
    folder = tmp_path / "mine"
    shutil.copytree(model_folder("causal"), folder)
    made = CausalForecaster.from_pretrained(folder, [(9,)])
    settings = {jumps_for(each) for each in (folder, str(folder), made, "causal")}
    assert len(settings) == 1 and settings.pop().horizon == 20
    assert jumps_for("autoregression") == jumps_for(load_forecaster("autoregression", [(9,)], 20, 5))
    assert jumps_for(Path("line")) == jumps_for("line") == jumps_for(Still()) == JumpConfig()


def test_a_model_that_was_trained_again_is_another(tmp_path: Path):
    folder = tmp_path / "mine"
    shutil.copytree(model_folder("causal"), folder)
    before = forecaster_digest(str(folder))
    assert before == forecaster_digest("causal") and forecaster_digest("line") is None
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert forecaster_digest(str(folder)) != before


def test_what_is_fitted_on_nothing_takes_no_store(small_store: Path):
    with pytest.raises(TiplError, match="no effect on line"):
        load_forecaster("line", [(9,)], 4, 5, small_store)


def test_codes_in_the_way_that_are_of_other_settings_are_not_taken(small_store: Path, tmp_path: Path):
    """The codes that a model learned on were fitted anew since, with another basis."""
    codes = fit_svd(small_store, tmp_path / "codes", SVDConfig(dim=8))
    small = TrainConfig(context=5, num_layers=1, width=8, steps=2, warmup_steps=1)
    folder = train(small_store, tmp_path / "model", small, codes=codes)
    shutil.rmtree(codes)
    fit_svd(small_store, codes, SVDConfig(dim=8, centered=True))
    made = load_forecaster(folder, codes=codes_for(folder, Store.open(small_store), tmp_path / "scratch"))
    assert isinstance(made, OfCodes) and made.codes is not None and not made.codes.config.centered
