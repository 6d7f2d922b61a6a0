"""Collection: trials to a store, batches of them in parallel processes, resumable to the bit.

In: CollectConfig.  Out: a store (store/) with one group a trial, committed every minute.

One process a core, one compute thread a process; or, with a GPU, one process for all trials. A process owns its trials
and writes them itself; the parent shows progress. What a process commits with a trial is all that the trial's future
depends on, so the same command goes on after a kill and ends with the trajectory of an uninterrupted run.
"""

import contextlib
import dataclasses
import functools
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tipl
from tipl.checks import AnyPath, Count, checked_arguments
from tipl.collection.watch import Curves, Watch
from tipl.config.env_spec import EnvId, env_id_in
from tipl.config.presets import Backend, CollectConfig, Device, DiscreteCollectConfig
from tipl.errors import TiplError
from tipl.processes import Numbers, Parent, run_in_processes
from tipl.progress import console, scalars, steps_progress
from tipl.rl.env_described import registered
from tipl.rl.envs import chosen_backend, engine_versions, make_env
from tipl.rl.trial_batch import Abandoned, Iteration, NotFinite, TrialBatch
from tipl.store import Store, TrialWriter, create_store, plan_trials
from tipl.store.policy import OBS_CLIP

COMMIT_SECONDS = 60.0
MakeTrialBatch = Callable[[CollectConfig, Sequence[int]], TrialBatch]


@checked_arguments
def collect(
    config: CollectConfig = CollectConfig(),
    out: AnyPath = "store",
    *,
    workers: Count | None = None,
    tensorboard: AnyPath | None = None,
    device: Device = "cpu",
) -> Path:
    """Run the trials of `config` and record their weights; trials that the store already holds go on or are kept.

    A finished trial goes on if `config` has more total_steps and no `anneal_lr`, and ends with the very weights that it
    would have had if all steps had been asked for at once. With `anneal_lr` its learning rate has fallen to 0 by then.

    Args:
        config: what makes the trials.
        out: the store's folder; made if missing.
        workers: processes; default: one a core that this process may use, at most one a trial. With "cuda", threads.
        device: that runs the policies and their updates. On "cuda" one process runs all trials together, and
            `workers` threads step the environments.
        tensorboard: folder for CleanRL's curves of every trial (`charts/episodic_return` and its kin), for TensorBoard.

    Raises:
        TiplError: the environment cannot be collected with these settings, or `out` holds something else or trials of
            another config, or torch finds no CUDA device.
        KeyboardInterrupt: after every process has committed; the same call goes on.
    """
    out, cores = Path(out), len(os.sched_getaffinity(0))
    if device == "cuda":
        from tipl.config.device import require_device

        require_device(device)
    batch = TrialBatch(config, config.seeds[-1:])  # what cannot be collected is told before there is a store
    curves = None if tensorboard is None else Path(tensorboard)
    with scalars(curves):  # likewise what cannot be plotted
        pass
    _check_steps(create_store(out), config)
    plan_trials(
        out, config.seeds, env_id=config.env_id, config=trial_config(config), spec=batch.spec,
        may_grow=not config.ppo.anneal_lr,
    )  # fmt: skip
    store = Store.open(out)
    waiting = [seed for seed in config.seeds if seed not in store.seeds or not store.is_complete(seed)]
    if len(waiting) < config.trials:
        console.print(f"collect: {config.trials - len(waiting)} of {config.trials} trials are already complete.")
    if waiting:
        count = 1 if device == "cuda" else min(workers or cores, len(waiting))
        shares = [waiting[i::count] for i in range(count)]
        console.print(
            f"collect: {len(waiting)} trials of {config.env_id} × {config.num_iterations} iterations "
            f"({config.num_snapshots} snapshots) " + (f"on {device}" if device == "cuda" else f"in {count} processes")
        )
        begun = {seed: int(store.trial(seed).env_step[-1]) if seed in store.seeds else 0 for seed in waiting}
        tasks = [(config, out, share, begun, device, workers or cores, curves) for share in shares]
        watch = Watch(config.num_iterations * config.ppo.batch_size, begun)
        with steps_progress("collect", watch.left, watch.trials) as advance:

            def heard(task: int, numbers: Numbers) -> None:
                for index, steps, recent in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
                    advance(watch.take(shares[task][int(index)], int(steps), recent), watch.mean_return())

            run_in_processes(_run_share, tasks, count, [_trials(share) for share in shares], heard)
    return out


def _trials(seeds: Sequence[int]) -> str:
    return ("trial " if len(seeds) == 1 else "trials ") + ", ".join(map(str, seeds))


def default_config(
    env_id: str, backend: Backend = "auto", env_kwargs: Mapping[str, Any] | None = None
) -> CollectConfig:
    """CleanRL's settings for the kind of actions that an environment takes: `ppo_continuous_action`'s or `ppo`'s.

    Raises:
        TiplError: the environment cannot be made or collected.
    """
    kwargs = dict(env_kwargs or {})
    discrete = make_env(EnvId(env_id, {"kwargs": kwargs}), [0], backend).discrete
    kind = DiscreteCollectConfig if discrete else CollectConfig
    return kind(env_id=env_id, backend=backend, env_kwargs=kwargs)


def trial_config(config: CollectConfig) -> dict[str, Any]:
    """What makes a trial, apart from its seed, as JSON: the config without the number and seed of the trials, the
    backend that was chosen, within which ± normalized observations are held (None: they are as they are), and of
    Gymnasium's what the id stands for."""
    values = dataclasses.asdict(config)
    del values["trials"], values["seed"]
    values["hidden_sizes"] = list(config.hidden_sizes)
    values["backend"] = chosen_backend(config.env_id, config.backend)
    values["obs_clip"] = OBS_CLIP if config.ppo.normalize else None
    if values["backend"] == "gymnasium":
        values["environment"] = registered(env_id_in(config))
    return values


def run_stack(
    config: CollectConfig,
    out: Path,
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
        TiplError: a trial's observations, rewards or weights are no longer finite; all others have come to their end.
    """
    recorded = set(Store.open(out).seeds)
    if new := [seed for seed in seeds if seed not in recorded]:
        spec = make_batch(config, new[:1]).spec
        plan_trials(out, new, env_id=config.env_id, config=trial_config(config), spec=spec)
    begun: dict[int, list[_Begun]] = {}
    broken: list[str] = []
    with contextlib.ExitStack() as closing:
        for seed in seeds:
            if seed in recorded:
                writer, checkpoint = TrialWriter.resume(out, seed)
            else:
                writer, checkpoint = _begin_trial(config, out, seed, make_batch)
            begun.setdefault(int(checkpoint["iteration"]), []).append((seed, closing.enter_context(writer), checkpoint))
        for _, group in sorted(begun.items()):
            while group:
                batch = make_batch(config, [seed for seed, *_ in group])
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

    def commit(states: Sequence[Mapping[str, np.ndarray]], complete: bool = False) -> None:
        for writer, state in zip(writers, states, strict=True):
            writer.commit(state, complete=complete, may_grow=not batch.config.ppo.anneal_lr)

    while batch.iteration < batch.config.num_iterations:
        before = [batch.state(trial) for trial in range(len(writers))]
        try:
            result = batch.iterate()
            if diverged := [n for n in range(len(writers)) if not np.isfinite(result.snapshots[n]).all()]:
                raise NotFinite({n: _divergence(batch, n) for n in diverged})
        except Abandoned:
            commit(before)
            return [], []
        except NotFinite as error:
            commit(before)
            others = [n for n in range(len(writers)) if n not in error.trials]
            return [(group[n][0], writers[n], before[n]) for n in others], list(error.trials.values())
        complete = batch.iteration == batch.config.num_iterations
        due = complete or stopped() or time.monotonic() - committed > COMMIT_SECONDS
        for trial, writer in enumerate(writers):
            _append(batch, writer, trial, result.snapshots[trial], result.number, result.learning_rate)
            step, episode_return, length = result.episodes[trial].T
            writer.append_episodes(step.astype(np.int64), episode_return, length.astype(np.int64))
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


def _begin_trial(
    config: CollectConfig, out: Path, seed: int, make_batch: MakeTrialBatch = TrialBatch
) -> tuple[TrialWriter, Mapping[str, np.ndarray]]:
    """A new trial in the store with φ_0 committed, and the checkpoint of that."""
    batch, settings = make_batch(config, [seed]), trial_config(config)
    versions = {
        "tipl": tipl.__version__,
        "python": platform.python_version(),
        **engine_versions(settings["backend"]),
        **batch.versions,
    }
    writer = TrialWriter.create(
        out,
        seed,
        env_id=config.env_id,
        config=settings,
        spec=batch.spec,
        versions=versions,
        obs_dim=batch.env.obs_dim,
        num_snapshots=config.num_snapshots,
    )
    _append(batch, writer, 0, batch.policies, 0, config.ppo.learning_rate)
    writer.commit(batch.state(0))
    return writer, batch.state(0)


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


def _run_share(
    parent: Parent, config: CollectConfig, out: Path, seeds: list[int], begun: Mapping[int, int], device: Device,
    threads: int, tensorboard: Path | None,
) -> None:  # fmt: skip
    """Run these trials in a process of their own, write their curves and tell how far they are."""
    _check_known_here(config)
    with contextlib.ExitStack() as closing:
        traces: dict[int, Curves] = {}
        for seed in seeds:
            write = closing.enter_context(scalars(tensorboard and tensorboard / f"trial-{seed}"))
            traces[seed] = Curves(begun[seed], write)

        def on_iteration(group: Sequence[int], result: Iteration) -> None:
            steps = result.number * config.ppo.batch_size
            parent.tell(*(
                (seeds.index(seed), steps, traces[seed].take(steps, result.learning_rate, episodes))
                for seed, episodes in zip(group, result.episodes, strict=True)
            ))  # fmt: skip

        run_stack(config, out, seeds, on_iteration, parent.wants_stop, _batches(device, threads), parent.wants_stop)


def _check_known_here(config: CollectConfig) -> None:
    """
    Raises:
        TiplError: the process that started this one can make the environment and this one cannot.
    """
    try:
        make_env(env_id_in(config), [0], config.backend)
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
