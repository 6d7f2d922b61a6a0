"""A store of which any file is damaged, exchanged, taken away, a link or a lie: all of it is seen, nothing is followed.

In: a small store of two trials, one of them complete.  Out: what `verify` and the readers say of it.
"""

import json
import os
import random
import shutil
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import Blosc

import tipl.store.write
from tipl.errors import TiplError
from tipl.files import SEAL, sealed
from tipl.store import Store, TrialWriter, create_store, data_info, data_verify
from tipl.store.arrays import Layout, unpack
from tipl.store.spec import ParamSpec

SPEC = ParamSpec(("w", "b"), ((2, 3), (3,)))
ARRAYS = {
    "weights", "env_step", "iteration", "epoch", "learning_rate", "obs_mean", "obs_var", "obs_count",
    "episode_step", "episode_return", "episode_length",
}  # fmt: skip


def begin(store: Path, seed: int, **options: Any) -> TrialWriter:
    made_by = {"env_id": "Env-v0", "config": {"rate": 0.1}, "spec": SPEC, "versions": {"numpy": "2"}, "obs_dim": 2}
    return TrialWriter.create(store, seed, **{**made_by, "num_snapshots": None, "chunk_snapshots": 4, **options})


def append(writer: TrialWriter, count: int, seed: int) -> None:
    rng, numbers = np.random.default_rng([seed, writer.appended]), np.arange(writer.appended, writer.appended + count)
    writer.append(
        rng.standard_normal((count, SPEC.size)).astype(np.float32), 10 * numbers, numbers, numbers % 5,
        1.0 / (1 + numbers), rng.random((count, 2)), rng.random((count, 2)), 1.0 * numbers,
    )  # fmt: skip
    writer.append_episodes(numbers, rng.random(count), numbers)


def write(store: Path, seed: int, complete: bool) -> None:
    with begin(store, seed) as writer:
        append(writer, 10, seed)
        writer.commit({"state": np.arange(5.0)})
        append(writer, 9, seed)
        writer.commit({"state": np.arange(6.0)}, complete=complete)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Trials 1 (complete) and 2 (not), 19 snapshots each: of the weights four full chunks and one of three rows."""
    path = create_store(tmp_path / "store").path
    write(path, 1, True)
    write(path, 2, False)
    return path


def everything(store: Path) -> list[Any]:
    """All that the readers give."""
    opened, found = Store.open(store), []
    for seed in opened.seeds:
        trial = opened.trial(seed)
        found += [trial.env_id, trial.config, trial.spec, trial.versions, trial.committed, trial.complete]
        found += [trial.weights().tolist(), *(getattr(trial, name).tolist() for name in sorted(ARRAYS - {"weights"})
                                              if not name.startswith("episode_"))]  # fmt: skip
        found += [each.tolist() for each in trial.episodes]
    return [*found, opened.split()]


def require_seen(store: Path, before: list[Any], briefly: bool = False) -> None:
    """`verify` says that something is wrong, on one line each; what is read is as before, or refused in one line."""
    try:
        found = data_verify(store)
    except TiplError as error:
        assert "\n" not in str(error)
    else:
        assert not found["ok"]
        json.dumps(found)
        assert all(part["problem"] and "\n" not in part["problem"] for part in found["damage"])
    readers: list[Callable[[], Any]] = [
        lambda: everything(store),
        lambda: data_info(store),
        lambda: create_store(store),
    ]
    for read in readers[: 1 if briefly else 3]:
        try:
            if isinstance(now := read(), list):
                assert now == before or Store.open(store).missing
        except TiplError as error:
            assert "\n" not in str(error)


def files_of(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)


# Flipped bits.


def test_every_flipped_bit_is_seen(store: Path) -> None:
    """Of every file a few bits, of the small ones many."""
    before, rng, flipped = everything(store), random.Random(0), 0
    for file in files_of(store):
        content = file.read_bytes()
        for bit in {0, 8 * len(content) - 1, *(rng.randrange(8 * len(content)) for _ in range(4))}:
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            require_seen(store, before, briefly=True)
            flipped += 1
        file.write_bytes(content)
    assert flipped > 300 and data_verify(store)["ok"]


def test_every_file_that_is_cut_short_or_goes_on_is_seen(store: Path) -> None:
    before = everything(store)
    for file in files_of(store):
        content = file.read_bytes()
        longer = [] if file.name == "checksums" else [content + b" "]  # there, what is beyond a commit does not count
        for changed in (b"", content[: len(content) // 2], content[:-1], *longer):
            file.write_bytes(changed)
            require_seen(store, before, briefly=True)
        file.write_bytes(content)


# Exchanged and taken away.


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


EXCHANGED = [
    ("trials/1", "trials/2"),
    ("trials/1/zarr.json", "trials/2/zarr.json"),
    ("trials/1/zarr.json", "zarr.json"),
    ("trials/zarr.json", "trials/2/resume/zarr.json"),  # the same file
    ("trials/1/weights", "trials/2/weights"),
    ("trials/1/weights/zarr.json", "trials/2/weights/zarr.json"),
    ("trials/1/weights/checksums", "trials/2/weights/checksums"),
    ("trials/1/weights/c", "trials/2/weights/c"),
    ("trials/1/weights/c/0", "trials/1/weights/c/1"),
    ("trials/1/weights/c/3/0", "trials/1/weights/c/4/0"),
    ("trials/1/weights/c/4", "trials/2/weights/c/4"),
    ("trials/1/obs_mean", "trials/1/obs_var"),
    ("trials/1/obs_mean/c/0/0", "trials/1/obs_var/c/0/0"),
    ("trials/1/iteration", "trials/1/epoch"),
    ("trials/1/iteration/c/0", "trials/1/epoch/c/0"),
    ("trials/1/learning_rate/zarr.json", "trials/1/obs_count/zarr.json"),
    ("trials/1/learning_rate/c", "trials/1/obs_count/c"),
    ("trials/1/episode_return/c/0", "trials/2/episode_return/c/0"),
    ("trials/1/env_step/c/0", "trials/1/episode_step/c/0"),
]


@pytest.mark.parametrize(("one", "other"), EXCHANGED)
def test_whatever_is_exchanged_is_seen(store: Path, one: str, other: str) -> None:
    before = everything(store)
    same = (store / one).is_file() and (store / one).read_bytes() == (store / other).read_bytes()
    exchange(store / one, store / other)
    if same:
        assert data_verify(store)["ok"]
    else:
        require_seen(store, before)


@pytest.mark.parametrize("unit", ["zarr.json", "trials", "trials/1", "trials/2/resume", "trials/1/weights/c/2/0"])
def test_what_comes_from_another_store_is_seen(store: Path, tmp_path: Path, unit: str) -> None:
    before = everything(store)
    other = create_store(tmp_path / "other").path
    with begin(other, 1) as writer:
        append(writer, 19, 7)
        writer.commit({}, complete=True)
    with begin(other, 2) as writer:
        append(writer, 19, 7)
        writer.commit({"other": np.zeros(1)})
        writer.commit({"other": np.zeros(1)})
    exchange(store / unit, other / unit)
    require_seen(store, before)


@pytest.mark.parametrize(
    "unit",
    ["trials/1", "trials/2", "trials/1/zarr.json", "trials/zarr.json", "trials/2/resume", "trials/2/resume/zarr.json",
     "trials/2/resume/2.safetensors", "trials/1/weights", "trials/1/weights/c", "trials/1/weights/c/1",
     "trials/1/weights/c/4/0", "trials/1/weights/checksums", "trials/1/weights/zarr.json", "trials/1/epoch/c/0"],
)  # fmt: skip
def test_whatever_is_taken_away_is_seen(store: Path, unit: str) -> None:
    before, gone = everything(store), store / unit
    (shutil.rmtree if gone.is_dir() else Path.unlink)(gone)
    require_seen(store, before)


def test_a_trial_taken_away_whole_is_named_and_can_be_written_again(store: Path) -> None:
    shutil.rmtree(store / "trials/1")
    assert Store.open(store).missing == [1] and Store.open(store).seeds == [2]
    (found,) = data_verify(store)["damage"]
    assert found["trial"] == 1 and "was taken away" in found["problem"]
    assert data_info(store)["missing"] == [1]
    write(store, 1, True)
    assert data_verify(store)["ok"] and Store.open(store).missing == []


def test_readers_say_which_trials_are_not_whole(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(store, 3, True)
    shutil.rmtree(store / "trials/3")
    Store.open(store).split()
    Store.open(store).split()
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("of its trials 2 are not complete.") == said.count("of its trials 3 are no longer there.") == 1


def test_a_trial_whose_record_is_lost_keeps_its_weights(store: Path) -> None:
    (store / "trials/1/zarr.json").unlink()
    chunks = {file: file.read_bytes() for file in store.glob("trials/1/weights/c/*/0")}
    for write_there in (lambda: begin(store, 1), lambda: TrialWriter.resume(store, 1), lambda: create_store(store)):
        with pytest.raises(TiplError, match=r"trials/1 has lost its record, zarr.json; bring it back from a copy"):
            write_there()
    assert {file: file.read_bytes() for file in store.glob("trials/1/weights/c/*/0")} == chunks


def test_an_older_record_of_a_complete_trial_is_seen(store: Path) -> None:
    with begin(store, 3) as writer:
        append(writer, 5, 3)
        writer.commit({})
        older = (store / "trials/3/zarr.json").read_bytes()
        append(writer, 5, 3)
        writer.commit({}, complete=True)
    (store / "trials/3/zarr.json").write_bytes(older)
    with pytest.raises(TiplError, match="trials/3 is not as it was completed"):
        Store.open(store)
    assert [part["trial"] for part in data_verify(store)["damage"]] == [3]


def test_a_writer_stopped_between_its_commit_and_the_root_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create_store(tmp_path / "store").path
    with monkeypatch.context() as patch:
        patch.setattr(tipl.store.write, "list_trials", lambda *_: None)
        write(path, 1, True)
    assert Store.open(path).root.trials == {} and data_verify(path)["ok"]
    create_store(path)
    assert Store.open(path).root.trials == {1: Store.open(path).records[1].seal}


# Links, FIFOs, folders, and names that this program does not give.


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may change."""
    folder = tmp_path / "outside"
    for name in ("thesis/figures", "1/weights", "1/resume", "resume", "c/0"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "thesis.tex").write_text("precious")
        (folder / name / "zarr.json").write_text("precious")

    def content() -> dict[Path, bytes | None]:
        return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}

    before = content()
    yield folder
    assert content() == before


PLACES = ["trials", "trials/1", "trials/3", "trials/1/weights", "trials/1/weights/c", "trials/1/weights/c/2",
          "trials/1/resume", "trials/2/resume", "trials/2/weights/c/9"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_no_link_is_followed(store: Path, outside: Path, place: str) -> None:
    before, link = everything(store), store / place
    existed = link.exists()
    shutil.rmtree(link, ignore_errors=True)
    link.symlink_to(outside, target_is_directory=True)
    for seed in (1, 2) if existed else (1, 2, 3):
        for use in (lambda: begin(store, seed), lambda: TrialWriter.resume(store, seed)[0]):  # noqa: B023
            try:
                with use() as writer:
                    append(writer, 30, seed)
                    writer.commit({}, complete=True)
            except TiplError:
                continue
    if existed:
        require_seen(store, before)


@pytest.mark.parametrize("replace", ["link", "fifo", "folder"])
def test_a_file_that_is_none_is_refused_at_once(store: Path, tmp_path: Path, replace: str) -> None:
    before = everything(store)
    signal.alarm(100)
    for file in files_of(store):
        kept = tmp_path / "kept"
        file.rename(kept)
        if replace == "link":
            file.symlink_to(kept)
        elif replace == "fifo":
            os.mkfifo(file)
        else:
            file.mkdir()
        require_seen(store, before)
        file.rmdir() if replace == "folder" else file.unlink()
        kept.rename(file)
    signal.alarm(0)


def test_a_file_that_has_another_name_elsewhere_is_not_written_into(store: Path, tmp_path: Path) -> None:
    names = [file for file in files_of(store) if "/2/" in str(file)]
    for number, file in enumerate(names):
        os.link(file, tmp_path / f"{number}.backup")
    before = [(tmp_path / f"{number}.backup").read_bytes() for number in range(len(names))]
    with TrialWriter.resume(store, 2)[0] as writer:
        append(writer, 30, 2)
        writer.commit({}, complete=True)
    assert [(tmp_path / f"{number}.backup").read_bytes() for number in range(len(names))] == before
    assert data_verify(store)["ok"]


@pytest.mark.parametrize("name", ["01", "٣", "+3", "3 ", "1e1", "-1", str(10**19), "9" * 200, "..3"])
def test_a_folder_that_only_looks_like_a_trial_is_named(store: Path, name: str) -> None:
    shutil.copytree(store / "trials/1", store / "trials" / name)
    assert Store.open(store).seeds == [1, 2]
    (found,) = data_verify(store)["damage"]
    assert (found["trial"], found["array"]) == (None, "folder") and "is no trial of this store" in found["problem"]


def test_nothing_is_removed_that_was_not_made_here(store: Path) -> None:
    begin(store, 3).close()
    mine = store / "trials/3/weights/thesis.tex"
    mine.write_text("precious")
    with pytest.raises(TiplError, match=r"thesis.tex was not made by this program and is left alone; move it away"):
        begin(store, 3)
    assert mine.exists()
    (store / "trials/2/resume/thesis.tex").write_text("precious")
    with (
        TrialWriter.resume(store, 2)[0] as writer,
        pytest.raises(TiplError, match=r"thesis.tex was not made by this program"),
    ):
        writer.commit({}, complete=True)
    assert (store / "trials/2/resume/thesis.tex").exists() and Store.open(store).trial(2).complete


# Lies, sealed as if they were ours.


def lie(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    metadata = json.loads(file.read_bytes())
    change(metadata)
    metadata["attributes"]["seal"] = SEAL
    file.write_bytes(sealed(json.dumps(metadata, indent=2).encode()))


def attribute(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda metadata: metadata["attributes"].update(changes)


LIES = {
    "rows": attribute(committed=10**13),
    "most rows": attribute(committed=2**63 - 1),
    "episodes": attribute(committed_episodes=10**13),
    "negative rows": attribute(committed=-1),
    "half a row": attribute(committed=1.5),
    "rows in words": attribute(committed="19"),
    "no weights": attribute(param_spec=[]),
    "weights": attribute(param_spec=[{"name": "w", "shape": [2**30, 2**30], "offset": 0}]),
    "many weights": attribute(param_spec=[{"name": "w", "shape": [250_000_000], "offset": 0}]),
    "negative weights": attribute(param_spec=[{"name": "w", "shape": [-1], "offset": 0}]),
    "a name twice": attribute(param_spec=[{"name": "w", "shape": [3], "offset": 3 * i} for i in (0, 1)]),
    "observations": attribute(obs_dim=2**31),
    "chunk": attribute(chunk_rows=dict.fromkeys(ARRAYS, 2**31)),
    "no chunk": attribute(chunk_rows=dict.fromkeys(ARRAYS, 0)),
    "chunks in a list": attribute(chunk_rows=[4]),
    "grid": attribute(grid=0.3),
    "sums": attribute(checksums={name: [0] for name in ARRAYS}),
    "seed": attribute(seed=2),
    "seed in words": attribute(seed="1"),
    "store": attribute(store="0" * 32),
    "a link for a store": attribute(store="../.."),
    "config": attribute(config=[1]),
    "hidden sizes": attribute(config={"hidden_sizes": "8"}),
    "versions": attribute(versions={"numpy": {}}),
    "env_id": attribute(env_id=None),
    "more": attribute(more=1),
    "consolidated": lambda metadata: metadata.update(consolidated_metadata={"metadata": {}}),
    "zarr 2": lambda metadata: metadata.update(zarr_format=2),
    "an array": lambda metadata: metadata.update(node_type="array"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_record_that_lies_is_refused_before_it_costs_anything(store: Path, what: str) -> None:
    before = everything(store)
    lie(store / "zarr.json", attribute(trials={"1": None, "2": None}))
    lie(store / "trials/1/zarr.json", LIES[what])
    shared = json.loads((store / "trials/1/zarr.json").read_bytes())["attributes"]
    if what not in ("negative weights", "config", "hidden sizes", "env_id"):  # then it is the root that is refused
        lie(
            store / "zarr.json",
            attribute(configuration={name: shared[name] for name in ("env_id", "config", "param_spec")}),
        )
    tracemalloc.start()
    require_seen(store, before)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 30e6


ROOT_LIES = {
    "id": attribute(id="../../home"),
    "no id": lambda metadata: metadata["attributes"].pop("id"),
    "split": attribute(split={"train": [1, 2], "validation": [], "test": [2]}),
    "split of all": attribute(split={"train": [], "validation": [], "test": []}),
    "split of words": attribute(split={"train": ["../1"], "validation": [], "test": []}),
    "trials": attribute(trials={"../..": None}),
    "a trial twice": attribute(trials={"1": None, "01": None}),
    "configuration": attribute(configuration={}),
    "consolidated": lambda metadata: metadata.update(consolidated_metadata={"metadata": {}}),
}  # fmt: skip


@pytest.mark.parametrize("what", ROOT_LIES)
def test_a_root_that_lies_is_refused(store: Path, what: str) -> None:
    lie(store / "zarr.json", ROOT_LIES[what])
    for use in (Store.open, create_store, data_info, lambda path: begin(path, 3)):
        with pytest.raises(TiplError):
            use(store)


def _codec(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda metadata: metadata["codecs"].insert(0, {"name": name, "configuration": {}})


ARRAY_LIES = {
    "a codec": _codec("numcodecs.pickle"),
    "shards": _codec("sharding_indexed"),
    "separator": lambda metadata: metadata["chunk_key_encoding"]["configuration"].update(separator="."),
    "dtype": lambda metadata: metadata.update(data_type="int64"),
    "fewer rows": lambda metadata: metadata.update(shape=[18, SPEC.size]),
    "columns": lambda metadata: metadata.update(shape=[19, SPEC.size + 1]),
    "no shape": lambda metadata: metadata.update(shape=[]),
    "chunks": lambda metadata: metadata["chunk_grid"]["configuration"].update(chunk_shape=[8, SPEC.size]),
    "a transformer": lambda metadata: metadata.update(storage_transformers=[{"name": "x"}]),
    "fill": lambda metadata: metadata.update(fill_value=0),
    "owner": lambda metadata: metadata["attributes"].update(seed=2),
}


@pytest.mark.parametrize("what", ARRAY_LIES)
def test_an_array_of_another_format_is_refused(store: Path, what: str) -> None:
    lie(store / "trials/1/weights/zarr.json", ARRAY_LIES[what])
    with pytest.raises(TiplError, match=r"trials/1/weights is damaged"):
        Store.open(store).trial(1).weights(0, 1)
    assert [part["array"] for part in data_verify(store)["damage"]] == ["weights"]


def test_arrays_of_zarr_2_are_not_opened(store: Path) -> None:
    array = store / "trials/1/env_step"
    (array / "zarr.json").unlink()
    (array / ".zarray").write_text('{"zarr_format": 2, "dtype": "|O", "compressor": {"id": "pickle"}}')
    with pytest.raises(TiplError, match=r"env_step is damaged \(There is no .*zarr.json"):
        Store.open(store).trial(1).env_step  # noqa: B018


def test_a_checkpoint_of_64_gibibytes_that_are_not_there_is_refused_before_it_is_read(store: Path) -> None:
    (checkpoint,) = store.glob("trials/2/resume/*.safetensors")
    os.truncate(checkpoint, 1 << 36)
    line = "has 68,719,476,736 bytes, hardly any of which are there"
    with pytest.raises(TiplError, match=line):
        TrialWriter.resume(store, 2)
    (found,) = data_verify(store)["damage"]
    assert found["array"] == "checkpoint" and line in found["problem"]


def test_a_chunk_that_would_unpack_to_more_is_refused() -> None:
    layout = Layout("weights", "float32", (8,), 64, None, "id", 1)
    codec = Blosc("zstd", clevel=1, shuffle=Blosc.BITSHUFFLE, blocksize=1 << 20)
    rows = np.arange(512, dtype=np.float32).reshape(64, 8)
    good = codec.encode(np.ascontiguousarray(rows.T))
    np.testing.assert_array_equal(unpack(good, layout), rows)
    bomb = codec.encode(np.zeros(1 << 26, np.float32))
    assert len(bomb) < 60_000
    other = Blosc("lz4").encode(np.ascontiguousarray(rows.T))
    tracemalloc.start()
    for bad in (bomb, good + b"\0", good[:-1], good[:15], b"", other, b"\xff" * 100):
        with pytest.raises(ValueError, match=r"unpack|cut short"):
            unpack(bad, layout)
    header = bytearray(bomb)  # one that says of itself what it should
    header[4:8] = layout.chunk_bytes.to_bytes(4, "little")
    with pytest.raises(ValueError):
        unpack(bytes(header), layout)
    large = Layout("weights", "float32", (1 << 26,), 1, None, "id", 1)
    with pytest.raises(ValueError, match="would become"):
        unpack(bomb, large)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


# What is refused before anything is written.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, np.float32(1), "\0", 2**70])
def test_a_config_that_would_not_read_back(store: Path, value: Any) -> None:
    before = files_of(store)
    with pytest.raises(TiplError, match=r"config does not go into JSON"):
        begin(store, 3, config={"rate": value})
    assert files_of(store) == before


def test_what_another_process_commits_before_the_lock_is_kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tipl.store.write.lock_trial

    def late(trial: Path) -> int:
        monkeypatch.setattr(tipl.store.write, "lock_trial", lock)
        write(store, 3, False)
        return lock(trial)

    monkeypatch.setattr(tipl.store.write, "lock_trial", late)
    with pytest.raises(TiplError, match="trials/3 holds 19 snapshots already"):
        begin(store, 3)
    assert Store.open(store).trial(3).committed == 19 and data_verify(store)["ok"]
