"""One episode of each of several policies, from the same initial state, stepped together and drawn.

In: policies of one environment, a seed.  Out: the pictures, and what had been earned by each of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tipl.config.env_spec import quiet_making
from tipl.errors import TiplError
from tipl.pictures.headless import draw_without_display
from tipl.pictures.shown import Shown
from tipl.rl.envs import GymnasiumEnv
from tipl.rl.kernels import activation_code
from tipl.rl.policies import layer_sizes
from tipl.rl.returns import MAX_EPISODE_STEPS, act_frozen, episode_seeds

_MODE = "rgb_array"
_USUAL_FPS = 30  # of an environment that does not say
_FREE_CAMERA, _BACK = -1, 1.4  # as Gymnasium numbers it; times as far away as it stands by default


@dataclass(frozen=True)
class View:
    """A policy at one moment of its episode."""

    image: Image.Image
    earned: float
    """So far."""
    step: int
    over: bool


@dataclass(frozen=True)
class Film:
    frames: list[list[View]]
    """Of each moment, a view a policy."""
    fps: float
    """Frames a second that are shown."""
    speed: float
    """Times as fast as the environment's own time."""


def filmed(
    shown: Sequence[Shown], seed: int, size: int, seconds: float, most_fps: float,
    advance: Callable[[int, str], None] = lambda steps, note: None,
) -> Film:  # fmt: skip
    """Run one episode of each policy to its end, the first of `policy_returns` with this seed, and draw it.

    A longer one than `seconds` is shown faster: of its steps every second is left out, and again, until it fits.

    Args:
        size: pixels of an image's longer side.
        advance: told how many steps were made.

    Raises:
        TiplError: the environment draws no pictures, OpenGL is missing, or an episode does not end.
    """
    runs = [_Run(each, int(episode_seeds(seed, 1)[0]), size) for each in shown]
    try:
        own_fps = runs[0].fps
        stride = max(1, round(own_fps / most_fps))
        fps = own_fps / stride
        most = max(2, int(seconds * fps))
        frames = [[run.view() for run in runs]]
        for step in range(1, MAX_EPISODE_STEPS + 2):
            going = [run for run in runs if not run.over]
            if not going:
                break
            if step > MAX_EPISODE_STEPS:
                raise TiplError(
                    f"An episode of {shown[0].env_id} has not ended after {MAX_EPISODE_STEPS:,} steps; give the "
                    "environment a time limit."
                )
            for run in going:
                run.step()
            advance(len(going), "")
            if step % stride == 0:
                frames.append([run.view() for run in runs])
                if len(frames) > most:
                    frames, stride = frames[::2], 2 * stride
        last = [run.view() for run in runs]
    finally:
        for run in runs:
            run.close()
    return Film([*frames, last], fps, stride * fps / own_fps)


class _Run:
    """One policy in one environment that draws."""

    def __init__(self, shown: Shown, seed: int, size: int) -> None:
        self._shown, self._size = shown, size
        blind = f"{shown.env_id} draws no pictures; its policies can be run, and not looked at."
        try:
            self._env = GymnasiumEnv(shown.env_id, [seed], render_mode=_MODE)
        except TiplError as error:
            raise TiplError(blind) if "'render_mode'" in str(error) else error from error
        self._gym: Any = self._env.copies[0]
        metadata = self._gym.metadata
        if _MODE not in (metadata.get("render_modes") or ()):
            raise TiplError(blind)
        draw_without_display(self._gym)
        keep_in_view(self._gym, size)
        self.fps = float(metadata.get("render_fps") or _USUAL_FPS)
        self.earned, self.steps, self.over = 0.0, 0, False
        self._sizes = layer_sizes(self._env.obs_dim, shown.config["hidden_sizes"], self._env.policy_outputs)
        self._only, self._action = np.zeros(1, np.int64), np.empty((1, self._env.action_dim))
        self._silence = np.zeros((1, self._env.policy_outputs), np.float32)
        self._view: View | None = None
        with quiet_making():
            self._obs = self._env.reset(self._only)

    def step(self) -> None:
        policies, how = self._shown.policies, self._shown.how
        clip = np.inf if how["obs_clip"] is None else how["obs_clip"]
        act_frozen(policies.weights, self._only, self._obs, policies.obs_mean, policies.obs_var, self._sizes,
                   self._silence, self._action, clip, activation_code(how["activation"]))  # fmt: skip
        self._obs, reward, terminated, truncated = self._env.step(self._action, self._only)
        self.earned += float(reward[0])
        self.steps += 1
        self.over = bool(terminated[0] or truncated[0])
        if not math.isfinite(self.earned) or not np.isfinite(self._obs).all():
            raise TiplError(f"{self._shown.env_id} gave what is not finite; mend the environment.")

    def view(self) -> View:
        """As it looks now; of an episode that is over, the same again."""
        if self._view is None or self._view.step != self.steps:
            self._view = View(self._image(), self.earned, self.steps, self.over)
        return self._view

    def _image(self) -> Image.Image:
        with _told(self._shown):
            drawn = np.asarray(self._gym.render())
        if drawn.ndim != 3 or drawn.shape[2] != 3 or drawn.dtype != np.uint8:
            raise TiplError(f"{self._shown.env_id} draws no pictures of red, green and blue bytes.")
        image = Image.fromarray(drawn)
        ratio = self._size / max(image.size)
        whole = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        return image if image.size == whole else image.resize(whole, Image.Resampling.LANCZOS)

    def close(self) -> None:
        with _told(self._shown):
            self._gym.close()


def keep_in_view(env: Any, size: int) -> None:
    """Let MuJoCo's camera follow what walks, by the model's own camera, unless the environment asks for another; stand
    further back where there is none."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None:
        return
    renderer.width = renderer.height = size
    if renderer.camera_id != _FREE_CAMERA:
        return
    import mujoco

    track: int = mujoco.mj_name2id(env.unwrapped.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")  # pyright: ignore
    if track >= 0:
        renderer.camera_id = track
    elif "distance" in (renderer.default_cam_config or {}):
        distance = _BACK * renderer.default_cam_config["distance"]
        renderer.default_cam_config = {**renderer.default_cam_config, "distance": distance}


@contextmanager
def _told(shown: Shown) -> Iterator[None]:
    """In one line what drawing runs into."""
    try:
        with quiet_making():
            yield
    except Exception as error:  # whatever an environment, OpenGL or a library that is missing has to say
        reason = (str(error).splitlines() or [""])[0]
        raise TiplError(f"{shown.env_id} cannot be drawn here ({type(error).__name__}: {reason[:200]}).") from error
