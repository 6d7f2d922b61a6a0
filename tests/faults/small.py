"""Small sound outputs of every verb, how each is made, and what is read from it.

In: an empty folder.  Out: files there, and for every kind of output a digest of all that its readers take from it.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORE, WALKS, CODES, MODEL, EVAL, COMPARISON, COMPACT = (
    "store",
    "walks",
    "codes",
    "model",
    "eval",
    "comparison",
    "small",
)
FORECAST = "forecast.safetensors"
LEVEL = "level"
"""A store of a finished trial that may be given more steps."""


VARIANT = 0
"""Of two sets of outputs, with the same names and seeds, that hold other numbers."""


def settings() -> Any:
    from tipl import CollectConfig, PPOConfig

    ppo = PPOConfig(num_steps=64, num_minibatches=4, learning_rate=(3e-4, 1e-3)[VARIANT])
    return CollectConfig(trials=3, total_steps=512, hidden_sizes=(4,), backend="gymnasium", ppo=ppo)


def run_here() -> None:
    """Let what runs in processes of its own run in this one: a kill is then of all that there is."""
    import tests.here

    import tipl.executors.run

    tipl.executors.run.run_in_processes = tests.here.run_here


def verb(*arguments: str) -> Callable[[], None]:
    """A command line, as a function."""

    def call() -> None:
        from tipl.cli.verbs import build_parser

        parsed = build_parser().parse_args(arguments)
        parsed.run(parsed)

    call.words = arguments  # type: ignore[attr-defined]
    return call


def collect() -> None:
    from tipl.collection.collect import collect

    collect(settings(), Path(STORE), workers=1)


def collect_level(steps: int = 256) -> None:
    from tipl.collection.collect import collect

    level = dataclasses.replace(settings().ppo, anneal_lr=False)
    collect(dataclasses.replace(settings(), trials=1, total_steps=steps, ppo=level), Path(LEVEL), workers=1)


def random_walk() -> None:
    drift = str(VARIANT / 2)
    verb("data", "random-walk", "--trials", "4", "--snapshots", "40", "--dim", "3", "--drift", drift, "--out", WALKS)()


def accelerate() -> None:
    from tipl.acceleration.compare import accelerate

    accelerate(dataclasses.replace(settings(), trials=2), Path(COMPARISON), forecaster="line", workers=1)


def train() -> None:
    """Train, or go on: as the command line, which asks for --resume where there is a checkpoint."""
    going_on = ["--resume"] if os.path.lexists(f"{MODEL}/checkpoint.safetensors") else []
    verb("train", WALKS, "--codes", CODES, "--steps", "4", "--warmup-steps", "1", "--validate-every", "2", "--width",
         "8", "--batch-size", "4", "--context", "5", "--out", MODEL, *going_on)()  # fmt: skip


_JUDGED = ["--horizons", "1", "--origins", "2", "--spectrum-trials", "0", "--return-horizons", "1"]
VERBS: dict[str, tuple[str, Callable[[], None]]] = {
    # what it leaves, and how it is run; in an order in which each has what it needs
    "collect": (STORE, collect),
    "random-walk": (WALKS, random_walk),
    "compact": (COMPACT, verb("data", "compact", STORE, "--out", COMPACT)),
    "fit-svd": (CODES, verb("fit-svd", WALKS, "--dim", "2", "--out", CODES)),
    "train": (MODEL, train),
    "evaluate": (EVAL, verb("evaluate", STORE, *_JUDGED, "--return-origins", "2", "--episodes", "1", "--out", EVAL)),
    "forecast": (FORECAST, verb("forecast", "--store", STORE, "--trial", "1", "--origin", "30", "--horizon", "1",
                                "--episodes", "1", "--out", FORECAST)),
    "accelerate": (COMPARISON, accelerate),
}  # fmt: skip
KILLED = VERBS | {"collect more": (LEVEL, lambda: collect_level(512))}
READERS: dict[str, Callable[[], None]] = {
    "info": verb("data", "info", STORE),
    "verify": verb("data", "verify", STORE),
    "judge": verb("evaluate", STORE, "--no-returns", *_JUDGED, "--out", "out"),
    "run": verb("evaluate", STORE, *_JUDGED, "--return-origins", "2", "--episodes", "1", "--out", "out"),
    "forecast": verb("forecast", "--store", STORE, "--trial", "1", "--origin", "9", "--horizon", "1", "--episodes",
                     "1", "--out", "out.safetensors"),
    "forecast of codes": verb("forecast", "--store", WALKS, "--trial", "1", "--origin", "9", "--horizon", "1",
                              "--model", MODEL, "--seen", "--out", "out.safetensors"),
    "judge a model": verb("evaluate", WALKS, "--no-returns", *_JUDGED, "--model", MODEL, "--codes", CODES, "--out",
                          "out"),
    "fit-svd": verb("fit-svd", STORE, "--dim", "2", "--out", "out"),
    "compact": verb("data", "compact", STORE, "--out", "out"),
    "report": verb("report", EVAL, "--out", "out.html"),
    "report a comparison": verb("report", COMPARISON, "--out", "out.html"),
}  # fmt: skip


def make(folder: Path) -> None:
    """Run every verb in `folder`, and leave beside them a trial that has not ended and a training that has not."""
    os.chdir(folder)
    for name, (_, run) in {**VERBS, "level": (LEVEL, collect_level)}.items():
        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run()
        print(f"  {name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    os.chdir("/")


# What readers take from each kind of output.


def read_store(path: Path) -> dict[str, Any]:
    from tipl import Store, TiplError
    from tipl.store import data_verify

    verified = data_verify(path)
    if not verified["ok"]:
        raise TiplError(f"damaged: {verified['damage']}")
    store = Store.open(path)
    trials = {}
    for seed in store.seeds:
        trial = store.trial(seed)
        names = ("env_step", "iteration", "epoch", "learning_rate", "obs_mean", "obs_var", "obs_count")
        arrays = [trial.weights(), *(getattr(trial, name) for name in names), *trial.episodes]
        told = [trial.env_id, trial.config, trial.spec.to_json(), trial.committed, trial.complete, trial.versions]
        trials[seed] = [told, [_digest(array) for array in arrays]]
    return {"trials": trials, "split": dataclasses.astuple(store.split())}


def read_model(path: Path) -> dict[str, Any]:
    from tipl.models import load, read_training
    from tipl.training.loop import Checkpoint

    training = read_training(path)
    found: dict[str, Any] = {"training": _timeless(training)}
    for folder in (path, path / "last"):
        if folder.exists():
            model = load(folder)
            weights = {name: _digest(tensor.numpy()) for name, tensor in model.state_dict().items()}
            found[folder.name] = [dataclasses.asdict(model.config), weights, _timeless(read_training(folder))]
    checkpoint = Checkpoint.read(path)
    tensors = {name: _digest(tensor.numpy()) for name, tensor in checkpoint.tensors.items()}
    return {**found, "checkpoint": [_timeless(checkpoint.facts), _timeless(checkpoint.progress), tensors]}


def read_codes(path: Path) -> dict[str, Any]:
    from tipl.representation import Codes

    codes = Codes.open(path)
    arrays = {seed: [codes.codes(seed), codes.basis(seed).components_DP, codes.singular_values(seed)]
              for seed in codes.seeds}  # fmt: skip
    return {str(seed): [_digest(array) for array in found] for seed, found in arrays.items()}


def read_results(path: Path) -> dict[str, Any]:
    """Of an evaluation or a comparison: its numbers, and the parts from which it goes on."""
    from tipl.parts import kept_part
    from tipl.reporting.read import read_metrics

    parts = {}
    for part in sorted((path / "parts").iterdir()):
        if not part.name.endswith(".safetensors"):
            continue
        shapes = SHAPES.get(f"{path.name}/{part.name}")
        kept = kept_part(part, shapes) if shapes is not None else None
        parts[part.name] = None if kept is None else {name: _digest(values) for name, values in kept.items()}
    return {"metrics": _timeless(read_metrics(path, "run it again")), "parts": parts}


def read_forecast(path: Path) -> dict[str, Any]:
    import safetensors.numpy

    return {name: _digest(values) for name, values in safetensors.numpy.load_file(path).items()}


SHAPES: dict[str, Mapping[str, tuple[int, ...]]] = {}
"""Of the arrays of every part, by the name of the output and of the part; see `note_shapes`."""
READ: dict[str, Callable[[Path], dict[str, Any]]] = {
    STORE: read_store,
    LEVEL: read_store,
    WALKS: read_store,
    COMPACT: read_store,
    CODES: read_codes,
    MODEL: read_model,
    EVAL: read_results,
    COMPARISON: read_results,
    FORECAST: read_forecast,
}


def note_shapes(folder: Path) -> None:
    import safetensors.numpy

    for output in (EVAL, COMPARISON):
        for part in (folder / output / "parts").iterdir():
            arrays = safetensors.numpy.load_file(part)
            SHAPES[f"{output}/{part.name}"] = {name: values.shape for name, values in arrays.items()}


def _digest(array: Any) -> str:
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()[:16]


_TIMES = {"seal", "command", "overhead", "id", "ids"}


def _timeless(value: Any) -> Any:
    """Facts without what a run takes or is called by."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in _TIMES and "seconds" not in str(key)}
        return {key: _timeless(each) for key, each in kept.items()}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def digest_of(kind: str, path: Path) -> str:
    """Of all that readers take from an output. Raises TiplError where it is damaged."""
    return hashlib.sha256(json.dumps(READ[kind](path), sort_keys=True, default=str).encode()).hexdigest()
