"""Training in two processes: the same weights as in one, and what it refuses.

In: small trainings under `torchrun`, gloo.  Out: failures that name the model.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from parallel_fit import CAUSAL, PAPER, drawn_windows, paths, train_here
from test_windows import write_store

from tipl.cli.main import main
from tipl.errors import TiplError
from tipl.training import CHECKPOINT_FILE, NextCode, Worker, fit, fit_causal, loop, train
from tipl.training.cuda_graph import Recorded

MODELS = "paper", "causal"
SCRIPT = Path(__file__).with_name("parallel_fit.py")


def torchrun(*command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *command], capture_output=True, text=True, env=environment, timeout=300)


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / CHECKPOINT_FILE)


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    update = loop.Training._update

    def stop(self: loop.Training) -> torch.Tensor:
        loss = update(self)
        self.stops = self.step == step
        return loss

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_update", stop)
        yield


def assert_close(out: Path, other: Path) -> None:
    one, two = weights_of(out), weights_of(other)
    assert one.keys() == two.keys()
    for name in one:
        if name.startswith("model."):
            np.testing.assert_allclose(one[name], two[name], atol=1e-5, err_msg=name)
    assert torch.equal(one["random.batches"], two["random.batches"])


def test_two_processes_make_the_models_of_one_and_go_on_from_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "fast_precision", lambda: torch.float32)
    for model in MODELS:
        train_here(model, tmp_path / f"{model}-one")
        with stopped_at(13):
            train_here(model, tmp_path / f"{model}-parts")
    run = torchrun(str(SCRIPT), str(tmp_path))
    assert run.returncode == 0, run.stderr
    for model in MODELS:
        assert_close(tmp_path / f"{model}-one", tmp_path / f"{model}-two")
        assert_close(tmp_path / f"{model}-one", tmp_path / f"{model}-parts")
    assert not (tmp_path / "refused").exists()


def test_two_machines_with_caches_of_their_own_learn_from_windows_in_files_as_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Started with what `torchrun --nnodes 2` sets in the environment; here the windows are in memory."""
    store = write_store(tmp_path / "store", 4, 330)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    run = [sys.executable, str(SCRIPT), str(tmp_path / "two"), str(store)]
    machines = []
    for rank in "01":
        own = {"RANK": rank, "MASTER_PORT": port, "TIPL_CACHE": str(tmp_path / rank), "OMP_NUM_THREADS": "1"}
        machines.append(subprocess.Popen(run, env={**os.environ, **group, **own}, stderr=subprocess.PIPE, text=True))
    monkeypatch.setattr(loop, "fast_precision", lambda: torch.float32)
    monkeypatch.setenv("TIPL_CACHE", str(tmp_path / "one-cache"))
    train(store, tmp_path / "one", dataclasses.replace(CAUSAL, windows=80, noise=0.5))
    for machine in machines:
        said = machine.communicate(timeout=300)[1]
        assert machine.returncode == 0, said
    kept = [sorted(path.name for path in (tmp_path / name / "windows").iterdir()) for name in ("0", "1", "one-cache")]
    assert kept[0] == kept[1] == kept[2] and len(kept[0]) > 2
    assert_close(tmp_path / "one", tmp_path / "two")
    curves = [json.loads((tmp_path / name / "training.json").read_text())["curve"] for name in ("one", "two")]
    losses = [[(each["train_loss"], each["validation_loss"]) for each in curve] for curve in curves]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_the_shares_of_a_batch_add_up_to_its_loss_where_valid_positions_are_unequal():
    def loss(rank: int, ranks: int) -> tuple[float, torch.Tensor]:
        torch.manual_seed(0)
        worker = Worker(rank=rank, ranks=ranks)
        task = NextCode(paths(3, 12, 1), paths(2, 20, 2), [np.ones(4)] * 5, PAPER, {}, worker)
        value = task.loss(task.draw(torch.Generator().manual_seed(1)))
        value.backward()
        gradients = [weight.grad for weight in task.model.parameters() if weight.grad is not None]
        return value.item(), torch.cat([grad.reshape(-1) for grad in gradients])

    whole, parts = loss(0, 1), [loss(rank, 3) for rank in range(3)]
    assert sum(value for value, _ in parts) == pytest.approx(whole[0], rel=1e-6)
    np.testing.assert_allclose(sum(gradient for _, gradient in parts), whole[1], atol=1e-6)


def test_a_batch_that_does_not_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(TiplError, match="--batch-size 5 does not split over 2 processes"):
        train_here("paper", tmp_path / "out", batch_size=5)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_verb_under_torchrun_writes_and_speaks_once(tmp_path: Path, small_store: Path):
    settings = ["--steps=4", "--validate-every=2", "--width=8", "--context=4", "--batch-size=4", "--dim=3"]
    run = torchrun("-m", "tipl", "train", str(small_store), "--out", str(tmp_path / "out"), *settings)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("wrote ") == 1 and run.stderr.count("step 4 of 4") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_asking_for_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(TiplError, match="no CUDA device"):
        fit(paths(3, 12, 1), paths(2, 20, 2), PAPER, tmp_path / "out", device="cuda", progress=False)
    assert main(["train", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "out").exists()


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@needs_cuda
def test_on_cuda_it_learns_as_on_the_cpu(tmp_path: Path):
    config = dataclasses.replace(PAPER, steps=300, validate_every=300)
    cpu, cuda = (
        fit(paths(3, 200, 1), paths(2, 40, 2), config, tmp_path / device, device=device, progress=False)
        for device in ("cpu", "cuda")
    )
    for one, other in zip(cpu.parameters(), cuda.parameters(), strict=True):
        assert one.device == other.device
        np.testing.assert_allclose(one.detach(), other.detach(), atol=0.05)


@needs_cuda
@pytest.mark.parametrize("cosine", [False, True])
def test_a_recorded_training_is_that_of_kernels_launched_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cosine: bool
):
    config = dataclasses.replace(PAPER, steps=200, validate_every=50, cosine=cosine)
    fit(paths(3, 200, 1), paths(2, 40, 2), config, tmp_path / "recorded", device="cuda", progress=False)
    monkeypatch.setattr(NextCode, "one_shape", False)
    fit(paths(3, 200, 1), paths(2, 40, 2), config, tmp_path / "launched", device="cuda", progress=False)
    one, two = weights_of(tmp_path / "recorded"), weights_of(tmp_path / "launched")
    for name in one:
        if name.startswith("model."):
            np.testing.assert_allclose(one[name], two[name], atol=1e-3, err_msg=name)
    curves = [json.loads((tmp_path / name / "training.json").read_text())["curve"] for name in ("recorded", "launched")]
    for mine, other in zip(*curves, strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-2)


@needs_cuda
def test_a_recording_draws_its_dropout_anew():
    worker = Worker.of("cuda", 6)
    task = NextCode(
        paths(3, 200, 1), paths(2, 40, 2), [np.ones(4)] * 2, dataclasses.replace(PAPER, dropout=0.5), {}, worker
    )
    recorded, index_B = Recorded(task.loss, worker.device), task.draw(torch.Generator().manual_seed(0))
    assert len({recorded(index_B).item() for _ in range(8)}) == 8


@needs_cuda
def test_on_cuda_a_training_is_stopped_and_gone_on_with(tmp_path: Path):
    train_here("paper", tmp_path / "whole", device="cuda")
    with stopped_at(13):
        train_here("paper", tmp_path / "parts", device="cuda")
    train_here("paper", tmp_path / "parts", device="cuda", resume=True)
    one, two = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert torch.equal(one["random.batches"], two["random.batches"])
    for name in one:
        if name.startswith("model."):
            np.testing.assert_allclose(one[name], two[name], atol=1e-3, err_msg=name)


@needs_cuda
def test_the_causal_model_learns_on_cuda_as_on_the_cpu(tmp_path: Path):
    windows, config = [drawn_windows(50, 1), drawn_windows(30, 2)], dataclasses.replace(CAUSAL, steps=100)
    cpu, cuda = (
        fit_causal(windows, [drawn_windows(20, 3)], config, tmp_path / device, device=device, progress=False)
        for device in ("cpu", "cuda")
    )
    for one, other in zip(cpu.parameters(), cuda.parameters(), strict=True):
        np.testing.assert_allclose(one.detach(), other.detach(), atol=0.05)
