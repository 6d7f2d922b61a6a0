"""Publish a store, a model or a policy under a name: the verb `hub push`.

In: a folder or file that this program wrote.  Out: a revision on the hub, whose files are verified before they go.
"""

import dataclasses
import datetime
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.numpy

from tipl.bundle import bundled
from tipl.catalog.card import CARD, made_card
from tipl.catalog.manifest import MANIFEST, Collection
from tipl.checks import AnyPath, Count, Whole, checked_arguments
from tipl.config.env_spec import import_named
from tipl.errors import TiplError
from tipl.files import SEAL, file_size, sealed, to_json
from tipl.models import CONFIG_FILE, TRAINING_FILE, WEIGHTS_FILE, CausalTIPL, load, read_record, read_training
from tipl.pictures.shown import Shown, of_file
from tipl.pictures.video import film_to
from tipl.progress import console
from tipl.publishing.cards import collection_card, model_card, policy_card
from tipl.remote.hub import hub
from tipl.remote.listing import LISTING, Sort, make_listing
from tipl.remote.names import Kind, Name
from tipl.rl.env_described import why_other
from tipl.store import Store, data_verify
from tipl.store.arrays import MADE
from tipl.store.layout import EVERY_ARRAY
from tipl.store.policy import POLICY_FILE, read_policy

REPLAY = "replay.mp4"
_TRIAL = rf"(?:zarr\.json|(?:{'|'.join(EVERY_ARRAY)})/(?:{MADE})|resume/(?:zarr\.json|\d+\.safetensors))"
_OF_A_STORE = re.compile(rf"README\.md|zarr\.json|trials/zarr\.json|trials/(?P<seed>\d+)/{_TRIAL}", re.ASCII)
_TOLD = ("env_id", "config", "param_spec", "trial", "origin", "horizon")  # of a policy; not where its model lies


class _Made(NamedTuple):
    """What is about to be published."""

    sort: Sort
    kind: Kind
    files: dict[str, Path | bytes]


@checked_arguments
def hub_push(
    what: AnyPath,
    name: str,
    *,
    private: bool = False,
    episodes: Count = 20,
    seed: Whole = 0,
    video: bool = True,
    trust: bool = False,
) -> str:
    """Publish a store, a collection, a model or a policy, and return its address, hf://USER/NAME@REVISION.

    All of it is verified first. It appears in one step; until then, what was there before is shown. After an
    interruption the same call sends what is missing.

    Args:
        what: the folder of a store, a collection (`data_index`) or a model, or the .safetensors file of a policy that
            `forecast` wrote.
        name: USER/NAME, on the Hugging Face Hub or where TIPL_HUB says (`file:///A/FOLDER` needs no account).
        private: do not show it to others (Hugging Face Hub).
        episodes: of a policy, that its mean reward is the mean of.
        seed: of these episodes.
        video: of a policy, film the first of them as replay.mp4, where this machine can (the extra `video`).
        trust: import the module that a policy names for its environment, which runs its code.

    Raises:
        TiplError: it is none of these, is damaged, the name is none, the hub does not take it, or a policy cannot run.
    """
    asked, path = Name.read(name), Path(what)
    if asked.revision or asked.folder:
        raise TiplError(f"{name} says more than a name; give USER/NAME.")
    if path.is_file():
        made = _policy(path, asked.name, episodes, seed, video, trust)
    elif (path / "zarr.json").exists():
        made = _store(path, asked.name)
    elif (path / MANIFEST).exists():
        made = _collection(path, asked.name)
    elif (path / CONFIG_FILE).exists():
        made = _model(path, asked.name)
    else:
        there = "holds no store, collection or model" if path.is_dir() else "does not exist"
        raise TiplError(f"{path} {there}; give a store, a collection, a model, or a policy's .safetensors file.")
    if asked.kind not in (None, made.kind):
        raise TiplError(f"{path} is a {made.sort}, which goes to {made.kind}/{asked.name}; leave {asked.kind}/ out.")
    for each in made.files.values():
        if isinstance(each, Path):
            file_size(each)  # refuses a link, which could lead to a secret
    before = _state(made)
    made.files[LISTING] = make_listing(made.sort, made.files)
    if _state(made) != before:
        raise TiplError(f"{path} is being written; wait until that is done, then push it.")
    revision = hub().push(made.kind, asked.name, made.files, private)
    return f"hf://{asked.name}@{revision}"


def _state(made: _Made) -> list[tuple[str, int, int]]:
    found = ((name, content.stat()) for name, content in sorted(made.files.items()) if isinstance(content, Path))
    return [(name, each.st_size, each.st_mtime_ns) for name, each in found]


def _store(path: Path, name: str) -> _Made:
    files = _files_of(path)
    card, _ = made_card(path, name=None if CARD in files else name)  # as the store is now
    files[CARD] = card.replace('"PATH"', f'"hf://{name}"').encode()
    return _Made("store", "datasets", files)


def _collection(path: Path, name: str) -> _Made:
    collection = Collection.open(path)
    files: dict[str, Path | bytes] = {MANIFEST: path / MANIFEST}
    for store in collection.stores:
        collection.store(store)
        files |= {f"{store}/{key}": each for key, each in _files_of(path / store).items()}
    files[CARD] = path / CARD if (path / CARD).is_file() else collection_card(name, collection.summaries())
    return _Made("collection", "datasets", files)


def _files_of(path: Path) -> dict[str, Path | bytes]:
    """The files of a store of which nothing is damaged, as far as this program made them."""
    found = data_verify(path)
    if not found["ok"]:
        raise TiplError(f"{path} is damaged ({found['damage'][0]['problem']}); `tipl data verify` lists what is.")
    seeds = set(Store.open(path).seeds)
    if not seeds:
        raise TiplError(f"{path} holds no trial that was committed; collect some first.")
    files: dict[str, Path | bytes] = {}
    for where, _, names in os.walk(path):
        for each in names:
            key = Path(where, each).relative_to(path).as_posix()
            if (of := _OF_A_STORE.fullmatch(key)) and (of["seed"] is None or int(of["seed"]) in seeds):
                files[key] = Path(where, each)
    return files


def _model(path: Path, name: str) -> _Made:
    kind = read_record(path).kind
    (CausalTIPL.load if kind == CausalTIPL.kind else load)(path)
    files: dict[str, Path | bytes] = {each: path / each for each in (CONFIG_FILE, WEIGHTS_FILE)}
    training = None
    if (path / TRAINING_FILE).exists():
        training, files[TRAINING_FILE] = read_training(path), path / TRAINING_FILE
    files[CARD] = path / CARD if (path / CARD).is_file() else model_card(name, kind, training)
    return _Made("model", "models", files)


def _policy(path: Path, name: str, episodes: int, seed: int, video: bool, trust: bool) -> _Made:
    """A policy's file, what it is, and what it earned in Gymnasium."""
    policy, facts = read_policy(path)
    shown = dataclasses.replace(of_file(path), label=name)
    if trust:
        import_named([shown.env_id])
    reason = shown.env_id.spec.get("not_run") or why_other(shown.env_id)
    if reason is not None:
        raise TiplError(f"The policy in {path} cannot be run, so its reward is not known: {reason}.")
    earned = shown.returns(episodes, seed)
    results = {
        "mean_reward": float(earned.mean()),
        "std_reward": float(earned.std()),
        "is_deterministic": True,
        "n_eval_episodes": episodes,
        "seed": seed,
        "eval_datetime": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    told = {each: facts[each] for each in _TOLD if each in facts}
    if "model" in facts:
        told["model"] = Path(str(facts["model"])).name
    made_by = f"forecast by {told['model']}" if "model" in told else "as it was in its run"
    files: dict[str, Path | bytes] = {
        POLICY_FILE: bundled(
            {**policy.tensors, "obs_mean": policy.obs_mean, "obs_var": policy.obs_var}, told, safetensors.numpy
        ),
        CONFIG_FILE: _sealed({"format": "tipl-policy", "version": 1, **told}),
        "results.json": _sealed(results),
    }
    replay = _replay(shown, episodes, seed) if video else None
    files |= {} if replay is None else {REPLAY: replay}
    files[CARD] = policy_card(name, str(shown.env_id), results, made_by, replay is not None)
    return _Made("policy", "models", files)


def _replay(shown: Shown, episodes: int, seed: int) -> bytes | None:
    """One episode of a policy as mp4; None, and a line, where it cannot be filmed here."""
    with tempfile.TemporaryDirectory(prefix="tipl-") as scratch:
        try:
            film_to([shown], Path(scratch) / REPLAY, episodes=episodes, seed=seed)
        except TiplError as error:
            console.print(f"hub push: without {REPLAY}: {error}")
            return None
        return (Path(scratch) / REPLAY).read_bytes()


def _sealed(facts: dict[str, Any]) -> bytes:
    return sealed((to_json({"seal": SEAL, **facts}, "a card", indent=1) + "\n").encode())
