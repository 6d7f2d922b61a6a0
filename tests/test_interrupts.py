"""Every long verb, stopped by Ctrl-C at random moments, ends in time, leaves no process, and goes on to the same bits.

In: small stores and models, real signals.  Out: failures.

It is slow: `pytest -m slow tests/test_interrupts.py -s`, which prints what was measured. With INTERRUPTS=3 in the
environment each verb is stopped three times instead of ten.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

TIMES = int(os.environ.get("INTERRUPTS", "10"))
FIRST = 0.05  # seconds after the start; before, it is Python itself that is loaded
LIMIT = 10.0  # seconds from the signal to the end of the last process
TRIALS = "--env-id CartPole-v1 --hidden-sizes 8 --ppo.num-envs 1 --ppo.num-minibatches 2 --workers 2"
VERBS = {
    "collect": f"collect {TRIALS} --trials 4 --total-steps 8192 --out OUT",
    "random-walk": "data random-walk --trials 10 --snapshots 3000 --out OUT",
    "compact": "data compact STORE --out OUT",
    "fit-svd": "fit-svd STORE --basis window --dim 8 --out OUT",
    "train": "train STORE --codes CODES --steps 150 --validate-every 50 --context 16 --out OUT --resume",
    "train causal": "train STORE --model causal --steps 30 --validate-every 10 --windows 500 --out OUT --resume",
    "evaluate": "evaluate STORE --model MODEL --episodes 4 --return-origins 4 --out OUT",
    "accelerate": f"accelerate {TRIALS} --trials 2 --total-steps 8192 --out OUT",
    "forecast": "forecast --store STORE --trial 1 --origin 60 --horizon 5 --episodes 50 --out OUT/policy.safetensors",
    "report": "report EVAL --out OUT/report.html",
    "data verify": "data verify STORE",
    "reproduce": "reproduce inverted-pendulum --out OUT",
}
# The experiment, small.
REPRODUCE = """
import sys
from tipl.cli.main import main
from tipl.config.experiments import EXPERIMENTS, Experiment
from tipl.config.presets import CollectConfig, EvaluateConfig, SVDConfig, TrainConfig
EXPERIMENTS["inverted-pendulum"]["quick"] = Experiment(
    CollectConfig(trials=4, seed=1001, total_steps=16 * 2048),
    SVDConfig(dim=4),
    TrainConfig(context=5, num_layers=1, width=16, steps=60, validate_every=20, warmup_steps=2),
    EvaluateConfig(horizons=(1, 2, 10), return_horizons=(1, 10), origins=5, return_origins=2, episodes=2),
)
sys.exit(main())
"""


def run(command: str, **paths: Path) -> list[str]:
    how = ["-c", REPRODUCE] if command.startswith("reproduce") else ["-m", "tipl"]
    return [sys.executable, *how, *(fill(word, paths) for word in command.split())]


def fill(word: str, paths: dict[str, Path]) -> str:
    for name, path in paths.items():
        word = word.replace(name, str(path))
    return word


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of twelve trials, codes and a model of it, and their evaluation."""
    folder = tmp_path_factory.mktemp("inputs")
    paths = {name: folder / name.lower() for name in ("STORE", "CODES", "MODEL", "EVAL")}
    for command in (
        f"collect {TRIALS} --trials 12 --total-steps 12800 --out STORE",
        "fit-svd STORE --dim 8 --out CODES",
        "train STORE --codes CODES --steps 20 --validate-every 10 --context 16 --out MODEL",
        "evaluate STORE --model MODEL --no-returns --out EVAL",
    ):
        subprocess.run(run(command, **paths), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return paths


def digest(out: Path) -> dict[str, str]:
    """Of every file of a result, by name, without what a clock measures or the number of stops decides: a store's and a
    trial's records (id, number of commits, sums), checkpoints, the seconds of an arm, the order of a header."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name, content = str(path.relative_to(out)), path.read_bytes()
        if path.name in ("checkpoint.safetensors", "zarr.json") or path.suffix == ".html":
            continue
        if path.suffix == ".json":
            content = json.dumps(without_clocks(json.loads(content)), sort_keys=True).encode()
        if path.suffix == ".safetensors":
            content = b"".join(key.encode() + value.tobytes() for key, value in sorted(load(content).items()))
        if path.parent.name == "parts" and "seconds" in content.decode(errors="ignore"):
            continue
        found[name] = hashlib.sha256(content).hexdigest()
    return found


CLOCKS = ("seconds", "overhead")
RANDOM = ("command", "seal", "id", "ids", "store", "store_id", "stores", "codes")
"""Made anew with each store, or of what is."""


def without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        clock = [key for key in value if key in RANDOM or any(word in key for word in CLOCKS)]
        kept = {key: part for key, part in value.items() if key not in clock}
        return {key: without_clocks(part) for key, part in kept.items()}
    return [without_clocks(part) for part in value] if isinstance(value, list) else value


def running_of(session: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(file.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_at_random_moments(verb: str, inputs: dict[str, Path], tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    out = "result" if verb not in ("forecast", "report") else ""
    began = time.monotonic()
    subprocess.run(run(VERBS[verb], OUT=whole / out, **inputs), check=True, **quiet)
    length = span = time.monotonic() - began
    rng = np.random.default_rng(len(verb))
    stops: list[float] = []
    for _ in range(5 * TIMES):
        began = time.monotonic()
        process = subprocess.Popen(run(VERBS[verb], OUT=cut / out, **inputs), start_new_session=True, **quiet)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(FIRST, span))
        signaled = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        error = process.communicate(timeout=60)[1]
        while running_of(process.pid):
            assert time.monotonic() - signaled < LIMIT
            time.sleep(0.02)
        took = time.monotonic() - signaled
        assert took < LIMIT and "Traceback" not in error, (took, error)
        if process.returncode == 0:  # it was at its end: once more from the beginning
            assert digest(cut) == digest(whole)
            shutil.rmtree(cut)
            cut.mkdir()
            span = max(2 * FIRST, min(span, signaled - began))
            continue
        assert process.returncode == 130 and "\ntipl: interrupted" in f"\n{error}", (process.returncode, error)
        stops.append(took)
        if len(stops) == TIMES:
            break
    subprocess.run(run(VERBS[verb], OUT=cut / out, **inputs), check=True, **quiet)
    assert digest(cut) == digest(whole)
    told = f"{verb}: {length:.1f} s long, stopped {len(stops)} times, longest stop {max(stops):.2f} s"
    print(f"\n{told}", file=sys.__stderr__)
    assert len(stops) == TIMES
