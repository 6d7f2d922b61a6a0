"""Compact stores against rounding by hand, exact inner products and zarr alone; killed, damaged, refused.

In: small walks.  Out: weights on their grids, costs as plain loops have them, one line for bad input.

"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_store_damage import lie

from tipl.catalog.compact import compact
from tipl.cli.main import main
from tipl.collection.collect import collect
from tipl.config.presets import CollectConfig, CompactConfig, SVDConfig
from tipl.errors import TiplError
from tipl.representation import fit_svd
from tipl.store import SNAPSHOT_ARRAYS, Store, TrialWriter, create_store, data_info, data_verify
from tipl.store.arrays import GRID_RANGE, ArrayReader, ArrayWriter, Layout, create_array
from tipl.store.spec import ParamSpec

CHUNK = 512  # snapshots of a chunk of few weights


def walk(seed: int, count: int, size: int, anneal: bool = True) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shrink = np.linspace(1, 1 / count, count)[:, None] if anneal else 1.0
    return (0.3 * rng.standard_normal(size) + np.cumsum(0.01 * shrink * rng.standard_normal((count, size)), 0)).astype(
        np.float32
    )


def write(path: Path, seed: int, weights_TP: np.ndarray, complete: bool = True) -> None:
    create_store(path)
    count, size = weights_TP.shape
    rng = np.random.default_rng(seed)
    writer = TrialWriter.create(
        path, seed, env_id="Env-v0", config={"layers": [3]}, spec=ParamSpec(("w",), ((size,),)),
        versions={"numpy": "2"}, obs_dim=3, num_snapshots=count,
    )  # fmt: skip
    with writer:
        numbers = np.arange(count)
        writer.append(weights_TP, 400 * numbers, numbers // 5, numbers % 5, 1.0 / (1 + numbers),
                      rng.standard_normal((count, 3)), rng.random((count, 3)), 2048.0 * numbers)  # fmt: skip
        writer.append_episodes(np.arange(7), rng.standard_normal(7), np.arange(7))
        writer.commit({}, complete=complete)


def compacted(tmp_path: Path, weights_TP: np.ndarray, error: float = 0.02) -> tuple[np.ndarray, dict[str, Any]]:
    """The weights as they come back, and what the trial says of them."""
    write(tmp_path / "store", 1, weights_TP)
    compact(tmp_path / "store", tmp_path / "compact", CompactConfig(error))
    trial = Store.open(tmp_path / "compact").trial(1)
    assert trial.compact is not None
    json.dumps(trial.compact, allow_nan=False)
    return trial.weights(), trial.compact


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def contents(path: Path) -> dict[str, Any]:
    """What is in the files but what belongs to one store alone: its id."""
    store, found = Store.open(path), files(path)
    found = {name: content.replace(store.id.encode(), b"id") for name, content in found.items()}
    return {name: re.sub(b"sha256:[0-9a-f]{64}", b"seal", content) for name, content in found.items()}


def rms(values: np.ndarray) -> float:
    return math.sqrt(np.mean(np.square(values.astype(np.float64))))


# The weights.


@pytest.mark.parametrize(("count", "size"), [(1100, 122), (CHUNK, 7), (CHUNK + 1, 300), (40, 20_000)])
@pytest.mark.parametrize("error", [0.02, 0.3])
def test_weights_are_rounded_to_the_coarsest_grid_that_keeps_the_error(
    tmp_path: Path, count: int, size: int, error: float
) -> None:
    true_TP = walk(0, count, size)
    actual_TP, said = compacted(tmp_path, true_TP, error)
    true_TP, actual_TP = true_TP.astype(np.float64), actual_TP.astype(np.float64)
    step_T = np.linalg.norm(np.diff(true_TP, axis=0), axis=1)
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        limit = error * min(step_T.mean(), step_T[max(0, start - 1) : start + CHUNK].mean())
        grid = next(q for q in 2.0 ** np.arange(0, -60, -1) if not (actual_TP[chunk] % q).any())
        np.testing.assert_array_equal(actual_TP[chunk], np.round(true_TP[chunk] / grid) * grid)
        assert rms(np.linalg.norm(actual_TP[chunk] - true_TP[chunk], axis=1)) <= limit
        coarser = np.round(true_TP[chunk] / (2 * grid)) * 2 * grid
        too_coarse = rms(np.linalg.norm(coarser - true_TP[chunk], axis=1)) > limit
        assert too_coarse or 2 * grid * math.sqrt(size / 12) > limit
    assert said["asked"] == error


def test_steps_that_shrink_have_finer_grids(tmp_path: Path) -> None:
    true_TP = walk(0, 8 * CHUNK, 5)
    _, said = compacted(tmp_path, true_TP)
    assert all(error < 0.02 for error in said["rms_error_of_thirds"])
    assert said["rms_error"] < 0.02 <= 4 * said["rms_error"]


@pytest.mark.parametrize(
    "weights_TP",
    [
        np.full((3, 4), 0.1, np.float32),
        np.zeros((3, 4), np.float32),
        walk(0, 1, 4),
        np.repeat(walk(0, 2, 4), 3 * CHUNK, axis=0),  # one step, chunks without any
    ],
)
def test_trials_that_hardly_move(tmp_path: Path, weights_TP: np.ndarray) -> None:
    actual_TP, said = compacted(tmp_path, weights_TP)
    np.testing.assert_allclose(actual_TP, weights_TP, rtol=0, atol=1e-6)
    if said["mean_step"] == 0:
        assert said["rms_error"] is None and said["half_step_skill"] == [None, None]


def test_the_last_steps_are_kept_to_float32_at_least(tmp_path: Path) -> None:
    """Steps that fall by a factor of a thousand in one chunk and by another in the next."""
    scale = np.repeat([1e-1, 1e-4, 1e-7], CHUNK)[:, None]
    steps = scale * np.random.default_rng(0).standard_normal((3 * CHUNK, 50))
    true_TP = (0.5 + np.cumsum(steps, axis=0)).astype(np.float32)
    actual_TP, _ = compacted(tmp_path, true_TP)
    largest = np.abs(true_TP).max()
    for chunk, limit in zip(range(3), (0.02 * 0.1, 0.02 * 0.1 / 256, 0.02 * 0.1 / 256), strict=True):
        rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        assert rms(actual_TP[rows] - true_TP[rows]) <= limit + largest * 2**-23


def test_differences_from_end_to_end_of_the_range_come_back(tmp_path: Path) -> None:
    grid = 2.0**-20
    most = GRID_RANGE * grid
    rows = np.array([[most, -most, 0.0], [-most, most, grid * 8]] * 12, np.float32)
    layout = Layout("weights", "float32", (3,), 16, grid, "id", 1)
    create_array(tmp_path / "weights", layout, len(rows))
    writer = ArrayWriter(tmp_path / "weights", layout)
    writer.append(rows)
    sums = writer.flush(exact=True)
    np.testing.assert_array_equal(ArrayReader(tmp_path / "weights", layout, 24, sums).read(0, 24), rows)
    with pytest.raises(AssertionError, match="not on the grid"):
        writer.append(np.full((16, 3), grid / 2, np.float32))


def snippet() -> str:
    """What docs/format.md says of weights: the only lines of it with the array's offset."""
    text = (Path(__file__).parents[1] / "docs/format.md").read_text(encoding="utf-8")
    (block,) = (each for each in re.findall("```python\n(.*?)```", text, re.DOTALL) if 'attrs["offset"]' in each)
    assert block.count("runs/compact") == 1
    return block.replace('"runs/compact"', "sys.argv[1]")


def test_zarr_alone_reads_it(tmp_path: Path) -> None:
    compacted(tmp_path, walk(0, 1100, 122))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = f"""
import sys, zarr
{snippet()}
np.save(sys.argv[2], weights.astype(np.float32))
assert not any(name.split(".")[0] == "tipl" for name in sys.modules)
codecs = [codec["name"] for codec in array.metadata.to_dict()["codecs"]]
assert codecs == ["transpose", "bytes", "blosc", "crc32c"], codecs
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "compact"), str(tmp_path / "read.npy")]
    subprocess.run(command, env=environment, check=True)
    trial = Store.open(tmp_path / "compact").trial(1)
    read_TP = np.load(tmp_path / "read.npy")
    assert read_TP.dtype == np.float32
    np.testing.assert_array_equal(read_TP, trial.weights())
    np.testing.assert_array_equal(read_TP[500:600], trial.weights(500, 600))


def test_all_else_is_as_it_was(tmp_path: Path) -> None:
    compacted(tmp_path, walk(0, 600, 20))
    before, after = (Store.open(tmp_path / name).trial(1) for name in ("store", "compact"))
    for name in SNAPSHOT_ARRAYS[1:]:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for actual, desired in zip(after.episodes, before.episodes, strict=True):
        np.testing.assert_array_equal(actual, desired)
    for name in ("seed", "env_id", "config", "spec", "versions", "committed", "complete"):
        assert getattr(after, name) == getattr(before, name)


def test_steps_cost_little_more_than_their_entropy(tmp_path: Path) -> None:
    count, size = 256, 5000
    weights_TP, said = compacted(tmp_path, walk(0, count, size, anneal=False))
    grid = said["grid"] * 256
    steps = np.diff(np.round(weights_TP.astype(np.float64) / grid), axis=0)
    _, counts = np.unique(steps, return_counts=True)
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8  # bytes, of the steps alone
    chunks = sum(file.stat().st_size for file in (tmp_path / "compact/trials/1/weights/c").rglob("0"))
    assert entropy < chunks < 1.1 * entropy
    assert data_info(tmp_path / "compact")["ratio"] > 4 > 2 > data_info(tmp_path / "store")["ratio"]


# Format version 2, which had filters.


@pytest.fixture
def version_2(tmp_path: Path) -> Path:
    """As tipl 0.1.0 wrote it, and beside it its weights as that program read them."""
    with zipfile.ZipFile(Path(__file__).parent / "data/compact-version-2.zip") as archive:
        archive.extractall(tmp_path / "old")
    (tmp_path / "old/weights.npz").rename(tmp_path / "weights.npz")
    return tmp_path / "old"


def test_version_2_is_read_and_written_anew_to_the_bit(version_2: Path, tmp_path: Path) -> None:
    expected = np.load(tmp_path / "weights.npz")["3"]
    before = Store.open(version_2)
    np.testing.assert_array_equal(before.trial(3).weights(), expected)
    assert data_verify(version_2)["ok"] and data_info(version_2)["format_version"] == 2
    after = Store.open(compact(version_2, tmp_path / "new"))
    assert data_info(after.path)["format_version"] == 3 and data_verify(after.path)["ok"]
    assert after.trial(3).weights().tobytes() == expected.tobytes()
    assert after.root.made_of == before.root.made_of and after.root.parts == before.root.parts
    facts = ("config", "spec", "versions", "committed", "committed_episodes", "complete", "compact", "grid")
    assert all(getattr(after.trial(3), fact) == getattr(before.trial(3), fact) for fact in facts)
    for name in SNAPSHOT_ARRAYS[1:]:
        np.testing.assert_array_equal(getattr(after.trial(3), name), getattr(before.trial(3), name))


def test_version_2_is_not_rounded_again_nor_added_to(version_2: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(TiplError, match=r"was compacted with --error 0\.05 and stays as it is; leave --error out"):
        compact(version_2, tmp_path / "new", CompactConfig(0.1))
    with pytest.raises(TiplError, match="is a compact store of format version 2; give another --out"):
        compact(store, version_2, CompactConfig(0.05))
    assert not (tmp_path / "new").exists()


LIES = {
    "array": {
        "grid": lambda metadata: metadata["attributes"].update(grid=0.5),
        "offset": lambda metadata: metadata["attributes"].update(offset=0),
        "floats": lambda metadata: metadata.update(data_type="float32"),
        "a filter": lambda metadata: metadata["codecs"].insert(1, {"name": "numcodecs.delta", "configuration": {}}),
    },
    "record": {
        "version": lambda metadata: metadata["attributes"].update(format_version=2),
        "no grid": lambda metadata: metadata["attributes"].update(grid=None),
        "another grid": lambda metadata: metadata["attributes"].update(grid=0.5),
    },
}


@pytest.mark.parametrize(("where", "what"), [(where, what) for where, lies in LIES.items() for what in lies])
def test_metadata_that_lie_about_the_grid_are_refused(store: Path, tmp_path: Path, where: str, what: str) -> None:
    out = compact(store, tmp_path / "compact")
    lie(out / "trials/3" / ("weights/zarr.json" if where == "array" else "zarr.json"), LIES[where][what])
    with pytest.raises(TiplError):
        Store.open(out).trial(3).weights()
    assert not data_verify(out)["ok"]


# What rounding costs.


@pytest.mark.parametrize(("count", "size"), [(100, 400), (700, 40)])
def test_costs_are_those_of_plain_loops(tmp_path: Path, count: int, size: int) -> None:
    true_TP = walk(3, count, size)
    actual_TP, said = compacted(tmp_path, true_TP, 0.1)
    true_TP, actual_TP = true_TP.astype(np.float64), actual_TP.astype(np.float64)
    step_T = np.linalg.norm(np.diff(true_TP, axis=0), axis=1)
    error_T = np.linalg.norm(actual_TP - true_TP, axis=1)
    assert said["mean_step"] == pytest.approx(step_T.mean(), rel=1e-5)
    assert said["rms_error"] == pytest.approx(rms(error_T) / step_T.mean(), rel=1e-5)
    assert said["max_error"] == pytest.approx(error_T.max() / step_T.mean(), rel=1e-5)
    for part, third in enumerate(np.array_split(np.arange(count - 1), 3)):
        expected = rms(error_T[third + 1]) / step_T[third].mean()
        assert said["rms_error_of_thirds"][part] == pytest.approx(expected, rel=1e-5)
    sampled = sorted(set(np.linspace(0, count - 1, min(count, 128)).astype(int)))
    grams = [(rows - rows[0]) @ (rows - rows[0]).T for rows in (true_TP[sampled], actual_TP[sampled])]
    off = np.abs(grams[1] - grams[0]) / step_T.mean() ** 2
    assert said["inner_product_snapshots"] == len(sampled)
    assert said["inner_product_rms_error"] == pytest.approx(rms(off), rel=1e-5)
    assert said["inner_product_max_error"] == pytest.approx(off.max(), rel=1e-5)
    for lag in (1, 10, 100):
        if lag < count:
            apart = [np.linalg.norm(rows[lag:] - rows[:-lag], axis=1) for rows in (true_TP, actual_TP)]
            expected = rms(apart[1] - apart[0]) / apart[0].mean()
            assert said["distance_error"][str(lag)] == pytest.approx(expected, rel=1e-3)
    for skill, rows in zip(said["half_step_skill"], (true_TP, actual_TP), strict=True):
        nothing = forecast = 0.0
        for t in range(1, count - 1):
            nothing += ((rows[t + 1] - rows[t]) ** 2).sum()
            forecast += ((rows[t + 1] - rows[t] - 0.5 * (rows[t] - rows[t - 1])) ** 2).sum()
        assert skill == pytest.approx(1 - forecast / nothing, rel=1e-5)


def test_inner_products_are_off_as_much_as_the_formula_says(tmp_path: Path) -> None:
    """q √((|d_i|² + |d_j|² + |d_i + d_j|²)/12), for displacements that are long beside the rounding."""
    true_TP = walk(1, 128, 3000, anneal=False)
    actual_TP, said = compacted(tmp_path, true_TP)
    grid = next(q for q in 2.0 ** np.arange(0, -60, -1) if not (actual_TP % q).any())
    gram_TT = (true_TP - true_TP[0]).astype(np.float64) @ (true_TP - true_TP[0]).T
    square_T = gram_TT.diagonal()
    variance = grid**2 / 12 * (square_T[:, None] + square_T + (square_T[:, None] + square_T + 2 * gram_TT))
    expected = math.sqrt(variance.mean()) / said["mean_step"] ** 2
    assert said["inner_product_rms_error"] == pytest.approx(expected, rel=0.3)


# The verbs.


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Trials 3 and 4, complete."""
    for seed in (3, 4):
        write(tmp_path / "store", seed, walk(seed, 700, 30))
    return tmp_path / "store"


def test_every_reader_takes_it(store: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "compact"
    assert main(["data", "compact", str(store), "--out", str(out), "--error", "0.05"]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    found = data_info(out)
    assert found["compact_error"] == 0.05 and found["disk_bytes"] < data_info(store)["disk_bytes"]
    assert found["raw_bytes"] == data_info(store)["raw_bytes"]
    for trial in found["trials"]:
        rms_error, max_error = (trial[f"{kind}_error_in_mean_steps"] for kind in ("rms", "max"))
        assert 0 < rms_error <= 0.05 and rms_error <= max_error < 0.15
    assert "compact_error" not in data_info(store)
    assert main(["data", "info", str(out)]) == 0
    assert "compact error: 0.05\n" in capsys.readouterr().out
    assert data_verify(out) == {**data_verify(out), "ok": True, "trials": 2, "damage": []}
    fit_svd(out, tmp_path / "codes", SVDConfig(dim=4))


@pytest.mark.parametrize("harm", ["flip", "remove", "shorten"])
def test_verify_finds_what_is_damaged(store: Path, tmp_path: Path, harm: str) -> None:
    out = compact(store, tmp_path / "compact")
    chunk = out / "trials/4/weights/c/1/0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content if harm == "flip" else content[:-1])
    if harm == "remove":
        chunk.unlink()
    found = data_verify(out)
    assert [(part["trial"], part["array"], part["chunk"], part["rows"]) for part in found["damage"]] == [
        (4, "weights", 1, [512, 700])
    ]
    with pytest.raises(TiplError, match=r"trials/4/weights is damaged"):
        Store.open(out).trial(4).weights()


def test_killed_anywhere_the_same_command_goes_on(store: Path, tmp_path: Path) -> None:
    whole = contents(compact(store, tmp_path / "whole"))
    whole_weights = {seed: Store.open(tmp_path / "whole").trial(seed).weights() for seed in (3, 4)}
    survived = []
    for operation in range(0, 1000, 29):
        path = tmp_path / str(operation)
        code = in_child(lambda: kill_before(operation, lambda: compact(store, path)))  # noqa: B023
        if code == 0:
            break
        seeds = Store.open(path).seeds if (path / "zarr.json").exists() else []
        survived.append(len(seeds))
        for seed in seeds:
            np.testing.assert_array_equal(Store.open(path).trial(seed).weights(), whole_weights[seed])
        compact(store, path)
        kept = {name: content for name, content in contents(path).items() if "/resume/" not in name}
        assert kept == whole
    assert survived == sorted(survived) and set(survived) >= {0, 1}


def test_trials_that_are_there_are_kept(store: Path, tmp_path: Path, capsys: Any) -> None:
    out = compact(store, tmp_path / "compact")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    compact(store, out)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert "compact: 2 trials are already there.\n" in capsys.readouterr().err


def test_incomplete_trials_are_left_out_and_named(store: Path, tmp_path: Path) -> None:
    write(store, 5, walk(5, 100, 30), complete=False)
    out = tmp_path / "compact"
    with pytest.raises(TiplError, match=r"not complete and were left out: 5; collect them to the end"):
        compact(store, out)
    assert Store.open(out).seeds == [3, 4]
    with TrialWriter.resume(store, 5)[0] as writer:
        writer.commit({}, complete=True)
    compact(store, out)
    assert Store.open(out).seeds == [3, 4, 5]


def refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(TiplError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_cannot_be_compacted_is_told_in_one_line(store: Path, tmp_path: Path) -> None:
    out = compact(store, tmp_path / "compact")
    before = files(out)
    refused(
        lambda: compact(out, tmp_path / "again"), "compact is compact already; give the store that it was made from"
    )
    refused(lambda: compact(store, out, CompactConfig(0.1)), r"a compact store of error 0.02, not one of error 0.1")
    refused(lambda: compact(store, store), "store is not a compact store")
    refused(lambda: compact(tmp_path / "nowhere", tmp_path / "again"), "does not exist")
    write(tmp_path / "other", 4, walk(9, 800, 30))
    refused(lambda: compact(tmp_path / "other", out), "was made of another store than .*other; give another --out")
    write(tmp_path / "begun", 4, walk(9, 800, 30), complete=False)
    refused(lambda: compact(tmp_path / "begun", tmp_path / "again"), "has no complete trial")
    assert files(out) == before and not (tmp_path / "again").exists()


def test_weights_that_cannot_be_rounded(store: Path, tmp_path: Path) -> None:
    diverged = walk(1, 600, 30)
    diverged[550:, 3] = np.inf
    write(tmp_path / "diverged", 1, diverged)
    refused(lambda: compact(tmp_path / "diverged", tmp_path / "a"), "Trial 1 holds weights that are not finite")
    with pytest.raises(TiplError, match=r"too small beside its weights for --error 1e-06; give at least") as caught:
        compact(store, tmp_path / "b", CompactConfig(1e-6))
    enough = float(str(caught.value).split("at least ")[1].split(",")[0])
    assert enough < 0.01
    compact(store, tmp_path / "c", CompactConfig(enough))


@pytest.mark.parametrize("error", [0.0, -1.0, 1.5, math.nan])
def test_an_error_out_of_range(error: float) -> None:
    refused(lambda: CompactConfig(error), "--error")


def test_nothing_is_collected_into_a_compact_store(store: Path, tmp_path: Path, capsys: Any) -> None:
    out = compact(store, tmp_path / "compact")
    before = files(out)
    refused(
        lambda: collect(CollectConfig(trials=1, total_steps=2048), out), "is a compact store and takes no new trials"
    )
    capsys.readouterr()
    assert main(["data", "random-walk", "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert files(out) == before


# A process that is killed.


def kill_before(operation: int, work: Callable[[], Any]) -> None:
    done = -1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        to_write = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if to_write or event in {"os.mkdir", "os.remove", "os.rename", "os.rmdir"}:
            done += 1
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work()


def in_child(work: Callable[[], None]) -> int:
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
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code
