"""Many stores judged at once, and one store by several shards: the numbers of one evaluation each.

In: random walks.  Out: failures.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tipl import EvaluateConfig, Execution, TiplError, data_index, evaluate, evaluate_many, random_walk
from tipl.cli.main import main
from tipl.evaluation import forecast_returns
from tipl.evaluation.many import table

CONFIG = EvaluateConfig(horizons=(1, 10), origins=8, spectrum_trials=0)
CONFIG_OF_RETURNS = EvaluateConfig(
    horizons=(1, 5), return_horizons=(5,), origins=4, return_origins=2, episodes=1, spectrum_trials=0,
    return_forecasters=("persistence", "damped-line"), oracle_normalizer=False, sampled_actions=False,
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("here")


def metrics(folder: Path) -> dict:
    found = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seal", "seconds", "command", "store")}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for name, seed in (("one", 1), ("two", 11), ("three", 21)):
        random_walk(folder / "stores" / name, trials=6, snapshots=120, dim=4, seed=seed)
    return folder / "stores"


def test_a_folder_of_stores_is_judged_in_shards_as_each_alone_and_put_in_one_table(stores: Path, tmp_path: Path):
    out = tmp_path / "judged"
    data_index(stores)  # with a manifest or without one
    for part in (1, 2):
        evaluate_many(stores, out, CONFIG, returns=False, workers=1, execution=Execution(shard=f"{part}/2"))
        assert (out / "table.json").exists() == (part == 2)
    alone = evaluate(stores / "two", tmp_path / "two", CONFIG, returns=False)
    assert metrics(out / "two") == metrics(alone)
    made = json.loads((out / "table.json").read_text())
    skills = [row["skill"]["10"] for row in made["stores"] if row["forecaster"] == "line-5"]
    assert len(skills) == 3 and {row["store"] for row in made["stores"]} == {"one", "two", "three"}
    (mean,) = [row for row in made["environments"] if row["forecaster"] == "line-5"]
    assert mean["of"] == 3 and mean["skill"]["10"] == pytest.approx(np.mean(skills))
    assert table({name: out / name for name in ("one", "two", "three")})["all"] == made["all"]


def test_what_cannot_be_judged_is_told_after_the_others(stores: Path, tmp_path: Path, capsys):
    line = ["evaluate", str(stores / "one"), "--out", str(tmp_path / "judged"), "--no-returns"]
    assert main([*line[:2], str(stores / "one" / ".." / "one"), *line[2:]]) == 2
    assert "have one name" in capsys.readouterr().err
    with pytest.raises(TiplError, match="holds no store"):
        evaluate_many([tmp_path], tmp_path / "judged", CONFIG)
    random_walk(tmp_path / "short", trials=6, snapshots=4, dim=4)
    with pytest.raises(TiplError, match="short"):
        evaluate_many([stores / "one", tmp_path / "short"], tmp_path / "judged", CONFIG, returns=False, workers=1)
    assert (tmp_path / "judged" / "one" / "metrics.json").exists() and not (tmp_path / "judged" / "table.json").exists()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"returns": False, "execution": Execution(shard="1/2")}, "leave out --no-returns, or --shard"),
        ({"returns": False, "execution": Execution(executor="ray")}, "leave out --no-returns, or --shard"),
        ({"execution": Execution(executor="ray", shard="1/2")}, "--shard and --executor ray both divide"),
    ],
)
def test_what_divides_nothing_of_one_store_is_refused(stores: Path, tmp_path: Path, how: dict, said: str):
    with pytest.raises(TiplError, match=said):
        evaluate(stores / "one", tmp_path / "out", CONFIG, **how)
    assert not (tmp_path / "out").exists()


def test_a_node_that_does_not_see_out_says_so(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(work: Callable[..., None], tasks: Sequence[tuple], *_: object) -> None:
        asked, trust = tasks[0]
        assert asked.policies.exists()
        work(None, asked._replace(part=tmp_path / "elsewhere" / asked.part.name), trust)

    @contextlib.contextmanager
    def cluster(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(slots=2, where="in {} tasks", run=run)

    monkeypatch.setattr(forecast_returns, "executor", cluster)
    with pytest.raises(TiplError, match=r"elsewhere/.*; give an --out that all nodes see"):
        evaluate(small_store, tmp_path / "out", CONFIG_OF_RETURNS, execution=Execution(executor="ray"))
    assert not [*(tmp_path / "out" / "parts").iterdir()], "the policies are removed"


def test_a_dry_run_is_of_several_stores(stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = ["evaluate", str(stores / "one"), "--out", str(tmp_path / "out"), "--shard", "1/2", "--dry-run"]
    assert main(line) == 2
    assert "of one, every shard runs an equal share of the policies" in capsys.readouterr().err.splitlines()[-1]


def test_shards_run_the_policies_of_one_store_and_the_last_one_judges(small_store: Path, tmp_path: Path):
    whole = evaluate(small_store, tmp_path / "whole", CONFIG_OF_RETURNS)
    for part in (2, 1, 3):
        out = evaluate(small_store, tmp_path / "parts", CONFIG_OF_RETURNS, execution=Execution(shard=f"{part}/3"))
        assert (out / "metrics.json").exists() == (part == 3)
    assert metrics(tmp_path / "parts") == metrics(whole)
