"""The picture of a path: its plane, its heights and what is drawn on it, against plain linear algebra.

In: a small store.  Out: failures.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tipl.cli.main import main
from tipl.collection.random_walk import random_walk
from tipl.errors import TiplError
from tipl.forecasting.forecast import foretold
from tipl.pictures.landscape import Landscape, episodes_of, landscape
from tipl.pictures.picture import picture
from tipl.pictures.returns import plot_returns
from tipl.reporting.curves import returns_panel
from tipl.rl.returns import Policies, policy_returns
from tipl.store import Store

ORIGIN, HORIZONS, PAST, GRID, EPISODES = 40, [1, 5, 10], 15, 4, 3


def measured(store: Path, plane: Any, parts: Path) -> tuple[Any, np.ndarray, Landscape]:
    data = Store.open(store)
    trial = data.trial(2)
    made = foretold(data, trial, ORIGIN, HORIZONS).weights_HP[None].astype(np.float64)
    told: list[int] = []
    found = landscape(
        trial, [ORIGIN], HORIZONS, made, PAST, plane, GRID, EPISODES, 5, parts, lambda count, note: told.append(count)
    )
    assert sum(told) == episodes_of(trial, [ORIGIN], HORIZONS, PAST, GRID, EPISODES) == 3 * (16 + 26 + 3)
    return trial, made, found


def returns(trial: Any, weights: np.ndarray) -> np.ndarray:
    mean, var = (np.repeat(each[ORIGIN][None], len(weights), axis=0) for each in (trial.obs_mean, trial.obs_var))
    sizes = trial.config["hidden_sizes"]
    return policy_returns(Policies(weights, mean, var), trial.env_id, sizes, EPISODES, seed=5)


def test_the_plane_of_the_path_is_that_of_its_singular_vectors(small_store: Path, tmp_path: Path):
    trial, made, found = measured(small_store, "path", tmp_path)
    np.testing.assert_array_equal(found.snapshots_S, np.arange(25, 51))
    path = trial.weights().astype(np.float64)
    moved = path[25:51] - path[ORIGIN]
    _, values, axes = np.linalg.svd(moved, full_matrices=False)
    signs = np.sign(axes[:2] @ moved[-1])
    axes = axes[:2] * signs[:, None]
    np.testing.assert_allclose(found.path_S2, moved @ axes.T, atol=1e-8)
    np.testing.assert_allclose(found.share_2, (values**2)[:2] / (values**2).sum(), rtol=1e-8)
    rest = moved - (moved @ axes.T) @ axes
    np.testing.assert_allclose(found.off_S, np.linalg.norm(rest, axis=1), atol=1e-7)
    np.testing.assert_allclose(found.forecasts_OH2[0], (made[0] - path[ORIGIN]) @ axes.T, atol=1e-8)
    for i, j in ((0, 0), (2, 3), (3, 1)):
        x, y = found.grid_G2[j, 0], found.grid_G2[i, 1]
        expected = returns(trial, (path[ORIGIN] + x * axes[0] + y * axes[1])[None])
        assert found.height_GG[i, j] == pytest.approx(expected.mean(), rel=0.02)  # float32 of another order
    true = returns(trial, path[25:51])
    np.testing.assert_allclose(found.path_S.mean, true.mean(axis=1))
    np.testing.assert_allclose(found.path_S.error, true.std(axis=1, ddof=1) / np.sqrt(3))
    np.testing.assert_allclose(found.forecasts_OH.mean[0], returns(trial, made[0]).mean(axis=1))
    span = found.grid_G2[-1] - found.grid_G2[0]
    assert span[0] == pytest.approx(span[1])  # a length is a length
    drawn = np.concatenate([found.path_S2, found.forecasts_OH2[0]])
    assert (drawn > found.grid_G2[0]).all() and (drawn < found.grid_G2[-1]).all()


def test_the_plane_of_a_forecast_holds_it_and_the_truth(small_store: Path, tmp_path: Path):
    trial, made, found = measured(small_store, "forecast", tmp_path)
    true, forecast = (each - trial.weights()[ORIGIN].astype(np.float64) for each in (trial.weights()[50], made[0, -1]))
    np.testing.assert_allclose(found.path_S2[-1], np.array([np.linalg.norm(true), 0]), atol=1e-6)
    assert found.off_S[-1] < 1e-6 and found.forecasts_off_OH[0, -1] < 1e-6 < found.off_S[0]
    np.testing.assert_allclose(found.forecasts_OH2[0, -1, 0], forecast @ true / np.linalg.norm(true))
    assert np.linalg.norm(found.forecasts_OH2[0, -1]) == pytest.approx(np.linalg.norm(forecast))
    assert found.forecasts_OH2[0, -1, 1] > 0


def test_the_files(small_store: Path, tmp_path: Path):
    how: dict[str, Any] = {"trial": 2, "origins": (30, 40), "horizon": 10, "grid": 3, "episodes": 2}
    made = picture(small_store, tmp_path / "p.svg", **how)
    assert made.grid_points == 9 and made.origins == (30, 40) and 0 < sum(made.share_of_the_path) <= 1
    picture(small_store, tmp_path / "again.svg", **how)
    assert (tmp_path / "p.svg").read_bytes() == (tmp_path / "again.svg").read_bytes()
    picture(small_store, tmp_path / "p.png", plane="forecast", **how)
    picture(small_store, tmp_path / "p.pdf", **how)
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / "p.png") as image:
        colors = np.asarray(image.convert("RGB"), np.int64).reshape(-1, 3)
    for color in ((0xD0, 0x45, 0x0C), (0x24, 0x50, 0xC8), (0x11, 0x18, 0x27)):  # forecast, truth, path
        assert (np.abs(colors - color).max(axis=1) < 6).sum() > 100


def test_a_picture_that_was_stopped_goes_on(small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of four rows, the forecasts and the path, each is run once; the picture is that of one go."""
    ran, left = [], [3]

    def stopping(*given: Any, **how: Any) -> np.ndarray:
        if len(ran) == left[0]:
            raise KeyboardInterrupt
        ran.append(1)
        return policy_returns(*given, **how)

    monkeypatch.setattr("tipl.pictures.landscape.policy_returns", stopping)
    how: dict[str, Any] = {"trial": 2, "horizon": 5, "past": 3, "grid": 4, "episodes": 1}
    with pytest.raises(KeyboardInterrupt):
        picture(small_store, tmp_path / "p.png", **how)
    assert [each.name for each in tmp_path.iterdir()] == ["p.png.parts"]
    left[0] = 6
    picture(small_store, tmp_path / "p.png", **how)
    left[0] = 12
    picture(small_store, tmp_path / "again.png", **how)
    assert {each.name for each in tmp_path.iterdir()} == {"p.png", "again.png"} and len(ran) == 12
    assert (tmp_path / "p.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_what_cannot_be_drawn_is_said_in_one_line(small_store: Path, tmp_path: Path):
    def refused(name: str = "x.svg", **given: Any) -> str:
        with pytest.raises(TiplError) as told:
            picture(small_store, tmp_path / name, **{"episodes": 1, "grid": 3, **given})
        assert not [*tmp_path.iterdir()]
        return str(told.value)

    assert "endings" in refused("x.bmp")
    assert "no true displacement" in refused(trial=2, origins=(75,), plane="forecast")
    assert "rising order" in refused(trial=2, origins=(9, 3))
    assert "snapshots 0 to 80" in refused(trial=2, origins=(81,))
    assert "at least 3" in refused(grid=2)
    assert "less than two directions" in refused(trial=2, origins=(0,), horizon=1)


def test_learning_curves_of_the_trials(small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A curve a trial, and their mean, of which the middle is known."""
    assert main(["data", "info", str(small_store), "--plot", str(tmp_path / "curves.svg")]) == 0
    assert "InvertedPendulum-v4" in capsys.readouterr().out
    root = ElementTree.fromstring((tmp_path / "curves.svg").read_text())
    keys = [node.get("id", "") for node in root.iter("{http://www.w3.org/2000/svg}g")]
    data = Store.open(small_store)
    assert sum(key.startswith("key-") for key in keys) == len(data.seeds) + 1
    plot_returns(small_store, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 500
    trial = data.trial(1)
    panel = returns_panel("", {"1": (trial.episodes.step.tolist(), trial.episodes.episode_return.tolist())}, [])
    assert panel is not None and len(panel.series) == 1
    early = trial.episodes.step < trial.episodes.step[-1] / 120
    assert panel.series[0].y[0] == pytest.approx(trial.episodes.episode_return[early].mean())
    random_walk(tmp_path / "walk", trials=1, snapshots=4, dim=2)
    with pytest.raises(TiplError, match="No episode has ended"):
        plot_returns(tmp_path / "walk", tmp_path / "none.svg")
