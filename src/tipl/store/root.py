"""The root of a store: its id, what made all of its trials, and the part of the split that each belongs to.

In: a store's path; the settings and seeds of trials that are to be written.  Out: the root's attributes.

The root is changed under a lock, so that any number of processes may write trials of one store.
"""

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from tipl.checks import AnyPath
from tipl.errors import TiplError
from tipl.files import Absent, Damaged, parse_json
from tipl.remote.working import TrialThere, address_of, bring_root, replaced_there, working_copy
from tipl.shapes import Each, Maybe, Number, OneOf, Whole, leaves
from tipl.store.layout import (
    COMPACT_VERSION,
    CONFIGURATION,
    FORMAT_VERSION,
    MADE_TO_RESUME,
    MOST_SEED,
    Record,
    group,
    is_seed,
    keeps_nothing,
    read_group,
    read_record,
    trial_path,
    write_group,
)
from tipl.store.locks import Held, is_folder, lock_trial, locked_file, make_folder, remove_made, unlock, writing
from tipl.store.spec import ParamSpec

PARTS = ("train", "validation", "test")
_SHARES = {"train": 1 - 1 / 8 - 1 / 5, "validation": 1 / 8, "test": 1 / 5}
_ID = "[0-9a-f]{32}"
_GROWS = "total_steps"  # the one setting of a trial that may become larger
_NAMED = 4  # settings that a refusal names at most
LEASE_SECONDS = 150.0
"""After the last commit to an object store, how long its writer is taken to be alive: two commits and some."""


_SHAPE = {
    "format": OneOf("tipl"),
    "format_version": OneOf(FORMAT_VERSION, COMPACT_VERSION),
    "id": str,
    "made_of": Maybe(str),
    "compact_error": Maybe(Number(0, 1)),
    "configuration": Maybe(CONFIGURATION),
    "split": {part: [Whole(0, MOST_SEED)] for part in PARTS},
    "trials": Each((None, str)),
    "origins": Maybe(Each([str])),
}


@dataclass(frozen=True)
class Root:
    """The attributes of a store's root."""

    id: str
    """Random, made with the store: what a model remembers of the stores that it learned from."""
    made_of: str | None = None
    """Of a compact store, the id of the store whose trials it holds."""
    compact_error: float | None = None
    """What a compact store was asked for, see catalog/compact.py; None of any other."""
    format_version: int = FORMAT_VERSION
    configuration: dict[str, Any] | None = None
    """env_id, config and param_spec, which all trials of a store share; None before its first trial."""
    parts: Mapping[int, str] = field(default_factory=dict)
    """By seed, "train", "validation" or "test": of trials that were begun, or are about to be."""
    trials: Mapping[int, str | None] = field(default_factory=dict)
    """The trials with a commit, and of those that are complete the seal of their record: none can get lost unseen."""
    origins: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Of trials that were copied from other stores, the ids of those that they were made in."""

    def origins_of(self, seed: int) -> tuple[str, ...]:
        """The ids of the stores that a trial was made in: what a model remembers of it."""
        return self.origins.get(seed, (self.source,))

    @property
    def source(self) -> str:
        """The id of the store whose trials these are: of what a compact store was made of, otherwise its own."""
        return self.made_of or self.id

    @classmethod
    def read(cls, store: Path) -> Self:
        """
        Raises:
            TiplError: there is no store of this version, or its root is damaged.
        """
        try:
            attributes = read_group(store, _SHAPE)
        except Absent:
            what = "is not a tipl store" if store.exists() else "does not exist"
            raise TiplError(f"{store} {what}; make a store with `tipl collect`.") from None
        root = cls(
            parts={seed: part for part in PARTS for seed in attributes["split"][part]},
            trials={int(seed) if is_seed(seed) else -1: seal for seed, seal in attributes["trials"].items()},
            id=attributes["id"],
            format_version=attributes["format_version"],
            made_of=attributes.get("made_of"),
            compact_error=attributes.get("compact_error"),
            configuration=attributes.get("configuration"),
            origins={
                int(seed) if is_seed(seed) else -1: tuple(ids) for seed, ids in attributes.get("origins", {}).items()
            },
        )
        ids = [root.id, root.source, *(each for seed in root.origins for each in root.origins[seed] or ("",))]
        twice = len(root.parts) < sum(map(len, attributes["split"].values()))
        if (
            twice
            or (root.trials.keys() | root.origins.keys()) - root.parts.keys()
            or not all(re.fullmatch(_ID, each) for each in ids)
        ):
            raise Damaged(f"{store / 'zarr.json'} contradicts itself; bring it back from a copy.")
        return root

    def write(self, store: Path) -> None:
        optional = {name: getattr(self, name) for name in ("made_of", "compact_error", "configuration")}
        attributes = {
            "format": "tipl",
            "format_version": self.format_version,
            "id": self.id,
            **{name: value for name, value in optional.items() if value is not None},
            "split": {part: sorted(seed for seed in self.parts if self.parts[seed] == part) for part in PARTS},
            "trials": {str(seed): self.trials[seed] for seed in sorted(self.trials)},
            **(
                {"origins": {str(seed): [*self.origins[seed]] for seed in sorted(self.origins)}} if self.origins else {}
            ),
        }
        write_group(store, attributes)


def new_root(compact_error: float | None, made_of: Root | None) -> Root:
    """The root of a new store; with `made_of` one that holds the trials of that store, in the same parts."""
    source = {} if made_of is None else {"made_of": made_of.source, "parts": made_of.parts, "origins": made_of.origins}
    version = FORMAT_VERSION if compact_error is None else COMPACT_VERSION
    return Root(id=secrets.token_hex(16), compact_error=compact_error, format_version=version, **source)


def known_root(store: Path) -> Root:
    """Return the root as it is now; of a working copy, there.

    Raises:
        TiplError: there is no store, or its root is damaged.
    """
    if address_of(store):
        with locked(store):
            bring_root(store / "zarr.json")
    return Root.read(store)


def is_begun(path: Path) -> bool:
    """Whether a folder holds nothing but what the making of a store leaves when it is killed."""
    if not path.is_dir() or not {entry.name for entry in path.iterdir()} <= {"zarr.json.partial", "trials"}:
        return False
    trials = path / "trials"
    return not is_folder(trials) or {entry.name for entry in trials.iterdir()} <= {"zarr.json"}


def locked(store: Path) -> AbstractContextManager[None]:
    """Keep other writers from a store's root. The lock is on a file that is written once and never replaced."""
    make_folder(store / "trials")
    return locked_file(store / "trials" / "zarr.json", group({}))


def change_root(store: Path, change: Callable[["Root"], "Root"]) -> None:
    """Replace the root by what `change` makes of it, which no other writer replaces meanwhile."""

    def changed() -> bool:
        root = Root.read(store)
        new = change(root)
        if new != root:
            new.write(store)
        return new != root

    write_root(store, changed)


def write_root(store: Path, change: Callable[[], bool]) -> None:
    """Call what writes the root, or returns False, while no other writer does; in an object store until it has come to
    stand there."""
    with locked(store):
        replaced_there(store / "zarr.json", change, store / "trials" / "zarr.json", group({}))


def make_root(store: Path, root: Root) -> None:
    """Write the first root of a store, unless another process has."""

    def made() -> bool:
        missing = not (store / "zarr.json").exists()
        if missing:
            root.write(store)
        return missing

    write_root(store, made)


def list_trials(store: Path, records: Iterable[Record]) -> None:
    """Note in the root that these trials have commits, so that it is seen if one gets lost."""
    found = {record.seed: noted(record) for record in records}
    change_root(store, lambda root: replace(root, trials={**root.trials, **found}))


def listed(root: Root, records: Mapping[int, Record]) -> Root:
    """The root that knows of the commits of a store's trials. Of one whose seal it has, it asks for no record."""
    open_ = [seed for seed in records if root.trials.get(seed) is None]
    return replace(root, trials={**root.trials, **{seed: noted(records[seed]) for seed in open_}})


def adopt_trials(store: Path, parts: Mapping[int, str], origins: Mapping[int, tuple[str, ...]]) -> None:
    """Give trials that are about to be copied from other stores the part of the split that they have there."""
    change_root(store, lambda root: replace(root, parts={**root.parts, **parts}, origins={**root.origins, **origins}))


def bring_record(store: Path, seed: int, there: TrialThere) -> None:
    """Bring the record of a trial from an object store; what its root does not know of it, it is told.

    Raises:
        Held: another process is writing it, or was a moment ago.
    """
    path, ours = trial_path(store, seed), None
    with contextlib.suppress(TiplError):
        before = read_record(path)
        ours = before and before.writer  # a process of this machine, which is over: its lock is free
    there.bring_record()
    root, record = known_root(store), read_record(path)
    if record is None:
        if seed in root.trials:  # all of it was removed there
            change_root(store, lambda root: _without(root, seed))
        return
    if record.writer not in (None, ours) and there.age < LEASE_SECONDS:
        (path / "zarr.json").unlink()  # so that its writer is not taken for one of this machine the next time
        raise Held(
            f"{path} is being written by another process, or by one that was killed {there.age:.0f} s ago; wait, or "
            f"run the same command again after {LEASE_SECONDS - there.age:.0f} s."
        )
    if record.committed and seed not in root.trials:  # its writer was stopped between the two
        list_trials(store, [record])


def tidy(store: Path, record: Record) -> None:
    """Remove what a writer that was stopped after its last commit left in a complete trial."""
    path = trial_path(store, record.seed)
    if keeps_nothing(path, record) and is_folder(path / "resume"):
        with contextlib.suppress(TiplError, FileNotFoundError):  # its writer is alive, and does it
            lock = lock_trial(path)
            try:
                remove_made(path / "resume", MADE_TO_RESUME)
            finally:
                unlock(lock)


def noted(record: Record) -> str | None:
    """Return what the root says of a trial with a commit: the seal of its record, once that is the last."""
    return record.seal if record.complete else None


def forget_trial(store: Path, seed: int) -> None:
    """Take a trial from the root's list whose folder was taken away, so that it may begin anew."""

    def forgotten(root: Root) -> Root:
        return root if is_folder(store / "trials" / str(seed)) else _without(root, seed)

    change_root(store, forgotten)


def _without(root: Root, seed: int) -> Root:
    return replace(root, trials={other: seal for other, seal in root.trials.items() if other != seed})


def plan_trials(
    store: AnyPath, seeds: Iterable[int], *, env_id: str, config: Mapping[str, Any], spec: ParamSpec,
    may_grow: bool = False,
) -> None:  # fmt: skip
    """Say which trials are about to be written, together: a store gives each its part of the split, once and for all.

    Two or more new trials are split among themselves, in the order of seeds: the last fifth to test, the eighth (of
    all) before it to validate. A single one goes to the part that is furthest below its share of the store.

    Args:
        env_id, config, spec: what makes these trials, apart from their seeds; the same for all trials of a store.
        may_grow: `config` may have more total_steps than the store's trials, which are incomplete until they have them.

    Raises:
        TiplError: there is no store, or its trials were made with other settings.
    """
    store, seeds = working_copy(store), [*seeds]
    _require_seeds(seeds)
    wanted = {"env_id": env_id, "config": as_json(config), "param_spec": spec.to_json()}
    with writing(store):
        root = known_root(store)
    new = sorted({int(seed) for seed in seeds} - set(root.parts))
    if root.configuration == wanted and not new:
        return

    def planned(root: Root) -> Root:
        configuration = root.configuration or wanted
        if may_grow and has_grown(configuration, wanted):
            configuration = wanted
        require_same(store, configuration, wanted)
        given = given_parts([*root.parts.values()], [seed for seed in new if seed not in root.parts])
        return replace(root, configuration=configuration, parts={**root.parts, **given})

    with writing(store):
        change_root(store, planned)


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as it reads back from a file.

    Raises:
        TiplError: it does not go into JSON, or holds numbers that are not finite.
    """
    try:
        return parse_json(json.dumps(dict(config), allow_nan=False).encode(), "config")
    except (TypeError, ValueError) as error:
        raise TiplError(f"config does not go into JSON ({error}); give finite numbers, texts, lists, dicts.") from error


def _require_seeds(seeds: Iterable[Any]) -> None:
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MOST_SEED:
            raise TiplError(f"seed is {seed!r}; give a whole number from 0 to {MOST_SEED}.")


def given_parts(taken: Sequence[str], seeds: Sequence[int]) -> dict[int, str]:
    """The parts of new trials, sorted by seed, in a store whose trials have those of `taken`."""
    if len(seeds) == 1:
        return {seeds[0]: _neediest(taken)}
    test = len(seeds) - max(1, len(seeds) // 5)
    validation = test - (max(1, len(seeds) // 8) if len(seeds) >= 3 else 0)
    return {seed: "train" if i < validation else "validation" if i < test else "test" for i, seed in enumerate(seeds)}


def _neediest(taken: Sequence[str]) -> str:
    """The part that is furthest below its share once there is one more trial; first of all, no part stays empty."""
    for part in ("train", "test", "validation"):
        if part not in taken:
            return part
    return max(PARTS, key=lambda part: _SHARES[part] * (len(taken) + 1) - taken.count(part))


def require_same(store: Path, shared: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    before, now = dict(settings(shared)), dict(settings(wanted))
    differing = [
        f"{name} = {_short(before.get(name))}, not {_short(now.get(name))}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]
    if differing:
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        raise TiplError(
            f"{store} holds trials with {'; '.join(differing[:_NAMED])}{more}. A store holds trials that differ in "
            "nothing but their seeds; give another store, or the settings that these were made with."
        )


def has_grown(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether one configuration is another with more total_steps."""
    was, wanted = dict(settings(before)), dict(settings(now))
    steps, more = was.pop(_GROWS, None), wanted.pop(_GROWS, None)
    return was == wanted and isinstance(steps, int) and isinstance(more, int) and steps < more


def settings(configuration: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting by its name, such as ppo.learning_rate; seeds are none."""
    yield "env_id", configuration["env_id"]
    yield from leaves(configuration["config"], skip=NO_SETTINGS)
    yield "parameters", {row["name"]: row["shape"] for row in configuration["param_spec"]}


# Of an environment (env_described.py), what was found out about it, and where.
NO_SETTINGS = ("seed", "module", "probe")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
