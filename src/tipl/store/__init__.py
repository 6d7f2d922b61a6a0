"""The data set on disk: a zarr group of trials that are written in commits and read up to the last one.

In: snapshots, episodes and checkpoints of running trials.  Out: read-only trials, their split, what is damaged.

    STORE/zarr.json                  the root (class root.Root): the store's id, what made its trials, which there are,
                                     and the part of the split that each belongs to
    STORE/trials/zarr.json           the lock of whoever changes the root
    STORE/trials/<seed>/zarr.json    a trial's record (class layout.Record); to replace it is to commit
    STORE/trials/<seed>/<array>/     weights [T, P], env_step [T], …: see layout.array_layout, and arrays.py
    STORE/trials/<seed>/resume/      until the trial is complete: its checkpoint and its writer's lock

All of it reads with zarr alone; rows from `committed` on (`committed_episodes` for episodes) are not data.

**A commit** writes the chunks, then the checkpoint, then the record, each under another name first and then renamed,
so that a crash at any byte leaves the last record true.

**Every file is known from one above it.** A `zarr.json` carries a SHA-256 of itself (`seal`), the id of its store and
the seed of its trial. The record has the checksums of all chunks and of the checkpoint. The root lists the trials, and
of complete ones the seal of their record. So a bit that flips, two files that change places, an older file, and one
that gets lost are all seen: when they are read, and by `tipl data verify`.

**A store may come from anywhere.** Nothing here follows a link, waits for a FIFO, opens another codec or array than
those of the format, believes a size before it is held against the files, or removes what this program did not make.

**After a power cut** a store is as it was at its last commit if the file system writes a file out before it replaces
another (ext4 and btrfs do). A commit waits (fsync) for the record, the root, the checkpoint and new chunks, and not for
the last chunk of an array where that replaces a shorter one.

Shapes: T snapshots, P weights, E episodes, obs the size of an observation.
"""

from tipl.store.arrays import CODEC
from tipl.store.history import History, beginning_of, epoch_indices
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
    "beginning_of",
    "create_store",
    "data_info",
    "data_verify",
    "epoch_indices",
    "plan_trials",
]
