"""Collection: trials to a store, stacks of them in parallel processes, resumable to the bit.

In: CollectConfig.  Out: a store (store/) with one group a trial, committed every minute.

One process a core, one compute thread a process; or, with a GPU, one process for all trials. A process owns its trials
and writes them itself; the parent shows progress. What a process commits with a trial is all that the trial's future
depends on, so the same command goes on after a kill and ends with the trajectory of an uninterrupted run.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import platform
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from rich.columns import Columns

import tipl
from tipl.checks import AnyPath, Count, checked_arguments
from tipl.env_spec import EnvId
from tipl.envs import chosen_backend, engine_versions, make_env
from tipl.errors import TiplError
from tipl.policy import OBS_CLIP
from tipl.presets import Backend, CollectConfig, Device, DiscreteCollectConfig
from tipl.progress import console, scalars, steps_progress
from tipl.stack import Iteration, Stack
from tipl.store import Store, TrialWriter, create_store, plan_trials

COMMIT_SECONDS = 60.0
# What stores from before there were these settings were made with.
_ONCE_UNSAID = {"env_kwargs": {}, "activation": "tanh", "obs_clip": OBS_CLIP}
_ONCE_UNSAID_OF_PPO = {"num_envs": 1, "normalize": True}
MakeStack = Callable[[CollectConfig, Sequence[int]], Stack]
_RECENT = 10  # episodes that make a trial's "return so far"


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

    Args:
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
        from tipl.device import require_device

        require_device(device)
    stack = Stack(config, config.seeds[-1:])  # what cannot be collected is told before there is a store
    store = create_store(out)
    waiting = [seed for seed in config.seeds if not _is_complete(store, seed, config)]
    plan_trials(out, config.seeds, env_id=config.env_id, config=trial_config(config), spec=stack.spec)
    if len(waiting) < config.trials:
        console.print(f"collect: {config.trials - len(waiting)} of {config.trials} trials are already complete.")
    if waiting:
        count = 1 if device == "cuda" else min(workers or cores, len(waiting))
        shares = [waiting[i::count] for i in range(count)]
        console.print(
            f"collect: {len(waiting)} trials of {config.env_id} × {config.num_iterations} iterations "
            f"({config.num_snapshots} snapshots) " + (f"on {device}" if device == "cuda" else f"in {count} processes")
        )
        begun = {seed: _steps_done(store, seed) for seed in waiting}
        with contextlib.ExitStack() as closing:
            curves = {
                seed: closing.enter_context(scalars(tensorboard and Path(tensorboard) / f"trial-{seed}"))
                for seed in waiting
            }
            watch = _Watch(config.num_iterations * config.ppo.batch_size, begun, curves)
            _run_processes(config, out, shares, watch, device, workers or cores)
    return out


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
    backend that was chosen, and within which ± normalized observations are held (None: they are as they are)."""
    values = dataclasses.asdict(config)
    del values["trials"], values["seed"]
    values["hidden_sizes"] = list(config.hidden_sizes)
    values["backend"] = chosen_backend(config.env_id, config.backend)
    values["obs_clip"] = OBS_CLIP if config.ppo.normalize else None
    return values


def run_stack(
    config: CollectConfig,
    out: Path,
    seeds: Sequence[int],
    on_iteration: Any,
    stopped: Any = lambda: False,
    make_stack: MakeStack = Stack,
) -> None:
    """Run these trials to their end in this process.

    Trials that were interrupted at different iterations are run group after group; no trial depends on its group.

    Args:
        on_iteration: called with (seeds, Iteration) after every iteration of a group.
        stopped: asked after every iteration; once true, everything is committed and the call returns.
        make_stack: from the config and seeds.
    """
    recorded = set(Store.open(out).seeds)
    if new := [seed for seed in seeds if seed not in recorded]:
        spec = make_stack(config, new[:1]).spec
        plan_trials(out, new, env_id=config.env_id, config=trial_config(config), spec=spec)
    begun: dict[int, list[tuple[int, TrialWriter, Mapping[str, np.ndarray]]]] = {}
    for seed in seeds:
        if seed in recorded:
            writer, checkpoint = TrialWriter.resume(out, seed)
        else:
            writer, checkpoint = _begin_trial(config, out, seed, make_stack)
        begun.setdefault(int(checkpoint["iteration"]), []).append((seed, writer, checkpoint))
    for _, group in sorted(begun.items()):
        members, writers, checkpoints = zip(*group, strict=True)
        stack = make_stack(config, members)
        stack.restore(checkpoints)
        _run_group(stack, writers, on_iteration, stopped)
        if stopped():
            return


def _run_group(stack: Stack, writers: Sequence[TrialWriter], on_iteration: Any, stopped: Any) -> None:
    committed = time.monotonic()
    while stack.iteration < stack.config.num_iterations:
        result = stack.iterate()
        complete = stack.iteration == stack.config.num_iterations
        due = complete or stopped() or time.monotonic() - committed > COMMIT_SECONDS
        for trial, writer in enumerate(writers):
            _append(stack, writer, trial, result.snapshots[trial], result.number, result.learning_rate)
            step, episode_return, length = result.episodes[trial].T
            writer.append_episodes(step.astype(np.int64), episode_return, length.astype(np.int64))
            if due:
                writer.commit(stack.state(trial), complete=complete)
        if due:
            committed = time.monotonic()
        on_iteration(stack.seeds, result)
        if stopped():
            return


def _append(stack: Stack, writer: TrialWriter, trial: int, weights: np.ndarray, iteration: int, rate: float) -> None:
    config, count = stack.config, len(weights)
    epochs = np.arange(1, count + 1) * config.snapshot_every_epochs if iteration else np.zeros(1, np.int64)
    writer.append(
        weights,
        env_step=np.full(count, iteration * config.ppo.batch_size),
        iteration=np.full(count, iteration),
        epoch=epochs,
        learning_rate=np.full(count, rate),
        obs_mean=np.repeat(stack.obs_mean[trial][None], count, axis=0),
        obs_var=np.repeat(stack.obs_var[trial][None], count, axis=0),
        obs_count=np.full(count, stack.obs_count[trial]),
    )


def _begin_trial(
    config: CollectConfig, out: Path, seed: int, make_stack: MakeStack = Stack
) -> tuple[TrialWriter, Mapping[str, np.ndarray]]:
    """A new trial in the store with φ_0 committed, and the checkpoint of that."""
    stack, settings = make_stack(config, [seed]), trial_config(config)
    versions = {
        "tipl": tipl.__version__,
        "python": platform.python_version(),
        **engine_versions(settings["backend"]),
        **stack.versions,
    }
    writer = TrialWriter.create(
        out,
        seed,
        env_id=config.env_id,
        config=settings,
        spec=stack.spec,
        versions=versions,
        obs_dim=stack.env.obs_dim,
        num_snapshots=config.num_snapshots,
    )
    _append(stack, writer, 0, stack.policies, 0, config.ppo.learning_rate)
    writer.commit(stack.state(0))
    return writer, stack.state(0)


def _is_complete(store: Store, seed: int, config: CollectConfig) -> bool:
    """Whether the store holds the whole trial.

    Raises:
        TiplError: it holds a trial of this seed under another config.
    """
    if seed not in store.seeds:
        return False
    trial, wanted = store.trial(seed), trial_config(config)
    found = {**_ONCE_UNSAID, **trial.config, "ppo": {**_ONCE_UNSAID_OF_PPO, **trial.config.get("ppo", {})}}
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        raise TiplError(
            f"{store.path} holds trial {seed} with {key} = {found.get(key)}, not {wanted[key]}; "
            "give another --out, or the settings that it was made with."
        )
    return trial.complete


def _steps_done(store: Store, seed: int) -> int:
    return int(store.trial(seed).env_step[-1]) if seed in store.seeds else 0


def _run_processes(
    config: CollectConfig, out: Path, shares: list[list[int]], watch: "_Watch", device: Device, threads: int
) -> None:
    context = multiprocessing.get_context("spawn")
    messages, stop = context.Queue(), context.Event()
    processes = [
        context.Process(target=_process, args=(config, out, share, device, threads, messages, stop), daemon=True)
        for share in shares
    ]
    with one_thread_a_process(), deaf_to_interrupts():
        for process in processes:
            process.start()
    try:
        _show(watch, processes, messages)
    except BaseException:
        stop.set()  # the processes commit at the end of their iteration
        for process in processes:
            process.join()
        raise
    for process in processes:
        process.join()


class _Watch:
    """What is known of every running trial: how far it is, how fast it goes, what it earns."""

    def __init__(
        self, total: int, begun: Mapping[int, int], curves: Mapping[int, Callable[[str, float, int], None]]
    ) -> None:
        """Trials of `total` steps that stand at `begun[seed]`, and where the points of their curves go."""
        self.total = total
        self.left = sum(total - steps for steps in begun.values())
        self._first = dict(begun)
        self._steps = dict(begun)
        self._recent: dict[int, list[float]] = {seed: [] for seed in begun}
        self._began = time.monotonic()
        self._curves = curves

    def take(self, seed: int, steps: int, learning_rate: float, episodes: np.ndarray) -> None:
        """A trial has gone on by `steps`, in which these episodes [E, 3] ended (step, return, length)."""
        self._steps[seed] += steps
        self._recent[seed] = [*self._recent[seed], *episodes[:, 1].tolist()][-_RECENT:]
        write = self._curves[seed]
        for step, episode_return, length in episodes.tolist():
            write("charts/episodic_return", episode_return, int(step))
            write("charts/episodic_length", length, int(step))
        write("charts/learning_rate", learning_rate, self._steps[seed])
        write("charts/SPS", self._pace(seed), self._steps[seed])

    def _pace(self, seed: int) -> float:
        """Steps a second."""
        return (self._steps[seed] - self._first[seed]) / max(time.monotonic() - self._began, 1e-9)

    def mean_return(self) -> str:
        means = [np.mean(values) for values in self._recent.values() if values]
        return f"return {np.mean(means):.0f}" if means else ""

    def trials(self) -> Columns:
        """A cell a trial: its seed, its share of the steps, steps a second, return so far; as many as there is room."""
        cells = []
        for seed, steps in self._steps.items():
            recent = f"{np.mean(self._recent[seed]):.0f}" if self._recent[seed] else "–"
            pace = "done" if steps >= self.total else f"{steps / self.total:.0%} {self._pace(seed):,.0f}/s"
            cells.append(f"trial {seed}: {pace}, return {recent}")
        a_row = max(1, console.width // (2 + max(map(len, cells))))
        return Columns(cells[: a_row * max(1, console.height - 3)], equal=True, padding=(0, 2))


def _show(watch: _Watch, processes: list[Any], messages: Any) -> None:
    """Progress until every process has said that it is done; its error, if it has one."""
    running = len(processes)
    with steps_progress("collect", watch.left, watch.trials) as advance:
        while running:
            try:
                kind, content = messages.get(timeout=1.0)
            except queue.Empty:
                if any(process.exitcode not in (None, 0) for process in processes):
                    raise RuntimeError("a collecting process died; the same command goes on") from None
                continue
            if kind == "done":
                running -= 1
            elif kind == "input":
                raise TiplError(content)
            elif kind == "bug":
                raise RuntimeError(content)
            else:
                steps, learning_rate, episodes = content
                for seed, rows in episodes.items():
                    watch.take(seed, steps, learning_rate, rows)
                advance(steps * len(episodes), watch.mean_return())


def _process(
    config: CollectConfig, out: Path, seeds: list[int], device: Device, threads: int, messages: Any, stop: Event
) -> None:
    parent = multiprocessing.parent_process()

    def stopped() -> bool:
        return stop.is_set() or parent is None or not parent.is_alive()

    def on_iteration(group: list[int], result: Iteration) -> None:
        episodes = dict(zip(group, result.episodes, strict=True))
        messages.put(("progress", (config.ppo.batch_size, result.learning_rate, episodes)))

    try:
        run_stack(config, out, seeds, on_iteration, stopped, _stacks(device, threads))
    except TiplError as error:
        messages.put(("input", str(error)))
    except Exception:
        messages.put(("bug", traceback.format_exc()))
    else:
        messages.put(("done", None))


def _stacks(device: Device, threads: int) -> MakeStack:
    """How stacks are made for a device; `threads` step the environments beside a GPU."""
    if device == "cpu":
        return Stack
    from tipl.stack_torch import TorchStack

    return functools.partial(TorchStack, threads=threads, device=device)


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started within ignore Ctrl-C from their first moment on: the parent says when to stop."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set this
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def one_thread_a_process() -> Iterator[None]:
    """Processes started within compute with one thread each; BLAS reads these when it is loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
