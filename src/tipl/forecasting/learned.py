"""What a trained model has learned from, so that it is never judged on that.

In: a model's folder, a store.  Out: the trials of which stores it knows, or a TiplError that names them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tipl.errors import TiplError
from tipl.files import Absent
from tipl.forecasting.shipped import model_folder
from tipl.models import TRAINING_FILE, read_training
from tipl.store import Store
from tipl.training import LAST

_NAMED = 8  # trials that a refusal names at most


@dataclass(frozen=True)
class Learned:
    """What something has learned from one store."""

    ids: frozenset[str]
    """Of the store that the trials were made in; empty where the model is older than ids."""
    name: str
    env_id: str | None
    seeds: tuple[int, ...]
    """Of the trials learned from or chosen by."""
    beginnings: frozenset[str]
    """How they begin; empty where the model is older than that."""

    def of(self, data: Store, seeds: Sequence[int]) -> list[int]:
        """Those of these trials of a store that are among them, or the same runs made again."""
        return sorted(
            seed for seed in seeds
            if (seed in self.seeds and self.ids & data.known_as(seed))
            or (self.beginnings and data.trial(seed).beginning in self.beginnings)
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """For metrics.json."""
        return {"store": self.name, "ids": sorted(self.ids), "trials": list(self.seeds)}


def learned_by(model: Path | str) -> tuple[Learned, ...] | None:
    """What a trained model has learned from, as its training.json says; None where it has none or does not say.

    Raises:
        TiplError: the file is damaged.
    """
    folder = model_folder(model)
    if folder.name == LAST and not (folder / TRAINING_FILE).exists():  # of the same training as the best one above
        folder = folder.parent
    try:
        trials = read_training(folder)["codes"]["trials"]
        return tuple(
            Learned(
                frozenset([each["id"]] if each["id"] else ()), each["name"], each.get("env_id"),
                tuple(sorted({*each["train"], *each["validation"]})), frozenset(each.get("beginnings", ())),
            )
            for each in trials["stores"]
        ) if "stores" in trials else None  # fmt: skip
    except Absent:
        return None
    except (KeyError, TypeError, AttributeError) as error:
        raise TiplError(
            f"{folder / TRAINING_FILE} is damaged: it does not say what was learned from ({error}); train again."
        ) from error


def require_unseen(
    data: Store, seeds: Sequence[int], model: str, learned: Sequence[Learned] | None, advice: str
) -> None:
    """
    Raises:
        TiplError: the model has learned from one of these trials.
    """
    both = sorted({seed for part in learned or () for seed in part.of(data, seeds)})
    if both:
        raise TiplError(f"{model} has learned from {named_trials(both)} of {data.path}; {advice}.")


def named_trials(seeds: Sequence[int]) -> str:
    """For a message: trials 1, 2, … and how many more."""
    some, more = ", ".join(map(str, seeds[:_NAMED])), len(seeds) - _NAMED
    return f"trial{'s' if len(seeds) > 1 else ''} {some}{f' and {more} more' if more > 0 else ''}"
