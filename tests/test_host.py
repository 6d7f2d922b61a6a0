"""What a machine may lack or a user may have set, and nothing of it stops the program.

In: folders that cannot be written to, no OpenGL.  Out: failures.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tipl

# Runs one small kernel; prints where kernels are kept, and whether this one was compiled (0) or loaded (1).
RUN_A_KERNEL = """
import numpy as np
from tipl.rl.kernels import _kernels_folder
from tipl.rl.ppo import advantages_and_returns
ones, advantages, returns = np.ones((3, 2), np.float32)
advantages_and_returns(ones, ones, ones * 0, np.float32(1), np.float32(0), 0.5, 1.0, advantages, returns)
print(_kernels_folder(), sum(advantages_and_returns.stats.cache_hits.values()), returns.tolist())
"""

# The same in a fork for each line that it reads: a process that has imported all and has no kernel yet.
RUN_IN_FORKS = f"""
import os, sys
import tipl.rl.ppo
for line in sys.stdin:
    if not os.fork():
        exec({RUN_A_KERNEL!r})
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture
def locked(tmp_path: Path):
    """A copy of the package and a home that cannot be written to, and an environment that has nothing else."""
    package = tmp_path / "lib" / "tipl"
    shutil.copytree(Path(tipl.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    without = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    paths = {"PYTHONPATH": tmp_path / "lib", "HOME": tmp_path / "home", "TMPDIR": tmp_path / "tmp"}
    folders = [folder for top in ("lib", "home") for folder, _, _ in os.walk(tmp_path / top)]
    for folder in folders:
        os.chmod(folder, 0o555)
    yield environment | {name: str(path) for name, path in paths.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}
    for folder in folders:
        os.chmod(folder, 0o755)


def run(code: str, environment: dict[str, str]) -> str:
    """What a program prints that may not write where root may."""
    drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    done = subprocess.run([*drop, sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_where_package_and_home_are_read_only_kernels_are_compiled_once(locked: dict[str, str]):
    place = f"{locked['TMPDIR']}/tipl-{os.getuid()}/tipl-"
    first, second = run(RUN_A_KERNEL, locked), run(RUN_A_KERNEL, locked)
    assert first.startswith(place) and first.endswith(" 0 [1.75, 1.5]\n")
    assert second.startswith(place) and second.endswith(" 1 [1.75, 1.5]\n")


def test_a_folder_of_kernels_that_others_may_write_to_is_not_believed(locked: dict[str, str]):
    """Kernels are code."""
    place = Path(locked["TMPDIR"], f"tipl-{os.getuid()}")
    place.mkdir()
    place.chmod(0o777)
    assert run(RUN_A_KERNEL, locked) == "None 0 [1.75, 1.5]\n"
    assert not list(place.iterdir())


def test_a_damaged_kernel_is_compiled_again(tmp_path: Path):
    """A bit of it may be one of the machine's instructions."""
    compiled, loaded = " 0 [1.75, 1.5]\n", " 1 [1.75, 1.5]\n"
    with subprocess.Popen(
        [sys.executable, "-c", RUN_IN_FORKS], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as forks:  # fmt: skip

        def ran() -> str:
            assert forks.stdin is not None and forks.stdout is not None
            print(file=forks.stdin, flush=True)
            return forks.stdout.readline()

        assert ran().endswith(compiled)
        files = [*tmp_path.rglob("*advantages_and_returns*.nb[ic]")]
        assert {path.suffix for path in files} == {".nbi", ".nbc"}
        for path in files:
            content = path.read_bytes()
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            for damaged in (content[:-1], flipped):
                path.write_bytes(damaged)
                assert ran().endswith(compiled)
        assert ran().endswith(loaded)


def test_of_processes_that_find_no_kernel_one_compiles(tmp_path: Path):
    """They begin at the same moment, as workers do."""
    wait = """
import sys, time
from pathlib import Path
Path(sys.argv[1], "ready-" + sys.argv[2]).touch()
while not Path(sys.argv[1], "go").exists():
    time.sleep(0.001)
"""
    call = "advantages_and_returns(ones"
    code = RUN_A_KERNEL.replace(call, wait + call)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    line = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen([*line, name], env=environment, stdout=subprocess.PIPE, text=True) for name in "ab"]
    until = time.monotonic() + 60
    while len([*tmp_path.glob("ready-*")]) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    said = sorted(" ".join(process.communicate(timeout=120)[0].split()[1:]) for process in both)
    assert said == ["0 [1.75, 1.5]", "1 [1.75, 1.5]"]


def test_without_opengl_only_mujoco_is_missed():
    code = """
from tipl import TiplError
from tipl.rl.envs import make_env
print(make_env("CartPole-v1", [0], "gymnasium").obs_dim)
try:
    make_env("InvertedPendulum-v4", [0], "gymnasium")
except TiplError as error:
    print(error)
"""
    said = run(code, {**os.environ, "MUJOCO_GL": "no-such"}).splitlines()
    assert said[0] == "4" and said[1].startswith("MuJoCo cannot be loaded here: invalid value") and len(said) == 2
