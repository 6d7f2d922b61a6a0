"""Accelerate Stable-Baselines3's PPO: one callback.

pip install 'tipl[sb3]'
python examples/accelerate_sb3.py
"""

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from tipl.integrations.sb3 import SB3Accelerator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-id", default="InvertedPendulum-v4")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--forecaster", default="line")
    arguments = parser.parse_args()
    env = VecNormalize(make_vec_env(arguments.env_id, seed=1))
    model = PPO("MlpPolicy", env, seed=1, device="cpu")
    callback = SB3Accelerator(arguments.forecaster)
    model.learn(arguments.steps, callback=callback)
    print(dict(callback.accelerator.counts))


if __name__ == "__main__":
    main()
