"""Publishing and fetching: a folder, S3 and a server that speaks as the Hugging Face Hub does give back the same bits.

In: small stores, a model, a policy; servers on this machine (servers.py).  Out: failures that name what differs.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import FakeHub, Files, s3

import tipl
from tipl.cli.main import main
from tipl.collection.random_walk import random_walk
from tipl.errors import TiplError
from tipl.files import sealed
from tipl.forecasting.shipped import PRETRAINED
from tipl.remote.listing import LISTING, make_listing
from tipl.remote.names import Name
from tipl.remote.pull import pulled
from tipl.remote.shelf import Shelf

# Of the Hub's client itself, version 2.4.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
BACKENDS = ("folder", "s3", "hub")


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks"
    return random_walk(path, trials=3, snapshots=700, dim=30)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    monkeypatch.setenv("TIPL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    match request.param:
        case "folder":
            monkeypatch.setenv("TIPL_HUB", f"file://{tmp_path}/hub")
            yield None
        case "s3":
            with s3(monkeypatch) as address:
                monkeypatch.setenv("TIPL_HUB", f"{address}/hub")
                yield None
        case "hub":
            server = FakeHub()
            with server.serve() as address:
                monkeypatch.setenv("TIPL_HUB", "")
                monkeypatch.setenv("HF_ENDPOINT", address)
                monkeypatch.setenv("HF_TOKEN", server.token)
                monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # another server's protocol
                yield server


def contents(folder: Path) -> dict[str, bytes]:
    found = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("hub", BACKENDS, indirect=True)
def test_what_is_pushed_comes_back_to_the_bit(hub: Any, walks: Path, tmp_path: Path):
    address = tipl.hub_push(walks, "me/walks")
    out = tipl.hub_pull("me/walks", tmp_path / "back")
    before, after = contents(walks), contents(out)
    assert after.pop("README.md").startswith(b"---\nname: me/walks\n")
    assert after == before
    assert tipl.data_verify(out)["ok"] and tipl.data_verify(out)["chunks"] == tipl.data_verify(walks)["chunks"]
    assert tipl.data_verify("hf://me/walks")["ok"]
    store = tipl.Store.open("hf://me/walks")
    assert store.name == "walks" and store.id == tipl.Store.open(walks).id
    assert np.array_equal(store.trial(2).weights(5, 600), tipl.Store.open(walks).trial(2).weights(5, 600))
    assert [(row["name"], row["kind"]) for row in tipl.hub_list()] == [("me/walks", "store")]
    assert address == f"hf://me/walks@{tipl.hub_list('me')[0]['revision']}"


@pytest.mark.parametrize("hub", BACKENDS, indirect=True)
def test_a_model_is_loaded_by_its_name_and_by_a_revision(hub: Any, tmp_path: Path):
    model = shutil.copytree(PRETRAINED / "causal", tmp_path / "model")
    first = tipl.hub_push(model, "me/model")
    (model / "README.md").write_text("---\nlibrary_name: tipl\n---\nmy own card\n")
    second = tipl.hub_push(model, "me/model")
    assert first != second
    forecasters = [
        tipl.CausalForecaster.from_pretrained(name, [(3,)], revision=revision)
        for name, revision in ((model, None), ("me/model", None), ("me/model", first.partition("@")[2]))
    ]
    history = tipl.History(1, 5, np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), -1)
    expected, *others = (each.forecast([history], [1, 5]) for each in forecasters)
    assert all(np.array_equal(expected, other) for other in others)
    assert [each.name for each in forecasters] == ["model"] * 3
    assert (pulled("me/model") / "README.md").read_text().endswith("my own card\n")
    assert "validation skill" in (pulled(first) / "README.md").read_text()
    with pytest.raises(TiplError, match=r"no revision|no such revision"):
        tipl.CausalForecaster.from_pretrained("me/model", [(3,)], revision="0" * 40)


@pytest.mark.parametrize("hub", ["hub"], indirect=True)
def test_what_is_pushed_is_found_by_the_hubs_own_client(hub: FakeHub, tmp_path: Path):
    from huggingface_hub import HfApi

    tipl.hub_push(PRETRAINED / "causal", "me/model")
    client = HfApi(endpoint=os.environ["HF_ENDPOINT"])
    found = client.hf_hub_download("me/model", "model.safetensors", cache_dir=tmp_path / "theirs")
    assert Path(found).read_bytes() == (PRETRAINED / "causal" / "model.safetensors").read_bytes()
    card = Path(client.hf_hub_download("me/model", "README.md", cache_dir=tmp_path / "theirs")).read_text()
    assert front_matter(card)["library_name"] == "tipl"
    names = {each.rfilename for each in client.model_info("me/model").siblings or ()}
    assert names == {"config.json", "model.safetensors", "training.json", "README.md", LISTING}


def front_matter(card: str) -> Any:
    import yaml

    return yaml.safe_load(card.split("---")[1])


@pytest.mark.parametrize("hub", ["hub"], indirect=True)
def test_an_upload_that_was_cut_off_is_gone_on_with_and_shows_nothing(hub: FakeHub, walks: Path, tmp_path: Path):
    hub.cut_after = 7
    with pytest.raises(TiplError, match="what was sent is kept"):
        tipl.hub_push(walks, "me/walks")
    sent = {*hub.put}
    assert len(hub.put) == 7 and hub.repos["datasets/me/walks"] == []
    assert tipl.hub_list() == []
    hub.cut_after = None
    tipl.hub_push(walks, "me/walks")
    assert len(hub.put) > 7 and not sent & {*hub.put[7:]}, "what had come is not sent again"
    assert len(hub.repos["datasets/me/walks"]) == 1
    assert tipl.data_verify(tipl.hub_pull("me/walks", tmp_path / "back"))["ok"]


@pytest.mark.parametrize("hub", ["folder", "s3"], indirect=True)
def test_a_shelf_goes_on_too(hub: Any, walks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put, names = Shelf._put, []

    def failing(self: Shelf, name: str, content: Any) -> None:
        if len(names) >= 9:
            raise TiplError("The cable was pulled.")
        put(self, name, content)
        names.append(name)

    monkeypatch.setattr(Shelf, "_put", failing)
    with pytest.raises(TiplError, match="cable"):
        tipl.hub_push(walks, "me/walks")
    assert tipl.hub_list() == []
    with pytest.raises(TiplError, match=r"No store, model or policy me/walks is published"):
        tipl.hub_pull("me/walks", tmp_path / "back")
    monkeypatch.setattr(Shelf, "_put", lambda self, name, content: (put(self, name, content), names.append(name)))
    tipl.hub_push(walks, "me/walks")
    assert len(names) == len({*names}), "what had come is not sent again"
    assert tipl.data_verify(tipl.hub_pull("me/walks", tmp_path / "back"))["ok"]


@pytest.mark.parametrize("hub", ["hub"], indirect=True)
def test_a_new_push_replaces_all_and_old_revisions_stay(hub: FakeHub, walks: Path, tmp_path: Path):
    first = tipl.hub_push(walks, "me/walks")
    other = random_walk(tmp_path / "other", trials=2, snapshots=20, dim=3)
    tipl.hub_push(other, "me/walks")
    assert "trials/3/zarr.json" not in hub.repos["datasets/me/walks"][-1][1]
    assert tipl.Store.open("hf://me/walks").id == tipl.Store.open(other).id
    assert tipl.Store.open(first).id == tipl.Store.open(walks).id
    assert tipl.Store.open(tipl.hub_pull("me/walks", tmp_path / "old", first.partition("@")[2])).seeds == [1, 2, 3]


@pytest.mark.parametrize("hub", ["hub"], indirect=True)
def test_who_may_not_is_told_in_one_line(hub: FakeHub, walks: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(TiplError, match=r"asks for an account.*hf auth login.*TIPL_HUB=file"):
        tipl.hub_push(walks, "me/walks")
    assert hub.repos == {}


@pytest.mark.parametrize("hub", ["folder"], indirect=True)
def test_a_policy_goes_with_its_normalizer_and_what_it_earns(
    hub: Any, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "policy.safetensors"
    tipl.forecast(small_store, trial=6, origin=40, horizon=5, out=file, episodes=0)
    assert main(["hub", "push", str(file), "me/policy", "--episodes", "3", "--no-video"]) == 0
    assert capsys.readouterr().out.startswith("published hf://me/policy@")
    out = tipl.hub_pull("me/policy", tmp_path / "back")
    assert {*contents(out)} == {"config.json", "policy.safetensors", "results.json", "README.md"}
    seen = np.random.default_rng(0).normal(size=(5, 4))
    mine = tipl.load_policy(file)
    for place in (out, out / "policy.safetensors", "hf://me/policy"):
        theirs = tipl.load_policy(place)
        assert np.array_equal(mine(seen), theirs(seen)) and np.array_equal(mine.obs_var, theirs.obs_var)
    with pytest.raises(TiplError, match=r"me/policy in .* is a model or policy, not a store"):
        tipl.Store.open("hf://me/policy")
    results = json.loads((out / "results.json").read_text())
    card = front_matter((out / "README.md").read_text())["model-index"][0]["results"][0]
    assert results["n_eval_episodes"] == 3 and results["is_deterministic"]
    assert card["dataset"]["name"] == "InvertedPendulum-v4" and card["metrics"][0]["type"] == "mean_reward"
    assert card["metrics"][0]["value"] == f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    monkeypatch.setattr("tipl.publishing.push.film_to", lambda shown, out, **how: out.write_bytes(b"a film"))
    tipl.hub_push(file, "me/film", episodes=1)
    assert (pulled("me/film") / "replay.mp4").read_bytes() == b"a film"
    assert "`replay.mp4`" in (pulled("me/film") / "README.md").read_text()
    published = b"".join(contents(out).values())
    assert str(tmp_path).encode() not in published and str(small_store).encode() not in published


@pytest.mark.parametrize("hub", ["folder"], indirect=True)
def test_what_should_not_go_is_refused(hub: Any, walks: Path, tmp_path: Path, small_store: Path):
    damaged = shutil.copytree(walks, tmp_path / "damaged")
    chunk = damaged / "trials/1/weights/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    (tmp_path / "empty").mkdir()
    for what, name, line in (
        (damaged, "me/x", "damaged"),
        (tmp_path / "empty", "me/x", "no store, collection or model"),
        (tmp_path / "nothing", "me/x", "does not exist"),
        (walks, "me", "no name"),
        (walks, "../x", "no name"),
        (walks, "me/x@main", "more than a name"),
        (walks, "models/me/x", "goes to datasets/me/x"),
    ):
        with pytest.raises(TiplError, match=line):
            tipl.hub_push(what, name)
    assert not (tmp_path / "hub").exists()
    linked = shutil.copytree(walks, tmp_path / "linked")
    (tmp_path / "secret").write_text("---\nname: x\n---\nsecret")
    (linked / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(TiplError, match="it is a link, which is not followed"):
        tipl.hub_push(linked, "me/x")
    assert not (tmp_path / "hub").exists()
    extra = shutil.copytree(walks, tmp_path / "extra")
    (extra / "notes.txt").write_text("mine")
    (extra / "trials/1/weights/zarr.json.partial").write_text("{")
    tipl.hub_push(extra, "me/extra")
    assert {*contents(tipl.hub_pull("me/extra", tmp_path / "e"))} == {*contents(walks), "README.md"}


@pytest.mark.parametrize("hub", ["folder"], indirect=True)
def test_a_download_that_was_cut_off_leaves_nothing_half_and_goes_on(
    hub: Any, walks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tipl.remote.source import Source

    tipl.hub_push(walks, "me/walks")
    get, fetched = Source.get, []

    def failing(self: Source, name: str, to: Path, most: int) -> None:
        if len(fetched) >= 12:
            to.write_bytes(b"half")
            raise TiplError("The cable was pulled.")
        get(self, name, to, most)
        fetched.append(name)

    monkeypatch.setattr(Source, "get", failing)
    with pytest.raises(TiplError, match="cable"):
        tipl.hub_pull("me/walks", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    before = contents(tmp_path / "back.partial")
    assert before and not any(name.endswith(".partial") for name in before)
    monkeypatch.setattr(Source, "get", lambda *given: (get(*given), fetched.append(given[1]))[0])
    tipl.hub_pull("me/walks", tmp_path / "back")
    assert contents(tmp_path / "back").items() >= before.items()
    assert sorted(fetched).count("zarr.json") == 1, "what had come is not fetched again"
    assert not (tmp_path / "back.partial").exists() and tipl.data_verify(tmp_path / "back")["ok"]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//b", ".hidden", "a\\b", "x.partial", "tipl.json", ""]
)
def test_a_listing_that_leads_elsewhere_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Somebody else's server: a revision whose listing was made by hand."""
    files = make_listing("store", {"zarr.json": b"{}"})
    hostile = sealed(files.replace(b'"zarr.json"', json.dumps(name).encode()).replace(*seal_away(files)))
    _pull_hostile(tmp_path, monkeypatch, hostile, {}, r"names? below a folder|cannot|is no|no plain name")


def seal_away(content: bytes) -> tuple[bytes, bytes]:
    from tipl.files import SEAL, seal_of

    return seal_of(content).encode(), SEAL.encode()


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"{]", "its checksum does not match"), (b"{}{}", "more than 2 bytes"), (b"{", "checksum"), (None, "There is no")],
)
def test_a_file_that_is_not_as_it_was_listed_is_refused(
    content: bytes | None, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = {} if content is None else {"zarr.json": content}
    _pull_hostile(tmp_path, monkeypatch, make_listing("store", {"zarr.json": b"{}"}), files, line)


def test_a_listing_larger_than_the_disk_is_refused_before_anything_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listing = make_listing("store", {"zarr.json": b"{}"})
    large = sealed(listing.replace(b'"size": 2', b'"size": 900000000000000000').replace(*seal_away(listing)))
    _pull_hostile(tmp_path, monkeypatch, large, {"zarr.json": b"{}"}, "has room for")


def _pull_hostile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: bytes, files: dict[str, bytes], line: str
) -> None:
    hub = FakeHub()
    hub.repos["datasets/me/walks"] = [("a" * 40, {LISTING: listing, **files})]
    with hub.serve() as address:
        monkeypatch.setenv("TIPL_HUB", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        with pytest.raises(TiplError, match=line) as told:
            tipl.hub_pull("me/walks", tmp_path / "back")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "back").exists()
    assert not any(path.name not in ("hf", "back.partial") for path in tmp_path.iterdir())


@pytest.mark.parametrize("hub", ["hub"], indirect=True)
def test_a_redirect_to_another_host_is_followed_without_the_token(hub: FakeHub, walks: Path, tmp_path: Path):
    """As the Hub does with large files."""
    tipl.hub_push(walks, "me/walks")
    (tmp_path / "other").mkdir()
    for content in hub.repos["datasets/me/walks"][0][1].values():
        (tmp_path / "other" / hashlib.sha1(content).hexdigest()).write_bytes(content)
    other = Files(tmp_path / "other")
    with other.serve() as hub.elsewhere:
        assert tipl.data_verify(tipl.hub_pull("me/walks", tmp_path / "back"))["ok"]
        assert np.array_equal(
            tipl.Store.open("hf://me/walks").trial(1).weights(), tipl.Store.open(walks).trial(1).weights()
        )
    assert len(other.asked) > 20 and {*other.secrets} == {None}


def test_names_that_lead_elsewhere_are_none():
    for text in ("a/b", "hf://a/b", "datasets/a/b", "a/b@v1.0", "hf://a/b@main/c/d", "a/b-c_d.e"):
        assert Name.read(text).name.startswith("a/b")
    assert Name.read("hf://datasets/a/b@main/c/d") == Name("a/b", "datasets", "main", "c/d")
    for text in (
        "a", "", "/a/b", "a/../b", "../a", "a/..", "a//b", "a/b@../c", "a/b/../c", "a/b@", "hf:///a/b", "a/b?x",
        "a/b\n", "á/b", f"a/{'b' * 97}", ".a/b", "a/.b", "-a/b", "a--b/c",
    ):  # fmt: skip
        with pytest.raises(TiplError, match="no name"):
            Name.read(text)


def test_a_hub_that_is_no_place_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for place in ("x://y", "file://", "file://relative", "s3://", "relative/folder"):
        monkeypatch.setenv("TIPL_HUB", place)
        assert main(["hub", "list"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"tipl: error: TIPL_HUB is {place}; give file:///") and told.count("\n") == 1


def test_a_file_server_is_no_hub(tmp_path: Path, walks: Path, monkeypatch: pytest.MonkeyPatch):
    files = Files(walks.parent)
    with files.serve() as address, contextlib.suppress(AssertionError):
        monkeypatch.setenv("TIPL_HUB", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        with pytest.raises(TiplError, match="is published"):
            tipl.hub_pull("me/walks", tmp_path / "back")


@pytest.mark.parametrize("hub", ["hub"], indirect=True)
def test_a_collection_is_published_whole_and_read_by_its_stores(hub: FakeHub, walks: Path, tmp_path: Path):
    shutil.copytree(walks, tmp_path / "zoo" / "walks")
    random_walk(tmp_path / "zoo" / "drift", trials=2, snapshots=20, dim=3, drift=1.0)
    tipl.data_index(tmp_path / "zoo")
    tipl.hub_push(tmp_path / "zoo", "me/zoo")
    assert [row["name"] for row in tipl.data_list("hf://me/zoo")] == ["drift", "walks"]
    weights = tipl.Collection.open("hf://me/zoo").store("walks").trial(1).weights()
    assert np.array_equal(weights, tipl.Store.open("hf://me/zoo/walks").trial(1).weights())
    assert np.array_equal(weights, tipl.Store.open(walks).trial(1).weights())
    back = contents(tipl.hub_pull("me/zoo", tmp_path / "back"))
    card = back.pop("README.md").decode()
    assert back == contents(tmp_path / "zoo") and front_matter(card)["tags"][0] == "tipl"
