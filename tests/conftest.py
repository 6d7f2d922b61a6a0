"""A small real data set that several tests read.

In: nothing.  Out: fixtures.
"""

import signal
from pathlib import Path

import pytest

from tipl.collection.collect import run_stack
from tipl.config.presets import CollectConfig
from tipl.store import create_store

# A shell starts what it runs in the background with Ctrl-C ignored, and every child inherits that; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = CollectConfig(trials=6, total_steps=16 * 2048)


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six trials of InvertedPendulum-v4, 16 iterations, 81 snapshots each."""
    path = tmp_path_factory.mktemp("data") / "store"
    create_store(path)
    run_stack(SMALL, path, SMALL.seeds, lambda seeds, result: None)
    return path
