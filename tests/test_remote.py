"""Stores that lie elsewhere: the same bits as here, hardly a byte more, and one line for whatever a server does.

In: small stores; servers on this machine (servers.py).  Out: failures that name the address.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Files, cut, endless, s3, silent

import tipl
from tipl.cli.main import main
from tipl.collection.random_walk import random_walk
from tipl.errors import TiplError
from tipl.files import SEAL, seal_of, sealed
from tipl.remote.mirror import cache, mirror_of
from tipl.store.spec import ParamSpec


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four trials whose weights fill several chunks."""
    path = tmp_path_factory.mktemp("data") / "walks"
    return random_walk(path, trials=4, snapshots=1300, dim=500)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIPL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tipl.remote.source._PAUSE", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def web(walks: Path, tmp_path: Path) -> Iterator[tuple[Files, str]]:
    """A copy of the store on the web, and its address."""
    shutil.copytree(walks, tmp_path / "web" / "walks")
    files = Files(tmp_path / "web")
    with files.serve() as address:
        yield files, f"{address}/walks"


def size_of(folder: Path) -> int:
    return sum(Path(where, name).stat().st_size for where, _, names in os.walk(folder) for name in names)


def whole(trial: tipl.Trial) -> list[np.ndarray]:
    names = "env_step", "iteration", "epoch", "learning_rate", "obs_mean", "obs_var", "obs_count"
    return [trial.weights(), *(getattr(trial, name) for name in names), *trial.episodes]


def test_reading_a_trial_fetches_its_bytes_and_hardly_more(web: tuple[Files, str], walks: Path):
    files, address = web
    trial = tipl.Store.open(address).trial(3)
    assert files.sent < 10_000, "the root alone"
    here = tipl.Store.open(walks).trial(3)
    assert all(np.array_equal(one, other) for one, other in zip(whole(trial), whole(here), strict=True))
    assert files.sent <= 1.1 * size_of(walks / "trials" / "3")
    assert not any(path.startswith("walks/trials/") and "/3/" not in path for path in files.asked[2:])
    before = files.sent
    assert np.array_equal(tipl.Store.open(address).trial(3).weights(), here.weights())
    assert files.sent - before == (walks / "zarr.json").stat().st_size, "again, only the root is asked for"


def test_reading_some_rows_fetches_their_chunks(web: tuple[Files, str], walks: Path):
    files, address = web
    rows = tipl.Store.open(address).trial(1).weights(10, 20)
    assert np.array_equal(rows, tipl.Store.open(walks).trial(1).weights(10, 20))
    assert [path for path in files.asked if "/c/" in path] == ["walks/trials/1/weights/c/0/0"]


def test_verbs_take_addresses(web: tuple[Files, str], walks: Path, tmp_path: Path, capsys: Any):
    address = web[1]
    assert main(["data", "verify", address]) == 0
    assert main(["data", "info", address, "--json"]) == 0
    out = capsys.readouterr().out
    told = json.loads(out[out.index("{") :])
    assert told["store"] == address and told["disk_bytes"] is None and told["snapshots"] == 5200
    assert tipl.data_verify(address) == tipl.data_verify(walks) | {"store": address}
    assert main(["fit-svd", address, "--dim", "2", "--out", str(tmp_path / "codes")]) == 0
    tipl.fit_svd(walks, tmp_path / "here", tipl.SVDConfig(dim=2))
    one, other = (tipl.Codes.open(tmp_path / name) for name in ("codes", "here"))
    assert np.array_equal(one.codes(2), other.codes(2)) and one.seeds == [1, 2, 3, 4]


def test_a_store_on_s3_and_in_memory_is_read(walks: Path, monkeypatch: pytest.MonkeyPatch):
    import fsspec

    here = tipl.Store.open(walks).trial(2).weights()
    with s3(monkeypatch) as bucket:
        fsspec.filesystem("s3").put(str(walks), f"{bucket}/data/", recursive=True)
        store = tipl.Store.open(f"{bucket}/data/walks")
        assert store.name == "walks" and store.seeds == [1, 2, 3, 4]
        assert np.array_equal(store.trial(2).weights(), here)
        with pytest.raises(TiplError, match=r"s3://shelf-\w+/other is not a tipl store: it has no zarr.json"):
            tipl.Store.open(f"{bucket}/other")
        with pytest.raises(TiplError, match="is not a tipl store"):
            tipl.Store.open("s3://no-such-bucket/x")
    fsspec.filesystem("memory").put(str(walks), "/data/", recursive=True)
    assert np.array_equal(tipl.Store.open("memory://data/walks").trial(2).weights(), here)
    assert np.array_equal(tipl.Store.open(f"file://{walks}").trial(2).weights(), here)


def test_a_child_process_that_gets_the_folder_goes_on_fetching(web: tuple[Files, str], walks: Path):
    store = tipl.Store.open(web[1])
    code = "import sys, tipl; print(tipl.Store.open(sys.argv[1]).trial(4).weights().sum(dtype='f8'))"
    told = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=True).stdout
    assert float(told) == tipl.Store.open(walks).trial(4).weights().sum(dtype="f8")


def test_a_store_that_grew_is_read_as_it_is_now(tmp_path: Path):
    spec, config = ParamSpec(("w",), ((3,),)), {"a": 1}
    here = tmp_path / "web" / "runs"
    tipl.create_store(here)
    writer = tipl.TrialWriter.create(
        here, 1, env_id="none", config=config, spec=spec, versions={}, obs_dim=1, num_snapshots=None, chunk_snapshots=8
    )
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    _append(writer, rows, 0, 10)
    writer.commit({"x": np.zeros(1)})
    files = Files(tmp_path / "web")
    with files.serve() as address:
        before = tipl.Store.open(f"{address}/runs")
        assert np.array_equal(before.trial(1).weights(), rows[:10]) and before.incomplete == [1]
        _append(writer, rows, 10, 20)
        writer.commit({}, complete=True)
        assert np.array_equal(before.trial(1).env_step, np.arange(10)), "of the commit that it was opened at"
        after = tipl.Store.open(f"{address}/runs")
        assert np.array_equal(after.trial(1).weights(), rows) and after.incomplete == []
        assert np.array_equal(after.trial(1).env_step, np.arange(20))


def _append(writer: tipl.TrialWriter, rows: np.ndarray, start: int, stop: int) -> None:
    numbers = np.arange(start, stop)
    one = np.ones(len(numbers))
    writer.append(rows[start:stop], numbers, numbers, numbers, one, one[:, None], one[:, None], one)


def test_another_store_at_the_same_address_is_never_mixed_with_the_first(
    web: tuple[Files, str], walks: Path, tmp_path: Path
):
    files, address = web
    before = tipl.Store.open(address).trial(2)
    first = before.weights(0, 5)
    shutil.rmtree(files.folder / "walks")
    other = random_walk(files.folder / "walks", trials=4, snapshots=1300, dim=500, drift=1.0)
    with pytest.raises(TiplError, match="damaged"):
        before.weights()
    assert np.array_equal(first, tipl.Store.open(walks).trial(2).weights(0, 5))
    after = tipl.Store.open(address)
    assert np.array_equal(after.trial(2).weights(), tipl.Store.open(other).trial(2).weights())


Fault = Callable[[Any, str], bool]


def _damaged(path: str, content: bytes) -> Fault:
    def answer(handler: Any, asked: str) -> bool:
        if asked.endswith(path):
            handler.reply(200, content)
        return asked.endswith(path)

    return answer


def test_what_a_hostile_server_sends_is_one_line(
    web: tuple[Files, str], walks: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tipl.remote.source._SILENCE", 2.0)
    files, address = web
    chunk = (walks / "trials/2/weights/c/0/0").read_bytes()
    other = (walks / "trials/1/weights/c/0/0").read_bytes()
    for fault, line in (
        (_damaged("weights/c/0/0", b""), "checksum of chunk 0"),
        (_damaged("weights/c/0/0", chunk[:-1] + b"x"), "checksum of chunk 0"),
        (_damaged("weights/c/0/0", other), "another than was written there"),
        (_damaged("weights/checksums", b"\0" * 1024), "checksum of its file"),
        (_damaged("weights/zarr.json", b"{}"), "no checksum"),
        (_damaged("trials/2/zarr.json", (walks / "trials/1/zarr.json").read_bytes()), "holds trial 1"),
        (_damaged("walks/zarr.json", b"{" * 100_000), "damaged or no JSON"),
        (_damaged("walks/zarr.json", hostile_root(walks)), r"^http://[\d.:]+/walks/zarr.json contradicts itself"),
        (lambda handler, path: path.endswith("c/0/0") and endless(handler), "bytes, which no such file has"),
        (lambda handler, path: path.endswith("walks/zarr.json") and endless(handler), "bytes, which no such file has"),
        (lambda handler, path: path.endswith("c/0/0") and cut(handler, chunk), "try again: what has come is kept"),
        (redirect("file:///etc/passwd"), "Cannot fetch"),
        (redirect("ftp://127.0.0.1/x"), "Cannot fetch"),
        (lambda handler, path: path.endswith("c/0/0") and not handler.reply(500), "500"),
        (lambda handler, path: path.endswith("c/0/0") and silent(handler), "no answer in time"),
        (lambda handler, path: path.endswith("c/0/0") and not handler.reply(403), "without credentials"),
    ):
        shutil.rmtree(own_cache, ignore_errors=True)
        files.fault = fault
        with pytest.raises(TiplError, match=line) as told:
            tipl.Store.open(address).trial(2).weights()
        assert "\n" not in str(told.value) and len(str(told.value)) < 600
        files.fault = lambda handler, path: False
        assert [*own_cache.rglob("*.partial")] == []
        weights = tipl.Store.open(address).trial(2).weights()  # what did not pass was not kept
        assert np.array_equal(weights, tipl.Store.open(walks).trial(2).weights())


def hostile_root(walks: Path) -> bytes:
    """A root that lists a trial called `../../x`."""
    content = (walks / "zarr.json").read_bytes()
    return sealed(content.replace(b'"2": "sha', b'"../../x": "sha').replace(seal_of(content).encode(), SEAL.encode()))


def redirect(where: str) -> Fault:
    def answer(handler: Any, asked: str) -> bool:
        if asked.endswith("c/0/0"):
            handler.reply(302, Location=where)
        return asked.endswith("c/0/0")

    return answer


def test_an_interrupted_read_goes_on_with_what_has_come(web: tuple[Files, str], walks: Path):
    files, address = web
    chunk = (walks / "trials/2/weights/c/1/0").read_bytes()
    files.fault = lambda handler, path: path.endswith("weights/c/1/0") and cut(handler, chunk)
    with pytest.raises(TiplError, match="try again"):
        tipl.Store.open(address).trial(2).weights()
    files.fault = lambda handler, path: False
    files.asked.clear()
    assert np.array_equal(tipl.Store.open(address).trial(2).weights(), tipl.Store.open(walks).trial(2).weights())
    assert "walks/trials/2/weights/c/1/0" in files.asked and "walks/trials/2/weights/zarr.json" not in files.asked


def test_addresses_that_lead_nowhere_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for address, line in (
        ("http://127.0.0.1:1/x", "Cannot fetch"),
        ("ftp://x/y", "no address that can be read"),
        ("https://x/y?z=1", "no plain address"),
        ("http://[", "is no address"),
        (f"http://127.0.0.1:1/{'x' * 300}", "Cannot fetch"),
        ("https://me:secret@x/y", "no plain address"),
        ("s3://a/b::file:///etc", "no plain address"),
        ("memory://nothing/here", "is not a tipl store"),
        ("hf://only", "no name"),
        ("hf://models/me/x", "is a model"),
        ("file:///nothing/here", "does not exist"),
        ("://x", "does not exist"),
    ):
        assert main(["data", "info", address]) == 2, address
        told = capsys.readouterr().err
        assert told.startswith("tipl: error: ") and told.count("\n") == 1 and line in told, (address, told)
    assert "secret" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


def test_what_is_written_lies_here(capsys: pytest.CaptureFixture[str]):
    assert main(["data", "random-walk", "--out", "s3://bucket/x"]) == 2
    assert "only what is read may lie elsewhere" in capsys.readouterr().err
    with pytest.raises(TiplError, match="path object made of an address"):
        tipl.Store.open(Path("s3://bucket/x"))


def test_a_folder_here_is_no_mirror(walks: Path):
    assert mirror_of(walks) is None and not (cache() / "elsewhere").exists()


def test_a_cache_that_was_damaged_is_fetched_again(walks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of a revision, too, which is otherwise never asked for again."""
    monkeypatch.setenv("TIPL_HUB", "memory://hub")
    tipl.hub_push(walks, "me/walks")
    store = tipl.Store.open("hf://me/walks")
    expected = store.trial(2).weights()
    for name in ("zarr.json", "trials/2/zarr.json", "trials/2/weights/zarr.json", "trials/2/weights/c/0/0"):
        file = store.path / name
        file.write_bytes(file.read_bytes()[:-9] + b"\0" * 9)
        found = None
        for _ in range(2):
            try:
                found = tipl.Store.open("hf://me/walks").trial(2).weights()
            except TiplError as error:
                assert "damaged" in str(error)
        assert found is not None and np.array_equal(found, expected)
