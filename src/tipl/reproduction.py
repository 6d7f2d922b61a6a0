"""One of the paper's experiments, from collection to report, in one folder.

In: the experiment's name and size.  Out: store, codes, model, evaluation, report.html and metrics.json in one folder.

Every stage is its own verb over files; one that is already complete is said to be, and read.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from tipl.checks import AnyPath, checked_arguments
from tipl.collection.collect import collect
from tipl.config.experiments import experiment
from tipl.errors import TiplError
from tipl.evaluation.evaluate import METRICS_FILE, evaluate
from tipl.files import PARTIAL, Absent, read_json, replace_file, write_json
from tipl.forecasting.shipped import SHIPPED
from tipl.progress import console
from tipl.reporting import report
from tipl.representation import fit_svd
from tipl.training import train

EXPERIMENT_FILE = "experiment.json"


@checked_arguments
def reproduce(name: str, preset: str = "quick", out: AnyPath | None = None) -> Path:
    """Run an experiment of the paper, or go on with it where it was stopped.

    Args:
        name: "inverted-pendulum" or "half-cheetah".
        preset: "quick" or "paper".
        out: its folder; default runs/<name>-<preset>.

    Returns:
        The report's path.

    Raises:
        TiplError: no such experiment or preset, or `out` holds something else.
    """
    settings = experiment(name, preset)
    out = Path("runs") / f"{name}-{preset}" if out is None else Path(out)
    _claim(out, {"experiment": name, "preset": preset})
    began = time.monotonic()
    store = _stage("collect", lambda: collect(settings.collect, out / "store"))
    codes = _stage("fit-svd", lambda: fit_svd(store, out / "codes", settings.svd))
    # As the paper has it, and with the network giving the step to the next code instead of the code. Beside them the
    # causal model that comes with the package, which has learned from other seeds.
    variants = {"tipl": settings.train, "tipl-residual": dataclasses.replace(settings.train, residual=True)}
    for variant, config in variants.items():
        begun = (out / variant / "checkpoint.safetensors").exists()
        _stage(f"train {variant}", lambda v=variant, c=config, r=begun: train(store, out / v, c, codes=codes, resume=r))
    result = out / "evaluation"
    if (result / METRICS_FILE).exists():
        console.print(f"evaluate: {result} is already complete.")
    else:
        models = [*(out / variant for variant in variants), SHIPPED]
        _stage("evaluate", lambda: evaluate(store, result, settings.evaluate, models=models))
    replace_file(out / METRICS_FILE, (result / METRICS_FILE).read_bytes())
    page = _stage("report", lambda: report([result], out / "report.html"))
    console.print(f"reproduce: {name} ({preset}) took {time.monotonic() - began:.0f} s")
    return page


def _stage(name: str, run: Callable[[], Path]) -> Path:
    began = time.monotonic()
    console.rule(f"{name}", align="left")
    path = run()
    console.print(f"{name}: {path} ({time.monotonic() - began:.1f} s)")
    return path


def _claim(out: Path, identity: dict[str, str]) -> None:
    """Make `out` the folder of this experiment.

    Raises:
        TiplError: it is there and is not.
    """
    mark = out / EXPERIMENT_FILE
    if out.exists() and not out.is_dir():
        raise TiplError(f"{out} is a file; give --out a folder.")
    if out.exists() and any(path.name != EXPERIMENT_FILE + PARTIAL for path in out.iterdir()):
        try:
            found = read_json(mark, dict)
        except Absent:
            found = None
        if found != identity:
            raise TiplError(f"{out} exists and is not this experiment's folder; give another --out or remove it.")
        console.print(f"reproduce: {out} exists; going on with it")
        return
    write_json(mark, identity)
