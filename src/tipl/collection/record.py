"""Record: the weights that any torch training loop passes through, into the store that collected trials lie in.

In: a module or named parameters, and the optimizer that steps them.  Out: one trial of a store, committed as it grows.

One line in the loop, after the module and its optimizer are made:

    recorder = WeightRecorder("store", seed, agent, optimizer, every=64, env_id="Hopper-v4",
                              names=["actor_mean", "actor_logstd"], normalizer=lambda: (mean, var, count))

It takes φ_0 at once and then a snapshot after every 64 optimizer steps. What the loop tells it beside that makes the
trial more useful: `recorder.env_step = …`, `recorder.iteration = …`, `recorder.episode(step, return, length)`.
Shapes: P weights.
"""

import contextlib
import importlib.metadata
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import tipl
from tipl.checks import AnyPath, Count, Positive, Whole, checked_arguments
from tipl.collection.recorded_actor import subject_of
from tipl.config.env_spec import EnvId
from tipl.errors import TiplError
from tipl.progress import console
from tipl.rl.env_described import environment_of
from tipl.rl.envs import engine_versions
from tipl.store import Store, Trial, TrialWriter, create_store

COMMIT_SECONDS = 30.0
_REPEAT_BYTES = 16 << 20  # of recorded snapshots read at once

Number = int | Callable[[], int]
Normalizer = Callable[[], tuple[Any, Any, Any]]


_RECORDING: WeakSet["WeightRecorder"] = WeakSet()  # those of this process


class WeightRecorder:
    """Writes one trial while a loop trains; `close`, or leaving a `with` block without an exception, completes it.

    A trial that was begun and not completed goes on when the same call is made again. By default the loop runs from
    its start: what it passes through is held against what is committed, bit for bit, and recorded from there on. So a
    seeded script that was killed is just run again, and a run that is not the same one is refused. A loop that can
    restore itself gives its state to `commit` instead, and finds it in `resumed`.

    `evaluate` can run the policies if they are like CleanRL's: `actor_mean`, a Sequential of Linear and Tanh (or ReLU,
    or ELU) in turn, and `actor_logstd`; or, for discrete actions, such a Sequential `actor` that gives the logits; and
    nothing else recorded. Other networks are stored under their own names and judged by weights.

    On one core a snapshot takes 0.1 ms at P = 122 and 1.1 ms at P = 72k (8-8 and 256-256 networks), packing included, a
    commit 15 to 70 ms, and an optimizer step without a snapshot nothing that can be measured.

    Attributes:
        env_step: environment steps so far, an int that the loop sets or a callable; 0 until then.
        iteration: likewise, the number of the iteration whose update is going on, counted from 1.
        resumed: the arrays that `commit` was last given by an earlier process, or None.
    """

    @checked_arguments
    def __init__(
        self,
        store: AnyPath,
        seed: Whole,
        policy: nn.Module | Iterable[tuple[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        *,
        every: Count | None,
        env_id: str | None = None,
        env: Any = None,
        first_action: int | None = None,
        names: Sequence[str] = (),
        normalizer: Normalizer | None = None,
        obs_clip: Positive | None = 10.0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin the trial `seed`, or go on with it.

        Args:
            store: the data set's folder; made if missing.
            policy: a module, or (name, parameter) pairs.
            optimizer: what steps these parameters; its learning rate is recorded too.
            every: optimizer steps between two snapshots; None: the loop calls `snapshot`.
            env_id: what Gymnasium makes the environment from; default: the id of `env`.
            env: the environment itself, or a vector of them. It is not stepped. Its keyword arguments, time limit and
                wrappers are recorded, so that policies are run again in the same one; without it, in what the bare
                `env_id` makes. What cannot be made again, or is another then, is marked as not to be run; so is what is
                behind Gymnasium's NormalizeObservation: give what is below it, and its statistics as `normalizer`.
            first_action: the number that the loop hands `env` for the first output of a discrete policy, where the
                environment's actions do not count from 0.
            names: parameters to take, and modules whose parameters to take; default: all.
            normalizer: gives mean [obs], variance [obs] and count of the observation normalizer.
            obs_clip: normalized observations are held within ± this; None, or without a normalizer: nothing is.
            config: what made the run, as JSON; it becomes `run` in the trial's config.

        Raises:
            TiplError: something here cannot be used, or the store holds a complete or another trial of this seed.
        """
        if env is None and env_id is None:
            raise TiplError("A trial has an environment; give env_id, or env.")
        env_id = EnvId.of(env_id or "") if env is None else environment_of(env, env_id, first_action=first_action)
        self._subject = subject = subject_of(policy, names)
        self._optimizer, self._group = optimizer, _group_index(subject.parameters, optimizer)
        self._every, self._normalizer = every, normalizer
        self._obs_dim = subject.obs_dim if normalizer is None else _array(normalizer()[0]).size
        self._said_not_finite = False
        if subject.hidden_sizes is not None and self._obs_dim != subject.obs_dim:
            raise TiplError(
                f"The normalizer has {self._obs_dim} means and the network {subject.obs_dim} inputs; "
                "give the normalizer of its inputs."
            )
        self.env_step: Number = 0
        self.iteration: Number = 0
        self.resumed: dict[str, np.ndarray] | None = None
        self._loop_commits = False
        self._committed_at = -math.inf
        self._steps = self._snapshots = 0
        self._repeated: Iterator[np.ndarray] = iter(())  # snapshots that the run has to pass through again
        self._episodes_repeated = 0
        self._hooks: list[RemovableHandle] = []
        self._goes_on: Callable[[], bool] = lambda: True  # whether the optimizer's next step is still of this run
        settings = {
            "every": every,
            "hidden_sizes": subject.hidden_sizes,
            "activation": subject.activation,
            "backend": env_id.spec.get("backend", "gymnasium"),
            "obs_clip": None if normalizer is None else obs_clip,
            "run": _as_json(config or {}),
        }
        if env_id.spec:
            settings["environment"] = env_id.spec
        self._path = create_store(store).path / "trials" / str(seed)
        for earlier in [*_RECORDING]:
            if earlier._path == self._path and not earlier._goes_on():
                earlier._leave()  # of a run that was interrupted in this process, as a cell of a notebook is
        self._begin(Path(store), seed, env_id, settings)
        self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        _RECORDING.add(self)

    def _begin(self, store: Path, seed: int, env_id: EnvId, settings: dict[str, Any]) -> None:
        """Create the trial and take φ_0, or take the trial up where it was left."""
        checkpoint: dict[str, np.ndarray] = {}
        if seed in Store.open(store).seeds:
            self._writer, checkpoint = TrialWriter.resume(store, seed)
        else:
            self._writer = TrialWriter.create(
                store, seed, env_id=env_id, config=settings, spec=self._subject.spec, versions=_versions(),
                obs_dim=self._obs_dim, num_snapshots=None,
            )  # fmt: skip
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._writer.close)
            if self._writer.committed:
                trial = Store.open(store).trial(seed)
                self._require_same(trial, env_id, settings)
                self._go_on(trial, checkpoint)
            if self.resumed is None:
                self.snapshot()
            on_failure.pop_all()

    def snapshot(self) -> None:
        """Take the weights as they are now.

        Raises:
            TiplError: they are not those that were recorded here before, or the disk is full.
        """
        weights = self._weights()
        if self._snapshots < self._writer.committed:
            if not np.array_equal(weights, next(self._repeated), equal_nan=True):
                raise TiplError(
                    f"This run departs from {self._path} at snapshot {self._snapshots}: it is not the run recorded "
                    "there. Give another seed, remove that folder, or seed all that is random in the run."
                )
        else:
            self._append(weights)
            self._say_what_is_not_finite(weights)
            if not self._loop_commits and time.monotonic() - self._committed_at >= COMMIT_SECONDS:
                self._writer.commit({})
                self._committed_at = time.monotonic()
        self._snapshots += 1

    def episode(self, step: int, episode_return: float, length: int) -> None:
        """Record that an episode has ended.

        Args:
            step: environment steps of the run by then.
            episode_return: undiscounted sum of raw rewards.
            length: in environment steps.
        """
        if self._episodes_repeated:
            self._episodes_repeated -= 1
        else:
            row = int(step), float(episode_return), int(length)
            self._writer.append_episodes(*(np.array([value]) for value in row))

    def commit(self, state: Mapping[str, np.ndarray | Tensor]) -> None:
        """Commit all that was recorded, together with the arrays that the loop can restore itself from.

        Once a loop does so, only it commits (otherwise commits are made every half minute), so that snapshots and
        state always belong together. While a run repeats what was committed without a state, nothing is done.

        Raises:
            TiplError: the disk is full; the commit before stays.
        """
        if self._snapshots < self._writer.committed:
            return
        self._loop_commits = True
        marked = {f"state.{name}": _array(value) for name, value in state.items()}
        self._writer.commit({"steps": np.array(self._steps), "weights": self._weights(), **marked})

    @property
    def closed(self) -> bool:
        """Whether nothing is recorded any more."""
        return not self._hooks

    def save(self) -> None:
        """Commit what was recorded, where the loop gives no state of its own to `commit`.

        Raises:
            TiplError: the disk is full; the commit before stays.
        """
        if not self._loop_commits and self._snapshots >= self._writer.committed:
            self._writer.commit({})
            self._committed_at = time.monotonic()

    def close(self) -> None:
        """Complete the trial and free it; nothing is recorded afterwards.

        Raises:
            TiplError: the run ended before it had repeated what was committed earlier, or the disk is full.
        """
        if not self._hooks:
            return
        self._let_go()
        with self._writer as writer:
            if self._snapshots < writer.committed:
                raise TiplError(
                    f"This run ended after {self._snapshots} snapshots, and {self._path} has {writer.committed} of "
                    "it already; run it as long as before, or remove that folder."
                )
            writer.commit({}, complete=True)

    def __getstate__(self) -> NoReturn:
        """Refused: a copy would write the same trial.

        Raises:
            TiplError: always.
        """
        raise TiplError(
            "A WeightRecorder belongs to its trial and is not copied or pickled; make one for another seed."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._let_go()
            self._writer.close()

    def _leave(self) -> None:
        """Free the trial, as it was committed last."""
        self._let_go()
        self._writer.close()

    def _let_go(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _after_step(self, *_: object) -> None:
        if not self._goes_on():
            self._leave()
            return
        self._steps += 1
        if self._every is not None and self._steps % self._every == 0:
            self.snapshot()

    def _weights(self) -> np.ndarray:
        """[P] float32 on the CPU; one transfer where the parameters lie on a GPU."""
        parts = [parameter.detach().reshape(-1) for parameter in self._subject.parameters]
        return torch.cat(parts).to("cpu", torch.float32).numpy()

    def _say_what_is_not_finite(self, weights_P: np.ndarray) -> None:
        """Once, in a line: the trial keeps what a run that diverged passed through, and nothing is judged on it."""
        if self._said_not_finite or np.isfinite(weights_P).all():
            return
        self._said_not_finite = True
        tensors = self._subject.spec.unflatten(weights_P)
        name = next(name for name, values in tensors.items() if not np.isfinite(values).all())
        console.print(
            f"record: the weights {name} of {self._path} are not finite from snapshot {self._snapshots} on.",
            markup=False,
        )

    def _append(self, weights: np.ndarray) -> None:
        env_step, iteration = (n() if callable(n) else n for n in (self.env_step, self.iteration))
        mean, var, count = np.zeros(self._obs_dim), np.ones(self._obs_dim), 0.0
        if self._normalizer is not None:
            mean, var, count = map(_array, self._normalizer())
        self._writer.append(
            weights[None],
            env_step=np.array([int(env_step)]),
            iteration=np.array([int(iteration)]),
            epoch=np.array([-1]),  # a recorder counts optimizer steps: `every` of them a snapshot
            learning_rate=np.array([float(self._optimizer.param_groups[self._group]["lr"])]),
            obs_mean=np.asarray(mean, np.float64).reshape(1, -1),
            obs_var=np.asarray(var, np.float64).reshape(1, -1),
            obs_count=np.array([float(count)]),
        )

    def _require_same(self, trial: Trial, env_id: EnvId, settings: Mapping[str, Any]) -> None:
        if trial.spec != self._subject.spec:
            raise TiplError(f"{self._path} was begun with other parameters; give another seed, or the same network.")
        before, now = _facts(trial.env_id.label, trial.config), _facts(env_id.label, settings)
        for name in before | now:
            if before.get(name) != now.get(name):
                raise TiplError(
                    f"{self._path} was begun with {name} = {before.get(name)}, not {now.get(name)}; "
                    "give another seed, or what it was begun with."
                )

    def _go_on(self, trial: Trial, checkpoint: dict[str, np.ndarray]) -> None:
        """Take up a trial where its last commit left it."""
        if not checkpoint:
            self._repeated, self._episodes_repeated = _rows(trial), trial.committed_episodes
            return
        self._loop_commits = True
        self._steps, self._snapshots = int(checkpoint.pop("steps")), trial.committed
        committed_P = checkpoint.pop("weights")
        self.resumed = {name.removeprefix("state."): value for name, value in checkpoint.items()}

        def require_restored(*_: object) -> None:
            if not np.array_equal(self._weights(), committed_P, equal_nan=True):
                raise TiplError(
                    f"The weights are not those with which {self._path} was committed; restore them from "
                    "`recorder.resumed` before the first optimizer step."
                )
            handle.remove()

        handle = self._optimizer.register_step_pre_hook(require_restored)
        self._hooks.append(handle)


def _group_index(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> int:
    """The first parameter group of the optimizer that has one of these: its learning rate is recorded."""
    recorded = set(map(id, parameters))
    for index, group in enumerate(optimizer.param_groups):
        if recorded & set(map(id, group["params"])):
            return index
    raise TiplError("The optimizer has none of the recorded parameters; give the one that steps them.")


def _rows(trial: Trial) -> Iterator[np.ndarray]:
    """The snapshots of a trial, one [P] after another."""
    block = max(1, _REPEAT_BYTES // (4 * trial.spec.size))
    for start in range(0, trial.committed, block):
        yield from trial.weights(start, min(start + block, trial.committed))


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _facts(env_id: str, config: Mapping[str, Any]) -> dict[str, Any]:
    run = {f"run.{name}": value for name, value in config.get("run", {}).items()}
    return {"env_id": env_id, **config, "environment": None, "run": None, **run}


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it reads back from a file."""
    try:
        return json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TiplError(f"config does not go into JSON ({error}); give numbers, strings, lists and dicts.") from error


def _versions() -> dict[str, str]:
    libraries = ["numpy", "torch", *(["stable_baselines3"] if "stable_baselines3" in sys.modules else [])]
    return {
        "tipl": tipl.__version__,
        "python": platform.python_version(),
        **engine_versions("gymnasium"),
        **{name: importlib.metadata.version(name) for name in libraries},
    }
