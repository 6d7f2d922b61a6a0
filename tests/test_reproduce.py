"""A whole experiment in one folder, stopped and gone on with.

In: a tiny experiment.  Out: failures.
"""

import json
from pathlib import Path

import pytest

from tipl import reproduction
from tipl.config import experiments
from tipl.config.experiments import Experiment
from tipl.config.presets import CollectConfig, EvaluateConfig, PPOConfig, SVDConfig, TrainConfig
from tipl.errors import TiplError
from tipl.forecasting.shipped import PRETRAINED, SHIPPED_NAMES
from tipl.models import read_training

TINY = Experiment(
    CollectConfig(trials=4, seed=1001, total_steps=16 * 512, ppo=PPOConfig(num_steps=512, num_minibatches=8)),
    SVDConfig(dim=4),
    TrainConfig(context=5, num_layers=1, width=16, steps=6, validate_every=3, warmup_steps=2),
    EvaluateConfig(horizons=(1, 2, 10), return_horizons=(1, 10), origins=5, return_origins=2, episodes=2),
)


def test_an_experiment_from_collection_to_report(
    here: None, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(experiments.EXPERIMENTS, "inverted-pendulum", {"quick": TINY})
    out = tmp_path / "run"
    page = reproduction.reproduce("inverted-pendulum", "quick", out)
    assert page == out / "report.html"
    text = page.read_text()
    assert "sees the future" in text and "persistence" in text
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["forecasters"]["tipl"]["basis"] == "full" and metrics["forecasters"]["tipl"]["causal"] is False
    assert {"tipl", "tipl-residual", "causal", "persistence", "autoregression"} <= set(metrics["forecasters"])
    assert set(metrics["forecasters"]["tipl"]["repw"]) == {"1", "10"} and metrics["noise_floor"] >= 0
    first = (out / "metrics.json").read_bytes()
    capsys.readouterr()

    reproduction.reproduce("inverted-pendulum", "quick", out)
    said = capsys.readouterr().err
    assert "4 of 4 trials are already complete" in said and "evaluation is already complete" in said
    assert (out / "metrics.json").read_bytes() == first


def test_no_shipped_model_has_seen_what_an_experiment_judges():
    shipped = [
        store for name in SHIPPED_NAMES for store in read_training(PRETRAINED / name)["codes"]["trials"]["stores"]
    ]
    seen = {seed for store in shipped for seed in (*store["train"], *store["validation"])}
    seen |= set(json.loads((PRETRAINED / "autoregression.json").read_text())["fitted_on"]["seeds"])
    assert len(seen) > 40
    for presets in experiments.EXPERIMENTS.values():
        for experiment in presets.values():
            assert not seen & set(experiment.collect.seeds)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(TiplError, match="is not this experiment's folder"):
        reproduction.reproduce("inverted-pendulum", "quick", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(TiplError, match="Unknown experiment 'walker'"):
        reproduction.reproduce("walker")
    with pytest.raises(TiplError, match="Unknown preset 'huge'"):
        reproduction.reproduce("inverted-pendulum", "huge")
