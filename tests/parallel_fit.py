"""One of the processes of a training, for `torchrun`: python -m torch.distributed.run … parallel_fit.py OUT [STORE]

In: a folder, in it trainings to go on with; or a store to learn from.  Out: trained models. `test_parallel.py` compares
them with one process's.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

from tipl.config.presets import CausalTrainConfig, Device, TrainConfig
from tipl.errors import TiplError
from tipl.representation.windows import HORIZONS, TOKENS, TrainingWindows
from tipl.training import displacement, fit, fit_causal, loop, train
from tipl.training.devices import process_group

STEPS = 30
PAPER = TrainConfig(
    context=6, num_layers=2, width=16, steps=STEPS, batch_size=6, dropout=0.0, learning_rate=1e-3, warmup_steps=3,
    validate_every=10,
)  # fmt: skip
CAUSAL = CausalTrainConfig(
    num_layers=1, num_heads=2, width=16, steps=STEPS, batch_size=6, warmup_steps=3, validate_every=10
)


def paths(trials: int, length: int, seed: int) -> list[np.ndarray]:
    """Random walks [T, D], so short that many segments are padded: processes see unequal numbers of valid positions."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, 4)).cumsum(axis=0).astype(np.float32) for _ in range(trials)]


def drawn_windows(count: int, seed: int) -> TrainingWindows:
    """Windows of tokens drawn at random in R⁶⁰, and displacements that are partly theirs."""
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((count, TOKENS, 60)) / 60**0.5
    came = np.einsum("hj,bjp->bhp", rng.standard_normal((len(HORIZONS), TOKENS)) / 5, tokens)
    own = (tokens @ tokens.transpose(0, 2, 1)).astype(np.float32)
    return TrainingWindows(
        own=own, whole=own, unit=np.ones(count), share=np.ones(count), size=np.full(count, 60),
        epoch_index=rng.integers(0, 5, count), origin=rng.integers(0, 900, count),
        toward=np.einsum("bjp,bhp->bjh", tokens, came).astype(np.float32),
        moved=np.square(came).sum(axis=2).astype(np.float32), is_whole=np.zeros(count, bool),
        weight=rng.uniform(0.1, 2, (count, len(HORIZONS))).astype(np.float32),
        often=rng.uniform(0.5, 2, count).astype(np.float32),
    )  # fmt: skip


def train_here(model: str, out: Path, *, resume: bool = False, batch_size: int = 6, device: Device = "cpu") -> None:
    config = dataclasses.replace(PAPER if model == "paper" else CAUSAL, batch_size=batch_size)
    if model == "paper":
        fit(paths(3, 12, 1), paths(2, 20, 2), config, out, progress=False, resume=resume, device=device)
    else:
        stores = [drawn_windows(50, 1), drawn_windows(30, 2)]
        fit_causal(stores, [drawn_windows(20, 3)], config, out, progress=False, resume=resume, device=device)


def train_streamed(store: Path, out: Path) -> None:
    """The verb, with noise, on windows that are read from files batch by batch."""
    loop.fast_precision = lambda: torch.float32
    displacement._HELD["cpu"] = 0
    train(store, out, dataclasses.replace(CAUSAL, windows=80, noise=0.5))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    if len(sys.argv) > 2:
        train_streamed(Path(sys.argv[2]), out)
        sys.exit()
    with process_group("cpu"):
        loop.fast_precision = lambda: torch.float32
        for model in ("paper", "causal"):
            train_here(model, out / f"{model}-two")
            train_here(model, out / f"{model}-parts", resume=True)
        with contextlib.suppress(TiplError):
            train_here("paper", out / "refused", batch_size=5)
            raise AssertionError("5 is no multiple of 2")
