"""Context tokens behind those of the path: their products, in files and with noise; a model that learns from them."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tipl import TiplError
from tipl.acceleration.arms import Arm, run_part
from tipl.acceleration.jump import KINDS
from tipl.collection.collect import collect
from tipl.config.jumps import JumpConfig
from tipl.config.presets import CausalTrainConfig, CollectConfig, PPOConfig
from tipl.evaluation.evaluate import evaluate
from tipl.forecasting.online import OnlineCorrected
from tipl.forecasting.trained import CausalForecaster, Stretched
from tipl.representation.packed import WindowFile, WindowFiles, write_windows
from tipl.representation.windows import EDGES, HORIZONS, SINGLE, TOKENS, WINDOW, noisy, training_windows, windows_of
from tipl.rl.context import TOKENS as CONTEXT
from tipl.store import Store, TrialWriter, create_store
from tipl.store.spec import ParamSpec
from tipl.training import train

SHAPES = ((3, 2), (3,))
GROUPS = slice(0, 6), slice(6, 9), slice(0, 9)
EACH = 5
"""Snapshots an iteration."""
SMALL = CausalTrainConfig(steps=100, batch_size=64, windows=300, validate_every=100, width=32, tokens=True)


def write_store(path: Path, trials: int, length: int, num_tokens: int = CONTEXT) -> Path:
    """Runs whose every iteration goes along the first context token that is known when it begins, and besides at
    random; the other tokens are random."""
    create_store(path)
    ppo = {"ppo": {"update_epochs": EACH}}
    iterations = (length - 1) // EACH
    for seed in range(1, trials + 1):
        rng = np.random.default_rng(seed)
        tokens = rng.standard_normal((iterations, CONTEXT, 9)).astype(np.float32)
        known = np.concatenate([np.zeros((1, 9)), tokens[:-1, 0]])
        steps = np.repeat(known / EACH, EACH, axis=0) + 0.05 * rng.standard_normal((iterations * EACH, 9))
        weights = np.concatenate([np.zeros((1, 9)), steps.cumsum(axis=0)]).astype(np.float32)
        spec = ParamSpec(("a", "b"), SHAPES)
        writer = TrialWriter.create(
            path, seed, env_id="none", config=ppo, spec=spec, versions={}, obs_dim=1, num_snapshots=length,
            num_tokens=num_tokens,
        )  # fmt: skip
        number, ones = np.arange(length), np.ones((length, 1))
        iteration = -(-number // EACH)
        epoch = np.where(number > 0, (number - 1) % EACH + 1, 0)
        writer.append(weights, number, iteration, epoch, ones[:, 0], 0 * ones, ones, 0 * number)
        if num_tokens:
            writer.append_tokens(tokens)
        writer.commit({}, complete=True)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("context") / "store", 6, 401)


def tokens_of(trial, t: int, columns: slice) -> np.ndarray:
    """[J, group] by a naive loop."""
    weights = trial.weights().astype(np.float64)
    at = [weights[max(t - edge, 0), columns] for edge in EDGES]
    rows = [newer - older for newer, older in pairwise(at)]
    ended = t // EACH
    context = trial.tokens(ended - 1, ended)[0] if ended else np.zeros((CONTEXT, 9))
    return np.array([*rows, *context[:, columns].astype(np.float64)])


def test_windows_hold_the_inner_products_of_a_naive_loop(store: Path):
    trial = Store.open(store).trial(2)
    weights = trial.weights().astype(np.float64)
    made = training_windows(trial, 60, np.random.default_rng(0), context=True)
    path = training_windows(trial, 60, np.random.default_rng(0))
    origins = np.unique(made.origin)
    assert made.tokens == TOKENS + CONTEXT and origins.min() < EACH and origins.max() > WINDOW
    for b in range(len(made)):
        t, columns = int(made.origin[b]), GROUPS[b // len(origins)]
        tokens = tokens_of(trial, t, columns)
        unit = np.mean([token @ token for token in tokens[:SINGLE] if token.any()])
        came = np.array([weights[t + h, columns] - weights[t, columns] for h in HORIZONS])
        np.testing.assert_allclose(made.own[b], tokens @ tokens.T / unit, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(made.toward[b], tokens @ came.T / unit, rtol=1e-4, atol=2e-4)
    np.testing.assert_array_equal(made.own[:, :TOKENS, :TOKENS], path.own)
    np.testing.assert_array_equal(made.toward[:, :TOKENS], path.toward)


def test_a_history_has_the_same_window(store: Path):
    trial = Store.open(store).trial(3)
    for t in (1, 4, 5, 6, 300):
        history = trial.history(t, WINDOW)
        tokens, windows = windows_of(history.weights, (6, 3), history.epoch_index, t, history.tokens)
        for g, columns in enumerate(GROUPS[:2]):
            expected = tokens_of(trial, t, columns)
            np.testing.assert_allclose(tokens[:, columns], expected, atol=1e-5)
            np.testing.assert_allclose(windows.own[g] * windows.unit[g], expected @ expected.T, rtol=1e-3, atol=1e-4)


def test_weights_without_context_tokens_have_zeros(store: Path):
    """A critic's, which come after the policy's."""
    history = Store.open(store).trial(1).history(300, WINDOW)
    assert history.tokens is not None
    tokens, _ = windows_of(history.weights, (6, 3), 4, 300, history.tokens[:, :6])
    assert tokens[TOKENS:, :6].any() and not tokens[TOKENS:, 6:].any()


def test_files_hold_them(store: Path, tmp_path: Path):
    parts = [
        training_windows(Store.open(store).trial(seed), 50, np.random.default_rng(0), context=True) for seed in (1, 2)
    ]
    for number, part in enumerate(parts):
        write_windows(tmp_path / f"{number}.safetensors", part, 3)
    files = WindowFiles([WindowFile(tmp_path / f"{number}.safetensors") for number in (0, 1)])
    index = np.random.default_rng(1).permutation(len(files))[:40]
    read = files.read(index)
    assert files.tokens == read.tokens == TOKENS + CONTEXT
    for name in ("own", "whole", "toward", "moved", "weight", "often", "origin", "epoch_index", "is_whole"):
        expected = np.concatenate([getattr(part, name) for part in parts])[index]
        np.testing.assert_allclose(getattr(read, name), expected, rtol=1e-6, err_msg=name)


def test_noise_lengthens_context_tokens_as_it_does_steps_and_turns_none(store: Path):
    plain = training_windows(Store.open(store).trial(1), 200, np.random.default_rng(0), context=True)
    path = training_windows(Store.open(store).trial(1), 200, np.random.default_rng(0))
    made, made_path = noisy(plain, np.random.default_rng(3)), noisy(path, np.random.default_rng(3))
    for name in ("own", "whole"):
        np.testing.assert_array_equal(getattr(made, name)[:, :TOKENS, :TOKENS], getattr(made_path, name))
        before, after = (np.diagonal(getattr(each, name), axis1=1, axis2=2)[:, TOKENS:] for each in (plain, made))
        np.testing.assert_allclose(after, before, rtol=1e-5)  # as long, in units that the noise has lengthened
    seen = plain.own[:, 0, TOKENS] != 0
    factor = made.own[seen, 0, TOKENS] / plain.own[seen, 0, TOKENS]
    assert seen.sum() > 100 and (factor < 0.95).all() and (factor > 0).all()
    np.testing.assert_allclose(  # of anything else they say less, in those units
        made.toward[seen, TOKENS], plain.toward[seen, TOKENS] * factor[:, None], rtol=1e-3, atol=1e-5
    )


def test_a_model_learns_from_them_what_no_path_tells(store: Path, tmp_path: Path):
    skill = {}
    for name, config in {"with": SMALL, "without": dataclasses.replace(SMALL, tokens=False)}.items():
        train([store], tmp_path / name, config)
        skill[name] = json.loads((tmp_path / name / "training.json").read_text())["curve"][-1]["skill"]["5"]
    assert skill["with"] > skill["without"] + 0.15
    evaluate(store, tmp_path / "judged", models=[tmp_path / "with", tmp_path / "without"], returns=False)
    scores = json.loads((tmp_path / "judged" / "metrics.json").read_text())["forecasters"]
    judged = {name: scores[name]["skill"]["5"] for name in skill}
    assert judged["with"] > judged["without"] + 0.15

    trial = Store.open(store).trial(Store.open(store).split().test[0])
    history = trial.history(300, WINDOW)
    model = CausalForecaster.from_pretrained(tmp_path / "with", SHAPES)
    assert model.takes_tokens and Stretched(model, 2.0).takes_tokens
    came = trial.weights(305, 306)[0] - trial.weights(300, 301)[0]
    assert history.tokens is not None
    made = model.forecast([history], [5])[0, 0] - history.weights[-1]
    assert made @ came / np.linalg.norm(made) / np.linalg.norm(came) > 0.9
    turned = dataclasses.replace(history, weights=-history.weights, tokens=-history.tokens)
    np.testing.assert_allclose(model.forecast([turned], [5])[0, 0], -(made + history.weights[-1]), atol=1e-4)
    larger = dataclasses.replace(history, weights=8 * history.weights, tokens=8 * history.tokens)
    np.testing.assert_allclose(model.forecast([larger], [5])[0, 0], 8 * (made + history.weights[-1]), rtol=1e-3)


def test_what_has_none_is_told_in_one_line(store: Path, tmp_path: Path):
    bare = write_store(tmp_path / "bare", 3, 401, num_tokens=0)
    with pytest.raises(TiplError, match="no context tokens; collect with --context"):
        train([bare], tmp_path / "model", SMALL)
    with pytest.raises(TiplError, match="no context tokens; collect with --context"):
        train([store, bare], tmp_path / "model", SMALL)
    train([store], tmp_path / "with", dataclasses.replace(SMALL, steps=2, validate_every=2))
    with pytest.raises(TiplError, match="no context tokens; collect with --context"):
        evaluate(bare, tmp_path / "judged", models=[tmp_path / "with"], returns=False)
    model = CausalForecaster.from_pretrained(tmp_path / "with", SHAPES)
    history = Store.open(bare).trial(1).history(300, WINDOW)
    with pytest.raises(TiplError, match="takes 5 context tokens, and there are none"):
        model.forecast([history], [5])
    with pytest.raises(TiplError, match="takes 5 context tokens, and there are 2"):
        model.forecast([dataclasses.replace(history, tokens=np.zeros((2, 9), np.float32))], [5])
    with pytest.raises(TiplError, match="cannot be adapted in the run"):
        OnlineCorrected([model], EACH)


def test_a_collected_store_teaches_a_model_that_jumps(tmp_path: Path):
    ppo = PPOConfig(num_steps=64, num_minibatches=4, update_epochs=10)
    config = CollectConfig(total_steps=64 * 60, trials=3, hidden_sizes=(4,), ppo=ppo, context=True)
    collect(config, tmp_path / "store", workers=1)
    made = train([tmp_path / "store"], tmp_path / "model", dataclasses.replace(SMALL, steps=4, validate_every=4))
    jump = JumpConfig(horizon=1, full_trust=0.0, max_kl=1e9, surrogate=False, fall=0.0, critic=True)
    live = dataclasses.replace(config, context=False, seed=9, trials=1)
    run_part(Arm(live, str(made), jump), tmp_path / "part.safetensors", [9])
    kinds = safetensors.numpy.load_file(tmp_path / "part.safetensors")["kinds"]
    assert (kinds == KINDS.index("accepted")).mean() > 0.9
