"""Videos of policies: what they show is what was earned, and they are what their names say.

In: small stores of InvertedPendulum and CartPole.  Out: failures.
"""

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_envs  # noqa: F401 - registers
from PIL import Image, ImageSequence

from tipl.collection.collect import run_stack
from tipl.config.presets import DiscreteCollectConfig, DiscretePPOConfig
from tipl.errors import TiplError
from tipl.forecasting.forecast import forecast, foretold
from tipl.pictures import frames, headless
from tipl.pictures.video import film_to, video
from tipl.rl.returns import Policies, policy_returns
from tipl.store import Store, create_store


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trial, 33 snapshots, which needs no OpenGL to be drawn."""
    path = tmp_path_factory.mktemp("cartpole") / "store"
    ppo = DiscretePPOConfig(num_envs=4, num_steps=64)
    config = DiscreteCollectConfig(env_id="CartPole-v1", trials=1, total_steps=16 * 256, hidden_sizes=(8,), ppo=ppo)
    create_store(path)
    run_stack(config, path, config.seeds, lambda seeds, result: None)
    return path


@pytest.fixture
def gl() -> str:
    found = os.environ.get("MUJOCO_GL") or headless.working_gl()
    if found is None:
        pytest.skip("needs OpenGL to draw MuJoCo: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6")
    return found


def three_policies(store: Path, seed: int, origin: int, horizon: int) -> tuple[Any, Policies]:
    """At the origin, forecast, and true, all under the origin's normalizer, without any code of the videos."""
    data = Store.open(store)
    trial = data.trial(seed)
    made = foretold(data, trial, origin, [horizon]).weights_HP[0]
    weights = np.stack([trial.weights()[origin], made, trial.weights()[origin + horizon]])
    mean, var = (np.repeat(each[origin][None], 3, axis=0) for each in (trial.obs_mean, trial.obs_var))
    return trial, Policies(weights, mean, var)


def read(path: Path) -> list[Image.Image]:
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def gif_frames(file: Any) -> list[np.ndarray]:
    """[H, W, 3] float64 each."""
    with Image.open(file) as gif:
        return [np.asarray(frame.convert("RGB"), np.float64) for frame in ImageSequence.Iterator(gif)]


def test_an_mp4_shows_what_policy_returns_measures(small_store: Path, tmp_path: Path, gl: str):
    """InvertedPendulum, which was collected in EnvPool and is drawn in Gymnasium."""
    av = pytest.importorskip("av")
    out = tmp_path / "film.mp4"
    made = video(small_store, out, trial=2, origin=20, horizon=20, episodes=3, seed=7, seconds=2, size=96)
    trial, policies = three_policies(small_store, 2, 20, 20)
    true = policy_returns(policies, trial.env_id, trial.config["hidden_sizes"], 3, seed=7, backend="gymnasium")
    assert [each.shown_return for each in made.policies] == true[:, 0].tolist()
    assert [each.mean_return for each in made.policies] == true.mean(axis=1).tolist()
    assert [each.policy for each in made.policies] == ["snapshot 20", "forecast, 20 ahead", "what came, 20 later"]
    assert len({*true[:, 0]}) > 1 and made.frames <= 2 * 25 + 2  # a second has 25 frames of this environment
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.format.name) == ("h264", "yuv420p")
        assert (stream.codec_context.width, stream.codec_context.height) == (320, 96 + 98)
    shown = read(out)
    assert len(shown) == made.frames + round(1.5 * made.fps)
    for n, color in enumerate(((0x6B, 0x72, 0x80), (0xD0, 0x45, 0x0C), (0x24, 0x50, 0xC8))):
        bar: Any = shown[0].getpixel((8 + 104 * n + 48, 5))
        assert np.abs(np.array(bar) - color).max() < 40  # colors have half the resolution
    first, last = (np.asarray(image, np.float64)[46:142] for image in (shown[0], shown[-1]))
    assert np.abs(first - last).mean() > 10  # something has moved, or is dimmed


def test_pictures_move_as_the_environment_draws_them(cartpole: Path, tmp_path: Path):
    """The picture after n steps by a policy that `Trial.policy` gives, stepped here in an environment of our own."""
    pytest.importorskip("pygame")
    import gymnasium

    out = tmp_path / "film.gif"
    made = video(cartpole, out, snapshots=(0, 32), episodes=2, seed=3, seconds=60, size=600)
    trial = Store.open(cartpole).trial(1)
    policies = Policies(trial.weights()[[0, 32]], trial.obs_mean[[0, 32]], trial.obs_var[[0, 32]])
    how: dict[str, Any] = {"obs_clip": None, "backend": "gymnasium"}
    true = policy_returns(policies, trial.env_id, trial.config["hidden_sizes"], 2, seed=3, **how)
    assert [each.shown_return for each in made.policies] == true[:, 0].tolist()
    assert [each.steps for each in made.policies] == true[:, 0].tolist()  # a reward of one a step
    env = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    obs, _ = env.reset(seed=int(np.random.SeedSequence(3).generate_state(1)[0] >> 1))
    policy, drawn = trial.policy(32), []
    while True:
        drawn.append(np.asarray(env.render(), np.float64))
        obs, _, terminated, truncated, _ = env.step(int(policy(obs)))
        if terminated or truncated:
            break
    env.close()
    stride = round(made.speed * 50 / made.fps)  # CartPole has 50 steps a second
    assert stride == 3 and made.frames == len(range(0, int(max(true[:, 0])) + 1, stride)) + 1
    shown = [frame[46:446, 616:1216] for frame in gif_frames(out)]
    assert len(shown) == made.frames
    steps = range(0, len(drawn) - stride, stride)  # afterwards it is dimmed
    right = [np.abs(shown[n] - drawn[step]).mean() for n, step in enumerate(steps)]
    later = [np.abs(shown[n] - drawn[step + stride]).mean() for n, step in enumerate(steps)]
    assert max(right) < 0.2 and np.mean(later) > 3 * np.mean(right)


def test_a_long_episode_is_shown_faster_and_to_its_end(cartpole: Path, tmp_path: Path):
    pytest.importorskip("pygame")
    slow, fast = (
        video(cartpole, tmp_path / f"{seconds}.gif", snapshots=(32,), episodes=1, seconds=seconds, size=64)
        for seconds in (60, 0.3)
    )
    assert fast.policies == slow.policies and fast.frames <= 0.3 * fast.fps + 2 < slow.frames
    assert fast.speed >= 2 * slow.speed


def test_files_and_stores_side_by_side(cartpole: Path, tmp_path: Path):
    pytest.importorskip("pygame")
    file = tmp_path / "mine.safetensors"
    told = forecast(cartpole, 1, 10, 5, file, episodes=4, seed=1)
    made = video([cartpole, file], tmp_path / "film.gif", origin=10, horizon=5, episodes=4, seed=1, seconds=1, size=64)
    assert [each.policy for each in made.policies][1::2] == ["forecast, 5 ahead", "mine"]
    assert made.policies[1].shown_return == made.policies[3].shown_return
    assert (told.origin_return, told.predicted_return) is not None  # in EnvPool, where seeds give other states


def test_what_cannot_be_shown_is_said_in_one_line(cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(**given: Any) -> str:
        with pytest.raises(TiplError) as told:
            video(**{"sources": cartpole, "out": tmp_path / "x.gif", "origin": 3, "episodes": 1, **given})
        assert not list(tmp_path.glob("x.*"))
        return str(told.value)

    assert "one of the endings .mp4, .gif" in refused(out=tmp_path / "x.avi")
    assert "is a data set" in refused(out=cartpole / "x.gif")
    assert "snapshots 0 to 32" in refused(origin=33)
    assert "snapshots 0 to 32" in refused(snapshots=(1, 33), origin=None)
    assert "--stretch has no effect on --snapshots" in refused(snapshots=(1,), origin=None, stretch=2)
    assert "--origin has no effect on --snapshots" in refused(snapshots=(1,), origin=0)
    assert "has no trial 5" in refused(trial=5)
    assert "at least 64" in refused(size=8)
    assert "give 1 to 8" in refused(snapshots=(1,) * 9, origin=None)
    assert "There is no" in refused(sources=tmp_path / "nothing.safetensors")
    monkeypatch.setitem(sys.modules, "av", None)
    assert "tipl[video]" in refused(out=tmp_path / "x.mp4")


def test_an_environment_that_draws_nothing(cartpole: Path, tmp_path: Path):
    from dataclasses import replace

    from tipl.config.env_spec import EnvId
    from tipl.pictures.shown import of_trial

    data = Store.open(cartpole)
    shown, _ = of_trial(data, data.trial(1), 3, 1, (3,))
    blind = replace(shown[0], env_id=EnvId("toy/Toy-v0"), policies=Policies(np.zeros((1, 34)), *np.ones((2, 1, 2))))
    with pytest.raises(TiplError, match="draws no pictures"):
        film_to([blind], tmp_path / "x.gif", episodes=1)


def test_the_camera_follows_what_walks():
    """By the model's own camera; where there is none it stands further back, and one that was asked for is kept."""
    import gymnasium

    from tipl.config.env_spec import quiet_making
    from tipl.pictures.episodes import keep_in_view

    def renderer(env_id: str, **given: Any) -> Any:
        with quiet_making():
            env = gymnasium.make(env_id, **given)
        keep_in_view(env, 100)
        return env.unwrapped.mujoco_renderer  # pyright: ignore[reportAttributeAccessIssue]

    assert renderer("HalfCheetah-v5").camera_id == 0 and renderer("Hopper-v5").camera_id == 0
    assert renderer("Humanoid-v5", camera_id=1).camera_id == 1
    pendulum = renderer("InvertedPendulum-v5")
    assert pendulum.camera_id == -1 and pendulum.default_cam_config["distance"] == pytest.approx(1.4 * 2.04)
    assert (pendulum.width, pendulum.height) == (100, 100)


def test_an_environment_of_envpool_alone():
    from tipl.config.env_spec import EnvId
    from tipl.pictures.shown import require_gymnasium

    with pytest.raises(TiplError, match="EnvPool alone"):
        require_gymnasium(EnvId("CheetahRun-v1", {"backend": "envpool"}))
    require_gymnasium(EnvId("CartPole-v1", {"backend": "envpool"}))


def test_without_opengl_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    class Env:
        mujoco_renderer = None

        @property
        def unwrapped(self) -> "Env":
            return self

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(headless, "working_gl", lambda: None)
    with pytest.raises(TiplError, match=r"libegl1.*libosmesa6"):
        headless.draw_without_display(Env())
    assert "MUJOCO_GL" not in os.environ


def test_amounts_are_short():
    given = {1000.0: "1,000", -3.25: "−3.2", 9.0: "9", 12345.6: "12,346", 0.0: "0"}
    assert {value: frames.amount(value) for value in given} == given


def test_encoders_keep_a_frame_of_one_color(tmp_path: Path):
    av = pytest.importorskip("av")
    colors = [(200, 30, 30), (30, 160, 60), (40, 60, 200)]
    images = [Image.new("RGB", (64, 48), color) for color in colors]
    with av.open(io.BytesIO(frames.as_mp4(images, 10)), "r") as container:
        back = [frame.to_image() for frame in container.decode(video=0)]
    assert len(back) == 3 + 15
    for image, color in zip(back, colors, strict=False):
        assert np.abs(np.asarray(image, np.float64).mean((0, 1)) - color).max() < 8
    assert [frame[5, 5].tolist() for frame in gif_frames(io.BytesIO(frames.as_gif(images, 10)))] == [*map(list, colors)]
