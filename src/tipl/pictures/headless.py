"""Drawing without a display: which OpenGL works here.

In: an environment that draws.  Out: MUJOCO_GL set to what works, or one line about what to install.

What was tried in a process stays loaded in it, and some of it ends the process. So each is tried in one of its own.
"""

import os
import subprocess
import sys
from functools import cache
from typing import Any

from tipl.errors import TiplError

_KINDS = ("egl", "osmesa")
_TRIAL = """
import mujoco
from mujoco.{0} import GLContext
context = GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
"""


def draw_without_display(env: Any) -> None:
    """Make sure that a Gymnasium environment can draw in this process, if its OpenGL is MuJoCo's.

    Raises:
        TiplError: there is no OpenGL that works.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame's, which otherwise complains
    if not hasattr(env.unwrapped, "mujoco_renderer") or os.environ.get("MUJOCO_GL"):
        return
    found = working_gl()
    if found is None:
        raise TiplError(
            "MuJoCo cannot draw here: neither EGL nor OSMesa works; `apt-get install libegl1 libgl1-mesa-dri`, or "
            "`libosmesa6`, brings one, and MUJOCO_GL=glfw takes a display."
        )
    os.environ["MUJOCO_GL"] = found


@cache
def working_gl() -> str | None:
    """Return the first OpenGL without a display that MuJoCo can draw with; None: there is none."""
    return next((kind for kind in _KINDS if _works(kind)), None)


def _works(kind: str) -> bool:
    command = [sys.executable, "-c", _TRIAL.format(kind)]
    try:
        return not subprocess.run(
            command, env={**os.environ, "MUJOCO_GL": kind}, capture_output=True, timeout=60
        ).returncode
    except subprocess.TimeoutExpired:
        return False
