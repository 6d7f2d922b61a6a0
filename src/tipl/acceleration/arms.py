"""Arms: ways to train, plainly, with jumps to forecast weights or as a rival of jumps does, run on the same seeds.

In: arms.  Out: of every seed and iteration the return, what came of a jump, and the seconds, kept in parts on disk.

An accelerated trial is a plain one until its first jump, to the bit: same seeds, same draws. Its jumps cost no
environment steps, and their time is measured apart. Shapes: N seeds, I iterations, P weights.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tipl
from tipl.acceleration.judging import batch_judge, outcome_judge
from tipl.acceleration.jump import KINDS, Jumper, may_jump
from tipl.acceleration.rivals import batch_of
from tipl.collection.settings import trial_config
from tipl.config.execution import LOCAL, Execution, dealt
from tipl.config.jumps import JumpConfig
from tipl.config.presets import CollectConfig
from tipl.config.rivals import Rival, parts_of_arm
from tipl.errors import TiplError
from tipl.executors.run import PATIENCE_SECONDS, Executor, executor
from tipl.forecasting.forecaster import Forecaster
from tipl.forecasting.named import beginnings, forecaster_digest, load_forecaster
from tipl.parts import ENDING, claimed, keep_part, kept_part
from tipl.processes import Parent
from tipl.progress import console, steps_progress
from tipl.rl.context import Memory
from tipl.rl.envs import chosen_backend, engine_versions
from tipl.rl.trial_batch import Abandoned, TrialBatch
from tipl.store import beginning_of

_TOGETHER = 5  # seeds that are run, and written when they are done, together


@dataclass(frozen=True)
class Arm:
    """One way to train: PPO's settings, and a forecaster to jump with, a rival of jumps, both, or none."""

    config: CollectConfig
    forecaster: str | None = None
    """A `ForecasterName`, the folder of a causal model, a rival as in `config/rivals.py`, or `RIVAL+FORECASTER`; None:
    plain PPO."""
    jump: JumpConfig = JumpConfig()
    fit: Path | None = None
    """The store that the autoregression is fitted on; None: the package's own."""

    own: Callable[[TrialBatch], Forecaster] | None = None
    """Makes the forecaster instead, which `forecaster` then only names; to run in other processes, a module's."""

    @property
    def rival(self) -> Rival | None:
        return None if self.forecaster is None else parts_of_arm(self.forecaster)[0]

    @property
    def jumps_with(self) -> str | None:
        """The forecaster alone."""
        return None if self.forecaster is None else parts_of_arm(self.forecaster)[1]

    def batch(self, seeds: Sequence[int]) -> TrialBatch:
        """Trials that train so; their jumps apart."""
        made = batch_of(self.config, seeds, self.rival)
        if self.jumps_with is not None and self.jump.critic:
            made.snapshot_size = made.theta.shape[1]
        return made

    def facts(self) -> dict[str, Any]:
        """What makes its results, as JSON."""
        forecaster = self.jumps_with
        jumps = {} if forecaster is None else {"jump": dataclasses.asdict(self.jump)}
        fit = {} if self.fit is None else {"fit": Path(self.fit).name}
        made = None if forecaster is None or self.own is not None else forecaster_digest(forecaster, self.fit)
        of = {} if made is None else {"forecaster_digest": made}
        return {"config": trial_config(self.config), "forecaster": self.forecaster, **jumps, **fit, **of}

    def digest(self) -> str:
        """What its parts are called by: all that makes their results, among it the forecaster's own content and the
        programs that run them. The number of trials is no part of it: with more of them the first parts stay."""
        facts = self.facts() | {"versions": versions(self.config)}
        if facts.pop("forecaster_digest", None) is not None:  # then neither its place nor its store's name counts
            facts = {name: value for name, value in facts.items() if name not in ("forecaster", "fit")}
            assert self.forecaster is not None and self.jumps_with is not None
            made = forecaster_digest(self.jumps_with, self.fit)
            facts["forecaster"] = f"{self.forecaster.removesuffix(self.jumps_with)}{made}"
        if self.jumps_with == "noise":
            facts["noise"] = self.config.seed
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def versions(config: CollectConfig) -> dict[str, str]:
    """Of what runs an arm."""
    own = {"tipl": tipl.__version__, "python": platform.python_version()}
    own |= {name: importlib.metadata.version(name) for name in ("numpy", "numba")}
    return own | engine_versions(chosen_backend(config.env_id, config.backend))


def run_arms(
    arms: Mapping[str, Arm],
    out: Path,
    workers: int | None = None,
    execution: Execution = LOCAL,
    dry_run: bool = False,
) -> dict[str, dict[str, np.ndarray]] | None:
    """Run every seed of every arm, in parts of a few seeds; what lies in `out` already is read.

    Args:
        dry_run: print what each shard would do, and do nothing.

    Returns:
        For each arm `returns` [N, I] (the mean of the episodes that ended in an iteration; NaN before the first),
        `kinds` [N, I] (numbers of `KINDS`), `shares`, `kl`, `trust` [N, I], `seconds` and `jump_seconds` [N] of the
        processor. None while other shards have parts to do.
    """
    for arm in arms.values():
        batch = arm.batch(arm.config.seeds[:1])  # what cannot be run is told before there is a folder
        jumpers_of(arm, batch)
    out = Path(out)
    parts: dict[str, list[tuple[Path, list[int]]]] = {}
    for name, arm in arms.items():
        seeds, digest = list(arm.config.seeds), arm.digest()
        groups = [seeds[start : start + _TOGETHER] for start in range(0, len(seeds), _TOGETHER)]
        parts[name] = [(out / "parts" / f"{digest}-{group[0]}-{group[-1]}{ENDING}", group) for group in groups]
    every = [*{path: _Part(arms[name], path, group) for name in arms for path, group in parts[name]}.values()]
    left = [part for part in every if kept_part(part.path, part.shapes) is None]
    if dry_run:
        _show_shares(every, left, execution.parts)
        return None
    chosen = execution.mine([part.steps for part in every])
    if waiting := [every[index] for index in chosen if every[index] in left]:
        with executor(execution, workers) as where:
            _run_parts(waiting, where, PATIENCE_SECONDS if execution.executor == "ray" else 0.0)
    missing = sum(kept_part(part.path, part.shapes) is None for part in left)
    if missing and execution.parts > 1:
        console.print(f"accelerate: shard {execution.shard} is done; other shards have {missing} parts left.")
        return None
    runs = {}
    for name in arms:
        loaded = [part for path, group in parts[name] if (part := kept_part(path, _shapes(arms[name], group)))]
        if len(loaded) < len(parts[name]):
            raise TiplError(f"A part of {out} went away or was damaged meanwhile; run the same command again.")
        runs[name] = {key: np.concatenate([part[key] for part in loaded]) for key in loaded[0]}
    return runs


class _Part(NamedTuple):
    """A few seeds of an arm, and the file that keeps what they did."""

    arm: Arm
    path: Path
    seeds: list[int]

    @property
    def steps(self) -> int:
        return self.arm.config.num_iterations * self.arm.config.ppo.batch_size * len(self.seeds)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return _shapes(self.arm, self.seeds)


def _show_shares(every: Sequence[_Part], left: Sequence[_Part], count: int) -> None:
    for number, share in enumerate(dealt([part.steps for part in every], count)):
        mine = [every[index] for index in share]
        some = ", ".join(f"{part.arm.forecaster or 'plain'} {part.seeds[0]}-{part.seeds[-1]}" for part in mine)
        here = sum(part in left for part in mine)
        console.print(f"shard {number + 1}/{count}: {some or 'nothing'}; {here} of {len(mine)} parts left")


def _shapes(arm: Arm, seeds: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Of what `run_part` keeps."""
    each, every = (len(seeds),), (len(seeds), arm.config.num_iterations)
    found: dict[str, tuple[int, ...]] = dict.fromkeys(("returns", "kinds", "shares", "kl", "trust"), every)
    return found | dict.fromkeys(("seconds", "jump_seconds"), each)


def _run_parts(waiting: Sequence[_Part], where: Executor, patience: float) -> None:
    """Run what is missing; an interrupted part is begun anew, those that are done are written."""
    done = [0] * len(waiting)
    count = min(where.slots, len(waiting))
    console.print(f"accelerate: {sum(len(part.seeds) for part in waiting)} runs {where.where.format(count)}")
    with steps_progress("accelerate", sum(part.steps for part in waiting)) as advance:

        def take(index: int, steps: int) -> None:
            new, done[index] = steps - done[index], steps
            advance(new, waiting[index].arm.forecaster or "plain")

        where.run(
            _run_part,
            [(*part, patience) for part in waiting],
            [f"the seeds {part.seeds[0]} to {part.seeds[-1]}" for part in waiting],
            lambda index, numbers: take(index, int(numbers[0])),
            lambda index: take(index, waiting[index].steps),
        )


def _run_part(parent: Parent, arm: Arm, path: Path, seeds: Sequence[int], patience: float) -> None:
    """Run a part that nobody else runs.

    Args:
        patience: seconds to wait for another process that does: on a lost node, one that is dying.
    """
    with claimed(path, patience, parent.wants_stop) as ours:
        if not ours:
            raise TiplError(
                f"The seeds {seeds[0]} to {seeds[-1]} are being run by another process; wait for it, or stop it."
            )
        if kept_part(path, _shapes(arm, seeds)) is None:
            run_part(arm, path, seeds, parent.wants_stop, lambda steps: parent.tell([steps]))


def run_part(
    arm: Arm,
    path: Path,
    seeds: Sequence[int],
    stopped: Callable[[], bool] = lambda: False,
    on_iteration: Callable[[int], None] = lambda steps: None,
) -> None:
    """Run these seeds of an arm and write what they did to `path`.

    Args:
        stopped: asked again and again; once true, the call returns and nothing is written.
        on_iteration: told after every iteration how many steps all seeds together have done.
    """
    batch = arm.batch(seeds)
    batch.abandon = stopped
    shape = len(seeds), arm.config.num_iterations
    found: dict[str, np.ndarray] = {name: np.zeros(shape) for name in ("shares", "kl", "trust")}
    found |= {"returns": np.full(shape, np.nan), "kinds": np.zeros(shape, np.int8)}
    jumping = 0.0
    _compile(arm, seeds[0])
    began = time.process_time()
    jumpers = jumpers_of(arm, batch)
    memories = [Memory() for jumper in jumpers if jumper.forecaster.takes_tokens]
    first = np.array(batch.policies)
    for at in range(arm.config.num_iterations):
        try:
            result = batch.iterate()
        except Abandoned:
            return
        _check_finite(arm, batch, result.episodes, at)
        if at == 0:
            own = result.snapshots[:, :, : first.shape[1]]
            _check_unseen(arm, seeds, np.concatenate([first[:, None], own], axis=1))
        for n, episodes in enumerate(result.episodes):
            found["returns"][n, at] = episodes[:, 1].mean() if len(episodes) else found["returns"][n, max(at - 1, 0)]
        jump_began = time.process_time()
        for n, memory in enumerate(memories):
            memory.add(batch, n)
        for n, jumper in enumerate(jumpers):
            tokens = functools.partial(memories[n].tokens, batch, n) if memories else None
            returns = result.episodes[n][:, 1].tolist()
            outcome = outcome_judge(batch, n)
            jump = jumper.step(result.snapshots[n], batch_judge(batch, n), returns, tokens, outcome)
            if jump.displacement is not None:
                batch.theta[n, : len(jump.displacement)] += jump.displacement
            found["kinds"][n, at] = KINDS.index(jump.kind)
            found["shares"][n, at], found["kl"][n, at], found["trust"][n, at] = jump.share, jump.kl, jump.trust
        jumping += time.process_time() - jump_began
        on_iteration((at + 1) * arm.config.ppo.batch_size * len(seeds))
    each = np.full(len(seeds), 1 / len(seeds))
    found |= {"seconds": (time.process_time() - began) * each, "jump_seconds": jumping * each}
    keep_part(path, found)


def _check_finite(arm: Arm, batch: TrialBatch, episodes: Sequence[np.ndarray], iteration: int) -> None:
    for seed, weights, ended in zip(batch.seeds, batch.policies, episodes, strict=True):
        if not (np.isfinite(weights).all() and np.isfinite(ended[:, 1]).all()):
            raise TiplError(
                f"Seed {seed} of {arm.config.env_id}, trained {'plainly' if arm.forecaster is None else 'with jumps'}, "
                f"diverged in iteration {iteration + 1}: its weights or returns are not finite. A comparison without "
                "it would favor what diverges; give a lower --ppo.learning-rate, or other seeds to all arms."
            )


def _check_unseen(arm: Arm, seeds: Sequence[int], snapshots_NTP: np.ndarray) -> None:
    """Hold the runs' first snapshots against how those began that the forecaster has learned from.

    Raises:
        TiplError: one is the same run.
    """
    known = frozenset() if arm.own is not None else beginnings(arm.jumps_with, arm.fit)
    for seed, snapshots_TP in zip(seeds, snapshots_NTP, strict=True):
        if beginning_of(snapshots_TP) in known:
            raise TiplError(
                f"The run of seed {seed} is one that the forecaster {arm.forecaster} has learned from; give others by "
                "--seed."
            )


def _compile(arm: Arm, seed: int) -> None:
    """Run every kernel once: compiling them, once on a machine, is no part of what the first arm takes."""
    batch = arm.batch([seed])
    for _ in range(min(2, arm.config.num_iterations)):  # the second may be of another kind
        batch.iterate()
    if arm.jumps_with is not None:
        batch_judge(batch, 0)(np.array(batch.policies[0]) * np.float32(0.5))
        if any(jumper.forecaster.takes_tokens for jumper in jumpers_of(arm, batch)):
            memory = Memory()
            memory.add(batch, 0)
            memory.tokens(batch, 0)


def jumpers_of(arm: Arm, batch: TrialBatch) -> list[Jumper]:
    """Return what jumps in each run of a batch that has begun; nothing where the arm does not jump."""
    if arm.jumps_with is None:
        return []
    names, shapes = list(batch.spec.names), list(batch.spec.shapes)
    if arm.jump.critic:
        for layer, (fan_in, fan_out) in enumerate(pairwise(batch.critic_sizes.tolist())):
            names += [f"critic.{2 * layer}.weight", f"critic.{2 * layer}.bias"]
            shapes += [(fan_out, fan_in), (fan_out,)]
    moves = may_jump(names, [math.prod(shape) for shape in shapes], arm.jump.log_std)
    forecaster = _arm_forecaster(arm, batch, shapes)  # knows of no trial but what it is handed
    jumpers = [Jumper(forecaster, arm.jump, moves, seed) for seed in batch.seeds]
    for jumper, theta in zip(jumpers, batch.theta, strict=True):
        jumper.begin(theta[: batch.snapshot_size].copy())
    return jumpers


def _arm_forecaster(arm: Arm, batch: TrialBatch, shapes: Sequence[tuple[int, ...]]) -> Forecaster:
    """The forecaster of the tensors that jump, of these shapes."""
    if arm.own is not None:
        return arm.own(batch)
    assert arm.jumps_with is not None
    count = arm.config.snapshots_per_iteration
    return load_forecaster(arm.jumps_with, shapes, arm.jump.horizon, count, arm.fit, seed=arm.config.seed)
