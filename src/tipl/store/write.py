"""The writing side of a data set: a store is made, a trial is appended to, committed and gone on with.

In: snapshots, episodes and checkpoints of a running trial.  Out: chunks, then the checkpoint, then the record.

Shapes: T snapshots, P weights, J context tokens, obs the size of an observation, n what is appended at once.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy

from tipl.checks import AnyPath, Place, Positive, checked_arguments, is_address
from tipl.errors import TiplError
from tipl.files import replace_file, require_no_store_above
from tipl.remote.working import TrialThere, working_copy
from tipl.store.arrays import MADE, ArrayWriter, create_array
from tipl.store.layout import (
    COMPACT_VERSION,
    CONTEXT_VERSION,
    EPISODE_ARRAYS,
    EVERY_ARRAY,
    FORMAT_VERSION,
    MADE_TO_RESUME,
    SNAPSHOT_ARRAYS,
    TOKENS,
    Record,
    array_layout,
    array_sizes,
    checkpoint_path,
    checksum_of,
    group,
    keeps_nothing,
    leftovers,
    read_checkpoint,
    to_resume,
    trial_path,
    trials_path,
    write_group,
)
from tipl.store.locks import lock_trial, make_folder, remove_made, unlock, writing
from tipl.store.read import Store
from tipl.store.records import record_left, require_no_commits
from tipl.store.root import (
    Root,
    as_json,
    bring_record,
    change_root,
    forget_trial,
    is_begun,
    list_trials,
    listed,
    make_root,
    new_root,
    plan_trials,
    tidy,
)
from tipl.store.spec import ParamSpec


@checked_arguments
def create_store(path: Place, compact_error: Positive | None = None, made_of: Store | None = None) -> Store:
    """Return a new store, or the one that is there already.

    Args:
        path: its folder, or s3://BUCKET/NAME.
        compact_error: make a compact store (see catalog/compact.py).
        made_of: the store whose trials this one is to hold in another form; they keep their parts of the split.

    Raises:
        TiplError: something else is there, a store of the other kind for one, or the disk does not take it.
    """
    place, path = path, working_copy(path)
    elsewhere = is_address(place)
    require_no_store_above(path, itself=False)
    with writing(path):
        if elsewhere or not ((path / "zarr.json").exists() and (path / "trials" / "zarr.json").exists()):
            begun = elsewhere or not path.exists() or is_begun(path)
            if not begun and not (path / "zarr.json").exists():  # asked last: another process may be making it
                raise TiplError(f"{path} exists and is not a tipl store; choose another path or remove it.")
            path.mkdir(parents=True, exist_ok=True)
            make_root(path, new_root(compact_error, made_of.root if made_of else None))
        store = Store.open(place)
        if not elsewhere:
            for record in store.records.values():
                tidy(path, record)
        if listed(store.root, store.records) != store.root:  # a writer was stopped before the root, or is about there
            change_root(path, lambda root: listed(root, Store.open(place).records))
            store = Store.open(place)
        if store.compact_error is not None and compact_error is None:
            raise TiplError(f"{path} is a compact store and takes no new trials; give the path of another store.")
        if store.compact_error != compact_error:
            what = f"a compact store of error {store.compact_error}" if store.compact_error else "not a compact store"
            raise TiplError(f"{path} is {what}, not one of error {compact_error}; give another --out.")
        if compact_error is not None and store.root.format_version != COMPACT_VERSION:
            raise TiplError(f"{path} is a compact store of format version 2; give another --out.")
        if made_of is not None and store.root.made_of != made_of.root.source:
            raise TiplError(f"{path} was made of another store than {made_of.path}; give another --out.")
    return store


class TrialWriter:
    """Writes one trial, in commits; nothing that was appended is safe before its commit.

    One process writes a trial at a time. After a TiplError a writer is of no more use: go on with `resume`. Leaving
    a `with` block, or `close`, frees the trial for others and commits nothing.
    """

    def __init__(self, store: Path, record: Record, lock: int, there: TrialThere | None) -> None:
        self._store, self._path = store, trial_path(store, record.seed)
        self._record, self._there = record, there
        self._listed = False
        self._arrays = {
            name: ArrayWriter(self._path / name, layout, record.rows(name), record.sums(name))
            for name, layout in record.layouts().items()
        }
        self._unlock = weakref.finalize(self, unlock, lock)  # at the latest when nobody has the writer any more

    @classmethod
    def create(
        cls,
        store_path: AnyPath,
        seed: int,
        *,
        env_id: str,
        config: dict[str, Any],
        spec: ParamSpec,
        versions: dict[str, str],
        obs_dim: int,
        num_snapshots: int | None,
        chunk_snapshots: int | None = None,
        grid: float | None = None,
        num_tokens: int = 0,
    ) -> Self:
        """Begin a trial in an existing store. What an earlier writer left without any commit is removed.

        Args:
            env_id, spec: what its policies act in, and the names and shapes of their tensors.
            config: everything that made the trial, as JSON.
            versions: of the libraries that made it, by name.
            obs_dim: numbers of an observation, flat.
            num_snapshots: T where it is known; otherwise arrays grow, and shrink to size when the trial is complete.
            chunk_snapshots: snapshots in a chunk of `weights`; by default up to 5 MiB, at most 512.
            grid: of the weights of a compact store, all of them multiples of this power of two.
            num_tokens: J, context tokens of an iteration (`append_tokens`); then `config` is that of a PPO run.

        Raises:
            TiplError: no store there, the trial has committed snapshots, another process writes it, or a full disk.
        """
        plan_trials(store_path, [seed], env_id=env_id, config=config, spec=spec)
        store = working_copy(store_path)
        path = trial_path(store, seed)
        there = TrialThere.of(path)
        if there is None:
            require_no_commits(store, seed)
        with writing(path), contextlib.ExitStack() as on_failure:
            if there is None and seed in Root.read(store).trials:
                forget_trial(store, seed)
            for folder in (trials_path(store), path, path / "resume"):
                make_folder(folder)
            lock = lock_trial(path)
            on_failure.callback(unlock, lock)
            if there:
                bring_record(store, seed, there)
            require_no_commits(store, seed)  # now nobody else commits
            for name in EVERY_ARRAY:
                remove_made(path / name, MADE)
            write_group(path / "resume", {})
            room, chunk_rows = array_sizes(array_layout(spec.size, obs_dim, num_tokens), num_snapshots, chunk_snapshots)
            version = CONTEXT_VERSION if num_tokens else FORMAT_VERSION if grid is None else COMPACT_VERSION
            record = Record(
                format_version=version, store=Root.read(store).id, seed=int(seed), env_id=env_id,
                config=as_json(config), param_spec=spec.to_json(), versions=versions, obs_dim=obs_dim,
                chunk_rows=chunk_rows, grid=grid, committed=0, committed_episodes=0, complete=False, commits=0,
                checkpoint_crc32c=0, checksums={name: [0, 0] for name in chunk_rows}, writer=there and there.writer,
                context={"tokens": num_tokens, "rows": 0} if num_tokens else None,
            )  # fmt: skip
            assert not num_tokens or (grid is None and record.update_epochs), "tokens are of exact runs of PPO"
            for name, layout in record.layouts().items():
                create_array(path / name, layout, room[name])
            write_group(path, record.attributes())
            if there:
                there.put_record()
            writer = cls(store, record, lock, there)
            on_failure.pop_all()
            return writer

    @classmethod
    def resume(cls, store_path: AnyPath, seed: int) -> tuple[Self, dict[str, np.ndarray]]:
        """Cut a trial back to what was committed and go on writing it.

        Returns:
            The writer and the checkpoint that was committed with the last snapshot.

        Raises:
            TiplError: nothing was committed, the trial is complete and was given no more steps, another process
                writes it, or what is needed to go on is damaged.
        """
        store = working_copy(store_path)
        path = trial_path(store, seed)
        there = TrialThere.of(path)
        with writing(path), contextlib.ExitStack() as on_failure:
            if there:
                for folder in (store / "trials", path):
                    make_folder(folder)
            else:
                record_left(store, seed)
            make_folder(path / "resume")
            lock = lock_trial(path)
            on_failure.callback(unlock, lock)
            if there:
                bring_record(store, seed, there)
            record, config = record_left(store, seed)  # now nobody else commits
            reopened = dataclasses.replace(record, complete=False, config=config, writer=there and there.writer)
            try:
                if there:
                    there.bring(to_resume(record))
                checkpoint = safetensors.numpy.load(read_checkpoint(path, record))
                for leftover in leftovers(path, record):
                    leftover.unlink()
                if record.complete:
                    list_trials(store, [reopened])
                writer = cls(store, reopened, lock, there)
            except (TiplError, safetensors.SafetensorError) as error:
                raise TiplError(
                    f"{path} cannot be gone on with ({error}); its {record.committed} snapshots stay readable, or "
                    "remove it and begin that trial anew."
                ) from error
            if there:  # from now on every other writer fails
                write_group(path, dataclasses.replace(record, writer=there.writer).attributes())
                there.put_record()
            on_failure.pop_all()
            return writer, {name: np.array(value) for name, value in checkpoint.items()}

    @property
    def committed(self) -> int:
        """Snapshots that are safe."""
        return self._record.committed

    @property
    def appended(self) -> int:
        """Snapshots given so far, committed or not."""
        return self._arrays["weights"].rows

    def append(
        self,
        weights_TP: np.ndarray,
        env_step: np.ndarray,
        iteration: np.ndarray,
        epoch: np.ndarray,
        learning_rate: np.ndarray,
        obs_mean: np.ndarray,
        obs_var: np.ndarray,
        obs_count: np.ndarray,
    ) -> None:
        """Add n snapshots. Full chunks are written.

        Args:
            weights_TP: [n, P], float32.
            env_step: [n], environment steps of the run when the snapshot was taken.
            iteration, epoch: [n], of PPO, from 1, after which it was taken; 0 of the initialization.
            learning_rate: [n], of the steps that led to it.
            obs_mean, obs_var, obs_count: [n, obs], [n, obs] and [n], of the observation normalizer.

        Raises:
            TiplError: the disk is full.
        """
        rows = weights_TP, env_step, iteration, epoch, learning_rate, obs_mean, obs_var, obs_count
        self._append(SNAPSHOT_ARRAYS, rows)

    def append_episodes(self, step: np.ndarray, episode_return: np.ndarray, length: np.ndarray) -> None:
        """Add n episodes in the order in which they ended: [n] each.

        Args:
            step: environment steps of the run by the end.
            episode_return: undiscounted sums of raw rewards.
            length: in environment steps.

        Raises:
            TiplError: the disk is full.
        """
        self._append(EPISODE_ARRAYS, (step, episode_return, length))

    def append_tokens(self, tokens_nJP: np.ndarray) -> None:
        """Add the context tokens of n iterations to a trial that was begun with `num_tokens`.

        Args:
            tokens_nJP: [n, J, P], float32.

        Raises:
            TiplError: the disk is full.
        """
        self._append((TOKENS,), (tokens_nJP,))

    def commit(
        self,
        checkpoint: Mapping[str, np.ndarray],
        complete: bool = False,
        compact: dict[str, Any] | None = None,
        may_grow: bool = False,
    ) -> None:
        """Make everything appended so far safe, together with what resuming from here takes.

        Writes the last chunk of every array anew, so it costs some milliseconds, and for large P as much as packing
        one chunk of `weights`: commit every few seconds, not every snapshot.

        Args:
            checkpoint: all that the rest of the trial depends on. A complete trial keeps none, unless it may grow.
            complete: the trial has ended; the writer is closed.
            compact: of a compact store, what becomes the trial's attribute of that name.
            may_grow: the complete trial may be given more steps (`plan_trials`) and be gone on with.

        Raises:
            TiplError: the disk is full; the commit before stays.
        """
        assert self._unlock.alive, "the writer is closed"
        # safetensors writes an array's memory as it lies and takes it for C order.
        data = safetensors.numpy.save({name: np.asarray(value, order="C") for name, value in checkpoint.items()})
        with writing(self._path):
            sums = {name: [*array.flush(exact=complete)] for name, array in self._arrays.items()}
            context = self._record.context and {**self._record.context, "rows": self._arrays[TOKENS].rows}
            record = dataclasses.replace(
                self._record, committed=self.appended, committed_episodes=self._arrays["episode_step"].rows,
                complete=complete, commits=self._record.commits + 1, checkpoint_crc32c=checksum_of(data),
                checksums=sums, compact=compact, writer=None if complete else self._record.writer, context=context,
            )  # fmt: skip
            if may_grow or not complete:
                replace_file(checkpoint_path(self._path, record), data)
            record = dataclasses.replace(record, seal=write_group(self._path, record.attributes()))
            if self._there:
                self._there.send()
            before, self._record = self._record, record
            if complete or not self._listed:
                list_trials(self._store, [record])
                self._listed = True
            if not complete or may_grow:
                checkpoint_path(self._path, before).unlink(missing_ok=True)
            if self._there:
                ended = ["resume/zarr.json"] if complete and not may_grow else []
                self._there.forget([f"resume/{before.commits}.safetensors", *ended])
            if complete:
                self.close()

    def close(self) -> None:
        """Free the trial for other writers."""
        if self._unlock.alive:
            try:
                if self._there:
                    self._leave(self._there)
                if keeps_nothing(self._path, self._record):
                    with writing(self._path):
                        remove_made(self._path / "resume", MADE_TO_RESUME)
            finally:
                self._unlock()

    def _leave(self, there: TrialThere) -> None:
        """Say there that nobody is writing the trial, unless another is."""
        if self._record.complete:
            there.empty()
        elif not there.lost:
            with contextlib.suppress(TiplError):  # others wait a little longer then
                there.put_record(group(dataclasses.replace(self._record, writer=None).attributes()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, names: tuple[str, ...], values: tuple[np.ndarray, ...]) -> None:
        assert self._unlock.alive, "the writer is closed"
        assert len({len(value) for value in values}) == 1, [len(value) for value in values]
        with writing(self._path):
            for name, value in zip(names, values, strict=True):
                self._arrays[name].append(value)
