"""The protocol and its numbers against naive loops.

In: a small real store, made-up errors and returns.  Out: failures.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tipl.catalog.compact import compact
from tipl.config.experiments import EXPERIMENTS
from tipl.config.presets import CausalTrainConfig, EvaluateConfig, SVDConfig, TrainConfig
from tipl.errors import TiplError
from tipl.evaluation import evaluate as evaluation
from tipl.evaluation import forecast_returns, weight_errors
from tipl.evaluation.apart import require_alike
from tipl.evaluation.evaluate import compare_weights, evaluate
from tipl.evaluation.origins import choose_origins, join_origins, return_progress, some_origins
from tipl.evaluation.scores import Comparison, Origins, Returns, return_scores, weight_scores
from tipl.evaluation.statistics import Interval, p_value
from tipl.forecasting.baselines import damped_line, line, persistence
from tipl.forecasting.forecast import forecast
from tipl.forecasting.forecaster import Forecaster, checked_forecast
from tipl.forecasting.named import load_forecaster
from tipl.forecasting.online import OnlineCorrected, online_corrected
from tipl.forecasting.shipped import PRETRAINED
from tipl.forecasting.trained import codes_for
from tipl.models import load
from tipl.reporting import report
from tipl.representation import Codes, fit_svd
from tipl.rl.returns import Policies, policy_returns
from tipl.store import History, Store, TrialWriter, create_store, plan_trials
from tipl.store.spec import ParamSpec
from tipl.training import fit, train

CONFIG = EvaluateConfig(
    horizons=(1, 2, 5, 10), return_horizons=(1, 10), origins=12, return_origins=4, episodes=4,
    return_forecasters=("persistence", "damped-line"),
)  # fmt: skip


@pytest.fixture(scope="module")
def metrics(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = evaluate(small_store, tmp_path_factory.mktemp("eval") / "a", CONFIG)
    return json.loads((out / "metrics.json").read_text())


def test_skill_and_wpe_are_those_of_a_plain_loop(small_store: Path, metrics: dict):
    trial = Store.open(small_store).trial(6)
    assert metrics["test_trials"] == [6] and metrics["train_trials"] == [1, 2, 3, 4]
    origins = choose_origins(trial, CONFIG)
    w = trial.weights().astype(np.float64)
    times = origins.snapshot[origins.by_time]
    assert len(times) == 12 and times.max() + 10 < 81
    for name, forecaster in (("line-5", line(5)), ("persistence", persistence())):
        for column, h in enumerate(CONFIG.horizons):
            wrong = []
            for t in times:
                seen = trial.weights()[max(0, t - 4) : t + 1]
                made = forecaster.forecast([History(6, t, seen[-(forecaster.context or 1) :], 0)], CONFIG.horizons)
                wrong.append(((made[0, column] - w[t + h]) ** 2).mean())
            still = np.mean([((w[t] - w[t + h]) ** 2).mean() for t in times])
            scores = metrics["forecasters"][name]
            assert scores["wpe"][str(h)] == pytest.approx(np.mean(wrong), rel=1e-5)
            assert scores["skill"][str(h)] == pytest.approx(1 - np.mean(wrong) / still, rel=1e-4, abs=1e-6)


def test_the_contract_of_the_metrics(metrics: dict):
    assert metrics["schema"] == 1 and metrics["horizons"] == [1, 2, 5, 10] and metrics["noise_floor"] >= 0
    for scores in metrics["forecasters"].values():
        assert scores["basis"] is None and scores["causal"] is True
        assert set(scores["wpe"]) == set(scores["skill"]) == set(scores["skill_ci"]) == {"1", "2", "5", "10"}
    still = metrics["forecasters"]["persistence"]
    assert set(still["repw"]) == {"1", "10"} and set(still["skill"].values()) == {0.0}
    assert still["better_than_origin"]["10"] == 0.5 and still["length_ratio"]["1"] == 0 and still["cosine"]["1"] is None
    assert "repw" not in metrics["forecasters"]["line-5"]


def test_the_other_ways_to_run_policies_are_what_they_say(small_store: Path, metrics: dict):
    """Persistence and the damped line at the last horizon, from the policies themselves."""
    trial = Store.open(small_store).trial(6)
    weights, ahead = trial.weights(), 10
    at = some_origins(choose_origins(trial, CONFIG), 4).snapshot
    assert len(at) == metrics["return_origins"] == 4

    def mean_return(phi: np.ndarray, normalizer: np.ndarray, sampled: bool = False, seed: int = 0) -> np.ndarray:
        policies = Policies(phi, trial.obs_mean[normalizer], trial.obs_var[normalizer])
        return policy_returns(policies, trial.env_id, (8, 8), 4, seed=seed, sampled=sampled).mean(axis=1)

    label = metrics["forecasters"]["damped-line"]["label"]
    count, damping = (float(text) for text in re.findall(r"[\d.]+", label))
    histories = [History(6, int(t), weights[max(0, t + 1 - int(count)) : t + 1], 0) for t in at]
    made = {
        "persistence": weights[at],
        "damped-line": damped_line(int(count), damping).forecast(histories, (ahead,))[:, 0],
    }
    true = mean_return(weights[at + ahead], at + ahead)
    sampled = mean_return(weights[at + ahead], at + ahead, sampled=True)
    for name, phi in made.items():
        scores = metrics["forecasters"][name]
        found = {"": scores, **scores["variants"]}
        expected = {
            "": np.abs(true - mean_return(phi, at)),
            "oracle_normalizer": np.abs(true - mean_return(phi, at + ahead)),
            "sampled_actions": np.abs(sampled - mean_return(phi, at, sampled=True)),
        }
        assert set(found) == set(expected)
        for variant, gap in expected.items():
            assert found[variant]["repw"]["10"] == pytest.approx(gap.mean()), (name, variant)
    assert set(metrics["variants"]) == {"oracle_normalizer", "sampled_actions"}
    assert metrics["variants"]["oracle_normalizer"]["noise_floor"] == metrics["noise_floor"]
    for h in (1, ahead):
        perfect = mean_return(weights[at + h], at) - mean_return(weights[at], at)
        assert metrics["true_weights"]["gain"][str(h)] == pytest.approx(perfect.mean())
        there = weights[at + h], at + h
        floor = np.abs(mean_return(*there) - mean_return(*there, seed=1)).mean()
        assert metrics["noise_floor_by_horizon"][str(h)] == pytest.approx(floor)
    assert metrics["noise_floor"] == metrics["noise_floor_by_horizon"][str(ahead)]


def test_a_stretched_forecaster_goes_on_in_its_direction(small_store: Path, tmp_path: Path):
    run = ("damped-line", "autoregression")
    config = replace(
        CONFIG, stretch=(2.0, 0.5), return_horizons=(10,), return_forecasters=run, return_origins=1, episodes=1,
        oracle_normalizer=False, sampled_actions=False, spectrum_trials=0,
    )  # fmt: skip
    found = json.loads((evaluate(small_store, tmp_path / "a", config) / "metrics.json").read_text())["forecasters"]
    assert {name for name in found if "-x" in name} == {f"{name}-x{factor}" for name in run for factor in ("2", "0.5")}
    for name in run:
        for factor in (2.0, 0.5):
            one, other = found[name], found[f"{name}-x{factor:g}"]
            for h in ("1", "10"):
                assert other["cosine"][h] == pytest.approx(one["cosine"][h], abs=1e-5)
                assert other["length_ratio"][h] == pytest.approx(factor * one["length_ratio"][h], rel=1e-4)
            assert "repw" in other and other["causal"] and not other["model"]


def test_adapted_forecasters_are_judged_beside_their_own(small_store: Path, tmp_path: Path):
    config = replace(CONFIG, adapt=True, spectrum_trials=0)
    out = evaluate(small_store, tmp_path / "a", config, models=[Path("causal")], returns=False)
    found = json.loads((out / "metrics.json").read_text())["forecasters"]
    kinds = {name: each["model"] for name, each in found.items() if name.endswith("-adapted")}
    assert kinds == {"persistence-adapted": False, "autoregression-adapted": False, "causal-adapted": True}
    store = Store.open(small_store)
    trials = [store.trial(seed) for seed in store.split().test]
    origins = join_origins([choose_origins(trial, config) for trial in trials])
    forecaster = online_corrected([load_forecaster("causal", trials[0].spec.shapes)], trials[0])
    compared = compare_weights(trials, origins, [forecaster], config.horizons)["causal-adapted"]
    timed = origins.by_time
    skill = 1 - compared.error[timed].sum(axis=0) / compared.moved[timed].sum(axis=0)
    np.testing.assert_allclose(list(found["causal-adapted"]["skill"].values()), skill, rtol=1e-5)


def test_variants_and_spectra_are_left_out_on_request(small_store: Path, tmp_path: Path):
    plain = replace(
        CONFIG, oracle_normalizer=False, sampled_actions=False, spectrum_trials=0, return_horizons=(1,), episodes=2
    )
    found = json.loads((evaluate(small_store, tmp_path / "a", plain) / "metrics.json").read_text())
    assert found["variants"] == {} and found["spectrum"] is None
    assert found["forecasters"]["persistence"]["variants"] == {}


def test_seen_trials_are_training_trials_and_called_so(undrawn: None, small_store: Path, tmp_path: Path):
    config = replace(CONFIG, seen=True, spectrum_trials=0)
    out = evaluate(small_store, tmp_path / "seen", config, returns=False)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["seen"] and metrics["test_trials"] == [4] and metrics["train_trials"] == [1, 2, 3, 4]
    trial = Store.open(small_store).trial(4)
    origins, w = choose_origins(trial, config), trial.weights().astype(np.float64)
    still = np.mean([((w[t] - w[t + 10]) ** 2).mean() for t in origins.snapshot[origins.by_time]])
    assert metrics["forecasters"]["persistence"]["wpe"]["10"] == pytest.approx(still, rel=1e-5)
    page = report([out], tmp_path / "page.html").read_text()
    assert "trials seen in training" in page and "training trials, seen in training" in page


def test_baselines_of_another_store_judge_every_trial(small_store: Path, tmp_path: Path):
    paths = {seed: walk(seed, 40, 4) for seed in range(8)}
    here = made_up_store(tmp_path / "here", {seed: paths[seed] for seed in (6, 7)})
    there = made_up_store(tmp_path / "there", {seed: paths[seed] for seed in range(6)})
    config = replace(CONFIG, spectrum_trials=0)
    out = evaluate(here, tmp_path / "out", config, fit=there, returns=False)
    found = json.loads((out / "metrics.json").read_text())
    assert found["fit"] == str(there) and found["test_trials"] == [6, 7] and found["train_trials"] == [0, 1, 2, 3]
    mean = np.mean([paths[seed] for seed in range(4)], axis=0)
    wrong = []
    for seed in (6, 7):
        w = paths[seed].astype(np.float64)
        origins = choose_origins(Store.open(here).trial(seed), config)
        wrong += [((w[t] + mean[t + 10] - mean[t] - w[t + 10]) ** 2).mean() for t in origins.snapshot[origins.by_time]]
    assert found["forecasters"]["train-mean"]["wpe"]["10"] == pytest.approx(np.mean(wrong), rel=1e-5)
    assert found["judged"] == "all" and [each["train"] for each in found["fitted_on"]] == [[0, 1, 2, 3]]
    with pytest.raises(
        TiplError, match=r"Trials 0, 1, 2, 3, 4 of .*there would be judged, and the baselines are fitted"
    ):
        evaluate(there, tmp_path / "same", CONFIG, fit=there)
    with pytest.raises(TiplError, match="leave out --fit"):
        evaluate(here, tmp_path / "seen", replace(config, seen=True), fit=there)


def test_baselines_are_fitted_on_stores_of_any_policies(tmp_path: Path, capsys: pytest.CaptureFixture):
    here = made_up_store(tmp_path / "here", {seed: walk(seed, 40, 4) for seed in range(3)})
    other = made_up_store(tmp_path / "other", {seed: walk(seed, 40, 7) for seed in range(4)}, env_id="other")
    alike = made_up_store(tmp_path / "alike", {seed: walk(seed, 40, 4) for seed in range(10, 14)})
    config, found = replace(CONFIG, spectrum_trials=0), {}
    for name, stores in (("other", other), ("both", [other, alike]), ("alike", [alike])):
        out = evaluate(here, tmp_path / f"{name}.eval", config, fit=stores, returns=False)
        found[name] = json.loads((out / "metrics.json").read_text())["forecasters"]
        said = "the mean of the training trials is left out" in capsys.readouterr().err
        assert said == (name == "other") == ("train-mean" not in found[name])
    assert found["both"]["train-mean"]["wpe"] == found["alike"]["train-mean"]["wpe"]
    slopes = [found[name]["autoregression"]["wpe"]["10"] for name in found]
    assert len({round(each, 6) for each in slopes}) == 3


def test_every_trial_is_judged_where_nothing_was_learned_from(undrawn: None, small_store: Path, tmp_path: Path, capsys):
    config = replace(CONFIG, spectrum_trials=0, all=True)
    out = evaluate(small_store, tmp_path / "all", config, models=["causal"], returns=False)
    found = json.loads((out / "metrics.json").read_text())
    assert found["test_trials"] == [1, 2, 3, 4, 5, 6] and found["judged"] == "all" and found["fitted_on"] == []
    assert "causal" in found["forecasters"] and "autoregression" not in found["forecasters"]
    assert "baselines that need a fit are left out" in capsys.readouterr().err
    page = report(str(out), str(tmp_path / "page.html")).read_text()
    assert "all trials of the store; neither a model nor a baseline learned from them" in page
    with pytest.raises(TiplError, match=r"is a store; run `tipl evaluate .*` and report what it writes"):
        report([small_store], tmp_path / "page.html")
    with pytest.raises(TiplError, match="--seen judges training trials of the store itself; leave out --all"):
        evaluate(small_store, tmp_path / "seen", replace(config, seen=True))


def test_no_model_is_judged_on_what_it_learned_whatever_the_folders_are_called(tmp_path: Path):
    """A store that grows, is renamed, copied or compacted; and another one of the same name."""
    store = made_up_store(tmp_path / "store", {seed: walk(seed, 110, 4) for seed in range(11, 15)})
    small = CausalTrainConfig(num_layers=1, width=8, num_heads=1, steps=1, warmup_steps=1, windows=8)
    model = train(store, tmp_path / "model", small)
    learned = {*Store.open(store).split().train, *Store.open(store).split().validation}
    made_up_store(store, {seed: walk(seed, 110, 4) for seed in range(1, 11)})
    config = replace(CONFIG, spectrum_trials=0)
    out = evaluate(store, tmp_path / "out", config, models=[model], returns=False)
    found = json.loads((out / "metrics.json").read_text())
    assert not learned & set(found["test_trials"]) and found["learned_from"]["model"][0]["trials"] == sorted(learned)

    other = tmp_path / "elsewhere" / "store"  # another data set of the same seeds: no conflict
    made_up_store(other, {seed: walk(seed + 50, 110, 4) for seed in range(11, 15)})
    everything = replace(config, all=True)
    evaluate(other, tmp_path / "other", everything, models=[model], returns=False)
    again = made_up_store(tmp_path / "again", {seed: walk(seed, 110, 4) for seed in range(11, 15)})
    with pytest.raises(TiplError, match=rf"model has learned from trials 11, 12.* of {again}"):  # the same runs
        evaluate(again, tmp_path / "refused", everything, models=[model], returns=False)
    renamed = store.rename(tmp_path / "renamed")
    shutil.copytree(renamed, tmp_path / "elsewhere" / "copy")
    small_one = compact(renamed, tmp_path / "small")
    for path in (renamed, tmp_path / "elsewhere" / "copy", small_one):
        with pytest.raises(TiplError, match=rf"model has learned from trials 11, 12.* of {path}"):
            evaluate(path, tmp_path / "refused", everything, models=[model], returns=False)
        with pytest.raises(TiplError, match=r"model has learned from trial 11 of .*--seen"):
            forecast(path, 11, 20, 1, tmp_path / "f.safetensors", model=model)
        assert forecast(path, 11, 20, 1, tmp_path / "f.safetensors", model=model, seen=True).trial == 11
    evaluate(renamed, tmp_path / "seen", replace(config, seen=True), models=[model], returns=False)
    with pytest.raises(TiplError, match=r"would be judged, and the baselines are fitted on the same of"):
        evaluate(small_one, tmp_path / "refused", config, fit=renamed, returns=False)
    with pytest.raises(TiplError, match=r"The model .*model is given twice"):
        evaluate(other, tmp_path / "refused", everything, models=[model, model], returns=False)
    assert not (tmp_path / "refused").exists()


def test_models_of_one_name_are_told_apart_by_the_folders_above(tmp_path: Path, small_store: Path):
    for above in ("a", "b"):
        shutil.copytree(PRETRAINED / "causal", tmp_path / above / "model")
    config = replace(CONFIG, spectrum_trials=0)
    models = [tmp_path / above / "model" for above in ("a", "b")]
    out = evaluate(small_store, tmp_path / "out", config, models=models, returns=False)
    found = json.loads((out / "metrics.json").read_text())
    assert [name for name, each in found["forecasters"].items() if each["model"]] == ["a-model", "b-model"]
    assert set(found["training"]) == {"a-model", "b-model"}


def test_default_horizons_fit_a_short_store_and_asked_ones_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture):
    store = made_up_store(tmp_path / "short", {seed: walk(seed, 30, 4) for seed in range(5)})
    config = EvaluateConfig(origins=5, spectrum_trials=0)
    metrics = json.loads((evaluate(store, tmp_path / "a", config, returns=False) / "metrics.json").read_text())
    assert metrics["horizons"] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert "has 30 snapshots: horizons up to 10." in capsys.readouterr().err
    with pytest.raises(TiplError, match="too few for a horizon of 20; give --horizons up to 14"):
        evaluate(store, tmp_path / "b", replace(config, horizons=(1, 20)), returns=False)
    only = replace(config, horizons=(1, 14))  # the return horizons that are no part of them are not asked for
    metrics = json.loads((evaluate(store, tmp_path / "c", only, returns=False) / "metrics.json").read_text())
    assert metrics["horizons"] == [1, 14] and metrics["config"]["evaluate"]["return_horizons"] == [1]
    tiny = made_up_store(tmp_path / "tiny", {seed: walk(seed, 1, 4) for seed in range(5)})
    with pytest.raises(TiplError, match=r"has 1 snapshots, too few for a horizon of .*a horizon takes 4 snapshots"):
        evaluate(tiny, tmp_path / "d", config, returns=False)


def test_an_output_is_no_part_of_what_is_read(tmp_path: Path):
    store = made_up_store(tmp_path / "store", {seed: walk(seed, 30, 4) for seed in range(5)})
    (tmp_path / "link").symlink_to(store)
    (tmp_path / "file").write_text("")
    for out in (store, store / "eval", tmp_path / "link" / "eval", tmp_path / "elsewhere" / ".." / "store"):
        with pytest.raises(TiplError, match=r"is in .*store, which is a data set; give --out a place outside of it"):
            evaluate(store, out, CONFIG, returns=False)
    with pytest.raises(TiplError, match="file is a file; give --out a folder"):
        evaluate(store, tmp_path / "file", CONFIG, returns=False)
    with pytest.raises(TiplError, match=r"Cannot write .*file/below"):
        evaluate(store, tmp_path / "file" / "below", CONFIG, returns=False)
    inner = store / "inner"
    for write in (
        lambda: create_store(inner),
        lambda: fit_svd(store, inner, SVDConfig(dim=2)),
        lambda: train(store, inner, TrainConfig(steps=1, warmup_steps=0), SVDConfig(dim=2)),
        lambda: compact(store, inner),
        lambda: report([tmp_path], inner / "page.html"),
        lambda: forecast(store, 1, 1, 1, inner.with_suffix(".safetensors")),
    ):
        with pytest.raises(TiplError, match="store, which is a data set; give --out a place outside of it"):
            write()
    assert sorted(path.name for path in store.iterdir()) == ["trials", "zarr.json"]


def test_long_comparisons_are_kept_and_nothing_stale_is_read(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(weight_errors, "KEPT_FROM_SECONDS", 0.0)
    store = Store.open(small_store)
    trials = [store.trial(6)]
    origins, asked = join_origins([choose_origins(trials[0], CONFIG)]), [0]

    class Own(Forecaster):  # whose code may change between two evaluations
        name, label, context = "own", "own", 1

        def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
            asked[0] += 1
            return np.stack([np.repeat(each.weights[-1:], len(horizons), axis=0) for each in histories])

    def compared(*forecasters: Forecaster) -> dict[str, Comparison]:
        return compare_weights(trials, origins, [*forecasters, Own()], CONFIG.horizons, tmp_path / "parts")

    def adapting(damping: float) -> Forecaster:
        return online_corrected([damped_line(5, damping)], trials[0])

    first = compared(adapting(0.5))
    kept = sorted((tmp_path / "parts").iterdir())
    assert len(kept) == 1 and asked == [1]  # one's own forecaster is asked again each time
    monkeypatch.setattr(OnlineCorrected, "forecast", lambda *_: pytest.fail("it was kept"))
    again = compared(adapting(0.5))
    np.testing.assert_array_equal(first["damped-line-adapted"].error, again["damped-line-adapted"].error)
    assert asked == [2]
    monkeypatch.undo()
    monkeypatch.setattr(weight_errors, "KEPT_FROM_SECONDS", 0.0)
    other = compared(adapting(0.9))
    assert (other["damped-line-adapted"].error != first["damped-line-adapted"].error).any()
    content = bytearray(kept[0].read_bytes())
    content[200] ^= 1
    kept[0].write_bytes(content)
    mended = compared(adapting(0.5))
    np.testing.assert_array_equal(first["damped-line-adapted"].error, mended["damped-line-adapted"].error)
    assert len(list((tmp_path / "parts").glob("*.damaged"))) == 1


def test_spectra_are_measured_on_the_first_test_trials(metrics: dict):
    assert metrics["spectrum"]["displacements"]["trials"] == [6]
    assert set(metrics["spectrum"]["displacements"]["by_tensor"]) >= {"actor_mean.0.weight", "actor_logstd"}


def but_for_the_clock(metrics: dict) -> dict:
    """The seal is of the whole file, its seconds too."""
    return {key: value for key, value in metrics.items() if key not in ("seconds", "seal")}


def test_origins_are_spread_over_time_and_over_the_return_gained(small_store: Path):
    trial = Store.open(small_store).trial(6)
    progress = return_progress(trial)
    assert progress[0] == 0 and progress[-1] == 1 and (np.diff(progress) >= 0).all()
    origins = choose_origins(trial, CONFIG)
    assert (np.diff(origins.snapshot) > 0).all() and origins.snapshot.min() >= 1 and origins.snapshot.max() <= 70
    edges = np.linspace(1, 71, 13)
    times = origins.snapshot[origins.by_time]
    assert (times >= np.floor(edges[:-1])).all() and (times < edges[1:]).all()
    np.testing.assert_array_equal(origins.rising, progress[origins.snapshot] < 0.95)
    assert len(np.unique(origins.epoch_index)) > 1


def test_models_of_every_kind_are_judged_under_names_that_say_what_they_are(small_store: Path, tmp_path: Path):
    codes = fit_svd(small_store, tmp_path / "codes", SVDConfig(dim=4))
    small = TrainConfig(context=5, num_layers=1, width=8, steps=2, warmup_steps=1)
    made = {"a": small, "b": replace(small, model="gru"), "c": replace(small, model="mlp", residual=True)}
    folders = [train(small_store, tmp_path / name, config, codes=codes) for name, config in made.items()]
    pooled = train(small_store, tmp_path / "d", made["b"], SVDConfig("pooled", dim=4))
    out = evaluate(small_store, tmp_path / "eval", CONFIG, models=[*folders, pooled], returns=False)
    judged = json.loads((out / "metrics.json").read_text())["forecasters"]
    assert {name: scores["label"] for name, scores in judged.items() if scores["model"]} == {
        "a": "TIPL (full basis: sees the future)",
        "b": "GRU (full basis: sees the future)",
        "c": "MLP, residual (full basis: sees the future)",
        "d": "GRU (pooled basis)",
    }
    assert [judged[name]["causal"] for name in made] == [False] * 3 and judged["d"]["causal"]

    # The forecast: the model's own codes after those of the trial up to the origin, decoded.
    opened, model = Codes.open(codes), load(folders[1])
    seen = torch.from_numpy(opened.codes(6)[None, 16:21])
    steps = model.rollout(seen, torch.arange(16, 21)[None], torch.ones(1, 5, dtype=torch.bool), 7)[0].numpy()
    weights = Store.open(small_store).trial(6).weights()
    forecaster = load_forecaster(folders[1], codes=codes_for(folders[1], Store.open(small_store), tmp_path))
    forecast = forecaster.forecast([History(6, 20, weights[20:21], 0)], [2, 7])[0]
    np.testing.assert_allclose(forecast, opened.basis(6).decode(steps)[[1, 6]], rtol=1e-5, atol=1e-6)


def test_a_model_of_codes_alone_is_judged_on_codes_fitted_for_it(small_store: Path, tmp_path: Path):
    codes = Codes.open(fit_svd(small_store, tmp_path / "codes", SVDConfig(dim=4)))
    small = TrainConfig(context=5, num_layers=1, width=8, steps=2, warmup_steps=1)
    model = fit([codes.codes(1), codes.codes(2)], [codes.codes(3)], small, tmp_path / "model", progress=False)
    (tmp_path / "scratch").mkdir()
    fitted = codes_for(tmp_path / "model", Store.open(small_store), tmp_path / "scratch")
    forecaster = load_forecaster(tmp_path / "model", codes=fitted)
    weights = Store.open(small_store).trial(6).weights()
    forecast = forecaster.forecast([History(6, 20, weights[20:21], 0)], [2, 7])[0]
    seen = torch.from_numpy(codes.codes(6)[None, 16:21])
    steps = model.rollout(seen, torch.arange(16, 21)[None], torch.ones(1, 5, dtype=torch.bool), 7)[0].numpy()
    np.testing.assert_allclose(forecast, codes.basis(6).decode(steps)[[1, 6]], rtol=1e-4, atol=1e-5)


def table(trial: list[int], by_time: list[bool], rising: list[bool]) -> Origins:
    count = len(trial)
    return Origins(
        np.array(trial),
        np.arange(count),
        np.arange(count) % 2,
        np.array(by_time),
        np.array(rising),
        np.ones(count, bool),
    )


def test_weight_scores_by_hand():
    # Two trials, three origins, one horizon; the third origin is drawn by gain and counts for phases alone.
    origins = table([1, 2, 2], [True, True, False], [False, False, True])
    ones = np.ones((3, 1))
    moved = np.array([[2.0], [6.0], [4.0]])
    compared = {
        "a": Comparison(np.array([[1.0], [3.0], [5.0]]), ones, ones * 4, moved),
        "b": Comparison(np.array([[2.0], [4.0], [0.0]]), ones, ones, moved),
    }
    scores = weight_scores("a", compared, ["a", "b"], origins, [3], num_weights=10, seed=0)
    assert scores["wpe"]["3"] == pytest.approx((1 + 3) / 2 / 10)
    assert scores["skill"]["3"] == pytest.approx(1 - 4 / 8)
    assert scores["cosine"]["3"] == pytest.approx(2 / np.sqrt(8 * 8))
    assert scores["length_ratio"]["3"] == pytest.approx(np.sqrt(8 / 8))
    assert scores["skill_by_phase"]["rising"]["3"] == pytest.approx(1 - 5 / 4)
    assert scores["skill_by_place"] == {"0": {"3": pytest.approx(0.5)}, "1": {"3": pytest.approx(0.5)}}
    assert scores["skill_minus_best_baseline_ci"]["3"] is scores["skill_holm"]["3"] is None  # two trials are too few
    assert scores["trials"] == 2 and scores["skill_by_phase_trials"] == {"rising": 1, "ceiling": 2}
    assert scores["by_trial"] == {"trial": [1, 2], "error": [[1], [3]], "moved": [[2], [6]]}
    assert scores["best_baseline"]["3"] == "b" and scores["skill_minus_best_baseline"]["3"] == pytest.approx(2 / 8)
    # Trial by trial the skills are 1/2 and 1/2; a is the better one in both, and better than nothing in both.
    assert scores["skill_iqm"]["3"] == pytest.approx(1 / 2)
    assert scores["trials_improved"]["3"] == scores["trials_ahead_of_best"]["3"] == 1
    other = weight_scores("b", compared, ["a", "b"], origins, [3], num_weights=10, seed=0)
    assert other["trials_improved"]["3"] == pytest.approx(3 / 4)  # a tie and a win
    assert other["trials_ahead_of_best_ci"]["3"] is scores["skill_by_phase_ci"]["rising"]["3"] is None


def test_five_trials_have_intervals_and_p_values_for_all_horizons_at_once():
    origins = table([1, 2, 3, 4, 5], [True] * 5, [True] * 5)
    ones, moved = np.ones((5, 2)), np.array([[2.0, 2.0]] * 5)
    errors = np.array([[1.0, 2.0], [1.1, 1.5], [0.9, 2.4], [1.0, 2.1], [1.2, 1.9]])
    scores = weight_scores("a", {"a": Comparison(errors, ones, ones, moved)}, ["a"], origins, [1, 9], 10, seed=0)
    assert scores["trials"] == 5
    (low, high), (least, most) = scores["skill_ci"]["1"], scores["skill_ci"]["9"]
    assert 0 < low < scores["skill"]["1"] < high < 1 and least < 0 < most
    # Two horizons: the smaller p-value counts twice.
    single = p_value(Interval(scores["skill"]["1"], low, high, 5), 0.0)
    assert scores["skill_holm"]["1"] == pytest.approx(2 * single) and scores["skill_holm"]["9"] > 0.05  # pyright: ignore[reportOperatorIssue]
    np.testing.assert_allclose(scores["trials_improved_ci"]["1"], (0.025**0.2, 1.0))


def test_a_trial_that_never_moves_has_no_iqm_and_no_silent_number():
    origins = table([1, 2], [True] * 2, [True] * 2)
    ones, moved = np.ones((2, 1)), np.array([[2.0], [0.0]])
    compared = {"a": Comparison(np.array([[1.0], [0.0]]), ones, ones, moved)}
    scores = weight_scores("a", compared, ["a"], origins, [3], num_weights=10, seed=0)
    assert scores["skill"]["3"] == pytest.approx(1 / 2)  # of sums: the trial that moved
    assert scores["skill_ci"]["3"] is None and scores["skill_iqm"]["3"] is None  # some resample never moves
    assert scores["best_baseline"]["3"] is None  # there is no other
    json.dumps(scores, allow_nan=False)


def test_return_scores_by_hand():
    origins = table([1, 1, 2], [True] * 3, [True, True, False])
    returns = Returns(
        origin=np.array([0.0, 10.0, 100.0]),
        true=np.array([[10.0], [30.0], [100.0]]),
        predicted=np.array([[5.0], [25.0], [90.0]]),
    )
    scores = return_scores(returns, origins, [4], seed=0)
    assert scores["repw"]["4"] == pytest.approx((5 + 5 + 10) / 3)
    assert scores["true_gain"]["4"] == pytest.approx(10)
    assert scores["gain_recovered"]["4"] is None  # two trials do not say whether training gains
    assert scores["by_phase"]["rising"]["gain_recovered"]["4"] is None  # one trial has no interval
    assert scores["better_than_origin"]["4"] == pytest.approx(2 / 3)
    change, forecast = np.array([10, 20, 0]), np.array([5, 15, -10])
    expected = 1 - ((change - forecast) ** 2).sum() / ((change - change.mean()) ** 2).sum()
    assert scores["change_r2"]["4"] == pytest.approx(expected)
    assert scores["gain"]["4"] == pytest.approx((5 + 15 - 10) / 3)
    # Doing nothing errs by 10, 20 and 0: by trial the differences add up to −20 of two origins and 10 of one.
    assert scores["repw_minus_persistence"]["4"] == pytest.approx(-10 / 3)
    assert scores["repw_minus_persistence_ci"]["4"] is None and scores["trials"] == 2
    assert scores["repw_median"]["4"] == 5 and scores["repw_largest_share"]["4"] == pytest.approx(10 / 20)
    assert scores["scatter"]["true"] == [10, 30, 100] and scores["scatter"]["origin"] == [0, 10, 100]
    assert scores["scatter"]["trial"] == [1, 1, 2]


def test_the_typical_origin_stands_beside_the_mean_of_all():
    """Seven origins are wrong by 1 and one by 93: the mean is 12.5, of which it makes 93 of 100."""
    wrong = np.array([1.0] * 7 + [93.0])
    origins = table([1, 1, 1, 1, 2, 2, 2, 2], [True] * 8, [True] * 8)
    scores = return_scores(Returns(np.zeros(8), np.zeros((8, 1)), wrong[:, None]), origins, [4], seed=0)
    assert (scores["repw"]["4"], scores["repw_median"]["4"], scores["repw_iqm"]["4"]) == (12.5, 1.0, 1.0)
    assert scores["repw_largest_share"]["4"] == pytest.approx(0.93)


def test_gain_recovered_where_every_trial_gains():
    origins = table([1, 2, 3, 4, 5], [True] * 5, [True] * 5)
    start, gains = np.array([0.0, 10.0, 0.0, 5.0, 3.0]), np.array([[10.0], [30.0], [20.0], [16.0], [24.0]])
    scores = return_scores(Returns(start, start[:, None] + gains, start[:, None] + gains / 2), origins, [4], seed=0)
    assert scores["gain_recovered"]["4"] == pytest.approx(0.5)
    assert scores["gain_recovered_ci"]["4"] == pytest.approx((0.5, 0.5))


def test_returns_without_variance_are_null_where_they_say_nothing():
    origins = table([1, 1, 2], [True] * 3, [True, False, False])
    level = np.full((3, 2), 1000.0)
    scores = return_scores(Returns(level[:, 0], level, level), origins, [1, 4], seed=0)
    assert scores["repw"] == {"1": 0, "4": 0} and scores["true_gain"]["4"] == 0
    for name in ("gain_recovered", "gain_recovered_ci", "change_r2", "change_r2_ci"):
        assert scores[name] == {"1": None, "4": None}
    assert scores["better_than_origin"]["1"] == 0.5
    json.dumps(scores, allow_nan=False)


class _Broken(Forecaster):
    name, label, context = "broken", "broken", 1

    def __init__(self, made: Any) -> None:
        self._made = made

    def forecast(self, histories, horizons):
        return self._made


def test_a_broken_forecaster_is_named():
    seen = [History(1, 0, np.zeros((1, 3), np.float32), 0)]
    with pytest.raises(TiplError, match=r"broken returned the shape \(1, 1, 3\), not \(1, 2, 3\)"):
        checked_forecast(_Broken(np.zeros((1, 1, 3))), seen, [1, 2])
    with pytest.raises(TiplError, match="broken returned weights that are NaN"):
        checked_forecast(_Broken(np.full((1, 2, 3), np.nan)), seen, [1, 2])
    with pytest.raises(TiplError, match=r"broken returned the shape \(1, 2, 4\), not \(1, 2, 3\)"):
        checked_forecast(_Broken(np.zeros((1, 2, 4))), seen, [1, 2])
    with pytest.raises(TiplError, match="broken returned is of the type list; give a ndarray"):
        checked_forecast(_Broken([[[0.0] * 3] * 2]), seen, [1, 2])


def test_a_forecast_whose_square_float32_does_not_hold_is_compared(small_store: Path):
    trial = Store.open(small_store).trial(6)
    origins = some_origins(choose_origins(trial, CONFIG), 3)
    size = trial.spec.size
    found = evaluation.compare_weights([trial], origins, [_Broken(np.full((3, 2, size), 1e30, np.float32))], [1, 10])
    np.testing.assert_allclose(found["broken"].error, size * 1e60, rtol=1e-5)
    assert np.isfinite(found["broken"].dot).all()


def made_up_store(
    path: Path, paths: dict[int, np.ndarray], env_id: str = "made-up", config: dict[str, Any] | None = None
) -> Path:
    create_store(path)
    kind: dict[str, Any] = {"env_id": env_id, "config": config or {}}
    for seed, weights in paths.items():
        count, size = weights.shape
        kind["spec"] = ParamSpec(("w",), ((size,),))
        plan_trials(path, paths, **kind)
        writer = TrialWriter.create(path, seed, **kind, versions={}, obs_dim=1, num_snapshots=count)
        zeros, ones = np.zeros(count, np.int64), np.ones((count, 1))
        writer.append(weights, np.arange(count), zeros, zeros, np.ones(count), 0 * ones, ones, np.zeros(count))
        writer.commit({}, complete=True)
    return path


def walk(seed: int, count: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).cumsum(axis=0).astype(np.float32)


def judged(store: Path, horizons: tuple[int, ...] = (1, 2)) -> dict:
    config = EvaluateConfig(horizons=horizons, return_horizons=horizons[:1], origins=5)
    out = evaluate(store, store.with_suffix(".eval"), config, returns=False)
    report([out], store.with_suffix(".html"))
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize(("count", "size"), [(6, 2), (6, 1), (30, 3), (12, 300)])
def test_fewer_snapshots_or_weights_than_a_context(undrawn: None, tmp_path: Path, count: int, size: int):
    store = made_up_store(tmp_path / "small", {seed: walk(seed, count, size) for seed in range(6)})
    found = judged(store)["forecasters"]
    for name, scores in found.items():
        assert all(isinstance(value, float) for value in scores["wpe"].values()), name
        assert all(isinstance(value, float) for value in scores["skill"].values()), name


def test_trials_of_unequal_length(undrawn: None, tmp_path: Path):
    lengths = {0: 60, 1: 25, 2: 40, 3: 33, 4: 90, 5: 21, 6: 50, 7: 28, 8: 70, 9: 45}
    metrics = judged(made_up_store(tmp_path / "uneven", {j: walk(j, n, 4) for j, n in lengths.items()}), (1, 9))
    assert metrics["test_trials"] == [8, 9] and metrics["origins"] == 10
    assert isinstance(metrics["forecasters"]["train-mean"]["skill"]["9"], float)
    assert metrics["spectrum"]["displacements"]["over_learning"][-1]["snapshots"] == [70, 45]
    with pytest.raises(TiplError, match=r"shortest trial .* has 21 snapshots, .* give --horizons up to 9"):
        evaluate(tmp_path / "uneven", tmp_path / "b", EvaluateConfig(horizons=(10,), return_horizons=(10,)))


def test_one_test_trial_has_values_and_no_intervals(undrawn: None, tmp_path: Path):
    metrics = judged(made_up_store(tmp_path / "two", {1: walk(1, 40, 5), 2: walk(2, 40, 5)}))
    assert metrics["train_trials"] == [1] and metrics["validation_trials"] == [] and metrics["test_trials"] == [2]
    for scores in metrics["forecasters"].values():
        assert scores["skill"]["1"] is not None and scores["skill_ci"] == {"1": None, "2": None}
        assert scores["skill_minus_best_baseline_ci"] == scores["trials_improved_ci"] == {"1": None, "2": None}


def test_a_store_of_one_trial_or_none_is_one_line(tmp_path: Path):
    with pytest.raises(TiplError, match=r"has 1 trial\(s\) to train on and 0 to test; .*: collect more trials"):
        judged(made_up_store(tmp_path / "one", {1: walk(1, 40, 5)}))
    with pytest.raises(TiplError, match="holds no trial that was committed; collect some first"):
        judged(made_up_store(tmp_path / "none", {}))
    assert not (tmp_path / "one.eval").exists()


def test_runs_that_never_move_are_null_and_not_a_number_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tipl.reporting.print_figure", lambda figure, folder: None)  # the page draws the same panels
    metrics = judged(made_up_store(tmp_path / "still", {seed: np.ones((30, 4), np.float32) for seed in range(5)}))
    for name, scores in metrics["forecasters"].items():
        assert scores["wpe"]["1"] == pytest.approx(0, abs=1e-9), name
        assert scores["skill"] == scores["skill_ci"] == scores["skill_iqm"] == {"1": None, "2": None}, name


def test_what_has_diverged_is_named(tmp_path: Path):
    for bad, name in ((0, "train"), (5, "test")):
        paths = {seed: walk(seed, 30, 4) for seed in range(6)}
        paths[bad][17:] = np.nan
        with pytest.raises(TiplError, match=f"Trial {bad} holds weights that are not finite .* the run diverged"):
            judged(made_up_store(tmp_path / name, paths))


def test_trials_of_two_kinds_are_refused(tmp_path: Path):
    """Stores take no trials of two kinds; one that came from elsewhere may hold them."""
    here = Store.open(made_up_store(tmp_path / "here", {1: walk(1, 30, 4)}))

    def mixed(name: str, paths: dict[int, np.ndarray], **other: Any) -> Store:
        there = Store.open(made_up_store(tmp_path / name, paths, **other))
        shutil.copytree(there.path / "trials" / "2", here.path / "trials" / "2", dirs_exist_ok=True)
        return Store(here.path, here.root, {**here.records, **there.records})

    with pytest.raises(TiplError, match=r"differ in their number of weights \(4, 5\); give each its own store"):
        require_alike(mixed("sizes", {2: walk(2, 30, 5)}))
    with pytest.raises(TiplError, match=r"differ in their environment \(made-up, other\)"):
        require_alike(mixed("worlds", {2: walk(2, 30, 4)}, env_id="other"))
    with pytest.raises(TiplError, match=r"Trials 1 and 2 of .* were made with different settings \(gamma\)"):
        require_alike(mixed("settings", {2: walk(2, 30, 4)}, config={"gamma": 0.9}))
    with pytest.raises(TiplError, match="holds no trial that was committed"):
        require_alike(Store.open(create_store(tmp_path / "none").path))


def test_what_cannot_be_evaluated_is_said(small_store: Path, tmp_path: Path):
    with pytest.raises(TiplError, match=r"81 snapshots, too few for a horizon of 100; give --horizons up to 39"):
        evaluate(small_store, tmp_path / "a", EvaluateConfig(horizons=(1, 100)))
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / evaluation.METRICS_FILE).write_text("{}")
    with pytest.raises(TiplError, match="holds an evaluation already"):
        evaluate(small_store, tmp_path / "b", CONFIG)
    assert (tmp_path / "b" / evaluation.METRICS_FILE).read_text() == "{}"


def test_every_preset_has_room_for_its_horizons():
    for presets in EXPERIMENTS.values():
        for settings in presets.values():
            assert max(settings.evaluate.horizons) <= (settings.collect.num_snapshots - 2) // 2
            assert settings.svd.dim <= settings.collect.num_snapshots


def test_the_same_seed_gives_the_same_file_also_where_an_evaluation_was_interrupted(
    small_store: Path, metrics: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = forecast_returns.policy_returns, []

    def noted(*args: Any, **how: Any) -> np.ndarray:
        calls.append(len(args[0]))
        return real(*args, **how)

    def interrupted(*args: Any, **how: Any) -> np.ndarray:
        if len(calls) == 4:
            raise KeyboardInterrupt
        return noted(*args, **how)

    monkeypatch.setattr(forecast_returns, "policy_returns", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_store, tmp_path / "a", CONFIG)
    assert not (tmp_path / "a" / "metrics.json").exists()
    assert len(list((tmp_path / "a" / "parts").iterdir())) == 4
    monkeypatch.setattr(forecast_returns, "policy_returns", noted)
    found = json.loads((evaluate(small_store, tmp_path / "a", CONFIG) / "metrics.json").read_text())
    # Origins, true ones and those again, by mean and sampled actions; true weights under the origin's normalizer; the
    # damped line three times, persistence once.
    assert len(calls) == 6 + 1 + 3 + 1
    assert found["seconds"] and but_for_the_clock(found) == but_for_the_clock(metrics)


class _Halfway(Forecaster):
    name = label = "halfway"
    context = 2

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        steps = [history.last(2)[1] - history.last(2)[0] for history in histories]
        return np.stack(
            [h.weights[-1] + 0.5 * np.repeat(s[None], len(horizons), 0) for h, s in zip(histories, steps, strict=True)]
        )


def test_anybodys_forecaster_is_judged_with_its_returns(small_store: Path, tmp_path: Path):
    config = replace(CONFIG, oracle_normalizer=False, sampled_actions=False, spectrum_trials=0, episodes=1)
    out = evaluate(small_store, tmp_path / "a", config, forecasters=[_Halfway()])
    scores = json.loads((out / "metrics.json").read_text())["forecasters"]
    assert scores["halfway"]["model"] is False and set(scores["halfway"]["repw"]) == {"1", "10"}
    assert 0 < scores["halfway"]["skill"]["1"] < 1
    with pytest.raises(TiplError, match="Two forecasters are named halfway; rename one"):
        evaluate(small_store, tmp_path / "b", config, forecasters=[_Halfway(), _Halfway()])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda b, h, p: np.full((b, h, p), np.nan, np.float32), "broken returned weights that are NaN"),
        (lambda b, h, p: np.zeros((b, h - 1, p), np.float32), "broken returned the shape"),
        (lambda b, h, p: np.zeros((b, h, p + 1), np.float32), "broken returned the shape"),
    ],
)
def test_a_forecaster_that_returns_no_forecast_ends_the_evaluation(tmp_path: Path, made: Any, message: str):
    class Broken(Forecaster):
        name, label, context = "broken", "broken", 1

        def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
            return made(len(histories), len(horizons), histories[0].weights.shape[1])

    store = made_up_store(tmp_path / "walks", {seed: walk(seed, 30, 4) for seed in range(5)})
    config = EvaluateConfig(horizons=(1, 2), return_horizons=(1,), origins=5)
    with pytest.raises(TiplError, match=message):
        evaluate(store, tmp_path / "a", config, returns=False, forecasters=[Broken()])
    assert not (tmp_path / "a" / "metrics.json").exists()


def test_codes_through_which_no_line_can_be_drawn_and_names_of_nobody_are_refused(tmp_path: Path):
    stores = [made_up_store(tmp_path / name, {seed: walk(seed, 30, 4) for seed in range(5)}) for name in ("a", "b")]
    config = EvaluateConfig(horizons=(1, 2), return_horizons=(1,), origins=5)
    prefix = fit_svd(stores[0], tmp_path / "prefix", SVDConfig("prefix", dim=2), progress=False)
    with pytest.raises(TiplError, match="prefix basis, in which a snapshot has another code at every origin"):
        evaluate(stores[0], tmp_path / "c", config, codes=prefix, returns=False)
    full = fit_svd(stores[0], tmp_path / "full", SVDConfig(dim=2), progress=False)
    with pytest.raises(TiplError, match=r"is of .*a, not of .*b; run `tipl fit-svd`"):
        evaluate(stores[1], tmp_path / "d", config, codes=full, returns=False)
    with pytest.raises(TiplError, match="--return-forecasters has lines, which is none of: persistence, mean-5"):
        evaluate(stores[0], tmp_path / "e", replace(config, return_forecasters=("lines",)), returns=False)
