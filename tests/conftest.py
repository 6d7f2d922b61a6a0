"""A small real data set that several tests read.

In: nothing.  Out: fixtures.
"""

import atexit
import fcntl
import importlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from here import in_this_process

from tipl.collection.collect import run_stack
from tipl.config.presets import CollectConfig, PPOConfig
from tipl.store import create_store

os.environ["TIPL_CACHE"] = tempfile.mkdtemp(prefix="tipl-cache-")  # nothing of a test stays at the user's
atexit.register(shutil.rmtree, os.environ["TIPL_CACHE"], ignore_errors=True)
# A shell starts what it runs in the background with Ctrl-C ignored, nohup with a hang-up ignored, and every child
# inherits that; tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# What takes longest begins first, so that no file runs alone at the end (the Makefile keeps the order of files).
SLOWEST = (
    "test_notebooks.py", "test_docs.py", "test_object_store.py", "test_report.py", "test_collect.py",
    "test_faults.py", "test_accelerate.py", "test_train.py", "test_evaluate.py", "test_scale.py", "test_stopping.py",
    "test_store_damage.py", "test_store.py", "test_sb3.py", "test_hostile.py", "test_parallel.py",
    "test_interrupts.py", "test_trial_batch.py", "test_windows.py", "test_hub.py", "test_record.py",
    "test_catalog.py", "test_cli.py", "test_host.py",
)  # fmt: skip


def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as cores: tests also wait, for the disk, for servers, for processes that are stopped."""
    return (3 * len(os.sched_getaffinity(0)) + 1) // 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture
def here() -> Iterator[None]:
    """No process is started; see here.py."""
    with in_this_process():
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For pages of which only the words and the numbers are looked at: what draws takes nearly all of the time."""
    import tipl.reporting

    monkeypatch.setattr(tipl.reporting, "print_figure", lambda figure, folder: None)
    points = {"size": [1, 1], "frame": [0, 0, 1, 1], "nearest": "x", "stops": []}
    page = importlib.import_module("tipl.reporting.page")
    monkeypatch.setattr(page, "draw_panel", lambda panel, keys: ("<svg></svg>", points))


SMALL = CollectConfig(trials=6, total_steps=16 * 512, ppo=PPOConfig(num_steps=512, num_minibatches=8))


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six trials of InvertedPendulum-v4, 16 iterations, 81 snapshots each; made once, copied for each worker."""
    own = tmp_path_factory.getbasetemp()
    common, path = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own, own / "data" / "store"
    with (common / "small_store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (common / "small_store").exists():
            create_store(common / "begun")
            run_stack(SMALL, common / "begun", SMALL.seeds, lambda seeds, result: None)
            (common / "begun").rename(common / "small_store")
        shutil.copytree(common / "small_store", path)
    return path
