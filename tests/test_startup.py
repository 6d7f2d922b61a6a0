"""What is imported when: the package at once, a store's reader without what simulates, trains or draws.

In: fresh interpreters.  Out: failures that name what was loaded. benchmarks/startup.py measures the time.
"""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

SLOW = {"numba", "torch", "zarr", "envpool", "gymnasium", "mujoco", "matplotlib", "scipy", "numpy", "rich"}


def loaded(code: str) -> set[str]:
    """Which of SLOW a fresh interpreter has loaded after running this."""
    whole = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
    return SLOW & set(done.stdout.split())


@pytest.mark.parametrize("code", ["import tipl", "import tipl.cli.main", "import tipl; tipl.CollectConfig(trials=2)"])
def test_the_package_and_its_settings_load_nothing_slow(code: str) -> None:
    assert loaded(code) == set()


def test_reading_a_store_takes_numpy_and_no_engine(small_store: Path) -> None:
    code = f"import tipl; trial = tipl.Store.open({str(small_store)!r}).trial(1); trial.weights(), trial.obs_mean"
    found = loaded(code)
    assert found <= {"numpy", "rich"}
    assert "numpy" in found  # the reader of modules sees what is there


def test_a_stored_policy_acts_without_torch_and_numba(small_store: Path) -> None:
    code = (
        f"import tipl, numpy as np; trial = tipl.Store.open({str(small_store)!r}).trial(1); "
        "trial.policy(3)(np.zeros((2, 4)))"
    )
    assert loaded(code) <= {"numpy", "rich"}


def test_envpool_loads_no_pyplot_before_it_draws_and_draws_then(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MPLBACKEND", "MPLCONFIGDIR"):  # another test of this process may have drawn
        monkeypatch.delenv(name, raising=False)
    code = (
        "import os; from tipl.rl.envs import make_env; make_env('CartPole-v1', [0]); "
        "told = {*sys.modules, *os.environ}; "
        "import envpool; env = envpool.make_gymnasium('Game2048-v1', num_envs=1, render_mode='rgb_array'); "
        "env.reset(); assert env.render().std() > 0; assert not told & {'matplotlib', 'MPLBACKEND', 'MPLCONFIGDIR'}"
    )
    assert {"envpool", "matplotlib"} <= loaded(code)


@pytest.mark.parametrize("asked", [None, "active"])
def test_torchs_threads_wait_without_spinning_unless_asked_to(
    asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where other work has a core, threads that spin take it from the one that they wait for."""
    monkeypatch.setenv("OMP_WAIT_POLICY", asked or "")  # so that it is as before afterwards
    if asked is None:
        del os.environ["OMP_WAIT_POLICY"]
    monkeypatch.setattr(import_module("tipl.cli.main"), "main", lambda: os.environ["OMP_WAIT_POLICY"])
    assert import_module("tipl.__main__").main() == (asked or "passive")
