"""The store against plain numpy and plain zarr, killed at every file operation, damaged, and on a full disk.

In: small made-up trials.  Out: what was committed reads back, what was not is gone, what is damaged is named.

Run as a script, the file is the process that is killed or runs out of room: see `_main`.
"""

import dataclasses
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec

from tipl.errors import TiplError
from tipl.rl.policies import policy_spec
from tipl.store import (
    FORMAT_VERSION,
    Split,
    Store,
    TrialWriter,
    create_store,
    data_info,
    data_verify,
    plan_trials,
    write,
)
from tipl.store.root import given_parts
from tipl.store.spec import ParamSpec

SPEC = ParamSpec(("layer.weight", "layer.bias", "logstd"), ((2, 3), (4,), (1,)))
OBS = 3
SEED = 7
CHUNK = 4
LENGTH = 19
COMMITS = (3, 4, 11, 18, LENGTH)  # inside a chunk, at its end, over several chunks, inside one again, at the end
SNAPSHOT_ARRAYS = ("weights", "env_step", "iteration", "epoch", "learning_rate", "obs_mean", "obs_var", "obs_count")
EPISODE_ARRAYS = ("episode_step", "episode_return", "episode_length")


def made_up(seed: int, length: int = LENGTH, spec: ParamSpec = SPEC, obs_dim: int = OBS) -> dict[str, np.ndarray]:
    """Every array of a whole trial; two episodes a snapshot."""
    rng = np.random.default_rng(seed)
    t, e = np.arange(length), np.arange(2 * length)
    return {
        "weights": rng.standard_normal((length, spec.size)).astype(np.float32),
        "env_step": t * 400 + 2**40,
        "iteration": ((t + 4) // 5).astype(np.int32),
        "epoch": (t % 5 * 2).astype(np.int32),
        "learning_rate": 3e-4 * (1 - t / length),
        "obs_mean": rng.standard_normal((length, obs_dim)),
        "obs_var": rng.random((length, obs_dim)),
        "obs_count": t * 2048.0,
        "episode_step": e * 200 + 2**40,
        "episode_return": rng.standard_normal(2 * length),
        "episode_length": (e + 1).astype(np.int32),
    }


def checkpoint_at(t: int) -> dict[str, np.ndarray]:
    return {
        "t": np.array(t),
        "theta": np.random.default_rng(t).standard_normal((5, 3)).astype(np.float32).T,  # not in C order
        "flags": np.array([t % 2 == 0, True]),
        "nothing_yet": np.empty((0, 3)),
    }


def begin(path: Path, seed: int = SEED, spec: ParamSpec = SPEC, obs_dim: int = OBS, **options: Any) -> TrialWriter:
    options = {"num_snapshots": LENGTH, "chunk_snapshots": CHUNK, **options}
    made_by = {"env_id": "Env-v0", "config": {"layers": [2, 3]}, "spec": spec}
    return TrialWriter.create(path, seed, **{**made_by, "versions": {"numpy": "2"}, "obs_dim": obs_dim, **options})


def append(writer: TrialWriter, trial: dict[str, np.ndarray], start: int, stop: int) -> None:
    writer.append(*(trial[name][start:stop] for name in SNAPSHOT_ARRAYS))
    writer.append_episodes(*(trial[name][2 * start : 2 * stop] for name in EPISODE_ARRAYS))


def collect(path: Path, trial: dict[str, np.ndarray], commits: tuple[int, ...], **options: Any) -> None:
    """What a collector does: begin, or go on from what is committed, to the end."""
    create_store(path)
    if SEED not in Store.open(path).seeds:
        writer = begin(path, **options)
    elif Store.open(path).trial(SEED).complete:
        return
    else:
        writer, checkpoint = TrialWriter.resume(path, SEED)
        assert_equal(checkpoint, checkpoint_at(writer.committed))
    with writer:
        for stop in commits:
            if stop > writer.committed:
                middle = (writer.committed + stop) // 2
                append(writer, trial, writer.committed, middle)
                append(writer, trial, middle, stop)
                writer.commit(checkpoint_at(stop), complete=stop == commits[-1])


def read(path: Path, seed: int = SEED) -> dict[str, np.ndarray]:
    trial = Store.open(path).trial(seed)
    snapshots = {name: getattr(trial, name) for name in SNAPSHOT_ARRAYS[1:]}
    return {"weights": trial.weights(), **snapshots, **dict(zip(EPISODE_ARRAYS, trial.episodes, strict=True))}


def cut(trial: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    return {name: values[: 2 * length if name in EPISODE_ARRAYS else length] for name, values in trial.items()}


def assert_equal(actual: dict[str, np.ndarray], desired: dict[str, np.ndarray]) -> None:
    assert actual.keys() == desired.keys()
    for name in actual:
        assert (actual[name].dtype, actual[name].shape) == (desired[name].dtype, desired[name].shape), name
        np.testing.assert_array_equal(actual[name], desired[name], err_msg=name)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def contents(path: Path) -> dict[str, bytes]:
    """What is in the files but what belongs to one store alone: its id."""
    found = {name: content.replace(Store.open(path).id.encode(), b"id") for name, content in files(path).items()}
    return {name: re.sub(b"sha256:[0-9a-f]{64}", b"seal", content) for name, content in found.items()}


@pytest.fixture
def complete_store(tmp_path: Path) -> Path:
    """Trials 7 (complete) and 8 (11 snapshots)."""
    path = tmp_path / "store"
    collect(path, made_up(SEED), COMMITS)
    with begin(path, 8) as writer:
        append(writer, made_up(8), 0, 11)
        writer.commit(checkpoint_at(11))
    return path


# What was written reads back.


@pytest.mark.parametrize("num_snapshots", [LENGTH, None, 5, 40])
def test_a_trial_reads_back(tmp_path: Path, num_snapshots: int | None) -> None:
    collect(tmp_path / "store", made_up(SEED), COMMITS, num_snapshots=num_snapshots)
    assert_equal(read(tmp_path / "store"), made_up(SEED))
    trial = Store.open(tmp_path / "store").trial(SEED)
    assert (trial.seed, trial.env_id, trial.config) == (SEED, "Env-v0", {"layers": [2, 3]})
    assert (trial.spec, trial.versions) == (SPEC, {"numpy": "2"})
    assert (trial.committed, trial.committed_episodes, trial.complete) == (LENGTH, 2 * LENGTH, True)
    for start in range(LENGTH + 1):
        for stop in range(start, LENGTH + 1):
            np.testing.assert_array_equal(trial.weights(start, stop), made_up(SEED)["weights"][start:stop])


def test_rows_that_are_not_committed_do_not_exist(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    writer = begin(tmp_path / "store")
    append(writer, made_up(SEED), 0, 13)
    assert (writer.appended, writer.committed) == (13, 0)
    assert Store.open(tmp_path / "store").seeds == []
    writer.commit({})
    append(writer, made_up(SEED), 13, 18)
    assert (writer.appended, writer.committed) == (18, 13)
    assert_equal(read(tmp_path / "store"), cut(made_up(SEED), 13))
    writer.close()


def test_an_open_store_stays_as_it_was(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with begin(tmp_path / "store", num_snapshots=None) as writer:
        append(writer, made_up(SEED), 0, 3)
        writer.commit({})
        early = Store.open(tmp_path / "store").trial(SEED)
        append(writer, made_up(SEED), 3, LENGTH)
        writer.commit({}, complete=True)
    np.testing.assert_array_equal(early.weights(), made_up(SEED)["weights"][:3])
    np.testing.assert_array_equal(early.obs_mean, made_up(SEED)["obs_mean"][:3])


def test_reading_opens_only_the_chunks_it_needs(complete_store: Path) -> None:
    for chunk in (0, 2, 3, 4):
        (complete_store / f"trials/7/weights/c/{chunk}/0").unlink()
    trial = Store.open(complete_store).trial(SEED)
    np.testing.assert_array_equal(trial.weights(4, 8), made_up(SEED)["weights"][4:8])
    with pytest.raises(TiplError, match="chunk 2 is missing"):
        trial.weights(4, 9)


def test_a_policy_without_a_normaliser(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    trial = made_up(SEED, obs_dim=0)
    with begin(tmp_path / "store", obs_dim=0) as writer:
        append(writer, trial, 0, LENGTH)
        writer.commit({}, complete=True)
    assert_equal(read(tmp_path / "store"), trial)
    assert data_verify(tmp_path / "store")["ok"]


@pytest.mark.parametrize(("obs_dim", "hidden", "action_dim", "rows"), [(4, (8, 8), 1, 512), (17, (256, 256), 6, 16)])
def test_chunks_are_multiples_of_8_snapshots_in_5_mebibytes_at_most(
    tmp_path: Path, obs_dim: int, hidden: tuple[int, ...], action_dim: int, rows: int
) -> None:
    spec = policy_spec(obs_dim, hidden, action_dim)
    create_store(tmp_path / "store")
    begin(tmp_path / "store", spec=spec, obs_dim=obs_dim, num_snapshots=1951, chunk_snapshots=None).close()
    weights = zarr.open_array(tmp_path / "store/trials/7/weights", mode="r")
    assert (weights.shape, weights.chunks) == ((1951, spec.size), (rows, spec.size))


def test_a_short_odd_trial_is_packed_too(tmp_path: Path) -> None:
    """Blosc's bitshuffle does nothing with a number of values that is not a multiple of 8 (here 21 × 11)."""
    create_store(tmp_path / "store")
    steps = 1e-4 * np.random.default_rng(0).standard_normal((21, SPEC.size))
    trial = {**made_up(SEED, 21), "weights": (1 + np.cumsum(steps, axis=0)).astype(np.float32)}
    with begin(tmp_path / "store", num_snapshots=21, chunk_snapshots=None) as writer:
        append(writer, trial, 0, 21)
        writer.commit({}, complete=True)
    assert (tmp_path / "store/trials/7/weights/c/0/0").stat().st_size < 0.75 * trial["weights"].nbytes


# The contract: a group that zarr reads by itself.


def test_plain_zarr_reads_everything(complete_store: Path) -> None:
    root = zarr.open_group(complete_store, mode="r")
    assert root.attrs["format"] == "tipl" and root.attrs["format_version"] == FORMAT_VERSION
    assert set(root.group_keys()) == {"trials"}
    trials = dict(zarr.open_group(complete_store / "trials", mode="r").groups())
    assert trials.keys() == {"7", "8"}
    for seed, committed in ((7, LENGTH), (8, 11)):
        group, desired = trials[str(seed)], cut(made_up(seed), committed)
        attributes = group.attrs.asdict()
        assert attributes["param_spec"] == SPEC.to_json()
        assert attributes["versions"] == {"numpy": "2"} and attributes["config"] == {"layers": [2, 3]}
        assert (attributes["seed"], attributes["env_id"]) == (seed, "Env-v0")
        assert (attributes["committed"], attributes["committed_episodes"]) == (committed, 2 * committed)
        assert attributes["complete"] is (seed == 7) and attributes["format_version"] == FORMAT_VERSION
        arrays = dict(group.arrays())
        assert set(arrays) == {*SNAPSHOT_ARRAYS, *EPISODE_ARRAYS}
        actual = {name: np.asarray(array[: len(desired[name])]) for name, array in arrays.items()}
        assert_equal(actual, {name: desired[name] for name in actual})
        assert all(isinstance(array.metadata.codecs[-1], Crc32cCodec) for array in arrays.values())  # pyright: ignore
    complete = dict(trials["7"].arrays())
    assert complete["weights"].shape == (LENGTH, SPEC.size) and complete["episode_step"].shape == (2 * LENGTH,)
    assert set(trials["7"].keys()) == set(complete)  # no checkpoint is left


def test_chunks_are_the_bytes_that_zarr_writes(complete_store: Path, tmp_path: Path) -> None:
    weights = zarr.create_array(
        tmp_path / "weights", shape=(LENGTH, SPEC.size), chunks=(CHUNK, SPEC.size), dtype="float32",
        filters=[TransposeCodec(order=(1, 0))], fill_value=np.nan,
        compressors=[BloscCodec(typesize=4, cname="zstd", clevel=1, shuffle="bitshuffle", blocksize=1 << 20),
                     Crc32cCodec()],
    )  # fmt: skip
    weights[:] = made_up(SEED)["weights"]
    assert files(tmp_path / "weights/c") == files(complete_store / "trials/7/weights/c")


# Killed writers.


def run_this_file(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, **options)


@pytest.mark.parametrize(("begun", "stride"), [(False, 9), (True, 3), pytest.param(False, 1, marks=pytest.mark.slow)])
def test_killed_at_a_file_operation(tmp_path: Path, begun: bool, stride: int) -> None:
    """Whatever the operation, the commits before it read back, and the same command goes on to the same files.

    A trial that has begun is killed in its later commits, one that has not anywhere, from the making of the store on.
    """
    collect(tmp_path / "whole", made_up(SEED), KILLED_COMMITS)
    whole = contents(tmp_path / "whole")
    if begun:
        create_store(tmp_path / "begun")
        with begin(tmp_path / "begun") as writer:
            append(writer, made_up(SEED), 0, KILLED_COMMITS[0])
            writer.commit(checkpoint_at(KILLED_COMMITS[0]))
    with run_this_file("killed-everywhere", tmp_path, str(stride)) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    operations = [int(line) for line in output.split()]
    assert operations == list(range(0, operations[-1] + 1, stride))
    assert operations[-1] > 2 * 11 * (len(KILLED_COMMITS) - begun)  # each commit opens and renames 11 chunks
    committed = []
    for path in (tmp_path / str(operation) for operation in operations):
        if (path / "zarr.json").exists():
            store = Store.open(path)
            committed.append(store.trial(SEED).committed if store.seeds else 0)
            if store.seeds:
                assert_equal(read(path), cut(made_up(SEED), committed[-1]))
        collect(path, made_up(SEED), KILLED_COMMITS)
        left = contents(path)
        # Killed after the last commit, a trial keeps what nobody needs any more.
        assert {name: left[name] for name in left if "resume" not in name} == whole
    assert committed == sorted(committed)
    # At least three operations follow the last commit: the files of resume/ go.
    assert set(committed) >= {*KILLED_COMMITS[: None if stride <= 3 else -1], *([] if begun else [0])}


def test_killed_at_any_moment_until_it_is_done(tmp_path: Path) -> None:
    trial = made_up(SEED, LONG)
    with run_this_file("killed-at-random", tmp_path) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    committed = []
    for path in filter(Path.exists, (tmp_path / f"after-{kill}" for kill in range(int(output)))):
        store = Store.open(path)
        committed.append(store.trial(SEED).committed if store.seeds else 0)
        if store.seeds:
            assert_equal(read(path), cut(trial, committed[-1]))
    assert committed == sorted(committed) and len(set(committed)) > 1
    assert_equal(read(tmp_path / "store"), trial)
    assert data_verify(tmp_path / "store")["ok"]


def test_resume_cuts_back_to_the_commit(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with begin(tmp_path / "store") as writer:
        append(writer, made_up(SEED), 0, 6)
        writer.commit(checkpoint_at(6))
        append(writer, made_up(99), 6, 17)  # fills chunks, which are written
    chunks = tmp_path / "store/trials/7/weights/c"
    assert {entry.name for entry in chunks.iterdir() if (entry / "0").exists()} == {"0", "1", "2", "3"}
    writer, checkpoint = TrialWriter.resume(tmp_path / "store", SEED)
    assert_equal(checkpoint, checkpoint_at(6))
    assert {entry.name for entry in chunks.iterdir() if (entry / "0").exists()} == {"0", "1"}
    with writer:
        assert (writer.appended, writer.committed) == (6, 6)
        append(writer, made_up(SEED), 6, 9)
        writer.commit({}, complete=True)
    assert_equal(read(tmp_path / "store"), cut(made_up(SEED), 9))


def test_a_trial_that_never_committed_begins_anew(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with begin(tmp_path / "store", chunk_snapshots=2) as writer:
        append(writer, made_up(99), 0, 9)
    with pytest.raises(TiplError, match="no committed snapshots"):
        TrialWriter.resume(tmp_path / "store", SEED)
    collect(tmp_path / "store", made_up(SEED), COMMITS)
    assert_equal(read(tmp_path / "store"), made_up(SEED))


def test_a_commit_without_new_snapshots_has_its_own_checkpoint(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with begin(tmp_path / "store") as writer:
        append(writer, made_up(SEED), 0, 3)
        writer.commit(checkpoint_at(3))
        writer.commit(checkpoint_at(100))
    _, checkpoint = TrialWriter.resume(tmp_path / "store", SEED)
    assert_equal(checkpoint, checkpoint_at(100))


def test_one_writer_a_trial(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with begin(tmp_path / "store") as writer:
        append(writer, made_up(SEED), 0, 3)
        writer.commit(checkpoint_at(3))
        with run_this_file("resume", tmp_path / "store") as process:
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "is being written by another process" in output and output.count("\n") == 1
    with run_this_file("resume", tmp_path / "store") as process:
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_one_writer_a_trial_within_a_process_too(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with begin(tmp_path / "store") as writer:
        append(writer, made_up(SEED), 0, 3)
        writer.commit(checkpoint_at(3))
        with pytest.raises(TiplError, match="another writer of this one"):
            TrialWriter.resume(tmp_path / "store", SEED)
        shutil.copytree(tmp_path / "store", tmp_path / "backup")  # opens and closes the lock's file
        with run_this_file("resume", tmp_path / "store") as process:
            process.communicate(timeout=60)
        assert process.returncode == 2
    TrialWriter.resume(tmp_path / "store", SEED)
    TrialWriter.resume(tmp_path / "store", SEED)[0].close()  # the one before was let go of


def test_a_full_disk(tmp_path: Path) -> None:
    """A file that may not grow beyond 20,000 bytes fails as on a full disk: an OSError in the middle of a write."""
    with run_this_file("full-disk", tmp_path / "store") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.count("\n") == 1 and "File too large" in output
    assert "What was committed stays; free some room and run the same command again." in output
    trial = made_up(SEED, spec=WIDE)
    assert_equal(read(tmp_path / "store"), cut(trial, 3))
    assert not list((tmp_path / "store").rglob("*.partial"))
    collect(tmp_path / "store", trial, COMMITS)
    assert_equal(read(tmp_path / "store"), trial)


# Damage.


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_verify_of_a_sound_store(complete_store: Path) -> None:
    found = data_verify(complete_store)
    assert found == {**found, "ok": True, "trials": 2, "damage": []}
    # 5 and 3 chunks of weights; each of the 10 other arrays fits into one.
    assert found["chunks"] == 5 + 10 + 3 + 10
    chunks = {name: content for name, content in files(complete_store).items() if "/c/" in name}
    assert found["bytes"] == sum(map(len, chunks.values()))
    json.dumps(found)


def test_verify_lists_all_that_is_damaged(complete_store: Path) -> None:
    trials = complete_store / "trials"
    flip_a_byte(trials / "7/weights/c/1/0")
    (trials / "7/weights/c/4/0").unlink()
    (trials / "7/obs_mean/c/0/0").write_bytes(b"")
    flip_a_byte(trials / "8/episode_return/c/0")
    (trials / "8/weights/c/2/0").write_bytes((trials / "8/weights/c/2/0").read_bytes()[:-1])
    (trials / "8/env_step/zarr.json").unlink()
    flip_a_byte(trials / "8/resume/1.safetensors")
    (trials / "9").mkdir()
    (trials / "9/zarr.json").write_text('{"attributes": {"seed"')
    found = data_verify(complete_store)
    assert not found["ok"]
    assert [(item["trial"], item["array"], item["chunk"], item["rows"]) for item in found["damage"]] == [
        (7, "weights", 1, [4, 8]),
        (7, "weights", 4, [16, 19]),
        (7, "obs_mean", 0, [0, 19]),
        (8, "weights", 2, [8, 11]),
        (8, "env_step", None, None),
        (8, "episode_return", 0, [0, 22]),
        (8, "checkpoint", None, None),
        (9, "record", None, None),
    ]
    assert "checksum" in found["damage"][0]["problem"] and "missing" in found["damage"][1]["problem"]


@pytest.mark.parametrize("array", [*SNAPSHOT_ARRAYS, *EPISODE_ARRAYS])
def test_a_flipped_byte_is_never_read(complete_store: Path, array: str) -> None:
    flip_a_byte(next(file for file in (complete_store / "trials/7" / array / "c").rglob("*") if file.is_file()))
    with pytest.raises(TiplError, match=rf"7/{array} is damaged.*tipl data verify"):
        read(complete_store)
    assert [item["array"] for item in data_verify(complete_store)["damage"]] == [array]


def test_a_missing_chunk_is_never_read_as_fill(complete_store: Path) -> None:
    (complete_store / "trials/7/env_step/c/0").unlink()
    with pytest.raises(TiplError, match="chunk 0 is missing"):
        Store.open(complete_store).trial(7).env_step  # noqa: B018


@pytest.mark.parametrize("file", ["weights/c/2/0", "resume/1.safetensors"])
@pytest.mark.parametrize("harm", [flip_a_byte, Path.unlink])
def test_resume_refuses_what_is_damaged(complete_store: Path, file: str, harm: Callable[[Path], None]) -> None:
    harm(complete_store / "trials/8" / file)
    with pytest.raises(TiplError, match=r"trials/8 cannot be gone on with .* its 11 snapshots stay readable"):
        TrialWriter.resume(complete_store, 8)


# What `tipl data info` shows.


def test_info(complete_store: Path) -> None:
    begin(complete_store, 9).close()
    found = data_info(complete_store)
    json.dumps(found)
    row_bytes, episode_bytes = SPEC.size * 4 + 8 + 4 + 4 + 8 + 2 * OBS * 8 + 8, 8 + 8 + 4
    raw = [LENGTH * (row_bytes + 2 * episode_bytes), 11 * (row_bytes + 2 * episode_bytes)]
    disk = [sum(map(len, files(complete_store / "trials" / str(seed)).values())) for seed in (7, 8)]
    assert found["begun_without_commit"] == [9]
    assert (found["snapshots"], found["raw_bytes"], found["disk_bytes"]) == (LENGTH + 11, sum(raw), sum(disk))
    assert found["ratio"] == sum(raw) / sum(disk)
    seven, eight = found["trials"]
    assert seven == {
        "seed": 7, "env_id": "Env-v0", "part": "train", "complete": True, "snapshots": LENGTH, "weights": SPEC.size,
        "episodes": 2 * LENGTH, "mean_return_of_last_100": made_up(7)["episode_return"].mean(),
        "raw_bytes": raw[0], "disk_bytes": disk[0], "versions": {"numpy": "2"},
    }  # fmt: skip
    assert (eight["seed"], eight["part"], eight["complete"], eight["snapshots"]) == (8, "test", False, 11)
    assert found["id"] == Store.open(complete_store).id and found["settings"] == {"layers": [2, 3]}
    assert found["split"] == {"train": [7], "validation": [9], "test": [8]}
    assert (found["incomplete"], found["missing"]) == ([8], [])


def test_info_averages_the_last_hundred_episodes(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    with begin(tmp_path / "store") as writer:
        append(writer, made_up(SEED), 0, 1)
        writer.append_episodes(np.arange(150), np.arange(150.0), np.arange(150))
        writer.commit({})
    (trial,) = data_info(tmp_path / "store")["trials"]
    assert trial["mean_return_of_last_100"] == np.arange(50, 150).mean()


def test_info_without_episodes(tmp_path: Path) -> None:
    create_store(tmp_path / "store")
    assert data_info(tmp_path / "store")["ratio"] is None
    with begin(tmp_path / "store") as writer:
        writer.append(*(made_up(SEED)[name][:1] for name in SNAPSHOT_ARRAYS))
        writer.commit({})
    (trial,) = data_info(tmp_path / "store")["trials"]
    assert trial["mean_return_of_last_100"] is None and trial["episodes"] == 0


# The split.


def plan(path: Path, seeds: Iterable[int], **other: Any) -> None:
    plan_trials(path, seeds, **{"env_id": "Env-v0", "config": {"layers": [2, 3]}, "spec": SPEC, **other})


def write_one(path: Path, seed: int) -> None:
    with begin(path, seed) as writer:
        append(writer, made_up(seed), 0, 1)
        writer.commit({}, complete=True)


@pytest.mark.parametrize(
    ("trials", "train", "validation", "test"),
    [(2, 1, 0, 1), (3, 1, 1, 1), (4, 2, 1, 1), (10, 7, 1, 2), (16, 11, 2, 3), (50, 34, 6, 10)],
)
def test_trials_planned_together_are_split_among_themselves(
    tmp_path: Path, trials: int, train: int, validation: int, test: int
) -> None:
    seeds = range(95, 95 + trials)  # seeds of two and of three digits: numbers are sorted, not names
    path = create_store(tmp_path / "store").path
    plan(path, reversed(seeds))
    assert Store.open(path).seeds == []
    for seed in seeds:
        write_one(path, seed)
    split = Store.open(path).split()
    assert (len(split.train), len(split.validation), len(split.test)) == (train, validation, test)
    assert split.train + split.validation + split.test == tuple(seeds)


def test_a_trial_keeps_its_part_whatever_comes_later(tmp_path: Path) -> None:
    """Issue 27: train on 11 to 14, add 1 to 10, and trials that were learned from were to judge by."""
    path = create_store(tmp_path / "store").path
    plan(path, range(11, 15))
    for seed in (*range(11, 15), *range(1, 11)):
        if seed == 1:
            assert Store.open(path).split() == Split((11, 12), (13,), (14,))
            plan(path, range(1, 11))
        write_one(path, seed)
    split = Split((1, 2, 3, 4, 5, 6, 7, 11, 12), (8, 13), (9, 10, 14))
    assert Store.open(path).split() == split
    plan(path, range(1, 15))
    assert Store.open(path).split() == split
    write_one(path, 0)
    assert Store.open(path).split() == dataclasses.replace(split, train=(0, *split.train))


def test_trials_that_come_one_by_one_go_where_most_is_missing() -> None:
    taken: list[str] = []
    for seed in range(200):
        taken += given_parts(taken, [seed]).values()
    assert taken[:5] == ["train", "test", "validation", "train", "train"]
    for count in range(10, 201):
        now = taken[:count]
        assert abs(now.count("test") - count / 5) <= 1 and abs(now.count("validation") - count / 8) <= 1


def test_a_split_takes_trials_to_fit_on_and_to_judge_by(tmp_path: Path) -> None:
    path = create_store(tmp_path / "store").path
    plan(path, range(3))
    for seed in (0, 1):
        write_one(path, seed)
        with pytest.raises(TiplError, match=r"has 1 trial\(s\) to train on and 0 to test.* collect more trials"):
            Store.open(path).split()
    write_one(path, 2)
    assert Store.open(path).split() == Split((0,), (1,), (2,))


# Whose trials these are, and what made them.


def test_an_id_is_made_once_and_kept_by_copies(complete_store: Path, tmp_path: Path) -> None:
    store = Store.open(complete_store)
    assert re.fullmatch("[0-9a-f]{32}", store.id) and store.ids == (store.id,) and store.name == "store"
    assert zarr.open_group(complete_store, mode="r").attrs["id"] == store.id
    assert create_store(complete_store).id == store.id != create_store(tmp_path / "other").id
    shutil.copytree(complete_store, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    assert (copy.id, copy.name, copy.incomplete) == (store.id, "copy", [8])


def test_processes_that_make_a_store_at_once_make_one(tmp_path: Path) -> None:
    processes = [run_this_file("create", tmp_path / "store", str(seed)) for seed in range(4)]
    ids = {process.communicate(timeout=120)[0] for process in processes}
    assert len(ids) == 1 and ids == {Store.open(tmp_path / "store").id + "\n"}
    assert Store.open(tmp_path / "store").root.parts == {0: ANY, 1: ANY, 2: ANY, 3: ANY}


def test_a_stop_after_the_last_commit_leaves_nothing_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    path = create_store(tmp_path / "store").path
    write = importlib.import_module("tipl.store.write")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), begin(path) as writer:
        append(writer, made_up(SEED), 0, LENGTH)
        patch.setattr(write, "remove_made", stopped)
        writer.commit({}, complete=True)
    assert (path / f"trials/{SEED}/resume/lock").exists()
    writer = None  # which gives its lock back
    create_store(path)
    assert not (path / f"trials/{SEED}/resume").exists()
    assert Store.open(path).trial(SEED).complete


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"env_id": "Env-v1"}, r"holds trials with env_id = Env-v0, not Env-v1\. A store holds .* give another store"),
        ({"config": {"layers": [2, 3], "ppo": {"clip": 0.1}}}, "holds trials with ppo.clip = None, not 0.1"),
        ({"config": {"layers": [4]}}, r"holds trials with layers = \[2, 3\], not \[4\]"),
        ({"spec": ParamSpec(("w",), ((3,),))}, r"parameters = .*, not {'w': \[3\]}"),
    ],
)
def test_one_configuration_a_store(complete_store: Path, other: dict[str, Any], message: str) -> None:
    before = files(complete_store)
    for bring in (lambda: plan(complete_store, [9, 10], **other), lambda: begin(complete_store, 9, **other)):
        with pytest.raises(TiplError, match=message):
            bring()
    assert files(complete_store) == before
    plan(complete_store, [9], config={"layers": [2, 3], "seed": 9})  # a seed is no setting


@pytest.mark.parametrize("seed", [1.5, "7", -1, True, None, 2**63])
def test_a_seed_is_a_whole_number(complete_store: Path, seed: Any) -> None:
    before = files(complete_store)
    with pytest.raises(TiplError, match="give a whole number"):
        begin(complete_store, seed)
    assert files(complete_store) == before


# What the user can get wrong.


def test_creating_a_store_again_opens_it(complete_store: Path) -> None:
    before = files(complete_store)
    assert create_store(complete_store).seeds == [7, 8]
    assert files(complete_store) == before


def _not_a_store(path: Path) -> None:
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))


def _other_version(path: Path) -> None:
    attributes = {"format": "tipl", "format_version": 99}
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))


def _short_root(path: Path) -> None:
    (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes()[:40])


def _short_record(path: Path) -> None:
    (path / "trials/8/zarr.json").write_bytes((path / "trials/8/zarr.json").read_bytes()[:40])


def _record_without_committed(path: Path) -> None:
    record = json.loads((path / "trials/8/zarr.json").read_bytes())
    del record["attributes"]["committed"]
    (path / "trials/8/zarr.json").write_text(json.dumps(record))


def _a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("weights")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "does not exist"),
        (_a_file, "is not a tipl store"),
        (_not_a_store, "is not a tipl store"),
        (_other_version, "has format version 99, this program reads 2"),
        (_short_root, r"store/zarr.json is damaged"),
        (_short_record, r"trials/8/zarr.json is damaged"),
        (_record_without_committed, r"trials/8/zarr.json is damaged: its checksum does not match"),
    ],
)
def test_a_store_that_cannot_be_opened(complete_store: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(complete_store)
    for use in (Store.open, data_info, lambda path: TrialWriter.resume(path, 8)):
        with pytest.raises(TiplError, match=message) as caught:
            use(complete_store)
        assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(TiplError, match="exists and is not a tipl store"):
            create_store(path)
    assert files(tmp_path) == {"notes.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert create_store(tmp_path / "empty").seeds == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TiplError, match=r"Writing .* failed: Not a directory"):
        create_store(tmp_path / "file" / "store")


def test_user_errors_about_trials(complete_store: Path, tmp_path: Path) -> None:
    before = files(complete_store)
    with pytest.raises(TiplError, match="has no trial 9; it has: 7, 8"):
        Store.open(complete_store).trial(9)
    with pytest.raises(TiplError, match="trials/7 holds 19 snapshots already"):
        begin(complete_store, 7)
    with pytest.raises(TiplError, match="trials/7 is complete"):
        TrialWriter.resume(complete_store, 7)
    with pytest.raises(TiplError, match="trials/9 has no committed snapshots"):
        TrialWriter.resume(complete_store, 9)
    with pytest.raises(TiplError, match="does not exist"):
        begin(tmp_path / "nowhere")
    assert files(complete_store) == before


# The processes that the tests above kill or run out of room.

KILLED_COMMITS = (3, 10, LENGTH)  # inside a chunk, over several, at the end
LONG = 160
LONG_COMMITS = tuple(range(2, LONG + 1, 2))
WIDE = ParamSpec(("weight",), ((2500,),))  # a row of 10,000 bytes that do not compress


def _killed_everywhere(root: Path, stride: int) -> None:
    """Run a process for every `stride`th operation on files, killed just before it, until one runs to its end."""
    begun = (root / "begun").exists()
    for operation in range(0, 10_000, stride):
        path = root / str(operation)
        if begun:
            shutil.copytree(root / "begun", path)
        if _in_child(lambda: _kill_before(operation, path)) == 0:  # noqa: B023
            return
        print(operation)


def _kill_before(operation: int, path: Path) -> None:
    done = -1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        to_write = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if to_write or event in {"os.mkdir", "os.remove", "os.rename", "os.rmdir"}:
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    collect(path, made_up(SEED), KILLED_COMMITS)


def _killed_at_random(root: Path) -> None:
    rng = random.Random(0)
    for kill in range(200):
        # Ever later, from before the first commit on, however fast the machine is just now.
        wait = 0.03 * (kill + rng.random())
        if _in_child(lambda: collect(root / "store", made_up(SEED, LONG), LONG_COMMITS), wait) == 0:
            print(kill)
            return
        if (root / "store/zarr.json").exists():
            shutil.copytree(root / "store", root / f"after-{kill}")


def _in_child(work: Callable[[], None], kill_after: float | None = None) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code


def _full_disk(path: Path) -> None:
    trial = made_up(SEED, spec=WIDE)
    create_store(path)
    with begin(path, spec=WIDE) as writer:
        append(writer, trial, 0, 3)
        writer.commit(checkpoint_at(3))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        append(writer, trial, 3, 9)


def _main(mode: str, path: Path, *arguments: str) -> None:
    try:
        if mode == "killed-everywhere":
            _killed_everywhere(path, *map(int, arguments))
        elif mode == "killed-at-random":
            _killed_at_random(path)
        elif mode == "full-disk":
            _full_disk(path)
        elif mode == "create":
            print(create_store(path).id)
            begin(path, *map(int, arguments)).close()  # pyright: ignore[reportArgumentType]
        elif mode == "resume":
            TrialWriter.resume(path, SEED)[0].close()
    except TiplError as error:
        print(error)
        sys.exit(2)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])


def test_a_store_that_another_process_makes_at_the_same_time_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, asked = tmp_path / "store", []

    def made_meanwhile(folder: Path) -> bool:
        if not asked:
            asked.append(folder)
            create_store(folder)
        return False

    path.mkdir()
    begun = write.is_begun
    monkeypatch.setattr(write, "is_begun", lambda folder: begun(folder) if asked else made_meanwhile(folder))
    assert create_store(path).id == Store.open(path).id and asked
