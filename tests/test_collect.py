"""Collected trials are the trials that a batch runs, whatever interrupts their collection.

In: short runs of InvertedPendulum-v4.  Out: failures.
"""

import contextlib
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import zarr
from gymnasium.envs.registration import EnvSpec
from here import in_this_process

from tipl.collection.collect import collect, run_stack
from tipl.collection.settings import default_config
from tipl.config.presets import CollectConfig, DiscreteCollectConfig, DiscretePPOConfig, PPOConfig
from tipl.errors import TiplError
from tipl.rl.trial_batch import TrialBatch
from tipl.store import Store, create_store, data_verify

STEPS = 512  # an iteration
CONFIG = CollectConfig(trials=3, total_steps=4 * STEPS, ppo=PPOConfig(num_steps=STEPS, num_minibatches=8))

# Collects and commits after every iteration: in one piece, and in another folder killed three times at any moment. The
# killed ones are forks, which have what it takes to collect at once.
KILLED = """
import os, random, signal, sys, time
from tipl.collection import collect
from tipl.config.presets import CollectConfig, PPOConfig
from tipl.store import Store, create_store
collect.COMMIT_SECONDS = 0
ppo = PPOConfig(num_steps=256, num_minibatches=4)
config = CollectConfig(trials=2, total_steps=30 * 256, backend="gymnasium", ppo=ppo)
def run(path, told=lambda: None):
    store = create_store(path)
    seeds = [seed for seed in config.seeds if seed not in store.seeds or not store.is_complete(seed)]
    collect.run_stack(config, store.path, seeds, lambda *_: told())
whole, broken = sys.argv[1:]
run(whole)
rng = random.Random(0)
for iterations in (1, 3, 2):
    hear, tell = os.pipe()
    child = os.fork()
    if not child:
        run(broken, lambda: os.write(tell, b"."))
        os._exit(0)
    for _ in range(iterations):
        os.read(hear, 1)
    time.sleep(rng.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(min(Store.open(broken).trial(seed).committed for seed in (1, 2)))
run(broken)
"""


def test_a_store_holds_what_the_stack_went_through(tmp_path: Path):
    store = Store.open(collect(CONFIG, tmp_path / "store", workers=2))
    batch = TrialBatch(CONFIG, CONFIG.seeds)
    initial = batch.policies.copy()
    results = []
    for _ in range(CONFIG.num_iterations):
        results.append((batch.iterate(), batch.obs_mean.copy(), batch.obs_var.copy(), batch.obs_count.copy()))

    assert store.seeds == [1, 2, 3]
    for n, seed in enumerate(store.seeds):
        trial = store.trial(seed)
        assert trial.complete and trial.committed == CONFIG.num_snapshots == 21
        weights = np.concatenate([initial[n][None], *(result.snapshots[n] for result, *_ in results)])
        np.testing.assert_array_equal(trial.weights(), weights)
        np.testing.assert_array_equal(trial.env_step, np.repeat(STEPS * np.arange(5), [1, 5, 5, 5, 5]))
        np.testing.assert_array_equal(trial.iteration, np.repeat([0, 1, 2, 3, 4], [1, 5, 5, 5, 5]))
        np.testing.assert_array_equal(trial.epoch, [0, *[2, 4, 6, 8, 10] * 4])
        np.testing.assert_allclose(trial.learning_rate[[0, 1, 6, 11, 16]], 3e-4 * np.array([1, 1, 0.75, 0.5, 0.25]))
        for iteration, (_, mean, var, count) in enumerate(results):
            rows = slice(1 + 5 * iteration, 6 + 5 * iteration)
            np.testing.assert_array_equal(trial.obs_mean[rows], np.tile(mean[n], (5, 1)))
            np.testing.assert_array_equal(trial.obs_var[rows], np.tile(var[n], (5, 1)))
            np.testing.assert_array_equal(trial.obs_count[rows], np.full(5, count[n]))
        np.testing.assert_array_equal(np.stack(trial.episodes, 1), np.concatenate([r.episodes[n] for r, *_ in results]))


def test_plain_zarr_reads_the_contract(small_store: Path):
    group = zarr.open_group(small_store, mode="r")["trials/1"]
    assert isinstance(group, zarr.Group)
    attributes = dict(group.attrs)
    assert {"seed", "env_id", "config", "param_spec", "versions", "committed"} <= set(attributes)
    assert attributes["env_id"] == "InvertedPendulum-v4" and attributes["committed"] == 81
    shapes = {name: array.shape for name, array in group.arrays()}
    assert shapes["weights"] == (81, 122) and shapes["obs_mean"] == shapes["obs_var"] == (81, 4)
    for name in ("env_step", "iteration", "epoch", "obs_count"):
        assert shapes[name] == (81,)
    for name in ("episode_step", "episode_return", "episode_length"):
        assert len(shapes[name]) == 1


def test_killed_at_any_moment_it_ends_with_the_same_trajectory(tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run([sys.executable, "-c", KILLED, whole, broken], check=True, stdout=subprocess.PIPE, text=True)
    before = [int(line) for line in done.stdout.split()]
    assert len(before) == 3 and all(6 <= committed < 151 for committed in before), "too late to test anything"
    for seed in (1, 2):
        once, twice = Store.open(whole).trial(seed), Store.open(broken).trial(seed)
        assert once.complete and twice.complete
        np.testing.assert_array_equal(once.weights(), twice.weights())
        np.testing.assert_array_equal(np.stack(once.episodes), np.stack(twice.episodes))
        np.testing.assert_array_equal(once.obs_var, twice.obs_var)


def test_trials_stopped_apart_are_finished_together(tmp_path: Path):
    path = tmp_path / "store"
    create_store(path)
    config = dataclasses.replace(CONFIG, total_steps=3 * STEPS)
    run_stack(config, path, [1], lambda *_: None, stopped=lambda: True)
    run_stack(config, path, [1, 2], lambda *_: None)
    alone = TrialBatch(config, [1])
    for _ in range(3):
        last = alone.iterate()
    store = Store.open(path)
    assert store.trial(1).complete and store.trial(2).complete
    np.testing.assert_array_equal(store.trial(1).weights(11), last.snapshots[0])


LEVEL = DiscretePPOConfig(anneal_lr=False)


def test_finished_trials_take_more_steps_to_the_bits_of_all_steps_at_once(here: None, tmp_path: Path):
    config = DiscreteCollectConfig("CartPole-v1", trials=3, total_steps=3 * 512, hidden_sizes=(4,), ppo=LEVEL)
    path = collect(config, tmp_path / "store", workers=1)
    record = (path / "trials" / "1" / "zarr.json").read_bytes()
    longer = dataclasses.replace(config, total_steps=7 * 512)
    collect(dataclasses.replace(longer, trials=2), path, workers=1)
    store = Store.open(path)
    assert store.incomplete == [3]  # it has its three iterations, of seven by now
    assert store.trial(1).config["total_steps"] == 7 * 512 and store.trial(3).config["total_steps"] == 3 * 512
    assert data_verify(path)["ok"]
    collect(longer, path, workers=1)
    once = collect(longer, tmp_path / "once", workers=1)
    assert trials_of(path) == trials_of(once) and not Store.open(path).incomplete
    (path / "trials" / "1" / "zarr.json").write_bytes(record)
    with pytest.raises(TiplError, match="trials/1 is not as it was completed"):
        Store.open(path)
    with pytest.raises(TiplError, match=r"total_steps = 3584, not 1536"):
        collect(config, once, workers=1)


def test_a_finished_trial_that_cannot_take_more_steps_says_why(here: None, tmp_path: Path):
    config = DiscreteCollectConfig("CartPole-v1", trials=1, total_steps=512, hidden_sizes=(4,))
    longer = {"total_steps": 1024}
    path = collect(config, tmp_path / "annealed", workers=1)
    assert not (path / "trials" / "1" / "resume").exists()
    with pytest.raises(TiplError, match=r"total_steps = 512, at whose end its learning rate is 0"):
        collect(dataclasses.replace(config, **longer), path, workers=1)
    level = dataclasses.replace(config, ppo=LEVEL)
    path = collect(level, tmp_path / "level", workers=1)
    (checkpoint,) = path.glob("trials/1/resume/*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"x")
    assert [found["array"] for found in data_verify(path)["damage"]] == ["checkpoint"]
    with pytest.raises(TiplError, match="cannot be gone on with"):
        collect(dataclasses.replace(level, **longer), path, workers=1)
    checkpoint.unlink()
    assert data_verify(path)["ok"]
    with pytest.raises(TiplError, match="total_steps = 512, and no checkpoint to go on from"):
        collect(dataclasses.replace(level, **longer), path, workers=1)


def test_more_trials_are_added_and_other_settings_refused(here: None, tmp_path: Path, capsys: pytest.CaptureFixture):
    config = dataclasses.replace(CONFIG, trials=1, total_steps=STEPS)
    path = collect(config, tmp_path / "store", workers=1)
    collect(dataclasses.replace(config, trials=2), path, workers=1)
    assert Store.open(path).seeds == [1, 2]
    assert "1 of 2 trials are already complete" in capsys.readouterr().err
    with pytest.raises(TiplError, match=r"holds trials with hidden_sizes = \[8, 8\], not \[16\]"):
        collect(dataclasses.replace(config, hidden_sizes=(16,)), path)
    with pytest.raises(TiplError, match="cannot make 'Pendulous-v4'"):
        collect(dataclasses.replace(config, env_id="Pendulous-v4"), tmp_path / "never")
    with pytest.raises(TiplError, match="CartPole-v1 has discrete actions"):
        collect(dataclasses.replace(config, env_id="CartPole-v1"), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_curves_for_tensorboard_are_the_episodes_of_the_store(here: None, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = dataclasses.replace(CONFIG, trials=2, total_steps=2 * STEPS)
    store = Store.open(collect(config, tmp_path / "store", workers=1, track=f"tensorboard={tmp_path / 'curves'}"))
    for seed in store.seeds:
        curves = EventAccumulator(str(tmp_path / "curves" / f"trial-{seed}"), size_guidance={"scalars": 0}).Reload()
        step, episode_return, _ = store.trial(seed).episodes
        points = curves.Scalars("charts/episodic_return")
        np.testing.assert_array_equal([point.step for point in points], step)
        np.testing.assert_allclose([point.value for point in points], episode_return)
        assert [point.step for point in curves.Scalars("charts/learning_rate")] == [STEPS, 2 * STEPS]
        np.testing.assert_allclose([p.value for p in curves.Scalars("charts/learning_rate")], [3e-4, 1.5e-4])


def test_defaults_are_those_of_the_kind_of_actions():
    assert default_config("CartPole-v1") == DiscreteCollectConfig()
    assert default_config("Acrobot-v1", "gymnasium") == DiscreteCollectConfig("Acrobot-v1", backend="gymnasium")
    assert default_config("InvertedPendulum-v4") == CollectConfig()


def test_a_store_of_discrete_actions_holds_what_the_stack_went_through(here: None, tmp_path: Path):
    config = DiscreteCollectConfig(trials=2, total_steps=4 * 512 + 511, hidden_sizes=(8,), activation="relu")
    store = Store.open(collect(config, tmp_path / "store", workers=1))
    batch = TrialBatch(config, config.seeds)
    initial = batch.policies.copy()
    results = [batch.iterate() for _ in range(4)]
    for n, seed in enumerate(store.seeds):
        trial = store.trial(seed)
        assert trial.complete and trial.committed == config.num_snapshots == 9
        assert trial.spec.names == ("actor.0.weight", "actor.0.bias", "actor.2.weight", "actor.2.bias")
        weights = np.concatenate([initial[n][None], *(result.snapshots[n] for result in results)])
        np.testing.assert_array_equal(trial.weights(), weights)
        np.testing.assert_array_equal(trial.env_step, np.repeat([0, 512, 1024, 1536, 2048], [1, 2, 2, 2, 2]))
        np.testing.assert_array_equal(np.stack(trial.episodes, 1), np.concatenate([r.episodes[n] for r in results]))
        assert (trial.episodes.step > 2000).any()
        np.testing.assert_array_equal(trial.epoch, [0, *[2, 4] * 4])
        assert not trial.obs_mean.any() and (np.sqrt(trial.obs_var + 1e-8) == 1).all() and not trial.obs_count.any()
        assert trial.config["activation"] == "relu" and trial.config["obs_clip"] is None
        assert trial.config["backend"] == "envpool" and "envpool" in trial.versions
        assert trial.config["ppo"]["num_envs"] == 4 and trial.config["ppo"]["normalize"] is False


def trials_of(path: Path) -> list[tuple[bool, int, bytes]]:
    trials = [Store.open(path).trial(seed) for seed in Store.open(path).seeds]
    return [(trial.complete, trial.committed, trial.weights().tobytes()) for trial in trials]


def running_of(session: int) -> list[int]:
    """The processes of a session that are not dead and waiting to be buried."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(file.parent.name))
    return found


TINY = DiscreteCollectConfig("CartPole-v1", trials=2, total_steps=8 * 512, hidden_sizes=(4,))


@pytest.mark.parametrize("asked", [1, 150, 3 * 130, 1000])
def test_an_iteration_that_is_given_up_in_its_middle_leaves_those_before_it(asked: int, tmp_path: Path):
    create_store(tmp_path / "whole")
    create_store(tmp_path / "cut")
    run_stack(TINY, tmp_path / "whole", [1, 2], lambda *_: None)
    calls, done = itertools.count(1), []
    run_stack(
        TINY, tmp_path / "cut", [1, 2], lambda seeds, result: done.append(result), abandon=lambda: next(calls) >= asked
    )
    assert [trial.iteration[-1] for trial in map(Store.open(tmp_path / "cut").trial, (1, 2))] == [len(done)] * 2
    run_stack(TINY, tmp_path / "cut", [1, 2], lambda *_: None)
    assert trials_of(tmp_path / "cut") == trials_of(tmp_path / "whole")


def test_a_stop_that_comes_while_the_parent_is_told_loses_no_iteration(tmp_path: Path):
    create_store(tmp_path / "store")
    told: list[int] = []
    run_stack(TINY, tmp_path / "store", [1], lambda _, result: told.append(result.number), stopped=lambda: 5 in told)
    assert told == [1, 2, 3, 4, 5] and Store.open(tmp_path / "store").trial(1).iteration[-1] == 5


class GoesBad(gymnasium.Env):
    """Of seed 2, something is not finite in the 7th step of every episode after the 50th."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, what: str) -> None:
        self.what, self.bad, self.episodes = what, False, 0

    def reset(self, *, seed=None, options=None):
        self.bad, self.episodes, self.steps = self.bad or seed == 2, self.episodes + 1, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        now = self.what if self.bad and self.episodes > 50 and self.steps == 7 else ""
        obs = np.full(2, {"nan": np.nan, "infinite": np.inf}.get(now, 0.1), np.float32)
        return obs, np.inf if now == "reward" else 1.0, False, self.steps >= 10, {}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("what", ["nan", "infinite", "reward"])
def test_a_trial_that_is_no_longer_finite_is_named_and_the_others_go_on(
    what: str, normalize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The 50 episodes before have 10 steps each, so it comes in the 507th step, in the fourth iteration of 128."""
    monkeypatch.setitem(
        gymnasium.registry,
        "GoesBad-v0",
        EnvSpec("GoesBad-v0", lambda: GoesBad(what), disable_env_checker=True),  # pyright: ignore[reportArgumentType]
    )
    ppo = DiscretePPOConfig(num_envs=1, num_minibatches=2, normalize=normalize)
    config = DiscreteCollectConfig("GoesBad-v0", trials=3, total_steps=8 * 128, hidden_sizes=(4,), ppo=ppo)
    path = tmp_path / "store"
    create_store(path)
    for _ in range(2):  # the same command says the same, and loses nothing
        seeds = [seed for seed in config.seeds if seed not in Store.open(path).seeds or seed == 2]
        kind = "a reward" if what == "reward" else "an observation"
        line = rf"^GoesBad-v0 gave {kind} that is not finite to trial 2 at environment step 507, in iteration 4\. What"
        with pytest.raises(TiplError, match=line):
            run_stack(config, path, seeds, lambda *_: None)
        assert [(complete, count) for complete, count, _ in trials_of(path)] == [(True, 17), (False, 7), (True, 17)]
    alone = tmp_path / "alone"
    create_store(alone)
    run_stack(config, alone, [1, 3], lambda *_: None)
    assert trials_of(alone) == trials_of(path)[::2]


def test_ctrl_c_and_a_kill_with_many_trials_in_two_processes_lose_nothing(tmp_path: Path):
    """Sixteen trials in two processes once filled the pipe, and everybody waited for somebody."""
    words = "-m tipl collect --env-id CartPole-v1 --hidden-sizes 4 --trials 16 --workers 2 --total-steps 4096"
    command = [sys.executable, *words.split()]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    config = DiscreteCollectConfig("CartPole-v1", hidden_sizes=(4,), trials=16, total_steps=4096)
    with in_this_process():
        collect(config, tmp_path / "whole", workers=1)
    for number, code, line in ((signal.SIGINT, 130, "tipl: interrupted"), (signal.SIGKILL, 2, "tipl: error: process ")):
        process = subprocess.Popen([*command, "--out", tmp_path / "cut"], start_new_session=True, **quiet)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(began := children.read_text().split()) < 3 or not list((tmp_path / "cut").glob("trials/*/resume")):
            assert process.poll() is None
            time.sleep(0.01)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            os.kill(max(map(int, began)), number)
        began = time.monotonic()
        error = process.communicate(timeout=30)[1]
        assert process.returncode == code and error.splitlines()[-1].startswith(line), error
        assert time.monotonic() - began < 10
        while running_of(process.pid):  # multiprocessing's own process sees that the parent has ended
            assert time.monotonic() - began < 10
            time.sleep(0.05)
    with in_this_process():
        collect(config, tmp_path / "cut", workers=1)
    assert trials_of(tmp_path / "cut") == trials_of(tmp_path / "whole")


def test_a_script_without_a_main_guard_collects_once(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom tipl import DiscreteCollectConfig\nfrom tipl import collect\nprint('once')\n"
        "collect(DiscreteCollectConfig(trials=1, total_steps=512), sys.argv[1], workers=1)\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path / "s"], capture_output=True, text=True, check=True)
    assert done.stdout == "once\n" and Store.open(tmp_path / "s").trial(1).complete


def test_an_environment_that_only_this_process_knows_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(
        gymnasium.registry,
        "Mine-v0",
        EnvSpec("Mine-v0", lambda: GoesBad(""), disable_env_checker=True),  # pyright: ignore[reportArgumentType]
    )
    with pytest.raises(TiplError, match=r"cannot make 'Mine-v0'.*if __name__ == \"__main__\":"):
        collect(DiscreteCollectConfig("Mine-v0", trials=1, total_steps=512), tmp_path / "store", workers=1)
