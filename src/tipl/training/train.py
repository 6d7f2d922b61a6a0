"""The verb `train`, and `fit`, the function behind it: what may be learned from, and what may be gone on with.

In: a store, or sequences of codes [T, D]; TrainConfig.  Out: a trained model in its folder.

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

from tipl.checks import AnyPath, checked_arguments
from tipl.config.presets import Device, SVDConfig, TrainConfig
from tipl.errors import TiplError
from tipl.files import Damaged, require_no_store_above, set_aside
from tipl.models import CONFIG_FILE, TIPL, WEIGHTS_FILE, CausalTIPL, CodeModel, load, num_parameters
from tipl.progress import console, scalars, steps_progress
from tipl.representation import Codes, fit_svd
from tipl.representation.windows import TrainingWindows, joined, training_windows
from tipl.store import Split, Store
from tipl.training.devices import Worker, process_group
from tipl.training.displacement import Displacements
from tipl.training.loop import CHECKPOINT_FILE, SKILL_HORIZONS, Checkpoint, Task, Training, Write
from tipl.training.next_code import NextCode

CODES_FOLDER = "codes"
SHORTEST, SHORTEST_VALIDATED = 2, SKILL_HORIZONS[-1] + 1
"""Snapshots that a training and a validation trial have at least, where a model learns from codes."""
VALIDATED = 2000
"""Origins of each store at which the causal model is validated, if it learns from as many."""


@checked_arguments
def train(
    store: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    config: TrainConfig = TrainConfig(),
    svd: SVDConfig = SVDConfig(),
    *,
    codes: AnyPath | None = None,
    resume: bool = False,
    tensorboard: AnyPath | None = None,
    device: Device = "cpu",
) -> Path:
    """Train a model on the training trials of a store; choose it on the validation trials; leave the test trials be.

    Under `torchrun` all processes share every batch, and the first one alone writes.

    Args:
        store: the data set. The causal model learns from several at once, of any environments and policies.
        out: the model's folder, made if missing.
        codes: what `fit-svd` wrote for this store; without it the SVD `svd` is fitted to `out`/codes. The causal
            model takes none.
        resume: go on from the checkpoint in `out`, to more steps than it was begun with if `config` says so and its
            learning rate does not depend on their number (`cosine`).
        tensorboard: also write the curves there, for TensorBoard.
        device: that the model, its batches and its data are on.

    Returns:
        `out`.

    Raises:
        TiplError: the store, the codes, `out` or the device cannot be used as they are, nothing was overwritten; or
            TensorBoard is asked for and not installed.
    """
    stores, out = [Path(store)] if isinstance(store, str | os.PathLike) else [Path(each) for each in store], Path(out)
    codes = None if codes is None else Path(codes)
    if not stores:
        raise TiplError("There is nothing to learn from; give a store.")
    check_out(out, resume)
    with process_group(device):
        worker = Worker.of(device, config.batch_size)
        with scalars(Path(tensorboard) if tensorboard is not None and worker.is_first else None) as write:
            if config.model == CausalTIPL.kind:
                if codes is not None:
                    raise TiplError(
                        "--codes has no effect on the causal model, which learns from weights; leave it out."
                    )
                _train_causal(stores, out, config, resume, write, device)
            elif len(stores) > 1:
                raise TiplError(f"--model {config.model} learns from one store; only --model causal takes several.")
            else:
                _train_on_codes(stores[0], out, config, svd, codes, resume, write, device)
    return out


def _train_causal(
    stores: Sequence[Path], out: Path, config: TrainConfig, resume: bool, write: Write, device: Device
) -> None:
    splits = [_split(store) for store in stores]
    ids = [Store.open(store).ids[-1] for store in stores]
    for number, store in enumerate(stores):
        if ids[number] in ids[:number]:
            raise TiplError(f"{store} is {stores[ids.index(ids[number])]} again, or a copy of it; give it once.")
    pairs = [*zip(stores, splits, strict=True)]
    train = [_training_windows(store, split.train, config.windows, config.seed) for store, split in pairs]
    few = min(config.windows, VALIDATED)
    validation = [_training_windows(store, split.validation, few, config.seed) for store, split in pairs]
    trials = {"stores": [_learned_from(store, split) for store, split in pairs]}
    fit_causal(train, validation, config, out, resume=resume, trials=trials, write=write, device=device)


def _split(store: Path) -> Split:
    """The split of a store that can be learned from.

    Raises:
        TiplError: it has no validation trial.
    """
    split = Store.open(store).split()
    if not split.validation:
        raise TiplError(f"{store} has {len(split.train)} training trial(s) and none to validate; collect 3 or more.")
    return split


def _check_lengths(store: Path, split: Split) -> None:
    """Raises TiplError where a trial is too short for models over codes, before an SVD is fitted."""
    data = Store.open(store)
    for seeds, shortest in ((split.train, SHORTEST), (split.validation, SHORTEST_VALIDATED)):
        for seed in seeds:
            count = data.trial(seed).committed
            if count < shortest:
                raise TiplError(
                    f"Trial {seed} of {store} has {count} snapshots; at least {shortest} are needed: collect longer "
                    "trials."
                )


def _learned_from(store: Path, split: Split) -> dict[str, Any]:
    """What a model remembers of a store, so that it is never judged on trials that it has seen.

    Of a compact store the id is that of the one it was made of: they have the same trials.
    """
    seen = {"train": [*split.train], "validation": [*split.validation]}
    data = Store.open(store)
    env_id = str(data.trial(split.train[0]).env_id)
    return {"id": data.ids[-1], "name": data.name, "env_id": env_id, **seen}


def _training_windows(store: Path, seeds: Sequence[int], origins: int, seed: int) -> TrainingWindows:
    """Windows of these trials at about `origins` origins in all."""
    data, parts = Store.open(store), []
    with steps_progress(f"train: windows of {store.name}", len(seeds)) as advance:
        for number in seeds:
            trial, rng = data.trial(number), np.random.default_rng([seed, number])
            parts.append(training_windows(trial, -(-origins // len(seeds)), rng))
            advance(1, "")
    return joined(parts)


def _train_on_codes(
    store: Path,
    out: Path,
    config: TrainConfig,
    svd: SVDConfig,
    codes: Path | None,
    resume: bool,
    write: Write,
    device: Device,
) -> None:
    split, worker = _split(store), Worker.of(device, config.batch_size)
    _check_lengths(store, split)
    if codes is None:
        codes = out / CODES_FOLDER
        if worker.is_first:
            console.print(
                f"train: no --codes given, so takes those of a temporal SVD ({svd.basis}, d = {svd.dim}) in {codes}"
            )
            fit_svd(store, codes, svd)
        worker.wait()
    opened = _open_codes(codes, store, [*split.train, *split.validation])
    fit(
        [opened.codes(seed) for seed in split.train],
        [opened.codes(seed) for seed in split.validation],
        config,
        out,
        resume=resume,
        scales=[opened.basis(seed).scale_D for seed in (*split.train, *split.validation)],
        basis=dataclasses.asdict(opened.config),
        trials={"codes": str(codes), "stores": [_learned_from(store, split)]},
        write=write,
        device=device,
    )


def _open_codes(path: Path, store: Path, seeds: Sequence[int]) -> Codes:
    """Codes that a model can learn these trials from.

    Raises:
        TiplError: they are of another store, lack a trial, or have a code for every origin instead of every snapshot.
    """
    codes = Codes.open(path)
    if codes.context is not None:
        raise TiplError(
            f"{path} is of the {codes.config.basis} basis, in which a snapshot has another code at every origin; "
            "models learn from one code a snapshot: fit the full or the pooled basis."
        )
    missing = sorted(set(seeds) - set(codes.seeds))
    if missing or codes.store != store.resolve():
        what = f"lacks trials {missing} of {store}" if missing else f"is of {codes.store}, not of {store}"
        raise TiplError(f"{path} {what}; run `tipl fit-svd` on this store.")
    return codes


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
        write: takes the points of the curves as they come; `progress.scalars` makes one for TensorBoard.
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
    train: Sequence[TrainingWindows],
    validation: Sequence[TrainingWindows],
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
        train: one `TrainingWindows` a store.
        validation: likewise.
    """
    out = Path(out)
    check_out(out, resume)
    arrays = [getattr(each, field.name) for each in (*train, *validation) for field in dataclasses.fields(each)]
    facts = {
        "config": dataclasses.asdict(config),
        "codes": {"sha256": _digest(arrays), "trials": dict(trials or {})},
    }

    def task(worker: Worker) -> Displacements:
        return Displacements(train, validation, config, worker)

    train_task(task, config, out, facts, progress=progress, write=write, device=device)  # pyright: ignore[reportArgumentType]
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


def _digest(sequences: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for codes in sequences:
        digest.update(str(codes.shape).encode())
        digest.update(np.ascontiguousarray(codes, np.float32).data)
    return digest.hexdigest()
