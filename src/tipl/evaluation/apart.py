"""Decide which trials are judged, and hold them apart from all that a model or a baseline has learned from.

In: stores, models' folders, EvaluateConfig.  Out: a `Plan`, or a TiplError that names what was learned from.

A trial is known by its store's id and its seed, wherever the store's folder lies and whatever it is called; one that
was copied (compacted, merged, exported) by the id of the store that it was made in, too. Two stores can also hold the
same runs without one being made of the other: runs of one seed and the same settings whose weights agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tipl.config.presets import EvaluateConfig
from tipl.errors import TiplError
from tipl.forecasting.baselines import Source
from tipl.forecasting.learned import Learned, learned_by, named_trials, require_unseen
from tipl.forecasting.shipped import model_name
from tipl.store import Store, Trial
from tipl.store.root import NO_SETTINGS

_SAME_RUN = 0.05  # of the length of φ: a compact store's rounding is far below it, other runs are far above


@dataclass(frozen=True)
class Plan:
    """Who is judged, and who was learned from."""

    data: Store
    trials: tuple[Trial, ...]
    """That are judged."""
    sources: tuple[Source, ...]
    """That baselines are fitted on and chosen by; none: only those without a fit are judged."""
    kind: str
    """test, all or training: which trials these are."""
    models: Mapping[str, tuple[Learned, ...] | None]
    """By model, what it has learned from; None: it does not say."""

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(trial.seed for trial in self.trials)

    def facts(self) -> dict[str, Any]:
        """For metrics.json: what the numbers are of, and that nothing judged was learned from."""
        names = {
            name: None if parts is None else [part.facts() for part in parts] for name, parts in self.models.items()
        }
        return {
            "store_id": self.data.id,
            "judged": self.kind,
            "fitted_on": [
                {"store": str(source.store.path), "ids": list(source.store.ids),
                 "train": [trial.seed for trial in source.train], "validation": [trial.seed for trial in source.judges]}
                for source in self.sources
            ],
            "learned_from": names,
            "incomplete_trials": self.data.incomplete,
        }  # fmt: skip


def plan(data: Store, config: EvaluateConfig, models: Sequence[Path] = (), fit: Sequence[Path] = ()) -> Plan:
    """Choose the trials to judge, and what baselines are fitted on.

    Args:
        models: their folders.
        fit: other stores to fit the baselines on; every trial of `data` is then judged.

    Raises:
        TiplError: a store is empty or mixes settings, too few trials are there to split, or something that is judged
            was learned from.
    """
    require_alike(data)
    knowing = {str(model): learned_by(model) for model in models}
    if config.seen and (config.all or fit):
        raise TiplError(f"--seen judges training trials of the store itself; leave out {'--fit' if fit else '--all'}.")
    if fit or config.all:
        sources = tuple(_source(Store.open(path)) for path in fit)
        seeds, kind, advice = tuple(data.seeds), "all", "judge the test trials alone: leave out --all and --fit"
    else:
        split = data.split()
        sources = (Source(data, _trials(data, split.train), _trials(data, split.validation)),)
        seeds = split.train[-len(split.test) :] if config.seen else split.test
        kind, advice = "training" if config.seen else "test", "judge it on other trials, or on seen ones by --seen"
    if not config.seen:
        for model, parts in knowing.items():
            require_unseen(data, seeds, model, parts, advice)
        for source in sources:
            _require_apart(data, seeds, source)
    named = {model_name(Path(model)): parts for model, parts in knowing.items()}
    return Plan(data, _trials(data, seeds), sources, kind, named)


def require_alike(data: Store) -> None:
    """One environment, one policy and one configuration a store: nothing here can be averaged over two.

    Raises:
        TiplError: it holds no trial, or its trials differ in one of them.
    """
    if not data.seeds:
        raise TiplError(f"{data.path} holds no trial that was committed; collect some first.")
    trials = _trials(data, data.seeds)
    for what, found in (
        ("environment", {trial.env_id.label for trial in trials}),
        ("number of weights", {trial.spec.size for trial in trials}),
    ):
        if len(found) > 1:
            raise TiplError(
                f"The trials of {data.path} differ in their {what} ({', '.join(map(str, sorted(found)))}); "
                "give each its own store."
            )
    first = trials[0]
    for other in trials[1:]:
        differing = [
            name for name in {**first.config, **other.config}
            if name != "seed" and _settings(first.config.get(name)) != _settings(other.config.get(name))
        ]  # fmt: skip
        if differing:
            raise TiplError(
                f"Trials {first.seed} and {other.seed} of {data.path} were made with different settings "
                f"({', '.join(sorted(differing)[:8])}); give each its own store."
            )


def _settings(value: Any) -> Any:
    """A setting without what is another's in every trial, or was found out about its environment, at any depth."""
    if not isinstance(value, dict):
        return value
    return {name: _settings(each) for name, each in value.items() if name not in NO_SETTINGS}


def _source(store: Store) -> Source:
    require_alike(store)
    split = store.split()
    return Source(store, _trials(store, split.train), _trials(store, split.validation))


def _trials(data: Store, seeds: Sequence[int]) -> tuple[Trial, ...]:
    return tuple(data.trial(seed) for seed in seeds)


def _require_apart(data: Store, seeds: Sequence[int], source: Source) -> None:
    """
    Raises:
        TiplError: a trial that baselines are fitted on or chosen by is judged, in this store or in a copy of it.
    """
    fitted = {trial.seed: trial for trial in (*source.train, *source.judges)}
    both = [
        seed for seed in sorted(set(seeds) & set(fitted))
        if data.known_as(seed) & source.store.known_as(seed) or _is_same_run(data.trial(seed), fitted[seed])
    ]  # fmt: skip
    if both:
        raise TiplError(
            f"{named_trials(both).capitalize()} of {data.path} would be judged, and the baselines are fitted on the "
            f"same of {source.store.path}; judge trials that nothing was fitted on: collect some with another --seed."
        )


def _is_same_run(one: Trial, other: Trial) -> bool:
    if str(one.env_id) != str(other.env_id) or one.spec.shapes != other.spec.shapes or one.config != other.config:
        return False
    last = min(one.committed, other.committed)
    a, b = (trial.weights(last - 1, last)[0].astype(np.float64) for trial in (one, other))
    return bool(np.linalg.norm(a - b) <= _SAME_RUN * np.linalg.norm(a))
