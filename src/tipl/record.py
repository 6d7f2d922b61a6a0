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
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import tipl
from tipl.envs import engine_versions
from tipl.errors import TiplError
from tipl.flat import check_parameters
from tipl.policy import ParamSpec, policy_spec
from tipl.presets import Activation
from tipl.store import Store, Trial, TrialWriter, create_store

COMMIT_SECONDS = 30.0
_REPEAT_BYTES = 16 << 20  # of recorded snapshots read at once

Number = int | Callable[[], int]
Normalizer = Callable[[], tuple[Any, Any, Any]]


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

    def __init__(
        self,
        store: Path | str,
        seed: int,
        policy: nn.Module | Iterable[tuple[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        *,
        every: int | None,
        env_id: str,
        names: Sequence[str] = (),
        normalizer: Normalizer | None = None,
        obs_clip: float = 10.0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin the trial `seed`, or go on with it.

        Args:
            store: the data set's folder; made if missing.
            policy: a module, or (name, parameter) pairs.
            optimizer: what steps these parameters; its learning rate is recorded too.
            every: optimizer steps between two snapshots; None: the loop calls `snapshot`.
            env_id: what Gymnasium makes the environment from.
            names: parameters to take, and modules whose parameters to take; default: all.
            normalizer: gives mean [obs], variance [obs] and count of the observation normalizer.
            obs_clip: normalized observations are held within ± this; without a normalizer nothing is.
            config: what made the run, as JSON; it becomes `run` in the trial's config.

        Raises:
            TiplError: something here cannot be used, or the store holds a complete or another trial of this seed.
        """
        if seed < 0 or (every is not None and every < 1):
            raise TiplError(f"seed is {seed} and every is {every}; give a seed of 0 or more and every of 1 or more.")
        self._subject = subject = _subject(policy, names)
        self._optimizer, self._group = optimizer, _group_index(subject.parameters, optimizer)
        self._every, self._normalizer = every, normalizer
        self._obs_dim = subject.obs_dim if normalizer is None else len(_array(normalizer()[0]))
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
        settings = {
            "every": every,
            "hidden_sizes": subject.hidden_sizes,
            "activation": subject.activation,
            "backend": "gymnasium",
            "obs_clip": None if normalizer is None else obs_clip,
            "run": _as_json(config or {}),
        }
        self._path = create_store(store).path / "trials" / str(seed)
        checkpoint: dict[str, np.ndarray] = {}
        if seed in Store.open(store).seeds:
            self._writer, checkpoint = TrialWriter.resume(store, seed)
        else:
            self._writer = TrialWriter.create(
                store, seed, env_id=env_id, config=settings, spec=subject.spec, versions=_versions(),
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
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._let_go()
            self._writer.close()

    def _let_go(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _after_step(self, *_: object) -> None:
        self._steps += 1
        if self._every is not None and self._steps % self._every == 0:
            self.snapshot()

    def _weights(self) -> np.ndarray:
        """[P] float32 on the CPU; one transfer where the parameters lie on a GPU."""
        parts = [parameter.detach().reshape(-1) for parameter in self._subject.parameters]
        return torch.cat(parts).to("cpu", torch.float32).numpy()

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
            obs_mean=np.asarray(mean, np.float64)[None],
            obs_var=np.asarray(var, np.float64)[None],
            obs_count=np.array([float(count)]),
        )

    def _require_same(self, trial: Trial, env_id: str, settings: Mapping[str, Any]) -> None:
        if trial.spec != self._subject.spec:
            raise TiplError(f"{self._path} was begun with other parameters; give another seed, or the same network.")
        before, now = _facts(trial.env_id, trial.config), _facts(env_id, settings)
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


class _Subject(NamedTuple):
    """What is recorded."""

    parameters: Sequence[Tensor]
    """In the order of the snapshot."""
    spec: ParamSpec
    hidden_sizes: list[int] | None
    """Of an actor that can be run; None for all else."""
    activation: Activation | None
    """Of its hidden layers; None for all else."""
    obs_dim: int
    """Its inputs; 0 for all else."""


def _subject(policy: nn.Module | Iterable[tuple[str, Tensor]], names: Sequence[str]) -> _Subject:
    named = dict(policy.named_parameters() if isinstance(policy, nn.Module) else policy)
    for wanted in names:
        if not any(_is_within(name, wanted) for name in named):
            raise TiplError(f"There is no parameter or module {wanted!r} to record; there are: {', '.join(named)}.")
    if names:
        named = {name: value for name, value in named.items() if any(_is_within(name, wanted) for wanted in names)}
    if not named:
        raise TiplError("There are no parameters to record; give a module that has some.")
    check_parameters(named.items())
    spec = ParamSpec(tuple(named), tuple(tuple(value.shape) for value in named.values()))
    whole = _Subject([*named.values()], spec, None, None, 0)
    for actor in (_mlp_actor(policy, discrete=False), _mlp_actor(policy, discrete=True)):
        if actor and set(map(id, actor.parameters)) == set(map(id, whole.parameters)):
            return actor
    return whole


def _is_within(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.")


def _mlp_actor(policy: object, *, discrete: bool) -> _Subject | None:
    """The actor of a module with the attributes of CleanRL's agent for such actions, in the order of `policy_spec`.

    None if it has none that the kernels can run.
    """
    network = getattr(policy, "actor" if discrete else "actor_mean", None)
    log_stds = [] if discrete else [getattr(policy, "actor_logstd", None)]
    if not isinstance(network, nn.Sequential) or not all(isinstance(each, nn.Parameter) for each in log_stds):
        return None
    linears = [layer for layer in list(network)[::2] if isinstance(layer, nn.Linear)]
    between: list[Activation | None] = [_activation(layer) for layer in list(network)[1::2]]
    if not linears or len(linears) != len(between) + 1 or len(network) != len(linears) + len(between):
        return None
    activation = between[0] if between else "tanh"
    if activation is None or set(between) - {activation}:
        return None
    obs_dim, *hidden_sizes = (layer.in_features for layer in linears)
    spec = policy_spec(obs_dim, hidden_sizes, linears[-1].out_features, discrete=discrete)
    parameters = [*network.parameters(), *log_stds]
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    sizes = [parameter.numel() for parameter in parameters]
    if shapes != [*spec.shapes[: len(shapes)]] or sizes != [*spec.sizes]:  # no biases, or a layer twice
        return None
    return _Subject(parameters, spec, hidden_sizes, activation, obs_dim)


def _activation(layer: nn.Module) -> Activation | None:
    """Its name; None if the kernels have no such activation."""
    if isinstance(layer, nn.ELU) and layer.alpha != 1:
        return None
    names: dict[type[nn.Module], Activation] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.ELU: "elu"}
    return names.get(type(layer))


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
    # Stores from before there was `activation` have tanh actors, or none that could be run.
    activation = None if config.get("hidden_sizes") is None else "tanh"
    return {"env_id": env_id, "activation": activation, **config, "run": None, **run}


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
