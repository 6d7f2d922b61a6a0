"""What long work shows: curves for TensorBoard, read back by TensorBoard's own reader.

In: made-up numbers.  Out: failures.
"""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tipl.errors import TiplError
from tipl.progress import scalars


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_curves_are_read_back_and_a_second_run_goes_on_in_the_same_folder(tmp_path: Path):
    folder = tmp_path / "not" / "yet"
    with scalars(folder) as write:
        assert not folder.exists()
        write("loss/train", 0.5, 10)
        write("loss/train", 0.25, 20)
        write("rate", 100, 20)
    with scalars(folder) as write:
        write("loss/train", 0.125, 30)
    assert points(folder, "loss/train") == [(10, 0.5), (20, 0.25), (30, 0.125)]
    assert points(folder, "rate") == [(20, 100.0)]


def test_what_was_written_before_a_crash_stays(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), scalars(tmp_path) as write:
        write("loss", 1.0, 1)
        raise ZeroDivisionError
    assert points(tmp_path, "loss") == [(1, 1.0)]


def test_without_a_folder_nothing_is_written_nor_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with scalars(None) as write:
        write("loss", 1.0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensorboard_and_a_file_in_the_way_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(TiplError, match="is a file; give --tensorboard a folder"), scalars(tmp_path / "file"):
        pass
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # what `import` takes for missing
    with pytest.raises(TiplError, match=r"pip install 'tipl\[tensorboard\]'"), scalars(tmp_path):
        pass
