"""The training loop: what it is fed, that it learns, that stopping it changes nothing, and what it refuses.

In: rotating codes and a small real store.  Out: failures against naive loops, closed forms and uninterrupted runs.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from here import in_this_process
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tipl.collection.tracking import tracked
from tipl.config.presets import (
    BasisName,
    CausalTrainConfig,
    CollectConfig,
    LossName,
    ModelName,
    PPOConfig,
    Precision,
    SVDConfig,
    TrainConfig,
)
from tipl.errors import TiplError
from tipl.forecasting.named import load_forecaster
from tipl.forecasting.trained import ModelForecaster
from tipl.models import CONFIG_FILE, WEIGHTS_FILE, CodeModel, load
from tipl.representation import Codes, fit_svd, read_weights
from tipl.store import Store, TrialWriter, create_store
from tipl.store.spec import ParamSpec
from tipl.training import (
    CHECKPOINT_FILE,
    CODES_FOLDER,
    CURVE_FILE,
    LAST,
    NextCode,
    Segments,
    fast_precision,
    fit,
    kept,
    loop,
    train,
)

MODELS = ("paper", "gru", "mlp")
SMALL = TrainConfig(
    context=5, num_layers=1, width=8, steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=3, validate_every=5
)

SPEC = ParamSpec(("a", "b"), ((4, 3), (8,)))


def rotations(trials: int, length: int, seed: int, dim: int = 4) -> list[np.ndarray]:
    """[T, D] codes that turn by 0.2 and 0.5 radians a step in the two planes of R⁴, from random starts on circles."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, (trials, 1, dim // 2)) + np.arange(length)[:, None] * [0.2, 0.5]
    return [*np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)]


def unequal_sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(length, 3)).astype(np.float32) for length in (9, 4, 17)]


def drifting_paths(count: int) -> list[np.ndarray]:
    """Paths [T, P] that drift from a start of their own, so that a few directions hold most of each and not all."""
    rng = np.random.default_rng(3)
    drifts = [np.linspace(0, 3, 20)[:, None] * rng.normal(size=20) for _ in range(count)]
    return [rng.normal(size=20) + drift + rng.normal(size=(20, 20)).cumsum(0) / 3 for drift in drifts]


def write_paths(path: Path, paths: list[np.ndarray]) -> None:
    """A store of these as trials 1, 2, …"""
    create_store(path)
    for seed, weights in enumerate(paths, 1):
        count = len(weights)
        writer = TrialWriter.create(
            path, seed, env_id="walk", config={}, spec=SPEC, versions={}, obs_dim=1, num_snapshots=count
        )
        zeros = np.zeros(count, np.int64)
        writer.append(weights.astype(np.float32), np.arange(count), zeros, zeros, np.ones(count), np.zeros((count, 1)),
                      np.ones((count, 1)), np.zeros(count))  # fmt: skip
        writer.commit({}, complete=True)


def small_fit(out: Path, config: TrainConfig = SMALL, **options) -> CodeModel:
    return fit(rotations(3, 30, 1), rotations(2, 20, 2), config, out, progress=False, **options)


def curve(out: Path) -> list[dict]:
    entries = json.loads((out / CURVE_FILE).read_text())["curve"]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


def ending(out: Path) -> tuple[dict[str, torch.Tensor], bytes, list[dict]]:
    """All that a training leaves behind: every tensor of the last checkpoint, the best model's file, the curve."""
    return safetensors.torch.load_file(out / CHECKPOINT_FILE), (out / WEIGHTS_FILE).read_bytes(), curve(out)


def assert_same_ending(out: Path, other: Path) -> None:
    (tensors, model, entries), (other_tensors, other_model, other_entries) = ending(out), ending(other)
    assert tensors.keys() == other_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])] == []
    assert model == other_model
    assert entries == other_entries


# What the model is fed


@pytest.mark.parametrize("context, ahead", [(1, 1), (5, 1), (5, 3), (20, 1)])
def test_the_gather_equals_a_loop_over_trials_and_origins(context: int, ahead: int):
    sequences = unequal_sequences()
    segments = Segments([torch.from_numpy(codes) for codes in sequences], context, ahead)
    expected = []
    for j, codes in enumerate(sequences):
        for origin in range(len(codes) - ahead):
            window, valid = np.zeros((context + ahead, 3), np.float32), np.zeros(context + ahead, bool)
            for place in range(context + ahead):
                t = origin - context + 1 + place
                if t >= 0:
                    window[place], valid[place] = codes[t], True
            expected.append((j, np.arange(origin - context + 1, origin + ahead + 1), window, valid))
    assert len(segments) == len(expected)
    codes, timesteps, valid = segments.gather(torch.arange(len(segments)))
    trial, expected_timesteps, expected_codes, expected_valid = map(np.stack, zip(*expected, strict=True))
    assert np.array_equal(segments.trials_S, trial)
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(valid, expected_valid)
    assert np.array_equal(timesteps.numpy()[expected_valid], expected_timesteps[expected_valid])


def test_batches_hold_padded_starts_as_often_as_other_origins():
    config = dataclasses.replace(SMALL, batch_size=500)
    sequences = rotations(3, 30, 1)
    task = NextCode(sequences, rotations(2, 20, 2), [np.ones(4)] * 5, config, {})
    drawn = []
    gather = task.train.gather

    def watched(index_B: torch.Tensor):
        drawn.append(gather(index_B)[2].sum(1) - 1)  # codes of the history
        return gather(index_B)

    task.train.gather = watched
    task.loss(task.draw(torch.Generator().manual_seed(0)))
    counts = np.bincount(drawn[0].numpy(), minlength=6)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:5] / 500, 1 / 29, atol=0.03)
    assert counts[1:5].min() > 0
    assert counts[5] / 500 == pytest.approx(25 / 29, abs=0.05)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("asked", ["weights", "standardized", "codes"])
def test_the_loss_is_the_mean_over_valid_positions_of_weighed_squares(
    asked: LossName, standardize: bool, model: ModelName
):
    sequences, scales = unequal_sequences(), [np.array([3.0, 1.0, 0.5]), np.array([2.0, 0.1, 0.0]), np.ones(3)]
    config = dataclasses.replace(
        SMALL, model=model, dropout=0.0, standardize=standardize, loss=asked, batch_size=40
    )  # fmt: skip
    task = NextCode(sequences, [sequences[2]], [*scales, np.ones(3)], config, {})
    loss = task.loss(task.draw(torch.Generator().manual_seed(3))).item()

    everything = np.concatenate(sequences).astype(np.float64)
    weighed = {"weights": scales, "standardized": [1 / everything.std(0)] * 3, "codes": [np.ones(3)] * 3}[asked]
    unit = np.concatenate([(s * (c - everything.mean(0))) ** 2 for s, c in zip(weighed, sequences, strict=True)])
    assert task.unit == pytest.approx(unit.sum(1).mean())
    origins = [(j, origin) for j, codes in enumerate(sequences) for origin in range(len(codes) - 1)]
    squares = []
    for index in torch.randint(len(origins), (40,), generator=torch.Generator().manual_seed(3)).tolist():
        j, origin = origins[index]
        first = max(0, origin - 4)
        seen = torch.from_numpy(sequences[j][None, first : origin + 1])
        timesteps = torch.arange(first, origin + 1)[None]
        predicted = task.model(seen, timesteps, torch.ones_like(timesteps, dtype=torch.bool))[0].detach().numpy()
        squares.append((((predicted - sequences[j][first + 1 : origin + 2]) * weighed[j]) ** 2).sum(1))
    assert loss == pytest.approx(np.concatenate(squares).mean() / task.unit, rel=1e-4)


@pytest.mark.parametrize("by_tensor", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("basis", ["full", "pooled"])
def test_the_loss_is_that_of_decoded_weights_less_what_the_basis_leaves_out(
    basis: BasisName, centered: bool, by_tensor: bool, tmp_path: Path
):
    """Equation 1: MSE(φ, φ̃) = loss · unit / P + floor, for trials that move far and trials that hardly move."""
    store = tmp_path / "store"
    write_paths(store, [scale * path for scale, path in zip([1, 0.1, 5, 1, 1], drifting_paths(5), strict=True)])
    codes = Codes.open(fit_svd(store, tmp_path / "codes", SVDConfig(basis, 3, centered, by_tensor=by_tensor)))
    train, validation = [1, 2, 3], [4]
    config = dataclasses.replace(SMALL, dropout=0.0, batch_size=30)
    task = NextCode(
        [codes.codes(seed) for seed in train],
        [codes.codes(seed) for seed in validation],
        [codes.basis(seed).scale_D for seed in (*train, *validation)],
        config,
        {},
    )
    index_B = task.draw(torch.Generator().manual_seed(1))
    loss = task.loss(index_B).item()

    wholes, floors = [], []
    for index in index_B.tolist():
        j = int(task.train.trials_S[index])
        seed, origin = train[j], index - j * 19  # 20 snapshots a trial, the last one is nobody's origin
        true_TP, codes_TD, decode = read_weights(Store.open(store).trial(seed)), codes.codes(seed), codes.basis(seed)
        first = max(0, origin - 4)
        seen, timesteps = torch.from_numpy(codes_TD[None, first : origin + 1]), torch.arange(first, origin + 1)[None]
        valid = torch.ones_like(timesteps, dtype=torch.bool)
        predicted = task.model(seen, timesteps, valid)[0].detach().numpy()
        came = slice(first + 1, origin + 2)
        wholes.append(((true_TP[came] - decode.decode(predicted)) ** 2).mean(1))
        floors.append(((true_TP[came] - decode.decode(codes_TD[came])) ** 2).mean(1))
    whole, floor = np.concatenate(wholes).mean(), np.concatenate(floors).mean()
    assert floor > 0.01 * whole, "what is left out must be seen if it is forgotten"
    assert loss * task.unit / SPEC.size == pytest.approx(whole - floor, rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_validation_equals_a_loop_over_every_origin(model: ModelName):
    config = dataclasses.replace(SMALL, model=model)
    validation, scales = rotations(2, 20, 2), [np.array([3.0, 1.0, 0.5, 0.0]), np.array([1.0, 2.0, 0.1, 4.0])]
    task = NextCode(rotations(3, 30, 1), validation, [np.full(4, 2.0)] * 3 + scales, config, {})
    result = task.validate()
    assert task.model.training
    error, still, losses = np.zeros(10), np.zeros(10), []
    for codes, scale in zip(validation, scales, strict=True):
        for origin in range(10):
            first = max(0, origin - 4)
            seen, timesteps = torch.from_numpy(codes[None, first : origin + 1]), torch.arange(first, origin + 1)[None]
            valid = torch.ones_like(timesteps, dtype=torch.bool)
            rollout = task.model.rollout(seen, timesteps, valid, 10)[0].numpy()
            future = codes[origin + 1 : origin + 11]
            error += (((rollout - future) * scale) ** 2).sum(1)
            still += (((codes[origin] - future) * scale) ** 2).sum(1)
            task.model.eval()
            following = task.model(seen, timesteps, valid)[0].detach().numpy()
            losses.append((((following - codes[first + 1 : origin + 2]) * scale) ** 2).sum(1) / task.unit)
    assert result.skill == pytest.approx({1: 1 - error[0] / still[0], 10: 1 - error[9] / still[9]}, rel=1e-3)
    assert result.loss == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)


# That it learns


@pytest.mark.parametrize("model", MODELS)
def test_it_learns_a_rotation_to_near_zero_error(tmp_path: Path, model: ModelName):
    config = TrainConfig(
        model=model, context=8, num_layers=2, width=32, dropout=0.0, steps=800, batch_size=32, learning_rate=3e-3,
        warmup_steps=50, validate_every=200, absolute_time=False,
    )  # fmt: skip
    trained = fit(rotations(20, 40, 1), rotations(4, 40, 2), config, tmp_path, progress=False)
    assert trained.kind == model
    unseen = np.stack(rotations(50, 40, 3))
    window = torch.from_numpy(unseen[:, :8])
    valid = torch.ones(50, 8, dtype=torch.bool)
    error = (trained.rollout(window, torch.arange(8).expand(50, 8), valid, 10).numpy() - unseen[:, 8:18]) ** 2
    variance = 0.5
    assert error[:, 0].mean() / variance < 0.002
    assert error.mean() / variance < 0.01
    assert curve(tmp_path)[-1]["skill"]["10"] > 0.99


def test_the_kept_model_is_the_one_with_the_best_skill_ten_ahead(tmp_path: Path):
    model = small_fit(tmp_path, dataclasses.replace(SMALL, steps=40, learning_rate=0.05))
    skills = [entry["skill"]["10"] for entry in curve(tmp_path)]
    assert skills.index(max(skills)) != len(skills) - 1, "the settings must make the last model a worse one"
    task = NextCode(rotations(3, 30, 1), rotations(2, 20, 2), [np.ones(4)] * 5, SMALL, {})
    task.model.load_state_dict(model.state_dict())
    assert task.validate().skill[10] == max(skills)


def test_the_learning_rate_warms_up_and_the_optimizer_is_adamw(tmp_path: Path):
    """Three steps in float32 against torch's own, not fused AdamW, driven by hand on the same batches."""
    config = dataclasses.replace(SMALL, steps=3, dropout=0.0, warmup_steps=2, max_grad_norm=0.1)
    small_fit(tmp_path, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task = NextCode(rotations(3, 30, 1), rotations(2, 20, 2), [np.ones(4)] * 5, config, {})
    optimizer = torch.optim.AdamW(task.model.parameters(), weight_decay=config.weight_decay)
    batches = torch.Generator().manual_seed(config.seed)
    for rate in (config.learning_rate / 2, config.learning_rate, config.learning_rate):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        task.loss(task.draw(batches)).backward()
        norm = torch.stack([(w.grad**2).sum() for w in task.model.parameters() if w.grad is not None]).sum().sqrt()
        assert norm > config.max_grad_norm
        for weight in task.model.parameters():
            assert weight.grad is not None
            weight.grad *= config.max_grad_norm / norm
        optimizer.step()
    tensors = safetensors.torch.load_file(tmp_path / CHECKPOINT_FILE)
    for name, weight in task.model.named_parameters():
        torch.testing.assert_close(tensors[f"model.{name}"], weight.detach(), rtol=1e-4, atol=1e-5)


def test_codes_that_stand_still_in_training_are_not_divided_by_zero(tmp_path: Path):
    sequences = [codes * [1, 1, 1, 0] for codes in rotations(3, 30, 1)]
    model = fit(sequences, rotations(1, 20, 2), SMALL, tmp_path, progress=False)
    assert model.std_D[3] == 0
    codes = torch.from_numpy(sequences[0][None, :5]).float()
    forecast = model.rollout(codes, torch.arange(5)[None], torch.ones(1, 5, dtype=torch.bool), 3)
    assert torch.equal(forecast[..., 3], torch.zeros(1, 3)), "forecast as standing still"
    assert curve(tmp_path)[-1]["validation_loss"] < 10


# Seeds, stopping and going on


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Press Ctrl-C, really, in the middle of an update."""
    update = loop.Training._update

    def update_and_press(self: loop.Training) -> torch.Tensor:
        if self.step == step - 1:
            signal.raise_signal(signal.SIGINT)
        return update(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_update", update_and_press)
        yield


@pytest.mark.parametrize("stops", [[1], [5], [7], [3, 4, 11], [12]])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(
    tmp_path: Path, stops: list[int], precision: Precision
):
    config = dataclasses.replace(SMALL, precision=precision)
    whole = small_fit(tmp_path / "whole", config)
    for step in stops:
        with interrupted_at(step):
            small_fit(tmp_path / "parts", config, resume=True)
        torch.rand(3)  # whatever else the program draws has no influence
    parts = small_fit(tmp_path / "parts", config, resume=True)
    assert_same_ending(tmp_path / "whole", tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_a_training_goes_on_in_the_precision_that_it_was_begun_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = dataclasses.replace(SMALL, precision="fast")
    monkeypatch.setattr(loop, "fast_precision", lambda: torch.bfloat16)
    small_fit(tmp_path / "whole", config)
    with interrupted_at(7):
        small_fit(tmp_path / "parts", config)
    monkeypatch.setattr(loop, "fast_precision", lambda: torch.float32)  # on a machine that has no bfloat16
    small_fit(tmp_path / "parts", config, resume=True)
    assert_same_ending(tmp_path / "whole", tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / CURVE_FILE).read_text())["precision"] == "bfloat16"
    with pytest.raises(TiplError, match=r"other settings \(precision fast\)"):
        small_fit(tmp_path / "parts", SMALL, resume=True)


def test_a_training_is_given_more_steps(tmp_path: Path):
    longer = dataclasses.replace(SMALL, steps=20)
    small_fit(tmp_path / "whole", longer)
    small_fit(tmp_path / "parts", dataclasses.replace(SMALL, steps=10))
    small_fit(tmp_path / "parts", longer, resume=True)
    assert_same_ending(tmp_path / "whole", tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / CURVE_FILE).read_text())["config"]["steps"] == 20
    with pytest.raises(TiplError, match="has 20 steps already; give --steps 20 or more"):
        small_fit(tmp_path / "parts", dataclasses.replace(SMALL, steps=19), resume=True)
    falling = dataclasses.replace(SMALL, cosine=True)
    small_fit(tmp_path / "cosine", falling)
    with pytest.raises(TiplError, match=r"steps 12, at whose end its learning rate is 0 \(cosine\)"):
        small_fit(tmp_path / "cosine", dataclasses.replace(falling, steps=20), resume=True)


def test_the_best_and_the_last_model_are_kept_and_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = dataclasses.replace(SMALL, steps=40, learning_rate=0.05)
    best = fit(rotations(3, 30, 1), rotations(2, 20, 2), config, tmp_path)
    skills = [entry["skill"]["10"] for entry in curve(tmp_path)]
    step = 5 * (1 + skills.index(max(skills)))
    assert step < 40, "the settings must make the last model a worse one"
    assert f"kept the model of step {step}: best validation skill at h = 10" in capsys.readouterr().err
    last, checkpoint = load(tmp_path / LAST), safetensors.torch.load_file(tmp_path / CHECKPOINT_FILE)
    for name, weight in last.state_dict().items():
        assert torch.equal(weight, checkpoint[f"model.{name}"])
    assert not torch.equal(last.head.weight, best.head.weight)
    told, told_last = (json.loads((folder / CURVE_FILE).read_text()) for folder in (tmp_path, tmp_path / LAST))
    assert kept(tmp_path) == f"the model of step {step}: best validation skill at h = 10"
    assert kept(tmp_path / LAST) == "the model of step 40: last step"
    assert told["kept"] == {"step": step, "by": "best validation skill at h = 10"}
    assert told_last["kept"] == {"step": 40, "by": "last step"}
    assert told["curve"] == told_last["curve"]


def test_a_crash_between_a_checkpoint_and_its_curve_is_mended_by_resuming(tmp_path: Path):
    small_fit(tmp_path)
    whole = (tmp_path / CURVE_FILE).read_text()
    for path in (tmp_path / CURVE_FILE, tmp_path / LAST / CURVE_FILE):
        path.unlink()
    small_fit(tmp_path, resume=True)
    assert (tmp_path / CURVE_FILE).read_text() == whole
    assert json.loads((tmp_path / LAST / CURVE_FILE).read_text())["kept"]["step"] == 12


@pytest.mark.parametrize("model", MODELS[1:])
def test_a_rival_interrupted_and_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path, model: ModelName):
    config = dataclasses.replace(SMALL, model=model, num_layers=2)
    small_fit(tmp_path / "whole", config)
    for step in (3, 5, 7):
        with interrupted_at(step):
            small_fit(tmp_path / "parts", config, resume=True)
    small_fit(tmp_path / "parts", config, resume=True)
    assert_same_ending(tmp_path / "whole", tmp_path / "parts")


def test_a_rival_trains_in_low_precision_too(tmp_path: Path):
    losses = []
    for precision in ("float32", "bfloat16"):
        small_fit(tmp_path / precision, dataclasses.replace(SMALL, model="mlp", num_layers=2, precision=precision))
        losses.append([entry["validation_loss"] for entry in curve(tmp_path / precision)])
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert losses[0] != losses[1]
    with pytest.raises(TiplError, match="--precision bfloat16 has no effect on a GRU"):
        dataclasses.replace(SMALL, model="gru", precision="bfloat16")


def test_a_crash_between_the_best_model_and_its_checkpoint_is_gone_on_from(tmp_path: Path):
    small_fit(tmp_path / "whole")
    write, written = loop.Training.write_checkpoint, []

    def crash(self: loop.Training) -> None:
        if self.step == 10:
            raise OSError("the machine stopped")
        write(self)
        written.append(self.step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError):
        patch.setattr(loop.Training, "write_checkpoint", crash)
        small_fit(tmp_path / "parts")
    assert written == [0, 5]
    small_fit(tmp_path / "parts", resume=True)
    assert_same_ending(tmp_path / "whole", tmp_path / "parts")


def test_a_second_press_interrupts_at_once_and_the_handler_is_given_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), loop._interruption() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_it_trains_in_a_thread_too(tmp_path: Path):
    thread = threading.Thread(target=small_fit, args=(tmp_path,))
    thread.start()
    thread.join()
    assert [entry["step"] for entry in curve(tmp_path)] == [5, 10, 12]


def test_a_seed_makes_a_model_and_another_seed_another(tmp_path: Path):
    state = torch.get_rng_state()
    small_fit(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    torch.rand(1)
    small_fit(tmp_path / "same")
    small_fit(tmp_path / "other", dataclasses.replace(SMALL, seed=1))
    assert_same_ending(tmp_path / "a", tmp_path / "same")
    first, other = ending(tmp_path / "a")[0], ending(tmp_path / "other")[0]
    assert not torch.equal(first["model.head.weight"], other["model.head.weight"])
    assert not torch.equal(first["random.batches"], other["random.batches"])


def test_a_finished_training_says_so_and_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = small_fit(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    again = fit(rotations(3, 30, 1), rotations(2, 20, 2), SMALL, tmp_path, resume=True)
    assert "is finished, 12 steps" in capsys.readouterr().err
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before
    assert torch.equal(first.head.weight, again.head.weight)


def test_off_a_terminal_a_validation_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fit(rotations(3, 30, 1), rotations(2, 20, 2), SMALL, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    for step in (5, 10, 12):
        (line,) = [line for line in lines if f"step {step} of 12" in line]
        assert "skill" in line and "at h=10" in line
    assert lines[1].endswith(str(tmp_path))
    assert lines[-2] == f"train: the model of the last step, 12, is in {tmp_path / LAST}"
    assert "kept the model of step" in lines[-1]
    small_fit(tmp_path / "silent")
    assert capsys.readouterr() == ("", "")


def test_a_training_says_how_large_its_model_is_and_how_its_width_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def first_line(model: ModelName) -> str:
        config = dataclasses.replace(SMALL, model=model, steps=1)
        fit(rotations(3, 30, 1), rotations(2, 20, 2), config, tmp_path / model)
        return capsys.readouterr().err.splitlines()[0]

    times, inner, outer = 29 * 8, 12 * 64 + 13 * 8, (4 * 8 + 8) + 16 + 16 + (8 * 4 + 4)
    size = times + inner + outer
    assert first_line("paper") == f"train: TIPL, {size:,} parameters, layers 1, width 8"
    line = first_line("gru")
    assert re.match(r"train: GRU, [\d,]+ parameters, layers 1, width \d+: ", line)
    assert line.endswith(f"comes nearest to the {size:,} parameters of the TIPL with these settings")


def test_the_curve_says_what_was_trained_on_what(tmp_path: Path):
    model = small_fit(tmp_path, basis=dataclasses.asdict(SVDConfig(dim=4, centered=True)), trials={"train": [1, 2, 3]})
    assert (model.config.basis, model.config.centered, model.config.max_timestep) == ("full", True, 28)
    record = json.loads((tmp_path / CURVE_FILE).read_text())
    assert record["config"] == dataclasses.asdict(SMALL)
    assert record["codes"]["trials"] == {"train": [1, 2, 3]}
    assert record["precision"] == "float32"
    assert [entry["step"] for entry in record["curve"]] == [5, 10, 12]
    seconds = [entry["seconds"] for entry in record["curve"]]
    assert 0 < seconds[0] < seconds[1] < seconds[2]


def test_the_curves_for_tensorboard_are_those_of_the_training_over_a_stop_too(tmp_path: Path):
    config = dataclasses.replace(SMALL, steps=250, validate_every=60, warmup_steps=150)
    with interrupted_at(130), tracked(f"tensorboard={tmp_path / 'curves'}") as write:
        small_fit(tmp_path / "model", config, write=write)
    with tracked(f"tensorboard={tmp_path / 'curves'}") as write:
        small_fit(tmp_path / "model", config, resume=True, write=write)
    events = EventAccumulator(str(tmp_path / "curves")).Reload()

    def points(name: str) -> dict:
        return {event.step: pytest.approx(event.value) for event in events.Scalars(name)}

    entries = curve(tmp_path / "model")
    assert [entry["step"] for entry in entries] == [60, 120, 180, 240, 250]
    assert points("loss/train") == {entry["step"]: entry["train_loss"] for entry in entries}
    assert points("loss/validation") == {entry["step"]: entry["validation_loss"] for entry in entries}
    for h in ("1", "10"):
        assert points(f"skill/{h}_ahead") == {entry["step"]: entry["skill"][h] for entry in entries}
    assert points("learning_rate") == {100: config.learning_rate * 100 / 150, 200: config.learning_rate}
    assert points("loss/batch").keys() == {100, 200}
    record = json.loads((tmp_path / "model" / CURVE_FILE).read_text())["curve"]
    steps, seconds = (np.diff([0, *(entry[name] for entry in record)]) for name in ("step", "seconds"))
    assert points("steps_per_second") == dict(zip([60, 120, 180, 240, 250], steps / seconds, strict=True))


def test_bfloat16_is_used_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "avx2": True})
    assert fast_precision() == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert fast_precision() == torch.bfloat16


# What it refuses


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "causal", "loss": "codes"},
        {"model": "causal", "context": 5},
        {"model": "causal", "residual": True},
        {"model": "gru", "noise": 0.5},
        {"model": "paper", "windows": 10},
    ],
)
def test_settings_that_a_model_does_not_heed_are_refused(settings: dict):
    with pytest.raises(TiplError, match=f"has no effect on --model {settings['model']}"):
        TrainConfig(**settings)


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path):
    small_fit(tmp_path)
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(TiplError, match="--resume"):
        small_fit(tmp_path)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before
    (tmp_path / CHECKPOINT_FILE).unlink()
    for resume in (False, True):
        with pytest.raises(TiplError, match="another --out"):
            small_fit(tmp_path, resume=resume)
    with pytest.raises(TiplError, match="is a file"):
        small_fit(tmp_path / CONFIG_FILE)


def test_resuming_with_other_settings_or_codes_is_refused(tmp_path: Path):
    small_fit(tmp_path)
    with pytest.raises(TiplError, match=r"other settings \(steps 12, seed 0\)"):
        small_fit(tmp_path, dataclasses.replace(SMALL, steps=20, seed=1), resume=True)
    with pytest.raises(TiplError, match="other codes"):
        fit(rotations(3, 30, 9), rotations(2, 20, 2), SMALL, tmp_path, resume=True, progress=False)
    with pytest.raises(TiplError, match="other codes"):
        small_fit(tmp_path, resume=True, scales=[np.full(4, 2.0)] * 5)


def test_a_damaged_checkpoint_is_named_set_aside_and_training_begins_anew_to_the_same_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small_fit(tmp_path / "whole")
    with interrupted_at(7):
        small_fit(tmp_path / "half")
    content = (tmp_path / "half" / CHECKPOINT_FILE).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    for number, damaged in enumerate((bytes(flipped), content[:-10], content[:50], b"", safetensors.torch.save({}))):
        out = tmp_path / str(number)
        shutil.copytree(tmp_path / "half", out)
        (out / CHECKPOINT_FILE).write_bytes(damaged)
        small_fit(out, resume=True)
        assert (out / f"{CHECKPOINT_FILE}.damaged").read_bytes() == damaged
        assert f"It is now {out / CHECKPOINT_FILE}.damaged; training begins anew" in capsys.readouterr().err
        assert_same_ending(tmp_path / "whole", out)


def test_a_training_that_stopped_when_it_had_set_its_checkpoint_aside_goes_on(tmp_path: Path):
    small_fit(tmp_path)
    (tmp_path / CHECKPOINT_FILE).rename(tmp_path / f"{CHECKPOINT_FILE}.damaged")
    with pytest.raises(TiplError, match="without a checkpoint"):
        small_fit(tmp_path)
    small_fit(tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT_FILE).exists()


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "VERSION", 99)
        small_fit(tmp_path)
    with pytest.raises(TiplError, match="is of version 99"):
        small_fit(tmp_path, resume=True)


@pytest.mark.parametrize(
    "spoil, match",
    [
        (lambda train, validation: (train[:0], validation), "no training trial"),
        (lambda train, validation: (train, validation[:0]), "no validation trial"),
        (lambda train, validation: ([train[0], train[1][:1]], validation), "1 snapshots in training trial 1"),
        (lambda train, validation: (train, [validation[0][:10]]), "at least 11"),
        (lambda train, validation: ([train[0], train[1][:, :2]], validation), "one d for all"),
        (lambda train, validation: (train, [validation[0][:, :2]]), "one d for all"),
        (lambda train, validation: ([train[0] * np.nan], validation), "not all finite"),
        (lambda train, validation: (train, [validation[0] * 0]), "never change"),
    ],
)
def test_codes_that_nothing_can_be_learned_from_are_refused(tmp_path: Path, spoil: Callable, match: str):
    sequences, validation = spoil(rotations(3, 30, 1), rotations(2, 20, 2))
    with pytest.raises(TiplError, match=match):
        fit(sequences, validation, SMALL, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_training_that_diverges_says_so(tmp_path: Path):
    config = dataclasses.replace(SMALL, learning_rate=1e30, warmup_steps=0, steps=50)
    with pytest.raises(TiplError, match="no longer finite"):
        small_fit(tmp_path, config)


# The verb, on a real store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tipl.collection.collect import collect

    path = tmp_path_factory.mktemp("data") / "store"
    with in_this_process():
        config = CollectConfig(trials=5, total_steps=4 * 512, ppo=PPOConfig(num_steps=512, num_minibatches=8))
        return collect(config, path, workers=1)


def test_train_learns_from_training_trials_chooses_by_validation_trials_and_never_reads_test_trials(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read = []
    codes = Codes.codes
    monkeypatch.setattr(Codes, "codes", lambda self, seed: read.append(seed) or codes(self, seed))
    config = dataclasses.replace(SMALL, width=16)
    out = train(store, tmp_path / "model", config, SVDConfig(dim=4))
    assert read == [1, 2, 3, 4]
    record = json.loads((out / CURVE_FILE).read_text())
    (learned_from,) = record["codes"]["trials"]["stores"]
    assert learned_from.pop("env_id") == "InvertedPendulum-v4"
    begun = [Store.open(store).trial(seed).weights(0, 2) for seed in (1, 2, 3, 4)]
    digests = [hashlib.blake2b(each.astype("<f4").tobytes(), digest_size=8).hexdigest() for each in begun]
    assert learned_from.pop("beginnings") == sorted(digests)
    assert learned_from == {"id": Store.open(store).id, "name": "store", "train": [1, 2, 3], "validation": [4]}
    assert record["codes"]["basis"] == dataclasses.asdict(SVDConfig(dim=4))
    model = load(out)
    assert (model.config.dim, model.config.basis) == (4, "full")

    fitted = Codes.open(out / CODES_FOLDER)
    forecaster = load_forecaster(out, codes=fitted)
    assert isinstance(forecaster, ModelForecaster) and forecaster.codes is fitted
    with pytest.raises(TiplError, match=r"model over codes; give `codes` too"):
        load_forecaster(out)
    with pytest.raises(TiplError, match="causal model, which sees weights; leave `codes` out"):
        load_forecaster("causal", codes=fitted)

    with pytest.raises(TiplError, match="--resume"):
        train(store, out, config, SVDConfig(dim=4))
    assert train(store, out, config, SVDConfig(dim=4), resume=True) == out
    given = train(store, tmp_path / "given", config, codes=out / CODES_FOLDER)
    assert (given / WEIGHTS_FILE).read_bytes() == (out / WEIGHTS_FILE).read_bytes()
    assert not (given / CODES_FOLDER).exists()


def test_the_skill_of_the_verb_is_measured_in_weights(store: Path, tmp_path: Path):
    dim = 6
    out = train(store, tmp_path / "model", dataclasses.replace(SMALL, steps=5), SVDConfig(dim=dim))
    model, codes = load(out), Codes.open(out / CODES_FOLDER)
    codes_TD, basis = codes.codes(4), codes.basis(4)
    weights_TP = basis.decode(codes_TD)
    error = still = 0.0
    for origin in range(len(Store.open(store).trial(4).iteration) - 10):
        first = max(0, origin - 4)
        seen, timesteps = torch.from_numpy(codes_TD[None, first : origin + 1]), torch.arange(first, origin + 1)[None]
        rollout = model.rollout(seen, timesteps, torch.ones_like(timesteps, dtype=torch.bool), 10)[0].numpy()
        error += ((basis.decode(rollout)[-1] - weights_TP[origin + 10]) ** 2).sum()
        still += ((weights_TP[origin] - weights_TP[origin + 10]) ** 2).sum()
    assert curve(out)[0]["skill"]["10"] == pytest.approx(1 - error / still, rel=1e-3)

    # A loss of 1 is what the mean code would cost, decoded by each trial's own basis.
    mean_D = np.concatenate([codes.codes(seed) for seed in (1, 2, 3)]).mean(0)
    distances = []
    for seed in (1, 2, 3):
        basis, codes_TD = codes.basis(seed), codes.codes(seed)
        distances.append(((basis.decode(codes_TD) - basis.decode(mean_D[None])) ** 2).sum(1))
    unit = json.loads((out / CURVE_FILE).read_text())["loss_unit"]
    assert unit == pytest.approx(np.concatenate(distances).mean(), rel=1e-4)


def test_what_the_verb_cannot_use_is_refused_before_anything_is_written(store: Path, tmp_path: Path):
    with pytest.raises(TiplError):
        train(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(TiplError, match="not a CODES folder"):
        train(store, tmp_path / "out", codes=tmp_path / "nowhere", track=f"tensorboard={tmp_path / 'curves'}")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TiplError, match="TensorBoard is not installed"):
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        train(store, tmp_path / "out", track=f"tensorboard={tmp_path / 'curves'}")
    assert os.listdir(tmp_path) == []
    write_paths(tmp_path / "two", drifting_paths(2))
    for config in (SMALL, CausalTrainConfig()):
        with pytest.raises(TiplError, match=r"two has 1 training trial\(s\) and none to validate"):
            train(tmp_path / "two", tmp_path / "out", config)
    write_paths(tmp_path / "short", [path[:10] for path in drifting_paths(5)])
    with pytest.raises(TiplError, match=r"Trial 3 of .*short has 10 snapshots; at least 11 are needed"):
        train(tmp_path / "short", tmp_path / "out", SMALL)
    shutil.copytree(store, tmp_path / "copy")
    with pytest.raises(TiplError, match=r"copy is .*store again, or a copy of it; give it once"):
        train([store, tmp_path / "copy"], tmp_path / "out", CausalTrainConfig())
    assert not (tmp_path / "out").exists(), "told before an SVD is fitted"
    with pytest.raises(TiplError, match="fit the full or the pooled basis"):
        train(store, tmp_path / "out", SMALL, SVDConfig("window", 4))


def test_flags_of_an_svd_are_refused_where_no_codes_are_made(capsys: pytest.CaptureFixture[str]):
    from tipl.cli.main import main

    assert main(["train", "store", "--model", "causal", "--dim", "8", "--out", "model"]) == 2
    assert "--dim has no effect on --model causal" in capsys.readouterr().err


def test_the_sweep_takes_seeds_together():
    file = Path(__file__).parents[1] / "studies" / "sweep.py"
    spec = importlib.util.spec_from_file_location("sweep", file)
    assert spec is not None and spec.loader is not None
    sweep = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sweep)
    runs = [{"skill": {"1": 0.5, "10": -3.0}}, {"skill": {"1": 0.25, "10": -1.0}}, {"skill": {"1": 0.75, "10": 1.0}}]
    assert sweep.together(runs, "skill") == {
        "1": {"mean": 0.5, "lowest": 0.25, "highest": 0.75},
        "10": {"mean": -1.0, "lowest": -3.0, "highest": 1.0},
    }
    for changes in sweep.VARIANTS.values():  # every one is a setting that a training takes
        TrainConfig(**{name: value for name, value in changes.items() if name not in ("dim", "centered")})
        SVDConfig(**{name: value for name, value in changes.items() if name in ("dim", "centered")})
