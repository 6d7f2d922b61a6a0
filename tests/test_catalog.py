"""Cards, lists, collections, merged and exported stores: what they say and hold, and what is refused in one line.

In: small walks.  Out: the same weights, parts and identities as in the stores that they come from.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tipl
from tipl import (
    CausalTrainConfig,
    Collection,
    CompactConfig,
    EvaluateConfig,
    Store,
    TiplError,
    compact,
    data_export,
    data_index,
    data_info,
    data_list,
    data_merge,
    data_verify,
    evaluate,
    train,
    write_card,
)
from tipl.catalog import copies
from tipl.catalog.card import read_card
from tipl.catalog.compact import EveryNth
from tipl.cli.main import main
from tipl.store import SNAPSHOT_ARRAYS, TrialWriter, create_store, plan_trials
from tipl.store.spec import ParamSpec

CONFIG: dict[str, Any] = {"ppo": {"learning_rate": 1e-3}, "total_steps": 100}


def make(
    path: Path, seeds: list[int], *, of: int = 0, env_id: str = "Env-v0", config: dict[str, Any] = CONFIG,
    count: int = 110, complete: bool = True, together: bool = True,
) -> Path:  # fmt: skip
    """A store of walks; `of` tells apart two trials of a seed."""
    create_store(path)
    kind: dict[str, Any] = {"env_id": env_id, "config": config, "spec": ParamSpec(("w",), ((5,),))}
    if together:
        plan_trials(path, seeds, **kind)
    for seed in seeds:
        rng = np.random.default_rng([seed, of])
        with TrialWriter.create(path, seed, **kind, versions={"tipl": "1"}, obs_dim=2, num_snapshots=count) as writer:
            t = np.arange(count)
            writer.append(rng.standard_normal((count, 5)).cumsum(0), t * 10, t // 5, t % 5, np.ones(count),
                          rng.standard_normal((count, 2)), np.ones((count, 2)), t)  # fmt: skip
            writer.append_episodes(np.arange(3), np.array([1.0, 2.0, 3.0 + seed]), np.arange(3))
            writer.commit({}, complete=complete)
    return path


def alike(one: Store, other: Store, seed: int, rows: slice = slice(None)) -> None:
    a, b = one.trial(seed), other.trial(seed)
    assert a.weights()[rows].tobytes() == b.weights().tobytes()
    for name in SNAPSHOT_ARRAYS[1:]:
        np.testing.assert_array_equal(getattr(a, name)[rows], getattr(b, name))
    for mine, theirs in zip(a.episodes, b.episodes, strict=True):
        np.testing.assert_array_equal(mine, theirs)


# Cards.


def test_a_card_says_what_the_store_holds_and_keeps_what_people_wrote(tmp_path: Path, capsys: Any) -> None:
    store = make(tmp_path / "walks", [1, 2, 3, 4])
    card = write_card(store)
    assert "walks/README.md does not say: license, citation; `tipl data card" in capsys.readouterr().err
    front = yaml.safe_load(card.read_text().split("---\n")[1])
    assert front["name"] == "walks" and front["environments"] == ["Env-v0"] and front["algorithm"] == "PPO"
    assert (front["trials"], front["snapshots"], front["weights"]) == (4, 440, 5)
    assert front["returns"]["mean"] == pytest.approx((1 + 2 + 3 + 2.5) / 3)
    assert front["store"] == Store.open(store).id and front["split"]["test"] == [4]
    make(store, [6])
    assert "Trials: 5; snapshots:\n550" in write_card(store).read_text(), "what nobody wrote by hand is written anew"
    capsys.readouterr()
    text = card.read_text().replace("name: walks", "name: my-walks\nlanguage: en") + "\nTold by hand.\n"
    card.write_text(text)
    make(store, [5])
    assert main(["data", "card", str(store), "--license", "mit", "--citation", "me, 2026"]) == 0
    assert "does not say" not in capsys.readouterr().err
    again = read_card(store)
    assert again["name"] == "my-walks" and again["language"] == "en" and again["license"] == "mit"
    assert again["trials"] == 6 and card.read_text().endswith("\nTold by hand.\n")
    assert data_verify(store)["ok"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"---\na: [1\n---\n", "is no YAML of plain values"),
        (b"---\na: &a [1]\nb: *a\n---\n", "is no YAML of plain values"),
        (b"---\na: !!python/object:os.system x\n---\n", "is no YAML of plain values"),
        (b"---\n" + b"[" * 100_000 + b"\n---\n", "is no YAML of plain values"),
        (b"---\n- a\n---\n", "is no list of names with values"),
        (b"---\nname: [1]\n---\n", "has a name that is no text"),
        (b"---\na: 1\n", "begins a front matter and does not end it"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b"x" * (2 << 20), "this program takes at most"),
    ],
)
def test_cards_that_cannot_be_read(tmp_path: Path, content: bytes, told: str) -> None:
    store = make(tmp_path / "s", [1])
    (store / "README.md").write_bytes(content)
    with pytest.raises(TiplError, match=told):
        write_card(store)
    assert (store / "README.md").read_bytes() == content


# Lists and collections.


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    make(tmp_path / "zoo/a", [1, 2, 3])
    make(tmp_path / "zoo/deep/b", [1, 2], env_id="Other-v0", config={"run": {"algorithm": "SAC"}})
    (tmp_path / "zoo/notes").mkdir()
    return tmp_path / "zoo"


def test_a_folder_of_stores_is_listed(zoo: Path, capsys: Any) -> None:
    rows = data_list(zoo)
    assert [(row["name"], row["environment"], row["algorithm"], row["trials"], row["snapshots"]) for row in rows] == [
        ("a", "Env-v0", "PPO", 3, 330), ("b", "Other-v0", "SAC", 2, 220),
    ]  # fmt: skip
    assert rows[0]["return"] == pytest.approx(np.mean([2.0 + seed / 3 for seed in (1, 2, 3)]))
    assert rows[0]["bytes"] == data_info(zoo / "a")["disk_bytes"]
    assert [row["name"] for row in data_list(zoo / "a")] == ["a"]
    (zoo / "a/zarr.json").write_text("{}")
    capsys.readouterr()
    assert main(["data", "list", str(zoo), "--json"]) == 0
    told = capsys.readouterr()
    assert [row["name"] for row in json.loads(told.out)["stores"]] == [
        "b"
    ] and "a/zarr.json: `attributes` is missing" in told.err
    with pytest.raises(TiplError, match="There is no store with trials in"):
        data_list(zoo / "notes")
    with pytest.raises(TiplError, match="There is no folder"):
        data_list(zoo / "missing")


def test_a_manifest_lists_the_same_and_opens_what_it_was_made_of(
    zoo: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # by which rows are folded; pytest-xdist sets it in its workers
    expected = data_list(zoo)
    assert main(["data", "index", str(zoo)]) == 0
    collection = Collection.open(zoo)
    assert collection.summaries() == expected == data_list(zoo)
    assert collection.stores == ["a", "deep/b"] and len(collection.rows) == 5
    store = collection.store("deep/b")
    row = next(row for row in collection.rows if row["address"] == "deep/b/trials/2")
    assert row["checksum"] == store.records[2].seal and row["config"] == store.trial(2).config
    make(zoo / "c", [1])
    capsys.readouterr()
    assert main(["data", "list", str(zoo)]) == 0
    told = capsys.readouterr()
    assert "is out of date (c); `tipl data index" in told.err
    assert any("Other-v0" in line and str(zoo / "deep/b") in line for line in told.out.splitlines()), (
        "a store is a line"
    )
    make(zoo / "a", [4])
    with pytest.raises(TiplError, match=r"a is not as .*manifest.jsonl says"):
        collection.store("a")
    with pytest.raises(TiplError, match="has no store x"):
        collection.store("x")
    assert Collection.open(data_index(zoo).parent).id == collection.id


def test_a_thousand_stores_are_listed_without_opening_one(zoo: Path, tmp_path: Path) -> None:
    """The stores that this manifest speaks of cannot be opened. The bar, one second, is benchmarks/catalog.py's."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from catalog import many  # pyright: ignore[reportMissingImports]

    many(tmp_path / "many", stores=1000, trials=5)
    start = time.process_time()
    rows = data_list(tmp_path / "many")
    assert time.process_time() - start < 3
    assert len(rows) == 1000 and rows[-1]["trials"] == 5


def _altered(line: str, **changes: Any) -> str:
    return json.dumps(json.loads(line) | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"store": "../a", "address": "../a/trials/1"}, "outside of its folder"),
        ({"store": "/a", "address": "/a/trials/1"}, "outside of its folder"),
        ({"address": "b/trials/1"}, "outside of its folder"),
        ({"seed": 2, "address": "a/trials/2"}, "contradicts itself"),
        ({"snapshots": -1}, "snapshots"),
        ({"config": None}, "config"),
        ({"config": "9"}, "contradicts itself"),
    ],
)
def test_manifests_that_are_not_believed(zoo: Path, changes: dict[str, Any], told: str) -> None:
    from tipl.files import SEAL, sealed

    head, first, *others = data_index(zoo).read_text().splitlines()
    file = zoo / "manifest.jsonl"
    lines = [json.dumps({**json.loads(head), "seal": SEAL}), _altered(first, **changes), *others]
    file.write_bytes(sealed("\n".join(lines).encode()))
    with pytest.raises(TiplError, match=told):
        Collection.open(zoo)
    file.write_text("\n".join([head, _altered(first, seed=9), *others]))
    with pytest.raises(TiplError, match="its checksum does not match"):
        data_list(zoo)
    file.write_text("")
    with pytest.raises(TiplError, match="holds no checksum"):
        data_list(zoo)


def test_what_is_no_collection(zoo: Path) -> None:
    with pytest.raises(TiplError, match=r"has no manifest\.jsonl, so it is no collection; `tipl data index"):
        Collection.open(zoo)
    with pytest.raises(TiplError, match="a is a store; give the folder that it lies in"):
        data_index(zoo / "a")
    with pytest.raises(TiplError, match="There is no store in"):
        data_index(zoo / "notes")


@pytest.fixture
def served(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The address of the collection on a server, and what is asked of it."""
    monkeypatch.setenv("TIPL_CACHE", str(tmp_path / "cache"))
    data_index(zoo)
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(zoo.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/zoo", asked
    server.shutdown()
    server.server_close()


def test_a_collection_elsewhere(served: tuple[str, list[str]], zoo: Path, tmp_path: Path) -> None:
    address, asked = served
    rows = data_list(address)
    assert [row["address"] for row in rows] == [f"{address}/a", f"{address}/deep/b"]
    assert [row | {"address": ""} for row in rows] == [row | {"address": ""} for row in data_list(zoo)]
    assert {path for path in asked if "404" not in path} == {"/zoo/manifest.jsonl"}  # no store was opened
    alike(Store.open(zoo / "deep/b"), Collection.open(address).store("deep/b"), 2)
    out = data_export(address, tmp_path / "out", environments=["Other-v0"])
    alike(Store.open(zoo / "deep/b"), Collection.open(out).store("deep/b"), 1)
    (row,) = data_list(f"{address}/a")
    assert row["trials"] == 3 and row["bytes"] is None
    merged = data_merge([f"{address}/a", make(tmp_path / "more", [4, 5])], tmp_path / "merged")
    assert Store.open(merged).seeds == [1, 2, 3, 4, 5]
    write_card(zoo / "a", license="mit")
    assert tipl.data_info(zoo / "a")["card"]["license"] == "mit"
    assert tipl.data_info(f"{address}/a")["card"]["license"] == "mit"
    make(zoo / "a", [4])
    with pytest.raises(TiplError, match=r"http://127.*/zoo/a is not as http://.*/manifest.jsonl says"):
        Collection.open(address).store("a")


# Merging.


def test_merged_trials_are_the_same_and_keep_their_parts(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", [1, 2, 3, 4, 5]), make(tmp_path / "b", [11, 12, 13])
    write_card(a, license="mit", citation="me")
    write_card(b, license="mit", citation="me")
    out = data_merge([a, b], tmp_path / "c")
    merged, sources = Store.open(out), (Store.open(a), Store.open(b))
    assert merged.seeds == [1, 2, 3, 4, 5, 11, 12, 13] and data_verify(out)["ok"]
    for source in sources:
        for seed in source.seeds:
            alike(source, merged, seed)
            assert merged.root.parts[seed] == source.root.parts[seed]
            assert merged.origins(seed) == (source.id,) and merged.known_as(seed) == {merged.id, source.id}
    assert merged.id not in {source.id for source in sources}
    card = read_card(out)
    assert (card["license"], card["citation"], card["made_by"]) == ("mit", "me", "tipl data merge a b")
    small = Store.open(compact(out, tmp_path / "small"))
    assert small.origins(1) == (sources[0].id,) and small.known_as(1) == {small.id, merged.id, sources[0].id}


def test_the_same_trial_is_taken_once_and_another_refused(tmp_path: Path) -> None:
    a, b, other = make(tmp_path / "a", [1, 2, 3]), make(tmp_path / "b", [1, 2, 3]), make(tmp_path / "o", [3], of=1)
    out = data_merge([a, b, a], tmp_path / "c")
    assert Store.open(out).seeds == [1, 2, 3]
    assert set(Store.open(out).origins(1)) == {Store.open(a).id, Store.open(b).id}
    with pytest.raises(TiplError, match=r"Trial 3 of .*a and that of .*o differ, and a store has one trial of a seed"):
        data_merge([a, other], tmp_path / "d")
    assert not any((tmp_path / name).exists() for name in ("d", "d.partial"))


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    a = make(tmp_path / "a", [1, 2, 3])
    bad = {
        "env_id = Env-v0, not X-v0": make(tmp_path / "env", [4], env_id="X-v0"),
        "learning_rate = 0.001, not 0.1": make(tmp_path / "lr", [4], config=CONFIG | {"ppo": {"learning_rate": 0.1}}),
        "trials that are not complete: 4": make(tmp_path / "half", [4], complete=False),
        "is not compact and .* is compact, error 0.02": compact(a, tmp_path / "small"),
    }
    for told, store in bad.items():
        with pytest.raises(TiplError, match=told):
            data_merge([a, store], tmp_path / "c")
    with pytest.raises(TiplError, match="takes two stores or more"):
        data_merge([a], tmp_path / "c")
    with pytest.raises(TiplError, match="a exists already; give another --out"):
        data_merge([a, a], a)
    with pytest.raises(TiplError, match="which is a data set; give --out a place outside of it"):
        data_merge([a, a], a / "inside")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "env", "lr", "half", "small"}


def test_single_trials_are_split_anew_together(tmp_path: Path) -> None:
    stores = [make(tmp_path / str(seed), [seed]) for seed in range(1, 6)]
    split = Store.open(data_merge(stores, tmp_path / "all")).split()
    assert (split.train, split.validation, split.test) == ((1, 2, 3), (4,), (5,))


def test_nothing_is_judged_on_what_it_learned_in_another_store(tmp_path: Path) -> None:
    """Whether a model learned from the sources or from what was made of them."""
    a, b = (make(tmp_path / name, seeds, count=210) for name, seeds in (("a", [1, 2, 3, 4, 5]), ("b", [11, 12, 13])))
    merged = data_merge([a, b], tmp_path / "merged")
    part = data_export(merged, tmp_path / "part", trials=[1, 2, 3, 4, 5], every=2)
    small = CausalTrainConfig(num_layers=1, width=8, num_heads=1, steps=1, warmup_steps=1, windows=8)
    judge = EvaluateConfig(horizons=(1,), return_horizons=(1,), origins=2, spectrum_trials=0)
    everything = replace(judge, all=True)
    for store, others in ((a, (merged, part)), (merged, (a, b, part)), (part, (a, merged))):
        model = train(store, tmp_path / f"model-{store.name}", small)
        for other in others:
            with pytest.raises(TiplError, match=rf"has learned from trials? 1.* of {other}"):
                evaluate(other, tmp_path / "refused", everything, models=[model], returns=False)
    evaluate(b, tmp_path / "b-out", everything, models=[tmp_path / "model-a"], returns=False)
    evaluate(merged, tmp_path / "out", judge, models=[tmp_path / "model-a"], returns=False)  # tests stay tests
    with pytest.raises(TiplError, match=r"would be judged, and the baselines are fitted on the same of"):
        evaluate(part, tmp_path / "refused", everything, fit=[a], returns=False)
    with pytest.raises(TiplError, match=r"merged is .*/a again, or a copy of it; give it once \(both have the trial 1"):
        train([a, merged], tmp_path / "twice", small)


KILLED = """
import sys, os, signal
from tipl.catalog import copies
from tipl.catalog import compact
real = copies.copy_trial
def copy_trial(*arguments):
    yield from real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
copies.copy_trial = copy_trial
copies.data_merge(sys.argv[1:3], sys.argv[3])
"""


def test_a_killed_merge_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    a, b, out = make(tmp_path / "a", [1, 2, 3]), make(tmp_path / "b", [4]), tmp_path / "c"
    command = [sys.executable, "-c", KILLED, str(a), str(b), str(out)]
    assert subprocess.run(command, env={**os.environ}).returncode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / "c.partial").exists()
    assert Store.open(data_merge([a, b], out)).seeds == [1, 2, 3, 4]
    assert not (tmp_path / "c.partial").exists()
    (tmp_path / "d.partial").mkdir()
    (tmp_path / "d.partial/mine").write_text("kept")
    with pytest.raises(TiplError, match="was not made by this program and is left alone"):
        data_merge([a, b], tmp_path / "d")
    assert (tmp_path / "d.partial/mine").read_text() == "kept"


def test_a_failed_merge_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make(tmp_path / "a", [1, 2, 3]), make(tmp_path / "b", [4])
    chunk = b / "trials/4/weights/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(TiplError, match="trials/4/weights is damaged"):
        data_merge([a, b], tmp_path / "c")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_two_that_make_one_store_do_not_harm_each_other(tmp_path: Path) -> None:
    a, b, out = make(tmp_path / "a", [1, 2, 3]), make(tmp_path / "b", [4]), tmp_path / "c"
    with copies.new_stores(out) as partial:
        (partial / "trials").mkdir(parents=True)
        with pytest.raises(TiplError, match="c is being made by another process"):
            data_merge([a, b], out)
        assert (partial / "trials").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}


# Exporting.


def test_every_nth_snapshot(tmp_path: Path) -> None:
    store = make(tmp_path / "a", [1, 2, 3])
    out = data_export(store, tmp_path / "out", trials=[1, 3], every=4)
    opened, source = Store.open(out), Store.open(store)
    assert opened.seeds == [1, 3] and opened.root.parts == {1: "train", 3: "test"}
    for seed in (1, 3):
        alike(source, opened, seed, slice(None, None, 4))
    assert opened.trial(1).config["every_nth_snapshot"] == 4 and data_verify(out)["ok"]
    again = Store.open(data_export(out, tmp_path / "again", every=5))
    assert again.trial(3).config["every_nth_snapshot"] == 20 and again.origins(3) == (source.id,)
    alike(source, again, 3, slice(None, None, 20))
    np.testing.assert_array_equal(EveryNth(source.trial(1), 4).weights(3, 7), source.trial(1).weights()[12:28:4])


def test_a_compact_export_is_the_compact_store_of_the_export(tmp_path: Path) -> None:
    store = make(tmp_path / "a", [1, 2, 3])
    out = Store.open(data_export(store, tmp_path / "out", compact=CompactConfig(0.05), every=2))
    plain = data_export(store, tmp_path / "plain", every=2)
    expected = Store.open(compact(plain, tmp_path / "expected", CompactConfig(0.05)))
    for seed in (1, 2, 3):
        assert out.trial(seed).weights().tobytes() == expected.trial(seed).weights().tobytes()
        assert out.trial(seed).compact == expected.trial(seed).compact
    half = Store.open(data_export(out.path, tmp_path / "half", every=3))
    alike(out, half, 2, slice(None, None, 3))
    assert half.compact_error == 0.05 and data_verify(half.path)["ok"]
    with pytest.raises(TiplError, match="is compact already; leave --compact out"):
        data_export(out.path, tmp_path / "x", compact=CompactConfig())


def test_of_a_collection(zoo: Path, tmp_path: Path, capsys: Any) -> None:
    data_index(zoo)
    line = ["data", "export", str(zoo), "--out", str(tmp_path / "out"), "--environments", "Other-v0", "--trials", "2"]
    assert main(line) == 0
    collection = Collection.open(tmp_path / "out")
    assert [row["address"] for row in collection.rows] == ["deep/b/trials/2"]
    alike(Store.open(zoo / "deep/b"), collection.store("deep/b"), 2)
    with pytest.raises(TiplError, match="has nothing with these trials and environments"):
        data_export(zoo, tmp_path / "x", environments=["None-v0"])
    with pytest.raises(TiplError, match="has no trial 9; it has: 1, 2, 3"):
        data_export(zoo / "a", tmp_path / "x", trials=[9])
    with pytest.raises(TiplError, match="has no trials in Other-v0"):
        data_export(zoo / "a", tmp_path / "x", environments=["Other-v0"])
    assert main(["data", "export", str(zoo), "--out", str(tmp_path / "x"), "--error", "0.1"]) == 2
    assert "--error has no effect without --compact" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in ("x", "x.partial"))


def test_origins_that_contradict_the_store(tmp_path: Path) -> None:
    out = data_merge([make(tmp_path / "a", [1, 2, 3]), make(tmp_path / "b", [4])], tmp_path / "c")
    good = json.loads((out / "zarr.json").read_text())["attributes"]
    for origins in ({"9": ["0" * 32]}, {"1": ["x"]}, {"1": []}, {"x": ["0" * 32]}):
        shutil.copytree(out, bad := tmp_path / "bad")
        from tipl.store.layout import write_group

        write_group(bad, {**{k: v for k, v in good.items() if k != "seal"}, "origins": origins})
        with pytest.raises(TiplError, match="contradicts itself"):
            Store.open(bad)
        shutil.rmtree(bad)
    assert copies.new_stores  # what import makes its store in, too
