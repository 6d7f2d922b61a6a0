"""Runs: trials of one configuration each; how they are dealt into shards and tasks, and shown while they run.

In: what every run has left to do, an executor.  Out: tasks, the longest first, so that no core waits at
the end; progress.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tipl.collection.settings import trial_config
from tipl.collection.watch import Watch
from tipl.config.execution import Execution
from tipl.config.presets import CollectConfig, Device
from tipl.errors import TiplError
from tipl.executors.run import Executor
from tipl.processes import Numbers
from tipl.progress import console, steps_progress
from tipl.remote.working import is_there
from tipl.rl.trial_batch import TrialBatch
from tipl.store import Store, create_store, plan_trials

_FILL = 8  # what a trial costs is known to about this factor
_STEP_US, _WEIGHT_US = 50.0, 2e-4  # rough: an environment step and its update; a weight of the policy in an epoch of it


@dataclass(frozen=True)
class Run:
    """Trials of one configuration, and the store that they go to."""

    config: CollectConfig
    out: Path | str
    size: int
    """P, weights of the policy."""
    begun: Mapping[int, int]
    """Of the trials that are not complete the environment steps that they have done, by seed."""

    @property
    def cost(self) -> float:
        """About how many seconds a trial takes; only the order of tasks depends on it."""
        each = _STEP_US + _WEIGHT_US * self.size * self.config.ppo.update_epochs
        return 1e-6 * each * self.config.total_steps

    def name(self, seed: int, alone: bool) -> str:
        """What a trial is called; `alone`: there are no other runs."""
        return f"trial {seed}" if alone else f"{name_of(self.out)}/{seed}"


def name_of(out: Path | str) -> str:
    """What a store is called, at a path or an address."""
    return out.name if isinstance(out, Path) else out.rstrip("/").rpartition("/")[2]


def check_together(outs: Sequence[Path | str], device: Device, execution: Execution) -> None:
    if not outs:
        raise TiplError("There is nothing to collect; give pairs of a config and a store.")
    places = [out.absolute() if isinstance(out, Path) else out.rstrip("/") for out in outs]
    twice = next((out for n, out in enumerate(outs) if places[n] in places[:n]), None)
    if twice is not None:
        raise TiplError(f"Two runs are to go into {twice}; give each a store of its own.")
    if device == "cuda":
        from tipl.config.device import require_device

        if execution.executor == "ray":
            raise TiplError("--executor ray runs on cores, not on a GPU; leave --device out.")
        require_device(device)


def prepared(config: CollectConfig, out: Path | str, batch: TrialBatch, seeds: Sequence[int] | None) -> Run:
    """A run whose store knows of all its trials, also those of other shards: the split is of all.

    Args:
        seeds: that are this shard's; where there are none the store is left alone. None: nothing is written at all.
    """
    if seeds:
        _check_steps(create_store(out), config)
        plan_trials(
            out, config.seeds, env_id=config.env_id, config=trial_config(config), spec=batch.spec,
            may_grow=not config.ppo.anneal_lr,
        )  # fmt: skip
    store = Store.open(out) if seeds or (seeds is None and is_there(out)) else None
    have = {} if store is None else {seed: store.trial(seed) for seed in {*store.seeds} & {*config.seeds}}
    left = [seed for seed in config.seeds if store is None or seed not in have or not store.is_complete(seed)]
    begun = {seed: int(have[seed].env_step[-1]) if seed in have else 0 for seed in left}
    return Run(config, out, batch.spec.size, begun)


def _check_steps(store: Store, config: CollectConfig) -> None:
    """
    Raises:
        TiplError: trials of the store have fewer steps than `config` and cannot be given more.
    """
    for seed in sorted({*config.seeds} & {*store.seeds}):
        trial = store.trial(seed)
        steps = trial.config.get("total_steps", config.total_steps)
        if steps < config.total_steps and (config.ppo.anneal_lr or (trial.complete and not trial.has_checkpoint)):
            why = "at whose end its learning rate is 0" if config.ppo.anneal_lr else "and no checkpoint to go on from"
            raise TiplError(f"{store.path} holds trial {seed} with total_steps = {steps}, {why}; give another --out.")


def mine(runs: Sequence[Run], execution: Execution) -> list[list[int]]:
    """The seeds of each run that are this shard's, complete or not: the same in every call for the same runs."""
    trials = [(number, seed) for number, run in enumerate(runs) for seed in run.config.seeds]
    chosen = execution.mine([runs[number].cost for number, _ in trials])
    found = [list[int]() for _ in runs]
    for number, seed in (trials[each] for each in chosen):
        found[number].append(seed)
    return found


def tasks_of(costs: Sequence[float], trials: Sequence[Sequence[int]], slots: int) -> list[tuple[int, list[int]]]:
    """Divide the trials of several runs into tasks for so many slots; a task's trials run together, in one process.

    The longest runs begin first. Trials that run together are faster, and an environment takes a second until it is
    ready: so a run is one task while shorter ones can fill the other slots meanwhile, and has a task a slot after that.

    Args:
        costs: of a trial of each run.
        trials: of each run, those to be done.

    Returns:
        The numbers of runs, and the trials of the task.
    """
    whole = [cost * len(seeds) for cost, seeds in zip(costs, trials, strict=True)]
    found, behind = list[tuple[int, list[int]]](), sum(whole)
    for number in sorted(range(len(trials)), key=lambda number: -whole[number]):
        behind -= whole[number]
        fills = behind >= _FILL * (slots - 1) * whole[number]
        parts = min(1 if fills else slots, len(trials[number]))
        found += [(number, list(trials[number][part::parts])) for part in range(parts)]
    return sorted(found, key=lambda task: -costs[task[0]] * len(task[1]))


def run_tasks(
    work: Callable[..., None],
    runs: Sequence[Run],
    tasks: Sequence[tuple[int, list[int]]],
    executor: Executor,
    more: tuple[Any, ...],
) -> None:
    """Call work(parent, run, seeds, *more) for every task, and show how far the trials are.

    A task tells rows of (place in its seeds, environment steps, recent return).
    """
    alone = len(runs) == 1
    steps = {number: run.config.num_iterations * run.config.ppo.batch_size for number, run in enumerate(runs)}
    names = [[runs[number].name(seed, alone) for seed in seeds] for number, seeds in tasks]
    totals = {name: steps[number] for (number, _), each in zip(tasks, names, strict=True) for name in each}
    begun = {
        name: runs[number].begun[seed]
        for (number, seeds), each in zip(tasks, names, strict=True)
        for seed, name in zip(seeds, each, strict=True)
    }
    watch = Watch(totals, begun)
    with steps_progress("collect", watch.left, watch.trials) as advance:

        def heard(task: int, numbers: Numbers) -> None:
            for index, done, recent in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
                advance(watch.take(names[task][int(index)], int(done), recent), watch.mean_return())

        about = [_trials(each) for each in names] if alone else [", ".join(each) for each in names]
        executor.run(work, [(runs[number], seeds, *more) for number, seeds in tasks], about, heard)


def say_what_runs(runs: Sequence[Run], waiting: int, where: str) -> None:
    config = runs[0].config
    what = f"of {len(runs)} data sets"
    if len(runs) == 1:
        what = f"of {config.env_id} × {config.num_iterations} iterations ({config.num_snapshots} snapshots)"
    console.print(f"collect: {waiting} trials {what} {where}")


def _trials(names: Sequence[str]) -> str:
    """Of one run: trial 3; trials 3, 5."""
    return names[0] if len(names) == 1 else "trials " + ", ".join(name.removeprefix("trial ") for name in names)


def show_shares(runs: Sequence[Run], execution: Execution) -> None:
    """Print what each shard has to do, and how much of it is left."""
    each = [mine(runs, Execution(shard=f"{part + 1}/{execution.parts}")) for part in range(execution.parts)]
    width = len(str(execution.parts))
    for part, of_runs in enumerate(each):
        seeds = [(runs[number], seed) for number, found in enumerate(of_runs) for seed in found]
        left = [run.config.total_steps - run.begun[seed] for run, seed in seeds if seed in run.begun]
        some = ", ".join(run.name(seed, True).removeprefix("trial ") if len(runs) == 1 else run.name(seed, False)
                         for run, seed in seeds[:8])  # fmt: skip
        more = f" and {len(seeds) - 8} more" if len(seeds) > 8 else ""
        what = f"trials {some}{more}" if seeds else "nothing"
        steps = f", {len(left)} of {len(seeds)} left, {math.fsum(left):,.0f} steps" if seeds else ""
        console.print(f"shard {part + 1:{width}}/{execution.parts}: {what}{steps}")
