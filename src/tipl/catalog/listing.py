"""The stores at an address, a row each: `tipl data list`.

In: a store, a folder of stores, or a collection with a manifest.  Out: rows; what one store holds (`tipl data info`).
"""

from collections.abc import Sequence
from typing import Any

from tipl.catalog.card import GIVEN, read_card
from tipl.catalog.manifest import MANIFEST, Collection, has_manifest, is_store, store_names, summary, trial_rows
from tipl.checks import Place, checked_arguments
from tipl.errors import TiplError
from tipl.progress import console
from tipl.remote.mirror import located, mirror_of, original
from tipl.store import Store
from tipl.store import data_info as store_info

_NAMED = 4  # stores that a line names at most


@checked_arguments
def data_info(path: Place) -> dict[str, Any]:
    """Return what a store holds, as JSON: each trial's snapshots, episodes, returns, sizes and versions; their sums.

    Args:
        path: the store, or its address.

    Returns:
        Besides, where the store has a card, under `card` what that says that only people know.

    Raises:
        TiplError: there is no readable store, or its card cannot be read.
    """
    facts, folder = store_info(path), located(path)
    card = read_card(folder)
    known = {key: card[key] for key in GIVEN if key in card}
    return {"store": facts.pop("store"), **({"card": known} if known else {}), **facts}


@checked_arguments
def data_list(address: Place = ".") -> list[dict[str, Any]]:
    """Return the stores at an address, sorted by where they lie.

    A collection is listed from its manifest (`tipl data index`), without opening a store.

    Args:
        address: a store, a collection, or a folder that stores lie in, up to four folders deep; an address elsewhere is
            that of a store or a collection.

    Returns:
        For each store: its name, environment, algorithm, trials, snapshots, weights, bytes, return (of the last 100
        training episodes, mean over trials; None where there are none) and address.

    Raises:
        TiplError: there is no such folder, or no store in it.
    """
    path = located(address)
    if has_manifest(path):
        collection = Collection.open(path)
        if mirror_of(path):
            return collection.summaries()
        told = {name for name in collection.stores if "/" not in name}
        stale = sorted(told ^ set(store_names(path, depth=1)))
        if stale:
            console.print(
                f"list: {path / MANIFEST} is out of date ({_few(stale)}); `tipl data index {path}` renews it."
            )
        return collection.summaries()
    rows = []
    for name in ["."] if is_store(path) or mirror_of(path) else store_names(path):
        try:
            store = Store.open(path / name)
            rows += [summary(original(path / name), trials)] if (trials := trial_rows(store, name)) else []
        except TiplError as error:
            console.print(f"list: {error}")
    if not rows:
        raise TiplError(f"There is no store with trials in {path}; `tipl collect` makes one.")
    return rows


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
