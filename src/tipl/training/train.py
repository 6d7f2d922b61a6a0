"""The verb `train`: what of a store may be learned from, by which model.

In: one or several stores; TrainConfig.  Out: a trained model in its folder.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tipl.checks import AnyPath, Place, checked_arguments
from tipl.collection.tracking import tracked
from tipl.config.presets import Device, SVDConfig, TrainConfig
from tipl.errors import TiplError
from tipl.models import CausalTIPL
from tipl.progress import console
from tipl.remote.mirror import located
from tipl.representation import Codes, fit_svd
from tipl.store import Split, Store
from tipl.training.devices import Worker, process_group
from tipl.training.fitting import SHORTEST, SHORTEST_VALIDATED, check_out, fit, fit_causal
from tipl.training.lessons import lessons
from tipl.training.loop import Write

CODES_FOLDER = "codes"
VALIDATED = 2000
"""Origins of each store at which the causal model is validated, if it learns from as many."""


@checked_arguments
def train(
    store: Place | Sequence[Place],
    out: AnyPath,
    config: TrainConfig = TrainConfig(),
    svd: SVDConfig = SVDConfig(),
    *,
    codes: AnyPath | None = None,
    validation: Place | Sequence[Place] = (),
    resume: bool = False,
    track: str | None = None,
    device: Device = "cpu",
) -> Path:
    """Train a model on the training trials of a store; choose it on the validation trials; leave the test trials be.

    Under `torchrun` all processes share every batch, and the first one alone writes.

    Args:
        store: the data set. The causal model learns from several at once, of any environments and policies.
        out: the model's folder, made if missing.
        config, svd: the model and its training, and the basis of its codes.
        codes: what `fit-svd` wrote for this store; without it the SVD `svd` is fitted to `out`/codes. The causal
            model takes none.
        validation: stores of other environments, on all of whose trials the causal model is chosen. It then learns from
            the validation trials of `store`, too.
        resume: go on from the checkpoint in `out`, to more steps than it was begun with if `config` says so and its
            learning rate does not depend on their number (`cosine`).
        track: where the curves go, as in `collect`.
        device: that the model, its batches and its data are on.

    Returns:
        `out`.

    Raises:
        TiplError: the store, the codes, `out` or the device cannot be used as they are, nothing was overwritten; or
            what tracks the curves is not installed.
    """
    stores, choosing = _located(store), _located(validation)
    out = Path(out)
    codes = None if codes is None else Path(codes)
    if not stores:
        raise TiplError("There is nothing to learn from; give a store.")
    check_out(out, resume)
    with process_group(device):
        worker = Worker.of(device, config.batch_size)
        with tracked(track if worker.is_first else None, facts=dataclasses.asdict(config)) as write:
            if config.model == CausalTIPL.kind:
                if codes is not None:
                    raise TiplError(
                        "--codes has no effect on the causal model, which learns from weights; leave it out."
                    )
                _train_causal(stores, choosing, out, config, resume, write, device)
            elif choosing:
                raise TiplError(
                    "--validation is for --model causal; the others are chosen on their own store's trials."
                )
            elif len(stores) > 1:
                raise TiplError(f"--model {config.model} learns from one store; only --model causal takes several.")
            else:
                _train_on_codes(stores[0], out, config, svd, codes, resume, write, device)
    return out


def _located(places: Place | Sequence[Place]) -> list[Path]:
    return [located(each) for each in ([places] if isinstance(places, str | os.PathLike) else places)]


def _train_causal(
    stores: Sequence[Path],
    choosing: Sequence[Path],
    out: Path,
    config: TrainConfig,
    resume: bool,
    write: Write,
    device: Device,
) -> None:
    """Learn from `stores`; choose on `choosing`, or, without any, on the validation trials of `stores`."""
    if choosing:
        splits = {store: Store.open(store).split() for store in stores}
        parts = {store: Split((*split.train, *split.validation), (), ()) for store, split in splits.items()}
        parts |= {store: Split((), _every_trial(store), ()) for store in choosing}
    else:
        parts = {store: _split(store) for store in stores}
    _require_different([*stores, *choosing])
    worker = Worker.of(device, config.batch_size)
    few = min(config.windows, VALIDATED)
    learned = {store: part.train for store, part in parts.items() if part.train}
    chosen = {store: part.validation for store, part in parts.items() if part.validation}
    train = lessons(learned, config.windows, config, worker, noise=config.noise > 0)
    validation = lessons(chosen, few, config, worker)
    trials = {"stores": [row for store, part in parts.items() for row in _learned_from(store, part)]}
    fit_causal(train, validation, config, out, resume=resume, trials=trials, write=write, device=device)


def _require_different(stores: Sequence[Path]) -> None:
    """
    Raises:
        TiplError: a trial would be learned from twice.
    """
    given: dict[tuple[str, int], Path] = {}
    for path in stores:
        store = Store.open(path)
        names = [(one, seed) for seed in store.seeds for one in store.known_as(seed)]
        twice = next((name for name in names if name in given), None)
        if twice:
            raise TiplError(
                f"{path} is {given[twice]} again, or a copy of it; give it once (both have the trial {twice[1]})."
            )
        given |= dict.fromkeys(names, path)


def _split(store: Path) -> Split:
    """The split of a store that can be learned from.

    Raises:
        TiplError: it has no validation trial.
    """
    split = Store.open(store).split()
    if not split.validation:
        raise TiplError(f"{store} has {len(split.train)} training trial(s) and none to validate; collect 3 or more.")
    return split


def _every_trial(store: Path) -> tuple[int, ...]:
    """
    Raises:
        TiplError: it has none.
    """
    seeds = tuple(Store.open(store).seeds)
    if not seeds:
        raise TiplError(f"{store} holds no trial to choose the model by; collect one, or give another --validation.")
    return seeds


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


def _learned_from(store: Path, split: Split) -> list[dict[str, Any]]:
    """What a model remembers of a store, so that it is never judged on trials that it has seen: these, by the ids of
    the stores that they were made in, which are others where trials were compacted, merged or exported, and by how they
    begin, which is the same where a run is made again.
    """
    data = Store.open(store)
    env_id = str(data.trial((*split.train, *split.validation)[0]).env_id)
    made_in = dict.fromkeys(one for seed in (*split.train, *split.validation) for one in data.origins(seed))
    return [
        {
            "id": one,
            "name": data.name,
            "env_id": env_id,
            "train": [seed for seed in split.train if one in data.origins(seed)],
            "validation": [seed for seed in split.validation if one in data.origins(seed)],
            "beginnings": sorted(
                beginning
                for seed in (*split.train, *split.validation)
                if one in data.origins(seed) and (beginning := data.trial(seed).beginning)
            ),
        }
        for one in made_in
    ]


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
        trials={"codes": str(codes), "stores": _learned_from(store, split)},
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
