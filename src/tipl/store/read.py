"""The reading side of a data set: its trials, read only, up to their last commits, and their split.

In: a store's path.  Out: snapshots, episodes and what belongs to them as numpy arrays.

Shapes: T snapshots, P weights, E episodes, J context tokens, obs the size of an observation.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from tipl.checks import Count, Place, checked
from tipl.config.env_spec import EnvId, env_id_of
from tipl.errors import TiplError
from tipl.files import Damaged
from tipl.progress import console
from tipl.remote.mirror import bring, drop, located, original, told_by_address
from tipl.store.arrays import ArrayReader
from tipl.store.history import BEGINNING, History, beginning_of, epoch_indices
from tipl.store.layout import EPISODE_ARRAYS, MOST_BYTES, TOKENS, Record, checkpoint_path, fetch_rows, trial_path
from tipl.store.records import root_and_records
from tipl.store.root import PARTS, Root, has_grown
from tipl.store.spec import ParamSpec

if TYPE_CHECKING:
    from tipl.store.policy import Policy

_LOOKS = 4  # at a store that others are writing, before it is called damaged


@dataclass(frozen=True)
class Split:
    """Seeds of the trials to fit on, to choose by and to judge by."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


class Episodes(NamedTuple):
    """A trial's episodes in the order in which they ended."""

    step: np.ndarray
    """[E] int64, environment steps of the trial when the episode ended."""
    episode_return: np.ndarray
    """[E] float64, undiscounted sum of raw rewards."""
    length: np.ndarray
    """[E] int32, in environment steps."""


class Store:
    """The reading side of a data set: its trials as they were when it was opened."""

    def __init__(self, path: Path, root: Root, records: Mapping[int, Record]) -> None:
        self.path = path
        self.root = root
        self.id = root.id
        """Random, made with the store and kept by its copies: names and places of folders change."""
        self.ids = (root.id,) if root.made_of is None else (root.id, root.made_of)
        """Its own id, and of a compact store that of the one it was made of. See `known_as` for single trials."""
        self.compact_error = root.compact_error
        """What a compact store was asked for, see catalog/compact.py; None of any other."""
        self.missing = sorted(set(root.trials) - set(records))
        """Trials that the store has had and that were taken away since, sorted."""
        self.records = records

    @classmethod
    def open(cls, path: Place) -> Self:
        """Read the record of every trial, and nothing else.

        Of a store that lies elsewhere (hf://USER/NAME, s3://…, https://…), the root, and the records of trials that
        are not complete; what is read later is fetched then, and kept in TIPL_CACHE.

        Raises:
            TiplError: there is no store, it cannot be reached, is of another version, or a record is damaged.
        """
        path = located(checked("The store", path, Place))
        with told_by_address(path):
            for _ in range(_LOOKS - 1):
                with contextlib.suppress(Damaged):  # or a writer has moved on between the root and a record
                    return cls(path, *root_and_records(path))
                drop(path / "zarr.json")
            return cls(path, *root_and_records(path))

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.resolve().name

    @property
    def seeds(self) -> list[int]:
        """The trials with at least one committed snapshot, sorted."""
        return sorted(self.records)

    def trial(self, seed: int) -> "Trial":
        """Return the trial of this seed.

        Raises:
            TiplError: nothing of that trial is committed.
        """
        seed = checked("`seed`", seed, int)
        if seed not in self.records:
            have = ", ".join(map(str, self.seeds)) or "none yet"
            raise TiplError(f"{original(self.path)} has no trial {seed}; it has: {have}.")
        return Trial(trial_path(self.path, seed), self.records[seed])

    def origins(self, seed: int) -> tuple[str, ...]:
        """Return the ids of the stores in which a trial was made: this one's, unless it was copied from others."""
        return self.root.origins_of(seed)

    def known_as(self, seed: int) -> frozenset[str]:
        """Return the ids of stores that a trial may be remembered by: with one in common, trials of a seed are one."""
        return frozenset((*self.ids, *self.origins(seed)))

    @property
    def incomplete(self) -> list[int]:
        """The trials among `seeds` that have not been written to their ends, or have since been given a later one."""
        bring((trial_path(self.path, seed) / "zarr.json" for seed in self.seeds), MOST_BYTES)
        return [seed for seed in self.seeds if not self.is_complete(seed)]

    def is_complete(self, seed: int) -> bool:
        """Return whether a trial has all the steps that the store's trials are to have."""
        record, shared = self.records[seed], self.root.configuration
        return record.complete and not (shared and has_grown(record.configuration, shared))

    def split(self) -> Split:
        """Return the split: each trial was given its part before it began, and keeps it (`plan_trials`).

        Says on the terminal which trials are not complete, or were taken away.

        Raises:
            TiplError: there are no trials to fit on, or none to judge by.
        """
        split = Split(*(tuple(seed for seed in self.seeds if self.root.parts[seed] == part) for part in PARTS))
        if not split.train or not split.test:
            raise TiplError(
                f"{self.path} has {len(split.train)} trial(s) to train on and {len(split.test)} to test; a split "
                "takes one of each at least: collect more trials."
            )
        for seeds, what in ((self.incomplete, "not complete"), (self.missing, "no longer there")):
            if seeds:
                _say_once(f"{self.path}: of its trials {', '.join(map(str, seeds))} are {what}.")
        return split


@cache
def _say_once(line: str) -> None:
    console.print(line)


def _stored(name: str) -> "cached_property[np.ndarray]":
    """An array of a trial, read when it is first asked for."""
    return cached_property(lambda trial: trial._read(name))


class Trial:
    """One trial, read only, up to the snapshots that were committed when the store was opened.

    Every read raises TiplError where a chunk is missing or fails its checksum.
    """

    def __init__(self, path: Path, record: Record) -> None:
        self._path = path
        self._record = record
        self._layouts = record.layouts()
        self._arrays: dict[str, ArrayReader] = {}
        self.seed = record.seed
        self.config = record.config
        self.spec = ParamSpec.from_json(record.param_spec)
        self.versions = record.versions
        self.committed = record.committed
        self.committed_episodes = record.committed_episodes
        self.complete = record.complete
        self.obs_dim = record.obs_dim
        self.compact = record.compact
        self.grid = record.grid
        """Of the weights of a compact store, all of them multiples of this power of two."""
        self.num_tokens = record.num_tokens
        """J, context tokens of an iteration; 0 where there are none."""
        self.committed_tokens = record.rows(TOKENS)
        """Iterations whose tokens are committed."""

    @property
    def has_checkpoint(self) -> bool:
        """Whether what it takes to go on with the trial is there."""
        bring([path := checkpoint_path(self._path, self._record)])
        return path.is_file()

    def weights(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return snapshots start … stop - 1, float32 [n, P]; reads only the chunks that hold them.

        Raises:
            TiplError: there are no such snapshots, or a chunk is damaged.
        """
        first = checked("`start`", start, int)
        end = checked("`stop`", self.committed if stop is None else stop, int)
        if not 0 <= first <= end <= self.committed:
            raise TiplError(
                f"Trial {self.seed} has snapshots 0 to {self.committed - 1}, not {first} to {end - 1}; ask for those."
            )
        return self._read("weights", first, end)

    def tokens(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the context tokens at the ends of iterations start + 1 … stop, float32 [n, J, P].

        `tipl.rl.context` says what they are. Only the chunks that hold them are read.

        Raises:
            TiplError: the trial has no tokens, or none of such iterations, or a chunk is damaged.
        """
        if not self.num_tokens:
            raise TiplError(f"Trial {self.seed} holds no context tokens; collect with --context.")
        first = checked("`start`", start, int)
        end = checked("`stop`", self.committed_tokens if stop is None else stop, int)
        if not 0 <= first <= end <= self.committed_tokens:
            raise TiplError(
                f"Trial {self.seed} has the tokens of iterations 1 to {self.committed_tokens}, not {first + 1} to "
                f"{end}; ask for those."
            )
        return self._read(TOKENS, first, end)

    def history(self, origin: int, context: int | None = None) -> History:
        """Return what a forecaster is shown at an origin; where the trial has context tokens, also those of the last
        iteration that had ended by then, zeros before the first.

        Args:
            origin: the number of the last snapshot it sees.
            context: how many snapshots it takes (`forecaster.context`); None: all up to the origin.

        Raises:
            TiplError: there is no such snapshot.
        """
        origin, context = self._checked_origin(origin), checked("`context`", context, Count | None)
        first = 0 if context is None else max(0, origin + 1 - context)
        count = int(self.epoch_index.max()) + 1 or None
        tokens_JP = self.tokens_at(origin) if self.num_tokens else None
        weights_nP = self.weights(first, origin + 1)
        return History(self.seed, origin, weights_nP, int(self.epoch_index[origin]), count, tokens_JP)

    def _checked_origin(self, origin: int) -> int:
        origin = checked("`origin`", origin, int)
        if not 0 <= origin < self.committed:
            raise TiplError(f"Trial {self.seed} has snapshots 0 to {self.committed - 1}; {origin} is none of them.")
        return origin

    def tokens_at(self, origin: int) -> np.ndarray:
        """Return the context tokens [J, P] that are known at a snapshot: those of the last iteration that had ended,
        zeros before the first had.

        Args:
            origin: the number of the snapshot.

        Raises:
            TiplError: the trial has no tokens, there is no such snapshot, or a chunk is damaged.
        """
        origin = self._checked_origin(origin)
        ended = int(self.iterations_ended[origin])
        if self.num_tokens and not ended:
            return np.zeros((self.num_tokens, self.spec.size), np.float32)
        return self.tokens(ended - 1, ended)[0]

    @cached_property
    def iterations_ended(self) -> np.ndarray:
        """[T], how many iterations had ended at each snapshot of a trial with tokens, by its epoch: of a copy of every
        n-th snapshot the last of an iteration may be missing."""
        is_last_T = np.equal(self.epoch, self._record.update_epochs or 0)
        return np.where(is_last_T, self.iteration, np.maximum(self.iteration - 1, 0))

    def policy(self, t: int) -> "Policy":
        """Return the policy at snapshot t with its normalizer: `actions = trial.policy(t)(observations)`.

        Raises:
            TiplError: there is no such snapshot, or the network of this trial is not known.
        """
        from tipl.store.policy import policy_of

        t = checked("`t`", t, int)
        weights_1P = self.weights(t, t + 1)
        what = f"trial {self.seed}'s policies"
        return policy_of(self.config, self.spec.unflatten(weights_1P[0]), self.obs_mean[t], self.obs_var[t], what)

    @cached_property
    def beginning(self) -> str | None:
        """What this run is known by wherever it is made again, see `beginning_of`."""
        return beginning_of(self.weights(0, min(self.committed, BEGINNING)))

    @cached_property
    def env_id(self) -> EnvId:
        """The environment's id, a string that knows what else makes the environment.

        Raises:
            TiplError: the record says no such thing.
        """
        return env_id_of(self._record.env_id, self.config)

    env_step = _stored("env_step")
    """[T] int64, environment steps before each snapshot."""
    iteration = _stored("iteration")
    """[T] int32, the iteration that made each snapshot; 0 for the initialization."""

    @cached_property
    def epoch_index(self) -> np.ndarray:
        """[T], how many snapshots of the same iteration come before each; φ_0 stands where an iteration ends.

        -1 everywhere where the trial has no iterations.
        """
        return epoch_indices(np.asarray(self.iteration))

    epoch = _stored("epoch")
    """[T] int32, update epochs done in that iteration."""
    learning_rate = _stored("learning_rate")
    """[T] float64."""
    obs_mean = _stored("obs_mean")
    """[T, obs] float64, of the normaliser that belongs to each snapshot."""
    obs_var = _stored("obs_var")
    """[T, obs] float64."""
    obs_count = _stored("obs_count")
    """[T] float64."""

    @cached_property
    def episodes(self) -> Episodes:
        """Steps, returns and lengths [E] of the episodes that ended by the last commit.

        Raises:
            TiplError: a chunk is damaged.
        """
        return Episodes(*(self._read(name) for name in EPISODE_ARRAYS))

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        rows, path, layout = self._record.rows(name), self._path / name, self._layouts[name]
        stop = rows if stop is None else stop
        fetch_rows(path, layout, rows, start, stop)
        try:
            if name not in self._arrays:
                self._arrays[name] = ArrayReader(path, layout, rows, self._record.sums(name))
            return self._arrays[name].read(start, stop)
        except TiplError as error:
            drop(path)
            raise Damaged(f"{original(path)} is damaged ({error}); `tipl data verify` lists what is.") from error
