"""The root of a store: its id, what made all of its trials, and the part of the split that each belongs to.

In: a store's path; the settings and seeds of trials that are to be written.  Out: the root's attributes.

The root is changed under a lock, so that any number of processes may write trials of one store.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from tipl.errors import TiplError
from tipl.policy import ParamSpec
from tipl.store.files import locked_file
from tipl.store.layout import FORMAT_VERSION, check_root, write_group

PARTS = ("train", "validation", "test")
_SHARES = {"train": 1 - 1 / 8 - 1 / 5, "validation": 1 / 8, "test": 1 / 5}
_MOST_SEED = 2**63 - 1
_NAMED = 4  # settings that a refusal names at most


@dataclass(frozen=True)
class Root:
    """The attributes of a store's root."""

    id: str
    """Random, made with the store: what a model remembers of the stores that it learned from."""
    made_of: str | None = None
    """Of a compact store, the id of the store whose trials it holds."""
    compact_error: float | None = None
    """What a compact store was asked for, see compact.py; None of any other."""
    configuration: dict[str, Any] | None = None
    """env_id, config and param_spec, which all trials of a store share; None before its first trial."""
    parts: Mapping[int, str] | None = None
    """By seed, "train", "validation" or "test": of trials that were begun, or are about to be."""

    @classmethod
    def read(cls, store: Path) -> Self:
        """
        Raises:
            TiplError: there is no store of this version, or its root is damaged.
        """
        attributes = check_root(store)
        try:
            parts = {int(seed): part for part in PARTS for seed in attributes["split"][part]}
            return cls(
                id=_identity(attributes["id"]), made_of=_identity(attributes.get("made_of")),
                compact_error=attributes.get("compact_error"), configuration=attributes.get("configuration"),
                parts=parts,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise TiplError(f"{store / 'zarr.json'} is damaged ({error}); bring it back from a copy.") from error

    def write(self, store: Path) -> None:
        split = {part: sorted(seed for seed in self.parts or {} if (self.parts or {})[seed] == part) for part in PARTS}
        optional = {name: getattr(self, name) for name in ("made_of", "compact_error", "configuration")}
        attributes = {
            "format": "tipl",
            "format_version": FORMAT_VERSION,
            "id": self.id,
            **{name: value for name, value in optional.items() if value is not None},
            "split": split,
        }
        write_group(store, attributes)


def new_root(compact_error: float | None, made_of: Root | None) -> Root:
    """The root of a new store; with `made_of` one that holds the trials of that store, in the same parts."""
    source = {} if made_of is None else {"made_of": made_of.id, "parts": made_of.parts}
    return Root(id=secrets.token_hex(16), compact_error=compact_error, **source)


def locked(store: Path) -> Any:
    """Keep other writers from a store's root. The lock is on a file that is written once and never replaced."""
    content = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}, indent=2).encode()
    return locked_file(store / "trials" / "zarr.json", content)


def plan_trials(
    store: Path | str, seeds: Iterable[int], *, env_id: str, config: Mapping[str, Any], spec: ParamSpec
) -> None:
    """Say which trials are about to be written, together: a store gives each its part of the split, once and for all.

    Two or more new trials are split among themselves, in the order of seeds: the last fifth to test, the eighth (of
    all) before it to validate. A single one goes to the part that is furthest below its share of the store.

    Args:
        env_id, config, spec: what makes these trials, apart from their seeds; the same for all trials of a store.

    Raises:
        TiplError: there is no store, or its trials were made with other settings.
    """
    store, seeds = Path(store), [*seeds]
    _require_seeds(seeds)
    wanted = {"env_id": env_id, "config": json.loads(json.dumps(config)), "param_spec": spec.to_json()}
    root = Root.read(store)
    new = sorted({int(seed) for seed in seeds} - set(root.parts or {}))
    if root.configuration is not None and not new:
        _require_same(store, root.configuration, wanted)
        return
    with locked(store):
        root = Root.read(store)
        if root.configuration is not None:
            _require_same(store, root.configuration, wanted)
        parts = dict(root.parts or {})
        parts |= given_parts([*parts.values()], [seed for seed in new if seed not in parts])
        replace(root, configuration=root.configuration or wanted, parts=parts).write(store)


def _require_seeds(seeds: Iterable[Any]) -> None:
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= _MOST_SEED:
            raise TiplError(f"seed is {seed!r}; give a whole number from 0 to {_MOST_SEED}.")


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


def _require_same(store: Path, shared: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    before, now = dict(_settings(shared)), dict(_settings(wanted))
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


def _settings(configuration: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting by its name, such as ppo.learning_rate; seeds are none."""
    yield "env_id", configuration["env_id"]
    yield from _leaves("", configuration["config"])
    yield "parameters", {row["name"]: row["shape"] for row in configuration["param_spec"]}


# Of an environment (env_described.py), what was found out about it, and where.
NO_SETTINGS = ("seed", "module", "probe")


def _leaves(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name in NO_SETTINGS:
            continue
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _identity(value: Any) -> Any:
    if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value)):
        raise ValueError(f"{value!r} is not the id of a store")
    return value
