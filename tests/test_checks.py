"""Annotations as checks: what they take, what they turn it into, and the one line for all else.

In: values of the wrong and the right kind.  Out: failures.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import tipl
from tipl.checks import AnyPath, Count, Part, Positive, Share, Whole, checked, checked_arguments
from tipl.config.jumps import JumpConfig
from tipl.config.presets import (
    CausalTrainConfig,
    CollectConfig,
    CompactConfig,
    DiscreteCollectConfig,
    EvaluateConfig,
    PPOConfig,
    SVDConfig,
    TrainConfig,
)
from tipl.errors import TiplError


@pytest.mark.parametrize(
    ("kind", "value", "made"),
    [
        (Count, np.int64(3), 3),
        (Share, 1, 1.0),
        (Positive, np.float32(0.5), 0.5),
        (bool, np.True_, True),
        (tuple[Count, ...], [8, np.int32(4)], (8, 4)),
        (tuple[Count, ...], np.array([8, 4]), (8, 4)),
        (float | None, None, None),
        (float | None, 2, 2.0),
        (AnyPath | Sequence[AnyPath], "a", "a"),
        (AnyPath | Sequence[AnyPath], ["a", Path("b")], ["a", Path("b")]),
        (Literal["a", "b"], "b", "b"),
    ],
)
def test_what_an_annotation_takes_comes_out_in_pythons_own_types(kind: Any, value: Any, made: Any):
    found = checked("x", value, kind)
    assert found == made and type(found) is type(made)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (Count, 0, "x is 0; give at least 1."),
        (Count, 2.0, "x is 2.0; give a whole number."),
        (Count, True, "x is True; give a whole number."),
        (Count, 10**30, f"x is {10**30}; give less."),
        (Whole, -1, "x is -1; give at least 0."),
        (Part, 1, "x is 1; give at least 0 and less than 1."),
        (Positive, 0, "x is 0; give more than 0."),
        (Positive, math.inf, "x is inf; give a finite number."),
        (float, math.nan, "x is nan; give a finite number."),
        (float, "1", "x is '1'; give a number."),
        (bool, 1, "x is 1; give True or False."),
        (str, "", "x is ''; give text."),
        (tuple[Count, ...], np.array(8), "x is of the type ndarray; give several, as a list or a tuple."),
        (tuple[Count, ...], "8", "x is '8'; give several, as a list or a tuple."),
        (tuple[Count, ...], (8, "8"), "x is '8'; give a whole number."),
        (Literal["a", "b"], "c", "x is 'c'; give one of a, b."),
        (Literal["a", "b"], ["a"], "x is of the type list; give one of a, b."),
        (float | None, "a", "x is 'a'; give a number."),
        (AnyPath, 3, "x is 3; give a path, as text or os.PathLike."),
        (AnyPath, b"a", "x is of the type bytes; give a path, as text or os.PathLike."),
        (AnyPath, "", "x is empty; give a path."),
        (str, "a\ud800", r"x is 'a\ud800'; give text."),
        (AnyPath, "a\ud800", "x holds half of a character, which no path has; give another."),
        (AnyPath, "a\0b", "x holds a NUL, which no path has; give another."),
        (AnyPath, f"a/{'é' * 128}/b", f"x has a name of 256 bytes, {'é' * 20}…; give one of at most 255."),
        (np.ndarray, [1.0], "x is of the type list; give a ndarray."),
        (dict[str, int], [1], "x is of the type list; give a dict."),
    ],
)
def test_what_it_does_not_take_is_one_line(kind: Any, value: Any, words: str):
    with pytest.raises(TiplError) as caught:
        checked("x", value, kind)
    assert str(caught.value) == words


def test_home_is_where_a_shell_would_have_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert checked("x", "~/store", AnyPath) == "/home/somebody/store" and checked("x", "a~", AnyPath) == "a~"


def test_a_link_that_leads_to_itself_is_no_path(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / "loop" / "below", tmp_path / Path(*["a"] * 3000)):
        with pytest.raises(TiplError, match=r"x is .*: (Too many levels of symbolic links|File name too long); give"):
            checked("x", path, AnyPath)


def test_the_arguments_of_a_function_are_checked_and_its_defaults_are_not():
    @checked_arguments
    def add(store: AnyPath, *more: AnyPath, count: Count = 0, note=None) -> tuple:
        return os.fspath(store), more, count, note

    assert add("a", note=object) == ("a", (), 0, object) and add(Path("a"), count=np.int8(2)) == ("a", (), 2, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TiplError, match="`store` is 7; give a path"):
        add(7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TiplError, match="`count` is -1; give at least 1"):
        add("a", count=-1)
    with pytest.raises(TypeError, match="store"):  # a call that Python itself would not take
        add()  # pyright: ignore[reportCallIssue]
    assert isinstance(TiplError("x"), ValueError)


class Somewhere:
    """A path that is neither a str nor a pathlib.Path, and looks like none."""

    def __init__(self, path: Path | str) -> None:
        self._path = os.fspath(path)

    def __fspath__(self) -> str:
        return self._path


@pytest.mark.parametrize("of", [str, Somewhere])
def test_public_functions_take_a_str_and_any_path_object(tmp_path: Path, of: Callable[[Path], Any]):
    walks, small, codes = (of(tmp_path / name) for name in ("walks", "small", "codes"))
    assert tipl.random_walk(walks, trials=5, snapshots=9, dim=4) == tmp_path / "walks"
    assert tipl.compact(walks, small) == tmp_path / "small"
    assert tipl.fit_svd(walks, codes, tipl.SVDConfig(dim=2), progress=False) == tmp_path / "codes"
    assert tipl.Codes.open(codes).seeds == tipl.Store.open(walks).seeds == [1, 2, 3, 4, 5]
    assert tipl.data_info(small)["store"] == tipl.data_verify(small)["store"] == str(tmp_path / "small")
    assert tipl.create_store(walks).path == tmp_path / "walks"
    with pytest.raises(TiplError, match=f"{tmp_path}/small is compact already"):
        tipl.compact(small, of(tmp_path / "other"))
    with pytest.raises(TiplError, match=f"{tmp_path}/walks.* is complete"):
        tipl.TrialWriter.resume(walks, 1)
    with pytest.raises(TiplError, match=f"{tmp_path}/no"):
        tipl.load_policy(of(tmp_path / "no.safetensors"))
    assert tipl.load_forecaster(of(Path("causal")), [(3,)]).name == "causal"
    assert tipl.jumps_of(of(Path("line"))) == tipl.jumps_of("line") != tipl.jumps_of("causal")
    line = tipl.JumpingOptimizer(torch.optim.SGD(torch.nn.Linear(1, 1).parameters()), of(Path("line")))
    assert line.state_dict()["forecaster"] == "line-6"


SETTINGS = [
    CollectConfig, DiscreteCollectConfig, PPOConfig, CompactConfig, SVDConfig, TrainConfig, CausalTrainConfig,
    EvaluateConfig, JumpConfig,
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, "", b"a", -1, 10**400, object(), [None], {}])
def test_no_field_of_any_settings_takes_what_has_no_meaning_there(settings: Any, value: Any):
    """A field takes a hostile value in its own type, or the line names its flag."""
    for name, default in vars(settings()).items():
        try:
            made = getattr(settings(**{name: value}), name)
        except TiplError as error:
            assert f"--{name.replace('_', '-')}" in str(error).replace("--ppo.", "--")
        else:
            meant = value == default or (name == "ent_coef" and value == -1)
            assert made == value and meant and isinstance(made, type(default))


def test_networks_that_no_memory_holds_are_refused_before_they_are_made():
    with pytest.raises(TiplError, match="networks of 199,999,998 weights or more; up to 100,000,000"):
        CollectConfig(hidden_sizes=(99_999_999,))


@pytest.mark.parametrize("basis", ["full", "pooled"])
def test_a_window_is_for_the_bases_that_have_one(basis: Any):
    with pytest.raises(TiplError, match=f"--window has no effect on the basis {basis}"):
        SVDConfig(basis=basis, window=7)
    assert SVDConfig(basis="window", window=7).window == 7
