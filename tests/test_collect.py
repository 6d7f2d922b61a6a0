"""Collected trials are the trials that a stack runs, whatever interrupts their collection.

In: short runs of InvertedPendulum-v4.  Out: failures.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from tipl.collect import collect, default_config, run_stack
from tipl.errors import TiplError
from tipl.presets import CollectConfig, DiscreteCollectConfig
from tipl.stack import Stack
from tipl.store import Store, create_store

CONFIG = CollectConfig(trials=3, total_steps=4 * 2048)

# A collecting process that commits after every iteration, to be killed at any moment.
COLLECT_AND_COMMIT = """
import sys
from tipl import collect
from tipl.presets import CollectConfig
from tipl.store import create_store
collect.COMMIT_SECONDS = 0
store = create_store(sys.argv[1])
config = CollectConfig(trials=2, total_steps=12 * 2048)
seeds = [seed for seed in config.seeds if not collect._is_complete(store, seed, config)]
collect.run_stack(config, store.path, seeds, lambda *_: print("iteration", flush=True))
"""


def test_a_store_holds_what_the_stack_went_through(tmp_path: Path):
    store = Store.open(collect(CONFIG, tmp_path / "store", workers=2))
    stack = Stack(CONFIG, CONFIG.seeds)
    initial = stack.policies.copy()
    results = []
    for _ in range(CONFIG.num_iterations):
        results.append((stack.iterate(), stack.obs_mean.copy(), stack.obs_var.copy(), stack.obs_count.copy()))

    assert store.seeds == [1, 2, 3]
    for n, seed in enumerate(store.seeds):
        trial = store.trial(seed)
        assert trial.complete and trial.committed == CONFIG.num_snapshots == 21
        weights = np.concatenate([initial[n][None], *(result.snapshots[n] for result, *_ in results)])
        np.testing.assert_array_equal(trial.weights(), weights)
        np.testing.assert_array_equal(trial.env_step, np.repeat([0, 2048, 4096, 6144, 8192], [1, 5, 5, 5, 5]))
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
    subprocess.run([sys.executable, "-c", COLLECT_AND_COMMIT, str(whole)], check=True, stdout=subprocess.DEVNULL)
    rng = np.random.default_rng(0)
    for lines in (1, 3, 2):
        process = subprocess.Popen([sys.executable, "-c", COLLECT_AND_COMMIT, broken], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        before = [Store.open(broken).trial(seed).committed for seed in (1, 2)]
        assert 6 <= min(before) < 61, "the kill came too late to test anything"
    subprocess.run([sys.executable, "-c", COLLECT_AND_COMMIT, broken], check=True, stdout=subprocess.DEVNULL)
    for seed in (1, 2):
        once, twice = Store.open(whole).trial(seed), Store.open(broken).trial(seed)
        assert once.complete and twice.complete
        np.testing.assert_array_equal(once.weights(), twice.weights())
        np.testing.assert_array_equal(np.stack(once.episodes), np.stack(twice.episodes))
        np.testing.assert_array_equal(once.obs_var, twice.obs_var)


def test_trials_stopped_apart_are_finished_together(tmp_path: Path):
    path = tmp_path / "store"
    create_store(path)
    config = dataclasses.replace(CONFIG, total_steps=3 * 2048)
    run_stack(config, path, [1], lambda *_: None, stopped=lambda: True)
    run_stack(config, path, [1, 2], lambda *_: None)
    alone = Stack(config, [1])
    for _ in range(3):
        last = alone.iterate()
    store = Store.open(path)
    assert store.trial(1).complete and store.trial(2).complete
    np.testing.assert_array_equal(store.trial(1).weights(11), last.snapshots[0])


def test_more_trials_are_added_and_other_settings_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    config = dataclasses.replace(CONFIG, trials=1, total_steps=2048)
    path = collect(config, tmp_path / "store", workers=1)
    collect(dataclasses.replace(config, trials=2), path, workers=1)
    assert Store.open(path).seeds == [1, 2]
    assert "1 of 2 trials are already complete" in capsys.readouterr().err
    with pytest.raises(TiplError, match=r"holds trial 1 with hidden_sizes = \[8, 8\], not \[16\]"):
        collect(dataclasses.replace(config, hidden_sizes=(16,)), path)
    with pytest.raises(TiplError, match="cannot make 'Pendulous-v4'"):
        collect(dataclasses.replace(config, env_id="Pendulous-v4"), tmp_path / "never")
    with pytest.raises(TiplError, match="CartPole-v1 has discrete actions"):
        collect(dataclasses.replace(config, env_id="CartPole-v1"), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_curves_for_tensorboard_are_the_episodes_of_the_store(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = CollectConfig(trials=2, total_steps=2 * 2048)
    store = Store.open(collect(config, tmp_path / "store", workers=1, tensorboard=tmp_path / "curves"))
    for seed in store.seeds:
        curves = EventAccumulator(str(tmp_path / "curves" / f"trial-{seed}"), size_guidance={"scalars": 0}).Reload()
        step, episode_return, _ = store.trial(seed).episodes
        points = curves.Scalars("charts/episodic_return")
        np.testing.assert_array_equal([point.step for point in points], step)
        np.testing.assert_allclose([point.value for point in points], episode_return)
        assert [point.step for point in curves.Scalars("charts/learning_rate")] == [2048, 4096]
        np.testing.assert_allclose([p.value for p in curves.Scalars("charts/learning_rate")], [3e-4, 1.5e-4])


def test_defaults_are_those_of_the_kind_of_actions():
    assert default_config("CartPole-v1") == DiscreteCollectConfig()
    assert default_config("Acrobot-v1", "gymnasium") == DiscreteCollectConfig("Acrobot-v1", backend="gymnasium")
    assert default_config("InvertedPendulum-v4") == CollectConfig()


def test_a_store_of_discrete_actions_holds_what_the_stack_went_through(tmp_path: Path):
    config = DiscreteCollectConfig(trials=2, total_steps=4 * 512 + 511, hidden_sizes=(8,), activation="relu")
    store = Store.open(collect(config, tmp_path / "store", workers=2))
    stack = Stack(config, config.seeds)
    initial = stack.policies.copy()
    results = [stack.iterate() for _ in range(4)]
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


@pytest.mark.parametrize("backend", ["auto", "envpool"])
def test_a_store_from_before_there_were_these_settings_is_gone_on_with(backend, tmp_path: Path, capsys):
    """However the default of the backend is written."""
    config = dataclasses.replace(CONFIG, trials=1, total_steps=2048)
    path = collect(config, tmp_path / "store", workers=1)
    file = path / "trials" / "1" / "zarr.json"
    group = json.loads(file.read_text())
    recorded = group["attributes"]["config"]
    del recorded["activation"], recorded["obs_clip"], recorded["ppo"]["num_envs"], recorded["ppo"]["normalize"]
    file.write_text(json.dumps(group))
    collect(dataclasses.replace(config, backend=backend), path, workers=1)
    assert "1 of 1 trials are already complete" in capsys.readouterr().err
    for changes in ({"activation": "relu"}, {"ppo": dataclasses.replace(config.ppo, normalize=False)}):
        with pytest.raises(TiplError, match="holds trial 1 with"):
            collect(dataclasses.replace(config, **changes), path)


def test_a_recorded_trial_of_the_same_seed_is_refused_in_one_line(tmp_path: Path):
    """Its config is the recording loop's own and need not name any of these settings."""
    config = dataclasses.replace(CONFIG, trials=1, total_steps=2048)
    path = collect(config, tmp_path / "store", workers=1)
    file = path / "trials" / "1" / "zarr.json"
    group = json.loads(file.read_text())
    group["attributes"]["config"] = {"num_steps": 2048}
    file.write_text(json.dumps(group))
    with pytest.raises(TiplError, match="holds trial 1 with env_id = None, not InvertedPendulum-v4"):
        collect(config, path)
