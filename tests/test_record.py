"""Recording against copies that the loop itself keeps, through kills and repeats, and on through train and evaluate.

In: small torch loops, and the single-file example on its real environment.  Out: failures.
"""

import copy
import importlib.util
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from plain_ppo import Agent, network
from torch import nn

from tipl.collection import record
from tipl.collection.record import WeightRecorder
from tipl.config.presets import Activation, EvaluateConfig, SVDConfig, TrainConfig
from tipl.errors import TiplError
from tipl.evaluation.evaluate import evaluate
from tipl.forecasting import forecast as predict
from tipl.rl.policies import layer_sizes, network_size, policy_spec
from tipl.rl.returns import Policies, episode_seeds, policy_returns
from tipl.store import EPISODE_ARRAYS, SNAPSHOT_ARRAYS, Store, Trial, data_verify
from tipl.training import train

ACTOR = ["actor_mean", "actor_logstd"]
OBS, ACTIONS = 3, 2


def agent_of(hidden: tuple[int, ...] = (5, 4)) -> Agent:
    size = network_size(layer_sizes(OBS, hidden, ACTIONS)) + ACTIONS + network_size(layer_sizes(OBS, hidden, 1))
    return Agent(OBS, hidden, ACTIONS, np.random.default_rng(0).standard_normal(size, np.float32))


class Loop:
    """A few seeded optimizer steps with everything that a recorder can be told; keeps copies of what it passes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.agent = agent_of()
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=0.1)
        self.mean = np.zeros(OBS)
        self.step = 0
        self.passed = [self.agent.snapshot()]

    def recorder(self, store: Path, **options: Any) -> WeightRecorder:
        standard = {
            "every": 3,
            "env_id": "Some-v0",
            "names": ACTOR,
            "normalizer": lambda: (self.mean, self.mean + 1, 7),
        }
        return WeightRecorder(store, 5, self.agent, self.optimizer, **standard | options)

    def run(self, recorder: WeightRecorder, steps: int, every_step: Callable[[], None] = lambda: None) -> None:
        recorder.env_step = lambda: 10 * self.step
        for _ in range(steps):
            self.step += 1
            recorder.iteration = 1 + self.step // 6
            self.mean = self.mean + self.rng.random(OBS)
            self.optimizer.param_groups[0]["lr"] = 0.1 / self.step
            loss = (self.agent.actor_mean(torch.tensor(self.rng.random((4, OBS)), dtype=torch.float32)) ** 2).mean()
            self.optimizer.zero_grad()
            (loss + self.agent.actor_logstd.sum()).backward()
            self.optimizer.step()
            self.passed.append(self.agent.snapshot())
            if self.step % 2 == 0:
                recorder.episode(10 * self.step, self.step / 4, self.step)
            every_step()


def rows(trial: Trial) -> dict[str, np.ndarray]:
    arrays = {name: getattr(trial, name) for name in SNAPSHOT_ARRAYS if name != "weights"}
    return {"weights": trial.weights(), **arrays, **dict(zip(EPISODE_ARRAYS, trial.episodes, strict=True))}


def assert_same(found: Trial, expected: Trial) -> None:
    assert found.complete and expected.complete
    expected_rows = rows(expected)
    for name, array in rows(found).items():
        np.testing.assert_array_equal(array, expected_rows[name], err_msg=name)


@pytest.fixture
def commit_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "COMMIT_SECONDS", 0.0)


def test_a_trial_holds_what_the_loop_passed_through(tmp_path: Path):
    loop, means = Loop(), []
    with loop.recorder(tmp_path / "store", config={"note": "tiny", "sizes": (1, 2)}) as recorder:
        assert Store.open(tmp_path / "store").trial(5).committed == 1  # φ_0, at once
        loop.run(recorder, 20, lambda: means.append(loop.mean))
    for _ in range(3):
        loop.optimizer.step()  # is recorded no more

    trial = Store.open(tmp_path / "store").trial(5)
    assert data_verify(tmp_path / "store")["ok"] and trial.complete
    np.testing.assert_array_equal(trial.weights(), np.stack(loop.passed[:21:3]))
    steps = np.arange(0, 21, 3)
    np.testing.assert_array_equal(trial.env_step, 10 * steps)
    np.testing.assert_array_equal(trial.iteration, [0, 1, 2, 2, 3, 3, 4])
    np.testing.assert_allclose(trial.learning_rate, [0.1, *(0.1 / steps[1:])])
    np.testing.assert_array_equal(trial.obs_mean, np.stack([np.zeros(OBS), *means[2::3]]))
    np.testing.assert_array_equal(trial.obs_var, trial.obs_mean + 1)
    assert set(trial.obs_count) == {7.0} and set(trial.epoch) == {-1}
    np.testing.assert_array_equal(trial.episodes.step, np.arange(20, 201, 20))
    np.testing.assert_array_equal(trial.episodes.episode_return, np.arange(2, 21, 2) / 4)
    np.testing.assert_array_equal(trial.episodes.length, np.arange(2, 21, 2))
    assert trial.env_id == "Some-v0" and trial.spec == policy_spec(OBS, (5, 4), ACTIONS)
    assert trial.config == {
        "every": 3, "hidden_sizes": [5, 4], "activation": "tanh", "backend": "gymnasium",
        "obs_clip": 10.0, "run": {"note": "tiny", "sizes": [1, 2]},
    }  # fmt: skip
    assert trial.versions["torch"] == torch.__version__ and {"tipl", "mujoco", "gymnasium"} <= set(trial.versions)


class Nested(nn.Module):
    """Any module: parameters of its own after and between those of others, of two types and of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"first": nn.Conv1d(2, 3, 1), "second": nn.LayerNorm(4, dtype=torch.float64)})
        self.body_scale = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(2, 1, bias=False)


@pytest.mark.parametrize(
    "names, expected",
    [
        ([], ["body_scale", "body.first.weight", "body.first.bias", "body.second.weight", "body.second.bias",
              "head.weight"]),
        (["head", "body"], ["body.first.weight", "body.first.bias", "body.second.weight", "body.second.bias",
                            "head.weight"]),
        (["body.second", "body_scale"], ["body_scale", "body.second.weight", "body.second.bias"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_pairs", [False, True])
def test_any_module_or_part_of_it(tmp_path: Path, names: list[str], expected: list[str], as_pairs: bool):
    module = Nested()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    policy = list(module.named_parameters()) if as_pairs else module
    with WeightRecorder(tmp_path, 0, policy, optimizer, every=1, env_id="Some-v0", names=names):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 0.25)
        optimizer.step()
    trial = Store.open(tmp_path).trial(0)
    parameters = dict(module.named_parameters())
    assert trial.spec.names == tuple(expected)
    for name, now in trial.spec.unflatten(trial.weights()[1]).items():
        np.testing.assert_array_equal(now, parameters[name].detach().numpy().astype(np.float32))
    np.testing.assert_allclose(trial.weights()[0] - trial.weights()[1], 0.125, atol=1e-6)
    assert trial.config["hidden_sizes"] is None and trial.config["obs_clip"] is None
    assert trial.obs_mean.shape == (2, 0) and data_verify(tmp_path)["ok"]


def module_of(network: nn.Module, log_std: object) -> nn.Module:
    module = nn.Module()
    module.actor_mean = network
    module.actor_logstd = log_std  # pyright: ignore[reportArgumentType]
    return module


def test_what_evaluate_can_run_is_told_from_what_it_cannot(tmp_path: Path):
    def hidden_sizes(network: nn.Module, log_std: object, names: list[str]) -> list[int] | None:
        module = module_of(network, log_std)
        store = tmp_path / str(len(list(tmp_path.iterdir())))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        WeightRecorder(store, 0, module, optimizer, every=1, env_id="Some-v0", names=names).close()
        return Store.open(store).trial(0).config["hidden_sizes"]

    free = nn.Parameter(torch.zeros(1, 2))
    tied = nn.Linear(3, 3)
    assert hidden_sizes(network(3, (4,), 2), free, ACTOR) == [4]
    assert hidden_sizes(network(3, (4, 5, 6), 2), nn.Parameter(torch.zeros(2)), []) == [4, 5, 6]
    assert hidden_sizes(network(3, (), 2), free, ACTOR) == []
    assert hidden_sizes(network(3, (4,), 2), free, ["actor_mean"]) is None
    assert hidden_sizes(network(3, (4,), 2), nn.Parameter(torch.zeros(1)), ACTOR) is None
    assert hidden_sizes(network(3, (4,), 2), nn.Linear(3, 2), ACTOR) is None
    mixed = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert hidden_sizes(mixed, free, ACTOR) is None
    for other in (nn.GELU(), nn.ReLU6(), nn.ELU(0.5)):
        assert hidden_sizes(nn.Sequential(nn.Linear(3, 4), other, nn.Linear(4, 2)), free, ACTOR) is None
    assert hidden_sizes(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh()), free, ACTOR) is None
    assert hidden_sizes(nn.Sequential(nn.Linear(3, 2, bias=False)), free, ACTOR) is None
    assert hidden_sizes(nn.Sequential(tied, nn.Tanh(), tied, nn.Tanh(), nn.Linear(3, 2)), free, ACTOR) is None


@pytest.mark.parametrize("layer, activation", [(nn.Tanh(), "tanh"), (nn.ReLU(inplace=True), "relu"), (nn.ELU(), "elu")])
@pytest.mark.parametrize("discrete", [False, True])
def test_a_recorded_actor_earns_what_it_earns_in_a_plain_loop(
    tmp_path: Path, layer: nn.Module, activation: Activation, discrete: bool
):
    torch.manual_seed(3)
    env_id, size, outputs = ("CartPole-v1", 4, 2) if discrete else ("Pendulum-v1", 3, 1)
    actor = nn.Sequential(nn.Linear(size, 6), layer, nn.Linear(6, 5), layer, nn.Linear(5, outputs))
    module = nn.Module()
    module.actor = actor  # a deterministic actor, as far as anyone knows, until `actor_logstd` stands beside it
    if not discrete:
        module = module_of(actor, nn.Parameter(torch.zeros(1, outputs)))
    module.critic = nn.Linear(size, 1)
    names = ["actor"] if discrete else ACTOR
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    WeightRecorder(tmp_path, 0, module, optimizer, every=1, env_id=env_id, names=names).close()
    trial = Store.open(tmp_path).trial(0)
    assert trial.spec == policy_spec(size, (6, 5), outputs, discrete=discrete)
    assert (trial.config["hidden_sizes"], trial.config["activation"]) == ([6, 5], activation)

    expected = []
    env = gym.make(env_id)
    for seed in episode_seeds(7, 4).tolist():
        (obs, _), total, over = env.reset(seed=seed), 0.0, False
        while not over:
            with torch.no_grad():
                head = actor(torch.as_tensor(obs, dtype=torch.float32)).numpy()
            action = head.argmax() if discrete else np.clip(head, -2, 2)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        expected.append(total)
    policies = Policies(trial.weights(), trial.obs_mean, trial.obs_var)
    found = policy_returns(
        policies, env_id, trial.config["hidden_sizes"], 4, seed=7, activation=trial.config["activation"],
        backend=trial.config["backend"], obs_clip=trial.config["obs_clip"],
    )  # fmt: skip
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert len(set(expected)) > 1


def test_an_actor_that_is_not_for_the_environment_is_refused_in_one_line(tmp_path: Path):
    """A deterministic actor of continuous actions looks like the logits of discrete ones."""
    for seed in (1, 2, 3):
        module = nn.Module()
        module.actor = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        with WeightRecorder(tmp_path / "store", seed, module, optimizer, every=1, env_id="Pendulum-v1") as recorder:
            for _ in range(30):
                recorder.snapshot()
    config = EvaluateConfig(horizons=(1,), return_horizons=(1,), origins=4)
    with pytest.raises(TiplError, match=r"have 21 weights, and Pendulum-v1 takes 22 .* pass --no-returns"):
        evaluate(tmp_path / "store", tmp_path / "eval", config)
    assert not (tmp_path / "eval").exists()
    trial = Store.open(tmp_path / "store").trial(3)
    assert predict._returns(trial, 20, [*trial.weights()[:3]], 5, 0) == [None] * 3  # what `tipl forecast` says


def killed_run(store: Path) -> None:
    record.COMMIT_SECONDS = 0.0
    loop = Loop()
    recorder = loop.recorder(store)
    loop.run(recorder, 31)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_is_run_again_and_goes_on(tmp_path: Path):
    process = multiprocessing.get_context("spawn").Process(target=killed_run, args=(tmp_path / "killed",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    begun = Store.open(tmp_path / "killed").trial(5)
    assert begun.committed == 11 and begun.committed_episodes == 14 and not begun.complete  # the 15th came after
    assert data_verify(tmp_path / "killed")["ok"]

    for name in ("killed", "whole"):
        loop = Loop()
        with loop.recorder(tmp_path / name) as recorder:
            assert recorder.resumed is None
            loop.run(recorder, 50)
    assert_same(Store.open(tmp_path / "killed").trial(5), Store.open(tmp_path / "whole").trial(5))


@pytest.mark.usefixtures("commit_always")
def test_a_run_that_is_not_the_recorded_one_is_refused(tmp_path: Path):
    begun = Loop()
    with pytest.raises(KeyboardInterrupt), begun.recorder(tmp_path) as recorder:
        begun.run(recorder, 20)
        raise KeyboardInterrupt
    assert Store.open(tmp_path).trial(5).committed == 7

    other = Loop(seed=1)
    recorder = other.recorder(tmp_path)
    with pytest.raises(TiplError, match=r"departs from .*trials/5 at snapshot 1:.* Give another seed, remove that fol"):
        other.run(recorder, 20)
    assert other.step == 3
    recorder.__exit__(TiplError)

    moved = Loop()
    nn.init.ones_(moved.agent.actor_logstd)
    with pytest.raises(TiplError, match=r"departs from .* at snapshot 0"):
        moved.recorder(tmp_path)

    shorter = Loop()
    recorder = shorter.recorder(tmp_path)
    shorter.run(recorder, 10)
    with pytest.raises(TiplError, match=r"ended after 4 snapshots, and .* has 7"):
        recorder.close()

    for options, message in (
        ({"every": 4}, "begun with every = 3, not 4"),
        ({"env_id": "Other-v0"}, "begun with env_id = Some-v0, not Other-v0"),
        ({"config": {"lr": 1}}, "begun with run.lr = None, not 1"),
        ({"names": ["actor_mean"]}, "begun with other parameters"),
    ):
        with pytest.raises(TiplError, match=message):
            Loop().recorder(tmp_path, **options)

    again = Loop()
    with again.recorder(tmp_path) as recorder:
        again.run(recorder, 20)
    with pytest.raises(TiplError, match="is complete"):
        Loop().recorder(tmp_path)


def state_of(loop: Loop) -> dict[str, Any]:
    adam = {
        f"{key}.{i}": value for i, row in loop.optimizer.state_dict()["state"].items() for key, value in row.items()
    }
    generator = np.frombuffer(json.dumps(loop.rng.bit_generator.state).encode(), np.uint8)
    weights = nn.utils.parameters_to_vector(loop.agent.ordered())
    return {"weights": weights, "mean": loop.mean, "step": loop.step, "generator": generator, **adam}


def restore(loop: Loop, state: dict[str, np.ndarray]) -> None:
    nn.utils.vector_to_parameters(torch.from_numpy(state.pop("weights")), loop.agent.ordered())
    loop.mean, loop.step = state.pop("mean"), int(state.pop("step"))
    loop.rng.bit_generator.state = json.loads(state.pop("generator").tobytes())
    before: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        key, i = name.rsplit(".", 1)
        before.setdefault(int(i), {})[key] = torch.from_numpy(value)
    loop.optimizer.load_state_dict(loop.optimizer.state_dict() | {"state": before})


@pytest.mark.usefixtures("commit_always")
def test_a_loop_that_commits_its_state_goes_on_from_there(tmp_path: Path):
    whole = Loop()
    with whole.recorder(tmp_path / "whole") as recorder:
        whole.run(recorder, 40)

    first = Loop()
    with pytest.raises(KeyboardInterrupt), first.recorder(tmp_path / "parts") as recorder:
        first.run(recorder, 17, lambda: recorder.commit(state_of(first)) if first.step == 11 else None)
        raise KeyboardInterrupt
    assert Store.open(tmp_path / "parts").trial(5).committed == 4  # nothing by time since the loop's own commit

    forgetful = Loop()
    recorder = forgetful.recorder(tmp_path / "parts")
    with pytest.raises(TiplError, match=r"not those with which .*trials/5 was committed; restore them"):
        forgetful.run(recorder, 1)
    recorder.__exit__(TiplError)

    second = Loop()
    with second.recorder(tmp_path / "parts") as recorder:
        assert recorder.resumed is not None and int(recorder.resumed["step"]) == 11
        restore(second, recorder.resumed)
        second.run(recorder, 29)
    assert_same(Store.open(tmp_path / "parts").trial(5), Store.open(tmp_path / "whole").trial(5))


@pytest.mark.usefixtures("commit_always")
def test_a_state_of_before_what_is_committed_is_not_taken(tmp_path: Path):
    first = Loop()
    with pytest.raises(KeyboardInterrupt), first.recorder(tmp_path) as recorder:
        first.run(recorder, 12)
        raise KeyboardInterrupt
    second = Loop()
    with second.recorder(tmp_path) as recorder:
        second.run(recorder, 15, lambda: recorder.commit(state_of(second)))
        assert Store.open(tmp_path).trial(5).committed == 6
    np.testing.assert_array_equal(Store.open(tmp_path).trial(5).weights(), np.stack(second.passed[::3]))


def test_snapshots_only_when_the_loop_says_so(tmp_path: Path):
    loop = Loop()
    with loop.recorder(tmp_path, every=None) as recorder:
        loop.run(recorder, 7, lambda: recorder.snapshot() if loop.step in (2, 5) else None)
    np.testing.assert_array_equal(
        Store.open(tmp_path).trial(5).weights(), np.stack([loop.passed[i] for i in (0, 2, 5)])
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"every": 0}, "`every` is 0; give at least 1"),
        ({"every": 2.5}, "`every` is 2.5; give a whole number"),
        ({"env_id": None}, "A trial has an environment; give env_id, or env"),
        ({"names": ["actor"]}, r"no parameter or module 'actor' to record; there are: actor_logstd, critic\.0\.weight"),
        ({"normalizer": lambda: (np.zeros(4), np.ones(4), 1)}, "normalizer has 4 means and the network 3 inputs"),
        ({"config": {"env": object()}}, "config does not go into JSON"),
        ({"config": {"clip": float("inf")}}, "config does not go into JSON"),
    ],
)
def test_what_cannot_be_recorded_is_said(tmp_path: Path, options: dict, message: str):
    with pytest.raises(TiplError, match=message):
        Loop().recorder(tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_what_belongs_to_nothing_is_said(tmp_path: Path):
    agent, other = agent_of(), nn.Linear(2, 2)
    with pytest.raises(TiplError, match="optimizer has none of the recorded parameters"):
        WeightRecorder(tmp_path, 0, agent, torch.optim.SGD(other.parameters(), lr=1), every=1, env_id="Some-v0")
    with pytest.raises(TiplError, match="no parameters to record"):
        WeightRecorder(tmp_path, 0, nn.Tanh(), torch.optim.SGD(other.parameters(), lr=1), every=1, env_id="Some-v0")
    (tmp_path / "file").write_text("")
    with pytest.raises(TiplError, match="is not a tipl store"):
        Loop().recorder(tmp_path / "file")


# Real runs.


@pytest.fixture(scope="module")
def example() -> Any:
    path = Path(__file__).parents[1] / "examples" / "record_ppo.py"
    spec = importlib.util.spec_from_file_location("record_ppo", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example_store(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three trials of the example, 8 iterations of 64 steps, 41 snapshots each."""
    store, threads = tmp_path_factory.mktemp("example") / "store", torch.get_num_threads()
    for seed in (1, 2, 3):
        args = example.Args(seed=seed, store=str(store), total_steps=512, num_steps=64, num_minibatches=4)
        with pytest.warns(DeprecationWarning, match="out of date"):
            example.train(args)
    torch.set_num_threads(threads)
    yield store


def test_the_example_goes_through_train_and_evaluate(example_store: Path, tmp_path: Path):
    data = Store.open(example_store)
    assert data_verify(example_store)["ok"] and data.seeds == [1, 2, 3]
    trial = data.trial(2)
    assert trial.complete and trial.committed == 41 and trial.config["hidden_sizes"] == [64, 64]
    np.testing.assert_array_equal(trial.iteration, [0, *np.repeat(np.arange(1, 9), 5)])
    np.testing.assert_array_equal(trial.env_step, 64 * trial.iteration)
    assert (trial.episodes.episode_return == trial.episodes.length).all()  # the reward is 1 a step
    # Every step's observation and every first one of an episode, and 1e-4 that the count begins with.
    seen = trial.env_step + 1 + (trial.episodes.step <= trial.env_step[:, None]).sum(axis=1)
    np.testing.assert_allclose(trial.obs_count[1:], seen[1:] + 1e-4)

    paper = TrainConfig(context=3, num_layers=1, width=8, steps=4, batch_size=4, warmup_steps=1, validate_every=2)
    model = train(example_store, tmp_path / "model", paper, SVDConfig(dim=4))
    config = EvaluateConfig(
        horizons=(1, 2, 5), return_horizons=(1, 5), origins=4, return_origins=2, episodes=2,
        return_forecasters=("persistence",),
    )  # fmt: skip
    out = evaluate(example_store, tmp_path / "eval", config, models=[model])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["env_id"] == "InvertedPendulum-v4" and metrics["hidden_sizes"] == [64, 64]
    assert metrics["test_trials"] == [2] and set(metrics["forecasters"]["model"]["repw"]) == {"1", "5"}
    assert set(metrics["forecasters"]["persistence"]["skill_by_place"]) <= set("01234")


def test_the_example_run_again_repeats_itself(example: Any, example_store: Path, tmp_path: Path):
    class Stopped(Exception):
        pass

    class Stopping(WeightRecorder):
        def episode(self, step: int, episode_return: float, length: int) -> None:
            super().episode(step, episode_return, length)
            if step > 200:
                self._writer.close()  # as the end of its process would
                raise Stopped

    args = example.Args(seed=1, store=str(tmp_path / "store"), total_steps=512, num_steps=64, num_minibatches=4)
    with pytest.MonkeyPatch.context() as patch, pytest.warns(DeprecationWarning), pytest.raises(Stopped):
        patch.setattr(record, "COMMIT_SECONDS", 0.0)
        patch.setattr(example, "WeightRecorder", Stopping)
        example.train(args)
    assert Store.open(tmp_path / "store").trial(1).committed == 16
    with pytest.warns(DeprecationWarning):
        example.train(args)
    assert_same(Store.open(tmp_path / "store").trial(1), Store.open(example_store).trial(1))


def test_policies_of_another_kind_are_judged_by_weights_alone(tmp_path: Path):
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        agent = agent_of()
        optimizer = torch.optim.Adam(agent.parameters(), lr=0.1)
        with WeightRecorder(tmp_path / "store", seed, agent, optimizer, every=1, env_id="Some-v0"):
            for _ in range(30):
                optimizer.zero_grad()
                (agent.critic(torch.randn(4, OBS)) ** 2).mean().backward()
                optimizer.step()
    config = EvaluateConfig(horizons=(1, 5), return_horizons=(1,), origins=4)
    with pytest.raises(TiplError, match=r"trial 2 of .* are none that can be run .* pass --no-returns"):
        evaluate(tmp_path / "store", tmp_path / "eval", config)
    assert not (tmp_path / "eval").exists()
    out = evaluate(tmp_path / "store", tmp_path / "eval", config, returns=False)
    metrics = json.loads((out / "metrics.json").read_text())
    trial = Store.open(tmp_path / "store").trial(3)
    assert predict._returns(trial, 20, [*trial.weights()[:3]], 5, 0) == [None] * 3  # what `tipl forecast` says
    assert metrics["hidden_sizes"] is None and set(metrics["forecasters"]["persistence"]["skill"].values()) == {0.0}


def test_observations_are_clipped_as_they_were_in_training():
    weights = np.random.default_rng(0).standard_normal((1, policy_spec(3, (4,), 1).size)).astype(np.float32)
    policies = Policies(weights, np.zeros((1, 3)), np.full((1, 3), 1e-3))  # normalized speeds go up to 8 · √1000

    def returns(clip: float | None) -> float:
        return float(policy_returns(policies, "Pendulum-v1", (4,), 1, backend="gymnasium", obs_clip=clip)[0, 0])

    assert returns(None) == returns(1e3) != returns(10.0) != returns(0.5)
    assert float(policy_returns(policies, "Pendulum-v1", (4,), 1, backend="gymnasium")[0, 0]) == returns(10.0)


class Squashing(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.tanh(super().forward(x))


class WholeAgent(nn.Module):
    """CleanRL's agent with its method, whose mean may be squashed only there."""

    def __init__(self, squash: bool) -> None:
        super().__init__()
        self.actor_mean, self.squash = network(3, (4,), 2), squash
        self.actor_logstd = nn.Parameter(torch.full((1, 2), -0.5))

    def get_action_and_value(self, x: torch.Tensor, action: torch.Tensor) -> Any:
        mean = self.actor_mean(x).tanh() if self.squash else self.actor_mean(x)
        law = torch.distributions.Normal(mean, self.actor_logstd.exp().expand_as(mean))
        return action, law.log_prob(action).sum(1), law.entropy().sum(1), None


def hidden_sizes_of(store: Path, module: nn.Module) -> Any:
    before = torch.random.get_rng_state()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    WeightRecorder(store, 0, module, optimizer, every=1, env_id="Some-v0").close()
    assert torch.equal(before, torch.random.get_rng_state())
    return Store.open(store).trial(0).config["hidden_sizes"]


def test_an_actor_is_known_by_what_it_computes(tmp_path: Path):
    plain = network(3, (4,), 2)
    free = nn.Parameter(torch.zeros(1, 2))
    assert hidden_sizes_of(tmp_path / "a", module_of(plain, free)) == [4]
    assert hidden_sizes_of(tmp_path / "b", module_of(Squashing(*plain), free)) is None
    hooked = network(3, (4,), 2)
    hooked.register_forward_hook(lambda module, inputs, output: output.tanh())
    assert hidden_sizes_of(tmp_path / "c", module_of(hooked, free)) is None
    assert hidden_sizes_of(tmp_path / "d", WholeAgent(squash=False)) == [4]
    assert hidden_sizes_of(tmp_path / "e", WholeAgent(squash=True)) is None


@pytest.mark.parametrize("seed", [1.5, "7", True, -1, None])
def test_a_seed_is_a_whole_number(tmp_path: Path, seed: Any):
    module = nn.Linear(2, 1)
    with pytest.raises(TiplError, match=r"seed. is .*; give (a whole number|at least 0)"):
        WeightRecorder(tmp_path / "s", seed, module, torch.optim.SGD(module.parameters(), lr=1), every=1, env_id="X-v0")
    assert not (tmp_path / "s").exists()


def test_parameters_that_are_no_numbers_yet_or_complex_are_refused(tmp_path: Path):
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Tanh())
    whole = nn.Module()
    whole.spin = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    for module, message in ((lazy, "0.weight has no shape yet"), (whole, "spin is of torch.complex64")):
        with pytest.raises(TiplError, match=message):
            optimizer = torch.optim.SGD(module.parameters(), lr=1)
            WeightRecorder(tmp_path / "s", 1, module, optimizer, every=1, env_id="X-v0")


def test_the_environment_goes_with_the_trial(tmp_path: Path):
    actor = module_of(network(3, (4,), 1), nn.Parameter(torch.zeros(1, 1)))
    env = gym.make("Pendulum-v1", g=1.62, max_episode_steps=50)
    optimizer = torch.optim.SGD(actor.parameters(), lr=0.5)
    WeightRecorder(tmp_path, 0, actor, optimizer, every=1, env=env).close()
    trial = Store.open(tmp_path).trial(0)
    assert trial.env_id == "Pendulum-v1" and trial.config["environment"]["kwargs"] == {"g": 1.62}

    def earned(env_id: str) -> float:
        policies = Policies(trial.weights(), trial.obs_mean, trial.obs_var)
        return policy_returns(policies, env_id, [4], 1, obs_clip=None, backend="gymnasium")[0, 0]

    (obs, _), total, over = env.reset(seed=int(episode_seeds(0, 1)[0])), 0.0, False
    while not over:
        with torch.no_grad():
            action = actor.actor_mean(torch.as_tensor(obs)).numpy()  # pyright: ignore[reportCallIssue]
        obs, reward, terminated, truncated, _ = env.step(np.clip(action, -2, 2))
        total, over = total + float(reward), terminated or truncated
    assert earned(trial.env_id) == pytest.approx(total, rel=1e-4) != earned("Pendulum-v1")


def test_a_run_that_diverges_is_recorded_and_said_once(tmp_path: Path, capfd: pytest.CaptureFixture):
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    with WeightRecorder(tmp_path, 3, module, optimizer, every=1, env_id="X-v0"):
        for step in range(4):
            optimizer.zero_grad()
            (module(torch.ones(4, 2)).sum() * (float("nan") if step == 1 else 1.0)).backward()
            optimizer.step()
    assert np.isnan(Store.open(tmp_path).trial(3).weights()[2:]).all()
    said = capfd.readouterr().err
    assert said.count("not finite") == 1 and "weight of" in said and "from snapshot 2 on" in said


class Method(nn.Module):
    """An agent that is asked for actions by another method than CleanRL's."""

    def __init__(self, name: str, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.actor_mean, self.actor_logstd = network(3, (4,), 2), nn.Parameter(torch.full((1, 2), -0.5))
        setattr(self, name, lambda x: act(self.drawn(x)))

    def drawn(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.actor_mean(x)
        return torch.distributions.Normal(mean, self.actor_logstd.exp().expand_as(mean)).sample()


@pytest.mark.parametrize("name", ["forward", "act", "get_action"])
def test_an_actor_is_held_against_every_method_that_acts(tmp_path: Path, name: str):
    assert hidden_sizes_of(tmp_path / "as it is", Method(name, lambda action: action)) == [4]
    assert hidden_sizes_of(tmp_path / "clipped", Method(name, lambda action: action.clamp(-1, 1))) == [4]
    assert hidden_sizes_of(tmp_path / "squashed", Method(name, torch.tanh)) is None
    assert hidden_sizes_of(tmp_path / "scaled", Method(name, lambda action: 2 * action)) is None


def test_a_recorder_is_not_copied(tmp_path: Path):
    loop = Loop()
    with loop.recorder(tmp_path / "store") as recorder, pytest.raises(TiplError, match="not copied or pickled"):
        copy.deepcopy(recorder)
