"""Collection: trials to a store, batches of them in parallel processes, resumable to the bit.

In: CollectConfig.  Out: a store (store/) with one group a trial, committed every minute.

One process a core, one compute thread a process; or, with a GPU, one process for all trials. A process owns its trials
and writes them itself; the parent shows progress. What a process commits with a trial is all that the trial's future
depends on, so the same command goes on after a kill and ends with the trajectory of an uninterrupted run.
"""

import contextlib
import functools
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tipl
from tipl.checks import Count, Place, checked_arguments, is_address
from tipl.collection.runs import (
    Run,
    check_together,
    mine,
    name_of,
    prepared,
    run_tasks,
    say_what_runs,
    show_shares,
    tasks_of,
)
from tipl.collection.settings import trial_config
from tipl.collection.tracking import tracked
from tipl.collection.watch import Curves
from tipl.config.execution import LOCAL, Execution
from tipl.config.presets import CollectConfig, Device
from tipl.errors import TiplError
from tipl.executors.run import PATIENCE_SECONDS, executor
from tipl.processes import Parent
from tipl.progress import console
from tipl.remote.mirror import located
from tipl.rl.context import TOKENS, Memory, looked_back
from tipl.rl.envs import engine_versions
from tipl.rl.trial_batch import Abandoned, Iteration, NotFinite, TrialBatch
from tipl.store import Store, TrialWriter, plan_trials
from tipl.store.locks import Begun, Complete, Held
from tipl.store.root import LEASE_SECONDS

COMMIT_SECONDS = 60.0
MakeTrialBatch = Callable[[CollectConfig, Sequence[int]], TrialBatch]


@checked_arguments
def collect(
    config: CollectConfig = CollectConfig(),
    out: Place = "store",
    *,
    workers: Count | None = None,
    track: str | None = None,
    device: Device = "cpu",
    execution: Execution = LOCAL,
    dry_run: bool = False,
) -> Path:
    """Run the trials of `config` and record their weights; trials that the store already holds go on or are kept.

    A finished trial goes on if `config` has more total_steps and no `anneal_lr`, and ends with the very weights that it
    would have had if all steps had been asked for at once. With `anneal_lr` its learning rate has fallen to 0 by then.

    Args:
        config: what makes the trials.
        out: the store's folder, or s3://BUCKET/NAME; made if missing.
        workers: processes; default: one a core that this process may use, at most one a trial. With "cuda", threads.
            On Ray, tasks at once; default: one a core of the cluster.
        device: that runs the policies and their updates. On "cuda" one process runs all trials together, and
            `workers` threads step the environments.
        track: where CleanRL's curves of every trial go (`charts/episodic_return` and its kin): `tensorboard`, `wandb`
            or `trackio`, or one of them with =WHERE, a folder for the first and a project for the others.
        execution: where the trials run, and which of them are this call's.
        dry_run: only print what each shard would do; nothing is written.

    Returns:
        The store's folder; of an address, a folder that stands for it.

    Raises:
        TiplError: the environment cannot be collected with these settings, or `out` holds something else or trials of
            another config, another process is writing a trial, or torch finds no CUDA device.
        KeyboardInterrupt: after every process has committed; the same call goes on.
    """
    how: dict[str, Any] = {"workers": workers, "track": track, "device": device, "execution": execution}
    return collect_many([(config, out)], **how, dry_run=dry_run)[0]


@checked_arguments
def collect_many(
    runs: Sequence[tuple[CollectConfig, Place]],
    *,
    workers: Count | None = None,
    track: str | None = None,
    device: Device = "cpu",
    execution: Execution = LOCAL,
    dry_run: bool = False,
) -> list[Path]:
    """Collect several data sets as one piece of work, which keeps every core busy until its end.

    Each run is what `collect` makes of the same arguments, to the bit. What one of them refuses stops no other.

    Args:
        runs: pairs (config, out), one a store.
        workers, device, execution, dry_run: as in `collect`, for all of them together.
        track: as in `collect`; of several runs each trial's curves have the name of its store, too.

    Returns:
        The stores' folders; of addresses, folders that stand for them.

    Raises:
        TiplError: as `collect`; or two runs are to go into one store.
        KeyboardInterrupt: after every process has committed; the same call goes on.
    """
    outs: list[Path | str] = [out if isinstance(out, str) and is_address(out) else Path(out) for _, out in runs]
    check_together(outs, device, execution)
    with tracked(track):  # what cannot be plotted is told first
        pass
    batches = [TrialBatch(config, config.seeds[-1:]) for config, _ in runs]  # likewise what cannot be collected
    shares = mine(
        [Run(config, out, batch.spec.size, {}) for (config, _), out, batch in zip(runs, outs, batches, strict=True)],
        execution,
    )
    with executor(LOCAL if dry_run else execution, 1 if device == "cuda" else workers) as where:
        ready = [
            prepared(config, out, batch, None if dry_run else seeds)
            for (config, _), out, batch, seeds in zip(runs, outs, batches, shares, strict=True)
        ]
        if dry_run:
            show_shares(ready, execution)
            return [located(out) for out in outs]
        left = [[seed for seed in seeds if seed in run.begun] for run, seeds in zip(ready, shares, strict=True)]
        asked, waiting = sum(map(len, shares)), sum(map(len, left))
        if execution.parts > 1:
            console.print(f"collect: shard {execution.shard} has {asked} of {sum(c.trials for c, _ in runs)} trials.")
        if waiting < asked:
            console.print(f"collect: {asked - waiting} of {asked} trials are already complete.")
        if waiting:
            tasks = tasks_of([run.cost for run in ready], left, where.slots)
            place = "on cuda" if device == "cuda" else where.where.format(min(where.slots, len(tasks)))
            say_what_runs(ready, waiting, place)
            patience = PATIENCE_SECONDS if execution.executor == "ray" else 0.0
            if any(map(is_address, outs)):  # of a process that was killed elsewhere it is known when it would be late
                patience = LEASE_SECONDS + 30
            more = device, workers or len(os.sched_getaffinity(0)), track, len(runs) > 1, patience
            run_tasks(_run_share, ready, tasks, where, more)
    return [located(out) for out in outs]


def run_stack(
    config: CollectConfig,
    out: Path | str,
    seeds: Sequence[int],
    on_iteration: Any,
    stopped: Any = lambda: False,
    make_batch: MakeTrialBatch = TrialBatch,
    abandon: Callable[[], bool] = lambda: False,
) -> None:
    """Run these trials to their end in this process.

    Trials that were interrupted at different iterations are run group after group; no trial depends on its group. One
    in which something is no longer finite stays as it was before that, and the others go on.

    Args:
        on_iteration: called with (seeds, Iteration) after every iteration of a group.
        stopped: asked after every iteration; once true, everything is committed and the call returns.
        make_batch: from the config and seeds.
        abandon: asked within every iteration; once true, the iteration is given up, what was before it is committed,
            and the call returns.

    Raises:
        Held: another process is writing a trial; all others have come to their end.
        TiplError: a trial's observations, rewards or weights are no longer finite; all others have come to their end.
    """
    recorded = set(Store.open(out).seeds)
    fresh: TrialBatch | None = None
    if new := [seed for seed in seeds if seed not in recorded]:
        fresh = make_batch(config, new)
        plan_trials(out, new, env_id=config.env_id, config=trial_config(config), spec=fresh.spec)
    begun: dict[int, list[_Begun]] = {}
    broken: list[str] = []
    held: list[Held] = []
    with contextlib.ExitStack() as closing:
        for seed in seeds:
            try:
                writer, checkpoint = _writer(out, seed, None if seed in recorded else fresh)
            except Complete:  # another process was quicker
                continue
            except Held as error:
                held.append(error)
                continue
            begun.setdefault(int(checkpoint["iteration"]), []).append((seed, closing.enter_context(writer), checkpoint))
        for _, group in sorted(begun.items()):
            while group:
                now = [seed for seed, *_ in group]
                batch = fresh if fresh is not None and fresh.seeds == now else make_batch(config, now)
                fresh = None
                batch.restore([checkpoint for *_, checkpoint in group])
                batch.abandon = abandon
                group, found = _run_group(batch, group, on_iteration, stopped)
                broken += found
            if stopped() or abandon():
                break
    if broken:
        raise TiplError(
            f"{'; '.join(broken)}. What was before that is committed, and the other trials have gone on; mend the "
            "environment, or give a lower learning rate and another --out."
        )
    if held:
        more = f" So are {len(held) - 1} more of these trials." if len(held) > 1 else ""
        raise Held(f"{held[0]}{more}")


def _writer(out: Path | str, seed: int, fresh: TrialBatch | None) -> tuple[TrialWriter, Mapping[str, np.ndarray]]:
    """The writer of a trial that goes on or, of a fresh batch, begins, and where it stands. Raises Complete or Held."""
    if fresh is not None:
        with contextlib.suppress(Begun):  # by another process, a moment ago
            return _begin_trial(out, fresh, fresh.seeds.index(seed))
    return TrialWriter.resume(out, seed)


_Begun = tuple[int, TrialWriter, Mapping[str, np.ndarray]]  # a trial's seed, its writer, where it stands


def _run_group(
    batch: TrialBatch, group: Sequence[_Begun], on_iteration: Any, stopped: Any
) -> tuple[list[_Begun], list[str]]:
    """Run trials to their end, or until they are stopped.

    Returns:
        What remains to be run if something in a trial is no longer finite, the others, and that in words.
    """
    committed = time.monotonic()
    writers = [writer for _, writer, _ in group]
    memories = [Memory() for _ in group] if batch.config.context else []
    for memory, (_, _, checkpoint) in zip(memories, group, strict=False):
        memory.restore(checkpoint)

    def whole(trial: int, state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return {**state, **memories[trial].state()} if memories else state

    def commit(states: Sequence[Mapping[str, np.ndarray]], complete: bool = False) -> None:
        for trial, (writer, state) in enumerate(zip(writers, states, strict=True)):
            writer.commit(whole(trial, state), complete=complete, may_grow=not batch.config.ppo.anneal_lr)

    while batch.iteration < batch.config.num_iterations:
        before = [batch.state(trial) for trial in range(len(writers))]
        try:
            result = batch.iterate()
            if diverged := [n for n in range(len(writers)) if not np.isfinite(result.snapshots[n]).all()]:
                raise NotFinite({n: _divergence(batch, n) for n in diverged})
            memories[:], tokens = looked_back(batch, memories)
        except Abandoned:
            commit(before)
            return [], []
        except NotFinite as error:
            commit(before)
            others = [n for n in range(len(writers)) if n not in error.trials]
            return [(group[n][0], writers[n], whole(n, before[n])) for n in others], list(error.trials.values())
        complete = batch.iteration == batch.config.num_iterations
        due = complete or stopped() or time.monotonic() - committed > COMMIT_SECONDS
        for trial, writer in enumerate(writers):
            _append(batch, writer, trial, result.snapshots[trial], result.number, result.learning_rate)
            step, episode_return, length = result.episodes[trial].T
            writer.append_episodes(step.astype(np.int64), episode_return, length.astype(np.int64))
        for writer, tokens_JP in zip(writers, tokens, strict=False):
            writer.append_tokens(tokens_JP[None])
        if due:
            commit([batch.state(trial) for trial in range(len(writers))], complete)
            committed = time.monotonic()
        on_iteration(batch.seeds, result)
        if stopped():
            if not due:
                commit([batch.state(trial) for trial in range(len(writers))])
            break
    return [], []


def _divergence(batch: TrialBatch, trial: int) -> str:
    return (
        f"the weights of trial {batch.seeds[trial]} of {batch.config.env_id} are no longer finite after iteration "
        f"{batch.iteration}"
    )


def _append(
    batch: TrialBatch, writer: TrialWriter, trial: int, weights: np.ndarray, iteration: int, rate: float
) -> None:
    config, count = batch.config, len(weights)
    epochs = np.arange(1, count + 1) * config.snapshot_every_epochs if iteration else np.zeros(1, np.int64)
    writer.append(
        weights,
        env_step=np.full(count, iteration * config.ppo.batch_size),
        iteration=np.full(count, iteration),
        epoch=epochs,
        learning_rate=np.full(count, rate),
        obs_mean=np.repeat(batch.obs_mean[trial][None], count, axis=0),
        obs_var=np.repeat(batch.obs_var[trial][None], count, axis=0),
        obs_count=np.full(count, batch.obs_count[trial]),
    )


def _begin_trial(out: Path | str, batch: TrialBatch, trial: int) -> tuple[TrialWriter, Mapping[str, np.ndarray]]:
    """A trial of a fresh batch, in the store with φ_0 committed, and the checkpoint of that."""
    config, settings = batch.config, trial_config(batch.config)
    versions = {
        "tipl": tipl.__version__,
        "python": platform.python_version(),
        **engine_versions(settings["backend"]),
        **batch.versions,
    }
    writer = TrialWriter.create(
        out,
        batch.seeds[trial],
        env_id=config.env_id,
        config=settings,
        spec=batch.spec,
        versions=versions,
        obs_dim=batch.env.obs_dim,
        num_snapshots=config.num_snapshots,
        num_tokens=TOKENS if config.context else 0,
    )
    _append(batch, writer, trial, batch.policies[trial, None], 0, config.ppo.learning_rate)
    state = batch.state(trial)
    writer.commit(state)
    return writer, state


def _run_share(
    parent: Parent, run: Run, seeds: list[int], device: Device, threads: int, track: str | None, several: bool,
    patience: float,
) -> None:  # fmt: skip
    """Run these trials in a process of their own, write their curves and tell how far they are.

    Args:
        several: there are other runs, whose curves stand beside.
        patience: seconds to wait for a trial that another process is writing, perhaps one that is dying.
    """
    config, settings = run.config, _settings_here(run.config)
    with contextlib.ExitStack() as closing:
        traces: dict[int, Curves] = {}
        for seed in seeds:
            name = f"{name_of(run.out)}/trial-{seed}" if several else f"trial-{seed}"
            write = closing.enter_context(tracked(track, name, {"seed": seed, **settings}))
            traces[seed] = Curves(run.begun[seed], write)

        def on_iteration(group: Sequence[int], result: Iteration) -> None:
            steps = result.number * config.ppo.batch_size
            parent.tell(*(
                (seeds.index(seed), steps, traces[seed].take(steps, result.learning_rate, episodes))
                for seed, episodes in zip(group, result.episodes, strict=True)
            ))  # fmt: skip

        until, stop = math.inf, parent.wants_stop
        while True:
            try:
                return run_stack(config, run.out, seeds, on_iteration, stop, _batches(device, threads), stop)
            except Held:
                until = min(until, time.monotonic() + patience)
                if time.monotonic() >= until or stop():
                    raise
                time.sleep(1)


def _settings_here(config: CollectConfig) -> dict[str, Any]:
    """What makes a trial, as its store says it.

    Raises:
        TiplError: the process that started this one knows the environment and this one does not.
    """
    try:
        return trial_config(config)
    except TiplError as error:
        raise TiplError(
            f"{error} The processes that collect know an environment that a module registers (--env-id module:Id), or "
            'a script whose work stands under if __name__ == "__main__":.'
        ) from error


def _batches(device: Device, threads: int) -> MakeTrialBatch:
    """How batches are made for a device; `threads` step the environments beside a GPU."""
    if device == "cpu":
        return TrialBatch
    from tipl.rl.trial_batch_torch import TorchTrialBatch

    return functools.partial(TorchTrialBatch, threads=threads, device=device)
