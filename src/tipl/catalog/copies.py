"""Stores made of the trials of others: `tipl data merge` and `tipl data export`.

In: stores, or a collection of them.  Out: a new store, or a new collection, which appears whole by one rename.

A trial keeps its seed, its settings and its part of the split, and is known by the store that it was made in: no model
is judged on it that learned from it elsewhere.

Shapes: n snapshots of a chunk, P weights.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from tipl.catalog.card import put_card, read_card, say_missing
from tipl.catalog.compact import EveryNth, copy_trial, say_left_out
from tipl.catalog.manifest import MANIFEST, Collection, data_index, has_manifest
from tipl.checks import AnyPath, Count, Place, Whole, checked_arguments
from tipl.config.presets import CompactConfig
from tipl.errors import TiplError
from tipl.files import PARTIAL, require_no_store_above, told
from tipl.parts import claimed
from tipl.progress import steps_progress
from tipl.remote.mirror import located
from tipl.store import SNAPSHOT_ARRAYS, Store, Trial, create_store
from tipl.store.layout import MADE_STORE
from tipl.store.locks import remove_made
from tipl.store.root import adopt_trials, given_parts, require_same

_NAMED = 8  # trials that a line names at most
_BLOCK = 64  # snapshots, or tokens of iterations, that are compared at once


@checked_arguments
def data_merge(stores: Sequence[Place], out: AnyPath, *, license: str | None = None) -> Path:
    """Make one store of the trials of several that differ in nothing but their seeds.

    A trial that several of them have is taken once where it is the same to the bit. Trials keep their part of the
    split; those of a store that has none to learn from or none to judge by are split anew, together.

    Args:
        stores: two or more; all compact with one error, or none.
        out: the new store.
        license: of the data; default: that of the stores' cards, if they agree. So is the citation.

    Returns:
        `out`.

    Raises:
        TiplError: a store's settings are others, a trial is not complete or another one in two stores, or `out` exists.
    """
    opened = [Store.open(path) for path in stores]
    if len(opened) < 2:
        raise TiplError("Merging takes two stores or more; give the others too.")
    chosen: dict[int, list[Store]] = {}
    for store in opened:
        _require_alike(opened[0], store)
        _require_complete(store, store.seeds)
        for seed in store.seeds:
            chosen.setdefault(seed, []).append(store)
    if not chosen:
        raise TiplError(f"{opened[0].path} and the others hold no trials; collect some first.")
    for seed, having in chosen.items():
        for other in having[1:]:
            _require_same_trial(having[0], other, seed)
    parts = _parts(chosen)
    cards = [read_card(store.path) for store in opened]
    said = {key: {card.get(key) for card in cards} for key in ("license", "citation")}
    agreed = {key: each.pop() for key, each in said.items() if len(each) == 1} | (
        {"license": license} if license else {}
    )
    origins = {
        seed: tuple(dict.fromkeys(i for s in having for i in s.origins(seed))) for seed, having in chosen.items()
    }
    trials = [having[0].trial(seed) for seed, having in sorted(chosen.items())]
    with new_stores(Path(out)) as partial:
        _copy(trials, partial, parts, origins, opened[0].compact_error, "merge")
        names = " ".join(store.name for store in opened)
        name = Path(out).resolve().name
        missing = put_card(partial, name=name, made_by=f"tipl data merge {names}", **agreed)
    say_missing(Path(out), missing)
    return Path(out)


@checked_arguments
def data_export(
    address: Place,
    out: AnyPath,
    *,
    trials: Sequence[Whole] = (),
    environments: Sequence[str] = (),
    every: Count = 1,
    compact: CompactConfig | None = None,
) -> Path:
    """Write part of a store, or of a collection, as a new one.

    Args:
        address: a store, or a collection with a manifest.
        out: the new store; of a collection a new collection, whose stores keep their names.
        trials: seeds of the trials to take; none: all.
        environments: ids of the environments to take; none: all.
        every: take every n-th snapshot, from the first on.
        compact: round the weights, and how finely (`tipl data compact`).

    Returns:
        `out`.

    Raises:
        TiplError: nothing is left to write, a trial is not complete, a compact store is to be compacted, or `out`
            exists.
    """
    path, target = located(address), Path(out)
    if not has_manifest(path):
        store = Store.open(path)
        seeds = _chosen(store, trials, environments)
        _require_seeds(store, seeds, trials, environments)
        with new_stores(target) as partial:
            missing = _export(store, seeds, partial, every, compact, target.resolve().name)
        say_missing(target, missing)
        return target
    collection = Collection.open(path)
    names = sorted({
        row["store"] for row in collection.rows
        if (not environments or row["environment"] in environments) and (not trials or row["seed"] in trials)
    })  # fmt: skip
    if not names:
        raise TiplError(
            f"{path} has nothing with these trials and environments; `tipl data list {path}` shows what is."
        )
    with new_stores(target, names) as partial:
        for name in names:
            store = collection.store(name)
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            _export(store, _chosen(store, trials, environments), partial / name, every, compact, None)
        data_index(partial)
    return target


def _chosen(store: Store, trials: Sequence[int], environments: Sequence[str]) -> list[int]:
    return [
        seed for seed in store.seeds
        if (not trials or seed in trials) and (not environments or str(store.trial(seed).env_id) in environments)
    ]  # fmt: skip


def _require_seeds(store: Store, seeds: Sequence[int], trials: Sequence[int], environments: Sequence[str]) -> None:
    missing = sorted(set(trials) - set(store.seeds))
    if missing:
        store.trial(missing[0])  # says which there are
    if not seeds:
        where = f" in {', '.join(environments)}" if environments else ""
        raise TiplError(f"{store.path} has no trials{where}; `tipl data info {store.path}` shows what it has.")


def _export(
    store: Store, seeds: Sequence[int], out: Path, every: int, compact: CompactConfig | None, name: str | None
) -> list[str]:
    _require_complete(store, seeds)
    if compact and store.compact_error is not None:
        raise TiplError(f"{store.path} is compact already; leave --compact out.")
    trials = [EveryNth(store.trial(seed), every) if every > 1 else store.trial(seed) for seed in seeds]
    parts, origins = {seed: store.root.parts[seed] for seed in seeds}, {seed: store.origins(seed) for seed in seeds}
    _copy(trials, out, parts, origins, compact.error if compact else store.compact_error, f"export {store.name}")
    card = read_card(store.path)
    kept = {key: card.get(key) for key in ("license", "citation")}
    flags = f" --every {every}" * (every > 1) + (f" --compact --error {compact.error}" if compact else "")
    made_by = f"{card['made_by']}; " if card.get("made_by") else ""
    name = name or card.get("name") or store.name
    return put_card(out, name=name, made_by=f"{made_by}tipl data export {store.name}{flags}", **kept)


def _copy(
    trials: Sequence[Trial], out: Path, parts: Mapping[int, str], origins: Mapping[int, tuple[str, ...]],
    error: float | None, label: str,
) -> None:  # fmt: skip
    create_store(out, error)
    adopt_trials(out, parts, origins)
    say_left_out(trials, error)
    with steps_progress(label, sum(trial.committed for trial in trials)) as advance:
        for trial in trials:
            for count in copy_trial(trial, out, error):
                advance(count, f"trial {trial.seed}")


@contextlib.contextmanager
def new_stores(out: Path, names: Sequence[str] = (".",)) -> Iterator[Path]:
    """Yield a place beside `out` to make these stores in, which then appears as `out` by one rename.

    Where that fails nothing is left of it; what a killed one left is removed, if this program made all that is there.

    Raises:
        TiplError: something is at `out`, or in the way, or another process makes it.
    """
    if os.path.lexists(out):
        raise TiplError(f"{out} exists already; give another --out.")
    require_no_store_above(out)
    partial = out.with_name(out.name + PARTIAL)
    above = {str(place) for name in names for place in (PurePosixPath(name), *PurePosixPath(name).parents)} - {"."}
    made = "|".join([
        *map(re.escape, above), re.escape(MANIFEST),
        *(MADE_STORE if name == "." else f"{re.escape(name)}/(?:{MADE_STORE})" for name in names),
    ])  # fmt: skip
    with claimed(partial) as ours:
        if not ours:
            raise TiplError(f"{out} is being made by another process; wait for it, or give another --out.")
        remove_made(partial, made)
        try:
            with told(out):
                yield partial
                os.rename(partial, out)
        except BaseException:
            with contextlib.suppress(TiplError, OSError):
                remove_made(partial, made)
            raise


def _require_alike(first: Store, other: Store) -> None:
    """Raises TiplError where two stores' trials cannot lie in one."""
    if first.compact_error != other.compact_error:
        words = ["not compact" if each is None else f"compact, error {each}" for each in
                 (first.compact_error, other.compact_error)]  # fmt: skip
        raise TiplError(
            f"{first.path} is {words[0]} and {other.path} is {words[1]}; run `tipl data compact` on the other first."
        )
    if first.root.configuration and other.root.configuration:
        require_same(first.path, first.root.configuration, other.root.configuration)


def _require_complete(store: Store, seeds: Sequence[int]) -> None:
    unfinished = sorted(set(seeds) & set(store.incomplete))
    if unfinished:
        raise TiplError(
            f"{store.path} has trials that are not complete: {_few(unfinished)}; finish them, or export the others by "
            "--trials."
        )


def _require_same_trial(one: Store, other: Store, seed: int) -> None:
    """Raises TiplError where two stores have different trials of a seed, or the same one in different parts."""
    a, b = one.trial(seed), other.trial(seed)
    facts = "committed", "committed_episodes", "grid", "num_tokens", "committed_tokens"
    same = all(getattr(a, fact) == getattr(b, fact) for fact in facts)
    same = same and all(
        np.array_equal(x, y, equal_nan=True)
        for x, y in zip(
            [*(getattr(a, name) for name in SNAPSHOT_ARRAYS[1:]), *a.episodes],
            [*(getattr(b, name) for name in SNAPSHOT_ARRAYS[1:]), *b.episodes], strict=True,
        )
    )  # fmt: skip
    if (
        not same
        or not _same_rows(a.weights, b.weights, a.committed)
        or not _same_rows(a.tokens, b.tokens, a.committed_tokens)
    ):
        raise TiplError(
            f"Trial {seed} of {one.path} and that of {other.path} differ, and a store has one trial of a seed; export "
            "the others of one of them by --trials, and merge these."
        )
    parts = one.root.parts[seed], other.root.parts[seed]
    if parts[0] != parts[1] and _is_split(one) and _is_split(other):
        raise TiplError(
            f"Trial {seed} is a {parts[0]} trial of {one.path} and a {parts[1]} trial of {other.path}; leave it out of "
            "one of them: `tipl data export … --trials`."
        )


def _same_rows(a: Callable[[int, int], np.ndarray], b: Callable[[int, int], np.ndarray], count: int) -> bool:
    """Whether two trials have the same rows of an array, to the bit; a block at a time."""
    blocks = ((start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))
    return all(a(*block).tobytes() == b(*block).tobytes() for block in blocks)


def _is_split(store: Store) -> bool:
    """Whether anything can be learned from a store: that takes trials to learn from and others to judge by. A shard's
    store knows the parts of all trials, also of those that other shards have."""
    return {"train", "test"} <= {*store.root.parts.values()}


def _parts(chosen: Mapping[int, Sequence[Store]]) -> dict[int, str]:
    """Trials keep their part of the split, but for those that were made in a store which is not split: nothing can have
    been learned from one."""
    kept = {
        seed: store.root.parts[seed]
        for seed, having in chosen.items() for store in having
        if _is_split(store) or seed in store.root.origins
    }  # fmt: skip
    return kept | given_parts([*kept.values()], sorted(set(chosen) - set(kept))) if set(chosen) - set(kept) else kept


def _few(seeds: Sequence[int]) -> str:
    more = len(seeds) - _NAMED
    return ", ".join(map(str, seeds[:_NAMED])) + (f" and {more} more" if more > 0 else "")
