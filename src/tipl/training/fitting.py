"""`fit` and `fit_causal`: a model trained on arrays, from the start or from where it was left.

In: sequences of codes [T, D], or windows; TrainConfig.  Out: a trained model in its folder.

Shapes: T snapshots, D code.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tipl.config.presets import Device, TrainConfig
from tipl.errors import TiplError
from tipl.files import Damaged, require_no_store_above, set_aside
from tipl.models import CONFIG_FILE, TIPL, WEIGHTS_FILE, CausalTIPL, CodeModel, load, num_parameters
from tipl.progress import console
from tipl.representation.windows import TrainingWindows
from tipl.training.devices import Worker
from tipl.training.displacement import Displacements, Lessons
from tipl.training.loop import CHECKPOINT_FILE, SKILL_HORIZONS, Checkpoint, Task, Training, Write
from tipl.training.next_code import NextCode

SHORTEST, SHORTEST_VALIDATED = 2, SKILL_HORIZONS[-1] + 1
"""Snapshots that a training and a validation trial have at least, where a model learns from codes."""


def fit(
    train: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    scales: Sequence[np.ndarray] | None = None,
    basis: Mapping[str, Any] | None = None,
    trials: Mapping[str, Any] | None = None,
    progress: bool = True,
    write: Write = lambda name, value, step: None,
    device: Device = "cpu",
) -> CodeModel:
    """Train TIPL, or the rival that `config.model` names, on sequences of codes.

    Every `config.validate_every` steps, and after the last one, the model is measured on the validation trials, kept
    in `out` if it is the best so far, and the state of the training is written beside it. The best model is the one
    with the highest skill ten codes ahead: that is the forecast that the paper makes, and unlike the loss it counts
    the errors that autoregression piles up. On one machine's CPU, with as many threads, the same input gives the same
    model to the bit, however often the training was stopped and resumed.

    Where torch has a process group, every process takes its share of each batch, and the first one alone writes.
    Without dropout they make the model of one process but for rounding; with it, each draws its own, new ones after
    each resumption.

    Args:
        train: one array [T, D] a training trial; T ≥ 2 may differ.
        validation: likewise, T > 10.
        out: the folder, made if missing.
        resume: go on from the checkpoint in `out`, if there is one.
        scales: the singular values [D] of each training trial, then of each validation trial. A code times these is a
            displacement in orthonormal directions, so by them loss and skill are measured in weights. Without them all
            are 1.
        basis: the SVDConfig that made the codes, as a dict; kept in the model's config.
        trials: where the sequences come from; kept in the curve's file.
        progress: show progress on standard error.
        write: takes the points of the curves as they come; `collection.tracking` makes one.
        device: that the model, its batches and its codes are on.

    Returns:
        The best model, in eval mode, as read back from `out`.

    Raises:
        TiplError: codes that cannot be learned from, a folder that is in use, a checkpoint of another config or of
            other codes, or a loss that is no longer finite.
        KeyboardInterrupt: after the step in hand, with a checkpoint from which `resume` goes on.
    """
    out = Path(out)
    check_out(out, resume)
    _check_codes(train, "training", SHORTEST)
    _check_codes(validation, "validation", SHORTEST_VALIDATED)
    if len(dims := {codes.shape[1] for codes in (*train, *validation)}) > 1:
        raise TiplError(f"The codes of the trials differ in size, {sorted(dims)}; give one d for all.")
    if scales is None:
        scales = [np.ones(codes.shape[1]) for codes in (*train, *validation)]
    assert [scale.shape for scale in scales] == [codes.shape[1:] for codes in (*train, *validation)], "[D] a trial"
    facts = {
        "config": dataclasses.asdict(config),
        "codes": {
            "basis": dict(basis or {}),
            "sha256": _digest([*train, *validation, *scales]),
            "trials": dict(trials or {}),
        },
    }

    def task(worker: Worker) -> NextCode:
        return NextCode(train, validation, scales, config, basis or {}, worker)

    train_task(task, config, out, facts, progress=progress, write=write, device=device)
    return load(out)


def fit_causal(
    train: Sequence[Lessons],
    validation: Sequence[Lessons],
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    trials: Mapping[str, Any] | None = None,
    progress: bool = True,
    write: Write = lambda name, value, step: None,
    device: Device = "cpu",
) -> CausalTIPL:
    """Train the causal model on the windows of one or several stores. Otherwise as `fit`.

    Args:
        train: one of `Lessons` a store: `TrainingWindows`, or `WindowFiles` whose number is bounded by the disk.
        validation: likewise.
    """
    out = Path(out)
    check_out(out, resume)
    digest = hashlib.sha256(b"".join(map(_identity, (*train, *validation)))).hexdigest()
    facts = {"config": dataclasses.asdict(config), "codes": {"sha256": digest, "trials": dict(trials or {})}}

    def task(worker: Worker) -> Displacements:
        return Displacements(train, validation, config, worker)

    train_task(task, config, out, facts, progress=progress, write=write, device=device)
    return CausalTIPL.load(out)


def train_task(
    make: Callable[[Worker], Task],
    config: TrainConfig,
    out: Path,
    facts: dict[str, Any],
    *,
    progress: bool,
    write: Write,
    device: Device = "cpu",
) -> None:
    """Train from the checkpoint in `out`, or from the start, to the last step.

    Args:
        make: the task, its model drawn from torch's generator, which is seeded here.
        facts: the settings and what tells this data from other; kept in the checkpoint and compared with it.
    """
    worker = Worker.of(device, config.batch_size)
    if not worker.is_first:
        progress, write = False, lambda name, value, step: None
    checkpoint = _checkpoint(out, worker)
    if checkpoint is not None:
        _check_same(checkpoint.facts, checkpoint.progress["step"], facts, out)
    worker.wait()  # before the first process writes what the others look for
    # Dropout draws from torch's own generators: leave the caller's as they were.
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        worker.seed(config.seed)
        task = make(worker)
        if progress:
            console.print(f"train: {_size(task.model)}", markup=False)
        training = Training(task, config, out, facts, progress, write, worker)
        if checkpoint is None:
            worker.copy_from_first([*task.model.state_dict().values()])
            training.write_checkpoint()
        else:
            training.restore(checkpoint)
        if not worker.is_first:  # its own dropout
            own = np.random.SeedSequence([config.seed, worker.rank, training.step])
            worker.seed(int(own.generate_state(1)[0]))
        training.run()
    worker.wait()  # for the model's files


def _checkpoint(out: Path, worker: Worker) -> Checkpoint | None:
    """What to go on from. One process alone sets a damaged checkpoint aside, and begins anew: to the same model."""
    if not os.path.lexists(out / CHECKPOINT_FILE):
        return None
    try:
        return Checkpoint.read(out)
    except Damaged as error:
        if worker.ranks > 1:
            raise
        console.print(f"train: {error} It is now {set_aside(out / CHECKPOINT_FILE)}; training begins anew.")
        return None


def check_out(out: Path, resume: bool) -> None:
    """Raises TiplError if `out` holds a model or a checkpoint that training would overwrite."""
    if out.exists() and not out.is_dir():
        raise TiplError(f"{out} is a file; give --out a folder.")
    require_no_store_above(out)
    if (out / CHECKPOINT_FILE).exists():
        if not resume:
            raise TiplError(f"{out} holds a training already; pass --resume to go on with it, or give another --out.")
    elif resume and any(out.glob(f"{CHECKPOINT_FILE}.damaged*")):
        return  # stopped after it had set the checkpoint aside
    elif (out / WEIGHTS_FILE).exists() or (out / CONFIG_FILE).exists():
        raise TiplError(f"{out} holds a model without a checkpoint to go on from; give another --out.")


def _check_codes(sequences: Sequence[np.ndarray], kind: str, shortest: int) -> None:
    if not sequences:
        raise TiplError(f"There is no {kind} trial; collect more trials.")
    for number, codes in enumerate(sequences):
        which = f"{kind} trial {number} (of {len(sequences)}, from 0)"
        if codes.ndim != 2:
            raise TiplError(f"The codes of {which} have shape {codes.shape}; give [T, d].")
        if len(codes) < shortest:
            raise TiplError(f"There are {len(codes)} snapshots in {which}; at least {shortest} are needed.")
        if not np.isfinite(codes).all():
            raise TiplError(f"The codes of {which} are not all finite; verify the data set and fit the SVD again.")


def _check_same(then: Mapping[str, Any], step: int, now: Mapping[str, Any], out: Path) -> None:
    """Raises TiplError unless a training of these facts can go on, as `now`, after so many steps.

    It may be given another number of steps, where the learning rate does not depend on it.
    """
    was, asked = then["config"], now["config"]
    other = [name for name, value in asked.items() if was.get(name) != value]
    if other == ["steps"] and asked["cosine"]:
        raise TiplError(
            f"{out} was begun with steps {was['steps']}, at whose end its learning rate is 0 (cosine); resume with "
            "those, or give another --out."
        )
    if other == ["steps"] and asked["steps"] < step:
        raise TiplError(f"{out} has {step:,} steps already; give --steps {step} or more, or another --out.")
    if other and other != ["steps"]:
        before = ", ".join(f"{name} {was.get(name)}" for name in other)
        raise TiplError(f"{out} was begun with other settings ({before}); resume with those, or give another --out.")
    if then["codes"]["sha256"] != now["codes"]["sha256"]:
        raise TiplError(f"{out} was begun on other codes; resume with those, or give another --out.")


def _size(model: nn.Module) -> str:
    if not isinstance(model, CodeModel):
        return f"{num_parameters(model):,} parameters"
    size = f"{num_parameters(model):,} parameters, layers {model.config.num_layers}, width {model.hidden}"
    if isinstance(model, TIPL):
        return f"{model.title}, {size}"
    with torch.device("meta"):  # shapes alone
        wanted = num_parameters(TIPL(model.config))
    return f"{model.title}, {size}: comes nearest to the {wanted:,} parameters of the TIPL with these settings"


def _identity(windows: Lessons) -> bytes:
    if not isinstance(windows, TrainingWindows):
        return windows.digest
    return _digest([getattr(windows, field.name) for field in dataclasses.fields(windows)]).encode()


def _digest(sequences: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for codes in sequences:
        digest.update(str(codes.shape).encode())
        digest.update(np.ascontiguousarray(codes, np.float32).data)
    return digest.hexdigest()
