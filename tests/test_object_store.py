"""Collecting straight to an object store: the bits of a store here, whatever is killed, sleeps or is started twice.

In: tiny runs of CartPole-v1, an S3 server on this machine.  Out: failures that name the request.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zarr
from here import in_this_process
from servers import s3
from test_scale import CARTPOLE, digests

import tipl
from tipl import Execution, Store, TiplError, collect
from tipl.cli.main import main
from tipl.collection import collect as collecting
from tipl.remote import objects, working
from tipl.store import root as root_of

SMALL = dataclasses.replace(CARTPOLE, trials=2, total_steps=1536)
SMALLEST = dataclasses.replace(CARTPOLE, trials=1, total_steps=1024)
MADE = "put_object", "delete_object"
STRIDE = int(os.environ.get("STRIDE", "4"))  # 1: every request


class Killed(BaseException):
    """The end of a process: nothing that it does afterwards reaches the server."""


class Client:
    """The client of S3, with a hook before and after each request that changes something."""

    def __init__(self, client: Any) -> None:
        self._client, self.count, self.asked = client, 0, []
        self.before: Callable[[int], None] = lambda number: None
        self.after: Callable[[int], None] = lambda number: None

    def __getattr__(self, name: str) -> Any:
        def ask(**asked: Any) -> Any:
            number = self.count = self.count + (name in MADE)
            self.asked.append((name, asked["Key"]))
            if name in MADE:
                self.before(number)
            found = getattr(self._client, name)(**asked)
            if name in MADE:
                self.after(number)
            return found

        return ask


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3(patch) as address:
        objects.client.cache_clear()
        yield address
    objects.client.cache_clear()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The one trial of SMALLEST, collected here."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    with in_this_process():
        collect(SMALLEST, folder, workers=1)
    return digests(folder)


@pytest.fixture
def client(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Commits after every iteration, one request after the other."""
    found = Client(objects.client())
    monkeypatch.setattr(objects, "client", lambda: found)
    monkeypatch.setattr("tipl.remote.working._AT_ONCE", 1)
    monkeypatch.setattr(collecting, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(collecting.time, "sleep", lambda seconds: pytest.fail("nobody has to wait"))
    return found


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Be another machine: with a cache of its own."""
    monkeypatch.setenv("TIPL_CACHE", str(folder))


def run(address: str, config: tipl.CollectConfig = SMALLEST) -> None:
    with in_this_process():
        collect(config, address, workers=1)


def require_equal(address: str, whole: dict[int, str]) -> None:
    found = tipl.data_verify(address)
    assert found["ok"], found["damage"]
    store = Store.open(address)
    assert digests(store.path) == whole and store.incomplete == []
    assert all(seal is not None for seal in store.root.trials.values())


def test_a_store_there_is_the_store_here(bucket: str, client: Client, tmp_path: Path, monkeypatch: Any):
    machine(monkeypatch, tmp_path / "one")
    address = f"{bucket}/plain"
    run(address, SMALL)
    with in_this_process():
        collect(SMALL, tmp_path / "here", workers=1)
    whole = digests(tmp_path / "here")
    require_equal(address, whole)
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    assert not [name for name in files.find(address) if "partial" in name or "lock" in name]
    files.get(address, str(tmp_path / "copy"), recursive=True)
    assert digests(tmp_path / "copy") == whole
    assert zarr.open_group(tmp_path / "copy", mode="r")["trials/2"].attrs["complete"]
    records = [place for place, (_, key) in enumerate(client.asked) if key.endswith("trials/1/zarr.json")]
    assert records[-2] - records[-3] == 28, "14 requests a commit, of two trials"
    before = client.count
    run(address, SMALL)
    assert client.count <= before + 1, "what is finished is not done again"
    with pytest.raises(TiplError, match=f"^{address} holds trials with hidden_sizes"):
        run(address, dataclasses.replace(SMALL, hidden_sizes=(5,)))


def killed_at(client: Client, number: int, when: str) -> None:
    def kill(now: int) -> None:
        if now >= number:
            raise Killed

    setattr(client, when, kill)
    if when == "after":
        client.before = lambda now: kill(now - 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_a_request_loses_nothing(
    bucket: str, client: Client, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    """The same command goes on: on this machine, or two times of three on one that has nothing of it."""
    monkeypatch.setattr(root_of, "LEASE_SECONDS", 0.0)
    number, kills = (1 if when == "before" else 4), 0
    while True:
        address = f"{bucket}/killed-{when}-{number}"
        machine(monkeypatch, tmp_path / f"{number}")
        client.count = 0
        killed_at(client, number, when)
        try:
            run(address)
            break
        except Killed:
            kills += 1
        finally:
            client.before = client.after = lambda now: None
        if kills % 3:
            machine(monkeypatch, tmp_path / f"{number}-other")
        run(address)
        require_equal(address, whole)
        number += STRIDE
    assert kills >= 15 * 4 / STRIDE, kills
    print(f"{kills} kills {when} a request")


@pytest.mark.parametrize("ends", [True, False])
def test_a_writer_that_slept_changes_nothing(
    bucket: str, client: Client, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
):
    """It sleeps at a request; another machine takes over, up to the end or until it is killed; then it wakes up. Where
    its trial has another writer, it waits a moment and looks again, as after a lost node."""
    monkeypatch.setattr(root_of, "LEASE_SECONDS", 0.0)
    number, waits = 3, list[float]()
    monkeypatch.setattr(collecting.time, "sleep", waits.append)
    while True:
        address, first, second = f"{bucket}/slept-{ends}-{number}", tmp_path / f"{number}", tmp_path / f"{number}-other"

        def meanwhile(now: int, at: int = number, address: str = address, places: Any = (first, second)) -> None:
            if now == at:
                client.before = lambda now: None
                machine(monkeypatch, places[1])
                if not ends:
                    killed_at(client, now + 20, "before")
                with contextlib.suppress(Killed):
                    run(address)
                client.before = lambda now: None
                machine(monkeypatch, places[0])

        machine(monkeypatch, first)
        client.count, client.before = 0, meanwhile
        run(address)
        if client.before is meanwhile:  # it ended before that request
            break
        machine(monkeypatch, tmp_path / f"{number}-third")
        run(address)
        require_equal(address, whole)
        number += 2 * STRIDE
    assert len(waits) >= 2, waits
    print(f"{len(waits)} writers were overtaken")


def test_a_trial_that_another_machine_writes_is_left_to_it(
    bucket: str, client: Client, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    machine(monkeypatch, tmp_path / "one")
    address = f"{bucket}/held"
    killed_at(client, 40, "before")
    with pytest.raises(Killed):
        run(address)
    client.before = client.after = lambda now: None
    machine(monkeypatch, tmp_path / "other")
    now = [0.0]
    monkeypatch.setattr(collecting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(collecting.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + 100))
    with pytest.raises(TiplError, match=r"s3://.*trials/1 is being written by another process, or by one that was"):
        run(address)
    machine(monkeypatch, tmp_path / "one")
    run(address)  # whose process is known to be over
    require_equal(address, whole)


def test_a_trial_that_is_gone_there_takes_no_other_from_the_list(
    bucket: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Which another shard puts on it meanwhile."""
    machine(monkeypatch, tmp_path / "one")
    address = f"{bucket}/gone"
    run(address, SMALL)
    store = working.working_copy(address)
    real = root_of.known_root

    def before_the_other(store: Path) -> root_of.Root:
        found = real(store)
        return dataclasses.replace(found, trials={1: found.trials[1]})

    monkeypatch.setattr(root_of, "known_root", before_the_other)
    there = working.TrialThere.of(store / "trials" / "1")
    assert there is not None
    there._objects.delete(["zarr.json"])
    (store / "trials" / "1" / "resume").mkdir(exist_ok=True)
    root_of.bring_record(store, 1, there)
    assert [*real(store).trials] == [2]


def test_shards_and_more_steps_are_as_here(
    bucket: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    machine(monkeypatch, tmp_path / "one")
    address = f"{bucket}/shards"
    less = dataclasses.replace(SMALL, total_steps=1024)
    with in_this_process():
        for part in (2, 1):
            collect(less, address, workers=1, execution=Execution(shard=f"{part}/2"))
        machine(monkeypatch, tmp_path / "other")
        found = collect(SMALL, address, workers=1)
        collect(SMALL, tmp_path / "here", workers=1)
    assert digests(found) == digests(tmp_path / "here") and tipl.data_verify(address)["ok"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3://BUCKET", "is no place to collect to"),
        ("s3://BUCKET/a?b=c", "is no place to collect to"),
        ("gs://BUCKET/store", "is no place to collect to"),
        ("hf://me/store", "is no place to collect to"),
        ("s3://no-such-bucket-here/store", "s3://no-such-bucket-here/store cannot be used: .*NoSuchBucket"),
    ],
)
def test_no_place_is_one_line(bucket: str, tmp_path: Path, monkeypatch: Any, capsys: Any, place: str, said: str):
    machine(monkeypatch, tmp_path)
    line = ["collect", "--env-id", "CartPole-v1", "--trials", "1", "--total-steps", "512"]
    assert main([*line, "--out", place.replace("s3://BUCKET", bucket)]) == 2
    assert re.search(said, capsys.readouterr().err.splitlines()[-1])


def test_a_server_without_conditions_is_refused(bucket: str, client: Client, tmp_path: Path, monkeypatch: Any):
    machine(monkeypatch, tmp_path)
    put = client._client.put_object

    class Heedless:
        def __getattr__(self, name: str) -> Any:
            return getattr(client._client, name)

        def put_object(self, IfMatch: str = "", IfNoneMatch: str = "", **asked: Any) -> Any:
            return put(**asked)

    heedless = Heedless()
    monkeypatch.setattr(objects, "client", lambda: heedless)
    with pytest.raises(TiplError, match="does not heed If-Match"):
        run(f"{bucket}/heedless")
