"""How well are stores forecast that nobody learned from? Models, zoo-wide baselines, and what each environment's own
runs would teach.

In: stores to judge; stores that the baselines are fitted on; models.  Out: OUT/NAME.json, sums of every forecaster by
trial; `table`: means by environment and over all, differences paired by environment.

    python studies/held_out.py judge STORE … --fit TRAIN_STORE … --choose STORE … --model MODEL … --out OUT
    python studies/held_out.py table OUT --against zoo-autoregression --json FILE

Beside what `tipl evaluate` has: `zoo-autoregression`, of all stores of --fit; the same adapted in the run, alone and
with models of --adapted; and `own-autoregression` and `own-mean`, fitted for each trial on the others of its store,
which know more than a zero-shot forecaster may. Settings of baselines are chosen on --choose. With --models-only there
are models and what a trial's own store teaches. A forecaster that was judged already is not judged again.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nino
import numpy as np

from tipl.config.presets import EvaluateConfig
from tipl.evaluation.origins import choose_origins
from tipl.evaluation.scores import Comparison
from tipl.evaluation.statistics import bootstrap_interval
from tipl.evaluation.weight_errors import compare_weights
from tipl.forecasting import baselines
from tipl.forecasting.autoregression import (
    RIDGES,
    Autoregression,
    NormalEquations,
    difference_features,
    joined_equations,
    normal_equations,
)
from tipl.forecasting.forecaster import Forecaster
from tipl.forecasting.learned import learned_by, require_unseen
from tipl.forecasting.named import load_forecaster
from tipl.forecasting.online import online_corrected
from tipl.processes import end_with
from tipl.store import Store

HORIZONS = (1, 2, 5, 10, 20, 50, 100)
CONFIG = EvaluateConfig(horizons=HORIZONS, return_horizons=(1,), origins=32)
SUMS = ("error", "dot", "length", "moved")
ZOO, OWN, OWN_MEAN, CHOSEN = "zoo-autoregression", "own-autoregression", "own-mean", "chosen.json"
LINES = [(count, damping) for count in baselines.DAMPED_WINDOWS for damping in baselines.DAMPINGS]
PREFIXES = [(rank, count) for rank in baselines.PREFIX_RANKS for count in baselines.PREFIX_WINDOWS]
MODES = [(rank, count) for rank in baselines.DMD_RANKS for count in baselines.DMD_WINDOWS]


def equations_of(store: Path, seed: int) -> NormalEquations:
    return normal_equations([Store.open(store).trial(seed)], difference_features(), HORIZONS)


def of_store(path: Path) -> tuple[str, NormalEquations]:
    """A store's training and validation trials, which count together as one store."""
    store = Store.open(path)
    split = store.split()
    return path.name, normal_equations(
        [store.trial(seed) for seed in (*split.train, *split.validation)], difference_features(), HORIZONS
    )


def fit(stores: Sequence[Path], choose: Sequence[Path], out: Path, workers: int) -> None:
    """Fit the autoregression of the zoo, choose its ridge and the other baselines on other environments; keep all."""
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with, (os.getpid(),)) as pool:
        equations = joined_equations([each for _, each in pool.map(of_store, stores)])
        candidates = [Autoregression.fit(HORIZONS, equations, ridge) for ridge in RIDGES]
        by_store = [*pool.map(_try, [(path, candidates) for path in choose])]
    ridge, line, prefix, modes = (int(np.argmax(np.mean(of_kind, axis=0))) for of_kind in zip(*by_store, strict=True))
    slopes = {"any" if index is None else index: beta.tolist() for index, beta in candidates[ridge].slopes.items()}
    (out / CHOSEN).write_text(json.dumps({
        "fitted_on": [path.name for path in stores], "chosen_on": [path.name for path in choose],
        "damped_line": LINES[line], "prefix_line": PREFIXES[prefix], "dmd": MODES[modes], "slopes": slopes,
    }))  # fmt: skip


def _try(task: tuple[Path, list[Autoregression]]) -> list[np.ndarray]:
    """Skills on one store of the autoregressions, damped lines, lines in a prefix, and DMDs that there are."""
    path, autoregressions = task
    store = Store.open(path)
    trials, products = [store.trial(seed) for seed in store.seeds], baselines.PathProducts()
    sums = [autoregressions, [baselines.damped_line(*line) for line in LINES]]
    tried = [[baselines.PrefixLine(*each, products) for each in PREFIXES], [baselines.DMD(*each) for each in MODES]]
    found = [baselines.skills(sums, trials, HORIZONS),
             baselines.skills_by_trying(tried, trials, HORIZONS, lambda steps, note: None)]  # fmt: skip
    return [*np.split(found[0], [len(autoregressions)]), *np.split(found[1], [len(PREFIXES)])]


def without_a_model(out: Path) -> list[Forecaster]:
    """All that is judged on every store, but what each store's own trials teach."""
    found = json.loads((out / CHOSEN).read_text())
    slopes = {None if index == "any" else int(index): np.array(beta) for index, beta in found["slopes"].items()}
    zoo = Autoregression(HORIZONS, slopes)
    zoo.name = ZOO
    chosen = [baselines.damped_line(*found["damped_line"]), baselines.PrefixLine(*found["prefix_line"]),
              baselines.DMD(*found["dmd"])]  # fmt: skip
    return [*baselines.fitted_baselines([], [], HORIZONS, 0), *chosen, zoo]


def of_its_own(store: Store, seed: int, equations: dict[int, NormalEquations]) -> list[Forecaster]:
    """What the other trials of a store teach about this one."""
    others = [other for other in store.seeds if other != seed]
    if not others:
        return []
    own = Autoregression.fit(HORIZONS, joined_equations([equations[other] for other in others]), RIDGES[1])
    mean = baselines.TrainMean([store.trial(other) for other in others])
    own.name, mean.name = OWN, OWN_MEAN
    return [own, mean]


def judge(
    task: tuple[Path, Sequence[str], Sequence[str], Path, bool, bool, Sequence[Path], Path | None, Sequence[int]],
) -> str:
    """Add to OUT/NAME.json what is not there: sums over the origins drawn by time, for each forecaster and trial."""
    path, models, adapted, out, baselines_too, adapt, checkpoints, code, spacings = task
    store = Store.open(path)
    for model in models:
        require_unseen(store, store.seeds, model, learned_by(Path(model)), "judge another store")
    file = out / f"{path.name}.json"
    first = store.trial(store.seeds[0])
    found = json.loads(file.read_text()) if file.exists() else {
        "store": path.name, "environment": str(first.env_id), "weights": first.spec.size, "seeds": store.seeds,
        "algorithm": first.config.get("run", {}).get("algorithm", "PPO"), "horizons": HORIZONS, "forecasters": {},
    }  # fmt: skip
    asked: list[Forecaster] = without_a_model(out) if baselines_too else [baselines.persistence()]
    zoo = next((each for each in asked if each.name == ZOO), None)
    if adapt and zoo is not None:
        asked += [online_corrected([each], first) for each in (baselines.persistence(), zoo)]
    for model in models:
        forecaster = load_forecaster(model, first.spec.shapes)
        forecaster.name = name_of(Path(model))
        asked.append(forecaster)
        if model in adapted and zoo is not None:
            asked += [online_corrected([forecaster, zoo], first)]
    asked += [each for checkpoint in checkpoints for each in nino.nowcasts(checkpoint, first.spec, code, spacings)]
    asked = [each for each in asked if each.name not in found["forecasters"]]
    own = {} if OWN_MEAN in found["forecasters"] else {seed: equations_of(path, seed) for seed in store.seeds}
    if asked or own:
        sums: dict[str, list[Any]] = {}
        for seed in store.seeds:
            trial = store.trial(seed)
            origins = choose_origins(trial, replace(CONFIG, horizons=fitting(trial.committed)))
            mine = of_its_own(store, seed, own) if own else []
            compared = compare_weights([trial], origins, [*asked, *mine], fitting(trial.committed))
            for name, comparison in compared.items():
                sums.setdefault(name, []).append(summed(comparison, origins.by_time))
        found["forecasters"] |= sums
        file.write_text(json.dumps(found))
    return path.name


def name_of(model: Path) -> str:
    """Its folder's; of `last`, where training keeps its last step, the training's."""
    return model.parent.name if model.name == "last" else model.name


def fitting(count: int) -> tuple[int, ...]:
    """The horizons that fit into half of a trial."""
    return tuple(h for h in HORIZONS if h <= (count - 2) // 2)


def summed(of: Comparison, by_time: np.ndarray) -> dict[str, list[float]]:
    """Sums over the origins drawn by time, by horizon."""
    return {name: getattr(of, name)[by_time].sum(0).tolist() for name in SUMS}


def skills(found: dict[str, Any], name: str) -> np.ndarray:
    """[trials, H] NaN where nothing moved or a horizon does not fit."""
    rows = np.full((len(found["seeds"]), len(HORIZONS)), np.nan)
    for row, trial in zip(rows, found["forecasters"][name], strict=True):
        error, moved = (np.array(trial[key]) for key in ("error", "moved"))
        row[: len(error)] = 1 - np.divide(error, moved, out=np.full_like(error, np.nan), where=moved > 0)
    return rows


def table(out: Path, against: Sequence[str], json_file: Path | None, algorithm: str = "PPO") -> dict[str, Any]:
    """Mean skill over environments of the mean over their stores of the mean over their trials; intervals over
    environments."""
    files = [json.loads(path.read_text()) for path in sorted(out.glob("*.json")) if path.name != CHOSEN]
    files = [each for each in files if each["algorithm"] == algorithm]
    names = [name for name in files[0]["forecasters"] if all(name in each["forecasters"] for each in files)]
    environments = sorted({each["environment"] for each in files})
    by: dict[str, dict[str, np.ndarray]] = {
        name: {
            env: np.concatenate([skills(each, name) for each in files if each["environment"] == env])
            for env in environments
        }
        for name in names
    }
    mean = {name: np.stack([np.nanmean(by[name][env], axis=0) for env in environments]) for name in names}
    rng = np.random.default_rng
    rows: dict[str, Any] = {"environments": environments, "horizons": HORIZONS, "skill": {}, "lead": {}, "by": {}}
    for name in names:
        found = bootstrap_interval(np.mean, mean[name], rng=rng(0))
        rows["skill"][name] = [[each.value, each.low, each.high] for each in found]
        rows["by"][name] = {env: mean[name][row].round(4).tolist() for row, env in enumerate(environments)}
        for other in against:
            lead = bootstrap_interval(np.mean, mean[name] - mean[other], rng=rng(0))
            ahead = (mean[name] > mean[other]).sum(axis=0).tolist()
            rows["lead"].setdefault(other, {})[name] = {
                "lead": [[each.value, each.low, each.high] for each in lead], "environments_ahead": ahead
            }  # fmt: skip
    rows["below_nothing"] = {name: below for name in names if (below := _below_nothing(rows["by"][name]))}
    for name in sorted(names, key=lambda name: -mean[name][:, 0].mean()):
        print(f"{name:32}", "  ".join(f"{value:7.3f}" for value in mean[name].mean(axis=0)))
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1))
    return rows


def _below_nothing(by: dict[str, list[float]]) -> dict[str, dict[int, float]]:
    """Means below zero by environment and horizon. Most environments have too few trials for an interval."""
    found = {env: {h: each for h, each in zip(HORIZONS, row, strict=True) if each < 0} for env, row in by.items()}
    return {env: row for env, row in found.items() if row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("judge")
    verb.add_argument("stores", type=Path, nargs="+")
    verb.add_argument("--fit", type=Path, nargs="*", default=[])
    verb.add_argument("--choose", type=Path, nargs="*", default=[])
    verb.add_argument("--model", nargs="*", default=[])
    verb.add_argument("--nino", type=Path, nargs="*", default=[], help="checkpoints of NiNo, one of each kind")
    verb.add_argument("--nino-code", type=Path, help="a checkout of its repository, for the graph network")
    verb.add_argument("--spacings", type=int, nargs="+", default=nino.SPACINGS, help="of the states that NiNo sees")
    verb.add_argument("--adapted", nargs="*", default=[], help="those of --model that are also adapted in the run")
    verb.add_argument("--no-adapt", dest="adapt", action="store_false", help="nor the baselines")
    verb.add_argument("--models-only", action="store_true", help="no baselines; --fit and --choose are not needed")
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--workers", type=int, default=2)
    verb = verbs.add_parser("table")
    verb.add_argument("out", type=Path)
    verb.add_argument("--against", nargs="*", default=[ZOO, OWN], help="[the two autoregressions]")
    verb.add_argument("--algorithm", default="PPO")
    verb.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.verb == "table":
        table(asked.out, asked.against, asked.json, asked.algorithm)
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    if not asked.models_only and not (asked.out / CHOSEN).exists():
        fit(asked.fit, asked.choose, asked.out, asked.workers)
    each = (asked.model, asked.adapted, asked.out, not asked.models_only, asked.adapt, asked.nino, asked.nino_code,
            asked.spacings)  # fmt: skip
    tasks = [(path, *each) for path in asked.stores]
    with ProcessPoolExecutor(asked.workers, get_context("spawn"), end_with, (os.getpid(),)) as pool:
        for name in pool.map(judge, tasks):
            print("judged", name, flush=True)


if __name__ == "__main__":
    main()
