"""Context tokens in a store: those of a plain loop over a batch and a memory, whatever stops, copies or harms them.

In: tiny runs and made-up trials.  Out: failures.
"""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import zarr
from gymnasium.envs.registration import EnvSpec
from here import in_this_process
from servers import Files, s3
from test_collect import GoesBad
from test_store import flip_a_byte
from test_store_damage import attribute, exchange, lie

import tipl
from tipl.catalog.compact import EveryNth
from tipl.cli.main import main
from tipl.collection import collect as collecting
from tipl.collection.collect import collect, run_stack
from tipl.collection.settings import trial_config
from tipl.config.presets import CollectConfig, CompactConfig, DiscreteCollectConfig, DiscretePPOConfig, PPOConfig
from tipl.errors import TiplError
from tipl.remote import objects
from tipl.rl.context import TOKENS, Memory
from tipl.rl.trial_batch import TrialBatch
from tipl.rl.trial_batch_torch import TorchTrialBatch
from tipl.store import SNAPSHOT_ARRAYS, Store, Trial, TrialWriter, create_store, data_info, data_verify, plan_trials
from tipl.store.spec import ParamSpec

CONTINUOUS = CollectConfig(
    trials=2, total_steps=6 * 128, hidden_sizes=(4,), context=True,
    ppo=PPOConfig(num_steps=128, num_minibatches=4, update_epochs=4),
)  # fmt: skip
DISCRETE = DiscreteCollectConfig(
    trials=2, total_steps=24 * 64, hidden_sizes=(4,), context=True,
    ppo=DiscretePPOConfig(num_envs=2, num_steps=32, anneal_lr=False),
)  # fmt: skip
CONFIGS = {"continuous": CONTINUOUS, "discrete": DISCRETE}  # of the second the memory overflows

# Collects 24 iterations with a commit after each, or after every second: whole, or killed twice at once after some.
KILLED = """
import os, signal, sys
from tipl.collection import collect
from tipl.store import Store, create_store
sys.path.insert(0, sys.argv[2])
from test_context_store import DISCRETE
collect.COMMIT_SECONDS = 0
done = 0
def told(seeds, result):
    global done
    done += 1
    if done == 3:
        collect.COMMIT_SECONDS = 1e9
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
path = create_store(sys.argv[1]).path
collect.run_stack(DISCRETE, path, [1, 2], told)
"""


def naive_tokens(config: CollectConfig, trial: int) -> np.ndarray:
    """[I, J, P] of a trial of a batch, iteration after iteration."""
    batch, memory, found = TrialBatch(config, config.seeds), Memory(), []
    for _ in range(config.num_iterations):
        batch.iterate()
        memory.add(batch, trial)
        found.append(memory.tokens(batch, trial))
    return np.stack(found)


@pytest.fixture(scope="module")
def naive() -> dict[str, list[np.ndarray]]:
    return {name: [naive_tokens(config, trial) for trial in (0, 1)] for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    with in_this_process():
        return {name: collect(config, folder / name, workers=1) for name, config in CONFIGS.items()}


def begin(path: Path, config: CollectConfig, **how: Any) -> Path:
    create_store(path)
    run_stack(config, path, [1, 2], lambda *_: None, **how)
    return path


def all_but_tokens(trial: Trial) -> list[bytes]:
    arrays = [trial.weights(), *(getattr(trial, name) for name in SNAPSHOT_ARRAYS[1:]), *trial.episodes]
    return [array.tobytes() for array in arrays]


def require_tokens(path: Path | str, expected: list[np.ndarray]) -> None:
    store = Store.open(path)
    assert store.incomplete == [] and data_verify(path)["ok"]
    for seed, tokens_IJP in zip(store.seeds, expected, strict=True):
        np.testing.assert_array_equal(store.trial(seed).tokens(), tokens_IJP)


# What is kept.


@pytest.mark.parametrize("name", CONFIGS)
def test_a_store_holds_the_tokens_of_a_plain_loop_and_all_else_as_without(
    name: str, stores: dict[str, Path], naive: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    config = CONFIGS[name]
    require_tokens(stores[name], naive[name])
    plain = begin(tmp_path / "plain", dataclasses.replace(config, context=False))
    for seed in (1, 2):
        trial, without = Store.open(stores[name]).trial(seed), Store.open(plain).trial(seed)
        assert all_but_tokens(trial) == all_but_tokens(without)
        assert trial.num_tokens == TOKENS and trial.committed_tokens == config.num_iterations
        tokens_IJP = naive[name][seed - 1]
        assert tokens_IJP.dtype == np.float32 and tokens_IJP.any() and not np.array_equal(*tokens_IJP[1:3])
        np.testing.assert_array_equal(trial.tokens(2, 5), tokens_IJP[2:5])
        assert trial.tokens(3, 3).shape == (0, TOKENS, trial.spec.size)
        for start, stop in ((-1, 2), (2, 1), (0, config.num_iterations + 1)):
            with pytest.raises(TiplError, match=f"has the tokens of iterations 1 to {config.num_iterations}, not"):
                trial.tokens(start, stop)


def test_plain_zarr_reads_the_tokens(stores: dict[str, Path], naive: dict[str, list[np.ndarray]]) -> None:
    group = zarr.open_group(stores["discrete"], mode="r")["trials/2"]
    assert isinstance(group, zarr.Group)
    np.testing.assert_array_equal(np.asarray(group["tokens"]), naive["discrete"][1])
    assert group.attrs["context"] == {"tokens": TOKENS, "rows": 24} and group.attrs["format_version"] == 4


def test_a_trial_without_tokens_is_as_it_was(stores: dict[str, Path], tmp_path: Path) -> None:
    """Nothing in its files speaks of tokens."""
    config = dataclasses.replace(CONTINUOUS, context=False)
    plain = begin(tmp_path / "plain", config)
    record = json.loads((plain / "trials/1/zarr.json").read_text())["attributes"]
    assert record["format_version"] == 2 and "context" not in trial_config(config)
    texts = [file.read_text() for file in plain.rglob("zarr.json")]
    assert not any("tokens" in text or "context" in text for text in texts)
    assert not [file for file in plain.rglob("*") if "tokens" in file.name]
    trial = Store.open(plain).trial(1)
    assert trial.num_tokens == 0 and trial.history(3).tokens is None
    with pytest.raises(TiplError, match="holds no context tokens; collect with --context"):
        trial.tokens()
    with_tokens = json.loads((stores["continuous"] / "trials/1/zarr.json").read_text())["attributes"]
    assert set(with_tokens) - set(record) == {"context"}


def test_a_history_has_the_tokens_of_the_last_iteration_that_ended(
    stores: dict[str, Path], naive: dict[str, list[np.ndarray]]
) -> None:
    """Two snapshots an iteration: t = 1 and 2 are of the first, which ends at 2."""
    trial, tokens_IJP = Store.open(stores["continuous"]).trial(2), naive["continuous"][1]
    for origin, ended in {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 11: 5, 12: 6}.items():
        history = trial.history(origin, 3)
        expected = tokens_IJP[ended - 1] if ended else np.zeros_like(tokens_IJP[0])
        assert history.tokens is not None and history.tokens.dtype == np.float32
        np.testing.assert_array_equal(history.tokens, expected)
        np.testing.assert_array_equal(history.weights[-1], trial.weights(origin, origin + 1)[0])
    assert trial.iterations_ended.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    with pytest.raises(TiplError, match="has snapshots 0 to 12; 13 is none of them"):
        trial.tokens_at(13)
    every = EveryNth(trial, 3)  # t = 0, 3, 6, 9, 12
    for origin, ended in {0: 0, 1: 1, 2: 3, 3: 4, 4: 6}.items():
        expected = tokens_IJP[ended - 1] if ended else np.zeros_like(tokens_IJP[0])
        np.testing.assert_array_equal(every.history(origin).tokens, expected)


def test_tokens_of_a_batch_on_torch_are_nearly_those_of_kernels() -> None:
    ours, kernels = TorchTrialBatch(CONTINUOUS, [1, 2], device="cpu"), TrialBatch(CONTINUOUS, [1, 2])
    memories = Memory(), Memory()
    for _ in range(2):
        found = []
        for batch, memory in zip((ours, kernels), memories, strict=True):
            batch.iterate()
            memory.add(batch, 1)
            found.append(memory.tokens(batch, 1))
        np.testing.assert_allclose(*found, rtol=5e-3, atol=5e-3 * np.abs(found[1]).max())


# Stopped and gone on with.


def test_a_memory_is_brought_back_to_the_bit() -> None:
    config = CONFIGS["discrete"]
    batch, memory = TrialBatch(config, [1]), Memory()
    assert memory.state() == {}
    for _ in range(3):
        batch.iterate()
        memory.add(batch, 0)
    other = Memory()
    other.restore({"iteration": np.array(3), **memory.state()})
    np.testing.assert_array_equal(other.tokens(batch, 0), memory.tokens(batch, 0))
    batch.iterate()
    memory.add(batch, 0)
    other.restore(memory.state())
    np.testing.assert_array_equal(other.tokens(batch, 0), memory.tokens(batch, 0))
    other.restore({})
    assert not other.tokens(batch, 0)[:-1].any()


@pytest.mark.parametrize("name", CONFIGS)
def test_stopped_again_and_again_it_keeps_the_same_tokens(
    name: str, naive: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    config, path = CONFIGS[name], tmp_path / "store"
    create_store(path)
    for at in (1, 3, 4):
        run_stack(config, path, [1, 2], lambda *_: None, stopped=lambda at=at: committed(path) < 2 * at)
    run_stack(config, path, [1, 2], lambda *_: None)
    require_tokens(path, naive[name])


@pytest.mark.parametrize("asked", range(104, 110))
def test_given_up_while_tokens_are_made_it_keeps_the_same_tokens(
    asked: int, naive: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    """Of the third iteration: in its last steps, its updates, and while its tokens are made."""
    calls = itertools.count(1)
    path = begin(tmp_path / "store", DISCRETE, abandon=lambda: next(calls) >= asked)
    assert committed(path) in (4, 6)
    run_stack(DISCRETE, path, [1, 2], lambda *_: None)
    require_tokens(path, naive["discrete"])


def committed(path: Path) -> int:
    """Iterations so far of the two trials, before the next commit."""
    return sum(Store.open(path).trial(seed).committed_tokens for seed in (1, 2))


def test_killed_it_keeps_the_same_tokens(naive: dict[str, list[np.ndarray]], tmp_path: Path) -> None:
    script = [sys.executable, "-c", KILLED, str(tmp_path / "store"), str(Path(__file__).parent)]
    rows = []
    for _ in range(2):
        process = subprocess.run(script, check=False)
        assert process.returncode == -signal.SIGKILL
        rows.append(Store.open(tmp_path / "store").trial(1).committed_tokens)
    assert rows == [3, 6], "two iterations were lost each time"
    run_stack(DISCRETE, tmp_path / "store", [1, 2], lambda *_: None)
    require_tokens(tmp_path / "store", naive["discrete"])


def test_a_finished_trial_that_is_given_more_steps_keeps_the_same_tokens(
    here: None, naive: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    shorter = dataclasses.replace(DISCRETE, total_steps=9 * 64)
    path = collect(shorter, tmp_path / "store", workers=1)
    require_tokens(path, [tokens[:9] for tokens in naive["discrete"]])
    require_tokens(collect(DISCRETE, path, workers=1), naive["discrete"])


def test_beside_a_trial_that_diverges_the_other_keeps_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EnvSpec("GoesBad-v0", lambda: GoesBad("nan"), disable_env_checker=True)  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(gymnasium.registry, "GoesBad-v0", spec)
    ppo = DiscretePPOConfig(num_envs=1, num_minibatches=2)
    config = DiscreteCollectConfig(
        "GoesBad-v0", trials=2, total_steps=6 * 128, hidden_sizes=(4,), ppo=ppo, context=True
    )
    create_store(tmp_path / "store")
    with pytest.raises(TiplError, match="not finite to trial 2"):
        run_stack(config, tmp_path / "store", [1, 2], lambda *_: None)
    alone = naive_tokens(dataclasses.replace(config, trials=1), 0)
    np.testing.assert_array_equal(Store.open(tmp_path / "store").trial(1).tokens(), alone)
    assert Store.open(tmp_path / "store").trial(2).committed_tokens == 3


# Damage.


def made_up(path: Path, seeds: list[int], *, of: int = 0, iterations: int = 1200, complete: bool = True) -> Path:
    """A store of walks with two tokens of three weights, in three chunks; `of` tells apart the tokens of a seed."""
    create_store(path)
    kind: dict[str, Any] = {
        "env_id": "Env-v0", "config": {"ppo": {"update_epochs": 1}}, "spec": ParamSpec(("w",), ((3,),)),
    }  # fmt: skip
    plan_trials(path, seeds, **kind)
    count = iterations + 1
    for seed in seeds:
        with TrialWriter.create(path, seed, **kind, versions={}, obs_dim=1, num_snapshots=None, num_tokens=2) as writer:
            rng, t = np.random.default_rng(seed), np.arange(count)
            writer.append(rng.standard_normal((count, 3)).cumsum(0), t, t, np.minimum(t, 1), np.ones(count),
                          np.ones((count, 1)), np.ones((count, 1)), t)  # fmt: skip
            writer.append_tokens(made_up_tokens(seed, of, iterations))
            writer.append_episodes(t, np.ones(count), t)
            writer.commit({}, complete=complete)
    return path


def made_up_tokens(seed: int, of: int = 0, iterations: int = 1200) -> np.ndarray:
    return np.random.default_rng([seed, of]).standard_normal((iterations, 2, 3)).astype(np.float32)


@pytest.fixture
def walks(tmp_path: Path) -> Path:
    return made_up(tmp_path / "walks", [1, 2])


def damage(path: Path) -> set[tuple[int | None, str, int | None]]:
    found = data_verify(path)
    assert found["ok"] is (not found["damage"])
    return {(each["trial"], each["array"], each["chunk"]) for each in found["damage"]}


def test_sound_tokens_are_read_by_chunks(walks: Path) -> None:
    assert damage(walks) == set()
    trial = Store.open(walks).trial(2)
    assert sorted(file.parts[-3] for file in walks.glob("trials/2/tokens/c/*/0/0")) == ["0", "1", "2"]
    np.testing.assert_array_equal(trial.tokens(), made_up_tokens(2))
    np.testing.assert_array_equal(trial.tokens(500, 520), made_up_tokens(2)[500:520])
    info = data_info(walks)["trials"][0]
    assert info["iterations"] == 1200 and info["tokens"] == 2
    snapshot, episode = 4 * 3 + 8 + 4 + 4 + 8 + 8 + 8 + 8, 8 + 8 + 4
    assert info["raw_bytes"] == 1201 * (snapshot + episode) + 1200 * 2 * 3 * 4


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("harm", ["flipped", "missing", "cut", "linked", "of the other trial", "no folder"])
def test_harm_to_a_chunk_of_tokens_is_found(walks: Path, harm: str, chunk: int) -> None:
    file = walks / f"trials/1/tokens/c/{chunk}/0/0"
    match harm:
        case "flipped":
            flip_a_byte(file)
        case "missing":
            file.unlink()
        case "cut":
            file.write_bytes(file.read_bytes()[:-3])
        case "linked":
            aside = walks.parent / "aside"
            file.parent.rename(aside)
            file.parent.symlink_to(aside)
        case "of the other trial":
            exchange(file, walks / f"trials/2/tokens/c/{chunk}/0/0")
        case "no folder":
            file.unlink()
            file.parent.rmdir()
    expected = {(1, "tokens", chunk)} | ({(2, "tokens", chunk)} if harm == "of the other trial" else set())
    assert damage(walks) == expected
    trial = Store.open(walks).trial(1)
    assert len(trial.weights()) == 1201
    with pytest.raises(TiplError, match=r"trials/1/tokens is damaged \(.*`tipl data verify` lists what is"):
        trial.history(512 * chunk + 1, 2)


@pytest.mark.parametrize("file", ["checksums", "zarr.json"])
def test_harm_to_what_the_tokens_are_known_by_is_found(walks: Path, file: str) -> None:
    flip_a_byte(walks / "trials/2/tokens" / file)
    assert damage(walks) == {(2, "tokens", None)}


@pytest.mark.parametrize(
    "change",
    [
        attribute(format_version=2), attribute(context={"tokens": 2}), attribute(context={"tokens": 0, "rows": 3}),
        attribute(config={}), attribute(config={"ppo": {"update_epochs": True}}), attribute(grid=0.5),
        lambda metadata: metadata["attributes"].pop("context"),
        lambda metadata: metadata["attributes"]["checksums"].pop("tokens"),
        lambda metadata: metadata["attributes"]["chunk_rows"].pop("tokens"),
    ],
)  # fmt: skip
def test_a_record_that_contradicts_itself_is_refused(tmp_path: Path, change: Any) -> None:
    path = made_up(tmp_path / "walks", [1], iterations=3, complete=False)
    lie(path / "trials/1/zarr.json", change)
    with pytest.raises(TiplError, match=r"trials/1|holds trials with") as error:
        Store.open(path)
    assert "\n" not in str(error.value)


def test_a_root_has_no_version_of_tokens(walks: Path) -> None:
    lie(walks / "zarr.json", attribute(format_version=4))
    with pytest.raises(TiplError, match="format_version"):
        Store.open(walks)


# Copies.


def test_merged_and_exported_stores_keep_tokens(walks: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    same, other = tipl.data_export(walks, tmp_path / "same", trials=[2]), made_up(tmp_path / "other", [3])
    merged = tipl.data_merge([walks, same, other], tmp_path / "merged")
    require_tokens(merged, [made_up_tokens(seed) for seed in (1, 2, 3)])
    assert json.loads((merged / "trials/3/zarr.json").read_text())["attributes"]["format_version"] == 4
    part = tipl.data_export(walks, tmp_path / "part", trials=[2], every=7)
    require_tokens(part, [made_up_tokens(2)])
    trial = Store.open(part).trial(2)
    np.testing.assert_array_equal(trial.history(3).tokens, made_up_tokens(2)[20])
    again = tipl.data_export(part, tmp_path / "again", every=2)
    np.testing.assert_array_equal(Store.open(again).trial(2).history(2).tokens, made_up_tokens(2)[27])
    assert "tokens are left out" not in capsys.readouterr().err
    with pytest.raises(TiplError, match=r"Trial 2 of .* differ"):
        tipl.data_merge([walks, made_up(tmp_path / "others", [2], of=1)], tmp_path / "never")


def test_compact_stores_leave_tokens_out_and_say_so(walks: Path, tmp_path: Path, capsys: Any) -> None:
    compact = tipl.compact(walks, tmp_path / "compact")
    assert capsys.readouterr().err.count("compact: context tokens are left out") == 1
    export = tipl.data_export(walks, tmp_path / "export", compact=CompactConfig(0.1))
    assert capsys.readouterr().err.count("compact: context tokens are left out") == 1
    for path in (compact, export):
        trial = Store.open(path).trial(1)
        assert trial.num_tokens == 0 and trial.history(5).tokens is None and data_verify(path)["ok"]
        assert not list(path.glob("trials/*/tokens"))
    assert Store.open(tipl.compact(walks, tmp_path / "compact")).seeds == [1, 2]
    assert "left out" not in capsys.readouterr().err, "nothing is written any more"


# Elsewhere.


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIPL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TIPL_HUB", f"file://{tmp_path}/hub")


def test_pushed_tokens_come_back(shelf: None, walks: Path, tmp_path: Path) -> None:
    tipl.hub_push(walks, "me/walks")
    require_tokens(tipl.hub_pull("me/walks", tmp_path / "back"), [made_up_tokens(1), made_up_tokens(2)])
    np.testing.assert_array_equal(Store.open("hf://me/walks").trial(2).tokens(), made_up_tokens(2))


def test_tokens_are_fetched_by_chunks(shelf: None, walks: Path, tmp_path: Path) -> None:
    growing = made_up(tmp_path / "growing", [1], iterations=20, complete=False)
    files = Files(tmp_path)
    with files.serve() as address:
        trial = Store.open(f"{address}/walks").trial(2)
        np.testing.assert_array_equal(trial.history(1001, 2).tokens, made_up_tokens(2)[1000])
        assert [path for path in files.asked if "tokens/c/" in path] == ["walks/trials/2/tokens/c/1/0/0"]
        assert data_verify(f"{address}/walks")["ok"]
        np.testing.assert_array_equal(Store.open(f"{address}/growing").trial(1).tokens(), made_up_tokens(1, 0, 20))
        writer, _ = TrialWriter.resume(growing, 1)
        with writer:
            writer.append_tokens(made_up_tokens(1, 1, 5))
            writer.commit({}, complete=True)
        expected = np.concatenate([made_up_tokens(1, 0, 20), made_up_tokens(1, 1, 5)])
        np.testing.assert_array_equal(Store.open(f"{address}/growing").trial(1).tokens(), expected)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3(patch) as address:
        patch.setenv("TIPL_CACHE", str(tmp_path / "cache"))
        patch.setattr(collecting, "COMMIT_SECONDS", 0.0)
        objects.client.cache_clear()
        yield address
    objects.client.cache_clear()


def test_tokens_are_collected_to_an_object_store(
    bucket: str, naive: dict[str, list[np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{bucket}/store"
    create_store(address)
    run_stack(DISCRETE, address, [1, 2], lambda *_: None, stopped=iter([False] * 3 + [True] * 9).__next__)
    monkeypatch.setenv("TIPL_CACHE", str(tmp_path / "another machine"))
    run_stack(DISCRETE, address, [1, 2], lambda *_: None)
    require_tokens(address, naive["discrete"])
    assert not list((tmp_path / "another machine" / "collecting").rglob("tokens")), "the copy here was emptied"


# Refused.


def test_a_store_with_tokens_and_one_without_are_two(
    here: None, stores: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    words = "--trials 2 --total-steps 768 --hidden-sizes 4 --ppo.num-steps 128 --ppo.num-minibatches 4"
    flags = [*words.split(), "--ppo.update-epochs", "4", "--workers", "1"]
    assert main(["collect", "--out", str(stores["continuous"]), *flags, "--context"]) == 0
    plain = begin(tmp_path / "plain", dataclasses.replace(CONTINUOUS, context=False))
    assert main(["collect", "--out", str(plain), *flags]) == 0
    capsys.readouterr()
    for path, more, line in (
        (stores["continuous"], [], "context = True, not None"), (plain, ["--context"], "context = None, not True"),
    ):  # fmt: skip
        assert main(["collect", "--out", str(path), *flags, *more]) == 2
        error = capsys.readouterr().err
        assert f"holds trials with {line}" in error and error.count("\n") == 1
    assert main(["accelerate", "--out", str(tmp_path / "new"), "--context"]) == 2
    error = capsys.readouterr().err
    assert "--context is what `tipl collect` keeps" in error and not os.path.exists(tmp_path / "new")
