"""Draw the moving picture of README.md: a policy now, its forecast, and what it really became, beside the path.

In: a store of InvertedPendulum, whose trial the shipped model has not learned from.  Out: moving.gif.

    tipl reproduce inverted-pendulum --preset quick
    python docs/pictures/moving_picture.py runs/inverted-pendulum-quick/store

The first test trial, origins at equal distances, one episode from one initial state; the pendulum is drawn from what
the policies observe (position of the cart, angle of the pole). All three policies act under the origin's normalizer.
The plane of the path is that of the two largest principal components of the whole run: it serves the eye only.
"""

import argparse
import io
import warnings
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import tipl

ORIGINS, HORIZON = (5, 15, 25, 35, 45, 55), 20
STEPS, STEPS_A_FRAME, MILLISECONDS = 180, 6, 80
EPISODES = 20  # behind the returns that are written
COLORS = {"now": "#777777", "forecast": "#d6604d", "what came": "#2166ac"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("moving.gif"))
    arguments = parser.parse_args()
    store = tipl.Store.open(arguments.store)
    frames = [frame for origin in ORIGINS for frame in scene(store.trial(store.split().test[0]), origin)]
    palette = frames[len(frames) // 2].quantize(24)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(arguments.out, save_all=True, append_images=others, duration=MILLISECONDS, loop=0, optimize=True)
    print(f"{arguments.out}: {len(frames)} frames, {arguments.out.stat().st_size / 1e6:.2f} MB")


def scene(trial: tipl.Trial, origin: int) -> list[Image.Image]:
    """Return the frames of one origin: three pendulums fall or stand, the forecast lies on the path."""
    weights_TP = trial.weights()
    forecaster = tipl.CausalForecaster.from_pretrained("causal", shapes=trial.spec.shapes)
    forecast_P = forecaster.forecast([trial.history(origin)], [HORIZON])[0, 0]
    policies_MP = np.stack([weights_TP[origin], forecast_P, weights_TP[origin + HORIZON]])
    mean, var = trial.obs_mean[origin], trial.obs_var[origin]
    run = tipl.Policies(policies_MP, np.tile(mean, (3, 1)), np.tile(var, (3, 1)))
    returns = tipl.policy_returns(run, trial.env_id, trial.config["hidden_sizes"], EPISODES).mean(1)
    tensors = [trial.spec.unflatten(policy_P) for policy_P in policies_MP]
    episodes = [episode(each, mean, var, STEPS) for each in tensors]

    around = weights_TP[: ORIGINS[-1] + HORIZON + 1]
    center = around.mean(0)
    plane = np.linalg.svd(around - center, full_matrices=False)[2][:2]
    path, there = (around - center) @ plane.T, (policies_MP - center) @ plane.T
    return [
        picture(origin, step, [each[: step + 1] for each in episodes], returns, path, there)
        for step in range(0, STEPS, STEPS_A_FRAME)
    ]


def episode(tensors: dict[str, np.ndarray], mean: np.ndarray, var: np.ndarray, steps: int) -> np.ndarray:
    """Return the observations [steps at most, 4] of one episode by mean actions."""
    with warnings.catch_warnings(action="ignore"):  # that there is a newer version
        env = gymnasium.make("InvertedPendulum-v4")
    obs, _ = env.reset(seed=0)
    seen = [obs]
    layers = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    while len(seen) < steps:
        x = np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10)
        for layer in layers:
            x = tensors[f"{layer}.weight"] @ x + tensors[f"{layer}.bias"]
            x = np.tanh(x) if layer != layers[-1] else x
        obs, _, terminated, truncated, _ = env.step(np.clip(x, env.action_space.low, env.action_space.high))
        seen.append(obs)
        if terminated or truncated:
            break
    env.close()
    return np.array(seen)


def picture(
    origin: int, step: int, episodes: list[np.ndarray], returns: np.ndarray, path: np.ndarray, there: np.ndarray
) -> Image.Image:
    """Draw one frame."""
    figure = plt.figure(figsize=(8.2, 2.7), dpi=100)
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.7])
    names = ["now", f"forecast, {HORIZON} ahead", f"what came, {HORIZON} later"]
    for axis, seen, name, color, mean in zip(axes, episodes, names, COLORS.values(), returns, strict=False):
        (x, angle), fell = seen[-1, :2], len(seen) <= step
        shown = {"color": color, "alpha": 0.4 if fell else 1}
        axis.plot([-1.1, 1.1], [0, 0], color="#bbbbbb")
        axis.plot([x - 0.15, x + 0.15], [0, 0], linewidth=9, solid_capstyle="butt", **shown)
        axis.plot([x, x + 0.9 * np.sin(angle)], [0, 0.9 * np.cos(angle)], linewidth=4, **shown)
        axis.set(xlim=(-1.1, 1.1), ylim=(-0.45, 1.2), aspect="equal")
        axis.set_title(name, color=color, fontsize=9)
        axis.text(0, -0.4, f"{'fell: ' if fell else ''}step {len(seen) - 1}", ha="center", fontsize=8)
        axis.text(0, 1.06, f"mean return {mean:.0f}", ha="center", fontsize=8)
        axis.axis("off")
    plot, (now, forecast, came) = axes[3], there
    plot.plot(*path.T, color=COLORS["what came"], linewidth=0.8, alpha=0.35)
    plot.plot(*path[: origin + 1].T, color="#777777", linewidth=1.6)
    plot.plot(*path[origin : origin + HORIZON + 1].T, color=COLORS["what came"], linewidth=1.6)
    plot.annotate("", forecast, now, arrowprops={"arrowstyle": "-|>", "color": COLORS["forecast"], "linewidth": 1.8})
    for point, color in zip((now, came, forecast), ("#777777", COLORS["what came"], COLORS["forecast"]), strict=True):
        plot.plot(*point, "o", color=color, markersize=5)
    plot.set_title(f"the path in weight space, snapshot {origin}", fontsize=9)
    plot.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.6)
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        plt.close(figure)
        return Image.open(file).convert("RGB")


if __name__ == "__main__":
    main()
