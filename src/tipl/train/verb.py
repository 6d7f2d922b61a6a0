"""The verb `train`, and `fit`, the function behind it: what may be learned from, and what may be gone on with.

In: a store, or sequences of codes [T, D]; TrainConfig.  Out: a trained model in its folder.

Shapes: T snapshots, D code.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tipl.errors import TiplError
from tipl.model import CONFIG_FILE, TIPL, WEIGHTS_FILE, CodeModel, load, num_parameters
from tipl.presets import SVDConfig, TrainConfig
from tipl.progress import console, scalars
from tipl.representation import Codes, fit_svd
from tipl.store import Store
from tipl.train.loop import CHECKPOINT_FILE, SKILL_HORIZONS, Checkpoint, Training, Write
from tipl.train.next_code import NextCode

CODES_FOLDER = "codes.zarr"


def train(
    store: Path,
    out: Path,
    config: TrainConfig = TrainConfig(),
    svd: SVDConfig = SVDConfig(),
    *,
    codes: Path | None = None,
    resume: bool = False,
    tensorboard: Path | None = None,
) -> Path:
    """Train a model on the training trials of a store; choose it on the validation trials; leave the test trials be.

    Args:
        store: the data set.
        out: the model's folder, made if missing.
        codes: what `fit-svd` wrote for this store; without it the SVD `svd` is fitted to `out`/codes.zarr.
        resume: go on from the checkpoint in `out`.
        tensorboard: also write the curves there, for TensorBoard.

    Returns:
        `out`.

    Raises:
        TiplError: the store, the codes or `out` cannot be used as they are, nothing was overwritten; or TensorBoard is
            asked for and not installed.
    """
    store, out = Path(store), Path(out)
    check_out(out, resume)
    split = Store.open(store).split()
    with scalars(tensorboard) as write:
        if codes is None:
            codes = out / CODES_FOLDER
            console.print(
                f"train: no --codes given, so takes those of a temporal SVD ({svd.basis}, d = {svd.dim}) in {codes}"
            )
            fit_svd(store, codes, svd)
        opened = _open_codes(codes, store, [*split.train, *split.validation])
        where = {"store": str(store), "codes": str(codes)}
        fit(
            [opened.codes(seed) for seed in split.train],
            [opened.codes(seed) for seed in split.validation],
            config,
            out,
            resume=resume,
            scales=[opened.basis(seed).scale_D for seed in split.validation],
            basis=dataclasses.asdict(opened.config),
            trials={**where, "train": [*split.train], "validation": [*split.validation]},
            write=write,
        )
    return out


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
) -> CodeModel:
    """Train TIPL, or the rival that `config.model` names, on sequences of codes.

    Every `config.validate_every` steps, and after the last one, the model is measured on the validation trials, kept
    in `out` if it is the best so far, and the state of the training is written beside it. The best model is the one
    with the highest skill ten codes ahead: that is the forecast that the paper makes, and unlike the loss it counts
    the errors that autoregression piles up. On one machine, with as many threads, the same input gives the same model
    to the bit, however often the training was stopped and resumed.

    Args:
        train: one array [T, D] a training trial; T ≥ 2 may differ.
        validation: likewise, T > 10.
        out: the folder, made if missing.
        resume: go on from the checkpoint in `out`, if there is one.
        scales: the singular values [D] of each validation trial, by which its skill is measured in weights (a code
            times these is a displacement in orthonormal directions); without them in codes, each dimension alike.
        basis: the SVDConfig that made the codes, as a dict; kept in the model's config.
        trials: where the sequences come from; kept in the curve's file.
        progress: show progress on standard error.
        write: takes the points of the curves as they come; `progress.scalars` makes one for TensorBoard.

    Returns:
        The best model, in eval mode, as read back from `out`.

    Raises:
        TiplError: codes that cannot be learned from, a folder that is in use, a checkpoint of another config or of
            other codes, or a loss that is no longer finite.
        KeyboardInterrupt: after the step in hand, with a checkpoint from which `resume` goes on.
    """
    out = Path(out)
    check_out(out, resume)
    _check_codes(train, "training", shortest=2)
    _check_codes(validation, "validation", shortest=SKILL_HORIZONS[-1] + 1)
    if len(dims := {codes.shape[1] for codes in (*train, *validation)}) > 1:
        raise TiplError(f"The codes of the trials differ in size, {sorted(dims)}; give one d for all.")
    if scales is None:
        scales = [np.ones(codes.shape[1]) for codes in validation]
    assert [scale.shape for scale in scales] == [codes.shape[1:] for codes in validation], "one scale [D] a trial"
    facts = {
        "config": dataclasses.asdict(config),
        "codes": {
            "basis": dict(basis or {}),
            "sha256": _digest([*train, *validation, *scales]),
            "trials": dict(trials or {}),
        },
    }
    checkpoint = None
    if (out / CHECKPOINT_FILE).exists():
        checkpoint = Checkpoint.read(out)
        _check_same(checkpoint.facts, facts, out)
    with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator: leave the caller's as it was
        torch.default_generator.manual_seed(config.seed)
        task = NextCode(train, validation, scales, config, basis or {})
        if progress:
            console.print(f"train: {_size(task.model)}", markup=False)
        training = Training(task, config, out, facts, progress, write)
        if checkpoint is None:
            training.write_checkpoint()
        else:
            training.restore(checkpoint)
        training.run()
    return load(out)


def check_out(out: Path, resume: bool) -> None:
    """Raises TiplError if `out` holds a model or a checkpoint that training would overwrite."""
    if out.exists() and not out.is_dir():
        raise TiplError(f"{out} is a file; give --out a folder.")
    if (out / CHECKPOINT_FILE).exists():
        if not resume:
            raise TiplError(f"{out} holds a training already; pass --resume to go on with it, or give another --out.")
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


def _check_same(then: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    was = {"model": TIPL.kind, **then["config"]}  # there was no other kind when settings did not name it
    before = [f"{name} {was.get(name)}" for name, value in now["config"].items() if was.get(name) != value]
    if before:
        raise TiplError(
            f"{out} was begun with other settings ({', '.join(before)}); resume with those, or give another --out."
        )
    if then["codes"]["sha256"] != now["codes"]["sha256"]:
        raise TiplError(f"{out} was begun on other codes; resume with those, or give another --out.")


def _size(model: CodeModel) -> str:
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
        digest.update(np.ascontiguousarray(codes, np.float32).tobytes())
    return digest.hexdigest()
