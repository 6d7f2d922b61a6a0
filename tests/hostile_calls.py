"""Hostile calls: every argument of every public function and class with values that nobody should give.

In: a folder with a tiny store in it.  Out: what came of each call; `python tests/hostile_calls.py` runs all.
"""

import contextlib
import inspect
import io
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from hostile_lines import _at_most, _TooLong, _working_in, furnish

import tipl
from tipl.acceleration.compare import accelerate
from tipl.catalog.compact import compact
from tipl.collection.collect import collect
from tipl.collection.random_walk import random_walk
from tipl.errors import TiplError
from tipl.evaluation.evaluate import evaluate
from tipl.forecasting.baselines import persistence
from tipl.reporting import report
from tipl.reproduction import reproduce
from tipl.store import History
from tipl.training import train

SECONDS = 60
VALUES: dict[str, Any] = {
    "None": None, "True": True, "-1": -1, "0": 0, "1.5": 1.5, "nan": math.nan, "inf": math.inf, "10**400": 10**400,
    "''": "", "long": "n" * 300, "NUL": "a\0b", "bytes": b"a", "[]": [], "[None]": [None], "['x']": ["x"], "{}": {},
    "object": object(), "type": int, "array": np.zeros((2, 2)), "nan array": np.full(3, np.nan),
    "text array": np.array(["a"]),
    "empty array": np.zeros((0, 3), np.float32), "tensor": torch.zeros(2), "function": len, "missing": "missing/deep",
    "file": "file", "loop": "loop", "store": "s", "lone surrogate": "\ud800",
}  # fmt: skip


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """By name a call that works, run in the furnished folder: every argument of it is then replaced."""
    store = tipl.Store.open("s")
    trial = store.trial(1)
    weights = trial.weights()
    small = tipl.TrainConfig(width=4, context=3, steps=1, batch_size=2, warmup_steps=1, validate_every=1)
    judge = tipl.EvaluateConfig(horizons=(1,), return_horizons=(1,), origins=2, spectrum_trials=0)
    policies = tipl.Policies(np.zeros((1, 13), np.float32), np.zeros((1, 4)), np.ones((1, 4)))
    causal = tipl.CausalForecaster.from_pretrained("causal", [(3,)])
    history = History(1, 5, weights[:6], -1)
    run = tipl.CollectConfig(
        trials=1, total_steps=64, hidden_sizes=(2,), ppo=tipl.PPOConfig(num_steps=64, num_minibatches=2)
    )
    actor = tipl.Policy(
        {"actor.0.weight": np.ones((2, 4), np.float32), "actor.0.bias": np.zeros(2, np.float32)},
        np.zeros(4),
        np.ones(4),
    )
    linear = torch.nn.Linear(2, 1)
    where = {"execution": tipl.Execution(), "dry_run": False}
    return {
        "Store.open": (tipl.Store.open, {"path": "s"}),
        "Store.trial": (store.trial, {"seed": 1}),
        "Trial.weights": (trial.weights, {"start": 0, "stop": 3}),
        "Trial.history": (trial.history, {"origin": 5, "context": 3}),
        "data_info": (tipl.data_info, {"path": "s"}),
        "data_verify": (tipl.data_verify, {"path": "s"}),
        "hub_list": (tipl.hub_list, {"user": "me"}),
        "hub_pull": (tipl.hub_pull, {"name": "me/x", "out": "pulled", "revision": None}),
        "hub_push": (
            tipl.hub_push,
            {"what": "s", "name": "me/x", "private": False, "episodes": 1, "seed": 0, "video": False, "trust": False},
        ),
        "data_list": (tipl.data_list, {"address": "s"}),
        "write_card": (tipl.write_card, dict.fromkeys(("path", "name", "license", "citation", "made_by"), "s")),
        "data_index": (tipl.data_index, {"folder": "."}),
        "data_merge": (tipl.data_merge, {"stores": ["s", "s"], "out": "new", "license": None}),
        "data_export": (
            tipl.data_export,
            {"address": "s", "out": "new", "trials": (), "environments": (), "every": 1, "compact": None},
        ),
        "data_import": (
            tipl.data_import,
            {
                "sources": ["checkpoints"],
                "out": "new",
                "env_id": "x",
                "seed": 1,
                "files": None,
                "tensors": (),
                "algorithm": None,
                "activation": None,
                "weights_only": False,
            },
        ),
        "Collection.open": (tipl.Collection.open, {"path": "s"}),
        "create_store": (tipl.create_store, {"path": "new", "compact_error": None}),
        "random_walk": (
            random_walk,
            {"out": "new", "trials": 1, "snapshots": 3, "dim": 2, "drift": 0.0, "seed": 1, "anneal": False},
        ),
        "Execution": (tipl.Execution, {"executor": "local", "ray_address": "auto", "shard": "1/1"}),
        "collect": (
            collect,
            {"config": run, "out": "file", "workers": 1, "track": None, "device": "cpu", **where},
        ),
        "collect_many": (
            tipl.collect_many,
            {"runs": [(run, "file")], "workers": 1, "track": None, "device": "cpu", **where},
        ),
        "evaluate_many": (
            tipl.evaluate_many,
            {
                "stores": ["s"],
                "out": "new",
                "config": judge,
                "models": (),
                "fit": None,
                "returns": False,
                "trust": False,
                "workers": 1,
                **where,
            },
        ),
        "compact": (compact, {"store_path": "s", "out": "new", "config": tipl.CompactConfig()}),
        "fit_svd": (tipl.fit_svd, {"store": "s", "out": "new", "config": tipl.SVDConfig(dim=2), "progress": False}),
        "Codes.open": (tipl.Codes.open, {"path": "codes"}),
        "train": (
            train,
            {
                "store": "s",
                "out": "new",
                "config": small,
                "svd": tipl.SVDConfig(dim=2),
                "codes": None,
                "resume": False,
                "track": None,
                "device": "cpu",
            },
        ),
        "evaluate": (
            evaluate,
            {
                "store": "s",
                "out": "new",
                "config": judge,
                "models": (),
                "forecasters": (),
                "codes": None,
                "fit": None,
                "returns": False,
            },
        ),
        "ceiling": (
            tipl.ceiling,
            {
                "store": "s",
                "out": "new",
                "config": tipl.CeilingConfig(horizons=(1,), futures=2),
                "models": (),
                "forecasters": (),
                "fit": None,
                "workers": 1,
                "trust": False,
            },
        ),
        "forecast": (
            tipl.forecast,
            {
                "store": "s",
                "trial": 1,
                "origin": 5,
                "horizon": 1,
                "out": "new.safetensors",
                "model": "causal",
                "stretch": 1.0,
                "adapt": False,
                "seen": False,
                "episodes": 0,
                "seed": 0,
            },
        ),
        "export": (
            tipl.export,
            {
                "source": actor,
                "out": "new.onnx",
                "trial": None,
                "snapshot": None,
                "env_id": "CartPole-v1",
                "trust": False,
            },
        ),
        "plot_returns": (tipl.plot_returns, {"store": "s", "out": "new.svg"}),
        "picture": (
            tipl.picture,
            {
                "store": "s",
                "out": "new.svg",
                "trial": 1,
                "origins": (5,),
                "horizon": 1,
                "past": 5,
                "plane": "path",
                "model": "causal",
                "stretch": 1.0,
                "adapt": False,
                "seen": False,
                "grid": 3,
                "episodes": 1,
                "seed": 0,
                "trust": False,
            },
        ),
        "video": (
            tipl.video,
            {
                "sources": "s",
                "out": "new.gif",
                "trial": 1,
                "origin": 5,
                "horizon": 1,
                "snapshots": (),
                "model": "causal",
                "stretch": 1.0,
                "adapt": False,
                "seen": False,
                "episodes": 1,
                "seed": 0,
                "seconds": 1.0,
                "size": 64,
                "trust": False,
            },
        ),
        "accelerate": (
            accelerate,
            {
                "config": run,
                "out": "file",
                "forecaster": "line",
                "jump": None,
                "plain_learning_rate": None,
                "fit": None,
                "targets": (),
                "workers": 1,
                "track": None,
            },
        ),
        "report": (report, {"evals": ["eval"], "out": "new.html", "show": ()}),
        "reproduce": (reproduce, {"name": "inverted-pendulum", "preset": "none", "out": "file"}),
        "experiment": (tipl.experiment, {"name": "inverted-pendulum", "preset": "quick"}),
        "Policies": (
            tipl.Policies,
            {"weights": policies.weights, "obs_mean": policies.obs_mean, "obs_var": policies.obs_var},
        ),
        "policy_returns": (
            tipl.policy_returns,
            {
                "policies": policies,
                "env_id": "InvertedPendulum-v4",
                "hidden_sizes": (2,),
                "episodes": 1,
                "seed": 0,
                "sampled": False,
                "activation": "tanh",
                "backend": "gymnasium",
                "obs_clip": 10.0,
                "threads": 1,
            },
        ),
        "History": (History, {"trial": 1, "origin": 5, "weights": weights[:6], "epoch_index": -1}),
        "load_forecaster": (
            tipl.load_forecaster,
            {"forecaster": "causal", "shapes": [(3,)], "horizon": 2, "snapshots_per_iteration": 1, "seed": 0},
        ),
        "CausalForecaster.forecast": (causal.forecast, {"histories": [history], "horizons": [1]}),
        "OnlineCorrected": (tipl.OnlineCorrected, {"forecasters": [persistence()], "snapshots_per_iteration": 1}),
        "OnlineCorrected.forecast": (
            tipl.OnlineCorrected([persistence()]).forecast,
            {"histories": [history], "horizons": [1]},
        ),
        "TIPL.load": (tipl.TIPL.load, {"folder": "model"}),
        "TIPL.save": (tipl.TIPL.load(Path("model")).save, {"folder": "saved"}),
        "WeightRecorder": (
            tipl.WeightRecorder,
            {
                "store": "recorded",
                "seed": 1,
                "policy": linear,
                "optimizer": torch.optim.SGD(linear.parameters(), lr=0.1),
                "every": 5,
                "env_id": "CartPole-v1",
                "names": (),
                "normalizer": None,
                "obs_clip": 10.0,
                "config": None,
            },
        ),
    }


def faults(only: str = "") -> Iterator[str]:
    """Every call that ends in neither a value nor a TiplError."""
    for name, (function, given) in calls().items():
        if only and only != name:
            continue
        for argument in given:
            for word, value in VALUES.items():
                if argument == "normalizer" and callable(value):
                    continue  # whose own faults are its own
                fault = _fault(function, {**given, argument: value})
                if fault:
                    yield f"{name}({argument}={word}): {fault}"


def _fault(function: Callable[..., Any], given: dict[str, Any]) -> str | None:
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(quiet), _at_most(SECONDS):
        _link(Path.cwd(), Path(place))
        places = {"TIPL_HUB": f"file://{place}/hub", "TIPL_CACHE": f"{place}/cache"}
        with mock.patch.dict(os.environ, places), _working_in(Path(place)):
            try:
                function(**given)
            except TiplError:
                return None
            except _TooLong:
                return f"took more than {SECONDS} s"
            except Exception as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                return f"{type(error).__name__}: {str(error)[:80]} ({Path(at.filename).name}:{at.lineno})"
    return None


def _link(source: Path, place: Path) -> None:
    for path in source.iterdir():
        (place / path.name).symlink_to("loop" if path.name == "loop" else path)


def main(argv: list[str]) -> int:
    with tempfile.TemporaryDirectory() as place:
        furnish(Path(place))
        with _working_in(Path(place)):
            found = 0
            for fault in faults(*argv):
                found += 1
                print(fault, flush=True)
    print(f"{found} calls ended in something else than a TiplError")
    return int(found > 0)


if __name__ == "__main__":
    assert inspect.isfunction(main)
    sys.exit(main(sys.argv[1:]))
