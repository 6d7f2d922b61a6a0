"""The data set on disk: a zarr group of trials that are written in commits and read up to the last one.

In: snapshots, episodes and checkpoints of running trials.  Out: read-only trials, their split, what is damaged.

    STORE/zarr.json                attributes format, format_version; of a compact store (compact.py) compact_error
    STORE/trials/<seed>/zarr.json  attributes of a trial (class layout.Record); it is the commit record
    STORE/trials/<seed>/<array>/   weights [T, P], env_step [T], …: see layout.array_layout
    STORE/trials/<seed>/resume/    until the trial is complete: its checkpoint and its writer's lock

All of it reads with zarr alone; rows from `committed` on (`committed_episodes` for episodes) are not data. A commit
writes the chunks, then the checkpoint, then the record, each under another name first and then renamed, so that a
crash at any byte leaves the last record true. Chunks carry a checksum. zarr reads a chunk that is missing as the fill
value (NaN, -1), so this package looks for the file first.

Shapes: T snapshots, P weights, E episodes, obs the size of an observation.
"""

from tipl.store.arrays import CODEC
from tipl.store.history import History, places_of
from tipl.store.inspect import data_info, data_verify
from tipl.store.layout import EPISODE_ARRAYS, FORMAT_VERSION, SNAPSHOT_ARRAYS
from tipl.store.read import Episodes, Split, Store, Trial
from tipl.store.root import plan_trials
from tipl.store.write import TrialWriter, create_store

__all__ = [
    "CODEC",
    "EPISODE_ARRAYS",
    "FORMAT_VERSION",
    "SNAPSHOT_ARRAYS",
    "Episodes",
    "History",
    "Split",
    "Store",
    "Trial",
    "TrialWriter",
    "create_store",
    "data_info",
    "data_verify",
    "places_of",
    "plan_trials",
]
