"""Work that is divided makes what undivided work makes, to the bit: shards, several data sets, a Ray cluster.

In: tiny runs of CartPole-v1 and HalfCheetah-v4.  Out: failures that name the trial.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from here import in_this_process

import tipl
from tipl import (
    CollectConfig,
    DiscreteCollectConfig,
    EvaluateConfig,
    Execution,
    Store,
    TiplError,
    TrialWriter,
    collect,
    collect_many,
    create_store,
    parts,
)  # fmt: skip
from tipl.cli.main import main
from tipl.collection.collect import run_stack
from tipl.collection.runs import tasks_of
from tipl.config.execution import dealt
from tipl.config.presets import DiscretePPOConfig
from tipl.parts import claimed
from tipl.rl.trial_batch import TrialBatch

CARTPOLE = DiscreteCollectConfig(
    trials=5, total_steps=2048, hidden_sizes=(8, 8), ppo=DiscretePPOConfig(anneal_lr=False)
)  # fmt: skip
CHEETAH = CollectConfig(env_id="HalfCheetah-v4", trials=3, total_steps=2048, hidden_sizes=(8, 8))
COMPARED = DiscreteCollectConfig(trials=2, total_steps=1024, hidden_sizes=(8, 8))
JUDGED = EvaluateConfig(
    horizons=(1, 2), return_horizons=(2,), origins=4, return_origins=2, episodes=2, spectrum_trials=0,
    return_forecasters=("persistence", "damped-line"), oracle_normalizer=False,
)  # fmt: skip


def digests(path: Path) -> dict[int, str]:
    """By trial, of all that it holds; what is not complete fails."""
    store, found = Store.open(path), {}
    for seed in store.seeds:
        trial = store.trial(seed)
        assert trial.complete
        arrays = [trial.weights(), trial.env_step, trial.iteration, trial.epoch, trial.learning_rate, trial.obs_mean]
        arrays += [trial.obs_var, trial.obs_count, *trial.episodes]
        found[seed] = hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)).hexdigest()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CartPole and HalfCheetah collected in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    with in_this_process():
        collect(CARTPOLE, folder / "cartpole", workers=1)
        collect(CHEETAH, folder / "cheetah", workers=1)
    return folder


@pytest.mark.parametrize("count", [1, 3, 7, 64])
def test_shares_are_a_partition_that_no_task_could_even_out(count: int):
    sizes = np.random.default_rng(count).exponential(size=50)
    shares = dealt(sizes.tolist(), count)
    assert sorted(itertools.chain(*shares)) == list(range(50)) and dealt(sizes.tolist(), count) == shares
    loads = [sizes[share].sum() for share in shares]
    assert max(loads) - min(loads) <= sizes.max()
    assert dealt([1.0] * 50, count) == [list(range(start, 50, count)) for start in range(count)]


def test_tasks_of_several_runs_are_all_trials_the_longest_first():
    tasks = tasks_of([1.0, 10.0, 3.0], [[1, 2, 3], [4, 5, 6], [7]], slots=2)
    assert tasks == [(1, [4, 6]), (1, [5]), (2, [7]), (0, [1, 3]), (0, [2])]


def test_many_runs_are_one_task_each_while_others_fill_the_other_slots():
    tasks = tasks_of([1.0] * 40, [[*range(8)]] * 40, slots=2)
    whole = [number for number, trials in tasks if trials == [*range(8)]]
    assert whole == [*range(32)]  # behind each of them there are runs of eight times its cost
    assert tasks[32:] == [(number, [*range(part, 8, 2)]) for number in range(32, 40) for part in (0, 1)]


def test_trials_that_begin_together_make_their_environment_once(tmp_path: Path):
    made: list[list[int]] = []

    def counted(config: CollectConfig, seeds: Sequence[int]) -> TrialBatch:
        made.append([*seeds])
        return TrialBatch(config, seeds)

    create_store(tmp_path / "store")
    run_stack(CARTPOLE, tmp_path / "store", [1, 2, 3], lambda *_: None, make_batch=counted)
    assert made == [[1, 2, 3]]


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "1/0", "a/b", "1/2/3", "-1/2", "1/1000000"])
def test_a_shard_that_is_none_is_refused(shard: str):
    with pytest.raises(TiplError, match=r"--shard is .*; give I/N with 1 ≤ I ≤ N"):
        Execution(shard=shard)


def test_shards_in_any_order_and_again_make_one_store_to_the_bit(here: None, tmp_path: Path, whole: Path):
    path = tmp_path / "store"
    for part in (3, 1, 2):
        collect(CARTPOLE, path, workers=1, execution=Execution(shard=f"{part}/3"))
        assert sorted(Store.open(path).seeds) == sorted({3: [3], 1: [1, 3, 4], 2: [1, 2, 3, 4, 5]}[part])
    records = {seed: record.seal for seed, record in Store.open(path).records.items()}
    collect(CARTPOLE, path, workers=1, execution=Execution(shard="2/3"))  # finished trials are not done again
    assert {seed: record.seal for seed, record in Store.open(path).records.items()} == records
    assert digests(path) == digests(whole / "cartpole")
    assert Store.open(path).root.parts == Store.open(whole / "cartpole").root.parts
    assert tipl.data_verify(path)["ok"]


def test_shards_in_stores_of_their_own_are_merged_into_the_same(here: None, tmp_path: Path, whole: Path):
    for part in (1, 2):
        collect(CARTPOLE, tmp_path / str(part), workers=1, execution=Execution(shard=f"{part}/2"))
    merged = tipl.data_merge([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    assert digests(merged) == digests(whole / "cartpole")
    assert Store.open(merged).root.parts == Store.open(whole / "cartpole").root.parts


def test_several_data_sets_together_are_those_of_each_alone(here: None, tmp_path: Path, whole: Path):
    runs = [(CARTPOLE, tmp_path / "cartpole"), (CHEETAH, tmp_path / "cheetah")]
    for part in (1, 2):
        assert collect_many(runs, workers=2, execution=Execution(shard=f"{part}/2")) == [out for _, out in runs]
    for name in ("cartpole", "cheetah"):
        assert digests(tmp_path / name) == digests(whole / name)
    with pytest.raises(TiplError, match="Two runs are to go into"):
        collect_many([runs[0], (CHEETAH, f"{tmp_path}/./cartpole")])


def test_a_dry_run_says_who_does_what_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = ["collect", "--env-id", "CartPole-v1", "--trials", "5", "--total-steps", "1024", "--dry-run"]
    assert main([*line, "--out", str(tmp_path / "store"), "--shard", "1/2"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "shard 1/2: trials 1, 3, 5, 3 of 3 left, 3,072 steps",
        "shard 2/2: trials 2, 4, 2 of 2 left, 2,048 steps",
    ]
    assert not (tmp_path / "store").exists()


def test_a_trial_that_another_writes_is_left_to_it_and_said_so(tmp_path: Path):
    path, config = tmp_path / "store", dataclasses.replace(CARTPOLE, trials=2)
    more = dataclasses.replace(config, total_steps=4096)
    with in_this_process():
        collect(dataclasses.replace(config, trials=1), path, workers=1)
        collect(dataclasses.replace(more, trials=2), path, workers=1, execution=Execution(shard="2/2"))
    with TrialWriter.resume(path, 1)[0], pytest.raises(TiplError, match=r"1 is being written by another process"):
        collect(more, path, workers=1)
    assert Store.open(path).incomplete == [1]
    with in_this_process():
        collect(more, path, workers=1)
    assert Store.open(path).incomplete == []


def comparison(folder: Path) -> dict:
    """What a comparison says, but for seconds."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for arm in metrics["arms"].values():
        del arm["seconds"], arm["overhead"]
    del metrics["seal"]
    return metrics


def test_shards_of_a_comparison_make_the_comparison(here: None, tmp_path: Path):
    line = ["accelerate", "--env-id", "CartPole-v1", "--trials", "6", "--total-steps", "1024", "--workers", "1"]
    line += ["--hidden-sizes", "8", "8"]
    assert main([*line, "--out", str(tmp_path / "whole")]) == 0
    for part in (2, 1, 3):
        assert main([*line, "--out", str(tmp_path / "parts"), "--shard", f"{part}/3"]) == 0
        assert (tmp_path / "parts" / "metrics.json").exists() == (part == 3)
    assert comparison(tmp_path / "whole") == comparison(tmp_path / "parts")


def test_a_part_is_one_process_s(tmp_path: Path):
    with claimed(tmp_path / "part.safetensors") as first, claimed(tmp_path / "part.safetensors") as second:
        assert first and not second
    with claimed(tmp_path / "part.safetensors") as again:
        assert again
    assert not [*tmp_path.iterdir()]


def test_a_part_that_another_makes_is_waited_for_unless_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "_LOOK_SECONDS", 0.01)
    first, asked = contextlib.ExitStack(), list[int]()
    assert first.enter_context(claimed(tmp_path / "part"))
    with claimed(tmp_path / "part", 600.0, lambda: True) as ours:
        assert not ours

    def gives_up() -> bool:
        asked.append(1)
        if len(asked) == 3:
            first.close()
        return False

    with claimed(tmp_path / "part", 600.0, gives_up) as ours:
        assert ours and len(asked) == 3


def test_no_cluster_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("ray")
    line = ["collect", "--env-id", "CartPole-v1", "--trials", "1", "--total-steps", "512", "--executor", "ray"]
    code = main([*line, "--ray-address", "127.0.0.1:1", "--out", str(tmp_path / "store")])
    assert code == 2
    assert "No Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err.splitlines()[-1]


def test_two_ray_nodes_one_of_which_is_killed_make_the_stores_of_this_process(tmp_path: Path, whole: Path):
    pytest.importorskip("ray")
    script = Path(__file__).with_name("ray_cluster.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=900, env=environment
    )
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["killed while it ran"] and told["other versions"] == "has numpy 0.1, this machine"
    assert {int(seed): each for seed, each in told["in the bucket"].items()} == digests(whole / "cartpole")
    assert told["caches"], "the nodes have caches of their own"
    for name in ("cartpole", "cheetah"):
        assert digests(tmp_path / name) == digests(whole / name)
    long = dataclasses.replace(CARTPOLE, trials=2, total_steps=80_000)
    with in_this_process():
        collect(long, tmp_path / "here", workers=1)
    assert digests(tmp_path / "long") == digests(tmp_path / "here")
    assert tipl.data_verify(tmp_path / "long")["ok"]
    tipl.evaluate(tmp_path / "cartpole", tmp_path / "here-judged", JUDGED)
    made = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("judged", "here-judged")]
    for metrics in made:
        del metrics["seal"], metrics["seconds"]
    assert made[0] == made[1]
    assert [*(tmp_path / "judged" / "parts").iterdir()] and not [*(tmp_path / "judged" / "parts").glob("*policies*")]
    many = json.loads((tmp_path / "many" / "cartpole" / "metrics.json").read_text())
    assert (tmp_path / "many" / "table.json").exists()
    for name, scores in many["forecasters"].items():
        assert scores["skill"] == made[1]["forecasters"][name]["skill"]
    with in_this_process():
        tipl.accelerate(COMPARED, tmp_path / "here-compared", workers=1)
    assert comparison(tmp_path / "compared") == comparison(tmp_path / "here-compared")
