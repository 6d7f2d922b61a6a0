"""Evaluation of many stores, a process a store, and one table of them all.

In: stores, folders of stores or collections.  Out: OUT/NAME, an evaluation of each; OUT/table.json, sealed, a row for
each store and forecaster, and for each environment and forecaster.

A store whose evaluation is there is not judged again, so the same call goes on. Memory is that of one evaluation in
each process.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tipl.catalog.manifest import Collection, has_manifest, is_store, store_names
from tipl.checks import AnyPath, Count, Place, checked_arguments
from tipl.config.execution import LOCAL, Execution, dealt
from tipl.config.presets import EvaluateConfig
from tipl.errors import TiplError
from tipl.evaluation.evaluate import METRICS_FILE, evaluate
from tipl.executors.run import PATIENCE_SECONDS, executor
from tipl.files import read_json, require_no_store_above, write_json
from tipl.parts import claimed
from tipl.processes import Parent
from tipl.progress import console, steps_progress
from tipl.remote.mirror import located, mirror_of
from tipl.store import Store

TABLE_FILE = "table.json"
_METRICS_BYTES = 1 << 30
_MEASURES = "skill", "repw"
_PATIENCE = {"ray": PATIENCE_SECONDS}


@checked_arguments
def evaluate_many(
    stores: Place | Sequence[Place],
    out: AnyPath,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    models: Sequence[Place] = (),
    fit: Place | Sequence[Place] | None = None,
    returns: bool = True,
    trust: bool = False,
    workers: Count | None = None,
    execution: Execution = LOCAL,
    dry_run: bool = False,
) -> Path:
    """Judge baselines and models on the test trials of every store, each as `evaluate` does, and put them in one table.

    Args:
        stores: stores, or folders that hold stores, collections among them.
        out: a folder, new or of an earlier call, which goes on: it gets an evaluation in a folder of each store's name,
            and table.json once all are there.
        config, models, fit, returns, trust: as in `evaluate`, the same for every store.
        workers: processes; default: one a core.
        execution: where the evaluations run, and which of them are this call's.
        dry_run: only print what each shard would do; nothing is written.

    Returns:
        `out`, without a table.json while other shards have stores to judge.

    Raises:
        TiplError: as `evaluate`, after all others have come to their end; two stores have one name, or a folder holds
            none.
    """
    out, every = Path(out), _named(stores)
    require_no_store_above(out)
    names = [*every]
    sizes = [_size(path) for path in every.values()]
    if dry_run:
        for part, share in enumerate(dealt(sizes, execution.parts)):
            left = sum(not _done(out / names[index]) for index in share)
            some = ", ".join(names[index] for index in share) or "nothing"
            console.print(f"shard {part + 1}/{execution.parts}: {some}; {left} of {len(share)} left")
        return out
    waiting = [names[index] for index in execution.mine(sizes) if not _done(out / names[index])]
    if waiting:
        how = {"models": models, "fit": fit, "returns": returns, "trust": trust}
        patience = _PATIENCE.get(execution.executor, 0.0)
        with executor(execution, workers) as where, steps_progress("evaluate: stores", len(waiting)) as advance:
            console.print(f"evaluate: {len(waiting)} stores {where.where.format(min(where.slots, len(waiting)))}")
            tasks = [(every[name], out / name, config, how, patience) for name in waiting]
            where.run(_evaluate_one, tasks, waiting, ended=lambda task: advance(1, waiting[task]))
    missing = [name for name in names if not _done(out / name)]
    if missing:
        console.print(f"evaluate: shard {execution.shard} is done; other shards have {len(missing)} stores left.")
        return out
    write_json(out / TABLE_FILE, table({name: out / name for name in names}), seal=True)
    return out


def are_many(stores: Sequence[Place]) -> bool:
    """Whether these are several stores, or folders or collections of stores."""
    folder = located(stores[0])
    return len(stores) > 1 or _inside(folder) not in ([], [folder])


def _inside(folder: Path) -> list[Path]:
    """The stores of a collection or a folder; a store itself, or what may be one elsewhere."""
    if is_store(folder):
        return [folder]
    if has_manifest(folder):
        return [folder / name for name in Collection.open(folder).stores]
    if mirror_of(folder) or not folder.is_dir():
        return [folder]
    return [folder / name for name in store_names(folder)]


def _named(stores: Place | Sequence[Place]) -> dict[str, Path]:
    """Every store by its folder's name, below a folder that was given by its path from there (zoo/ant: zoo-ant).

    Raises:
        TiplError: there is none, or two have one name.
    """
    asked = [stores] if isinstance(stores, str) or not isinstance(stores, Sequence) else stores
    found: dict[str, Path] = {}
    for each in map(located, asked):
        inside = _inside(each)
        if not inside:
            raise TiplError(f"{each} holds no store; give stores, or a folder of stores.")
        for path in inside:
            name = path.name if path == each else str(path.relative_to(each)).replace("/", "-")
            if name in found:
                raise TiplError(f"{found[name]} and {path} have one name; rename one, or evaluate it apart.")
            found[name] = path
    if not found:
        raise TiplError("There is nothing to judge; give a store.")
    return found


def _size(store: Path) -> float:
    """About how long an evaluation takes, beside others: what is read of each test trial."""
    data = Store.open(store)
    test = [seed for seed in data.seeds if data.root.parts[seed] == "test"]
    return float(sum(1e6 + data.trial(seed).committed * data.trial(seed).spec.size for seed in test))


def _done(evaluation: Path) -> bool:
    return (evaluation / METRICS_FILE).exists()


def _evaluate_one(
    parent: Parent, store: Path, out: Path, config: EvaluateConfig, how: Mapping[str, Any], patience: float
) -> None:
    """Judge one store in a process of its own, unless another process does."""
    with claimed(out.with_name(f"{out.name}.evaluation"), patience, parent.wants_stop) as ours:
        if not ours:
            raise TiplError(f"{out} is being written by another process; wait for it, or stop it.")
        if not _done(out):
            evaluate(store, out, config, **how)


def table(evaluations: Mapping[str, Path]) -> dict[str, Any]:
    """Return one table of evaluations, by their names.

    Returns:
        `stores`: rows of store, environment, hidden layers, weights P, test trials, forecaster, whether it is a model,
        and by horizon the skill in weights and (where policies were run) how far returns are off. `environments`: the
        means over the stores of an environment, and how many there are. `all`: the means over environments.

    Raises:
        TiplError: an evaluation is not there, or damaged.
    """
    rows = []
    for name, folder in evaluations.items():
        found = read_json(folder / METRICS_FILE, most=_METRICS_BYTES, sealed=True)
        about = {
            "store": name, "environment": str(found["env_id"]), "hidden_sizes": found["hidden_sizes"],
            "weights": found["num_weights"], "test_trials": len(found["test_trials"]),
        }  # fmt: skip
        rows += [
            {**about, "forecaster": forecaster, "model": of["model"], **_scores(of)}
            for forecaster, of in found["forecasters"].items()
        ]
    environments = _means(rows, "environment", "forecaster")
    return {"stores": rows, "environments": environments, "all": _means(environments, "forecaster")}


def _scores(of: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The measures of a forecaster that the table has, by horizon."""
    return {measure: of[measure] for measure in _MEASURES if measure in of}


def _means(rows: Sequence[Mapping[str, Any]], *by: str) -> list[dict[str, Any]]:
    """Means of the measures over the rows that agree in `by`, at the horizons that all of them have."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in by)].append(row)
    found = []
    for key, of_group in groups.items():
        made: dict[str, Any] = {**dict(zip(by, key, strict=True)), "of": len(of_group)}
        for measure in _MEASURES:
            each = [row[measure] for row in of_group if measure in row]
            shared = [h for h in each[0] if all(h in values for values in each)] if each else []
            if len(each) == len(of_group):
                made[measure] = {h: math.fsum(values[h] for values in each) / len(each) for h in shared}
        found.append(made)
    return found
