"""Curves of long work: those for TensorBoard are read back by its own reader, the others stand in for their libraries.

In: made-up numbers.  Out: failures.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tipl.acceleration.compare import accelerate
from tipl.collection.tracking import tracked
from tipl.config.presets import CollectConfig, PPOConfig
from tipl.errors import TiplError


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_curves_are_read_back_and_a_second_run_goes_on_in_the_same_folder(tmp_path: Path):
    folder = tmp_path / "not" / "yet"
    with tracked(f"tensorboard={folder}") as write:
        assert not folder.exists()
        write("loss/train", 0.5, 10)
        write("loss/train", 0.25, 20)
        write("rate", 100, 20)
    with tracked(f"tensorboard={folder}") as write:
        write("loss/train", 0.125, 30)
    assert points(folder, "loss/train") == [(10, 0.5), (20, 0.25), (30, 0.125)]
    assert points(folder, "rate") == [(20, 100.0)]


def test_what_was_written_before_a_crash_stays(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), tracked(f"tensorboard={tmp_path}") as write:
        write("loss", 1.0, 1)
        raise ZeroDivisionError
    assert points(tmp_path, "loss") == [(1, 1.0)]


def test_without_a_folder_nothing_is_written_nor_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with tracked(None) as write:
        write("loss", 1.0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensorboard_and_a_file_in_the_way_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TiplError, match="is a file; give --track tensorboard=FOLDER"),
        tracked(f"tensorboard={tmp_path}/file"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # what `import` takes for missing
    with pytest.raises(TiplError, match=r"pip install 'tipl\[tensorboard\]'"), tracked(f"tensorboard={tmp_path}"):
        pass


class Library:
    """Stands in for Weights & Biases and Trackio, whose `init`, `log` and `finish` it notes."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def init(self, **given: Any) -> "Library":
        self.told.append(given)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.told.append((metrics, step))

    def finish(self) -> None:
        self.told.append("finish")


@pytest.mark.parametrize(("track", "project"), [("wandb", "tipl"), ("wandb=mine", "mine"), ("trackio=mine", "mine")])
def test_a_project_has_a_run_for_each_trial(monkeypatch: pytest.MonkeyPatch, track: str, project: str):
    library, kind = Library(), track.partition("=")[0]
    monkeypatch.setitem(sys.modules, kind, library)
    with tracked(track, "trial-3", {"seed": 3}) as write:
        assert library.told == []
        write("loss", 0.5, 10)
        write("loss", 0.25, 20)
    begun, *points, last = library.told
    assert begun.items() >= {"project": project, "name": "trial-3", "config": {"seed": 3}}.items()
    assert (begun.get("reinit") == "create_new") == (kind == "wandb")  # several at once in a process
    assert points == [({"loss": 0.5}, 10), ({"loss": 0.25}, 20)] and last == "finish"


def test_accelerate_writes_the_curve_of_every_arm_and_seed(here: None, tmp_path: Path):
    config = CollectConfig(trials=2, total_steps=3 * 256, hidden_sizes=(4,), ppo=PPOConfig(num_steps=256))
    out = accelerate(config, tmp_path / "a", workers=1, track=f"tensorboard={tmp_path / 'curves'}")
    steps = {step for arm in ("plain", "accelerated") for seed in config.seeds
             for step, _ in points(tmp_path / "curves" / arm / f"seed-{seed}", "charts/episodic_return")}  # fmt: skip
    assert steps == {256, 512, 768} and (out / "metrics.json").exists()


def test_what_cannot_be_tracked_is_one_line(monkeypatch: pytest.MonkeyPatch):
    class Offline(Library):
        def init(self, **given: Any) -> "Library":
            raise RuntimeError("api_key not configured\nmore")

    for track in ("mlflow", "wandb=", "", "tensorboard ="):
        with pytest.raises(TiplError, match="give tensorboard, wandb, trackio"), tracked(track):
            pass
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TiplError, match=r"pip install 'tipl\[wandb\]'"), tracked("wandb"):
        pass
    monkeypatch.setitem(sys.modules, "wandb", Offline())
    with pytest.raises(TiplError, match=r"api_key not configured\. WANDB_MODE=offline"), tracked("wandb") as write:
        write("loss", 1.0, 1)
