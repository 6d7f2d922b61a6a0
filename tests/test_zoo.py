"""The zoo's manifest keeps what it promises, and nobody learns from what is held out."""

import dataclasses
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import tipl

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
import zoo  # pyright: ignore[reportMissingImports]


@pytest.mark.parametrize("preset", ["small", "full"])
def test_the_manifest_is_as_wide_as_it_says(preset: str) -> None:
    runs = zoo.runs_of(preset)
    ppo = [run for run in runs if run.algorithm == "PPO"]
    trials, rates, families = Counter[str](), defaultdict[str, set](set), defaultdict[str, set](set)
    for run in ppo:
        trials[run.env_id] += run.trials
        rates[run.env_id].add(run.rate)
        families[run.family].add(run.env_id)
    assert len(trials) >= 48 and min(trials.values()) >= 8 and min(map(len, rates.values())) >= 2
    assert set(families) == {"mujoco", "dm_control", "metaworld", "box2d", "classic control", "highway"}
    assert {run.hidden for run in ppo} >= {(8, 8), (256, 256)} and {run.activation for run in ppo} == {"tanh", "relu"}
    others = defaultdict[str, set](set)
    for run in runs:
        others[run.algorithm].add(run.env_id)
    assert all(len(others[name]) >= 4 for name in ("SAC", "TD3", "A2C", "DQN"))


def test_what_the_results_are_made_on_is_of_the_manifest_and_has_every_environment() -> None:
    table = json.loads((Path(zoo.RATES).parent / "table.json").read_text())
    made = {(row["store"], row["trials"]) for row in table}
    first, small = ({(run.name, run.trials) for run in zoo.runs_of(preset)} for preset in ("first", "small"))
    assert len(first) == 56 and first <= made <= small and len(made) == len(table)


def test_the_split_is_by_environment() -> None:
    parts = defaultdict[str, set](set)
    families = {}
    for preset in zoo.PRESETS:
        for run in zoo.runs_of(preset):
            parts[run.env_id].add(run.part)
            families[run.env_id] = run.family
    assert all(len(found) == 1 for found in parts.values())
    held = {env_id for env_id, found in parts.items() if found == {"held out"}}
    assert len(held) >= 12 and {families[env_id] for env_id in held} == set(families.values())
    assert any(all(e in held for e, f in families.items() if f == family) for family in set(families.values()))
    assert any(found == {"validation"} for found in parts.values())


def test_a_shard_is_a_part_of_the_whole_and_runs_have_names_of_their_own() -> None:
    runs = zoo.runs_of("full")
    assert len({run.name for run in runs}) == len(runs)
    assert {run.name for run in zoo.runs_of("small")} <= {run.name for run in runs}
    assert all(Path(run.name).name == run.name for run in runs)


def test_a_store_is_made_once_and_stands_whole(here: None, tmp_path: Path) -> None:
    run = zoo.Run("CartPole-v1", "classic control", "train", 1024, 3, (4,), "tanh", 1e-3)
    out = tmp_path / "zoo"
    out.mkdir()
    tipl.collect(zoo.config_of(run), zoo.work_of(out) / run.name, workers=1)
    more = dataclasses.replace(run, trials=4)
    assert zoo.finish(more, out, keep_exact=False) == "not complete yet"
    assert zoo.finish(run, out, keep_exact=False).endswith("MB")
    store = tipl.Store.open(out / run.name)
    assert store.seeds == [1, 2, 3] and not store.incomplete and store.compact_error
    assert (out / run.name / "README.md").is_file() and not any(zoo.work_of(out).iterdir())
    assert zoo.finish(run, out, keep_exact=False) == "there already"
