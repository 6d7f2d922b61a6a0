"""Whatever is typed or called: a value, or one clear line.

In: hostile_lines.py and hostile_calls.py.  Out: failures that name the flag or the argument.
"""

from pathlib import Path

import hostile_calls
import hostile_lines
import pytest

QUICK = (
    "Store.open", "Store.trial", "Trial.weights", "Trial.history", "data_info", "create_store", "Codes.open", "report",
    "experiment", "reproduce", "Policies", "History", "load_forecaster", "OnlineCorrected", "ceiling",
)  # fmt: skip


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("furnished")
    hostile_lines.furnish(folder)
    return folder


def test_every_flag_of_every_verb_has_hostile_values():
    tried = {(line[0], word.partition("=")[0]) for line in hostile_lines.lines() for word in line}
    for verb, flag in (
        ("collect", "--ppo.gamma"),
        ("train", "--num-heads"),
        ("evaluate", "--fit"),
        ("data", "--drift"),
    ):
        assert (verb, flag) in tried


def test_hostile_command_lines_end_in_one_line(furnished: Path):
    """A sample; `python tests/hostile_lines.py` tries all."""
    quick = [line for line in hostile_lines.sample(150) if line[0] not in ("collect", "accelerate", "train")]
    assert [fault for line in quick if (fault := hostile_lines.run(line, furnished))] == []


def test_hostile_calls_end_in_a_tipl_error(furnished: Path, monkeypatch: pytest.MonkeyPatch):
    """Those that are quick; `python tests/hostile_calls.py` tries all."""
    monkeypatch.chdir(furnished)
    assert [fault for name in QUICK for fault in hostile_calls.faults(name)] == []


@pytest.mark.slow
def test_all_hostile_command_lines_end_in_one_line(furnished: Path):
    assert [fault for line in hostile_lines.lines() if (fault := hostile_lines.run(line, furnished))] == []


@pytest.mark.slow
def test_all_hostile_calls_end_in_a_tipl_error(furnished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(furnished)
    assert list(hostile_calls.faults()) == []
